//! Taking back what the kernel was told: notifications, written to a descriptor of our own.
//!
//! What may be waited for (seen on kernel 6.18): `inval_inode` of attributes returns at once. Of pages it waits for those that an unanswered read or
//! write has locked, and such a request may wait for the very recall: pages are dropped on a thread of their own for which nobody
//! waits. Until then the kernel asks for the attributes before it believes them, and drops them itself when the time of the last
//! write has changed (AUTO_INVAL_DATA). `inval_entry`
//! takes the directory's lock, which an unanswered create in it holds: it runs on a thread of its own, and when it doesn't return at once,
//! the epoch is raised instead (FUSE_NOTIFY_INC_EPOCH, kernel 6.16): then every entry is looked up again. A kernel without epochs is
//! told entries for no time at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_client::Invalidate;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::pages::Pages;

/// FUSE_NOTIFY_INVAL_INODE of the kernel's `linux/fuse.h`.
const INVAL_INODE: i32 = 2;
/// FUSE_NOTIFY_INVAL_ENTRY.
const INVAL_ENTRY: i32 = 3;
/// FUSE_NOTIFY_INC_EPOCH.
const INC_EPOCH: i32 = 8;
/// How long the kernel may take to forget an entry before the epoch is raised.
const AT_ONCE: Duration = Duration::from_millis(1);
/// Entries that wait for the thread which may be blocked.
const WAITING_MAX: usize = 1024;
/// Inodes remembered; beyond it those that time has taken from the kernel are dropped, and where none are, nothing more is told.
const TOLD_MAX: usize = 1 << 20;
/// How often it is looked which those are.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the kernel was told to keep, and until when.
#[derive(Debug)]
struct Told {
    most: usize,
    until: BTreeMap<u64, Instant>,
    swept: Option<Instant>,
}

impl Told {
    /// Remembers an inode. Answers for how long the kernel may be told to keep it: zero where that can't be remembered.
    fn add(&mut self, inode: u64, validity: Duration, now: Instant) -> Duration {
        if self.until.len() >= self.most && !self.until.contains_key(&inode) {
            if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
                self.swept = Some(now);
                self.until.retain(|_, until| *until > now);
            }
            if self.until.len() >= self.most {
                return Duration::ZERO;
            }
        }
        let until = self.until.entry(inode).or_insert(now);
        *until = (*until).max(now + validity);
        validity
    }
}

struct Entry {
    directory: u64,
    name: Bytes,
    done: oneshot::Sender<()>,
}

/// What the kernel was told, and how it is taken back.
pub(crate) struct Notifier {
    device: Arc<File>,
    entries: mpsc::SyncSender<Entry>,
    pages: mpsc::SyncSender<u64>,
    epochs: AtomicBool,
    told: Mutex<Told>,
    /// Held while something is looked up and shown; see [`Self::showing`].
    showing: RwLock<()>,
    pages_of: Mutex<Pages>,
}

impl Notifier {
    /// Notifies through a descriptor of the mount's session.
    pub fn new(descriptor: OwnedFd) -> io::Result<Arc<Self>> {
        let device = Arc::new(File::from(descriptor));
        let (entries, waiting) = mpsc::sync_channel::<Entry>(WAITING_MAX);
        let own = device.clone();
        std::thread::Builder::new().name("mooseng-forget".into()).spawn(move || {
            while let Ok(entry) = waiting.recv() {
                // ENOENT: the kernel doesn't know it. Anything else ends with the mount.
                if let Err(error) = forget_entry(&own, entry.directory, &entry.name)
                    && error.raw_os_error() != Some(libc::ENOENT)
                {
                    tracing::debug!(directory = entry.directory, %error, "the kernel couldn't be told to forget an entry");
                }
                let _ = entry.done.send(());
            }
        })?;
        let (pages, inodes) = mpsc::sync_channel::<u64>(WAITING_MAX);
        let own = device.clone();
        std::thread::Builder::new().name("mooseng-pages".into()).spawn(move || {
            while let Ok(inode) = inodes.recv() {
                note("an inode's pages", forget_inode(&own, inode, true));
            }
        })?;
        let told = Mutex::new(Told { most: TOLD_MAX, until: BTreeMap::new(), swept: None });
        let epochs = AtomicBool::new(true);
        Ok(Arc::new(Self {
            device,
            entries,
            pages,
            epochs,
            told,
            showing: RwLock::default(),
            pages_of: Mutex::new(Pages::new(TOLD_MAX)),
        }))
    }

