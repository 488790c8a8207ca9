//! A home and a replica, over random transactions: whatever the order of copying and replaying, the replica is what the home was.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::{
    ApplyOutcome, CommitLog, Embedded, LogEntry, MemoryBase, Options, Payload, ProposeError,
};
use mooseng_namespace::let_go;
use mooseng_replica::{Entry, ReplicaError, Tail, VolumeLogs, apply, read, turn};
use mooseng_schema::Record;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition, LoggedRecord, ReplicaRecord};
use mooseng_store::{Atomic, KeyRange, Read, Store, Transaction};
use mooseng_wire::{Epoch, VolumeId};
use proptest::prelude::*;

const VOLUME: VolumeId = VolumeId(0);

/// A log that commits at once, on one member.
struct Alone {
    embedded: Embedded,
    index: Mutex<u64>,
}

#[async_trait]
impl CommitLog for Alone {
    async fn propose(&self, term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError> {
        let mut index = self.index.lock().unwrap();
        *index += 1;
        let entry = LogEntry { index: *index, term, node: 1, payload: Payload::Batch(batch) };
        Ok(self.embedded.apply(vec![entry]).unwrap()[0])
    }
    fn may_read(&self) -> bool {
        true
    }
}

fn store() -> (Embedded, Arc<Tail>) {
    let embedded = Embedded::open(Arc::new(MemoryBase::new()), Options::default()).unwrap();
    let tail = Arc::new(Tail::new(2_000));
    embedded.set_derive(Box::new(VolumeLogs::new(tail.clone()))).unwrap();
    embedded.set_log(Arc::new(Alone { embedded: embedded.clone(), index: Mutex::new(0) }));
    embedded.lead(1);
    (embedded, tail)
}

fn volume_key(n: u16) -> Vec<u8> {
    // Below and above the log's own keys.
    let mut key = if n.is_multiple_of(2) {
        whole_volume(VOLUME).begin.to_vec()
    } else {
        log::range(VOLUME).end.to_vec()
    };
    key.extend_from_slice(&n.to_be_bytes());
    key
}

#[derive(Clone, Debug)]
enum Step {
    Set(u16, usize),
    Clear(u16),
    ClearRange(u16, u16),
    Add(u16),
    /// Of the region's own: not logged.
    Region(u16),
    Commit,
    CopyPage,
    /// So many entries, of which so many are whole.
    Replay(usize, usize),
    /// Up to that share of the places that the replica isn't complete at.
    Completed(u8),
    /// To that one of the places that can be undone to.
    Undo(u8),
    Trim,
    TrimHere(u8),
    Restart,
    /// The home is lost, and followed by one that has its log up to that one of the places.
    FailOver(u8),
    /// The region is taken out of the volume's, and added again once so many parts of what it has are cleared.
    LetGo(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0u16..24;
    prop::collection::vec(
        prop_oneof![
            4 => (key.clone(), 0usize..400).prop_map(|(k, n)| Step::Set(k, n)),
            2 => key.clone().prop_map(Step::Clear),
            1 => (key.clone(), key.clone()).prop_map(|(a, b)| Step::ClearRange(a.min(b), a.max(b))),
            2 => key.clone().prop_map(Step::Add),
            1 => key.prop_map(Step::Region),
            4 => Just(Step::Commit),
            2 => Just(Step::CopyPage),
            3 => (1usize..4, 0usize..4).prop_map(|(most, whole)| Step::Replay(most, whole)),
            2 => any::<u8>().prop_map(Step::Completed),
            2 => any::<u8>().prop_map(Step::Undo),
            1 => Just(Step::Trim),
            1 => any::<u8>().prop_map(Step::TrimHere),
            1 => Just(Step::Restart),
            1 => any::<u8>().prop_map(Step::FailOver),
            1 => (0u8..12).prop_map(Step::LetGo),
        ],
        0..120,
    )
}

async fn commit(tx: impl Transaction) {
    tx.commit().await.unwrap();
}

struct Replica {
    store: Embedded,
    home: Embedded,
    epoch: u64,
    tail: Arc<Tail>,
    /// What the home was at each place.
    history: Mutex<BTreeMap<LogPosition, Vec<(Bytes, Bytes)>>>,
}

async fn records(store: &Embedded) -> Vec<(Bytes, Bytes)> {
    read::records(&store.begin(), VOLUME, None, 1 << 20).await.unwrap().0
}

impl Replica {
    async fn record(&self) -> ReplicaRecord {
        apply::state(&self.store.begin(), VOLUME, Read::Snapshot).await.unwrap().unwrap()
    }

