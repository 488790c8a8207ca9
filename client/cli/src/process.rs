//! Processes of others by id, without ever hitting a stranger: a process is its pid and the moment it started.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// A process that was started once; its pid may be somebody else's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of /proc/PID/stat).
    pub start_ticks: u64,
}

/// What a process does, as far as its owner cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It was stopped by a signal.
    Paused,
    /// It is gone (or a zombie that nobody has waited for).
    Dead,
}

impl State {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dead => "dead",
        }
    }
}

impl Started {
    /// The process that has this pid now.
    pub fn now(pid: u32) -> Option<Self> {
        let (_, start_ticks) = stat(pid)?;
        Some(Self { pid, start_ticks })
    }

    /// This process.
    pub fn myself() -> Option<Self> {
        Self::now(std::process::id())
    }

    /// What it does.
    pub fn state(self) -> State {
        match stat(self.pid) {
            Some((letter, ticks)) if ticks == self.start_ticks => match letter {
                'Z' | 'X' | 'x' => State::Dead,
                'T' => State::Paused,
                _ => State::Running,
            },
            _ => State::Dead,
        }
    }

    /// Whether it exists.
    pub fn is_alive(self) -> bool {
        self.state() != State::Dead
    }

    /// Sends a signal to it and to nobody else: the handle is taken first, then it is checked that it is still the one.
    /// False if it is gone.
    pub fn signal(self, signal: Signal) -> std::io::Result<bool> {
        let Some(handle) = open(self.pid)? else { return Ok(false) };
        if !self.is_alive() {
            return Ok(false);
        }
        match rustix::process::pidfd_send_signal(&handle, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until it is gone. False if it still exists when the time is over.
    pub fn wait_gone(self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            if !self.is_alive() {
                self.reap();
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the exit of a child of this process off the table; nothing for other processes.
    pub fn reap(self) {
        if let Some(pid) = Pid::from_raw(self.pid as i32) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
}

fn open(pid: u32) -> std::io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid as i32) else { return Ok(None) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => Ok(Some(handle)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// State letter and start time.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let letter = fields.next()?.chars().next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    Some((letter, ticks))
}

/// The arguments of a process; none if it is gone or has none (a kernel thread, a zombie).
pub fn argv(pid: u32) -> Option<Vec<OsString>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let bytes = bytes.strip_suffix(&[0])?;
    Some(bytes.split(|b| *b == 0).map(|a| OsString::from_vec(a.to_vec())).collect())
}

/// A living process with exactly these arguments.
pub fn find(wanted: &[String]) -> Option<Started> {
    let same = |pid: u32| {
        argv(pid).is_some_and(|argv| {
            argv.len() == wanted.len() && argv.iter().zip(wanted).all(|(a, w)| a == w.as_str())
        })
    };
    let pids =
        std::fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| same(*pid)).filter_map(Started::now).find(|p| p.is_alive())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_found_paused_and_killed() {
        let argument = format!("60.{}", std::process::id());
        let mut child = Command::new("sleep").arg(&argument).spawn().unwrap();
        let wanted = ["sleep".to_owned(), argument];
        let deadline = Instant::now() + Duration::from_secs(20);
        let found = loop {
            if let Some(found) = find(&wanted) {
                break found;
            }
            assert!(Instant::now() < deadline, "the child never showed its arguments");
        };
        assert_eq!(found.pid, child.id());
        assert!(found.signal(Signal::STOP).unwrap());
        while found.state() != State::Paused {
            assert!(Instant::now() < deadline);
        }
        assert!(found.signal(Signal::KILL).unwrap());
        assert!(found.wait_gone(Duration::from_secs(20)));
        assert!(!found.signal(Signal::KILL).unwrap());
        let _ = child.wait();
    }

    #[test]
    fn a_recycled_pid_is_a_stranger() {
        let me = Started::myself().unwrap();
        assert!(me.is_alive());
        let earlier = Started { start_ticks: me.start_ticks.wrapping_sub(1), ..me };
        assert!(!earlier.is_alive());
        assert!(!earlier.signal(Signal::KILL).unwrap());
    }
}
