//! A region of real daemons, each on a disk that can fail and in a network of its own, and the mounts.
//!
//! `mooseng dev up` makes certificates and configurations; then its daemons end, and the same are started here as children of this process,
//! which so learns how each of them ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::disk::LossyDisk;
use super::plan::{MOUNTS, Who};
use crate::child::{absent, detach, is_mounted, tail, wait, word};
use crate::cluster::{DevCluster, checked, wait_for};
use crate::network::Network;

/// Who runs the commands that ask about the region.
const OBSERVER: &str = "observer";
/// How long a region may take to be whole again.
pub const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// A daemon or a mount.
pub struct Process {
    /// Its name.
    pub name: String,
    /// `master`, `chunkserver` or `mount`.
    pub role: String,
    argv: Vec<String>,
    /// Its disk, if it is a daemon.
    pub disk: Option<LossyDisk>,
    /// Where it is mounted, if it is a mount.
    pub mount: Option<PathBuf>,
    child: Option<Child>,
    /// Whether it may end by itself for now.
    pub may_end: bool,
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(|c| Pid::from_raw(c.id() as i32))
    }
}

/// The region.
pub struct Region {
    /// All processes, by name. Before the networks and the directory, for they end first.
    processes: BTreeMap<String, Process>,
    network: Network,
    cluster: DevCluster,
    plant: Option<String>,
}

impl Region {
    /// Starts one. `plant` names a bug for daemons that were built with the cargo feature `plants`.
    pub fn start(plant: Option<String>) -> Result<Self> {
        let cluster = DevCluster::up("faults", &["--no-mount"])?;
        checked(cluster.mooseng(&["dev", "down", "--dir"]).arg(cluster.dir()))?;
        let file = cluster.file()?;
        let mut names: Vec<String> = file.processes.iter().map(|p| p.name.clone()).collect();
        names.extend((1..=MOUNTS).map(|n| format!("mount-{n}")));
        names.extend([OBSERVER.to_owned(), CHECK.to_owned()]);
        let network = Network::new(&names)?;
        let mut region = Self { processes: BTreeMap::new(), network, cluster, plant };
        let mut moved = Vec::new();
        for process in &file.processes {
            moved.push((process.address.clone(), region.network.address(&process.name)?));
        }
        for process in file.processes {
            // What it logs from now on is of one history.
            std::fs::remove_file(region.log(&process.name)).or_else(absent)?;
            let root = region.cluster.scratch().join("disks").join(&process.name);
            let objects = region.cluster.scratch().join("objects").join(&process.name);
            let disk = LossyDisk::mount(&objects, &root)?;
            region.configure(&process.name, Some(&root), &moved)?;
            region.add(Process {
                name: process.name,
                role: process.role,
                argv: process.argv,
                disk: Some(disk),
                mount: None,
                child: None,
                may_end: false,
            });
        }
        for name in ["client-1", "admin"] {
            region.configure(name, None, &moved)?;
        }
        for n in 1..=MOUNTS {
            let mount = region.mount_path(n);
            std::fs::create_dir_all(&mount)?;
            region.add_mount(&format!("mount-{n}"), mount, &[])?;
        }
        let daemons: Vec<String> =
            region.names("master").into_iter().chain(region.names("chunkserver")).collect();
        daemons.iter().try_for_each(|name| region.start_one(name))?;
        region.wait_whole()?;
        for n in 1..=MOUNTS {
            region.start_one(&format!("mount-{n}"))?;
        }
        Ok(region)
    }

    fn add(&mut self, process: Process) {
        self.processes.insert(process.name.clone(), process);
    }

