//! fjall's journal after a power loss.
//!
//! fjall writes batches to its journal without a flush, and at the next start believes it up to its end: a batch that begins well and whose
//! inner part didn't reach the disk - disks and kernels write in any order - is an error there, or trips an assertion, and the store
//! can't be opened. All such batches are behind the last flush, and come again from the Raft log. So the journal is cut behind its last
//! whole batch before fjall reads it; what was flushed is whole, and whoever replays finds by the position what is missing.
//!
//! What is kept is written anew: after a flush that failed a kernel calls pages clean that never reached the disk, and shows them to whoever reads. A flush of
//! the next process would answer well without them, the log behind them would be let go of, and the next power loss would take them (FAILURES 5).
//!
//! ```text
//!  batch = 1 | items u32 | sequence u64 | item.. | 3 | xxh3 of the items u64 | "FJL" 3        integers little-endian
//!  item  = 2 | type u8 | compression u8 | keyspace u64 | key bytes u16 | value bytes u32 | stored bytes u32 | key | value
//!        | 4 | keyspace u64
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";
/// Bytes of an item before its key, with its tag.
const ITEM_HEADER_BYTES: usize = 21;
/// Bytes of a cleared keyspace, with its tag.
const CLEAR_BYTES: usize = 9;

/// The journal that is written to: the newest. Older ones were flushed before.
fn newest(database: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(database)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|(newest, _)| *newest < number)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Cuts the newest journal of a database behind its last whole batch, if anything but zeros follows, and has what is before that on the disk. Answers how many
/// bytes are left where something was cut.
pub(super) fn make_durable(database: &Path) -> io::Result<Option<u64>> {
    let Some(path) = newest(database)? else { return Ok(None) };
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (whole, tail) = bytes.split_at(end_of_batches(&bytes));
    let is_torn = tail.iter().any(|byte| *byte != 0);
    if is_torn {
        keep_tail(database, tail)?;
        file.set_len(whole.len() as u64)?;
    }
    // The same bytes in the same places: a power loss in the middle takes nothing that was there.
    file.write_all_at(whole, 0)?;
    file.sync_all()?;
    Ok(is_torn.then_some(whole.len() as u64))
}

/// Tails that are kept beside a database.
const TAILS_MAX: u32 = 4;

/// Keeps what is cut beside the database: where it isn't torn but damaged, whole batches may follow, which the log may not have any more.
fn keep_tail(database: &Path, tail: &[u8]) -> io::Result<()> {
    let name = |n: u32| database.with_extension(format!("cut-{n}"));
    // The oldest ones stay: what was cut first is what a damage took.
    let Some(path) = (0..TAILS_MAX).map(name).find(|path| !path.exists()) else { return Ok(()) };
    let kept = File::create(&path).and_then(|mut file| {
        file.write_all(tail)?;
        file.sync_all()
    });
    match kept {
        // A master with a full disk must start all the same; there may not have been room for the name even.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        kept => kept,
    }
}

/// Where the whole batches at the front of a journal end.
pub fn end_of_batches(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = batch(&bytes[end..]) {
        end += length;
    }
    end
}

/// The length of the batch at the front, if it is whole.
fn batch(bytes: &[u8]) -> Option<usize> {
    let mut left = bytes;
    (left.try_get_u8().ok()? == START).then_some(())?;
    let count = left.try_get_u32_le().ok()?;
    left.try_get_u64_le().ok()?;
    let items = left;
    for _ in 0..count {
        let length = item(left)?;
        left = left.get(length..)?;
    }
    let items = &items[..items.len() - left.len()];
    (left.try_get_u8().ok()? == END).then_some(())?;
    let checksum = left.try_get_u64_le().ok()?;
    left = left.strip_prefix(TRAILER)?;
    (checksum == xxh3_64(items)).then_some(bytes.len() - left.len())
}

