//! A killed process is never stuck.
//!
//! The kernel waits for the answer to a request that was read from the device even when the requesting process has been killed, and
//! fuser doesn't pass FUSE_INTERRUPT on. So a request that takes longer than a second looks, now and then, whether a SIGKILL
//! waits for its process, and is then answered EINTR.

use std::time::Duration;

use mooseng_client::FsError;

const FIRST_LOOK: Duration = Duration::from_secs(1);
const NEXT_LOOK: Duration = Duration::from_millis(250);
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

/// The error number, with a log entry where a person may have to look.
fn report(error: FsError) -> i32 {
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
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL_BIT != 0)
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

    #[tokio::test(start_paused = true)]
    async fn work_of_nobody_is_waited_for() {
        let work = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Ok(7)
        };
        assert_eq!(for_process(0, work).await, Ok(7));
    }
}