    /// What the home was at a place.
    fn then(&self, at: LogPosition) -> Option<Vec<(Bytes, Bytes)>> {
        self.history.lock().unwrap().get(&at).cloned()
    }

    async fn committed(&self) {
        let newest = read::newest(&self.home.begin(), VOLUME).await.unwrap();
        let is = records(&self.home).await;
        self.history.lock().unwrap().insert(newest, is);
    }

    /// The places of the home's log from one to another.
    fn places(&self, from: LogPosition, to: LogPosition) -> Vec<LogPosition> {
        let history = self.history.lock().unwrap();
        let mut places: Vec<LogPosition> = history.range(from..=to).map(|(at, _)| *at).collect();
        if from < to && places.first() != Some(&from) {
            places.insert(0, from);
        }
        places
    }

    async fn completed(&self, share: u8) {
        let record = self.record().await;
        let places = self.places(record.complete(), record.position());
        let Some(upto) = places.get(usize::from(share) * places.len() / 256).copied() else { return };
        let mut more = true;
        while more {
            let tx = self.store.begin();
            more = apply::completed(&tx, VOLUME, upto).await.unwrap();
            commit(tx).await;
        }
        let now = self.record().await;
        assert!(now.complete() >= record.complete() && now.complete() <= record.complete().max(upto));
        assert_eq!((now.position(), now.copied_before), (record.position(), record.copied_before));
    }

    async fn undo(&self, share: u8) {
        let record = self.record().await;
        let tx = self.store.begin();
        let below = self.places(LogPosition::default(), record.complete());
        if let [.., cut, _] = below[..] {
            let refused = turn::undo(&tx, VOLUME, cut).await;
            assert!(refused.is_err(), "{refused:?}");
        }
        if record.copied_before.is_some() {
            assert!(record.complete() == LogPosition::default());
            return;
        }
        let places = self.places(record.complete(), record.position());
        let Some(cut) = places.get(usize::from(share) * places.len() / 256).copied() else { return };
        loop {
            let tx = self.store.begin();
            let more = match turn::undo(&tx, VOLUME, cut).await {
                // It was replayed while the volume was copied, or before this region was complete for the first time.
                Err(ReplicaError::NotUndoable { down_to, .. }) => {
                    assert!(down_to > cut && record.complete() < down_to);
                    return;
                }
                // The home had nothing to say at that version when it was copied.
                Err(ReplicaError::Gap { .. }) => return,
                more => more.unwrap(),
            };
            commit(tx).await;
            if !more {
                break;
            }
        }
        let now = self.record().await;
        assert_eq!((now.position(), now.complete()), (cut, record.complete()));
        // Nothing of the log was thrown away.
        let tx = self.store.begin();
        let put_aside = tx.get_range(log::salvage_range(VOLUME), Default::default(), Read::Snapshot).await;
        let put_aside: Vec<LogPosition> =
            put_aside.unwrap().pairs.iter().map(|(key, _)| log::parse_salvage_key(key).unwrap().0).collect();
        assert!(places.iter().filter(|at| **at > cut).all(|at| put_aside.contains(at)));
    }

    async fn trim_here(&self, share: u8) {
        let record = self.record().await;
        let places = self.places(record.log_behind(), record.position());
        let Some(upto) = places.get(usize::from(share) * places.len() / 256).copied() else { return };
        let tx = self.store.begin();
        apply::trim(&tx, VOLUME, upto).await.unwrap();
        commit(tx).await;
        let now = self.record().await;
        assert!(now.log_behind() <= record.complete().max(record.log_behind()));
    }

