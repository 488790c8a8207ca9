//! Threads that work and write down what was acknowledged.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::journal::Journal;
use crate::model::{self, Model, Op};
use crate::record::{SIZES, describe, record};

/// Most files in a thread's directory.
const FILES_MAX: usize = 40;
/// Most records in a file.
const SLOTS_MAX: usize = 8;

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory to work in, on the mount.
    pub dir: PathBuf,
    /// The directory of the journals, on local disk.
    pub journals: PathBuf,
    /// How many threads.
    pub threads: usize,
    /// How long at most.
    pub time: Duration,
    /// Where the random choices start.
    pub seed: u64,
    /// A thread whose operation failed goes on in a fresh directory: nobody knows how far it was done.
    pub go_on: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Acknowledged operations.
    pub operations: u64,
    /// Errors that operations returned, and wrong content that reads found. A thread ends with its first, unless it is to go on.
    pub errors: Vec<String>,
}

/// What an error begins with that tells of a read which returned something else than was acknowledged.
pub const WRONG: &str = "WRONG CONTENT";

impl Outcome {
    /// The errors that no loss of a home excuses: reads that returned something else than was acknowledged.
    pub fn wrong(&self) -> impl Iterator<Item = &String> {
        self.errors.iter().filter(|error| error.contains(WRONG))
    }

    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.errors.extend(other.errors);
    }
}

/// Fresh directories of one thread at most.
const BEGINNINGS_MAX: usize = 1_000;
/// Before one.
const BEGIN_AGAIN: Duration = Duration::from_millis(200);

/// One thread's work, in one directory after the other if it goes on.
fn work(settings: &Settings, n: usize, stop: &AtomicBool) -> Result<Outcome> {
    let mut all = Outcome::default();
    for beginning in 0..BEGINNINGS_MAX {
        let name = if beginning == 0 { format!("t{n}") } else { format!("t{n}-{beginning}") };
        let done = Worker::new(settings, &name, n + beginning * settings.threads)
            .and_then(|worker| worker.work(stop));
        let failed = match done {
            Ok(outcome) => {
                let failed = !outcome.errors.is_empty();
                all.add(outcome);
                failed
            }
            Err(error) if settings.go_on => {
                all.errors.push(format!("beginning {name}: {error:#}"));
                true
            }
            Err(error) => return Err(error),
        };
        if !failed || !settings.go_on || stop.load(Ordering::SeqCst) {
            break;
        }
        std::thread::sleep(BEGIN_AGAIN);
    }
    Ok(all)
}

/// Works until the time is over, `stopped` says so, or an operation of each thread has failed.
pub fn run(settings: &Settings, stopped: impl Fn() -> bool) -> Result<Outcome> {
    std::fs::create_dir_all(&settings.journals)?;
    std::fs::create_dir_all(&settings.dir).with_context(|| format!("creating {}", settings.dir.display()))?;
    sync_dir(&settings.dir)?;
    // Its own name is in the directory above, which an fsync of it needn't reach.
    settings.dir.parent().filter(|above| !above.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
    let stop = AtomicBool::new(false);
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..settings.threads)
            .map(|n| {
                scope.spawn({
                    let stop = &stop;
                    move || work(settings, n, stop)
                })
            })
            .collect();
        let deadline = Instant::now() + settings.time;
        while Instant::now() < deadline && !stopped() && threads.iter().any(|t| !t.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::SeqCst);
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
            .collect::<Vec<_>>()
    });
    let mut total = Outcome::default();
    for outcome in outcomes {
        total.add(outcome?);
    }
    Ok(total)
}

struct Worker {
    dir: PathBuf,
    journal: Journal,
    rng: SmallRng,
    model: Model,
    next: u64,
}

