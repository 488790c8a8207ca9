//! Clients that lock one file, and what must hold: nobody is inside with somebody whose lease stands, and whoever is inside alone sees what was
//! written inside before.

use std::time::Duration;

use bytes::Bytes;
use mooseng_client::{Caller, FileSystem, FsError, HandleId, LockKind, LockRequest, WriteOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NAME: &[u8] = b"locked";
/// How long a lock may take once everything was healed.
const SERVED: Duration = Duration::from_secs(120);
/// Errors that faults excuse wherever there are locks: EINTR, EIO, EAGAIN, ETIMEDOUT.
pub const EXCUSED: [i32; 4] = [4, 5, 11, 110];

/// Where those who lock tell what they do, and what is wrong.
pub trait Board: Clone {
    /// What they share.
    fn locked<T>(&self, f: impl FnOnce(&mut Locked) -> T) -> T;
    /// Nothing excuses that.
    fn violation(&self, what: String);
    /// Faults are over.
    fn is_healed(&self) -> bool;
    /// Changes whenever what was written inside, and fsynced, may be lost.
    fn era(&self) -> u64;
    /// Whether that error is excused by faults.
    fn excuses(&self, errno: i32) -> bool;
}

/// Somebody who has a lock.
pub struct Inside {
    number: u8,
    request: LockRequest,
    life: (u64, u64),
    fs: FileSystem,
}

impl Inside {
    /// Whether its lease stands, and it wasn't told that the lock is lost: then nobody may have taken it.
    fn is_sure(&self) -> bool {
        let status = self.fs.status();
        let lives = status.lease_left_ms.is_some() && (status.session, status.incarnation) == self.life;
        lives && !self.fs.has_lost_locks(self.request.handle)
    }

    fn conflicts(&self, other: &LockRequest) -> bool {
        self.request.kind == other.kind
            && self.request.start <= other.end
            && other.start <= self.request.end
            && (self.request.exclusive || other.exclusive)
    }
}

/// What those who lock share.
#[derive(Default)]
pub struct Locked {
    inside: Vec<Inside>,
    /// What was written inside last, if that is known, and in which era.
    number: Option<(u64, u64)>,
    /// How often somebody was inside.
    pub times: usize,
}

/// Works with locks until the faults are over, and takes one last then: nothing may be left behind.
pub async fn work(fs: FileSystem, number: u8, seed: u64, board: impl Board) {
    let rng = StdRng::seed_from_u64(seed ^ 0x10c5 ^ (u64::from(number) << 48));
    let caller = Caller { kernel_checked: true, ..Caller::default() };
    let mut locker = Locker { fs, caller, number, rng, board };
    while !locker.board.is_healed() {
        match locker.open().await {
            Ok(handle) => {
                for _ in 0..locker.rng.random_range(1..6) {
                    locker.once(handle).await;
                }
                let _ = locker.fs.release(handle).await;
            }
            Err(error) => locker.excuse("opening", &error),
        }
        let pause = locker.rng.random_range(0..300);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    for kind in [LockKind::File, LockKind::Range] {
        if tokio::time::timeout(SERVED, locker.last(kind)).await.is_err() {
            locker.violation(format!("a lock of the kind {kind:?} is held by nobody who lives"));
        }
    }
}

struct Locker<B> {
    fs: FileSystem,
    caller: Caller,
    number: u8,
    rng: StdRng,
    board: B,
}

impl<B: Board> Locker<B> {
    async fn open(&self) -> Result<HandleId, FsError> {
        // O_RDWR | O_CREAT
        let made = self.fs.create(&self.caller, self.fs.root(), NAME, 0o644, 0o2 | 0o100).await?;
        Ok(made.handle)
    }

    fn violation(&self, what: String) {
        self.board.violation(format!("locker {}: {what}", self.number));
    }

    fn excuse(&self, what: &str, error: &FsError) {
        if !self.board.excuses(error.errno()) {
            self.violation(format!("{what} answered {error}"));
        }
    }

    fn request(&mut self, handle: HandleId) -> LockRequest {
        let (a, b) = (self.rng.random_range(0..20), self.rng.random_range(0..20));
        let whole = self.rng.random_range(0..2) == 0;
        let (start, end) = if whole { (0, u64::MAX) } else { (a.min(b), a.max(b)) };
        let kind = if self.rng.random() { LockKind::File } else { LockKind::Range };
        let (start, end) = if kind == LockKind::File { (0, u64::MAX) } else { (start, end) };
        let exclusive = self.rng.random_range(0..3) > 0;
        // An owner is used again and again, as the kernel does it.
        let owner = u64::from(self.number);
        LockRequest { handle, kind, owner, start, end, exclusive, pid: owner as u32 }
    }

    async fn once(&mut self, handle: HandleId) {
        let request = self.request(handle);
        let outcome = match self.rng.random_range(0..3) {
            0 => self.fs.lock(request).await,
            _ => self.wait(request).await,
        };
        match outcome {
            Ok(()) => self.inside(request).await,
            Err(error) => self.excuse("a lock", &error),
        }
        let all = LockRequest { start: 0, end: u64::MAX, ..request };
        if let Err(error) = self.fs.unlock(all).await {
            self.excuse("an unlock", &error);
        }
    }

    /// Waits for some time, then for the lock or the news that it doesn't come; or goes.
    async fn wait(&mut self, request: LockRequest) -> Result<(), FsError> {
        let patience = Duration::from_millis(self.rng.random_range(0..3000));
        let goes = self.rng.random_range(0..3) == 0;
        let mut wait = self.fs.lock_waiting(request)?;
        if let Ok(outcome) = tokio::time::timeout(patience, wait.outcome()).await {
            return outcome;
        }
        if goes {
            return Err(FsError::Answered(4));
        }
        wait.interrupt();
        wait.outcome().await
    }

    async fn inside(&mut self, request: LockRequest) {
        let status = self.fs.status();
        let life = (status.session, status.incarnation);
        let entered = self.board.locked(|locked| {
            let broken = locked
                .inside
                .iter()
                .find(|other| other.number != self.number && other.conflicts(&request) && other.is_sure());
            let broken =
                broken.map(|other| format!("{request:?} beside {:?} of {}", other.request, other.number));
            let inside = Inside { number: self.number, request, life, fs: self.fs.clone() };
            locked.inside.push(inside);
            locked.times += 1;
            broken
        });
        if let Some(broken) = entered {
            self.violation(broken);
        }
        if request.exclusive && request.kind == LockKind::File {
            self.count(request.handle).await;
        }
        let stay = self.rng.random_range(0..800);
        tokio::time::sleep(Duration::from_millis(stay)).await;
        self.board.locked(|locked| locked.inside.retain(|other| other.number != self.number));
    }

    /// What was written inside before is seen, and a number written for the next.
    async fn count(&mut self, handle: HandleId) {
        let era = self.board.era();
        let expected = self.board.locked(|locked| locked.number.take());
        let expected = expected.and_then(|(of, number)| (of == era).then_some(number));
        let Ok(bytes) = self.fs.read(&self.caller, handle, 0, 8).await else { return };
        let seen = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if expected.is_some_and(|expected| expected != seen) && self.board.era() == era {
            self.violation(format!("{seen} is read inside where {expected:?} was written before"));
        }
        let next = Bytes::copy_from_slice(&(seen + 1).to_le_bytes());
        let written = self.fs.write(&self.caller, handle, 0, next, WriteOptions::default()).await;
        // Unsynced it would be lost with a lease.
        let synced = self.fs.fsync(handle, false).await;
        if written.is_ok() && synced.is_ok() {
            let is_same = self.board.era() == era;
            self.board.locked(|locked| {
                // Without a lease others may have been inside meanwhile.
                let sure = locked.inside.iter().any(|i| i.number == self.number && i.is_sure());
                locked.number = (sure && is_same).then_some((era, seen + 1));
            });
        }
    }

    async fn last(&mut self, kind: LockKind) {
        loop {
            let owner = 1000 + u64::from(self.number);
            if let Ok(handle) = self.open().await {
                let request =
                    LockRequest { handle, kind, owner, start: 0, end: u64::MAX, exclusive: true, pid: 1 };
                let got = match self.fs.lock_waiting(request) {
                    Ok(mut wait) => wait.outcome().await,
                    Err(error) => Err(error),
                };
                let _ = self.fs.release(handle).await;
                if got.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
