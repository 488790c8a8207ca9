//! Chunkservers whose disks are small: a writer hears ENOSPC, also one who doesn't fsync, and once something is deleted there is room again, also for what was
//! kept meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, shell, wait_for};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What daemons may say of it.
pub const SAID: &[&str] = &["written data couldn't be", "an operation failed"];
/// A chunkserver's disk, and how much of it stays free. Twice a chunk's 64 MiB go in.
const DISK: &str = "size=192m";
const RESERVE: i64 = 16 << 20;
/// A file: a chunk of its own.
const BYTES: usize = 4 << 20;
/// More than go in.
const FILES_MAX: usize = 200;
/// A writer isn't kept waiting.
const SAID_WITHIN: Duration = Duration::from_secs(30);
/// Chunks that nothing names are collected, and give way on their disks: every 5 s it is looked whether they must.
const ROOM_WITHIN: Duration = Duration::from_secs(180);
/// What is copied into a full region: more than masters keep themselves, and more than is buffered before the first of it is sent.
const SMALL: usize = 300 << 10;
const LARGE: usize = 6 << 20;
/// Small copies that may end well before one is refused, and the pause between: what was written is sent after two seconds, and after five at the latest.
const UNTOLD_MAX: usize = 15;
const COPY_EVERY: Duration = Duration::from_millis(300);
/// Small copies afterwards.
const TOLD: usize = 5;
/// Kept data is sent again every 30 s at least.
const KEPT_WITHIN: Duration = Duration::from_secs(45);

/// Small disks over the data of chunkservers; none stays behind.
#[derive(Default)]
struct Disks(Vec<PathBuf>);

impl Disks {
    /// Puts one over a directory, with what is there.
    fn cover(&mut self, data: &Path) -> Result<()> {
        let beside = data.with_extension("beneath");
        fs::rename(data, &beside)?;
        fs::create_dir(data)?;
        let tmpfs = Some("tmpfs");
        mount(tmpfs, data, tmpfs, MsFlags::empty(), Some(DISK)).context("mounting a small disk")?;
        self.0.push(data.to_owned());
        shell(data, &format!("cp -a {}/. . && rm -rf {}", beside.display(), beside.display())).map(drop)
    }

    /// Takes them away, and leaves what is there.
    fn uncover(&mut self) -> Result<()> {
        while let Some(data) = self.0.last() {
            let beside = data.with_extension("beneath");
            shell(data, &format!("cp -a . {}", beside.display()))?;
            // The mount's daemon has chunks open that it read from here.
            umount2(data, MntFlags::MNT_DETACH)?;
            fs::remove_dir(data)?;
            fs::rename(&beside, data)?;
            self.0.pop();
        }
        Ok(())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for data in &self.0 {
            let _ = umount2(data, MntFlags::MNT_DETACH);
        }
    }
}

/// Changes a daemon's configuration. It must be started anew.
pub fn configure(cluster: &DevCluster, name: &str, change: impl FnOnce(&mut toml::Table)) -> Result<()> {
    let path = cluster.dir().join("etc").join(format!("{name}.toml"));
    let mut config: toml::Table = fs::read_to_string(&path)?.parse()?;
    change(&mut config);
    fs::write(&path, toml::to_string(&config)?).with_context(|| format!("writing {}", path.display()))
}

