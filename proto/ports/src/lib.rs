//! Ports: what the protocol code asks of the outside world, so that it runs on real machines and under simulation alike.
//!
//! - [`disk`]: files and directories, with flushes that mean something. [`disk::os`] is the real one; [`disk::sim`] keeps
//!   pending and durable bytes apart and loses the pending ones at a crash; [`disk::watched`] says whether one of them hangs.
//! - [`clock`]: time since boot (leases) and wall time (timestamps).
//! - [`interrupt`]: whether somebody wants this program to end.
//! - [`service_manager`]: tells who started this program that it works.
//! - [`plant`]: bugs planted on purpose, in builds for tests only.
//!
//! The network is a port too, but an asynchronous one: it is `mooseng_transport::Network`.

pub mod clock;
pub mod disk;
pub mod interrupt;
pub mod plant;
pub mod service_manager;
