//! A home region whose masters lost all of their disks, as a person at a keyboard would lose them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};

use super::regions::{shows, write};

const HOME: &str = "region-1";
const AWAY: &str = "region-2";
const FILES: usize = 20;

/// Once such a home got its lease, made an empty volume in the lost one's place, and the other region followed it.
#[test]
fn a_home_that_lost_its_disks_takes_nothing_along_and_is_given_up_by_command() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("anew", &["--regions", "2", "--durability", "geo"])?;
    let (here, there) = (cluster.mount_of(HOME)?, cluster.mount_of(AWAY)?);
    let admin = cluster.admin_config_of(AWAY)?;
    let volume = |words: &[&str]| {
        let mut command = cluster.mooseng(&["volume"]);
        checked(command.args(words).arg("--config").arg(&admin))
    };
    std::fs::create_dir(here.join("d")).context("mkdir")?;
    for n in 0..FILES {
        write(&here.join(format!("d/{n}")), &format!("{n}"))?;
    }
    shows(&there.join(format!("d/{}", FILES - 1)), &format!("{}", FILES - 1))?;
    volume(&["set", "/", "--failover", "manual"])?;

    let masters: Vec<_> =
        cluster.file()?.processes.into_iter().filter(|p| p.region == HOME && p.role == "master").collect();
    ensure!(masters.len() == 3, "{masters:?}");
    cluster.dev_words(&["kill", "region", HOME])?;
    for master in &masters {
        std::fs::remove_dir_all(&master.state_dir).context("removing what a master keeps")?;
        std::fs::create_dir(&master.state_dir).context("an empty disk for a master")?;
    }
    cluster.dev_words(&["start", "region", HOME])?;
    // Well beyond the region's lease: what its new masters might do they have done by then.
    std::thread::sleep(Duration::from_secs(20));
    let status = volume(&["list", "-o", "json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    ensure!(listed["volumes"][0]["home"] == HOME, "nobody has given it up: {listed:#}");
    let says = std::fs::read_to_string(cluster.dir().join(format!("log/{}.log", masters[0].name)))?;
    let others = masters.iter().skip(1).map(|m| cluster.dir().join(format!("log/{}.log", m.name)));
    let says =
        others.map(std::fs::read_to_string).try_fold(says, |all, more| more.map(|more| all + &more))?;
    ensure!(says.contains("was made anew"), "none of its masters says why it gets no lease");

    volume(&["move-home", "/", "--to", AWAY, "--force"])?;
    wait_for("writes in the other region", Duration::from_secs(30), || write(&there.join("d/after"), AWAY))?;
    for n in 0..FILES {
        shows(&there.join(format!("d/{n}")), &format!("{n}"))?;
    }
    wait_for("the region to be taken in", Duration::from_secs(60), || {
        let output = cluster.mooseng(&["status", "-o", "json", "--config"]).arg(&admin).output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let regions = status["regions"].as_array().cloned().unwrap_or_default();
        let region = regions.iter().find(|region| region["name"] == HOME).context("no such region")?;
        ensure!(region["lease_ran_out"] == false, "{region:#}");
        Ok(())
    })
}
