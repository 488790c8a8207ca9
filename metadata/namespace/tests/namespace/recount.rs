//! Counts everything from scratch and compares it with what is recorded.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use foundationdb_tuple::{Element, unpack};
use mooseng_schema::Record;
use mooseng_schema::chunk::{ChunkRecord, ChunkUse};
use mooseng_schema::dirent::{Cookie, DirentRecord};
use mooseng_schema::extent::ExtentRecord;
use mooseng_schema::inode::InodeRecord;
use mooseng_schema::number;
use mooseng_schema::staged::Staged;
use mooseng_schema::tag::VolumeTag;
use mooseng_wire::fs::FileKind;

use crate::harness::HASH_KEY;

fn int(element: &Element<'_>) -> u64 {
    match element {
        Element::Int(i) => *i as u64,
        other => panic!("{other:?} isn't a number"),
    }
}

fn bytes(element: &Element<'_>) -> Vec<u8> {
    match element {
        Element::Bytes(b) => b.to_vec(),
        other => panic!("{other:?} isn't bytes"),
    }
}

#[derive(Default)]
struct Found {
    inodes: BTreeMap<u64, InodeRecord>,
    far_links: BTreeSet<(u64, u64, Vec<u8>)>,
    /// (directory, name) -> (inode, kind)
    entries: BTreeMap<(u64, Vec<u8>), (u64, u32)>,
    counters: BTreeMap<(u64, u64), u64>,
    extents: BTreeMap<(u64, u64), ExtentRecord>,
    xattrs: BTreeMap<u64, u32>,
    chunks: BTreeMap<u64, ChunkRecord>,
    uses: BTreeMap<(u64, u64), ChunkUse>,
    orphans: BTreeSet<u64>,
    trims: BTreeSet<u64>,
    staged: BTreeMap<u64, Staged>,
    staged_pieces: BTreeSet<(u64, u64)>,
    packable: BTreeSet<(u64, u64)>,
    /// Until when each inode is in the trash.
    trash: BTreeMap<u64, i64>,
    statistics: BTreeMap<u64, u64>,
}

fn collect(dump: &BTreeMap<Bytes, Bytes>) -> Found {
    let mut found = Found::default();
    for (key, value) in dump {
        let parts: Vec<Element<'_>> = unpack(key).unwrap();
        if parts[0] != Element::String("v".into()) {
            continue;
        }
        let tag = int(&parts[2]) as u8;
        let at = |i: usize| int(&parts[i + 3]);
        match tag {
            t if t == VolumeTag::Inode as u8 => {
                found.inodes.insert(at(0), InodeRecord::from_value(value).unwrap());
            }
            t if t == VolumeTag::Link as u8 => {
                found.far_links.insert((at(0), at(1), bytes(&parts[5])));
            }
            t if t == VolumeTag::Dirent as u8 => {
                let entry = DirentRecord::from_value(value).unwrap();
                let first = Cookie::first(&HASH_KEY, &entry.name).0;
                assert!((first..first + 256).contains(&at(1)), "an entry lies under another name's hash");
                let old = found.entries.insert((at(0), entry.name.to_vec()), (entry.inode, entry.kind));
                assert_eq!(old, None, "two entries of one name");
            }
            t if t == VolumeTag::Directory as u8 => {
                found.counters.insert((at(0), at(1)), number::decode(Some(value)).unwrap());
            }
            t if t == VolumeTag::Extent as u8 => {
                found.extents.insert((at(0), at(1)), ExtentRecord::from_value(value).unwrap());
            }
            t if t == VolumeTag::Xattr as u8 => {
                *found.xattrs.entry(at(0)).or_default() += bytes(&parts[4]).len() as u32 + 1;
            }
            t if t == VolumeTag::Chunk as u8 => {
                found.chunks.insert(at(0), ChunkRecord::from_value(value).unwrap());
            }
            t if t == VolumeTag::ChunkRef as u8 => {
                found.uses.insert((at(0), at(1)), ChunkUse::from_value(Some(value)).unwrap());
            }
            t if t == VolumeTag::Orphan as u8 => drop(found.orphans.insert(at(0))),
            t if t == VolumeTag::Trim as u8 => drop(found.trims.insert(at(0))),
            t if t == VolumeTag::Staged as u8 => {
                found.staged.insert(at(0), Staged::decode(Some(value)).unwrap());
            }
            t if t == VolumeTag::StagedPiece as u8 => {
                assert!(value.is_empty() && found.staged_pieces.insert((at(0), at(1))));
            }
            t if t == VolumeTag::Packable as u8 => {
                assert!(value.is_empty() && found.packable.insert((at(0), at(1))));
            }
            t if t == VolumeTag::Trash as u8 => {
                assert_eq!(found.trash.insert(at(1), at(0) as i64), None, "an inode is in the trash twice");
            }
            t if t == VolumeTag::Statistic as u8 => {
                let sum = found.statistics.entry(at(0)).or_default();
                *sum = sum.wrapping_add(number::decode(Some(value)).unwrap());
            }
            _ => {}
        }
    }
    found
}

