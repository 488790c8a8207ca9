//! What this session changed alone and hasn't told yet (docs/decisions/0015-alone.md): one order, bounds, who waits for what. No sending, no view of the tree.
//!
//! ```text
//!   push -> waiting -> take -> under way -> resolved: told, refused or lost
//! ```
//! One order for all of it: what is sent the usual way comes after everything that was pushed before, as far as it may matter to it
//! ([`Journal::enter_owned`]), and what is made alone waits for what was sent the usual way about the same inodes.
//!
//! What is sent the usual way, and who waits for it, is in `sent`; what a request is about in `concerns`.

#![allow(clippy::result_large_err, reason = "what it calls an error is the other outcome, and is moved once")]

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsRequest, Untold, fs_reply::Reply};
use prost::Message;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::error::FsError;

mod concerns;
mod sent;

pub(crate) use concerns::{changed_by, comes_in_order};
pub(crate) use sent::SentOwned;

use concerns::about;

/// Changes told with one request at most.
pub(crate) const BATCH_CHANGES: usize = 256;
/// Their bytes together: with what the region adds they stay within one transaction.
const BATCH_BYTES: usize = 192 << 10;
/// So many are told at once, however young they are.
const ENOUGH: usize = 96;
/// What is older than this is told.
const AGE_MAX: Duration = Duration::from_millis(10);
/// Changes that wait at most; who makes more waits, too.
const CHANGES_MAX: usize = 4096;
/// And bytes.
const BYTES_MAX: usize = 4 << 20;
/// Directories whose losses are remembered.
const LOSSES_MAX: usize = 4096;

/// A change that isn't told yet.
#[derive(Debug)]
pub(crate) struct Change {
    pub request: FsRequest,
    /// The inode that it makes; 0 for none.
    pub made: u64,
    pub at_ns: i64,
    /// The inodes that it is about: directories, the one that it makes, renames, removes or sets.
    pub about: Vec<u64>,
    /// Who waits for its answer.
    pub reply: Option<oneshot::Sender<Result<Reply, FsError>>>,
    /// It is told with an open of the inode.
    pub open: bool,
    bytes: usize,
}

impl Change {
    pub fn new(request: FsRequest, made: u64, at_ns: i64, about: Vec<u64>) -> Self {
        let bytes = request.encoded_len() + 32;
        Self { request, made, at_ns, about, reply: None, open: false, bytes }
    }

    /// The inodes whose fsync as a directory tells of its loss. Of what it makes nobody has an open directory unless it makes one: thousands of files
    /// that are lost at once mustn't push out the one directory that they were in.
    fn lost_in(&self) -> impl Iterator<Item = u64> {
        let makes_directory = matches!(self.request.op, Some(Op::Mkdir(_)));
        self.about.iter().copied().filter(move |inode| *inode != self.made || makes_directory)
    }

    pub fn to_wire(&self) -> Untold {
        Untold { request: Some(self.request.clone()), inode: self.made, at_ns: self.at_ns, open: self.open }
    }
}

#[derive(Debug, Default)]
struct State {
    /// The session, and the life of it, in which all of this was made.
    life: (u64, u64),
    waiting: VecDeque<Change>,
    under_way: usize,
    bytes: usize,
    /// The number of the last change, and of the last one of which is known what became of it. They resolve in order.
    pushed: u64,
    resolved: u64,
    /// Somebody waits until everything up to there is resolved.
    wanted: u64,
    since: Option<Instant>,
    /// Those who wait for data that goes along: nothing waits for more to come meanwhile.
    hurried: u32,
    /// Recalls that are being answered: nothing is added meanwhile but what is on its way already.
    closed: u32,
    /// How many unresolved changes are about an inode.
    about: BTreeMap<u64, u32>,
    /// Changes that were sent the usual way, and are under way, by what they are about.
    sent: BTreeMap<u64, u32>,
    /// Those of them whose callers have gone.
    abandoned: BTreeMap<u64, u32>,
    ids: Range<u64>,
    /// Directories in which changes were lost: when, by count, and the error number.
    losses: BTreeMap<u64, (u64, i32)>,
    /// The newest of those for which there was no room: any directory may be the one that it was about.
    losses_floor: Option<(u64, i32)>,
    counts: Counts,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Changes made alone.
    pub made: u64,
    /// Requests that told of them.
    pub tellings: u64,
    /// Changes that were lost or refused after they had been answered.
    pub lost: u64,
    /// Attributes that the region has otherwise than they were shown.
    pub corrected: u64,
}

