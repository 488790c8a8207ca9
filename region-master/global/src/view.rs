//! A master's copy of what the global group agreed on, at one version of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::log::LogPosition;
use mooseng_schema::storage_class::StorageClassRecord;
use mooseng_wire::level::FeatureLevel;
use mooseng_wire::{Epoch, InodeId, VolumeId};

/// [`Volume::lag_max`] of a volume of which nothing else was said.
pub const LAG_MAX_DEFAULT: Duration = Duration::from_secs(60);
/// What can be asked for: a region that follows well is a good part of a second behind.
pub const LAG_MAX_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// All that is agreed on, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The version of the global store; grows with each change.
    pub version: u64,
    /// Regions by name.
    pub regions: BTreeMap<String, Region>,
    /// Volumes by id.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// The highest number that was ever given to a volume: one up to it that isn't there is deleted.
    pub volume_highest: u32,
    /// Storage classes of the cluster, by id.
    pub classes: BTreeMap<u32, StorageClass>,
    /// The version that the last change of them made; 0 where there was none.
    pub classes_version: u64,
    /// What the masters of all regions can read.
    pub level: FeatureLevel,
}

/// A storage class of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageClass {
    /// What it asks for, as volumes have copies of it.
    pub class: StorageClassRecord,
    /// The version that its last change made.
    pub version: u64,
}

/// A region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Its number, from 1; never given twice. Ids that it gives carry it.
    pub number: u16,
    /// It has a voice in the global group and holds no data.
    pub witness: bool,
    /// Its masters.
    pub masters: Vec<MasterAt>,
}

/// Where a master is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasterAt {
    /// Its id in its region's group.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where others reach it.
    pub address: String,
    /// Its zone.
    pub zone: String,
}

/// Where what was fsynced is when fsync returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// In the home region.
    #[default]
    Region,
    /// In each region of the sync set.
    Geo,
}

impl Durability {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Geo => "geo",
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The one region that may change it.
    pub home: String,
    /// Under this epoch.
    pub epoch: Epoch,
    /// The epoch takes changes: it isn't closed for a failover or a move.
    pub open: bool,
    /// It was closed because the lease of its home had run out, or because an administrator gave the home up. Only while it isn't open.
    pub abandoned: bool,
    /// Where the epoch began: behind this place of the log of before, from which nothing beyond it counts. None where nothing was cut off.
    pub cut: Option<LogPosition>,
    /// The home of the epoch before, where it was lost and another one took over.
    pub lost_home: Option<String>,
    /// An administrator gave the home up for this region, whatever it lacked: while the epoch is closed, the next one opens there and nowhere else. It stays with
    /// the epoch that has opened so, for the home before may have been well: its lease, and its sessions' leases, needn't have run out.
    pub forced_home: Option<String>,
    /// When fsync returns.
    pub durability: Durability,
    /// The regions that have it or are to have it; the home is one of them.
    pub regions: BTreeSet<String>,
    /// The regions that must hold what was fsynced, the home among them, where the durability is `geo`.
    pub sync_set: BTreeSet<String>,
    /// Another region may take over by itself once the home's lease has run out.
    pub automatic: bool,
    /// While no other region is there, fsync of a `geo` volume waits rather than that it is answered by the home alone, and so do writers of a `region` volume
    /// once what they wrote is older than `lag_max`.
    pub blocks_alone: bool,
    /// Of a `region` volume: while what no other region has is older than this, writers wait. None: they never do.
    pub lag_max: Option<Duration>,
    /// Where it is joined; none of the root, which is nowhere below anything.
    pub join: Option<Join>,
}

/// Where a volume is joined, and how far that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Where.
    pub place: Place,
    /// How far.
    pub stage: Stage,
}

/// A directory of a volume at which another one is joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory. Its volume is the parent of the joined one.
    pub directory: InodeId,
    /// Its path when the volume was made; a rename above it doesn't change that.
    pub path: String,
}

impl Place {
    /// The volume in which the joined one is.
    pub fn parent(&self) -> VolumeId {
        self.directory.volume()
    }
}

/// Volumes are made and removed in steps: see docs/decisions/0032-volumes.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// It is made, and nobody sees it yet: its directory in the parent doesn't name it.
    #[default]
    Made,
    /// The directory names it.
    Joined,
    /// It is being removed: nothing is joined in it any more, and its directory is let go of first.
    Leaving,
}

impl Volume {
    /// The regions that may follow the home: of a `geo` volume, those that have everything that was acknowledged.
    pub fn heirs(&self) -> impl Iterator<Item = &str> {
        let fit = match self.durability {
            Durability::Geo if !plant::is(Plant::SyncSetUnchecked) => &self.sync_set,
            Durability::Geo | Durability::Region => &self.regions,
        };
        fit.iter().map(String::as_str).filter(|region| *region != self.home)
    }
}

impl View {
    /// The region that is the home of a volume.
    pub fn home_of(&self, volume: VolumeId) -> Option<&Region> {
        self.regions.get(&self.volumes.get(&volume)?.home)
    }

    /// The storage class of the cluster of that name, with its id.
    pub fn class_of(&self, name: &str) -> Option<(u32, &StorageClass)> {
        self.classes.iter().find(|(_, of)| of.class.name == name).map(|(id, of)| (*id, of))
    }

    /// The regions that a volume's home sends its log to.
    pub fn replicas_of(&self, volume: VolumeId) -> impl Iterator<Item = &str> {
        let volume = self.volumes.get(&volume);
        volume.into_iter().flat_map(|v| v.regions.iter().filter(|r| **r != v.home)).map(String::as_str)
    }
}
