//! Storage classes (docs/decisions/0019-storage-classes.md): which there are, which inodes have one, and that chunks follow their files.
//!
//! An inode gets the class of the directory that it is made in, and keeps it wherever it is moved. A chunk gets that of the inode that it is made
//! for, and later that of the files that name it ([`follow`]). How many inodes have a class is counted where records are written, as for
//! quotas ([`Account::Class`]), so that none is removed that is in use.
//!
//! Where several regions have agreed on classes, a volume has copies of those ([`take_over`]); what is made, changed and removed here are its own.

use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::dirent::{self, Cookie, DirentRecord};
use mooseng_schema::inode::{self, InodeRecord};
pub use mooseng_schema::storage_class::{
    Change, DEFAULT, DEFAULT_NAME, Label, StorageClassRecord, Unfit, is_of_cluster,
};
use mooseng_schema::{Record, number, storage_class};
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction};
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::error::OpError;
use crate::quota::{self, Account, Charge, Usage};
use crate::touched::Touched;
use crate::view::is_directory;
use crate::window;

/// Classes of its own that a volume has at most, the default one apart.
pub const CLASSES_MAX: usize = 200;
/// Files of a chunk whose classes are looked at.
const USERS_MAX: usize = 64;

/// Why a class isn't made, changed, removed or assigned.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// There is none of that name.
    #[error("there is no storage class {0:?}; `mooseng class list` shows which there are")]
    NotThere(String),
    /// There is one of that name.
    #[error("there is a storage class {0:?} already; `mooseng class set` changes it")]
    Exists(String),
    /// It can't be as it is asked for.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The regions are about to delete it.
    #[error(
        "the storage class {0:?} is being deleted: assign another one. `mooseng class delete` goes on with that, or takes it back where something has the class"
    )]
    Leaving(String),
    /// The cluster's are the global group's to change.
    #[error("the storage class {0:?} is the cluster's: name no volume")]
    OfCluster(String),
    /// Inodes have it.
    #[error(
        "the storage class {name:?} is in use: {inodes} files and directories have it, those in the trash included. Assign them another one first"
    )]
    InUse {
        /// Its name.
        name: String,
        /// How many.
        inodes: i64,
    },
    /// There are too many.
    #[error("there are {CLASSES_MAX} storage classes, which is the most there may be; remove some")]
    TooMany,
    /// The inode isn't there.
    #[error("there is no such file or directory")]
    NoInode,
    /// Another volume is joined at the directory.
    #[error(
        "volume {0} is joined at it: repeat the command, which assigns the class there (`mooseng` of this release or a later one)"
    )]
    OtherVolume(VolumeId),
}

/// All classes of a volume but the default one, by their ids: its own, then those of the cluster.
pub async fn list<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    read: Read,
) -> Result<Vec<(u32, StorageClassRecord)>, OpError> {
    let (mut all, mut range) = (Vec::new(), storage_class::range(volume));
    loop {
        let page = tx.get_range(range.clone(), RangeLimit::default(), read).await?;
        for (key, value) in &page.pairs {
            all.push((storage_class::parse_key(volume, key)?, StorageClassRecord::from_value(value)?));
        }
        match page.pairs.last().filter(|_| page.more) {
            Some((last, _)) => range = window::behind(&range, last),
            None => return Ok(all),
        }
    }
}

/// Those of the volume's own.
async fn own<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Vec<(u32, StorageClassRecord)>, OpError> {
    let mut all = list(tx, volume, Read::Conflicting).await?;
    all.retain(|(id, _)| !is_of_cluster(*id));
    Ok(all)
}

/// The volume's own class of that name.
async fn own_of<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    name: &str,
) -> Result<Result<(u32, StorageClassRecord), Refused>, OpError> {
    if name == DEFAULT_NAME {
        return Ok(Err(Unfit::Default.into()));
    }
    let all = list(tx, volume, Read::Conflicting).await?;
    let (of_cluster, own): (Vec<_>, Vec<_>) =
        all.into_iter().filter(|(_, record)| record.name == name).partition(|(id, _)| is_of_cluster(*id));
    Ok(own.into_iter().next().ok_or_else(|| match of_cluster.is_empty() {
        true => Refused::NotThere(name.to_owned()),
        false => Refused::OfCluster(name.to_owned()),
    }))
}

/// The class of that name that inodes may be given, read with conflicts: it is still so when the transaction commits. One of the cluster goes before one of the
/// volume's own.
pub async fn find<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    name: &str,
) -> Result<Result<u32, Refused>, OpError> {
    if name == DEFAULT_NAME {
        return Ok(Ok(DEFAULT));
    }
    let all = list(tx, volume, Read::Conflicting).await?;
    let found = all.into_iter().rev().find(|(_, record)| record.name == name);
    Ok(match found {
        Some((_, record)) if record.leaving => Err(Refused::Leaving(record.name)),
        Some((id, _)) => Ok(id),
        None => Err(Refused::NotThere(name.to_owned())),
    })
}

