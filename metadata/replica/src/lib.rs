//! A volume's log: written at its home in the transactions that it tells of, replayed by other regions in its order.
//!
//! ```text
//!  home:     transaction -> VolumeLogs::derive -> log entry (same version) -> Tail, read::entries -> other regions
//!  elsewhere:  read::page -> apply::install ... -> apply::entries -> the same records, the same log, at a place that is kept with them
//!              data not here yet: before-images -> apply::completed, once it is; turn::undo, where the next home begins at an earlier place
//! ```
//! Everything here is a function of a transaction, or memory without a clock.
//!
//! - [`VolumeLogs`]: what the engine derives from a transaction's changes.
//! - [`Tail`]: the newest entries in memory.
//! - [`read`]: entries and ranges, for those who ask a home.
//! - [`apply`]: what a replica does with them.
//! - [`about()`]: what an entry is about, for people.
//! - [`needs`]: what of the data that entries name isn't there yet.
//! - [`unsynced`]: what the sync set doesn't have yet, and others aren't told of.
//! - [`turn`]: how a replica becomes the home, and a home a replica.

mod about;
pub mod apply;
mod before;
mod derive;
mod entry;
pub mod needs;
pub mod read;
mod tail;
pub mod turn;
pub mod unsynced;

pub use about::{About, Content, about};
pub use derive::VolumeLogs;
pub use entry::{Entry, logged_ranges, within};
pub use tail::Tail;

use mooseng_schema::SchemaError;
use mooseng_schema::log::LogPosition;
use mooseng_store::StoreError;

/// Why a log can't be read or replayed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReplicaError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record or entry is damaged, or of a newer release.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The entries don't follow what is here.
    #[error("this region is at {at} of the volume's log, and the entries that came follow {after}")]
    Gap {
        /// Where the replica is.
        at: LogPosition,
        /// What they follow.
        after: LogPosition,
    },
    /// The region doesn't keep the volume's log (any more, or yet).
    #[error("the volume isn't logged in this region")]
    NotLogged,
    /// What comes behind that place isn't kept any more.
    #[error("the log's entries behind {after} aren't kept any more; those up to {trimmed} were trimmed")]
    Trimmed {
        /// What was asked for.
        after: LogPosition,
        /// Up to where it was trimmed.
        trimmed: LogPosition,
    },
    /// A place isn't one of the log here.
    #[error("{0} isn't a place of the volume's log in this region")]
    NotOfTheLog(LogPosition),
    /// The region isn't to have the volume any more.
    #[error("this region was taken out of the volume's regions, and lets go of what it has of it")]
    LetGo,
    /// What would have to be undone is complete, or was copied.
    #[error(
        "this region can't go back to {to} of the volume's log: what it has up to {down_to} can't be undone"
    )]
    NotUndoable {
        /// Where it was to go.
        to: LogPosition,
        /// How far it can.
        down_to: LogPosition,
    },
    /// They come from a home whose epoch is over.
    #[error("this region takes nothing any more of epoch {0}, nor of earlier ones")]
    Refused(u64),
    /// Entries or pairs name keys outside of the volume, or out of order.
    #[error("what came for the volume's replica can't be of its log: {0}")]
    Senseless(&'static str),
}
