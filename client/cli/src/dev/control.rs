//! `mooseng dev kill|pause|resume|start NAME` and `... region R`: what happens to a single process, and to all daemons of a region at once.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::state::Cluster;
use super::{launch, up};
use crate::exit::Failure;
use crate::output::shell_quote;
use crate::process::{Started, State};

/// How long a process may take to show the effect of a signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// kill -9. They stay dead until `start`.
pub fn kill(dir: &Path, target: &[String]) -> Result<(), Failure> {
    let mut cluster = Cluster::open(dir)?;
    let targets = targets(&cluster, target)?;
    for (name, process) in &targets {
        send(name, *process, Signal::KILL)?;
    }
    for (name, process) in &targets {
        if !process.wait_gone(PATIENCE) {
            return Err(Failure::failed(format!(
                "{name} (pid {}) doesn't end after SIGKILL: it waits in the kernel.",
                process.pid
            )));
        }
        cluster.state.clients_http.remove(name);
        eprintln!("{name} (pid {}) is killed.", process.pid);
    }
    cluster.reconcile();
    cluster.save()
}

/// SIGSTOP.
pub fn pause(dir: &Path, target: &[String]) -> Result<(), Failure> {
    signal(dir, target, Signal::STOP, State::Paused, "is paused")
}

/// SIGCONT.
pub fn resume(dir: &Path, target: &[String]) -> Result<(), Failure> {
    signal(dir, target, Signal::CONT, State::Running, "goes on")
}

fn signal(
    dir: &Path,
    target: &[String],
    signal: Signal,
    wanted: State,
    outcome: &str,
) -> Result<(), Failure> {
    let cluster = Cluster::open(dir)?;
    let targets = targets(&cluster, target)?;
    for (name, process) in &targets {
        send(name, *process, signal)?;
    }
    for (name, process) in &targets {
        reach(name, *process, wanted)?;
        eprintln!("{name} (pid {}) {outcome}.", process.pid);
    }
    Ok(())
}

/// Starts what doesn't run, and returns once it answers. What is paused runs, and answers nobody: it is refused.
pub fn start(dir: &Path, target: &[String]) -> Result<(), Failure> {
    let mut cluster = Cluster::open(dir)?;
    let mut names = named(&cluster, target)?;
    let is_paused = |name: &&String| {
        cluster.state.running.get(*name).is_some_and(|process| process.state() == State::Paused)
    };
    let paused: Vec<&str> = names.iter().filter(is_paused).map(String::as_str).collect();
    if let [first, ..] = paused[..] {
        return Err(Failure::failed(format!(
            "{} {} paused: `mooseng dev resume {first} --dir {}`{}.",
            paused.join(", "),
            if paused.len() == 1 { "is" } else { "are" },
            shell_quote(&cluster.dir),
            if paused.len() == 1 { "" } else { ", and so on" }
        )));
    }
    names.retain(|name| match cluster.state.running.get(name) {
        Some(process) => {
            eprintln!("{name} runs already (pid {}).", process.pid);
            false
        }
        None => true,
    });
    if !names.is_empty() && !cluster.state.up {
        return Err(Failure::failed(format!(
            "The cluster is down: `mooseng dev up --dir {}` starts it.",
            shell_quote(&cluster.dir)
        )));
    }
    for name in &names {
        if let Some(path) = cluster.mount_of(name) {
            up::prepare_mount_point(&path)?;
        }
        launch::start(&mut cluster, name)?;
        cluster.save()?;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    for name in &names {
        // A master answers before it has a majority, and more of them may be about to be started.
        let is_mount = cluster.mount_of(name).is_some();
        let until = if is_mount { launch::Until::Ready } else { launch::Until::Answers };
        let outcome = launch::wait(&mut cluster, name, until, deadline);
        cluster.save()?;
        outcome?;
        eprintln!("{name} (pid {}) is started.", running(&cluster, name)?.pid);
    }
    Ok(())
}

/// The names that are meant: one process, or a region's masters and chunkservers. Its mount is its clients', who outlive it.
fn named(cluster: &Cluster, target: &[String]) -> Result<Vec<String>, Failure> {
    match target {
        [name] if cluster.argv(name).is_some() => Ok(vec![name.clone()]),
        [word] if word == "region" => Err(Failure::usage("Which region? Give its name: `region region-1`.")),
        [name] => Err(cluster.unknown(name)),
        [word, region] if word == "region" => {
            cluster.region(region)?;
            let daemons = cluster.state.plan.daemons.iter().filter(|d| d.region == *region);
            Ok(daemons.map(|d| d.name.clone()).collect())
        }
        _ => Err(Failure::usage(format!(
            "{:?} is neither a process's name nor `region` and a region's name.",
            target.join(" ")
        ))),
    }
}

/// Those that run. A single one must; of a region some do.
fn targets(cluster: &Cluster, target: &[String]) -> Result<Vec<(String, Started)>, Failure> {
    let names = named(cluster, target)?;
    if let [name] = target {
        return Ok(vec![(name.clone(), running(cluster, name)?)]);
    }
    let alive = |name: String| cluster.state.running.get(&name).map(|process| (name, *process));
    let found: Vec<(String, Started)> = names.into_iter().filter_map(alive).collect();
    if found.is_empty() {
        return Err(Failure::failed(format!(
            "Nothing of {} runs: `mooseng dev start {} --dir {}` starts it.",
            target.join(" "),
            target.join(" "),
            shell_quote(&cluster.dir)
        )));
    }
    Ok(found)
}

fn running(cluster: &Cluster, name: &str) -> Result<Started, Failure> {
    if cluster.argv(name).is_none() {
        return Err(cluster.unknown(name));
    }
    cluster.state.running.get(name).copied().ok_or_else(|| {
        Failure::failed(format!(
            "{name} doesn't run: `mooseng dev start {name} --dir {}` starts it.",
            shell_quote(&cluster.dir)
        ))
    })
}

fn send(name: &str, process: Started, signal: Signal) -> Result<(), Failure> {
    match process.signal(signal) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::failed(format!("{name} ended meanwhile."))),
        Err(e) => Err(Failure::failed(format!("{name} (pid {}) can't be signalled: {e}.", process.pid))),
    }
}

