//! A simulated filesystem in memory that keeps what is flushed apart from what isn't.
//!
//! A crash ([`SimDisk::crash`]) leaves of the unflushed changes what the caller's dice say: for each file none, a prefix, or all of its
//! unflushed writes, the last one torn; for each directory none, a prefix or all of its unflushed names. Faults are planted by
//! [`SimDisk::set_fault`]. [`SimDisk::lose_power_after`] strikes in the midst of a run of operations: between a write and its flush, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Disk, DiskFile, OpenMode, Space};
use crate::plant::{self, Plant};

/// What goes wrong with a file operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Writes and flushes answer EIO.
    Failing,
    /// Flushes answer EIO, and what wasn't flushed by then never will be, though it is read until the next crash: so kernels do it.
    FlushFailing,
    /// Writes answer ENOSPC.
    Full,
    /// Flushes last until the fault ends, or ten seconds. Not for where everything runs in one thread.
    Hanging,
    /// Flushes answer well and do nothing: a planted bug, to see whether tests bite.
    Lying,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
    /// [`State::changes`] when `durable` changed last.
    version: u64,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let end = *offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset as usize..end].copy_from_slice(data);
        }
        Change::SetLen(length) => bytes.resize(*length as usize, 0),
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    /// One atomic step: the new name takes the inode, the old name goes.
    Rename(PathBuf, PathBuf, u64),
}

