//! A killed process is never stuck.
//!
//! The kernel waits for the answer to a request that was read from the device even when the requesting process has been killed, and
//! fuser doesn't pass FUSE_INTERRUPT on. So a request that takes longer than a second looks, now and then, whether a SIGKILL
//! waits for its process, and is then answered EINTR. Who waits for a lock may wait for long: any signal ends that which the process neither
//! blocks nor ignores.
//!
//! EINTR is for who gets a signal alone. The kernel makes ERESTARTSYS of it when it answers a lock, and only on the way to a signal is that
//! made EINTR, or a second call: without one the program is shown error 512. So one must be this *thread's*: sent to it alone, or to a
//! process in which nobody else can get it. The kernel gives a signal to the main thread if that doesn't block it (`complete_signal`), else
//! to any that doesn't. And the answer waits for a second look, for a thread that runs may have taken it.

use std::time::Duration;

use mooseng_client::FsError;

const FIRST_LOOK: Duration = Duration::from_secs(1);
const NEXT_LOOK: Duration = Duration::from_millis(250);
/// Waits for locks are looked at sooner, for programs that bound them by a timer.
const LOCK_FIRST_LOOK: Duration = Duration::from_millis(30);
/// Before a signal is believed to wait for a thread: another that runs takes one sooner.
const SECOND_LOOK: Duration = Duration::from_millis(10);
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

/// Why a thread's wait for a lock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It is gone.
    Kill,
    /// It wants to handle it, or dies of it.
    Other,
    /// It can't be looked at, and has waited long enough.
    Unseen,
}

/// Returns once a signal waits for the thread `pid`; with `kill_only`, once SIGKILL does.
pub(crate) async fn signalled(pid: u32, kill_only: bool) -> Signal {
    let mut look = LOCK_FIRST_LOOK;
    let begun = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(look).await;
        match std::fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(status) if has_pending_kill(&status) => return Signal::Kill,
            Ok(_) if !kill_only && has_signal(pid) => {
                tokio::time::sleep(SECOND_LOOK).await;
                if has_signal(pid) {
                    return Signal::Other;
                }
            }
            Ok(_) => {}
            Err(_) if !kill_only && begun.elapsed() >= UNSEEN_WAITS => return Signal::Unseen,
            Err(_) => {}
        }
        look = (look * 2).min(NEXT_LOOK);
    }
}

/// Whether a signal waits for the thread that nobody else gets: only then EINTR is an answer.
pub(crate) fn has_signal(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    is_for(&status, || threads_beside(pid, &status))
}

/// How the other threads of a thread's process are.
fn threads_beside(pid: u32, status: &str) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", number(status, "Tgid:"))) else {
        return Vec::new();
    };
    let beside = tasks.flatten().filter(|task| task.file_name() != pid.to_string().as_str());
    // One that has ended meanwhile gets no signal.
    beside.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok()).collect()
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

/// The further groups of a thread; none where it can't be looked at.
pub(crate) fn groups_of(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

fn is_killed(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| has_pending_kill(&status))
}

fn has_pending_kill(status: &str) -> bool {
    (mask(status, "SigPnd:") | mask(status, "ShdPnd:")) & SIGKILL_BIT != 0
}

/// Whether a signal that is neither blocked nor ignored waits for the thread of this status, and not for one beside it.
fn is_for(status: &str, beside: impl FnOnce() -> Vec<String>) -> bool {
    let wanted = !mask(status, "SigBlk:") & !mask(status, "SigIgn:");
    if mask(status, "SigPnd:") & wanted != 0 {
        return true;
    }
    let shared = mask(status, "ShdPnd:") & wanted;
    if shared == 0 {
        return false;
    }
    let is_main = number(status, "Tgid:") == number(status, "Pid:");
    is_main || beside().iter().fold(shared, |left, other| left & unwanted(other)) != 0
}

/// The signals that a thread doesn't take.
fn unwanted(status: &str) -> u64 {
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("").trim_start();
    if state.starts_with(['Z', 'X']) { u64::MAX } else { mask(status, "SigBlk:") }
}

fn number(status: &str, field: &str) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
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
    fn groups_are_those_of_the_process() {
        let own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        assert_eq!(groups_of(std::process::id()), own);
        assert_eq!(groups_of(u32::MAX), Vec::<u32>::new());
    }

    fn status(pid: u32, own: &str, shared: &str, blocked: &str, ignored: &str) -> String {
        format!(
            "State:\tD (disk sleep)\nTgid:\t7\nPid:\t{pid}\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n"
        )
    }

    #[test]
    fn a_signal_counts_that_is_neither_blocked_nor_ignored() {
        let wants = |pending: &str, blocked: &str, ignored: &str| {
            is_for(&status(7, pending, "0", blocked, ignored), Vec::new)
        };
        assert!(wants("4000", "0", "0") && !wants("0", "0", "0"));
        assert!(!wants("4000", "4000", "0") && !wants("4000", "0", "4000"));
        assert!(wants("6000", "4000", "0"));
    }

    /// The kernel shows what waits for the process with each of its threads, and wakes one.
    #[test]
    fn a_signal_of_the_process_counts_for_the_thread_that_gets_it() {
        let beside = |other: String| move || vec![other];
        let (main, second) = (status(7, "0", "4000", "0", "0"), status(8, "0", "4000", "0", "0"));
        assert!(is_for(&main, beside(second.clone())), "the main thread is asked first");
        assert!(!is_for(&second, beside(main.clone())));
        assert!(is_for(&second, beside(status(7, "0", "4000", "4000", "0"))), "which blocks it");
        assert!(is_for(&second, beside(main.replace('D', "Z"))), "which is gone");
        let third = status(9, "0", "4000", "4000", "0");
        assert!(!is_for(&second, || vec![third, main]));
        assert!(is_for(&second, Vec::new));
        assert!(is_for(&status(8, "200", "0", "0", "0"), Vec::new), "sent to it alone");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_cant_be_looked_at_waits_for_a_while() {
        let begun = tokio::time::Instant::now();
        assert_eq!(signalled(0, false).await, Signal::Unseen);
        assert!(begun.elapsed() >= UNSEEN_WAITS);
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
