//! Taking back what the kernel was told.
//!
//! What may be waited for (seen on kernel 6.18): `inval_inode` of attributes returns at once. Of pages it waits for those that an unanswered read or
//! write has locked, and such a request may wait for the very recall: pages are dropped on threads of their own for which nobody
//! waits ([`crate::drops`]), but for a moment where a mapping may have been written ([`Notifier::write_back`]). Until then the kernel asks for the attributes before a `read` believes them, and drops them itself when the time of the last
//! write has changed (AUTO_INVAL_DATA); behind a mapping it asks nobody. `inval_entry`
//! takes the directory's lock, which an unanswered create in it holds: it runs on a thread of its own, and when it doesn't return at once,
//! the epoch is raised instead (FUSE_NOTIFY_INC_EPOCH, kernel 6.16): then every entry is looked up again. A kernel without epochs is
//! told entries for no time at all.
//!
//! An answer that was written isn't taken in yet ([`crate::told`]). Where it may still be on its way, the inode is invalidated again until it
//! no longer is, and only then the recall is over: hardly ever more than once, a millisecond later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_client::Invalidate;
use mooseng_wire::VolumeId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::drops::Drops;
use crate::kernel::{Device, Kernel};
use crate::mappings::Mappings;
use crate::pages::Pages;
use crate::told::{Fresh, How, TAKEN_IN_WITHIN, Told, inodes_of};

/// How long the kernel may take to forget an entry before the epoch is raised.
const AT_ONCE: Duration = Duration::from_millis(1);
/// Entries that wait for the thread which may be blocked.
const WAITING_MAX: usize = 1024;
/// Inodes remembered; beyond it those that time has taken from the kernel are dropped, and where none are, nothing more is told.
const TOLD_MAX: usize = 1 << 20;
/// Directories remembered of which the kernel keeps entries by their lists.
const LISTED_MAX: usize = 1 << 16;
/// Crossings into other volumes that are remembered: more than a mount enters.
const CROSSINGS_MAX: usize = 1024;
/// An answer takes longer only if its thread was kept from running.
const LATE: Duration = Duration::from_millis(100);
/// So long a recall waits at most for what was written to mappings: a page may be locked by a request that waits for the very recall.
const WRITTEN_BACK_WITHIN: Duration = Duration::from_millis(300);
/// The first pause before an inode is invalidated again, and the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// A name that nobody uses, to have a directory's lock once.
const NOBODYS_NAME: &[u8] = b".mooseng\x01nobody";

struct Entry {
    directory: u64,
    name: Bytes,
    done: oneshot::Sender<()>,
}

/// What the kernel was told, and how it is taken back.
pub(crate) struct Notifier {
    own: Weak<Self>,
    kernel: Arc<dyn Kernel>,
    entries: mpsc::SyncSender<Entry>,
    drops: Arc<Drops>,
    epochs: AtomicBool,
    told: Mutex<Told>,
    /// Held while something is looked up and shown; see [`Self::showing`].
    showing: RwLock<()>,
    pages_of: Mutex<Pages>,
    pub mappings: Arc<Mappings>,
    /// Directories of whose entries the kernel was told from their lists.
    listed: Mutex<BTreeSet<u64>>,
    /// Inodes of whose access control lists the kernel was told.
    lists: Mutex<BTreeSet<u64>>,
    /// Directories at which volumes are joined, with the entries by which the kernel was told of those volumes' roots.
    crossings: Mutex<BTreeMap<u64, (u64, Bytes)>>,
}

/// Takes back what is promised of one volume: the kernel's inodes of another aren't concerned when all of its promises end.
pub(crate) struct OfVolume {
    notifier: Arc<Notifier>,
    volume: VolumeId,
}

/// Something is being shown.
pub(crate) struct Showing<'a> {
    notifier: &'a Notifier,
    begun: Instant,
    _guard: RwLockReadGuard<'a, ()>,
}

impl Drop for Showing<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.begun) >= LATE {
            self.notifier.told(|told| told.was_late(now));
        }
    }
}

impl Notifier {
    /// Notifies through a descriptor of the mount's session, where the directory with the inode `root` is mounted.
    pub fn new(descriptor: OwnedFd, root: u64) -> io::Result<Arc<Self>> {
        Self::over(Arc::new(Device::new(descriptor, root)))
    }

