//! The check of a whole store: everything that is counted or pointed to is counted and looked for again.
//!
//! ```text
//!   pairs of one consistent view, in the order of keys --> Check::take --> Check::finish --> findings, what was counted
//! ```
//! Pure: no store, no network. Whoever runs it hands in the pairs, and compares copies with what chunkservers report. Only a view of a single
//! version will do: a finding is a contradiction within it, whatever is changed meanwhile.
//!
//! What is remembered is some hundred bytes for each inode and chunk, so a large store is checked in several passes over the same view, each for a
//! part of the ids ([`Part`]). Names are compared by sums of their hashes; where these differ, a further pass for the few inodes
//! concerned ([`Part::Only`]) compares the names themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use mooseng_schema::any::Any;
use mooseng_schema::chunk::ChunkRecord;
use mooseng_schema::dirent::{Cookie, HashKey, SAME_HASH_MAX};
use mooseng_schema::ids::IdKind;
use mooseng_schema::inode::{InodeRecord, LinkName};
use mooseng_schema::location::LocationRecord;
use mooseng_schema::quota::{Account, Usage};
use mooseng_schema::staged::Staged;
use mooseng_wire::{ChunkId, InodeId, LOCAL_ID_BITS, VolumeId};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::acl;

mod data;
mod finding;
mod names;
mod repair;

pub use finding::{Finding, Fix, Kind, Subject};
pub use repair::repair;

/// Findings that are kept at most; further ones are counted.
pub const FINDINGS_MAX: usize = 1_000;
/// Directories whose way to the root is looked for at most.
const DIRECTORIES_MAX: usize = 4_000_000;

/// Which ids a pass is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// One of several equal parts.
    Of {
        /// Which, from 0.
        part: u64,
        /// Of how many.
        parts: u64,
    },
    /// These inodes, with their names compared one by one. Totals aren't checked.
    Only(BTreeSet<InodeId>),
}

impl Part {
    /// Everything in one pass.
    pub const ALL: Self = Self::Of { part: 0, parts: 1 };

    fn has(&self, id: u64) -> bool {
        match self {
            Self::Of { part, parts } => id % (*parts).max(1) == *part,
            Self::Only(inodes) => inodes.contains(&InodeId(id)),
        }
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Inodes.
    pub inodes: u64,
    /// Names in directories.
    pub entries: u64,
    /// Extents.
    pub extents: u64,
    /// Bytes that they cover.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// What files use of chunks, each file and chunk once.
    pub uses: u64,
    /// Files in the trash, which are among the inodes.
    pub trash_files: u64,
    /// Bytes that their extents cover, which are among the bytes.
    pub trash_bytes: u64,
}

impl Checked {
    /// Adds another part.
    pub fn add(&mut self, other: &Self) {
        let Self { inodes, entries, extents, bytes, chunks, uses, trash_files, trash_bytes } = other;
        self.inodes += inodes;
        self.entries += entries;
        self.extents += extents;
        self.bytes += bytes;
        self.chunks += chunks;
        self.uses += uses;
        self.trash_files += trash_files;
        self.trash_bytes += trash_bytes;
    }
}

/// A chunk of a pass that has a record and a location, for the comparison with what chunkservers report.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Which.
    pub chunk: ChunkId,
    /// Its record.
    pub record: ChunkRecord,
    /// Where it lies.
    pub location: LocationRecord,
    /// A file that names it, if one does.
    pub file: Option<InodeId>,
}

/// What a pass came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What is wrong, at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many findings there were.
    pub found: u64,
    /// What was looked at.
    pub checked: Checked,
    /// Recorded inodes and bytes of each volume, and those of its trash.
    pub totals: BTreeMap<VolumeId, Totals>,
    /// Inodes whose names want a second look.
    pub suspects: BTreeSet<InodeId>,
    /// Chunks whose copies are to be compared.
    pub placed: Vec<Placed>,
    /// The directories that name volumes, of all parts. Only the first part tells it.
    pub joined: BTreeMap<VolumeId, InodeId>,
}

