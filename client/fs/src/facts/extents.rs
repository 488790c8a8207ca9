//! What is known of where a file's bytes lie.

use std::collections::BTreeMap;

use mooseng_wire::fs::extent::Data;
use mooseng_wire::fs::{Extent, ExtentMap};

/// Bytes that a known extent takes, about.
const EXTENT_BYTES: usize = 200;
/// Extents of one inode that are kept at most.
const EXTENTS_MAX: usize = 4_096;

/// Known extents: parts that don't overlap, by their start.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    parts: BTreeMap<u64, ExtentMap>,
    count: usize,
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

    pub(super) fn add(&mut self, offset: u64, map: &ExtentMap) {
        let end = if map.covered == 0 { return } else { map.covered };
        if end <= offset {
            return;
        }
        let more = map.extents.iter().map(weight).sum();
        self.count += more;
        if self.count > EXTENTS_MAX {
            self.parts.clear();
            self.count = more;
        }
        self.parts.insert(offset, ExtentMap { attr: None, ..map.clone() });
    }
}

/// As how many extents one counts: some hundred bytes each, and what it has inline.
fn weight(known: &Extent) -> usize {
    match &known.data {
        Some(Data::Inline(bytes)) => 1 + bytes.len() / EXTENT_BYTES,
        _ => 1,
    }
}
