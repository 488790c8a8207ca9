//! `--plan` with the real binaries, of what concerns several regions: what it says is what the masters know, and nothing is changed by it.

use std::time::Duration;

use anyhow::{Result, ensure};
use mooseng_e2e::cluster::{DevCluster, wait_for};
use serde_json::json;

use super::volumes::{refusal, shape, told};

/// The regions that a plan of a volume is about: all that have data.
const WITH_DATA: usize = 2;
/// Where a machine is busy, a heartbeat may be late, or an answer: a plan says so, and what is made of it when all is well comes a little later.
const ALL_WELL: Duration = Duration::from_secs(60);

/// What a region more or less would mean, or a master.
pub fn regions(cluster: &DevCluster) -> Result<()> {
    let count = || -> Result<Option<usize>> {
        Ok(shape(cluster, &["regions", "list"])?["regions"].as_array().map(Vec::len))
    };
    ensure!(count()? == Some(3), "there are other regions");
    let master = "id=1,name=m1,address=127.0.0.1:9,zone=z";
    let add = ["regions", "add", "region-3", "--master", master, "--plan"];
    let text = told(cluster, &add)?;
    ensure!(text.contains("would be taken in") && text.ends_with("without --plan does it.\n"), "{text}");
    ensure!(!text.contains("join ="), "a plan prints a token: {text}");
    wait_for("a plan of masters that all answer", ALL_WELL, || {
        let plan = shape(cluster, &add)?;
        let votes = &plan["counts"]["global_votes"];
        ensure!(votes["after"].to_string().contains("region-3/m1"), "{plan:#}");
        ensure!(!votes["before"].to_string().contains("region-3"), "{plan:#}");
        ensure!(plan["copied"][0]["round_trip_us"].is_null(), "{plan:#}");
        ensure!(plan["goes_below_a_goal"] == false, "{plan:#}");
        Ok(())
    })?;
    for (region, code, why) in
        [("nowhere", 3, "no region"), ("region-2", 1, "has it"), ("witness", 1, "couldn't lose")]
    {
        let refusal = refusal(cluster, &["regions", "remove", region, "--plan"], code)?;
        ensure!(refusal.contains(why), "{region}: {refusal}");
    }
    let plan = shape(cluster, &["members", "remove", "2", "--plan"])?;
    ensure!(plan["voters"]["after"] == json!([1, 3]) && plan["goes_below_a_goal"] == true, "{plan:#}");
    ensure!(plan["counts"]["global_votes"]["before"][0].as_array().map(Vec::len) == Some(5), "{plan:#}");
    ensure!(count()? == Some(3), "a plan has taken a region in");
    Ok(())
}

/// What a volume would be that is about to be made by these words.
pub fn making(cluster: &DevCluster, region: &str, create: &[&str]) -> Result<()> {
    wait_for("a plan of regions whose chunkservers are all there", ALL_WELL, || {
        let plan = cluster.volume(region, &[create, &["--plan"]].concat())?;
        ensure!(
            plan["plan"] == true && plan["volume"].is_null() && plan["after"]["path"] == create[1],
            "{plan:#}"
        );
        let regions = plan["after"]["regions"].as_array().map(Vec::len);
        ensure!(regions == Some(WITH_DATA) && plan["copied"] == json!([]), "{plan:#}");
        ensure!(plan["copied_to"][0]["region"].is_string(), "{plan:#}");
        // Until the other region is in its sync set the home answers fsync alone.
        ensure!((plan["goes_below_a_goal"] == true) == create.contains(&"geo"), "{plan:#}");
        Ok(())
    })
}

/// What would go with a volume that is about to be deleted.
pub fn deleting(cluster: &DevCluster, region: &str, path: &str, number: u64) -> Result<()> {
    let plan = cluster.volume(region, &["delete", path, "--plan"])?;
    let regions = &plan["counts"]["regions_that_have_it"];
    ensure!(plan["volume"] == number && regions["before"] == WITH_DATA && regions["after"] == 0, "{plan:#}");
    ensure!(plan["trash"]["files"].is_u64() && plan["losses"][0]["after"].is_null(), "{plan:#}");
    Ok(())
}
