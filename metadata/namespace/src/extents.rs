//! The arithmetic of a file's pieces, on values: cutting, overwriting, merging, and what changed.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use mooseng_schema::SchemaError;
use mooseng_schema::extent::ExtentRecord;
use mooseng_schema::packable::{self, is_packable};
use mooseng_schema::staged::{self, Staged, is_staged};
use mooseng_wire::fs::{self, ChunkRun};
use mooseng_wire::{BLOCK_BYTES, CHUNK_BYTES_MAX, ChunkId, FILE_SIZE_MAX, INLINE_EXTENT_BYTES_MAX, InodeId};

/// A list of inline pieces that the rewriter moves into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Small writes of large files ([`staged`]).
    Staged,
    /// Data of small files ([`packable`]).
    Packable,
}

impl List {
    /// The key that lists a piece which begins there.
    pub fn key(self, inode: InodeId, offset: u64) -> Vec<u8> {
        match self {
            Self::Staged => staged::piece_key(inode, offset),
            Self::Packable => packable::key(inode, offset),
        }
    }
}

/// A piece's bytes, or where they are. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// The bytes themselves.
    Inline(Bytes),
    /// A run of a chunk.
    Run {
        /// The chunk.
        chunk: ChunkId,
        /// Where in it.
        offset: u64,
        /// How many bytes of it.
        length: u64,
    },
}

impl Data {
    /// Bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Run { length, .. } => *length,
        }
    }

    /// The part from `from` to `to`, counted from its own begin.
    fn slice(&self, from: u64, to: u64) -> Self {
        debug_assert!(from < to && to <= self.length(), "a slice lies within its piece");
        match self {
            Self::Inline(bytes) => Self::Inline(bytes.slice(from as usize..to as usize)),
            Self::Run { chunk, offset, .. } => {
                Self::Run { chunk: *chunk, offset: offset + from, length: to - from }
            }
        }
    }

    /// Whether it counts as staged where it ends there.
    pub fn is_staged(&self, end: u64) -> bool {
        matches!(self, Self::Inline(_)) && is_staged(end)
    }

    /// On which list it is where it ends there.
    pub fn list(&self, end: u64) -> Option<List> {
        match self {
            Self::Inline(_) if is_staged(end) => Some(List::Staged),
            Self::Inline(bytes) if is_packable(end, bytes.len() as u64) => Some(List::Packable),
            _ => None,
        }
    }

    /// Whether it may become one piece with one that it touches, where it ends there.
    pub fn may_join(&self, end: u64) -> bool {
        match self {
            Self::Inline(bytes) => (bytes.len() as u64) < joined_bytes_max(end),
            Self::Run { .. } => true,
        }
    }

    /// Both as one piece: runs that touch in their chunk, and inline bytes while they are few.
    fn merge(&self, next: &Self, end: u64) -> Option<Self> {
        match (self, next) {
            (Self::Inline(a), Self::Inline(b)) => {
                if (a.len() + b.len()) as u64 > joined_bytes_max(end) {
                    return None;
                }
                let mut both = BytesMut::with_capacity(a.len() + b.len());
                both.extend_from_slice(a);
                both.extend_from_slice(b);
                Some(Self::Inline(both.freeze()))
            }
            (
                Self::Run { chunk, offset, length },
                Self::Run { chunk: chunk2, offset: offset2, length: length2 },
            ) if chunk == chunk2 && offset + length == *offset2 => {
                Some(Self::Run { chunk: *chunk, offset: *offset, length: length + length2 })
            }
            _ => None,
        }
    }

    /// Its record.
    pub fn to_record(&self) -> ExtentRecord {
        match self {
            Self::Inline(bytes) => ExtentRecord { inline: bytes.clone(), ..Default::default() },
            Self::Run { chunk, offset, length } => {
                ExtentRecord { chunk: chunk.0, chunk_offset: *offset, length: *length, ..Default::default() }
            }
        }
    }

    /// Reads a record.
    pub fn from_record(record: ExtentRecord) -> Result<Self, SchemaError> {
        let damaged = |reason: &str| SchemaError::damaged("extent", reason);
        if record.chunk == 0 {
            if record.inline.is_empty() {
                return Err(damaged("it is empty"));
            }
            return Ok(Self::Inline(record.inline));
        }
        let end = record.chunk_offset.checked_add(record.length);
        if record.length == 0 || end.is_none_or(|end| end > CHUNK_BYTES_MAX) {
            return Err(damaged("its run lies outside of a chunk"));
        }
        Ok(Self::Run { chunk: ChunkId(record.chunk), offset: record.chunk_offset, length: record.length })
    }

    /// As an answer carries it.
    pub fn to_wire(&self, offset: u64) -> fs::Extent {
        let data = match self {
            Self::Inline(bytes) => fs::extent::Data::Inline(bytes.clone()),
            Self::Run { chunk, offset, length } => {
                fs::extent::Data::Run(ChunkRun { chunk: chunk.0, chunk_offset: *offset, length: *length })
            }
        };
        fs::Extent { offset, length: self.length(), data: Some(data) }
    }
}