/// A volume's totals: as recorded, and as counted in this pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inodes on record.
    pub inodes_recorded: u64,
    /// Bytes on record.
    pub bytes_recorded: u64,
    /// Inodes of this part.
    pub inodes: u64,
    /// Bytes of this part.
    pub bytes: u64,
    /// Files in the trash on record.
    pub trash_files_recorded: u64,
    /// Their bytes on record.
    pub trash_bytes_recorded: u64,
    /// Files in the trash of this part.
    pub trash_files: u64,
    /// Their bytes.
    pub trash_bytes: u64,
    /// What counts for each account on record.
    pub usage_recorded: BTreeMap<Account, Usage>,
    /// And in this part.
    pub usage: BTreeMap<Account, Usage>,
}

/// Compares the totals of all parts.
pub fn compare_totals(parts: &[BTreeMap<VolumeId, Totals>]) -> Vec<Finding> {
    let mut sums: BTreeMap<VolumeId, Totals> = BTreeMap::new();
    for (volume, totals) in parts.iter().flatten() {
        let sum = sums.entry(*volume).or_default();
        sum.inodes += totals.inodes;
        sum.bytes += totals.bytes;
        sum.trash_files += totals.trash_files;
        sum.trash_bytes += totals.trash_bytes;
        // The same in every part.
        (sum.inodes_recorded, sum.bytes_recorded) = (totals.inodes_recorded, totals.bytes_recorded);
        sum.trash_files_recorded = totals.trash_files_recorded;
        sum.trash_bytes_recorded = totals.trash_bytes_recorded;
        sum.usage_recorded.clone_from(&totals.usage_recorded);
        for (account, usage) in &totals.usage {
            let total = sum.usage.entry(*account).or_default();
            *total = total.plus(*usage);
        }
    }
    let mut findings = Vec::new();
    for (volume, sum) in sums {
        let mut compare = |what: &str, recorded: u64, counted: u64, fix: fn(VolumeId, i64) -> Fix| {
            if recorded != counted {
                let detail = format!("its totals say {recorded} {what}, there are {counted}");
                let found = Finding::new(Kind::Statistics, Subject::Volume(volume), detail);
                findings.push(found.fixed_by(fix(volume, difference(counted, recorded))));
            }
        };
        compare("inodes", sum.inodes_recorded, sum.inodes, Fix::Inodes);
        compare("bytes", sum.bytes_recorded, sum.bytes, Fix::Bytes);
        compare("files in the trash", sum.trash_files_recorded, sum.trash_files, Fix::TrashFiles);
        compare("bytes in the trash", sum.trash_bytes_recorded, sum.trash_bytes, Fix::TrashBytes);
        findings.extend(compare_usage(volume, &sum));
    }
    findings
}

/// Compares what counts for each account.
fn compare_usage(volume: VolumeId, totals: &Totals) -> Vec<Finding> {
    let accounts: BTreeSet<Account> =
        totals.usage.keys().chain(totals.usage_recorded.keys()).copied().collect();
    let of =
        |usage: &BTreeMap<Account, Usage>, account: &Account| usage.get(account).copied().unwrap_or_default();
    let mut findings = Vec::new();
    for account in accounts {
        let (is, recorded) = (of(&totals.usage, &account), of(&totals.usage_recorded, &account));
        if is != recorded {
            let detail = format!(
                "for {account} count {} bytes of {} inodes, on record are {} of {}",
                is.bytes, is.inodes, recorded.bytes, recorded.inodes
            );
            let found = Finding::new(Kind::QuotaUsage, Subject::Volume(volume), detail);
            findings.push(found.fixed_by(Fix::Usage(volume, account, is.minus(recorded))));
        }
    }
    findings
}

/// `is - recorded`.
fn difference(is: u64, recorded: u64) -> i64 {
    is.wrapping_sub(recorded) as i64
}

