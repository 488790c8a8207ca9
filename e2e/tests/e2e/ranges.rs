//! Holes are made, and seen, on a real mount as on a local disk, also in what the kernel has cached and by another mount; and files are copied
//! without their data.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, shell, workspace};
use mooseng_e2e::steps::Steps;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

#[test]
fn ranges_are_as_on_a_local_disk() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("ranges", &[])?;
    let (mnt, local, other) =
        (cluster.mount(), cluster.scratch().join("local"), cluster.scratch().join("other"));
    fs::create_dir(&local)?;
    fs::create_dir(&other)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&other))?;
    let mut steps = Steps::default();
    steps.run("random holes and sizes", || random_holes(&mnt, &local));
    steps.run("what fallocate refuses", || refused(&mnt, &local));
    steps.run("a hole is seen: by seeking, in blocks, in mapped pages, by another mount", || {
        a_hole_is_seen(&mnt, &other)
    });
    steps.run("fallocate by others takes set-user-id away, and moves the times", || marks(&mnt, &local));
    steps.run("random copies, also within a file", || random_copies(&mnt, &local));
    steps.run("what copy_file_range refuses", || refused_copies(&mnt, &local));
    steps.run("cp of a large file moves no data, also of one that another mount has just written", || {
        cp_moves_no_data(&cluster, &other)
    });
    steps.run("fsx", || fsx(&cluster));
    steps.run("fsck finds nothing", || cluster.fsck());
    checked(cluster.mooseng(&["umount"]).arg(&other))?;
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}

/// The crate fsx: random reads, writes, mappings, holes and sizes of one file, by one mount.
fn fsx(cluster: &DevCluster) -> Result<()> {
    let tool =
        std::env::var_os("FSX").map_or_else(|| workspace().join("target/tools/bin/fsx"), PathBuf::from);
    ensure!(tool.is_file(), "{} isn't there: scripts/install-deps installs it", tool.display());
    let operations = (2 * super::coherence::times()).to_string();
    for seed in ["1", "2"] {
        let mut fsx = Command::new(&tool);
        fsx.arg("-f").arg(workspace().join("e2e/fsx.toml")).arg("-P").arg(cluster.scratch());
        checked(fsx.args(["-N", &operations, "-S", seed]).arg(cluster.mount().join(format!("fsx-{seed}"))))?;
    }
    Ok(())
}

/// The same file on the mount and on the local disk.
fn both(mnt: &Path, local: &Path, name: &str) -> Result<[File; 2]> {
    let open = |root: &Path| {
        File::options().create(true).truncate(true).read(true).write(true).open(root.join(name))
    };
    Ok([open(mnt)?, open(local)?])
}

fn content(file: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn ensure_same(files: &[File; 2], what: impl Fn() -> String) -> Result<()> {
    let [is, expected] = [content(&files[0])?, content(&files[1])?];
    ensure!(is.len() == expected.len(), "{}: {} bytes instead of {}", what(), is.len(), expected.len());
    let differs = is.iter().zip(&expected).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "{}: the content differs from a local file's at {differs:?}", what());
    Ok(())
}

fn random_bytes(rng: &mut SmallRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes[..]);
    bytes
}

fn random_holes(mnt: &Path, local: &Path) -> Result<()> {
    let modes = [
        FallocateFlags::empty(),
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
    ];
    // Small enough to lie in the metadata, and in chunks.
    for (seed, size) in [(1, 50_000_u64), (2, 3_000_000)] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let files = both(mnt, local, &format!("holes-{seed}"))?;
        for step in 0..150 {
            let (offset, length) = (rng.random_range(0..size), rng.random_range(1..size / 3));
            let mode = *modes.choose(&mut rng).context("there are modes")?;
            let write = rng.random_bool(0.5);
            let bytes = random_bytes(&mut rng, length as usize / 2);
            for file in &files {
                if write {
                    file.write_all_at(&bytes, offset)?;
                } else {
                    fallocate(file, mode, offset as i64, length as i64)?;
                }
            }
            ensure_same(&files, || format!("seed {seed}, step {step}: {mode:?} {offset}+{length}"))?;
        }
        // And as the region has it, not the kernel.
        files[0].sync_all()?;
        drop_cached(&files[0]);
        ensure_same(&files, || format!("seed {seed}, read anew"))?;
    }
    Ok(())
}