/// Panics where a count differs.
pub fn check(dump: &BTreeMap<Bytes, Bytes>) {
    let found = collect(dump);
    check_names(&found);
    check_data(&found);
    let inodes = found.statistics.get(&0).copied().unwrap_or(0);
    assert_eq!(inodes, found.inodes.len() as u64, "the statistics count inodes");
    let sizes: u64 = found.inodes.values().map(|i| i.allocated).sum();
    assert_eq!(found.statistics.get(&1).copied().unwrap_or(0), sizes, "the statistics count bytes");
    let trashed: u64 = found.trash.keys().map(|i| found.inodes[i].allocated).sum();
    let counted = [2, 3].map(|which| found.statistics.get(&which).copied().unwrap_or(0));
    assert_eq!(counted, [found.trash.len() as u64, trashed], "the statistics count the trash");
}

fn check_names(found: &Found) {
    let mut names: BTreeMap<u64, BTreeSet<(u64, Vec<u8>)>> = BTreeMap::new();
    let mut entries: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for ((directory, name), (inode, kind)) in &found.entries {
        let record = found.inodes.get(inode).expect("an entry names an inode that isn't there");
        assert_eq!(record.kind, *kind);
        let parent = &found.inodes[directory];
        assert!(parent.kind == FileKind::Directory as u32 && !parent.orphan);
        names.entry(*inode).or_default().insert((*directory, name.clone()));
        let counts = entries.entry(*directory).or_default();
        counts.0 += 1;
        counts.1 += u64::from(*kind == FileKind::Directory as u32);
    }
    let mut far = found.far_links.clone();
    for (id, record) in &found.inodes {
        let mut links: BTreeSet<_> = record.links.iter().map(|l| (l.parent, l.name.to_vec())).collect();
        assert_eq!(links.len(), record.links.len(), "a name is recorded twice");
        let own: Vec<_> = far.iter().filter(|(inode, ..)| inode == id).cloned().collect();
        for link in own {
            far.remove(&link);
            assert!(links.insert((link.1, link.2)), "a name is recorded twice");
        }
        let expected = names.remove(id).unwrap_or_default();
        assert_eq!(links, expected, "inode {id} knows its names");
        if record.kind == FileKind::Directory as u32 {
            let counts = entries.get(id).copied().unwrap_or_default();
            let counter = |which| found.counters.get(&(*id, which)).copied().unwrap_or(0);
            assert_eq!((counter(0), counter(1)), counts, "directory {id} counts its entries");
        } else {
            assert_eq!(record.nlink as usize, expected.len(), "inode {id} counts its names");
        }
        assert_eq!(record.orphan, expected.is_empty() && *id != 1, "inode {id} is an orphan or not");
        let trash_until = found.trash.get(id).copied();
        assert_eq!(record.trash_until_ns, trash_until, "inode {id} knows until when it is in the trash");
        // What has data waits there alone until its time is over; what is empty goes once it is closed.
        assert!(trash_until.is_none() || record.orphan && record.kind == FileKind::Regular as u32);
        let reaped_later = record.orphan && (trash_until.is_none() || record.size == 0);
        assert!(!reaped_later || found.orphans.contains(id), "inode {id} would never be freed");
        assert!(record.orphan || !found.orphans.contains(id));
        assert_eq!(record.trim_from.is_some(), found.trims.contains(id));
        assert_eq!(record.xattr_name_bytes, found.xattrs.get(id).copied().unwrap_or(0));
    }
    assert!(far.is_empty(), "names of inodes that are gone");
    for id in found.orphans.iter().chain(&found.trims).chain(found.xattrs.keys()) {
        assert!(found.inodes.contains_key(id), "something is left of inode {id}");
    }
    for (id, _) in found.counters.keys() {
        assert!(found.inodes.contains_key(id), "counters are left of inode {id}");
    }
}

