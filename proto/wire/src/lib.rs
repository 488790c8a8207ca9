//! Words and wire: the ids, epochs and quantities of MooseNG, its protobuf messages, and the layout of frames.
//!
//! This crate does no I/O and knows no business logic. Everything else depends on it.
//!
//! - [`words`]: newtypes for ids and epochs.
//! - [`fact`]: what sessions may be promised.
//! - [`founding`]: which of the regions of one name a piece of state belongs to.
//! - [`frame`]: the frame codec of the framed, multiplexed streams (sans I/O).
//! - [`join`]: join tokens as text.
//! - [`level`]: the feature level, and what each level brings.
//! - [`revocations`]: the list of certificates that are refused.
//! - [`method`]: the numbers of the calls on those streams, and the lane of each.
//! - [`fs`], [`session`], [`chunk`], [`raft`], [`global`], [`geo`], [`admin`], [`call`]: generated messages.
//! - [`version`]: protocol versions and features, and how two peers agree.

pub mod fact;
pub mod founding;
pub mod frame;
pub mod join;
pub mod level;
pub mod method;
pub mod revocations;
pub mod version;
pub mod words;

// The nesting repeats the protobuf packages, as the generated code names its neighbours through it.
#[allow(missing_docs, reason = "generated: the .proto files are the documentation")]
mod generated {
    pub mod fs {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.fs.v1.rs"));
        }
    }
    pub mod session {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.session.v1.rs"));
        }
    }
    pub mod chunk {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.chunk.v1.rs"));
        }
    }
    pub mod raft {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.raft.v1.rs"));
        }
    }
    pub mod global {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.global.v1.rs"));
        }
    }
    pub mod admin {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.admin.v1.rs"));
        }
    }
    pub mod geo {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.geo.v1.rs"));
        }
    }
    pub mod frame {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/mooseng.frame.v1.rs"));
        }
    }
}
/// Registry and administration (`admin.proto`).
pub use generated::admin::v1 as admin;
/// The chunk data stream (`chunk.proto`).
pub use generated::chunk::v1 as chunk;
/// Hello, call metadata and call errors (`frame.proto`).
pub use generated::frame::v1 as call;
/// Filesystem requests and answers (`fs.proto`).
pub use generated::fs::v1 as fs;
/// Region to region (`geo.proto`).
pub use generated::geo::v1 as geo;
/// Masters to the leader of the global group (`global.proto`).
pub use generated::global::v1 as global;
/// Master to master (`raft.proto`).
pub use generated::raft::v1 as raft;
/// Sessions (`session.proto`).
pub use generated::session::v1 as session;
pub use words::*;
