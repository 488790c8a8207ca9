//! Values of the global store. Field numbers are append-only.

use std::collections::BTreeSet;
use std::time::Duration;

use mooseng_schema::log::LogPosition;
use mooseng_schema::{Record, SchemaError};
use mooseng_wire::{Epoch, InodeId};

use crate::view::{Durability, Join, LAG_MAX_DEFAULT, MasterAt, Place, Region, Stage, StorageClass, Volume};

/// What holds for the whole cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterRecord {
    /// How long a region's lease lasts.
    #[prost(uint64, tag = "1")]
    pub lease_ms: u64,
    /// The highest number that was ever given to a region.
    #[prost(uint32, tag = "2")]
    pub region_highest: u32,
    /// The highest number that was ever given to a volume.
    #[prost(uint32, tag = "3")]
    pub volume_highest: u32,
}

impl Record for ClusterRecord {
    const NAME: &'static str = "cluster";
}

/// A region. Its name is its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegionRecord {
    /// See [`Region::number`].
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// See [`Region::witness`].
    #[prost(bool, tag = "2")]
    pub witness: bool,
    /// See [`Region::masters`].
    #[prost(message, repeated, tag = "3")]
    pub masters: Vec<MasterRecord>,
}

/// A master of a region.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MasterRecord {
    /// See [`MasterAt::id`].
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// See [`MasterAt::name`].
    #[prost(string, tag = "2")]
    pub name: String,
    /// See [`MasterAt::address`].
    #[prost(string, tag = "3")]
    pub address: String,
    /// See [`MasterAt::zone`].
    #[prost(string, tag = "4")]
    pub zone: String,
}

impl Record for RegionRecord {
    const NAME: &'static str = "region";
}

impl From<&Region> for RegionRecord {
    fn from(region: &Region) -> Self {
        let master = |m: &MasterAt| MasterRecord {
            id: m.id,
            name: m.name.clone(),
            address: m.address.clone(),
            zone: m.zone.clone(),
        };
        Self {
            number: region.number.into(),
            witness: region.witness,
            masters: region.masters.iter().map(master).collect(),
        }
    }
}

impl RegionRecord {
    /// The region.
    pub fn region(self) -> Result<Region, SchemaError> {
        let master = |m: MasterRecord| MasterAt { id: m.id, name: m.name, address: m.address, zone: m.zone };
        let number = u16::try_from(self.number).ok().filter(|number| *number > 0);
        Ok(Region {
            number: number
                .ok_or_else(|| SchemaError::damaged(Self::NAME, format!("its number is {}", self.number)))?,
            witness: self.witness,
            masters: self.masters.into_iter().map(master).collect(),
        })
    }
}

/// A volume. Its id is its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeRecord {
    /// See [`Volume::home`].
    #[prost(string, tag = "1")]
    pub home: String,
    /// See [`Volume::epoch`].
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The epoch takes no changes any more: the opposite of [`Volume::open`].
    #[prost(bool, tag = "3")]
    pub closed: bool,
    /// [`Durability::Geo`].
    #[prost(bool, tag = "4")]
    pub geo: bool,
    /// See [`Volume::regions`].
    #[prost(string, repeated, tag = "5")]
    pub regions: Vec<String>,
    /// See [`Volume::sync_set`].
    #[prost(string, repeated, tag = "6")]
    pub sync_set: Vec<String>,
    /// See [`Volume::automatic`].
    #[prost(bool, tag = "7")]
    pub automatic: bool,
    /// See [`Volume::abandoned`].
    #[prost(bool, tag = "8")]
    pub abandoned: bool,
    /// The epoch of [`Volume::cut`], which are from 1; 0 for none.
    #[prost(uint64, tag = "9")]
    pub cut_epoch: u64,
    /// Its version.
    #[prost(uint64, tag = "10")]
    pub cut_version: u64,
    /// See [`Volume::blocks_alone`].
    #[prost(bool, tag = "11")]
    pub blocks_alone: bool,
    /// See [`Volume::lost_home`].
    #[prost(string, optional, tag = "12")]
    pub lost_home: Option<String>,
    /// See [`Volume::join`].
    #[prost(message, optional, tag = "13")]
    pub join: Option<JoinRecord>,
    /// See [`Volume::forced_home`].
    #[prost(string, optional, tag = "14")]
    pub forced_home: Option<String>,
    /// See [`Volume::lag_max`], in milliseconds; 0 for no bound, absent for [`LAG_MAX_DEFAULT`].
    #[prost(uint64, optional, tag = "15")]
    pub lag_max_ms: Option<u64>,
}

