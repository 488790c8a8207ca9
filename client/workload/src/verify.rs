//! Compares what is found with what was acknowledged.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use crate::journal::{self, Line};
use crate::model::{self, Model, Op, Partial};
use crate::worker::{compare, is_partly_written};

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Threads whose directories were compared.
    pub threads: usize,
    /// Files compared.
    pub files: usize,
    /// Operations that were acknowledged.
    pub acknowledged: usize,
    /// Operations whose outcome nobody was told.
    pub unanswered: usize,
    /// What is lost, torn, or there without reason.
    pub problems: Vec<String>,
}

/// Compares the directories of all threads with their journals.
pub fn verify(dir: &Path, journals: &Path) -> Result<Report> {
    let mut report = Report::default();
    for path in journal::files(journals)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (model, pending) = replay(&path, &mut report)?;
        report.threads += 1;
        report.files += model.len();
        report.unanswered += usize::from(pending.is_some());
        let thread_dir = dir.join(&name);
        let half = pending.as_ref().and_then(|op| model::partial(&model, op));
        let mut fewest: Option<Vec<String>> = None;
        for state in model::possible(&model, pending.as_ref()) {
            let problems = differences(&thread_dir, &state, half.as_ref())?;
            if fewest.as_ref().is_none_or(|f| problems.len() < f.len()) {
                fewest = Some(problems);
            }
        }
        let problems = fewest.unwrap_or_default();
        report.problems.extend(problems.into_iter().map(|p| format!("{name}/{p} (unanswered: {pending:?})")));
    }
    Ok(report)
}

/// The model after all that was acknowledged, and the operation that wasn't answered, or failed.
fn replay(path: &Path, report: &mut Report) -> Result<(Model, Option<Op>)> {
    let mut model = Model::new();
    let mut pending: Option<Op> = None;
    for line in journal::read(path)? {
        match line {
            Line::Begin { op, .. } => {
                pending =
                    Some(serde_json::from_str(&op).with_context(|| format!("in {}: {op}", path.display()))?)
            }
            Line::End { error: None, .. } => {
                if let Some(op) = pending.take() {
                    model::apply(&mut model, &op);
                    report.acknowledged += 1;
                }
            }
            Line::End { error: Some(_), .. } => {}
        }
    }
    Ok((model, pending))
}

/// What a directory has that it must not have, and lacks that it must have. `half` may be half written.
pub fn differences(dir: &Path, model: &Model, half: Option<&Partial>) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec!["the directory is LOST".to_owned()]);
        }
        Err(e) => return Err(e).with_context(|| format!("listing {}", dir.display())),
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        found.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    let half_written = |name: &str| -> Result<bool> {
        let Some(half) = half.filter(|h| h.name == name) else { return Ok(false) };
        Ok(is_partly_written(&std::fs::read(dir.join(name))?, half))
    };
    for name in &found {
        if !model.contains_key(name) && !half_written(name)? {
            problems.push(format!("{name} is there, but was removed or never made"));
        }
    }
    for (name, file) in model {
        if !found.contains(name) {
            problems.push(format!("{name} is LOST"));
        } else if let Some(problem) = compare(&dir.join(name), file)?
            && !half_written(name)?
        {
            problems.push(format!("{name}: {problem}"));
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::{SIZES, record};
    use crate::worker::{Settings, run};

    fn worked(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
        let (data, journals) = (dir.join("data"), dir.join("journals"));
        let settings = Settings {
            dir: data.clone(),
            journals: journals.clone(),
            threads: 3,
            time: Duration::from_millis(600),
            seed: 7,
            go_on: false,
        };
        let outcome = run(&settings, || false).unwrap();
        assert_eq!(outcome.errors, Vec::<String>::new());
        assert!(outcome.operations > 50, "{}", outcome.operations);
        (data, journals)
    }

    #[test]
    fn a_good_filesystem_passes_and_planted_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (data, journals) = worked(dir.path());
        assert_eq!(verify(&data, &journals).unwrap().problems, Vec::<String>::new());

        let files = |n: usize| {
            let entries = std::fs::read_dir(data.join(format!("t{n}"))).unwrap();
            entries
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.metadata().unwrap().len() > 0)
                .collect::<Vec<_>>()
        };
        // One is lost, one has a flipped bit, one is there without reason.
        std::fs::remove_file(&files(0)[0]).unwrap();
        let victim = files(1)[0].clone();
        let mut bytes = std::fs::read(&victim).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&victim, bytes).unwrap();
        std::fs::write(data.join("t2/stranger"), record(1, 0, 1, SIZES[0])).unwrap();
        let problems = verify(&data, &journals).unwrap().problems;
        assert_eq!(problems.len(), 3, "{problems:?}");
        for word in ["LOST", "TORN", "never made"] {
            assert!(problems.iter().any(|p| p.contains(word)), "{word}: {problems:?}");
        }
        std::fs::remove_dir_all(data.join("t0")).unwrap();
        let problems = verify(&data, &journals).unwrap().problems;
        assert!(problems.iter().any(|p| p.contains("the directory is LOST")), "{problems:?}");
    }
}