/// Inline bytes of what becomes one piece that ends there. Staged ones are at most a block: whatever is written beside them is a commit that writes
/// them again, and they are soon moved anyway.
fn joined_bytes_max(end: u64) -> u64 {
    if is_staged(end) { BLOCK_BYTES as u64 } else { INLINE_EXTENT_BYTES_MAX }
}

/// Pieces of a file by offset. They never overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces(BTreeMap<u64, Data>);

/// What turns one state of a file's pieces into another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Offsets of pieces that go.
    pub cleared: Vec<u64>,
    /// Pieces that come or change.
    pub set: Vec<(u64, Data)>,
    /// By how many bytes what the pieces cover grows.
    pub allocated: i64,
    /// By how much the pieces in each chunk grow, where they do.
    pub references: BTreeMap<ChunkId, References>,
    /// By how much what is staged grows.
    pub staged: Staged,
    /// Offsets where no piece of that list begins any more.
    pub unlisted: Vec<(List, u64)>,
    /// Offsets where one begins now.
    pub listed: Vec<(List, u64)>,
}

/// By how much the pieces in a chunk grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// In pieces.
    pub extents: i64,
    /// In bytes.
    pub bytes: i64,
}

impl References {
    /// Nothing changed.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl Pieces {
    /// Adds a piece that was read from the store.
    pub fn load(&mut self, offset: u64, data: Data) -> Result<(), SchemaError> {
        let end = offset.checked_add(data.length()).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or_else(|| SchemaError::damaged("extent", "it lies behind the largest offset"))?;
        let before = self.0.range(..offset).next_back();
        let overlaps = before.is_some_and(|(o, d)| o + d.length() > offset)
            || self.0.range(offset..end).any(|(o, d)| *o != offset || *d != data);
        if overlaps {
            return Err(SchemaError::damaged(
                "extent",
                format!("it overlaps another one at offset {offset}"),
            ));
        }
        self.0.insert(offset, data);
        Ok(())
    }

    /// The pieces, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &Data)> {
        self.0.iter().map(|(offset, data)| (*offset, data))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes a hole of [from, to).
    pub fn cut(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if let Some((&offset, data)) = self.0.range(..from).next_back() {
            let end = offset + data.length();
            if end > from {
                let (left, data) = (data.slice(0, from - offset), data.clone());
                if end > to {
                    self.0.insert(to, data.slice(to - offset, end - offset));
                }
                self.0.insert(offset, left);
            }
        }
        let inside: Vec<u64> = self.0.range(from..to).map(|(offset, _)| *offset).collect();
        for offset in inside {
            let Some(data) = self.0.remove(&offset) else { continue };
            let end = offset + data.length();
            if end > to {
                self.0.insert(to, data.slice(to - offset, end - offset));
            }
        }
    }

    /// What lies within [from, to), cut to it.
    pub fn between(&self, from: u64, to: u64) -> Self {
        let mut cut = self.clone();
        cut.cut(0, from);
        cut.cut(to.max(from), FILE_SIZE_MAX);
        cut
    }

