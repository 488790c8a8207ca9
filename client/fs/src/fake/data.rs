//! Files' contents: extents, and the chunks that they name.

use std::collections::BTreeSet;

use bytes::Bytes;
use mooseng_wire::INLINE_FILE_BYTES_MAX;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, Appended, ChainFailure, Read, ReadDone};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::{
    AccountRoom, ChunkLocation, ChunkPlace, ChunkRun, Extent, ExtentMap, FileKind, Ranged, Reserve, Reserved,
    WritePiece, Written, extent, write_piece,
};
use prost::Message;

use super::tree::set_attributes;
use super::{Fault, Node, State, errno, refuse};
use crate::peers::{Answered, Failure};

impl State {
    pub(super) fn seal(&mut self, chunk: u64, length: u64) {
        self.sealed.insert(chunk, length);
        for ((_, of), bytes) in &mut self.chunks {
            if *of == chunk {
                bytes.truncate(length as usize);
            }
        }
    }

    /// Where the furthest run in a chunk that an extent names ends.
    pub(super) fn committed(&self, chunk: u64) -> u64 {
        let extents = self.nodes.values().flat_map(|node| node.extents.values());
        let ends = extents.filter_map(|extent| match &extent.data {
            Some(extent::Data::Run(run)) if run.chunk == chunk => Some(run.chunk_offset + run.length),
            _ => None,
        });
        ends.max().unwrap_or(0)
    }

    pub(super) fn place(&self, chunk: u64) -> ChunkPlace {
        let locations = self.places.get(&chunk).into_iter().flatten();
        let location = |name: &String| ChunkLocation {
            chunkserver: name.clone(),
            address: name.clone(),
            zone: format!("zone-{name}"),
            reachable: true,
        };
        let (sealed, length) = (self.sealed.contains_key(&chunk), self.sealed.get(&chunk).copied());
        ChunkPlace {
            chunk,
            locations: locations.map(location).collect(),
            epoch: 1,
            sealed,
            length: length.unwrap_or_default(),
            ..ChunkPlace::default()
        }
    }

    /// What files have inline goes to one sealed chunk, as the rewriter packs it: in the order of their ids.
    pub fn pack(&mut self) {
        self.last_id += 1;
        let chunk = self.last_id;
        let mut bytes = Vec::new();
        for node in self.nodes.values_mut() {
            for extent in node.extents.values_mut() {
                let Some(extent::Data::Inline(inline)) = &extent.data else { continue };
                let run = ChunkRun { chunk, chunk_offset: bytes.len() as u64, length: inline.len() as u64 };
                bytes.extend_from_slice(inline);
                extent.data = Some(extent::Data::Run(run));
            }
        }
        let holders = ["c1", "c2"].map(str::to_owned);
        for name in &holders {
            self.chunks.insert((name.clone(), chunk), bytes.clone());
        }
        self.places.insert(chunk, holders.to_vec());
        self.sealed.insert(chunk, bytes.len() as u64);
    }

    pub(super) fn read_extents(
        &self,
        inode: u64,
        offset: u64,
        length: u64,
        _chunkservers: &[String],
    ) -> Reply {
        let Some(node) = self.nodes.get(&inode) else { return errno(libc::ENOENT) };
        let end = offset.saturating_add(length);
        // Few at a time, so that reads meet maps that don't cover all they asked for.
        let hit: Vec<Extent> = node
            .extents
            .values()
            .filter(|e| e.offset < end && e.offset + e.length > offset)
            .take(9)
            .cloned()
            .collect();
        let covered = hit.get(8).map_or(end, |e| e.offset);
        let extents: Vec<Extent> = hit.into_iter().take(8).collect();
        let chunks: BTreeSet<u64> = extents
            .iter()
            .filter_map(|e| match &e.data {
                Some(extent::Data::Run(run)) => Some(run.chunk),
                _ => None,
            })
            .collect();
        let chunks = chunks.into_iter().map(|chunk| self.place(chunk)).collect();
        Reply::Extents(ExtentMap { size: node.attr.size, extents, chunks, attr: Some(node.attr), covered })
    }

    fn bytes(&self) -> u64 {
        self.nodes.values().filter(|n| n.attr.kind() == FileKind::Regular).map(|n| n.attr.size).sum()
    }

