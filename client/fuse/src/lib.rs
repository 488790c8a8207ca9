//! The FUSE adapter: a mount over [`mooseng_client::FileSystem`].
//!
//! - [`Mount`] opens /dev/fuse itself, mounts, and hands a duplicate of the descriptor to fuser, so that the other one can carry
//!   notifications. [`unmount`] and [`mounts`] serve `mooseng umount`.
//! - `adapter` converts, calls and answers; each request is one future on the tokio runtime.
//! - `waiting` lets a killed process go.
//!
//! In this release the kernel keeps neither entries nor attributes (timeouts of zero) and asks for attributes before it
//! believes its pages (AUTO_INVAL_DATA), so that every mount sees every finished write. The writeback cache stays off for good.

mod adapter;
mod convert;
mod device;
mod mount;
mod table;
mod waiting;

pub use device::MountError;
pub use mount::{Mount, MountHandle, MountOptions};
pub use table::{MountPoint, mounts, unmount};
