//! A collector has traces and metrics of all daemons, /readyz tells the truth, and a mount whose region is gone blocks, gives up in time, and comes back by itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::steps::Steps;

use super::otlp::{self, Collecting};

#[test]
fn readiness_is_true_and_a_mount_outlives_its_region() {
    run().unwrap();
}

/// (ready, detail) of every process, by name.
fn readiness(cluster: &DevCluster, name: &str) -> Result<(bool, String)> {
    let output = checked(cluster.mooseng(&["dev", "status", "-o", "json", "--dir"]).arg(cluster.dir()))?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let rows = status["processes"].as_array().cloned().unwrap_or_default();
    let row = rows.into_iter().find(|r| r["name"] == name).with_context(|| format!("no {name}"))?;
    Ok((row["ready"] == true, row["detail"].as_str().unwrap_or_default().to_owned()))
}

/// Waits for readiness to be so, and says how long it took.
fn becomes(cluster: &DevCluster, name: &str, ready: bool, within: Duration) -> Result<()> {
    let began = Instant::now();
    wait_for(&format!("{name} to be {}", if ready { "ready" } else { "unready" }), within, || {
        let (is, detail) = readiness(cluster, name)?;
        ensure!(is == ready, "ready: {is} ({detail})");
        ensure!(ready || detail.starts_with("503"), "it says {detail:?} instead of 503");
        Ok(())
    })?;
    println!(
        "    {name} answers {} after {:.1} s",
        if ready { 200 } else { 503 },
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn run() -> Result<()> {
    let collecting = Collecting::start()?;
    let collector = &collecting.collector;
    let cluster = DevCluster::up("ready", &["--otlp", &collector.endpoint()])?;
    let mut steps = Steps::default();
    let short = cluster.scratch().join("short");
    std::fs::create_dir(&short)?;
    let limit = ["mount", "--retry-timeout-s", "5", "--config"];
    checked(cluster.mooseng(&limit).arg(cluster.client_config()?).arg(&short))?;
    std::fs::write(cluster.mount().join("kept"), "kept")?;

    steps.run("an fsync is one trace through all daemons", || otlp::one_trace(&cluster, collector));
    steps.run("so is a large write, down the chain of chunkservers", || {
        otlp::a_large_write(&cluster, collector)
    });
    steps.run("metrics arrive as /metrics shows them", || otlp::same_metrics(&cluster, collector));
    steps.run("a collector that hangs keeps nobody waiting", || {
        otlp::a_collector_that_hangs(&cluster, collector)
    });
    steps.run("senseless settings of a collector are refused", || otlp::bad_settings(&cluster));
    steps.run("make install", || super::hosts::install(&cluster));
    steps.run("systemd's units", || super::hosts::units(&cluster));
    steps.run("mount(8), umount(8) and fstab", || super::hosts::mount_8(&cluster));
    steps.run("a killed mount comes back by itself", || super::hosts::killed_and_back(&cluster));
    steps.run("a master without a majority", || {
        for name in ["master-2", "master-3"] {
            cluster.dev("kill", name)?;
        }
        becomes(&cluster, "master-1", false, Duration::from_secs(5))
    });
    steps.run("a mount gives up after its time, with an error", || {
        let began = Instant::now();
        let error = std::fs::read(short.join("kept")).err().context("it was read without a majority")?;
        let took = began.elapsed();
        println!("    {error} after {:.1} s", took.as_secs_f64());
        ensure!([Some(libc::ETIMEDOUT), Some(libc::EIO)].contains(&error.raw_os_error()), "{error}");
        ensure!(took >= Duration::from_secs(4) && took < Duration::from_secs(30), "after {took:?}");
        Ok(())
    });
    steps.run("a killed process isn't stuck", || killed_is_gone(&cluster.mount()));
    steps.run("a mount without a lease", || becomes(&cluster, "client-1", false, Duration::from_secs(15)));
    steps.run("mooseng status says that it is unavailable", || {
        let output = cluster.mooseng(&["status", "--config"]).arg(cluster.client_config()?).output()?;
        ensure!(output.status.code() == Some(5), "{output:?}");
        Ok(())
    });
    steps.run("the region comes back, and the mounts with it", || {
        for name in ["master-2", "master-3"] {
            cluster.dev("start", name)?;
        }
        becomes(&cluster, "master-1", true, Duration::from_secs(60))?;
        becomes(&cluster, "client-1", true, Duration::from_secs(60))?;
        for root in [&short, &cluster.mount()] {
            ensure!(std::fs::read_to_string(root.join("kept"))? == "kept", "other content");
        }
        Ok(())
    });
    steps.run("a chunkserver whose disk can't be written", || {
        let data = cluster.process("chunkserver-1")?.state_dir.join("data");
        let mount = |args: &[&str]| checked(Command::new("mount").args(args).arg(&data)).map(drop);
        if mount(&["--bind", &data.display().to_string()])
            .and_then(|()| mount(&["-o", "remount,ro,bind"]))
            .is_err()
        {
            println!("    SKIPPED: this machine doesn't let us make a directory read-only");
            return Ok(());
        }
        let outcome = becomes(&cluster, "chunkserver-1", false, Duration::from_secs(5));
        checked(Command::new("umount").arg(&data))?;
        outcome
    });
    steps.run("umount", || checked(cluster.mooseng(&["umount"]).arg(&short)).map(drop));
    steps.finish()?;
    // What else is complained of here, each for its reason.
    let expected = [
        // Operations are given up when the region has no majority: that is what is tested.
        "an operation failed",
        "the session's lease had lapsed",
        "this leader can't read its records yet",
        "ids can't be reserved",
        // A collector hung.
        otlp::TAKES_NOTHING,
        // A mount is killed, and mounted again.
        "the mount has lost its process",
        "the mount isn't made again",
        // A data directory is made read-only.
        "a disk takes no writes",
        "a disk takes writes again",
        "a data directory isn't used",
        // The process that asked was killed, and the kernel waits for no answer any more.
        "Failed to send FUSE reply: No such file or directory",
    ];
    cluster.finish(&[super::PEERS_COME_AND_GO, &expected].concat())
}

fn killed_is_gone(mount: &Path) -> Result<()> {
    let mut child =
        Command::new("cat").arg(mount.join("kept")).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(child.try_wait()?.is_none(), "it didn't wait for the region");
    child.kill()?;
    let began = Instant::now();
    wait_for("the killed process to end", Duration::from_secs(10), || {
        ensure!(child.try_wait()?.is_some(), "it is stuck");
        Ok(())
    })?;
    println!("    gone {:.1} s after SIGKILL", began.elapsed().as_secs_f64());
    Ok(())
}
