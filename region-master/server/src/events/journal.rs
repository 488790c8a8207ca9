//! Events on disk: two files of JSON lines, of which the older one is begun anew when the newer one is full. Damaged lines are skipped: events are told,
//! never relied on.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mooseng_ports::disk::{Disk, DiskFile, OpenMode, read_all};
use serde::{Deserialize, Serialize};

/// Bytes of one file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Events in memory: what can be asked for.
pub const EVENTS_MAX: usize = 4_000;
/// Bytes of one event's line.
const LINE_BYTES_MAX: usize = 4 << 10;
/// The two files.
pub const FILES: [&str; 2] = ["events-1.jsonl", "events-2.jsonl"];

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which journal it is of: one that was lost is followed by another one.
    pub journal: u64,
    /// Its number within it, from 1.
    pub sequence: u64,
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// Its word.
    pub event: String,
    /// What it is about.
    pub subject: String,
    /// The rest.
    pub detail: String,
    /// See `Told::key`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
}

/// The journal.
pub struct Journal {
    /// Its mark.
    pub id: u64,
    /// The newest events, the oldest first.
    pub entries: VecDeque<Entry>,
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// The file that is written, and, once it is open, how long it is.
    writes: usize,
    file: Option<(Arc<dyn DiskFile>, u64)>,
}

/// A higher number than any journal gets to: a line that says so is damaged, and numbers behind it couldn't be counted.
const SEQUENCE_MAX: u64 = 1 << 62;

/// The lines of a file that can be read.
pub fn parse(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() <= LINE_BYTES_MAX)
        .filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
        .filter(|entry| entry.sequence < SEQUENCE_MAX)
}

impl Journal {
    /// Reads what is there. `fresh` is the mark of a journal that begins.
    pub fn open(disk: Arc<dyn Disk>, directory: &Path, fresh: u64) -> io::Result<Self> {
        disk.create_dir_all(directory)?;
        let mut files: Vec<Vec<Entry>> = Vec::new();
        for name in FILES {
            let read = match disk.open(&directory.join(name), OpenMode::ReadOnly) {
                Ok(file) => parse(&read_all(&*file)?).collect(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            files.push(read);
        }
        let newest = |file: &Vec<Entry>| file.last().map_or(0, |entry| entry.sequence);
        let writes = usize::from(newest(&files[1]) > newest(&files[0]));
        let id = files[writes].last().map_or(fresh, |entry| entry.journal);
        let mut entries: Vec<Entry> =
            files.into_iter().flatten().filter(|entry| entry.journal == id).collect();
        entries.sort_by_key(|entry| entry.sequence);
        entries.dedup_by_key(|entry| entry.sequence);
        let excess = entries.len().saturating_sub(EVENTS_MAX);
        let entries = entries.split_off(excess).into();
        Ok(Self { id, entries, disk, directory: directory.to_owned(), writes, file: None })
    }

    /// Keeps events. They are told of from memory although the disk fails: the caller says that, once.
    pub fn append(&mut self, events: Vec<Entry>) -> io::Result<()> {
        let mut lines = Vec::new();
        for event in events {
            let line = serde_json::to_vec(&event).map_err(io::Error::other)?;
            if line.len() <= LINE_BYTES_MAX {
                lines.extend(line);
                lines.push(b'\n');
            }
            self.entries.push_back(event);
            if self.entries.len() > EVENTS_MAX {
                self.entries.pop_front();
            }
        }
        let outcome = self.write(&lines);
        if outcome.is_err() {
            self.file = None;
        }
        outcome
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let (file, length) = match self.file.take() {
            Some((file, length)) if length < FILE_BYTES_MAX => (file, length),
            Some(_) => {
                self.writes = 1 - self.writes;
                let file = self.open_current()?;
                file.set_len(0)?;
                (file, 0)
            }
            None => {
                let file = self.open_current()?;
                let length = file.len()?;
                // What a crash left of a line isn't to be part of the next one.
                file.write_at(b"\n", length)?;
                (file, length + 1)
            }
        };
        file.write_at(lines, length)?;
        self.file = Some((file, length + lines.len() as u64));
        Ok(())
    }

    fn open_current(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(&self.directory.join(FILES[self.writes]), OpenMode::Create)
    }

    /// The number of the next event.
    pub fn next(&self) -> u64 {
        self.entries.back().map_or(1, |entry| entry.sequence + 1)
    }

    /// Those behind a number, since a time, so many at most; and whether there are more.
    pub fn page(&self, after: u64, since_ms: i64, limit: usize) -> (Vec<Entry>, bool) {
        let wanted = |entry: &&Entry| entry.sequence > after && entry.unix_ms >= since_ms;
        let mut page: Vec<Entry> = self.entries.iter().filter(wanted).take(limit + 1).cloned().collect();
        let more = page.len() > limit;
        page.truncate(limit);
        (page, more)
    }
}

#[cfg(test)]
mod tests {
    use mooseng_ports::disk::sim::SimDisk;

    use super::*;

    fn entry(sequence: u64, detail: &str) -> Entry {
        Entry {
            journal: 7,
            sequence,
            unix_ms: 1_000_i64.wrapping_add_unsigned(sequence),
            event: "LEASE_LOST".into(),
            subject: "a".into(),
            detail: detail.into(),
            key: String::new(),
        }
    }

    fn open(disk: &SimDisk) -> Journal {
        Journal::open(Arc::new(disk.clone()), Path::new("/events"), 7).unwrap()
    }

    #[test]
    fn events_are_there_again_and_damaged_lines_are_skipped() {
        let disk = SimDisk::default();
        let mut journal = open(&disk);
        assert_eq!(journal.next(), 1);
        journal.append(vec![entry(1, "x"), entry(2, "y")]).unwrap();
        let file = disk.open(Path::new("/events/events-1.jsonl"), OpenMode::Existing).unwrap();
        let end = file.len().unwrap();
        let far = serde_json::to_vec(&entry(u64::MAX, "damaged")).unwrap();
        file.write_at(&[&far[..], b"\n\xff{\"half\": "].concat(), end).unwrap();
        let mut journal = open(&disk);
        assert_eq!((journal.id, journal.next()), (7, 3));
        journal.append(vec![entry(3, "z")]).unwrap();
        let journal = open(&disk);
        let (page, more) = journal.page(1, 0, 1);
        assert_eq!((page, more), (vec![entry(2, "y")], true));
        assert_eq!(journal.page(0, 1_003, 9), (vec![entry(3, "z")], false));
        assert_eq!(journal.page(3, 0, 9), (vec![], false));
    }

    #[test]
    fn two_files_and_memory_are_all_it_takes() {
        let disk = SimDisk::default();
        let mut journal = open(&disk);
        let text = "t".repeat(3_000);
        for n in 1..=5_000 {
            journal.append(vec![entry(n, if n < 1_000 { &text } else { "short" })]).unwrap();
        }
        assert_eq!((journal.entries.len(), journal.next()), (EVENTS_MAX, 5_001));
        let lengths = FILES.map(|name| {
            disk.open(&Path::new("/events").join(name), OpenMode::ReadOnly).unwrap().len().unwrap()
        });
        assert!(lengths.iter().all(|length| *length < FILE_BYTES_MAX + LINE_BYTES_MAX as u64), "{lengths:?}");
        let again = open(&disk);
        assert_eq!(again.next(), 5_001);
        let numbers: Vec<u64> = again.entries.iter().map(|entry| entry.sequence).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
