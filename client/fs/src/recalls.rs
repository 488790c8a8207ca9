//! What a recall sets in motion here: buffers are sent, then the kernel forgets.

use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use mooseng_wire::fact::{Fact, Level};

use crate::facts::{Invalidate, Recalled};
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
        match (fact, self.writer()) {
            (Fact::Inode(inode), Some(writer)) => writer.buffers.has(inode.0),
            _ => false,
        }
    }

    async fn before(&self, fact: &Fact, _keep: Option<Level>) {
        if let (Fact::Inode(inode), Some(writer)) = (fact, self.writer()) {
            writer.close_for_recall(inode.0).await;
        }
    }

    async fn after(&self, fact: &Fact, keep: Option<Level>) {
        if let (Fact::Inode(inode), Some(writer)) = (fact, self.writer()) {
            writer.reopen(inode.0);
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
