//! Open files: handles, reads, writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use mooseng_transport::trace;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, Caller, Create, FsRequest, GetAttr, Open, SetAttr, Sync};
use tokio::time::Instant;

use crate::atime;
use crate::caches::Cache;
use crate::error::FsError;
use crate::fs::{FileSystem, daemon};
use crate::near;
use crate::opens::OpenInodeState;
use crate::read::{Pattern, unexpected};
use crate::writeback::{How, Place};

/// Names an open file to the client.
pub type HandleId = u64;

/// An opened file.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// For reads, writes and the release.
    pub handle: HandleId,
    /// The attributes, if the master sent them along.
    pub attr: Option<Attr>,
}

/// A created, or opened, file.
#[derive(Clone, Debug, PartialEq)]
pub struct Created {
    /// For reads, writes and the release.
    pub handle: HandleId,
    /// The attributes.
    pub attr: Attr,
    /// False if the file existed.
    pub created: bool,
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// To the end of the file if the handle was opened with O_APPEND, to the offset otherwise.
    #[default]
    AsOpened,
    /// To the offset, also on a handle opened with O_APPEND (pages written back from a shared mapping).
    At,
    /// To the end of the file.
    Append,
}

/// How a write is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Where it goes.
    pub mode: WriteMode,
    /// Clears setuid and setgid, as a write by an unprivileged user does.
    pub kill_suidgid: bool,
    /// Pages of a shared mapping, which the kernel writes back.
    pub of_mapping: bool,
}

#[derive(Debug)]
pub(crate) struct Handle {
    pub inode: u64,
    pub flags: i32,
    pub state: Arc<OpenInodeState>,
    pattern: Mutex<Pattern>,
    /// Failed write-backs of the inode that this handle's fsync has told of, and its close.
    failures_seen: AtomicU64,
    failures_closed: AtomicU64,
    /// The last run of failures of data that is kept that either has told of.
    refusal_seen: AtomicU64,
}

/// Open handles by number.
#[derive(Debug)]
pub(crate) struct Handles {
    /// The last one of the mount.
    last: Arc<AtomicU64>,
    by_id: Mutex<BTreeMap<HandleId, Arc<Handle>>>,
}

impl Handles {
    /// None yet; their numbers are drawn from there.
    pub fn numbered_by(last: Arc<AtomicU64>) -> Self {
        Self { last, by_id: Mutex::default() }
    }
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<HandleId, Arc<Handle>>) -> T) -> T {
        f(&mut self.by_id.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn add(&self, handle: Handle) -> HandleId {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.map(|map| map.insert(id, Arc::new(handle)));
        id
    }
    pub fn get(&self, id: HandleId) -> Result<Arc<Handle>, FsError> {
        self.map(|map| map.get(&id).cloned()).ok_or(FsError::BadHandle(id))
    }
}

/// An open that is counted, and counted back when the future that was to complete it is dropped.
pub(crate) struct Registration {
    fs: FileSystem,
    inode: u64,
    pub state: Arc<OpenInodeState>,
    kept: bool,
}

impl Registration {
    /// Counts an open of an inode.
    pub fn new(fs: &FileSystem, inode: u64) -> Self {
        Self { fs: fs.clone(), inode, state: fs.inner.opens.add(inode), kept: false }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.kept && self.fs.inner.opens.remove(self.inode) {
            let (fs, inode) = (self.fs.clone(), self.inode);
            self.fs.inner.region.spawn(async move { fs.released(inode).await });
        }
    }
}

/// A handle of which nobody has heard: it is closed if that can't be told, or nobody waits for it any more.
struct Untaken<'a> {
    fs: &'a FileSystem,
    handle: Option<HandleId>,
}

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        let fs = self.fs.clone();
        self.fs.inner.region.spawn(async move {
            if let Err(error) = fs.release(handle).await {
                tracing::debug!(%error, "a file that was made couldn't be closed");
            }
        });
    }
}

impl FileSystem {
    /// Opens a file. `flags` as open(2) has them; O_CREAT is [`Self::create`]'s.
    pub async fn open(&self, caller: &Caller, inode: u64, flags: i32) -> Result<Opened, FsError> {
        let (registration, attr) = self.register(caller, inode, flags).await?;
        let truncate = flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY;
        let attr = if truncate {
            let change = SetAttr {
                inode,
                size: Some(0),
                by_handle: true,
                kill_suidgid: caller.uid != 0,
                ..SetAttr::default()
            };
            Some(self.setattr(caller, change).await.map_err(|e| e.on_handle(inode))?)
        } else {
            attr
        };
        Ok(Opened { handle: self.keep(registration, flags), attr })
    }