/// The length of the item at the front. What it says besides is the checksum's business.
fn item(bytes: &[u8]) -> Option<usize> {
    match *bytes.first()? {
        ITEM => {
            let mut sizes = bytes.get(11..ITEM_HEADER_BYTES)?;
            let key = usize::from(sizes.get_u16_le());
            let (_value, stored) = (sizes.get_u32_le(), sizes.get_u32_le() as usize);
            Some(ITEM_HEADER_BYTES + key + stored)
        }
        CLEAR => Some(CLEAR_BYTES),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, SystemTime};

    /// A kernel may show what a failed flush has left in memory only, and call it clean: it counts once it was written again.
    #[test]
    fn what_a_start_believes_is_written_again_first() {
        let directory = tempfile::tempdir().unwrap();
        let base = FjallBase::open(directory.path()).unwrap();
        write(&base, 1);
        base.flush().unwrap();
        drop(base);
        let journal = newest(&directory.path().join("gen-00000001")).unwrap().unwrap();
        let before = std::fs::read(&journal).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3_600);
        File::options().write(true).open(&journal).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(make_durable(&directory.path().join("gen-00000001")).unwrap(), None);
        assert!(
            std::fs::metadata(&journal).unwrap().modified().unwrap() > long_ago + Duration::from_secs(60)
        );
        assert_eq!(std::fs::read(&journal).unwrap(), before);
    }

    #[test]
    fn what_is_cut_is_kept_beside_the_database() {
        let directory = tempfile::tempdir().unwrap();
        let base = FjallBase::open(directory.path()).unwrap();
        write(&base, 1);
        base.flush().unwrap();
        drop(base);
        let database = directory.path().join("gen-00000001");
        let journal = newest(&database).unwrap().unwrap();
        let end = end_of_batches(&std::fs::read(&journal).unwrap());
        let file = OpenOptions::new().write(true).open(&journal).unwrap();
        file.write_all_at(b"torn", end as u64).unwrap();
        assert_eq!(FjallBase::open(directory.path()).unwrap().position().position.index, 1);
        let kept = std::fs::read(directory.path().join("gen-00000001.cut-0")).unwrap();
        assert!(kept.starts_with(b"torn"));
    }

    use bytes::Bytes;
    use mooseng_store::mvcc::Change;

    use super::*;
    use crate::Position;
    use crate::base::{Base, BasePosition, FjallBase};

    const SECTOR: u64 = 512;

    fn at(index: u64) -> BasePosition {
        BasePosition { position: Position { index, term: 1, node: 1, meta: Bytes::new() }, version: index }
    }

    fn write(base: &FjallBase, index: u64) {
        // One that is compressed, and one that isn't.
        let large = Bytes::from(vec![index as u8; 9_000]);
        let small: Bytes = (0..700).map(|n| (n * index) as u8).collect::<Vec<_>>().into();
        let key = |name: &str| Bytes::from(format!("{name}{index}"));
        let changes = [Change::Set(key("l"), large), Change::Set(key("s"), small), Change::Clear(key("x"))];
        base.write(&changes, &at(index)).unwrap();
    }

    /// Found by the campaign of faults: the first master whose machine lost its power in such a moment couldn't be started any more.
    #[test]
    fn a_store_opens_whichever_sectors_of_its_unflushed_journal_are_lost() {
        let sectors_of = |flushed: u64, len: u64| flushed.div_ceil(SECTOR)..len / SECTOR;
        let mut lost = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let base = FjallBase::open(directory.path()).unwrap();
            write(&base, 1);
            base.flush().unwrap();
            let journal = newest(&directory.path().join("gen-00000001")).unwrap().unwrap();
            let end = || end_of_batches(&std::fs::read(&journal).unwrap()) as u64;
            let flushed = end();
            assert!(flushed > 0, "the journal's format is another one");
            write(&base, 2);
            write(&base, 3);
            base.current().database.persist(fjall::PersistMode::Buffer).unwrap();
            let written = end();
            assert!(written > flushed + 1_400, "{flushed} {written}");
            // As a killed process leaves it, then without one sector.
            let copy = tempfile::tempdir().unwrap();
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .arg(format!("{}/.", directory.path().display()))
                .arg(copy.path())
                .status();
            assert!(copied.unwrap().success());
            drop(base);
            let Some(sector) = sectors_of(flushed, written).nth(lost) else { break };
            lost += 1;
            let torn = copy.path().join("gen-00000001").join(journal.file_name().unwrap());
            let file = OpenOptions::new().write(true).open(&torn).unwrap();
            file.write_all_at(&[0; SECTOR as usize], sector * SECTOR).unwrap();
            let again =
                FjallBase::open(copy.path()).unwrap_or_else(|e| panic!("without sector {sector}: {e}"));
            let index = again.position().position.index;
            assert!((1..=3).contains(&index), "{index}");
            for written in 1..=index {
                assert!(again.get(format!("l{written}").as_bytes()).unwrap().is_some(), "sector {sector}");
            }
            // It goes on.
            write(&again, index + 1);
            again.flush().unwrap();
            drop(again);
            assert_eq!(FjallBase::open(copy.path()).unwrap().position(), at(index + 1));
        }
        assert!(lost > 2, "{lost} sectors were lost, one at a time");
    }
}
