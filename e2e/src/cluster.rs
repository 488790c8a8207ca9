//! A dev cluster for a test. It is driven only by the forms that are fixed for scripts: `mooseng dev ...` and `cluster.json`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::logs;

mod regions;

/// `cluster.json`, to the letter: an unknown or missing key fails.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// All processes.
    pub processes: Vec<Process>,
    /// All mounts.
    pub mounts: Vec<Mount>,
    /// Configurations for `mooseng mount`.
    pub clients: Vec<Client>,
}

/// A process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fixed form: each key says it")]
pub struct Process {
    pub name: String,
    pub role: String,
    pub region: String,
    pub zone: String,
    pub pid: Option<i32>,
    pub address: String,
    pub state_dir: PathBuf,
    pub argv: Vec<String>,
}

/// A mount.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fixed form: each key says it")]
pub struct Mount {
    pub region: String,
    pub path: PathBuf,
    pub pid: i32,
}

/// A client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fixed form: each key says it")]
pub struct Client {
    pub region: String,
    pub config: PathBuf,
}

/// A running cluster; it ends with the value.
pub struct DevCluster {
    name: String,
    scratch: tempfile::TempDir,
    mooseng: PathBuf,
    finished: bool,
}

impl DevCluster {
    /// Starts one, of one region where `args` name no number; they go behind `mooseng dev up --dir DIR --detach`.
    pub fn up(name: &str, args: &[&str]) -> Result<Self> {
        let cluster = Self::prepared(name)?;
        let began = Instant::now();
        cluster.up_again(args)?;
        println!("  cluster {name} is up after {:.1} s", began.elapsed().as_secs_f64());
        Ok(cluster)
    }