    /// Opens the file `name`, which is made if it doesn't exist. `flags` as open(2) has them: O_EXCL and O_TRUNC count. The caller's groups are those that it names.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<Created, FsError> {
        self.create_as(caller, || caller.groups.clone(), (parent, name), mode, flags).await
    }

    /// [`Self::create`] for a caller whose groups are only looked up where somebody else has made the file meanwhile: a kernel that knew of none has checked the
    /// rights of nobody but a maker.
    pub async fn create_as(
        &self,
        caller: &Caller,
        groups: impl Fn() -> Vec<u32>,
        (parent, name): (u64, &[u8]),
        mode: u32,
        flags: i32,
    ) -> Result<Created, FsError> {
        let created = self.create_open(caller, groups, (parent, name), mode, flags).await?;
        if !created.created {
            return Ok(created);
        }
        let mut untaken = Untaken { fs: self, handle: Some(created.handle) };
        let durable = self.named_durably(&[parent], created).await?;
        untaken.handle = None;
        Ok(durable)
    }

    async fn create_open(
        &self,
        caller: &Caller,
        groups: impl Fn() -> Vec<u32>,
        (parent, name): (u64, &[u8]),
        mode: u32,
        flags: i32,
    ) -> Result<Created, FsError> {
        let name = crate::fs::checked(name)?;
        self.paced(0).await?;
        let exclusive = flags & libc::O_EXCL != 0;
        let create = Create { parent, name: name.clone(), mode, exclusive, truncate: false };
        if let Some((attr, registration)) = self.create_alone(caller, &create).await? {
            registration.state.set_size(0);
            return Ok(Created { handle: self.keep(registration, flags), attr, created: true });
        }
        let wanted = flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY;
        let deadline = Instant::now() + self.inner.region.patience();
        loop {
            // A file that is there is cut once it is open: what is buffered here of it must not come after that, and its rights are looked at first.
            let op = Op::Create(Create { parent, name: name.clone(), mode, exclusive, truncate: false });
            let life = self.inner.session.life();
            let (reply, order) = self.inner.region.ordered_change(caller, op).await?;
            let (attr, created) = match reply {
                Reply::Created(reply) => (
                    reply
                        .attr
                        .ok_or_else(|| FsError::Malformed("no attributes in the answer to create".into()))?,
                    reply.created,
                ),
                other => return Err(unexpected("create", &other)),
            };
            if created {
                self.changed_in(caller, parent);
                // The region has opened it, unless the session has declared its opens since then without this one.
                let registration = Registration::new(self, attr.inode);
                let state = registration.state.clone();
                state.telling();
                if self.inner.session.declared_before(order) && life == self.inner.session.life() {
                    state.held();
                    state.set_size(attr.size);
                    return Ok(Created { handle: self.keep(registration, flags), attr, created });
                }
            }
            // Who made the file may open it whatever its mode says. Of one that was there nobody has looked whether this caller may.
            let registrar = match created {
                true => daemon(),
                false => Caller { kernel_checked: false, groups: groups(), ..caller.clone() },
            };
            match self.register(&registrar, attr.inode, flags & !libc::O_TRUNC).await {
                Ok((registration, _)) => {
                    let attr = if wanted && !created {
                        let cut = SetAttr {
                            inode: attr.inode,
                            size: Some(0),
                            by_handle: true,
                            kill_suidgid: caller.uid != 0,
                            ..SetAttr::default()
                        };
                        self.setattr(caller, cut).await?
                    } else {
                        attr
                    };
                    registration.state.set_size(attr.size);
                    return Ok(Created { handle: self.keep(registration, flags), attr, created });
                }
                // Somebody removed the file between the two steps: for us it never existed.
                Err(FsError::Answered(libc::ENOENT | libc::ESTALE))
                    if !exclusive && Instant::now() < deadline => {}
                // This was the one who made it, and it was there until somebody removed it, while the session was taken up anew: ESTALE would say that
                // nothing was done.
                Err(FsError::Answered(libc::ENOENT | libc::ESTALE)) if created => {
                    return Err(FsError::Answered(libc::EIO));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn register(
        &self,
        caller: &Caller,
        inode: u64,
        flags: i32,
    ) -> Result<(Registration, Option<Attr>), FsError> {
        let inner = &self.inner;
        let registration = Registration::new(self, inode);
        let state = registration.state.clone();
        let _gate = state.gate.lock().await;
        // The kernel has checked permissions, and the inode is held open already: nothing is left to ask.
        if caller.kernel_checked && state.is_held() {
            return Ok((registration, None));
        }
        state.telling();
        let op = Op::Open(Open { inode, flags: flags as u32 });
        if caller.kernel_checked
            && flags & libc::O_ACCMODE == libc::O_RDONLY
            && let Some(attr) = self.look_near(caller, inode).await
        {
            // The home, far away, hears of it meanwhile: what loses its last name is kept from then on. This registration of its own
            // lasts until then, so that a close can't overtake the open.
            let held = Registration::new(self, inode);
            let (region, caller) = (inner.region.clone(), caller.clone());
            inner.region.spawn(async move {
                match region.tell_home(&caller, op).await {
                    Ok(Reply::Entry(_) | Reply::Done(_)) => held.state.held(),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(inode, %error, "the home didn't hear of an open"),
                }
            });
            return Ok((registration, Some(attr)));
        }
        let reply = inner.region.read(caller, op).await?;
        let attr = match reply {
            Reply::Entry(entry) => entry.attr,
            Reply::Done(_) => None,
            other => return Err(unexpected("open", &other)),
        };
        state.held();
        if let Some(attr) = &attr {
            state.set_size(attr.size);
        }
        drop(_gate);
        Ok((registration, attr))
    }

    /// What the replica in this host's region says of a file.
    async fn look_near(&self, caller: &Caller, inode: u64) -> Option<Attr> {
        if !self.inner.session.near.is_away() {
            return None;
        }
        if let Some(known) = self.inner.session.known_inode(inode) {
            return Some(known.attr);
        }
        let get = FsRequest { caller: Some(caller.clone()), op: Some(Op::GetAttr(GetAttr { inode })) };
        match self.inner.region.near(&get).await? {
            Reply::Entry(entry) => entry.attr,
            _ => None,
        }
    }

    fn keep(&self, mut registration: Registration, flags: i32) -> HandleId {
        registration.kept = true;
        let state = registration.state.clone();
        // What nobody has heard of is told to those who come later, too.
        let failures_seen = AtomicU64::new(state.heard_up_to());
        let inode = registration.inode;
        self.inner.handles.add(Handle {
            inode,
            flags,
            state,
            pattern: Mutex::default(),
            failures_seen,
            failures_closed: AtomicU64::new(0),
            refusal_seen: AtomicU64::new(0),
        })
    }

    /// The inode behind a handle.
    pub fn inode_of(&self, handle: HandleId) -> Result<u64, FsError> {
        Ok(self.inner.handles.get(handle)?.inode)
    }

    /// Closes a handle. The last one of an inode seals its chunk and lets an unlinked file go.
    pub async fn release(&self, handle: HandleId) -> Result<(), FsError> {
        self.unlock_handle(handle).await;
        let handle = self.inner.handles.map(|map| map.remove(&handle)).ok_or(FsError::BadHandle(handle))?;
        if self.inner.opens.remove(handle.inode) {
            // Goes on when the caller stops waiting.
            let (fs, inode) = (self.clone(), handle.inode);
            let released = tokio::spawn(trace::carried(async move { fs.released(inode).await }));
            released
                .await
                .map_err(|e| FsError::Internal(format!("releasing inode {}: {e}", handle.inode)))?;
        }
        Ok(())
    }

    pub(crate) async fn released(&self, inode: u64) {
        let inner = &self.inner;
        let Some(state) = inner.opens.get(inode) else { return };
        // Before the gate: opening the file again needn't wait for its data.
        if let Err(error) = inner.writer.flush_along(inode).await {
            tracing::debug!(inode, %error, "buffered data couldn't be sent at the release");
        }
        let _gate = state.gate.lock().await;
        if state.local() > 0 {
            return;
        }
        inner.appenders.close(&daemon(), inode).await;
        inner.opens.close(inode, inner.session.order());
    }

    /// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
    pub async fn read(
        &self,
        caller: &Caller,
        handle: HandleId,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, FsError> {
        let guarded = self.guard(handle)?;
        let bytes = self.read_open(caller, handle, offset, length).await?;
        self.still_guarded(handle, guarded)?;
        Ok(bytes)
    }

    async fn read_open(
        &self,
        caller: &Caller,
        handle: HandleId,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, FsError> {
        let inner = &self.inner;
        let open = inner.handles.get(handle)?;
        if open.flags & libc::O_ACCMODE == libc::O_WRONLY {
            return Err(FsError::BadHandle(handle));
        }
        // Opening was the permission to read: chmod and unlink don't take it back.
        let caller = Caller { kernel_checked: true, ..caller.clone() };
        let written = inner.writer.read(open.inode, offset, length.into());
        self.asked(Cache::Written, written.is_some());
        if let Some(bytes) = written {
            return Ok(bytes);
        }
        // Looked at before the region is asked: what leaves meanwhile is in its answer, or here.
        let (over, reach) = loop {
            inner.writer.flush_beneath(open.inode).await?;
            if let Some(over) = inner.writer.over(open.inode, offset, length.into()) {
                break over;
            }
        };
        let (bytes, attr) = inner
            .reader
            .read(&caller, open.inode, offset, length.into(), &open.pattern)
            .await
            .map_err(|e| e.on_handle(open.inode))?;
        let bytes = laid_over(bytes, offset, length, &over, reach);
        if let Some(attr) = attr {
            open.state.set_size(attr.size);
            let now = inner.session.clock.unix_ns();
            if inner.session.config.atime && open.flags & libc::O_NOATIME == 0 && atime::moves(&attr, now) {
                inner.touches.add(open.inode, now);
            }
        }
        Ok(bytes)
    }

    /// Writes `data` at `offset`, or at the end of the file for a handle opened with O_APPEND. Durable when answered where the handle was opened with O_SYNC or
    /// O_DSYNC, or the mount waits (`sync`). Answers where the data begins and the attributes afterwards.
    pub async fn write(
        &self,
        caller: &Caller,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        options: WriteOptions,
    ) -> Result<(u64, Option<Attr>), FsError> {
        let started = Instant::now();
        let inner = &self.inner;
        let open = inner.handles.get(handle)?;
        if open.flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(FsError::BadHandle(handle));
        }
        let append = match options.mode {
            WriteMode::AsOpened => open.flags & libc::O_APPEND != 0,
            WriteMode::At => false,
            WriteMode::Append => true,
        };
        if data.is_empty() {
            return Ok((offset, None));
        }
        inner.region.behind_abandoned("write", &[open.inode]).await?;
        // Pages of mappings have been written already: the kernel waits for them, and others for the kernel.
        if !options.of_mapping {
            self.paced(data.len() as u64).await?;
        }
        let guarded = self.guard(handle)?;
        let caller = Caller { kernel_checked: true, ..caller.clone() };
        let (inode, writer) = (open.inode, &inner.writer);
        let place = if append { Place::End } else { Place::At(offset) };
        let how = How { kill_suidgid: options.kill_suidgid, tenure: guarded };
        let buffered =
            writer.buffer(&caller, inode, place, &data, how).await.map_err(|e| e.on_handle(inode))?;
        let written = match buffered {
            Some((at, attr)) => {
                open.state.set_size(attr.size);
                open.state.written(data.len());
                (at, Some(attr))
            }
            None => {
                writer.flush_before(inode).await?;
                let size = match open.state.size() {
                    Some(size) => size,
                    None => self.getattr(&caller, inode).await.map_err(|e| e.on_handle(inode))?.size,
                };
                let length = data.len() as u64;
                let (at, attr) = writer.through(&caller, inode, place, size, data, how).await?;
                open.state.set_size(attr.as_ref().map_or((at + length).max(size), |attr| attr.size));
                (at, attr)
            }
        };
        // Of a mapping msync tells, on any mount.
        let of_mapping = options.of_mapping && !is_sync(open.flags);
        if !of_mapping {
            self.written_durably(handle, open.flags).await?;
        }
        self.still_guarded(handle, guarded)?;
        inner.region.counters.took("write", started.elapsed());
        Ok(written)
    }

    /// A write through this handle was answered. Where fsync has followed each time, what was written begins to be sent, so that fsync finds it on its way. For who
    /// answers writes, after the answer: nobody waits for what this takes.
    pub fn write_answered(&self, handle: HandleId) {
        if let Ok(open) = self.inner.handles.get(handle)
            && open.state.goes_ahead()
        {
            self.inner.writer.start_ahead(open.inode);
        }
    }

    /// What close(2) calls, once for each descriptor. What is buffered is sent soon, with the release of the last one at the latest: that isn't waited for. But a
    /// failure that is known is told through a handle that was open for writing, unless its fsync has told it or an earlier close; fsync tells it still.
    pub async fn flush(&self, handle: HandleId) -> Result<(), FsError> {
        let open = self.inner.handles.get(handle)?;
        if open.flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Ok(());
        }
        // Pages of a mapping, which the kernel has just written back: all else was waited for when it was changed.
        if self.inner.session.config.sync && self.inner.writer.buffers.has(open.inode) {
            return self.fsync(handle, false).await;
        }
        let (writer, seen) = (&self.inner.writer, open.refusal_seen.load(Ordering::Acquire));
        let is_new = writer.buffers.refused(open.inode).is_some_and(|refused| seen < refused.number);
        if is_new && let Some(refused) = writer.failing(open.inode).await {
            open.refusal_seen.fetch_max(refused.number, Ordering::AcqRel);
            return Err(FsError::Answered(refused.errno));
        }
        let (failures, errno) = open.state.failures();
        let seen = open.failures_seen.load(Ordering::Acquire);
        if open.failures_closed.swap(failures, Ordering::AcqRel).max(seen) < failures {
            open.state.heard(failures);
            return Err(FsError::Answered(errno));
        }
        Ok(())
    }

    /// What was just changed through a handle with these flags is durable where it, or the mount, asks for that.
    pub(crate) async fn written_durably(&self, handle: HandleId, flags: i32) -> Result<(), FsError> {
        if is_sync(flags) || self.inner.session.config.sync {
            return self.fsync(handle, false).await;
        }
        Ok(())
    }

    /// Answers `done`, what came of a change of an inode that isn't done through a handle: once it is durable, on a mount that waits (`sync`).
    pub(crate) async fn changed_durably<T>(&self, inode: u64, done: T) -> Result<T, FsError> {
        if self.inner.session.config.sync {
            let seen = self.losses();
            self.inner.writer.flush(inode).await?;
            self.durable_since(seen, &[inode]).await?;
        }
        Ok(done)
    }

    /// Answers `done`, what came of a change of names in these directories: once it is durable, on a mount that waits for those (`sync`, `dirsync`).
    pub(crate) async fn named_durably<T>(&self, directories: &[u64], done: T) -> Result<T, FsError> {
        let config = &self.inner.session.config;
        if config.sync || config.dirsync {
            self.durable_since(self.losses(), directories).await?;
        }
        Ok(done)
    }

    /// Waits until what was just changed of these inodes is durable. It isn't if it was made alone, and was refused or lost since then: since there were as many
    /// losses as were `seen`.
    async fn durable_since(&self, seen: u64, inodes: &[u64]) -> Result<(), FsError> {
        self.told(self.inner.region.patience()).await?;
        for (at, inode) in inodes.iter().enumerate() {
            if inodes[..at].contains(inode) {
                continue;
            }
            let lost = self.inner.session.journal.loss_in(*inode).filter(|(when, _)| *when > seen);
            if let Some((_, errno)) = lost {
                return Err(FsError::Answered(errno));
            }
            self.synced(*inode).await?;
        }
        Ok(())
    }

    /// Makes everything written through any handle of the file durable. Data that was given up since this handle's last fsync is reported,
    /// once; so is what nobody had heard of when it was opened. Data that can't be stored at present is kept, and reported each time.
    pub async fn fsync(&self, handle: HandleId, _data_only: bool) -> Result<(), FsError> {
        let open = self.inner.handles.get(handle)?;
        open.state.synced();
        let flushed = self.inner.writer.flush(open.inode).await;
        if let Some(refused) = self.inner.writer.buffers.refused(open.inode).filter(|_| flushed.is_err()) {
            open.refusal_seen.fetch_max(refused.number, Ordering::AcqRel);
        }
        // Its name, too. Whatever was lost of it is noted by the time at which nothing is untold any more.
        let told = self.told(self.inner.region.patience()).await;
        let synced = match &told {
            Ok(()) => self.synced(open.inode).await,
            Err(_) => Ok(()),
        };
        let (failures, errno) = open.state.failures();
        if open.failures_seen.swap(failures, Ordering::AcqRel) < failures {
            open.state.heard(failures);
            return Err(FsError::Answered(errno));
        }
        flushed.and(told).and(synced)
    }

    /// Makes a directory's changes durable.
    pub async fn fsync_directory(&self, inode: u64) -> Result<(), FsError> {
        self.told(self.inner.region.patience()).await?;
        self.synced(inode).await
    }

    /// Waits until what this mount changed is where fsync has it: in a `geo` volume, in each region of the sync set. What a failover has taken back of
    /// the inode since it was answered is reported here, and of a file once by each other descriptor's next fsync.
    pub(crate) async fn synced(&self, inode: u64) -> Result<(), FsError> {
        let session = &self.inner.session;
        // Regions that came after the session was opened show by the log.
        if !session.has_elsewhere() && !session.near.has_log() {
            return Ok(());
        }
        let mut places = session.near.unsynced(inode);
        if places.is_empty() {
            // Also without changes of its own: what it was told of may be on its way there.
            places.push((inode, (0, 0)));
        }
        let mut synced = Ok(());
        // Under each home by itself: a failover may have taken back what the one before answered, whatever the present one has.
        for (of, upto) in places {
            synced = synced.and(self.synced_up_to(of, upto).await);
        }
        synced
    }

    async fn synced_up_to(&self, inode: u64, upto: (u64, u64)) -> Result<(), FsError> {
        let session = &self.inner.session;
        let op = Op::Sync(Sync { epoch: upto.0, version: upto.1 });
        match self.inner.region.read(&daemon(), op).await? {
            Reply::Done(_) => {
                session.near.synced(upto);
                Ok(())
            }
            Reply::Errno(errno) => {
                let errno = i32::try_from(errno).unwrap_or(libc::EIO);
                tracing::error!(
                    inode,
                    epoch = upto.0,
                    version = upto.1,
                    "what this host changed wasn't in another region yet and was lost with the volume's home; fsync of what it concerns reports it"
                );
                if inode == near::SOME {
                    self.inner.opens.each(|state| state.failed(errno));
                } else if let Some(state) = self.inner.opens.get(inode) {
                    state.failed(errno);
                }
                session.near.told(inode, upto);
                Err(FsError::Answered(errno))
            }
            other => Err(unexpected("sync", &other)),
        }
    }
}

/// Whether a handle with these flags has each change durable before it is answered.
fn is_sync(flags: i32) -> bool {
    flags & (libc::O_SYNC | libc::O_DSYNC) != 0
}

/// What was read of a file at `offset`, up to `length` bytes and fewer only at its end, beneath what is buffered of it: `over`, the oldest first, in a file that
/// ends at `reach` at least.
fn laid_over(beneath: Bytes, offset: u64, length: u32, over: &[(u64, Bytes)], reach: u64) -> Bytes {
    if over.is_empty() && reach <= offset.saturating_add(beneath.len() as u64) {
        return beneath;
    }
    let end = reach.saturating_sub(offset).min(length.into()) as usize;
    let mut bytes = BytesMut::from(&beneath[..]);
    bytes.resize(end.max(beneath.len()), 0);
    for (at, part) in over {
        let start = at.saturating_sub(offset) as usize;
        if let Some(covered) = bytes.get_mut(start..start + part.len()) {
            covered.copy_from_slice(part);
        }
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_buffered_lies_over_what_was_read() {
        let part = |at: u64, bytes: &'static [u8]| (at, Bytes::from_static(bytes));
        let read = |beneath: &'static [u8], over: &[(u64, Bytes)], reach| {
            laid_over(Bytes::from_static(beneath), 10, 8, over, reach)
        };
        assert_eq!(&read(b"0123", &[], 12)[..], b"0123");
        assert_eq!(&read(b"0123", &[part(11, b"ab"), part(12, b"c")], 13)[..], b"0ac3");
        assert_eq!(&read(b"01", &[part(14, b"x")], 15)[..], b"01\0\0x", "behind a hole");
        assert_eq!(&read(b"", &[], 90)[..], &[0; 8], "a hole before what lies further on");
    }
}
