//! What a recall sets in motion here: buffers are sent, then the kernel forgets.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use mooseng_wire::fact::{Fact, Level};

use crate::facts::{Invalidate, Recalled};

/// Acts on recalls.
#[derive(Default)]
pub(crate) struct Recalls {
    kernel: OnceLock<Arc<dyn Invalidate>>,
}

impl Recalls {
    /// Whoever shows what is promised beside this library. Set once, before it is told anything.
    pub fn show_through(&self, kernel: Arc<dyn Invalidate>) {
        if self.kernel.set(kernel).is_err() {
            tracing::error!("two mounts over one session: recalls reach only the first");
        }
    }
}

#[async_trait]
impl Recalled for Recalls {
    fn has_buffered(&self, _fact: &Fact) -> bool {
        false
    }

    async fn before(&self, _fact: &Fact, _keep: Option<Level>) {}

    async fn after(&self, fact: &Fact, keep: Option<Level>) {
        // What stays promised may still be shown.
        if keep.is_some() {
            return;
        }
        let Some(kernel) = self.kernel.get() else { return };
        match fact {
            Fact::Inode(inode) | Fact::Directory(inode) => kernel.inode(inode.0).await,
            Fact::Entry(directory, name) => kernel.entry(directory.0, name).await,
        }
    }

    async fn everything(&self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.everything().await;
        }
    }
}
