//! Clients that append to common files (O_APPEND), and what must hold of these: each record is there whole, once, where its write was told that it is, and
//! none that was acknowledged is lost.
//!
//! A record says who wrote it, as the how-manieth of his, and how long it is; the rest of it is made of that. So whoever reads the file knows what he sees:
//! - **Whole and once**, in whichever region it is read, and whatever became of the home: a retry appends nothing again.
//! - **In order**: of one writer those that were answered lie in the order in which he wrote them; of all, those that are durable lie where their writes were told,
//!   none of them over another, and none before one that had been answered when it was begun.
//! - **Acknowledged**: at home a look shows all that was answered before it. What fsync was answered for is there for good, in a `region` volume as long as nothing
//!   was lost with a home.
//! - **Seen**: no client misses what it saw before, wherever it is.
//!
//! Where several regions have the volume there is one file for each home epoch. What is answered under another one has no known outcome, and what a client had in memory
//! only may be lost with its lease.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::{Caller, FileSystem, FsError, HandleId, WriteOptions};
use rand::Rng;
use rand::rngs::StdRng;

use crate::hosts::now;
use crate::kinds;

/// What the choices are drawn from.
const LABEL: u64 = 0xa9_9e4d;
/// Lengths of records: inline, up to what is packed, and in chunks.
const LENGTHS: [u64; 6] = [32, 200, 1_000, 4_504, 9_000, 20_008];
/// Bytes that are appended to one file at most.
const BYTES_MAX: u64 = 400_000;
/// A read gets all of a file.
const READ_MAX: u32 = 1 << 20;
/// What a record begins with: three words.
const HEAD_WORDS: u64 = 3;
/// What couldn't be looked at in the end is looked at again after that.
const AGAIN: Duration = Duration::from_millis(300);
/// Errors after which a file is opened anew, for it may be another one: ENOENT, ESTALE.
const GONE: [i32; 2] = [2, 116];

/// A file: the home epoch in which it is appended to, and its inode.
type Of = (u64, u64);
/// A record: its writer, and which of his it is.
type Id = (u8, u64);

/// Where those who append are, and where they tell what they do.
pub trait Board: Clone {
    /// What they share.
    fn appended<T>(&self, f: impl FnOnce(&mut Appended) -> T) -> T;
    /// Nothing excuses that.
    fn violation(&self, what: String);
    /// Faults are over.
    fn is_healed(&self) -> bool;
    /// Whether that error is excused by faults.
    fn excuses(&self, errno: i32) -> bool;
    /// The home epoch that the client is in.
    fn epoch(&self) -> u64;
    /// The newest one that answered.
    fn newest(&self) -> u64;
    /// Whether nothing was lost with a home from one epoch to another.
    fn kept(&self, from: u64, to: u64) -> bool;
    /// The epoch as whose home the client's region has answered all the time since then, if it did.
    fn home_since(&self, began: Duration) -> Option<u64>;
    /// Whether what fsync is answered for survives the loss of the home.
    fn outlives_home(&self) -> bool;
    /// How often the client's lease has lapsed.
    fn lapses(&self) -> u64;
    /// How many names were lost that only their client knew of.
    fn lost(&self) -> u64;
}

/// A record, as far as its writer knows.
#[derive(Debug)]
struct Record {
    client: u8,
    length: u64,
    /// How often its client's lease had lapsed before.
    lapses: u64,
    /// When it was begun.
    called: u64,
    /// When its write was answered well, and where it was told to be.
    answered: Option<(u64, u64)>,
    /// When an fsync behind that was answered well.
    durable: Option<u64>,
    /// When each client saw it last, and which epoch was the newest then.
    seen: BTreeMap<u8, (u64, u64)>,
}

#[derive(Debug, Default)]
struct File {
    records: BTreeMap<Id, Record>,
    bytes: u64,
    /// Names that were lost before it was made.
    lost: u64,
}

/// What is wrong with a look.
#[derive(Debug)]
struct Wrong {
    what: String,
    /// Nothing is if this client has lost its lease once more than that: it had the record in memory only.
    unless_lapsed: Option<(u8, u64)>,
}

impl Wrong {
    fn in_any_case(what: String) -> Self {
        Self { what, unless_lapsed: None }
    }
}