/// Makes a class of the volume's own. Answers its id.
pub async fn create<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    class: &StorageClassRecord,
) -> Result<Result<u32, Refused>, OpError> {
    let record = match class.clone().checked() {
        Ok(record) => record,
        Err(unfit) => return Ok(Err(unfit.into())),
    };
    let all = own(tx, volume).await?;
    if all.iter().any(|(_, other)| other.name == record.name) {
        return Ok(Err(Refused::Exists(record.name)));
    }
    if all.len() >= CLASSES_MAX {
        return Ok(Err(Refused::TooMany));
    }
    let highest_key = storage_class::highest_key(volume);
    let highest = number::decode(tx.get(&highest_key, Read::Conflicting).await?.as_ref())?;
    let next = u32::try_from(highest + 1).ok().filter(|id| !is_of_cluster(*id));
    let id = next.ok_or(OpError::Malformed("all ids of classes were given"))?;
    tx.set(&highest_key, &number::encode(id.into()));
    tx.set(&storage_class::key(volume, id), &record.to_value());
    Ok(Ok(id))
}

/// Changes a class of the volume's own. Chunks are made to fit it by and by. Answers its id.
pub async fn change<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    now_ns: i64,
    name: &str,
    change: &Change,
) -> Result<Result<u32, Refused>, OpError> {
    let (id, record) = match own_of(tx, volume, name).await? {
        Ok(found) => found,
        Err(refused) => return Ok(Err(refused)),
    };
    match record.with(change, now_ns) {
        Ok(record) => tx.set(&storage_class::key(volume, id), &record.to_value()),
        Err(unfit) => return Ok(Err(unfit.into())),
    }
    Ok(Ok(id))
}

/// Removes a class of the volume's own that no inode has. Chunks that still have it follow their files, which have others.
pub async fn remove<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    name: &str,
) -> Result<Result<(), Refused>, OpError> {
    let id = match own_of(tx, volume, name).await? {
        Ok((id, _)) => id,
        Err(refused) => return Ok(Err(refused)),
    };
    // With conflicts: whoever makes or assigns an inode of the class at the same moment, or this, has to begin anew.
    let inodes = usage(tx, volume, id, Read::Conflicting).await?.inodes;
    if inodes != 0 {
        return Ok(Err(Refused::InUse { name: name.to_owned(), inodes }));
    }
    tx.clear(&storage_class::key(volume, id));
    Ok(Ok(()))
}

/// The inodes that have a class other than the default one, and the bytes of their extents.
pub async fn usage<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    class: u32,
    read: Read,
) -> Result<Usage, OpError> {
    let range = mooseng_schema::quota::usage_range(volume, Account::Class(class));
    let page = tx.get_range(range, RangeLimit::default(), read).await?;
    Ok(mooseng_schema::quota::read_usage(volume, &page.pairs)?)
}

/// The class of an inode; none where it isn't there.
pub async fn of_inode<T: Transaction>(tx: &T, id: InodeId, read: Read) -> Result<Option<u32>, OpError> {
    Ok(load(tx, id, read).await?.map(|record| record.storage_class))
}

async fn load<T: Transaction>(tx: &T, id: InodeId, read: Read) -> Result<Option<InodeRecord>, OpError> {
    let value = tx.get(&inode::key(id), read).await?;
    Ok(value.map(|value| InodeRecord::from_value(&value)).transpose()?)
}

/// Gives an inode a class. Nobody has to be told: what clients know of an inode doesn't depend on it. Answers whether it had another one.
fn put<T: Transaction>(tx: &T, touched: &Touched, id: InodeId, mut record: InodeRecord, class: u32) -> bool {
    if record.storage_class == class {
        return false;
    }
    touched.counts(id, Charge::of(&record));
    record.storage_class = class;
    quota::add(tx, id, &touched.recount(id, Some(Charge::of(&record))));
    tx.set(&inode::key(id), &record.to_value());
    true
}

/// Gives an inode the class of that name. Answers whether it had another one.
pub async fn assign<T: Transaction>(
    tx: &T,
    touched: &Touched,
    id: InodeId,
    name: &str,
) -> Result<Result<bool, Refused>, OpError> {
    let class = match find(tx, id.volume(), name).await? {
        Ok(class) => class,
        Err(refused) => return Ok(Err(refused)),
    };
    let Some(record) = load(tx, id, Read::Conflicting).await? else { return Ok(Err(Refused::NoInode)) };
    if let Some(other) = record.joined() {
        return Ok(Err(Refused::OtherVolume(other)));
    }
    Ok(Ok(put(tx, touched, id, record, class)))
}

