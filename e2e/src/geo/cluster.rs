//! Two regions or more and a witness of real daemons, each region in a network namespace of its own, with the mount of a region within it.
//!
//! `mooseng dev up` makes certificates and configurations; then its daemons end, and the same are started here on empty disks and at other
//! addresses, as children of this process. The way between regions takes its time by the delays in the transport, as with `dev up`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::plan::Kind;
use crate::child::{absent, detach, is_mounted, tail, wait, word};
use crate::cluster::{DevCluster, checked, wait_for};
use crate::network::Network;

/// What regions with data are called.
const NAMES: &[&str] = &["region-1", "region-2", "region-3", "region-4"];
/// The regions with data of the smallest cluster.
pub const REGIONS: [&str; 2] = [NAMES[0], NAMES[1]];
/// How many there may be.
pub const COUNTS: RangeInclusive<usize> = REGIONS.len()..=NAMES.len();
/// The region without.
const WITNESS: &str = "witness";
/// Who runs the commands that ask.
const OBSERVER: &str = "observer";
/// Round trip between regions.
const WAN: &str = "60ms";
/// How long everything may take to be whole after a loss.
pub const WHOLE_WITHIN: Duration = Duration::from_secs(180);

struct Process {
    region: String,
    argv: Vec<String>,
    mount: Option<PathBuf>,
    child: Option<Child>,
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(|c| Pid::from_raw(c.id() as i32))
    }
}

/// What the regions agree on about the root volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its home.
    pub home: String,
    /// The home's epoch.
    pub epoch: u64,
}

/// The cluster.
pub struct GeoCluster {
    regions: &'static [&'static str],
    /// All processes, by name. Before the networks and the directory, for they end first.
    processes: BTreeMap<String, Process>,
    network: Network,
    cluster: DevCluster,
}

impl GeoCluster {
    /// Starts one of so many regions with data, each of them with a mount, and makes its root volume `geo`.
    pub fn start(count: usize) -> Result<Self> {
        let regions = NAMES.get(..count).filter(|_| COUNTS.contains(&count));
        let regions = regions.with_context(|| format!("{COUNTS:?} regions can be started, not {count}"))?;
        let cluster = DevCluster::up(
            "geo",
            &[
                "--regions",
                &count.to_string(),
                "--wan",
                WAN,
                "--durability",
                "region",
                "--no-mount",
                "--wait",
                "180s",
            ],
        )?;
        checked(cluster.mooseng(&["dev", "down", "--dir"]).arg(cluster.dir()))?;
        let file = cluster.file()?;
        let networks: Vec<String> =
            regions.iter().chain(&[WITNESS, OBSERVER]).map(|name| (*name).to_owned()).collect();
        let network = Network::new(&networks)?;
        let mut geo = Self { regions, processes: BTreeMap::new(), network, cluster };
        let mut moved = Vec::new();
        for process in file.processes.iter().filter(|p| p.role != "client") {
            let port = process.address.rsplit_once(':').map_or("", |(_, port)| port);
            let to = format!("{}:{port}", geo.network.address(&process.region)?);
            moved.push((format!("\"{}\"", process.address), format!("\"{to}\"")));
        }
        for entry in std::fs::read_dir(geo.cluster.dir().join("etc"))? {
            configure(&entry?.path(), &moved)?;
        }
        for process in file.processes.into_iter().filter(|p| p.role != "client") {
            // Their groups know each other by the addresses of before.
            empty(&process.state_dir)?;
            // What it logs from now on is of one history.
            std::fs::remove_file(geo.log(&process.name)).or_else(absent)?;
            let Some(argv) = Some(process.argv).filter(|argv| !argv.is_empty()) else {
                bail!("cluster.json doesn't say how {} is started", process.name)
            };
            geo.processes
                .insert(process.name, Process { region: process.region, argv, mount: None, child: None });
        }
        for region in regions {
            geo.add_mount(&mount_name(region), region)?;
        }
        let daemons: Vec<String> = geo.daemons();
        daemons.iter().try_for_each(|name| geo.start_one(name))?;
        let admin = geo.config(REGIONS[0], "admin");
        wait_for("the regions to agree on a geo volume", WHOLE_WITHIN, || {
            let set = ["volume", "set", "/", "--durability", "geo"];
            let output = geo.ask(OBSERVER, &set, &admin)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        })?;
        geo.wait_whole()?;
        for region in regions {
            geo.start_one(&mount_name(region))?;
        }
        Ok(geo)
    }

