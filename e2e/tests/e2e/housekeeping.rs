//! A file that is overwritten again and again in small pieces keeps little more space than its bytes: sparse chunks are rewritten, unused ones
//! collected, and nobody who reads sees anything of it.
//!
//! `REWRITE_MIB` sets the file's size: 64 here, 1024 for the issue's own figure.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::steps::Steps;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const BLOCK: u64 = 4096;
const ROUNDS: u64 = 10;
const COPIES: u64 = 2;
/// How long it may take until the space is free.
const WITHIN: Duration = Duration::from_secs(300);

#[test]
fn what_is_overwritten_gives_its_space_back() {
    run().unwrap();
}

fn run() -> Result<()> {
    let mib: u64 = std::env::var("REWRITE_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    let blocks = (mib << 20) / BLOCK;
    let cluster = DevCluster::up("housekeep", &[])?;
    let (mnt, other) = (cluster.mount(), cluster.scratch().join("other"));
    fs::create_dir(&other)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&other))?;
    let mut steps = Steps::default();
    let path = mnt.join("rewritten");
    let mut model: Model = vec![0; blocks as usize];
    steps.run(&format!("{mib} MiB are written, and overwritten in random blocks {ROUNDS} times"), || {
        (0..=ROUNDS).try_for_each(|round| write_round(&path, &mut model, round))?;
        println!("    chunkservers hold {} MiB", held(&cluster)? >> 20);
        Ok(())
    });
    let stop = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_along(&other.join("rewritten"), &model, &stop));
        steps.run("chunkservers hold less than 1.5 times what is live", || {
            let began = Instant::now();
            let most = (mib << 20) * COPIES * 3 / 2;
            wait_for("sparse chunks to be rewritten and collected", WITHIN, || {
                let is = held(&cluster)?;
                ensure!(is < most, "{} MiB are held, {} would do", is >> 20, most >> 20);
                Ok(())
            })?;
            let house = cluster.status()?["house"].clone();
            println!(
                "    {} MiB after {:.0} s; {house}",
                held(&cluster)? >> 20,
                began.elapsed().as_secs_f64()
            );
            Ok(())
        });
        stop.store(true, Ordering::SeqCst);
        reader.join()
    });
    steps.run("who read meanwhile over another mount saw what was written last", || match reads {
        Ok(reads) => {
            println!("    {} blocks read", reads?);
            Ok(())
        }
        Err(_) => bail!("the reader panicked"),
    });
    steps.run("the file has its bytes, read anew from the chunkservers, and its times", || {
        let before = fs::metadata(&path)?;
        checked(cluster.mooseng(&["umount"]).arg(&other))?;
        checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&other))?;
        let anew = other.join("rewritten");
        verify(&anew, &model)?;
        let after = fs::metadata(&anew)?;
        let times = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.size());
        ensure!(times(&before) == times(&after), "{:?} became {:?}", times(&before), times(&after));
        Ok(())
    });
    steps.run("fsck finds nothing", || cluster.fsck());
    checked(cluster.mooseng(&["umount"]).arg(&other))?;
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}

/// What each block was last written as.
type Model = Vec<u64>;

/// A block's bytes, as of its n-th write.
fn content(block: u64, n: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    while bytes.len() < BLOCK as usize {
        bytes.extend_from_slice(&block.to_be_bytes());
        bytes.extend_from_slice(&n.to_be_bytes());
    }
    bytes
}

/// Writes as many blocks as the file has: all of them first, then any, so that some are written often and some not for long.
fn write_round(path: &Path, model: &mut Model, round: u64) -> Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let mut rng = SmallRng::seed_from_u64(round);
    let blocks = model.len() as u64;
    for i in 0..blocks {
        let block = if round == 0 { i } else { rng.random_range(0..blocks) };
        let n = round * blocks + i;
        file.write_all_at(&content(block, n), block * BLOCK)?;
        model[block as usize] = n;
    }
    file.sync_all()?;
    Ok(())
}

/// Reads random blocks until told to stop. Answers how many.
fn read_along(path: &Path, model: &Model, stop: &AtomicBool) -> Result<u64> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut reads = 0;
    let mut bytes = vec![0; BLOCK as usize];
    while !stop.load(Ordering::SeqCst) {
        let file = File::open(path)?;
        for _ in 0..50 {
            let block = rng.random_range(0..model.len());
            file.read_exact_at(&mut bytes, block as u64 * BLOCK)?;
            ensure!(bytes == content(block as u64, model[block]), "block {block} has other bytes");
            reads += 1;
        }
        // The kernel's own pages would hide what the chunkservers have.
        // SAFETY: the descriptor is open, and the call touches no memory of this process.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(reads)
}

fn verify(path: &Path, model: &Model) -> Result<()> {
    let file = File::open(path)?;
    ensure!(file.metadata()?.len() == model.len() as u64 * BLOCK, "{} bytes", file.metadata()?.len());
    let mut bytes = vec![0; 1 << 20];
    for (at, part) in (0..).step_by(256).zip(model.chunks(256)) {
        let bytes = &mut bytes[..part.len() * BLOCK as usize];
        file.read_exact_at(bytes, at * BLOCK)?;
        for ((block, n), is) in (at..).zip(part).zip(bytes.chunks(BLOCK as usize)) {
            ensure!(is == content(block, *n), "block {block} has other bytes");
        }
    }
    Ok(())
}

/// Bytes on the chunkservers' disks: chunks and what is in the trash.
pub fn held(cluster: &DevCluster) -> Result<u64> {
    let file = cluster.file()?;
    let servers = file.processes.iter().filter(|p| p.role == "chunkserver");
    servers.map(|p| below(&p.state_dir.join("data"))).sum()
}

fn below(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("looking into {}", dir.display()))? {
        let entry = entry?;
        // Files come and go meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { below(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}
