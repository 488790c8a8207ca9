//! Files that one session makes and mostly doesn't fsync, and another one sees: what was seen must stay, whatever happens to the home.
//!
//! Nothing removes or shortens a file, and each file's content follows from its number. So whoever looks may see more each time, but never less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::load::record::record;
use crate::load::worker::sync_dir;

/// Sizes of files, in bytes, in turn: within the metadata, and in chunks.
const SIZES: [usize; 4] = [300, 6_000, 40_000, 90_000];
/// Every so-manieth file is fsynced.
const FSYNC_EVERY: u64 = 5;
/// Every so-manieth time the directory is.
const FSYNC_DIR_EVERY: u64 = 8;
/// Before the next file.
const PACE: Duration = Duration::from_millis(25);
/// Before the next look.
const LOOK_EVERY: Duration = Duration::from_millis(60);

fn content(number: u64) -> Vec<u8> {
    record(number, 0, number, SIZES[number as usize % SIZES.len()])
}

fn name(number: u64) -> String {
    format!("n{number:06}")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix('n')?.parse().ok()
}

/// What must be there afterwards.
#[derive(Clone, Debug, Default)]
pub struct Must {
    /// Why it must.
    pub because: &'static str,
    /// Files, with how many bytes of them at least.
    pub files: BTreeMap<u64, usize>,
    /// What was seen that can't be.
    pub problems: Vec<String>,
    /// Operations that failed.
    pub errors: Vec<String>,
}

impl Must {
    fn failed(&mut self, began: Instant, what: &str) {
        let at = began.elapsed().as_secs_f64();
        self.errors.push(format!(
            "{} after {at:.2} s: {what}",
            if self.because == "seen" { "looking" } else { "writing" }
        ));
    }

    fn has(&mut self, number: u64, bytes: usize) {
        let least = self.files.entry(number).or_default();
        *least = bytes.max(*least);
    }

    /// What is seen in `dir`, compared with what was seen before.
    fn look(&mut self, dir: &Path) -> Result<()> {
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(dir).context("opening the directory")? {
            found.extend(number(&entry.context("listing")?.file_name().to_string_lossy()));
        }
        for gone in self.files.keys().filter(|number| !found.contains(number)) {
            self.problems.push(format!("{} was seen, and isn't listed any more", name(*gone)));
        }
        for number in found {
            let whole = content(number);
            if self.files.get(&number) == Some(&whole.len()) {
                continue;
            }
            self.has(number, 0);
            let bytes =
                std::fs::read(dir.join(name(number))).with_context(|| format!("reading {}", name(number)))?;
            if !whole.starts_with(&bytes) {
                self.problems.push(format!("{} has {} bytes that it never had", name(number), bytes.len()));
            } else if bytes.len() < self.files.get(&number).copied().unwrap_or(0) {
                self.problems.push(format!("{} has become shorter: {} bytes", name(number), bytes.len()));
            }
            self.has(number, bytes.len());
        }
        Ok(())
    }

    /// What a directory lacks of it.
    pub fn lacking(&self, dir: &Path) -> Vec<String> {
        let lack = |(number, least): (&u64, &usize)| {
            let name = name(*number);
            match std::fs::read(dir.join(&name)) {
                Err(error) => {
                    Some(format!("{name} is LOST: {error}; {least} bytes of it were seen or fsynced"))
                }
                Ok(bytes) if !content(*number).starts_with(&bytes) => {
                    Some(format!("{name} has WRONG CONTENT: {} bytes", bytes.len()))
                }
                Ok(bytes) if bytes.len() < *least => Some(format!(
                    "{name} has LOST bytes: {} of {least} that were {} are left",
                    bytes.len(),
                    self.because
                )),
                Ok(_) => None,
            }
        };
        self.files.iter().filter_map(lack).collect()
    }
}

/// A writer and the one who looks.
pub struct Seen {
    /// The directory's name, below each mount.
    pub dir: PathBuf,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Must>>,
}

