//! A region-master: sessions and filesystem requests of clients, the region's chunkservers, Raft with its fellows.
//!
//! ```text
//!  client --frames--> service -> sessions, fs --Driver--> Embedded <--Raft--> other masters
//!                                  |    \-> seals ----frames---> chunkserver
//!  chunkserver --gRPC--> rpc ---> desk (sessions, registry, ids, keys)
//!  admin ------gRPC--> rpc -> status            ^
//!                                   lead (housekeeping of the leader)
//! ```
//!
//! - [`MasterServer`]: starts and stops it, over ports.
//! - [`config`]: its configuration.
//! - [`classes`]: storage classes, for placement, repair and administrators.
//! - [`master`]: its parts, and whether an answer may leave.
//! - [`credentials`]: who of the region has which certificate and revocation list. [`revocations`]: whom the cluster has agreed to refuse.
//! - [`desk`]: what it keeps in memory, `custody` what a custodian begins and ends with. [`founding`]: who is of this region, and who of another one of its name.
//! - [`global`]: the group of the masters of all regions.
//! - [`lead`]: what a leader does besides answering, `reap` about sessions and inodes. [`house`]: chunks and their copies.
//! - `lapsed`: what is kept of sessions that are away, and how long. `steady`: what was seen of the clock that says so.
//! - [`seat`]: what is kept in memory of one volume.
//! - [`service`], [`sessions`], [`fs`]: the framed stream. [`rpc`], [`status`]: gRPC.
//! - [`promises`]: recalls, grants, and the gate before a commit.
//! - [`locks`]: one request at a time for an inode's locks, queues, grants.
//! - [`trash`]: deleted files that can be restored, for administrators; `expiry`: how they leave it by themselves. [`tree`]: where they see volumes.
//! - [`geo`]: volumes that other regions have, too.
//! - [`seals`], [`places`], [`tickets`], [`ids`], [`records`]: chunks' ends, their addresses and tickets, fresh ids, own transactions.
//! - [`own`]: changes of the master's own that pass the gate. [`fsck`]: the check of the whole store.
//! - [`owner`]: whose directory a log lies in.
//! - [`dump`]: the whole store as a file, and a region that begins with one.
//! - [`recover`]: a region goes on from the one master's disk that is left.
//! - [`errors`]: what callers are told. [`metrics`]: figures. [`events`]: what happened, in a journal.

pub mod classes;
pub mod config;
pub mod credentials;
mod custody;
pub mod desk;
pub mod dump;
pub mod errors;
pub mod events;
mod expiry;
pub mod founding;
pub mod fs;
pub mod fsck;
pub mod geo;
pub mod global;
pub mod house;
pub mod ids;
mod kept;
mod lapsed;
pub mod lead;
pub mod locks;
pub mod master;
pub mod metrics;
pub mod own;
pub mod owner;
pub mod places;
pub mod promises;
pub mod quotas;
mod reap;
pub mod records;
pub mod recover;
pub mod revocations;
pub mod rights;
mod room;
pub mod rpc;
pub mod seals;
pub mod seat;
pub mod server;
pub mod service;
pub mod sessions;
pub mod status;
mod steady;
pub mod tickets;
pub mod trash;
pub mod tree;

pub use config::{ConfigError, HouseConfig, MasterConfig, MemberConfig, MountRule, RaftConfig, Squash};
pub use errors::not_built;
pub use global::config::{GlobalConfig, GlobalRaftConfig, RegionConfig, RegionMasterConfig};
pub use server::{MasterServer, Ports, StartError};
