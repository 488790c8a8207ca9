//! Looks through daemons' logs: a WARN or ERROR that isn't expected is a failure, for ERROR means that a person must look.

use std::path::Path;

use anyhow::{Context, Result};

/// Lines that complain and contain none of `expected`, with the file's name.
pub fn complaints(dir: &Path, expected: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for line in text.lines().filter(|l| complains(l) && !expected.iter().any(|e| l.contains(e))) {
            found.push(format!("{name}: {line}"));
        }
    }
    found.sort();
    Ok(found)
}

fn complains(line: &str) -> bool {
    let words = ["\"level\":\"WARN\"", "\"level\":\"ERROR\"", " WARN ", " ERROR ", "panicked at"];
    words.iter().any(|w| line.contains(w)) || line.starts_with("ERROR") || line.starts_with("WARN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_in_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let lines = [
            r#"{"timestamp":"x","level":"INFO","fields":{"message":"all is well"}}"#,
            r#"{"timestamp":"x","level":"WARN","fields":{"message":"a peer is gone"}}"#,
            "2026-01-01T00:00:00Z ERROR mooseng_master: the disk is gone",
            "thread 'main' panicked at src/x.rs:1:1:",
        ];
        std::fs::write(dir.path().join("master-1.log"), lines.join("\n")).unwrap();
        assert_eq!(complaints(dir.path(), &[]).unwrap().len(), 3);
        assert_eq!(complaints(dir.path(), &["a peer is gone"]).unwrap().len(), 2);
    }
}
