//! Quotas: limits, what counts for whom, and the directories whose contents are still to be counted.
//!
//! What counts for an account is added up atomically in shards, as a volume's statistics are ([`crate::statistics`]).

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{InodeId, VolumeId};

use crate::inode::InodeRecord;
use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::number;
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// How many keys a sum is spread over.
pub const SHARDS: u64 = 16;

const DIRECTORY: u16 = 1;
const USER: u16 = 2;
const CLASS: u16 = 3;
const BYTES: u16 = 0;
const INODES: u16 = 1;

/// For whom an inode counts, within its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// The quota of a directory, which is the directory's inode.
    Directory(u64),
    /// An owner.
    User(u32),
    /// A storage class, other than the default: never limited, counted to know whether it is in use.
    Class(u32),
}

impl Account {
    fn pair(self) -> (u16, u64) {
        match self {
            Self::Directory(id) => (DIRECTORY, id),
            Self::User(uid) => (USER, uid.into()),
            Self::Class(class) => (CLASS, class.into()),
        }
    }

    pub(crate) fn of_pair(kind: u16, id: u64) -> Option<Self> {
        match kind {
            DIRECTORY => Some(Self::Directory(id)),
            USER => u32::try_from(id).ok().map(Self::User),
            CLASS => u32::try_from(id).ok().map(Self::Class),
            // A later release counts for others, too.
            _ => None,
        }
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(id) => write!(f, "directory inode {id}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Class(class) => write!(f, "storage class {class}"),
        }
    }
}

/// Whether a directory's contents are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// They are being counted; the limit isn't enforced yet.
    Counting = 0,
    /// They are, and the limit is enforced.
    Enforced = 1,
    /// The quota is given up, and its mark is taken from them.
    Clearing = 2,
}

/// An account's limits.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct QuotaRecord {
    /// Bytes.
    #[prost(uint64, optional, tag = "1")]
    pub bytes_max: Option<u64>,
    /// Inodes.
    #[prost(uint64, optional, tag = "2")]
    pub inodes_max: Option<u64>,
    /// Whether they are enforced.
    #[prost(enumeration = "State", tag = "3")]
    pub state: i32,
    /// When they were set.
    #[prost(sfixed64, tag = "4")]
    pub set_ns: i64,
}

impl Record for QuotaRecord {
    const NAME: &'static str = "quota";
}

/// A directory in the queue of those whose entries are to be marked.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct WorkRecord {
    /// The cookie behind which the entries lie that are still to be marked.
    #[prost(uint64, tag = "1")]
    pub after: u64,
}

impl Record for WorkRecord {
    const NAME: &'static str = "quota work";
}

/// What counts for an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that extents cover.
    pub bytes: i64,
    /// Inodes.
    pub inodes: i64,
}

impl Usage {
    /// Both added.
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.wrapping_add(other.bytes), inodes: self.inodes.wrapping_add(other.inodes) }
    }

    /// The other one taken away.
    pub fn minus(self, other: Self) -> Self {
        Self { bytes: self.bytes.wrapping_sub(other.bytes), inodes: self.inodes.wrapping_sub(other.inodes) }
    }

    /// Whether there is nothing.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// What an inode counts, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The directory quota, 0 for none.
    pub quota: u64,
    /// The owner.
    pub uid: u32,
    /// The storage class, 0 for the default.
    pub class: u32,
    /// What counts for those two.
    pub usage: Usage,
    /// What there is, which counts for the class: also while it is let off elsewhere.
    pub whole: Usage,
}

impl Charge {
    /// That of an inode, whose extents cover so many bytes.
    pub fn with_bytes(record: &InodeRecord, allocated: u64) -> Self {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let bytes = allocated.saturating_sub(record.let_off.unwrap_or(0));
        let usage = Usage { bytes: signed(bytes), inodes: i64::from(record.let_off.is_none()) };
        let whole = Usage { bytes: signed(allocated), inodes: 1 };
        Self { quota: record.quota, uid: record.uid, class: record.storage_class, usage, whole }
    }

    /// That of an inode.
    pub fn of(record: &InodeRecord) -> Self {
        Self::with_bytes(record, record.allocated)
    }

    /// For whom it counts, and how much.
    pub fn shares(&self) -> impl Iterator<Item = (Account, Usage)> {
        let directory = (self.quota != 0).then_some((Account::Directory(self.quota), self.usage));
        let class = (self.class != 0).then_some((Account::Class(self.class), self.whole));
        directory.into_iter().chain([(Account::User(self.uid), self.usage)]).chain(class)
    }
}

/// An account's limits' key.
pub fn key(volume: VolumeId, account: Account) -> Vec<u8> {
    volume_key(volume, VolumeTag::Quota, &account.pair())
}

/// All limits of a volume.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Quota, &())
}

/// The account in a key of [`range`]; none of a kind that this release doesn't know.
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<Option<Account>, SchemaError> {
    let (kind, id, _): (u16, u64, u64) = parse_volume_key(volume, VolumeTag::Quota, key)?;
    Ok(Account::of_pair(kind, id))
}

