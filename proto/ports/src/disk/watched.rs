//! A disk that says whether it hangs: below each of some directories it remembers which calls are under way, and since when.
//!
//! A disk may answer nothing for minutes without an error, or for good. Whoever calls it then waits with its thread; others can ask first.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Disk, DiskFile, OpenMode, Space};
use crate::clock::{BootTime, Clock};

/// The calls that are under way below one directory, in the order in which they began.
#[derive(Default)]
struct Calls {
    next: u64,
    under_way: BTreeMap<u64, BootTime>,
}

struct Place {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    calls: Mutex<Calls>,
}

impl Place {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        let _under_way = UnderWay::begin(self);
        call()
    }
}

/// A call, until it is over.
struct UnderWay<'a>(&'a Place, u64);

impl<'a> UnderWay<'a> {
    fn begin(place: &'a Place) -> Self {
        let now = place.clock.boot();
        let calls = &mut *place.calls();
        let number = calls.next;
        calls.next += 1;
        calls.under_way.insert(number, now);
        Self(place, number)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.calls().under_way.remove(&self.1);
    }
}

/// Another disk, and what is under way on it.
pub struct WatchedDisk {
    under: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    places: Vec<Arc<Place>>,
    hung_after: Duration,
}

impl WatchedDisk {
    /// Watches what lies below each of these directories by itself. A call that has been under way for `hung_after` means that a disk hangs.
    pub fn new(
        under: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        directories: &[PathBuf],
        hung_after: Duration,
    ) -> Self {
        let place = |path: &PathBuf| {
            let (path, clock) = (path.clone(), clock.clone());
            Arc::new(Place { path, clock, calls: Mutex::default() })
        };
        let places = directories.iter().map(place).collect();
        Self { under, clock, places, hung_after }
    }

    fn place(&self, path: &Path) -> Option<&Arc<Place>> {
        // The innermost one, should one lie in another.
        let holds = self.places.iter().filter(|place| path.starts_with(&place.path));
        holds.max_by_key(|place| place.path.components().count())
    }

    fn watch<T>(&self, path: &Path, call: impl FnOnce() -> T) -> T {
        match self.place(path) {
            Some(place) => place.watch(call),
            None => call(),
        }
    }
}

impl Disk for WatchedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.watch(path, || self.under.open(path, mode))?;
        let Some(place) = self.place(path) else { return Ok(file) };
        Ok(Arc::new(WatchedFile { under: file, place: place.clone() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.watch(path, || self.under.create_dir_all(path))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.watch(path, || self.under.list(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.watch(to, || self.under.rename(from, to))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.watch(path, || self.under.remove(path))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.watch(path, || self.under.sync_dir(path))
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.watch(path, || self.under.space(path))
    }
    fn lend(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        self.watch(path, || self.under.lend(path))
    }
    fn lends(&self) -> bool {
        self.under.lends()
    }
    fn hangs(&self, path: &Path) -> Option<Duration> {
        let place = self.place(path)?;
        let oldest = place.calls().under_way.values().next().copied()?;
        let since = self.clock.boot().since(oldest);
        (since >= self.hung_after).then_some(since)
    }
}

struct WatchedFile {
    under: Arc<dyn DiskFile>,
    place: Arc<Place>,
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.place.watch(|| self.under.read_at(buffer, offset))
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.place.watch(|| self.under.write_at(bytes, offset))
    }
    fn write_uncached_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.place.watch(|| self.under.write_uncached_at(parts, offset))
    }
    fn len(&self) -> io::Result<u64> {
        self.place.watch(|| self.under.len())
    }
    fn is_empty(&self) -> io::Result<bool> {
        self.place.watch(|| self.under.is_empty())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.place.watch(|| self.under.set_len(length))
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.place.watch(|| self.under.allocate(length))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.place.watch(|| self.under.sync_data())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::disk::sim::{Fault, SimDisk};

    #[test]
    fn a_disk_hangs_once_a_call_takes_long_and_others_dont() {
        let (sim, clock) = (SimDisk::default(), ManualClock::default());
        let directories = ["/a", "/a/b"].map(PathBuf::from);
        let after = Duration::from_secs(5);
        let disk = WatchedDisk::new(Arc::new(sim.clone()), Arc::new(clock.clone()), &directories, after);
        disk.create_dir_all(Path::new("/a/b")).unwrap();
        let file = disk.open(Path::new("/a/b/f"), OpenMode::Create).unwrap();
        file.write_at(b"x", 0).unwrap();
        clock.advance(Duration::from_secs(60));
        let hangs = |path: &str| disk.hangs(Path::new(path));
        assert_eq!((hangs("/a"), hangs("/a/b"), hangs("/state")), (None, None, None), "nothing is under way");
        sim.set_fault(Fault::Hanging);
        let on = file.clone();
        let flushes = std::thread::spawn(move || on.sync_data());
        let is_under_way = || !disk.places[1].calls().under_way.is_empty();
        while !is_under_way() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(hangs("/a/b"), None, "for a moment only");
        clock.advance(after);
        assert_eq!(file.len().unwrap(), 1, "what is answered later doesn't count for it");
        assert_eq!((hangs("/a/b"), hangs("/a/b/chunks"), hangs("/a")), (Some(after), Some(after), None));
        clock.advance(after);
        assert_eq!(hangs("/a/b"), Some(2 * after));
        sim.set_fault(Fault::None);
        flushes.join().unwrap().unwrap();
        assert_eq!(hangs("/a/b"), None);
    }
}
