//! Why an operation ended without an answer of its own.

use mooseng_schema::SchemaError;
use mooseng_store::StoreError;
use mooseng_wire::{ChunkId, InodeId};

use crate::errno::Errno;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the caller is told.
    #[error("{0}")]
    Errno(Errno),
    /// What the caller is told of one of several changes: the others run again without it.
    #[error("{errno}, of the change at place {at}")]
    Told {
        /// Its place.
        at: usize,
        /// What it is told.
        errno: Errno,
    },
    /// A record is damaged, or newer than this release.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// First the extents of this inode from `from` on must be freed, in transactions of their own
    /// ([`crate::upkeep::drain`]); then the operation runs.
    #[error("extents of inode {inode} from offset {from} on must be freed first")]
    Drain {
        /// The inode.
        inode: InodeId,
        /// From which offset on.
        from: u64,
    },
    /// The caller of [`crate::execute`] left out something that the request needs.
    #[error("the request needs {0}, which wasn't handed in")]
    Missing(&'static str),
    /// The volume has no records: it was never formatted here.
    #[error("volume {0} doesn't exist in this store; format it first")]
    NoVolume(u16),
    /// This region was taken out of the volume's regions.
    #[error("this region lets go of volume {0}, of which it is to have nothing any more")]
    LetGo(u16),
    /// A home has given all ids that are its own to give.
    #[error(
        "all ids of the volume below {0} are given, and its home has no others to give in this epoch: the regions give it more, or another home (`mooseng volume move-home`)"
    )]
    IdsUsedUp(u64),
    /// An id that was to be a new chunk's is another one's.
    #[error("{0} was to be a new chunk's id, and there is such a chunk already: nothing is changed")]
    ChunkExists(ChunkId),
    /// The request's bytes make no sense, such as one without an operation.
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
}

impl From<Errno> for OpError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}
