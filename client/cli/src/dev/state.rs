//! The directory of a dev cluster: its lock, its plan and what was started.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::plan::{CLIENT, Daemon, Plan, Region};
use super::ready::{self, Health};
use super::{cluster, namespaces};
use crate::exit::Failure;
use crate::process::{self, Started};
use crate::runtime;

/// The shape of `dev.json`. 1 had one region and one client.
const VERSION: u32 = 2;

/// What `dev.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Shape of this file.
    pub version: u32,
    /// What the cluster consists of.
    pub plan: Plan,
    /// Whether it is meant to run: false after `down`, which ends the supervisor.
    pub up: bool,
    /// The living process of each name.
    pub running: BTreeMap<String, Started>,
    /// Where the processes of mounts serve their health, once they do, by name.
    #[serde(default)]
    pub clients_http: BTreeMap<String, String>,
    /// The same of the one client, in shape 1.
    #[serde(default, skip_serializing)]
    client_http: Option<String>,
}

impl State {
    fn new(plan: Plan) -> Self {
        let (running, clients_http) = Default::default();
        Self { version: VERSION, plan, up: false, running, clients_http, client_http: None }
    }

    /// The file's content, of whatever shape.
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut state: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if state.version > VERSION {
            return Err(format!("its version is {}", state.version));
        }
        state.version = VERSION;
        state.clients_http.extend(state.client_http.take().map(|http| (CLIENT.to_owned(), http)));
        Ok(state)
    }
}

/// A cluster's directory, locked.
pub struct Cluster {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// What it holds.
    pub state: State,
    _lock: Flock<File>,
}

/// A lock on a directory.
pub fn lock(dir: &Path, name: &str, wait: Duration) -> Result<Flock<File>, Failure> {
    let path = dir.join(name);
    let deadline = Instant::now() + wait;
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Failure::failed(format!("The lock {} can't be opened: {e}.", path.display())))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, _)) if Instant::now() < deadline => {
                file = back;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, e)) => {
                return Err(Failure::unavailable(format!(
                    "Another `mooseng dev` works on {} ({e}); try again.",
                    dir.display()
                )));
            }
        }
    }
}

/// Makes a cluster's directory; one that holds something else is refused.
pub fn make_dir(dir: &Path) -> Result<(), Failure> {
    let fail =
        |e: std::io::Error| Failure::failed(format!("The directory {} can't be made: {e}.", dir.display()));
    // Other users may pass, for the mount below it; keys and state are closed to them one level down.
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(fail)?;
    if dir.join("dev.json").exists() {
        return Ok(());
    }
    let strangers = std::fs::read_dir(dir).map_err(fail)?.flatten().find(|e| e.file_name() != "dev.lock");
    match strangers {
        None => Ok(()),
        Some(entry) => Err(Failure::usage(format!(
            "{} isn't empty and holds no dev cluster (there is {:?}): choose another --dir.",
            dir.display(),
            entry.file_name()
        ))),
    }
}

impl Cluster {
    /// Opens the cluster in `dir`; `make` is asked for a plan when there is none.
    pub fn open_or(dir: &Path, make: impl FnOnce() -> Result<Plan, Failure>) -> Result<Self, Failure> {
        let guard = lock(dir, "dev.lock", Duration::from_secs(60))?;
        let state = match read(dir)? {
            Some(state) => state,
            None => State::new(make()?),
        };
        let mut cluster = Self { dir: dir.to_owned(), state, _lock: guard };
        cluster.reconcile();
        cluster.save()?;
        Ok(cluster)
    }