fn reach(name: &str, process: Started, wanted: State) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while process.state() != wanted {
        if Instant::now() >= deadline {
            return Err(Failure::failed(format!(
                "{name} (pid {}) is {}, not {}.",
                process.pid,
                process.state().as_str(),
                wanted.as_str()
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::super::plan::tests::up;
    use super::*;
    use crate::args::DevUp;

    #[test]
    fn a_process_or_the_daemons_of_a_region_are_meant() {
        let dir = tempfile::tempdir().unwrap();
        let args = DevUp { regions: Some(2), masters: Some(1), chunkservers: Some(2), ..up() };
        let cluster = Cluster::open_or(dir.path(), || Plan::new(&args, dir.path())).unwrap();
        let named = |words: &str| {
            let target: Vec<String> = words.split(' ').map(str::to_owned).collect();
            named(&cluster, &target).map_err(|failure| failure.exit_code())
        };
        let all = ["master-1", "chunkserver-1", "chunkserver-2"].map(|own| format!("region-2.{own}"));
        assert_eq!(named("region region-2"), Ok(all.to_vec()));
        assert_eq!(named("region witness"), Ok(vec!["witness.master-1".to_owned()]));
        assert_eq!(named("region-1.client-1"), Ok(vec!["region-1.client-1".to_owned()]));
        assert_eq!(named("region region-3"), Err(3));
        assert_eq!(named("master-1"), Err(3));
        assert_eq!(named("region"), Err(2));
        assert_eq!(named("region-2.master-1 region-2.chunkserver-1"), Err(2));
        let target = ["region".to_owned(), "region-2".to_owned()];
        let failure = targets(&cluster, &target).unwrap_err().to_string();
        assert!(failure.contains("mooseng dev start region region-2"), "{failure}");
    }

    #[test]
    fn what_is_paused_is_resumed_and_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::open_or(dir.path(), || Plan::new(&up(), dir.path())).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Started::now(child.id()).unwrap();
        cluster.state.up = true;
        cluster.state.running.insert("master-1".into(), process);
        cluster.save().unwrap();
        drop(cluster);
        let target = ["master-1".to_owned()];
        start(dir.path(), &target).unwrap();
        send("master-1", process, Signal::STOP).unwrap();
        reach("master-1", process, State::Paused).unwrap();
        let started = start(dir.path(), &target);
        let _ = child.kill();
        let _ = child.wait();
        let failure = started.unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        let said = failure.to_string();
        assert!(said.contains("is paused: `mooseng dev resume master-1 --dir "), "{said}");
    }
}