/// What became of a page of a directory's entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Inodes that had another class.
    pub changed: u64,
    /// The directories among the entries: what is in them is left to the caller.
    pub directories: Vec<InodeId>,
    /// The volumes that are joined at entries: they have classes of their own, and are left alone, as their directories are.
    pub joined: Vec<VolumeId>,
    /// Behind which cookie there is more.
    pub next: Option<u64>,
}

/// Gives what up to `max` entries of a directory name, behind the cookie `after`, the class of that name. A directory that isn't there has no
/// entries.
pub async fn assign_entries<T: Transaction>(
    tx: &T,
    touched: &Touched,
    directory: InodeId,
    after: u64,
    max: usize,
    name: &str,
) -> Result<Result<Assigned, Refused>, OpError> {
    let class = match find(tx, directory.volume(), name).await? {
        Ok(class) => class,
        Err(refused) => return Ok(Err(refused)),
    };
    let all = dirent::range(directory);
    let begin = match after {
        0 => all.begin,
        after => [&dirent::key(directory, Cookie(after))[..], &[0]].concat().into(),
    };
    let limit = RangeLimit { pairs_max: max.max(1), ..RangeLimit::default() };
    // Without a conflict: what is made there meanwhile gets the directory's class as it is made.
    let page = tx.get_range(KeyRange { begin, end: all.end }, limit, Read::Snapshot).await?;
    let mut assigned = Assigned::default();
    let mut reached = after;
    for (key, value) in &page.pairs {
        reached = dirent::parse_key(directory, key)?.0;
        let id = InodeId(DirentRecord::from_value(value)?.inode);
        let Some(record) = load(tx, id, Read::Conflicting).await? else { continue };
        if let Some(other) = record.joined() {
            assigned.joined.push(other);
            continue;
        }
        if is_directory(record.kind) {
            assigned.directories.push(id);
        }
        assigned.changed += u64::from(put(tx, touched, id, record, class));
    }
    assigned.next = page.more.then_some(reached);
    Ok(Ok(assigned))
}

/// The class that a chunk should have: that of the files that name it, or, while none does, of the inode that it was made for. Where they differ it
/// keeps its own as long as one of them has it. None where nobody is left. Read without conflicts.
pub async fn wanted<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    record: &ChunkRecord,
) -> Result<Option<u32>, OpError> {
    let limit = RangeLimit { pairs_max: USERS_MAX, ..RangeLimit::default() };
    let page = tx.get_range(chunk::reference_range(chunk), limit, Read::Snapshot).await?;
    let users = page.pairs.iter().map(|(key, _)| chunk::parse_reference_key(chunk, key));
    let mut users = users.collect::<Result<Vec<InodeId>, _>>()?;
    if users.is_empty() {
        users.push(InodeId(record.inode));
    }
    let mut first = None;
    for user in users {
        let Some(class) = of_inode(tx, user, Read::Snapshot).await? else { continue };
        if class == record.storage_class {
            return Ok(Some(class));
        }
        first.get_or_insert(class);
    }
    Ok(first)
}

/// The files of a chunk that have another class than it, of up to `max` behind `after`, each with its class; and behind which the next ones come,
/// none where there are none. Read without conflicts.
pub async fn misfits<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    class: u32,
    after: Option<InodeId>,
    max: usize,
) -> Result<(Vec<(InodeId, u32)>, Option<InodeId>), OpError> {
    let limit = RangeLimit { pairs_max: max, ..RangeLimit::default() };
    let all = chunk::reference_range(chunk);
    let range = match after {
        None => all,
        Some(after) => window::behind(&all, &chunk::reference_key(chunk, after)),
    };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let users = page.pairs.iter().map(|(key, _)| chunk::parse_reference_key(chunk, key));
    let users = users.collect::<Result<Vec<InodeId>, _>>()?;
    let classes = users.iter().map(|user| of_inode(tx, *user, Read::Snapshot));
    let classes = futures::future::try_join_all(classes).await?;
    let next = users.last().copied().filter(|_| page.more);
    let others = users.into_iter().zip(classes).filter_map(|(user, of)| Some((user, of?)));
    Ok((others.filter(|(_, of)| *of != class).collect(), next))
}

/// Gives a chunk the class that it should have. Answers that one, if it had another.
pub async fn follow<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<Option<u32>, OpError> {
    let key = chunk::key(chunk);
    let Some(value) = tx.get(&key, Read::Conflicting).await? else { return Ok(None) };
    let mut record = ChunkRecord::from_value(&value)?;
    let class = wanted(tx, chunk, &record).await?.filter(|class| *class != record.storage_class);
    if let Some(class) = class {
        record.storage_class = class;
        tx.set(&key, &record.to_value());
    }
    Ok(class)
}

mod copies;
pub use copies::{Copied, copied, is_leaving, take_over};
