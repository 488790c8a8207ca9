//! The trash of a volume: a regular file that loses its last name stays for as long as the volume's retention was at that time.
//!
//! ```text
//!                      /--> expires, or is purged --> orphan --> reaped, once nobody has it open
//!  last name goes --> trash
//!                      \--> is restored: has a name again
//! ```
//! One that was made only just before ([`Terms`]) is a scratch file, and doesn't (docs/decisions/0011-trash.md).
//! A file in the trash is an inode without a name, like an orphan, but on another list: the reaper never frees what is on that one. A file that
//! was empty when it lost its name is on both, for what was written to it may be on its way: once nobody has it open, the reaper takes it from the
//! list of orphans if there is something in it by then, else it frees it. So nothing that has data is freed before it expires.

use std::time::Duration;

use bytes::Bytes;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::orphan::{self, OrphanRecord};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::trash::{self, TrashRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, SchemaError, number};
use mooseng_store::{Atomic, KeyRange, RangeLimit, Read, Transaction};
use mooseng_wire::fs::Caller;
use mooseng_wire::{InodeId, VolumeId};

use crate::context::OpContext;
use crate::errno::Errno;
use crate::error::OpError;
use crate::quota::{self, Charge};
use crate::together::InOrder;
use crate::touched::{Touched, difference};
use crate::upkeep;
use crate::view::{View, check_name, is_directory, is_dots, is_regular};

/// The longest retention: ten years, in seconds.
pub const RETENTION_S_MAX: u64 = 10 * 366 * 86_400;

/// Directories on the way to the root that are read to learn a path.
const PATH_DEPTH_MAX: usize = 32;
/// Bytes of a directory's path that are kept.
const PATH_BYTES_MAX: usize = 1_024;
/// Bytes of a path that a file is restored to.
const TARGET_BYTES_MAX: usize = 4_096;

/// Which deleted files a volume keeps, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// So many seconds; 0 for not at all. At most [`RETENTION_S_MAX`].
    pub retention_s: u64,
    /// A file that loses its last name less than so many seconds after it was made isn't kept: most of those are scratch files.
    pub min_age_s: u64,
}

impl Terms {
    /// A volume's.
    pub fn of(volume: &VolumeRecord) -> Self {
        Self { retention_s: volume.trash_retention_s, min_age_s: volume.trash_min_age_s }
    }

    /// Until when a file is kept that loses its last name now. None for not at all.
    fn until_ns(self, now_ns: i64, record: &InodeRecord) -> Option<i64> {
        let nanoseconds = |seconds: u64| seconds.min(RETENTION_S_MAX) as i64 * 1_000_000_000;
        // Where the clock of an earlier leader was ahead nobody knows how old the file is: it is kept.
        let age = record.born_ns.map(|born_ns| now_ns.saturating_sub(born_ns)).filter(|age| *age >= 0);
        let young = age.is_some_and(|age| age < nanoseconds(self.min_age_s));
        let kept = self.retention_s > 0 && is_regular(record.kind) && !young;
        kept.then(|| now_ns.saturating_add(nanoseconds(self.retention_s)))
    }
}

/// Puts a file that has just lost its last name into the trash, if it goes there. Answers whether that is all: else it has to be on the list of
/// orphans, too. The caller stores the record.
pub(crate) async fn enter<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    record: &mut InodeRecord,
    parent: InodeId,
    name: &[u8],
) -> Result<bool, OpError> {
    let now_ns = view.ctx.now_ns;
    let Some(until_ns) = view.ctx.trash.until_ns(now_ns, record) else { return Ok(false) };
    record.trash_until_ns = Some(until_ns);
    record.let_off = Some(record.allocated);
    let entry = TrashRecord {
        parent: parent.0,
        name: Bytes::copy_from_slice(name),
        directory: path_of(view.tx, parent).await?,
        uid: view.caller.uid,
        deleted_ns: now_ns,
    };
    view.tx.set(&trash::key(until_ns, id), &entry.to_value());
    count(view.tx, id, record, 1);
    Ok(record.size > 0)
}

/// A file in the trash has been made empty: the reaper looks whether anybody still has it open.
pub(crate) async fn emptied<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    record: &InodeRecord,
) -> Result<(), OpError> {
    if record.size == 0
        && let Some(deletion) = deletion(view.tx, id, record, view.read).await?
    {
        put_orphan(view.tx, id, &deletion, view.ctx.now_ns);
    }
    Ok(())
}

