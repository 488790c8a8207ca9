//! The simulation: the region's own code - Raft, log, store, namespace, chunkservers, client - over simulated disks, sockets and time.
//!
//! - [`hosts`]: the daemons. [`network`]: the sockets under them. [`workload`]: the clients.
//! - [`run`]: one run and its faults. [`history`]: the check of what the clients saw.

pub mod history;
pub mod hosts;
pub mod network;
pub mod run;
pub mod workload;
