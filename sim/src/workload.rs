//! What the simulated clients do, and what they write down about it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, HandleId, RenameMode, WriteOptions};
use mooseng_wire::Role;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::appending::{self, Appended};
use crate::history::{Call, Operation, Reply};
use crate::hosts::{Host, REGION, RETRY, master_addresses};
use crate::kinds;
use crate::listing;
use crate::locking::{self, Board, Locked, LockedFile};
use crate::network::network;
use crate::run::CLIENTS;
use crate::watch::Watch;

/// Names in the one directory that all clients work in.
const NAMES: u8 = 5;
/// Names in each client's own directory, behind those: the other clients look into it at times.
const OWN_NAMES: u8 = 3;
/// Tasks of a client that work at the same time.
const TASKS: u8 = 2;
/// Where a record lies and how long it is. Far out in a file it is beyond what is stored inline, so that it goes through chunks.
/// What is little goes inline all the same, and to a chunk later; so does what lies at the beginning, to one that files share.
const PLACES: [(u64, usize); 5] =
    [(0, 4_504), (100_000, 20_008), (100_000, 6000), (100_000, 24_504), (100_000, 40_000)];
/// One step of so many is a run of changes in the client's own directory.
const BURST_EVERY: u32 = 15;
/// Files that a task holds open at most.
const HELD_MAX: usize = 3;
/// One step of so many is a listing, where clients list directories.
const LIST_EVERY: u32 = 12;
/// What draws listings.
const LISTS: u64 = 0x115_7a5;

/// What all clients share.
#[derive(Default)]
pub struct Notes {
    /// Orders calls and returns.
    next: u64,
    /// The history so far.
    pub operations: Vec<Operation>,
    /// What no history can excuse: torn or wrong bytes, errors that shouldn't be.
    pub violations: Vec<String>,
    /// The inode that was written last, or made, or named: whoever reads it now should see it so.
    fresh: Option<u64>,
    /// A session's lease lapsed: what it had written and not synced may be gone, although it was seen.
    pub lapsed: bool,
    /// How often each client's did.
    pub lapses: BTreeMap<u8, u64>,
    /// Changes of names were lost with it, which their client had seen.
    pub lost_names: bool,
    /// Changes of names that were made alone.
    pub made_alone: u64,
    /// Those who lock.
    pub locked: Locked,
    /// Those who lock the file that is mostly one client's.
    pub locked_by_one: Locked,
    /// Locks that clients gave by themselves.
    pub given_alone: u64,
    /// Those who append.
    pub appended: Appended,
    /// How often a directory was listed.
    pub listings: usize,
    /// Faults are over: check what is there and end.
    pub healed: bool,
}

/// Notes behind a lock. Clones share them.
pub type Shared = Arc<Mutex<Notes>>;

impl Board for Shared {
    fn locked<T>(&self, file: LockedFile, f: impl FnOnce(&mut Locked) -> T) -> T {
        with(self, |notes| match file {
            LockedFile::Common => f(&mut notes.locked),
            LockedFile::MostlyOnes => f(&mut notes.locked_by_one),
        })
    }

    fn keeps_locks(&self) -> bool {
        true
    }

    fn violation(&self, what: String) {
        with(self, |notes| notes.violations.push(what));
    }

    fn is_healed(&self) -> bool {
        with(self, |notes| notes.healed)
    }

    fn era(&self) -> u64 {
        0
    }

    fn excuses(&self, errno: i32) -> bool {
        locking::EXCUSED.contains(&errno)
    }
}

/// A client's part of what those who append share.
#[derive(Clone)]
struct Desk {
    fs: FileSystem,
    shared: Shared,
}

impl appending::Board for Desk {
    fn appended<T>(&self, f: impl FnOnce(&mut Appended) -> T) -> T {
        with(&self.shared, |notes| f(&mut notes.appended))
    }

    fn violation(&self, what: String) {
        with(&self.shared, |notes| notes.violations.push(what));
    }

    fn is_healed(&self) -> bool {
        with(&self.shared, |notes| notes.healed)
    }

    /// A file is gone where it was made alone, and lost with the lease of whoever made it.
    fn excuses(&self, errno: i32) -> bool {
        let excused = [libc_errno::ENOENT, libc_errno::EIO, libc_errno::ETIMEDOUT, libc_errno::ESTALE];
        excused.contains(&errno)
    }