/// The step: the cluster goes on as before afterwards.
pub fn full(cluster: &DevCluster) -> Result<()> {
    // Deleted files would be kept for a day.
    let admin = cluster.dir().join("etc/admin.toml");
    checked(cluster.mooseng(&["trash", "retention", "0", "--config"]).arg(admin))?;
    let (masters, servers) = (cluster.names("master")?, cluster.names("chunkserver")?);
    for name in &masters {
        configure(cluster, name, |config| {
            let house = config.entry("house").or_insert(toml::Table::new().into());
            if let Some(house) = house.as_table_mut() {
                house.insert("collect_after_ms".into(), 3_000.into());
                house.insert("scan_every_ms".into(), 1_000.into());
            }
        })?;
        cluster.dev("kill", name)?;
        cluster.dev("start", name)?;
        cluster.wait_whole()?;
    }
    let mut disks = Disks::default();
    for name in &servers {
        // Trash for longer than this takes: it must give way.
        configure(cluster, name, |config| {
            config.insert("reserve_bytes".into(), RESERVE.into());
            config.insert("trash_s".into(), 3_600.into());
        })?;
        cluster.dev("kill", name)?;
        disks.cover(&cluster.process(name)?.state_dir.join("data"))?;
        cluster.dev("start", name)?;
    }
    cluster.wait_whole()?;
    // A mount that learns by itself that the region is full.
    let other = cluster.scratch().join("roomless");
    fs::create_dir(&other)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&other))?;
    let outcome = fill_and_free(cluster, &other);
    let unmounted = checked(cluster.mooseng(&["umount"]).arg(&other));
    let compared = cluster.fsck();
    for name in &servers {
        cluster.dev("kill", name)?;
    }
    disks.uncover()?;
    for name in &servers {
        cluster.dev("start", name)?;
    }
    cluster.wait_whole()?;
    outcome.and(unmounted.map(drop)).and(compared)
}

fn bytes_of(n: usize) -> Vec<u8> {
    (0..BYTES / 8).flat_map(|i| ((n * BYTES + i) as u64).to_be_bytes()).collect()
}

fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Files that were copied through a mount, without fsync, while the region was full.
struct Copies<'a> {
    cluster: &'a DevCluster,
    mount: &'a Path,
    /// Of whose copy nobody was told that it failed: the mount keeps them. And the others.
    kept: Vec<PathBuf>,
    told: Vec<PathBuf>,
}

impl<'a> Copies<'a> {
    /// Copies until it is known that there is no room, and then some more.
    fn make(cluster: &'a DevCluster, mount: &'a Path) -> Result<Self> {
        let mut copies = Self { cluster, mount, kept: Vec::new(), told: Vec::new() };
        fs::create_dir(mount.join("copies"))?;
        let mut n = 0;
        while copies.copy(&format!("small{n}"), n, SMALL)? {
            n += 1;
            ensure!(n < UNTOLD_MAX, "{n} files were copied into a full region, and nobody was told");
            std::thread::sleep(COPY_EVERY);
        }
        ensure!(n > 0, "the first copy was refused: the mount knew already");
        let refused = !copies.copy("large", FILES_MAX, LARGE)?;
        ensure!(refused, "the region is known to be full, and a copy of 6 MiB ended well");
        for more in n + 1..=n + TOLD {
            let refused = !copies.copy(&format!("small{more}"), more, SMALL)?;
            ensure!(refused, "the region is known to be full, and copy {more} ended well");
        }
        println!("    {n} copies were kept, the {} after them were told that there is no room", TOLD + 2);
        // Those who ask are told of each, and see it as it was written.
        for name in &copies.kept {
            let same = fs::read(mount.join(name))? == fs::read(copies.source(name))?;
            ensure!(same, "{name:?} has other bytes");
        }
        let synced = File::open(mount.join(&copies.kept[0]))?.sync_all();
        let errno = synced.as_ref().err().and_then(io::Error::raw_os_error);
        ensure!(errno == Some(libc::ENOSPC), "fsync of what is kept answered {synced:?}");
        Ok(copies)
    }

    fn source(&self, name: &Path) -> PathBuf {
        self.cluster.scratch().join("roomless-sources").join(name)
    }

