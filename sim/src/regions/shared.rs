//! What mounts do to the same names and files: histories, one for each home epoch, in each of which a search must find an order that explains them
//! ([`crate::history`]).
//!
//! Under each home the mounts work in a new directory, so that what a failover takes back is in none of them. Whatever a mount does while it hears of
//! another home has no known outcome. Changes are made at the home, and so are looks from mounts there: they show what was done before they were called.
//! A look from elsewhere shows a state of before, and none that is older than what its mount has seen or done.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::{FsError, HandleId, RenameMode, WriteOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clients::{EEXIST, EIO, ENOENT, ESTALE, ETIMEDOUT, Mount, place, record, with};
use crate::history::{self, Call, Operation, Reply};
use crate::hosts::now;
use crate::{kinds, listing};

/// Names that mounts have in common.
const NAMES: u8 = 4;
/// Tasks of a mount that work at the same time.
const TASKS: u8 = 2;
/// Files that a task holds open at most.
const HELD_MAX: usize = 2;
/// One step of so many is a listing, where mounts list directories.
const LIST_EVERY: u32 = 8;
/// What draws listings.
const LISTS: u64 = 0x115_7b6;

/// The operations under one home, and how often the leases of mounts had run out at their beginning and their end.
#[derive(Default)]
pub struct History {
    operations: Vec<Operation>,
    lapses: Option<(u64, u64)>,
    /// Names that mounts had lost before the first one, which nobody was told of.
    lost: Option<u64>,
}

/// All histories, by epoch and directory.
#[derive(Default)]
pub struct Histories {
    /// Orders calls and returns.
    next: u64,
    all: BTreeMap<(u64, u64), History>,
    /// How often a directory was listed.
    listings: usize,
    /// The inode that was written or made last, and in which history: whoever reads it now should see it so.
    fresh: Option<((u64, u64), u64)>,
}

impl Histories {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// How often a directory was listed.
    pub fn listings(&self) -> usize {
        self.listings
    }

    /// Takes operations into a history that began when mounts had lost so many leases and names; by now they have lost so many leases.
    fn take(
        &mut self,
        place: (u64, u64),
        (lapses, lost): (u64, u64),
        lapsed: u64,
        operations: Vec<Operation>,
    ) {
        let history = self.all.entry(place).or_default();
        history.operations.extend(operations);
        history.lost.get_or_insert(lost);
        history.lapses = Some((history.lapses.map_or(lapses, |(first, _)| first.min(lapses)), lapsed));
    }

    /// Operations in all of them.
    pub fn operations(&self) -> usize {
        self.all.values().map(|history| history.operations.len()).sum()
    }

    /// Searches an order for each. `lost`: names that mounts lost in the whole run.
    pub fn judge(&self, lost: u64) -> Result<(), String> {
        for ((epoch, directory), history) in &self.all {
            // What nobody was told of may be gone, although the mount that made it showed it.
            if history.lost.is_some_and(|before| before != lost) {
                tracing::info!(epoch, directory, "a history of which names were lost isn't judged");
                continue;
            }
            let mut operations = history.operations.clone();
            // What a mount had in memory only, and showed, may be lost with its lease.
            if history.lapses.is_some_and(|(before, after)| before != after) {
                operations.retain(|of| !matches!(of.call, Call::Write(..) | Call::Read(_)));
            }
            tracing::info!(epoch, directory, operations = operations.len(), "a history is judged");
            history::check(&operations).map_err(|why| {
                format!("the history of epoch {epoch} (directory {directory}) isn't linearizable: {why}")
            })?;
        }
        Ok(())
    }
}

enum Outcome {
    Reply(Reply),
    Unknown,
    /// Nothing was done, and nothing learnt.
    Nothing,
}

struct Worker {
    mount: Mount,
    rng: StdRng,
    value: u64,
    /// The epoch, and its directory.
    place: Option<(u64, u64)>,
    held: BTreeMap<u64, HandleId>,
    /// What draws listings, where there are any.
    lists: Option<StdRng>,
}

fn name(n: u8) -> [u8; 1] {
    [b'a' + n]
}

impl Worker {
    fn known(&self, call: &Call, error: &FsError) -> Outcome {
        match error.errno() {
            ENOENT | ESTALE => Outcome::Reply(Reply::Absent),
            EEXIST => Outcome::Reply(Reply::Exists),
            ETIMEDOUT | EIO => Outcome::Unknown,
            _ => {
                self.mount.violation(format!("{call:?} answered {error}"));
                Outcome::Unknown
            }
        }
    }

    fn unchanged(&self, call: &Call, error: &FsError) -> Outcome {
        match self.known(call, error) {
            Outcome::Unknown => Outcome::Nothing,
            other => other,
        }
    }

    async fn handle(&mut self, inode: u64) -> Result<HandleId, FsError> {
        match self.held.get(&inode) {
            Some(handle) => Ok(*handle),
            None => Ok(self.mount.fs.open(&self.mount.caller, inode, 0o2).await?.handle),
        }
    }

