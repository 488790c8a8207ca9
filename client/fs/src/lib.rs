//! The MooseNG filesystem as a library, without FUSE: what the mount, SDKs, tests and the simulation use.
//!
//! ```text
//!  Tree (tree)  the volumes of a mount, and where one is crossed into
//!    \-- FileSystem (fs, files, lifetime)  what a mount has of one volume
//!    |-- Region (region)  numbers, retries, exactly-once --> Session (session)  leader, lease, failover
//!    |      \-- Near (near, near_promises, near_stream)  the replica in this host's region, read under its promises
//!    |-- Reader (read, plan, cache)   extents -> inline data, chunk runs
//!    |-- WriteBack (writeback, buffers, dirty, full, flush, cutting, send, pieces) buffers under the exclusive promise, or through; sends before fsync
//!    |                              asks for it where that is sure to (rhythm)
//!    |-- Appenders (append)           one open chunk for an inode, replaced when a chunkserver fails
//!    |      \------ Chunkservers (chunkservers)  which replica, hedging, CRC
//!    |                 \-- Borrower (borrow, shelf)  files that chunkservers on this host lent
//!    |-- Names made alone (alone, journal, telling) under directories that this session has to itself
//!    |-- Ranges (ranges)               holes, sizes and copies that the region makes
//!    |-- Locks (locks, owners, held, grants) who may hold what; waits, what a lapse takes, and what is given without the region
//!    |-- Opens (opens), Touches (atime)
//!    \-- Peers (peers)  the port to other daemons, over mooseng_transport; waits notes whose answers are waited for
//! ```
//! Pure parts: [`retry`], `window`, `plan`, `rhythm`, the relatime rule in `atime`.
//!
//! Every operation is a future that may be dropped: that stops the waiting. A change that was sent keeps its number until its
//! outcome is known or its retry time is over.

mod acls;
mod alone;
mod append;
mod atime;
mod borrow;
mod buffers;
mod cache;
mod caches;
mod chunkservers;
mod config;
mod cutting;
mod dirty;
mod error;
mod escrow;
mod facts;
#[cfg(feature = "fake")]
pub mod fake;
#[cfg(feature = "fake")]
mod fake_locks;
mod files;
mod flush;
mod fs;
mod full;
mod grants;
mod held;
mod journal;
mod known;
mod lifetime;
mod links;
mod locks;
mod lookahead;
mod near;
mod near_promises;
mod near_stream;
mod neighbours;
mod opens;
mod owners;
mod pace;
mod packets;
pub mod peers;
mod pieces;
mod plan;
mod ranges;
mod read;
mod recalls;
mod region;
pub mod retry;
mod rhythm;
mod send;
mod session;
mod settings;
mod shelf;
mod slots;
mod staleness;
mod status;
mod telling;
mod tree;
pub mod waits;
mod window;
mod writeback;

pub use acls::is_acl;
pub use caches::CacheCounts;
pub use config::ClientConfig;
pub use error::FsError;
pub use facts::{Invalidate, Validity};
pub use files::{Created, HandleId, Opened, WriteMode, WriteOptions};
pub use fs::{FileSystem, RenameMode};
pub use locks::{LockRequest, LockWait};
/// The words of requests and answers.
pub use mooseng_wire::fs::{
    Attr, Caller, Description, DirEntry, DirPage, FileKind, FsStat, LockKind, LockSpec, SeekWhence, SetAttr,
};
pub use slots::{Slot, Slots};
pub use status::{ChunkserverStatus, FsStatus, Latency};
pub use tree::{Found, Tree, VOLUMES_MAX};
