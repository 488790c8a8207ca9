//! What a recall sets in motion here: what was written to mappings is buffered, buffers are sent, then the kernel forgets; locks that were given here are recorded.

use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use mooseng_wire::fact::{Fact, Level};

use crate::facts::{Invalidate, Recalled};
use crate::locks;
use crate::writeback::WriteBack;

/// Acts on recalls.
#[derive(Default)]
pub(crate) struct Recalls {
    kernel: OnceLock<Arc<dyn Invalidate>>,
    /// Weak, for the session that it writes through holds this.
    writer: OnceLock<Weak<WriteBack>>,
}

impl Recalls {
    /// Who holds what is buffered. Set once, before the first operation.
    pub fn write_back(&self, writer: &Arc<WriteBack>) {
        if self.writer.set(Arc::downgrade(writer)).is_err() {
            tracing::error!("two writers over one session: recalls reach only the first");
        }
    }

    fn writer(&self) -> Option<Arc<WriteBack>> {
        self.writer.get()?.upgrade()
    }

    /// Whoever shows what is promised beside this library. Set once, before it is told anything.
    pub fn show_through(&self, kernel: Arc<dyn Invalidate>) {
        if self.kernel.set(kernel).is_err() {
            tracing::error!("two mounts over one session: recalls reach only the first");
        }
    }

    /// Returns once nobody is shown a fact any more. What is buffered isn't concerned.
    pub async fn forget_fact(&self, fact: &Fact) {
        let Some(kernel) = self.kernel.get() else { return };
        match fact {
            Fact::Inode(inode) => kernel.inode(inode.0).await,
            Fact::Directory(directory) => kernel.directory(directory.0).await,
            Fact::Entry(directory, name) => kernel.entry(directory.0, name).await,
            // A kernel that asks for each lock shows none.
            Fact::Locks(_) => {}
        }
    }

    /// The same of all entries, and of these inodes.
    pub async fn forget_few(&self, inodes: &[u64]) {
        let Some(kernel) = self.kernel.get() else { return };
        kernel.entries().await;
        for inode in inodes {
            kernel.inode(*inode).await;
        }
    }

    /// The same of everything.
    pub async fn forget_all(&self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.everything().await;
        }
    }

    /// Has whoever shows an inode look at it anew, without a recall.
    pub async fn forget(&self, inode: u64) {
        if let Some(kernel) = self.kernel.get() {
            kernel.inode(inode).await;
        }
    }
}

#[async_trait]
impl Recalled for Recalls {
    fn has_buffered(&self, fact: &Fact) -> bool {
        let inode = match fact {
            Fact::Inode(inode) => inode,
            // What was given of them is recorded first.
            Fact::Locks(_) => return true,
            Fact::Entry(..) | Fact::Directory(_) => return false,
        };
        self.writer().is_some_and(|writer| writer.buffers.has(inode.0))
            || self.kernel.get().is_some_and(|kernel| kernel.may_be_mapped(inode.0))
    }

    async fn before(&self, fact: &Fact, keep: Option<Level>) {
        if let (Fact::Locks(inode), Some(writer)) = (fact, self.writer()) {
            return locks::close_for_recall(&writer, inode.0).await;
        }
        let Fact::Inode(inode) = fact else { return };
        // What was written to mappings is written ahead of what whoever wants the inode does to it: later, whole pages would lie on top of that. As long as
        // the buffer is open, for these are writes like others. Who only looks at the file sees of a mapping what was msynced, as ever.
        if keep.is_none()
            && let Some(kernel) = self.kernel.get()
        {
            kernel.write_back(inode.0).await;
        }
        if let Some(writer) = self.writer() {
            writer.close_for_recall(inode.0).await;
        }
    }

    async fn after(&self, fact: &Fact, keep: Option<Level>) {
        match (fact, self.writer()) {
            (Fact::Inode(inode), Some(writer)) => writer.reopen(inode.0),
            (Fact::Locks(inode), Some(writer)) => locks::reopen(&writer, inode.0),
            _ => {}
        }
        // What stays promised may still be shown.
        if keep.is_some() {
            return;
        }
        self.forget_fact(fact).await;
    }

    async fn everything(&self) {
        if let Some(writer) = self.writer() {
            writer.start_all();
        }
        if let Some(kernel) = self.kernel.get() {
            kernel.everything().await;
        }
    }
}

