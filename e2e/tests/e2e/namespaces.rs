//! `mooseng dev up --isolate`: regions in network namespaces of their own, whose links fail as links do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::steps::Steps;

use super::regions::{shows, write};

const SOON: Duration = Duration::from_secs(30);
const REGIONS: [&str; 3] = ["region-1", "region-2", "witness"];

#[test]
fn regions_meet_over_their_networks_alone() {
    run().unwrap();
}

/// A region's namespace, as its administrator's configuration names it.
fn namespace(cluster: &DevCluster, region: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(cluster.admin_config_of(region)?)?;
    let line = text.lines().find_map(|line| line.strip_prefix("namespace = "));
    Ok(line.context("no namespace is set")?.trim_matches('"').into())
}

/// Sets the state of a region's only link.
fn link(namespace: &Path, state: &str) -> Result<()> {
    let name = namespace.file_name().context("no name")?;
    checked(Command::new("ip").arg("-n").arg(name).args(["link", "set", "eth0", state])).map(drop)
}

fn run() -> Result<()> {
    let sizes = ["--masters", "1", "--chunkservers", "1", "--copies", "1"];
    let cluster = DevCluster::up("apart", &[&["--regions", "2", "--isolate"][..], &sizes].concat())?;
    let (here, there) = (cluster.mount_of("region-1")?, cluster.mount_of("region-2")?);
    let namespaces: Vec<PathBuf> =
        REGIONS.iter().map(|region| namespace(&cluster, region)).collect::<Result<_>>()?;
    let mut steps = Steps::default();
    steps.run("each process is in its region's network, which isn't ours", || {
        let of = |path: String| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::ino(&m));
        let ours = of("/proc/self/ns/net".into())?;
        let file = cluster.file()?;
        for process in &file.processes {
            let at = REGIONS.iter().position(|region| *region == process.region).context("no region")?;
            let (its, wanted) = (
                of(format!("/proc/{}/ns/net", process.pid.context("no pid")?))?,
                of(namespaces[at].display().to_string())?,
            );
            ensure!(its == wanted && its != ours, "{} is in another network", process.name);
        }
        Ok(())
    });
    steps.run("written in one, read in the other", || {
        write(&here.join("file"), "hello")?;
        shows(&there.join("file"), "hello")
    });
    steps.run(
        "commands find their way in; a process that is killed and started finds its network again",
        || {
            for region in ["region-1", "region-2"] {
                let mut command = cluster.mooseng(&["status", "-o", "json", "--config"]);
                checked(command.arg(cluster.admin_config_of(region)?))?;
            }
            cluster.dev("kill", "region-2.chunkserver-1")?;
            cluster.dev("start", "region-2.chunkserver-1")?;
            // It answers before its first heartbeat did.
            wait_for("all processes to be ready", SOON, || {
                let status = cluster.dev_words(&["status", "-o", "json"])?;
                let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
                let ready = |p: &serde_json::Value| p["ready"] == true;
                ensure!(
                    status["processes"].as_array().is_some_and(|all| all.iter().all(ready)),
                    "{status:#}"
                );
                Ok(())
            })?;
            let mut command = cluster.mooseng(&["profile", "--for", "1s", "-o", "json"]);
            checked(command.arg(&there)).map(drop)
        },
    );
    steps.run(
        "the home's link is down: the other region takes over, and the home follows once it is up",
        || {
            link(&namespaces[0], "down")?;
            write(&there.join("after"), "by region-2")?;
            link(&namespaces[0], "up")?;
            shows(&here.join("after"), "by region-2")?;
            write(&here.join("back"), "by region-1")?;
            shows(&there.join("back"), "by region-1")
        },
    );
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, super::regions::HOME_LOST].concat())?;
    for namespace in namespaces {
        ensure!(!namespace.exists(), "{} is left", namespace.display());
    }
    Ok(())
}
