//! Snapshots: pinned states of the engine that are sent, and received ones that wait to be installed.

use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mooseng_embedded::Pin;
use mooseng_wire::raft as wire;

/// Bytes of one page.
pub(crate) const PAGE_BYTES: usize = 512 << 10;

/// Where a snapshot's bytes are.
#[derive(Clone)]
pub enum SnapshotSource {
    /// In this master's engine, pinned. Taken by the first transfer.
    Pinned(Arc<Mutex<Option<Pin>>>),
    /// Received by the engine, all pages of it, and not installed yet.
    Received,
}

/// A hash over the pages of a snapshot, in order.
#[derive(Clone)]
pub(crate) struct PagesDigest(crc32fast::Hasher, u64);

impl PagesDigest {
    pub fn new() -> Self {
        Self(crc32fast::Hasher::new(), 0)
    }
    pub fn take(&mut self, pairs: &[(Bytes, Bytes)]) {
        for part in pairs.iter().flat_map(|(k, v)| [k, v]) {
            self.0.write_u64(part.len() as u64);
            self.0.update(part);
            self.1 = self.1.wrapping_add(part.len() as u64);
        }
    }
    /// The checksum in the lower half, the sum of lengths in the upper.
    pub fn value(&self) -> u64 {
        u64::from(self.0.clone().finalize()) | (self.1 << 32)
    }
}

/// The one snapshot that is being received, if any.
pub(crate) struct Receiving {
    pub id: String,
    pub next_page: u64,
    pub digest: PagesDigest,
    pub begin: wire::SnapshotBegin,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