    fn add_mount(&mut self, name: &str, path: PathBuf, options: &[&str]) -> Result<()> {
        let mooseng = self.cluster.mooseng(&[]).get_program().to_string_lossy().into_owned();
        let config = self.config("client-1").display().to_string();
        let mut argv = vec![mooseng, "mount".into(), "--config".into(), config, path.display().to_string()];
        argv.push("--foreground".into());
        argv.extend(options.iter().map(|o| (*o).to_owned()));
        self.add(Process {
            name: name.to_owned(),
            role: "mount".into(),
            argv,
            disk: None,
            mount: Some(path),
            child: None,
            may_end: false,
        });
        Ok(())
    }

    fn config(&self, name: &str) -> PathBuf {
        self.cluster.dir().join("etc").join(format!("{name}.toml"))
    }

    /// Where the n-th mount is.
    pub fn mount_path(&self, n: usize) -> PathBuf {
        self.cluster.scratch().join(format!("mnt-{n}"))
    }

    /// Puts a process into its network and onto its disk, and lets house-keeping be hasty.
    fn configure(&self, name: &str, root: Option<&Path>, moved: &[(String, String)]) -> Result<()> {
        let path = self.config(name);
        let mut text = std::fs::read_to_string(&path)?;
        for (from, to) in moved {
            let port = from.rsplit_once(':').map_or("", |(_, port)| port);
            text = text.replace(&format!("\"{from}\""), &format!("\"{to}:{port}\""));
        }
        let mut config: toml::Table = text.parse().with_context(|| format!("reading {}", path.display()))?;
        if let Some(root) = root {
            let root = root.display().to_string();
            config.insert("state_dir".into(), root.clone().into());
            if config.contains_key("data_dirs") {
                config.insert("data_dirs".into(), vec![format!("{root}/data")].into());
                config.insert("scrub_period_s".into(), 15.into());
                config.insert("trash_s".into(), 10.into());
            } else {
                let house: toml::Table =
                    "grace_ms = 15000\nscan_every_ms = 1000\ncollect_after_ms = 15000\nsettle_ms = 10000"
                        .parse()?;
                config.insert("house".into(), house.into());
            }
        }
        std::fs::write(&path, toml::to_string(&config)?)?;
        Ok(())
    }

    /// Names of the processes of a role.
    pub fn names(&self, role: &str) -> Vec<String> {
        self.processes.values().filter(|p| p.role == role).map(|p| p.name.clone()).collect()
    }

    /// Names of all daemons.
    pub fn daemons(&self) -> Vec<String> {
        self.processes.values().filter(|p| p.disk.is_some()).map(|p| p.name.clone()).collect()
    }

