//! Reading the log at start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mooseng_ports::disk::{Disk, DiskFile, OpenMode, read_all};

use crate::frame;
use crate::record::Record;
use crate::wal::{HEADER_BYTES, View, WalError, failed, segment_path};

const MAGIC: &[u8; 8] = b"MNGWAL\0\0";
const FORMAT: u32 = 1;

/// The header of a segment.
pub(crate) fn header(segment: u64) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..20].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whether a segment's header is whole; an error if its format is newer than ours.
fn check_header(bytes: &[u8], segment: u64, path: &Path) -> Result<bool, WalError> {
    if bytes.len() < HEADER_BYTES as usize || &bytes[..8] != MAGIC {
        return Ok(false);
    }
    let format = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if format > FORMAT {
        return Err(WalError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT });
    }
    Ok(bytes[..24] == header(segment)[..24])
}

/// What was found.
pub(crate) struct Recovered {
    pub view: View,
    pub sequence: u64,
    /// Segments that stay, oldest first, with their files.
    pub segments: Vec<(u64, Arc<dyn DiskFile>)>,
    /// Where the newest one goes on.
    pub end: u64,
}

fn numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, WalError> {
    let names = disk.list(dir).map_err(failed("listing", dir))?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|n| u64::from_str_radix(n.strip_suffix(".wal")?, 16).ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads every segment. A torn frame at the very end is cut off; damage anywhere else is an error that names the place.
pub(crate) fn recover(disk: &dyn Disk, dir: &Path, cache_bytes: usize) -> Result<Recovered, WalError> {
    let numbers = numbers(disk, dir)?;
    let mut found = Recovered { view: View::new(cache_bytes), sequence: 0, segments: Vec::new(), end: 0 };
    for (i, number) in numbers.iter().enumerate() {
        let last = i + 1 == numbers.len();
        let path = segment_path(dir, *number);
        let corrupt = |offset: u64| WalError::Corrupt { path: path.clone(), offset };
        let file = disk.open(&path, OpenMode::Existing).map_err(failed("opening", &path))?;
        let bytes = Bytes::from(read_all(&*file).map_err(failed("reading", &path))?);
        if !check_header(&bytes, *number, &path)? {
            // A segment is used only after its header and its checkpoint were flushed.
            if last && !frame::any_behind(&bytes, *number, found.sequence) {
                disk.remove(&path).map_err(failed("removing", &path))?;
                continue;
            }
            return Err(corrupt(0));
        }
        let mut offset = HEADER_BYTES;
        while let Some(frame) = frame::decode(&bytes.slice(offset as usize..), *number) {
            if found.sequence != 0 && frame.sequence != found.sequence + 1 {
                return Err(corrupt(offset));
            }
            let records = frame::records(frame.body).map_err(|_| corrupt(offset))?;
            found.view.take_frame(records, *number, offset);
            found.sequence = frame.sequence;
            offset += frame.length as u64;
        }
        let rest = bytes.slice((offset as usize).min(bytes.len())..);
        if frame::any_behind(&rest, *number, found.sequence) {
            return Err(corrupt(offset));
        }
        if last {
            if rest.iter().any(|b| *b != 0) {
                // The torn frame's bytes go, so that no later scan takes them for a frame.
                let length = bytes.len() as u64;
                file.set_len(offset).map_err(failed("cutting", &path))?;
                file.allocate(length).map_err(failed("extending", &path))?;
            }
            make_durable(&*file, &bytes[..offset as usize], &path)?;
        }
        found.end = offset;
        found.segments.push((*number, file));
    }
    // A segment whose successor exists but wasn't usable goes on where it ended.
    found.view.all_flushed();
    Ok(found)
}

/// What was read may be in the kernel's memory only: the process before this one was killed before its flush, or was told that it failed, which
/// leaves pages that no later flush writes. From now on this member acts as if it were there for good, so it is written again.
fn make_durable(file: &dyn DiskFile, bytes: &[u8], path: &Path) -> Result<(), WalError> {
    match file.write_at(bytes, 0).map_err(failed("writing", path)) {
        // A disk that has no room even for what is there: a flush then does what can be done.
        Err(error) if !error.is_full() => return Err(error),
        _ => {}
    }
    file.sync_data().map_err(failed("flushing", path))
}

/// The state that a new segment starts from, so that older ones can go.
pub(crate) fn checkpoint(view: &View) -> Vec<Record> {
    let mut records = Vec::new();
    records.extend(view.vote.map(Record::Vote));
    records.extend(view.purged.map(Record::Purge));
    records.extend(view.committed.map(Record::Committed));
    records.extend(view.lacking.map(Record::Lacking));
    records
}

/// A directory of its own for the log.
pub(crate) fn prepare(disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
    disk.create_dir_all(dir).map_err(failed("creating", dir))
}

/// A path for messages.
pub(crate) fn owned(path: &Path) -> PathBuf {
    path.to_owned()
}
