//! `mooseng dev kill|pause|resume|start NAME`: what happens to a single process.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::plan::CLIENT;
use super::state::Cluster;
use super::{launch, up};
use crate::exit::Failure;
use crate::process::{Started, State};

/// How long a process may take to show the effect of a signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// kill -9. It stays dead until `start`.
pub fn kill(dir: &Path, name: &str) -> Result<(), Failure> {
    let mut cluster = Cluster::open(dir)?;
    let process = running(&cluster, name)?;
    send(name, process, Signal::KILL)?;
    if !process.wait_gone(PATIENCE) {
        return Err(Failure::failed(format!(
            "{name} (pid {}) doesn't end after SIGKILL: it waits in the kernel.",
            process.pid
        )));
    }
    cluster.reconcile();
    if name == CLIENT {
        cluster.state.client_http = None;
    }
    cluster.save()?;
    eprintln!("{name} (pid {}) is killed.", process.pid);
    Ok(())
}

/// SIGSTOP.
pub fn pause(dir: &Path, name: &str) -> Result<(), Failure> {
    let cluster = Cluster::open(dir)?;
    let process = running(&cluster, name)?;
    send(name, process, Signal::STOP)?;
    reach(name, process, State::Paused)?;
    eprintln!("{name} (pid {}) is paused.", process.pid);
    Ok(())
}

/// SIGCONT.
pub fn resume(dir: &Path, name: &str) -> Result<(), Failure> {
    let cluster = Cluster::open(dir)?;
    let process = running(&cluster, name)?;
    send(name, process, Signal::CONT)?;
    reach(name, process, State::Running)?;
    eprintln!("{name} (pid {}) goes on.", process.pid);
    Ok(())
}

/// Starts it, and returns once it answers. Nothing to do if it runs.
pub fn start(dir: &Path, name: &str) -> Result<(), Failure> {
    let mut cluster = Cluster::open(dir)?;
    if cluster.argv(name).is_none() {
        return Err(cluster.unknown(name));
    }
    if let Some(process) = cluster.state.running.get(name) {
        eprintln!("{name} runs already (pid {}).", process.pid);
        return Ok(());
    }
    if !cluster.state.up {
        return Err(Failure::failed(format!(
            "The cluster is down: `mooseng dev up --dir {}` starts it.",
            cluster.dir.display()
        )));
    }
    if name == CLIENT
        && let Some(path) = cluster.state.plan.mount.clone()
    {
        up::prepare_mount_point(&path)?;
    }
    launch::start(&mut cluster, name)?;
    cluster.save()?;
    // A master answers before it has a majority, and more of them may be about to be started.
    let until = if name == CLIENT { launch::Until::Ready } else { launch::Until::Answers };
    let outcome = launch::wait(&mut cluster, name, until, Instant::now() + Duration::from_secs(60));
    cluster.save()?;
    outcome?;
    eprintln!("{name} (pid {}) is started.", running(&cluster, name)?.pid);
    Ok(())
}

fn running(cluster: &Cluster, name: &str) -> Result<Started, Failure> {
    if cluster.argv(name).is_none() {
        return Err(cluster.unknown(name));
    }
    cluster.state.running.get(name).copied().ok_or_else(|| {
        Failure::failed(format!(
            "{name} doesn't run: `mooseng dev start {name} --dir {}` starts it.",
            cluster.dir.display()
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
