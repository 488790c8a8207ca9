//! A directory in which operations are carried out, with the files that are open there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, XattrFlags};

use super::op::{Allocation, Attribute, How, Op, Replace, SLOTS};

/// What an operation answered.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It wasn't: the errno.
    Refused(i32),
    /// Bytes that were written or copied.
    Count(usize),
    /// Bytes that were read.
    Bytes(Vec<u8>),
    /// An open file's attributes: kind and mode, names (0 for a directory), size.
    Attributes(u32, u64, u64),
    /// There is no such file open.
    NotOpen,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(errno) => write!(f, "{}", io::Error::from_raw_os_error(*errno)),
            Self::Count(n) => write!(f, "{n} bytes done"),
            Self::Bytes(bytes) => write!(f, "{} bytes read", bytes.len()),
            Self::Attributes(mode, names, size) => write!(f, "mode {mode:o}, {names} names, {size} bytes"),
            Self::NotOpen => f.write_str("not open"),
        }
    }
}

/// What is seen at a path, and is the same on every filesystem.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// Kind and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Hard links; 0 for a directory.
    pub nlink: u64,
    /// Of a file its bytes, of a link its target.
    pub content: Vec<u8>,
    /// Of a directory its entries, with their kinds.
    pub names: BTreeMap<OsString, char>,
    /// Extended attributes of users.
    pub attributes: BTreeMap<OsString, Vec<u8>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, owner, nlink, content, names, attributes } = self;
        let attributes: Vec<_> = attributes.iter().map(|(name, value)| (name, value.len())).collect();
        write!(
            f,
            "mode {mode:o}, owner {owner:?}, {nlink} names, {} bytes, entries {names:?}, attributes {attributes:?}",
            content.len()
        )
    }
}

/// What two mounts must show alike beside: inode, times of change in nanoseconds, and of a directory links and size. Not blocks: what
/// the writer has buffered counts once it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    inode: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    nlink: u64,
    size: u64,
}

/// A directory and what is open there.
pub struct Place {
    /// Where.
    pub root: PathBuf,
    files: Vec<Option<File>>,
}

fn kind(kind: fs::FileType) -> char {
    match kind {
        kind if kind.is_dir() => 'd',
        kind if kind.is_symlink() => 'l',
        kind if kind.is_fifo() => 'p',
        _ => 'f',
    }
}

fn done(_: ()) -> Outcome {
    Outcome::Done
}

fn options(how: How) -> fs::OpenOptions {
    let mut options = File::options();
    let flags = if how.exclusive { libc::O_EXCL } else { 0 } | if how.sync { libc::O_SYNC } else { 0 };
    // O_CREAT and O_TRUNC as they are: the standard library refuses some of what the kernel takes.
    let flags =
        flags | if how.create { libc::O_CREAT } else { 0 } | if how.truncate { libc::O_TRUNC } else { 0 };
    options.read(how.read).write(how.write).append(how.append).custom_flags(flags).mode(0o640);
    options
}

impl Place {
    /// A directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root, files: (0..SLOTS).map(|_| None).collect() }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Everything that there is, in order.
    pub fn names(&self) -> io::Result<Vec<PathBuf>> {
        let (mut names, mut at) = (Vec::new(), 0);
        let mut directory = PathBuf::new();
        loop {
            for entry in fs::read_dir(self.at(&directory))? {
                names.push(directory.join(entry?.file_name()));
            }
            names[at..].sort();
            match names[at..].iter().position(|name| self.at(name).is_dir() && !self.at(name).is_symlink()) {
                None => return Ok(names),
                Some(next) => {
                    directory = names[at + next].clone();
                    at += next + 1;
                }
            }
        }
    }

