//! Renews leaves at half of their life and keeps cluster.json true. It restarts nothing: what was killed stays dead.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mooseng_ports::interrupt;

use super::certs;
use super::state::{self, Cluster};
use crate::exit::Failure;

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Starts the supervisor in the background, if the cluster has none.
pub fn spawn(cluster: &Cluster) -> Result<(), Failure> {
    let log_path = cluster.dir.join("log/supervise.log");
    let fail = |e: std::io::Error| Failure::failed(format!("The supervisor couldn't be started: {e}."));
    let log = File::options().create(true).append(true).open(log_path).map_err(fail)?;
    let mut command = Command::new(state::beside("mooseng"));
    command.args(["dev", "supervise", "--dir"]).arg(&cluster.dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().map(drop).map_err(fail)
}

/// The background process.
pub fn run(dir: &Path) -> Result<(), Failure> {
    interrupt::catch();
    watch(dir, interrupt::asked)
}

/// Watches until the cluster is down, its directory is gone, or `ended`. Returns at once if somebody else watches already.
pub fn watch(dir: &Path, ended: impl Fn() -> bool) -> Result<(), Failure> {
    let Ok(_only_one) = state::lock(dir, "supervise.lock", Duration::from_secs(1)) else {
        // In the foreground there is still Ctrl-C to wait for.
        while !ended() && is_up(dir) {
            std::thread::sleep(TICK);
        }
        return Ok(());
    };
    let mut renewal = Instant::now();
    while !ended() && is_up(dir) {
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
    Ok(())
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