/// What must be so for a change to be made alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Free,
    /// Something must end first.
    Wait,
    /// What is here was made in another life of the session.
    Foreign,
}

/// The journal of a mount.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    state: Mutex<State>,
    /// Something was resolved, opened, or ended.
    moved: Notify,
    /// Something is to be told.
    due: Notify,
}

/// What was sent the usual way and is under way, for who is about to change something alone.
pub(crate) struct UnderWay<'a>(&'a BTreeMap<u64, u32>);

impl UnderWay<'_> {
    /// Whether something of it is about that inode: then nothing about it is made alone.
    pub fn is_about(&self, inode: u64) -> bool {
        self.0.contains_key(&inode)
    }
}

/// Somebody waits for what is put in.
#[derive(Debug)]
pub(crate) struct Hurry(Arc<Journal>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.state(|s| s.hurried -= 1);
    }
}

fn count_down(counts: &mut BTreeMap<u64, u32>, inode: u64) {
    if let Some(count) = counts.get_mut(&inode) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&inode);
        }
    }
}

impl Journal {
    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether everything is told.
    pub fn is_empty(&self) -> bool {
        self.state(|s| s.resolved == s.pushed)
    }

    /// What isn't told.
    pub fn len(&self) -> usize {
        self.state(|s| (s.pushed - s.resolved) as usize)
    }

    pub fn counts(&self) -> Counts {
        self.state(|s| s.counts)
    }

    pub fn corrected(&self) {
        self.state(|s| s.counts.corrected += 1);
    }

    /// Whether something untold is about an inode.
    pub fn has(&self, inode: u64) -> bool {
        self.state(|s| s.about.contains_key(&inode))
    }

    /// The inodes that something untold is about, made in that life: what a new custodian must know of.
    pub fn held_by(&self, life: (u64, u64)) -> Vec<u64> {
        self.state(|s| if s.life == life { s.about.keys().copied().collect() } else { Vec::new() })
    }

    /// Makes a change alone: `make` looks whether that can be and says what it is; it runs in one section with the push, so that a recall finds either
    /// nothing changed or the change here. Of inodes beside those named here that it is about, `make` looks itself whether something else is under way.
    pub fn make<T>(
        &self,
        life: (u64, u64),
        about: &[u64],
        make: impl FnOnce(&UnderWay<'_>) -> Result<(T, Change), T>,
    ) -> Result<Result<T, T>, Entry> {
        let made = self.state(|s| {
            match s.entry(life, about) {
                Entry::Free => {}
                other => return Err(other),
            }
            let (result, change) = match make(&UnderWay(&s.sent)) {
                Ok(made) => made,
                Err(result) => return Ok(Err(result)),
            };
            debug_assert!(
                change.about.iter().all(|inode| !s.sent.contains_key(inode)),
                "decision 0015, item 8"
            );
            s.life = life;
            s.counts.made += 1;
            s.push(change);
            Ok(Ok(result))
        });
        if matches!(made, Ok(Ok(_))) {
            self.due.notify_one();
        }
        made
    }

    /// Puts a change in whose answer somebody waits for: what is on its way already, also while nothing new is made. Gives it back where nothing is
    /// untold, or what is was made in another life: then it goes the usual way.
    pub fn join(
        &self,
        life: (u64, u64),
        mut change: Change,
    ) -> Result<oneshot::Receiver<Result<Reply, FsError>>, Change> {
        let joined = self.state(|s| {
            if s.resolved == s.pushed || s.life != life || change.bytes > BATCH_BYTES / 2 {
                return Err(change);
            }
            let (sender, receiver) = oneshot::channel();
            change.reply = Some(sender);
            s.push(change);
            Ok(receiver)
        });
        if joined.is_ok() {
            self.due.notify_one();
        }
        joined
    }

    /// Waits until what must end has moved on.
    pub async fn moved(&self, until: Instant, still: impl Fn() -> bool) -> bool {
        let moved = self.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        if !still() {
            return true;
        }
        tokio::time::timeout_at(until, moved).await.is_ok()
    }

    /// Whether a change of these inodes would have to wait.
    pub fn must_wait(&self, life: (u64, u64), about: &[u64]) -> bool {
        self.state(|s| s.entry(life, about) == Entry::Wait)
    }

    /// Takes the next id of those that were reserved.
    pub fn take_id(&self) -> Option<u64> {
        self.state(|s| s.ids.next())
    }

    pub fn reserved(&self, ids: Range<u64>) {
        self.state(|s| s.ids = ids);
    }

    /// Before a read leaves the usual way: what was made alone and may matter to it is told.
    pub async fn enter(&self, op: &Op) {
        let (about, all) = about(op);
        if let Some(mark) = self.state(|s| s.mark(&about, all)) {
            self.resolved(mark).await;
        }
    }

    /// Before a read is asked of a replica: what was made alone and is about the same inodes is told. Where more is untold, of which the replica may show
    /// older states, answers how much is told by now: for [`Self::overtakes`].
    pub async fn enter_near(&self, op: &Op) -> Option<u64> {
        let (about, _) = about(op);
        if let Some(mark) = self.state(|s| s.mark(&about, false)) {
            self.resolved(mark).await;
        }
        self.state(|s| (s.resolved < s.pushed).then_some(s.resolved))
    }

    /// Whether an answer that tells of these inodes may be older than what is untold, or was when so much was told.
    pub fn overtakes<'a>(&self, told: u64, inodes: impl IntoIterator<Item = &'a u64>) -> bool {
        self.state(|s| s.resolved != told || inodes.into_iter().any(|inode| s.about.contains_key(inode)))
    }

