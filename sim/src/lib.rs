//! The simulation: the region's own code - Raft, log, store, namespace, chunkservers, client - over simulated disks, sockets and time.
//!
//! - [`hosts`]: the daemons. [`network`]: the sockets under them, and processes that stall. `notices`: what masters tell clients, lost and late. [`workload`]: the clients,
//!   of which some lock a file ([`locking`]), append to one ([`appending`]) and list directories ([`listing`]); [`administrator`]: who has rights.
//! - [`run`]: one run. [`faults`]: what goes wrong in it. [`watch`]: what must hold at any instant, and in the end.
//! - [`regions`]: three regions. [`machines`]: hosts as a nemesis handles them; [`group`]: a region's masters among them; [`swapped`]: chunkservers with each other's disks.
//! - [`kinds`]: which seeds have what was added later.
//! - [`copies`]: what the disks under the copies of chunks must hold. [`whole`]: what masters' records must agree on. [`history`]: the check of what the clients saw.

pub mod administrator;
pub mod appending;
pub mod copies;
pub mod faults;
pub mod group;
pub mod history;
pub mod hosts;
pub mod kinds;
pub mod listing;
pub mod locking;
pub mod machines;
pub mod network;
mod notices;
pub mod regions;
pub mod run;
pub mod swapped;
pub mod watch;
pub mod whole;
pub mod workload;
