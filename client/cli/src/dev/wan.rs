//! What lies between regions: `wan.toml`, which every process of a cluster of several regions looks at.

use std::path::{Path, PathBuf};

use mooseng_transport::wan::{Cut, Pair, WanRules};

use super::state::Cluster;
use super::write_atomically;
use crate::exit::Failure;

/// The file.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("wan.toml")
}

fn put(cluster: &Cluster, rules: &WanRules) -> Result<(), Failure> {
    let path = path(&cluster.dir);
    let text = toml::to_string(rules)
        .map_err(|e| Failure::failed(format!("The rules between regions can't be written as TOML: {e}.")))?;
    write_atomically(&path, text.as_bytes())
        .map_err(|e| Failure::failed(format!("{} can't be written: {e}.", path.display())))
}

fn read(cluster: &Cluster) -> Result<WanRules, Failure> {
    WanRules::read(&path(&cluster.dir)).map_err(|reason| Failure::failed(format!("{reason}.")))
}

/// Writes the file for a start: a cluster that was down begins whole, one that runs keeps its cuts.
pub fn write(cluster: &Cluster) -> Result<(), Failure> {
    if !cluster.state.plan.is_wide() {
        return Ok(());
    }
    let mut rules = if cluster.state.up { read(cluster)? } else { WanRules::default() };
    rules.default_round_trip_ms = cluster.state.plan.round_trip_ms;
    put(cluster, &rules)
}

/// Cuts a region off from all others; one way: what it sends is lost, what it is sent arrives.
pub fn partition(dir: &Path, region: &str, one_way: bool) -> Result<(), Failure> {
    let cluster = Cluster::open(dir)?;
    cluster.region(region)?;
    if !cluster.state.plan.is_wide() {
        return Err(Failure::failed(format!(
            "The cluster in {} has one region: there is nothing to cut {region} off from.",
            cluster.dir.display()
        )));
    }
    let mut rules = read(&cluster)?;
    for other in cluster.state.plan.regions.iter().filter(|other| other.name != region) {
        let pair = rules.pair_mut(region, &other.name);
        pair.cut = match (one_way, pair.a == region) {
            (false, _) => Cut::Both,
            (true, true) => Cut::AToB,
            (true, false) => Cut::BToA,
        };
    }
    put(&cluster, &rules)?;
    let what = if one_way { "what it sends is lost" } else { "nothing gets in or out" };
    eprintln!("{region} is cut off: {what}. `mooseng dev heal --dir {}` mends it.", cluster.dir.display());
    Ok(())
}

/// Mends all that is cut.
pub fn heal(dir: &Path) -> Result<(), Failure> {
    let cluster = Cluster::open(dir)?;
    if cluster.state.plan.is_wide() {
        let mut rules = read(&cluster)?;
        rules.pairs.iter_mut().for_each(|pair| pair.cut = Cut::None);
        put(&cluster, &rules)?;
    }
    eprintln!("Nothing is cut.");
    Ok(())
}

/// The pairs of regions between which something is cut.
pub fn cuts(cluster: &Cluster) -> Result<Vec<Pair>, Failure> {
    // There is none before the first start.
    if !cluster.state.plan.is_wide() || !path(&cluster.dir).exists() {
        return Ok(Vec::new());
    }
    Ok(read(cluster)?.pairs.into_iter().filter(|pair| pair.cut != Cut::None).collect())
}

/// A cut in words.
pub fn describe(pair: &Pair) -> String {
    let Pair { a, b, cut, .. } = pair;
    match cut {
        Cut::None => format!("Nothing is cut between {a} and {b}."),
        Cut::Both => format!("CUT: nothing passes between {a} and {b}."),
        Cut::AToB => format!("CUT: what {a} sends doesn't reach {b}."),
        Cut::BToA => format!("CUT: what {b} sends doesn't reach {a}."),
    }
}