fn apply_name(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Link(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Unlink(path) => {
            names.remove(path);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameChange>,
    dirs: Vec<PathBuf>,
    fault: Fault,
    /// Counts crashes: descriptors of an earlier life answer EIO.
    life: u64,
    capacity: u64,
    flushes: u64,
    /// Counts changes of what is durable.
    changes: u64,
    /// Operations until the power goes.
    power: Option<u64>,
    /// The power is gone: nothing works until the crash is noticed.
    dark: bool,
}

/// A simulated disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl Default for SimDisk {
    fn default() -> Self {
        Self::new(1 << 30)
    }
}

impl SimDisk {
    /// An empty disk of that many bytes.
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(State::new(capacity))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plants a fault, or ends it.
    pub fn set_fault(&self, fault: Fault) {
        self.state().fault = fault;
    }

    /// How many flushes of files were asked for.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// Loses power. `dice(n)` answers a number below or equal to `n`; it decides how much of what was unflushed survives.
    pub fn crash(&self, mut dice: impl FnMut(u64) -> u64) {
        let mut state = self.state();
        state.life += 1;
        (state.power, state.dark) = (None, false);
        let pending = std::mem::take(&mut state.pending_names);
        let kept = dice(pending.len() as u64) as usize;
        for change in &pending[..kept] {
            apply_name(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
        let live: Vec<u64> = state.names.values().copied().collect();
        state.inodes.retain(|inode, _| live.contains(inode));
        state.changes += 1;
        let version = state.changes;
        for inode in state.inodes.values_mut() {
            inode.version = version;
            let pending = std::mem::take(&mut inode.pending);
            let kept = dice(pending.len() as u64) as usize;
            for change in &pending[..kept] {
                apply(&mut inode.durable, change);
            }
            if let Some(Change::Write(offset, data)) = pending.get(kept) {
                let torn = dice(data.len() as u64) as usize;
                apply(&mut inode.durable, &Change::Write(*offset, data[..torn].to_vec()));
            }
            // Kernels and disks write back in any order.
            for change in pending.get(kept + 1..).unwrap_or_default() {
                if matches!(change, Change::Write(..)) && dice(3) == 3 {
                    apply(&mut inode.durable, change);
                }
            }
            inode.current = inode.durable.clone();
        }
    }

    /// Loses power at the changing operation after `operations` more of them: from then on everything answers EIO, and the caller, who sees it
    /// by [`is_dark`](Self::is_dark), ends the process and calls [`crash`](Self::crash).
    pub fn lose_power_after(&self, operations: u64) {
        self.state().power = Some(operations);
    }

    /// Takes [`lose_power_after`](Self::lose_power_after) back, if the power isn't gone yet.
    pub fn keep_power(&self) {
        self.state().power = None;
    }

    /// Whether the power is gone.
    pub fn is_dark(&self) -> bool {
        self.state().dark
    }

    /// Puts an empty disk in its place. Descriptors of the old one answer EIO.
    pub fn replace(&self) {
        let mut state = self.state();
        let (life, capacity, changes) = (state.life + 1, state.capacity, state.changes + 1);
        *state = State::new(capacity);
        (state.life, state.changes) = (life, changes);
    }

    /// The files and their lengths.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let length = |id: &u64| state.inodes.get(id).map_or(0, |inode| inode.current.len() as u64);
        state.names.iter().map(|(path, id)| (path.clone(), length(id))).collect()
    }

    /// Counts changes of what is durable: while it stays, so does what a power loss leaves at the worst.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// A number that no other file and no other durable content of this file has; none where no such name is durable.
    pub fn durable_version(&self, path: &Path) -> Option<u64> {
        let state = self.state();
        let inode = state.durable_names.get(path)?;
        state.inodes.get(inode).map(|inode| inode.version)
    }

    /// What a power loss would leave now at the worst, for nothing unflushed survives it: a disk of its own, with the files that are wanted.
    pub fn durable_copy(&self, wanted: impl Fn(&Path) -> bool) -> Self {
        let state = self.state();
        let mut copy = State::new(state.capacity);
        copy.dirs = state.dirs.clone();
        for (path, id) in state.durable_names.iter().filter(|(path, _)| wanted(path)) {
            let Some(inode) = state.inodes.get(id) else { continue };
            let durable = inode.durable.clone();
            copy.inodes.insert(*id, Inode { current: durable.clone(), durable, ..Inode::default() });
            copy.names.insert(path.clone(), *id);
        }
        copy.durable_names = copy.names.clone();
        copy.next_inode = state.next_inode;
        Self(Arc::new(Mutex::new(copy)))
    }

    /// Flips one bit of a durable file, as a bad disk does.
    pub fn flip_bit(&self, path: &Path, offset: u64) {
        let mut state = self.state();
        let Some(id) = state.names.get(path).copied() else { return };
        state.changes += 1;
        let version = state.changes;
        if let Some(inode) = state.inodes.get_mut(&id) {
            inode.version = version;
            for bytes in [&mut inode.durable, &mut inode.current] {
                if let Some(b) = bytes.get_mut(offset as usize) {
                    *b ^= 1;
                }
            }
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_path_buf()
}

fn failing() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(28)
}

impl State {
    fn new(capacity: u64) -> Self {
        Self {
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            dirs: vec![PathBuf::from("/")],
            fault: Fault::None,
            life: 0,
            capacity,
            flushes: 0,
            changes: 0,
            power: None,
            dark: false,
        }
    }
    fn check_power(&self) -> io::Result<()> {
        if self.dark { Err(failing()) } else { Ok(()) }
    }
    /// Counts an operation that changes something; at the last one the power goes.
    fn spend_power(&mut self) -> io::Result<()> {
        self.check_power()?;
        match &mut self.power {
            Some(0) => {
                self.dark = true;
                Err(failing())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
    fn check_write(&mut self) -> io::Result<()> {
        self.spend_power()?;
        match self.fault {
            Fault::None | Fault::Lying | Fault::FlushFailing | Fault::Hanging => Ok(()),
            Fault::Failing => Err(failing()),
            Fault::Full => Err(full()),
        }
    }
    /// Bytes of the files that have a name. A removed file's space comes back at once.
    fn used(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.iter().filter(|(id, _)| named.contains(id)).map(|(_, i)| i.current.len() as u64).sum()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.check_power()?;
        let life = state.life;
        let found = state.names.get(path).copied();
        let inode = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, OpenMode::Existing | OpenMode::ReadOnly) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                state.check_write()?;
                if !state.dirs.contains(&parent(path)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_path_buf(), inode);
                state.pending_names.push(NameChange::Link(path.to_path_buf(), inode));
                inode
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), inode, life }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        for dir in path.ancestors() {
            if !state.dirs.contains(&dir.to_path_buf()) {
                state.dirs.push(dir.to_path_buf());
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_power()?;
        if !state.dirs.contains(&path.to_path_buf()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let files = state.names.keys().filter(|p| p.parent() == Some(path));
        let dirs = state.dirs.iter().filter(|p| p.parent() == Some(path));
        let mut names: Vec<String> =
            files.chain(dirs).filter_map(|p| p.file_name()?.to_str().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        let inode = state.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        let change = NameChange::Rename(from.to_path_buf(), to.to_path_buf(), inode);
        apply_name(&mut state.names, &change);
        state.pending_names.push(change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.pending_names.push(NameChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        state.changes += 1;
        let pending = std::mem::take(&mut state.pending_names);
        for change in pending {
            let touches = match &change {
                NameChange::Link(p, _) | NameChange::Unlink(p) => parent(p) == path,
                NameChange::Rename(from, to, _) => parent(from) == path || parent(to) == path,
            };
            if touches {
                apply_name(&mut state.durable_names, &change);
            } else {
                state.pending_names.push(change);
            }
        }
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let state = self.state();
        Ok(Space { bytes_total: state.capacity, bytes_free: state.capacity.saturating_sub(state.used()) })
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    life: u64,
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.life != self.life {
            return Err(failing());
        }
        state.check_power()?;
        f(&mut state)
    }
    fn change(&self, change: Change) -> io::Result<()> {
        self.with(|state| {
            if let Err(error) = state.check_write() {
                // The write that the power loss cuts short may have arrived in part.
                if state.dark
                    && let Some(inode) = state.inodes.get_mut(&self.inode)
                {
                    inode.pending.push(change);
                }
                return Err(error);
            }
            let growth = match &change {
                Change::Write(offset, data) => offset + data.len() as u64,
                Change::SetLen(length) => *length,
            };
            let used = state.used();
            let capacity = state.capacity;
            let inode = state.inodes.entry(self.inode).or_default();
            if used + growth.saturating_sub(inode.current.len() as u64) > capacity {
                return Err(full());
            }
            apply(&mut inode.current, &change);
            inode.pending.push(change);
            Ok(())
        })
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let Some(inode) = state.inodes.get(&self.inode) else { return Ok(0) };
            let from = (offset as usize).min(inode.current.len());
            let n = buffer.len().min(inode.current.len() - from);
            buffer[..n].copy_from_slice(&inode.current[from..from + n]);
            Ok(n)
        })
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(Change::Write(offset, bytes.to_vec()))
    }
    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.inodes.get(&self.inode).map_or(0, |i| i.current.len() as u64)))
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Change::SetLen(length))
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        if self.len()? < length { self.change(Change::SetLen(length)) } else { Ok(()) }
    }
    fn sync_data(&self) -> io::Result<()> {
        for _ in 0..10_000 {
            if self.disk.state().fault != Fault::Hanging {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.with(|state| {
            state.flushes += 1;
            state.spend_power()?;
            match state.fault {
                Fault::Failing => return Err(failing()),
                Fault::FlushFailing => {
                    if let Some(inode) = state.inodes.get_mut(&self.inode) {
                        inode.pending.clear();
                    }
                    return Err(failing());
                }
                Fault::Lying => return Ok(()),
                Fault::None | Fault::Full | Fault::Hanging => {}
            }
            if plant::is(Plant::LostFlush) {
                return Ok(());
            }
            state.changes += 1;
            let version = state.changes;
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                inode.version = version;
                for change in std::mem::take(&mut inode.pending) {
                    apply(&mut inode.durable, &change);
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_atomically;
    use super::*;

    fn all(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
        disk.open(Path::new(path), OpenMode::ReadOnly).ok().map(|f| super::super::read_all(&*f).unwrap())
    }

    #[test]
    fn unflushed_bytes_and_names_go_at_a_crash() {
        let disk = SimDisk::default();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let a = disk.open(Path::new("/d/a"), OpenMode::Create).unwrap();
        a.write_at(b"one", 0).unwrap();
        a.sync_data().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        a.write_at(b"two", 3).unwrap();
        disk.open(Path::new("/d/b"), OpenMode::Create).unwrap();
        disk.crash(|_| 0);
        assert_eq!(all(&disk, "/d/a").unwrap(), b"one");
        assert_eq!(all(&disk, "/d/b"), None);
        assert!(a.write_at(b"x", 0).is_err(), "a descriptor from before the crash is dead");
    }

    #[test]
    fn a_durable_copy_is_what_a_power_loss_leaves_at_the_worst() {
        let disk = SimDisk::default();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let file = disk.open(a, OpenMode::Create).unwrap();
        file.write_at(b"one", 0).unwrap();
        file.sync_data().unwrap();
        assert_eq!((disk.durable_version(a), all(&disk.durable_copy(|_| true), "/a")), (None, None));
        disk.sync_dir(Path::new("/")).unwrap();
        let (version, changes) = (disk.durable_version(a), disk.changes());
        file.write_at(b"two", 3).unwrap();
        assert_eq!((disk.durable_version(a), disk.changes()), (version, changes));
        let copy = disk.durable_copy(|_| true);
        assert_eq!(all(&copy, "/a").unwrap(), b"one");
        file.sync_data().unwrap();
        assert_ne!(disk.durable_version(a), version);
        assert_ne!(disk.changes(), changes);
        assert_eq!(all(&copy, "/a").unwrap(), b"one", "the copy is a disk of its own");
        disk.rename(a, b).unwrap();
        assert_eq!(all(&disk.durable_copy(|_| true), "/a").unwrap(), b"onetwo");
        disk.sync_dir(Path::new("/")).unwrap();
        assert_eq!(disk.durable_version(a), None);
        assert_eq!(all(&disk.durable_copy(|path| path == b), "/b").unwrap(), b"onetwo");
        assert_eq!(all(&disk.durable_copy(|path| path == a), "/b"), None);
    }

    #[test]
    fn a_torn_write_leaves_a_prefix() {
        let disk = SimDisk::default();
        let a = disk.open(Path::new("/a"), OpenMode::Create).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        a.write_at(b"abcdef", 0).unwrap();
        let mut first = true;
        disk.crash(|n| if std::mem::take(&mut first) || n == 1 { 0 } else { n / 2 });
        assert_eq!(all(&disk, "/a").unwrap(), b"abc");
    }

    #[test]
    fn power_goes_between_a_write_and_its_flush() {
        let disk = SimDisk::default();
        let a = disk.open(Path::new("/a"), OpenMode::Create).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        a.write_at(b"one", 0).unwrap();
        a.sync_data().unwrap();
        disk.lose_power_after(1);
        a.write_at(b"two", 0).unwrap();
        assert!(!disk.is_dark());
        assert!(a.sync_data().is_err() && disk.is_dark());
        assert!(disk.open(Path::new("/a"), OpenMode::ReadOnly).is_err());
        disk.crash(|_| 0);
        assert_eq!(all(&disk, "/a").unwrap(), b"one");
    }

    #[test]
    fn what_a_failed_flush_left_is_lost_though_later_flushes_work() {
        let disk = SimDisk::default();
        let a = disk.open(Path::new("/a"), OpenMode::Create).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        a.write_at(b"one", 0).unwrap();
        disk.set_fault(Fault::FlushFailing);
        assert!(a.sync_data().is_err());
        disk.set_fault(Fault::None);
        a.sync_data().unwrap();
        assert_eq!(all(&disk, "/a").unwrap(), b"one");
        disk.crash(|n| n);
        assert_eq!(all(&disk, "/a").unwrap(), b"");
    }

    #[test]
    fn atomic_replacement_survives_any_crash() {
        for keep in 0..6 {
            let disk = SimDisk::default();
            write_atomically(&disk, Path::new("/f"), b"old").unwrap();
            let file = disk.open(Path::new("/f.new"), OpenMode::Create).unwrap();
            file.write_at(b"new!", 0).unwrap();
            if keep % 2 == 0 {
                file.sync_data().unwrap();
                disk.rename(Path::new("/f.new"), Path::new("/f")).unwrap();
            }
            disk.crash(|n| (keep / 2).min(n));
            let bytes = all(&disk, "/f").unwrap();
            assert!(bytes == b"old" || bytes == b"new!", "{bytes:?}");
        }
    }
}