    // There is one home, always.
    fn epoch(&self) -> u64 {
        0
    }

    fn newest(&self) -> u64 {
        0
    }

    fn kept(&self, _from: u64, _to: u64) -> bool {
        true
    }

    fn home_since(&self, _began: Duration) -> Option<u64> {
        Some(0)
    }

    fn outlives_home(&self) -> bool {
        true
    }

    fn lapses(&self) -> u64 {
        self.fs.status().lapses
    }

    /// Whether some were lost is known in the end.
    fn lost(&self) -> u64 {
        0
    }
}

/// Works on the notes.
pub fn with<T>(shared: &Shared, f: impl FnOnce(&mut Notes) -> T) -> T {
    f(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

fn tick(shared: &Shared) -> u64 {
    with(shared, |notes| {
        notes.next += 1;
        notes.next
    })
}

struct Worker {
    fs: FileSystem,
    caller: Caller,
    shared: Shared,
    number: u8,
    rng: StdRng,
    watch: Watch,
    next_value: u64,
    /// The clients' own directories.
    own: Vec<u64>,
    /// Files that stay open from one operation to the next: what is written to them goes to one chunk, behind what is there.
    held: BTreeMap<u64, HandleId>,
    /// What draws listings, where there are any.
    lists: Option<StdRng>,
}

fn name(n: u8) -> Vec<u8> {
    vec![b'a' + n]
}

/// A fifth of the inodes hold their record inline until it is packed, a fifth until it is moved, the others in a chunk.
fn place(inode: u64) -> (u64, usize) {
    PLACES[inode as usize % PLACES.len()]
}

fn record(value: u64, bytes: usize) -> Bytes {
    value.to_le_bytes().repeat(bytes / 8).into()
}

enum Outcome {
    Reply(Reply),
    Unknown,
    /// Nothing was done, and nothing learnt.
    Nothing,
}

fn outcome(error: &FsError) -> Option<Outcome> {
    match error.errno() {
        libc_errno::ENOENT | libc_errno::ESTALE => Some(Outcome::Reply(Reply::Absent)),
        libc_errno::EEXIST => Some(Outcome::Reply(Reply::Exists)),
        libc_errno::ETIMEDOUT | libc_errno::EIO => Some(Outcome::Unknown),
        _ => None,
    }
}

mod libc_errno {
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EEXIST: i32 = 17;
    pub const ETIMEDOUT: i32 = 110;
    pub const ESTALE: i32 = 116;
}

impl Worker {
    /// A handle of the inode: one that is held, or a new one.
    async fn handle(&mut self, inode: u64) -> Result<HandleId, FsError> {
        match self.held.get(&inode) {
            Some(handle) => Ok(*handle),
            None => Ok(self.fs.open(&self.caller, inode, 0o2).await?.handle),
        }
    }

    /// Holds a handle on, or closes it.
    async fn done_with(&mut self, inode: u64, handle: HandleId) {
        let held = self.held.insert(inode, handle).is_some();
        let hold = self.rng.random_range(0..10) < if held { 8 } else { 4 };
        if !hold {
            self.let_go(inode).await;
        } else if self.held.len() > HELD_MAX {
            let other = self.held.keys().copied().find(|other| *other != inode);
            self.let_go(other.unwrap_or(inode)).await;
        }
    }

    async fn let_go(&mut self, inode: u64) {
        if let Some(handle) = self.held.remove(&inode) {
            let _ = self.fs.release(handle).await;
        }
    }

    async fn perform(&mut self, call: &Call) -> Result<Reply, Outcome> {
        let (fs, caller) = (self.fs.clone(), self.caller.clone());
        let own = self.own.clone();
        let root = fs.root();
        let place_of = |n: u8| match n.checked_sub(NAMES) {
            Some(behind) => own.get(usize::from(behind / OWN_NAMES)).copied().unwrap_or(root),
            None => root,
        };
        let shared = self.shared.clone();
        let known = |error: FsError| match outcome(&error) {
            Some(outcome) => outcome,
            None => {
                with(&shared, |n| n.violations.push(format!("{call:?} answered {error}")));
                Outcome::Unknown
            }
        };
        let unchanged = |error: FsError| match known(error) {
            Outcome::Unknown => Outcome::Nothing,
            other => other,
        };
        match *call {
            Call::Create(n) => {
                let made = fs.create(&caller, place_of(n), &name(n), 0o644, 0o2 | 0o300).await;
                let made = made.map_err(known)?;
                let _ = fs.release(made.handle).await;
                Ok(Reply::Inode(made.attr.inode))
            }
            Call::Lookup(n) => fs
                .lookup(&caller, place_of(n), &name(n))
                .await
                .map(|attr| Reply::Inode(attr.inode))
                .map_err(unchanged),
            Call::Unlink(n) => {
                fs.unlink(&caller, place_of(n), &name(n)).await.map(|()| Reply::Done).map_err(known)
            }
            Call::Rename(a, b) => {
                let done = fs
                    .rename(&caller, place_of(a), &name(a), place_of(b), &name(b), RenameMode::default())
                    .await;
                done.map(|()| Reply::Done).map_err(known)
            }
            Call::Write(inode, value) => {
                let handle = self.handle(inode).await.map_err(&unchanged)?;
                let (offset, bytes) = place(inode);
                let options = WriteOptions::default();
                let written = fs.write(&caller, handle, offset, record(value, bytes), options).await;
                // An unsynced write has happened when it returns, too: others see it, whatever becomes of masters and chunkservers.
                let sync = self.rng.random();
                let synced = if sync { fs.fsync(handle, false).await } else { Ok(()) };
                self.done_with(inode, handle).await;
                written.map_err(known)?;
                synced.map_err(known)?;
                Ok(Reply::Done)
            }
            Call::Read(inode) => {
                let handle = self.handle(inode).await.map_err(&unchanged)?;
                let (offset, bytes) = place(inode);
                let read = fs.read(&caller, handle, offset, bytes as u32).await;
                self.done_with(inode, handle).await;
                let read = read.map_err(unchanged)?;
                let first = read.get(..8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
                if !read.is_empty() && read != record(first, bytes) {
                    let what =
                        format!("inode {inode} reads torn: {} bytes beginning with {first}", read.len());
                    with(&self.shared, |n| n.violations.push(what));
                }
                Ok(Reply::Value(first))
            }
        }
    }

    async fn run(&mut self, call: Call) -> Option<Reply> {
        let called = tick(&self.shared);
        let result = self.perform(&call).await;
        let returned = tick(&self.shared);
        let (returned, reply) = match result {
            Ok(reply) | Err(Outcome::Reply(reply)) => (Some(returned), Some(reply)),
            Err(Outcome::Unknown) => (None, None),
            Err(Outcome::Nothing) => return None,
        };
        tracing::info!(client = self.number, ?call, ?reply, "operation");
        let operation =
            Operation { client: self.number, called, returned, call, reply: reply.clone(), elsewhere: false };
        with(&self.shared, |notes| {
            match (&operation.call, &reply) {
                (Call::Write(inode, _), Some(Reply::Done)) => notes.fresh = Some(*inode),
                (Call::Create(_), Some(Reply::Inode(inode))) => notes.fresh = Some(*inode),
                _ => {}
            }
            notes.operations.push(operation);
        });
        reply
    }

    async fn work(mut self) -> Self {
        while !with(&self.shared, |notes| notes.healed) {
            // What is written while chunks are made into others mustn't be lost to them: they take a moment, every other second or so.
            if self.watch.is_rewriting()
                && let Some(inode) = self.any_held()
            {
                self.write(inode).await;
                continue;
            }
            self.step().await;
            let pause = self.rng.random_range(0..100);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        while let Some((&inode, _)) = self.held.first_key_value() {
            self.let_go(inode).await;
        }
        self
    }

    /// A run of changes in the client's own directory, as whoever unpacks something makes them: most of them are made alone, and some look for them at once.
    async fn burst(&mut self) {
        let first = NAMES + self.number / TASKS * OWN_NAMES;
        for _ in 0..self.rng.random_range(4..24) {
            let n = first + self.rng.random_range(0..OWN_NAMES);
            let to = first + (n - first + self.rng.random_range(1..OWN_NAMES)) % OWN_NAMES;
            match self.rng.random_range(0..8) {
                0..=3 => {
                    if let Some(Reply::Inode(inode)) = self.run(Call::Create(n)).await
                        && self.rng.random_range(0..3) == 0
                    {
                        self.write(inode).await;
                    }
                }
                4 => {
                    self.run(Call::Rename(n, to)).await;
                }
                5 => {
                    self.run(Call::Lookup(n)).await;
                }
                _ => {
                    self.run(Call::Unlink(n)).await;
                }
            }
        }
    }

    /// Lists the common directory, or a client's own. Each of its names is looked at by itself, at some instant meanwhile.
    async fn list(&mut self, whose: u8, most: u32) {
        let root = self.fs.root();
        let (directory, first, names) = match whose.checked_sub(1) {
            None => (root, 0, NAMES),
            Some(client) => {
                let own = self.own.get(usize::from(client)).copied().unwrap_or(root);
                (own, NAMES + client * OWN_NAMES, OWN_NAMES)
            }
        };
        let called = tick(&self.shared);
        let listed = listing::all(&self.fs, &self.caller, directory, most).await;
        let returned = Some(tick(&self.shared));
        tracing::info!(client = self.number, directory, most, ?listed, "listed");
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) => {
                if outcome(&error).is_none() {
                    let what = format!("a listing of directory {directory} answered {error}");
                    with(&self.shared, |notes| notes.violations.push(what));
                }
                return;
            }
        };
        with(&self.shared, |notes| {
            notes.listings += 1;
            if let Some(entry) = listing::twice(&entries) {
                notes.violations.push(format!("a listing of directory {directory} has twice {entry:?}"));
            }
            let (client, elsewhere) = (self.number, false);
            let operation =
                |(call, reply)| Operation { client, called, returned, call, reply: Some(reply), elsewhere };
            let looks = listing::looks(&entries, first..first + names);
            notes.operations.extend(looks.into_iter().map(operation));
        });
    }

    async fn step(&mut self) {
        if let Some(rng) = &mut self.lists
            && rng.random_range(0..LIST_EVERY) == 0
        {
            let most = listing::PAGES[rng.random_range(0..listing::PAGES.len())];
            let whose = rng.random_range(0..3);
            return self.list(whose, most).await;
        }
        if self.rng.random_range(0..BURST_EVERY) == 0 {
            self.burst().await;
            return;
        }
        // Names of two are fought for, the others live a little longer.
        let n = match self.rng.random_range(0..6) {
            0 | 1 => self.rng.random_range(0..2),
            2 => self.rng.random_range(0..NAMES),
            // Mostly in the directory of one's own, where nobody else is for a while.
            other => {
                let mine = self.number / TASKS;
                let whose =
                    if other == 3 && self.rng.random_range(0..4) == 0 { 1 - mine.min(1) } else { mine };
                NAMES + whose * OWN_NAMES + self.rng.random_range(0..OWN_NAMES)
            }
        };
        if self.rng.random_range(0..5) == 0
            && let Some(inode) = with(&self.shared, |notes| notes.fresh)
        {
            self.run(Call::Read(inode)).await;
            return;
        }
        match self.rng.random_range(0..10) {
            0 | 1 => {
                self.run(Call::Create(n)).await;
            }
            2 => {
                self.run(Call::Unlink(n)).await;
            }
            3 => {
                let to = match n.checked_sub(NAMES) {
                    // Within the directory, or out of it.
                    Some(behind) if self.rng.random_range(0..4) > 0 => {
                        let first = NAMES + behind / OWN_NAMES * OWN_NAMES;
                        first + (n - first + self.rng.random_range(1..OWN_NAMES)) % OWN_NAMES
                    }
                    Some(_) => self.rng.random_range(0..NAMES),
                    None => (n + self.rng.random_range(1..NAMES)) % NAMES,
                };
                self.run(Call::Rename(n, to)).await;
            }
            _ => {
                let Some(Reply::Inode(inode)) = self.run(Call::Lookup(n)).await else { return };
                for _ in 0..self.rng.random_range(1..4) {
                    self.use_file(inode).await;
                }
            }
        }
    }

    async fn use_file(&mut self, inode: u64) {
        if self.rng.random_range(0..3) == 0 {
            self.run(Call::Read(inode)).await;
            return;
        }
        self.write(inode).await;
    }

    fn any_held(&mut self) -> Option<u64> {
        let n = self.rng.random_range(0..self.held.len().max(1));
        self.held.keys().nth(n).copied()
    }

    async fn write(&mut self, inode: u64) {
        self.next_value += 1;
        let value = (u64::from(self.number) + 1) << 32 | self.next_value;
        self.run(Call::Write(inode, value)).await;
    }
}

/// A client's own directory, whoever makes it.
async fn own_directory(fs: &FileSystem, caller: &Caller, client: u8) -> Result<u64, FsError> {
    let name = format!("own{client}");
    loop {
        match fs.lookup(caller, fs.root(), name.as_bytes()).await {
            Ok(attr) => return Ok(attr.inode),
            Err(error) if error.errno() == libc_errno::ENOENT => {}
            Err(error) => tracing::info!(%error, "a directory isn't found yet"),
        }
        if let Err(error) = fs.mkdir(caller, fs.root(), name.as_bytes(), 0o755).await {
            tracing::info!(%error, "a directory isn't made yet");
        }
    }
}

/// Runs one client until the faults are over, and then has it look at everything once more.
pub async fn client(number: u8, seed: u64, host: Host, watch: Watch, shared: Shared) -> turmoil::Result {
    let config = ClientConfig {
        masters: master_addresses(),
        zone: "z1".into(),
        host: format!("client{number}"),
        retry_timeout: RETRY,
        delegate: true,
        connect_timeout: Duration::from_secs(120),
        ..ClientConfig::default()
    };
    let network = network(REGION, Role::Client, &format!("client{number}"), &host.gate);
    let fs = FileSystem::connect(config, network, Arc::new(host.clock.clone())).await?;
    let caller = Caller { kernel_checked: true, ..Caller::default() };
    let mut own = Vec::new();
    for client in 0..2 {
        own.push(own_directory(&fs, &caller, client).await?);
    }
    let worker = |task: u8| {
        let number = number * TASKS + task;
        let rng = StdRng::seed_from_u64(seed ^ (u64::from(number) << 56));
        let (fs, caller, shared, watch) = (fs.clone(), caller.clone(), shared.clone(), watch.clone());
        let own = own.clone();
        let lists = kinds::appends(seed).then(|| kinds::draws(seed, LISTS ^ (u64::from(number) << 56)));
        Worker { fs, caller, shared, number, rng, watch, next_value: 0, own, held: BTreeMap::new(), lists }
    };
    let work = (0..TASKS).map(|task| worker(task).work());
    let locks = locking::work(fs.clone(), number, seed, shared.clone());
    let usual = async { tokio::join!(futures::future::join_all(work), locks) };
    let working = async {
        if kinds::appends(seed) {
            let desk = Desk { fs: fs.clone(), shared: shared.clone() };
            let append =
                |task: u8| appending::work(fs.clone(), (number, number * TASKS + task), seed, desk.clone());
            let (worked, _) = tokio::join!(usual, futures::future::join_all((0..TASKS).map(append)));
            worked
        } else {
            usual.await
        }
    };
    let (workers, ()) = if kinds::locks_alone(seed) {
        let lock =
            |task: u8| locking::work_mostly_alone(fs.clone(), (number, task), CLIENTS, seed, shared.clone());
        let (worked, _) = tokio::join!(working, futures::future::join_all((0..locking::TASKS).map(lock)));
        worked
    } else {
        working.await
    };
    let Some(mut worker) = workers.into_iter().next() else { return Ok(()) };
    for n in 0..NAMES + 2 * OWN_NAMES {
        if let Some(Reply::Inode(inode)) = worker.run(Call::Lookup(n)).await
            && worker.run(Call::Read(inode)).await.is_none()
        {
            let what = format!("inode {inode} can't be read although everything was healed");
            with(&shared, |notes| notes.violations.push(what));
        }
    }
    drop((worker, watch));
    let status = fs.status();
    with(&shared, |notes| {
        notes.lapsed |= status.lapses > 0;
        notes.lapses.insert(number, status.lapses);
        notes.lost_names |= status.untold_lost > 0;
        notes.made_alone += status.made_alone;
        notes.given_alone += status.locks_alone;
        if status.lapses == 0 && status.untold_lost > 0 {
            notes.violations.push(format!("client {number} lost names although its lease never lapsed"));
        }
    });
    fs.close().await;
    Ok(())
}
