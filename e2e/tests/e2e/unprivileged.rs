//! Who isn't root has a cluster and a mount, too, through fusermount3; and is told what is missing where it doesn't work.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{binary, checked};
use mooseng_e2e::logs;
use mooseng_e2e::steps::Steps;

/// nobody and nogroup.
const NOBODY: &str = "65534";

#[test]
fn without_root_it_mounts_through_fusermount3_or_says_what_is_missing() {
    run().unwrap();
}

/// A place in which the test may arrange devices and directories as on another machine: a mount namespace of its own, which ends with
/// the value. Without root there is none, and the test runs as itself, on the machine as it is.
struct Place {
    namespace: Option<(Child, ChildStdin)>,
    /// The binaries, where anybody may run them.
    bin: PathBuf,
    /// The directory of the user without rights.
    home: PathBuf,
}

impl Place {
    fn new(scratch: &Path) -> Result<Self> {
        let (bin, home) = (scratch.join("bin"), scratch.join("home"));
        std::fs::create_dir(&home)?;
        let built = binary("mooseng")?;
        let built = built.parent().context("the binaries lie in no directory")?;
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self { namespace: None, bin: built.to_owned(), home });
        }
        std::fs::create_dir(&bin)?;
        let nobody: u32 = NOBODY.parse()?;
        std::os::unix::fs::chown(&home, Some(nobody), Some(nobody))?;
        // It has its namespace once it says so, and lives until its stdin is closed.
        let mut child = Command::new("unshare")
            .args(["--mount", "bash", "-c", "echo; read -r || true"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        child.stdout.take().context("no stdout")?.read_exact(&mut [0])?;
        let stdin = child.stdin.take().context("no stdin")?;
        let place = Self { namespace: Some((child, stdin)), bin, home };
        // The workspace may lie where only its owner gets to.
        place.as_root(&format!("mount --bind {} {}", built.display(), place.bin.display()))?;
        place.device(scratch, 666)?;
        Ok(place)
    }

    /// Gives the place a /dev/fuse of that mode, whatever the machine's own is.
    fn device(&self, scratch: &Path, mode: u32) -> Result<()> {
        let dir = scratch.join(format!("dev-{mode}"));
        std::fs::create_dir(&dir)?;
        let dir = dir.display();
        self.as_root(&format!(
            "mount -t tmpfs devices {dir} && mknod -m {mode} {dir}/fuse c 10 229 && mount --bind {dir}/fuse /dev/fuse"
        ))
    }

    /// nsenter, as far as it takes to get in.
    fn enter(&self, user: &[&str]) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some((child, _)) = &self.namespace {
            words.extend(["nsenter".into(), "--mount".into(), "--target".into(), child.id().to_string()]);
            words.extend(user.iter().map(|&w| w.to_owned()));
        }
        words.push("env".into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_remove("XDG_RUNTIME_DIR").env("HOME", &self.home);
        command
    }

    fn as_root(&self, line: &str) -> Result<()> {
        checked(self.enter(&[]).args(["bash", "-euc", line])).map(drop)
    }

    /// A command line of the user without rights; $BIN and $HOME are his.
    fn user(&self, line: &str) -> Result<Output> {
        let user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        let mut command = self.enter(&user);
        command.env("BIN", &self.bin).args(["bash", "-euo", "pipefail", "-c", line]);
        command.output().with_context(|| format!("running {line:?}"))
    }

    /// One that must succeed; answers its stdout.
    fn works(&self, line: &str) -> Result<String> {
        let output = self.user(line)?;
        ensure!(
            output.status.success(),
            "{line:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One that must fail and say all of `words`, in a sentence.
    fn fails(&self, line: &str, words: &[&str]) -> Result<()> {
        let output = self.user(line)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        println!("    {said}");
        ensure!(!output.status.success(), "{line:?} works");
        ensure!(words.iter().all(|w| said.contains(w)), "it doesn't say all of {words:?}: {said}");
        ensure!(said.starts_with("mooseng: ") && said.ends_with('.'), "this is no sentence: {said}");
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.namespace.take() {
            drop(stdin);
            let _ = child.wait();
        }
    }
}

fn run() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("mse-unprivileged-").tempdir()?;
    std::fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let place = Place::new(scratch.path())?;
    let mut steps = Steps::default();
    steps.run("a cluster of one's own, mounted, which is well from the start", || {
        let status =
            place.works("$BIN/mooseng dev up --dir $HOME/c --regions 1 --detach >&2; $BIN/mooseng status")?;
        ensure!(status.starts_with("OK: Every acknowledged write survives"), "{status}");
        Ok(())
    });
    steps.run("it is used like any directory", || {
        let told = place.works(
            "cd $HOME/c/mnt; grep -c ' fuse.mooseng .*user_id='$(id -u) /proc/self/mountinfo
             echo hello > small; head -c 3000000 /dev/urandom > $HOME/big; cp $HOME/big big; cmp big $HOME/big
             mkdir d; mv small d/; ln -s d/small link; cat link; chmod 600 big; stat -c '%u %a' big; rm -r d",
        )?;
        let lines: Vec<&str> = told.lines().collect();
        ensure!(lines.len() == 3 && lines[0] == "1" && lines[1] == "hello", "{told}");
        ensure!(lines[2] == format!("{} 600", place.works("id -u")?.trim()), "{told}");
        Ok(())
    });
    steps.run("info finds the mount", || {
        let info = place.works("$BIN/mooseng info $HOME/c/mnt/big")?;
        ensure!(info.contains("2 of 2 copies reachable"), "{info}");
        Ok(())
    });
    steps.run("a second mount, and umount", || {
        place.works(
            "mkdir $HOME/second; $BIN/mooseng mount --config $HOME/c/etc/client-1.toml -o ro $HOME/second
             cmp $HOME/second/big $HOME/big; ! touch $HOME/second/x 2>/dev/null
             $BIN/mooseng umount $HOME/second; ! grep -q $HOME/second /proc/self/mountinfo",
        )?;
        Ok(())
    });
    let mount = "$BIN/mooseng mount --config $HOME/c/etc/client-1.toml $HOME/second";
    steps.run("without fusermount3 it says what to install", || {
        place.fails(
            &mount.replacen("$BIN", "PATH=/nonexistent $BIN", 1),
            &["needs root or fusermount3", "install the package fuse3"],
        )
    });
    steps.run("a mount for others takes a line in fuse.conf", || {
        let allowed = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        if allowed.lines().any(|l| l.trim() == "user_allow_other") {
            println!("    SKIPPED: this machine's /etc/fuse.conf has it");
            return Ok(());
        }
        place.fails(
            &mount.replacen("mount", "mount -o allow_other", 1),
            &["user_allow_other", "/etc/fuse.conf", "add the line"],
        )
    });
    steps.run("a device that isn't for everybody", || {
        if place.namespace.is_none() {
            println!("    SKIPPED: only root can give the test a /dev/fuse of its own");
            return Ok(());
        }
        place.device(scratch.path(), 600)?;
        place.fails(mount, &["/dev/fuse", "must be allowed to read and write", "chmod 0666 /dev/fuse"])
    });
    steps.run("dev down", || {
        place.works("$BIN/mooseng dev down --dir $HOME/c; ! grep -q $HOME /proc/self/mountinfo")?;
        let file = std::fs::read_to_string(place.home.join("c/cluster.json"))?;
        let file: serde_json::Value = serde_json::from_str(&file)?;
        let left = file["processes"].as_array().cloned().unwrap_or_default();
        ensure!(!left.is_empty() && left.iter().all(|p| p["pid"].is_null()), "{file}");
        Ok(())
    });
    let complaints = logs::complaints(&place.home.join("c/log"), super::PEERS_COME_AND_GO);
    // Whatever failed above: nothing is left behind.
    place.works("$BIN/mooseng dev down --purge --dir $HOME/c")?;
    steps.finish()?;
    let complaints = complaints?;
    ensure!(complaints.is_empty(), "unexpected WARN or ERROR in the logs:\n{complaints:#?}");
    Ok(())
}