    /// Tries whether this kernel knows epochs. Once the mount's session runs.
    pub fn probe(&self) {
        // What it doesn't know it calls invalid.
        if let Err(error) = raise_epoch(&self.device)
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
    pub fn showing(&self) -> RwLockReadGuard<'_, ()> {
        self.showing.read().unwrap_or_else(PoisonError::into_inner)
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

    /// [`Pages::given`].
    pub fn gives_pages(&self, inode: u64, hold: Option<u64>) {
        self.pages_of(|pages| pages.given(inode, hold));
    }

    /// The kernel is told attributes, or pages, of an inode. Answers for how long it may keep them: as long as wanted, or not at all.
    pub fn telling(&self, inode: u64, validity: Duration) -> Duration {
        if validity.is_zero() {
            return validity;
        }
        self.told.lock().unwrap_or_else(PoisonError::into_inner).add(inode, validity, Instant::now())
    }
}

fn send(device: &File, code: i32, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = 16 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut header = [0_u8; 16];
    header[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&code.to_ne_bytes());
    let slices: Vec<IoSlice<'_>> =
        std::iter::once(&header[..]).chain(parts.iter().copied()).map(IoSlice::new).collect();
    let mut device = device;
    // One message is one write.
    device.write_vectored(&slices).map(|_| ())
}

fn forget_entry(device: &File, directory: u64, name: &[u8]) -> io::Result<()> {
    let mut head = [0_u8; 16];
    head[..8].copy_from_slice(&directory.to_ne_bytes());
    head[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
    send(device, INVAL_ENTRY, &[&head, name, &[0]])
}

/// Forgets an inode's attributes, and with `pages` what is cached of its contents.
fn forget_inode(device: &File, inode: u64, pages: bool) -> io::Result<()> {
    let mut body = [0_u8; 24];
    body[..8].copy_from_slice(&inode.to_ne_bytes());
    // From the first byte to the last; a negative offset means no byte.
    let (offset, length): (i64, i64) = if pages { (0, -1) } else { (-1, 0) };
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..].copy_from_slice(&length.to_ne_bytes());
    send(device, INVAL_INODE, &[&body])
}

fn raise_epoch(device: &File) -> io::Result<()> {
    send(device, INC_EPOCH, &[])
}

fn note(what: &str, outcome: io::Result<()>) {
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

#[async_trait]
impl Invalidate for Notifier {
    async fn entry(&self, directory: u64, name: &Bytes) {
        if !self.keeps_entries() {
            return;
        }
        self.let_show();
        let (done, finished) = oneshot::channel();
        let sent = self.entries.try_send(Entry { directory, name: name.clone(), done });
        if sent.is_ok() && tokio::time::timeout(AT_ONCE, finished).await.is_ok() {
            return;
        }
        note("the epoch", raise_epoch(&self.device));
    }

    async fn inode(&self, inode: u64) {
        self.let_show();
        self.pages_of(|pages| pages.forget(inode));
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).until.remove(&inode).is_none() {
            return;
        }
        note("an inode", forget_inode(&self.device, inode, false));
        // A full queue is well: the pages are compared by the time of the last write before they are believed.
        let _ = self.pages.try_send(inode);
    }

    async fn everything(&self) {
        self.let_show();
        self.pages_of(Pages::forget_all);
        let told = std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner).until);
        if self.keeps_entries() {
            note("the epoch", raise_epoch(&self.device));
        }
        let device = self.device.clone();
        let pages = self.pages.clone();
        // None of these waits for anybody; there may be many.
        let forgotten = tokio::task::spawn_blocking(move || {
            for inode in told.into_keys() {
                note("an inode", forget_inode(&device, inode, false));
                let _ = pages.try_send(inode);
            }
        })
        .await;
        if let Err(error) = forgotten {
            tracing::warn!(%error, "telling the kernel to forget everything failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cant_be_remembered_isnt_told_until_time_has_made_room() {
        let mut told = Told { most: 2, until: BTreeMap::new(), swept: None };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(told.add(1, second, start), second);
        assert_eq!(told.add(2, second * 9, start), second * 9);
        assert_eq!(told.add(3, second, start), Duration::ZERO);
        assert_eq!(told.add(1, second * 2, start), second * 2, "it is remembered already");
        assert_eq!(told.add(3, second, start + second * 3), second, "the first one's time is over");
        assert_eq!(told.until.len(), 2);
    }
}