    /// Those that have something within [from, to).
    pub fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &Data)> {
        let first = self.0.range(..=from).next_back().map_or(from, |(offset, _)| *offset);
        let reach = move |(offset, data): &(u64, &Data)| offset + data.length() > from;
        self.0.range(first..to.max(first)).map(|(offset, data)| (*offset, data)).filter(reach)
    }

    /// Overwrites what lies at `offset` with a piece, and merges it with its neighbours where they fit.
    pub fn put(&mut self, offset: u64, data: Data) {
        let (mut offset, mut data) = (offset, data);
        if data.length() == 0 {
            return;
        }
        let end = offset + data.length();
        self.cut(offset, end);
        if let Some((&before, left)) = self.0.range(..offset).next_back()
            && before + left.length() == offset
            && let Some(merged) = left.merge(&data, end)
        {
            self.0.remove(&before);
            (offset, data) = (before, merged);
        }
        if let Some(right) = self.0.get(&end)
            && let Some(merged) = data.merge(right, end + right.length())
        {
            self.0.remove(&end);
            data = merged;
        }
        self.0.insert(offset, data);
    }

    /// Cuts these offsets of pieces, in order, into runs of pieces that follow each other without a gap: only there is it known that nothing
    /// else lies between. What was loaded may be several parts of a file.
    pub fn runs_of<'o>(&self, offsets: &'o [u64]) -> impl Iterator<Item = &'o [u64]> {
        offsets.chunk_by(|a, b| self.0.get(a).is_some_and(|data| a + data.length() == *b))
    }

    /// On which list the piece is that begins there.
    fn list(&self, offset: u64) -> Option<List> {
        self.0.get(&offset).and_then(|data| data.list(offset + data.length()))
    }

    /// What turns `self` into `after`.
    pub fn changes_to(&self, after: &Self) -> Changes {
        let mut changes = Changes::default();
        for (offset, data) in &self.0 {
            if after.0.get(offset) == Some(data) {
                continue;
            }
            if !after.0.contains_key(offset) {
                changes.cleared.push(*offset);
            }
            changes.count(*offset, data, -1);
            if let Some(list) = self.list(*offset)
                && after.list(*offset) != Some(list)
            {
                changes.unlisted.push((list, *offset));
            }
        }
        for (offset, data) in &after.0 {
            if self.0.get(offset) != Some(data) {
                changes.set.push((*offset, data.clone()));
                changes.count(*offset, data, 1);
                if let Some(list) = after.list(*offset)
                    && self.list(*offset) != Some(list)
                {
                    changes.listed.push((list, *offset));
                }
            }
        }
        changes.references.retain(|_, delta| !delta.is_zero());
        changes
    }
}

