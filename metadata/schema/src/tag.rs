//! The registry of key tags. A number is never given to another kind of record.

/// What kind of record of a volume a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VolumeTag {
    /// The volume itself ([`crate::volume`]).
    Volume = 1,
    /// An inode ([`crate::inode`]).
    Inode = 2,
    /// A further hard link of an inode ([`crate::inode`]).
    Link = 3,
    /// A directory entry ([`crate::dirent`]).
    Dirent = 4,
    /// A directory's counter ([`crate::directory`]).
    Directory = 5,
    /// A piece of a file ([`crate::extent`]).
    Extent = 6,
    /// An extended attribute ([`crate::xattr`]).
    Xattr = 7,
    /// A chunk ([`crate::chunk`]).
    Chunk = 8,
    /// An inode's use of a chunk ([`crate::chunk`]).
    ChunkRef = 9,
    /// An inode without a name ([`crate::orphan`]).
    Orphan = 10,
    /// A file with dead extents behind its end ([`crate::orphan`]).
    Trim = 11,
    /// A session ([`crate::session`]).
    Session = 12,
    /// A session's first number that may still be asked for ([`crate::session`]).
    SessionFloor = 13,
    /// The outcome of a session's change ([`crate::session`]).
    Outcome = 14,
    /// A shard of a statistic ([`crate::statistics`]).
    Statistic = 15,
    /// A deleted file that is kept for a while ([`crate::trash`]).
    Trash = 16,
    /// A limit ([`crate::quota`]).
    Quota = 17,
    /// A shard of what counts for an account ([`crate::quota`]).
    QuotaUsage = 18,
    /// A directory whose entries are still to be counted for its quota, or not any more ([`crate::quota`]).
    QuotaWork = 19,
    /// What a file has staged ([`crate::staged`]).
    Staged = 20,
    /// That a staged piece of a file begins there ([`crate::staged`]).
    StagedPiece = 21,
    /// A storage class ([`crate::storage_class`]).
    StorageClass = 22,
    /// The highest id of a storage class ([`crate::storage_class`]).
    StorageClassHighest = 23,
    /// That an inline piece of a file begins there which may go to a chunk that files share ([`crate::packable`]).
    Packable = 24,
    /// A part of an entry of the volume's log ([`crate::log`]). The one kind that the log itself doesn't name.
    Log = 25,
    /// What a failover lost ([`crate::loss`]).
    Loss = 26,
    /// Of which version of the cluster's storage classes the volume has copies ([`crate::storage_class`]).
    StorageClassesCopied = 27,
    /// What was seen of the clock by which the trash expires ([`crate::clock`]).
    TrashClock = 28,
    /// What was seen of the clock by which lapsed sessions are forgotten ([`crate::clock`]).
    LapsedClock = 29,
}

impl VolumeTag {
    /// What records of a tag are called for people; those of a newer release are "other".
    pub fn name_of(tag: u64) -> &'static str {
        match tag {
            tag if tag == Self::Volume as u64 => "volume",
            tag if tag == Self::Inode as u64 => "inode",
            tag if tag == Self::Link as u64 => "link",
            tag if tag == Self::Dirent as u64 => "entry",
            tag if tag == Self::Directory as u64 => "directory",
            tag if tag == Self::Extent as u64 => "extent",
            tag if tag == Self::Xattr as u64 => "xattr",
            tag if tag == Self::Chunk as u64 => "chunk",
            tag if tag == Self::ChunkRef as u64 => "chunk use",
            tag if tag == Self::Orphan as u64 => "orphan",
            tag if tag == Self::Trim as u64 => "trim",
            tag if tag == Self::Session as u64 => "session",
            tag if tag == Self::SessionFloor as u64 => "session floor",
            tag if tag == Self::Outcome as u64 => "outcome",
            tag if tag == Self::Statistic as u64 => "statistic",
            tag if tag == Self::Trash as u64 => "trash",
            tag if tag == Self::Quota as u64 => "quota",
            tag if tag == Self::QuotaUsage as u64 => "quota usage",
            tag if tag == Self::QuotaWork as u64 => "quota work",
            tag if tag == Self::Staged as u64 => "staged",
            tag if tag == Self::StagedPiece as u64 => "staged piece",
            tag if tag == Self::StorageClass as u64 => "storage class",
            tag if tag == Self::StorageClassHighest as u64 => "storage class",
            tag if tag == Self::Packable as u64 => "packable",
            tag if tag == Self::Log as u64 => "log",
            tag if tag == Self::Loss as u64 => "loss",
            tag if tag == Self::StorageClassesCopied as u64 => "storage class",
            tag if tag == Self::TrashClock as u64 => "trash clock",
            tag if tag == Self::LapsedClock as u64 => "sessions' clock",
            _ => "other",
        }
    }
}

/// What kind of record of a region a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RegionTag {
    /// Where the region's copies of a chunk lie ([`crate::location`]).
    Location = 1,
    /// The next id to give ([`crate::ids`]).
    Ids = 2,
    /// A region's secret ([`crate::secret`]).
    Secret = 3,
    /// A chunk whose copies are to be deleted ([`crate::dead`]).
    Dead = 4,
    /// What an administrator decided about a chunkserver ([`crate::chunkserver`]).
    Chunkserver = 5,
    /// A lock ([`crate::lock`]).
    Lock = 6,
    /// That a session holds locks on an inode ([`crate::lock`]).
    LockHeld = 7,
    /// The region's founding mark ([`crate::founding`]).
    Founding = 8,
    /// That a volume's transactions are logged ([`crate::log`]).
    Logged = 9,
    /// How far the region is with the log of a volume whose home is elsewhere ([`crate::log`]).
    Replica = 10,
    /// A part of an entry that was cut off ([`crate::log`]).
    Salvage = 11,
    /// Up to where ids of a kind may be given here, and in which epoch ([`crate::ids`]).
    IdsUpto = 12,
    /// Ids that may have been given by entries that were lost ([`crate::ids`]).
    IdGap = 16,
    /// A part of what an entry's keys held before it ([`crate::before`]).
    Before = 17,
    /// Where copies lie of a chunk of entries that were undone here ([`crate::log`]).
    SalvagedChunk = 18,
    /// A path that entries concern which were put aside ([`crate::loss`]).
    SalvagedPath = 19,
    /// Entries that were put aside at once ([`crate::loss`]).
    Archive = 20,
    /// That a session has reclaimed its locks after a change of the home ([`crate::lock`]).
    LockReclaim = 21,
    /// That a volume was deleted ([`crate::deleted`]).
    Deleted = 22,
    /// A certificate that is refused ([`crate::revocation`]).
    Revocation = 23,
    /// The version of what is refused ([`crate::revocation`]).
    RevocationsVersion = 24,
    /// That a volume's home needs its region's lease, or has a sync set ([`crate::leased`]).
    Leased = 25,
    /// That this region isn't to have a volume any more, and lets go of it ([`crate::let_go`]).
    LetGo = 60,
}

impl RegionTag {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Location,
        Self::Ids,
        Self::Secret,
        Self::Dead,
        Self::Chunkserver,
        Self::Lock,
        Self::LockHeld,
        Self::Founding,
        Self::Logged,
        Self::Replica,
        Self::Salvage,
        Self::IdsUpto,
        Self::IdGap,
        Self::Before,
        Self::SalvagedChunk,
        Self::SalvagedPath,
        Self::Archive,
        Self::LockReclaim,
        Self::Deleted,
        Self::Revocation,
        Self::RevocationsVersion,
        Self::Leased,
        Self::LetGo,
    ];
}
