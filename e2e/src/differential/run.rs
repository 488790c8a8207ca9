//! Does it, and compares.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;

use super::op::{Generator, Op, SLOTS};
use super::place::{Outcome, Place};

/// How many operations are between two looks at everything.
const LOOK_EVERY: usize = 100;
/// How many operations are between two looks at what is there, to choose from.
const KNOW_EVERY: usize = 10;
/// Operations that a failure tells of.
const SHOWN: usize = 40;

/// What is done where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Two mounts of one filesystem.
    pub mounts: [PathBuf; 2],
    /// A directory on a local filesystem.
    pub local: PathBuf,
    /// What the operations follow from.
    pub seed: u64,
    /// How many there are.
    pub operations: usize,
}

struct Run {
    generator: Generator,
    mounts: [Place; 2],
    local: Place,
    /// Which mount a slot's file was opened on.
    opened_on: [usize; SLOTS],
    log: VecDeque<String>,
}

/// Carries the operations out. Answers how many of them weren't refused. Everything is left behind where they differ.
pub fn run(settings: &Settings) -> Result<usize> {
    let Settings { mounts: [a, b], local, seed, operations } = settings;
    let name = format!("differential-{seed}");
    fs::create_dir(a.join(&name)).context("making the directory on the first mount")?;
    fs::create_dir_all(local.join(&name))?;
    let mut run = Run {
        generator: Generator::new(*seed),
        mounts: [Place::new(a.join(&name)), Place::new(b.join(&name))],
        local: Place::new(local.join(&name)),
        opened_on: [0; SLOTS],
        log: VecDeque::new(),
    };
    let mut took = 0;
    for number in 0..*operations {
        match run.step(number) {
            Ok(true) => took += 1,
            Ok(false) => {}
            Err(error) => {
                let log: Vec<String> = run.log.into();
                bail!("seed {seed}, operation {number}: {error:#}\nBefore, and last:\n{}", log.join("\n"));
            }
        }
    }
    drop(run);
    fs::remove_dir_all(a.join(&name)).context("removing everything")?;
    ensure!(!b.join(&name).exists(), "the other mount shows a directory that was removed");
    fs::remove_dir_all(local.join(&name))?;
    Ok(took)
}

impl Run {
    /// One operation. Answers whether it was done.
    fn step(&mut self, number: usize) -> Result<bool> {
        if number.is_multiple_of(KNOW_EVERY) {
            self.generator.known = self.local.names()?;
        }
        self.generator.open = self.local.open();
        let op = self.generator.op();
        let mut which = self.generator.rng.random_range(0..2);
        if let Some(slot) = op.slot() {
            which = self.opened_on[slot];
        }
        let expected = self.local.apply(&op);
        let outcome = self.mounts[which].apply(&op);
        if self.log.len() == SHOWN {
            self.log.pop_front();
        }
        self.log.push_back(format!("{number}, mount {}: {op:?}: {outcome:?}", ["A", "B"][which]));
        ensure!(
            outcome == expected,
            "it answered {outcome:?}, locally {expected:?}{}",
            parted(&outcome, &expected)
        );
        if let (Op::Open { slot, .. }, Outcome::Done) = (&op, &outcome) {
            self.mounts[1 - which].close(*slot);
            self.opened_on[*slot] = which;
        }
        for path in op.paths() {
            self.compare(path)?;
            if let Some(parent) = path.parent() {
                self.compare(parent)?;
            }
        }
        if number % LOOK_EVERY == LOOK_EVERY - 1 {
            self.compare_below(Path::new(""))?;
        }
        Ok(!matches!(outcome, Outcome::Refused(_) | Outcome::NotOpen))
    }

    fn compare_below(&mut self, path: &Path) -> Result<()> {
        self.compare(path)?;
        let Some((seen, _)) = self.local.look(path)? else { return Ok(()) };
        for name in seen.names.keys() {
            self.compare_below(&path.join(name))?;
        }
        Ok(())
    }

    /// Both mounts, one after the other, show what there is locally.
    fn compare(&mut self, path: &Path) -> Result<()> {
        let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path }.display();
        let expected = self.local.look(path).context("looking at the local directory")?;
        let first = self.generator.rng.random_range(0..2);
        let mut found = Vec::new();
        for which in [first, 1 - first] {
            let name = ["A", "B"][which];
            let look = self.mounts[which].look(path).with_context(|| format!("mount {name}, {shown}"))?;
            let (is, should) = (look.as_ref().map(|l| &l.0), expected.as_ref().map(|l| &l.0));
            if is != should {
                let at = is.zip(should).and_then(|(is, should)| first_apart(&is.content, &should.content));
                let at = at.map_or_else(String::new, |at| format!(", the contents part at byte {at}"));
                bail!("mount {name} shows at {shown}:\n  {is:?}, there is\n  {should:?}{at}");
            }
            found.push((name, look.map(|l| l.1)));
        }
        let [(one, is), (other, too)] = &found[..] else { return Ok(()) };
        ensure!(is == too, "at {shown} mount {one} shows\n  {is:?}, mount {other}\n  {too:?}");
        Ok(())
    }
}

fn parted(is: &Outcome, should: &Outcome) -> String {
    match (is, should) {
        (Outcome::Bytes(is), Outcome::Bytes(should)) => {
            first_apart(is, should).map_or_else(String::new, |at| format!(", which part at byte {at}"))
        }
        _ => String::new(),
    }
}

fn first_apart(is: &[u8], should: &[u8]) -> Option<usize> {
    let at = is.iter().zip(should).position(|(is, should)| is != should);
    at.or_else(|| (is.len() != should.len()).then(|| is.len().min(should.len())))
}