fn check_data(found: &Found) {
    let mut uses: BTreeMap<(u64, u64), ChunkUse> = BTreeMap::new();
    let mut allocated: BTreeMap<u64, u64> = BTreeMap::new();
    let mut staged: BTreeMap<u64, Staged> = BTreeMap::new();
    let mut pieces = found.staged_pieces.clone();
    let mut packable = found.packable.clone();
    let mut reached = (0, 0);
    for ((inode, offset), extent) in &found.extents {
        let record = found.inodes.get(inode).expect("an extent is left of an inode that is gone");
        let length = if extent.chunk == 0 { extent.inline.len() as u64 } else { extent.length };
        assert!(length > 0);
        if reached.0 == *inode {
            assert!(reached.1 <= *offset, "extents of inode {inode} overlap at {offset}");
        }
        reached = (*inode, offset + length);
        let end = record.trim_from.map_or(record.size, |_| u64::MAX);
        assert!(offset + length <= end, "an extent of inode {inode} reaches behind its end");
        if let Some(from) = record.trim_from {
            assert!(offset + length <= record.size || *offset >= from);
        }
        *allocated.entry(*inode).or_default() += length;
        if extent.chunk == 0 && offset + length > 64 << 10 {
            let staged = staged.entry(*inode).or_default();
            *staged = staged.plus(Staged { bytes: length as i64, pieces: 1 });
            assert!(pieces.remove(&(*inode, *offset)), "a staged piece of inode {inode} isn't listed");
        }
        if extent.chunk == 0 && offset + length <= 64 << 10 && length >= 4096 {
            assert!(packable.remove(&(*inode, *offset)), "a packable piece of inode {inode} isn't listed");
        }
        if extent.chunk != 0 {
            let chunk = found.chunks.get(&extent.chunk).expect("an extent names a chunk that isn't there");
            assert!(!chunk.sealed || extent.chunk_offset + extent.length <= chunk.length);
            let used = uses.entry((extent.chunk, *inode)).or_default();
            used.extents += 1;
            used.bytes += extent.length;
        }
    }
    for (id, record) in &found.inodes {
        assert_eq!(record.allocated, allocated.get(id).copied().unwrap_or(0), "inode {id} counts its bytes");
    }
    assert_eq!(pieces, BTreeSet::new(), "what is listed as staged isn't there");
    assert_eq!(packable, BTreeSet::new(), "what is listed as packable isn't there");
    let counted = found.staged.iter().filter(|(_, staged)| !staged.is_zero());
    assert_eq!(
        staged,
        counted.map(|(id, staged)| (*id, *staged)).collect(),
        "files count what they have staged"
    );
    assert_eq!(uses, found.uses, "chunks count what inodes use of them");
}
