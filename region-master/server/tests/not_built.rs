//! docs/not-built.md lists each site that answers NotBuilt, and no other.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeSet;
use std::path::Path;

const ROOTS: [&str; 5] = ["client", "chunkserver", "metadata", "proto", "region-master"];

fn sources(dir: &Path, found: &mut Vec<(String, String)>, root: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "tests" | "target") {
                sources(&path, found, root);
            }
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let inside = path.strip_prefix(root).unwrap().components().take(2);
            let crate_dir: Vec<String> =
                inside.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
            for site in text.split("not_built(").skip(1) {
                if let Some(feature) = site.trim_start().strip_prefix('"').and_then(|s| s.split('"').next()) {
                    found.push((crate_dir.join("/"), feature.to_owned()));
                }
            }
        }
    }
}

#[test]
fn the_list_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    for dir in ROOTS {
        sources(&root.join(dir), &mut found, &root);
    }
    let built: BTreeSet<String> =
        found.into_iter().map(|(c, feature)| format!("| {c} | {feature} |")).collect();
    let page = std::fs::read_to_string(root.join("docs/not-built.md")).unwrap();
    let rows =
        page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| crate ") && !l.starts_with("| ---"));
    let listed: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(built, listed, "left: what the code has; right: what docs/not-built.md lists");
}