    /// Slots with open files.
    pub fn open(&self) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.files[*slot].is_some()).collect()
    }

    /// Closes the file in a slot.
    pub fn close(&mut self, slot: usize) {
        self.files[slot] = None;
    }

    /// Carries an operation out.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        self.attempt(op).unwrap_or_else(|error| Outcome::Refused(error.raw_os_error().unwrap_or(-1)))
    }

    fn attempt(&mut self, op: &Op) -> io::Result<Outcome> {
        if let Some(slot) = op.slot() {
            let Some(file) = &self.files[slot] else { return Ok(Outcome::NotOpen) };
            if let Op::Close { .. } = op {
                self.files[slot] = None;
                return Ok(Outcome::Done);
            }
            return on_file(file, op);
        }
        match op {
            Op::Open { slot, path, how } => {
                let file = options(*how).open(self.at(path))?;
                // A directory that is removed while it is open becomes stale (docs/posix.md): none is kept open.
                self.files[*slot] = (!file.metadata()?.is_dir()).then_some(file);
                Ok(Outcome::Done)
            }
            Op::WriteAll { path, fill } => fs::write(self.at(path), fill.bytes()).map(done),
            Op::Append { path, fill } => {
                let mut file = File::options().append(true).create(true).open(self.at(path))?;
                file.write_all(&fill.bytes()).map(done)
            }
            Op::Truncate { path, length } => {
                nix::unistd::truncate(&self.at(path), *length as i64).map(done).map_err(io::Error::from)
            }
            Op::MakeDirectory { path, mode } => {
                fs::DirBuilder::new().mode(*mode).create(self.at(path)).map(done)
            }
            Op::RemoveDirectory { path } => fs::remove_dir(self.at(path)).map(done),
            Op::Unlink { path } => fs::remove_file(self.at(path)).map(done),
            Op::Rename { from, to, replace } => {
                let flags = match replace {
                    Replace::Yes => RenameFlags::empty(),
                    Replace::No => RenameFlags::NOREPLACE,
                    Replace::Exchange => RenameFlags::EXCHANGE,
                };
                Ok(rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags).map(done)?)
            }
            Op::Link { from, to } => fs::hard_link(self.at(from), self.at(to)).map(done),
            Op::Symlink { target, path } => symlink(target, self.at(path)).map(done),
            Op::Chmod { path, mode } => {
                fs::set_permissions(self.at(path), fs::Permissions::from_mode(*mode)).map(done)
            }
            Op::SetTimes { path, mtime_s } => self.set_time(path, *mtime_s).map(done),
            Op::Copy { from, to, from_offset, to_offset, length } => {
                let source = File::open(self.at(from))?;
                let target = File::options().write(true).open(self.at(to))?;
                copy(&source, &target, (*from_offset, *to_offset), *length).map(Outcome::Count)
            }
            Op::SetAttribute { path, name, fill, how } => {
                let flags = match how {
                    Attribute::Any => XattrFlags::empty(),
                    Attribute::Create => XattrFlags::CREATE,
                    Attribute::Replace => XattrFlags::REPLACE,
                };
                Ok(rustix::fs::setxattr(self.at(path), name, &fill.bytes(), flags).map(done)?)
            }
            Op::RemoveAttribute { path, name } => Ok(rustix::fs::removexattr(self.at(path), name).map(done)?),
            Op::SyncDirectory { path } => {
                let directory =
                    File::options().read(true).custom_flags(libc::O_DIRECTORY).open(self.at(path))?;
                directory.sync_all().map(done)
            }
            _ => Ok(Outcome::NotOpen),
        }
    }

    fn set_time(&self, path: &Path, mtime_s: i64) -> io::Result<()> {
        let time = UNIX_EPOCH + Duration::from_secs(mtime_s.unsigned_abs());
        let file = File::open(self.at(path))?;
        file.set_times(FileTimes::new().set_modified(time))?;
        let is = file.metadata()?.mtime();
        if is == mtime_s {
            Ok(())
        } else {
            Err(io::Error::other(format!("it was set to {mtime_s}, and is {is}")))
        }
    }

    /// What is seen at a path, with what only mounts of one filesystem have in common. None where nothing is.
    pub fn look(&self, path: &Path) -> io::Result<Option<(Seen, Known)>> {
        let at = self.at(path);
        let meta = match fs::symlink_metadata(&at) {
            Ok(meta) => meta,
            // A directory on the way isn't one, or isn't there.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let directory = meta.is_dir();
        let known = Known {
            inode: meta.ino(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            nlink: meta.nlink(),
            size: meta.size(),
        };
        let mut names = BTreeMap::new();
        let mut content = Vec::new();
        if directory {
            for entry in fs::read_dir(&at)? {
                let entry = entry?;
                if names.insert(entry.file_name(), kind(entry.file_type()?)).is_some() {
                    return Err(io::Error::other(format!("{} is listed twice", entry.path().display())));
                }
            }
        } else if meta.is_symlink() {
            content = fs::read_link(&at)?.into_os_string().into_encoded_bytes();
        } else {
            content = fs::read(&at)?;
            if content.len() as u64 != meta.len() {
                let text = format!("stat says {} bytes, {} are read", meta.len(), content.len());
                return Err(io::Error::other(text));
            }
        }
        let attributes = if meta.is_symlink() { BTreeMap::new() } else { attributes(&at)? };
        let (nlink, owner) = (if directory { 0 } else { meta.nlink() }, (meta.uid(), meta.gid()));
        Ok(Some((Seen { mode: meta.mode(), owner, nlink, content, names, attributes }, known)))
    }
}

fn attributes(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut list = vec![0; 4_096];
    let length = rustix::fs::listxattr(path, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0; 4_096];
        let length = rustix::fs::getxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.insert(String::from_utf8_lossy(name).into_owned().into(), value);
    }
    Ok(found)
}

