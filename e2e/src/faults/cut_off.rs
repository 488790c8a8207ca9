//! What a mount has that is about to be cut off for longer than its lease: a lock, and bytes that weren't fsynced.
//!
//! Others get the lock, and change the file of these bytes, while it is away. Once it is back it is told so - EIO by one fsync, not by the next, and EIO for the
//! lock - and what others wrote stands.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const LOCK: &str = "cut-off.lock";
const DATA: &str = "cut-off.data";
/// Fsynced before.
const BEFORE: &[u8] = b"before";
/// Written, and not fsynced.
const UNSYNCED: &[u8] = b"unsent";
/// What others write meanwhile.
const THEIRS: &[u8] = b"theirs";
/// How long it may take to be answered by a mount that is back.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// What the mount has. The files are closed with it.
pub struct Holdings {
    mount: PathBuf,
    others: PathBuf,
    locked: File,
    written: File,
    /// The lock, as others have it meanwhile.
    taken: Option<File>,
    /// Whether the bytes reached the region before the cut after all.
    arrived: bool,
}

impl Holdings {
    /// Takes a lock and writes on `mount`, at the last moment. `others` is a mount that goes on.
    pub fn take(mount: &Path, others: &Path) -> Result<Self> {
        let locked = File::create(mount.join(LOCK)).context("making a file to lock")?;
        flock(&locked, FlockOperation::NonBlockingLockExclusive).context("locking what nobody else has")?;
        let written = File::create(mount.join(DATA)).context("making a file to write")?;
        written.write_all_at(BEFORE, 0)?;
        written.sync_all().context("flushing a file before a cut")?;
        written.write_all_at(UNSYNCED, 0)?;
        let (mount, others) = (mount.to_owned(), others.to_owned());
        Ok(Self { mount, others, locked, written, taken: None, arrived: false })
    }

    /// While it is cut off, and its lease is over: others get its lock, and change its file.
    pub fn lose(&mut self) -> Result<()> {
        let lock = File::options().read(true).write(true).open(self.others.join(LOCK))?;
        let free = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        free.context("the lock of a mount that is cut off for longer than its lease isn't free")?;
        self.taken = Some(lock);
        let path = self.others.join(DATA);
        let seen = fs::read(&path).context("reading what a mount wrote that is cut off")?;
        ensure!(seen == BEFORE || seen == UNSYNCED, "{DATA} has {:?}", String::from_utf8_lossy(&seen));
        self.arrived = seen == UNSYNCED;
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(THEIRS, 0)?;
        file.sync_all().context("changing what a mount wrote that is cut off")
    }

    /// Once it is back.
    pub fn told(self) -> Result<()> {
        let (sender, receiver) = channel();
        // One that hangs in the kernel is left behind.
        std::thread::Builder::new().spawn(move || sender.send(self.ask()))?;
        receiver.recv_timeout(ANSWERED_WITHIN).with_context(|| {
            format!("a mount that is back doesn't answer for {} s", ANSWERED_WITHIN.as_secs())
        })?
    }

    fn ask(self) -> Result<()> {
        match (self.arrived, self.written.sync_all()) {
            (true, Ok(())) => {}
            (_, Err(error)) if error.raw_os_error() == Some(libc::EIO) => {}
            (_, Err(error)) => bail!("the fsync of bytes that are lost answers {error}, not EIO"),
            (false, Ok(())) => bail!("bytes that others never saw were flushed, and are lost"),
        }
        self.written.sync_all().context("an error of fsync is told twice")?;
        let lock = flock(&self.locked, FlockOperation::NonBlockingLockExclusive);
        ensure!(lock == Err(Errno::IO), "who has lost a lock is answered {lock:?} when it locks again");
        for mount in [&self.mount, &self.others] {
            let seen = fs::read(mount.join(DATA)).with_context(|| format!("below {}", mount.display()))?;
            ensure!(
                seen == THEIRS,
                "{} shows {:?} instead of what was written and fsynced while a mount was cut off",
                mount.display(),
                String::from_utf8_lossy(&seen)
            );
        }
        let Self { others, locked, written, taken, .. } = self;
        drop((locked, written, taken));
        let remove =
            |name: &str| fs::remove_file(others.join(name)).with_context(|| format!("removing {name}"));
        [LOCK, DATA].into_iter().try_for_each(remove)
    }
}