fn drop_cached(file: &File) {
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

fn refused(mnt: &Path, local: &Path) -> Result<()> {
    let files = both(mnt, local, "refused")?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let same = |what: &str, of: &dyn Fn(&File, &Path) -> nix::Result<()>| {
        let [is, expected] = [of(&files[0], mnt), of(&files[1], local)];
        ensure!(is == expected && is.is_err(), "{what}: {is:?} instead of {expected:?}");
        Ok(())
    };
    same("no bytes", &|file, _| fallocate(file, punch, 0, 0))?;
    same("a negative offset", &|file, _| fallocate(file, punch, -1, 10))?;
    same("a hole that moves the end", &|file, _| {
        fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, 0, 10)
    })?;
    same("a descriptor for reading", &|_, root| {
        let file = File::open(root.join("refused")).map_err(|_| Errno::ENOENT)?;
        fallocate(file, FallocateFlags::empty(), 0, 10)
    })?;
    same("behind the largest offset", &|file, _| fallocate(file, FallocateFlags::empty(), i64::MAX, 10))?;
    // A local disk may know how to.
    let collapsed = fallocate(&files[0], FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    ensure!(collapsed == Err(Errno::EOPNOTSUPP), "collapsing a range: {collapsed:?}");
    Ok(())
}

fn a_hole_is_seen(mnt: &Path, other: &Path) -> Result<()> {
    const MIB: usize = 1 << 20;
    let file = File::options().create(true).truncate(true).read(true).write(true).open(mnt.join("seen"))?;
    let mut expected = random_bytes(&mut SmallRng::seed_from_u64(5), 8 * MIB);
    file.write_all_at(&expected, 0)?;
    file.sync_all()?;
    let there = File::open(other.join("seen"))?;
    ensure!(content(&there)? == expected, "the other mount has other bytes");
    let blocks = file.metadata()?.blocks();
    let mapped = Mapping::of(&file, 8 * MIB)?;
    ensure!(mapped.bytes() == expected, "the mapping has other bytes");

    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (from, to) = (2 * MIB + 100, 5 * MIB + 700);
    fallocate(&file, punch, from as i64, (to - from) as i64)?;
    expected[from..to].fill(0);
    ensure!(mapped.bytes() == expected, "the mapping shows what was there before");
    ensure!(content(&there)? == expected, "the other mount shows what was there before");
    let freed = blocks - file.metadata()?.blocks();
    ensure!(freed.abs_diff((to - from) as u64 / 512) < 16, "{freed} blocks were freed");
    let hole = lseek(&file, 0, Whence::SeekHole)?;
    let data = lseek(&file, hole, Whence::SeekData)?;
    ensure!((hole, data) == (from as i64, to as i64), "the hole is seen from {hole} to {data}");

    // From there, too.
    let there = File::options().read(true).write(true).open(other.join("seen"))?;
    fallocate(&there, FallocateFlags::FALLOC_FL_ZERO_RANGE, 7 * MIB as i64, 2 * MIB as i64)?;
    expected.resize(9 * MIB, 0);
    expected[7 * MIB..].fill(0);
    ensure!(content(&file)? == expected, "the first mount shows what was there before");
    Ok(())
}

/// A file's bytes, mapped and shared.
struct Mapping {
    at: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn of(file: &File, length: usize) -> Result<Self> {
        // SAFETY: a new mapping that nothing else knows of; the file is longer than it while it is read.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self { at, length })
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: the mapping lives as long as `self`. Others change it only while this test waits for them.
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.length) }.to_vec()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.at, self.length) };
    }
}

fn marks(mnt: &Path, local: &Path) -> Result<()> {
    let mut seen = Vec::new();
    for root in [mnt, local] {
        let path = root.join("marked");
        fs::write(&path, [1; 10_000])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
        let before = fs::metadata(&path)?;
        std::thread::sleep(std::time::Duration::from_millis(20));
        // Its way there may be closed to others.
        shell(root, "exec 3<>marked && setpriv --reuid 65534 --regid 65534 --clear-groups fallocate -p -o 0 -l 5000 /proc/self/fd/3")
            .or_else(|_| shell(root, "chmod a+x . ; setpriv --reuid 65534 --regid 65534 --clear-groups fallocate -p -o 0 -l 5000 marked"))?;
        let after = fs::metadata(&path)?;
        let moved = |a: (i64, i64), b: (i64, i64)| b > a;
        ensure!(moved((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec())), "mtime");
        ensure!(moved((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec())), "ctime");
        seen.push(after.mode());
    }
    ensure!(seen[0] == seen[1], "mode {:o} instead of {:o}", seen[0], seen[1]);
    Ok(())
}

/// Copies as far as it goes. Answers how many bytes that was.
fn copy(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> nix::Result<u64> {
    let (mut at, mut target, mut done) = (from_offset as i64, to_offset as i64, 0);
    while done < length {
        let left = usize::try_from(length - done).unwrap_or(usize::MAX);
        // SAFETY: both descriptors are open, and the offsets live as long as the call.
        let copied =
            unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut target, left, 0) };
        match Errno::result(copied)? {
            0 => break,
            copied => done += copied as u64,
        }
    }
    Ok(done)
}

