//! Processes that a measurement looks at: what they have used, what they hold.

use std::io::ErrorKind;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// What it is called in reports.
    pub name: String,
    /// What it is: master, chunkserver, mount, passthrough.
    pub role: String,
    /// Its id.
    pub pid: i32,
}

impl Process {
    /// CPU seconds, user and system, of all its threads since it started.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let text = self.read("stat")?;
        // The command's name, in parentheses, may hold anything: the fields are counted behind it.
        let fields = text.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        let ticks: f64 = fields.split(' ').skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Bytes of memory of its own: anonymous pages, not the pages of files that it has mapped.
    pub fn memory_bytes(&self) -> Result<u64> {
        let text = self.read("status")?;
        let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:")).context("no RssAnon")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("RssAnon isn't a number")?;
        Ok(kib << 10)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid);
        std::fs::read_to_string(&path).with_context(|| format!("{path}: {} has ended", self.name))
    }
}

/// CPU seconds of all of them.
pub fn cpu_seconds(processes: &[Process]) -> Result<f64> {
    processes.iter().map(Process::cpu_seconds).sum()
}

/// Runs a program that must succeed within `limit`, and answers how long it took.
pub fn timed(command: &mut Command, limit: Duration) -> Result<Duration> {
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    // Blocking in wait would be exact but deaf to Ctrl-C; so a thread waits and this one looks after it.
    let pid = Pid::from_raw(child.id() as i32);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let status = child.wait();
        let _ = sender.send((status, Instant::now()));
    });
    loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok((status, ended)) => {
                let status = status?;
                if !status.success() {
                    bail!("{command:?} failed: {status}");
                }
                return Ok(ended - began);
            }
            Err(_) => {
                let stop = check_interrupt().and_then(|()| {
                    if began.elapsed() > limit { bail!("it takes over {limit:?}") } else { Ok(()) }
                });
                if let Err(reason) = stop {
                    let _ = kill(pid, Signal::SIGKILL);
                    return Err(reason.context(format!("{command:?} was ended")));
                }
            }
        }
    }
}

/// Waits for a child, kills it after `limit`.
pub fn reap(child: &mut Child, limit: Duration) -> std::io::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fails once somebody has asked this program to end, so that mounts and daemons are ended before it is.
pub fn check_interrupt() -> Result<()> {
    if mooseng_ports::interrupt::asked() {
        bail!("interrupted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_known() {
        let me = Process { name: "me".into(), role: "test".into(), pid: std::process::id() as i32 };
        let began = me.cpu_seconds().unwrap();
        let until = Instant::now() + Duration::from_millis(60);
        let mut n = 0u64;
        while Instant::now() < until {
            n = std::hint::black_box(n + 1);
        }
        assert!(me.cpu_seconds().unwrap() > began);
        assert!(me.memory_bytes().unwrap() > 1 << 16);
    }

    #[test]
    fn programs_that_fail_or_take_too_long_are_errors() {
        assert!(timed(&mut Command::new("false"), Duration::from_secs(5)).is_err());
        let error = timed(Command::new("sleep").arg("9"), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("takes over"));
    }
}
