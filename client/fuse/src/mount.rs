//! A mount: made, watched, taken down.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use mooseng_client::Tree;
use tokio::sync::watch;

use crate::answers::Adapter;
use crate::beneath;
use crate::device::{self, MountError};
use crate::notify::Notifier;
use crate::operations::Operations;
use crate::table;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What the table of mounts shows as the source.
    pub source: String,
    /// Whether other users than the one who mounts may use it.
    pub allow_other: bool,
    /// Whether nothing may be changed.
    pub read_only: bool,
    /// Whether setuid programs work.
    pub suid: bool,
    /// Whether device files work.
    pub dev: bool,
    /// Whether programs can be run.
    pub exec: bool,
    /// Threads that read requests from the kernel.
    pub threads: usize,
    /// Requests under way at once; further ones wait in the kernel.
    pub requests_max: usize,
    /// The kernel's own read-ahead, in KiB. Set where allowed.
    pub read_ahead_kb: u32,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "mooseng".into(),
            allow_other: true,
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            threads: 2,
            requests_max: 1024,
            read_ahead_kb: 4096,
        }
    }
}

/// Makes mounts.
pub struct Mount;

impl Mount {
    /// Mounts a tree on `path`; when this returns, the mount works. Blocks for a moment: not for a runtime's own thread, unless it has several.
    pub fn mount(
        tree: impl Into<Tree>,
        path: &Path,
        options: MountOptions,
        runtime: tokio::runtime::Handle,
    ) -> Result<MountHandle, MountError> {
        let (path, mode) = device::place(path)?;
        let descriptor = device::mount_on(&path, mode, &options)?;
        Self::begin(tree.into(), &path, &options, runtime, descriptor)
    }

    /// The same in the place of a dead mount, which `path` is that of, without links. The directory under it is bare at no moment where the kernel can put a mount
    /// beneath another one (Linux 6.5, for root); elsewhere it is between the two.
    ///
    /// # Errors
    /// [`MountError::NotMounted`]: somebody has taken the dead one away, or there is one that lives. Nothing is mounted then, and nothing taken away.
    pub fn mount_again(
        tree: impl Into<Tree>,
        path: &Path,
        options: MountOptions,
        runtime: tokio::runtime::Handle,
    ) -> Result<MountHandle, MountError> {
        // Without it no mount can be made, and the dead one had better stay: whoever tries again finds it.
        let device = device::open()?;
        match beneath::mount(path, &options, device) {
            Ok(Some(descriptor)) => Self::begin(tree.into(), path, &options, runtime, descriptor),
            Ok(None) => Err(MountError::NotMounted(path.to_owned())),
            Err(error) => {
                tracing::info!(%error, "the mount can't be made beneath the dead one, which is taken away first");
                table::unmount(path, true)?;
                Self::mount(tree, path, options, runtime)
            }
        }
    }

    /// Begins to serve what is mounted: from here on a failure must not leave a dead mount behind.
    fn begin(
        tree: Tree,
        path: &Path,
        options: &MountOptions,
        runtime: tokio::runtime::Handle,
        descriptor: OwnedFd,
    ) -> Result<MountHandle, MountError> {
        let begun = Self::serve(tree, path, options, runtime, descriptor);
        if begun.is_err()
            && let Err(error) = table::unmount(path, true)
        {
            tracing::warn!(%error, "a mount that couldn't start is left behind");
        }
        begun
    }

    fn serve(
        tree: Tree,
        path: &Path,
        options: &MountOptions,
        runtime: tokio::runtime::Handle,
        descriptor: OwnedFd,
    ) -> Result<MountHandle, MountError> {
        let notifications = descriptor.try_clone().map_err(MountError::Session)?;
        let mut config = Config::default();
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = true;
        let acl = config.acl;
        let root = tree.root().root();
        let notifier = Notifier::new(descriptor.try_clone().map_err(MountError::Session)?, root)
            .map_err(MountError::Session)?;
        let shown = notifier.clone();
        tree.show_through(move |volume| shown.of(volume));
        let adapter = Adapter::new(tree, runtime, options.requests_max.max(1), notifier.clone());
        let operations = adapter.operations.clone();
        let session = Session::from_fd(adapter, descriptor, acl, config).map_err(MountError::Session)?;
        let (ended, watch) = watch::channel(None);
        std::thread::Builder::new()
            .name("mooseng-fuse".into())
            .spawn(move || {
                let outcome = session.run().map_err(Arc::new);
                ended.send_replace(Some(outcome));
            })
            .map_err(MountError::Session)?;
        let device = table::mounts()
            .ok()
            .and_then(|mounts| mounts.into_iter().rev().find(|m| m.path == path))
            .map(|m| m.device);
        notifier.probe();
        if let Some(device) = &device {
            raise_read_ahead(device, options.read_ahead_kb);
        }
        Ok(MountHandle { path: path.to_owned(), device, notifications, operations, ended: watch })
    }
}

fn raise_read_ahead(device: &str, kb: u32) {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, kb.to_string()) {
        tracing::debug!(%file, %error, "the kernel's read-ahead stays as it is");
    }
}

/// A mount that works.
#[derive(Debug)]
pub struct MountHandle {
    path: PathBuf,
    device: Option<String>,
    notifications: OwnedFd,
    operations: Arc<Operations>,
    ended: watch::Receiver<Option<Result<(), Arc<io::Error>>>>,
}

impl MountHandle {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor to write notifications to.
    pub fn notifications(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }

    /// What the kernel asked of it.
    pub fn operations(&self) -> Arc<Operations> {
        self.operations.clone()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Takes it out of the tree, whoever uses it. [`Self::wait`] returns once the last user is gone.
    pub fn unmount(&self) -> Result<(), MountError> {
        if self.has_ended() {
            return Ok(());
        }
        // Only ours: somebody may have mounted another filesystem over it, or in its place.
        let known = table::mounts()
            .map_err(|e| MountError::Unmount { path: self.path.clone(), reason: e.to_string() })?;
        if !known
            .iter()
            .any(|m| m.path == self.path && self.device.as_ref().is_none_or(|device| *device == m.device))
        {
            return Ok(());
        }
        table::unmount(&self.path, true)
    }

    /// Ends it at once: whoever still uses it gets errors. For a mount that was unmounted and whose users don't go.
    pub fn abort(&self) -> Result<(), MountError> {
        let failed = |reason: String| MountError::Unmount { path: self.path.clone(), reason };
        let minor = self
            .device
            .as_ref()
            .and_then(|device| device.split(':').nth(1))
            .ok_or_else(|| failed("its device number is unknown".into()))?;
        let file = format!("/sys/fs/fuse/connections/{minor}/abort");
        std::fs::write(&file, "1").map_err(|e| failed(format!("{file}: {e}")))
    }

    /// Waits until it has ended: unmounted, by us or somebody else.
    pub async fn wait(&self) -> Result<(), MountError> {
        let mut ended = self.ended.clone();
        let outcome = match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => Some(Err(Arc::new(io::Error::other("the thread that served it died")))),
        };
        match outcome {
            Some(Err(error)) => Err(MountError::Session(io::Error::new(error.kind(), error.to_string()))),
            Some(Ok(())) | None => Ok(()),
        }
    }
}