fn on_file(file: &File, op: &Op) -> io::Result<Outcome> {
    match op {
        Op::Read { offset, length, .. } => {
            let mut bytes = vec![0; *length];
            let mut at = 0;
            while at < bytes.len() {
                match file.read_at(&mut bytes[at..], offset + at as u64)? {
                    0 => break,
                    n => at += n,
                }
            }
            bytes.truncate(at);
            Ok(Outcome::Bytes(bytes))
        }
        Op::Write { offset, fill, .. } => file.write_at(&fill.bytes(), *offset).map(Outcome::Count),
        Op::SetLength { length, .. } => file.set_len(*length).map(done),
        Op::Allocate { what, offset, length, .. } => {
            let flags = match what {
                Allocation::Allocate => FallocateFlags::empty(),
                Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
                Allocation::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                Allocation::ZeroRange => FallocateFlags::ZERO_RANGE,
                Allocation::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            };
            Ok(rustix::fs::fallocate(file, flags, *offset, *length).map(done)?)
        }
        Op::Sync { data_only: true, .. } => file.sync_data().map(done),
        Op::Sync { .. } => file.sync_all().map(done),
        Op::Map { offset, fill, .. } => map(file, *offset, &fill.bytes()),
        Op::Stat { .. } => {
            let meta = file.metadata()?;
            let nlink = if meta.is_dir() { 0 } else { meta.nlink() };
            let size = if meta.is_dir() { 0 } else { meta.size() };
            Ok(Outcome::Attributes(meta.mode(), nlink, size))
        }
        _ => Ok(Outcome::NotOpen),
    }
}

fn copy(source: &File, target: &File, (from, to): (u64, u64), length: usize) -> io::Result<usize> {
    let (mut from, mut to, mut done) = (from, to, 0);
    while done < length {
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length - done) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Reads through a mapping what is there, and writes something else through it. Answers what was there; nothing where the file doesn't reach so far.
fn map(file: &File, offset: u64, bytes: &[u8]) -> io::Result<Outcome> {
    if file.metadata()?.len() < offset + bytes.len() as u64 {
        return Ok(Outcome::Bytes(Vec::new()));
    }
    let begin = offset - offset % 4_096;
    let (inside, length) = ((offset - begin) as usize, (offset - begin) as usize + bytes.len());
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let at = unsafe {
        let descriptor = file.as_raw_fd();
        libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, descriptor, begin as i64)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is as long, the file too, and nobody else works on it meanwhile.
    let mapped = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>(), length) };
    let was = mapped[inside..].to_vec();
    mapped[inside..].copy_from_slice(bytes);
    // SAFETY: the mapping is as long.
    let synced = unsafe { libc::msync(at, length, libc::MS_SYNC) };
    let error = io::Error::last_os_error();
    // SAFETY: it was mapped so, and nothing refers to it any more.
    unsafe { libc::munmap(at, length) };
    if synced == 0 { Ok(Outcome::Bytes(was)) } else { Err(error) }
}
