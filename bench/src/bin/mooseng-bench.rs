//! `mooseng-bench`: see `docs/bench.md`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use mooseng_bench::run::Plan;
use mooseng_bench::scenario::Sizes;
use mooseng_bench::{run, worker};
use mooseng_ports::interrupt;

/// Measures MooseNG beside a FUSE passthrough and the bare directory.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Args {
    /// A new directory on a disk, for everything that the run needs; removed at the end.
    #[arg(long, default_value = ".mooseng-bench")]
    dir: PathBuf,
    /// Less of everything, one round: about two minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds instead of the default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only these measures or scenarios, separated by commas.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How to print the result.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    output: Format,
    /// Write the result into this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail (exit code 1) where a gate is missed, or an fsync had no flush.
    #[arg(long)]
    gate: bool,
    /// Don't count the daemons' flushes with strace during overwrites.
    #[arg(long)]
    no_strace: bool,
    /// Measure the daemons' memory for 100,000 files also with --quick or --only.
    #[arg(long, conflicts_with = "no_memory")]
    memory: bool,
    /// Don't measure it.
    #[arg(long)]
    no_memory: bool,
    /// Have MooseNG's mount read over the network what it could read from chunkservers' files on this host.
    #[arg(long)]
    over_network: bool,
    /// Leave the directory, with the daemons' logs.
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// One process of a measurement.
    #[command(hide = true)]
    Worker,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs; the shape carries a version.
    Json,
}

fn main() -> ExitCode {
    // Not by returning it: where backtraces are asked for, one would bury what a user did wrong.
    run_with(Args::parse()).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn run_with(args: Args) -> Result<ExitCode> {
    if let Some(Command::Worker) = args.command {
        return worker::serve().map(|()| ExitCode::SUCCESS);
    }
    interrupt::catch();
    let mut sizes = if args.quick { Sizes::QUICK } else { Sizes::DEFAULT };
    sizes.rounds = args.rounds.unwrap_or(sizes.rounds);
    let everything = !args.quick && args.only.is_empty();
    let report = run::run(&Plan {
        dir: args.dir,
        sizes,
        only: args.only,
        strace: !args.no_strace,
        memory: args.memory || (everything && !args.no_memory),
        over_network: args.over_network,
        keep: args.keep,
    })?;
    let json = serde_json::to_string_pretty(&report)?;
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{json}\n")).with_context(|| format!("writing {}", path.display()))?;
    }
    match args.output {
        Format::Table => print!("{}", report.table()),
        Format::Json => println!("{json}"),
    }
    let unkept = report.flushes.iter().flatten().any(|f| !f.kept());
    let failed = report.failed();
    if args.gate && (unkept || !failed.is_empty()) {
        eprintln!("Gates missed: {}", if failed.is_empty() { "flushes".into() } else { failed.join(", ") });
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
