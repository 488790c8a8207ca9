//! Prints the figures of [`mooseng_e2e::geo::bench`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mooseng_e2e::geo::bench::{self, Sizes};

/// Measures a cluster of two regions and a witness, 60 ms from each other.
#[derive(Parser)]
struct Args {
    /// A few minutes less.
    #[arg(long)]
    quick: bool,
    /// Writes the figures there, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A goal that is missed makes exit code 1.
    #[arg(long)]
    gate: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let report = match bench::run(if args.quick { Sizes::QUICK } else { Sizes::WHOLE }) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("{} build, {} processors, load before {}", report.build, report.processors, report.load_before);
    if let Some(path) = &args.json
        && let Err(error) = bench::write(&report, path)
    {
        eprintln!("FAILED: {error:#}");
        return ExitCode::FAILURE;
    }
    let missed = report.figures.iter().filter(|figure| figure.is_met() == Some(false)).count();
    if args.gate && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
