//! Decisions of a region-master, without tokio, sockets, clocks or randomness: state machines that are told the time and pure functions.
//!
//! - [`sessions`]: leases, incarnations and opens of mounted clients; which open-unlinked inodes may be freed.
//! - [`registry`]: the chunkservers that report here: alive, suspect or lost; disks, failure domains, inventories.
//! - [`promises`]: what sessions may cache, and what has to be recalled before a fact changes.
//! - [`near`]: what a replica's leader has promised to readers, and what it takes back as the log comes in.
//! - [`locks`]: who waits for locks, and who would wait for itself.
//! - [`members`]: which changes of a region's masters make sense.
//! - [`class`]: storage classes, and which chunkservers fit them.
//! - [`placement`]: which chunkservers take the copies of a fresh chunk.
//! - [`repair`]: which copies of a chunk are made and which are dropped: repair, draining, rebalancing.
//! - [`rewrite`]: which chunks of which little is still used, or that are small, are made into a new one.
//! - [`destage`], [`pack`]: which files' inline data is moved into chunks; [`leave`], [`join`]: which files' extents go elsewhere.
//! - [`seal`]: at which length a broken chunk is sealed, and which copies it keeps.
//! - [`shipping`]: what of a volume's log another region is sent next; [`kept`]: how much of it is kept. [`fetching`]: which chunks are fetched from there first.
//! - [`sync_set`]: who is in a `geo` volume's sync set; [`lag`]: whether writers of a `region` volume wait for other regions.
//! - [`wall`]: what a wall clock that is set forward may not do.
//! - [`letting_go`]: when what a region has of a volume goes that it was taken out of, and which copies the volume's home can do without.
//! - [`codes`]: the registry of health codes; [`findings`]: facts to findings by those codes.
//!
//! ```text
//!  heartbeat -> registry -> candidates -> placement -> chunkservers of a chunk
//!                  \-----------------\
//!  renewal -> sessions ----------> facts -> findings -> status, metrics, readiness
//! ```

pub mod age;
pub mod class;
pub mod codes;
pub mod debts;
pub mod destage;
pub mod events;
pub mod fetching;
pub mod findings;
pub mod join;
pub mod kept;
pub mod lag;
pub mod leave;
pub mod letting_go;
pub mod locks;
pub mod members;
pub mod moving;
pub mod near;
pub mod pack;
pub mod placement;
pub mod promises;
pub mod quotas;
pub mod registry;
pub mod repair;
pub mod rewrite;
pub mod seal;
pub mod sessions;
pub mod shipping;
pub mod sync_set;
mod together;
pub mod wall;

pub use codes::{HealthCode, Severity};
pub use registry::{Liveness, Registry};
pub use sessions::SessionTable;
