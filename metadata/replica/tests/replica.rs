//! A home and a replica, over random transactions: whatever the order of copying and replaying, the replica is what the home was.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::{
    ApplyOutcome, CommitLog, Embedded, LogEntry, MemoryBase, Options, Payload, ProposeError,
};
use mooseng_replica::{Entry, ReplicaError, Tail, VolumeLogs, apply, read};
use mooseng_schema::Record;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition, LoggedRecord};
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
    Replay(usize),
    Trim,
    Restart,
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
            3 => (1usize..4).prop_map(Step::Replay),
            1 => Just(Step::Trim),
            1 => Just(Step::Restart),
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
    tail: Arc<Tail>,
}

impl Replica {
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

    /// Answers whether there was anything to replay.
    async fn replay(&self, most: usize, upto: Option<LogPosition>) -> bool {
        let (at, _) = self.position().await;
        if at == LogPosition::default() {
            return false;
        }
        let entries = match self.following(at, upto).await {
            Err(ReplicaError::Trimmed { .. }) => {
                let tx = self.store.begin();
                apply::begin(&tx, VOLUME).await.unwrap();
                commit(tx).await;
                return true;
            }
            entries => entries.unwrap(),
        };
        let entries = &entries[..entries.len().min(most)];
        let tx = self.store.begin();
        let behind = apply::entries(&tx, VOLUME, at, entries, Epoch(1), 7).await.unwrap();
        assert_eq!(behind, entries.last().map_or(at, |e| e.at));
        commit(tx).await;
        // What was replayed isn't taken again.
        let again = apply::entries(&self.store.begin(), VOLUME, at, entries, Epoch(1), 7).await;
        assert!(entries.is_empty() || matches!(again, Err(ReplicaError::Gap { .. })));
        !entries.is_empty()
    }

    async fn copy_page(&self) -> bool {
        let (_, Some(from)) = self.position().await else { return false };
        let page = read::page(&self.home.begin(), VOLUME, Some(from.clone()), 700).await.unwrap();
        if from > whole_volume(VOLUME).begin {
            while self.position().await.0 < page.at {
                self.replay(2, Some(page.at)).await;
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
        let records =
            async |store: &Embedded| read::records(&store.begin(), VOLUME, None, 1 << 20).await.unwrap().0;
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
    let mut trimmed = LogPosition::new(Epoch(1), 0);
    let logged = |trimmed: LogPosition| {
        let record = LoggedRecord {
            epoch: 1,
            trimmed_epoch: trimmed.epoch.0,
            trimmed_version: trimmed.version,
            closed: 0,
        };
        record.to_value()
    };
    let tx = home.begin();
    tx.set(&volume_key(3), b"from before it was logged");
    commit(tx).await;
    let tx = home.begin();
    tx.set(&log::logged_key(VOLUME), &logged(trimmed));
    commit(tx).await;
    let replica = Replica { store: elsewhere, home: home.clone(), tail };
    let begin = async || {
        let tx = replica.store.begin();
        apply::begin(&tx, VOLUME).await.unwrap();
        commit(tx).await;
    };
    begin().await;
    let mut tx = home.begin();
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
            Step::Commit => commit(std::mem::replace(&mut tx, home.begin())).await,
            Step::CopyPage => {
                replica.copy_page().await;
            }
            Step::Replay(most) => {
                replica.replay(most, None).await;
            }
            Step::Trim => {
                let newest = read::newest(&home.begin(), VOLUME).await.unwrap();
                trimmed =
                    LogPosition::new(Epoch(1), (trimmed.version + newest.version).div_ceil(2)).max(trimmed);
                let tx = home.begin();
                tx.clear_range(log::range_upto(VOLUME, trimmed));
                tx.set(&log::logged_key(VOLUME), &logged(trimmed));
                commit(tx).await;
            }
            Step::Restart => begin().await,
        }
        replica.check().await;
    }
    commit(tx).await;
    for _ in 0..2_000 {
        let copied = replica.copy_page().await;
        if !replica.replay(usize::MAX, None).await && !copied {
            break;
        }
    }
    let (at, copied) = replica.position().await;
    assert_eq!((at, copied), (read::newest(&home.begin(), VOLUME).await.unwrap(), None));
    replica.check().await;
    // The log is there, too, from where the copy was begun on: as far as it is still there at the home.
    let log = async |store: &Embedded| {
        let page = store.begin().get_range(log::range(VOLUME), Default::default(), Read::Snapshot).await;
        page.unwrap().pairs
    };
    let (here, there) = (log(&replica.store).await, log(&home).await);
    assert!(there.iter().rev().zip(here.iter().rev()).all(|(a, b)| a == b));
    let record = apply::state(&replica.store.begin(), VOLUME, Read::Snapshot).await.unwrap().unwrap();
    let behind = log::range_after(VOLUME, record.log_behind()).begin;
    assert!(here.first().is_none_or(|(key, _)| *key >= behind));
    assert!(there.iter().filter(|(key, _)| *key >= behind).count() <= here.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
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
        let refused = apply::entries(&store.begin(), VOLUME, page.at, &[entry], Epoch(1), 7).await;
        assert!(matches!(refused, Err(ReplicaError::Senseless(_))), "{refused:?}");
    }
    let garbage = Entry { at, bytes: Bytes::from_static(&[1, 1, 200]) };
    assert!(apply::entries(&store.begin(), VOLUME, page.at, &[garbage], Epoch(1), 7).await.is_err());
    let early = Entry::new(LogPosition::new(Epoch(1), 5), &[]);
    assert!(apply::entries(&store.begin(), VOLUME, page.at, &[early], Epoch(1), 7).await.is_err());
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
    let location = LocationRecord { layout: 1, copies: vec!["a".into(), "b".into()], epoch: 1, partial: None };
    tx.set(&location::key(here), &location.to_value());
    commit(tx).await;
    let changes = [here, elsewhere].map(|chunk| Change::Clear(chunk::key(chunk).into()));
    let entry = Entry::new(LogPosition::new(Epoch(1), 6), &changes);
    let tx = store.begin();
    apply::entries(&tx, VOLUME, page.at, &[entry], Epoch(1), 7).await.unwrap();
    commit(tx).await;
    let tx = store.begin();
    assert_eq!(tx.get(&location::key(here), Read::Snapshot).await.unwrap(), None);
    let dead = tx.get(&dead::key(here), Read::Snapshot).await.unwrap().unwrap();
    assert_eq!(
        DeadRecord::from_value(&dead).unwrap(),
        DeadRecord { copies: location.copies, epoch: 1, since_ns: 7 }
    );
    assert_eq!(tx.get(&dead::key(elsewhere), Read::Snapshot).await.unwrap(), None);
}
