//! Runs a campaign of [`mooseng_e2e::faults`].

use std::process::ExitCode;

use clap::Parser;
use mooseng_e2e::faults::campaign::{self, Settings};
use mooseng_e2e::faults::plan;

/// Lets faults strike a region of real daemons and looks whether a promise breaks.
#[derive(Parser)]
struct Args {
    /// Where every choice starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many rounds.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Threads of the workload.
    #[arg(long, default_value_t = 6)]
    threads: usize,
    /// A bug to plant in the daemons, which must have been built with the cargo feature `plants`: then the campaign must fail.
    #[arg(long)]
    plant: Option<String>,
    /// Prints the plan and does nothing.
    #[arg(long)]
    plan: bool,
}

fn main() -> ExitCode {
    let Args { seed, rounds, threads, plant, plan } = Args::parse();
    if plan {
        plan::plan(seed, rounds).iter().for_each(|round| println!("{round}"));
        return ExitCode::SUCCESS;
    }
    let planted = plant.clone();
    let outcome = campaign::run(&Settings { seed, rounds, threads, plant });
    match (outcome, planted) {
        (Ok(()), None) => ExitCode::SUCCESS,
        (Err(error), None) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
        (Ok(()), Some(plant)) => {
            println!("FAILED: the planted bug {plant} wasn't found in {rounds} rounds with seed {seed}");
            ExitCode::FAILURE
        }
        (Err(error), Some(plant)) => {
            println!("the planted bug {plant} was found: {error:#}");
            ExitCode::SUCCESS
        }
    }
}
