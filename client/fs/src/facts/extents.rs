//! What is known of where a file's bytes lie: what the region has said, and what this session has written since, which it knows as well.

use std::collections::BTreeMap;

use bytes::Bytes;
use mooseng_wire::fs::extent::Data;
use mooseng_wire::fs::write_piece::Data as PieceData;
use mooseng_wire::fs::{ChunkRun, Extent, ExtentMap, WritePiece};

/// Bytes that a known extent takes, about.
const EXTENT_BYTES: usize = 200;
/// Extents of one inode that are kept at most.
const EXTENTS_MAX: usize = 4_096;

/// Known extents: parts of the file by their start. Where parts overlap, each is true.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    parts: BTreeMap<u64, ExtentMap>,
    count: usize,
    /// The number of the newest answer that said something of them.
    said: u64,
}

impl Extents {
    /// The map of the part that covers the beginning of [offset, offset + length).
    pub fn find(&self, offset: u64) -> Option<ExtentMap> {
        let (_, part) = self.parts.range(..=offset).next_back()?;
        (offset < part.covered).then(|| part.clone())
    }

    /// Bytes that they take, about.
    pub(super) fn bytes(&self) -> usize {
        self.count * EXTENT_BYTES
    }

    /// The region has said this, in the answer of that number.
    pub(super) fn add(&mut self, offset: u64, map: &ExtentMap, number: u64) {
        let end = if map.covered == 0 { return } else { map.covered };
        if end <= offset {
            return;
        }
        let part = ExtentMap { attr: None, ..map.clone() };
        let more = weight_of(&part);
        if self.count + more > EXTENTS_MAX {
            self.clear();
        }
        self.said = self.said.max(number);
        self.count += more;
        if let Some(before) = self.parts.insert(offset, part) {
            self.count -= weight_of(&before);
        }
    }

    /// This session, to which alone the file was promised, has written these with the change that was answered under that number. What it wrote within the change
    /// lies over what was known, and goes on where a part ends. Answers whether something is known still: where a run of a chunk lies only the region can say.
    pub(super) fn written(&mut self, pieces: &[WritePiece], number: u64) -> bool {
        // What the region has said later has this change in it, and may have others over it.
        let is_newest = self.said < number;
        let known =
            is_newest && pieces.iter().all(|piece| self.put(piece).is_some()) && self.count <= EXTENTS_MAX;
        if !known {
            self.clear();
        }
        known
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.count = 0;
    }

    /// None where it isn't known afterwards what lies where.
    fn put(&mut self, piece: &WritePiece) -> Option<()> {
        let Some(PieceData::Inline(bytes)) = &piece.data else { return None };
        let (from, to) = (piece.offset, piece.offset.checked_add(bytes.len() as u64)?);
        if bytes.is_empty() {
            return Some(());
        }
        for (&start, part) in self.parts.range_mut(..to) {
            if part.covered < from {
                continue;
            }
            self.count -= weight_of(part);
            lay_over(part, start, (from, to), bytes)?;
            self.count += weight_of(part);
        }
        Some(())
    }
}

/// Lays bytes of [from, to) over a part that begins at `start`, before `to`, and ends at `from` or later.
fn lay_over(part: &mut ExtentMap, start: u64, (from, to): (u64, u64), bytes: &Bytes) -> Option<()> {
    let mut extents = Vec::with_capacity(part.extents.len() + 2);
    for extent in std::mem::take(&mut part.extents) {
        let end = extent.offset.checked_add(extent.length)?;
        if end <= from || extent.offset >= to {
            extents.push(extent);
            continue;
        }
        for (left, right) in [(extent.offset, from), (to, end)] {
            if left < right {
                extents.push(cut(&extent, left, right)?);
            }
        }
    }
    let at = from.max(start);
    // A part of it is copied, as in `cut`: only what is kept counts.
    let data =
        if at == from { bytes.clone() } else { Bytes::copy_from_slice(bytes.get((at - from) as usize..)?) };
    extents.push(Extent { offset: at, length: to - at, data: Some(Data::Inline(data)) });
    extents.sort_unstable_by_key(|extent| extent.offset);
    part.extents = extents;
    part.covered = part.covered.max(to);
    Some(())
}

