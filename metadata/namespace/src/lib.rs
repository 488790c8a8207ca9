//! Every filesystem operation as a function of a transaction and a request: no I/O besides the transaction, no clock
//! and no randomness besides what [`OpContext`] hands in.
//!
//! ```text
//! FsRequest --> execute(tx, context) --> ops::* --> View (records of the schema) --> Transaction
//!      \--> driver::Driver: retries, outcomes, epochs, commit
//! ```
//!
//! - [`execute`] runs one request; it never commits.
//! - [`driver`] owns deadline, retries, exactly-once outcomes and the commit. It alone sleeps and draws jitter.
//! - [`extents`] is the arithmetic of a file's pieces, on values.
//! - [`abandon`], [`sessions`], [`upkeep`] are the master's own business over a transaction: sessions, id ranges, orphans, chunks.
//! - [`locks`] are the locks on one inode, as values; [`held`] is where they lie in the store.
//! - [`reclaim`] gives sessions the locks that they had under the home before.
//! - [`joins`] is where a directory names another volume.
//! - [`deleted`] is how a deleted volume's records go, [`let_go`] those of one that the region was taken out of; [`clearing`] is what both do.
//! - [`mod@format`] makes an empty volume, and the region's founding mark.
//! - [`rewrite`] moves files' bytes from old chunks to new ones.
//! - [`pack`] moves small files' bytes to chunks that they share.
//! - [`rules`] say what becomes of an inode's record, as values: for operations, and for clients that have a directory alone.
//! - [`acl`] are access control lists, as values.
//! - [`classes`] are storage classes: how many copies data gets, and where.
//! - [`quota`] says whom everything counts for, and how much may.
//! - [`trash`] keeps deleted files for a while.
//! - [`clock`] is what was seen of the clock by which that, and other things, are old.
//! - [`fsck`] counts everything of a whole store again.

pub mod abandon;
pub mod acl;
pub mod classes;
pub mod clearing;
pub mod clock;
pub mod confine;
pub mod context;
pub mod deleted;
pub mod driver;
pub mod errno;
pub mod error;
pub mod extents;
pub mod format;
pub mod fsck;
pub mod held;
pub mod joins;
pub mod let_go;
pub mod locks;
mod ops;
pub mod pack;
mod permission;
pub mod quota;
pub mod reclaim;
pub mod request;
pub mod rewrite;
pub mod rules;
pub mod sessions;
mod together;
pub mod touched;
pub mod trash;
pub mod upkeep;
mod view;
mod window;

pub use context::{Capacity, Ids, OpContext, Room};
pub use driver::{Admission, Driver, DriverError, Gate, SessionCall};
pub use errno::Errno;
pub use error::OpError;
pub use format::{format, found};
pub use ops::{execute, execute_noting};
pub use request::{
    Within, is_change, is_told, may_be_near, names_volumes, needs_chunk, needs_inode, reads_from, volume_of,
    within,
};

/// Most hard links of a file.
pub const LINKS_MAX: u32 = 65_000;
pub use view::attr_of;
pub use window::{STAGED_BYTES_MAX, STAGED_PIECES_MAX};
