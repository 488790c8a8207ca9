//! Operations, and how they are chosen.

use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Files that may be open at a time.
pub const SLOTS: usize = 6;
/// The longest file that operations on offsets make, give or take one of them.
const SIZE_MAX: u64 = 600_000;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// O_APPEND.
    pub append: bool,
    /// O_CREAT.
    pub create: bool,
    /// O_EXCL.
    pub exclusive: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_SYNC.
    pub sync: bool,
}

/// Bytes to write: so many, which follow from a number.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// What they follow from.
    pub from: u64,
    /// How many.
    pub length: usize,
}

impl Fill {
    /// The bytes.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        SmallRng::seed_from_u64(self.from).fill(&mut bytes[..]);
        bytes
    }
}

/// What fallocate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in fallocate(2)")]
pub enum Allocation {
    Allocate,
    KeepSize,
    PunchHole,
    ZeroRange,
    ZeroKeepSize,
}

/// What a rename does with a name that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in rename(2)")]
pub enum Replace {
    Yes,
    No,
    Exchange,
}

/// What setting an attribute asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in setxattr(2)")]
pub enum Attribute {
    Any,
    Create,
    Replace,
}

/// An operation. Paths are relative to the place; a slot is a file that is open.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names of system calls and their arguments")]
pub enum Op {
    Open { slot: usize, path: PathBuf, how: How },
    Close { slot: usize },
    Read { slot: usize, offset: u64, length: usize },
    Write { slot: usize, offset: u64, fill: Fill },
    SetLength { slot: usize, length: u64 },
    Allocate { slot: usize, what: Allocation, offset: u64, length: u64 },
    Sync { slot: usize, data_only: bool },
    Map { slot: usize, offset: u64, fill: Fill },
    Stat { slot: usize },
    WriteAll { path: PathBuf, fill: Fill },
    Append { path: PathBuf, fill: Fill },
    Truncate { path: PathBuf, length: u64 },
    MakeDirectory { path: PathBuf, mode: u32 },
    RemoveDirectory { path: PathBuf },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, replace: Replace },
    Link { from: PathBuf, to: PathBuf },
    Symlink { target: PathBuf, path: PathBuf },
    Chmod { path: PathBuf, mode: u32 },
    SetTimes { path: PathBuf, mtime_s: i64 },
    Copy { from: PathBuf, to: PathBuf, from_offset: u64, to_offset: u64, length: usize },
    SetAttribute { path: PathBuf, name: String, fill: Fill, how: Attribute },
    RemoveAttribute { path: PathBuf, name: String },
    SyncDirectory { path: PathBuf },
}

impl Op {
    /// The slot that it uses and doesn't open.
    pub fn slot(&self) -> Option<usize> {
        match self {
            Self::Close { slot }
            | Self::Read { slot, .. }
            | Self::Write { slot, .. }
            | Self::SetLength { slot, .. }
            | Self::Allocate { slot, .. }
            | Self::Sync { slot, .. }
            | Self::Map { slot, .. }
            | Self::Stat { slot } => Some(*slot),
            _ => None,
        }
    }

    /// The names that it may have changed.
    pub fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Self::Open { path, .. }
            | Self::WriteAll { path, .. }
            | Self::Append { path, .. }
            | Self::Truncate { path, .. }
            | Self::MakeDirectory { path, .. }
            | Self::RemoveDirectory { path }
            | Self::Unlink { path }
            | Self::Symlink { path, .. }
            | Self::Chmod { path, .. }
            | Self::SetTimes { path, .. }
            | Self::SetAttribute { path, .. }
            | Self::RemoveAttribute { path, .. }
            | Self::SyncDirectory { path } => vec![path],
            Self::Rename { from, to, .. } | Self::Link { from, to } | Self::Copy { from, to, .. } => {
                vec![from, to]
            }
            _ => vec![],
        }
    }
}

/// Chooses operations.
pub struct Generator {
    /// The source of everything random.
    pub rng: SmallRng,
    /// What there is at present, of which most operations take something.
    pub known: Vec<PathBuf>,
    /// Slots with open files.
    pub open: Vec<usize>,
}

const DIRECTORIES: &[&str] = &["", "d0", "d1", "d0/d1", "d1/d0", "d0/d1/d0"];
const NAMES: &[&str] = &["f0", "f1", "f2", "f3", "f4", "d0", "d1"];
const TARGETS: &[&str] = &["f0", "f1", "d0", "d1/f0", "nothing", "d0/d1"];

