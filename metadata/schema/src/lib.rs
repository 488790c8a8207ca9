//! Key layout and values of everything that MooseNG keeps in a metadata store.
//!
//! Keys are FoundationDB tuples. Records of a volume, which are logged and replicated to other regions, have keys
//! `("v", volume, tag, ..., generation)`, with generation 0 until snapshots exist. Records of a region, which aren't,
//! have keys `("r", tag, ...)`. [`tag`] is the one registry of tags; each record has its key, its value and its tests
//! in one file. Values are a format byte and a protobuf message ([`record`]); counters that are changed atomically are
//! eight bytes, little-endian ([`number`]).

pub mod acl;
pub mod any;
pub mod before;
pub mod chunk;
pub mod chunkserver;
pub mod clock;
pub mod dead;
pub mod deleted;
pub mod directory;
pub mod dirent;
pub mod extent;
pub mod founding;
pub mod ids;
pub mod inode;
pub mod key;
pub mod leased;
pub mod let_go;
pub mod location;
pub mod lock;
pub mod log;
pub mod loss;
pub mod number;
pub mod orphan;
pub mod packable;
pub mod quota;
pub mod record;
pub mod revocation;
pub mod secret;
pub mod session;
pub mod staged;
pub mod statistics;
pub mod storage_class;
pub mod tag;
pub mod trash;
pub mod volume;
pub mod xattr;

pub use record::{Record, SchemaError};
