//! A sealed chunk that a chunkserver lent to somebody on its host: read and verified there, as the chunkserver itself would.
//!
//! A sealed chunk's bytes and checksums never change, so that what a descriptor leads to stays right, also when the chunk has been moved, replaced
//! or deleted meanwhile; what has rotted doesn't match its checksum.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::disk::direct::Aligned;
use mooseng_ports::disk::lent::{FileIdentity, Keep, LentFile, Wait};
use mooseng_ports::plant::{self, Plant};
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId};

use crate::layout::{
    BLOCK, ENTRY_BYTES, FORMAT, GROUP_BLOCKS, Header, Piece, RECORD_BYTES, TABLE_AT, block_at, entry_at,
    entry_crc, file_bytes, pieces,
};

/// How long a descriptor is used after it was got: then it is closed, and asked for anew where it is still wanted.
pub const HELD_FOR: Duration = Duration::from_secs(60);

const GROUP_BYTES: u64 = GROUP_BLOCKS * BLOCK;

/// Reads of at least so many bytes, of which the kernel is to keep nothing, go past its cache altogether.
const DIRECT_BYTES_MIN: u64 = 128 << 10;

/// What is told of a sealed chunk that is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The chunk.
    pub chunk: ChunkId,
    /// The format of its file.
    pub format: u32,
    /// Its length in bytes.
    pub length: u64,
    /// The checksum of what its last, partial block holds; 0 if there is none.
    pub tail_crc: u32,
    /// The file that holds it.
    pub file: FileIdentity,
}

/// A chunk that is lent, on its chunkserver's side.
#[derive(Debug)]
pub struct Loan {
    /// What is told of it.
    pub terms: Terms,
    /// The file, for reading only.
    pub descriptor: OwnedFd,
}

/// Why a descriptor isn't used.
#[derive(Debug, thiserror::Error)]
pub enum LentError {
    /// This build doesn't know how the bytes lie.
    #[error("the chunk's file has format {0}, this build reads up to {FORMAT}")]
    Format(u32),
    /// It is no chunk, or another one.
    #[error("the descriptor isn't of the chunk's file: {0}")]
    OtherFile(&'static str),
    /// It can't be looked at.
    #[error("the descriptor can't be used: {0}")]
    Io(#[from] io::Error),
}

/// Why a read of a lent chunk answers nothing. Other copies may be well.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk would have to be waited for.
    #[error("it isn't in memory")]
    NotInMemory,
    /// The range isn't the chunk's.
    #[error("the chunk has only {0} bytes")]
    TooShort(u64),
    /// A block doesn't match its checksum.
    #[error("block {0} doesn't match its checksum")]
    Corrupt(u64),
    /// The disk failed.
    #[error("reading failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => ReadError::NotInMemory,
            _ => ReadError::Io(error),
        }
    }
}

/// The checksums of one group's blocks.
type Group = Box<[u32; GROUP_BLOCKS as usize]>;

/// A chunk that is lent, on the reader's side.
#[derive(Debug)]
pub struct LentChunk {
    terms: Terms,
    file: LentFile,
    /// Checksums, read with the first block of each group.
    groups: Box<[OnceLock<Group>]>,
}

impl LentChunk {
    /// Takes a descriptor on if it is of the file that was told of, and that is the chunk's.
    pub fn adopt(descriptor: OwnedFd, terms: Terms) -> Result<Self, LentError> {
        if terms.format != FORMAT {
            return Err(LentError::Format(terms.format));
        }
        let file = LentFile::adopt(descriptor)?;
        if file.identity() != terms.file {
            return Err(LentError::OtherFile("it is another file than was announced"));
        }
        if terms.length > CHUNK_BYTES_MAX || file.bytes() < file_bytes(terms.length) {
            return Err(LentError::OtherFile("it is shorter than the chunk"));
        }
        let mut header = Vec::new();
        file.read_into(&mut header, RECORD_BYTES, 0, Wait::ForDisk, Keep::Pages)?;
        match Header::decode(&header) {
            Some(header) if header.chunk == terms.chunk && header.format == terms.format => {}
            _ => return Err(LentError::OtherFile("its header names another chunk, or is damaged")),
        }
        let groups = terms.length.div_ceil(GROUP_BYTES) as usize;
        Ok(Self { terms, file, groups: (0..groups).map(|_| OnceLock::new()).collect() })
    }

    /// The chunk's length in bytes.
    pub fn length(&self) -> u64 {
        self.terms.length
    }

