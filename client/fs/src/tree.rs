//! The volumes of a mount in one tree: which it has entered, and where one is crossed into (docs/decisions/0032-volumes.md).
//!
//! ```text
//!   find(parent, name) -> the parent's volume: a directory that names a volume -> enter -> that volume's root
//!   of(inode)          -> the volume that the id names
//! ```
//! A volume is entered when a lookup first crosses into it, and left when a master says that there is none any more. What each has to itself - session,
//! promises, buffers, locks - fails over, waits and ends by itself; what is the mount's - connections to chunkservers, room for written data, chunk data
//! in memory - they share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mooseng_wire::fs::{Attr, Caller};
use mooseng_wire::{InodeId, ROOT_INODE, VolumeId};
use tokio::time::Instant;

use crate::error::FsError;
use crate::facts::Invalidate;
use crate::fs::FileSystem;
use crate::status::FsStatus;

/// Volumes besides the root that one mount is in at most.
pub const VOLUMES_MAX: usize = 64;
/// How long a lookup waits for the volume that it crosses into. A kernel holds the directory's lock meanwhile, for which whoever changes it waits.
const CROSSED_WITHIN: Duration = Duration::from_secs(1);
/// A volume that was gone a moment ago isn't asked for again.
const GONE_FOR: Duration = Duration::from_secs(1);

/// Makes what takes back from a kernel what it was told of one volume.
type Shows = Box<dyn Fn(VolumeId) -> Arc<dyn Invalidate> + Send + Sync>;

/// A name that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What it leads to: of a directory at which a volume is joined, that volume's root.
    pub attr: Attr,
    /// That directory, where the name leads into another volume.
    pub crossed: Option<Attr>,
}

/// A volume that was entered.
struct Entered {
    fs: FileSystem,
    /// The directory in which the one is that it is joined at.
    above: u64,
    /// Its root, as it was seen last.
    seen: Option<Attr>,
}

#[derive(Default)]
struct Volumes {
    entered: BTreeMap<VolumeId, Entered>,
    /// Those that were gone lately.
    gone: BTreeMap<VolumeId, Instant>,
    /// What those that were left had counted.
    left: FsStatus,
}

struct Inner {
    root: FileSystem,
    volumes: Mutex<Volumes>,
    shows: OnceLock<Shows>,
}

/// A mount's view of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Tree {
    inner: Arc<Inner>,
}

impl From<FileSystem> for Tree {
    fn from(root: FileSystem) -> Self {
        Self { inner: Arc::new(Inner { root, volumes: Mutex::default(), shows: OnceLock::new() }) }
    }
}

fn volume_of(inode: u64) -> VolumeId {
    InodeId(inode).volume()
}