/// Takes a file out of the trash. The caller stores the record, and sees to it that the file has a name or is an orphan.
pub(crate) fn leave<T: Transaction>(tx: &T, id: InodeId, record: &mut InodeRecord) {
    if let Some(until_ns) = record.trash_until_ns.take() {
        tx.clear(&trash::key(until_ns, id));
        count(tx, id, record, -1);
    }
}

fn count<T: Transaction>(tx: &T, id: InodeId, record: &InodeRecord, files: i64) {
    let bytes = i64::try_from(record.allocated).unwrap_or(i64::MAX).saturating_mul(files);
    for (statistic, delta) in [(Statistic::TrashFiles, files), (Statistic::TrashBytes, bytes)] {
        if delta != 0 {
            tx.atomic(&statistics::key(id, statistic), &number::encode_signed(delta), Atomic::Add);
        }
    }
}

fn put_orphan<T: Transaction>(tx: &T, id: InodeId, deletion: &TrashRecord, since_ns: i64) {
    tx.set(&orphan::key(id), &OrphanRecord { since_ns, parent: deletion.parent }.to_value());
}

/// A directory's path, as far as it is cheap to know: it begins with `/`, or with `...` where only its end is known. Read without conflicts, for a
/// deletion mustn't fail because a directory above is renamed.
pub(crate) async fn path_of<T: Transaction>(tx: &T, directory: InodeId) -> Result<Bytes, OpError> {
    let mut names: Vec<Bytes> = Vec::new();
    let (mut at, mut bytes) = (directory, 0);
    let whole = loop {
        let Some(value) = tx.get(&inode::key(at), Read::Snapshot).await? else { break false };
        let record = InodeRecord::from_value(&value)?;
        // The root has no name; nor has a removed directory.
        let Some(link) = record.links.first() else { break !record.orphan };
        bytes += link.name.len() + 1;
        if names.len() == PATH_DEPTH_MAX || bytes > PATH_BYTES_MAX {
            break false;
        }
        names.push(link.name.clone());
        at = InodeId(link.parent);
    };
    let mut path = if whole { Vec::new() } else { b"...".to_vec() };
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok(if path.is_empty() { Bytes::from_static(b"/") } else { path.into() })
}

/// A path from a directory's and a name in it.
pub fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if path != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// A file in the trash.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The file.
    pub inode: InodeId,
    /// Until when it is there, in nanoseconds since the Unix epoch.
    pub until_ns: i64,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that its extents cover.
    pub allocated: u64,
    /// What is remembered of its deletion.
    pub deletion: TrashRecord,
}

/// Where a page of the trash ends: the time and the inode of its last file.
pub type Place = (i64, InodeId);

/// A page of at most `max` files, what stays longest first, and where the next page begins. Empty files are left out: they go once
/// nobody has them open.
pub async fn list<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    before: Option<Place>,
    max: usize,
) -> Result<(Vec<Listed>, Option<Place>), OpError> {
    let range =
        before.map_or_else(|| trash::range(volume), |(until, inode)| trash::range_before(until, inode));
    let limit = RangeLimit { pairs_max: max, reverse: true, ..Default::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let files = page.pairs.iter().map(|(key, value)| async move {
        let (until_ns, inode) = trash::parse_key(volume, key)?;
        let record = tx.get(&inode::key(inode), Read::Snapshot).await?;
        let record = record.ok_or_else(|| SchemaError::damaged("trash", "its inode isn't there"))?;
        let InodeRecord { size, allocated, .. } = InodeRecord::from_value(&record)?;
        Ok::<_, OpError>(Listed {
            inode,
            until_ns,
            size,
            allocated,
            deletion: TrashRecord::from_value(value)?,
        })
    });
    let mut files = futures::future::try_join_all(files).await?;
    let next = files.last().filter(|_| page.more).map(|file| (file.until_ns, file.inode));
    files.retain(|file| file.size > 0);
    Ok((files, next))
}

/// Why a file wasn't restored.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Nothing of that id is in the trash.
    #[error("no file with the id {0} is in the trash; it was restored, purged, or has expired")]
    NotThere(u64),
    /// The directory that it was in is gone.
    #[error("the directory {0} that it was in doesn't exist any more: say where to, with `--to PATH`")]
    DirectoryGone(String),
    /// A directory on the way to the new name isn't there.
    #[error("{0} isn't there; make the directory first, or name another path")]
    NoDirectory(String),
    /// Something on the way to the new name is no directory. Symbolic links aren't followed.
    #[error("{0} isn't a directory (symbolic links aren't followed)")]
    NotADirectory(String),
    /// Its directory shows another volume.
    #[error("{0} would be in another volume: name another path with `--to PATH`")]
    OtherVolume(String),
    /// The name is taken.
    #[error("{0} exists, and nothing is overwritten: name another path with `--to PATH`")]
    Exists(String),
    /// No file can have that path.
    #[error("{0:?} can't be a file's path: give one from the root of the filesystem, as /directory/name")]
    BadPath(String),
    /// The directory takes no further name of that hash.
    #[error(
        "{0} can't be made: its directory is full of names of the same hash; name another path with `--to PATH`"
    )]
    Full(String),
    /// The file doesn't fit into a quota.
    #[error(
        "{0} doesn't fit into the quota of its owner or its directory: free something there, raise the limit (`mooseng quota set`), or name another path with `--to PATH`"
    )]
    Quota(String),
}

