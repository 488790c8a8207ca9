//! A campaign in which the home region of a `geo` volume is lost again and again (`mooseng-geo`, `make test-geo SEED=S ROUNDS=N`;
//! docs/faults.md): real processes, each region in a network namespace of its own, 60 ms from the others.
//!
//! - [`plan`]: how the home is lost, and when; follows from the seed alone.
//! - [`cluster`]: the daemons and mounts of all regions, as children of this process.
//! - [`seen`]: files that another session has seen must stay, fsynced or not.
//! - [`probe`]: when a mount takes changes again.
//! - [`campaign`]: the rounds.
//! - [`bench`]: figures of such a cluster (`make bench-geo`).

pub mod bench;
pub mod campaign;
pub mod cluster;
pub mod plan;
pub mod probe;
pub mod seen;
