//! What is asked of a dev cluster of several regions, and looked for on its disks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{DevCluster, Process, checked, wait_for};

impl DevCluster {
    /// `mooseng volume WORDS -o json`, asked of a region by its administrator; it must succeed.
    pub fn volume(&self, region: &str, words: &[&str]) -> Result<Value> {
        let mut command = self.mooseng(&["volume"]);
        command.args(words).args(["-o", "json", "--config"]).arg(self.admin_config_of(region)?);
        let output = checked(&mut command)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("volume {words:?}: {output:?}"))
    }

    /// Waits until `mooseng volume verify --read` of the root volume says something, in a region that isn't its home.
    pub fn compared(&self, region: &str, says: impl Fn(&Value) -> bool) -> Result<()> {
        wait_for(&format!("what volume verify says in {region}"), Duration::from_secs(120), || {
            let mut command = self.mooseng(&["volume", "verify", "/", "--read", "-o", "json", "--config"]);
            let output = command.arg(self.admin_config_of(region)?).output()?;
            let all: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            ensure!(says(&all), "{all:#}");
            ensure!(output.status.success() == (all["equal"] == true), "{:?}: {all:#}", output.status);
            Ok(())
        })
    }

    /// The files of chunks that contain a marker, on the disks of a region's chunkservers. What was deleted and lies in their trash isn't among them.
    pub fn chunks_with(&self, region: &str, marker: &[u8]) -> Result<Vec<PathBuf>> {
        let of_the_region = |p: &Process| p.region == region && p.role == "chunkserver";
        let mut found = Vec::new();
        for chunkserver in self.file()?.processes.into_iter().filter(of_the_region) {
            found.extend(marked(&chunkserver.state_dir, marker)?);
        }
        Ok(found)
    }
}

/// The files below a directory that contain a marker.
fn marked(dir: &Path, marker: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("trash") {
                found.extend(marked(&path, marker)?);
            }
        } else if path.is_file() {
            // One that is collected at this moment isn't there any more.
            let bytes = std::fs::read(&path).unwrap_or_default();
            if bytes.windows(marker.len()).any(|window| window == marker) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
