//! Chunks on a chunkserver's disks, and the decisions of a chain of chunkservers. No tokio, no sockets, no clocks, no
//! randomness: disks are reached through [`mooseng_ports::disk::Disk`], time and ids are handed in.
//!
//! - [`store`]: [`ChunkStore`], all chunks of one chunkserver over several data directories.
//! - [`layout`]: how a chunk's bytes, checksums and commit records lie in its file, with the invariant that makes an append
//!   survive a crash with a single flush.
//! - [`chunk`]: one chunk's file: recovery, append, flush, read, seal.
//! - [`directory`]: one data directory: identity, space, health.
//! - [`state`]: what the chunkserver itself keeps durable: starts, epochs, which disk belongs where.
//! - [`lent`]: a sealed chunk in the hands of somebody on this host.
//! - [`digest`]: what two copies of a chunk must have in common.
//! - [`chain`]: from our own result and the next member's to one answer.
//! - [`ticket`]: signing (master) and checking (chunkserver) of tickets.
//!
//! ```text
//!  append -> admit -> write (page cache) -> flush: commit record + fdatasync -> Appended
//!                 \-> next member --------------------------------------------/   (chain)
//! ```

pub mod chain;
mod changes;
pub mod chunk;
pub mod digest;
pub mod directory;
pub mod error;
pub mod files;
pub mod layout;
pub mod lent;
pub mod state;
pub mod store;
mod sums;
pub mod ticket;

pub use chunk::import::Import;
pub use digest::Digest;
pub use error::ChunkError;
pub use store::{
    Admission, Append, Change, ChunkInfo, ChunkStat, ChunkStore, OpenError, StoreOptions, Written,
};
pub use sums::Sums;

/// CRC-32C (Castagnoli) of `bytes`: the checksum of chunk blocks, append packets and read answers.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