impl Generator {
    /// One, for a seed.
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), known: vec![], open: vec![] }
    }

    fn any<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.rng).copied().unwrap_or_default()
    }

    /// A name that is there, mostly.
    fn path(&mut self) -> PathBuf {
        match self.known.choose(&mut self.rng) {
            Some(path) if self.rng.random_bool(0.7) => path.clone(),
            _ => self.name(),
        }
    }

    /// A name that isn't there, mostly.
    fn name(&mut self) -> PathBuf {
        let directory = self.any(DIRECTORIES);
        PathBuf::from(directory).join(self.any(NAMES))
    }

    fn directory(&mut self) -> PathBuf {
        let directory =
            if self.rng.random_bool(0.5) { self.any(&["", "d0", "d1"]) } else { self.any(DIRECTORIES) };
        PathBuf::from(directory).join(self.any(&["d0", "d1", "d0", "d1", "f0"]))
    }

    fn offset(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0..3 => 0,
            3..7 => self.rng.random_range(0..20_000),
            7 => self.rng.random_range(0..16) * 4_096,
            _ => self.rng.random_range(0..SIZE_MAX),
        }
    }

    fn length(&mut self) -> usize {
        match self.rng.random_range(0..10) {
            0 => 0,
            1..6 => self.rng.random_range(1..5_000),
            6 => 4_096,
            7 | 8 => self.rng.random_range(5_000..70_000),
            _ => self.rng.random_range(70_000..300_000),
        }
    }

    fn fill(&mut self) -> Fill {
        Fill { from: self.rng.random(), length: self.length() }
    }

    fn mode(&mut self) -> u32 {
        match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..0o10000),
            _ => *[0o644, 0o600, 0o755, 0o2755, 0o4711, 0o1777].choose(&mut self.rng).unwrap_or(&0o644),
        }
    }

    fn how(&mut self) -> How {
        let (read, write) = *[(true, false), (true, true), (true, true), (false, true)]
            .choose(&mut self.rng)
            .unwrap_or(&(true, true));
        let mut some = |share| self.rng.random_bool(share);
        let create = some(0.5);
        How {
            read,
            write,
            append: write && some(0.2),
            create,
            exclusive: create && some(0.2),
            truncate: write && some(0.15),
            sync: write && some(0.1),
        }
    }

    /// The next operation.
    pub fn op(&mut self) -> Op {
        let slot = match self.open.choose(&mut self.rng) {
            Some(slot) if self.rng.random_bool(0.95) => *slot,
            _ => self.rng.random_range(0..SLOTS),
        };
        match self.rng.random_range(0..100) {
            0..10 => {
                let slot = self.rng.random_range(0..SLOTS);
                Op::Open { slot, path: self.path(), how: self.how() }
            }
            10..13 => Op::Close { slot },
            13..18 => Op::Read { slot, offset: self.offset(), length: self.length() },
            18..30 => Op::Write { slot, offset: self.offset(), fill: self.fill() },
            30..33 => Op::SetLength { slot, length: self.offset() },
            33..38 => {
                use Allocation::*;
                let all = [Allocate, KeepSize, PunchHole, PunchHole, ZeroRange, ZeroKeepSize];
                let what = *all.choose(&mut self.rng).unwrap_or(&PunchHole);
                Op::Allocate { slot, what, offset: self.offset(), length: self.length() as u64 }
            }
            38..40 => Op::Sync { slot, data_only: self.rng.random() },
            40..43 => {
                let fill = Fill { from: self.rng.random(), length: self.rng.random_range(1..9_000) };
                Op::Map { slot, offset: self.offset(), fill }
            }
            43..45 => Op::Stat { slot },
            45..50 => Op::WriteAll { path: self.path(), fill: self.fill() },
            50..54 => Op::Append { path: self.path(), fill: self.fill() },
            54..57 => Op::Truncate { path: self.path(), length: self.offset() },
            57..62 => Op::MakeDirectory { path: self.directory(), mode: self.mode() },
            62..65 => Op::RemoveDirectory { path: self.directory() },
            65..71 => Op::Unlink { path: self.path() },
            71..80 => {
                let replace = match self.rng.random_range(0..6) {
                    0 => Replace::No,
                    1 => Replace::Exchange,
                    _ => Replace::Yes,
                };
                let (from, to) = match self.rng.random_bool(0.25) {
                    true => (self.directory(), self.directory()),
                    false => (self.path(), if self.rng.random_bool(0.5) { self.path() } else { self.name() }),
                };
                Op::Rename { from, to, replace }
            }
            80..83 => Op::Link { from: self.path(), to: self.name() },
            83..85 => Op::Symlink { target: self.any(TARGETS).into(), path: self.name() },
            85..88 => Op::Chmod { path: self.path(), mode: self.mode() },
            88..90 => Op::SetTimes { path: self.path(), mtime_s: self.rng.random_range(0..2_000_000_000) },
            90..94 => Op::Copy {
                from: self.path(),
                to: self.path(),
                from_offset: self.offset(),
                to_offset: self.offset(),
                length: self.length(),
            },
            94..97 => {
                let how = [Attribute::Any, Attribute::Create, Attribute::Replace];
                Op::SetAttribute {
                    path: self.path(),
                    name: self.any(&["user.a", "user.b", "user.c"]).into(),
                    fill: Fill { from: self.rng.random(), length: self.rng.random_range(0..200) },
                    how: *how.choose(&mut self.rng).unwrap_or(&Attribute::Any),
                }
            }
            97..99 => Op::RemoveAttribute {
                path: self.path(),
                name: self.any(&["user.a", "user.b", "user.c"]).into(),
            },
            _ => Op::SyncDirectory { path: self.directory() },
        }
    }
}
