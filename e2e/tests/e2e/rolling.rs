//! Every daemon is restarted, one after the other, while programs work: none of them sees an error.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of a file that goes to chunks.
const LARGE: usize = 300_000;

/// What a worker did.
#[derive(Debug, Default)]
struct Done {
    operations: u64,
    longest: Duration,
}

impl Done {
    fn took(&mut self, began: Instant) {
        self.operations += 1;
        self.longest = self.longest.max(began.elapsed());
    }
}

/// Asks each daemon to end, starts it again, and waits until all is whole before the next one.
pub fn restart_all(cluster: &DevCluster) -> Result<()> {
    let dir = cluster.mount().join("rolling");
    fs::create_dir(&dir)?;
    let stop = AtomicBool::new(false);
    let (restarted, load) = std::thread::scope(|scope| {
        let workers = [
            scope.spawn(|| large(&dir, &stop)),
            scope.spawn(|| small(&dir, &stop)),
            scope.spawn(|| names(&dir, &stop)),
        ];
        let restarted = restart_each(cluster);
        stop.store(true, Ordering::SeqCst);
        let load: Vec<Result<Done>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            .collect();
        (restarted, load)
    });
    restarted?;
    for (name, done) in ["large files", "small records", "names"].iter().zip(load) {
        let done = done.with_context(|| format!("{name} during the restarts"))?;
        println!("    {name}: {} operations, the longest took {:.2?}", done.operations, done.longest);
        ensure!(done.operations > 10, "{name}: {done:?}");
    }
    cluster.fsck()
}

fn restart_each(cluster: &DevCluster) -> Result<()> {
    for process in cluster.file()?.processes {
        if !matches!(process.role.as_str(), "master" | "chunkserver") {
            continue;
        }
        let pid = process.pid.with_context(|| format!("{} doesn't run", process.name))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        wait_for(&format!("{} to end", process.name), Duration::from_secs(30), || {
            ensure!(cluster.process(&process.name)?.pid.is_none(), "it runs");
            Ok(())
        })?;
        cluster.dev("start", &process.name)?;
        cluster.wait_whole()?;
    }
    Ok(())
}

fn content(n: u64) -> Vec<u8> {
    (0..LARGE as u64).map(|i| (i.wrapping_mul(31) ^ n.wrapping_mul(0x9e37_79b9)) as u8).collect()
}

/// Files in chunks, synced, and read back.
fn large(dir: &Path, stop: &AtomicBool) -> Result<Done> {
    let mut done = Done::default();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (began, path) = (Instant::now(), dir.join(format!("large-{}", n % 20)));
        let mut file = File::create(&path)?;
        file.write_all(&content(n))?;
        file.sync_all()?;
        drop(file);
        ensure!(fs::read(&path)? == content(n), "large-{} has other content", n % 20);
        done.took(began);
    }
    Ok(done)
}

/// Records behind each other, each synced.
fn small(dir: &Path, stop: &AtomicBool) -> Result<Done> {
    let (mut done, path) = (Done::default(), dir.join("records"));
    let mut file = File::options().create(true).append(true).open(&path)?;
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        writeln!(file, "record {:08}", done.operations)?;
        file.sync_data()?;
        done.took(began);
    }
    let mut text = String::new();
    File::open(&path)?.read_to_string(&mut text)?;
    let expected: String = (0..done.operations).map(|n| format!("record {n:08}\n")).collect();
    ensure!(text == expected, "records are missing, or there twice");
    Ok(done)
}

/// Names that come and go, listed on the way.
fn names(dir: &Path, stop: &AtomicBool) -> Result<Done> {
    let (mut done, place) = (Done::default(), dir.join("names"));
    fs::create_dir(&place)?;
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        let n = done.operations;
        fs::write(place.join("new"), n.to_string())?;
        fs::rename(place.join("new"), place.join("renamed"))?;
        let seen: Vec<String> = fs::read_dir(&place)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        ensure!(seen == ["renamed"], "{seen:?}");
        ensure!(fs::read_to_string(place.join("renamed"))? == n.to_string(), "an older file is there");
        fs::remove_file(place.join("renamed"))?;
        done.took(began);
    }
    Ok(done)
}
