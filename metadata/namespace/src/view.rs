//! What operations see of a transaction: records instead of keys and bytes.

use bytes::Bytes;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::directory::{self, Counter, Counters};
use mooseng_schema::dirent::{self, Cookie, DirentRecord, HashKey};
use mooseng_schema::inode::{self, InodeRecord, LINKS_INSIDE_MAX, LinkName};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::orphan::{self, OrphanRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::xattr;
use mooseng_schema::{Record, SchemaError, number};
use mooseng_store::{Atomic, RangeLimit, Read, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::{Attr, Caller, ChunkLocation, ChunkPlace, FileKind};
use mooseng_wire::{ChunkId, InodeId, NAME_BYTES_MAX};

use crate::context::OpContext;
use crate::errno::Errno;
use crate::error::OpError;
use crate::joins;
use crate::permission::{self, EXECUTE, WRITE};
use crate::quota::{self, Charge};
use crate::together::InOrder;
use crate::touched::Touched;
use crate::trash;

/// The extended attribute that gives a program capabilities. Writing the file takes it away.
pub const CAPABILITY_XATTR: &[u8] = b"security.capability";

/// What `stat` says about a directory's size, in bytes: directories have none of their own.
const DIRECTORY_SIZE: u64 = 4096;

/// One operation's view of its transaction.
pub struct View<'a, T> {
    pub tx: &'a T,
    pub ctx: &'a OpContext,
    pub caller: &'a Caller,
    /// How records are read: changes conflict with what they saw, reads don't need to.
    pub read: Read,
    /// Where the facts go that the operation changes.
    pub touched: &'a Touched,
}

/// A directory entry with its place.
#[derive(Clone, Debug)]
pub struct Found {
    pub cookie: Cookie,
    pub inode: InodeId,
}

/// Where a name is in its directory, or where it would go.
#[derive(Clone, Debug)]
pub struct Slot {
    pub found: Option<Found>,
    /// A free place of the name; none when names of its hash fill all of them.
    pub free: Option<Cookie>,
}

/// A name that operations may take away or make. "." and ".." are judged by each operation.
pub fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() {
        return Err(Errno::ENOENT);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// "." or "..".
pub fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

pub fn is_directory(kind: u32) -> bool {
    kind == FileKind::Directory as u32
}

pub fn is_regular(kind: u32) -> bool {
    kind == FileKind::Regular as u32
}

/// A kind as answers carry it.
pub fn wire_kind(kind: u32) -> i32 {
    i32::try_from(kind).unwrap_or(FileKind::Unspecified as i32)
}

/// An inode's attributes. Of anything but a directory the counters are ignored.
pub fn attr_of(id: InodeId, record: &InodeRecord, counters: &Counters) -> Attr {
    let mut attr = Attr {
        inode: id.0,
        kind: wire_kind(record.kind),
        mode: record.mode,
        nlink: record.nlink,
        uid: record.uid,
        gid: record.gid,
        rdev: record.rdev,
        size: record.size,
        blocks: record.allocated.div_ceil(512),
        atime_ns: record.atime_ns,
        mtime_ns: record.mtime_ns,
        ctime_ns: record.ctime_ns,
        generation: 0,
        no_xattrs: record.xattr_name_bytes == 0,
        quota: record.quota,
        no_acls: record.access_acl.is_none() && record.default_acl.is_none(),
        joined: record.joined,
    };
    if is_directory(record.kind) {
        attr.nlink = if record.orphan {
            0
        } else {
            2u32.saturating_add(u32::try_from(counters.subdirectories).unwrap_or(u32::MAX))
        };
        attr.size = DIRECTORY_SIZE;
        attr.blocks = DIRECTORY_SIZE / 512;
        attr.mtime_ns = counters.changed_ns.unwrap_or(record.mtime_ns);
        attr.ctime_ns = record.ctime_ns.max(counters.changed_ns.unwrap_or(i64::MIN));
        attr.atime_ns = record.atime_ns.max(counters.accessed_ns.unwrap_or(i64::MIN));
    }
    attr
}

/// When something changes at `at_ns` that last changed at `ctime_ns`. That never goes back, whatever the clocks of hosts say; what was buffered may also have been
/// written before something was done to the file by its name. And it moves on: a session whose lease lapsed sees by it that somebody else has changed the file.
pub fn later(ctime_ns: i64, at_ns: i64) -> i64 {
    if at_ns < ctime_ns { ctime_ns.saturating_add(1) } else { at_ns }
}

/// How far a session's clock may be ahead of ours: an hour.
const CLOCKS_APART_NS: i64 = 3600 * 1_000_000_000;

impl<T: Transaction> View<'_, T> {
    /// A time by a session's clock, or what ours allows it to be.
    pub fn not_far_ahead(&self, time_ns: i64) -> i64 {
        time_ns.min(self.ctx.now_ns.saturating_add(CLOCKS_APART_NS))
    }

    /// When something changes that last changed at `ctime_ns`.
    pub fn later(&self, ctime_ns: i64) -> i64 {
        later(ctime_ns, self.ctx.now_ns)
    }

    /// An inode's record, if it lives.
    pub async fn inode_if(&self, id: InodeId) -> Result<Option<InodeRecord>, OpError> {
        self.touched.look(Fact::Inode(id));
        let Some(value) = self.tx.get(&inode::key(id), self.read).await? else { return Ok(None) };
        let record = InodeRecord::from_value(&value)?;
        if self.read == Read::Conflicting {
            self.touched.counts(id, Charge::of(&record));
        }
        Ok(Some(record))
    }

    /// An inode's record. Ids are never given twice: one that isn't there was freed.
    pub async fn inode(&self, id: InodeId) -> Result<InodeRecord, OpError> {
        Ok(self.inode_if(id).await?.ok_or(Errno::ESTALE)?)
    }

    /// The record of an inode that an entry names.
    pub async fn named_inode(&self, found: &Found) -> Result<InodeRecord, OpError> {
        let record = self.inode_if(found.inode).await?;
        Ok(record
            .ok_or_else(|| SchemaError::damaged("directory entry", "it names an inode that isn't there"))?)
    }

    /// A directory's record, whatever is joined at it.
    pub async fn any_directory(&self, id: InodeId) -> Result<InodeRecord, OpError> {
        let record = self.inode(id).await?;
        if !is_directory(record.kind) {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(record)
    }

    /// The record of a directory whose entries are asked for. Where a volume is joined, they are that volume's.
    pub async fn directory(&self, id: InodeId) -> Result<InodeRecord, OpError> {
        let record = self.any_directory(id).await?;
        joins::not_covered(&record)?;
        Ok(record)
    }

    /// A directory in which the caller may make and take away entries. One that was removed has none any more.
    pub async fn writable_directory(&self, id: InodeId) -> Result<InodeRecord, OpError> {
        let record = self.directory(id).await?;
        if record.orphan {
            return Err(Errno::ENOENT.into());
        }
        permission::check(&record, self.caller, WRITE | EXECUTE)?;
        Ok(record)
    }

    /// A directory's counters.
    pub async fn counters(&self, id: InodeId) -> Result<Counters, OpError> {
        let page = self.tx.get_range(directory::range(id), RangeLimit::default(), Read::Snapshot).await?;
        Ok(Counters::read(id, &page.pairs)?)
    }

    /// An inode's attributes. A directory's counters are read without a conflict: that would make changes of its
    /// entries conflict with each other.
    pub async fn attr(&self, id: InodeId, record: &InodeRecord) -> Result<Attr, OpError> {
        let counters = if is_directory(record.kind) { self.counters(id).await? } else { Counters::default() };
        Ok(attr_of(id, record, &counters))
    }

    /// The volume's secret for hashing names.
    async fn hash_key(&self, directory: InodeId) -> Result<HashKey, OpError> {
        if let Some(key) = self.ctx.hash_key {
            return Ok(key);
        }
        let volume = directory.volume();
        let value = self.tx.get(&volume::key(volume), Read::Snapshot).await?;
        let value = value.ok_or(OpError::NoVolume(volume.0))?;
        Ok(VolumeRecord::from_value(&value)?.hash_key()?)
    }

    /// Finds a name's entry, and a place for it.
    pub async fn slot(&self, directory: InodeId, name: &[u8]) -> Result<Slot, OpError> {
        self.touched.look(Fact::Entry(directory, Bytes::copy_from_slice(name)));
        let first = Cookie::first(&self.hash_key(directory).await?, name);
        let page =
            self.tx.get_range(dirent::slots(directory, first), RangeLimit::default(), self.read).await?;
        let mut free = first.0;
        let mut found = None;
        for (key, value) in &page.pairs {
            let cookie = dirent::parse_key(directory, key)?;
            let entry = DirentRecord::from_value(value)?;
            if cookie.0 == free {
                free += 1;
            }
            if entry.name == name {
                found = Some(Found { cookie, inode: InodeId(entry.inode) });
            }
        }
        let free = (free < first.0 + dirent::SAME_HASH_MAX).then_some(Cookie(free));
        Ok(Slot { found, free })
    }

    /// Whether a directory has no entries, such that an insertion conflicts.
    pub async fn is_empty(&self, directory: InodeId) -> Result<bool, OpError> {
        self.touched.look(Fact::Directory(directory));
        let limit = RangeLimit { pairs_max: 1, ..Default::default() };
        let page = self.tx.get_range(dirent::range(directory), limit, Read::Conflicting).await?;
        Ok(page.pairs.is_empty())
    }

    /// Stores an inode.
    pub fn put_inode(&self, id: InodeId, record: &InodeRecord) {
        self.touched.note(Fact::Inode(id));
        quota::add(self.tx, id, &self.touched.recount(id, Some(Charge::of(record))));
        self.tx.set(&inode::key(id), &record.to_value());
    }

    /// Takes an inode away.
    pub fn clear_inode(&self, id: InodeId) {
        quota::add(self.tx, id, &self.touched.recount(id, None));
        self.tx.clear(&inode::key(id));
    }

    /// Stores an entry.
    pub fn put_entry(&self, directory: InodeId, cookie: Cookie, name: &Bytes, inode: InodeId, kind: u32) {
        self.touched.note(Fact::Entry(directory, name.clone()));
        let entry = DirentRecord { name: name.clone(), inode: inode.0, kind };
        self.tx.set(&dirent::key(directory, cookie), &entry.to_value());
    }

    /// Takes an entry away.
    pub fn clear_entry(&self, directory: InodeId, cookie: Cookie, name: &[u8]) {
        self.touched.note(Fact::Entry(directory, Bytes::copy_from_slice(name)));
        self.tx.clear(&dirent::key(directory, cookie));
    }

    /// Counts a change of a directory's entries, and sets its times.
    pub fn count_entries(&self, directory: InodeId, entries: i64, subdirectories: i64) {
        self.touched.note(Fact::Inode(directory));
        for (counter, delta) in [(Counter::Entries, entries), (Counter::Subdirectories, subdirectories)] {
            if delta != 0 {
                self.tx.atomic(
                    &directory::key(directory, counter),
                    &number::encode_signed(delta),
                    Atomic::Add,
                );
            }
        }
        let now = number::encode(number::from_time(self.ctx.now_ns));
        self.tx.atomic(&directory::key(directory, Counter::Changed), &now, Atomic::Max);
    }

    /// Adds a name to an inode. The caller stores the record.
    pub fn add_link(&self, id: InodeId, record: &mut InodeRecord, parent: InodeId, name: &Bytes) {
        if record.links.len() < LINKS_INSIDE_MAX {
            record.links.push(LinkName { parent: parent.0, name: name.clone() });
        } else {
            self.tx.set(&inode::link_key(id, parent, name), &[]);
        }
    }

    /// Takes a name from an inode. The caller stores the record.
    pub fn remove_link(&self, id: InodeId, record: &mut InodeRecord, parent: InodeId, name: &[u8]) {
        match record.links.iter().position(|l| l.parent == parent.0 && l.name == name) {
            Some(place) => drop(record.links.remove(place)),
            None => self.tx.clear(&inode::link_key(id, parent, name)),
        }
    }

    /// All of an inode's names, at most `max` of those outside of its record.
    pub async fn links(
        &self,
        id: InodeId,
        record: &InodeRecord,
        max: usize,
    ) -> Result<Vec<LinkName>, OpError> {
        let mut links = record.links.clone();
        if links.len() as u32 != record.nlink && !is_directory(record.kind) {
            let limit = RangeLimit { pairs_max: max, ..Default::default() };
            let page = self.tx.get_range(inode::link_range(id), limit, self.read).await?;
            for (key, _) in &page.pairs {
                links.push(inode::parse_link_key(id, key)?);
            }
        }
        Ok(links)
    }

    /// Stores an inode that lost a name: in the trash or as an orphan if it was the last.
    pub async fn unname(
        &self,
        id: InodeId,
        record: &mut InodeRecord,
        parent: InodeId,
        name: &[u8],
    ) -> Result<(), OpError> {
        self.remove_link(id, record, parent, name);
        record.nlink = record.nlink.saturating_sub(1);
        record.ctime_ns = self.later(record.ctime_ns);
        // A directory has one name only.
        if record.nlink == 0 || is_directory(record.kind) {
            record.orphan = true;
            if !trash::enter(self, id, record, parent, name).await? {
                let orphan = OrphanRecord { since_ns: self.ctx.now_ns, parent: parent.0 };
                self.tx.set(&orphan::key(id), &orphan.to_value());
            }
        }
        // Of several names it counted for one quota, maybe not for that of the name that is left. What is there is there.
        if record.nlink == 1 && !record.orphan {
            let left = self.links(id, record, 1).await?;
            if let Some(left) = left.first()
                && let Some(InodeRecord { quota, .. }) = self.inode_if(InodeId(left.parent)).await?
                && quota != record.quota
            {
                record.quota = quota;
                self.put_inode(id, record);
                self.touched.forgive();
                return Ok(());
            }
        }
        self.put_inode(id, record);
        Ok(())
    }

    /// Takes from a file what gives its users privileges, as a write by somebody without them does. The caller stores
    /// the record.
    pub async fn kill_privileges(&self, id: InodeId, record: &mut InodeRecord) -> Result<(), OpError> {
        record.mode = permission::without_suidgid(record.kind, record.mode);
        if record.xattr_name_bytes > 0 && !is_directory(record.kind) {
            let key = xattr::key(id, CAPABILITY_XATTR);
            if self.tx.get(&key, self.read).await?.is_some() {
                self.tx.clear(&key);
                record.xattr_name_bytes =
                    record.xattr_name_bytes.saturating_sub(CAPABILITY_XATTR.len() as u32 + 1);
            }
        }
        Ok(())
    }

    /// Whether a write by the caller takes privileges away, whatever the request says.
    pub fn kills_privileges(&self, asked: bool) -> bool {
        asked || (!self.caller.kernel_checked && self.caller.uid != 0)
    }

    /// A chunk's record.
    pub async fn chunk(&self, chunk: ChunkId) -> Result<ChunkRecord, OpError> {
        match self.tx.get(&chunk::key(chunk), self.read).await? {
            Some(value) => Ok(ChunkRecord::from_value(&value)?),
            None => Err(Errno::ESTALE.into()),
        }
    }

    /// Where a chunk lies, as answers carry it: with the chunkservers' names only.
    pub async fn place(&self, chunk: ChunkId) -> Result<ChunkPlace, OpError> {
        let (chunk_key, location_key) = (chunk::key(chunk), location::key(chunk));
        let (record, location) = futures::join!(
            self.tx.get(&chunk_key, Read::Snapshot),
            self.tx.get(&location_key, Read::Snapshot)
        )
        .in_order()?;
        let record =
            record.ok_or_else(|| SchemaError::damaged("extent", format!("its chunk {chunk} isn't there")))?;
        let location = location.map(|v| LocationRecord::from_value(&v)).transpose()?.unwrap_or_default();
        Ok(place_of(chunk, &ChunkRecord::from_value(&record)?, &location))
    }
}

/// A chunk as answers carry it.
pub fn place_of(chunk: ChunkId, record: &ChunkRecord, location: &LocationRecord) -> ChunkPlace {
    let locations = location
        .copies
        .iter()
        .map(|name| ChunkLocation { chunkserver: name.clone(), ..Default::default() })
        .collect();
    ChunkPlace {
        chunk: chunk.0,
        locations,
        // What is here in part ends where extents name it, wherever that is.
        sealed: record.sealed && location.partial.is_none(),
        length: record.length,
        epoch: location.epoch,
        ..Default::default()
    }
}
