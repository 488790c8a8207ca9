//! Files, directories and the trouble with them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::file::Bytes;
pub use super::file::Survival;
use super::names::{Id, Names, ROOT};

/// Files without a name are looked for after so many removals.
const SWEEP_EVERY: usize = 64;

type Result<T> = std::result::Result<T, i32>;

/// What goes wrong: each an errno.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Of reads.
    pub reads: Option<i32>,
    /// Of writes and of all other changes.
    pub changes: Option<i32>,
    /// Of files' flushes. What they were to write is lost.
    pub flushes: Option<i32>,
    /// Of directories' flushes.
    pub name_flushes: Option<i32>,
    /// There is no room: files don't grow, and nothing is made.
    pub full: bool,
}

/// What a power loss took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Sectors of files.
    pub sectors: u64,
    /// Names that were made, changed or removed, and aren't any more.
    pub names: Vec<OsString>,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sectors and {} changes of names", self.sectors, self.names.len())?;
        let shown: Vec<_> = self.names.iter().take(8).map(|n| n.to_string_lossy()).collect();
        if shown.is_empty() { Ok(()) } else { write!(f, " ({})", shown.join(", ")) }
    }
}

impl Survival {
    /// How much survives a power loss with this seed: mostly nothing, or any of it.
    pub fn of(seed: u64) -> Self {
        match seed % 8 {
            0..4 => Self::Nothing,
            4..7 => Self::Some,
            _ => Self::All,
        }
    }
}

/// A file or directory.
#[derive(Debug)]
pub struct Node {
    /// Its bytes; none of a directory.
    pub bytes: Option<Bytes>,
    /// Permissions.
    pub mode: u32,
    /// How often the kernel has looked it up.
    pub lookups: u64,
    /// How often it is open.
    pub opens: u64,
}

/// The disk.
#[derive(Debug)]
pub struct Store {
    objects: PathBuf,
    names: Names,
    nodes: BTreeMap<Id, Node>,
    last: Id,
    removals: usize,
    /// What goes wrong.
    pub trouble: Trouble,
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl Store {
    /// An empty one.
    pub fn new(objects: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(objects)?;
        let root = Node { bytes: None, mode: 0o755, lookups: 1, opens: 0 };
        Ok(Self {
            objects: objects.to_owned(),
            names: Names::default(),
            nodes: BTreeMap::from([(ROOT, root)]),
            last: ROOT,
            removals: 0,
            trouble: Trouble::default(),
        })
    }

    /// Where the bytes lie.
    pub fn objects(&self) -> &Path {
        &self.objects
    }

    /// A file or directory.
    pub fn node(&mut self, id: Id) -> Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or(libc::ESTALE)
    }

    fn bytes(&mut self, id: Id) -> Result<&mut Bytes> {
        self.node(id)?.bytes.as_mut().ok_or(libc::EISDIR)
    }

    /// What a name means.
    pub fn look_up(&self, dir: Id, name: &OsStr) -> Result<Id> {
        self.names.get(dir, name).ok_or(libc::ENOENT)
    }

    /// The names in a directory.
    pub fn list(&self, dir: Id) -> Result<Vec<(OsString, Id, bool)>> {
        self.readable()?;
        let names = self.names.of(dir).ok_or(libc::ENOTDIR)?;
        let is_dir = |id: &Id| self.nodes.get(id).is_some_and(|n| n.bytes.is_none());
        Ok(names.iter().map(|(name, id)| (name.clone(), *id, is_dir(id))).collect())
    }

    fn readable(&self) -> Result<()> {
        self.trouble.reads.map_or(Ok(()), Err)
    }

    fn changeable(&self) -> Result<()> {
        self.trouble.changes.map_or(Ok(()), Err)
    }

    fn has_room(&self) -> Result<()> {
        if self.trouble.full { Err(libc::ENOSPC) } else { Ok(()) }
    }

    /// Makes a file or a directory.
    pub fn make(&mut self, dir: Id, name: &OsStr, mode: u32, is_dir: bool) -> Result<Id> {
        self.changeable()?;
        self.has_room()?;
        if self.names.of(dir).ok_or(libc::ENOTDIR)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let bytes = match is_dir {
            true => None,
            false => Some(Bytes::new(tempfile::tempfile_in(&self.objects).map_err(errno)?)),
        };
        self.last += 1;
        let id = self.last;
        self.nodes.insert(id, Node { bytes, mode: mode & 0o7777, lookups: 0, opens: 0 });
        if is_dir {
            self.names.add_directory(id);
        }
        self.names.change(vec![(dir, name.to_owned(), Some(id))]);
        Ok(id)
    }

    /// Removes a name.
    pub fn remove(&mut self, dir: Id, name: &OsStr, is_dir: bool) -> Result<()> {
        self.changeable()?;
        let id = self.look_up(dir, name)?;
        match (self.names.of(id), is_dir) {
            (Some(names), true) if !names.is_empty() => return Err(libc::ENOTEMPTY),
            (Some(_), true) | (None, false) => {}
            (Some(_), false) => return Err(libc::EISDIR),
            (None, true) => return Err(libc::ENOTDIR),
        }
        self.names.change(vec![(dir, name.to_owned(), None)]);
        self.removed();
        Ok(())
    }