/// What is wrong unless names were lost after so many, or the client's lease as well, which is known in the end.
#[derive(Debug)]
struct Suspicion {
    what: String,
    unless_lapsed: Option<(u8, u64)>,
    lost: u64,
}

/// What those who append share.
#[derive(Debug, Default)]
pub struct Appended {
    /// Orders calls and returns.
    next: u64,
    files: BTreeMap<Of, File>,
    suspicions: Vec<Suspicion>,
}

/// A look at a file.
struct Look {
    client: u8,
    /// When it was begun.
    called: u64,
    /// The newest epoch.
    newest: u64,
    /// The epoch as whose home the client's region has answered, if it did.
    home: Option<u64>,
    /// What fsync was answered for survives the loss of the home.
    outlives_home: bool,
}

fn head_of(bytes: &[u8]) -> Option<(Id, u64)> {
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let writer = u8::try_from(word(0)?.checked_sub(1)?).ok()?;
    Some(((writer, word(8)?), word(16)?))
}

/// A record's bytes.
fn record((writer, n): Id, length: u64) -> Bytes {
    let head = [u64::from(writer) + 1, n, length];
    let filler = |word: u64| ((u64::from(writer) + 1) << 56) ^ (n << 24) ^ word;
    let words = head.into_iter().chain((HEAD_WORDS..length / 8).map(filler));
    words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>().into()
}

/// A record as it lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    id: Id,
    at: u64,
    length: u64,
}

/// The records that a file consists of.
fn parse(bytes: &[u8]) -> Result<Vec<Shown>, String> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let whole = || {
            let (id, length) = head_of(rest)?;
            let is = rest.get(..usize::try_from(length).ok()?)?;
            (!is.is_empty() && *is == record(id, length)[..]).then_some((id, length))
        };
        let Some((id, length)) = whole() else {
            return Err(format!(
                "what lies at {at} of {} bytes isn't a whole record (its head is {:?}), behind {:?}",
                bytes.len(),
                head_of(rest),
                found.last()
            ));
        };
        found.push(Shown { id, at: at as u64, length });
        at += length as usize;
    }
    Ok(found)
}

impl Record {
    /// What is wrong with a look that lacks it.
    fn judge_missing(
        &self,
        epoch: u64,
        id: Id,
        look: &Look,
        kept: impl Fn(u64, u64) -> bool,
    ) -> Option<Wrong> {
        let is_before = |tick: u64| tick < look.called;
        let unless_lapsed = Some((self.client, self.lapses));
        let is_kept = look.home.is_some_and(|home| kept(epoch, home));
        if self.durable.is_some_and(is_before) && look.home.is_some() && (look.outlives_home || is_kept) {
            return Some(Wrong::in_any_case(format!(
                "lacks record {id:?} at home in epoch {:?}, though fsync was answered for it: {self:?}",
                look.home
            )));
        }
        if self.answered.is_some_and(|(tick, _)| is_before(tick)) && is_kept {
            let what = format!("lacks record {id:?} at home, though its write was answered before: {self:?}");
            return Some(Wrong { what, unless_lapsed });
        }
        let (_, seen_in) = self.seen.get(&look.client).filter(|(tick, _)| is_before(*tick))?;
        let is_own = self.client == look.client;
        if !kept(*seen_in, look.newest) && (is_own || !look.outlives_home) {
            return None;
        }
        let what = format!("lacks record {id:?}, which it showed in epoch {seen_in}: {self:?}");
        Some(Wrong { what, unless_lapsed: unless_lapsed.filter(|_| is_own) })
    }
}

