//! `make bench`: MooseNG beside a FUSE passthrough and beside the bare directory, by turns, on one disk, in one run.
//!
//! ```text
//!  run       the targets made, the scenarios by turns                      -> report   table, JSON, gates
//!   ├ target    bare directory | passthrough | MooseNG mount (cluster)     (mounts, process, disk)
//!   ├ scenario  what is done to a target; one file each                    (metric: names, units, goals, gates)
//!   │   └ worker    jobs in processes of their own
//!   ├ flushes   does each acknowledged fsync have its flushes? (strace)
//!   └ memory    what many files cost the daemons
//!  passthrough  the yardstick: `mooseng-passthrough DIR MOUNT`
//! ```
//! `docs/bench.md` says how to read the result.

pub mod cluster;
pub mod disk;
pub mod flushes;
pub mod memory;
pub mod metric;
pub mod mounts;
pub mod passthrough;
pub mod process;
pub mod report;
pub mod run;
pub mod scenario;
pub mod target;
pub mod worker;