    /// A directory for one that somebody else starts, by the name `cluster` in [`Self::scratch`].
    pub fn prepared(name: &str) -> Result<Self> {
        // Short: a socket's path has 108 bytes at most.
        let scratch = tempfile::Builder::new().prefix(&format!("mse-{name}-")).tempdir()?;
        // Other users must reach the mount, as pjdfstest's do.
        std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { name: name.to_owned(), scratch, mooseng: binary("mooseng")?, finished: false })
    }

    /// Starts what doesn't run. `args` as in [`Self::up`].
    pub fn up_again(&self, args: &[&str]) -> Result<()> {
        let dir = self.dir();
        let mut command = Command::new(&self.mooseng);
        command.args(["dev", "up", "--detach", "--dir"]).arg(&dir).args(args);
        if !args.contains(&"--regions") {
            command.args(["--regions", "1"]);
        }
        checked(&mut command).map(drop)
    }

    /// Where it is kept.
    pub fn dir(&self) -> PathBuf {
        self.scratch.path().join("cluster")
    }

    /// Local disk for a test's own files, beside the cluster.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The mount, of a cluster of one region.
    pub fn mount(&self) -> PathBuf {
        self.dir().join("mnt")
    }

    /// A region's mount, of a cluster of several.
    pub fn mount_of(&self, region: &str) -> Result<PathBuf> {
        let found = self.file()?.mounts.into_iter().find(|m| m.region == region);
        found.map(|m| m.path).with_context(|| format!("cluster.json has no mount of {region}"))
    }

    /// What `cluster.json` says.
    pub fn file(&self) -> Result<ClusterFile> {
        let path = self.dir().join("cluster.json");
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} isn't of the fixed form", path.display()))
    }

    /// The process of that name.
    pub fn process(&self, name: &str) -> Result<Process> {
        let found = self.file()?.processes.into_iter().find(|p| p.name == name);
        found.with_context(|| format!("cluster.json has no process {name}"))
    }

    /// Names of the processes of a role.
    pub fn names(&self, role: &str) -> Result<Vec<String>> {
        Ok(self.file()?.processes.into_iter().filter(|p| p.role == role).map(|p| p.name).collect())
    }

    /// Names of a region's masters and chunkservers.
    pub fn daemons_of(&self, region: &str) -> Result<Vec<String>> {
        let of = |p: &Process| p.region == region && p.role != "client";
        Ok(self.file()?.processes.into_iter().filter(of).map(|p| p.name).collect())
    }

    /// The configuration of a region's client.
    pub fn client_config_of(&self, region: &str) -> Result<PathBuf> {
        let found = self.file()?.clients.into_iter().find(|c| c.region == region);
        found.map(|c| c.config).with_context(|| format!("cluster.json has no client of {region}"))
    }

    /// The configuration of a region's administrator: beside that of its client, or of its only master.
    pub fn admin_config_of(&self, region: &str) -> Result<PathBuf> {
        let of = |p: &Process| p.region == region && p.role == "master";
        let master = self.file()?.processes.into_iter().find(of);
        let master = master.with_context(|| format!("cluster.json has no master of {region}"))?.name;
        let before =
            master.strip_suffix("master-1").with_context(|| format!("{master} is no first master"))?;
        Ok(self.dir().join(format!("etc/{before}admin.toml")))
    }

    /// The configuration for `mooseng mount` and `mooseng status`.
    pub fn client_config(&self) -> Result<PathBuf> {
        self.file()?.clients.first().map(|c| c.config.clone()).context("cluster.json has no client")
    }

    /// The process that serves a mount, once cluster.json names one that isn't `dead`, within that time.
    pub fn serving(&self, path: &Path, dead: Option<i32>, within: Duration) -> Result<i32> {
        let mut found = 0;
        wait_for("cluster.json to name the mount's process", within, || {
            // Whoever keeps the cluster writes the file when it next looks: until then it names the mount that was there before.
            let lives = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
            let serves = |m: &Mount| m.path == path && Some(m.pid) != dead && lives(m.pid);
            let mount = self.file()?.mounts.into_iter().find(serves);
            found = mount.with_context(|| format!("no mount on {}", path.display()))?.pid;
            Ok(())
        })?;
        Ok(found)
    }

    /// `mooseng` with these arguments.
    pub fn mooseng(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.mooseng);
        command.args(args);
        command
    }

    /// `mooseng dev VERB NAME --dir DIR`, which must succeed.
    pub fn dev(&self, verb: &str, name: &str) -> Result<()> {
        self.dev_words(&[verb, name]).map(drop)
    }

    /// `mooseng dev WORDS --dir DIR`, which must succeed.
    pub fn dev_words(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.mooseng(&["dev"]);
        checked(command.args(words).arg("--dir").arg(self.dir()))
    }

    /// Changes what is cut between regions, and waits until every process goes by it.
    pub fn cut(&self, words: &[&str]) -> Result<()> {
        const TAKEN_UP: &str = "took up changed rules between regions";
        let log_of = |name: &str| self.dir().join("log").join(format!("{name}.log"));
        let seen = |name: &str| -> Result<usize> {
            let log = std::fs::read_to_string(log_of(name)).with_context(|| format!("the log of {name}"))?;
            Ok(log.matches(TAKEN_UP).count())
        };
        let running = self.file()?.processes.into_iter().filter(|p| p.pid.is_some()).map(|p| p.name);
        let before = running.map(|name| Ok((seen(&name)?, name))).collect::<Result<Vec<_>>>()?;
        self.dev_words(words)?;
        wait_for("all processes to take up what is cut", Duration::from_secs(60), || {
            for (count, name) in &before {
                ensure!(seen(name)? > *count, "{name} hasn't looked yet");
            }
            Ok(())
        })
    }

    /// kill -9 of these, one right after the other, without asking anybody.
    pub fn kill_now(&self, names: &[String]) -> Result<()> {
        let file = self.file()?;
        let pids: Vec<i32> =
            file.processes.iter().filter(|p| names.contains(&p.name)).filter_map(|p| p.pid).collect();
        ensure!(pids.len() == names.len(), "of {names:?} only {} run", pids.len());
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill -9 {pid}"))?;
        }
        Ok(())
    }

    /// `mooseng status -o json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let mut command = self.mooseng(&["status", "-o", "json", "--config"]);
        let output = command.arg(self.client_config()?).output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("mooseng status answered: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// `mooseng fsck` finds nothing. Copies may still be on their way to be repaired for a while; nothing else may be wrong at any time.
    pub fn fsck(&self) -> Result<()> {
        let admin = self.dir().join("etc/admin.toml");
        let mut wrong = None;
        wait_for("fsck to find nothing", Duration::from_secs(180), || {
            let output = self.mooseng(&["fsck", "-o", "json", "--config"]).arg(&admin).output()?;
            let talk = String::from_utf8_lossy(&output.stderr).into_owned();
            let told: serde_json::Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("mooseng fsck answered: {talk}"))?;
            let findings = told["findings"].as_array().cloned().unwrap_or_default();
            let of_copies =
                |f: &serde_json::Value| f["kind"].as_str().is_some_and(|kind| kind.starts_with("COP"));
            if !findings.iter().all(of_copies) {
                wrong = Some(told.clone());
                return Ok(());
            }
            ensure!(told["found"] == 0 && output.status.success(), "fsck found: {told:#}");
            ensure!(told["checked"]["inodes"].as_u64() > Some(0), "fsck looked at nothing: {told}");
            println!("    fsck looked at {}", told["checked"]);
            Ok(())
        })?;
        wrong.map_or(Ok(()), |told| bail!("fsck found what can't be on its way to be repaired: {told:#}"))
    }

    /// The leader's name.
    pub fn leader(&self) -> Result<String> {
        let status = self.status()?;
        let masters = status["masters"].as_array().cloned().unwrap_or_default();
        let leader =
            masters.iter().find(|m| m["leader"] == true).and_then(|m| m["name"].as_str().map(str::to_owned));
        leader.with_context(|| format!("there is no leader: {status}"))
    }

    /// Waits until the region has a leader and every master and chunkserver is there.
    pub fn wait_whole(&self) -> Result<()> {
        wait_for("every master and chunkserver to be up", Duration::from_secs(60), || {
            let status = self.status()?;
            let all = |list: &str, key: &str| {
                status[list].as_array().is_some_and(|l| !l.is_empty() && l.iter().all(|m| m[key] == true))
            };
            ensure!(status["leader"].as_u64().unwrap_or(0) > 0, "no leader");
            ensure!(all("masters", "reachable"), "masters: {}", status["masters"]);
            ensure!(all("chunkservers", "alive"), "chunkservers: {}", status["chunkservers"]);
            Ok(())
        })
    }

    /// Whoever uses it has looked at the logs himself, and found nothing: they aren't kept.
    pub fn forget_logs(&mut self) {
        self.finished = true;
    }

    /// Ends it and looks through the logs: complaints that contain none of `expected` are a failure.
    pub fn finish(mut self, expected: &[&str]) -> Result<()> {
        let found = logs::complaints(&self.dir().join("log"), expected)?;
        self.finished = found.is_empty();
        if !found.is_empty() {
            let shown: Vec<&String> = found.iter().take(20).collect();
            bail!("{} unexpected WARN or ERROR in the logs, among them:\n{:#?}", found.len(), shown);
        }
        let mut down = self.mooseng(&["dev", "down", "--dir"]);
        checked(down.arg(self.dir()))?;
        let left: Vec<String> =
            self.file()?.processes.into_iter().filter(|p| p.pid.is_some()).map(|p| p.name).collect();
        ensure!(left.is_empty(), "after `down` these still run: {left:?}");
        Ok(())
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        if !self.finished {
            let kept = workspace().join("target/e2e-logs").join(&self.name);
            let _ = std::fs::remove_dir_all(&kept);
            let _ = std::fs::create_dir_all(&kept);
            for entry in std::fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten() {
                let _ = std::fs::copy(entry.path(), kept.join(entry.file_name()));
            }
            println!("  the logs of cluster {} are kept in {}", self.name, kept.display());
        }
        let mut down = self.mooseng(&["dev", "down", "--purge", "--dir"]);
        if let Ok(output) = down.arg(self.dir()).output()
            && !output.status.success()
            && self.dir().exists()
        {
            println!("  `mooseng dev down` failed: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    dir.parent().unwrap_or(dir).to_owned()
}

/// A binary of the workspace: tests have a directory of their own beside them.
pub fn binary(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let own = me.parent().context("this program has no directory")?;
    let dir = if own.ends_with("deps") { own.parent().unwrap_or(own) } else { own };
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{} isn't there: run `cargo build --workspace --bins` first, or `make test`",
        path.display()
    );
    Ok(path)
}

/// Runs a command that must succeed.
pub fn checked(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// A command line, run by the shell in `dir`; it must succeed.
pub fn shell(dir: &Path, line: &str) -> Result<String> {
    let output = checked(Command::new("bash").args(["-euo", "pipefail", "-c", line]).current_dir(dir))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, time: Duration, mut condition: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + time;
    loop {
        match condition() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {} s for {what}", time.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
