//! Completions and manual pages, from the command line's own description.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Args;
use crate::exit::Failure;

/// Prints completions for a shell.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    clap_complete::generate(shell, &mut Args::command(), "mooseng", &mut std::io::stdout());
    Ok(())
}

/// Writes a page for each command.
pub fn man(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Args::command(), dir)).map_err(|e| {
        Failure::failed(format!("The manual pages couldn't be written to {}: {e}", dir.display()))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn manual_pages_are_written() {
        let dir = tempfile::tempdir().unwrap();
        super::man(dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("mooseng-mount.1")).unwrap();
        assert!(page.contains("foreground"));
    }
}
