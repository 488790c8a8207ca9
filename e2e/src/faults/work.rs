//! The workload: threads that write on one mount, look from another, and know what each must show.
//!
//! Each thread owns a directory and does one operation after the other; what was acknowledged is in its model (as in
//! [`crate::load`]). It goes on after an error: what the operation may have done is compared with what is there, and the names that it
//! touched are removed, so that the model is certain again. An error that no fault on its mount excuses is a violation.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::load::model::{self, Model, Op};
use crate::load::verify::differences;
use crate::load::worker::{perform, sync_dir};

/// Most files in a thread's directory.
const FILES_MAX: usize = 12;
/// Most records in a file.
const SLOTS_MAX: usize = 6;
/// Steps that a violation's report tells.
const RECENT: usize = 40;
/// How long what an operation did may stay unknown.
const RESOLVED_WITHIN: Duration = Duration::from_secs(180);

/// How long it may take to compare everything.
const VERIFIED_WITHIN: Duration = Duration::from_secs(240);

/// What is measured apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A file is read and compared, or a directory listed.
    Read,
    /// A record is written and flushed.
    Write,
    /// A name is changed and its directory flushed.
    Name,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Name];

    fn of(op: &Op) -> Self {
        match op {
            Op::Check { .. } => Self::Read,
            Op::Rename { .. } | Op::Unlink { .. } => Self::Name,
            _ => Self::Write,
        }
    }
}

/// An operation that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What it was.
    pub class: Class,
    /// Over which mount, counted from 0.
    pub mount: usize,
    /// When it began.
    pub began: Instant,
    /// When it was answered.
    pub ended: Instant,
}

/// While a fault is on a mount, and errors there are no violation.
#[derive(Clone, Copy, Debug)]
struct Excuse {
    mount: usize,
    from: Instant,
    until: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    paused: AtomicUsize,
    events: Mutex<Vec<Event>>,
    excuses: Mutex<Vec<Excuse>>,
    violations: Mutex<Vec<String>>,
    /// Errors that a fault excused.
    excused: AtomicUsize,
    /// What each thread does just now, and since when.
    doing: Mutex<Vec<Option<(Instant, String)>>>,
    models: Mutex<Vec<Model>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running workload.
pub struct Work {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Work {
    /// Starts threads, which take turns in having one of `mounts` as their own.
    pub fn start(mounts: &[PathBuf], threads: usize, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        *lock(&shared.doing) = vec![None; threads];
        *lock(&shared.models) = vec![Model::new(); threads];
        let mut work = Self { shared: shared.clone(), threads: Vec::new() };
        for n in 0..threads {
            let home = n % mounts.len();
            let dirs: Vec<PathBuf> = mounts.iter().map(|m| m.join(format!("t{n}"))).collect();
            std::fs::create_dir(&dirs[home]).with_context(|| format!("creating {}", dirs[home].display()))?;
            sync_dir(&mounts[home])?;
            let rng = SmallRng::seed_from_u64(seed.wrapping_add(n as u64));
            let worker = Worker {
                n,
                dirs,
                home,
                shared: shared.clone(),
                model: Model::new(),
                next: 0,
                rng,
                recent: VecDeque::new(),
            };
            work.threads.push(std::thread::Builder::new().name(format!("t{n}")).spawn(|| worker.run())?);
        }
        Ok(work)
    }

    /// From now on errors on that mount (from 0) are no violation.
    pub fn excuse(&self, mount: usize) {
        lock(&self.shared.excuses).push(Excuse { mount, from: Instant::now(), until: None });
    }

    /// Errors on that mount are violations again after a while.
    pub fn excuse_no_more(&self, mount: usize, after: Duration) {
        for excuse in lock(&self.shared.excuses).iter_mut().filter(|e| e.mount == mount && e.until.is_none())
        {
            excuse.until = Some(Instant::now() + after);
        }
    }

    /// What was answered since this was asked last.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.shared.events))
    }

    /// What was violated so far.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.shared.violations).clone()
    }

    /// How many errors a fault excused.
    pub fn excused(&self) -> usize {
        self.shared.excused.load(Ordering::SeqCst)
    }