    async fn done_with(&mut self, inode: u64, handle: HandleId) {
        self.held.insert(inode, handle);
        if self.held.len() > HELD_MAX || self.rng.random_range(0..3) == 0 {
            let other = self.held.keys().copied().find(|other| *other != inode).unwrap_or(inode);
            self.let_go(other).await;
        }
    }

    async fn let_go(&mut self, inode: u64) {
        if let Some(handle) = self.held.remove(&inode) {
            let _ = self.mount.fs.release(handle).await;
        }
    }

    async fn perform(&mut self, directory: u64, call: &Call) -> Result<Reply, Outcome> {
        let (fs, caller) = (self.mount.fs.clone(), self.mount.caller.clone());
        match *call {
            Call::Create(n) => {
                let made = fs.create(&caller, directory, &name(n), 0o644, 0o2 | 0o300).await;
                let made = made.map_err(|e| self.known(call, &e))?;
                let _ = fs.release(made.handle).await;
                Ok(Reply::Inode(made.attr.inode))
            }
            Call::Lookup(n) => {
                let found = fs.lookup(&caller, directory, &name(n)).await;
                Ok(Reply::Inode(found.map_err(|e| self.unchanged(call, &e))?.inode))
            }
            Call::Unlink(n) => {
                let done = fs.unlink(&caller, directory, &name(n)).await;
                done.map(|()| Reply::Done).map_err(|e| self.known(call, &e))
            }
            Call::Rename(a, b) => {
                let done =
                    fs.rename(&caller, directory, &name(a), directory, &name(b), RenameMode::default()).await;
                done.map(|()| Reply::Done).map_err(|e| self.known(call, &e))
            }
            Call::Write(inode, value) => {
                let handle = self.handle(inode).await.map_err(|e| self.unchanged(call, &e))?;
                let (offset, bytes) = place(inode);
                let options = WriteOptions::default();
                let written = fs.write(&caller, handle, offset, record(value, bytes), options).await;
                let synced = fs.fsync(handle, false).await;
                self.done_with(inode, handle).await;
                written.map_err(|e| self.known(call, &e))?;
                synced.map_err(|e| self.known(call, &e))?;
                Ok(Reply::Done)
            }
            Call::Read(inode) => {
                let handle = self.handle(inode).await.map_err(|e| self.unchanged(call, &e))?;
                let (offset, bytes) = place(inode);
                let read = fs.read(&caller, handle, offset, bytes as u32).await;
                self.done_with(inode, handle).await;
                let read: Bytes = read.map_err(|e| self.unchanged(call, &e))?;
                let first = read.get(..8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
                if !read.is_empty() && read != record(first, bytes) {
                    self.mount.violation(format!(
                        "inode {inode} reads torn: {} bytes beginning with {first}",
                        read.len()
                    ));
                }
                Ok(Reply::Value(first))
            }
        }
    }

    async fn run(&mut self, call: Call) -> Option<Reply> {
        let (epoch, directory) = self.place?;
        let (shared, began) = (self.mount.shared.clone(), now());
        let (called, lapses, lost) = with(&shared, |notes| {
            (notes.histories.tick(), notes.lapses.values().sum(), notes.lost.values().sum())
        });
        let result = self.perform(directory, &call).await;
        let is_of_epoch = self.mount.epoch() == epoch && self.mount.homes.newest() == epoch;
        let at_home = self.mount.homes.around(&self.mount.region, began, now()) == Some(epoch);
        with(&shared, |notes| {
            let returned = notes.histories.tick();
            let looks = matches!(call, Call::Lookup(_) | Call::Read(_));
            let (returned, reply) = match result {
                Ok(reply) | Err(Outcome::Reply(reply)) if is_of_epoch => (Some(returned), Some(reply)),
                // Under another home: nobody knows what of it was before.
                Ok(_) | Err(Outcome::Reply(_) | Outcome::Unknown) if !looks => (None, None),
                _ => return None,
            };
            let absent = matches!((&call, &reply), (Call::Write(..), Some(Reply::Absent)));
            let elsewhere = (looks || absent) && !at_home;
            tracing::info!(mount = self.mount.number, epoch, ?call, ?reply, elsewhere, "operation");
            match (&call, &reply) {
                (Call::Write(inode, _), Some(Reply::Done)) | (Call::Create(_), Some(Reply::Inode(inode))) => {
                    notes.histories.fresh = Some(((epoch, directory), *inode));
                }
                _ => {}
            }
            let client = self.mount.number;
            let operation = Operation { client, called, returned, call, reply: reply.clone(), elsewhere };
            let lapsed = notes.lapses.values().sum();
            notes.histories.take((epoch, directory), (lapses, lost), lapsed, vec![operation]);
            reply
        })
    }

    /// Lists the directory. Each of its names is looked at by itself, at some instant meanwhile, or, from elsewhere, before.
    async fn list(&mut self, most: u32) {
        let Some((epoch, directory)) = self.place else { return };
        let (mount, began) = (&self.mount, now());
        let (called, lapses, lost) = with(&mount.shared, |notes| {
            (notes.histories.tick(), notes.lapses.values().sum(), notes.lost.values().sum())
        });
        let listed = listing::all(&mount.fs, &mount.caller, directory, most).await;
        let is_of_epoch = mount.epoch() == epoch && mount.homes.newest() == epoch;
        let elsewhere = mount.homes.around(&mount.region, began, now()) != Some(epoch);
        tracing::info!(mount = mount.number, epoch, directory, most, ?listed, elsewhere, "listed");
        let entries = match listed {
            Ok(entries) if is_of_epoch => entries,
            Ok(_) => return,
            Err(error) => return mount.excuse("a listing", &error),
        };
        if let Some(entry) = listing::twice(&entries) {
            mount.violation(format!("a listing of directory {directory} has twice {entry:?}"));
        }
        let looks = listing::looks(&entries, 0..NAMES);
        with(&mount.shared, |notes| {
            let (client, returned) = (mount.number, Some(notes.histories.tick()));
            let operation =
                |(call, reply)| Operation { client, called, returned, call, reply: Some(reply), elsewhere };
            let operations = looks.into_iter().map(operation).collect();
            let lapsed = notes.lapses.values().sum();
            notes.histories.listings += 1;
            notes.histories.take((epoch, directory), (lapses, lost), lapsed, operations);
        });
    }

    /// The directory of the home epoch that the mount is in, whoever makes it.
    async fn arrive(&mut self) {
        let epoch = self.mount.epoch();
        if self.place.is_some_and(|(of, _)| of == epoch) {
            return;
        }
        self.place = None;
        while let Some((&inode, _)) = self.held.first_key_value() {
            self.let_go(inode).await;
        }
        let name = format!("h{epoch}");
        let (fs, caller) = (&self.mount.fs, &self.mount.caller);
        let made = match fs.mkdir(caller, fs.root(), name.as_bytes(), 0o755).await {
            Err(error) if error.errno() == EEXIST => fs.lookup(caller, fs.root(), name.as_bytes()).await,
            other => other,
        };
        match made {
            Ok(directory) if self.mount.epoch() == epoch => self.place = Some((epoch, directory.inode)),
            Ok(_) => {}
            Err(error) => {
                tracing::info!(%error, name, "a directory isn't there yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn step(&mut self) {
        if let Some(rng) = &mut self.lists
            && rng.random_range(0..LIST_EVERY) == 0
        {
            let most = listing::PAGES[rng.random_range(0..listing::PAGES.len())];
            return self.list(most).await;
        }
        let n = self.rng.random_range(0..NAMES);
        let fresh = with(&self.mount.shared, |notes| notes.histories.fresh);
        // Not what was made under another home: of that this history knows nothing.
        let fresh = fresh.filter(|(place, _)| self.place == Some(*place)).map(|(_, inode)| inode);
        match (self.rng.random_range(0..12), fresh) {
            (0..3, _) => {
                self.run(Call::Create(n)).await;
            }
            (3, _) => {
                self.run(Call::Unlink(n)).await;
            }
            (4, _) => {
                let to = (n + self.rng.random_range(1..NAMES)) % NAMES;
                self.run(Call::Rename(n, to)).await;
            }
            (5..7, Some(inode)) => {
                self.run(Call::Read(inode)).await;
            }
            _ => {
                let Some(Reply::Inode(inode)) = self.run(Call::Lookup(n)).await else { return };
                if self.rng.random_range(0..3) == 0 {
                    self.run(Call::Read(inode)).await;
                } else {
                    self.value += 1;
                    self.run(Call::Write(inode, self.value)).await;
                }
            }
        }
    }

    async fn work(mut self) {
        while !with(&self.mount.shared, |notes| notes.healed) {
            self.arrive().await;
            if self.place.is_some() {
                self.step().await;
            }
            let pause = self.rng.random_range(20..250);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        while let Some((&inode, _)) = self.held.first_key_value() {
            self.let_go(inode).await;
        }
    }
}

/// Works on what all mounts share until faults are over.
pub async fn work(mount: Mount, seed: u64) {
    let worker = |task: u8| {
        let number = u64::from(mount.number * TASKS + task);
        let rng = StdRng::seed_from_u64(seed ^ 0x5a7e ^ (number << 48));
        let lists = mount.appends.then(|| kinds::draws(seed, LISTS ^ (number << 48)));
        let (mount, value) = (mount.clone(), (number + 1) << 32);
        Worker { mount, rng, value, place: None, held: BTreeMap::new(), lists }
    };
    futures::future::join_all((0..TASKS).map(|task| worker(task).work())).await;
}
