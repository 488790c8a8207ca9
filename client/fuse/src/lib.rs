//! The FUSE adapter: a mount over [`mooseng_client::Tree`].
//!
//! - [`Mount`] opens /dev/fuse itself, mounts, and hands a duplicate of the descriptor to fuser, so that the other one can carry
//!   notifications. [`unmount`] and [`mounts`] serve `mooseng umount`; `beneath` puts a mount in the place of a dead one.
//! - `adapter` converts, calls and answers; by `answers` each request is one future on the tokio runtime.
//! - `directories` lists directories.
//! - `waiting` lets a killed process go, and one that waits for a lock when a signal comes.
//! - `locks` takes, tests and gives up locks; `lock_kind` tells flock's from fcntl's.
//!
//! - `notify` takes back from the kernel what the region recalls, by the messages of `kernel`; `told` knows what it was told, `pages` whose
//!   pages it has and may keep, `mappings` which of those may be written without a word, and `drops` has it drop them.
//!
//! - `operations` counts what the kernel asks for, and knows what of it is under way; `latency` how long it took; `permits` bounds how much is under way.
//!
//! The kernel keeps entries, attributes and pages for what is left of the session's lease, as long as the region has promised them; it asks for
//! attributes before it believes pages of what isn't promised (AUTO_INVAL_DATA). The writeback cache stays off for good.

mod adapter;
mod answers;
mod beneath;
mod convert;
mod device;
mod directories;
mod drops;
mod kernel;
mod latency;
mod lock_kind;
mod locks;
mod mappings;
mod mount;
mod notify;
mod operations;
mod pages;
mod permits;
mod table;
mod told;
mod waiting;

pub use device::MountError;
pub use latency::{Bucket, Spread};
pub use mount::{Mount, MountHandle, MountOptions};
pub use operations::{Asked, Figures, Operation, Operations};
pub use table::{MountPoint, mounts, unmount};