    async fn let_go(&self, parts: u8) {
        let before = self.record().await;
        let tx = self.store.begin();
        let_go::note(&tx, VOLUME, 7, 1, |_| Bytes::new()).await.unwrap();
        commit(tx).await;
        if parts > 0 {
            let tx = self.store.begin();
            let at = before.position();
            assert!(let_go::begin_clearing(&tx, VOLUME, at, at).await.unwrap());
            commit(tx).await;
        }
        let mut progress = Some(Default::default());
        for _ in 1..parts {
            let Some(more) = progress else { break };
            let tx = self.store.begin();
            // Few at a time, so that much is left.
            progress = let_go::clear(&tx, VOLUME, more, 3).await.unwrap();
            commit(tx).await;
        }
        let refused = apply::begin(&self.store.begin(), VOLUME).await;
        assert!(matches!(refused, Err(ReplicaError::LetGo)), "{refused:?}");
        let tx = self.store.begin();
        let known = let_go::take_back(&tx, VOLUME).await.unwrap().unwrap();
        commit(tx).await;
        assert_eq!(known.clearing, parts > 0);
        if parts == 0 {
            return assert_eq!(self.record().await, before, "it goes on from where it was");
        }
        // Whatever is left is no replica.
        let left = apply::state(&self.store.begin(), VOLUME, Read::Snapshot).await.unwrap();
        assert_eq!(left, None);
        let tx = self.store.begin();
        apply::begin(&tx, VOLUME).await.unwrap();
        commit(tx).await;
        assert_eq!(self.position().await, (LogPosition::default(), Some(whole_volume(VOLUME).begin)));
    }

    async fn position(&self) -> (LogPosition, Option<Bytes>) {
        let record = apply::state(&self.store.begin(), VOLUME, Read::Snapshot).await.unwrap().unwrap();
        (record.position(), record.copied_before)
    }

    /// From memory where it is there, which must be the same as in the store.
    async fn following(
        &self,
        after: LogPosition,
        upto: Option<LogPosition>,
    ) -> Result<Vec<Entry>, ReplicaError> {
        let stored = read::entries(&self.home.begin(), VOLUME, after, 800).await;
        if let (Some(known), Ok(stored)) = (self.tail.after(VOLUME, after, 800), &stored) {
            assert!(known.iter().zip(stored).all(|(a, b)| a == b));
            assert_eq!(known.is_empty(), stored.is_empty());
        }
        stored.map(|entries| entries.into_iter().filter(|e| upto.is_none_or(|upto| e.at <= upto)).collect())
    }

    async fn begin(&self) {
        let tx = self.store.begin();
        apply::begin(&tx, VOLUME).await.unwrap();
        commit(tx).await;
    }

    /// The home lets go of half of its log.
    async fn trim(&self) {
        let known = read::logged(&self.home.begin(), VOLUME).await.unwrap().unwrap();
        let newest = read::newest(&self.home.begin(), VOLUME).await.unwrap();
        let half = LogPosition::new(newest.epoch, (known.trimmed_version + newest.version).div_ceil(2));
        let tx = self.home.begin();
        let trimmed = turn::trim(&tx, VOLUME, half).await.unwrap();
        commit(tx).await;
        assert!(trimmed >= known.trimmed() && trimmed <= half.max(known.trimmed()));
        assert!(self.then(trimmed).is_some(), "{trimmed} is no place of the log");
    }

    async fn fail_over(&mut self, share: u8) {
        let known = read::logged(&self.home.begin(), VOLUME).await.unwrap().unwrap();
        let newest = read::newest(&self.home.begin(), VOLUME).await.unwrap();
        let places = self.places(known.trimmed(), newest);
        let (begins, cut) = (places[0], places[usize::from(share) * places.len() / 256]);
        let (next, tail) = store();
        let tx = next.begin();
        apply::begin(&tx, VOLUME).await.unwrap();
        let page = read::Page { at: begins, pairs: self.then(begins).unwrap(), next: None };
        apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
        commit(tx).await;
        let entries = read::entries(&self.home.begin(), VOLUME, begins, 1 << 20).await.unwrap();
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| entry.at <= cut).collect();
        let tx = next.begin();
        apply::entries(&tx, VOLUME, begins, &entries, Epoch(self.epoch), 7, cut).await.unwrap();
        commit(tx).await;
        self.epoch += 1;
        let logged = LoggedRecord {
            epoch: self.epoch,
            trimmed_epoch: begins.epoch.0,
            trimmed_version: begins.version,
            closed: 0,
        };
        let tx = next.begin();
        tx.clear(&log::replica_key(VOLUME));
        tx.clear_range(mooseng_schema::before::range(VOLUME));
        tx.set(&log::logged_key(VOLUME), &logged.to_value());
        // As the change of the epoch in the volume's record does: the first entry of each home.
        tx.set(&volume_key(5), &self.epoch.to_be_bytes());
        commit(tx).await;
        (self.home, self.tail) = (next, tail);
        self.history.lock().unwrap().retain(|at, _| *at <= cut);
        self.committed().await;
    }

