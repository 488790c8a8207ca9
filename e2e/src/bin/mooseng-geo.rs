//! Runs a campaign of [`mooseng_e2e::geo`].

use std::process::ExitCode;

use clap::Parser;
use mooseng_e2e::geo::campaign::{self, Settings};
use mooseng_e2e::geo::cluster::COUNTS;
use mooseng_e2e::geo::plan::{self, KINDS, Kind};
use mooseng_e2e::network::Way;

/// Loses the home region of a geo volume again and again, and looks whether a promise breaks.
#[derive(Parser)]
struct Args {
    /// Where every choice starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many rounds of each kind.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Only these kinds.
    #[arg(long, value_parser = kind, value_name = "cut|cut-out|cut-in|kill|pause", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// How many regions with data, 2 to 4; each has three masters and three chunkservers.
    #[arg(long, default_value_t = *COUNTS.start(), value_parser = regions)]
    regions: usize,
    /// Goes on with the next round after one that failed, as long as the cluster becomes whole again.
    #[arg(long)]
    keep_going: bool,
    /// Removes a file behind the workload's back: then the campaign must fail.
    #[arg(long)]
    plant_loss: bool,
    /// Prints the plan and does nothing.
    #[arg(long)]
    plan: bool,
}

fn kind(word: &str) -> Result<Kind, String> {
    match word {
        "cut" => Ok(Kind::Cut(Way::Both)),
        "cut-out" => Ok(Kind::Cut(Way::Out)),
        "cut-in" => Ok(Kind::Cut(Way::In)),
        "kill" => Ok(Kind::Kill),
        "pause" => Ok(Kind::Pause),
        _ => Err("it is cut, cut-out, cut-in, kill or pause".into()),
    }
}

fn regions(word: &str) -> Result<usize, String> {
    let count = word.parse::<usize>().ok().filter(|count| COUNTS.contains(count));
    count.ok_or_else(|| format!("it is a number of {COUNTS:?}"))
}

fn main() -> ExitCode {
    let Args { seed, rounds, kinds, regions, keep_going, plant_loss, plan } = Args::parse();
    let kinds = if kinds.is_empty() { KINDS.to_vec() } else { kinds };
    if plan {
        plan::plan(seed, rounds, &kinds).iter().for_each(|round| println!("{round}"));
        return ExitCode::SUCCESS;
    }
    let settings = Settings { seed, rounds, kinds, regions, keep_going, plant_loss };
    match (campaign::run(&settings), plant_loss) {
        (Ok(()), false) => ExitCode::SUCCESS,
        (Err(error), false) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
        (Ok(()), true) => {
            println!("FAILED: the file that was removed wasn't missed");
            ExitCode::FAILURE
        }
        (Err(error), true) => {
            println!("the planted loss was found: {error:#}");
            ExitCode::SUCCESS
        }
    }
}