impl Worker {
    fn new(settings: &Settings, name: &str, seed: usize) -> Result<Self> {
        let dir = settings.dir.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        sync_dir(&settings.dir)?;
        Ok(Self {
            dir,
            journal: Journal::create(&settings.journals.join(format!("{name}.journal")))?,
            rng: SmallRng::seed_from_u64(settings.seed.wrapping_add(seed as u64)),
            model: Model::new(),
            next: 0,
        })
    }

    fn work(mut self, stop: &AtomicBool) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        while !stop.load(Ordering::SeqCst) {
            self.next += 1;
            let op = self.choose();
            self.journal.begin(self.next, &op)?;
            match perform(&self.dir, &self.model, &op) {
                Ok(()) => self.journal.end(self.next, Ok(()))?,
                Err(error) => {
                    let text = format!("{op:?}: {error:#}");
                    self.journal.end(self.next, Err(&text))?;
                    outcome.errors.push(text);
                    break;
                }
            }
            model::apply(&mut self.model, &op);
            outcome.operations += 1;
        }
        Ok(outcome)
    }

    fn choose(&mut self) -> Op {
        let generation = self.next;
        let fresh = |rng: &mut SmallRng| {
            // Large records are rarer, so that the small ones' rate counts.
            let class = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3][rng.random_range(0..10)];
            (format!("f{generation}"), class)
        };
        if self.model.is_empty() {
            let (name, class) = fresh(&mut self.rng);
            return Op::Create { name, file: generation, class, generation };
        }
        let at = self.rng.random_range(0..self.model.len());
        let Some((name, file)) = self.model.iter().nth(at).map(|(n, f)| (n.clone(), f.clone())) else {
            return Op::Create { name: format!("f{generation}"), file: generation, class: 0, generation };
        };
        let slots = file.slots.len();
        match self.rng.random_range(0..100) {
            0..30 if self.model.len() < FILES_MAX => {
                let (name, class) = fresh(&mut self.rng);
                Op::Create { name, file: generation, class, generation }
            }
            0..50 if slots < SLOTS_MAX => Op::Append { name, generation },
            50..65 if slots > 0 => {
                Op::Overwrite { name, slot: self.rng.random_range(0..slots as u64), generation }
            }
            65..75 => {
                let (_, class) = fresh(&mut self.rng);
                Op::Replace { name, file: generation, class, generation }
            }
            75..82 => Op::Rename { name, to: format!("r{generation}") },
            82..86 if slots > 0 => Op::Truncate { name, slots: self.rng.random_range(0..slots as u64) },
            86..92 => Op::Check { name },
            _ => Op::Unlink { name },
        }
    }
}

/// Flushes a directory.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).with_context(|| format!("fsync of {}", dir.display()))
}

/// Whole, or an error: a record goes out in one write.
fn write_record(file: &mut File, bytes: &[u8]) -> Result<()> {
    file.write_all(bytes).context("write")
}