    /// Answers whether there was anything to replay.
    async fn replay(&self, most: usize, upto: Option<LogPosition>, whole: usize) -> bool {
        let (at, _) = self.position().await;
        if at == LogPosition::default() {
            return false;
        }
        let entries = match self.following(at, upto).await {
            // Too far behind, or behind a cut.
            Err(ReplicaError::Trimmed { .. } | ReplicaError::NotOfTheLog(_)) => {
                self.begin().await;
                return true;
            }
            entries => entries.unwrap(),
        };
        let entries = &entries[..entries.len().min(most)];
        let whole = entries.iter().take(whole).last().map_or(at, |entry| entry.at);
        let before = self.record().await;
        let tx = self.store.begin();
        let behind = apply::entries(&tx, VOLUME, at, entries, Epoch(self.epoch), 7, whole).await.unwrap();
        assert_eq!(behind, entries.last().map_or(at, |e| e.at));
        commit(tx).await;
        let goes_on = before.copied_before.is_none() && before.complete() == at;
        assert_eq!(self.record().await.complete(), if goes_on { whole } else { before.complete() });
        // What was replayed isn't taken again.
        let again =
            apply::entries(&self.store.begin(), VOLUME, at, entries, Epoch(self.epoch), 7, whole).await;
        assert!(entries.is_empty() || matches!(again, Err(ReplicaError::Gap { .. })));
        !entries.is_empty()
    }

    async fn copy_page(&self) -> bool {
        let (_, Some(from)) = self.position().await else { return false };
        let page = read::page(&self.home.begin(), VOLUME, Some(from.clone()), 700).await.unwrap();
        if from > whole_volume(VOLUME).begin {
            while self.position().await.0 < page.at {
                self.replay(2, Some(page.at), 1).await;
                if self.position().await.1 != Some(from.clone()) {
                    return true;
                }
            }
        }
        let tx = self.store.begin();
        apply::install(&tx, VOLUME, &from, &page).await.unwrap();
        commit(tx).await;
        true
    }

