//! Clients that lock one file, and what must hold: nobody is inside with somebody whose lease stands, and whoever is inside alone sees what was
//! written inside before; of one region, whoever is inside has the lock as long as its session lives.
//!
//! In some seeds they lock another file, too, which is mostly one client's: its locks that client gives by itself, and has them recorded when another one comes.

use std::time::Duration;

use bytes::Bytes;
use mooseng_client::{Caller, FileSystem, FsError, HandleId, LockKind, LockRequest, WriteOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::hosts::now;
use crate::kinds;

/// Tasks of each client that lock the file that is mostly one's.
pub const TASKS: u8 = 2;
/// For how long it is one client's.
const TURN_MS: u64 = 8_000;
/// One time in so many somebody comes whose turn it isn't.
const VISITS: u32 = 60;
/// What draws whose turn it is, and what whoever locks that file does.
const TURNS: u64 = 0x70_12f5;
const MOSTLY_ONES: u64 = 0xa1_07e5;
/// How long a lock may take once everything was healed.
const SERVED: Duration = Duration::from_secs(120);
/// Errors that faults excuse wherever there are locks: EINTR, EIO, EAGAIN, ETIMEDOUT.
pub const EXCUSED: [i32; 4] = [4, 5, 11, 110];

/// What is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockedFile {
    /// All clients lock it, all the time.
    Common,
    /// For some time one client does, and then perhaps another one; and others come by.
    MostlyOnes,
}

impl LockedFile {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Common => b"locked",
            Self::MostlyOnes => b"locked by one",
        }
    }

    /// How long somebody is inside at most.
    fn stay_ms(self) -> u64 {
        match self {
            Self::Common => 800,
            Self::MostlyOnes => 400,
        }
    }
}

/// Where those who lock tell what they do, and what is wrong.
pub trait Board: Clone {
    /// What those share who lock that file.
    fn locked<T>(&self, file: LockedFile, f: impl FnOnce(&mut Locked) -> T) -> T;
    /// Whether a session that lives keeps its locks: they may be lost with a home.
    fn keeps_locks(&self) -> bool;
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
        self.lives() && self.fs.status().lease_left_ms.is_some() && !self.has_lost()
    }

    /// Whether the session's life goes on in which it got the lock, as far as its client knows.
    fn lives(&self) -> bool {
        let status = self.fs.status();
        (status.session, status.incarnation) == self.life
    }

    fn has_lost(&self) -> bool {
        self.fs.has_lost_locks(self.request.handle)
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
    let mut locker = Locker::new(fs, LockedFile::Common, number, rng, board);
    while !locker.board.is_healed() {
        locker.come().await;
        let pause = locker.rng.random_range(0..300);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    locker.end().await;
}

/// The same of one of a client's tasks with the file that is mostly one's, of so many clients.
pub async fn work_mostly_alone(
    fs: FileSystem,
    (client, task): (u8, u8),
    clients: u8,
    seed: u64,
    board: impl Board,
) {
    let number = client * TASKS + task;
    let rng = kinds::draws(seed, MOSTLY_ONES ^ (u64::from(number) << 48));
    let mut locker = Locker::new(fs, LockedFile::MostlyOnes, number, rng, board);
    while !locker.board.is_healed() {
        let turn = now().as_millis() as u64 / TURN_MS;
        let whose = kinds::draws(seed, TURNS ^ (turn << 32)).random_range(0..clients);
        let comes_by = locker.rng.random_range(0..VISITS) == 0;
        if whose == client || comes_by {
            locker.come().await;
        }
        let pause = locker.rng.random_range(0..300);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    locker.end().await;
}

struct Locker<B> {
    fs: FileSystem,
    file: LockedFile,
    caller: Caller,
    number: u8,
    rng: StdRng,
    board: B,
}

impl<B: Board> Locker<B> {
    fn new(fs: FileSystem, file: LockedFile, number: u8, rng: StdRng, board: B) -> Self {
        let caller = Caller { kernel_checked: true, ..Caller::default() };
        Self { fs, file, caller, number, rng, board }
    }

    /// Opens the file, locks it some times, and closes it.
    async fn come(&mut self) {
        match self.open().await {
            Ok(handle) => {
                for _ in 0..self.rng.random_range(1..6) {
                    self.once(handle).await;
                }
                let _ = self.fs.release(handle).await;
            }
            Err(error) => self.excuse("opening", &error),
        }
    }

    /// Faults are over: nothing may be left behind.
    async fn end(&mut self) {
        for kind in [LockKind::File, LockKind::Range] {
            if tokio::time::timeout(SERVED, self.last(kind)).await.is_err() {
                self.violation(format!("a lock of the kind {kind:?} is held by nobody who lives"));
            }
        }
    }

    async fn open(&self) -> Result<HandleId, FsError> {
        // O_RDWR | O_CREAT
        let flags = 0o2 | 0o100;
        let made = self.fs.create(&self.caller, self.fs.root(), self.file.name(), 0o644, flags).await?;
        Ok(made.handle)
    }

    fn violation(&self, what: String) {
        self.board.violation(format!("locker {} of the file {:?}: {what}", self.number, self.file));
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
        let (broken, has_lost) = self.board.locked(self.file, |locked| {
            let broken = locked
                .inside
                .iter()
                .find(|other| other.number != self.number && other.conflicts(&request) && other.is_sure());
            let broken =
                broken.map(|other| format!("{request:?} beside {:?} of {}", other.request, other.number));
            let inside = Inside { number: self.number, request, life, fs: self.fs.clone() };
            let has_lost = inside.has_lost();
            locked.inside.push(inside);
            locked.times += 1;
            (broken, has_lost)
        });
        if let Some(broken) = broken {
            self.violation(broken);
        }
        if request.exclusive && request.kind == LockKind::File {
            self.count(request.handle).await;
        }
        let stay = self.rng.random_range(0..self.file.stay_ms());
        tokio::time::sleep(Duration::from_millis(stay)).await;
        let inside = self.board.locked(self.file, |locked| {
            let at = locked.inside.iter().position(|inside| inside.number == self.number)?;
            Some(locked.inside.remove(at))
        });
        // Whatever becomes of leaders, and of other clients. What was taken through the handle before, in another way, may have been lost already.
        if self.board.keeps_locks()
            && !has_lost
            && let Some(inside) = inside
            && inside.lives()
            && inside.has_lost()
        {
            self.violation(format!("{request:?} is lost in the life of the session that it was given to"));
        }
    }

    /// What was written inside before is seen, and a number written for the next.
    async fn count(&mut self, handle: HandleId) {
        let era = self.board.era();
        let expected = self.board.locked(self.file, |locked| locked.number.take());
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
            self.board.locked(self.file, |locked| {
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