impl File {
    /// What is wrong with the records that a look shows.
    fn judge_shown(&self, shown: &[Shown]) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let mut places: BTreeMap<Id, u64> = BTreeMap::new();
        let mut last: BTreeMap<u8, u64> = BTreeMap::new();
        for Shown { id, at, length } in shown {
            let (writer, n) = *id;
            let Some(record) = self.records.get(id).filter(|record| record.length == *length) else {
                wrong.push(Wrong::in_any_case(format!(
                    "shows a record {id:?} of {length} bytes at {at}, which nobody wrote"
                )));
                continue;
            };
            if let Some(before) = places.insert(*id, *at) {
                wrong.push(Wrong::in_any_case(format!("shows record {id:?} twice, at {before} and at {at}")));
            }
            let Some((_, told)) = record.answered else { continue };
            if record.durable.is_some() && told != *at {
                wrong.push(Wrong::in_any_case(format!(
                    "shows record {id:?} at {at}, and its write was told that it is at {told}"
                )));
            }
            if let Some(before) = last.insert(writer, n).filter(|before| *before > n) {
                wrong.push(Wrong::in_any_case(format!(
                    "shows record {n} of writer {writer} behind record {before}, which he wrote later"
                )));
            }
        }
        wrong
    }

    /// What is wrong with the records that a look lacks.
    fn judge_all_missing(
        &self,
        epoch: u64,
        look: &Look,
        shown: &[Shown],
        kept: impl Fn(u64, u64) -> bool,
    ) -> Vec<Wrong> {
        let lacks = |id: Id| !shown.iter().any(|shown| shown.id == id);
        let missing = self.records.iter().filter(|(id, _)| lacks(**id));
        missing.filter_map(|(id, record)| record.judge_missing(epoch, *id, look, &kept)).collect()
    }

    /// What is durable lies in the order in which it was written, and nothing of it over anything else.
    fn check_order(&self) -> Result<(), String> {
        let durable = self.records.iter().filter(|(_, record)| record.durable.is_some());
        let mut durable: Vec<(u64, u64, &Id, &Record)> = durable
            .filter_map(|(id, record)| record.answered.map(|(when, at)| (at, when, id, record)))
            .collect();
        durable.sort_by_key(|(at, ..)| *at);
        let mut end = (0, None);
        let mut latest: Option<(u64, &Id)> = None;
        for (at, when, id, record) in durable {
            if at < end.0 {
                return Err(format!("record {id:?} is at {at}, and record {:?} ends at {}", end.1, end.0));
            }
            end = (at + record.length, Some(id));
            if let Some((called, other)) = latest.filter(|(called, _)| *called > when) {
                return Err(format!(
                    "record {id:?} is at {at}, behind record {other:?}, which was begun ({called}) after that was answered ({when})"
                ));
            }
            latest = latest.max(Some((record.called, id)));
        }
        Ok(())
    }
}

impl Appended {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Records so far, and those of them that fsync was answered for.
    pub fn counts(&self) -> (usize, usize) {
        let records = || self.files.values().flat_map(|file| file.records.values());
        (records().count(), records().filter(|record| record.durable.is_some()).count())
    }

    fn begin(&mut self, of: Of, lost: u64) {
        self.files.entry(of).or_insert_with(|| File { lost, ..File::default() });
    }

    fn bytes(&self, of: Of) -> u64 {
        self.files.get(&of).map_or(0, |file| file.bytes)
    }

    fn issue(&mut self, of: Of, id: Id, (client, length, lapses): (u8, u64, u64)) {
        let called = self.tick();
        let file = self.files.entry(of).or_default();
        file.bytes += length;
        let (answered, durable, seen) = Default::default();
        file.records.insert(id, Record { client, length, lapses, called, answered, durable, seen });
    }

    fn answered(&mut self, of: Of, id: Id, at: u64) {
        let tick = self.tick();
        if let Some(record) = self.files.get_mut(&of).and_then(|file| file.records.get_mut(&id)) {
            record.answered = Some((tick, at));
        }
    }

    fn synced(&mut self, of: Of, ids: &[Id]) {
        let tick = self.tick();
        let Some(file) = self.files.get_mut(&of) else { return };
        for id in ids {
            if let Some(record) = file.records.get_mut(id) {
                record.durable = record.durable.or(Some(tick));
            }
        }
    }

    /// Takes note of what a look shows. Answers what is wrong with it whatever may happen.
    fn look(&mut self, of: Of, look: &Look, shown: &[Shown], kept: impl Fn(u64, u64) -> bool) -> Vec<String> {
        let tick = self.tick();
        let Some(file) = self.files.get_mut(&of) else { return Vec::new() };
        let mut wrong = file.judge_shown(shown);
        for Shown { id, .. } in shown {
            if let Some(record) = file.records.get_mut(id) {
                record.seen.insert(look.client, (tick, look.newest));
            }
        }
        wrong.extend(file.judge_all_missing(of.0, look, shown, kept));
        let lost = file.lost;
        let mut certain = Vec::new();
        for Wrong { what, unless_lapsed } in wrong {
            match unless_lapsed {
                None => certain.push(what),
                Some(_) => self.suspect(what, unless_lapsed, lost),
            }
        }
        certain
    }

