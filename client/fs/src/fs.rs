//! The filesystem: names, attributes, directories. Open files are in [`crate::files`].

use std::sync::Arc;

use bytes::Bytes;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    Access, Attr, Caller, Describe, Description, DirPage, FileKind, FsStat, GetAttr, GetXattr, Link,
    ListXattr, Lookup, Mkdir, Mknod, ReadDir, ReadLink, RemoveXattr, Rename, Rmdir, Seek, SeekWhence,
    SetAttr, SetXattr, StatFs, Symlink, Unlink,
};
use mooseng_wire::session::Squash;
use mooseng_wire::{FILE_SIZE_MAX, InodeId, NAME_BYTES_MAX, SYMLINK_BYTES_MAX, VolumeId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acls::{self, Acls};
use crate::alone::Eager;
use crate::append::Appenders;
use crate::atime::Touches;
use crate::caches::Cache;
use crate::chunkservers::Chunkservers;
use crate::cutting::Cutting;
use crate::error::FsError;
use crate::facts::{Facts, Invalidate, Validity};
use crate::files::{HandleId, Handles};
use crate::lifetime::Common;
use crate::lookahead::LookAhead;
use crate::opens::Opens;
use crate::owners::Locks;
use crate::read::{Reader, unexpected};
use crate::recalls::Recalls;
use crate::region::Region;
use crate::session::Session;
use crate::staleness;
use crate::writeback::WriteBack;

/// Entries of a directory that are read ahead with one request.
const LOOK_AHEAD_PAGE: u32 = 512;

/// A mounted volume. Cheap to clone; the last clone dropped ends its background work (use [`Self::close`] to end the session, too).
#[derive(Clone)]
pub struct FileSystem {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub session: Arc<Session>,
    pub facts: Arc<Facts>,
    pub recalls: Arc<Recalls>,
    pub region: Arc<Region>,
    pub opens: Arc<Opens>,
    pub handles: Handles,
    pub locks: Arc<Locks>,
    pub chunkservers: Arc<Chunkservers>,
    pub reader: Reader,
    pub appenders: Arc<Appenders>,
    pub writer: Arc<WriteBack>,
    pub touches: Arc<Touches>,
    pub lookahead: LookAhead,
    pub acls: Acls,
    /// Which directories are worth asking for alone.
    pub eager: Eager,
    /// Held by whoever asks for inode ids.
    pub asking_ids: tokio::sync::Mutex<()>,
    /// Files to be held with their directories are asked for, by the directory's number.
    pub asking_files: [tokio::sync::Mutex<()>; 16],
    pub common: Common,
    pub shutdown: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What a rename may do to an existing target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    #[default]
    Replace,
    /// Fails with EEXIST.
    NoReplace,
    /// Swaps the two.
    Exchange,
}

impl FileSystem {
    /// The volume.
    pub fn volume(&self) -> VolumeId {
        VolumeId(self.inner.session.config.volume)
    }

    /// Whether a master has said that there is no such volume any more: every operation fails with [`FsError::NoVolume`], for good.
    pub fn is_gone(&self) -> bool {
        self.inner.session.is_gone()
    }

    /// The root directory's inode.
    pub fn root(&self) -> u64 {
        self.inner.session.root()
    }

    /// Whether the region lets this client change nothing.
    pub fn is_read_only(&self) -> bool {
        self.inner.session.is_read_only()
    }

    /// Whether what this host's kernel has checked for a user counts: not for whom the region makes another one.
    pub fn trusts(&self, uid: u32) -> bool {
        match self.inner.session.squash() {
            Squash::None => true,
            Squash::Root => uid != 0,
            Squash::All => false,
        }
    }

    // ---- names ----

    /// Whoever shows answers further than they are asked for (a kernel) is told here when they aren't promised any more.
    pub fn show_through(&self, kernel: Arc<dyn Invalidate>) {
        self.inner.recalls.show_through(kernel);
    }

    /// The entry `name` of a directory.
    pub async fn lookup(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        self.find(caller, parent, name).await?.ok_or(FsError::Answered(libc::ENOENT))
    }

    /// [`Self::lookup`] for who also keeps that there is no such entry: none, then. For how long, [`Self::validity`] says.
    pub async fn find(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<Option<Attr>, FsError> {
        let name = checked(name)?;
        // What is promised may be shown to those whose rights somebody else has checked.
        if caller.kernel_checked
            && let Some(known) = self.known_entry(parent, &name)
        {
            return Ok(known);
        }
        self.asked(Cache::Entries, false);
        if caller.kernel_checked {
            self.look_ahead(parent);
        }
        let op = Op::Lookup(Lookup { parent, name });
        match self.attr_read(caller, "lookup", op).await {
            Ok(attr) => self.newest(attr).await.map(Some),
            Err(FsError::Answered(libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A name was asked for that isn't known here. Where several are, one after the other, the whole directory is read, with attributes.
    fn look_ahead(&self, directory: u64) {
        let now = Instant::now();
        if !self.inner.lookahead.asked(directory, now) {
            return;
        }
        let fs = self.clone();
        self.inner.region.spawn(async move {
            let mut cookie = 0;
            let outcome = loop {
                // The attributes are kept where the answer is taken in.
                let read = ReadDir { inode: directory, cookie, entries_max: LOOK_AHEAD_PAGE, plus: true };
                let page = match fs.read_dir(&daemon(), read).await {
                    Ok(page) => page,
                    Err(error) => break Err(error),
                };
                match page.entries.last() {
                    Some(last) if !page.end && fs.inner.lookahead.go_on(directory, page.entries.len()) => {
                        cookie = last.cookie;
                    }
                    _ => break Ok(()),
                }
            };
            fs.inner.lookahead.ended(directory, Instant::now());
            if let Err(error) = outcome {
                tracing::debug!(directory, %error, "a directory couldn't be read ahead");
            }
        });
    }

    /// What is promised of a name, without asking anybody. For callers whose rights are checked.
    #[allow(clippy::option_option, reason = "whether it is known, and whether there is an entry")]
    pub fn known_entry(&self, parent: u64, name: &[u8]) -> Option<Option<Attr>> {
        // A name that can't exist isn't merely absent: whoever asks is told why.
        let name = checked(name).ok()?;
        let known = match self.inner.session.known_entry(parent, &name)? {
            Some(inode) => Some(self.known_attr(inode)?),
            None => None,
        };
        self.asked(Cache::Entries, true);
        Some(known)
    }

    /// A cache was asked for something that it has, or not.
    pub(crate) fn asked(&self, cache: Cache, has: bool) {
        self.inner.region.counters.caches.asked(cache, has);
    }

    /// [`Self::known_attr`] for somebody who asks for just that, and then [`Self::getattr`] where it isn't known.
    pub fn attr_at_once(&self, inode: u64) -> Option<Attr> {
        let known = self.known_attr(inode)?;
        self.asked(Cache::Attributes, true);
        Some(known)
    }

    /// What is promised of an inode, without asking anybody.
    pub fn known_attr(&self, inode: u64) -> Option<Attr> {
        let session = &self.inner.session;
        // The life is looked at after the promise, which is of it then.
        let known = || session.known_inode(inode).map(|known| (known.attr, session.life()));
        self.inner.writer.buffers.show_known(inode, known)
    }

    /// Names the time since which an inode has been promised without a break; none if it isn't. Whatever was read of it in that time is true
    /// still.
    pub fn hold(&self, inode: u64) -> Option<u64> {
        self.inner.session.known_hold(inode)
    }

    /// How long attributes that were just answered may be kept, and the entry that led to them.
    pub fn validity(&self, attr: Option<&Attr>, entry: Option<(u64, &[u8])>) -> Validity {
        let entry = entry.map(|(directory, name)| (directory, Bytes::copy_from_slice(name)));
        self.inner.session.validity(attr, entry.as_ref().map(|(directory, name)| (*directory, name)))
    }

    /// An inode's attributes.
    pub async fn getattr(&self, caller: &Caller, inode: u64) -> Result<Attr, FsError> {
        if let Some(attr) = self.attr_at_once(inode) {
            return Ok(attr);
        }
        self.asked(Cache::Attributes, false);
        let attr = self.attr_read(caller, "getattr", Op::GetAttr(GetAttr { inode })).await?;
        self.newest(attr).await
    }

    /// What is promised by now of an inode that was just answered: a write of ours may have reached the region after the answer left it. What was written in
    /// an earlier life of the session is sent or given up first: nobody knows before what the file is.
    async fn newest(&self, mut answered: Attr) -> Result<Attr, FsError> {
        let inode = answered.inode;
        if self.inner.writer.buffers.is_foreign(inode, self.inner.session.life()) {
            self.inner.writer.flush_beneath(inode).await?;
            answered = self.attr_read(&daemon(), "getattr", Op::GetAttr(GetAttr { inode })).await?;
        }
        Ok(self.known_attr(inode).unwrap_or_else(|| self.shown(answered)))
    }

    /// Attributes as the region has them, beneath what is buffered here.
    pub(crate) fn shown(&self, mut attr: Attr) -> Attr {
        self.inner.writer.buffers.show(&mut attr);
        attr
    }

    /// Changes attributes, the size included.
    pub async fn setattr(&self, caller: &Caller, change: SetAttr) -> Result<Attr, FsError> {
        if change.size.is_some_and(|size| size > FILE_SIZE_MAX) {
            return Err(FsError::FileTooLarge);
        }
        self.paced(0).await?;
        if change.atime_ns.is_some() || change.atime_now {
            self.inner.touches.drop_inode(change.inode);
        }
        if change.mode.is_none() {
            let attr = self.set_attributes(caller, change).await?;
            return self.changed_durably(change.inode, attr).await;
        }
        // A mode is part of an access control list.
        self.inner.acls.forget(change.inode);
        let outcome = self.set_attributes(caller, change).await;
        self.inner.acls.forget(change.inode);
        self.changed_durably(change.inode, outcome?).await
    }

    async fn set_attributes(&self, caller: &Caller, change: SetAttr) -> Result<Attr, FsError> {
        self.inner.region.behind_abandoned("setattr", &[change.inode]).await?;
        // What is buffered goes in the daemon's name, whose word isn't taken where anybody's isn't.
        if caller.kernel_checked
            && self.inner.session.squash() == Squash::None
            && let Some(attr) = self.inner.writer.buffer_settings(&change).await?
        {
            return Ok(attr);
        }
        if let Some(attr) = self.set_alone(caller, &change).await? {
            return Ok(attr);
        }
        // What was written before comes before: a truncation cuts it, times that are set stay.
        let cutting = self.flush_before_setting(&change).await?;
        let set = self.attr_change(caller, "setattr", Op::SetAttr(change)).await;
        self.was_set(cutting, set)
    }

    /// Where bytes are kept for which the region has no room, and the size is changed: what [`Self::was_set`] tells of the change.
    async fn flush_before_setting(&self, change: &SetAttr) -> Result<Option<Cutting>, FsError> {
        let writer = &self.inner.writer;
        match change.size {
            Some(size) => writer.flush_before_cut(change, size).await,
            None => writer.flush_before(change.inode).await.map(|()| None),
        }
    }

    /// Attributes were set, or that failed; answers them as they are shown.
    fn was_set(&self, cutting: Option<Cutting>, set: Result<Attr, FsError>) -> Result<Attr, FsError> {
        let Some(cutting) = cutting else { return set };
        cutting.ended(set.as_ref());
        set.map(|attr| self.shown(attr))
    }

    /// Changes the size, among others, through an open handle: under its locks, if it has any.
    pub async fn setattr_open(
        &self,
        caller: &Caller,
        handle: HandleId,
        change: SetAttr,
    ) -> Result<Attr, FsError> {
        let Some(tenure) = self.guard(handle)? else { return self.setattr(caller, change).await };
        self.paced(0).await?;
        self.inner.region.behind_abandoned("setattr", &[change.inode]).await?;
        let cutting = self.flush_before_setting(&change).await?;
        // Not in the session's next life, in which somebody else may have the lock.
        let within = tenure.under_locks();
        let done = self.inner.region.change_in_life(caller, Op::SetAttr(change), within).await;
        let set = self.was_set(cutting, done.and_then(|reply| self.attr_of("setattr", reply)));
        self.still_guarded(handle, Some(tenure))?;
        self.changed_durably(change.inode, set?).await
    }

    /// Makes a file, fifo, socket or device.
    pub async fn mknod(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, FsError> {
        self.paced(0).await?;
        let mknod = Mknod { parent, name: checked(name)?, kind: kind.into(), mode, rdev };
        if let Some(attr) = self.mknod_alone(caller, &mknod).await? {
            return self.named_durably(&[parent], attr).await;
        }
        let attr = self.attr_change(caller, "mknod", Op::Mknod(mknod)).await?;
        self.changed_in(caller, parent);
        self.named_durably(&[parent], attr).await
    }

    /// Makes a directory.
    pub async fn mkdir(&self, caller: &Caller, parent: u64, name: &[u8], mode: u32) -> Result<Attr, FsError> {
        self.paced(0).await?;
        let mkdir = Mkdir { parent, name: checked(name)?, mode, alone: self.may_alone(caller) };
        if let Some(attr) = self.mkdir_alone(caller, &mkdir).await? {
            return self.named_durably(&[parent], attr).await;
        }
        let attr = self.attr_change(caller, "mkdir", Op::Mkdir(mkdir)).await?;
        self.made_directory(caller, attr.inode);
        self.changed_in(caller, parent);
        self.named_durably(&[parent], attr).await
    }

    /// Makes a symbolic link.
    pub async fn symlink(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, FsError> {
        let name = checked(name)?;
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(FsError::NameTooLong(target.len()));
        }
        self.paced(0).await?;
        let symlink = Symlink { parent, name, target: Bytes::copy_from_slice(target) };
        if let Some(attr) = self.symlink_alone(caller, &symlink).await? {
            return self.named_durably(&[parent], attr).await;
        }
        let attr = self.attr_change(caller, "symlink", Op::Symlink(symlink)).await?;
        self.changed_in(caller, parent);
        self.named_durably(&[parent], attr).await
    }

    /// A symbolic link's target.
    pub async fn readlink(&self, caller: &Caller, inode: u64) -> Result<Bytes, FsError> {
        if let Some(known) = self.inner.session.known_inode(inode)
            && let Some(target) = known.target
        {
            return Ok(target);
        }
        match self.inner.region.read(caller, Op::ReadLink(ReadLink { inode })).await? {
            Reply::Value(value) => Ok(value.value),
            other => Err(unexpected("readlink", &other)),
        }
    }

    /// Makes a further name for a file. EXDEV where the directory is of another volume.
    pub async fn link(
        &self,
        caller: &Caller,
        inode: u64,
        new_parent: u64,
        new_name: &[u8],
    ) -> Result<Attr, FsError> {
        let new_name = checked(new_name)?;
        one_volume(inode, new_parent)?;
        self.paced(0).await?;
        // What is buffered comes first: after a lapse it would count as overtaken by this change of the file.
        self.inner.writer.flush_before(inode).await?;
        let linked = self.attr_change(caller, "link", Op::Link(Link { inode, new_parent, new_name })).await?;
        // The region doesn't know what was buffered of the file since. The link is made, whatever becomes of that.
        let linked = self.newest(linked).await.unwrap_or(linked);
        self.named_durably(&[new_parent, inode], linked).await
    }

    /// Removes a name.
    pub async fn unlink(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<(), FsError> {
        let name = checked(name)?;
        self.paced(0).await?;
        let op = Op::Unlink(Unlink { parent, name: name.clone() });
        if self.remove_alone(caller, (parent, &name), op.clone()).await? {
            return self.named_durably(&[parent], ()).await;
        }
        self.done(caller, "unlink", op).await?;
        self.changed_in(caller, parent);
        self.named_durably(&[parent], ()).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<(), FsError> {
        let name = checked(name)?;
        self.paced(0).await?;
        let op = Op::Rmdir(Rmdir { parent, name: name.clone() });
        if self.remove_alone(caller, (parent, &name), op.clone()).await? {
            return self.named_durably(&[parent], ()).await;
        }
        self.done(caller, "rmdir", op).await?;
        self.changed_in(caller, parent);
        self.named_durably(&[parent], ()).await
    }

    /// Renames. EXDEV where the two directories are of different volumes.
    pub async fn rename(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let (name, new_name) = (checked(name)?, checked(new_name)?);
        one_volume(parent, new_parent)?;
        self.paced(0).await?;
        let (no_replace, exchange) = (mode == RenameMode::NoReplace, mode == RenameMode::Exchange);
        let rename = Rename { parent, name: name.clone(), new_parent, new_name, no_replace, exchange };
        if self.rename_alone(caller, &rename).await? {
            return self.named_durably(&[parent, new_parent], ()).await;
        }
        if mode != RenameMode::NoReplace {
            self.flush_before_replace(parent, &name).await?;
        }
        self.done(caller, "rename", Op::Rename(rename)).await?;
        self.changed_in(caller, parent);
        if new_parent != parent {
            self.changed_in(caller, new_parent);
        }
        self.named_durably(&[parent, new_parent], ()).await
    }

    /// A rename that replaces a file never commits before its source's data.
    async fn flush_before_replace(&self, parent: u64, name: &Bytes) -> Result<(), FsError> {
        let writer = &self.inner.writer;
        if writer.buffers.bytes() == 0 {
            return Ok(());
        }
        let inode = match self.inner.facts.entry(parent, name) {
            Some((inode, _)) => inode,
            None => match self.lookup(&daemon(), parent, name).await {
                Ok(attr) => Some(attr.inode),
                // The rename says so better.
                Err(FsError::Answered(_)) => None,
                Err(error) => return Err(error),
            },
        };
        match inode {
            Some(inode) => writer.flush(inode).await,
            None => Ok(()),
        }
    }

    /// A page of a directory behind `cookie` (0 for its start). "." and ".." aren't in it. Nothing but names, inodes and kinds.
    pub async fn readdir(
        &self,
        caller: &Caller,
        inode: u64,
        cookie: u64,
        entries_max: u32,
    ) -> Result<DirPage, FsError> {
        if caller.kernel_checked
            && let Some((entries, end)) =
                self.inner.session.known_listing(inode, cookie, entries_max as usize)
        {
            self.asked(Cache::Lists, true);
            return Ok(DirPage { entries, end });
        }
        self.asked(Cache::Lists, false);
        self.read_dir(caller, ReadDir { inode, cookie, entries_max, plus: false }).await
    }

    async fn read_dir(&self, caller: &Caller, read: ReadDir) -> Result<DirPage, FsError> {
        match self.inner.region.read(caller, Op::ReadDir(read)).await? {
            Reply::DirPage(page) => Ok(page),
            other => Err(unexpected("readdir", &other)),
        }
    }

    // ---- the rest ----

    /// Whether the caller may: `mask` of 4 read, 2 write, 1 execute.
    pub async fn access(&self, caller: &Caller, inode: u64, mask: u32) -> Result<(), FsError> {
        match self.inner.region.read(caller, Op::Access(Access { inode, mask })).await? {
            Reply::Done(_) | Reply::Entry(_) => Ok(()),
            other => Err(unexpected("access", &other)),
        }
    }

    /// The next data or hole at or behind `offset`.
    pub async fn seek(
        &self,
        caller: &Caller,
        inode: u64,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64, FsError> {
        if let Err(error) = self.inner.writer.flush_before(inode).await {
            if !self.inner.writer.is_kept(inode) {
                return Err(error);
            }
            // The region doesn't know where data lies that it has no room for. A file without holes is always a true answer.
            let size = self.getattr(caller, inode).await?.size;
            return match whence {
                _ if offset >= size => Err(FsError::Answered(libc::ENXIO)),
                SeekWhence::Hole => Ok(size),
                _ => Ok(offset),
            };
        }
        match self.inner.region.read(caller, Op::Seek(Seek { inode, offset, whence: whence.into() })).await? {
            Reply::Seek(to) => Ok(to.offset),
            other => Err(unexpected("seek", &other)),
        }
    }

    /// An extended attribute's value.
    pub async fn getxattr(&self, caller: &Caller, inode: u64, name: &[u8]) -> Result<Bytes, FsError> {
        if acls::is_acl(name) {
            return self.get_acl(caller, inode, name).await;
        }
        if name == staleness::ATTRIBUTE {
            return staleness::of(&self.inner.region, caller, inode).await;
        }
        if let Some(errno) = self.absent_xattr(caller, inode, name) {
            return Err(FsError::Answered(errno));
        }
        match self
            .inner
            .region
            .read(caller, Op::GetXattr(GetXattr { inode, name: Bytes::copy_from_slice(name) }))
            .await?
        {
            Reply::Value(value) => Ok(value.value),
            other => Err(unexpected("getxattr", &other)),
        }
    }

    /// How the region would answer for an attribute of an inode that is promised to have none.
    fn absent_xattr(&self, caller: &Caller, inode: u64, name: &[u8]) -> Option<i32> {
        if name.starts_with(b"system.") {
            return Some(libc::ENOTSUP);
        }
        let usual = [&b"user."[..], b"trusted.", b"security."]
            .iter()
            .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix) && !name.contains(&0));
        let none = usual
            && name.len() <= NAME_BYTES_MAX
            && caller.kernel_checked
            && self.known_attr(inode).is_some_and(|attr| attr.no_xattrs);
        none.then_some(libc::ENODATA)
    }

    /// The names of an inode's extended attributes.
    pub async fn listxattr(&self, caller: &Caller, inode: u64) -> Result<Vec<Bytes>, FsError> {
        let has_none = |attr: Attr| attr.no_xattrs && attr.no_acls;
        if caller.kernel_checked && self.known_attr(inode).is_some_and(has_none) {
            return Ok(Vec::new());
        }
        match self.inner.region.read(caller, Op::ListXattr(ListXattr { inode })).await? {
            Reply::Names(names) => Ok(names.names),
            other => Err(unexpected("listxattr", &other)),
        }
    }

    /// Sets an extended attribute. With `create` it must be new, with `replace` it must exist.
    pub async fn setxattr(
        &self,
        caller: &Caller,
        inode: u64,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), FsError> {
        self.paced(0).await?;
        let set = SetXattr {
            inode,
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            create,
            replace,
        };
        if acls::is_acl(name) {
            return self.change_acl(caller, inode, Op::SetXattr(set)).await;
        }
        // As with a link.
        self.inner.writer.flush_before(inode).await?;
        self.done(caller, "setxattr", Op::SetXattr(set)).await?;
        self.changed_durably(inode, ()).await
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, caller: &Caller, inode: u64, name: &[u8]) -> Result<(), FsError> {
        self.paced(0).await?;
        let remove = Op::RemoveXattr(RemoveXattr { inode, name: Bytes::copy_from_slice(name) });
        if acls::is_acl(name) {
            return self.change_acl(caller, inode, remove).await;
        }
        self.inner.writer.flush_before(inode).await?;
        self.done(caller, "removexattr", remove).await?;
        self.changed_durably(inode, ()).await
    }

    /// Room and files of the filesystem.
    pub async fn statfs(&self, caller: &Caller, inode: u64) -> Result<FsStat, FsError> {
        match self.inner.region.read(caller, Op::StatFs(StatFs { inode })).await? {
            Reply::StatFs(stat) => Ok(stat),
            other => Err(unexpected("statfs", &other)),
        }
    }

    /// Where an inode's data lies.
    pub async fn describe(&self, caller: &Caller, inode: u64) -> Result<Description, FsError> {
        self.inner.writer.flush_beneath(inode).await?;
        match self.inner.region.read(caller, Op::Describe(Describe { inode })).await? {
            Reply::Description(description) => Ok(description),
            other => Err(unexpected("describe", &other)),
        }
    }

    // ---- shared ----

    async fn attr_read(&self, caller: &Caller, what: &str, op: Op) -> Result<Attr, FsError> {
        let reply = self.inner.region.read(caller, op).await?;
        self.attr_of(what, reply)
    }

    async fn attr_change(&self, caller: &Caller, what: &str, op: Op) -> Result<Attr, FsError> {
        let reply = self.inner.region.change(caller, op).await?;
        self.attr_of(what, reply)
    }

    fn attr_of(&self, what: &str, reply: Reply) -> Result<Attr, FsError> {
        let attr = match reply {
            Reply::Entry(entry) => entry.attr,
            Reply::Created(created) => created.attr,
            Reply::Written(written) => written.attr,
            other => return Err(unexpected(what, &other)),
        };
        let attr =
            attr.ok_or_else(|| FsError::Malformed(format!("no attributes in the answer to {what}")))?;
        self.inner.opens.saw_size(attr.inode, attr.size);
        Ok(attr)
    }

    pub(crate) async fn done(&self, caller: &Caller, what: &str, op: Op) -> Result<(), FsError> {
        match self.inner.region.change(caller, op).await? {
            Reply::Done(_) | Reply::Entry(_) => Ok(()),
            other => Err(unexpected(what, &other)),
        }
    }
}

/// What the client does on its own account.
pub(crate) fn daemon() -> Caller {
    Caller { kernel_checked: true, own_account: true, ..Caller::default() }
}

/// Refuses what concerns inodes of two volumes.
fn one_volume(one: u64, other: u64) -> Result<(), FsError> {
    let same = InodeId(one).volume() == InodeId(other).volume();
    if same { Ok(()) } else { Err(FsError::Answered(libc::EXDEV)) }
}

pub(crate) fn checked(name: &[u8]) -> Result<Bytes, FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong(name.len()));
    }
    if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
        return Err(FsError::Invalid("a name is empty or holds a slash or a zero byte".into()));
    }
    Ok(Bytes::copy_from_slice(name))
}