/// A sum of hashes of names, which doesn't depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NameSum {
    count: u64,
    sum: u128,
}

impl NameSum {
    fn add(&mut self, parent: u64, name: &[u8]) {
        let mut hasher = SipHasher13::new();
        hasher.write_u64(parent);
        hasher.write(name);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hasher.finish128().as_u128());
    }
}

/// What is gathered of an inode.
#[derive(Debug, Default)]
struct Inode {
    record: Option<Box<Kept>>,
    known: NameSum,
    named: NameSum,
    entries: i64,
    subdirectories: i64,
    counters: [u64; 2],
    counted: bool,
    extents: u64,
    bytes: u64,
    staged: Staging,
    /// As [`Staging::places`], of packable pieces.
    packable: u64,
    xattr_bytes: u64,
    orphan_mark: bool,
    trim_mark: bool,
    /// Until when an entry of the trash says that it is there.
    trash_mark: Option<i64>,
    /// The kind that entries say it has.
    said_kind: Option<u32>,
}

/// What is gathered of a file's staged pieces.
#[derive(Debug, Default)]
struct Staging {
    /// On record.
    recorded: Staged,
    /// As extents are.
    found: Staged,
    /// Where they begin, less where the list says so: a sum of hashes, for which the order doesn't matter.
    places: u64,
}

impl Staging {
    fn place(offset: u64) -> u64 {
        let mut hasher = SipHasher13::new();
        hasher.write_u64(offset);
        hasher.finish()
    }
}

/// What is kept of an inode's record.
#[derive(Debug)]
struct Kept {
    kind: u32,
    nlink: u32,
    size: u64,
    allocated: u64,
    xattr_name_bytes: u32,
    orphan: bool,
    trim_from: Option<u64>,
    trash_until_ns: Option<i64>,
    quota: u64,
    uid: u32,
    let_off: Option<u64>,
    storage_class: u32,
    joined: Option<VolumeId>,
    /// What is wrong with its access control lists.
    acl_fault: Option<&'static str>,
}

impl Kept {
    fn of(record: &InodeRecord) -> Self {
        Self {
            kind: record.kind,
            nlink: record.nlink,
            size: record.size,
            allocated: record.allocated,
            xattr_name_bytes: record.xattr_name_bytes,
            orphan: record.orphan,
            trim_from: record.trim_from,
            trash_until_ns: record.trash_until_ns,
            quota: record.quota,
            uid: record.uid,
            let_off: record.let_off,
            storage_class: record.storage_class,
            joined: record.joined(),
            acl_fault: acl::find_fault_of(record),
        }
    }
}

/// What is gathered of a chunk.
#[derive(Debug, Default)]
struct Chunk {
    record: Option<ChunkRecord>,
    location: Option<LocationRecord>,
    dead: bool,
    /// The end of what extents name of it, and the file that names it.
    named: Option<(u64, InodeId)>,
}

/// Which names an inode knows and which name it, one by one: 1 for each entry, -1 for each name that it knows.
type Names = BTreeMap<InodeId, BTreeMap<LinkName, (u32, u32)>>;

/// One pass.
pub struct Check {
    part: Part,
    /// Nothing is looked at of others; none for all that there are.
    volumes: Option<BTreeSet<VolumeId>>,
    outcome: Outcome,
    inodes: BTreeMap<InodeId, Inode>,
    chunks: BTreeMap<ChunkId, Chunk>,
    /// Extents less references: what is left is a difference.
    uses: BTreeMap<(ChunkId, InodeId), data::Use>,
    names: Names,
    hash_keys: BTreeMap<VolumeId, HashKey>,
    roots: BTreeSet<InodeId>,
    classes: BTreeSet<(VolumeId, u32)>,
    /// Each directory's parent, of all parts.
    parents: BTreeMap<InodeId, InodeId>,
    /// Where each volume is joined, of all parts.
    joined: BTreeMap<VolumeId, InodeId>,
    ids: BTreeMap<(VolumeId, u64), u64>,
    highest: BTreeMap<(VolumeId, u64), u64>,
    /// The directory, the first cookie of the last hash, and the names seen there.
    slots: (InodeId, u64, Vec<Bytes>),
    /// The file and the end of its last extent.
    reached: (InodeId, u64),
}