    async fn check(&self) {
        let (at, copied) = self.position().await;
        if copied.is_none()
            && let Some(then) = self.then(at)
        {
            assert_eq!(records(&self.store).await, then);
        }
        let (here, there) = (records(&self.store).await, records(&self.home).await);
        if copied.is_none() && at == read::newest(&self.home.begin(), VOLUME).await.unwrap() {
            assert_eq!(here, there);
            assert_eq!(read::digest(&here), read::digest(&there));
        }
    }
}

async fn run(steps: Vec<Step>) {
    let (home, tail) = store();
    let (elsewhere, _) = store();
    let tx = home.begin();
    tx.set(&volume_key(3), b"from before it was logged");
    commit(tx).await;
    let tx = home.begin();
    let logged = LoggedRecord { epoch: 1, trimmed_epoch: 1, ..LoggedRecord::default() };
    tx.set(&log::logged_key(VOLUME), &logged.to_value());
    commit(tx).await;
    let mut replica = Replica { store: elsewhere, home, epoch: 1, tail, history: Mutex::default() };
    replica.committed().await;
    replica.begin().await;
    let mut tx = replica.home.begin();
    for step in steps {
        match step {
            Step::Set(key, bytes) => tx.set(&volume_key(key), &vec![key as u8; bytes]),
            Step::Clear(key) => tx.clear(&volume_key(key)),
            // From the even keys over the log's to the odd ones, too.
            Step::ClearRange(a, b) => {
                let (a, b) = (volume_key(a), volume_key(b));
                let log = log::range(VOLUME);
                let (begin, end) = (a.clone().min(b.clone()), a.max(b));
                tx.clear_range(KeyRange {
                    begin: begin.clone().into(),
                    end: log.begin.clone().min(end.clone().into()).max(begin.clone().into()),
                });
                tx.clear_range(KeyRange {
                    begin: log.end.clone().max(begin.into()),
                    end: log.end.max(end.into()),
                });
            }
            Step::Add(key) => tx.atomic(&volume_key(key), &7u64.to_le_bytes(), Atomic::Add),
            Step::Region(key) => tx.set(format!("r{key}").as_bytes(), b"own"),
            Step::Commit => {
                commit(std::mem::replace(&mut tx, replica.home.begin())).await;
                replica.committed().await;
            }
            Step::CopyPage => {
                replica.copy_page().await;
            }
            Step::Replay(most, whole) => {
                replica.replay(most, None, whole).await;
            }
            Step::Completed(share) => replica.completed(share).await,
            Step::Undo(share) => replica.undo(share).await,
            Step::TrimHere(share) => replica.trim_here(share).await,
            Step::Trim => replica.trim().await,
            Step::FailOver(share) => {
                // What wasn't committed is of no home.
                replica.fail_over(share).await;
                tx = replica.home.begin();
            }
            Step::Restart => replica.begin().await,
            Step::LetGo(parts) => replica.let_go(parts).await,
        }
        replica.check().await;
    }
    commit(tx).await;
    replica.committed().await;
    for _ in 0..2_000 {
        let copied = replica.copy_page().await;
        if !replica.replay(usize::MAX, None, 0).await && !copied {
            break;
        }
    }
    let (at, copied) = replica.position().await;
    assert_eq!((at, copied), (read::newest(&replica.home.begin(), VOLUME).await.unwrap(), None));
    replica.check().await;
    // The log is there, too, from where the copy was begun on: as far as it is still there at the home.
    let log = async |store: &Embedded| {
        let page = store.begin().get_range(log::range(VOLUME), Default::default(), Read::Snapshot).await;
        page.unwrap().pairs
    };
    let (here, there) = (log(&replica.store).await, log(&replica.home).await);
    assert!(there.iter().rev().zip(here.iter().rev()).all(|(a, b)| a == b));
    let record = apply::state(&replica.store.begin(), VOLUME, Read::Snapshot).await.unwrap().unwrap();
    let behind = log::range_after(VOLUME, record.log_behind()).begin;
    assert!(here.first().is_none_or(|(key, _)| *key >= behind));
    assert!(there.iter().filter(|(key, _)| *key >= behind).count() <= here.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_replica_becomes_what_its_home_is(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(steps));
    }
}

#[tokio::test]
async fn what_isnt_of_the_volume_is_refused() {
    let (store, _) = store();
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    let page = read::Page { at: LogPosition::new(Epoch(1), 5), pairs: Vec::new(), next: None };
    apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
    commit(tx).await;
    use mooseng_store::mvcc::Change;
    let at = LogPosition::new(Epoch(1), 6);
    for change in [
        Change::Set(Bytes::from_static(b"\x02r\x00"), Bytes::new()),
        Change::Set(log::key(VOLUME, at, 0).into(), Bytes::new()),
        Change::ClearRange(whole_volume(VOLUME)),
        Change::Clear(whole_volume(VolumeId(1)).begin),
    ] {
        let entry = Entry::new(at, &[change]);
        let refused =
            apply::entries(&store.begin(), VOLUME, page.at, &[entry], Epoch(1), 7, LogPosition::default())
                .await;
        assert!(matches!(refused, Err(ReplicaError::Senseless(_))), "{refused:?}");
    }
    let garbage = Entry { at, bytes: Bytes::from_static(&[1, 1, 200]) };
    assert!(
        apply::entries(&store.begin(), VOLUME, page.at, &[garbage], Epoch(1), 7, LogPosition::default())
            .await
            .is_err()
    );
    let early = Entry::new(LogPosition::new(Epoch(1), 5), &[]);
    assert!(
        apply::entries(&store.begin(), VOLUME, page.at, &[early], Epoch(1), 7, LogPosition::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_chunk_that_dies_leaves_its_copies_to_be_deleted() {
    use mooseng_schema::chunk;
    use mooseng_schema::dead::{self, DeadRecord};
    use mooseng_schema::location::{self, LocationRecord};
    use mooseng_store::mvcc::Change;
    use mooseng_wire::ChunkId;
    let (store, _) = store();
    let (here, elsewhere) = (ChunkId(5), ChunkId(6));
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    let pairs = vec![
        (Bytes::from(chunk::key(here)), Bytes::from_static(b"\x01")),
        (chunk::key(elsewhere).into(), Bytes::from_static(b"\x01")),
    ];
    let page = read::Page { at: LogPosition::new(Epoch(1), 5), pairs, next: None };
    apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
    let location =
        LocationRecord { layout: 1, copies: vec!["a".into(), "b".into()], epoch: 1, partial: None };
    tx.set(&location::key(here), &location.to_value());
    commit(tx).await;
    let changes = [here, elsewhere].map(|chunk| Change::Clear(chunk::key(chunk).into()));
    let entry = Entry::new(LogPosition::new(Epoch(1), 6), &changes);
    let tx = store.begin();
    apply::completed(&tx, VOLUME, page.at).await.unwrap();
    apply::entries(&tx, VOLUME, page.at, &[entry], Epoch(1), 7, LogPosition::new(Epoch(1), 6)).await.unwrap();
    commit(tx).await;
    let tx = store.begin();
    assert_eq!(tx.get(&location::key(here), Read::Snapshot).await.unwrap(), None);
    let dead = tx.get(&dead::key(here), Read::Snapshot).await.unwrap().unwrap();
    assert_eq!(
        DeadRecord::from_value(&dead).unwrap(),
        DeadRecord { copies: location.copies, epoch: 1, since_ns: 7, ..DeadRecord::default() }
    );
    assert_eq!(tx.get(&dead::key(elsewhere), Read::Snapshot).await.unwrap(), None);
}

/// A replica at 1/5 with those records, complete up to there.
async fn whole_replica(pairs: Vec<(Bytes, Bytes)>) -> (Embedded, LogPosition) {
    let (store, _) = store();
    let at = LogPosition::new(Epoch(1), 5);
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    commit(tx).await;
    let (mut from, mut pairs) = (whole_volume(VOLUME).begin, pairs);
    while !pairs.is_empty() {
        let rest = pairs.split_off(pairs.len().min(8));
        let next = rest.first().map(|(key, _)| key.clone());
        let tx = store.begin();
        apply::install(&tx, VOLUME, &from, &read::Page { at, pairs, next: next.clone() }).await.unwrap();
        commit(tx).await;
        (from, pairs) = (next.unwrap_or_default(), rest);
    }
    let tx = store.begin();
    assert!(!apply::completed(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    (store, at)
}

/// Replays until the last of them is taken in. Answers how many transactions it took.
async fn replay_all(store: &Embedded, entries: &[Entry], whole: LogPosition) -> usize {
    for count in 0..1_000 {
        let tx = store.begin();
        let record = apply::state(&tx, VOLUME, Read::Snapshot).await.unwrap().unwrap();
        let rest: Vec<Entry> = entries.iter().filter(|entry| entry.at > record.position()).cloned().collect();
        if rest.is_empty() {
            return count;
        }
        apply::entries(&tx, VOLUME, record.position(), &rest, Epoch(1), 7, whole).await.unwrap();
        commit(tx).await;
    }
    panic!("they are never taken in");
}

#[tokio::test]
async fn an_entry_that_clears_more_than_a_transaction_holds_is_undone_all_the_same() {
    use mooseng_store::mvcc::Change;
    let value = |n: u16| Bytes::from(vec![n as u8; 90_000]);
    let pairs: Vec<_> = (0..60).map(|n| (Bytes::from(volume_key(2 * n)), value(n))).collect();
    let (store, at) = whole_replica(pairs.clone()).await;
    let clear = Change::ClearRange(KeyRange { begin: volume_key(4).into(), end: volume_key(118).into() });
    let [first, second] = [6, 7].map(|version| LogPosition::new(Epoch(1), version));
    let entries = [
        Entry::new(first, &[clear, Change::Set(volume_key(6).into(), Bytes::from_static(b"new"))]),
        Entry::new(second, &[Change::Clear(volume_key(0).into())]),
    ];
    let took = replay_all(&store, &entries, at).await;
    assert!(took > 3, "{took}");
    assert_eq!(records(&store).await.len(), 3);
    // It is undone in several transactions, between which anything may die.
    let mut more = true;
    let mut between = 0;
    while more {
        let tx = store.begin();
        turn::undo(&tx, VOLUME, at).await.unwrap();
        drop(tx);
        let tx = store.begin();
        more = turn::undo(&tx, VOLUME, at).await.unwrap();
        commit(tx).await;
        let record = apply::state(&store.begin(), VOLUME, Read::Snapshot).await.unwrap().unwrap();
        if record.undoing {
            between += 1;
            assert_eq!(record.position(), first);
            // It can't become the home, nor follow one, as it is.
            let tx = store.begin();
            assert!(
                turn::take_over(&tx, VOLUME, Epoch(2), None, None).await.is_ok_and(|done| !done),
                "there is no volume record"
            );
            let refused = apply::entries(&tx, VOLUME, first, &entries[1..], Epoch(1), 7, at).await;
            assert!(matches!(refused, Err(ReplicaError::Senseless(_))), "{refused:?}");
        }
    }
    assert!(between > 1, "{between}");
    assert_eq!(read::records(&store.begin(), VOLUME, None, 10 << 20).await.unwrap().0, pairs);
    // What was begun with is ended before another home is followed.
    replay_all(&store, &entries[..1], at).await;
    let tx = store.begin();
    assert!(turn::undo(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    let mut steps = 0;
    loop {
        let tx = store.begin();
        if !turn::end_undo(&tx, VOLUME).await.unwrap() {
            break;
        }
        commit(tx).await;
        steps += 1;
    }
    assert!(steps > 0);
    assert_eq!(read::records(&store.begin(), VOLUME, None, 10 << 20).await.unwrap().0, pairs);
    // What was kept for an entry that another home never had isn't taken for another one's.
    let tx = store.begin();
    assert_eq!(apply::entries(&tx, VOLUME, at, &entries[..1], Epoch(1), 7, at).await.unwrap(), at);
    commit(tx).await;
    let other = Entry::new(LogPosition::new(Epoch(1), 9), &[Change::Clear(volume_key(0).into())]);
    replay_all(&store, &[other], at).await;
    let tx = store.begin();
    assert!(!turn::undo(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    assert_eq!(read::records(&store.begin(), VOLUME, None, 10 << 20).await.unwrap().0, pairs);
}

#[tokio::test]
async fn the_death_of_a_chunk_is_undone_and_its_copies_stay_until_it_cant_be() {
    use mooseng_schema::dead::{self, DeadRecord};
    use mooseng_schema::location::{self, LocationRecord};
    use mooseng_schema::{chunk, log::salvaged_chunk_key};
    use mooseng_store::mvcc::Change;
    use mooseng_wire::ChunkId;
    let (old, born) = (ChunkId(5), ChunkId(9));
    let record = Bytes::from_static(b"\x01");
    let (store, at) = whole_replica(vec![(chunk::key(old).into(), record.clone())]).await;
    let location = LocationRecord { layout: 1, copies: vec!["a".into()], epoch: 1, partial: None };
    let tx = store.begin();
    tx.set(&location::key(old), &location.to_value());
    commit(tx).await;
    let next = LogPosition::new(Epoch(1), 6);
    let entry = Entry::new(
        next,
        &[Change::Clear(chunk::key(old).into()), Change::Set(chunk::key(born).into(), record)],
    );
    let get = async |key: Vec<u8>| store.begin().get(&key, Read::Snapshot).await.unwrap();
    replay_all(&store, std::slice::from_ref(&entry), at).await;
    let tx = store.begin();
    tx.set(&location::key(born), &location.to_value());
    commit(tx).await;
    let dead = DeadRecord::from_value(&get(dead::key(old)).await.unwrap()).unwrap();
    assert_eq!((dead.died(), &dead.copies), (next, &location.copies));
    assert_eq!(get(location::key(old)).await, None);
    let tx = store.begin();
    assert!(!turn::undo(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    // It lives where it did, and what was born is put aside.
    assert_eq!(get(dead::key(old)).await, None);
    assert_eq!(get(location::key(old)).await, Some(location.to_value().into()));
    assert!(get(chunk::key(old)).await.is_some() && get(chunk::key(born)).await.is_none());
    assert_eq!(get(location::key(born)).await, None);
    assert_eq!(get(salvaged_chunk_key(born)).await, Some(location.to_value().into()));
    // Once the region is complete, nothing brings it back.
    replay_all(&store, &[entry], at).await;
    let tx = store.begin();
    assert!(!apply::completed(&tx, VOLUME, next).await.unwrap());
    commit(tx).await;
    let refused = turn::undo(&store.begin(), VOLUME, at).await;
    assert_eq!(refused, Err(ReplicaError::NotUndoable { to: at, down_to: next }));
}

/// A home that becomes it again would go on with locks that their owners gave up, or lost, while another region was it.
#[tokio::test]
async fn a_home_that_begins_anew_has_no_locks_of_its_time_before() {
    use mooseng_schema::lock::{self, LockOwner, LockRecord};
    use mooseng_schema::volume::{self, VolumeRecord};
    use mooseng_wire::{InodeId, SessionId};
    let (store, _) = store();
    let owner = LockOwner { kind: mooseng_wire::fs::LockKind::File, session: SessionId(3), owner: 7 };
    let key = lock::key(InodeId(9), owner, 0);
    let home = VolumeRecord { epoch: 1, ..VolumeRecord::default() };
    let logged = LoggedRecord { epoch: 1, ..LoggedRecord::default() };
    let tx = store.begin();
    tx.set(&volume::key(VOLUME), &home.to_value());
    tx.set(&log::logged_key(VOLUME), &logged.to_value());
    tx.set(&key, &LockRecord { end: 9, ..LockRecord::default() }.to_value());
    commit(tx).await;
    let turned = async |epoch: u64| {
        let tx = store.begin();
        turn::take_over(&tx, VOLUME, Epoch(epoch), None, None).await.unwrap();
        commit(tx).await;
        store.begin().get(&key, Read::Snapshot).await.unwrap().is_some()
    };
    assert!(turned(1).await, "a leader of the same home goes on with them");
    let tx = store.begin();
    assert!(turn::rejoin(&tx, VOLUME, Epoch(2)).await.unwrap());
    commit(tx).await;
    assert!(!turned(3).await);
    // Also where it is the home still, under a later epoch: of a lock that its holder never heard of nobody else would know that it may go.
    let tx = store.begin();
    tx.set(&key, &LockRecord { end: 9, ..LockRecord::default() }.to_value());
    commit(tx).await;
    assert!(turned(3).await);
    assert!(!turned(4).await);
}

/// What a home sent before another followed it may come behind what that one has sent, without that this region ever heard of the end of the first.
#[tokio::test]
async fn behind_a_later_homes_entries_none_of_an_earlier_one_is_taken() {
    use mooseng_store::mvcc::Change;
    let (store, _) = store();
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    let page = read::Page { at: LogPosition::new(Epoch(5), 60), pairs: Vec::new(), next: None };
    apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
    commit(tx).await;
    let key = mooseng_schema::inode::key(mooseng_wire::InodeId::new(VOLUME, 9));
    let entry = |version| {
        let change = Change::Set(key.clone().into(), Bytes::from(vec![version as u8]));
        Entry::new(LogPosition::new(Epoch(5), version), &[change])
    };
    let replay = async |after: u64, version: u64, from: u64| {
        let (tx, none) = (store.begin(), LogPosition::default());
        let after = LogPosition::new(Epoch(5), after);
        let taken = apply::entries(&tx, VOLUME, after, &[entry(version)], Epoch(from), 7, none).await;
        if taken.is_ok() {
            commit(tx).await;
        }
        taken
    };
    assert!(replay(60, 65, 5).await.is_ok());
    assert!(replay(65, 70, 6).await.is_ok(), "of the home before, sent by the next one");
    let late = replay(70, 75, 5).await;
    assert!(matches!(late, Err(ReplicaError::Refused(5))), "{late:?}");
    assert!(replay(70, 75, 6).await.is_ok());
}

/// A master that starts again knows at first what the regions had agreed on some time ago: by that, the home may be elsewhere. As a replica, complete
/// up to its newest entry, it couldn't go back to where its own epoch began, and would never serve again (regions seed 123).
#[tokio::test]
async fn a_home_that_starts_with_an_old_view_stays_one() {
    let (store, _) = store();
    let tx = store.begin();
    tx.set(&log::logged_key(VOLUME), &LoggedRecord { epoch: 2, ..LoggedRecord::default() }.to_value());
    commit(tx).await;
    for before in 1..=2 {
        let refused = turn::rejoin(&store.begin(), VOLUME, Epoch(before)).await;
        assert!(matches!(refused, Err(ReplicaError::Refused(2))), "{refused:?}");
    }
    let tx = store.begin();
    assert!(turn::rejoin(&tx, VOLUME, Epoch(3)).await.unwrap());
}

/// A region that was the home comes back when the log of that time is trimmed away: what it had behind the cut is its own, and is put aside (regions
/// seed 22).
#[tokio::test]
async fn what_is_behind_a_cut_isnt_common_where_the_log_of_that_time_is_gone() {
    use mooseng_schema::loss::{self, LossRecord};
    let (store, _) = store();
    let tx = store.begin();
    let logged = LoggedRecord { epoch: 4, trimmed_epoch: 3, trimmed_version: 754, ..LoggedRecord::default() };
    tx.set(&log::logged_key(VOLUME), &logged.to_value());
    let lost = LossRecord { opened: 3, cut_epoch: 2, cut_version: 804, ..LossRecord::default() };
    tx.set(&loss::key(VOLUME, Epoch(2)), &lost.to_value());
    commit(tx).await;
    let place = |epoch, version| LogPosition::new(Epoch(epoch), version);
    for (at, common) in [
        (place(2, 851), place(2, 804)),
        (place(2, 804), place(2, 804)),
        (place(2, 700), place(2, 700)),
        (place(1, 900), place(1, 900)),
        (place(3, 760), place(3, 754)),
    ] {
        assert_eq!(read::at_or_before(&store.begin(), VOLUME, at).await.unwrap(), common, "{at}");
    }
}
