//! Renews leaves at half of their life and keeps cluster.json true. It restarts nothing: what was killed stays dead.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mooseng_ports::interrupt;

use super::certs;
use super::state::{self, Cluster};
use crate::exit::Failure;
use crate::logs;

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Starts the supervisor in the background, if the cluster has none.
pub fn spawn(cluster: &Cluster) -> Result<(), Failure> {
    let log_path = cluster.dir.join("log/supervise.log");
    let fail = |e: std::io::Error| Failure::failed(format!("The supervisor couldn't be started: {e}."));
    let log = logs::open(&log_path).map_err(fail)?;
    let mut command = Command::new(state::beside("mooseng"));
    command.args(["dev", "supervise", "--dir"]).arg(&cluster.dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().map(drop).map_err(fail)
}

/// The background process. It has nothing to wait for where somebody else watches.
pub fn run(dir: &Path) -> Result<(), Failure> {
    interrupt::catch();
    watch_alone(dir, interrupt::asked);
    Ok(())
}

/// Watches, or lets somebody else watch, until the cluster is down, its directory is gone, or `ended`.
pub fn watch(dir: &Path, ended: impl Fn() -> bool) -> Result<(), Failure> {
    if !watch_alone(dir, &ended) {
        // In the foreground there is still Ctrl-C to wait for.
        while !ended() && is_up(dir) {
            std::thread::sleep(TICK);
        }
    }
    Ok(())
}

/// Watches until the cluster is down, its directory is gone, or `ended`. False, at once, where somebody else watches already.
fn watch_alone(dir: &Path, ended: impl Fn() -> bool) -> bool {
    let Ok(_only_one) = state::lock(dir, "supervise.lock", Duration::from_secs(1)) else { return false };
    let (mut renewal, mut look) = (Instant::now(), Instant::now());
    while !ended() && is_up(dir) {
        if look <= Instant::now() {
            bound_logs(dir);
            look = Instant::now() + logs::LOOK;
        }
        if renewal <= Instant::now() {
            let pause = certs::renew_due(dir).unwrap_or_else(|failure| {
                eprintln!("ERROR Certificates couldn't be renewed: {failure}");
                Duration::from_secs(1)
            });
            renewal = Instant::now() + pause;
        }
        // Somebody who holds the lock saves what is true, too.
        if let Ok(guard) = state::lock(dir, "dev.lock", Duration::ZERO) {
            drop(guard);
            refresh(dir);
        }
        std::thread::sleep(TICK);
    }
    true
}

/// Those of all processes, which write as long as the cluster runs.
fn bound_logs(dir: &Path) {
    let entries = std::fs::read_dir(dir.join("log")).into_iter().flatten().flatten();
    let of_logs =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log"));
    of_logs.for_each(|path| logs::bound(&path));
}

fn refresh(dir: &Path) {
    match Cluster::open(dir) {
        Ok(_) => {}
        Err(_) if !dir.exists() => {}
        Err(failure) => eprintln!("ERROR cluster.json can't be kept true: {failure}"),
    }
}

/// Whether the cluster is meant to run.
fn is_up(dir: &Path) -> bool {
    let read = std::fs::read(dir.join("dev.json"))
        .ok()
        .and_then(|b| serde_json::from_slice::<state::State>(&b).ok());
    read.is_some_and(|s| s.up)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::super::plan::tests::up;
    use super::*;

    #[test]
    fn a_second_supervisor_leaves_a_running_cluster_to_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::open_or(dir.path(), || Plan::new(&up(), dir.path())).unwrap();
        cluster.state.up = true;
        cluster.save().unwrap();
        drop(cluster);
        let first = state::lock(dir.path(), "supervise.lock", Duration::ZERO).unwrap();
        assert!(!watch_alone(dir.path(), || false));
        drop(first);
        assert!(watch_alone(dir.path(), || true));
    }
}
