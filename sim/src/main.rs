//! `mooseng-sim`: runs the region's own code in simulated time, one process for each seed (`docs/simulation.md`).

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use clap::Parser;
use mooseng_sim::run::{self, Plant};

#[derive(Parser)]
#[command(about = "Simulates three masters, three chunkservers and two clients under faults")]
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
    /// Plant a bug: then some seed must fail.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
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

fn one(seed: u64, trace: Option<PathBuf>, plant: Option<Plant>) -> Result<()> {
    let file = trace.map(File::create).transpose().context("the trace can't be written")?;
    let trace = TraceWriter(Arc::new(Mutex::new(Trace { hash: crc32fast::Hasher::new(), bytes: 0, file })));
    let writer = trace.clone();
    tracing_subscriber::fmt()
        .without_time()
        .with_ansi(false)
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .init();
    mad_turmoil::rand::set_rng(rand_sim::SeedableRng::seed_from_u64(seed));
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    let result = run::run(seed, plant);
    let trace = trace.0.lock().unwrap_or_else(PoisonError::into_inner);
    let digest = format!("{:08x}-{}", trace.hash.clone().finalize(), trace.bytes);
    match &result {
        Ok(s) => println!(
            "seed {seed}: {} operations ({} unknown), {} crashes, {} cuts, {:.0} s simulated, trace {digest}",
            s.operations,
            s.unknown,
            s.crashes,
            s.cuts,
            s.simulated.as_secs_f64()
        ),
        Err(_) => println!("seed {seed}: FAILED, trace {digest}"),
    }
    result.map(|_| ())
}

fn child(seed: u64, plant: Option<Plant>) -> Result<(bool, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &seed.to_string()]);
    if let Some(Plant::LostFlush) = plant {
        command.args(["--plant", "lost-flush"]);
    }
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((output.status.success(), text))
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        return match one(seed, args.trace, args.plant) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let (mut passed, mut failed) = (0, 0);
    for seed in args.from..args.from + args.seeds {
        let result = child(seed, args.plant).and_then(|(ok, text)| {
            println!("{text}");
            if !args.twice {
                return Ok(ok);
            }
            let (_, again) = child(seed, args.plant)?;
            let same = again == text;
            println!(
                "{}",
                if same { "  the second run is the same to the byte" } else { "  THE SECOND RUN DIFFERS" }
            );
            Ok(ok && same)
        });
        match result {
            Ok(true) => passed += 1,
            Ok(false) => failed += 1,
            Err(error) => {
                eprintln!("seed {seed} couldn't be run: {error:#}");
                failed += 1;
            }
        }
        if failed > 0 && args.plant.is_none() {
            println!("to see it again: mooseng-sim --seed {seed} --trace FILE");
        }
    }
    println!("{passed} passed, {failed} failed");
    let found = if args.plant.is_some() { failed > 0 } else { failed == 0 };
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
