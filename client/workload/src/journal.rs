//! The journal: one file for each thread, on local disk, a line when an operation begins and one when it was answered.
//!
//! ```text
//!  B <sequence> <nanoseconds> <operation as JSON>
//!  E <sequence> <nanoseconds> ok | <error>
//! ```
//! Nanoseconds are CLOCK_MONOTONIC, which all processes of a machine share.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::model::Op;

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    t.as_nanos() as u64
}

/// A thread's journal, being written.
pub struct Journal(File);

impl Journal {
    /// Starts one.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self(File::create(path).with_context(|| format!("creating {}", path.display()))?))
    }
    /// Each line is one write: a kill of this very process tears none.
    fn line(&mut self, text: &str) -> Result<()> {
        self.0.write_all(text.as_bytes()).context("writing the journal")
    }
    /// Before an operation.
    pub fn begin(&mut self, sequence: u64, op: &Op) -> Result<()> {
        self.line(&format!("B {sequence} {} {}\n", now_ns(), serde_json::to_string(op)?))
    }
    /// After it.
    pub fn end(&mut self, sequence: u64, outcome: Result<(), &str>) -> Result<()> {
        let word = outcome.map_or_else(|e| e.replace('\n', " "), |()| "ok".to_owned());
        self.line(&format!("E {sequence} {} {word}\n", now_ns()))
    }
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// An operation began.
    Begin {
        /// When.
        ns: u64,
        /// What, as JSON.
        op: String,
    },
    /// It was answered.
    End {
        /// When.
        ns: u64,
        /// The error, if it failed.
        error: Option<String>,
    },
}

/// Reads a journal; an unfinished last line is left out.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = String::from_utf8(line?)?;
        let mut parts = line.splitn(4, ' ');
        let (Some(kind), Some(_), Some(ns), Some(rest)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let Ok(ns) = ns.parse() else { continue };
        lines.push(match kind {
            "B" => Line::Begin { ns, op: rest.to_owned() },
            _ => Line::End { ns, error: (rest != "ok").then(|| rest.to_owned()) },
        });
    }
    Ok(lines)
}

/// The journals in a directory.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "journal"))
        .collect();
    files.sort();
    Ok(files)
}

/// When operations of all threads began and were answered.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// (began, answered) of each; the answer is missing if there was none.
    pub spans: Vec<(u64, Option<u64>)>,
    /// Errors that the application saw.
    pub errors: Vec<String>,
}

impl Timeline {
    /// Reads all journals of a directory.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut all = Self::default();
        for path in files(dir)? {
            for line in read(&path)? {
                match line {
                    Line::Begin { ns, .. } => all.spans.push((ns, None)),
                    Line::End { ns, error } => {
                        if let Some(last) = all.spans.last_mut() {
                            last.1 = Some(ns);
                        }
                        all.errors.extend(error);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Operations answered in (from, to].
    pub fn answered_between(&self, from: u64, to: u64) -> usize {
        self.spans.iter().filter(|s| s.1.is_some_and(|e| e > from && e <= to)).count()
    }

    /// Operations that had begun and weren't answered at that moment.
    pub fn unanswered_at(&self, moment: u64) -> usize {
        self.spans.iter().filter(|s| s.0 < moment && s.1.is_none_or(|e| e > moment)).count()
    }

    /// The longest time without any answer that ends in (from, to], and the longest operation that was under way in it.
    pub fn stall(&self, from: u64, to: u64) -> (f64, f64) {
        let mut ends: Vec<u64> = self.spans.iter().filter_map(|s| s.1).filter(|e| *e <= to).collect();
        ends.sort_unstable();
        let gap = ends.windows(2).filter(|w| w[1] > from).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let under_way =
            self.spans.iter().filter_map(|s| Some((s.0, s.1?))).filter(|(b, e)| *e > from && *b <= to);
        let longest = under_way.map(|(b, e)| e - b).max().unwrap_or(0);
        (gap as f64 / 1e9, longest as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_back_without_its_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t0.journal");
        let op = Op::Check { name: "x".into() };
        let mut journal = Journal::create(&path).unwrap();
        journal.begin(0, &op).unwrap();
        journal.end(0, Ok(())).unwrap();
        journal.begin(1, &op).unwrap();
        journal.end(1, Err("EIO: bad\nluck")).unwrap();
        journal.line("B 2 1").unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines.len(), 4);
        assert!(matches!(&lines[3], Line::End { error: Some(e), .. } if e == "EIO: bad luck"));
    }

    #[test]
    fn a_stall_is_measured() {
        let s = |b: u64, e: u64| (b * 1_000_000_000, Some(e * 1_000_000_000));
        let timeline = Timeline {
            spans: vec![s(0, 1), s(1, 2), s(2, 7), s(3, 7), (8_000_000_000, None)],
            errors: vec![],
        };
        assert_eq!(timeline.answered_between(0, 2_000_000_000), 2);
        assert_eq!(timeline.unanswered_at(4_000_000_000), 2);
        assert_eq!(timeline.stall(3_000_000_000, 9_000_000_000), (5.0, 5.0));
    }
}