/// Where a volume is joined.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinRecord {
    /// See [`Place::directory`].
    #[prost(uint64, tag = "1")]
    pub directory: u64,
    /// See [`Place::path`].
    #[prost(string, tag = "2")]
    pub path: String,
    /// [`Stage::Joined`].
    #[prost(bool, tag = "3")]
    pub joined: bool,
    /// [`Stage::Leaving`], whatever `joined` says.
    #[prost(bool, tag = "4")]
    pub leaving: bool,
}

impl From<&Join> for JoinRecord {
    fn from(join: &Join) -> Self {
        Self {
            directory: join.place.directory.0,
            path: join.place.path.clone(),
            joined: join.stage == Stage::Joined,
            leaving: join.stage == Stage::Leaving,
        }
    }
}

impl From<JoinRecord> for Join {
    fn from(record: JoinRecord) -> Self {
        let stage = match (record.leaving, record.joined) {
            (true, _) => Stage::Leaving,
            (false, true) => Stage::Joined,
            (false, false) => Stage::Made,
        };
        Self { place: Place { directory: InodeId(record.directory), path: record.path }, stage }
    }
}

impl Record for VolumeRecord {
    const NAME: &'static str = "volume of the cluster";
}

impl From<&Volume> for VolumeRecord {
    fn from(volume: &Volume) -> Self {
        Self {
            home: volume.home.clone(),
            epoch: volume.epoch.0,
            closed: !volume.open,
            geo: volume.durability == Durability::Geo,
            regions: volume.regions.iter().cloned().collect(),
            sync_set: volume.sync_set.iter().cloned().collect(),
            automatic: volume.automatic,
            abandoned: volume.abandoned,
            cut_epoch: volume.cut.map_or(0, |cut| cut.epoch.0),
            cut_version: volume.cut.map_or(0, |cut| cut.version),
            blocks_alone: volume.blocks_alone,
            lost_home: volume.lost_home.clone(),
            join: volume.join.as_ref().map(JoinRecord::from),
            forced_home: volume.forced_home.clone(),
            lag_max_ms: (volume.lag_max != Some(LAG_MAX_DEFAULT)).then(|| {
                volume.lag_max.map_or(0, |most| u64::try_from(most.as_millis()).unwrap_or(u64::MAX))
            }),
        }
    }
}

impl From<VolumeRecord> for Volume {
    fn from(record: VolumeRecord) -> Self {
        let cut = LogPosition::new(Epoch(record.cut_epoch), record.cut_version);
        Self {
            home: record.home,
            epoch: Epoch(record.epoch),
            open: !record.closed,
            abandoned: record.abandoned,
            cut: (record.cut_epoch > 0).then_some(cut),
            durability: if record.geo { Durability::Geo } else { Durability::Region },
            regions: BTreeSet::from_iter(record.regions),
            sync_set: BTreeSet::from_iter(record.sync_set),
            automatic: record.automatic,
            blocks_alone: record.blocks_alone,
            lost_home: record.lost_home,
            join: record.join.map(Join::from),
            forced_home: record.forced_home,
            lag_max: match record.lag_max_ms {
                None => Some(LAG_MAX_DEFAULT),
                Some(0) => None,
                Some(ms) => Some(Duration::from_millis(ms)),
            },
        }
    }
}

