//! What mounts do: each makes sequences of changes of its own, and looks at everybody's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::{Caller, FileSystem, FsError, HandleId, WriteOptions};
use mooseng_wire::{SessionId, VolumeId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::homes::{Homes, epoch_in};
use super::sequence::{self, Answered, Before, Look, Sequence, Step, Wrong};
use super::shared::{self, Histories};
use super::volumes::{Moves, Volume};
use crate::appending::{self, Appended};
use crate::hosts::now;
use crate::kinds;
use crate::locking::{self, Board, Locked, LockedFile};

/// Where records lie and how long they are: inline, little in a chunk, and more.
const PLACES: [(u64, usize); 3] = [(0, 4_000), (100_000, 6_000), (100_000, 40_000)];
/// How many mounts there are.
const MOUNTS: u8 = 3;
/// Steps of a sequence at most.
const STEPS_MAX: u64 = 60;
/// Entries of a directory that are listed at a time: more than there are.
const LISTED_MAX: u32 = 1_000;

/// How often it is looked whether a mount has its lease.
const LEASE_LOOK: Duration = Duration::from_millis(50);
/// What is told of.
const RECORD: &str = "the record";
const NAMES: &str = "the names";

/// An error's number.
pub const ENOENT: i32 = 2;
/// An error's number.
pub const EIO: i32 = 5;
/// An error's number.
pub const EEXIST: i32 = 17;
/// An error's number.
pub const ESTALE: i32 = 116;
/// An error's number.
pub const ETIMEDOUT: i32 = 110;

/// What all mounts share of a volume.
#[derive(Default)]
pub struct Notes {
    /// All sequences.
    pub sequences: Vec<Sequence>,
    /// What mounts did to the same names and files.
    pub histories: Histories,
    /// Those who lock.
    pub locked: Locked,
    /// Those who lock the file that is mostly one mount's.
    pub locked_by_one: Locked,
    /// Those who append.
    pub appended: Appended,
    /// What can't be excused.
    pub violations: Vec<String>,
    /// What is a violation unless a sequence's mount lost what only it knew of.
    pub suspicions: Vec<Suspicion>,
    /// How often the leases of mounts lapsed.
    pub lapses: BTreeMap<u8, u64>,
    /// How many changes mounts made alone.
    pub made_alone: BTreeMap<u8, u64>,
    /// How many names, made alone and not told, mounts lost.
    pub lost: BTreeMap<u8, u64>,
    /// Faults are over: look at everything and end.
    pub healed: bool,
    /// Mounts that have ended their work.
    pub done: usize,
    /// The administrator has.
    pub is_settled: bool,
    /// What he did with its homes.
    pub moves: Moves,
    /// How often mounts crossed into it.
    pub crossed: usize,
    /// Changes that were answered.
    pub changes: usize,
    /// Looks.
    pub looks: usize,
    /// Of them, at home.
    pub at_home: usize,
    /// fsyncs that said that something was lost.
    pub told_lost: usize,
}

/// What is wrong with a look unless the sequence's mount lost what only it knew of: records with its lease, names by its own account.
pub struct Suspicion {
    at: usize,
    of: &'static str,
    /// The epoch as whose home the looker's region answered, if it did.
    home: Option<u64>,
    what: String,
}

/// Notes behind a lock. Clones share them.
pub type Shared = Arc<Mutex<Notes>>;

/// Works on the notes.
pub fn with<T>(shared: &Shared, f: impl FnOnce(&mut Notes) -> T) -> T {
    f(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Notes {
    /// What can't be excused, once all mounts are done.
    pub fn judge(&self, homes: &Homes) -> Option<String> {
        let excused = |of: &Suspicion| {
            let sequence = &self.sequences[of.at];
            let more = |counts: &BTreeMap<u8, u64>, before: u64| {
                counts.get(&sequence.writer).copied().unwrap_or_default() > before
            };
            // A home that ended the session and was lost itself has shown what was without the session's names. The next home may not know of that end:
            // the mount comes there with all it has, and has lost nothing.
            let forgotten = of.home.is_some_and(|home| homes.was_lost(home, homes.newest()));
            // What a home was told of is lost with it, and fsync has said so; what it wasn't told of yet goes on at the next one, behind a hole.
            let behind_a_hole = of.of == NAMES && of.home.is_none() && sequence.names.told_lost;
            // Where names are lost, so is what was written to a file that was one of them.
            behind_a_hole
                || more(&self.lost, sequence.lost)
                || ((of.of == RECORD || forgotten) && more(&self.lapses, sequence.lapses))
        };
        let suspicion = self.suspicions.iter().find(|of| !excused(of)).map(|of| &of.what);
        let found = self.violations.first().or(suspicion).cloned();
        let lapses = |mount: u8| self.lapses.get(&mount).copied().unwrap_or_default();
        found.or_else(|| self.appended.judge(lapses, self.lost.values().sum()).err())
    }
}

/// What a mount's tasks have in common that work in one volume.
#[derive(Clone)]
pub struct Mount {
    /// What it has of the volume.
    pub fs: FileSystem,
    /// Who calls.
    pub caller: Caller,
    /// Which mount it is.
    pub number: u8,
    /// Its region.
    pub region: String,
    volume: VolumeId,
    /// The path of its root.
    path: String,
    /// It is a `geo` one.
    pub geo: bool,
    /// It makes names alone: what is answered is durable once fsync has been.
    pub alone: bool,
    /// It appends to common files, and lists the directories that it works in.
    pub appends: bool,
    /// What all mounts share.
    pub shared: Shared,
    /// Who was the home when.
    pub homes: Homes,
}

impl Board for Mount {
    fn locked<T>(&self, file: LockedFile, f: impl FnOnce(&mut Locked) -> T) -> T {
        with(&self.shared, |notes| match file {
            LockedFile::Common => f(&mut notes.locked),
            LockedFile::MostlyOnes => f(&mut notes.locked_by_one),
        })
    }

    /// A mount that comes to the next home too late has lost them.
    fn keeps_locks(&self) -> bool {
        false
    }

    fn violation(&self, what: String) {
        Self::violation(self, what);
    }

    fn is_healed(&self) -> bool {
        with(&self.shared, |notes| notes.healed)
    }

    /// What fsync was answered for in a `region` volume is safe as long as the epoch lasts.
    fn era(&self) -> u64 {
        if self.geo { 0 } else { self.homes.newest() }
    }

    /// A failover takes the file back, with its name.
    fn excuses(&self, errno: i32) -> bool {
        locking::EXCUSED.contains(&errno) || matches!(errno, ENOENT | ESTALE)
    }
}

/// What a file holds: a value, over and over.
pub fn record(value: u64, bytes: usize) -> Bytes {
    value.to_le_bytes().repeat(bytes / 8).into()
}

/// Where a file's record lies, and how long it is.
pub fn place(inode: u64) -> (u64, usize) {
    PLACES[inode as usize % PLACES.len()]
}

/// What a step came to.
enum Done {
    Well,
    /// It may have happened.
    InDoubt,
}

impl Mount {
    /// What works in that volume.
    pub fn new(
        fs: FileSystem,
        number: u8,
        region: &str,
        volume: &Volume,
        alone: bool,
        appends: bool,
    ) -> Self {
        Self {
            fs,
            caller: Caller { kernel_checked: true, ..Caller::default() },
            number,
            region: region.to_owned(),
            volume: volume.id,
            path: volume.path.clone(),
            geo: volume.geo,
            alone,
            appends,
            shared: volume.notes.clone(),
            homes: volume.homes.clone(),
        }
    }

    /// Works until faults are over, and then looks at everything once more.
    pub async fn work(self, seed: u64) {
        let working = async {
            let usual = async {
                tokio::join!(
                    self.clone().write_on(seed),
                    self.clone().look_on(seed),
                    shared::work(self.clone(), seed),
                    locking::work(self.fs.clone(), self.number, seed, self.clone())
                );
            };
            let in_common = async {
                if self.appends {
                    let number = (self.number, self.number);
                    tokio::join!(usual, appending::work(self.fs.clone(), number, seed, self.clone()));
                } else {
                    usual.await;
                }
            };
            // Where mounts make nothing alone they give no locks by themselves either, and ask the region for these.
            if kinds::locks_alone(seed) {
                let lock = |task: u8| {
                    let who = (self.number, task);
                    locking::work_mostly_alone(self.fs.clone(), who, MOUNTS, seed, self.clone())
                };
                tokio::join!(in_common, futures::future::join_all((0..locking::TASKS).map(lock)));
            } else {
                in_common.await;
            }
            for at in 0..with(&self.shared, |notes| notes.sequences.len()) {
                self.look(at).await;
            }
        };
        tokio::select! {
            () = working => {}
            () = self.clone().count_lapses() => {}
        }
    }

    /// The home epoch that the mount's session is in.
    pub fn epoch(&self) -> u64 {
        epoch_in(self.fs.status().custody_epoch)
    }

    /// How often the mount's lease ran out, be it that its session ended or that it went on under another home.
    pub fn lapses(&self) -> u64 {
        with(&self.shared, |notes| notes.lapses.get(&self.number).copied().unwrap_or_default())
    }

    /// Counts that, as long as it is run; and looks at whose the session is.
    async fn count_lapses(self) {
        let (mut had, mut ended) = (true, 0);
        loop {
            let status = self.fs.status();
            let (session, custody) = (SessionId(status.session), status.custody_epoch);
            if custody > 0 && !(session.volume() == self.volume && self.homes.has_had(custody)) {
                self.violation(format!(
                    "mount {} has the session {session} in volume {}, in the custody epoch {custody}, of which no custodian of it was",
                    self.number, self.volume
                ));
            }
            let (has, more) = (status.lease_left_ms.is_some(), status.lapses - ended);
            let lapsed = more + u64::from(had && !has);
            (had, ended) = (has, status.lapses);
            with(&self.shared, |notes| {
                *notes.lapses.entry(self.number).or_default() += lapsed;
                notes.lost.insert(self.number, status.untold_lost);
                notes.made_alone.insert(self.number, status.made_alone);
            });
            tokio::time::sleep(LEASE_LOOK).await;
        }
    }

    /// Nothing excuses that.
    pub fn violation(&self, what: String) {
        tracing::info!(what, "violation");
        with(&self.shared, |notes| notes.violations.push(format!("at {:?}: {what}", now())));
    }

    /// It is one unless the sequence's mount has lost something.
    fn suspicion(&self, (at, of): (usize, &'static str), home: Option<u64>, what: String) {
        tracing::info!(what, "a suspicion");
        with(&self.shared, |notes| notes.suspicions.push(Suspicion { at, of, home, what }));
    }

    /// An error that faults excuse.
    pub fn excuse(&self, what: &str, error: &FsError) {
        if !matches!(error.errno(), ENOENT | EIO | ESTALE | ETIMEDOUT) {
            self.violation(format!("{what} answered {error}"));
        }
        tracing::info!(mount = self.number, what, %error, "failed");
    }

    /// Begins a sequence, its file open; none where that failed.
    async fn begin(&self, nth: u64) -> Option<(usize, HandleId)> {
        let name = format!("s{}-{nth}", self.number);
        let (fs, caller) = (&self.fs, &self.caller);
        let (lost, heard) = (fs.status().untold_lost, Arc::new(AtomicU64::new(fs.losses())));
        let made = async {
            let directory = fs.mkdir(caller, fs.root(), name.as_bytes(), 0o755).await?.inode;
            let made = fs.create(caller, directory, b"f", 0o644, 0o2 | 0o300).await?;
            Ok::<_, FsError>((directory, made.attr.inode, made.handle))
        };
        match made.await {
            Ok((directory, file, handle)) => {
                let epoch = self.epoch();
                let lapses = self.lapses();
                let sequence = Sequence {
                    path: format!("{}/{name}", self.path),
                    writer: self.number,
                    epoch,
                    directory,
                    file,
                    lapses,
                    lost,
                    heard,
                    ..Sequence::default()
                };
                tracing::info!(mount = self.number, nth, epoch, directory, file, "a sequence begins");
                let at = with(&self.shared, |notes| {
                    notes.sequences.push(sequence);
                    notes.sequences.len() - 1
                });
                Some((at, handle))
            }
            Err(error) => {
                self.excuse("making a directory", &error);
                None
            }
        }
    }

    async fn step(&self, at: usize) -> Done {
        let (directory, n) = with(&self.shared, |notes| {
            let sequence = &mut notes.sequences[at];
            sequence.names.issued += 1;
            (sequence.directory, sequence.names.issued)
        });
        let (fs, caller) = (&self.fs, &self.caller);
        let done = match sequence::step(n) {
            Step::Make(name) => {
                let name = sequence::name(name);
                match fs.create(caller, directory, name.as_bytes(), 0o644, 0o2 | 0o300).await {
                    Ok(made) => {
                        let _ = fs.release(made.handle).await;
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Step::Remove(name) => fs.unlink(caller, directory, sequence::name(name).as_bytes()).await,
        };
        match done {
            Ok(()) => self.acknowledged(at, n, !self.alone, |sequence| &mut sequence.names),
            Err(error) => {
                // Nobody else works there: a name that is there already, or isn't, is one that this step made or removed twice.
                let epoch = with(&self.shared, |notes| notes.sequences[at].epoch);
                if matches!(error.errno(), EEXIST | ENOENT) && self.epoch() == epoch {
                    let what =
                        format!("step {n} of sequence {at}, {:?}, answered {error}", sequence::step(n));
                    self.suspicion((at, NAMES), None, what);
                } else if error.errno() != EEXIST {
                    self.excuse("a step", &error);
                }
                Done::InDoubt
            }
        }
    }

    fn acknowledged(
        &self,
        at: usize,
        n: u64,
        is_durable: bool,
        counter: impl Fn(&mut Sequence) -> &mut sequence::Counter,
    ) -> Done {
        let (epoch, place) = (self.epoch(), self.fs.status().log_seen);
        with(&self.shared, |notes| {
            notes.changes += 1;
            let sequence = &mut notes.sequences[at];
            // Done under another home, by what it knows of: what came before may be gone.
            if sequence.epoch != epoch {
                return Done::InDoubt;
            }
            let counter = counter(sequence);
            counter.acked = n;
            if is_durable {
                counter.places.push(Answered { n, place, at: now() });
            }
            Done::Well
        })
    }

    async fn write(&self, at: usize, handle: HandleId) -> Done {
        let (file, value) = with(&self.shared, |notes| {
            let sequence = &mut notes.sequences[at];
            sequence.records.issued += 1;
            (sequence.file, sequence.records.issued)
        });
        let (offset, bytes) = place(file);
        let options = WriteOptions::default();
        let written = self.fs.write(&self.caller, handle, offset, record(value, bytes), options).await;
        match written {
            // It is in this mount's memory only.
            Ok(_) => self.acknowledged(at, value, false, |sequence| &mut sequence.records),
            Err(error) => {
                self.excuse("a write", &error);
                Done::InDoubt
            }
        }
    }

    /// fsync of the directory: all steps that were acknowledged survive from then on. Answers whether it was answered well.
    async fn sync_names(&self, at: usize) -> bool {
        let (directory, heard, acked) = with(&self.shared, |notes| {
            let sequence = &notes.sequences[at];
            (sequence.directory, sequence.heard.clone(), sequence.names.acked)
        });
        let synced = self.fs.fsync_open_directory(directory, &heard).await;
        self.synced(at, synced, acked, |sequence| &mut sequence.names)
    }

    async fn sync_records(&self, at: usize, handle: HandleId) -> bool {
        let acked = with(&self.shared, |notes| notes.sequences[at].records.acked);
        let synced = self.fs.fsync(handle, false).await;
        self.synced(at, synced, acked, |sequence| &mut sequence.records)
    }

    fn synced(
        &self,
        at: usize,
        synced: Result<(), FsError>,
        upto: u64,
        counter: impl Fn(&mut Sequence) -> &mut sequence::Counter,
    ) -> bool {
        let (epoch, place) = (self.epoch(), self.fs.status().log_seen);
        match synced {
            Ok(()) => {
                tracing::info!(mount = self.number, at, upto, epoch, "synced");
                with(&self.shared, |notes| {
                    let sequence = &mut notes.sequences[at];
                    let sequence_epoch = sequence.epoch;
                    // What of a `region` volume was lost an earlier fsync may have taken for safe.
                    if self.geo || sequence.epoch == epoch {
                        let counter = counter(sequence);
                        counter.sync(upto, epoch);
                        if sequence_epoch == epoch && !counter.told_lost {
                            counter.places.push(Answered { n: upto, place, at: now() });
                        }
                    }
                });
                true
            }
            Err(error) => {
                if matches!(error.errno(), EIO | ESTALE) {
                    with(&self.shared, |notes| {
                        notes.told_lost += 1;
                        counter(&mut notes.sequences[at]).told_lost = true;
                    });
                }
                self.excuse("fsync", &error);
                false
            }
        }
    }

    /// Makes one sequence after the other until faults are over.
    pub async fn write_on(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5e9e ^ (u64::from(self.number) << 48));
        let mut nth = 0;
        while !with(&self.shared, |notes| notes.healed) {
            nth += 1;
            let Some((at, handle)) = self.begin(nth).await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            for _ in 0..rng.random_range(10..STEPS_MAX) {
                let done = match rng.random_range(0..10) {
                    0..4 => self.step(at).await,
                    4..7 => self.write(at, handle).await,
                    7 => {
                        self.sync_names(at).await;
                        Done::Well
                    }
                    8 => {
                        self.sync_records(at, handle).await;
                        Done::Well
                    }
                    _ => {
                        self.look(at).await;
                        Done::Well
                    }
                };
                let epoch = with(&self.shared, |notes| notes.sequences[at].epoch);
                let over = matches!(done, Done::InDoubt) || self.epoch() != epoch;
                if over || with(&self.shared, |notes| notes.healed) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..80))).await;
            }
            with(&self.shared, |notes| notes.sequences[at].over = true);
            // Whatever has become of it: fsync knows.
            self.sync_names(at).await;
            self.sync_records(at, handle).await;
            let _ = self.fs.release(handle).await;
        }
    }

    /// Looks at sequences until faults are over.
    pub async fn look_on(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x1007 ^ (u64::from(self.number) << 48));
        while !with(&self.shared, |notes| notes.healed) {
            let count = with(&self.shared, |notes| notes.sequences.len());
            if count > 0 {
                // Those of late, more often than not.
                let among = if rng.random_range(0..4) > 0 { 4 } else { count };
                let back = rng.random_range(0..among);
                self.look(count.saturating_sub(1 + back)).await;
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await;
        }
    }

    /// Looks at a sequence's names and record.
    pub async fn look(&self, at: usize) {
        let sequence = with(&self.shared, |notes| notes.sequences[at].clone());
        let called = now();
        match self.listed(sequence.directory).await {
            Ok(listed) => match self.steps_of(at, listed.clone()) {
                Some(steps) => {
                    let before = sequence.names.before(self.number);
                    self.saw(at, called, steps, before, |sequence| (&mut sequence.names, NAMES));
                }
                None => {
                    let what = format!(
                        "mount {} sees the names {listed:?} in sequence {at}, which it never had",
                        self.number
                    );
                    self.suspicion((at, NAMES), None, what);
                }
            },
            Err(error) => self.missing(at, called, &error),
        }
        let sequence = with(&self.shared, |notes| notes.sequences[at].clone());
        let called = now();
        match self.record_of(at, sequence.file).await {
            Ok(value) => {
                let before = sequence.records.before(self.number);
                self.saw(at, called, value, before, |sequence| (&mut sequence.records, RECORD));
            }
            Err(error) => self.missing(at, called, &error),
        }
    }

    /// How many steps a listing shows. The step that was under way at a failover may have been made by the next home although steps before it were
    /// taken back, which its mount hasn't been told of yet.
    fn steps_of(&self, at: usize, listed: BTreeSet<u64>) -> Option<u64> {
        let (epoch, issued, acked) = with(&self.shared, |notes| {
            let sequence = &notes.sequences[at];
            (sequence.epoch, sequence.names.issued, sequence.names.acked)
        });
        if issued == acked || self.homes.newest() == epoch {
            return sequence::steps_shown(&listed);
        }
        sequence::steps_shown_with(listed, issued)
    }

    /// What was synced, or what is at home, can't be missing.
    fn missing(&self, at: usize, called: Duration, error: &FsError) {
        if matches!(error.errno(), ENOENT | ESTALE) {
            let home = self.homes.around(&self.region, called, now());
            let (of, synced) = with(&self.shared, |notes| {
                let sequence = &notes.sequences[at];
                (sequence.epoch, sequence.names.synced.0 > 0 && self.geo)
            });
            if let Some(home) = home
                && (self.homes.kept(of, home) || synced)
            {
                let what = format!("sequence {at} is missing at home in epoch {home}: {error}");
                self.suspicion((at, NAMES), Some(home), what);
            }
        }
        self.excuse("a look", error);
    }

    fn saw(
        &self,
        at: usize,
        called: Duration,
        value: u64,
        before: Before,
        counter: impl Fn(&mut Sequence) -> (&mut sequence::Counter, &'static str),
    ) {
        let at_home = self.homes.around(&self.region, called, now());
        let epoch = self.homes.newest();
        let looked = with(&self.shared, |notes| {
            notes.looks += 1;
            notes.at_home += usize::from(at_home.is_some());
            let sequence = &mut notes.sequences[at];
            let of_epoch = sequence.epoch;
            let own = sequence.writer == self.number;
            let (counter, what) = counter(sequence);
            let look = Look { mount: self.number, own, value, at_home, epoch };
            let kept = |from, to| self.homes.kept(from, to);
            counter.look(before, look, (of_epoch, self.geo), kept).map_err(|why| (what, why))
        });
        tracing::info!(mount = self.number, at, value, ?at_home, "saw");
        if let Err((counted, Wrong { what, unless_lapsed })) = looked {
            let what = format!(
                "to mount {} in {}, {counted} of sequence {at} {what} (since {called:?})",
                self.number, self.region
            );
            if unless_lapsed {
                self.suspicion((at, counted), at_home, what);
            } else {
                self.violation(what);
            }
        }
    }

    async fn listed(&self, directory: u64) -> Result<BTreeSet<u64>, FsError> {
        let page = self.fs.readdir(&self.caller, directory, 0, LISTED_MAX).await?;
        let number = |entry: &mooseng_wire::fs::DirEntry| std::str::from_utf8(&entry.name).ok()?.parse().ok();
        Ok(page.entries.iter().filter_map(number).collect())
    }

    async fn record_of(&self, at: usize, file: u64) -> Result<u64, FsError> {
        let (offset, bytes) = place(file);
        let handle = self.fs.open(&self.caller, file, 0).await?.handle;
        let read = self.fs.read(&self.caller, handle, offset, bytes as u32).await;
        let _ = self.fs.release(handle).await;
        let read = read?;
        let first = read.get(..8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
        if !read.is_empty() && read != record(first, bytes) {
            self.violation(format!(
                "the record of sequence {at} reads torn: {} bytes beginning with {first}",
                read.len()
            ));
        }
        Ok(first)
    }
}