    /// A process.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("there is no process {name}"))
    }

    /// A daemon's disk.
    pub fn disk(&self, name: &str) -> Result<&LossyDisk> {
        self.processes.get(name).and_then(|p| p.disk.as_ref()).with_context(|| format!("{name} has no disk"))
    }

    /// Networks.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Whom a fault strikes now. Without a leader any master is one.
    pub fn resolve(&self, who: Who, seed: u64) -> String {
        let masters = self.names("master");
        let pick = |from: &[String]| from.get(seed as usize % from.len().max(1)).cloned().unwrap_or_default();
        let leader = self.leader().unwrap_or_else(|_| pick(&masters));
        match who {
            Who::Leader => leader,
            Who::Follower => pick(&masters.into_iter().filter(|m| *m != leader).collect::<Vec<_>>()),
            Who::Chunkserver(n) => format!("chunkserver-{n}"),
            Who::Mount(n) => format!("mount-{n}"),
        }
    }

    /// Starts a process that doesn't run. A mount is there when this returns; a daemon may still be on its way.
    pub fn start_one(&mut self, name: &str) -> Result<()> {
        let log = self.log(name);
        let process = self.processes.get(name).with_context(|| format!("there is no process {name}"))?;
        if process.child.is_some() {
            return Ok(());
        }
        let output = std::fs::File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&process.argv[0]);
        command.args(&process.argv[1..]).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        if let Some(plant) = &self.plant {
            command.env("MOOSENG_PLANT", plant);
        }
        self.network.enter(name, &mut command)?;
        let mount = process.mount.clone();
        if let Some(path) = &mount {
            detach(path);
        }
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        self.process(name)?.child = Some(child);
        let Some(path) = mount else { return Ok(()) };
        wait_for(&format!("{name} to be mounted"), Duration::from_secs(90), || {
            // One that ended is waited for no longer.
            if self.process(name)?.child.as_mut().map(Child::try_wait).transpose()?.flatten().is_some() {
                return Ok(());
            }
            ensure!(is_mounted(&path), "{} isn't in the table of mounts", path.display());
            Ok(())
        })?;
        ensure!(is_mounted(&path), "{name} ended before it was mounted; the end of its log: {}", tail(&log));
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.cluster.dir().join("log").join(format!("{name}.log"))
    }

    /// Sends a signal to processes, one right after the other. Those that don't run are left out.
    pub fn signal(&self, names: &[String], signal: Signal) -> Result<()> {
        for name in names {
            if let Some(pid) = self.processes.get(name).and_then(Process::pid) {
                kill(pid, signal).with_context(|| format!("{signal} to {name}"))?;
            }
        }
        Ok(())
    }

    /// kill -9, until they are gone.
    pub fn kill(&mut self, names: &[String]) -> Result<()> {
        self.signal(names, Signal::SIGKILL)?;
        for name in names {
            let process = self.process(name)?;
            if let Some(mut child) = process.child.take() {
                wait(&mut child, Duration::from_secs(30))
                    .with_context(|| format!("{name} doesn't end after SIGKILL"))?;
            }
        }
        Ok(())
    }

    /// Processes that ended although nobody ended them and nothing excuses it. They are forgotten, so that they can be started again.
    pub fn ended(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let logs = self.cluster.dir().join("log");
        for process in self.processes.values_mut() {
            let status = process.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            let Some(status) = status else { continue };
            process.child = None;
            if !process.may_end {
                let log = logs.join(format!("{}.log", process.name));
                found.push(format!(
                    "{} ended by itself ({}); the end of its log: {}",
                    process.name,
                    word(status),
                    tail(&log)
                ));
            }
        }
        found
    }

    /// A command of `mooseng` in the observer's network, with a configuration of the region.
    fn ask(&self, words: &[&str], config: &str) -> Result<std::process::Output> {
        let mut command = self.cluster.mooseng(words);
        command.arg("--config").arg(self.config(config));
        self.network.enter(OBSERVER, &mut command)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.output()?)
    }

    /// `mooseng status -o json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.ask(&["status", "-o", "json"], "client-1")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("mooseng status answered: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The leader's name.
    pub fn leader(&self) -> Result<String> {
        let status = self.status()?;
        let masters = status["masters"].as_array().cloned().unwrap_or_default();
        let leader = masters.iter().find(|m| m["leader"] == true).and_then(|m| m["name"].as_str());
        leader.map(str::to_owned).with_context(|| format!("there is no leader: {status}"))
    }

    /// Waits until the region has a leader and every master and chunkserver is there. A daemon that ends meanwhile fails it.
    pub fn wait_whole(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        wait_for("every master and chunkserver to be up", WHOLE_WITHIN, || {
            ended = self.ended();
            if !ended.is_empty() {
                return Ok(());
            }
            let status = self.status()?;
            let all = |list: &str, key: &str| {
                status[list].as_array().is_some_and(|l| !l.is_empty() && l.iter().all(|m| m[key] == true))
            };
            ensure!(status["leader"].as_u64().unwrap_or(0) > 0, "no leader");
            ensure!(all("masters", "reachable"), "masters: {}", status["masters"]);
            ensure!(all("chunkservers", "alive"), "chunkservers: {}", status["chunkservers"]);
            Ok(())
        })?;
        ensure!(ended.is_empty(), "{}", ended.join("; "));
        Ok(())
    }

    /// Waits until `mooseng fsck` finds nothing. Copies may be on their way to be repaired for a while; nothing else may be wrong at any time.
    pub fn fsck(&self) -> Result<()> {
        let mut wrong = None;
        wait_for("fsck to find nothing", Duration::from_secs(180), || {
            let output = self.ask(&["fsck", "-o", "json"], "admin")?;
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| {
                format!("mooseng fsck answered: {}", String::from_utf8_lossy(&output.stderr))
            })?;
            let findings = told["findings"].as_array().cloned().unwrap_or_default();
            let of_copies = |f: &serde_json::Value| f["kind"].as_str().is_some_and(|k| k.starts_with("COP"));
            if !findings.iter().all(of_copies) {
                wrong = Some(told.clone());
                return Ok(());
            }
            ensure!(told["found"] == 0 && output.status.success(), "fsck found: {told}");
            Ok(())
        })?;
        wrong.map_or(Ok(()), |told| bail!("fsck found what can't be on its way to be repaired: {told}"))
    }

    /// A mount that has seen nothing yet, for as long as `work` takes: it shows what the region has, not what a cache remembers.
    pub fn with_fresh_mount<T>(&mut self, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let path = self.cluster.scratch().join("mnt-check");
        std::fs::create_dir_all(&path)?;
        if !self.processes.contains_key(CHECK) {
            // What can't be read is to be told before long.
            self.add_mount(CHECK, path.clone(), &["--retry-timeout-s", "30"])?;
        }
        self.start_one(CHECK)?;
        let done = work(&path);
        self.signal(&[CHECK.to_owned()], Signal::SIGTERM)?;
        if let Some(mut child) = self.process(CHECK)?.child.take()
            && wait(&mut child, Duration::from_secs(20)).is_err()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        detach(&path);
        done
    }

    /// Lines of the logs that tell of a panic.
    pub fn panics(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.processes.keys() {
            let text =
                String::from_utf8_lossy(&std::fs::read(self.log(name)).unwrap_or_default()).into_owned();
            found.extend(text.lines().filter(|l| l.contains("panicked at")).map(|l| format!("{name}: {l}")));
        }
        Ok(found)
    }

    /// Terms that were led by two masters, or by one in two of its lives: a vote, or what was seen of a term, was forgotten.
    pub fn led_twice(&self) -> Result<Vec<String>> {
        let (mut led, mut found) = (BTreeMap::new(), BTreeSet::new());
        for name in self.names("master") {
            let text = std::fs::read(self.log(&name))?;
            let mut life = 0;
            for line in String::from_utf8_lossy(&text).lines() {
                life += usize::from(line.contains("\"begins to take part in its group\""));
                let term =
                    line.contains("\"message\":\"leads\"").then(|| number_in(line, "\"term\":")).flatten();
                let Some(term) = term else { continue };
                let leader = (name.clone(), life);
                let first = led.entry(term).or_insert_with(|| leader.clone());
                if *first != leader {
                    found.insert(format!(
                        "term {term} was led by {} in its life {} and by {name} in its life {life}",
                        first.0, first.1
                    ));
                }
            }
        }
        ensure!(!led.is_empty(), "no master's log says that it led: this check looks for the wrong words");
        Ok(found.into_iter().collect())
    }

    /// Nothing was found: the logs needn't be kept.
    pub fn forget_logs(&mut self) {
        self.cluster.forget_logs();
    }

    fn end(&mut self) {
        let mounts = self.names("mount");
        let daemons = self.daemons();
        for names in [mounts, daemons] {
            let _ = self.signal(&names, Signal::SIGCONT);
            let _ = self.kill(&names);
        }
        for path in self.processes.values().filter_map(|p| p.mount.clone()) {
            detach(&path);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.end();
    }
}

/// The name of the mount that is made for a check.
const CHECK: &str = "mount-check";

/// The number behind a key in a line of JSON.
fn number_in(line: &str, key: &str) -> Option<u64> {
    let digits: String = line.split(key).nth(1)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
