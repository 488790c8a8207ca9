//! docs/not-built.md and the code name the same things.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use crate::cluster::workspace;

    /// (what, file) of every call of a function `not_built` with a literal.
    fn sites(dir: &Path, root: &Path, found: &mut BTreeSet<(String, String)>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | "tests" | ".git") {
                    sites(&path, root, found);
                }
            } else if name.ends_with(".rs") && path != root.join("e2e/src/not_built.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for piece in text.split("not_built(").skip(1) {
                    if let Some(what) = piece.trim_start().strip_prefix('"').and_then(|p| p.split('"').next()) {
                        let file = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                        found.insert((what.to_owned(), file));
                    }
                }
            }
        }
    }

    #[test]
    fn the_page_lists_every_site() {
        let root = workspace();
        let mut code = BTreeSet::new();
        sites(&root, &root, &mut code);
        let page = std::fs::read_to_string(root.join("docs/not-built.md")).unwrap();
        let row = |line: &str| {
            let (what, file) = line.strip_prefix("| `")?.strip_suffix(" |")?.rsplit_once("` | ")?;
            Some((what.to_owned(), file.to_owned()))
        };
        let listed: BTreeSet<_> = page.lines().filter_map(row).collect();
        assert_eq!(listed, code, "left: docs/not-built.md, right: the code");
    }
}
