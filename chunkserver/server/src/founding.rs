//! Whether the masters that this chunkserver reports to are of the region that its chunks are of. One that was made anew under the region's
//! name, with empty metadata, knows none of the chunks, and would have them deleted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooseng_chunk::ChunkStore;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::founding::Founding;
use prost::Message;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// With a leader of its own region that answered within this, a chunkserver is of use, whatever other masters say: several heartbeats.
const OWN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Told {
    /// Masters that told another mark with their last answer.
    others: BTreeMap<String, Founding>,
    /// When a leader with the chunks' mark answered last.
    own: Option<Instant>,
}

/// What masters told of their founding marks.
pub struct Foundings {
    store: Arc<ChunkStore>,
    metrics: Metrics,
    told: Mutex<Told>,
}

impl Foundings {
    /// Of that store's chunks.
    pub fn new(store: Arc<ChunkStore>, metrics: Metrics) -> Self {
        Self { store, metrics, told: Mutex::default() }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A master told another mark than the chunks'. Said once in the log, until that master tells something else.
    pub fn other(&self, master: &str, mark: Founding) {
        let mut told = self.told();
        let news = told.others.insert(master.to_owned(), mark) != Some(mark);
        self.metrics.other_foundings.set(told.others.len() as i64);
        drop(told);
        if !news {
            return;
        }
        let own = self.store.founding().map(|own| own.to_string()).unwrap_or_default();
        tracing::error!(
            master,
            told = %mark,
            own,
            "A master is of another founding of this region than the chunks here: the region was made anew, most likely because its masters' disks were lost. This chunkserver does nothing that the master orders, tells it nothing of its chunks, and deletes none of them. Start the old region's masters with their old disks again; if that region is given up, keep the data directories until nothing of them is needed, and start this chunkserver with empty data and state directories."
        );
    }

    /// A master answered without telling another mark; with the chunks' own if it leads.
    pub fn well(&self, master: &str, own: bool) {
        let mut told = self.told();
        if own {
            told.own = Some(Instant::now());
        }
        let gone = told.others.remove(master).is_some();
        self.metrics.other_foundings.set(told.others.len() as i64);
        drop(told);
        if gone {
            tracing::info!(master, "a master tells no other founding mark than the chunks' any more");
        }
    }

    /// Whether a master told another mark with its last answer.
    pub fn is_other(&self, master: &str) -> bool {
        self.told().others.contains_key(master)
    }

    /// Why the chunks are of no use to the masters, if they aren't.
    pub fn trouble(&self) -> Option<String> {
        let told = self.told();
        let (master, mark) = told.others.first_key_value()?;
        if told.own.is_some_and(|at| at.elapsed() < OWN_WITHIN) {
            return None;
        }
        let own = self.store.founding().map(|own| own.to_string()).unwrap_or_default();
        Some(format!(
            "OTHER_FOUNDING: the region was made anew, and its new masters don't know the chunks here: {master} tells the founding mark {mark}, the chunks are of {own}. Start the old region's masters with their old disks, or give this chunkserver empty directories"
        ))
    }
}

/// The mark of the master that refused a heartbeat because it is of another founding.
pub fn refused_by(status: &tonic::Status) -> Option<Founding> {
    let error = CallError::decode(status.details()).ok().filter(|e| e.code() == ErrorCode::OtherFounding)?;
    Founding::told(&error.detail).ok().flatten()
}