impl Changes {
    /// Counts a piece that comes (1) or goes (-1).
    pub fn count(&mut self, offset: u64, data: &Data, sign: i64) {
        self.allocated += sign * data.length() as i64;
        if data.is_staged(offset + data.length()) {
            self.staged.bytes += sign * data.length() as i64;
            self.staged.pieces += sign;
        }
        if let Data::Run { chunk, .. } = data {
            let delta = self.references.entry(*chunk).or_default();
            delta.extents += sign;
            delta.bytes += sign * data.length() as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of a chunk that no other place in it has.
    fn chunk_byte(chunk: u64, at: u64) -> u16 {
        (chunk * 1000 + at) as u16 + 256
    }

    /// Every byte of a file: none in a hole, below 256 for inline ones.
    fn render(pieces: &Pieces, size: usize) -> Vec<Option<u16>> {
        let mut bytes = vec![None; size];
        for (offset, data) in pieces.iter() {
            for i in 0..data.length() {
                let byte = match data {
                    Data::Inline(b) => u16::from(b[i as usize]),
                    Data::Run { chunk, offset, .. } => chunk_byte(chunk.0, offset + i),
                };
                assert_eq!(bytes[(offset + i) as usize].replace(byte), None, "pieces overlap");
            }
        }
        bytes
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64, Data),
        Cut(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let inline = (0u64..200, prop::collection::vec(any::<u8>(), 1..50))
            .prop_map(|(o, b)| Step::Put(o, Data::Inline(b.into())));
        let run = (0u64..200, 1u64..4, 0u64..100, 1u64..50)
            .prop_map(|(o, c, offset, length)| Step::Put(o, Data::Run { chunk: ChunkId(c), offset, length }));
        // Appends to one chunk: these merge.
        let follow = (0u64..200, 1u64..50)
            .prop_map(|(o, length)| Step::Put(o, Data::Run { chunk: ChunkId(9), offset: o, length }));
        let cut = (0u64..250, 0u64..60).prop_map(|(o, l)| Step::Cut(o, o + l));
        prop_oneof![inline, run, follow, cut]
    }

    proptest! {
        #[test]
        fn pieces_equal_a_byte_array(steps in prop::collection::vec(step(), 1..40)) {
            let mut pieces = Pieces::default();
            let mut model = vec![None; 400];
            for step in steps {
                let before = pieces.clone();
                match step {
                    Step::Put(offset, data) => {
                        let mut alone = Pieces::default();
                        alone.put(offset, data.clone());
                        for (i, byte) in render(&alone, 400).into_iter().enumerate().filter(|(_, b)| b.is_some()) {
                            model[i] = byte;
                        }
                        pieces.put(offset, data);
                    }
                    Step::Cut(from, to) => {
                        model[from as usize..to as usize].fill(None);
                        pieces.cut(from, to);
                    }
                }
                prop_assert_eq!(render(&pieces, 400), model.clone());

                // The changes lead from the old state to the new one, and count right.
                let changes = before.changes_to(&pieces);
                let mut replayed = before.clone();
                for offset in &changes.cleared {
                    replayed.0.remove(offset);
                }
                for (offset, data) in &changes.set {
                    replayed.0.insert(*offset, data.clone());
                }
                prop_assert_eq!(&replayed, &pieces);
                let covered = |p: &Pieces| p.iter().map(|(_, d)| d.length() as i64).sum::<i64>();
                prop_assert_eq!(changes.allocated, covered(&pieces) - covered(&before));
                let uses = |p: &Pieces, c| p.iter().filter(|(_, d)| matches!(d, Data::Run { chunk, .. } if *chunk == c)).fold((0, 0), |(n, bytes), (_, d)| (n + 1, bytes + d.length() as i64));
                for chunk in [1, 2, 3, 9].map(ChunkId) {
                    let delta = changes.references.get(&chunk).copied().unwrap_or_default();
                    let (is, was) = (uses(&pieces, chunk), uses(&before, chunk));
                    prop_assert_eq!((delta.extents, delta.bytes), (is.0 - was.0, is.1 - was.1));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_may_not_join_stays_a_piece_of_its_own(
            at in (30u64 << 10)..(70 << 10), length in 1usize..20_000, before in 1usize..20_000, behind in 1usize..20_000,
        ) {
            let piece = |length: usize| Data::Inline(vec![7; length].into());
            let mut pieces = Pieces::default();
            pieces.load(at - before as u64, piece(before)).unwrap();
            pieces.load(at + length as u64, piece(behind)).unwrap();
            pieces.put(at, piece(length));
            if !piece(length).may_join(at + length as u64) {
                prop_assert_eq!(pieces.len(), 3);
                prop_assert_eq!(pieces.0.get(&at), Some(&piece(length)));
            }
        }
    }

    #[test]
    fn small_appends_merge_up_to_the_limit() {
        let mut pieces = Pieces::default();
        for i in 0..32u64 {
            pieces.put(i * 1000, Data::Inline(vec![i as u8; 1000].into()));
        }
        let lengths: Vec<u64> = pieces.iter().map(|(_, d)| d.length()).collect();
        assert_eq!(lengths, [16_000, 16_000]);
    }

    #[test]
    fn appends_to_a_chunk_are_one_piece() {
        let mut pieces = Pieces::default();
        for i in 0..10 {
            let run = Data::Run { chunk: ChunkId(1), offset: i * 10, length: 10 };
            pieces.put(5 + i * 10, run);
        }
        assert_eq!(pieces.len(), 1);
    }

    #[test]
    fn overlapping_records_are_damage() {
        let mut pieces = Pieces::default();
        let bytes = |n| Data::Inline(Bytes::from(vec![0u8; n]));
        pieces.load(10, bytes(10)).unwrap();
        assert!(pieces.load(5, bytes(6)).is_err());
        assert!(pieces.load(19, bytes(1)).is_err());
        assert!(pieces.load(FILE_SIZE_MAX, bytes(1)).is_err());
        pieces.load(20, bytes(1)).unwrap();
        pieces.load(5, bytes(5)).unwrap();
        assert!(Data::from_record(ExtentRecord::default()).is_err());
        let outside =
            ExtentRecord { chunk: 1, chunk_offset: CHUNK_BYTES_MAX, length: 1, ..Default::default() };
        assert!(Data::from_record(outside).is_err());
    }
}