/// The part [from, to) of an extent. None of one that has fewer bytes than it says.
fn cut(extent: &Extent, from: u64, to: u64) -> Option<Extent> {
    let (skip, end) = (from.checked_sub(extent.offset)?, to.checked_sub(extent.offset)?);
    let data = match extent.data.as_ref()? {
        Data::Inline(bytes) => {
            let bytes = bytes.get(usize::try_from(skip).ok()?..usize::try_from(end).ok()?)?;
            // Copied: a slice keeps all that it was cut from.
            Data::Inline(Bytes::copy_from_slice(bytes))
        }
        Data::Run(run) => {
            let chunk_offset = run.chunk_offset.checked_add(skip)?;
            Data::Run(ChunkRun { chunk_offset, length: end - skip, ..*run })
        }
    };
    Some(Extent { offset: from, length: to - from, data: Some(data) })
}

/// As how many extents a part counts: also one without any takes room.
fn weight_of(part: &ExtentMap) -> usize {
    1 + part.extents.iter().map(weight).sum::<usize>()
}

/// As how many extents one counts: some hundred bytes each, and what it has inline.
fn weight(known: &Extent) -> usize {
    match &known.data {
        Some(Data::Inline(bytes)) => 1 + bytes.len() / EXTENT_BYTES,
        _ => 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Source, pieces};

    const SPACE: usize = 48;
    const CHUNK: u64 = 7;

    /// A file at the region: what was written to it lies over a chunk whose bytes count up.
    type File = [Option<u8>; SPACE];

    fn byte_of(file: &File, at: usize) -> u8 {
        file[at].unwrap_or(at as u8)
    }

    /// What the region says of [from, to).
    fn map(file: &File, from: usize, to: usize) -> ExtentMap {
        let (mut extents, mut at) = (Vec::new(), from);
        while at < to {
            let inline = file[at].is_some();
            let length = (at..to).take_while(|n| file[*n].is_some() == inline).count();
            let (offset, length_u64) = (at as u64, length as u64);
            let bytes: Vec<u8> = (at..at + length).map(|n| byte_of(file, n)).collect();
            let data = match inline {
                true => Data::Inline(bytes.into()),
                false => Data::Run(ChunkRun { chunk: CHUNK, chunk_offset: offset, length: length_u64 }),
            };
            extents.push(Extent { offset, length: length_u64, data: Some(data) });
            at += length;
        }
        ExtentMap { extents, covered: to as u64, ..ExtentMap::default() }
    }

    fn inline(offset: u64, bytes: Vec<u8>) -> WritePiece {
        WritePiece { offset, data: Some(PieceData::Inline(bytes.into())) }
    }

    /// The bytes from an offset on, as far as the part that covers it reaches.
    fn known(extents: &Extents, offset: usize) -> Option<Vec<u8>> {
        let found = extents.find(offset as u64)?;
        let length = found.covered.min(SPACE as u64) - offset as u64;
        let found = ExtentMap { size: SPACE as u64, ..found };
        let (total, pieces) = pieces(&found, offset as u64, length).unwrap();
        let mut bytes = vec![0; total as usize];
        for piece in pieces {
            let place = &mut bytes[piece.at as usize..(piece.at + piece.length) as usize];
            match piece.source {
                Source::Inline(data) => place.copy_from_slice(&data),
                Source::Chunk { offset, .. } => {
                    place.iter_mut().enumerate().for_each(|(n, byte)| *byte = offset as u8 + n as u8);
                }
            }
        }
        Some(bytes)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(usize, usize),
        Write(usize, u8, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_usize, 1..20_usize).prop_map(|(from, length)| Step::Ask(from, length)),
            (0..40_usize, 100..200_u8, 1..20_usize)
                .prop_map(|(at, byte, length)| Step::Write(at, byte, length)),
        ]
    }

    proptest! {
        /// What is known is what the region would say.
        #[test]
        fn what_is_known_is_true(steps in prop::collection::vec(step(), 0..40)) {
            let (mut file, mut extents): (File, Extents) = ([None; SPACE], Extents::default());
            for (number, step) in (1..).zip(steps) {
                match step {
                    Step::Ask(from, length) => {
                        extents.add(from as u64, &map(&file, from, (from + length).min(SPACE)), number);
                    }
                    Step::Write(at, byte, length) => {
                        let end = (at + length).min(SPACE);
                        file[at..end].fill(Some(byte));
                        let before: Vec<bool> = (0..SPACE).map(|n| known(&extents, n).is_some()).collect();
                        prop_assert!(extents.written(&[inline(at as u64, vec![byte; end - at])], number));
                        for (n, was_known) in before.into_iter().enumerate() {
                            prop_assert!(!was_known || known(&extents, n).is_some(), "{} is forgotten", n);
                        }
                    }
                }
                for from in 0..SPACE {
                    if let Some(bytes) = known(&extents, from) {
                        let right: Vec<u8> = (from..from + bytes.len()).map(|n| byte_of(&file, n)).collect();
                        prop_assert_eq!(bytes, right);
                    }
                }
                let weight: usize = extents.parts.values().map(weight_of).sum();
                prop_assert_eq!(extents.count, weight);
            }
        }
    }

    #[test]
    fn what_is_written_behind_a_part_belongs_to_it() {
        let mut extents = Extents::default();
        assert!(extents.written(&[inline(0, vec![1; 4])], 1));
        assert_eq!(extents.find(0), None, "nobody has asked for it");
        extents.add(0, &map(&[None; SPACE], 0, 10), 2);
        assert!(extents.written(&[inline(10, vec![1; 4]), inline(14, vec![2; 2])], 3));
        assert_eq!(extents.find(0).map(|part| part.covered), Some(16));
        assert_eq!(known(&extents, 9), Some(vec![9, 1, 1, 1, 1, 2, 2]));
        assert!(extents.written(&[inline(20, vec![1; 4])], 4));
        assert_eq!(extents.find(0).map(|part| part.covered), Some(16), "what lies between isn't known");
    }

    #[test]
    fn what_only_the_region_can_say_is_forgotten() {
        let whole = map(&[None; SPACE], 0, SPACE);
        let run = ChunkRun { chunk: 9, chunk_offset: 0, length: 4 };
        let to_chunk = WritePiece { offset: 4, data: Some(PieceData::Run(run)) };
        let mut extents = Extents::default();
        extents.add(0, &whole, 1);
        assert!(!extents.written(&[inline(0, vec![1; 4]), to_chunk], 2));
        assert_eq!((extents.find(0), extents.count), (None, 0));
        // An answer that was given later has come before.
        extents.add(0, &whole, 4);
        assert!(!extents.written(&[inline(0, vec![1; 4])], 3));
        assert_eq!(extents.find(0), None);
        // What lies beneath has fewer bytes than it says.
        let mut short = whole;
        short.extents[0].data = Some(Data::Inline(Bytes::from_static(b"short")));
        extents.add(0, &short, 5);
        assert!(!extents.written(&[inline(20, vec![1; 4])], 6));
        assert_eq!(extents.find(0), None);
    }

    /// A byte of each write would keep all that was written with it in memory, and count as a byte.
    #[test]
    fn what_is_kept_of_a_write_in_part_keeps_nothing_else() {
        let mut extents = Extents::default();
        extents.add(10, &map(&[None; SPACE], 10, 20), 1);
        let bytes = Bytes::from(vec![5; 12]);
        let piece = WritePiece { offset: 0, data: Some(PieceData::Inline(bytes.clone())) };
        assert!(extents.written(&[piece], 2));
        assert_eq!(known(&extents, 10).as_deref(), Some(&[5, 5, 12, 13, 14, 15, 16, 17, 18, 19][..]));
        assert!(bytes.is_unique());
    }

    #[test]
    fn they_are_bounded() {
        let mut extents = Extents::default();
        for n in 0..3 * EXTENTS_MAX as u64 {
            let hole = ExtentMap { covered: n + 1, ..ExtentMap::default() };
            extents.add(n, &hole, 1);
            assert!(extents.count <= EXTENTS_MAX && extents.parts.len() <= EXTENTS_MAX);
        }
        extents.clear();
        extents.add(0, &ExtentMap { covered: 1 << 30, ..ExtentMap::default() }, 1);
        let mut fits = |n: u64| extents.written(&[inline(2 * n, vec![1])], 2 + n);
        assert_eq!((0..2 * EXTENTS_MAX as u64).take_while(|n| fits(*n)).count(), EXTENTS_MAX - 1);
    }
}
