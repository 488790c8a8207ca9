//! What goes wrong with one chunk, and the one table of wire codes for it.

use std::io;
use std::path::PathBuf;

use mooseng_wire::call::ErrorCode;
use mooseng_wire::founding::Founding;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch};

/// Why an operation on a chunk was refused or failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChunkError {
    /// This chunkserver has no such chunk.
    #[error("this chunkserver has no chunk {chunk}; ask a master where its copies lie")]
    NotFound {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The chunk takes no more appends.
    #[error("chunk {chunk} is sealed at {length} bytes; write the rest to a fresh chunk")]
    Sealed {
        /// The chunk.
        chunk: ChunkId,
        /// Its final length in bytes.
        length: u64,
    },
    /// The append doesn't begin where the chunk ends, or isn't the one that stands there.
    #[error(
        "chunk {chunk} has {length} bytes, which doesn't fit an append of {bytes} bytes at offset {offset}"
    )]
    OffsetMismatch {
        /// The chunk.
        chunk: ChunkId,
        /// Its length in bytes.
        length: u64,
        /// Where the append should have gone.
        offset: u64,
        /// Bytes of the append.
        bytes: u64,
    },
    /// A read or a seal names bytes that this copy doesn't have.
    #[error("this copy of chunk {chunk} has only {length} bytes, {wanted} are needed; use another copy")]
    TooShort {
        /// The chunk.
        chunk: ChunkId,
        /// Its length in bytes.
        length: u64,
        /// The end of what was asked for.
        wanted: u64,
    },
    /// The append would make the chunk longer than a chunk may be.
    #[error(
        "an append to {end} bytes exceeds the {CHUNK_BYTES_MAX} bytes of chunk {chunk}; seal it and write to a fresh chunk"
    )]
    TooLong {
        /// The chunk.
        chunk: ChunkId,
        /// Where the append would end.
        end: u64,
    },
    /// The writer's epoch has been superseded.
    #[error(
        "epoch {epoch} of volume {volume} is over, this chunkserver has seen epoch {highest}; ask a master of the volume's home"
    )]
    StaleEpoch {
        /// The volume's number.
        volume: u16,
        /// The epoch of the request.
        epoch: Epoch,
        /// The newest seen.
        highest: Epoch,
    },
    /// A block's bytes don't match their checksum.
    #[error("block {block} of chunk {chunk} doesn't match its checksum on {}; read another copy", path.display())]
    Corrupt {
        /// The chunk.
        chunk: ChunkId,
        /// The block's number, from 0.
        block: u64,
        /// The file.
        path: PathBuf,
    },
    /// The file isn't usable at all.
    #[error("this copy of chunk {chunk} is damaged: {reason}; read another copy")]
    Damaged {
        /// The chunk.
        chunk: ChunkId,
        /// Why.
        reason: String,
    },
    /// An append arrived with other bytes than were sent.
    #[error(
        "the bytes of an append to chunk {chunk} don't match the checksum that came with them; send them again"
    )]
    PacketCorrupt {
        /// The chunk.
        chunk: ChunkId,
    },
    /// No disk has room above its reserve.
    #[error(
        "no disk of this chunkserver has {bytes} bytes free above its reserve; add space or another chunkserver"
    )]
    NoSpace {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The disk failed, or the chunk's copy can't be trusted since a failed write or flush.
    #[error("the disk at {} failed chunk {chunk}: {reason}; seal the chunk on its other copies", path.display())]
    DiskFailed {
        /// The chunk.
        chunk: ChunkId,
        /// The data directory.
        path: PathBuf,
        /// What the disk answered.
        reason: String,
    },
    /// The disk answers nothing: that says nothing of the copy.
    #[error(
        "the disk at {} hasn't answered for {seconds} s, and others wait for it already, so that chunk {chunk} was left as it is; use another copy, or ask again later",
        path.display()
    )]
    DiskHangs {
        /// The chunk.
        chunk: ChunkId,
        /// The data directory.
        path: PathBuf,
        /// For how long a call has been under way.
        seconds: u64,
    },
    /// The process, or its host, lacks descriptors or memory: that says nothing of the copy.
    #[error(
        "this chunkserver lacks file descriptors or memory and left chunk {chunk} as it is: {reason}; ask again, or use another copy"
    )]
    Lacking {
        /// The chunk.
        chunk: ChunkId,
        /// What the system answered.
        reason: String,
    },
    /// A copy of it is being made.
    #[error("a copy of chunk {chunk} is being made here; ask again once it is done")]
    Importing {
        /// The chunk.
        chunk: ChunkId,
    },
    /// A copy that was made isn't what it was made from.
    #[error("the copy of chunk {chunk} that was made differs from its source; make it from another one")]
    Different {
        /// The chunk.
        chunk: ChunkId,
    },
    /// A newer leader has given orders.
    #[error(
        "the order comes from the leader of term {custody}, but one of term {newest} has given orders; ask that one"
    )]
    StaleCustody {
        /// The order's.
        custody: u64,
        /// The newest.
        newest: u64,
    },
    /// The newest leader's term couldn't be made durable.
    #[error(
        "the state directory couldn't keep the leader's term {custody}: {reason}; repair it and restart the chunkserver"
    )]
    CustodyFailed {
        /// The term.
        custody: u64,
        /// What the disk answered.
        reason: String,
    },
    /// A leader's region was founded apart from the one that the chunks are of.
    #[error(
        "the leader's region carries the founding mark {told}, the chunks here are of the region with the mark {own}; nothing that it orders is done here"
    )]
    OtherFounding {
        /// The mark of the chunks' region.
        own: Founding,
        /// The leader's.
        told: Founding,
    },
    /// The founding mark couldn't be made durable.
    #[error(
        "the state directory couldn't keep the region's founding mark {told}: {reason}; repair it and restart the chunkserver"
    )]
    FoundingFailed {
        /// The mark.
        told: Founding,
        /// What the disk answered.
        reason: String,
    },
    /// Epochs couldn't be made durable.
    #[error(
        "the state directory couldn't keep epoch {epoch}: {reason}; repair it and restart the chunkserver"
    )]
    StateFailed {
        /// The epoch.
        epoch: Epoch,
        /// What the disk answered.
        reason: String,
    },
}