impl Refused {
    /// The same, with its paths as `show` says that people know them.
    pub fn shown(self, show: impl Fn(&str) -> String) -> Self {
        match self {
            Self::NotThere(id) => Self::NotThere(id),
            Self::DirectoryGone(path) => Self::DirectoryGone(show(&path)),
            Self::NoDirectory(path) => Self::NoDirectory(show(&path)),
            Self::NotADirectory(path) => Self::NotADirectory(show(&path)),
            Self::OtherVolume(path) => Self::OtherVolume(show(&path)),
            Self::Exists(path) => Self::Exists(show(&path)),
            Self::BadPath(path) => Self::BadPath(show(&path)),
            Self::Full(path) => Self::Full(show(&path)),
            Self::Quota(path) => Self::Quota(show(&path)),
        }
    }
}

/// What a restoration came to.
pub type Restored = Result<Vec<u8>, Refused>;

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Gives a file in the trash a name again: the path `to`, from the root of its volume, or the one that it had, in the same directory, wherever that is by
/// now. Answers its path. Nothing is overwritten. It mustn't be done again where the outcome isn't known: by then the file isn't in the trash.
pub async fn restore<T: Transaction>(
    tx: &T,
    touched: &Touched,
    now_ns: i64,
    id: InodeId,
    to: Option<&[u8]>,
) -> Result<Restored, OpError> {
    let (ctx, nobody) = (OpContext { now_ns, ..OpContext::default() }, Caller::default());
    let view = View { tx, ctx: &ctx, caller: &nobody, read: Read::Conflicting, touched };
    let Some((mut record, deletion)) = load(tx, id).await? else { return Ok(Err(Refused::NotThere(id.0))) };
    touched.counts(id, Charge::of(&record));
    let place = match to {
        Some(path) => target(&view, id.volume(), path).await?,
        None => former(&view, deletion).await?,
    };
    let (parent, name) = match place {
        Ok(place) => place,
        Err(refused) => return Ok(Err(refused)),
    };
    let (directory, slot, into) =
        futures::join!(path_of(tx, parent), view.slot(parent, &name), view.inode(parent)).in_order()?;
    let path = joined(&directory, &name);
    if into.joined().is_some() {
        return Ok(Err(Refused::OtherVolume(shown(&path))));
    }
    if slot.found.is_some() {
        return Ok(Err(Refused::Exists(shown(&path))));
    }
    let Some(cookie) = slot.free else { return Ok(Err(Refused::Full(shown(&path)))) };
    let let_off = Charge::of(&record);
    leave(tx, id, &mut record);
    // It may be there, too, if it was empty for a while.
    tx.clear(&orphan::key(id));
    record.orphan = false;
    record.nlink = 1;
    // It counts again, where it is now.
    record.let_off = None;
    record.quota = into.quota;
    if !quota::all_fit(tx, id.volume(), &difference(Some(let_off), Some(Charge::of(&record)))).await? {
        return Ok(Err(Refused::Quota(shown(&path))));
    }
    record.ctime_ns = now_ns;
    view.add_link(id, &mut record, parent, &name);
    view.put_inode(id, &record);
    view.put_entry(parent, cookie, &name, id, record.kind);
    view.count_entries(parent, 1, 0);
    Ok(Ok(path))
}

