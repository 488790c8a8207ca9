//! Three regions with data: the home is killed, the two others go on, and the sync set of the root volume shrinks and grows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, wait_for};
use mooseng_e2e::held::Held;
use mooseng_e2e::steps::Steps;
use serde_json::json;

use super::regions::{HOME_LOST, shows, write};
use super::volumes::UNDONE;

const REGIONS: [&str; 3] = ["region-1", "region-2", "region-3"];
/// Where the root volume is at home at first, and where it isn't.
const HOME: &str = REGIONS[0];
const OTHERS: [&str; 2] = [REGIONS[1], REGIONS[2]];
/// A failover takes a region's lease, and what follows it.
const FAILED_OVER: Duration = Duration::from_secs(90);
/// A region that has left the sync set stays outside for ten seconds at least.
const BACK_WITHIN: Duration = Duration::from_secs(180);
/// Files that are fsynced just before the home is killed.
const FILES: usize = 20;

#[test]
fn of_three_regions_two_go_on_and_the_third_comes_back() {
    run().unwrap();
}

/// Waits until all of `asked` know of that sync set, and of one home. Answers the home.
fn in_sync(cluster: &DevCluster, asked: &[&str], set: &[&str]) -> Result<String> {
    let mut homes = Vec::new();
    wait_for(&format!("the sync set to be {set:?}"), BACK_WITHIN, || {
        homes.clear();
        for region in asked {
            let listed = cluster.volume(region, &["list"])?;
            let root = &listed["volumes"][0];
            ensure!(root["durability"] == "geo" && root["sync_set"] == json!(set), "{region}: {root:#}");
            homes.push(root["home"].as_str().context("no home")?.to_owned());
        }
        ensure!(homes.iter().all(|home| *home == homes[0]), "{asked:?} know the homes {homes:?}");
        Ok(())
    })?;
    homes.pop().context("nobody was asked")
}

/// All but the home have what the home has.
fn equal(cluster: &DevCluster, asked: &[&str], home: &str) -> Result<()> {
    let mut replicas = asked.iter().filter(|region| **region != home);
    replicas.try_for_each(|region| cluster.compared(region, |all| all["equal"] == true))
}

/// The home is killed while a mount of each other region has a file open that has no name: whichever takes over, one of them is elsewhere.
fn killed(cluster: &DevCluster, mounts: &[PathBuf]) -> Result<()> {
    let (here, others) = mounts.split_first().context("no mounts")?;
    let fsynced: Vec<String> = (0..FILES).map(|n| format!("kept-{n}")).collect();
    for name in &fsynced {
        write(&here.join(name), name)?;
    }
    let mut held = Vec::new();
    for (region, mount) in OTHERS.iter().zip(others) {
        held.push(Held::make(mount, &format!("held-{region}"))?);
    }
    cluster.dev_words(&["kill", "region", HOME])?;
    let began = Instant::now();
    for (region, mount) in OTHERS.iter().zip(others) {
        let name = format!("after-{region}");
        wait_for("changes to be taken again", FAILED_OVER, || write(&mount.join(&name), &name))?;
        println!("    changes of the mount in {region} are taken after {:.1?}", began.elapsed());
    }
    let home = in_sync(cluster, &OTHERS, &OTHERS)?;
    println!("    {home} is the home");
    held.iter_mut().try_for_each(|held| {
        // These mounts have read files, too, whose access times may have been on their way.
        held.settled()?;
        held.write_on()
    })?;
    for mount in others {
        let after = OTHERS.map(|region| format!("after-{region}"));
        for name in fsynced.iter().chain(&after) {
            shows(&mount.join(name), name)?;
        }
    }
    equal(cluster, &OTHERS, &home)
}

/// A region that isn't the home is cut off: the home's fsync waits until it has left the sync set, and it comes back by itself.
fn cut_off(cluster: &DevCluster, mounts: &[PathBuf]) -> Result<()> {
    let home = in_sync(cluster, &REGIONS, &REGIONS)?;
    ensure!(home != HOME, "the home has moved back by itself");
    let here = cluster.mount_of(&home)?;
    // Nobody else has looked at it: who is cut off needn't be asked before something in it changes.
    let own = Path::new("own");
    std::fs::create_dir(here.join(own)).context("mkdir")?;
    write(&here.join(own).join("before"), "before")?;
    cluster.cut(&["partition", HOME])?;
    let began = Instant::now();
    let written = write(&here.join(own).join("meanwhile"), "meanwhile");
    println!("    an fsync took {:.1?}", began.elapsed());
    let left = in_sync(cluster, &OTHERS, &OTHERS);
    // Whatever came of it.
    cluster.cut(&["heal"])?;
    written?;
    left?;
    let healed = Instant::now();
    let still = in_sync(cluster, &REGIONS, &REGIONS)?;
    println!("    {HOME} is in the sync set again after {:.1?}", healed.elapsed());
    ensure!(still == home, "the home was {home}, and is {still}");
    mounts.iter().try_for_each(|mount| shows(&mount.join(own).join("meanwhile"), "meanwhile"))
}

fn run() -> Result<()> {
    // One machine has to carry all of it. With the witness four masters vote, of which any may be lost.
    let sizes = ["--masters", "1", "--chunkservers", "2"];
    let cluster = DevCluster::up("three", &[&["--regions", "3"][..], &sizes].concat())?;
    let mounts = REGIONS.iter().map(|region| cluster.mount_of(region)).collect::<Result<Vec<_>>>()?;
    let mut steps = Steps::default();
    steps.run("what is written in one of three regions is read in all of them", || {
        let home = in_sync(&cluster, &REGIONS, &REGIONS)?;
        ensure!(home == HOME, "{home}");
        for (region, mount) in REGIONS.iter().zip(&mounts) {
            write(&mount.join(region), region)?;
            mounts.iter().try_for_each(|seen| shows(&seen.join(region), region))?;
        }
        Ok(())
    });
    steps.run("the home is killed: the two others go on, and are the sync set", || killed(&cluster, &mounts));
    steps.run("it comes back: the sync set is all three again", || {
        cluster.dev_words(&["start", "region", HOME])?;
        in_sync(&cluster, &REGIONS, &REGIONS)?;
        for name in [format!("kept-{}", FILES - 1), format!("after-{}", OTHERS[1])] {
            shows(&mounts[0].join(&name), &name)?;
        }
        write(&mounts[0].join("back"), "back")?;
        mounts.iter().try_for_each(|mount| shows(&mount.join("back"), "back"))
    });
    steps.run("it is cut off, as another region than the home: the sync set goes on without it", || {
        cut_off(&cluster, &mounts)
    });
    steps.run("volume verify finds the same in all three", || {
        let home = in_sync(&cluster, &REGIONS, &REGIONS)?;
        equal(&cluster, &REGIONS, &home)
    });
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, HOME_LOST, UNDONE].concat())
}
