//! A disk for crash tests that is nastier than `SimDisk`: power fails after a given number of changes, and each sector of unflushed
//! bytes keeps what any moment since the last flush had there, independently of the others. A sector has 512 bytes, or 16, which
//! no real disk has: records and table entries then tear within.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mooseng_chunk::{ChunkStore, StoreOptions};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, DiskFile, OpenMode, Space};
use rand::Rng;
use rand::rngs::SmallRng;

/// All that a file held since its last flush, oldest first; the last is what readers see.
struct Inode {
    moments: Vec<Vec<u8>>,
}

#[derive(Clone)]
enum Name {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    names: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    pending: Vec<Name>,
    dirs: Vec<PathBuf>,
    /// Changes until the power fails; none: never.
    budget: Option<u64>,
    changes: u64,
    life: u64,
}

#[derive(Clone, Default)]
pub struct TornDisk(Arc<Mutex<State>>);

impl State {
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        match &mut self.budget {
            Some(0) => Err(io::Error::from_raw_os_error(5)),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
    fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &Name) {
        match change {
            Name::Link(path, inode) => drop(names.insert(path.clone(), *inode)),
            Name::Unlink(path) => drop(names.remove(path)),
            Name::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

impl TornDisk {
    pub fn fail_after(&self, changes: Option<u64>) {
        self.0.lock().unwrap().budget = changes;
    }
    pub fn changes(&self) -> u64 {
        self.0.lock().unwrap().changes
    }
    pub fn crash(&self, dice: &mut SmallRng) {
        let s = &mut *self.0.lock().unwrap();
        s.life += 1;
        s.budget = None;
        let sector = if dice.random_bool(0.5) { 512 } else { 16 };
        let kept = dice.random_range(0..=s.pending.len());
        for change in std::mem::take(&mut s.pending).iter().take(kept) {
            State::apply(&mut s.durable, change);
        }
        s.names = s.durable.clone();
        for inode in s.inodes.values_mut() {
            // Nearly everything got there, or any mixture.
            let newest = if dice.random_bool(0.5) { 0.97 } else { 0.0 };
            let last = inode.moments.len() - 1;
            let pick = if dice.random_bool(newest) { last } else { dice.random_range(0..=last) };
            let mut left = vec![0; inode.moments[pick].len()];
            for at in (0..left.len()).step_by(sector) {
                let n = if dice.random_bool(newest) { last } else { dice.random_range(0..=last) };
                let moment = &inode.moments[n];
                let end = (at + sector).min(left.len()).min(moment.len());
                if at < end {
                    left[at..end].copy_from_slice(&moment[at..end]);
                }
            }
            inode.moments = vec![left];
        }
    }
    /// The process dies, the machine lives: what was written stays where it is, unflushed.
    pub fn kill(&self) {
        let s = &mut *self.0.lock().unwrap();
        s.life += 1;
        s.budget = None;
    }
    /// Flips a bit of what is on the disk.
    pub fn flip(&self, path: &Path, at: u64) {
        let s = &mut *self.0.lock().unwrap();
        let inode = s.names[path];
        for moment in &mut s.inodes.get_mut(&inode).unwrap().moments {
            moment[at as usize] ^= 0x10;
        }
    }
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().unwrap().names.keys().cloned().collect()
    }
    fn file(&self, inode: u64, life: u64) -> Arc<dyn DiskFile> {
        Arc::new(TornFile { disk: self.clone(), inode, life })
    }
}

impl Disk for TornDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let s = &mut *self.0.lock().unwrap();
        let inode = match (s.names.get(path).copied(), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, OpenMode::Existing | OpenMode::ReadOnly) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                s.change()?;
                s.next += 1;
                let inode = s.next;
                s.inodes.insert(inode, Inode { moments: vec![Vec::new()] });
                s.names.insert(path.into(), inode);
                s.pending.push(Name::Link(path.into(), inode));
                inode
            }
        };
        Ok(self.file(inode, s.life))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let s = &mut *self.0.lock().unwrap();
        for dir in path.ancestors().map(Path::to_path_buf) {
            if !s.dirs.contains(&dir) {
                s.change()?;
                s.dirs.push(dir);
            }
        }
        Ok(())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let s = self.0.lock().unwrap();
        let all = s.names.keys().chain(&s.dirs).filter(|p| p.parent() == Some(path));
        let mut names: Vec<String> =
            all.map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        Ok(names)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let s = &mut *self.0.lock().unwrap();
        s.change()?;
        let change = Name::Rename(from.into(), to.into());
        State::apply(&mut s.names, &change);
        s.pending.push(change);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let s = &mut *self.0.lock().unwrap();
        s.change()?;
        s.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        s.pending.push(Name::Unlink(path.into()));
        Ok(())
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let s = &mut *self.0.lock().unwrap();
        s.change()?;
        let (here, rest): (Vec<Name>, Vec<Name>) =
            std::mem::take(&mut s.pending).into_iter().partition(|n| match n {
                Name::Link(p, _) | Name::Unlink(p) | Name::Rename(_, p) => p.parent() == Some(path),
            });
        s.pending = rest;
        here.iter().for_each(|n| State::apply(&mut s.durable, n));
        Ok(())
    }
    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { bytes_total: 1 << 40, bytes_free: 1 << 40 })
    }
}

