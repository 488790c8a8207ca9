//! Starts a process of a dev cluster and waits until it serves.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mooseng_ports::interrupt;

use super::ready::Health;
use super::state::Cluster;
use crate::exit::Failure;
use crate::process::Started;
use crate::{logs, runtime};

/// Starts the process of that name in a session of its own, its output to its log. The caller saves.
pub fn start(cluster: &mut Cluster, name: &str) -> Result<(), Failure> {
    let argv = cluster.argv(name).ok_or_else(|| cluster.unknown(name))?;
    let log_path = cluster.log_path(name);
    let log = logs::open(&log_path)
        .map_err(|e| Failure::failed(format!("The log {} can't be opened: {e}.", log_path.display())))?;
    let log_again = log
        .try_clone()
        .map_err(|e| Failure::failed(format!("The log {} can't be shared: {e}.", log_path.display())))?;
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null()).stdout(log).stderr(log_again).current_dir(&cluster.dir);
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    let child = command.spawn().map_err(|e| {
        Failure::failed(format!(
            "{name} couldn't be started ({}): {e}. The binaries must lie beside `mooseng`; build them first.",
            argv[0]
        ))
    })?;
    let started = Started::now(child.id())
        .ok_or_else(|| Failure::failed(format!("{name} ended at once.{}", tail(&log_path))))?;
    cluster.state.running.insert(name.to_owned(), started);
    cluster.state.clients_http.remove(name);
    Ok(())
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It does its work: /readyz.
    Ready,
    /// It answers: /healthz. A master without a majority gets no further.
    Answers,
}

/// Waits until the process of that name serves. A process that dies meanwhile is an error with the end of its log.
pub fn wait(cluster: &mut Cluster, name: &str, until: Until, deadline: Instant) -> Result<(), Failure> {
    let started = cluster.state.running.get(name).copied();
    let started = started.ok_or_else(|| Failure::failed(format!("{name} doesn't run.")))?;
    loop {
        let health = health(cluster, name, started, until);
        if health == Health::Ok {
            return Ok(());
        }
        if !started.is_alive() {
            started.reap();
            cluster.state.running.remove(name);
            return Err(Failure::failed(format!(
                "{name} ended before it served.{}",
                tail(&cluster.log_path(name))
            )));
        }
        if interrupt::asked() {
            return Err(Failure::failed("Interrupted."));
        }
        if Instant::now() >= deadline {
            let why = match health {
                Health::NotReady(text) | Health::Silent(text) => text,
                Health::Ok => String::new(),
            };
            return Err(Failure::unavailable(format!(
                "{name} doesn't serve in time ({why}).{}",
                tail(&cluster.log_path(name))
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn health(cluster: &mut Cluster, name: &str, started: Started, until: Until) -> Health {
    let path = if until == Until::Ready { "/readyz" } else { "/healthz" };
    if let Some(daemon) = cluster.daemon(name) {
        return cluster.ask(name, &daemon.http(), path);
    }
    // A mount writes its record once it works.
    let Some(record) = runtime::live().into_iter().find(|r| r.process == started) else {
        return Health::Silent("the mount isn't there yet".into());
    };
    match record.http {
        Some(http) => {
            cluster.state.clients_http.insert(name.to_owned(), http.clone());
            cluster.ask(name, &http, path)
        }
        None => Health::Ok,
    }
}

/// The last lines of a log, to put behind an error.
pub fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(12).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    match lines.is_empty() {
        true => format!(" Its log {} is empty.", path.display()),
        false => format!(" Its log {} ends with:\n    {}", path.display(), lines.join("\n    ")),
    }
}