    fn over(kernel: Arc<dyn Kernel>) -> io::Result<Arc<Self>> {
        let (entries, waiting) = mpsc::sync_channel::<Entry>(WAITING_MAX);
        let own = kernel.clone();
        std::thread::Builder::new().name("mooseng-forget".into()).spawn(move || {
            while let Ok(entry) = waiting.recv() {
                // ENOENT: the kernel doesn't know it. Anything else ends with the mount.
                if let Err(error) = own.forget_entry(entry.directory, &entry.name)
                    && error.raw_os_error() != Some(libc::ENOENT)
                {
                    tracing::debug!(directory = entry.directory, %error, "the kernel couldn't be told to forget an entry");
                }
                let _ = entry.done.send(());
            }
        })?;
        let drops = Drops::begin(kernel.clone())?;
        Ok(Arc::new_cyclic(|own| Self {
            own: own.clone(),
            kernel,
            entries,
            drops,
            epochs: AtomicBool::new(true),
            told: Mutex::new(Told::new(TOLD_MAX)),
            showing: RwLock::default(),
            pages_of: Mutex::new(Pages::new(TOLD_MAX)),
            mappings: Arc::default(),
            listed: Mutex::default(),
            lists: Mutex::default(),
            crossings: Mutex::default(),
        }))
    }

    /// Takes back what is promised of a volume.
    pub fn of(self: &Arc<Self>, volume: VolumeId) -> Arc<OfVolume> {
        Arc::new(OfVolume { notifier: self.clone(), volume })
    }

    /// Tries whether this kernel knows epochs. Once the mount's session runs.
    pub fn probe(&self) {
        // What it doesn't know it calls invalid.
        if let Err(error) = self.kernel.raise_epoch()
            && error.raw_os_error() == Some(libc::EINVAL)
        {
            tracing::info!(%error, "this kernel's FUSE has no epochs (6.16 has): it isn't told entries to keep");
            self.epochs.store(false, Ordering::Release);
        }
    }

    /// Whether the kernel may keep entries.
    pub fn keeps_entries(&self) -> bool {
        self.epochs.load(Ordering::Acquire)
    }