struct TornFile {
    disk: TornDisk,
    inode: u64,
    life: u64,
}

impl TornFile {
    fn with<T>(&self, changes: bool, f: impl FnOnce(&mut Vec<Vec<u8>>) -> T) -> io::Result<T> {
        let s = &mut *self.disk.0.lock().unwrap();
        if s.life != self.life {
            return Err(io::Error::from_raw_os_error(5));
        }
        if changes {
            s.change()?;
        }
        Ok(f(&mut s.inodes.get_mut(&self.inode).unwrap().moments))
    }
}

impl DiskFile for TornFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(false, |m| {
            let now = m.last().unwrap();
            let from = (offset as usize).min(now.len());
            let n = buffer.len().min(now.len() - from);
            buffer[..n].copy_from_slice(&now[from..from + n]);
            n
        })
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(true, |m| {
            let mut now = m.last().unwrap().clone();
            let (from, end) = (offset as usize, offset as usize + bytes.len());
            now.resize(now.len().max(end), 0);
            now[from..end].copy_from_slice(bytes);
            m.push(now);
        })
    }
    fn len(&self) -> io::Result<u64> {
        self.with(false, |m| m.last().unwrap().len() as u64)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.with(true, |m| {
            let mut now = m.last().unwrap().clone();
            now.resize(length as usize, 0);
            m.push(now);
        })
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        if self.len()? < length { self.set_len(length) } else { Ok(()) }
    }
    fn sync_data(&self) -> io::Result<()> {
        self.with(true, |m| drop(m.drain(..m.len() - 1)))
    }
}

/// What goes wrong on a [`FaultyDisk`].
#[derive(Clone, Copy)]
pub struct Planted {
    /// For paths below this one.
    pub below: &'static str,
    /// Only where a file is opened.
    pub opens_only: bool,
    pub errno: i32,
}

type Hook = Option<Box<dyn FnOnce() + Send>>;

/// A disk of which a part fails, as a device does that died, or any in a process that has no descriptors left.
#[derive(Clone, Default)]
pub struct FaultyDisk {
    under: SimDisk,
    planted: Arc<Mutex<Option<Planted>>>,
    hook: Arc<Mutex<Hook>>,
}

impl FaultyDisk {
    pub fn plant(&self, fault: Option<Planted>) {
        *self.planted.lock().unwrap() = fault;
    }
    /// What is done once, in the midst of the next read of a file.
    pub fn before_read(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }
    fn check(&self, path: &Path, opens: bool) -> io::Result<()> {
        match *self.planted.lock().unwrap() {
            Some(fault) if path.starts_with(fault.below) && (opens || !fault.opens_only) => {
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.check(path, true)?;
        let file = self.under.open(path, mode)?;
        Ok(Arc::new(FaultyFile { file, disk: self.clone(), path: path.into() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.check(path, false)?;
        self.under.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.check(path, false)?;
        self.under.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(to, false)?;
        self.under.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check(path, false)?;
        self.under.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(path, false)?;
        self.under.sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.under.space(path)
    }
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    disk: FaultyDisk,
    path: PathBuf,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let hook = self.disk.hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.disk.check(&self.path, false)?;
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.check(&self.path, false)?;
        self.file.write_at(bytes, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.check(&self.path, false)?;
        self.file.set_len(length)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.disk.check(&self.path, false)?;
        self.file.allocate(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.check(&self.path, false)?;
        self.file.sync_data()
    }
}

pub fn options(dirs: &[&str]) -> StoreOptions {
    StoreOptions {
        cluster: "test".into(),
        chunkserver: "cs-1".into(),
        state_dir: "/state".into(),
        data_dirs: dirs.iter().map(PathBuf::from).collect(),
        reserve_bytes: 0,
        open_files_max: 4,
        trash: false,
    }
}

pub fn open(disk: &(impl Disk + Clone), dirs: &[&str]) -> ChunkStore {
    open_with(disk, options(dirs))
}

pub fn open_with(disk: &(impl Disk + Clone), options: StoreOptions) -> ChunkStore {
    let mut n = 0;
    ChunkStore::open(Arc::new(disk.clone()), options, &mut || {
        n += 1;
        format!("disk-{n}")
    })
    .unwrap()
}
