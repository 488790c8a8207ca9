//! An append's bytes and checksums on their way to the file.

use std::io;

use mooseng_ports::disk::DiskFile;
use mooseng_ports::disk::direct::Aligned;

use crate::layout::{BLOCK, ENTRY_BYTES, GROUP_BLOCKS, Piece, TABLE_AT, entry, entry_at, pieces};
use crate::sums::Sums;

/// Appends of so many bytes are of a long stream: who wrote it has it in memory already, and a page for each block of each copy costs more than all else
/// that is done with them (decision 0023).
const UNCACHED_BYTES: usize = 256 << 10;

/// The table entries that an append at `offset` completes, beginning with that of the block it begins in, and the checksum of the tail it leaves.
pub(super) fn entries(tail_crc: u32, offset: u64, bytes: &[u8], sums: &Sums) -> (Vec<u32>, u32) {
    let room = (BLOCK - offset % BLOCK) as usize;
    if room == BLOCK as usize {
        return (sums.blocks.clone(), sums.tail);
    }
    if bytes.len() < room {
        return (Vec::new(), crc32c::crc32c_append(tail_crc, bytes));
    }
    let (first, rest) = bytes.split_at(room);
    let rest = Sums::of(rest);
    let mut entries = vec![crc32c::crc32c_append(tail_crc, first)];
    entries.extend(rest.blocks);
    (entries, rest.tail)
}

pub(super) fn write_pieces(
    file: &dyn DiskFile,
    offset: u64,
    bytes: &[u8],
    entries: &[u32],
) -> io::Result<()> {
    if bytes.len() >= UNCACHED_BYTES {
        return write_run(file, offset, bytes, entries);
    }
    write_one_by_one(file, offset, bytes, entries)
}

fn write_one_by_one(file: &dyn DiskFile, offset: u64, bytes: &[u8], entries: &[u32]) -> io::Result<()> {
    for piece in pieces(offset, bytes.len() as u64) {
        let from = (piece.offset - offset) as usize;
        file.write_at(&bytes[from..from + piece.bytes as usize], piece.at)?;
    }
    let mut block = offset / BLOCK;
    let mut left = entries;
    while !left.is_empty() {
        let here = left.len().min((GROUP_BLOCKS - block % GROUP_BLOCKS) as usize);
        file.write_at(&table(&left[..here]), entry_at(block))?;
        block += here as u64;
        left = &left[here..];
    }
    Ok(())
}

/// The same of many bytes. The table's page of a group that they fill lies before its blocks, and behind those of the group before: all that is one write.
fn write_run(file: &dyn DiskFile, offset: u64, bytes: &[u8], entries: &[u32]) -> io::Result<()> {
    let mut groups = Vec::new();
    let mut left = entries;
    for piece in pieces(offset, bytes.len() as u64) {
        let from = (piece.offset - offset) as usize;
        let part = &bytes[from..from + piece.bytes as usize];
        let first = piece.offset / BLOCK;
        let ends = ((piece.offset + piece.bytes) / BLOCK - first) as usize;
        let (here, rest) = left.split_at(ends.min(left.len()));
        left = rest;
        groups.push((first, piece, part, here));
    }
    let fills = |(first, piece, ..): &(u64, Piece, &[u8], &[u32])| {
        *first > 0 && piece.offset.is_multiple_of(GROUP_BLOCKS * BLOCK) && piece.bytes == GROUP_BLOCKS * BLOCK
    };
    // Laid out as direct I/O takes them.
    let mut pages = Aligned::of(groups.len() * BLOCK as usize);
    for (page, group) in pages.as_mut().chunks_exact_mut(BLOCK as usize).zip(&groups) {
        page.fill(0);
        if fills(group) {
            let table = table(group.3);
            page[TABLE_AT as usize..][..table.len()].copy_from_slice(&table);
        }
    }
    let pages = groups.iter().zip(pages.as_ref().chunks_exact(BLOCK as usize));
    let pages: Vec<Option<&[u8]>> = pages.map(|(group, page)| fills(group).then_some(page)).collect();
    // Runs that lie in one piece in the file: where each begins, and what it is of.
    let mut runs: Vec<(u64, u64, Vec<&[u8]>)> = Vec::new();
    for (group, page) in groups.iter().zip(&pages) {
        let (_, piece, part, _) = group;
        let at = piece.at - page.map_or(0, <[u8]>::len) as u64;
        let end = piece.at + piece.bytes;
        let here = page.iter().copied().chain([*part]);
        match runs.last_mut() {
            Some((_, to, parts)) if *to == at => {
                *to = end;
                parts.extend(here);
            }
            _ => runs.push((at, end, here.collect())),
        }
    }
    for (at, _, parts) in runs {
        file.write_uncached_at(&parts, at)?;
    }
    for (group, page) in groups.iter().zip(&pages) {
        let (first, _, _, entries) = group;
        if page.is_none() && !entries.is_empty() {
            file.write_at(&table(entries), entry_at(*first))?;
        }
    }
    Ok(())
}

fn table(entries: &[u32]) -> Vec<u8> {
    let mut table = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    entries.iter().for_each(|crc| table.extend_from_slice(&entry(*crc)));
    table
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mooseng_ports::disk::sim::SimDisk;
    use mooseng_ports::disk::{Disk, OpenMode, read_all};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Both ways leave the same file behind, however a chunk is cut into appends.
    #[test]
    fn runs_write_what_single_pieces_do() {
        for seed in 0..40 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let disk = SimDisk::default();
            let open = |name: &str| disk.open(Path::new(name), OpenMode::Create).unwrap();
            let (runs, pieces) = (open("/runs"), open("/pieces"));
            let (mut offset, mut crc) = (0, 0);
            for _ in 0..rng.random_range(1..8) {
                let blocks = rng.random_range(0..200) * BLOCK as usize;
                let odd = if rng.random_bool(0.5) { rng.random_range(1..5000) } else { 0 };
                let mut bytes = vec![0; blocks + odd];
                rng.fill(&mut bytes[..]);
                let (entries, tail_crc) = entries(crc, offset, &bytes, &Sums::of(&bytes));
                write_run(&*runs, offset, &bytes, &entries).unwrap();
                write_one_by_one(&*pieces, offset, &bytes, &entries).unwrap();
                offset += bytes.len() as u64;
                crc = tail_crc;
            }
            let (runs, mut pieces) = (read_all(&*runs).unwrap(), read_all(&*pieces).unwrap());
            // The page of a table is written whole by one of them; what lies behind the entries is zero.
            pieces.resize(pieces.len().max(runs.len()), 0);
            assert!(runs.len() <= pieces.len() && runs == pieces[..runs.len()], "seed {seed}");
            assert!(pieces[runs.len()..].iter().all(|byte| *byte == 0), "seed {seed}");
        }
    }
}