    /// As long as this is kept, what is put in is told at once.
    pub fn hurry(self: &Arc<Self>) -> Hurry {
        self.state(|s| s.hurried += 1);
        self.due.notify_one();
        Hurry(self.clone())
    }

    /// Waits until everything that was made up to now is told, or known to be lost.
    pub async fn told(&self) {
        self.resolved(self.state(|s| s.pushed)).await;
    }

    async fn resolved(&self, mark: u64) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let over = self.state(|s| {
                s.wanted = s.wanted.max(mark);
                s.resolved >= mark
            });
            if over {
                return;
            }
            self.due.notify_one();
            moved.await;
        }
    }

    /// For the answer of a recall: nothing is made alone until everything is told. What keeps this waiting is the region alone, which waits for
    /// nobody with what it is told of here.
    pub async fn told_and_still(&self) {
        if self.is_empty() {
            return;
        }
        struct Closed<'a>(&'a Journal);
        impl Drop for Closed<'_> {
            fn drop(&mut self) {
                self.0.state(|s| s.closed -= 1);
                self.0.moved.notify_waiters();
            }
        }
        self.state(|s| s.closed += 1);
        let _closed = Closed(self);
        while !self.is_empty() {
            self.told().await;
        }
    }

    /// Waits until something is to be told.
    pub async fn wait_for_work(&self) {
        loop {
            let due = self.due.notified();
            tokio::pin!(due);
            due.as_mut().enable();
            let at = self.state(|s| {
                let since = s.since?;
                let enough = s.waiting.len() >= ENOUGH || s.bytes >= BATCH_BYTES;
                let hasty = enough || s.wanted > s.resolved || s.hurried > 0;
                Some(if hasty { Instant::now() } else { since + AGE_MAX })
            });
            match at {
                None => due.await,
                Some(at) if at <= Instant::now() => return,
                Some(at) => {
                    tokio::select! {
                        () = due => {}
                        () = tokio::time::sleep_until(at) => return,
                    }
                }
            }
        }
    }

    /// Takes the next changes to tell of, and the life in which they were made. `is_open` says whether what one makes is open by now.
    pub fn take(&self, mut is_open: impl FnMut(&Change) -> bool) -> ((u64, u64), Vec<Change>) {
        self.state(|s| {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < BATCH_CHANGES
                && let Some(mut change) =
                    s.waiting.pop_front_if(|next| bytes == 0 || bytes + next.bytes <= BATCH_BYTES)
            {
                bytes += change.bytes;
                change.open = is_open(&change);
                batch.push(change);
            }
            s.bytes -= bytes;
            s.under_way = batch.len();
            s.since = (!s.waiting.is_empty()).then(Instant::now);
            (s.life, batch)
        })
    }

    /// Everything that waits, without telling of it: it is lost.
    pub fn take_all(&self) -> Vec<Change> {
        self.state(|s| {
            s.bytes = 0;
            s.since = None;
            std::mem::take(&mut s.waiting).into()
        })
    }

    /// Whether changes are about an inode beside those of this part.
    pub fn is_about_more(&self, inode: u64, part: &[Change]) -> bool {
        let here = part.iter().flat_map(|change| &change.about).filter(|about| **about == inode).count();
        self.state(|s| s.about.get(&inode).is_some_and(|count| *count as usize > here))
    }

    pub fn tells(&self) {
        self.state(|s| s.counts.tellings += 1);
    }

    /// These are told, or lost for the reason `errno`: noted before anybody hears that they are resolved.
    pub fn resolve(&self, changes: &[Change], errno: impl Fn(usize) -> Option<i32>) {
        self.state(|s| {
            for (at, change) in changes.iter().enumerate() {
                if let Some(errno) = errno(at) {
                    s.counts.lost += 1;
                    change.lost_in().for_each(|inode| s.lose(inode, errno));
                }
                change.about.iter().for_each(|inode| count_down(&mut s.about, *inode));
            }
            s.resolved += changes.len() as u64;
            s.under_way = s.under_way.saturating_sub(changes.len());
        });
        self.moved.notify_waiters();
    }

    /// How many changes were lost up to now: where an open directory begins to count.
    pub fn losses(&self) -> u64 {
        self.state(|s| s.counts.lost)
    }

    /// The newest loss in a directory: its count, and the error number. Where it isn't known, what was forgotten may have been in it: an error too many is
    /// better than one that is swallowed.
    pub fn loss_in(&self, directory: u64) -> Option<(u64, i32)> {
        self.state(|s| s.losses.get(&directory).copied().or(s.losses_floor))
    }
}

