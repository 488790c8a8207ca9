//! Runs and verifies the workload of [`mooseng_e2e::load`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use mooseng_e2e::load::{self, Settings, verify};

/// A workload that knows what it was promised.
#[derive(Parser)]
enum Args {
    /// Works; exits with 1 if any operation failed.
    Run {
        /// The directory to work in, on the mount under test.
        #[arg(long)]
        dir: PathBuf,
        /// The directory of the journals, on a disk that isn't under test.
        #[arg(long)]
        journals: PathBuf,
        /// How many threads.
        #[arg(long, default_value_t = 8)]
        threads: usize,
        /// How long at most.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Ends when this file exists.
        #[arg(long)]
        stop_file: Option<PathBuf>,
        /// Where the random choices start.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Compares what is there with what was acknowledged; exits with 1 if anything is lost or torn.
    Verify {
        /// The directory that was worked in.
        #[arg(long)]
        dir: PathBuf,
        /// The directory of the journals.
        #[arg(long)]
        journals: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    let problems = match Args::parse() {
        Args::Run { dir, journals, threads, seconds, stop_file, seed } => {
            let time = Duration::from_secs(seconds);
            let stopped = || stop_file.as_ref().is_some_and(|file| file.exists());
            let outcome = load::run(&Settings { dir, journals, threads, time, seed, go_on: false }, stopped)?;
            println!("{} operations acknowledged, {} errors", outcome.operations, outcome.errors.len());
            outcome.errors
        }
        Args::Verify { dir, journals } => {
            let report = verify::verify(&dir, &journals)?;
            println!(
                "{} threads, {} files, {} operations acknowledged, {} unanswered, {} problems",
                report.threads,
                report.files,
                report.acknowledged,
                report.unanswered,
                report.problems.len()
            );
            report.problems
        }
    };
    for problem in &problems {
        eprintln!("{problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