    /// What has been under way for the longest time.
    pub fn longest(&self) -> Option<(Duration, String)> {
        let doing = lock(&self.shared.doing);
        let since = doing.iter().enumerate().filter_map(|(n, d)| d.as_ref().map(|(at, what)| (n, at, what)));
        since.min_by_key(|(_, at, _)| **at).map(|(n, at, what)| (at.elapsed(), format!("t{n}: {what}")))
    }

    /// Waits until every thread rests between two operations, with a certain model.
    pub fn pause(&self, time: Duration) -> Result<()> {
        self.shared.pause.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + time;
        while self.shared.paused.load(Ordering::SeqCst) < self.threads.len() {
            if Instant::now() >= deadline {
                let doing =
                    self.longest().map(|(for_, what)| format!("{what} for {:.1} s", for_.as_secs_f64()));
                anyhow::bail!("the workload doesn't come to rest in {} s: {doing:?}", time.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.shared.pause.store(false, Ordering::SeqCst);
    }

    /// Compares everything with the models, as `mount` shows it. The threads must rest.
    pub fn verify(&self, mount: &Path) -> Result<Verified> {
        let models = lock(&self.shared.models).clone();
        let mut verified = Verified { files: models.iter().map(Model::len).sum(), ..Verified::default() };
        let (sender, receiver) = std::sync::mpsc::channel();
        let count = models.len();
        // Not scoped: one that hangs in the kernel is left behind.
        for (n, model) in models.into_iter().enumerate() {
            let (sender, dir) = (sender.clone(), mount.join(format!("t{n}")));
            std::thread::Builder::new().spawn(move || sender.send((n, differences(&dir, &model, None))))?;
        }
        let deadline = Instant::now() + VERIFIED_WITHIN;
        for _ in 0..count {
            let left = deadline.saturating_duration_since(Instant::now());
            let (n, problems) = receiver
                .recv_timeout(left)
                .with_context(|| format!("a comparison hangs for {} s", VERIFIED_WITHIN.as_secs()))?;
            let problems = problems.unwrap_or_else(|e| vec![format!("{e:#}")]);
            verified.problems.extend(problems.into_iter().map(|p| format!("t{n}/{p}")));
        }
        Ok(verified)
    }

    /// Ends it. Threads that hang in the kernel are left behind.
    pub fn stop(self, time: Duration) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.resume();
        let deadline = Instant::now() + time;
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = self.threads.iter().filter(|t| !t.is_finished()).count();
        ensure!(left == 0, "{left} threads of the workload don't end: {:?}", self.longest());
        Ok(())
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Files compared.
    pub files: usize,
    /// What is lost, torn or there without reason.
    pub problems: Vec<String>,
}

struct Worker {
    n: usize,
    /// The thread's directory, as each mount shows it.
    dirs: Vec<PathBuf>,
    home: usize,
    shared: Arc<Shared>,
    model: Model,
    next: u64,
    rng: SmallRng,
    /// What was done last, with when it was answered.
    recent: VecDeque<(Instant, String)>,
}

impl Worker {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            if self.shared.pause.load(Ordering::SeqCst) {
                self.rest();
                continue;
            }
            if let Err(violation) = self.step() {
                let recent = self.recent.iter().map(|(at, what)| format!("{:?} ago: {what}", at.elapsed()));
                let recent = recent.collect::<Vec<_>>().join("\n  ");
                let told = format!("t{}: {violation:#}\n its last steps:\n  {recent}", self.n);
                lock(&self.shared.violations).push(told);
                // What is there isn't what must be there: nothing can be learned from going on, but a pause must not wait for it.
                self.doing(None);
                while !self.shared.stop.load(Ordering::SeqCst) {
                    self.rest();
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn rest(&self) {
        lock(&self.shared.models)[self.n] = self.model.clone();
        self.shared.paused.fetch_add(1, Ordering::SeqCst);
        while self.shared.pause.load(Ordering::SeqCst) && !self.shared.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.shared.paused.fetch_sub(1, Ordering::SeqCst);
    }

    fn doing(&self, what: Option<String>) {
        lock(&self.shared.doing)[self.n] = what.map(|w| (Instant::now(), w));
    }

    /// One operation, or one look.
    fn step(&mut self) -> Result<()> {
        self.next += 1;
        if self.rng.random_bool(0.3) {
            return self.look();
        }
        let op = self.choose();
        let began = Instant::now();
        self.doing(Some(format!("{op:?}")));
        let done = perform(&self.dirs[self.home], &self.model, &op);
        self.doing(None);
        match done {
            Ok(()) => {
                self.answered(Class::of(&op), self.home, began, format!("{op:?}"));
                model::apply(&mut self.model, &op);
                Ok(())
            }
            Err(error) => {
                self.excused(self.home, began, &format!("{op:?}: {error:#}"))?;
                self.resolve(&op)
            }
        }
    }

    fn answered(&mut self, class: Class, mount: usize, began: Instant, what: String) {
        let ended = Instant::now();
        lock(&self.shared.events).push(Event { class, mount, began, ended });
        self.recent.push_back((ended, what));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// Looks at one file, or at all names, over any mount: what was acknowledged on one is seen on every other at once.
    fn look(&mut self) -> Result<()> {
        let over = self.rng.random_range(0..self.dirs.len());
        let dir = self.dirs[over].clone();
        let names: Vec<String> = self.model.keys().cloned().collect();
        let name = names.get(self.rng.random_range(0..=names.len())).cloned();
        let began = Instant::now();
        self.doing(Some(format!("a look at {name:?} over mount {}", over + 1)));
        let found = match &name {
            Some(name) => {
                // Else the kernel's own pages would be looked at again and again.
                if self.rng.random_bool(0.3) {
                    drop_pages(&dir.join(name));
                }
                differences_of(&dir, &self.model, name)
            }
            None => names_differ(&dir, &names),
        };
        self.doing(None);
        match found {
            Ok(None) => {
                let what = format!("a look at {name:?} over mount {}", over + 1);
                self.answered(Class::Read, over, began, what);
                Ok(())
            }
            Ok(Some(problem)) => {
                anyhow::bail!("WRONG over mount {} (its own is {}): {problem}", over + 1, self.home + 1)
            }
            Err(error) => self.excused(over, began, &format!("a look at {name:?}: {error:#}")),
        }
    }

    /// Whether a fault excuses an error on a mount that came between `began` and now.
    fn excused(&self, mount: usize, began: Instant, what: &str) -> Result<()> {
        let now = Instant::now();
        let excused = lock(&self.shared.excuses)
            .iter()
            .any(|e| e.mount == mount && e.from <= now && e.until.is_none_or(|until| until >= began));
        ensure!(excused, "an error reached the application over mount {}: {what}", mount + 1);
        self.shared.excused.fetch_add(1, Ordering::SeqCst);
        // A mount that is gone answers at once: no need to ask it a thousand times a second.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// Finds out what an operation did that failed, and makes the model certain again.
    fn resolve(&mut self, op: &Op) -> Result<()> {
        self.doing(Some(format!("finding out what came of {op:?}")));
        let deadline = Instant::now() + RESOLVED_WITHIN;
        let dir = self.dirs[self.home].clone();
        let half = model::partial(&self.model, op);
        let mut compared = false;
        loop {
            let tried = (|| -> Result<Option<String>> {
                if !compared {
                    let mut fewest: Option<Vec<String>> = None;
                    for state in model::possible(&self.model, Some(op)) {
                        let problems = differences(&dir, &state, half.as_ref())?;
                        if fewest.as_ref().is_none_or(|f| problems.len() < f.len()) {
                            fewest = Some(problems);
                        }
                    }
                    let problems = fewest.unwrap_or_default();
                    if !problems.is_empty() {
                        return Ok(Some(problems.join("; ")));
                    }
                    compared = true;
                }
                for name in touched(op) {
                    match std::fs::remove_file(dir.join(&name)) {
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => {}
                        other => other.with_context(|| format!("removing {name}"))?,
                    }
                }
                sync_dir(&dir)?;
                Ok(None)
            })();
            match tried {
                Ok(None) => break,
                Ok(Some(problem)) => anyhow::bail!("LOST OR TORN after {op:?} failed: {problem}"),
                Err(error) => {
                    ensure!(Instant::now() < deadline, "what came of {op:?} can't be found out: {error:#}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        self.doing(None);
        for name in touched(op) {
            self.model.remove(&name);
        }
        Ok(())
    }

    fn choose(&mut self) -> Op {
        let generation = self.next;
        // Only the largest are sure to lie in chunks; smaller files lie within the metadata.
        let class = [0, 0, 1, 1, 2, 2, 2, 3, 3, 3][self.rng.random_range(0..10)];
        let fresh = Op::Create { name: format!("f{generation}"), file: generation, class, generation };
        let at = self.rng.random_range(0..self.model.len().max(1));
        let Some((name, file)) = self.model.iter().nth(at).map(|(n, f)| (n.clone(), f.clone())) else {
            return fresh;
        };
        let slots = file.slots.len();
        match self.rng.random_range(0..100) {
            0..30 if self.model.len() < FILES_MAX => fresh,
            0..50 if slots < SLOTS_MAX => Op::Append { name, generation },
            50..65 if slots > 0 => {
                Op::Overwrite { name, slot: self.rng.random_range(0..slots as u64), generation }
            }
            65..72 => Op::Replace { name, file: generation, class, generation },
            72..84 => Op::Rename { name, to: format!("r{generation}") },
            84..88 if slots > 0 => Op::Truncate { name, slots: self.rng.random_range(0..slots as u64) },
            _ => Op::Unlink { name },
        }
    }
}

/// Names that an operation may have made, changed or removed.
fn touched(op: &Op) -> Vec<String> {
    match op {
        Op::Replace { name, .. } => vec![name.clone(), model::temporary(name)],
        Op::Rename { name, to } => vec![name.clone(), to.clone()],
        Op::Create { name, .. }
        | Op::Append { name, .. }
        | Op::Overwrite { name, .. }
        | Op::Unlink { name }
        | Op::Truncate { name, .. }
        | Op::Check { name } => vec![name.clone()],
    }
}

fn differences_of(dir: &Path, model: &Model, name: &str) -> Result<Option<String>> {
    let problem = crate::load::worker::compare(&dir.join(name), &model[name])?;
    Ok(problem.map(|p| format!("{name}: {p}")))
}

fn names_differ(dir: &Path, wanted: &[String]) -> Result<Option<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    Ok((found != wanted).then(|| format!("there are {found:?}, not {wanted:?}")))
}

/// Lets the kernel forget a file's pages.
fn drop_pages(path: &Path) {
    if let Ok(file) = File::open(path) {
        // SAFETY: the descriptor is open, and the call touches no memory of this process.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_filesystem_passes_and_a_lost_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        // Two paths to one directory are two mounts that always agree.
        let other = dir.path().join("other");
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink(&own, &other).unwrap();
        let work = Work::start(&[own.clone(), other], 2, 1).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        work.pause(Duration::from_secs(20)).unwrap();
        assert_eq!((work.violations(), work.excused()), (Vec::<String>::new(), 0));
        assert!(work.take_events().len() > 20);
        let verified = work.verify(&own).unwrap();
        assert!(verified.files > 0 && verified.problems.is_empty(), "{verified:?}");
        let victim = std::fs::read_dir(own.join("t0")).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(&victim).unwrap();
        assert_eq!(work.verify(&own).unwrap().problems.len(), 1);
        // Files vanish in mid-work: an error that nothing excuses, or content that is wrong.
        // All of both threads': a single one might be replaced by the next operation on it, and nothing be amiss.
        for thread in ["t0", "t1"] {
            for entry in std::fs::read_dir(own.join(thread)).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        work.resume();
        let deadline = Instant::now() + Duration::from_secs(20);
        while work.violations().len() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(work.violations().len(), 2, "{:?}", work.violations());
        work.stop(Duration::from_secs(20)).unwrap();
    }
}
