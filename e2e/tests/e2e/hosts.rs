//! A host as its administrator sees it: `make install`, mount(8), umount(8), fstab, systemd's units, and a mount whose process is killed.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, shell, wait_for, workspace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How soon whoever keeps the cluster names another process of a mount.
const NAMED_WITHIN: Duration = Duration::from_secs(60);
/// What takes a moment, on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(60);

/// `make install` into a directory, from the binaries that are tested.
pub fn install(cluster: &DevCluster) -> Result<()> {
    let root = cluster.scratch().join("root");
    let binaries = mooseng_e2e::cluster::binary("mooseng")?;
    let from = binaries.parent().context("no directory")?;
    let mut make = Command::new("make");
    make.args(["-s", "install", "PREFIX=/opt/mooseng"]).current_dir(workspace());
    make.arg(format!("DESTDIR={}", root.display())).arg(format!("FROM={}", from.display()));
    checked(&mut make)?;
    for file in ["opt/mooseng/bin/mooseng-master", "opt/mooseng/share/man/man1/mooseng-mount.1"] {
        ensure!(root.join(file).is_file(), "{file} isn't installed");
    }
    let link = std::fs::read_link(root.join("sbin/mount.mooseng"))?;
    ensure!(link == Path::new("/opt/mooseng/bin/mooseng"), "{}", link.display());
    Ok(())
}

/// What systemd says of the installed units.
pub fn units(cluster: &DevCluster) -> Result<()> {
    let units = cluster.scratch().join("root/opt/mooseng/lib/systemd/system");
    let names = ["mooseng-master@.service", "mooseng-chunkserver@.service", "mooseng-mount@.service"];
    for name in names {
        let text = std::fs::read_to_string(units.join(name))?;
        ensure!(!text.contains("@BINDIR@") && text.contains("/opt/mooseng/bin/"), "{name}:\n{text}");
    }
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("    SKIPPED: this machine has no systemd-analyze");
        return Ok(());
    }
    // The programs must be where the units say.
    let line = format!(
        "unshare -m bash -euc 'mkdir -p /opt/mooseng; mount --bind {root}/opt/mooseng /opt/mooseng; cd {units}; cp {example} .; \
         SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no ./mooseng-master@1.service ./mooseng-chunkserver@1.service \
         ./mooseng-mount@client.service ./mnt-mooseng.mount 2>&1; rm mnt-mooseng.mount'",
        root = cluster.scratch().join("root").display(),
        units = units.display(),
        example = workspace().join("packaging/systemd/mnt-mooseng.mount").display(),
    );
    let had = Path::new("/opt/mooseng").exists();
    for name in names {
        let instance = name.replace('@', if name.contains("mount") { "@client" } else { "@1" });
        std::os::unix::fs::symlink(name, units.join(instance))?;
    }
    let said = shell(cluster.scratch(), &line);
    if !had {
        let _ = std::fs::remove_dir("/opt/mooseng");
    }
    let said = said?;
    ensure!(said.trim().is_empty(), "systemd-analyze verify says:\n{said}");
    Ok(())
}

/// mount(8) and umount(8), in a mount namespace in which MooseNG is installed and fstab has lines of it.
pub fn mount_8(cluster: &DevCluster) -> Result<()> {
    let scratch = cluster.scratch();
    let (mnt, other) = (scratch.join("mnt-8"), scratch.join("mnt-fstab"));
    std::fs::create_dir(&mnt)?;
    std::fs::create_dir(&other)?;
    let config = cluster.client_config()?;
    let script = include_str!("mount_8.sh");
    let path = scratch.join("mount_8.sh");
    std::fs::write(&path, script)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-euo", "pipefail"]).arg(&path);
    command.arg(scratch.join("root")).arg(&config).arg(&mnt).arg(&other).current_dir(scratch);
    let output = checked(&mut command)?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// kill -9 of the process that serves a mount: the tree is back within seconds, without anybody doing anything.
pub fn killed_and_back(cluster: &DevCluster) -> Result<()> {
    // By another path than the kernel's, too.
    std::fs::create_dir_all(cluster.scratch().join("real/kept"))?;
    std::os::unix::fs::symlink("real", cluster.scratch().join("linked"))?;
    let tree = std::fs::canonicalize(cluster.scratch())?.join("real/kept");
    let mut mount = cluster.mooseng(&["mount", "--config"]);
    checked(mount.arg(cluster.client_config()?).arg(cluster.scratch().join("linked/kept")))?;
    let file = tree.join("survives");
    std::fs::write(&file, "before")?;
    std::fs::File::open(&file)?.sync_all()?;
    let stray = tree.join("stray");
    for round in 0..2 {
        let mut open = std::fs::File::options().read(true).append(true).open(&file)?;
        let pid = cluster.serving(&tree, None, NAMED_WITHIN)?;
        let began = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Whoever works there all the time does so in a mount, or not at all.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = std::fs::create_dir(&stray);
                    std::thread::yield_now();
                }
            });
            let back = wait_for("the tree to be back", SOON, || {
                ensure!(std::fs::read_to_string(&file)? == "before", "other content");
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            back
        })?;
        println!("    round {round}: back after {:.2} s", began.elapsed().as_secs_f64());
        cluster.serving(&tree, Some(pid), NAMED_WITHIN)?;
        // What was open stays dead, and says so.
        let error = open.write_all(b"x").err().context("a file of the dead mount takes writes")?;
        ensure!(error.raw_os_error() == Some(libc::ENOTCONN), "write: {error}");
        let error = open.read(&mut [0; 1]).err().context("a file of the dead mount can be read")?;
        ensure!(error.raw_os_error() == Some(libc::ENOTCONN), "read: {error}");
    }
    // It may have come too late for the living mount.
    std::fs::create_dir(&stray)
        .or_else(|e| if e.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
    std::fs::remove_dir(&stray)?;
    // One mount there, not one above the other.
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let there = table.lines().filter(|l| l.split(' ').nth(1) == tree.to_str()).count();
    ensure!(there == 1, "{there} mounts are there");
    // A deliberate umount ends it.
    let supervisors = || -> Result<usize> {
        let mut found = 0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found +=
                usize::from(line.contains("mooseng mount") && line.contains(&tree.display().to_string()));
        }
        Ok(found)
    };
    ensure!(
        supervisors()? == 2,
        "{} processes keep the mount, instead of a supervisor and a worker",
        supervisors()?
    );
    checked(Command::new("umount").arg(&tree))?;
    wait_for("its processes to end", SOON, || {
        ensure!(supervisors()? == 0, "{} are left", supervisors()?);
        Ok(())
    })?;
    if stray.exists() && !mounts_beneath()? {
        println!("    this kernel can't mount beneath a mount: the directory was bare for a moment");
        std::fs::remove_dir(&stray)?;
    }
    ensure!(!stray.exists(), "the directory under the mount was bare, and written to");
    ensure!(std::fs::read_dir(&tree)?.next().is_none(), "it was mounted again");
    told_to_end(cluster, &tree)?;
    taken_away(cluster, &tree, &supervisors)?;
    gives_up(cluster, &tree, &supervisors)
}