    /// Grants what is asked for of the one account that there is, if it is there.
    pub(super) fn reserve(&mut self, reserve: &Reserve) -> Reply {
        if let Some(told) = reserve.held.first() {
            self.escrow.1 = told.spent;
        }
        let mut rooms = Vec::new();
        for account in &reserve.accounts {
            let mut room = AccountRoom { account: Some(*account), limited: false, granted: 0, enough: true };
            if let Some(max) = self.quota {
                let left = max.saturating_sub(self.bytes() + self.escrow.0 - self.escrow.1);
                room.enough = reserve.bytes <= left;
                self.escrow.0 += if room.enough { reserve.bytes } else { 0 };
                (room.limited, room.granted) = (true, self.escrow.0);
            }
            rooms.push(room);
        }
        Reply::Reserved(Reserved { accounts: rooms, quotas: 0 })
    }

    pub(super) fn write(&mut self, write: mooseng_wire::fs::Write) -> Reply {
        let size = self.nodes.get(&write.inode).map_or(0, |n| n.attr.size);
        let end = |piece: &WritePiece| match &piece.data {
            Some(write_piece::Data::Inline(bytes)) => piece.offset + bytes.len() as u64,
            Some(write_piece::Data::Run(run)) => piece.offset + run.length,
            None => 0,
        };
        let grown = write.pieces.iter().map(end).max().unwrap_or(0).saturating_sub(size);
        if grown > 0 && self.quota.is_some_and(|max| self.bytes() + grown > max) {
            return errno(libc::EDQUOT);
        }
        if let Some(refusal) = self.refuse_writes.filter(|_| !write.pieces.is_empty()) {
            return errno(refusal);
        }
        let staged = |piece: &WritePiece| {
            matches!(piece.data, Some(write_piece::Data::Inline(_))) && end(piece) > INLINE_FILE_BYTES_MAX
        };
        if self.staging_closed && write.pieces.iter().any(staged) {
            return errno(libc::EMSGSIZE);
        }
        let now = self.now();
        for piece in &write.pieces {
            if let Some(write_piece::Data::Run(run)) = &piece.data {
                if self.sealed.get(&run.chunk).is_some_and(|&length| run.chunk_offset + run.length > length) {
                    return errno(libc::ESTALE);
                }
                let holders = self.places.get(&run.chunk).cloned().unwrap_or_default();
                for holder in holders {
                    let have = self.chunks.get(&(holder.clone(), run.chunk)).map_or(0, Vec::len) as u64;
                    if have < run.chunk_offset + run.length {
                        self.violations.push(format!(
                            "chunk {} is named up to {} and has {have} bytes on {holder}",
                            run.chunk,
                            run.chunk_offset + run.length
                        ));
                    }
                }
            }
        }
        let Some(node) = self.nodes.get_mut(&write.inode) else { return errno(libc::ENOENT) };
        let began = if write.append { node.attr.size } else { write.pieces.first().map_or(0, |p| p.offset) };
        let mut at = began;
        let began_any = !write.pieces.is_empty();
        for piece in write.pieces {
            let offset = if write.append { at } else { piece.offset };
            let (length, data) = match piece.data {
                Some(write_piece::Data::Inline(bytes)) => (bytes.len() as u64, extent::Data::Inline(bytes)),
                Some(write_piece::Data::Run(run)) => (run.length, extent::Data::Run(run)),
                None => return errno(libc::EINVAL),
            };
            clear(node, offset, offset + length);
            node.extents.insert(offset, Extent { offset, length, data: Some(data) });
            at = offset + length;
            node.attr.size = node.attr.size.max(at);
        }
        if began_any {
            node.attr.mtime_ns = write.written_ns.unwrap_or(now);
            node.attr.ctime_ns = node.attr.mtime_ns;
        }
        if let Some(set) = &write.set {
            set_attributes(&mut node.attr, set, now);
        }
        Reply::Written(Written { attr: Some(node.attr), offset: began })
    }

    /// A thousand bytes at a time, so that clients meet ranges that aren't done at once.
    pub(super) fn fallocate(&mut self, o: &mooseng_wire::fs::Fallocate) -> Reply {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
        let done = o.length.min(1000);
        if o.zero {
            clear(node, o.offset, o.offset + done);
        }
        if !o.keep_size {
            node.attr.size = node.attr.size.max(o.offset + done);
        }
        (node.attr.mtime_ns, node.attr.ctime_ns) = (now, now);
        Reply::Ranged(Ranged { attr: Some(node.attr), done, more: done < o.length })
    }

