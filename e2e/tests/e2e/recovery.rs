//! docs/operations.md, *The majority of the masters is lost*: a region goes on from the one master's disk that is left.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, binary, checked, shell, wait_for};

use crate::operations::{asked, empty_dir};

/// What a master that was left behind says at its end.
pub const LEFT_BEHIND: &str = "was recovered without it";

fn config(cluster: &DevCluster, name: &str) -> PathBuf {
    cluster.dir().join("etc").join(format!("{name}.toml"))
}

fn id_of(cluster: &DevCluster, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(config(cluster, name))?;
    let line = text.lines().find_map(|l| l.strip_prefix("id = ")).context("no id")?;
    Ok(line.trim().parse()?)
}

fn recover(cluster: &DevCluster, name: &str, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("mooseng-master")?);
    command.arg("--config").arg(config(cluster, name)).arg("recover").args(args);
    Ok(command.output()?)
}

fn refuses(cluster: &DevCluster, name: &str, args: &[&str], words: &str) -> Result<()> {
    let output = recover(cluster, name, args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains(words), "recover {args:?}: {output:?}");
    Ok(())
}

const SURE: &str = "--i-know-that-the-lost-masters-never-return";

/// Two of three masters lose their disks for good.
pub fn majority_lost(cluster: &DevCluster, whole: &dyn Fn() -> Result<()>) -> Result<()> {
    let left = cluster.leader()?;
    let lost: Vec<String> = cluster.names("master")?.into_iter().filter(|name| *name != left).collect();
    let ids: Vec<String> =
        lost.iter().map(|name| Ok(id_of(cluster, name)?.to_string())).collect::<Result<_>>()?;
    let both = ids.join(",");
    let acknowledged = cluster.mount().join("acknowledged");
    std::fs::write(&acknowledged, "by a majority")?;
    std::fs::File::open(&acknowledged)?.sync_all()?;

    refuses(cluster, &left, &["--lost", &both, SURE], "Stop it first")?;
    cluster.dev("kill", &left)?;
    refuses(cluster, &left, &["--lost", &both, SURE], "as long as it is there it isn't lost")?;
    cluster.kill_now(&lost)?;
    // One of them will come back with its disk.
    let kept = cluster.scratch().join("kept-disk");
    let disk = |name: &str| -> Result<PathBuf> { Ok(cluster.process(name)?.state_dir) };
    shell(cluster.scratch(), &format!("cp -a {} {}", disk(&lost[0])?.display(), kept.display()))?;
    for name in &lost {
        empty_dir(&disk(name)?)?;
    }

    let shown = recover(cluster, &left, &[])?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.status.success() && text.contains("Nothing was changed"), "{shown:?}");
    ensure!(text.contains("last entry") && text.contains("last written"), "{text}");
    refuses(cluster, &left, &["--lost", &ids[0], SURE], "are a majority")?;
    refuses(cluster, &left, &["--lost", &both], "say so")?;
    refuses(cluster, &left, &["--lost", "77", SURE], "no master 77")?;
    let output = recover(cluster, &left, &["--lost", &both, SURE])?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("What may be missing") && text.contains("only member"), "{text}");

    let began = Instant::now();
    cluster.dev("start", &left)?;
    // The same mount, and the same chunkservers: to them it is their region.
    wait_for("the mount to go on", Duration::from_secs(60), || {
        ensure!(std::fs::read_to_string(&acknowledged)? == "by a majority", "other content");
        Ok(())
    })?;
    println!("    the mount goes on {:.1} s after the start", began.elapsed().as_secs_f64());
    std::fs::write(cluster.mount().join("after-recovery"), "new")?;
    // Ids that lost entries had given aren't given again.
    let inode = std::fs::metadata(cluster.mount().join("after-recovery"))?.ino();
    ensure!(inode > 1_700_000_000 << 16, "inode {inode}");
    whole()?;
    cluster.fsck()?;
    comes_back(cluster, &lost[0], &kept)?;
    ensure!(std::fs::read_to_string(cluster.mount().join("after-recovery"))? == "new", "other content");

    add_anew(cluster, &lost, ["7", "8"])?;
    // The first of them doesn't need the one that was left any more.
    cluster.dev("kill", &left)?;
    std::fs::write(cluster.mount().join("after-all"), "x")?;
    whole()?;
    cluster.dev("start", &left)?;
    cluster.wait_whole()?;
    cluster.fsck()
}

/// Adds masters with empty disks under new ids.
fn add_anew(cluster: &DevCluster, names: &[String], ids: [&str; 2]) -> Result<()> {
    for (name, id) in names.iter().zip(ids) {
        let process = cluster.process(name)?;
        empty_dir(&process.state_dir)?;
        let path = config(cluster, name);
        let old = format!("id = {}\n", id_of(cluster, name)?);
        let text = std::fs::read_to_string(&path)?.replacen(&old, &format!("id = {id}\n"), 1);
        std::fs::write(&path, text)?;
        cluster.dev("start", name)?;
        let args = ["members", "add", "--id", id, "--name", name, "--zone", &process.zone];
        asked(cluster, &[&args[..], &["--address", &process.address]].concat())?;
    }
    cluster.wait_whole()
}

