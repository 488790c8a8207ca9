//! What an entry is about, for people: whose it was, what kinds of records it changed, which files and which of their bytes.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_schema::any::Any;
use mooseng_schema::key::{fact_of, tag_of};
use mooseng_schema::session::parse_outcome_key;
use mooseng_schema::tag::VolumeTag;
use mooseng_store::mvcc::Change;
use mooseng_wire::fact::Fact;
use mooseng_wire::{ChunkId, InodeId, SessionId, VolumeId};

/// Bytes of a file that an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The file.
    pub inode: InodeId,
    /// Where in it.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// The chunk and where in it; none for bytes that the entry holds itself.
    pub chunk: Option<(ChunkId, u64)>,
}

/// What an entry is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The session that made the change; none for the master's own.
    pub session: Option<SessionId>,
    /// The latest time that it gave a file.
    pub time_ns: Option<i64>,
    /// How many records of each kind it set or cleared.
    pub kinds: BTreeMap<&'static str, u64>,
    /// The inodes that it changed, or the entries of.
    pub inodes: BTreeSet<InodeId>,
    /// The contents that it named.
    pub contents: Vec<Content>,
}

/// Of an entry's changes. What can't be read is left out: it is for people.
pub fn about(volume: VolumeId, changes: &[Change]) -> About {
    let mut about = About::default();
    for change in changes {
        let key = match change {
            Change::Set(key, _) | Change::Clear(key) => key,
            Change::ClearRange(range) => &range.begin,
        };
        let kind = tag_of(volume, key).map_or("other", VolumeTag::name_of);
        *about.kinds.entry(kind).or_default() += 1;
        match fact_of(volume, key) {
            Some(Fact::Inode(inode) | Fact::Directory(inode) | Fact::Entry(inode, _)) => {
                about.inodes.insert(inode);
            }
            // Locks aren't in the log.
            Some(Fact::Locks(_)) | None => {}
        }
        let Change::Set(key, value) = change else { continue };
        if let Ok((session, _)) = parse_outcome_key(volume, key) {
            about.session = Some(session);
        }
        match Any::read(key, value) {
            Ok(Any::Inode(_, record)) => {
                about.time_ns = about.time_ns.max(Some(record.ctime_ns.max(record.mtime_ns)));
            }
            Ok(Any::Dirent(_, _, record)) => {
                about.inodes.insert(InodeId(record.inode));
            }
            Ok(Any::Extent(inode, offset, record)) => {
                let chunk = (record.chunk != 0).then_some((ChunkId(record.chunk), record.chunk_offset));
                let length = if chunk.is_some() { record.length } else { record.inline.len() as u64 };
                about.contents.push(Content { inode, offset, length, chunk });
            }
            _ => {}
        }
    }
    about
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mooseng_schema::Record;
    use mooseng_schema::dirent::{self, Cookie, DirentRecord};
    use mooseng_schema::extent::{self, ExtentRecord};
    use mooseng_schema::inode::{self, InodeRecord};
    use mooseng_schema::session::outcome_key;
    use mooseng_store::KeyRange;
    use mooseng_wire::RequestNumber;

    use super::*;

    #[test]
    fn an_entry_says_whose_it_was_and_which_files_and_bytes_it_is_about() {
        let set = |key: Vec<u8>, value: Vec<u8>| Change::Set(key.into(), value.into());
        let (file, directory, gone) = (InodeId(7), InodeId(1), InodeId(9));
        let record = InodeRecord { mtime_ns: 5, ctime_ns: 6, ..Default::default() };
        let entry = DirentRecord { name: Bytes::from_static(b"f"), inode: file.0, kind: 1 };
        let inline = ExtentRecord { inline: Bytes::from_static(b"abc"), ..Default::default() };
        let placed = ExtentRecord { chunk: 3, chunk_offset: 4, length: 10, ..Default::default() };
        let cleared: KeyRange = extent::range(gone);
        let about = about(
            VolumeId(0),
            &[
                set(outcome_key(SessionId(2), RequestNumber(8)), vec![]),
                set(inode::key(file), record.to_value()),
                set(dirent::key(directory, Cookie(1)), entry.to_value()),
                set(extent::key(file, 0), inline.to_value()),
                set(extent::key(file, 3), placed.to_value()),
                set(inode::key(InodeId(30)), vec![77]),
                Change::ClearRange(cleared),
                Change::Clear(Bytes::from_static(b"\xfe")),
            ],
        );
        assert_eq!(about.session, Some(SessionId(2)));
        assert_eq!(about.time_ns, Some(6));
        assert_eq!(about.inodes, BTreeSet::from([directory, file, gone, InodeId(30)]));
        let kinds = [("entry", 1), ("extent", 3), ("inode", 2), ("other", 1), ("outcome", 1)];
        assert_eq!(about.kinds, BTreeMap::from(kinds));
        let content = |offset, length, chunk| Content { inode: file, offset, length, chunk };
        assert_eq!(about.contents, [content(0, 3, None), content(3, 10, Some((ChunkId(3), 4)))]);
    }
}
