//! Every daemon is restarted, one after the other, while programs work: none of them sees an error. At last that is a mount's own process, which can't go
//! unseen: who opens files anew loses nothing that was acknowledged, and goes on without anybody doing anything.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::load::{self, Timeline};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of a file that goes to chunks.
const LARGE: usize = 300_000;
/// How often a mount's process is restarted.
const MOUNT_RESTARTS: usize = 2;
/// How soon a mount has another process, and what works there goes on. The supervisor's second pause is longer than its first, and another test may have this
/// machine, too.
const HEALS_WITHIN: Duration = Duration::from_secs(60);
/// Operations that are acknowledged behind a restart, before the next one.
const GOES_ON: usize = 20;
/// What programs are told where a mount has lost its process: that it isn't connected, or that their call was cut short; and, for the moment in which the dead mount is taken
/// away and the next one isn't there, that there is nothing, for that is what the directory below it has.
const DEAD: [&str; 3] = ["(os error 107)", "(os error 103)", "(os error 2)"];

/// What a mount's supervisor warns of.
pub const SAID: &[&str] = &["the mount has lost its process"];

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

/// Asks each daemon to end, starts it again, and waits until all is whole before the next one; the process of a mount is killed, as an upgrade does it.
pub fn restart_all(cluster: &DevCluster) -> Result<()> {
    let dir = cluster.mount().join("rolling");
    fs::create_dir(&dir)?;
    let supervised = Supervised::mount(cluster)?;
    let stop = AtomicBool::new(false);
    let (restarted, done, anew) = std::thread::scope(|scope| {
        let workers = [
            scope.spawn(|| large(&dir, &stop)),
            scope.spawn(|| small(&dir, &stop)),
            scope.spawn(|| names(&dir, &stop)),
        ];
        let anew = scope.spawn(|| load::run(&supervised.work, || stop.load(Ordering::SeqCst)));
        let restarted = restart_each(cluster).and_then(|()| supervised.restart(cluster));
        stop.store(true, Ordering::SeqCst);
        let done: Vec<Result<Done>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            .collect();
        (restarted, done, anew.join().unwrap_or_else(|_| bail!("a worker panicked")))
    });
    restarted?;
    for (name, done) in ["large files", "small records", "names"].iter().zip(done) {
        let done = done.with_context(|| format!("{name} during the restarts"))?;
        println!("    {name}: {} operations, the longest took {:.2?}", done.operations, done.longest);
        ensure!(done.operations > 10, "{name}: {done:?}");
    }
    supervised.verify(cluster, &anew.context("what opens its files anew")?)?;
    cluster.fsck()
}

/// A mount with a supervisor, and the work on it: each operation opens its file anew.
struct Supervised {
    path: PathBuf,
    work: load::Settings,
}

impl Supervised {
    /// The work's directory, below any mount.
    const WORK: &str = "anew";

    fn mount(cluster: &DevCluster) -> Result<Self> {
        // As the kernel's table of mounts has it.
        let path = fs::canonicalize(cluster.scratch())?.join("supervised");
        fs::create_dir(&path)?;
        checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&path))?;
        let work = load::Settings {
            dir: path.join(Self::WORK),
            journals: cluster.scratch().join("anew-journals"),
            threads: 2,
            time: Duration::from_secs(600),
            seed: 1,
            go_on: true,
        };
        Ok(Self { path, work })
    }

    fn acknowledged(&self) -> Result<usize> {
        let timeline = Timeline::read(&self.work.journals)?;
        Ok(timeline.answered_between(0, u64::MAX).saturating_sub(timeline.errors.len()))
    }

    /// Kills its process; the supervisor starts another one, and the work goes on.
    fn restart(&self, cluster: &DevCluster) -> Result<()> {
        let errors = Timeline::read(&self.work.journals)?.errors;
        ensure!(errors.is_empty(), "while other daemons were restarted: {errors:?}");
        for round in 1..=MOUNT_RESTARTS {
            let pid = cluster.serving(&self.path, None, HEALS_WITHIN)?;
            let began = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            cluster.serving(&self.path, Some(pid), HEALS_WITHIN)?;
            let before = self.acknowledged()?;
            wait_for("the work to go on", HEALS_WITHIN.saturating_sub(began.elapsed()), || {
                let now = self.acknowledged()?;
                ensure!(
                    now >= before + GOES_ON,
                    "{} operations were acknowledged since",
                    now.saturating_sub(before)
                );
                Ok(())
            })?;
            println!(
                "    restart {round} of the mount: {GOES_ON} operations more after {:.2?}",
                began.elapsed()
            );
        }
        Ok(())
    }

    /// Nothing that was acknowledged is lost, and programs were told of nothing but a mount without a process.
    fn verify(&self, cluster: &DevCluster, outcome: &load::Outcome) -> Result<()> {
        let is_of_the_dead = |error: &String| DEAD.iter().any(|told| error.contains(told));
        let others: Vec<&String> = outcome.errors.iter().filter(|error| !is_of_the_dead(error)).collect();
        ensure!(others.is_empty(), "programs were told: {others:#?}");
        let elsewhere = cluster.mount();
        for mount in [&self.path, &elsewhere] {
            let report = load::verify::verify(&mount.join(Self::WORK), &self.work.journals)?;
            ensure!(report.problems.is_empty(), "as {} shows it: {:#?}", mount.display(), report.problems);
            ensure!(report.acknowledged > GOES_ON, "{} operations were acknowledged", report.acknowledged);
        }
        println!("    {} operations were acknowledged, {} failed", outcome.operations, outcome.errors.len());
        checked(cluster.mooseng(&["umount"]).arg(&self.path)).map(drop)
    }
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