    /// Shares runs of sealed chunks, an extent at a time, from begin to end of a file only.
    pub(super) fn copy_range(&mut self, o: &mooseng_wire::fs::CopyRange) -> Reply {
        let now = self.now();
        let Some(source) = self.nodes.get(&o.source) else { return errno(libc::ENOENT) };
        let left = source.attr.size.saturating_sub(o.source_offset).min(o.length);
        let attr = self.nodes.get(&o.inode).map(|node| node.attr);
        if left == 0 {
            return Reply::Ranged(Ranged { attr, done: 0, more: false });
        }
        let first = source.extents.values().find(|e| e.offset == o.source_offset).cloned();
        let shared = first.filter(|e| match &e.data {
            Some(extent::Data::Run(run)) => self.sealed.contains_key(&run.chunk),
            _ => true,
        });
        let Some(shared) = shared else { return errno(libc::EXDEV) };
        let (offset, done) = (o.offset, shared.length);
        let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
        clear(node, offset, offset + done);
        node.extents.insert(offset, Extent { offset, ..shared });
        node.attr.size = node.attr.size.max(offset + done);
        (node.attr.mtime_ns, node.attr.ctime_ns) = (now, now);
        Reply::Ranged(Ranged { attr: Some(node.attr), done, more: done < left })
    }

    pub(super) fn append(&mut self, first: &str, append: &Append, bulk: &Bytes) -> Result<Bytes, Failure> {
        if crc32c::crc32c(bulk) != append.crc {
            self.violations.push("an append's checksum is wrong".into());
        }
        let members: Vec<String> =
            std::iter::once(first.to_owned()).chain(append.chain.iter().map(|m| m.address.clone())).collect();
        if self.places.get(&append.chunk) != Some(&members) {
            self.violations.push(format!("chunk {} is appended on {members:?}", append.chunk));
        }
        if self.sealed.contains_key(&append.chunk) {
            return Err(refuse(ErrorCode::ChunkSealed, ""));
        }
        let mut outcome = Ok(());
        for member in &members {
            let fault = self.faults.get(member).copied();
            if member != first && matches!(fault, Some(Fault::Down)) {
                let detail = ChainFailure { chunkserver: member.clone(), reason: "down".into() }
                    .encode_to_vec()
                    .into();
                outcome = Err(Failure::Refused(CallError {
                    code: ErrorCode::ChainFailed.into(),
                    detail,
                    ..CallError::default()
                }));
                continue;
            }
            if member != first && matches!(fault, Some(Fault::Hung)) {
                outcome = Err(Failure::Timeout);
                continue;
            }
            let bytes = self.chunks.entry((member.clone(), append.chunk)).or_default();
            if bytes.len() as u64 != append.offset {
                return Err(refuse(ErrorCode::OffsetMismatch, ""));
            }
            bytes.extend_from_slice(bulk);
        }
        outcome?;
        let length = append.offset + bulk.len() as u64;
        Ok(Appended { length, flushed: if append.flush { length } else { 0 } }.encode_to_vec().into())
    }

    pub(super) fn read_chunk(&mut self, address: &str, read: &Read) -> Result<Answered, Failure> {
        let bytes = self
            .chunks
            .get(&(address.to_owned(), read.chunk))
            .ok_or_else(|| refuse(ErrorCode::NotFound, ""))?;
        let from = read.offset as usize;
        let bytes = bytes
            .get(from..from + read.length as usize)
            .ok_or_else(|| refuse(ErrorCode::InvalidRequest, ""))?;
        let crc = crc32c::crc32c(bytes);
        self.chunk_bytes += bytes.len() as u64;
        let mut bulk = bytes.to_vec();
        if self.faults.get(address) == Some(&Fault::Corrupt)
            && let Some(first) = bulk.first_mut()
        {
            *first ^= 1;
        }
        Ok(Answered { body: ReadDone { crc }.encode_to_vec().into(), bulk: bulk.into() })
    }
}

pub(super) fn truncate(node: &mut Node, size: u64) {
    if size < node.attr.size {
        clear(node, size, u64::MAX);
    }
    node.attr.size = size;
}

/// Cuts [from, to) out of a file's extents.
pub(super) fn clear(node: &mut Node, from: u64, to: u64) {
    for (_, old) in std::mem::take(&mut node.extents) {
        let end = old.offset + old.length;
        for (a, b) in [(old.offset, end.min(from)), (old.offset.max(to), end)] {
            if a >= b {
                continue;
            }
            let skip = a - old.offset;
            let data = match &old.data {
                Some(extent::Data::Inline(bytes)) => {
                    extent::Data::Inline(bytes.slice(skip as usize..(skip + b - a) as usize))
                }
                Some(extent::Data::Run(run)) => extent::Data::Run(ChunkRun {
                    chunk_offset: run.chunk_offset + skip,
                    length: b - a,
                    ..*run
                }),
                None => continue,
            };
            node.extents.insert(a, Extent { offset: a, length: b - a, data: Some(data) });
        }
    }
}
