//! Three regions that mount one tree: the global group, replicas, failovers, under faults between regions and within them.
//!
//! - [`shape`]: what a run is like, drawn from its seed. [`run`]: one run. [`faults`]: what goes wrong in it; [`disks`]: which disk is lost; [`within`]: what goes wrong in one
//!   region.
//! - [`volumes`]: the root, and in some runs a second one. [`administrator`]: who makes that one, and moves homes.
//! - [`homes`]: who may change a volume, looked at each millisecond. [`mount`], [`clients`]: what mounts do. [`sequence`]: what they may see of it, and
//!   what must survive. [`shared`]: what they do to the same names and files; [`appends`]: those that they append to. [`across`]: what they do with two volumes.
//! - [`epochs`]: what chunkservers take. [`kept`]: what changes a region's records.
//! - [`audit`]: what must hold once everything was healed. [`contents`]: what regions show. [`ledger`]: what was lost, and what is said of it.

pub mod across;
pub mod administrator;
pub mod appends;
pub mod audit;
pub mod clients;
pub mod contents;
pub mod disks;
pub mod epochs;
pub mod faults;
pub mod homes;
pub mod kept;
pub mod ledger;
pub mod mount;
pub mod run;
pub mod sequence;
pub mod shape;
pub mod shared;
pub mod volumes;
pub mod within;
