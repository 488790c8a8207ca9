//! A file of the volume v that is open and has no name, on a mount of the region that takes over from the volume's lost home.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::held::Held;
use mooseng_e2e::load::worker::sync_dir;

use super::volumes::{shape, told, volume_of};

/// What its blocks begin with.
const MARKER: &str = "open without a name";

/// A mount of its own, whose sessions end with it: what they appended needn't be kept for them then.
fn holder(cluster: &DevCluster) -> PathBuf {
    cluster.scratch().join("holder")
}

/// What counts for the directory that the file was in. What has no name and is open does.
fn counted(cluster: &DevCluster) -> Result<serde_json::Value> {
    let quota = shape(cluster, &["quota", "get", "/v/held"])?["quota"].clone();
    ensure!(quota["state"] == "enforced", "{quota}");
    Ok(quota)
}

/// Makes one, over a mount of a region that isn't the volume's home.
pub fn hold(cluster: &DevCluster, region: &str) -> Result<Held> {
    let mount = holder(cluster);
    std::fs::create_dir(&mount)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config_of(region)?).arg(&mount))?;
    wait_for("the mount to cross into the volume", Duration::from_secs(60), || {
        ensure!(volume_of(&mount.join("v"))? != 0, "it shows the directory still");
        Ok(())
    })?;
    std::fs::create_dir(mount.join("v/held")).context("mkdir")?;
    sync_dir(&mount.join("v"))?;
    // Nothing but that it is open keeps it.
    told(cluster, &["trash", "retention", "0", "--volume", "/v"])?;
    told(cluster, &["quota", "set", "/v/held", "--bytes", "100M"])?;
    wait_for("the directory to be counted", Duration::from_secs(60), || counted(cluster).map(drop))?;
    Held::make(&mount.join("v/held"), MARKER)
}

/// After the failover it is read and written as before; once it is closed it counts no more.
pub fn lives_on_and_goes(cluster: &DevCluster, region: &str, mut held: Held) -> Result<()> {
    held.write_on().context("after the failover")?;
    wait_for("the new home to count it", Duration::from_secs(60), || {
        let is = counted(cluster)?;
        ensure!(is["inodes"] == 2 && is["bytes"].as_u64() >= Some(held.length()), "{is}");
        Ok(())
    })?;
    ensure!(!cluster.chunks_with(region, MARKER.as_bytes())?.is_empty(), "no chunk in {region} has it");
    drop(held);
    wait_for("what was closed to be let go of", Duration::from_secs(60), || {
        let is = counted(cluster)?;
        ensure!(is["inodes"] == 1 && is["bytes"] == 0, "{is}");
        Ok(())
    })?;
    checked(cluster.mooseng(&["umount"]).arg(holder(cluster))).map(drop)
}

/// Nor has the region a chunk of it any more.
pub fn is_gone(cluster: &DevCluster, region: &str) -> Result<()> {
    wait_for("its chunks to be gone", Duration::from_secs(120), || {
        let left = cluster.chunks_with(region, MARKER.as_bytes())?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
