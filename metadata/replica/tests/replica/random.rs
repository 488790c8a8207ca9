//! Over random transactions: whatever the order of copying and replaying, the replica is what the home was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mooseng_embedded::Embedded;
use mooseng_namespace::let_go;
use mooseng_replica::{Entry, ReplicaError, Tail, apply, read, turn};
use mooseng_schema::Record;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition, LoggedRecord, ReplicaRecord};
use mooseng_store::{Atomic, KeyRange, Read, Store, Transaction};
use mooseng_wire::Epoch;
use proptest::prelude::*;

use super::{VOLUME, commit, records, store, volume_key};

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

struct Replica {
    store: Embedded,
    home: Embedded,
    epoch: u64,
    tail: Arc<Tail>,
    /// What the home was at each place.
    history: Mutex<BTreeMap<LogPosition, Vec<(Bytes, Bytes)>>>,
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