impl Check {
    /// A pass over that part.
    pub fn new(part: Part) -> Self {
        Self {
            part,
            volumes: None,
            outcome: Outcome::default(),
            inodes: BTreeMap::new(),
            chunks: BTreeMap::new(),
            uses: BTreeMap::new(),
            names: Names::new(),
            hash_keys: BTreeMap::new(),
            roots: BTreeSet::new(),
            classes: BTreeSet::new(),
            parents: BTreeMap::new(),
            joined: BTreeMap::new(),
            ids: BTreeMap::new(),
            highest: BTreeMap::new(),
            slots: (InodeId(0), 0, Vec::new()),
            reached: (InodeId(0), 0),
        }
    }

    /// Looks at records of these volumes alone. What can't be read is told of, whatever it is of.
    pub fn of(self, volumes: BTreeSet<VolumeId>) -> Self {
        Self { volumes: Some(volumes), ..self }
    }

    fn found(&mut self, finding: Finding) {
        self.outcome.found += 1;
        if self.outcome.findings.len() < FINDINGS_MAX {
            self.outcome.findings.push(finding);
        }
    }

    fn exactly(&self) -> bool {
        matches!(self.part, Part::Only(_))
    }

    /// Whether this pass speaks for what belongs to no part.
    fn is_first(&self) -> bool {
        matches!(self.part, Part::Of { part: 0, .. })
    }