    /// Reads bytes, every block that they touch verified.
    pub fn read(&self, offset: u64, bytes: u64, wait: Wait, keep: Keep) -> Result<Bytes, ReadError> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.terms.length);
        let end = end.ok_or(ReadError::TooShort(self.terms.length))?;
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        let whole = offset.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK) && bytes >= DIRECT_BYTES_MIN;
        if keep == Keep::Nothing
            && wait == Wait::ForDisk
            && whole
            && let Some(read) = self.read_past_the_cache(offset, bytes)?
        {
            return Ok(read);
        }
        let from = offset / BLOCK * BLOCK;
        let to = end.next_multiple_of(BLOCK).min(self.terms.length);
        let mut buffer = Vec::with_capacity((to - from) as usize);
        for piece in pieces(from, to - from) {
            let read = buffer.len();
            self.file.read_into(&mut buffer, piece.bytes as usize, piece.at, wait, keep)?;
            self.verify(piece.offset / BLOCK, &buffer[read..], wait, keep)?;
        }
        let start = (offset - from) as usize;
        Ok(Bytes::from(buffer).slice(start..start + bytes as usize))
    }

    /// Reads whole blocks with one read of the disk, the tables between them as well; none where the filesystem doesn't do that.
    fn read_past_the_cache(&self, offset: u64, bytes: u64) -> Result<Option<Bytes>, ReadError> {
        // A group's table lies before its blocks: those of all groups but the first are on the way.
        let with_table = |piece: &Piece| piece.offset.is_multiple_of(GROUP_BYTES);
        let found: Vec<(Piece, bool)> =
            pieces(offset, bytes).map(|piece| (piece, with_table(&piece))).collect();
        let tables = found.iter().filter(|(_, with_table)| *with_table).count();
        let Some((first, from_table)) = found.first() else { return Ok(None) };
        let at = first.at - if *from_table { BLOCK } else { 0 };
        let (mut data, mut pages) = (Aligned::of(bytes as usize), Aligned::of(tables * BLOCK as usize));
        let mut parts: Vec<&mut [u8]> = Vec::with_capacity(found.len() + tables);
        let (mut left, mut free) = (data.as_mut(), pages.as_mut());
        for (piece, with_table) in &found {
            if *with_table {
                let (page, rest) = std::mem::take(&mut free).split_at_mut(BLOCK as usize);
                free = rest;
                parts.push(page);
            }
            let (part, rest) = std::mem::take(&mut left).split_at_mut(piece.bytes as usize);
            left = rest;
            parts.push(part);
        }
        if !self.file.read_direct(&mut parts, at)? {
            return Ok(None);
        }
        let mut page = pages.as_ref().chunks_exact(BLOCK as usize);
        let mut from = 0;
        for (piece, with_table) in &found {
            if *with_table && let Some(page) = page.next() {
                let group = piece.offset / GROUP_BYTES;
                let _known_already =
                    self.groups[group as usize].set(self.table(group, &page[TABLE_AT as usize..]));
            }
            let to = from + piece.bytes as usize;
            self.verify(piece.offset / BLOCK, &data.as_ref()[from..to], Wait::ForDisk, Keep::Nothing)?;
            from = to;
        }
        Ok(Some(Bytes::from_owner(data)))
    }

    /// Compares blocks of one group, from `first` on, with their checksums.
    fn verify(&self, first: u64, bytes: &[u8], wait: Wait, keep: Keep) -> Result<(), ReadError> {
        let checksums = self.checksums(first / GROUP_BLOCKS, wait, keep)?;
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK as usize)) {
            let expected = match bytes.len() as u64 {
                BLOCK => checksums[(block % GROUP_BLOCKS) as usize],
                _ => self.terms.tail_crc,
            };
            if expected != crate::checksum(bytes) && !plant::is(Plant::BlockUnverified) {
                return Err(ReadError::Corrupt(block));
            }
        }
        Ok(())
    }

    fn checksums(&self, group: u64, wait: Wait, keep: Keep) -> Result<&Group, ReadError> {
        let slot = &self.groups[group as usize];
        if let Some(known) = slot.get() {
            return Ok(known);
        }
        let mut table = Vec::new();
        self.file.read_into(
            &mut table,
            self.blocks(group) * ENTRY_BYTES,
            entry_at(group * GROUP_BLOCKS),
            wait,
            keep,
        )?;
        Ok(slot.get_or_init(|| self.table(group, &table)))
    }

    /// Whole blocks of a group. A table whose blocks don't all exist ends earlier, with the file.
    fn blocks(&self, group: u64) -> usize {
        (self.terms.length / BLOCK).saturating_sub(group * GROUP_BLOCKS).min(GROUP_BLOCKS) as usize
    }

    /// The checksums in a table's bytes.
    fn table(&self, group: u64, bytes: &[u8]) -> Group {
        let mut checksums = Box::new([0; GROUP_BLOCKS as usize]);
        let entries = bytes.chunks_exact(ENTRY_BYTES).take(self.blocks(group));
        for (checksum, entry) in checksums.iter_mut().zip(entries) {
            *checksum = entry_crc(entry).unwrap_or_default();
        }
        checksums
    }

    /// Whether [`Keep::Nothing`] has an effect, as far as known.
    pub fn reads_uncached(&self) -> bool {
        self.file.reads_uncached()
    }

    /// Has the kernel begin to read a range into memory. May wait for the disk's queue.
    pub fn will_need(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.terms.length);
        if offset >= end {
            return;
        }
        // A group's checksums lie in the page before it.
        let page = if (offset / BLOCK).is_multiple_of(GROUP_BLOCKS) { BLOCK } else { 0 };
        let from = block_at(offset / BLOCK) - page;
        // An advice: the read itself will tell what is wrong.
        let _ = self.file.will_need(from, file_bytes(end).saturating_sub(from));
    }
}
