//! Printing: tables for people, JSON for programs. Data on stdout, talk on stderr.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::exit::Failure;

/// The version of every JSON shape that this command prints. It changes when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::failed(format!("The answer couldn't be written as JSON: {e}")))?;
    text_line(&text)
}

/// Prints text on stdout. A reader that went away (`| head`) is no error.
pub fn text_line(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::failed(format!("The answer couldn't be written to stdout: {e}"))),
    }
}

/// A path as it is typed in a shell: in quotes where it has to be.
pub fn shell_quote(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A table with a header, its columns as wide as they must be.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these columns.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self(vec![header.iter().map(|h| (*h).to_owned()).collect()])
    }
    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.into());
    }
    /// Whether there is nothing but the header.
    pub fn is_empty(&self) -> bool {
        self.0.len() < 2
    }
    /// The text, without a newline at its end.
    pub fn render(&self) -> String {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |c: usize| self.0.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}", w = *w)).collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Bytes for people: 1.5 GiB.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(["NAME", "PID"]);
        table.row(["master-1".into(), "7".into()]);
        assert_eq!(table.render(), "NAME      PID\nmaster-1  7");
    }

    #[test]
    fn paths_are_quoted_where_a_shell_would_split_them() {
        for (path, typed) in [
            ("/srv/dev-1/etc/region-1.admin.toml", "/srv/dev-1/etc/region-1.admin.toml"),
            ("/srv/my cluster", "'/srv/my cluster'"),
            ("/srv/$HOME", "'/srv/$HOME'"),
            ("/srv/it's", r"'/srv/it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(shell_quote(Path::new(path)), typed);
        }
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
