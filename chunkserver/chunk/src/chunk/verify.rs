//! Reading with verification: no byte leaves a chunk's file whose block doesn't match its checksum.

use std::io;

use bytes::Bytes;
use mooseng_ports::disk::DiskFile;
use mooseng_ports::plant::{self, Plant};

use crate::layout::{BLOCK, ENTRY_BYTES, GROUP_BLOCKS, entry_at, entry_crc, pieces};

/// What a reader knows of the chunk at one moment. Bytes below `length` never change after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) length: u64,
    pub(crate) tail_crc: u32,
}

/// Why bytes can't be given out.
#[derive(Debug)]
pub(crate) enum Wrong {
    Io(io::Error),
    /// That block doesn't match.
    Block(u64),
}

/// Reads `bytes` at `offset`, which must lie below the view's length, and verifies each block they touch.
pub(crate) fn read_blocks(file: &dyn DiskFile, offset: u64, bytes: u64, view: View) -> Result<Bytes, Wrong> {
    if bytes == 0 {
        return Ok(Bytes::new());
    }
    let from = offset / BLOCK * BLOCK;
    let to = (offset + bytes).div_ceil(BLOCK).saturating_mul(BLOCK).min(view.length);
    let mut buffer = vec![0; (to - from) as usize];
    for piece in pieces(from, to - from) {
        let at = (piece.offset - from) as usize;
        let part = &mut buffer[at..at + piece.bytes as usize];
        // Where the file ends early the zeros stay, and the checksums decide: so the first bad block is found, not the first missing one.
        file.read_at(part, piece.at).map_err(Wrong::Io)?;
    }
    verify(file, from / BLOCK, &buffer, view)?;
    let start = (offset - from) as usize;
    Ok(Bytes::from(buffer).slice(start..start + bytes as usize))
}

/// Compares blocks, from `first` on, with their checksums.
fn verify(file: &dyn DiskFile, first: u64, buffer: &[u8], view: View) -> Result<(), Wrong> {
    let mut table = [0; GROUP_BLOCKS as usize * ENTRY_BYTES];
    let mut table_from = 0;
    for (n, bytes) in buffer.chunks(BLOCK as usize).enumerate() {
        let block = first + n as u64;
        let in_group = (block % GROUP_BLOCKS) as usize;
        if n == 0 || in_group == 0 {
            let last = (first + buffer.len().div_ceil(BLOCK as usize) as u64 - 1)
                .min(block - block % GROUP_BLOCKS + GROUP_BLOCKS - 1);
            let entries = (last - block + 1) as usize;
            let read =
                file.read_at(&mut table[..entries * ENTRY_BYTES], entry_at(block)).map_err(Wrong::Io)?;
            table[read..].fill(0);
            table_from = in_group;
        }
        let expected = if block * BLOCK + BLOCK <= view.length {
            entry_crc(&table[(in_group - table_from) * ENTRY_BYTES..])
        } else {
            Some(view.tail_crc)
        };
        if expected != Some(crate::checksum(bytes)) && !plant::is(Plant::BlockUnverified) {
            return Err(Wrong::Block(block));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mooseng_ports::disk::sim::SimDisk;
    use mooseng_ports::disk::{Disk, OpenMode};

    use super::*;
    use crate::layout::{block_at, entry};

    /// Found by the crash test: a torn append's file ended in its last block, and its first block was bad. Recovery was told of the missing block
    /// and cut behind the bad one.
    #[test]
    fn the_first_bad_block_is_named_even_where_a_later_one_is_missing() {
        let file = SimDisk::default().open(Path::new("/f"), OpenMode::Create).unwrap();
        let block = vec![7; BLOCK as usize];
        file.write_at(&block, block_at(0)).unwrap();
        file.write_at(&entry(crate::checksum(&block)), entry_at(0)).unwrap();
        let view = View { length: BLOCK + 10, tail_crc: 1 };
        assert!(matches!(read_blocks(&*file, 0, BLOCK + 10, view), Err(Wrong::Block(1))));
        file.write_at(&[8], block_at(0) + 9).unwrap();
        assert!(matches!(read_blocks(&*file, 0, BLOCK + 10, view), Err(Wrong::Block(0))));
    }
}
