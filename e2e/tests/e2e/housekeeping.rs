//! A file that is overwritten again and again in small pieces keeps little more space than its bytes: sparse chunks are rewritten, unused ones
//! collected, and nobody who reads sees anything of it.
//!
//! Thousands of small files share a few chunks, and give their space back as well.
//!
//! `REWRITE_MIB` sets the file's size: 64 here, 1024 for the issue's own figure.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
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
    steps.run("house-keeping becomes hasty", || hurry(&cluster));
    steps.run(&format!("{SMALL_FILES} small files share a few chunks, and have their bytes"), || {
        pack(&cluster, &other)
    });
    steps.run("one in ten is left, and the space of the others comes back", || thin_out(&cluster, &other));
    checked(cluster.mooseng(&["umount"]).arg(&other))?;
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}

const SMALL_FILES: u64 = 3_000;

fn small_path(dir: &Path, n: u64) -> PathBuf {
    dir.join("small").join((n % 30).to_string()).join(n.to_string())
}

/// 4 to 20 KiB.
fn small_bytes(n: u64) -> Vec<u8> {
    let length = 4_096 + n * 7_919 % 16_384;
    (0..length).map(|i| (n * 31 + i * 7 + i / 256) as u8).collect()
}

/// Masters that pack, merge and collect as soon as they see something; deleted files aren't kept.
fn hurry(cluster: &DevCluster) -> Result<()> {
    let admin = cluster.dir().join("etc/admin.toml");
    checked(cluster.mooseng(&["trash", "retention", "0", "--config"]).arg(admin))?;
    for name in &cluster.names("master")? {
        super::room::configure(cluster, name, |config| {
            let house = config.entry("house").or_insert(toml::Table::new().into());
            if let Some(house) = house.as_table_mut() {
                for (setting, value) in [
                    ("scan_every_ms", 1_000),
                    ("collect_after_ms", 3_000),
                    ("rewrite_after_ms", 1_000),
                    ("pack_after_ms", 2_000),
                    ("merge_after_ms", 3_000),
                    ("merge_chunks", 2),
                ] {
                    house.insert(setting.into(), value.into());
                }
            }
        })?;
        cluster.dev("kill", name)?;
        cluster.dev("start", name)?;
        cluster.wait_whole()?;
    }
    Ok(())
}

fn pack(cluster: &DevCluster, other: &Path) -> Result<()> {
    let chunks = |cluster: &DevCluster| -> Result<u64> {
        let status = cluster.status()?;
        status["chunks"].as_u64().with_context(|| format!("no chunks in {status}"))
    };
    let before = chunks(cluster)?;
    let mut bytes = 0;
    for n in 0..SMALL_FILES {
        let path = small_path(&cluster.mount(), n);
        if n < 30 {
            fs::create_dir_all(path.parent().context("a file in a directory")?)?;
        }
        fs::write(&path, small_bytes(n))?;
        bytes += small_bytes(n).len() as u64;
    }
    let began = Instant::now();
    wait_for("small files to be packed and packs to be merged", WITHIN, || {
        let (is, house) = (chunks(cluster)?, cluster.status()?["house"].clone());
        let packed = house["packed_bytes"].as_u64().unwrap_or(0);
        // Less than a chunk's worth waits, at most.
        ensure!(packed + (1 << 20) > bytes, "{packed} of {bytes} bytes are packed; {house}");
        ensure!(is < before + 8, "{is} chunks, {before} before; {house}");
        Ok(())
    })?;
    println!(
        "    {} more chunks for {SMALL_FILES} files after {:.0} s",
        chunks(cluster)?.saturating_sub(before),
        began.elapsed().as_secs_f64()
    );
    have_their_bytes(cluster, other, 0..SMALL_FILES)?;
    cluster.fsck()
}

/// Read by a mount that knows nothing of them.
fn have_their_bytes(cluster: &DevCluster, other: &Path, files: impl Iterator<Item = u64>) -> Result<()> {
    checked(cluster.mooseng(&["umount"]).arg(other))?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(other))?;
    for n in files {
        let path = small_path(other, n);
        ensure!(fs::read(&path)? == small_bytes(n), "{} has other bytes", path.display());
    }
    Ok(())
}

fn thin_out(cluster: &DevCluster, other: &Path) -> Result<()> {
    let before = held(cluster)?;
    let bytes = |all: bool| -> u64 {
        (0..SMALL_FILES).filter(|n| all || n % 10 == 0).map(|n| small_bytes(n).len() as u64).sum()
    };
    for n in (0..SMALL_FILES).filter(|n| n % 10 != 0) {
        fs::remove_file(small_path(&cluster.mount(), n))?;
    }
    // All that they had, but for twice what is left.
    let most = (before + 2 * COPIES * bytes(false)).saturating_sub(COPIES * (bytes(true) - bytes(false)));
    wait_for("nearly empty packs to be rewritten and collected", WITHIN, || {
        let is = held(cluster)?;
        ensure!(is < most, "{} MiB are held, {} would do", is >> 20, most >> 20);
        Ok(())
    })?;
    println!("    {} MiB are held, {} were", held(cluster)? >> 20, before >> 20);
    have_their_bytes(cluster, other, (0..SMALL_FILES).filter(|n| n % 10 == 0))?;
    cluster.fsck()
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
