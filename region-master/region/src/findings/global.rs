//! What is wrong with the global group, and with the region's place in it.

use super::{Finding, finding};
use crate::codes;

/// The global group as the asked master knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GlobalFacts {
    /// The asked master's region has a voice and no data.
    pub witness: bool,
    /// A leader with a majority is known.
    pub quorum: bool,
    /// Regions whose loss would leave no majority now.
    pub fatal: Vec<String>,
    /// Any region may be lost, and one more master.
    pub survives_a_region_and_a_master: bool,
    /// Other regions whose lease has run out, and for how many seconds they haven't renewed it.
    pub down: Vec<(String, u64)>,
    /// Volumes that take no changes for their home is lost, and what they wait for.
    pub waiting: Vec<(String, String)>,
    /// Volumes that are at home in the asked master's region and whose writers wait for other regions, and why.
    pub held: Vec<(String, String)>,
    /// The asked master leads a region that is the home of volumes for which it needs a lease, and doesn't hold it.
    pub lease_lost: bool,
    /// The feature level, and what stands beside it.
    pub levels: LevelFacts,
}

/// What the cluster's masters support, as the asked one knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LevelFacts {
    /// The feature level that the cluster is at.
    pub level: u32,
    /// All masters support a higher one: the highest that they do.
    pub raisable: Option<u32>,
    /// Masters support different ones: which support which.
    pub differ: Option<String>,
    /// Masters that don't support the level that the cluster is at, with the rest of it in a sentence.
    pub outdated: Vec<(String, String)>,
}

/// Looks for what is wrong.
pub(super) fn look(facts: &GlobalFacts, found: &mut Vec<Finding>) {
    let group = "global group";
    if !facts.quorum {
        let detail = "The asked master knows of no leader of the global group with a majority.";
        found.push(finding(&codes::GLOBAL_NO_LEADER, group, detail));
    } else if !facts.fatal.is_empty() {
        let detail = format!(
            "Were {} lost now, the global group would have no majority of its voters.",
            facts.fatal.join(" or ")
        );
        found.push(finding(&codes::GLOBAL_REGION_LOSS, group, detail));
    } else if !facts.survives_a_region_and_a_master {
        let detail = "The loss of a region and one more master could leave it without a majority.";
        found.push(finding(&codes::GLOBAL_THIN, group, detail));
    }
    for (region, age_s) in &facts.down {
        let detail = format!("The asked master has heard of no renewal of its lease for {age_s} s.");
        found.push(finding(&codes::REGION_DOWN, format!("region {region}"), detail));
    }
    for (volume, detail) in &facts.waiting {
        found.push(finding(&codes::VOLUME_WAITS, volume, detail));
    }
    for (volume, detail) in &facts.held {
        found.push(finding(&codes::WRITERS_HELD, volume, detail));
    }
    if facts.lease_lost {
        let detail = "The region's leader can't renew the region's lease.";
        found.push(finding(&codes::LEASE_LOST, "region", detail));
    }
    look_at_levels(&facts.levels, found);
}

fn look_at_levels(facts: &LevelFacts, found: &mut Vec<Finding>) {
    for (master, detail) in &facts.outdated {
        found.push(finding(&codes::MASTER_OUTDATED, format!("master {master}"), detail));
    }
    if let Some(differ) = &facts.differ {
        let detail = format!("The cluster is at feature level {}. {differ}.", facts.level);
        found.push(finding(&codes::LEVELS_DIFFER, "cluster", detail));
    }
    if let Some(to) = facts.raisable {
        let detail = format!("It is at feature level {}, and all masters support {to}.", facts.level);
        found.push(finding(&codes::LEVEL_RAISABLE, "cluster", detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fact_one_finding() {
        let well = GlobalFacts { quorum: true, survives_a_region_and_a_master: true, ..Default::default() };
        let codes_of = |change: &dyn Fn(&mut GlobalFacts)| {
            let (mut facts, mut found) = (well.clone(), Vec::new());
            change(&mut facts);
            look(&facts, &mut found);
            found.into_iter().map(|f| f.code.code).collect::<Vec<_>>()
        };
        assert_eq!(codes_of(&|_| ()), Vec::<&str>::new());
        assert_eq!(codes_of(&|f| f.quorum = false), ["GLOBAL_NO_LEADER"]);
        assert_eq!(codes_of(&|f| f.fatal = vec!["a".into()]), ["GLOBAL_REGION_LOSS"]);
        assert_eq!(codes_of(&|f| f.survives_a_region_and_a_master = false), ["GLOBAL_THIN"]);
        assert_eq!(codes_of(&|f| f.down = vec![("b".into(), 12)]), ["REGION_DOWN"]);
        assert_eq!(
            codes_of(&|f| f.waiting = vec![("volume 0".into(), "It waits.".into())]),
            ["VOLUME_WAITS"]
        );
        assert_eq!(codes_of(&|f| f.held = vec![("volume 0".into(), "It waits.".into())]), ["WRITERS_HELD"]);
        assert_eq!(codes_of(&|f| f.lease_lost = true), ["LEASE_LOST"]);
        assert_eq!(codes_of(&|f| f.levels.raisable = Some(2)), ["LEVEL_RAISABLE"]);
        assert_eq!(codes_of(&|f| f.levels.differ = Some("a/m1: 0".into())), ["LEVELS_DIFFER"]);
        let outdated = vec![("a/m1".to_owned(), "It supports feature level 0.".to_owned())];
        assert_eq!(codes_of(&|f| f.levels.outdated = outdated.clone()), ["MASTER_OUTDATED"]);
    }
}