    /// Opens the cluster in `dir`.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let dir = crate::config::absolute(dir)?;
        let missing = || {
            Failure::not_found(format!(
                "There is no dev cluster in {}: `mooseng dev up --dir` makes one.",
                dir.display()
            ))
        };
        if !dir.join("dev.json").exists() {
            return Err(missing());
        }
        Self::open_or(&dir, || Err(missing()))
    }

    /// Compares what is on record with the processes there are: the dead are forgotten, and one that somebody else started with the
    /// same arguments is taken on.
    pub fn reconcile(&mut self) {
        self.state.running.retain(|_, p| {
            let alive = p.is_alive();
            if !alive {
                p.reap();
            }
            alive
        });
        for name in self.names() {
            if !self.state.running.contains_key(&name)
                && let Some(found) = self.argv(&name).and_then(|argv| process::find(&argv))
            {
                self.state.running.insert(name, found);
            }
        }
    }

    /// Writes down what is on record, and what scripts read.
    pub fn save(&self) -> Result<(), Failure> {
        let write = |name: &str, bytes: Vec<u8>| {
            let path = self.dir.join(name);
            if std::fs::read(&path).is_ok_and(|old| old == bytes) {
                return Ok(());
            }
            super::write_atomically(&path, &bytes)
                .map_err(|e| Failure::failed(format!("{} can't be written: {e}.", path.display())))
        };
        let encode = |e: serde_json::Error| {
            Failure::failed(format!("The cluster's state can't be written as JSON: {e}."))
        };
        write("dev.json", serde_json::to_vec_pretty(&self.state).map_err(encode)?)?;
        write("cluster.json", serde_json::to_vec_pretty(&cluster::describe(self)).map_err(encode)?)
    }

    /// The names of all processes: daemons, then those of mounts.
    pub fn names(&self) -> Vec<String> {
        let clients = self.state.plan.clients().into_iter().filter(|c| c.mount.is_some()).map(|c| c.name);
        self.state.plan.daemons.iter().map(|d| d.name.clone()).chain(clients).collect()
    }

    /// Where the process of that name mounts, if it is a mount's.
    pub fn mount_of(&self, name: &str) -> Option<PathBuf> {
        self.state.plan.client(name)?.mount
    }

    /// The daemon of that name.
    pub fn daemon(&self, name: &str) -> Option<&Daemon> {
        self.state.plan.daemons.iter().find(|d| d.name == name)
    }

    /// The network namespace of the process of that name, if it has one.
    fn namespace(&self, name: &str) -> Option<PathBuf> {
        let region = self.daemon(name).map(|d| d.region.clone());
        self.state.plan.namespace_of(&region.or_else(|| Some(self.state.plan.client(name)?.region))?)
    }

    /// Asks the process of that name about its health, at `http` in its network.
    pub fn ask(&self, name: &str, http: &str, path: &str) -> Health {
        let asked = namespaces::within(self.namespace(name), || Ok(ready::ask(http, path)));
        asked.unwrap_or_else(|failure| Health::Silent(failure.to_string()))
    }

    /// How the process of that name is started. The binaries are those beside this one.
    pub fn argv(&self, name: &str) -> Option<Vec<String>> {
        let config = self.config_path(name).display().to_string();
        if let Some(daemon) = self.daemon(name) {
            return Some(vec![beside(daemon.binary()), "--config".into(), config]);
        }
        let mount = self.mount_of(name)?;
        Some(vec![
            beside("mooseng"),
            "mount".into(),
            "--config".into(),
            config,
            mount.display().to_string(),
            "--foreground".into(),
            // What is killed stays dead until `start`.
            "--unsupervised".into(),
        ])
    }

    /// The configuration of the process of that name.
    pub fn config_path(&self, name: &str) -> PathBuf {
        self.dir.join("etc").join(format!("{name}.toml"))
    }

    /// Where the process of that name keeps its state.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The log of the process of that name.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// Mounts that use a configuration of this cluster, whoever made them.
    pub fn mounts(&self) -> Vec<runtime::MountRecord> {
        let etc = self.dir.join("etc");
        runtime::live().into_iter().filter(|m| m.config.starts_with(&etc)).collect()
    }

    /// The region of that name, or the error that there is none.
    pub fn region(&self, name: &str) -> Result<&Region, Failure> {
        let regions = || self.state.plan.regions.iter().map(|r| r.name.as_str());
        self.state.plan.region(name).ok_or_else(|| {
            let hint = crate::suggest::nearest(name, regions());
            let hint = hint.map(|n| format!(" Did you mean {n}?")).unwrap_or_default();
            Failure::not_found(format!(
                "There is no region {name:?} in this cluster; there are {}.{hint}",
                regions().collect::<Vec<_>>().join(", ")
            ))
        })
    }

    /// The error for a name that isn't there.
    pub fn unknown(&self, name: &str) -> Failure {
        let names = self.names();
        let hint = crate::suggest::nearest(name, names.iter().map(String::as_str));
        let hint = hint.map(|n| format!(" Did you mean {n}?")).unwrap_or_default();
        Failure::not_found(format!(
            "There is no process {name:?} in this cluster; there are {}.{hint}",
            names.join(", ")
        ))
    }
}

fn read(dir: &Path) -> Result<Option<State>, Failure> {
    let path = dir.join("dev.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::failed(format!("{} can't be read: {e}.", path.display()))),
    };
    State::decode(&bytes).map(Some).map_err(|e| {
        Failure::failed(format!(
            "{} is damaged or of another version of mooseng ({e}); make a new cluster in another --dir.",
            path.display()
        ))
    })
}

/// The path of a binary beside this one.
pub fn beside(name: &str) -> String {
    let me = std::env::current_exe().unwrap_or_default();
    // A binary that was rebuilt while it runs shows as deleted.
    let me = me.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    Path::new(&me).with_file_name(name).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"version": 1, "up": true, "client_http": "127.0.0.1:9000", "running": {"master-1": {"pid": 7, "start_ticks": 9}},
        "plan": {"copies": 1, "mount": null, "leaf_lifetime_ms": 86400000, "temporary": false, "daemons": [
            {"name": "master-1", "role": "master", "id": 1, "zone": "zone-1", "port": 7001, "http_port": 7002}]}}"#;

    #[test]
    fn a_state_of_one_region_and_one_client_is_read_and_a_later_one_is_not() {
        let state = State::decode(OLD.as_bytes()).unwrap();
        assert_eq!((state.version, state.up, state.running["master-1"].pid), (2, true, 7));
        assert_eq!(state.clients_http["client-1"], "127.0.0.1:9000");
        assert_eq!(state.plan.daemons[0].region, "region-1");
        assert_eq!(State::decode(&serde_json::to_vec(&state).unwrap()).unwrap(), state);
        let later = OLD.replace("\"version\": 1", "\"version\": 3");
        assert!(State::decode(later.as_bytes()).unwrap_err().contains("version is 3"));
    }
}
