//! What all regions must agree on: regions and their masters, volumes with home, epoch, durability and sync set (DESIGN sections 5 and 8).
//!
//! The global group - the masters of all regions - keeps it as records of a store of its own. Rules here are functions of such a store's
//! transaction or of a [`View`]: no I/O, no clock.
//!
//! - [`view`]: what a master knows of it, at one version.
//! - [`key`], [`record`]: keys and values.
//! - [`rules`]: what may be changed; of whom is refused, in a cluster of one region, too ([`rules::revocations`]);
//!   which releases must be able to read what is written ([`rules::level`]).
//! - [`lease`]: regions' leases, of those that hold and of those that time them.
//! - [`failover`]: when a volume gets another home by itself, and which.
//! - [`voters`]: which masters vote, and what that survives.

pub mod failover;
pub mod key;
pub mod lease;
pub mod record;
pub mod rules;
pub mod view;
pub mod voters;

pub use rules::{Founding, RuleError};
pub use view::{
    Durability, Join, LAG_MAX_DEFAULT, LAG_MAX_RANGE, MasterAt, Place, Region, Stage, StorageClass, View,
    Volume,
};
