//! The chunkserver: chunks of this machine's disks, served on framed streams, reported to the region's masters.
//!
//! - [`config`]: the daemon's configuration.
//! - [`server`]: [`ChunkserverServer`], the whole daemon below `main`, which the simulation and tests start in-process, too.
//! - [`service`]: the calls of the chunk data stream: append, read, seal, stat.
//! - [`access`]: who may call what, and the ticket keys.
//! - `gates`: who may work on which disk, for one that hangs mustn't take all threads.
//! - [`order`]: appends of one chunk in the order of their offsets, however they arrive.
//! - [`members`]: connections to the next members of chains, and to the sources of copies.
//! - `pull`: copies of other chunkservers' chunks, made as masters order; `build`: new chunks of pieces of others; `scrub`: reading everything again, and emptying the trash.
//! - [`lend`]: sealed chunks' files for clients on this host.
//! - [`epochs`]: home epochs are believed of masters alone.
//! - [`heartbeat`]: reports to each master; what masters command. `founding`: whether they are of the region that the chunks are of.
//! - [`revocations`]: whom the cluster refuses, kept over restarts.
//! - [`health`]: the disks' probe, and whether this chunkserver is ready.
//! - [`metrics`]: names, units, meanings.
//!
//! ```text
//!  client | chunkserver --frames--> service --order--> store (disk work on Blocking's threads)
//!                                      \--members--> the chain's next chunkserver
//!  heartbeat --gRPC--> every master: disks, inventory, epochs; answers: ticket keys, seals, deletions
//! ```

pub mod access;
mod build;
pub mod config;
pub mod epochs;
mod follow;
mod founding;
mod gates;
pub mod health;
pub mod heartbeat;
pub mod lend;
pub mod members;
pub mod metrics;
pub mod order;
mod pull;
mod push;
pub mod revocations;
mod scrub;
pub mod server;
pub mod service;

pub use config::ChunkserverConfig;
pub use server::{ChunkserverServer, StartError};