impl Seen {
    /// Starts both, on the mounts `writes` and `looks`. The directory is made, and there for both, when this returns.
    pub fn start(writes: &Path, looks: &Path, dir: &Path, patience: Duration) -> Result<Self> {
        let (here, there) = (writes.join(dir), looks.join(dir));
        std::fs::create_dir(&here).with_context(|| format!("making {}", here.display()))?;
        sync_dir(&here)?;
        sync_dir(writes)?;
        crate::cluster::wait_for("the directory to be seen elsewhere", patience, || {
            std::fs::read_dir(&there).map(drop).with_context(|| format!("listing {}", there.display()))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (a, b) = (stop.clone(), stop.clone());
        let threads =
            vec![std::thread::spawn(move || write(&here, &a)), std::thread::spawn(move || watch(&there, &b))];
        Ok(Self { dir: dir.to_owned(), stop, threads })
    }

    /// Ends both: what each of them knows must be there.
    pub fn finish(mut self, time: Duration) -> Result<Vec<Must>> {
        self.stop.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + time;
        while self.threads.iter().any(|t| !t.is_finished()) {
            if Instant::now() >= deadline {
                return Err(anyhow!("a call in {} hangs for {} s", self.dir.display(), time.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::mem::take(&mut self.threads)
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow!("a thread panicked")))
            .collect()
    }
}

/// A round that failed doesn't work on.
impl Drop for Seen {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Makes files; what was fsynced is promised.
fn write(dir: &Path, stop: &AtomicBool) -> Must {
    let began = Instant::now();
    let mut must = Must { because: "fsynced", ..Must::default() };
    let mut unsynced = Vec::new();
    for number in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        match write_one(dir, number) {
            Ok(true) => must.has(number, content(number).len()),
            Ok(false) => unsynced.push(number),
            Err(error) => must.failed(began, &format!("{}: {error:#}", name(number))),
        }
        if number.is_multiple_of(FSYNC_DIR_EVERY) {
            match sync_dir(dir) {
                // The names, and not what is in the files.
                Ok(()) => unsynced.drain(..).for_each(|number| must.has(number, 0)),
                // Told once: what was made since the last one may be gone.
                Err(error) => {
                    unsynced.clear();
                    must.failed(began, &format!("{error:#}"));
                }
            }
        }
        std::thread::sleep(PACE);
    }
    must
}

/// Whether it was fsynced.
fn write_one(dir: &Path, number: u64) -> Result<bool> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(dir.join(name(number))).context("open")?;
    file.write_all(&content(number)).context("write")?;
    let synced = number.is_multiple_of(FSYNC_EVERY);
    if synced {
        file.sync_all().context("fsync")?;
    }
    close(file)?;
    Ok(synced)
}

/// With the error that a close may tell of.
fn close(file: File) -> Result<()> {
    nix::unistd::close(file).context("close")
}

fn watch(dir: &Path, stop: &AtomicBool) -> Must {
    let began = Instant::now();
    let mut must = Must { because: "seen", ..Must::default() };
    while !stop.load(Ordering::SeqCst) && must.problems.len() < 20 {
        if let Err(error) = must.look(dir) {
            must.failed(began, &format!("{error:#}"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    must
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_missed_when_it_goes_or_changes() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Seen::start(dir.path(), dir.path(), Path::new("seen"), Duration::from_secs(5)).unwrap();
        let dir = dir.path().join("seen");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !dir.join(name(12)).exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let must = seen.finish(Duration::from_secs(5)).unwrap();
        assert!(must.iter().all(|m| m.problems.is_empty() && m.errors.is_empty()), "{must:?}");
        assert!(must.iter().all(|m| m.files.len() > 5), "{must:?}");
        assert!(must.iter().all(|m| m.lacking(&dir).is_empty()));
        let (mut watcher, files) = (must[1].clone(), must[1].files.clone());
        let of = |n: usize| name(*files.keys().nth(n).unwrap());
        std::fs::remove_file(dir.join(of(0))).unwrap();
        std::fs::write(dir.join(of(1)), b"something else").unwrap();
        let third = std::fs::read(dir.join(of(2))).unwrap();
        std::fs::write(dir.join(of(2)), &third[..100]).unwrap();
        let lacking = watcher.lacking(&dir);
        assert_eq!(lacking.len(), 3, "{lacking:?}");
        for word in ["is LOST", "WRONG CONTENT", "LOST bytes"] {
            assert!(lacking.iter().any(|l| l.contains(word)), "{word}: {lacking:?}");
        }
        watcher.look(&dir).unwrap();
        assert_eq!(watcher.problems, [format!("{} was seen, and isn't listed any more", of(0))]);
    }
}
