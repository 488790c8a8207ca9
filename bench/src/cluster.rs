//! A dev cluster, driven by `mooseng dev` and `cluster.json` as any script would.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::Process;

/// What a dev cluster's client is configured with.
const SAME_HOST: [&str; 2] = ["same_host_reads = true", "same_host_writes = true"];

/// Three masters, three chunkservers, two copies, mutual TLS; no mount. It ends with the value.
pub struct Cluster {
    mooseng: PathBuf,
    dir: PathBuf,
}

#[derive(Deserialize)]
struct File {
    processes: Vec<Listed>,
    clients: Vec<Client>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    role: String,
    pid: Option<i32>,
}

#[derive(Deserialize)]
struct Client {
    config: PathBuf,
}

impl Cluster {
    /// Starts one in `dir`. With `over_network` its client reads and writes over the network, as one on another host does. Chunkservers send each other bytes through the memory that they share, as ever.
    pub fn up(dir: &Path, over_network: bool) -> Result<Self> {
        let cluster = Self { mooseng: beside("mooseng")?, dir: dir.to_owned() };
        let sizes = ["--masters", "3", "--chunkservers", "3", "--copies", "2"];
        // Deleted files go by way of the trash, as they do by default, and don't fill the disk for a day.
        let trash = ["--trash-retention", "1m"];
        cluster.dev(&[&["up", "--regions", "1", "--no-mount", "--detach"][..], &sizes, &trash].concat())?;
        if over_network {
            let config = cluster.client_config()?;
            let mut text = std::fs::read_to_string(&config)?;
            for setting in SAME_HOST {
                ensure!(text.contains(setting), "{} doesn't have {setting:?}", config.display());
                text = text.replace(setting, &setting.replace("true", "false"));
            }
            std::fs::write(&config, text)?;
        }
        Ok(cluster)
    }

    fn client_config(&self) -> Result<PathBuf> {
        Ok(self.file()?.clients.into_iter().next().context("cluster.json has no client")?.config)
    }

    /// `mooseng mount` in the foreground, not yet started.
    pub fn mount_command(&self, mount: &Path) -> Result<Command> {
        let config = self.client_config()?;
        let mut command = Command::new(&self.mooseng);
        command.args(["mount", "--foreground", "--unsupervised"]).arg("--config").arg(config).arg(mount);
        Ok(command)
    }

    /// Its masters and chunkservers.
    pub fn daemons(&self) -> Result<Vec<Process>> {
        let listed =
            self.file()?.processes.into_iter().filter(|p| p.role == "master" || p.role == "chunkserver");
        let daemons: Vec<Process> = listed
            .map(|p| match p.pid {
                Some(pid) => Ok(Process { name: p.name, role: p.role, pid }),
                None => bail!("{} doesn't run; its log is in {}", p.name, self.dir.join("log").display()),
            })
            .collect::<Result<_>>()?;
        ensure!(daemons.len() == 6, "cluster.json lists {} daemons instead of 6", daemons.len());
        Ok(daemons)
    }

    fn file(&self) -> Result<File> {
        let path = self.dir.join("cluster.json");
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} isn't of the known form", path.display()))
    }

    fn dev(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.mooseng);
        command.arg("dev").args(args).arg("--dir").arg(&self.dir);
        let output = command.output().with_context(|| format!("starting {command:?}"))?;
        ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.dev(&["down"]) {
            eprintln!("The cluster in {} may still run: {error:#}", self.dir.display());
        }
    }
}

/// A program of the project, from beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let path = me.with_file_name(name);
    ensure!(path.is_file(), "{} isn't there: build it first, or run `make bench`", path.display());
    Ok(path)
}
