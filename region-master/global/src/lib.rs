//! What all regions must agree on: regions and their masters, volumes with home, epoch, durability and sync set (DESIGN sections 5 and 8).
//!
//! The global group - the masters of all regions - keeps it as records of a store of its own. Rules here are functions of such a store's
//! transaction or of a [`View`]: no I/O, no clock.
//!
//! - [`view`]: what a master knows of it, at one version.

pub mod view;

pub use view::{Durability, MasterAt, Region, View, Volume};
