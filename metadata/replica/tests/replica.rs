//! A home and a replica: whatever the order of copying, replaying and undoing, the replica is what the home was.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::{
    ApplyOutcome, CommitLog, Embedded, LogEntry, MemoryBase, Options, Payload, ProposeError,
};
use mooseng_replica::{Tail, VolumeLogs, read};
use mooseng_schema::key::whole_volume;
use mooseng_schema::log;
use mooseng_store::{Store, Transaction};
use mooseng_wire::VolumeId;

#[path = "replica/homes.rs"]
mod homes;
#[path = "replica/random.rs"]
mod random;
#[path = "replica/replayed.rs"]
mod replayed;

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

async fn commit(tx: impl Transaction) {
    tx.commit().await.unwrap();
}

async fn records(store: &Embedded) -> Vec<(Bytes, Bytes)> {
    read::records(&store.begin(), VOLUME, None, 1 << 20).await.unwrap().0
}
