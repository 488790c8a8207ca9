//! `mooseng-passthrough DIR MOUNT`: serves DIR on MOUNT until that is unmounted. The yardstick of `mooseng-bench`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

/// A FUSE filesystem that passes everything on to a directory.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The directory to show.
    dir: PathBuf,
    /// Where.
    mount: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = std::fs::canonicalize(&args.dir).with_context(|| format!("{}", args.dir.display()))?;
    let mount = std::fs::canonicalize(&args.mount).with_context(|| format!("{}", args.mount.display()))?;
    mooseng_bench::passthrough::serve(&dir, &mount)
        .with_context(|| format!("serving {} on {}", dir.display(), mount.display()))
}
