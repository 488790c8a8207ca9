//! What is measured: a directory of the disk, the same behind the passthrough, and a MooseNG mount.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cluster::{self, Cluster};
use crate::process::{self, Process};
use crate::run::Plan;
use crate::{disk, mounts};

const MOUNTED_WITHIN: Duration = Duration::from_secs(60);
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The directory itself.
    Bare,
    /// The directory behind `mooseng-passthrough`.
    Passthrough,
    /// A MooseNG mount.
    MooseNG,
}

impl Kind {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Bare, Self::Passthrough, Self::MooseNG];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Passthrough => "passthrough",
            Self::MooseNG => "MooseNG",
        }
    }
}

/// One of them, ready for use.
pub struct Target {
    /// Which one.
    pub kind: Kind,
    /// Where workloads work.
    root: PathBuf,
    serving: Option<Serving>,
}

/// A mount and how it is made again.
struct Serving {
    cluster: Option<Cluster>,
    source: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Target {
    /// Makes it below `dir`, which is on a disk.
    pub fn new(kind: Kind, dir: &Path, plan: &Plan) -> Result<Self> {
        let make = |name: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
            disk::spread(&path)?;
            Ok(path)
        };
        let mut target = match kind {
            Kind::Bare => Self { kind, root: make("bare")?, serving: None },
            Kind::Passthrough => {
                let source = make("source")?;
                let serving =
                    Serving { cluster: None, source, log: dir.join("passthrough.log"), child: None };
                Self { kind, root: make("passthrough")?, serving: Some(serving) }
            }
            Kind::MooseNG => {
                let source = dir.join("cluster");
                let cluster = Cluster::up(&source, plan.over_network)?;
                let serving =
                    Serving { cluster: Some(cluster), source, log: dir.join("mount.log"), child: None };
                Self { kind, root: make("mooseng")?, serving: Some(serving) }
            }
        };
        target.mount()?;
        Ok(target)
    }

    /// Where workloads work.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Nothing is cached afterwards: not by the kernel, not by the process that serves the mount.
    pub fn make_cold(&mut self) -> Result<()> {
        self.unmount()?;
        disk::drop_caches()?;
        self.mount()
    }

    /// The processes that serve it.
    pub fn daemons(&self) -> Result<Vec<Process>> {
        let Some(serving) = &self.serving else { return Ok(Vec::new()) };
        let mut all = match &serving.cluster {
            Some(cluster) => cluster.daemons()?,
            None => Vec::new(),
        };
        let child = serving.child.as_ref().context("not mounted")?;
        let role = if serving.cluster.is_some() { "mount" } else { "passthrough" };
        all.push(Process { name: role.into(), role: role.into(), pid: child.id() as i32 });
        Ok(all)
    }

    fn mount(&mut self) -> Result<()> {
        let Some(serving) = &mut self.serving else { return Ok(()) };
        let mut command = match &serving.cluster {
            Some(cluster) => cluster.mount_command(&self.root)?,
            None => {
                let mut command = Command::new(cluster::beside("mooseng-passthrough")?);
                command.arg(&serving.source).arg(&self.root);
                command
            }
        };
        let log = File::options().create(true).append(true).open(&serving.log)?;
        // In a group of its own: Ctrl-C in a terminal is for the benchmark, which then ends this.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let child = serving.child.insert(child);
        let deadline = Instant::now() + MOUNTED_WITHIN;
        while mounts::device_of(&self.root)?.is_none() {
            if let Some(status) = child.try_wait()? {
                bail!("{command:?} ended ({status}); its log is {}", serving.log.display());
            }
            ensure!(
                Instant::now() < deadline,
                "{command:?} doesn't mount in time; log: {}",
                serving.log.display()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        fs::metadata(&self.root)
            .with_context(|| format!("{} is mounted and doesn't answer", self.root.display()))?;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(child) = self.serving.as_mut().and_then(|s| s.child.as_mut()) else { return Ok(()) };
        mounts::unmount(&self.root)?;
        let status = process::reap(child, ENDED_WITHIN).context("waiting for the mount's process to end")?;
        ensure!(status.success(), "the process that served {} ended with {status}", self.root.display());
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        mounts::detach(&self.root);
        if let Some(child) = self.serving.as_mut().and_then(|s| s.child.as_mut()) {
            let _ = process::reap(child, ENDED_WITHIN);
        }
    }
}