/// Does it, and flushes what it changed.
pub fn perform(dir: &Path, model: &Model, op: &Op) -> Result<()> {
    match op {
        Op::Create { name, file, class, generation } => {
            let mut f = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(dir.join(name))
                .context("open O_EXCL")?;
            write_record(&mut f, &record(*file, 0, *generation, SIZES[*class]))?;
            f.sync_all().context("fsync")?;
            sync_dir(dir)
        }
        Op::Append { name, generation } => {
            let known = &model[name];
            let mut f = OpenOptions::new().append(true).open(dir.join(name)).context("open O_APPEND")?;
            write_record(
                &mut f,
                &record(known.file, known.slots.len() as u64, *generation, SIZES[known.class]),
            )?;
            f.sync_all().context("fsync")
        }
        Op::Overwrite { name, slot, generation } => {
            let known = &model[name];
            let size = SIZES[known.class];
            let f = OpenOptions::new().write(true).open(dir.join(name)).context("open")?;
            f.write_all_at(&record(known.file, *slot, *generation, size), slot * size as u64)
                .context("pwrite")?;
            f.sync_all().context("fsync")
        }
        Op::Replace { name, file, class, generation } => {
            let temporary = dir.join(model::temporary(name));
            let mut f = File::create(&temporary).context("open O_TRUNC")?;
            write_record(&mut f, &record(*file, 0, *generation, SIZES[*class]))?;
            f.sync_all().context("fsync")?;
            drop(f);
            std::fs::rename(&temporary, dir.join(name)).context("rename over")?;
            sync_dir(dir)
        }
        Op::Rename { name, to } => {
            std::fs::rename(dir.join(name), dir.join(to)).context("rename")?;
            sync_dir(dir)
        }
        Op::Unlink { name } => {
            std::fs::remove_file(dir.join(name)).context("unlink")?;
            sync_dir(dir)
        }
        Op::Truncate { name, slots } => {
            let f = OpenOptions::new().write(true).open(dir.join(name)).context("open")?;
            f.set_len(slots * SIZES[model[name].class] as u64).context("ftruncate")?;
            f.sync_all().context("fsync")
        }
        Op::Check { name } => match compare(&dir.join(name), &model[name])? {
            None => Ok(()),
            Some(problem) => anyhow::bail!("{WRONG}: {problem}"),
        },
    }
}

/// What is wrong with a file, if anything is.
pub fn compare(path: &Path, wanted: &model::FileModel) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    let size = SIZES[wanted.class];
    if bytes.len() != size * wanted.slots.len() {
        return Ok(Some(format!(
            "it has {} bytes instead of {} records of {size}",
            bytes.len(),
            wanted.slots.len()
        )));
    }
    for (slot, (found, generation)) in bytes.chunks(size).zip(&wanted.slots).enumerate() {
        if found != record(wanted.file, slot as u64, *generation, size) {
            return Ok(Some(format!(
                "slot {slot} should have generation {generation}, but is {}",
                describe(found, size)
            )));
        }
    }
    Ok(None)
}

/// Whether a file holds what it held before, with the new record written over it up to some byte.
pub fn is_partly_written(bytes: &[u8], partial: &model::Partial) -> bool {
    let known = &partial.before;
    let size = SIZES[known.class];
    let slots = known.slots.iter().enumerate();
    let before: Vec<u8> =
        slots.flat_map(|(slot, generation)| record(known.file, slot as u64, *generation, size)).collect();
    let new = record(known.file, partial.slot, partial.generation, size);
    let start = partial.slot as usize * size;
    if bytes.len() < start || bytes[..start] != before[..start.min(before.len())] {
        return false;
    }
    let written = bytes[start..].iter().zip(&new).take_while(|(a, b)| a == b).count();
    bytes[start + written..] == before[before.len().min(start + written)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_partly_written_and_a_hole_is_torn() {
        let before = model::FileModel { file: 5, class: 1, slots: vec![1, 2] };
        let size = SIZES[1];
        let old = [record(5, 0, 1, size), record(5, 1, 2, size)].concat();
        let appended = model::Partial { name: "x".into(), before: before.clone(), slot: 2, generation: 9 };
        let new = record(5, 2, 9, size);
        for length in [0, 1, 480, size] {
            assert!(is_partly_written(&[&old[..], &new[..length]].concat(), &appended), "{length}");
        }
        assert!(!is_partly_written(&[&old[..], &vec![0; 100][..]].concat(), &appended));
        assert!(!is_partly_written(&[&old[..], &new[480..]].concat(), &appended));
        let over = model::Partial { name: "x".into(), before, slot: 0, generation: 9 };
        let new = record(5, 0, 9, size);
        for length in [0, 1, 480, size] {
            assert!(is_partly_written(&[&new[..length], &old[length..]].concat(), &over), "{length}");
        }
        let mut torn = old.clone();
        torn[1000..2000].copy_from_slice(&new[1000..2000]);
        assert!(!is_partly_written(&torn, &over));
    }
}