/// The keys of the shards in which an inode counts for an account: of bytes, of inodes.
pub fn usage_keys(account: Account, inode: InodeId) -> [Vec<u8>; 2] {
    let (kind, id) = account.pair();
    [BYTES, INODES]
        .map(|what| volume_key(inode.volume(), VolumeTag::QuotaUsage, &(kind, id, what, inode.0 % SHARDS)))
}

/// All shards of an account's sums.
pub fn usage_range(volume: VolumeId, account: Account) -> KeyRange {
    volume_range(volume, VolumeTag::QuotaUsage, &account.pair())
}

/// Adds up the pairs of [`usage_range`].
pub fn read_usage(volume: VolumeId, pairs: &[(Bytes, Bytes)]) -> Result<Usage, SchemaError> {
    let mut sum = Usage::default();
    for (key, value) in pairs {
        let (_, _, what, _, _): (u16, u64, u16, u64, u64) =
            parse_volume_key(volume, VolumeTag::QuotaUsage, key)?;
        sum = sum.plus(shard(what, number::decode(Some(value))?));
    }
    Ok(sum)
}

fn shard(what: u16, value: u64) -> Usage {
    match what {
        BYTES => Usage { bytes: value as i64, inodes: 0 },
        INODES => Usage { bytes: 0, inodes: value as i64 },
        // A later release counts more.
        _ => Usage::default(),
    }
}

/// What a pair of a volume's usage says: for whom, and how much.
pub(crate) fn usage_of(
    (kind, id, what): (u16, u64, u16),
    value: &Bytes,
) -> Result<Option<(Account, Usage)>, SchemaError> {
    let value = number::decode(Some(value))?;
    Ok(Account::of_pair(kind, id).map(|account| (account, shard(what, value))))
}

/// The key of a directory in the queue of a quota.
pub fn work_key(quota: InodeId, directory: InodeId) -> Vec<u8> {
    volume_key(quota.volume(), VolumeTag::QuotaWork, &(quota.0, directory.0))
}

/// A quota's queue.
pub fn work_range(quota: InodeId) -> KeyRange {
    volume_range(quota.volume(), VolumeTag::QuotaWork, &(quota.0,))
}

/// The directory in a key of [`work_range`].
pub fn parse_work_key(quota: InodeId, key: &[u8]) -> Result<InodeId, SchemaError> {
    let (_, directory, _): (u64, u64, u64) = parse_volume_key(quota.volume(), VolumeTag::QuotaWork, key)?;
    Ok(InodeId(directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let quota = QuotaRecord { bytes_max: Some(5), inodes_max: None, state: 1, set_ns: 2 };
        golden(&quota, "0108051801210200000000000000");
        golden(&WorkRecord { after: 7 }, "010807");
        assert_eq!(hex(&key(VolumeId(0), Account::User(7))), "02760014151115021507 14".replace(' ', ""));
        assert_eq!(hex(&work_key(InodeId(2), InodeId(3))), "02760014151315021503 14".replace(' ', ""));
        let [bytes, inodes] = usage_keys(Account::Directory(2), InodeId(18));
        assert_eq!(hex(&bytes), "0276001415121501150214150214");
        assert_eq!(hex(&inodes), "02760014151215011502150115 0214".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(bytes_max: Option<u64>, inodes_max: Option<u64>, set_ns: i64, id: u64, uid: u32) {
            round_trip(&QuotaRecord { bytes_max, inodes_max, state: 2, set_ns });
            let volume = InodeId(id).volume();
            for account in [Account::Directory(id), Account::User(uid), Account::Class(uid)] {
                prop_assert_eq!(parse_key(volume, &key(volume, account)).unwrap(), Some(account));
                let usage = Usage { bytes: 5, inodes: -1 };
                let values = [usage.bytes, usage.inodes].map(number::encode_signed);
                let pairs = usage_keys(account, InodeId(id)).into_iter().zip(values);
                let pairs: Vec<_> = pairs.map(|(k, v)| (k.into(), Bytes::copy_from_slice(&v))).collect();
                prop_assert_eq!(read_usage(volume, &pairs).unwrap(), usage);
            }
            let directory = InodeId(id);
            prop_assert_eq!(parse_work_key(directory, &work_key(directory, directory)).unwrap(), directory);
        }

        #[test]
        fn what_is_let_off_counts_for_nobody(allocated: u64, let_off: Option<u64>) {
            let record = InodeRecord { allocated, let_off, ..InodeRecord::default() };
            let Usage { bytes, inodes } = Charge::of(&record).usage;
            prop_assert!(bytes >= 0 && bytes as u64 <= allocated);
            prop_assert_eq!(inodes, i64::from(let_off.is_none()));
            let record = InodeRecord { storage_class: 5, ..record };
            let of_class = Charge::of(&record).shares().find(|(account, _)| *account == Account::Class(5));
            prop_assert_eq!(of_class.map(|(_, usage)| usage.inodes), Some(1));
        }
    }
}
