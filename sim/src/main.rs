//! `mooseng-sim`: runs the region's own code in simulated time, one process for each seed (`docs/simulation.md`).

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use clap::Parser;
use mooseng_ports::plant::{self, Plant};
use mooseng_sim::{hosts, regions, run};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

#[derive(Parser)]
#[command(about = "Simulates a region, or three of them, under faults")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
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

fn many(args: &Args) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for number in args.from..args.from + args.seeds {
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
            None => {
                let regions = if args.regions { "--regions " } else { "" };
                println!("to see it again: mooseng-sim {regions}--seed {number} --trace FILE");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    match args.plant {
        Some(plant) => {
            eprintln!("{plant} WASN'T FOUND within {} seeds", args.seeds);
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
