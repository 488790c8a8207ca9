//! Everything for which a change is refused, in words for whoever asked for it.

use std::time::Duration;

use mooseng_schema::SchemaError;
use mooseng_store::StoreError;
use mooseng_wire::{Epoch, VolumeId};

use super::{ClassError, LevelError, revocations};
use crate::voters::CouldntLose;

/// Why something isn't changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The store's own.
    #[error("the global store: {0}")]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error("the global store: {0}")]
    Schema(#[from] SchemaError),
    /// There is nothing yet.
    #[error("the cluster isn't founded yet: the leader of the global group is about to; try again")]
    NotFounded,
    /// No such region.
    #[error("there is no region {0:?}; `mooseng regions list` names those that there are")]
    NoRegion(String),
    /// No such volume.
    #[error("there is no volume {0}; `mooseng volume list` names those that there are")]
    NoVolume(VolumeId),
    /// A bound that nobody could keep, or that is none.
    #[error("a volume's lag_max can't be {0:?}: it is from a second to a day, or 0 for none")]
    LagMax(Duration),
    /// The epoch isn't the present one.
    #[error(
        "volume {volume} is in epoch {present}, not in epoch {asked}: somebody else has decided meanwhile"
    )]
    OtherEpoch {
        /// The volume.
        volume: VolumeId,
        /// What was asked about.
        asked: Epoch,
        /// What there is.
        present: Epoch,
    },
    /// The epoch was closed.
    #[error("epoch {epoch} of volume {volume} is closed: another home is being found")]
    Closed {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The epoch isn't closed.
    #[error("epoch {epoch} of volume {volume} is open: it must be closed before the next one is opened")]
    Open {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Only the home may.
    #[error("the home of volume {volume} is {home}, not {asked}")]
    NotHome {
        /// The volume.
        volume: VolumeId,
        /// Its home.
        home: String,
        /// Who asked.
        asked: String,
    },
    /// The home must have put down that it needs a lease.
    #[error(
        "volume {volume} is made to fail over by itself by its home alone, the region {home}: as long as that doesn't know of it, it goes on without a lease, and another region would be the home beside it. The masters of {home} do it where they are asked; where they can't be reached, give the home up for another region first (`mooseng volume move-home {volume} --to REGION --force`)"
    )]
    OnlyHome {
        /// The volume.
        volume: VolumeId,
        /// Its home.
        home: String,
    },
    /// The home needs no lease by now, whatever that was judged to be.
    #[error("volume {0} fails over by command only")]
    ByCommand(VolumeId),
    /// The lease was renewed since it was judged.
    #[error("the region {0} has renewed its lease meanwhile")]
    Renewed(String),
    /// What the region had is gone, and something rests on it.
    #[error(
        "the region {region} was made anew: its masters carry another founding mark than those that held its lease before, so that what they had of volume {volume}, whose home it is, isn't there. It gets no lease as long as it is: another region takes over by itself, or by `mooseng volume move-home {volume} --to REGION --force` where that is left to a person. If the old masters' disks can be had back, start those instead"
    )]
    MadeAnew {
        /// Which.
        region: String,
        /// Of what it is the home.
        volume: VolumeId,
    },
    /// What the change was made of may have changed.
    #[error("the global store is at version {present}, and the change was made of version {asked}")]
    Overtaken {
        /// It was made of this one.
        asked: u64,
        /// And the store is at that one.
        present: u64,
    },
    /// A leader that leads no more wanted to change who is waited for.
    #[error("the leader of {region} that asks has the custody epoch {asked}, and a later one {present}")]
    Deposed {
        /// The volume's home.
        region: String,
        /// The custody epoch of who asked.
        asked: u64,
        /// Of who renewed the region's lease.
        present: u64,
    },
    /// The region isn't one that may hold the volume.
    #[error("the region {region} can't {what}: {why}")]
    Unfit {
        /// Which.
        region: String,
        /// What it was to do.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// `geo` without anywhere to go.
    #[error(
        "volume {0} can't be `geo`: that takes two regions that have it, and a third region, if only a witness, that has a voice when one of them is lost. Add regions to the volume (`mooseng volume set {0} --regions A,B`) or to the cluster (`mooseng regions add NAME --witness --master ...`) first"
    )]
    NoFailover(VolumeId),
    /// The regions wouldn't do.
    #[error(transparent)]
    CouldntLose(#[from] CouldntLose),
    /// The region isn't as a region must be.
    #[error("the region {region:?} can't be added: {why}")]
    Region {
        /// Which.
        region: String,
        /// Why not.
        why: String,
    },
    /// It has come.
    #[error("the region {0} has joined already: a join token is of no use any more")]
    TokenSpent(String),
    /// It was taken in with another token.
    #[error(
        "the region {0} has to join first: give its masters the token that `mooseng regions add` printed last for it, as the setting global.join"
    )]
    NoToken(String),
    /// Something needs the region.
    #[error("the region {region} can't be removed: volume {volume} has it. {mend}")]
    InUse {
        /// Which.
        region: String,
        /// By what.
        volume: VolumeId,
        /// What is to be done first, a sentence.
        mend: String,
    },
    /// Nothing is above it.
    #[error("the root volume can't be deleted: all others are below it")]
    Root,
    /// No volume can be joined there.
    #[error("no volume can be made at {path:?}: {why}")]
    Place {
        /// Where.
        path: String,
        /// Why not.
        why: String,
    },
    /// `geo` without anywhere to go, of a volume that there isn't yet.
    #[error("the volume at {path:?} can't be `geo`: {mend}")]
    NowhereToGo {
        /// Where it is to be.
        path: String,
        /// What it lacks, and how it gets it.
        mend: String,
    },
    /// Another volume is joined in it.
    #[error(
        "volume {volume} can't be deleted: volume {below} is joined in it, at {path:?}. Delete that one first (`mooseng volume delete {path}`)"
    )]
    Below {
        /// What was to be deleted.
        volume: VolumeId,
        /// What is in it.
        below: VolumeId,
        /// Where that is.
        path: String,
    },
    /// It is being deleted.
    #[error("volume {0} is being deleted: `mooseng volume delete` goes on with it")]
    Leaving(VolumeId),
    /// Its directory still names it.
    #[error("volume {0} is still joined at its directory, which is let go of first")]
    StillJoined(VolumeId),
    /// There are too many.
    #[error("{0}")]
    Volumes(String),
    /// What is revoked isn't changed.
    #[error(transparent)]
    Revocation(#[from] revocations::Refused),
    /// There are none left, or too many were asked for.
    #[error("{0}")]
    Ids(String),
    /// About storage classes.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// About the feature level.
    #[error(transparent)]
    Level(#[from] LevelError),
}