    fn suspect(&mut self, what: String, unless_lapsed: Option<(u8, u64)>, lost: u64) {
        tracing::info!(what, "a suspicion");
        self.suspicions.push(Suspicion { what, unless_lapsed, lost });
    }

    /// A look at home doesn't find the file itself. Whoever made it may have lost it with its name, while it alone knew of that.
    fn missing(&mut self, of: Of, look: &Look, kept: impl Fn(u64, u64) -> bool) {
        let Some(file) = self.files.get(&of) else { return };
        let (wrong, lost) = (file.judge_all_missing(of.0, look, &[], kept), file.lost);
        for Wrong { what, unless_lapsed } in wrong {
            self.suspect(what, unless_lapsed, lost);
        }
    }

    /// What can't be excused, once all are done, by how often the leases of clients have lapsed, and by how many names were lost.
    pub fn judge(&self, lapses: impl Fn(u8) -> u64, lost: u64) -> Result<(), String> {
        let is_certain = |of: &&Suspicion| {
            of.lost == lost && of.unless_lapsed.is_none_or(|(client, before)| lapses(client) == before)
        };
        if let Some(suspicion) = self.suspicions.iter().find(is_certain) {
            return Err(suspicion.what.clone());
        }
        for ((epoch, inode), file) in &self.files {
            file.check_order()
                .map_err(|what| format!("in the log of epoch {epoch} (inode {inode}) {what}"))?;
        }
        Ok(())
    }
}

struct Appender<B> {
    fs: FileSystem,
    caller: Caller,
    client: u8,
    writer: u8,
    rng: StdRng,
    board: B,
    /// Records so far.
    n: u64,
    open: Option<(Of, HandleId)>,
    /// What was answered and no fsync has covered yet.
    unsynced: Vec<Id>,
}

