//! Three regions that mount one tree: the global group, replicas, failovers, under faults between regions and within them.
//!
//! - [`shape`]: what a run is like, drawn from its seed. [`run`]: one run. [`faults`]: what goes wrong in it.
//! - [`homes`]: who may change the volume, looked at each millisecond. [`clients`]: what mounts do. [`sequence`]: what they may see of it, and
//!   what must survive.
//! - [`epochs`]: what chunkservers take.
//! - [`audit`]: what must hold once everything was healed.

pub mod audit;
pub mod clients;
pub mod epochs;
pub mod faults;
pub mod homes;
pub mod run;
pub mod sequence;
pub mod shape;