impl State {
    fn entry(&self, life: (u64, u64), about: &[u64]) -> Entry {
        let untold = self.pushed - self.resolved;
        if untold > 0 && self.life != life {
            return Entry::Foreign;
        }
        let full = untold as usize >= CHANGES_MAX || self.bytes >= BYTES_MAX;
        if full || self.closed > 0 || about.iter().any(|inode| self.sent.contains_key(inode)) {
            return Entry::Wait;
        }
        Entry::Free
    }

    /// Up to where everything must be resolved before something about these inodes.
    fn mark(&self, about: &[u64], all: bool) -> Option<u64> {
        let concerned = all || about.iter().any(|inode| self.about.contains_key(inode));
        (concerned && self.resolved < self.pushed).then_some(self.pushed)
    }

    fn push(&mut self, change: Change) {
        for inode in &change.about {
            *self.about.entry(*inode).or_default() += 1;
        }
        self.bytes += change.bytes;
        self.pushed += 1;
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push_back(change);
    }

    fn lose(&mut self, inode: u64, errno: i32) {
        if self.losses.len() >= LOSSES_MAX && !self.losses.contains_key(&inode) {
            let oldest = self.losses.iter().min_by_key(|(_, (when, _))| *when).map(|(inode, _)| *inode);
            let forgotten = oldest.and_then(|oldest| self.losses.remove(&oldest));
            self.losses_floor = self.losses_floor.max(forgotten);
        }
        self.losses.insert(inode, (self.counts.lost, errno));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_wire::fs::{Create, GetAttr, Link, Mkdir, Unlink};

    use super::*;

    const LIFE: (u64, u64) = (1, 1);

    fn change(about: &[u64]) -> Change {
        let op = Op::Mkdir(Mkdir { parent: about[0], name: "x".into(), mode: 0, alone: false });
        Change::new(FsRequest { caller: None, op: Some(op) }, 0, 1, about.to_vec())
    }

    fn make(journal: &Journal, about: &[u64]) -> Result<Result<(), ()>, Entry> {
        journal.make(LIFE, about, |_| Ok(((), change(about))))
    }

    fn tell(journal: &Journal, errno: Option<i32>) -> usize {
        let (_, batch) = journal.take(|_| false);
        journal.resolve(&batch, |_| errno);
        batch.len()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_the_usual_way_comes_after_what_was_made_before_and_before_what_is_made_after() {
        let journal = Arc::new(Journal::default());
        make(&journal, &[1, 2]).unwrap().unwrap();
        journal.enter(&Op::GetAttr(GetAttr { inode: 9 })).await;
        let op = Op::Unlink(Unlink { parent: 1, name: "x".into() });
        let mut entering = Box::pin(journal.enter_owned(&op));
        assert!(futures::poll!(&mut entering).is_pending());
        assert_eq!(make(&journal, &[1]), Err(Entry::Wait), "an own change of the directory is under way");
        make(&journal, &[7]).unwrap().unwrap();
        assert_eq!(tell(&journal, None), 2);
        let sent = entering.await;
        assert_eq!(make(&journal, &[1]), Err(Entry::Wait));
        drop(sent);
        make(&journal, &[1]).unwrap().unwrap();
    }

    /// A link into a directory is under way, and the directory is removed: only once it is looked up is known which one that is.
    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_seen_by_who_finds_out_what_he_changes() {
        let journal = Arc::new(Journal::default());
        let remove = || {
            journal.make(LIFE, &[1], |under_way| match under_way.is_about(2) {
                true => Err("waits"),
                false => Ok(("made", change(&[1, 2]))),
            })
        };
        let op = Op::Link(Link { inode: 9, new_parent: 2, new_name: "y".into() });
        let sent = journal.enter_owned(&op).await;
        assert_eq!(remove(), Ok(Err("waits")));
        assert!(journal.must_wait(LIFE, &[1, 2]) && !journal.must_wait(LIFE, &[1]));
        drop(sent);
        assert_eq!(remove(), Ok(Ok("made")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_recall_is_answered_when_everything_is_told_and_nothing_is_made_meanwhile() {
        let journal = Journal::default();
        make(&journal, &[1]).unwrap().unwrap();
        let mut still = Box::pin(journal.told_and_still());
        assert!(futures::poll!(&mut still).is_pending());
        assert_eq!(make(&journal, &[5]), Err(Entry::Wait));
        // What is on its way already goes along.
        let mut waits = journal.join(LIFE, change(&[1])).unwrap();
        let (_, batch) = journal.take(|_| false);
        assert_eq!(batch.len(), 2);
        assert!(futures::poll!(&mut still).is_pending());
        journal.resolve(&batch, |_| None);
        drop(batch);
        assert!(futures::poll!(&mut waits).is_ready());
        still.await;
        make(&journal, &[5]).unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn losses_are_noted_before_who_waits_hears_of_it() {
        let journal = Journal::default();
        make(&journal, &[1, 2]).unwrap().unwrap();
        let before = journal.losses();
        let mut told = Box::pin(journal.told());
        assert!(futures::poll!(&mut told).is_pending());
        assert_eq!(tell(&journal, Some(5)), 1);
        told.await;
        assert_eq!(journal.loss_in(1).map(|(when, errno)| (when > before, errno)), Some((true, 5)));
        assert_eq!(journal.loss_in(3), None);
        assert!(journal.held_by(LIFE).is_empty());
    }

    /// More is lost at once than is remembered.
    #[test]
    fn a_loss_is_reported_however_many_come_with_it() {
        let journal = Journal::default();
        make(&journal, &[1, 2]).unwrap().unwrap();
        for n in 1..CHANGES_MAX as u64 {
            make(&journal, &[3, 10 + n]).unwrap().unwrap();
        }
        while tell(&journal, Some(5)) > 0 {}
        let (when, errno) = journal.loss_in(1).unwrap();
        assert_eq!((when > 0, errno), (true, 5));
        assert_eq!(journal.losses(), CHANGES_MAX as u64);
        assert!(journal.loss_in(3).is_some_and(|(newest, _)| newest == journal.losses()));
        assert!(when < journal.losses(), "who opens a directory by now isn't concerned");
    }

    /// Files that were made in one directory leave room for the notes of others.
    #[test]
    fn a_lost_file_takes_no_room_among_directories() {
        let journal = Journal::default();
        make(&journal, &[1]).unwrap().unwrap();
        for n in 1..CHANGES_MAX as u64 {
            let made = 10 + n;
            let op = Op::Create(Create { parent: 3, ..Create::default() });
            let change = Change::new(FsRequest { caller: None, op: Some(op) }, made, 1, vec![3, made]);
            journal.make(LIFE, &[3], |_| Ok(((), change))).unwrap().unwrap();
        }
        while tell(&journal, Some(5)) > 0 {}
        assert_eq!(journal.loss_in(1), Some((1, 5)));
        assert_eq!(journal.loss_in(2), None);
    }

    #[test]
    fn what_waits_is_bounded_and_of_one_life() {
        let journal = Journal::default();
        for _ in 0..CHANGES_MAX {
            make(&journal, &[1]).unwrap().unwrap();
        }
        assert_eq!(make(&journal, &[1]), Err(Entry::Wait));
        assert_eq!(journal.make((1, 2), &[1], |_| Ok(((), change(&[1])))), Err(Entry::Foreign));
        assert!(journal.join((1, 2), change(&[1])).is_err());
        assert_eq!(tell(&journal, None), BATCH_CHANGES);
        make(&journal, &[1]).unwrap().unwrap();
    }
}