/// A region's lease.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseRecord {
    /// Renewals so far.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// The greatest custody epoch of a leader that renewed it, of those with that founding mark.
    #[prost(uint64, tag = "2")]
    pub custody: u64,
    /// The region was taken in and hasn't come yet: its first renewal shows a secret of this hash ([`mooseng_wire::join`]). Empty: none.
    #[prost(bytes = "vec", tag = "3")]
    pub join: Vec<u8>,
    /// The founding mark of the region's masters ([`mooseng_wire::founding`]). Empty: they have told none yet.
    #[prost(bytes = "vec", tag = "4")]
    pub founding: Vec<u8>,
}

impl Record for LeaseRecord {
    const NAME: &'static str = "region's lease";
}

/// A storage class of the cluster. Its id is its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StorageClassRecord {
    /// See [`StorageClass::class`]; never none.
    #[prost(message, optional, tag = "1")]
    pub class: Option<mooseng_schema::storage_class::StorageClassRecord>,
    /// See [`StorageClass::version`].
    #[prost(uint64, tag = "2")]
    pub version: u64,
}

impl Record for StorageClassRecord {
    const NAME: &'static str = "storage class of the cluster";
}

impl From<&StorageClass> for StorageClassRecord {
    fn from(class: &StorageClass) -> Self {
        Self { class: Some(class.class.clone()), version: class.version }
    }
}

impl StorageClassRecord {
    /// The class.
    pub fn storage_class(self) -> Result<StorageClass, SchemaError> {
        let missing =
            || SchemaError::damaged(Self::NAME, "it doesn't say what the class asks for".to_owned());
        Ok(StorageClass { class: self.class.ok_or_else(missing)?, version: self.version })
    }
}

/// What holds for all storage classes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StorageClassesRecord {
    /// The highest id that was ever given to one; 0 for none.
    #[prost(uint32, tag = "1")]
    pub highest: u32,
    /// The version that the last change of any of them made.
    #[prost(uint64, tag = "2")]
    pub version: u64,
}

impl Record for StorageClassesRecord {
    const NAME: &'static str = "storage classes of the cluster";
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A record survives its encoding, and the bytes are those that were once written.
    pub fn golden<R: Record + PartialEq + std::fmt::Debug>(record: &R, expected: &str) {
        let value = record.to_value();
        assert_eq!(hex(&value), expected, "{} changed its encoding", R::NAME);
        assert_eq!(&R::from_value(&value.into()).unwrap(), record);
    }

    pub fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::testing::golden;
    use super::*;

