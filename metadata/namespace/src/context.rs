//! What an operation is handed in besides its transaction and its request.

use std::collections::BTreeMap;

use mooseng_schema::dirent::HashKey;
use mooseng_wire::{ChunkId, Epoch, Incarnation, InodeId, SessionId};

use crate::errno::Errno;
use crate::trash::Terms;

/// Fresh ids for an operation to give. What it doesn't use is lost, which costs nothing but numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// For requests of which [`crate::needs_inode`] is true.
    pub inode: Option<InodeId>,
    /// For requests of which [`crate::needs_chunk`] is true.
    pub chunk: Option<ChunkId>,
}

/// What the region's chunkservers hold, for `statfs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes, divided by the copies that a file gets.
    pub bytes_total: u64,
    /// Of these, bytes that are free.
    pub bytes_free: u64,
    /// Of these, bytes that applications may still fill.
    pub bytes_available: u64,
}

/// What the region's metadata has room for: the later, the less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Everything.
    #[default]
    Enough,
    /// No new names.
    Scarce,
    /// Nothing but what frees something, or adds next to nothing.
    Out,
}

/// An operation's surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpContext {
    /// Now, in nanoseconds since the Unix epoch.
    pub now_ns: i64,
    /// Fresh ids.
    pub ids: Ids,
    /// Whose request it is; 0 for the master itself.
    pub session: SessionId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// The home epoch that the master works under. A change under another one than the volume's is refused.
    pub epoch: Epoch,
    /// Where a chunk that is allocated goes: chunkservers' names, in the order of the chain.
    pub placement: Vec<String>,
    /// The volume's secret for hashing names, if it is at hand; else it is read.
    pub hash_key: Option<HashKey>,
    /// Which deleted files the volume keeps, and how long.
    pub trash: Terms,
    /// For `statfs`.
    pub capacity: Capacity,
    /// The root of the subtree that the session may see, if it may not see everything.
    pub confined: Option<InodeId>,
    /// A session's change for which there is none is refused with ENOSPC.
    pub room: Room,
    /// Nothing more is taken inline behind the first 64 KiB of a file: the region has as much of it as it carries.
    pub staging_closed: bool,
    /// Of a [`mooseng_wire::fs::Tell`]: its changes, by their place in it, that an earlier run has found to be refused.
    pub refused: BTreeMap<usize, Errno>,
}