    /// To be held from before it is looked what is promised until the kernel has the answer, and never across a wait. A recall that came
    /// too late to be seen there waits for it before it makes the kernel forget: nothing that was recalled is told behind its back.
    pub fn showing(&self) -> Showing<'_> {
        let guard = self.showing.read().unwrap_or_else(PoisonError::into_inner);
        Showing { notifier: self, begun: Instant::now(), _guard: guard }
    }

    /// Returns once whoever looked before has shown what he saw.
    fn let_show(&self) {
        drop(self.showing.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn pages_of<T>(&self, f: impl FnOnce(&mut Pages) -> T) -> T {
        f(&mut self.pages_of.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// [`Pages::opened`].
    pub fn keeps_pages(&self, inode: u64, hold: Option<u64>) -> bool {
        self.pages_of(|pages| pages.opened(inode, hold))
    }

    /// [`Pages::giving`].
    pub fn giving_pages(&self, inode: u64) {
        self.pages_of(|pages| pages.giving(inode));
    }

    /// [`Pages::given`]. What no recall will take back, the kernel drops by itself.
    pub fn gives_pages(&self, inode: u64, hold: Option<u64>) {
        if !self.pages_of(|pages| pages.given(inode, hold)) {
            self.drops.soon(inode);
        }
    }

    fn told<T>(&self, f: impl FnOnce(&mut Told) -> T) -> T {
        f(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kernel is told attributes of an inode. Answers for how long it may keep them: as long as wanted, or not at all.
    pub fn telling(&self, inode: u64, validity: Duration, how: How) -> Duration {
        if how == How::Known && validity.is_zero() {
            return validity;
        }
        self.told(|told| {
            if how != How::Known {
                told.looked_up(inode);
            }
            if validity.is_zero() { validity } else { told.add(inode, validity, how, Instant::now()) }
        })
    }

    /// The kernel is told of an entry, which may be promised as part of its directory's list alone. Answers for how long it may keep that.
    pub fn telling_entry(&self, directory: u64, validity: Duration, listed: bool) -> Duration {
        match listed {
            _ if !self.keeps_entries() => Duration::ZERO,
            true => self.telling_listed(directory, validity),
            false => validity,
        }
    }

    /// The kernel is told of an entry what the directory's list says. Answers for how long it may keep that.
    fn telling_listed(&self, directory: u64, validity: Duration) -> Duration {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if validity.is_zero() || (listed.len() >= LISTED_MAX && !listed.contains(&directory)) {
            return Duration::ZERO;
        }
        listed.insert(directory);
        validity
    }

    fn crossings<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, (u64, Bytes)>) -> T) -> T {
        f(&mut self.crossings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kernel is told of an entry that it leads to another volume's root, by what is promised of the directory at which that is joined. Answers for
    /// how long it may keep that: the entry goes with that directory's attributes, too.
    pub fn telling_crossing(
        &self,
        joined_at: u64,
        (directory, name): (u64, &[u8]),
        validity: Duration,
    ) -> Duration {
        if validity.is_zero() {
            return validity;
        }
        self.crossings(|crossings| {
            if crossings.len() >= CROSSINGS_MAX && !crossings.contains_key(&joined_at) {
                return Duration::ZERO;
            }
            crossings.insert(joined_at, (directory, Bytes::copy_from_slice(name)));
            validity
        })
    }

    fn lists<T>(&self, f: impl FnOnce(&mut BTreeSet<u64>) -> T) -> T {
        f(&mut self.lists.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kernel is told an inode's access control list, or that it has none. It keeps that longer than attributes where these are told anew by
    /// another name, so it is remembered without an end. Answers whether it may keep it: it `holds`, and can be remembered; else
    /// [`Self::forget_list`] follows.
    pub fn telling_list(&self, inode: u64, holds: bool) -> bool {
        holds
            && self.lists(|lists| {
                let room = lists.len() < TOLD_MAX || lists.contains(&inode);
                room.then(|| lists.insert(inode)).is_some()
            })
    }

    /// Has the kernel forget an access control list that it was just told. What it hasn't taken in yet it doesn't keep then: it marks the place
    /// before it asks.
    pub fn forget_list(&self, inode: u64) {
        note("an access control list", self.kernel.forget_inode(inode, false));
    }

    /// The kernel has dropped an inode, which had been answered so often.
    pub fn given_back(&self, inode: u64, lookups: u64) {
        let known = self.told(|told| {
            told.given_back(inode, lookups);
            told.may_be_known(inode)
        });
        if !known {
            self.lists(|lists| lists.remove(&inode));
            self.pages_of(|pages| pages.gone(inode));
            self.drops.gone(inode);
        }
    }

    /// A request came for which the kernel holds this directory's lock exclusively: whatever it had made there before, it knows.
    pub fn changing(&self, directory: u64) {
        self.told(|told| told.changing(directory, Instant::now()));
    }

    /// Has the kernel forget an inode's attributes, and what of them may be on its way. Answers what may still be on its way then.
    fn forget(&self, inode: u64, fresh: Option<Fresh>, lock_passed: bool) -> Option<Fresh> {
        // Before it is invalidated: what was taken in by now, that takes back.
        let unproven = fresh.filter(|fresh| {
            fresh.made_in.is_some_and(|directory| {
                !lock_passed && !self.told(|told| told.has_changed_since(directory, fresh.since))
            })
        });
        let outcome = self.kernel.forget_inode(inode, false);
        if !self.told(|told| told.may_be_known(inode)) {
            return None;
        }
        // It hasn't got it yet, or not any more.
        let unmet = fresh.filter(|_| is_unknown(&outcome));
        note("an inode", outcome);
        unproven.or(unmet)
    }

    /// Returns once what is on its way was taken in and forgotten, or can't be on its way any more.
    async fn settle(&self, inode: u64, mut fresh: Fresh) {
        let (done, passed) = oneshot::channel();
        let lock = fresh
            .made_in
            .map(|directory| Entry { directory, name: Bytes::from_static(NOBODYS_NAME), done })
            .is_some_and(|entry| self.entries.try_send(entry).is_ok());
        let mut lock = lock.then_some(passed);
        let mut lock_passed = false;
        let (mut pause, longest) = PAUSES;
        while fresh.since.elapsed() <= TAKEN_IN_WITHIN {
            let paused = tokio::time::sleep(pause);
            match &mut lock {
                // An unanswered request may hold it for long: what else proves it is looked for now and then.
                Some(passed) => tokio::select! {
                    outcome = passed => (lock, lock_passed) = (None, outcome.is_ok()),
                    () = paused => {}
                },
                None => paused.await,
            }
            match self.forget(inode, Some(fresh), lock_passed) {
                Some(still) => fresh = still,
                None => return,
            }
            pause = (pause * 2).min(longest);
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.drops.end();
    }
}

fn is_unknown(outcome: &io::Result<()>) -> bool {
    outcome.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
}

pub(crate) fn note(what: &str, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => {}
        // Not known there, or no mount any more.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::EPERM)
            ) => {}
        Err(error) => tracing::debug!(what, %error, "the kernel couldn't be told to forget"),
    }
}

impl Notifier {
    /// [`Invalidate::entry`].
    pub async fn entry(&self, directory: u64, name: &Bytes) {
        if !self.keeps_entries() {
            return;
        }
        self.let_show();
        let (done, finished) = oneshot::channel();
        let sent = self.entries.try_send(Entry { directory, name: name.clone(), done });
        if sent.is_ok() && tokio::time::timeout(AT_ONCE, finished).await.is_ok() {
            return;
        }
        note("the epoch", self.kernel.raise_epoch());
    }

    /// [`Invalidate::may_be_mapped`].
    pub fn may_be_mapped(&self, inode: u64) -> bool {
        self.mappings.may_be_dirty(inode) && self.pages_of(|pages| pages.are_given(inode))
    }

    /// [`Invalidate::write_back`]. The kernel writes a dirty page before it drops it, and returns once that is answered.
    pub async fn write_back(&self, inode: u64) {
        if !self.may_be_mapped(inode) {
            return;
        }
        let written = self.drops.at_once_and_tell(inode);
        if tokio::time::timeout(WRITTEN_BACK_WITHIN, written).await.is_err() {
            tracing::debug!(inode, "what was written to mappings may come after another mount's change");
        }
    }

    /// [`Invalidate::inode`].
    pub async fn inode(&self, inode: u64) {
        self.let_show();
        // Where its name leads is no more certain.
        if let Some((directory, name)) = self.crossings(|crossings| crossings.remove(&inode)) {
            self.entry(directory, &name).await;
        }
        // A fault of a mapping asks for pages and never for attributes.
        let pages = self.pages_of(|pages| pages.forget(inode));
        let list = self.lists(|lists| lists.remove(&inode));
        let Some(fresh) = self.told(|told| told.take(inode, Instant::now())) else {
            if list {
                self.forget_list(inode);
            }
            if pages {
                self.drops.at_once([inode]);
            }
            return;
        };
        let left = self.forget(inode, fresh, false);
        self.drops.at_once([inode]);
        if let Some(fresh) = left {
            self.settle(inode, fresh).await;
        }
    }

    /// [`Invalidate::directory`].
    pub async fn directory(&self, directory: u64) {
        self.let_show();
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner).remove(&directory);
        // Which entries these are isn't known, and may be many.
        if listed {
            note("the epoch", self.kernel.raise_epoch());
        }
        self.inode(directory).await;
    }

    /// [`Invalidate::entries`], of all volumes: what the kernel looks up again is no harm.
    pub async fn entries(&self) {
        self.let_show();
        if self.keeps_entries() {
            self.no_entries();
        }
    }

    /// Every entry that the kernel has is looked up again.
    fn no_entries(&self) {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.crossings(BTreeMap::clear);
        note("the epoch", self.kernel.raise_epoch());
    }

    /// [`Invalidate::everything`], of a volume.
    pub async fn everything(&self, volume: VolumeId) {
        self.let_show();
        let pages = self.pages_of(|pages| pages.forget_all(volume));
        let told = self.told(|told| told.take_all(volume, Instant::now()));
        let lists: Vec<u64> = self.lists(|lists| lists.extract_if(inodes_of(volume), |_| true).collect());
        if self.keeps_entries() {
            self.no_entries();
        }
        let Some(own) = self.own.upgrade() else { return };
        self.drops.at_once(told.iter().map(|(inode, _)| *inode).chain(pages));
        // None of these waits for anybody; there may be many.
        let forgotten = tokio::task::spawn_blocking(move || {
            let forget = |(inode, fresh)| Some((inode, own.forget(inode, fresh, false)?));
            let left = told.into_iter().filter_map(forget).collect::<Vec<_>>();
            lists.into_iter().for_each(|inode| own.forget_list(inode));
            left
        })
        .await;
        match forgotten {
            Ok(left) => {
                let each = left.into_iter().map(|(inode, fresh)| self.settle(inode, fresh));
                futures::future::join_all(each).await;
            }
            // The mount ends, and with it what the kernel keeps.
            Err(error) if error.is_cancelled() => {
                tracing::debug!("the kernel isn't told any more to forget everything");
            }
            Err(error) => tracing::warn!(%error, "telling the kernel to forget everything failed"),
        }
    }
}

#[async_trait]
impl Invalidate for OfVolume {
    async fn entry(&self, directory: u64, name: &Bytes) {
        self.notifier.entry(directory, name).await;
    }

    async fn inode(&self, inode: u64) {
        self.notifier.inode(inode).await;
    }

    fn may_be_mapped(&self, inode: u64) -> bool {
        self.notifier.may_be_mapped(inode)
    }

    async fn write_back(&self, inode: u64) {
        self.notifier.write_back(inode).await;
    }

    async fn directory(&self, directory: u64) {
        self.notifier.directory(directory).await;
    }

    async fn entries(&self) {
        self.notifier.entries().await;
    }

    async fn everything(&self) {
        self.notifier.everything(self.volume).await;
    }
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
