//! `mooseng-sim`: runs the region's own code in simulated time, one process for each seed (`docs/simulation.md`).

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use mooseng_ports::plant::{self, Plant};
use mooseng_sim::{hosts, regions, run};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// How many seeds, where nobody says.
const SEEDS: u64 = 10;

#[derive(Parser)]
#[command(about = "Simulates a region, or three of them, under faults")]
struct Args {
    /// How many seeds [default: 10].
    #[arg(long, conflicts_with = "seconds")]
    seeds: Option<u64>,
    /// As many seeds, one after the other, as begin within so many seconds.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// The first seed [default: 1; with --for one that is drawn, and said].
    #[arg(long)]
    from: Option<u64>,
    /// Run this seed alone, in this process.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the run's log there (with --seed).
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Three regions instead of one.
    #[arg(long)]
    regions: bool,
    /// Plant a bug: then some seed must fail, and the first that does ends it. Needs the cargo feature `plants`.
    #[arg(long)]
    plant: Option<Plant>,
    /// What is logged, and hashed: info, or debug.
    #[arg(long, default_value_t = tracing::Level::INFO)]
    level: tracing::Level,
    /// Run each seed twice and compare the runs byte by byte.
    #[arg(long)]
    twice: bool,
}

/// Everything that is logged, hashed; and kept, if asked for.
struct Trace {
    hash: crc32fast::Hasher,
    bytes: u64,
    file: Option<File>,
}

#[derive(Clone)]
struct TraceWriter(Arc<Mutex<Trace>>);

impl Write for TraceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut trace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trace.hash.update(bytes);
        trace.bytes += bytes.len() as u64;
        if let Some(file) = &mut trace.file {
            file.write_all(bytes)?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Simulated time, in front of each line.
struct SimTime;

impl FormatTime for SimTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:9.3}", hosts::now().as_secs_f64())
    }
}

fn one(seed: u64, regions: bool, trace: Option<PathBuf>, level: tracing::Level) -> Result<()> {
    let file = trace.map(File::create).transpose().context("the trace can't be written")?;
    let trace = TraceWriter(Arc::new(Mutex::new(Trace { hash: crc32fast::Hasher::new(), bytes: 0, file })));
    let writer = trace.clone();
    tracing_subscriber::fmt()
        .with_timer(SimTime)
        .with_ansi(false)
        .with_max_level(level)
        .with_writer(move || writer.clone())
        .init();
    mad_turmoil::rand::set_rng(rand_sim::SeedableRng::seed_from_u64(seed));
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    let result = if regions {
        regions::run::run(seed).map(|summary| summary.to_string())
    } else {
        run::run(seed).map(|summary| summary.to_string())
    };
    let trace = trace.0.lock().unwrap_or_else(PoisonError::into_inner);
    let digest = format!("{:08x}-{}", trace.hash.clone().finalize(), trace.bytes);
    match &result {
        Ok(summary) => println!("seed {seed}: {summary}, trace {digest}"),
        Err(_) => println!("seed {seed}: FAILED, trace {digest}"),
    }
    result.map(|_| ())
}

fn child(seed: u64, args: &Args) -> Result<(bool, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    let level = if args.twice { tracing::Level::DEBUG } else { args.level };
    command.args(["--seed", &seed.to_string(), "--level", level.as_str()]);
    if args.regions {
        command.arg("--regions");
    }
    if let Some(plant) = args.plant {
        command.args(["--plant", plant.name()]);
    }
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((output.status.success(), text))
}

/// Runs a seed in a process of its own; answers whether it passed.
fn seed(seed: u64, args: &Args) -> Result<bool> {
    let (ok, text) = child(seed, args)?;
    println!("{text}");
    if !args.twice {
        return Ok(ok);
    }
    let (_, again) = child(seed, args)?;
    let same = again == text;
    println!("  {}", if same { "the second run is the same to the byte" } else { "THE SECOND RUN DIFFERS" });
    Ok(ok && same)
}

/// A first seed, beyond those that everybody runs, and short enough to be typed.
fn drawn() -> u64 {
    rand::random_range(10_000..1_000_000_000)
}

fn many(args: &Args) -> ExitCode {
    let (began, mut passed, mut failed) = (Instant::now(), 0, 0);
    let end = args.seconds.map(|seconds| began + Duration::from_secs(seconds));
    let from = args.from.unwrap_or_else(|| if end.is_some() { drawn() } else { 1 });
    let most = if end.is_some() { u64::MAX } else { args.seeds.unwrap_or(SEEDS) };
    let regions = if args.regions { "--regions " } else { "" };
    if let Some(seconds) = args.seconds {
        println!("seeds from {from} on for {seconds} s: mooseng-sim {regions}--for {seconds} --from {from}");
    }
    for number in from..from.saturating_add(most) {
        // One at least; and each that was begun is finished.
        if number > from && end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        let ok = seed(number, args).unwrap_or_else(|error| {
            eprintln!("seed {number} couldn't be run: {error:#}");
            false
        });
        if ok {
            passed += 1;
            continue;
        }
        failed += 1;
        match args.plant {
            Some(plant) => {
                println!("{plant} was found with seed {number}");
                return ExitCode::SUCCESS;
            }
            None => println!("to see it again: mooseng-sim {regions}--seed {number} --trace FILE"),
        }
    }
    let seeds = passed + failed;
    match args.seconds {
        Some(_) => println!(
            "{passed} passed, {failed} failed: {seeds} seeds from {from} on in {:.0} s",
            began.elapsed().as_secs_f64()
        ),
        None => println!("{passed} passed, {failed} failed"),
    }
    match args.plant {
        Some(plant) => {
            eprintln!("{plant} WASN'T FOUND within {seeds} seeds");
            ExitCode::FAILURE
        }
        None if failed == 0 => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(plant) = args.plant
        && let Err(error) = plant::set(plant)
    {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let Some(seed) = args.seed else { return many(&args) };
    match one(seed, args.regions, args.trace, args.level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