    /// Renames, over what is there.
    pub fn rename(&mut self, from: (Id, &OsStr), to: (Id, &OsStr), no_replace: bool) -> Result<()> {
        self.changeable()?;
        let id = self.look_up(from.0, from.1)?;
        if no_replace && self.look_up(to.0, to.1).is_ok() {
            return Err(libc::EEXIST);
        }
        if from != to {
            self.names.change(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(id))]);
        }
        self.removed();
        Ok(())
    }

    fn removed(&mut self) {
        self.removals += 1;
        if self.removals >= SWEEP_EVERY {
            self.sweep();
        }
    }

    /// Forgets what has no name and no user.
    fn sweep(&mut self) {
        self.removals = 0;
        let referenced = self.names.referenced();
        let gone: Vec<Id> = self
            .nodes
            .iter()
            .filter(|(id, n)| n.lookups == 0 && n.opens == 0 && !referenced.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.nodes.remove(&id);
            self.names.forget(id);
        }
    }

    /// Reads.
    pub fn read(&mut self, id: Id, offset: u64, size: usize) -> Result<Vec<u8>> {
        self.readable()?;
        self.bytes(id)?.read(offset, size).map_err(errno)
    }

    /// Writes. A full disk takes what lies within the file: that has its room.
    pub fn write(&mut self, id: Id, offset: u64, bytes: &[u8]) -> Result<()> {
        self.changeable()?;
        if offset + bytes.len() as u64 > self.bytes(id)?.len() {
            self.has_room()?;
        }
        self.bytes(id)?.write(offset, bytes).map_err(errno)
    }

    /// Cuts or extends.
    pub fn set_len(&mut self, id: Id, len: u64) -> Result<()> {
        self.changeable()?;
        if len > self.bytes(id)?.len() {
            self.has_room()?;
        }
        self.bytes(id)?.set_len(len).map_err(errno)
    }

    /// Flushes a file or a directory.
    pub fn flush(&mut self, id: Id) -> Result<()> {
        let (of_files, of_names) = (self.trouble.flushes, self.trouble.name_flushes);
        match (&mut self.node(id)?.bytes, of_files, of_names) {
            (Some(bytes), Some(failure), _) => {
                bytes.fail_flush();
                return Err(failure);
            }
            (None, _, Some(failure)) => return Err(failure),
            _ => {}
        }
        // Nothing can reach a disk that takes no changes.
        self.changeable()?;
        match &mut self.node(id)?.bytes {
            Some(bytes) => bytes.flush(),
            None => self.names.flush(id),
        }
        Ok(())
    }

    /// The power goes. How much survives follows from the seed.
    pub fn lose_power(&mut self, seed: u64) -> io::Result<Lost> {
        let survival = Survival::of(seed);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut lost = Lost::default();
        for bytes in self.nodes.values_mut().filter_map(|n| n.bytes.as_mut()).filter(|b| b.is_dirty()) {
            lost.sectors += bytes.lose_power(survival, &mut rng)?;
        }
        let pending = self.names.pending();
        let kept = match survival {
            Survival::Nothing => 0,
            Survival::Some => rng.random_range(0..=pending),
            Survival::All => pending,
        };
        lost.names = self.names.lose_power(kept);
        self.sweep();
        Ok(lost)
    }

    /// Changes a file behind everybody's back.
    pub fn damage<T>(
        &mut self,
        path: &str,
        change: impl FnOnce(&std::fs::File) -> io::Result<T>,
    ) -> io::Result<T> {
        let id = self.find(path).map_err(io::Error::from_raw_os_error)?;
        self.bytes(id).map_err(io::Error::from_raw_os_error)?.damage(change)
    }

    /// The bytes of a file, whatever the trouble is.
    pub fn peek(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let id = self.find(path).map_err(io::Error::from_raw_os_error)?;
        let bytes = self.bytes(id).map_err(io::Error::from_raw_os_error)?;
        bytes.read(0, bytes.len() as usize)
    }

    /// What a path from the root means.
    pub fn find(&self, path: &str) -> Result<Id> {
        let mut names = path.split('/').filter(|n| !n.is_empty());
        names.try_fold(ROOT, |dir, name| self.look_up(dir, OsStr::new(name)))
    }

    /// Removes a file's name for good.
    pub fn vanish(&mut self, path: &str) -> io::Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.find(dir).map_err(io::Error::from_raw_os_error)?;
        self.look_up(dir, OsStr::new(name)).map_err(io::Error::from_raw_os_error)?;
        self.names.change(vec![(dir, name.into(), None)]);
        self.names.flush(dir);
        Ok(())
    }

    /// The files below a directory, as paths from the root.
    pub fn files(&self, dir: &str) -> Vec<String> {
        let Ok(id) = self.find(dir) else { return Vec::new() };
        let Some(names) = self.names.of(id) else { return Vec::new() };
        let mut files = Vec::new();
        for (name, id) in names {
            let path = format!("{dir}/{}", name.to_string_lossy());
            match self.names.of(*id) {
                Some(_) => files.extend(self.files(&path)),
                None => files.push(path),
            }
        }
        files
    }
}