    /// Whether cp ended well.
    fn copy(&mut self, name: &str, n: usize, bytes: usize) -> Result<bool> {
        let name = Path::new("copies").join(name);
        let (from, to) = (self.source(&name), self.mount.join(&name));
        fs::create_dir_all(from.parent().context("a source has no directory")?)?;
        fs::write(&from, &[bytes_of(n), bytes_of(n + 1)].concat()[..bytes])?;
        let asked = Instant::now();
        let output = Command::new("cp").arg(&from).arg(&to).env("LC_ALL", "C").output()?;
        ensure!(asked.elapsed() < SAID_WITHIN, "cp took {:?}", asked.elapsed());
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => self.kept.push(name),
            false if said.contains("No space left on device") => self.told.push(name),
            false => bail!("cp into a full region said: {said}"),
        }
        Ok(output.status.success())
    }

    /// There is room: what was kept is stored, though nobody touches it, and is what others read.
    fn arrive(&self) -> Result<()> {
        let began = Instant::now();
        wait_for("kept data to be stored", KEPT_WITHIN, || {
            let stored = self.stored_at_last()?;
            for name in &self.kept {
                let inode = fs::metadata(self.mount.join(name))?.ino();
                ensure!(stored.contains(&inode), "{name:?} isn't stored");
            }
            Ok(())
        })?;
        println!("    what was kept was stored {:.1} s after there was room", began.elapsed().as_secs_f64());
        for name in &self.kept {
            File::open(self.mount.join(name))?
                .sync_all()
                .with_context(|| format!("fsync of {name:?}, which is stored"))?;
        }
        let elsewhere = self.cluster.mount();
        for name in &self.kept {
            let same = fs::read(elsewhere.join(name))? == fs::read(self.source(name))?;
            ensure!(same, "{name:?} was kept and stored, and has other bytes");
        }
        // Of those whose writers were told a beginning may be there.
        for name in &self.told {
            let begun = fs::read(self.source(name))?.starts_with(&fs::read(elsewhere.join(name))?);
            ensure!(begun, "{name:?}, which was refused, has bytes that nobody wrote");
        }
        fs::remove_dir_all(elsewhere.join("copies"))?;
        Ok(())
    }

    /// The inodes of which the mount's log has said so.
    fn stored_at_last(&self) -> Result<BTreeSet<u64>> {
        let mut inodes = BTreeSet::new();
        for entry in fs::read_dir(self.cluster.dir().join("log"))? {
            let path = entry?.path();
            if !path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("roomless.log")) {
                continue;
            }
            let log = fs::read_to_string(&path)?;
            for line in log.lines().filter(|line| line.contains("couldn't be stored before is stored")) {
                let line: serde_json::Value = serde_json::from_str(line)?;
                inodes.extend(line["fields"]["inode"].as_u64());
            }
        }
        Ok(inodes)
    }
}

fn fill_and_free(cluster: &DevCluster, other: &Path) -> Result<()> {
    let dir = &cluster.mount().join("room");
    fs::create_dir(dir)?;
    let path = |n: usize| dir.join(format!("f{n}"));
    let began = Instant::now();
    let refused = |n: usize| -> Result<bool> {
        let asked = Instant::now();
        match store(&path(n), &bytes_of(n)) {
            Ok(()) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                ensure!(asked.elapsed() < SAID_WITHIN, "ENOSPC came after {:?}", asked.elapsed());
                Ok(true)
            }
            Err(error) => bail!("a full region answered: {error}"),
        }
    };
    let mut stored = 0;
    while !refused(stored)? {
        stored += 1;
        ensure!(stored < FILES_MAX, "{stored} files went in, more than there is room");
    }
    println!("    {stored} files of 4 MiB went in, in {:.1} s", began.elapsed().as_secs_f64());
    ensure!(stored >= 20, "{stored} files only went in");
    // Those who ask again hear it again, and what is small goes in still: masters keep it.
    ensure!(refused(stored)?, "there was no room, and then there was");
    store(&dir.join("small"), b"small")?;
    for n in 0..stored {
        ensure!(fs::read(path(n))? == bytes_of(n), "file {n} has other bytes");
    }
    let copies = Copies::make(cluster, other)?;
    (0..stored).step_by(2).try_for_each(|n| fs::remove_file(path(n)))?;
    let began = Instant::now();
    wait_for("room", ROOM_WITHIN, || Ok(store(&dir.join("again"), &bytes_of(stored))?))?;
    println!("    there was room again after {:.1} s", began.elapsed().as_secs_f64());
    copies.arrive()?;
    for n in (1..stored).step_by(2) {
        ensure!(fs::read(path(n))? == bytes_of(n), "file {n} has other bytes");
    }
    ensure!(fs::read(dir.join("again"))? == bytes_of(stored), "the file that went in then has other bytes");
    fs::remove_dir_all(dir)?;
    Ok(())
}