#[cfg(all(test, feature = "fake"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use bytes::Bytes;
    use mooseng_ports::clock::ManualClock;
    use mooseng_wire::InodeId;
    use mooseng_wire::fs::Caller;

    use super::*;
    use crate::fake::FakeRegion;
    use crate::{ClientConfig, FileSystem, FsError, HandleId, WriteMode, WriteOptions};

    /// A kernel with a page that was written in a mapping.
    struct Mapped {
        fs: FileSystem,
        handle: HandleId,
        /// What was buffered once it was written, each time.
        buffered: Mutex<Vec<usize>>,
    }

    #[async_trait]
    impl Invalidate for Mapped {
        async fn entry(&self, _directory: u64, _name: &Bytes) {}
        async fn inode(&self, _inode: u64) {}
        async fn directory(&self, _directory: u64) {}
        async fn everything(&self) {}
        fn may_be_mapped(&self, _inode: u64) -> bool {
            true
        }
        async fn write_back(&self, _inode: u64) {
            let (me, options) = (
                Caller::default(),
                WriteOptions { mode: WriteMode::At, of_mapping: true, ..Default::default() },
            );
            self.fs.write(&me, self.handle, 0, Bytes::from_static(b"page"), options).await.unwrap();
            self.buffered.lock().unwrap().push(self.fs.status().dirty_bytes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_recall_ends_the_wait_for_room_and_whoever_opens_the_file_next_hears_of_it() {
        let region = Arc::new(FakeRegion::new());
        region.with(|s| s.exclusive = true);
        let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
        let me = Caller { kernel_checked: true, ..Caller::default() };
        let made = fs.create(&me, 1, b"f", 0o644, libc::O_RDWR).await.unwrap();
        let (inode, fact) = (made.attr.inode, Fact::Inode(InodeId(made.attr.inode)));
        region.with(|s| s.refuse_writes = Some(libc::ENOSPC));
        let data = Bytes::from_static(b"kept");
        fs.write(&me, made.handle, 0, data, WriteOptions::default()).await.unwrap();
        fs.release(made.handle).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(fs.status().dirty_bytes, 4);
        let recalls = fs.inner.recalls.clone();
        recalls.before(&fact, Some(Level::Shared)).await;
        recalls.after(&fact, Some(Level::Shared)).await;
        assert_eq!(fs.status().dirty_bytes, 0);
        let next = fs.open(&me, inode, libc::O_RDWR).await.unwrap().handle;
        assert_eq!(fs.fsync(next, false).await, Err(FsError::Answered(libc::ENOSPC)));
        assert_eq!(fs.fsync(next, false).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_recall_waits_for_what_was_sent_before_fsync_asked_for_it() {
        let region = Arc::new(FakeRegion::new());
        region.with(|s| s.exclusive = true);
        let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
        let me = Caller { kernel_checked: true, ..Caller::default() };
        let made = fs.create(&me, 1, b"f", 0o644, libc::O_RDWR).await.unwrap();
        let (fact, handle) = (Fact::Inode(InodeId(made.attr.inode)), made.handle);
        let executed = || region.with(|s| s.executed);
        let write = || async {
            let data = Bytes::from_static(b"data");
            fs.write(&me, handle, 0, data, WriteOptions::default()).await.unwrap();
            fs.write_answered(handle);
        };
        for _ in 0..3 {
            write().await;
            fs.fsync(handle, false).await.unwrap();
        }
        let before = executed();
        write().await;
        assert_eq!((fs.status().dirty_bytes, executed()), (4, before), "it is on its way");
        let recalls = fs.inner.recalls.clone();
        recalls.before(&fact, None).await;
        assert_eq!((fs.status().dirty_bytes, executed()), (0, before + 1));
        recalls.after(&fact, None).await;
        assert_eq!(fs.fsync(handle, false).await, Ok(()));
        assert_eq!(executed(), before + 1);
    }

    /// Found by review: the page was written after the other mount's change was committed, which was gone by that.
    #[tokio::test(start_paused = true)]
    async fn what_was_written_to_a_mapping_is_at_the_region_before_the_inode_is_given_up() {
        let region = Arc::new(FakeRegion::new());
        region.with(|s| s.exclusive = true);
        let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
        let me = Caller { kernel_checked: true, ..Caller::default() };
        let made = fs.create(&me, 1, b"f", 0o644, libc::O_RDWR).await.unwrap();
        let (fact, handle) = (Fact::Inode(InodeId(made.attr.inode)), made.handle);
        let kernel = Arc::new(Mapped { fs: fs.clone(), handle, buffered: Mutex::default() });
        fs.show_through(kernel.clone());
        let recalls = fs.inner.recalls.clone();
        assert!(recalls.has_buffered(&fact), "it keeps no other recall waiting");
        recalls.before(&fact, Some(Level::Shared)).await;
        recalls.after(&fact, Some(Level::Shared)).await;
        assert!(kernel.buffered.lock().unwrap().is_empty(), "who reads needn't see it");
        let before = region.with(|s| s.executed);
        recalls.before(&fact, None).await;
        assert_eq!(*kernel.buffered.lock().unwrap(), [4], "it is a write like others");
        assert_eq!((fs.status().dirty_bytes, region.with(|s| s.executed)), (0, before + 1));
        recalls.after(&fact, None).await;
    }
}
