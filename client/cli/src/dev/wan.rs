//! What lies between regions: `wan.toml`, which every process of a cluster of several regions looks at.

use std::path::{Path, PathBuf};

use mooseng_transport::wan::{Cut, Pair, WanRules};

use super::state::Cluster;
use super::write_atomically;
use crate::exit::Failure;
use crate::output;

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

/// Cuts a region off from all others, beside what is cut already; one way: what it sends is lost, what it is sent arrives.
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
        let cut = match (one_way, pair.a == region) {
            (false, _) => Cut::Both,
            (true, true) => Cut::AToB,
            (true, false) => Cut::BToA,
        };
        pair.cut = pair.cut.and(cut);
    }
    put(&cluster, &rules)?;
    let what = if one_way { "what it sends is lost" } else { "nothing gets in or out" };
    let dir = output::shell_quote(&cluster.dir);
    eprintln!("{region} is cut off: {what}. `mooseng dev heal --dir {dir}` mends it.");
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

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::super::plan::tests::up;
    use super::*;
    use crate::args::DevUp;

    #[test]
    fn a_region_is_cut_off_and_healed_and_a_running_cluster_keeps_its_cuts() {
        let dir = tempfile::tempdir().unwrap();
        let args = DevUp { regions: Some(2), ..up() };
        let mut cluster = Cluster::open_or(dir.path(), || Plan::new(&args, dir.path())).unwrap();
        assert_eq!(cuts(&cluster).unwrap(), []);
        write(&cluster).unwrap();
        cluster.state.up = true;
        cluster.save().unwrap();
        drop(cluster);
        let rules = || WanRules::read(&path(dir.path())).unwrap();
        assert_eq!(rules(), WanRules { default_round_trip_ms: 60, ..WanRules::default() });

        partition(dir.path(), "region-2", false).unwrap();
        let both: Vec<String> = rules().pairs.iter().map(describe).collect();
        assert_eq!(
            both,
            [
                "CUT: nothing passes between region-2 and region-1.",
                "CUT: nothing passes between region-2 and witness."
            ]
        );
        // From the other end of a pair that is there already.
        partition(dir.path(), "witness", true).unwrap();
        let cluster = Cluster::open(dir.path()).unwrap();
        write(&cluster).unwrap();
        let now: Vec<String> = cuts(&cluster).unwrap().iter().map(describe).collect();
        drop(cluster);
        assert_eq!(
            now,
            [
                "CUT: nothing passes between region-2 and region-1.",
                "CUT: nothing passes between region-2 and witness.",
                "CUT: what witness sends doesn't reach region-1."
            ]
        );
        assert_eq!(partition(dir.path(), "region-7", false).unwrap_err().exit_code(), 3);
        heal(dir.path()).unwrap();
        assert_eq!(cuts(&Cluster::open(dir.path()).unwrap()).unwrap(), []);

        partition(dir.path(), "region-1", true).unwrap();
        let mut cluster = Cluster::open(dir.path()).unwrap();
        cluster.state.up = false;
        write(&cluster).unwrap();
        assert_eq!(rules().pairs, []);
    }

    #[test]
    fn one_region_can_not_be_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::open_or(dir.path(), || Plan::new(&up(), dir.path())).unwrap();
        write(&cluster).unwrap();
        drop(cluster);
        assert!(!path(dir.path()).exists());
        assert_eq!(partition(dir.path(), "region-1", false).unwrap_err().exit_code(), 1);
        heal(dir.path()).unwrap();
    }
}
