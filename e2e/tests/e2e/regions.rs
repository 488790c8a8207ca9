//! A cluster of two regions and a witness, as `mooseng dev` makes it: its processes, what is cut between regions, and a verified load.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, wait_for};
use mooseng_e2e::steps::Steps;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn two_regions_and_a_witness_are_one_cluster() {
    run().unwrap();
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all().with_context(|| format!("fsync of {}", path.display()))
}

/// Waits until a file has this content.
fn shows(path: &Path, text: &str) -> Result<()> {
    wait_for(&format!("{} to have what was written", path.display()), SOON, || {
        ensure!(std::fs::read_to_string(path)? == text, "it has something else");
        Ok(())
    })
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("regions", &["--regions", "2", "--wan", "40ms"])?;
    let (here, there) = (cluster.mount_of("region-1")?, cluster.mount_of("region-2")?);
    let mut steps = Steps::default();
    steps.run("each region has daemons and a mount of its own, and all are ready", || {
        for (region, count) in [("region-1", 6), ("region-2", 6), ("witness", 1)] {
            ensure!(
                cluster.daemons_of(region)?.len() == count,
                "{region}: {:?}",
                cluster.daemons_of(region)?
            );
            ensure!(cluster.admin_config_of(region)?.is_file(), "{region} has no administrator");
        }
        let output = cluster.dev_words(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let processes = status["processes"].as_array().context("no processes")?;
        // A witness has a voice, and nothing to serve.
        let well = |p: &serde_json::Value| {
            p["state"] == "running" && (p["ready"] == true || p["region"] == "witness")
        };
        ensure!(processes.len() == 15 && processes.iter().all(well), "{status:#}");
        ensure!(status["cuts"].as_array().is_some_and(Vec::is_empty), "{status:#}");
        Ok(())
    });
    steps.run("write in one region, read in the other, and the way takes its time", || {
        write(&here.join("a"), "from region-1")?;
        shows(&there.join("a"), "from region-1")?;
        let began = Instant::now();
        write(&there.join("b"), "from region-2")?;
        let took = began.elapsed();
        ensure!(took >= Duration::from_millis(40), "a change went to the home and back within {took:?}");
        shows(&here.join("b"), "from region-2")
    });
    steps.run("a region that is cut off hears nothing until it is healed", || {
        cluster.cut(&["partition", "region-2"])?;
        write(&here.join("c"), "unheard")?;
        // It isn't there however long one waits: this is long enough for a message, had it come through.
        std::thread::sleep(Duration::from_millis(500));
        ensure!(!there.join("c").exists(), "region-2 sees what was written while it was cut off");
        ensure!(std::fs::read_to_string(there.join("a"))? == "from region-1", "what it has can be read");
        let output = cluster.dev_words(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(status["cuts"].as_array().map(Vec::len) == Some(2), "{status:#}");
        cluster.cut(&["heal"])?;
        shows(&there.join("c"), "unheard")
    });
    steps.run("one way: the home's words are lost, and nothing of it is lost for good", || {
        cluster.cut(&["partition", "region-1", "--one-way"])?;
        write(&here.join("d"), "one way")?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(!there.join("d").exists(), "region-2 hears region-1");
        cluster.cut(&["heal"])?;
        shows(&there.join("d"), "one way")
    });
    steps.run("a region without data is killed and started, and so is one with data", || {
        for region in ["witness", "region-2"] {
            cluster.dev_words(&["kill", "region", region])?;
            let file = cluster.file()?;
            let alive = |p: &mooseng_e2e::cluster::Process| {
                p.region == region && p.role != "client" && p.pid.is_some()
            };
            ensure!(!file.processes.iter().any(alive), "{file:?}");
            write(&here.join(region), "meanwhile")?;
            cluster.dev_words(&["start", "region", region])?;
            shows(&there.join(region), "meanwhile")?;
        }
        Ok(())
    });
    steps.run("what a load was acknowledged is there in both regions", || {
        for region in ["region-1", "region-2"] {
            cluster.dev_words(&["load", "--verify", "--region", region, "--seconds", "5"])?;
        }
        for region in ["region-1", "region-2"] {
            let output = cluster.dev_words(&["verify", "--region", region, "-o", "json"])?;
            let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let runs = found["runs"].as_array().context("no runs")?;
            let worked = |r: &serde_json::Value| r["acknowledged"].as_u64() > Some(0);
            ensure!(runs.len() == 2 && runs.iter().all(worked), "{found:#}");
        }
        Ok(())
    });
    steps.run("verify finds what is lost", || {
        let work = here.join("load-1/t0");
        let entry = std::fs::read_dir(&work)?.next().context("the load left no file")??;
        std::fs::remove_file(entry.path())?;
        let mut command = cluster.mooseng(&["dev", "verify", "--region", "region-1", "--wait", "0", "--dir"]);
        let output = command.arg(cluster.dir()).output()?;
        let talk = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && talk.contains("LOST"), "{output:?}");
        Ok(())
    });
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}