    #[test]
    fn bytes_stay_as_they_were() {
        golden(&ClusterRecord { lease_ms: 10_000, region_highest: 3, volume_highest: 0 }, "0108904e1003");
        golden(&ClusterRecord { lease_ms: 10_000, region_highest: 3, volume_highest: 7 }, "0108904e10031807");
        let master = MasterAt { id: 1, name: "m".into(), address: "a:1".into(), zone: "z".into() };
        let region = Region { number: 3, witness: true, masters: vec![master] };
        golden(
            &RegionRecord::from(&region),
            "010803100 11a0d080112016d1a03613a3122017a".replace(' ', "").as_str(),
        );
        assert_eq!(RegionRecord::from(&region).region().unwrap(), region);
        let volume = Volume {
            home: "a".into(),
            epoch: Epoch(2),
            open: false,
            abandoned: true,
            cut: Some(LogPosition::new(Epoch(1), 300)),
            durability: Durability::Geo,
            regions: ["a".to_owned(), "b".to_owned()].into(),
            sync_set: ["a".to_owned()].into(),
            automatic: true,
            blocks_alone: true,
            lag_max: Some(LAG_MAX_DEFAULT),
            lost_home: Some("c".into()),
            forced_home: None,
            join: None,
        };
        golden(
            &VolumeRecord::from(&volume),
            "010a0161100218012001 2a01612a0162 320161 3801 4001 4801 50ac02 5801 620163"
                .replace(' ', "")
                .as_str(),
        );
        let place = Place { directory: InodeId(300), path: "/a".into() };
        let joined =
            Volume { join: Some(Join { place: place.clone(), stage: Stage::Joined }), ..volume.clone() };
        golden(
            &VolumeRecord::from(&joined),
            "010a0161100218012001 2a01612a0162 320161 3801 4001 4801 50ac02 5801 620163 6a09 08ac02 12022f61 1801"
                .replace(' ', "")
                .as_str(),
        );
        golden(
            &VolumeRecord::from(&Volume { forced_home: Some("b".into()), ..volume }),
            "010a0161100218012001 2a01612a0162 320161 3801 4001 4801 50ac02 5801 620163 720162"
                .replace(' ', "")
                .as_str(),
        );
        let leaving = Join { place, stage: Stage::Leaving };
        assert_eq!(JoinRecord::from(&leaving).encode_to_vec(), [8, 0xac, 2, 0x12, 2, 0x2f, 0x61, 0x20, 1]);
        golden(&LeaseRecord { sequence: 300, ..LeaseRecord::default() }, "0108ac02");
        golden(&LeaseRecord { sequence: 300, custody: 5, ..LeaseRecord::default() }, "0108ac021005");
        golden(&LeaseRecord { join: vec![7, 8], ..LeaseRecord::default() }, "011a020708");
        golden(&LeaseRecord { founding: vec![7, 8], ..LeaseRecord::default() }, "0122020708");
        let class = mooseng_schema::storage_class::StorageClassRecord {
            name: "fast".into(),
            copies: 3,
            min_copies: 2,
            labels: vec![],
            set_ns: 1,
            leaving: true,
        };
        let class = StorageClass { class, version: 300 };
        golden(
            &StorageClassRecord::from(&class),
            "010a15 0a0466617374 1003 1802 290100000000000000 3001 10ac02".replace(' ', "").as_str(),
        );
        assert_eq!(StorageClassRecord::from(&class).storage_class().unwrap(), class);
        assert!(StorageClassRecord { version: 1, class: None }.storage_class().is_err());
        golden(
            &StorageClassesRecord { highest: 65_536, version: 300 },
            "0108808004 10ac02".replace(' ', "").as_str(),
        );
    }

    #[test]
    fn a_region_without_a_number_is_damaged() {
        for number in [0, 65_536] {
            assert!(RegionRecord { number, ..Default::default() }.region().is_err());
        }
    }

    proptest! {
        #[test]
        fn volumes_come_back(
            home in "[a-z]{1,8}", epoch: u64, open: bool, geo: bool, automatic: bool, abandoned: bool,
            cut in proptest::option::of((1_u64.., any::<u64>())),
            regions in proptest::collection::btree_set("[a-z]{1,8}", 0..4), blocks_alone: bool,
            lag_max in proptest::option::of((1_u64..10_000_000).prop_map(Duration::from_millis)),
            (lost_home, forced_home) in (proptest::option::of("[a-z]{1,8}"), proptest::option::of("[a-z]{1,8}")),
            join in proptest::option::of((any::<u64>(), "/[a-z]{0,8}", proptest::sample::select(&[Stage::Made, Stage::Joined, Stage::Leaving]))),
        ) {
            let durability = if geo { Durability::Geo } else { Durability::Region };
            let sync_set = regions.clone();
            let cut = cut.map(|(epoch, version)| LogPosition::new(Epoch(epoch), version));
            let join = join.map(|(directory, path, stage)| Join { place: Place { directory: InodeId(directory), path }, stage });
            let volume = Volume { home, epoch: Epoch(epoch), open, abandoned, cut, durability, regions, sync_set, automatic, blocks_alone, lag_max, lost_home, forced_home, join };
            prop_assert_eq!(Volume::from(VolumeRecord::from(&volume)), volume);
        }
    }
}
