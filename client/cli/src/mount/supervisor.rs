//! Keeps a mount: a small process that starts the one which serves it, and starts it again when it dies.
//!
//! ```text
//!  mooseng mount --> supervisor --> worker (connects, mounts, serves)
//!                       |  unmounted, or told to end: both end
//!                       \  died: the mount is dead (ENOTCONN); after a pause a new worker connects, mounts beneath the dead one,
//!                          and takes that off the tree
//! ```
//! The dead mount stays until the new worker has a session, and its mount is there: who works below the path gets errors meanwhile, and can't write to the
//! directory that is hidden by the mount. Where the kernel can't mount beneath another mount the dead one goes first, and the directory is bare until the next
//! system calls.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use mooseng_ports::service_manager;
use rand::Rng;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::word::{Serving, Word};
use crate::exit::{Failure, Kind};
use crate::logs;

/// The first pause before a new worker; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Whoever worked for so long begins again with short pauses.
const WORKED: Duration = Duration::from_secs(60);
/// So many workers in a row that say that configuration or rights are wrong are enough.
const REFUSALS_MAX: u32 = 5;
/// How long a worker may take to mount, or to say why not.
pub(super) const START: Duration = Duration::from_secs(60);
/// How often the pause looks whether somebody has taken the dead mount away.
const LOOK: Duration = Duration::from_millis(500);
/// A mount that doesn't answer within this is somebody's.
const ANSWERS: Duration = Duration::from_secs(5);

/// A mount that is kept.
pub(super) struct Supervisor {
    path: PathBuf,
    /// The file to which it and its workers log, in the background.
    log: Option<PathBuf>,
    terminate: Signal,
    interrupt: Signal,
    told: bool,
    /// Who serves, or served last.
    serving: Serving,
}

/// A worker's life.
struct Life {
    /// How long it served; none if it never did.
    worked: Option<Duration>,
    /// What it said before it ended.
    failure: Option<Failure>,
    status: ExitStatus,
}