impl Tree {
    /// The root volume, which is the mount's own: whether a mount is ready, may write, and whom it believes, is for the root to say.
    pub fn root(&self) -> &FileSystem {
        &self.inner.root
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.inner.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has an inode. [`FsError::NoVolume`] where its volume is gone, or was never entered.
    pub fn of(&self, inode: u64) -> Result<FileSystem, FsError> {
        let volume = volume_of(inode);
        if volume == self.inner.root.volume() {
            return Ok(self.inner.root.clone());
        }
        let mut volumes = self.volumes();
        match volumes.entered.get(&volume) {
            Some(entered) if entered.fs.is_gone() => volumes.leave(volume),
            Some(entered) => return Ok(entered.fs.clone()),
            None => {}
        }
        Err(FsError::NoVolume(volume.0))
    }

    /// The directory above a volume's root: the one in which the directory is that it is joined at. None of an inode that isn't the root of a volume that
    /// was entered.
    pub fn above(&self, inode: u64) -> Option<u64> {
        let volume = volume_of(inode);
        let is_root = inode == InodeId::new(volume, ROOT_INODE.0).0 && volume != self.inner.root.volume();
        if is_root { self.volumes().entered.get(&volume).map(|entered| entered.above) } else { None }
    }

    /// Whoever shows answers further than they are asked for (a kernel) says here, once, who is told when those of a volume aren't promised any more.
    pub fn show_through(&self, shows: impl Fn(VolumeId) -> Arc<dyn Invalidate> + Send + Sync + 'static) {
        self.inner.root.show_through(shows(self.inner.root.volume()));
        if self.inner.shows.set(Box::new(shows)).is_err() {
            tracing::error!("two mounts over one tree: recalls reach only the first");
        }
    }

    /// The entry `name` of a directory, if there is one. Where a volume is joined there, its root, which is entered for that: the errors are those of its
    /// session then.
    pub async fn find(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<Option<Found>, FsError> {
        let Some(found) = self.named(caller, parent, name).await? else { return Ok(None) };
        let Some(directory) = found.crossed else { return Ok(Some(found)) };
        let fs = self.enter(joined(&directory)?, parent)?;
        let attr = fs.getattr(caller, found.attr.inode).await?;
        self.saw(&attr);
        Ok(Some(Found { attr, crossed: Some(directory) }))
    }

    /// [`Self::find`] for who asks for attributes before he believes them: where a volume is joined and doesn't answer within a second, they are what was
    /// seen of its root last, or those of the directory between, under the root's id.
    pub async fn lookup(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<Option<Found>, FsError> {
        let Some(found) = self.named(caller, parent, name).await? else { return Ok(None) };
        let Some(directory) = found.crossed else { return Ok(Some(found)) };
        let fs = self.enter(joined(&directory)?, parent)?;
        let attr = match tokio::time::timeout(CROSSED_WITHIN, fs.getattr(caller, found.attr.inode)).await {
            Ok(attr) => attr.inspect(|attr| self.saw(attr))?,
            Err(_) => found.attr,
        };
        Ok(Some(Found { attr, crossed: Some(directory) }))
    }

    /// What a name leads to, by what its directory's volume says.
    async fn named(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<Option<Found>, FsError> {
        let Some(attr) = self.of(parent)?.find(caller, parent, name).await? else { return Ok(None) };
        if attr.joined == 0 {
            return Ok(Some(Found { attr, crossed: None }));
        }
        let volume = joined(&attr)?;
        let root = Attr { inode: InodeId::new(volume, ROOT_INODE.0).0, joined: 0, ..attr };
        let seen = self.volumes().entered.get(&volume).and_then(|entered| entered.seen);
        Ok(Some(Found { attr: seen.unwrap_or(root), crossed: Some(attr) }))
    }

    /// The root of a volume has these attributes.
    fn saw(&self, root: &Attr) {
        if let Some(entered) = self.volumes().entered.get_mut(&volume_of(root.inode)) {
            entered.seen = Some(*root);
        }
    }

    /// What is promised of a name, without asking anybody. For callers whose rights are checked.
    #[allow(clippy::option_option, reason = "whether it is known, and whether there is an entry")]
    pub fn known(&self, parent: u64, name: &[u8]) -> Option<Option<Found>> {
        let known = self.of(parent).ok()?.known_entry(parent, name)?;
        let Some(attr) = known else { return Some(None) };
        if attr.joined == 0 {
            return Some(Some(Found { attr, crossed: None }));
        }
        let root = InodeId::new(joined(&attr).ok()?, ROOT_INODE.0).0;
        let found = self.of(root).ok()?.known_attr(root)?;
        Some(Some(Found { attr: found, crossed: Some(attr) }))
    }

    /// The volume, which is entered if it wasn't.
    fn enter(&self, volume: VolumeId, above: u64) -> Result<FileSystem, FsError> {
        let mut volumes = self.volumes();
        if volumes.entered.get(&volume).is_some_and(|entered| entered.fs.is_gone()) {
            volumes.leave(volume);
        }
        if let Some(entered) = volumes.entered.get_mut(&volume) {
            entered.above = above;
            return Ok(entered.fs.clone());
        }
        let now = Instant::now();
        volumes.gone.retain(|_, since| now.saturating_duration_since(*since) < GONE_FOR);
        if volumes.gone.contains_key(&volume) {
            return Err(FsError::NoVolume(volume.0));
        }
        if volumes.entered.len() >= VOLUMES_MAX {
            let gone = volumes.entered.iter().filter(|(_, entered)| entered.fs.is_gone());
            let gone: Vec<VolumeId> = gone.map(|(volume, _)| *volume).collect();
            gone.into_iter().for_each(|volume| volumes.leave(volume));
        }
        if volumes.entered.len() >= VOLUMES_MAX {
            let error = FsError::TooManyVolumes { volume: volume.0, most: VOLUMES_MAX };
            tracing::warn!(%error, "a lookup can't cross into a volume");
            return Err(error);
        }
        let fs = self.inner.root.start_beside(volume);
        if let Some(shows) = self.inner.shows.get() {
            fs.show_through(shows(volume));
        }
        tracing::info!(%volume, above, "this mount enters a volume");
        volumes.entered.insert(volume, Entered { fs: fs.clone(), above, seen: None });
        Ok(fs)
    }

    /// The volumes besides the root that the mount is in.
    pub fn entered(&self) -> Vec<FileSystem> {
        self.volumes().entered.values().map(|entered| entered.fs.clone()).collect()
    }

    /// What the mount knows about itself: the root's, and sums over all volumes of what each counts by itself.
    pub fn status(&self) -> FsStatus {
        let mut status = self.inner.root.status();
        let entered = self.entered();
        status.add(&self.volumes().left);
        entered.iter().for_each(|fs| status.add(&fs.status()));
        status
    }

    /// [`FileSystem::close`] of all volumes, side by side.
    pub async fn close(&self) {
        let entered = self.entered();
        let all = entered.iter().chain([&self.inner.root]);
        futures::future::join_all(all.map(FileSystem::close)).await;
    }
}

impl Volumes {
    /// A volume is gone.
    fn leave(&mut self, volume: VolumeId) {
        if let Some(entered) = self.entered.remove(&volume) {
            let counted = FsStatus {
                unanswered: 0,
                open_inodes: 0,
                open_chunks: 0,
                dirty_bytes: 0,
                untold: 0,
                ..entered.fs.status()
            };
            self.left.add(&counted);
            self.gone.insert(volume, Instant::now());
        }
    }
}

/// Which volume is joined at a directory.
fn joined(directory: &Attr) -> Result<VolumeId, FsError> {
    let volume = u16::try_from(directory.joined).ok().map(VolumeId);
    let other = volume.filter(|volume| volume.0 != 0 && *volume != volume_of(directory.inode));
    other.ok_or_else(|| {
        FsError::Malformed(format!(
            "the directory {} names {} as the volume that is joined there",
            directory.inode, directory.joined
        ))
    })
}