/// Whether this kernel can put a mount beneath another one: from 6.5 on.
fn mounts_beneath() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(|number| number.ok()).unwrap_or(0);
    Ok((next(), next()) >= (6, 5))
}

/// A configuration that makes no sense any more isn't tried for ever.
fn gives_up(cluster: &DevCluster, tree: &Path, processes: &dyn Fn() -> Result<usize>) -> Result<()> {
    let config = cluster.scratch().join("soon-wrong.toml");
    std::fs::copy(cluster.client_config()?, &config)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(&config).arg(tree))?;
    ensure!(tree.join("survives").exists(), "it isn't mounted");
    // Of all processes with that path, the one that holds a FUSE device serves.
    let serving = serving_by_device(tree)?;
    std::fs::write(&config, "cluster = ")?;
    kill(Pid::from_raw(serving), Signal::SIGKILL)?;
    wait_for("the supervisor to give up", Duration::from_secs(120), || {
        ensure!(processes()? == 0, "{} are left", processes()?);
        Ok(())
    })?;
    let error =
        std::fs::read_dir(tree).err().context("the dead mount is gone: programs would write below it")?;
    ensure!(error.raw_os_error() == Some(libc::ENOTCONN), "{error}");
    // And a person mends it by mounting.
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(tree))?;
    ensure!(tree.join("survives").exists(), "it isn't mounted again");
    checked(Command::new("umount").arg(tree)).map(drop)
}

fn serving_by_device(tree: &Path) -> Result<i32> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&line).contains(&tree.display().to_string()) {
            continue;
        }
        let open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        if open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to == Path::new("/dev/fuse")) {
            return Ok(entry.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("nobody serves {}", tree.display())
}

/// SIGTERM to the supervisor ends both.
fn told_to_end(cluster: &DevCluster, tree: &Path) -> Result<()> {
    let mut command = cluster.mooseng(&["mount", "--foreground", "--config"]);
    let mut child =
        command.arg(cluster.client_config()?).arg(tree).stderr(std::process::Stdio::null()).spawn()?;
    wait_for("the mount", SOON, || {
        ensure!(tree.join("survives").exists(), "it isn't there");
        Ok(())
    })?;
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(!tree.join("survives").exists(), "it is still mounted");
    Ok(())
}

/// Somebody who takes the dead mount away before it is mounted again means it.
fn taken_away(cluster: &DevCluster, tree: &Path, processes: &dyn Fn() -> Result<usize>) -> Result<()> {
    let mut mount = cluster.mooseng(&["mount", "--config"]);
    checked(mount.arg(cluster.client_config()?).arg(tree))?;
    let pid = cluster.serving(tree, None, NAMED_WITHIN)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    // The next worker may be just there: then this is an ordinary umount.
    wait_for("umount", SOON, || checked(Command::new("umount").arg("-l").arg(tree)).map(drop))?;
    wait_for("its processes to end", SOON, || {
        ensure!(processes()? == 0, "{} are left", processes()?);
        Ok(())
    })?;
    ensure!(!tree.join("survives").exists(), "it was mounted again");
    Ok(())
}