impl Supervisor {
    pub(super) fn new(path: PathBuf, log: Option<PathBuf>) -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::failed(format!("Signals can't be listened to: {e}.")));
        Ok(Self {
            path,
            log,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            told: false,
            serving: Serving::default(),
        })
    }

    /// Keeps the mount until it is unmounted, or this process is told to end. `worker` makes the command of a worker, the first one or one
    /// that takes the place of a dead one; `mounted` is told of the first.
    pub(super) async fn keep(
        mut self,
        worker: impl Fn(Option<Serving>) -> std::process::Command,
        mounted: impl FnOnce(Serving),
    ) -> Result<(), Failure> {
        let mut mounted = Some(mounted);
        let (mut pause, mut refusals) = (PAUSE_FIRST, 0);
        loop {
            let dead = mounted.is_none().then_some(self.serving);
            let life = self.life(worker(dead), &mut mounted).await?;
            if self.told {
                self.leave();
                return life.failure.filter(|_| mounted.is_some()).map_or(Ok(()), Err);
            }
            if mounted.is_some() {
                // It never worked: whoever asked for the mount hears why, and decides.
                return Err(life.failure.unwrap_or_else(|| self.without_word(life.status)));
            }
            if !is_dead(&self.path).await {
                return self.ended(&life);
            }
            let kind = life.failure.as_ref().map(Failure::kind);
            // Nobody being let in may pass: certificates are renewed, and rules are changed, without anybody looking at this mount.
            let refused = matches!(kind, Some(Kind::Usage | Kind::NotFound));
            refusals = if refused { refusals + 1 } else { 0 };
            let why = match &life.failure {
                Some(failure) => failure.to_string(),
                None => life.status.to_string(),
            };
            if refusals >= REFUSALS_MAX {
                tracing::error!(path = %self.path.display(), why, "the mount isn't made again: that was refused too often");
                return Err(Failure::failed(format!(
                    "The mount on {} isn't made again, as that was refused {REFUSALS_MAX} times; what is below it answers \"not connected\" until it is mounted or unmounted: {why}",
                    self.path.display()
                )));
            }
            if life.worked.is_some_and(|worked| worked >= WORKED) {
                pause = PAUSE_FIRST;
            }
            let wait = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tracing::warn!(path = %self.path.display(), why, wait_ms = wait.as_millis() as u64, "the mount has lost its process; it is mounted again");
            pause = (pause * 2).min(PAUSE_MAX);
            if !self.wait(wait).await {
                return Ok(());
            }
        }
    }

    /// Starts a worker and waits for its end.
    async fn life(
        &mut self,
        command: std::process::Command,
        mounted: &mut Option<impl FnOnce(Serving)>,
    ) -> Result<Life, Failure> {
        let mut command = Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|e| Failure::failed(format!("The mount's process can't be started: {e}.")))?;
        let pid = child.id().unwrap_or(0);
        let word = self.word(&mut child, pid).await;
        let mut since = None;
        let failure = match word {
            Word::Mounted(serving) => {
                self.serving = serving;
                since = Some(Instant::now());
                match mounted.take() {
                    Some(mounted) => mounted(serving),
                    None => tracing::info!(path = %self.path.display(), pid, "mounted again"),
                }
                tell_manager(&format!("READY=1\nSTATUS=Mounted on {}", self.path.display()));
                None
            }
            Word::Failed(failure) => Some(failure),
            Word::None => {
                // One that hangs before it has mounted anything.
                let _ = child.start_kill();
                None
            }
        };
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = told(&mut self.terminate, &mut self.interrupt) => self.end(pid),
                () = sleep(logs::LOOK) => self.log.iter().for_each(|log| logs::bound(log)),
            }
        };
        let status = status.map_err(|e| Failure::failed(format!("The mount's process is lost: {e}.")))?;
        Ok(Life { worked: since.map(|since| since.elapsed()), failure, status })
    }

    /// What a worker says once it has mounted, or instead.
    async fn word(&mut self, child: &mut Child, pid: u32) -> Word {
        let Some(pipe) = child.stdout.take() else { return Word::None };
        let mut pipe = pipe.take(64 << 10);
        let reading = async {
            let mut text = String::new();
            let _ = timeout(START, pipe.read_to_string(&mut text)).await;
            text
        };
        tokio::pin!(reading);
        let text = loop {
            tokio::select! {
                text = &mut reading => break text,
                () = told(&mut self.terminate, &mut self.interrupt) => self.end(pid),
            }
        };
        Word::parse(&text)
    }

    /// Tells the worker to end; it unmounts.
    fn end(&mut self, pid: u32) {
        self.told = true;
        tell_manager("STOPPING=1");
        if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) {
            // It isn't waited for yet, so the pid is its own.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
    }

    /// A pause. False when there is nothing left to do.
    async fn wait(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            let step = LOOK.min(until.saturating_duration_since(Instant::now()));
            if step.is_zero() {
                return true;
            }
            tokio::select! {
                () = sleep(step) => {}
                () = told(&mut self.terminate, &mut self.interrupt) => {
                    self.leave();
                    return false;
                }
            }
            if !is_dead(&self.path).await {
                tracing::info!(path = %self.path.display(), "the dead mount was taken away, and isn't made again");
                return false;
            }
        }
    }

    /// Told to end: what a dead worker left behind goes.
    fn leave(&self) {
        if crate::runtime::is_mounted(&self.path)
            && is_dead_now(&self.path)
            && let Err(error) = super::detach(&self.path)
        {
            tracing::warn!(%error, "a dead mount is left behind");
        }
    }

    fn ended(&self, life: &Life) -> Result<(), Failure> {
        match life.status.success() {
            true => Ok(()),
            false => Err(self.without_word(life.status)),
        }
    }

    fn without_word(&self, status: ExitStatus) -> Failure {
        Failure::failed(format!(
            "The process of the mount on {} ended without a word ({status}); its log may say why.",
            self.path.display()
        ))
    }
}

/// systemd, if it started us and wants to know.
pub(super) fn tell_manager(state: &str) {
    if let Err(error) = service_manager::tell(state) {
        tracing::debug!(%error, "the service manager couldn't be told");
    }
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Whether a mount of ours is there that has lost its process.
async fn is_dead(path: &Path) -> bool {
    let path = path.to_owned();
    let looked = tokio::task::spawn_blocking(move || is_dead_now(&path));
    timeout(ANSWERS, looked).await.is_ok_and(|dead| dead.unwrap_or(false))
}

/// The same, where it may block as long as a living mount takes to answer.
pub(super) fn is_dead_now(path: &Path) -> bool {
    // Attributes of the root may still be cached: only this is asked for each time.
    crate::runtime::is_mounted(path)
        && rustix::fs::statfs(path)
            .is_err_and(|e| matches!(e, rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED))
}