/// All masters lose their disks, and there is a dump.
pub fn from_a_dump(cluster: &DevCluster, whole: &dyn Fn() -> Result<()>) -> Result<()> {
    std::fs::write(cluster.mount().join("dumped"), "in the dump")?;
    std::fs::File::open(cluster.mount().join("dumped"))?.sync_all()?;
    let file = cluster.scratch().join("metadata.dump");
    let path = file.display().to_string();
    let told: serde_json::Value =
        serde_json::from_str(&asked(cluster, &["metadata", "dump", &path, "-o", "json"])?)?;
    ensure!(told["records"].as_u64() > Some(100) && told["region"] == "region-1", "{told}");
    ensure!(!file.with_file_name("metadata.dump.part").exists(), "a part is left");
    let again =
        cluster.mooseng(&["metadata", "dump", &path, "--config"]).arg(cluster.client_config()?).output()?;
    ensure!(again.status.code() == Some(2), "a dump is overwritten: {again:?}");
    let other = cluster.scratch().join("other.dump");
    let mut denied = cluster.mooseng(&["metadata", "dump"]);
    let denied = denied.arg(&other).arg("--config").arg(cluster.client_config()?).output()?;
    ensure!(denied.status.code() == Some(4) && !other.exists(), "{denied:?}");
    // Half of it, and a flipped bit.
    let bytes = std::fs::read(&file)?;
    let bad = cluster.scratch().join("bad.dump");
    for (what, damaged) in [
        ("cut off", bytes[..bytes.len() / 2].to_vec()),
        ("damaged", {
            let mut flipped = bytes.clone();
            flipped[bytes.len() / 3] ^= 4;
            flipped
        }),
    ] {
        std::fs::write(&bad, damaged)?;
        let output = cluster.mooseng(&["metadata", "verify"]).arg(&bad).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(what), "{output:?}");
    }

    let names = cluster.names("master")?;
    let (first, others) = names.split_first().context("no masters")?;
    let load = |file: &Path| -> Result<Output> {
        let mut command = cluster.mooseng(&["metadata", "load"]);
        Ok(command.arg(file).arg("--master-config").arg(config(cluster, first)).output()?)
    };
    let fails = |file: &Path, words: &str| {
        let output = load(file)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(words), "{output:?}");
        Ok(())
    };
    fails(&file, "answers")?;
    cluster.kill_now(&names)?;
    fails(&file, "isn't empty")?;
    for name in &names {
        empty_dir(&cluster.process(name)?.state_dir)?;
    }
    fails(&bad, "damaged")?;
    let dir = cluster.process(first)?.state_dir;
    // But for the lock, which is no part of a region.
    let left = std::fs::read_dir(&dir)?.filter(|entry| entry.as_ref().is_ok_and(|e| e.file_name() != "LOCK"));
    ensure!(left.count() == 0, "a damaged dump has left something behind");
    let output = load(&file)?;
    ensure!(output.status.success(), "{output:?}");
    cluster.dev("start", first)?;
    wait_for("the mount to go on", Duration::from_secs(60), || {
        ensure!(std::fs::read_to_string(cluster.mount().join("dumped"))? == "in the dump", "other content");
        Ok(())
    })?;
    std::fs::write(cluster.mount().join("after-the-dump"), "new")?;
    whole()?;
    cluster.fsck()?;
    add_anew(cluster, others, ["11", "12"])?;
    cluster.fsck()
}

/// A master of before, with its disk: it isn't let in, says so, and ends.
fn comes_back(cluster: &DevCluster, name: &str, disk: &Path) -> Result<()> {
    let dir = cluster.process(name)?.state_dir;
    empty_dir(&dir)?;
    checked(Command::new("cp").arg("-aT").arg(disk).arg(&dir))?;
    // It may end before `start` has seen it.
    let _ = cluster.dev("start", name);
    wait_for("the old master to end", Duration::from_secs(60), || {
        ensure!(cluster.process(name)?.pid.is_none(), "it runs");
        Ok(())
    })?;
    let log = std::fs::read_to_string(cluster.dir().join("log").join(format!("{name}.log")))?;
    ensure!(log.contains(LEFT_BEHIND), "it doesn't say why it ended");
    // Nor is it taken in.
    let process = cluster.process(name)?;
    let id = id_of(cluster, name)?.to_string();
    let mut command = cluster.mooseng(&["members", "add", "--id", &id, "--name", name, "--address"]);
    command.arg(&process.address).args(["--zone", &process.zone, "--config"]);
    let output = command.arg(cluster.dir().join("etc/admin.toml")).output()?;
    ensure!(!output.status.success(), "it is added: {output:?}");
    Ok(())
}
