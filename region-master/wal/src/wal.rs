//! The log itself: appends, flushes, segments. What readers see of it is in `view`, how they read in `reading`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use mooseng_ports::disk::{Disk, DiskFile, OpenMode};
use mooseng_ports::plant::{self, Plant};

use crate::frame::{self, End};
use crate::record::{Entry, LogId, Record, Vote};
use crate::recovery;

mod error;
mod reading;
mod view;

pub use error::WalError;
pub(crate) use error::failed;
use error::is_full;
pub(crate) use view::View;

pub(crate) const HEADER_BYTES: u64 = 64;
/// Bytes at a segment's end that only votes and markers may use, so that a full disk doesn't stop an election.
const RESERVE_BYTES: u64 = 64 << 10;

/// Zeros that are written behind a frame where nothing was written before. A filesystem keeps account of which allocated bytes were written:
/// to flush the first write of some takes it a commit of its own journal as well, and twice as long as to flush what overwrites them
/// (docs/decisions/0022-zeros-ahead.md).
const ZEROS_AHEAD: u64 = 256 << 10;

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of recent entries that are kept in memory for replication.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, cache_bytes: 16 << 20 }
    }
}

pub(crate) fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}.wal"))
}

/// What has become of entries that were appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// They are written.
    Written,
    /// They are flushed, with all before them.
    Flushed,
}

/// When a frame is flushed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    Now,
    /// By the next [`Wal::flush`].
    Later,
}

struct Writer {
    segments: Vec<(u64, Arc<dyn DiskFile>)>,
    end: u64,
    /// Up to here the newest segment was written, by frames and zeros.
    zeroed: u64,
    /// The newest frame's.
    sequence: u64,
    /// The newest flushed frame's.
    flushed: u64,
    poisoned: bool,
    /// Rides along with the next frame: losing it costs only a slower start.
    committed: Option<LogId>,
}