impl ChunkError {
    /// The code on the wire.
    pub fn code(&self) -> ErrorCode {
        match self {
            ChunkError::NotFound { .. } => ErrorCode::NotFound,
            ChunkError::Sealed { .. } => ErrorCode::ChunkSealed,
            // A short copy is a mismatch of lengths, too: the copy isn't corrupt, it only lacks the end.
            ChunkError::OffsetMismatch { .. } | ChunkError::TooShort { .. } => ErrorCode::OffsetMismatch,
            ChunkError::TooLong { .. } | ChunkError::PacketCorrupt { .. } => ErrorCode::InvalidRequest,
            ChunkError::StaleEpoch { .. } | ChunkError::StaleCustody { .. } => ErrorCode::StaleEpoch,
            ChunkError::Importing { .. } | ChunkError::Lacking { .. } | ChunkError::DiskHangs { .. } => {
                ErrorCode::Busy
            }
            ChunkError::Corrupt { .. } | ChunkError::Damaged { .. } | ChunkError::Different { .. } => {
                ErrorCode::Corrupt
            }
            ChunkError::NoSpace { .. } => ErrorCode::NoSpace,
            ChunkError::DiskFailed { .. }
            | ChunkError::StateFailed { .. }
            | ChunkError::FoundingFailed { .. }
            | ChunkError::CustodyFailed { .. } => ErrorCode::DiskFailed,
            ChunkError::OtherFounding { .. } => ErrorCode::OtherFounding,
        }
    }
}

/// Linux' errors of a process, or a host, that lacks memory or descriptors.
const OURS: [i32; 3] = [12, 23, 24];

/// Whether it is this process, or its host, that lacks something: no disk is to blame, and no copy is worse for it.
pub(crate) fn is_ours(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| OURS.contains(&errno))
}

/// Whether the disk is full (as opposed to failing).
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
