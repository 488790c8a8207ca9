//! Random operations through two mounts and in a local directory, compared.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mooseng_e2e::differential::{Settings, run};

/// Carries random operations out through two mounts of one filesystem and in a local directory, and compares.
#[derive(Parser)]
struct Args {
    /// What the operations follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many operations.
    #[arg(long, default_value_t = 2_000)]
    operations: usize,
    /// A directory on a local filesystem that has everything that MooseNG has, as ext4.
    #[arg(long)]
    local: PathBuf,
    /// A mount.
    one: PathBuf,
    /// Another mount of the same filesystem.
    other: PathBuf,
}

fn main() -> ExitCode {
    let Args { seed, operations, local, one, other } = Args::parse();
    match run(&Settings { mounts: [one, other], local, seed, operations }) {
        Ok(took) => {
            println!("{operations} operations, {took} of them not refused");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