/// Appends until faults are over, and then looks at all files once more. Each of a client's writers has a number of its own.
pub async fn work(fs: FileSystem, (client, writer): (u8, u8), seed: u64, board: impl Board) {
    let rng = kinds::draws(seed, LABEL ^ (u64::from(writer) << 48));
    let caller = Caller { kernel_checked: true, ..Caller::default() };
    let (open, unsynced) = (None, Vec::new());
    let mut appender = Appender { fs, caller, client, writer, rng, board, n: 0, open, unsynced };
    while !appender.board.is_healed() {
        appender.arrive().await;
        if appender.open.is_some() {
            appender.step().await;
        }
        let pause = appender.rng.random_range(0..1_500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    appender.sync().await;
    appender.leave().await;
    for of in appender.board.appended(|all| all.files.keys().copied().collect::<Vec<_>>()) {
        // Everything can be read then: a run waits for that as long as it waits at all.
        while !appender.look(of).await {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl<B: Board> Appender<B> {
    fn excuse(&self, what: &str, error: &FsError) {
        if !self.board.excuses(error.errno()) {
            self.board.violation(format!("writer {}: {what} answered {error}", self.writer));
        }
        tracing::info!(writer = self.writer, what, %error, "failed");
    }

    async fn failed(&mut self, what: &str, error: &FsError) {
        self.excuse(what, error);
        if GONE.contains(&error.errno()) {
            self.leave().await;
        }
    }

    fn is_under(&self, (epoch, _): Of) -> bool {
        self.board.epoch() == epoch && self.board.newest() == epoch
    }

    /// The file of the home epoch that the client is in, whoever makes it.
    async fn arrive(&mut self) {
        let epoch = self.board.epoch();
        if self.open.is_some_and(|((of, _), _)| of == epoch) {
            return;
        }
        self.leave().await;
        let lost = self.board.lost();
        let name = format!("log{epoch}");
        // O_RDWR | O_CREAT | O_APPEND
        let flags = 0o2 | 0o100 | 0o2000;
        match self.fs.create(&self.caller, self.fs.root(), name.as_bytes(), 0o644, flags).await {
            Ok(made) if self.is_under((epoch, made.attr.inode)) => {
                let of = (epoch, made.attr.inode);
                self.board.appended(|all| all.begin(of, lost));
                self.open = Some((of, made.handle));
            }
            Ok(made) => {
                let _ = self.fs.release(made.handle).await;
            }
            Err(error) => self.excuse("opening a log", &error),
        }
    }

    async fn leave(&mut self) {
        self.unsynced.clear();
        if let Some((_, handle)) = self.open.take() {
            let _ = self.fs.release(handle).await;
        }
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..10) {
            0..6 => {
                for _ in 0..self.rng.random_range(1..4) {
                    self.append().await;
                }
                if self.rng.random() {
                    self.sync().await;
                }
            }
            6 => self.sync().await,
            // What wasn't synced leaves with the close, or after it.
            7 => self.leave().await,
            _ => {
                if let Some((of, _)) = self.open {
                    self.look(of).await;
                }
            }
        }
    }

    async fn append(&mut self) {
        let Some((of, handle)) = self.open else { return };
        if self.board.appended(|all| all.bytes(of)) > BYTES_MAX {
            return;
        }
        self.n += 1;
        let (id, length) = ((self.writer, self.n), LENGTHS[self.rng.random_range(0..LENGTHS.len())]);
        let issued = (self.client, length, self.board.lapses());
        self.board.appended(|all| all.issue(of, id, issued));
        let data = record(id, length);
        let written = self.fs.write(&self.caller, handle, 0, data, WriteOptions::default()).await;
        match written {
            Ok((at, _)) => {
                let is_known = self.is_under(of);
                tracing::info!(?of, ?id, length, at, is_known, "appended");
                if is_known {
                    self.board.appended(|all| all.answered(of, id, at));
                    self.unsynced.push(id);
                }
            }
            Err(error) => self.failed("an append", &error).await,
        }
    }

    /// What was appended through this descriptor is there for good then.
    async fn sync(&mut self) {
        let Some((of, handle)) = self.open else { return };
        let ids = std::mem::take(&mut self.unsynced);
        match self.fs.fsync(handle, false).await {
            Ok(()) if self.is_under(of) => self.board.appended(|all| all.synced(of, &ids)),
            Ok(()) => {}
            // Whatever was lost of it: later ones say nothing of what came before.
            Err(error) => self.failed("an fsync of a log", &error).await,
        }
    }

    /// Looks at a file. Answers whether it could.
    async fn look(&mut self, of: Of) -> bool {
        let (called, began) = (self.board.appended(Appended::tick), now());
        let read = self.read(of).await;
        let look = Look {
            client: self.client,
            called,
            newest: self.board.newest(),
            home: self.board.home_since(began),
            outlives_home: self.board.outlives_home(),
        };
        let board = self.board.clone();
        let kept = |from, to| board.kept(from, to);
        let wrong = match read {
            Ok(bytes) => match parse(&bytes) {
                Ok(shown) => {
                    let (client, home) = (self.client, look.home);
                    tracing::info!(?of, client, records = shown.len(), ?home, "saw a log");
                    self.board.appended(|all| all.look(of, &look, &shown, kept))
                }
                Err(what) => vec![format!("is torn: {what}")],
            },
            Err(error) if GONE.contains(&error.errno()) => {
                self.board.appended(|all| all.missing(of, &look, kept));
                self.failed("a look at a log", &error).await;
                return true;
            }
            Err(error) => {
                self.failed("a look at a log", &error).await;
                return false;
            }
        };
        for what in wrong {
            let (epoch, inode) = of;
            self.board.violation(format!(
                "to client {} the log of epoch {epoch} (inode {inode}) {what} (since {began:?})",
                self.client
            ));
        }
        true
    }

    async fn read(&self, of: Of) -> Result<Bytes, FsError> {
        if let Some((_, handle)) = self.open.filter(|(open, _)| *open == of) {
            return self.fs.read(&self.caller, handle, 0, READ_MAX).await;
        }
        let handle = self.fs.open(&self.caller, of.1, 0).await?.handle;
        let read = self.fs.read(&self.caller, handle, 0, READ_MAX).await;
        let _ = self.fs.release(handle).await;
        read
    }
}

#[cfg(test)]
mod tests;