/// What is remembered of the deletion of a file, if it is in the trash.
pub async fn find<T: Transaction>(tx: &T, id: InodeId) -> Result<Option<TrashRecord>, OpError> {
    Ok(load(tx, id).await?.map(|(_, deletion)| deletion))
}

/// A file in the trash with its entry there, read with conflicts.
async fn load<T: Transaction>(tx: &T, id: InodeId) -> Result<Option<(InodeRecord, TrashRecord)>, OpError> {
    let Some(value) = tx.get(&inode::key(id), Read::Conflicting).await? else { return Ok(None) };
    let record = InodeRecord::from_value(&value)?;
    let deletion = deletion(tx, id, &record, Read::Conflicting).await?;
    Ok(deletion.map(|deletion| (record, deletion)))
}

/// What is remembered of a file's deletion, if it is in the trash.
pub(crate) async fn deletion<T: Transaction>(
    tx: &T,
    id: InodeId,
    record: &InodeRecord,
    read: Read,
) -> Result<Option<TrashRecord>, OpError> {
    let Some(until_ns) = record.trash_until_ns else { return Ok(None) };
    let entry = tx.get(&trash::key(until_ns, id), read).await?;
    let entry =
        entry.ok_or_else(|| SchemaError::damaged("inode", "it is in the trash, which has no entry of it"))?;
    Ok(Some(TrashRecord::from_value(&entry)?))
}

type Target = Result<(InodeId, Bytes), Refused>;

/// The directory that a file was in, if it still is one, and the name.
async fn former<T: Transaction>(view: &View<'_, T>, deletion: TrashRecord) -> Result<Target, OpError> {
    let parent = InodeId(deletion.parent);
    let there = view.inode_if(parent).await?.is_some_and(|record| !record.orphan);
    Ok(match there {
        true => Ok((parent, deletion.name)),
        false => Err(Refused::DirectoryGone(shown(&deletion.directory))),
    })
}

/// The directory and the name that a path from the root of the volume means.
async fn target<T: Transaction>(
    view: &View<'_, T>,
    volume: VolumeId,
    path: &[u8],
) -> Result<Target, OpError> {
    let bad = || Ok(Err(Refused::BadPath(shown(path))));
    if path.len() > TARGET_BYTES_MAX || path.first() != Some(&b'/') || path.ends_with(b"/") {
        return bad();
    }
    let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| is_dots(name) || check_name(name).is_err()) {
        return bad();
    }
    let Some(name) = names.pop() else { return bad() };
    let value = view.tx.get(&volume::key(volume), Read::Conflicting).await?;
    let root = VolumeRecord::from_value(&value.ok_or(OpError::NoVolume(volume.0))?)?.root;
    let (mut at, mut so_far) = (InodeId(root), Vec::new());
    for name in names {
        so_far.push(b'/');
        so_far.extend_from_slice(name);
        let Some(found) = view.slot(at, name).await?.found else {
            return Ok(Err(Refused::NoDirectory(shown(&so_far))));
        };
        if !is_directory(view.named_inode(&found).await?.kind) {
            return Ok(Err(Refused::NotADirectory(shown(&so_far))));
        }
        at = found.inode;
    }
    Ok(Ok((at, Bytes::copy_from_slice(name))))
}

/// What left the trash for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Files.
    pub files: u64,
    /// Bytes that their extents cover.
    pub bytes: u64,
}

impl Purged {
    /// Adds another part.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// Makes a file in the trash an orphan, which the reaper frees once nobody has it open. None if it isn't in the trash; doing it again does no harm.
pub async fn purge<T: Transaction>(tx: &T, now_ns: i64, id: InodeId) -> Result<Option<Purged>, OpError> {
    let Some((mut record, deletion)) = load(tx, id).await? else { return Ok(None) };
    leave(tx, id, &mut record);
    put_orphan(tx, id, &deletion, now_ns);
    // What its attributes say stays, so that nobody has to be told.
    tx.set(&inode::key(id), &record.to_value());
    Ok(Some(Purged { files: 1, bytes: record.allocated }))
}

/// [`purge`] of those among the next `max` files behind `after` that were deleted at `deleted_ns` or before. Answers what left the trash, and where the next
/// page begins, if there is one.
pub async fn purge_page<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    now_ns: i64,
    deleted_ns: i64,
    after: Option<Place>,
    max: usize,
) -> Result<(Purged, Option<Place>), OpError> {
    let range = after.map_or_else(|| trash::range(volume), |(until, inode)| trash::range_after(until, inode));
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let (mut purged, mut last) = (Purged::default(), None);
    for (key, value) in &page.pairs {
        let (until_ns, inode) = trash::parse_key(volume, key)?;
        last = Some((until_ns, inode));
        if TrashRecord::from_value(value)?.deleted_ns <= deleted_ns {
            purged.add(purge(tx, now_ns, inode).await?.unwrap_or_default());
        }
    }
    Ok((purged, last.filter(|_| page.more)))
}

