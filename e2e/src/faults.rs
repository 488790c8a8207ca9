//! A seeded campaign of faults against real daemons (`mooseng-faults`, `make test-faults SEED=S ROUNDS=N`; docs/faults.md).
//!
//! - [`plan`]: what goes wrong when; follows from the seed alone.
//! - [`region`]: the daemons and mounts, as children of this process, each in a [network](crate::network) of its own.
//! - [`disk`]: a disk for each daemon that fails when asked to, and loses what wasn't flushed.
//! - [`damage`]: what happens to files of stopped daemons.
//! - [`cut_off`]: what a mount loses that is cut off for longer than its lease, and is told.
//! - [`synced`]: files that were fsynced at the last moment before a power loss.
//! - [`work`]: a workload that knows each acknowledged byte and name.
//! - [`campaign`]: the rounds. [`summary`]: what they cost.

pub mod campaign;
pub mod cut_off;
pub mod damage;
pub mod disk;
pub mod plan;
pub mod region;
pub mod summary;
pub mod synced;
pub mod work;