    /// Takes the next pair, in the order of keys.
    pub fn take(&mut self, key: &Bytes, value: &Bytes) {
        let record = match Any::read(key, value) {
            Ok(record) => record,
            Err(error) => {
                if self.is_first() {
                    self.found(Finding::new(Kind::Record, Subject::Key(key.clone()), error.to_string()));
                }
                return;
            }
        };
        if let (Some(volumes), Some(volume)) = (&self.volumes, record.volume())
            && !volumes.contains(&volume)
        {
            return;
        }
        match record {
            Any::Volume(volume, record) => {
                self.outcome.totals.entry(volume).or_default();
                self.roots.insert(InodeId(record.root));
                if let Ok(secret) = record.hash_key() {
                    self.hash_keys.insert(volume, secret);
                }
            }
            Any::Inode(inode, record) => self.take_inode(inode, &record),
            Any::Link(inode, link) => self.take_link(inode, &link),
            Any::Dirent(directory, cookie, entry) => self.take_entry(directory, cookie, &entry),
            Any::Counter(directory, which, n) if self.part.has(directory.0) => {
                let facts = self.inodes.entry(directory).or_default();
                facts.counted = true;
                if let Some(counter) = usize::try_from(which).ok().and_then(|i| facts.counters.get_mut(i)) {
                    *counter = n;
                }
            }
            Any::Extent(inode, offset, extent) => self.take_extent(inode, offset, &extent),
            Any::Xattr(inode, bytes) if self.part.has(inode.0) => {
                self.inodes.entry(inode).or_default().xattr_bytes += bytes as u64 + 1;
            }
            Any::Orphan(inode) if self.part.has(inode.0) => {
                self.inodes.entry(inode).or_default().orphan_mark = true;
            }
            Any::Trim(inode) if self.part.has(inode.0) => {
                self.inodes.entry(inode).or_default().trim_mark = true;
            }
            Any::Trash(inode, until_ns) if self.part.has(inode.0) => {
                let before = self.inodes.entry(inode).or_default().trash_mark.replace(until_ns);
                if before.is_some() {
                    let found = Finding::new(Kind::Trash, Subject::Inode(inode), "it is in the trash twice");
                    self.found(found);
                }
            }
            Any::Staged(inode, staged) if self.part.has(inode.0) && !staged.is_zero() => {
                self.inodes.entry(inode).or_default().staged.recorded = staged;
            }
            Any::StagedPiece(inode, offset) if self.part.has(inode.0) => {
                let places = &mut self.inodes.entry(inode).or_default().staged.places;
                *places = places.wrapping_sub(Staging::place(offset));
            }
            Any::Packable(inode, offset) if self.part.has(inode.0) => {
                let places = &mut self.inodes.entry(inode).or_default().packable;
                *places = places.wrapping_sub(Staging::place(offset));
            }
            Any::ChunkRef(chunk, inode, used) => self.take_use(chunk, inode, used),
            Any::Chunk(chunk, record) if !self.exactly() && self.part.has(chunk.0) => {
                self.outcome.checked.chunks += 1;
                self.seen_id(chunk.volume(), IdKind::Chunk, chunk.0);
                self.chunks.entry(chunk).or_default().record = Some(record);
            }
            Any::Location(chunk, location) if !self.exactly() && self.part.has(chunk.0) => {
                self.chunks.entry(chunk).or_default().location = Some(location);
            }
            Any::Dead(chunk, _) if !self.exactly() && self.part.has(chunk.0) => {
                self.chunks.entry(chunk).or_default().dead = true;
            }
            Any::Statistic(volume, which, n) => {
                let totals = self.outcome.totals.entry(volume).or_default();
                // A shard alone may be negative in two's complement: the sum isn't.
                match which {
                    0 => totals.inodes_recorded = totals.inodes_recorded.wrapping_add(n),
                    1 => totals.bytes_recorded = totals.bytes_recorded.wrapping_add(n),
                    2 => totals.trash_files_recorded = totals.trash_files_recorded.wrapping_add(n),
                    3 => totals.trash_bytes_recorded = totals.trash_bytes_recorded.wrapping_add(n),
                    _ => {}
                }
            }
            Any::QuotaUsage(volume, account, usage) => {
                let totals = self.outcome.totals.entry(volume).or_default();
                let sum = totals.usage_recorded.entry(account).or_default();
                *sum = sum.plus(usage);
            }
            Any::StorageClass(volume, class, _) => drop(self.classes.insert((volume, class))),
            Any::Ids(volume, kind, next) => drop(self.ids.insert((volume, kind), next)),
            _ => {}
        }
    }

    /// An id is in use.
    fn seen_id(&mut self, volume: VolumeId, kind: IdKind, id: u64) {
        let number = id & ((1 << LOCAL_ID_BITS) - 1);
        let highest = self.highest.entry((volume, kind as u64)).or_default();
        *highest = (*highest).max(number);
    }

    /// The end of the view.
    pub fn finish(mut self) -> Outcome {
        self.outcome.joined = std::mem::take(&mut self.joined);
        self.finish_names();
        self.finish_data();
        if !self.exactly() {
            self.finish_ids();
        }
        self.outcome
    }

    fn finish_ids(&mut self) {
        for ((volume, kind), highest) in std::mem::take(&mut self.highest) {
            // Where nothing was given out there is no counter: tests give ids of their own.
            let Some(next) = self.ids.get(&(volume, kind)).copied() else { continue };
            if highest >= next {
                let what = if kind == IdKind::Chunk as u64 { "chunk" } else { "inode" };
                let detail =
                    format!("{what} {highest} is in use, though only numbers below {next} were given");
                self.found(Finding::new(Kind::IdUngiven, Subject::Volume(volume), detail));
            }
        }
    }
}

/// Whether a cookie is one that an entry of that name may have.
fn fits(secret: &HashKey, name: &[u8], cookie: Cookie) -> bool {
    let first = Cookie::first(secret, name).0;
    (first..first + SAME_HASH_MAX).contains(&cookie.0)
}