/// What came of a page of files whose time is over by the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Files that left the trash.
    pub files: usize,
    /// Files that stay, for the clock was set forward.
    pub held: usize,
    /// Where the next page begins, if there is one.
    pub next: Option<Place>,
}

/// [`purge`] of those that have expired among the next `max` files behind `after` whose time is over at `now_ns`, the first ones to expire first. `steady`: for how
/// long the clock has gone on steadily, where it was set forward before. What was to stay for longer than that stays: of what came into the trash before the step
/// nobody knows better that it has been there for its time, and what came later has been, once its time is over (docs/decisions/0047-clocks-that-are-set-forward.md).
pub async fn expire<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    now_ns: i64,
    steady: Option<Duration>,
    after: Option<Place>,
    max: usize,
) -> Result<Expired, OpError> {
    let mut range = trash::range_expired(volume, now_ns);
    if let Some((until, inode)) = after {
        range = KeyRange { begin: trash::range_after(until, inode).begin, ..range };
    }
    let (mut expired, mut last) = (Expired::default(), None);
    // The clock was set back since that page.
    if range.begin >= range.end {
        return Ok(expired);
    }
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    for (key, value) in &page.pairs {
        let (until_ns, inode) = trash::parse_key(volume, key)?;
        last = Some((until_ns, inode));
        if let Some(steady) = steady
            && kept_for(until_ns, &TrashRecord::from_value(value)?) > steady
        {
            expired.held += 1;
            continue;
        }
        // A place that its file knows nothing of keeps nothing, and mustn't stand in the way of the others for ever.
        if purge(tx, now_ns, inode).await?.is_none() {
            tx.clear(key);
        }
        expired.files += 1;
    }
    expired.next = last.filter(|_| page.more);
    Ok(expired)
}

/// How long a file was to stay when it was deleted.
fn kept_for(until_ns: i64, deletion: &TrashRecord) -> Duration {
    Duration::from_nanos(u64::try_from(until_ns.saturating_sub(deletion.deleted_ns)).unwrap_or(0))
}

/// Which deleted files a volume keeps, and how long.
pub async fn terms<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Terms, OpError> {
    let record = upkeep::load_volume(tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
    Ok(Terms::of(&record))
}

/// Sets it, as far as it is given, for files that are deleted from then on: what is in the trash already keeps its time.
pub async fn set_terms<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    retention_s: Option<u64>,
    min_age_s: Option<u64>,
) -> Result<(), OpError> {
    if retention_s.max(min_age_s).is_some_and(|seconds| seconds > RETENTION_S_MAX) {
        return Err(OpError::Malformed("the trash keeps files for ten years at most"));
    }
    let mut record = upkeep::load_volume(tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
    record.trash_retention_s = retention_s.unwrap_or(record.trash_retention_s);
    record.trash_min_age_s = min_age_s.unwrap_or(record.trash_min_age_s);
    tx.set(&volume::key(volume), &record.to_value());
    Ok(())
}

/// The errno of a refusal, for who compares it with a filesystem call's.
impl From<&Refused> for Errno {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::NotThere(_) => Self::ESTALE,
            Refused::DirectoryGone(_) | Refused::NoDirectory(_) => Self::ENOENT,
            Refused::NotADirectory(_) => Self::ENOTDIR,
            Refused::OtherVolume(_) => Self::EREMOTE,
            Refused::Exists(_) => Self::EEXIST,
            Refused::BadPath(_) => Self::EINVAL,
            Refused::Full(_) => Self::ENOSPC,
            Refused::Quota(_) => Self::EDQUOT,
        }
    }
}
