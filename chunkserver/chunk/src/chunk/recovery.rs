//! What a chunk's file says after a restart.

use std::io;

use mooseng_ports::disk::DiskFile;
use mooseng_wire::ChunkId;

use super::verify::{View, Wrong, read_blocks};
use crate::layout::{BLOCK, FORMAT, GROUP_BLOCKS, Header, RECORD_AT, Record, file_bytes};

/// How a file was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// Usable, as the record says; the next record goes to the slot. Unless it is settled, its name may not be flushed.
    Whole { record: Record, slot: usize, settled: bool },
    /// Nothing of it was ever flushed, so nothing of it was ever answered.
    Uncommitted,
    /// Not usable; kept for whoever wants to look at it.
    Damaged(String),
}

/// Reads a chunk's records, cuts a torn tail, and makes the cut durable. Reads the bytes between the two records only, a group at a time.
pub(crate) fn recover(file: &dyn DiskFile, chunk: ChunkId) -> io::Result<Recovered> {
    let mut page = vec![0; BLOCK as usize];
    file.read_at(&mut page, 0)?;
    let slots = RECORD_AT.map(|at| &page[at as usize..(at + 512) as usize]);
    let records = slots.map(|bytes| Record::decode(bytes, chunk));
    if let Some(header) = Header::decode(&page)
        && (header.format > FORMAT || header.chunk != chunk)
    {
        return Ok(Recovered::Damaged(if header.chunk == chunk {
            format!(
                "its file has format {}, this build reads up to {FORMAT}: upgrade the chunkserver",
                header.format
            )
        } else {
            format!("its file says that it is chunk {}", header.chunk)
        }));
    }
    let newest = match records {
        [None, None] if slots.iter().all(|s| s.iter().all(|b| *b == 0)) => return Ok(Recovered::Uncommitted),
        [None, None] => return Ok(Recovered::Damaged("neither of its two commit records is valid".into())),
        [Some(a), Some(b)] => usize::from(b.sequence >= a.sequence),
        [a, _] => usize::from(a.is_none()),
    };
    let (Some(record), older) = (records[newest], records[1 - newest]) else {
        return Ok(Recovered::Damaged("its newest commit record is gone".into()));
    };
    // After a crash of the process alone, what we read may lie in the kernel's memory only: it is flushed before it counts. Two
    // equal seals need none, for the second is written once the first is durable.
    let settled = record.sealed && older.is_some_and(|o| o.sealed);
    if !settled {
        file.sync_data()?;
    }
    if record.sealed { sealed(file, record, newest, settled) } else { torn(file, record, older, newest) }
}

fn sealed(file: &dyn DiskFile, record: Record, newest: usize, settled: bool) -> io::Result<Recovered> {
    let (is, should_be) = (file.len()?, file_bytes(record.length));
    if record.length > 0 && is < should_be {
        return Ok(Recovered::Damaged(format!(
            "it is sealed at {} bytes, but its file has {is} bytes instead of {should_be}",
            record.length
        )));
    }
    if is > should_be || !settled {
        // The crash came between the seal and the cut.
        file.write_at(&record.encode(), RECORD_AT[1 - newest])?;
        file.set_len(should_be)?;
        file.sync_data()?;
    }
    Ok(Recovered::Whole { record, slot: 1 - newest, settled })
}

fn torn(file: &dyn DiskFile, record: Record, older: Option<Record>, newest: usize) -> io::Result<Recovered> {
    let (floor, floor_crc) =
        older.filter(|o| o.length <= record.length).map_or((0, 0), |o| (o.length, o.tail_crc));
    let view = View { length: record.length, tail_crc: record.tail_crc };
    let Some(bad) = first_bad_block(file, floor / BLOCK * BLOCK, view)? else {
        return Ok(Recovered::Whole { record, slot: 1 - newest, settled: false });
    };
    let cut = bad * BLOCK;
    let (length, tail_crc) = if cut > floor { (cut, 0) } else { (floor, floor_crc) };
    tracing::warn!(
        chunk = record.chunk.0,
        from = record.length,
        to = length,
        "cut a torn tail, which was never acknowledged"
    );
    let mended = Record { sequence: record.sequence + 1, length, tail_crc, ..record };
    // Over the bogus record where the older one is good: the good one stays until this one is durable.
    let slot = if older.is_some() { newest } else { 1 - newest };
    file.write_at(&mended.encode(), RECORD_AT[slot])?;
    file.sync_data()?;
    Ok(Recovered::Whole { record: mended, slot: 1 - slot, settled: false })
}

fn first_bad_block(file: &dyn DiskFile, from: u64, view: View) -> io::Result<Option<u64>> {
    let mut at = from;
    while at < view.length {
        let bytes = (GROUP_BLOCKS * BLOCK).min(view.length - at);
        match read_blocks(file, at, bytes, view) {
            Ok(_) => at += bytes,
            Err(Wrong::Block(block)) => return Ok(Some(block)),
            Err(Wrong::Io(e)) => return Err(e),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mooseng_ports::disk::sim::SimDisk;
    use mooseng_ports::disk::{Disk, OpenMode};
    use mooseng_wire::Epoch;

    use super::*;
    use crate::layout::{RECORD_BYTES, block_at};

    #[test]
    fn a_cut_leaves_the_good_record_alone() {
        let file = SimDisk::default().open(Path::new("/f"), OpenMode::Create).unwrap();
        let chunk = ChunkId(1);
        let record = |sequence, length, tail_crc| Record {
            sequence,
            chunk,
            length,
            epoch: Epoch(1),
            tail_crc,
            sealed: false,
        };
        file.write_at(&[7; 100], block_at(0)).unwrap();
        let good = record(1, 100, crate::checksum(&[7; 100]));
        for slot in 0..2 {
            file.write_at(&good.encode(), RECORD_AT[slot]).unwrap();
            // The bytes of this one never arrived.
            file.write_at(&record(2, 200, 9).encode(), RECORD_AT[1 - slot]).unwrap();
            let mended = Record { sequence: 3, ..good };
            assert_eq!(
                recover(&*file, chunk).unwrap(),
                Recovered::Whole { record: mended, slot, settled: false }
            );
            let mut at = [[0; RECORD_BYTES]; 2];
            for (n, bytes) in at.iter_mut().enumerate() {
                file.read_at(bytes, RECORD_AT[n]).unwrap();
            }
            assert_eq!(at[slot], good.encode(), "the good record stays until the next flush");
            assert_eq!(at[1 - slot], mended.encode());
        }
    }
}