/// The log. Calls block; appends exclude each other, reads wait for none of them.
///
/// Locks are taken in the order in which they stand here.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    /// Held during each flush of a segment: the kernel tells of a failed write-back only once, to whoever flushes next, and nobody else may
    /// then take what was written for flushed.
    flushing: Mutex<()>,
    writer: Mutex<Writer>,
    view: Mutex<View>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wal {
    /// Opens the log in `dir`, making it where there is none.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Self, WalError> {
        recovery::prepare(&*disk, dir)?;
        let found = recovery::recover(&*disk, dir, options.cache_bytes)?;
        let writer = Writer {
            segments: found.segments,
            end: found.end,
            zeroed: found.end,
            sequence: found.sequence,
            flushed: found.sequence,
            poisoned: false,
            committed: None,
        };
        let wal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            flushing: Mutex::default(),
            writer: Mutex::new(writer),
            view: Mutex::new(found.view),
        };
        {
            let mut writer = lock(&wal.writer);
            if writer.segments.is_empty() {
                wal.begin_segment(&mut writer, 1)?;
            } else if writer.end == HEADER_BYTES {
                // Its checkpoint was torn: without one, what only older segments say (the vote) would go with them.
                let records = recovery::checkpoint(&lock(&wal.view));
                let bytes = wal.frame(&writer, &records);
                wal.put_frame(&mut writer, &bytes, records, Flush::Now)?;
            }
        }
        Ok(wal)
    }

    /// The vote.
    pub fn vote(&self) -> Option<Vote> {
        lock(&self.view).vote
    }
    /// The last entry that was purged.
    pub fn purged(&self) -> Option<LogId> {
        lock(&self.view).purged
    }
    /// The last entry known to be committed.
    pub fn committed(&self) -> Option<LogId> {
        lock(&self.view).committed
    }
    /// The last entry, or the last purged one where none is left.
    pub fn last(&self) -> Option<LogId> {
        lock(&self.view).last()
    }

    /// Appends entries: when it returns, they are flushed.
    pub fn append(&self, entries: Vec<Entry>) -> Result<(), WalError> {
        if let (Some(first), Some(last)) = (entries.first(), self.last()) {
            assert_eq!(first.id.index, last.index + 1, "log entries are appended without holes");
        }
        self.write(entries.into_iter().map(Record::Entry).collect())
    }
    /// Appends entries that may be read at once, and that are flushed by the next [`flush`](Self::flush) only, unless it answers that they
    /// are already. Whoever acknowledges them, or acts as if they were there for good, must have looked at [`flushed`](Self::flushed).
    pub fn append_early(&self, entries: Vec<Entry>) -> Result<Appended, WalError> {
        let first = entries.first().map(|entry| entry.id.index);
        let records: Vec<Record> = entries.into_iter().map(Record::Entry).collect();
        {
            let mut writer = lock(&self.writer);
            if let (Some(first), Some(last)) = (first, self.last()) {
                assert_eq!(first, last.index + 1, "log entries are appended without holes");
            }
            // A new segment is flushed as it is made, together with the old one.
            if let Some(bytes) = self.fitting(&writer, &records)? {
                self.put_frame(&mut writer, &bytes, records, Flush::Later)?;
                return Ok(Appended::Written);
            }
        }
        self.write(records).map(|()| Appended::Flushed)
    }
    /// Flushes all entries that were appended before the call.
    pub fn flush(&self) -> Result<(), WalError> {
        let _flushing = lock(&self.flushing);
        let (segment, file, sequence, last) = {
            let writer = lock(&self.writer);
            if writer.poisoned {
                return Err(WalError::Poisoned { path: self.dir.clone() });
            }
            if writer.flushed == writer.sequence {
                return Ok(());
            }
            let (segment, file) = self.newest(&writer).clone();
            (segment, file, writer.sequence, self.last())
        };
        if !plant::is(Plant::AppendUnflushed)
            && let Err(error) = file.sync_data()
        {
            lock(&self.writer).poisoned = true;
            return Err(failed("flushing", &segment_path(&self.dir, segment))(error));
        }
        let mut writer = lock(&self.writer);
        writer.flushed = writer.flushed.max(sequence);
        lock(&self.view).flushed = last;
        Ok(())
    }
    /// The last entry that is flushed, with all before it.
    pub fn flushed(&self) -> Option<LogId> {
        lock(&self.view).flushed
    }
    /// Saves the vote: when it returns, it is flushed.
    pub fn save_vote(&self, vote: Vote) -> Result<(), WalError> {
        if plant::is(Plant::VoteUnflushed) {
            lock(&self.view).vote = Some(vote);
            return Ok(());
        }
        self.write(vec![Record::Vote(vote)])
    }
    /// Notes the commit position, to be flushed with whatever comes next.
    pub fn note_committed(&self, id: LogId) {
        lock(&self.writer).committed = Some(id);
    }
    /// The index that the log must reach to be whole, if it began empty in a group that had committed entries ([`Record::Lacking`]).
    pub fn lacking(&self) -> Option<u64> {
        lock(&self.view).lacking
    }
    /// Saves what [`lacking`](Self::lacking) answers from now on: when it returns, it is flushed.
    pub fn save_lacking(&self, index: u64) -> Result<(), WalError> {
        self.write(vec![Record::Lacking(index)])
    }
    /// Whether the log holds all that it may have acknowledged: it didn't begin empty in a group that had committed entries, or has
    /// reached what was committed then. An empty log of which nothing is known counts as whole.
    pub fn is_whole(&self) -> bool {
        let view = lock(&self.view);
        view.lacking
            .is_none_or(|lacking| lacking == 0 || view.last().is_some_and(|last| last.index >= lacking))
    }
    /// Removes entries from `index` on.
    pub fn truncate(&self, index: u64) -> Result<(), WalError> {
        self.write(vec![Record::Truncate(index)])
    }
    /// Removes entries up to and including `id`, and the segments that held nothing else.
    pub fn purge(&self, id: LogId) -> Result<(), WalError> {
        self.write(vec![Record::Purge(id)])?;
        self.remove_segments()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        let writer = lock(&self.writer);
        (writer.segments.len() as u64 - 1) * self.options.segment_bytes + writer.end
    }

    /// The entry up to which the log may be purged so that about `bytes_kept` bytes of it stay; none if it has no more than that.
    pub fn purge_point(&self, bytes_kept: u64) -> Option<u64> {
        let kept =
            usize::try_from(bytes_kept.div_ceil(self.options.segment_bytes.max(1))).unwrap_or(usize::MAX);
        let oldest_kept = {
            let writer = lock(&self.writer);
            let at = writer.segments.len().checked_sub(kept.saturating_add(1))?;
            writer.segments[at].0
        };
        let view = lock(&self.view);
        // Places ascend with the index.
        view.entries
            .values()
            .take_while(|place| place.segment < oldest_kept)
            .last()
            .map(|place| place.id.index)
    }

    /// The frame of entries that are to be flushed later, if it fits into the newest segment.
    fn fitting(&self, writer: &Writer, records: &[Record]) -> Result<Option<BytesMut>, WalError> {
        if writer.poisoned {
            return Err(WalError::Poisoned { path: self.dir.clone() });
        }
        let bytes = self.frame(writer, records);
        let fits = bytes.len() <= frame::BODY_BYTES_MAX
            && writer.end + bytes.len() as u64 + RESERVE_BYTES <= self.options.segment_bytes;
        Ok(Some(bytes).filter(|_| fits && !records.is_empty()))
    }

    /// The next frame. A frame that is written while earlier ones aren't flushed says so: a power loss may take those and leave this one.
    fn frame(&self, writer: &Writer, records: &[Record]) -> BytesMut {
        let mark = (writer.flushed < writer.sequence).then_some(Record::Flushed(writer.flushed));
        let committed = writer.committed.map(Record::Committed);
        // Votes and markers may have to do with what is left of a segment.
        let holds_entries = records.iter().any(|r| matches!(r, Record::Entry(_)));
        let end = if holds_entries { End::PageOf(writer.end) } else { End::Anywhere };
        let records = mark.iter().chain(records).chain(&committed);
        frame::encode(self.newest(writer).0, writer.sequence + 1, records, end)
    }

    /// Writes and flushes, together with all that was written before.
    fn write(&self, records: Vec<Record>) -> Result<(), WalError> {
        if records.is_empty() {
            return Ok(());
        }
        let _flushing = lock(&self.flushing);
        let mut writer = lock(&self.writer);
        if writer.poisoned {
            return Err(WalError::Poisoned { path: self.dir.clone() });
        }
        let holds_entries = records.iter().any(|r| matches!(r, Record::Entry(_)));
        let mut bytes = self.frame(&writer, &records);
        if bytes.len() > frame::BODY_BYTES_MAX {
            // Recovery would take a larger frame for a torn one.
            return Err(WalError::TooLarge {
                path: self.dir.clone(),
                bytes: bytes.len(),
                most: frame::BODY_BYTES_MAX,
            });
        }
        let reserve = if holds_entries { RESERVE_BYTES } else { 0 };
        if writer.end + bytes.len() as u64 + reserve > self.options.segment_bytes && writer.end > HEADER_BYTES
        {
            let next = self.newest(&writer).0 + 1;
            match self.begin_segment(&mut writer, next) {
                Ok(()) => {}
                // Votes and markers may outgrow a segment on a full disk rather than stop.
                Err(error) if holds_entries || writer.poisoned => return Err(error),
                Err(_) => {}
            }
            // A frame names its segment and its sequence.
            bytes = self.frame(&writer, &records);
        }
        self.put_frame(&mut writer, &bytes, records, Flush::Now)?;
        Ok(())
    }

    /// Writes a frame at the end of the newest segment. Readers see it once it is flushed, or at once where that is left for later.
    fn put_frame(
        &self,
        writer: &mut Writer,
        bytes: &[u8],
        records: Vec<Record>,
        flush: Flush,
    ) -> Result<(), WalError> {
        let (segment, file) = self.newest(writer).clone();
        let path = segment_path(&self.dir, segment);
        let written = self.write_ahead(writer, &*file, bytes);
        if let Err(error) = written.map_err(failed("writing", &path)) {
            // Filesystems that write elsewhere than before may have no room for bytes that were allocated. Nothing was flushed: the next
            // frame is written over what there is of this one. Any other failure leaves open what the disk will hold.
            writer.poisoned = !error.is_full();
            return Err(error);
        }
        if flush == Flush::Now {
            let unflushed =
                plant::is(Plant::AppendUnflushed) && records.iter().any(|r| matches!(r, Record::Entry(_)));
            if !unflushed && let Err(error) = file.sync_data() {
                writer.poisoned = true;
                return Err(failed("flushing", &path)(error));
            }
            writer.flushed = writer.sequence + 1;
        }
        let offset = writer.end;
        writer.end += bytes.len() as u64;
        writer.sequence += 1;
        writer.committed = None;
        let mut view = lock(&self.view);
        view.take_frame(records, segment, offset);
        if flush == Flush::Now {
            view.all_flushed();
        }
        Ok(())
    }

    /// Writes a frame's bytes, with zeros behind them where they are the first.
    fn write_ahead(&self, writer: &mut Writer, file: &dyn DiskFile, bytes: &[u8]) -> io::Result<()> {
        let end = writer.end + bytes.len() as u64;
        let ahead = (end + ZEROS_AHEAD).min(self.options.segment_bytes);
        if end > writer.zeroed && ahead > end {
            let mut both = BytesMut::with_capacity((ahead - writer.end) as usize);
            both.extend_from_slice(bytes);
            both.resize((ahead - writer.end) as usize, 0);
            match file.write_at(&both, writer.end) {
                Ok(()) => {
                    writer.zeroed = ahead;
                    return Ok(());
                }
                // Where there is no room for zeros, there may be for the frame.
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(error),
            }
        }
        file.write_at(bytes, writer.end)
    }

    fn newest<'a>(&self, writer: &'a Writer) -> &'a (u64, Arc<dyn DiskFile>) {
        writer.segments.last().expect("open made the first segment")
    }

    /// Makes the next segment, durable with its checkpoint before anything is appended to it, behind all that the old one holds. A failure
    /// leaves the old one in use. Whoever calls holds the lock of flushes.
    fn begin_segment(&self, writer: &mut Writer, number: u64) -> Result<(), WalError> {
        if writer.flushed < writer.sequence {
            let (segment, file) = self.newest(writer).clone();
            if let Err(error) = file.sync_data() {
                writer.poisoned = true;
                return Err(failed("flushing", &segment_path(&self.dir, segment))(error));
            }
            writer.flushed = writer.sequence;
        }
        let path = segment_path(&self.dir, number);
        let mut flushing = false;
        let made = (|| {
            let file = self.disk.open(&path, OpenMode::Create)?;
            file.set_len(0)?;
            file.allocate(self.options.segment_bytes)?;
            let checkpoint = frame::encode(
                number,
                writer.sequence + 1,
                &recovery::checkpoint(&lock(&self.view)),
                End::Anywhere,
            );
            // In one sector: never the one without the other.
            file.write_at(&[&recovery::header(number)[..], &checkpoint].concat(), 0)?;
            flushing = true;
            file.sync_data()?;
            self.disk.sync_dir(&self.dir)?;
            io::Result::Ok((file, HEADER_BYTES + checkpoint.len() as u64))
        })();
        match made {
            Ok((file, end)) => {
                writer.segments.push((number, file));
                (writer.end, writer.zeroed) = (end, end);
                writer.sequence += 1;
                writer.flushed = writer.sequence;
                Ok(())
            }
            Err(source) => {
                // A half-made segment that can't be removed would be taken for the newest at the next start, and after a failed flush
                // nobody knows which of the two would be.
                if flushing || path_remains(&*self.disk, &path) {
                    writer.poisoned = true;
                }
                Err(WalError::Disk { action: "making", path, source })
            }
        }
    }

    /// Removes the oldest segments that hold no entry any more.
    fn remove_segments(&self) -> Result<(), WalError> {
        let mut writer = lock(&self.writer);
        let oldest = {
            let view = lock(&self.view);
            view.entries.values().next().map_or(u64::MAX, |place| place.segment)
        };
        let keep =
            writer.segments.iter().take_while(|(n, _)| *n < oldest).count().min(writer.segments.len() - 1);
        for (number, _) in writer.segments.drain(..keep) {
            let path = segment_path(&self.dir, number);
            self.disk.remove(&path).map_err(failed("removing", &path))?;
        }
        if keep > 0 { self.disk.sync_dir(&self.dir).map_err(failed("flushing", &self.dir)) } else { Ok(()) }
    }
}

fn path_remains(disk: &dyn Disk, path: &Path) -> bool {
    match disk.remove(path) {
        Ok(()) => false,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}