    /// The regions with data.
    pub fn regions(&self) -> &'static [&'static str] {
        self.regions
    }

    /// The region of that name, and the others with data.
    pub fn parted(&self, home: &str) -> Result<(&'static str, Vec<&'static str>)> {
        let (home_of, others): (Vec<&str>, Vec<&str>) =
            self.regions.iter().copied().partition(|region| *region == home);
        let home = home_of.first().copied().with_context(|| format!("there is no region {home}"))?;
        Ok((home, others))
    }

    /// Changes what fsync waits for; once it is `geo` all regions are in the sync set.
    pub fn set_durability(&mut self, durability: &str) -> Result<()> {
        let admin = self.config(REGIONS[0], "admin");
        let output = self.ask(OBSERVER, &["volume", "set", "/", "--durability", durability], &admin)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if durability == "geo" {
            self.wait_whole()?;
        }
        Ok(())
    }

    /// Moves the home, and returns once it has moved.
    pub fn move_home(&self, to: &str) -> Result<()> {
        let admin = self.config(REGIONS[0], "admin");
        let output = self.ask(OBSERVER, &["volume", "move-home", "/", "--to", to], &admin)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Bytes that have left a region's network so far.
    pub fn bytes_sent(&self, region: &str) -> Result<u64> {
        self.network.bytes_sent(region)
    }

    fn add_mount(&mut self, name: &str, region: &str) -> Result<()> {
        let path = self.cluster.scratch().join(name);
        std::fs::create_dir_all(&path)?;
        let mooseng = self.cluster.mooseng(&[]).get_program().to_string_lossy().into_owned();
        let config = self.config(region, "client-1").display().to_string();
        let argv = [&mooseng, "mount", "--config", &config, &path.display().to_string()];
        let mut argv: Vec<String> = argv.map(str::to_owned).to_vec();
        argv.extend(["--foreground", "--unsupervised"].map(str::to_owned));
        let process = Process { region: region.to_owned(), argv, mount: Some(path), child: None };
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    fn config(&self, region: &str, of: &str) -> PathBuf {
        self.cluster.dir().join("etc").join(format!("{region}.{of}.toml"))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.cluster.dir().join("log").join(format!("{name}.log"))
    }

    /// Local disk for journals.
    pub fn scratch(&self) -> &Path {
        self.cluster.scratch()
    }

    /// Where a region's mount is.
    pub fn mount(&self, region: &str) -> PathBuf {
        self.cluster.scratch().join(mount_name(region))
    }

    fn daemons(&self) -> Vec<String> {
        self.processes.iter().filter(|(_, p)| p.mount.is_none()).map(|(name, _)| name.clone()).collect()
    }

    fn daemons_of(&self, region: &str) -> Vec<String> {
        self.daemons().into_iter().filter(|name| self.processes[name].region == region).collect()
    }

    /// Starts a process that doesn't run. A mount is there when this returns; a daemon may still be on its way.
    fn start_one(&mut self, name: &str) -> Result<()> {
        let log = self.log(name);
        let process = self.processes.get_mut(name).with_context(|| format!("there is no process {name}"))?;
        if process.child.is_some() {
            return Ok(());
        }
        let output = std::fs::File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&process.argv[0]);
        command.args(&process.argv[1..]).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        self.network.enter(&process.region, &mut command)?;
        // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
        unsafe {
            // A campaign that is killed leaves none behind.
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        if let Some(path) = &process.mount {
            detach(path);
        }
        process.child = Some(command.spawn().with_context(|| format!("starting {name}"))?);
        let Some(path) = process.mount.clone() else { return Ok(()) };
        let mut ended = None;
        wait_for(&format!("{name} to be mounted"), Duration::from_secs(90), || {
            ended = process.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            // One that ended is waited for no longer.
            ensure!(ended.is_some() || is_mounted(&path), "{} isn't in the table of mounts", path.display());
            Ok(())
        })?;
        ensure!(ended.is_none(), "{name} ended before it was mounted; the end of its log: {}", tail(&log));
        Ok(())
    }

    fn signal(&self, names: &[String], signal: Signal) -> Result<()> {
        for name in names {
            if let Some(pid) = self.processes.get(name).and_then(Process::pid) {
                kill(pid, signal).with_context(|| format!("{signal} to {name}"))?;
            }
        }
        Ok(())
    }

    fn kill(&mut self, names: &[String]) -> Result<()> {
        self.signal(names, Signal::SIGKILL)?;
        for name in names {
            if let Some(mut child) = self.processes.get_mut(name).and_then(|p| p.child.take()) {
                wait(&mut child, Duration::from_secs(30))
                    .with_context(|| format!("{name} doesn't end after SIGKILL"))?;
            }
        }
        Ok(())
    }

    /// A region is lost.
    pub fn strike(&mut self, region: &str, kind: Kind) -> Result<()> {
        let daemons = self.daemons_of(region);
        match kind {
            Kind::Cut(way) => self.network.isolate(region, way),
            Kind::Kill => self.kill(&daemons),
            Kind::Pause => self.signal(&daemons, Signal::SIGSTOP),
        }
    }

    /// It is there again.
    pub fn heal(&mut self, region: &str, kind: Kind) -> Result<()> {
        let daemons = self.daemons_of(region);
        match kind {
            Kind::Cut(_) => self.network.restore(region),
            Kind::Kill => daemons.iter().try_for_each(|name| self.start_one(name)),
            Kind::Pause => self.signal(&daemons, Signal::SIGCONT),
        }
    }

    /// Processes that ended although nobody ended them.
    pub fn ended(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let logs = self.cluster.dir().join("log");
        for (name, process) in &mut self.processes {
            let status = process.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            let Some(status) = status else { continue };
            process.child = None;
            let log = tail(&logs.join(format!("{name}.log")));
            found.push(format!("{name} ended by itself ({}); the end of its log: {log}", word(status)));
        }
        found
    }

    /// Lines of the logs that tell of a panic.
    pub fn panics(&self) -> Vec<String> {
        let of = |name: &String| -> Vec<String> {
            let text = std::fs::read(self.log(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().filter(|l| l.contains("panicked at")).map(|l| format!("{name}: {l}")).collect()
        };
        self.processes.keys().flat_map(of).collect()
    }

    /// A command of `mooseng` in a network, with a configuration.
    fn ask(&self, within: &str, words: &[&str], config: &Path) -> Result<Output> {
        let mut command = self.cluster.mooseng(words);
        command.arg("--config").arg(config);
        self.network.enter(within, &mut command)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.output()?)
    }

    fn json(&self, words: &[&str], config: &Path) -> Result<Value> {
        let output = self.ask(OBSERVER, words, config)?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("mooseng {words:?} answered: {}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// The root volume, as a region knows it.
    pub fn volume(&self, region: &str) -> Result<Volume> {
        let told = self.json(&["volume", "list", "-o", "json"], &self.config(region, "client-1"))?;
        volume_of(&told["volumes"][0])
    }

    /// Why a region doesn't say that the volume is in sync, if it doesn't, and with `quiet` that all is well.
    fn not_whole(&self, region: &str, quiet: bool) -> Result<()> {
        let config = self.config(region, "client-1");
        let told = self.json(&["volume", "list", "-o", "json"], &config)?;
        let volume = &told["volumes"][0];
        let (regions, sync_set) = (&volume["regions"], &volume["sync_set"]);
        let count = |list: &Value| list.as_array().map_or(0, Vec::len);
        ensure!(volume["durability"] == "geo", "{region} knows of no geo volume: {told}");
        let all = self.regions.len();
        ensure!(count(regions) == all && count(sync_set) == all, "{region}: the sync set is {sync_set}");
        if !quiet {
            return Ok(());
        }
        let status = self.json(&["status", "-o", "json"], &config)?;
        let verdict = &status["verdict"];
        ensure!(verdict["level"] == "ok", "{region}: {verdict}, {}", status["findings"]);
        Ok(())
    }

    /// Waits until every region says that all is well, and that the same region is the home. For this nothing may be at work: a replica makes
    /// second copies of new chunks only after a while, and says so.
    pub fn wait_whole(&mut self) -> Result<Volume> {
        self.wait_until(true)
    }

    /// Waits until all regions are in the sync set and know the same home, whatever is at work.
    pub fn wait_in_sync(&mut self) -> Result<Volume> {
        self.wait_until(false)
    }

    fn wait_until(&mut self, quiet: bool) -> Result<Volume> {
        let mut ended = Vec::new();
        let mut agreed = None;
        wait_for("all regions to be whole, and in the sync set", WHOLE_WITHIN, || {
            ended = self.ended();
            if !ended.is_empty() {
                return Ok(());
            }
            self.regions.iter().try_for_each(|region| self.not_whole(region, quiet))?;
            let known = self.regions.iter().map(|region| self.volume(region)).collect::<Result<Vec<_>>>()?;
            let first = known.first().context("no region was asked")?;
            ensure!(known.iter().all(|volume| volume == first), "{known:?}");
            agreed = Some(first.clone());
            Ok(())
        })?;
        ensure!(ended.is_empty(), "{}", ended.join("; "));
        agreed.context("no region was asked")
    }

    /// Compares what a region has with what the home has, records and each copy of each chunk; a replica may be on its way for a while.
    pub fn verify(&self, region: &str) -> Result<()> {
        let admin = self.config(region, "admin");
        wait_for(&format!("the replica in {region} to be equal"), Duration::from_secs(60), || {
            let output = self.ask(OBSERVER, &["volume", "verify", "/", "--read"], &admin)?;
            let (told, talk) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            ensure!(output.status.success(), "mooseng volume verify: {told}{talk}");
            Ok(())
        })
    }

    /// A mount of a region that has seen nothing yet, for as long as `work` takes.
    pub fn with_fresh_mount<T>(&mut self, region: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let name = format!("fresh-{region}");
        if !self.processes.contains_key(&name) {
            self.add_mount(&name, region)?;
        }
        self.start_one(&name)?;
        let path = self.cluster.scratch().join(&name);
        let done = work(&path);
        self.end_mount(&name)?;
        done
    }

    fn end_mount(&mut self, name: &str) -> Result<()> {
        self.signal(&[name.to_owned()], Signal::SIGTERM)?;
        let process = self.processes.get_mut(name).with_context(|| format!("there is no mount {name}"))?;
        if let Some(mut child) = process.child.take()
            && wait(&mut child, Duration::from_secs(20)).is_err()
        {
            child.kill()?;
            child.wait()?;
        }
        process.mount.iter().for_each(|path| detach(path));
        Ok(())
    }

    /// Nothing was found: the logs needn't be kept.
    pub fn forget_logs(&mut self) {
        self.cluster.forget_logs();
    }
}

impl Drop for GeoCluster {
    fn drop(&mut self) {
        let all: Vec<String> = self.processes.keys().cloned().collect();
        let _ = self.signal(&all, Signal::SIGCONT);
        let _ = self.kill(&all);
        for path in self.processes.values().filter_map(|p| p.mount.as_ref()) {
            detach(path);
        }
    }
}

fn mount_name(region: &str) -> String {
    format!("mnt-{region}")
}

fn volume_of(told: &Value) -> Result<Volume> {
    let home = told["home"].as_str().with_context(|| format!("no home: {told}"))?.to_owned();
    Ok(Volume { home, epoch: told["epoch"].as_u64().with_context(|| format!("no epoch: {told}"))? })
}

/// Moves a configuration to other addresses.
fn configure(path: &Path, moved: &[(String, String)]) -> Result<()> {
    let mut text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    for (from, to) in moved {
        text = text.replace(from, to);
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// An empty disk.
fn empty(state_dir: &Path) -> Result<()> {
    let data = state_dir.join("data").is_dir();
    std::fs::remove_dir_all(state_dir).or_else(absent)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    if data {
        std::fs::create_dir(state_dir.join("data"))?;
    }
    Ok(())
}
