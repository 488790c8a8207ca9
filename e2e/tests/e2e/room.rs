//! Chunkservers whose disks are small: a writer hears ENOSPC, and once something is deleted there is room again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
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
    let outcome = fill_and_free(&cluster.mount().join("room"));
    let compared = cluster.fsck();
    for name in &servers {
        cluster.dev("kill", name)?;
    }
    disks.uncover()?;
    for name in &servers {
        cluster.dev("start", name)?;
    }
    cluster.wait_whole()?;
    outcome.and(compared)
}

fn bytes_of(n: usize) -> Vec<u8> {
    (0..BYTES / 8).flat_map(|i| ((n * BYTES + i) as u64).to_be_bytes()).collect()
}

fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn fill_and_free(dir: &Path) -> Result<()> {
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
    (0..stored).step_by(2).try_for_each(|n| fs::remove_file(path(n)))?;
    let began = Instant::now();
    wait_for("room", ROOM_WITHIN, || Ok(store(&dir.join("again"), &bytes_of(stored))?))?;
    println!("    there was room again after {:.1} s", began.elapsed().as_secs_f64());
    for n in (1..stored).step_by(2) {
        ensure!(fs::read(path(n))? == bytes_of(n), "file {n} has other bytes");
    }
    ensure!(fs::read(dir.join("again"))? == bytes_of(stored), "the file that went in then has other bytes");
    fs::remove_dir_all(dir)?;
    Ok(())
}
