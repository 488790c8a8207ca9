//! A killed process is never stuck.
//!
//! The kernel waits for the answer to a request that was read from the device even when the requesting process has been killed, and
//! fuser doesn't pass FUSE_INTERRUPT on. So a request that takes longer than a second looks, now and then, whether a SIGKILL
//! waits for its process, and is then answered EINTR. Who waits for a lock may wait for long: any signal ends that which the process neither
//! blocks nor ignores.

use std::time::Duration;

use mooseng_client::FsError;

const FIRST_LOOK: Duration = Duration::from_secs(1);
const NEXT_LOOK: Duration = Duration::from_millis(250);
/// Waits for locks are looked at sooner, for programs that bound them by a timer.
const LOCK_FIRST_LOOK: Duration = Duration::from_millis(30);
/// How long a process that can't be looked at waits for a lock.
const UNSEEN_WAITS: Duration = Duration::from_secs(30);
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Runs `work` for the process (or thread) `pid`; 0 is nobody who could be killed.
pub(crate) async fn for_process<T>(
    pid: u32,
    work: impl Future<Output = Result<T, FsError>>,
) -> Result<T, i32> {
    tokio::pin!(work);
    let mut look = FIRST_LOOK;
    loop {
        tokio::select! {
            biased;
            outcome = &mut work => return outcome.map_err(report),
            () = tokio::time::sleep(look) => {
                if pid != 0 && is_killed(pid) {
                    return Err(libc::EINTR);
                }
                look = NEXT_LOOK;
            }
        }
    }
}

/// A signal that waits for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It is gone.
    Kill,
    /// It wants to handle it, or dies of it.
    Other,
}

/// Returns once a signal waits for the process (or thread) `pid`; with `kill_only`, once SIGKILL does. Nobody who can be looked at (0, or
/// hidden from us) has waited long enough after a while.
pub(crate) async fn signalled(pid: u32, kill_only: bool) -> Signal {
    let mut look = LOCK_FIRST_LOOK;
    let begun = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(look).await;
        match std::fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(status) if has_pending_kill(&status) => return Signal::Kill,
            Ok(status) if !kill_only && wants_signal(&status) => return Signal::Other,
            Ok(_) => {}
            Err(_) if !kill_only && begun.elapsed() >= UNSEEN_WAITS => return Signal::Other,
            Err(_) => {}
        }
        look = (look * 2).min(NEXT_LOOK);
    }
}

/// The error number, with a log entry where a person may have to look.
pub(crate) fn report(error: FsError) -> i32 {
    // What the application asked wrongly is its own affair.
    let ours = matches!(
        error,
        FsError::Unanswered { .. }
            | FsError::Data { .. }
            | FsError::Denied(_)
            | FsError::Malformed(_)
            | FsError::Internal(_)
            | FsError::SessionLost
    );
    if ours {
        tracing::warn!(%error, errno = error.errno(), "an operation failed");
    }
    error.errno()
}

fn is_killed(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| has_pending_kill(&status))
}

fn has_pending_kill(status: &str) -> bool {
    (mask(status, "SigPnd:") | mask(status, "ShdPnd:")) & SIGKILL_BIT != 0
}

/// Whether a signal is pending that is neither blocked nor ignored.
fn wants_signal(status: &str) -> bool {
    let pending = mask(status, "SigPnd:") | mask(status, "ShdPnd:");
    pending & !mask(status, "SigBlk:") & !mask(status, "SigIgn:") != 0
}

fn mask(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen_in_either_mask() {
        assert!(has_pending_kill("Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(has_pending_kill("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!has_pending_kill(
            "SigPnd:\t0000000000004000\nShdPnd:\t0000000000000001\nSigBlk:\tffffffffffffffff\n"
        ));
        assert!(!is_killed(std::process::id()));
    }

    #[test]
    fn a_signal_counts_that_is_neither_blocked_nor_ignored() {
        let status = |pending: &str, blocked: &str, ignored: &str| {
            format!("SigPnd:\t{pending}\nShdPnd:\t0\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\tff\n")
        };
        assert!(wants_signal(&status("4000", "0", "0")) && !wants_signal(&status("0", "0", "0")));
        assert!(!wants_signal(&status("4000", "4000", "0")) && !wants_signal(&status("4000", "0", "4000")));
        assert!(wants_signal(&status("6000", "4000", "0")));
    }

    #[tokio::test(start_paused = true)]
    async fn work_of_nobody_is_waited_for() {
        let work = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Ok(7)
        };
        assert_eq!(for_process(0, work).await, Ok(7));
    }
}