fn random_copies(mnt: &Path, local: &Path) -> Result<()> {
    for (seed, size) in [(1, 50_000_u64), (2, 3_000_000)] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let pairs = [both(mnt, local, &format!("a-{seed}"))?, both(mnt, local, &format!("b-{seed}"))?];
        for step in 0..150 {
            let (from, to) = (rng.random_range(0..2), rng.random_range(0..2));
            let (offset, target, length) =
                (rng.random_range(0..size), rng.random_range(0..size), rng.random_range(1..size / 2));
            let bytes = random_bytes(&mut rng, length as usize / 2);
            let write = rng.random_bool(0.5);
            let mut copied = Vec::new();
            for (source, destination) in pairs[from].iter().zip(&pairs[to]) {
                if write {
                    destination.write_all_at(&bytes, target)?;
                } else {
                    copied.push(copy(source, offset, destination, target, length));
                }
            }
            let what = || {
                format!(
                    "seed {seed}, step {step}: {length} bytes of {from} at {offset} to {to} at {target}: {copied:?}"
                )
            };
            ensure!(write || copied[0] == copied[1], "{}", what());
            ensure_same(&pairs[to], what)?;
        }
        for pair in &pairs {
            pair[0].sync_all()?;
            drop_cached(&pair[0]);
            ensure_same(pair, || format!("seed {seed}, read anew"))?;
        }
    }
    Ok(())
}

fn refused_copies(mnt: &Path, local: &Path) -> Result<()> {
    let files = both(mnt, local, "copied")?;
    let data = random_bytes(&mut SmallRng::seed_from_u64(1), 500_000);
    for (file, root) in files.iter().zip([mnt, local]) {
        file.write_all_at(&data, 0)?;
        let path = root.join("copied");
        let (readable, append) = (File::open(&path)?, File::options().append(true).read(true).open(&path)?);
        let writable = File::options().write(true).open(&path)?;
        let root = File::open(root)?;
        for (what, outcome, expected) in [
            ("overlapping", copy(file, 0, file, 100_000, 200_000), Err(Errno::EINVAL)),
            ("side by side", copy(file, 0, file, 200_000, 200_000), Ok(200_000)),
            ("to a descriptor for reading", copy(file, 0, &readable, 0, 200_000), Err(Errno::EBADF)),
            ("to one for appending", copy(file, 0, &append, 0, 200_000), Err(Errno::EBADF)),
            ("from one for writing", copy(&writable, 0, file, 0, 200_000), Err(Errno::EBADF)),
            ("from a directory", copy(&root, 0, file, 0, 200_000), Err(Errno::EISDIR)),
            ("at the end", copy(file, 500_000, file, 0, 200_000), Ok(0)),
            ("across the end, which moves away", copy(file, 400_000, file, 600_000, 200_000), Ok(200_000)),
        ] {
            ensure!(outcome == expected, "{what}: {outcome:?} instead of {expected:?}");
        }
    }
    ensure_same(&files, || "afterwards".into())
}

fn cp_moves_no_data(cluster: &DevCluster, other: &Path) -> Result<()> {
    let mnt = cluster.mount();
    let data = random_bytes(&mut SmallRng::seed_from_u64(9), 150 << 20);
    let large = File::create(mnt.join("large"))?;
    large.write_all_at(&data, 0)?;
    large.sync_all()?;
    drop(large);
    let before = super::housekeeping::held(cluster)?;
    let began = std::time::Instant::now();
    shell(&mnt, "cp --reflink=auto large twin && cp twin third")?;
    println!("    two copies took {} ms", began.elapsed().as_millis());
    let after = super::housekeeping::held(cluster)?;
    ensure!(after < before + (8 << 20), "chunkservers held {before} bytes, and hold {after}");
    // Written there a moment ago, and copied here: what that mount has buffered is in the copy, by whatever way.
    for i in 0..20 {
        let bytes = random_bytes(&mut SmallRng::seed_from_u64(i), 300_000);
        let there = File::create(other.join("fresh"))?;
        there.write_all_at(&bytes, 0)?;
        // While it is open there, its chunk is, too.
        let open = (i % 2 == 0).then_some(there);
        shell(&mnt, "cp fresh copied-fresh")?;
        ensure!(fs::read(mnt.join("copied-fresh"))? == bytes, "the copy isn't what was written");
        ensure!(fs::read(other.join("copied-fresh"))? == bytes, "the other mount sees another copy");
        drop(open);
    }
    // Each goes its own way.
    shell(&mnt, "dd if=/dev/zero of=twin bs=1M seek=3 count=2 conv=notrunc status=none && rm large")?;
    ensure!(fs::read(other.join("third"))? == data, "a copy of a copy has other bytes");
    let mut twin = data;
    twin[3 << 20..5 << 20].fill(0);
    ensure!(fs::read(other.join("twin"))? == twin, "a copy that was overwritten in part has other bytes");
    Ok(())
}
