//! Who votes, in a region's group of masters and in the one between regions, before a change of members, during it and after it, and what that survives.
//!
//! During a change both those who voted before and those who vote afterwards must have a majority.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_global::voters::{self, Voters};
use mooseng_global::{MasterAt, Region};
use mooseng_region::members::spare;
use mooseng_wire::admin::{ListRegionsReply, Region as Told, RegionMaster, Volume};
use serde_json::json;

use super::{Count, Goal, Loss, Meaning, Plan, Stages, listed};
use crate::exit::Failure;
use crate::outlook;
use crate::volume;

/// What is to hold of the group between regions.
pub const REGIONS_GO_ON: &str = "any one region may be lost, and the others go on agreeing with each other";

/// Sets of voters, of which each must have a majority.
type Votes = Vec<BTreeSet<u64>>;

/// Who must have a majority at which time.
fn stages(before: BTreeSet<u64>, after: BTreeSet<u64>) -> Stages<Votes> {
    let during = if before == after { vec![before.clone()] } else { vec![before.clone(), after.clone()] };
    Stages::new(vec![before], during, vec![after])
}

/// Notes in a goal when it is missed. One that is missed before, and on the way no worse, and isn't any more afterwards, is mended.
fn note(goal: &mut Goal, missed: &Stages<bool>, why: &str) {
    let whens: Vec<&str> = missed.named().into_iter().filter(|(_, is)| **is).map(|(when, _)| when).collect();
    let whens = listed(&whens);
    if missed.after || (missed.during && !missed.before) {
        goal.below.push(format!("That isn't so {whens}: {why}."));
    } else if missed.before {
        goal.mended = Some(format!("That isn't so {whens}, and is afterwards: {why}."));
    }
}

/// A master of a region's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// It answers.
    pub up: bool,
}

/// The group of a region's masters, as it is and as it would be.
pub fn of_region(
    plan: &mut Plan,
    region: &str,
    seats: &BTreeMap<u64, Seat>,
    before: &BTreeSet<u64>,
    after: &BTreeSet<u64>,
) {
    let name = |id: &u64| seats.get(id).map_or_else(|| id.to_string(), |seat| seat.name.clone());
    let all = stages(before.clone(), after.clone());
    let told = all.map(|votes| {
        let sets = votes.iter().map(|set| {
            let names: Vec<String> = set.iter().map(name).collect();
            format!("{} ({} of {} are needed)", names.join(", "), set.len() / 2 + 1, set.len())
        });
        let ids: Vec<Vec<u64>> = votes.iter().map(|set| set.iter().copied().collect()).collect();
        (sets.collect::<Vec<_>>().join(", and of "), json!(ids))
    });
    let what = format!("Votes in the group of {region}");
    plan.counts.push(Count { key: "region_votes".into(), what, stages: told });
    let is_up = |id: u64| seats.get(&id).is_none_or(|seat| seat.up);
    let left = all.map(|votes| votes.iter().map(|set| spare(set, is_up)).min().flatten());
    let any_one = left.map(|left| {
        let sentence = match left {
            None => format!("{region} waits anyway: no majority of its masters answers."),
            Some(0) => format!("{region} would wait: no majority would be left."),
            Some(1) => format!("{region} would go on."),
            Some(n) => format!("{region} would go on, and so it would without {n} of them."),
        };
        Some(Meaning::goes_on(left.is_some_and(|left| left > 0), sentence))
    });
    plan.losses.push(Loss { lost: format!("any one master of {region}"), means: any_one });
    let zone_of = |id: &u64| seats.get(id).map_or("", |seat| seat.zone.as_str());
    let zones: BTreeSet<&str> = before.iter().chain(after).map(zone_of).filter(|z| !z.is_empty()).collect();
    for zone in zones.iter().filter(|_| zones.len() > 1) {
        let means = all.map(|votes| {
            let lives = |set: &BTreeSet<u64>| spare(set, |id| is_up(id) && zone_of(&id) != *zone).is_some();
            let goes_on = votes.iter().all(lives);
            let sentence = match goes_on {
                true => format!("{region} would go on."),
                false => format!("{region} would wait: no majority would be left."),
            };
            Some(Meaning::goes_on(goes_on, sentence))
        });
        plan.losses.push(Loss { lost: format!("the zone {zone}"), means });
    }
    let mut goal = Goal::new(format!("{region} goes on without any one of its masters"));
    let missed = left.map(|left| left.is_none_or(|left| left == 0));
    note(&mut goal, &missed, "a majority needs all that are left then");
    plan.goals.push(goal);
}

/// The group in which the regions agree, as a master tells of it.
pub struct Global<'a> {
    reply: &'a ListRegionsReply,
    known: BTreeMap<String, Region>,
}

fn master_at(master: &RegionMaster) -> MasterAt {
    MasterAt {
        id: master.id,
        name: master.name.clone(),
        address: master.address.clone(),
        zone: master.zone.clone(),
    }
}

/// It was taken in, and hasn't shown its token: nobody counts on it.
fn is_awaited(region: &Told) -> bool {
    region.lease_age_ms.is_none() && !region.masters.iter().any(|m| m.voter)
}

impl<'a> Global<'a> {
    /// Of a cluster in which something can be agreed on now.
    pub fn of(reply: &'a ListRegionsReply) -> Result<Self, Failure> {
        if reply.version == 0 || !reply.quorum {
            return Err(Failure::unavailable(format!(
                "Nothing can be agreed on now, and no plan be made of it: {} `mooseng regions list` shows who is missing.",
                crate::regions::survives(reply)
            )));
        }
        let known = |region: &Told| {
            let of = Region {
                number: u16::try_from(region.number).unwrap_or(u16::MAX),
                witness: region.witness,
                masters: region.masters.iter().map(master_at).collect(),
            };
            (region.name.clone(), of)
        };
        Ok(Self { reply, known: reply.regions.iter().map(known).collect() })
    }

    /// The regions, as the rules know them.
    pub fn known(&self) -> &BTreeMap<String, Region> {
        &self.known
    }

    /// The highest number of those that there are. One that is gone may have had a higher one.
    pub fn highest(&self) -> u32 {
        self.known.values().map(|region| u32::from(region.number)).max().unwrap_or(0)
    }

    /// Whether a region has shown its token.
    pub fn has_joined(&self, name: &str) -> bool {
        self.reply.regions.iter().any(|region| region.name == name && !is_awaited(region))
    }

    /// The master that leads it: region and name.
    pub fn leader(&self) -> Option<(&'a str, &'a str)> {
        self.seats().find(|(_, _, m)| m.leader).map(|(_, region, m)| (region.name.as_str(), m.name.as_str()))
    }

    fn seats(&self) -> impl Iterator<Item = (u64, &'a Told, &'a RegionMaster)> {
        let reply = self.reply;
        reply.regions.iter().flat_map(|region| {
            let number = u16::try_from(region.number).unwrap_or(u16::MAX);
            region.masters.iter().map(move |m| (voters::node_id(number, m.id), region, m))
        })
    }

    /// What comes of it that there would be these regions, with these masters. `joins`: one that would have shown its token by then.
    pub fn becomes(
        &self,
        plan: &mut Plan,
        then: &BTreeMap<String, Region>,
        joins: Option<&str>,
        volumes: &[Volume],
    ) {
        let before: BTreeSet<u64> =
            self.seats().filter(|(_, _, m)| m.voter).map(|(node, _, _)| node).collect();
        let mut counted = then.clone();
        counted.retain(|name, _| {
            let awaited = self.reply.regions.iter().any(|region| region.name == *name && is_awaited(region));
            joins == Some(name.as_str()) || !awaited
        });
        let after = voters::choose(&counted);
        self.waits_for(plan, &before, &after);
        let all = stages(before, after);
        let names = self.names(then);
        plan.counts.push(Count {
            key: "global_votes".into(),
            what: "Votes between the regions".into(),
            stages: all.map(|votes| told(votes, &names)),
        });
        let down: BTreeSet<u64> =
            self.seats().filter(|(_, _, m)| m.reachable == Some(false)).map(|(node, _, _)| node).collect();
        // Who votes afterwards, and nobody has asked yet, is up by then: it gets no vote before.
        let standing = all.map(|votes| {
            let of = |set: &BTreeSet<u64>| Voters::with(set.iter().copied(), |node| !down.contains(&node));
            votes.iter().map(of).collect::<Vec<_>>()
        });
        let fatal = self.lose_a_region(plan, then, &standing);
        let more = standing.map(|all| {
            let survives = all.iter().all(Voters::survives_a_region_and_a_master);
            let sentence = match survives {
                true => "The regions would go on agreeing with each other.",
                false => "It may be that the regions could agree on nothing any more: it depends on which.",
            };
            Some(Meaning::goes_on(survives, sentence))
        });
        plan.losses.push(Loss { lost: "any one region and one more master".into(), means: more });
        let mut goal = Goal::new(REGIONS_GO_ON);
        let missed = fatal.map(|fatal| !fatal.is_empty());
        let those: BTreeSet<&str> =
            fatal.named().into_iter().flat_map(|(_, fatal)| fatal.iter().map(String::as_str)).collect();
        let those: Vec<&str> = those.into_iter().collect();
        note(
            &mut goal,
            &missed,
            &format!("no majority would be left without {}", those.join(", or without ")),
        );
        plan.goals.push(goal);
        self.volumes(plan, volumes, then, &fatal);
    }

    /// What the loss of each region means to the group. Answers without which ones it couldn't go on.
    fn lose_a_region(
        &self,
        plan: &mut Plan,
        then: &BTreeMap<String, Region>,
        standing: &Stages<Vec<Voters>>,
    ) -> Stages<Vec<String>> {
        let all: BTreeMap<&String, u16> =
            self.known.iter().chain(then).map(|(name, region)| (name, region.number)).collect();
        let lives = |all: &Vec<Voters>, number: u16| {
            all.iter().all(|voters| voters.has_majority() && !voters.fatal().contains(&number))
        };
        for (name, number) in &all {
            let means = standing.map(|all| {
                let goes_on = lives(all, *number);
                let sentence = match goes_on {
                    true => "The regions would go on agreeing with each other.",
                    false => "The regions could agree on nothing any more: no volume would get another home, and the home of one that fails over by itself would stop within its lease.",
                };
                Some(Meaning::goes_on(goes_on, sentence))
            });
            // What isn't there isn't lost.
            let means = Stages {
                before: means.before.filter(|_| self.known.contains_key(*name)),
                after: means.after.filter(|_| then.contains_key(*name)),
                ..means
            };
            plan.losses.push(Loss { lost: (*name).clone(), means });
        }
        standing.map(|voters| {
            let fatal = all.iter().filter(|(_, number)| !lives(voters, **number));
            fatal.map(|(name, _)| (*name).clone()).collect()
        })
    }

    /// Volumes to which the loss of a region would mean something else than before.
    fn volumes(
        &self,
        plan: &mut Plan,
        volumes: &[Volume],
        then: &BTreeMap<String, Region>,
        fatal: &Stages<Vec<String>>,
    ) {
        let stay = self.known.keys().filter(|name| then.contains_key(*name));
        for (of, region) in stay.flat_map(|region| volumes.iter().map(move |of| (of, region))) {
            let means = fatal.map(|fatal| outlook::lost(of, region, fatal.contains(region)));
            if means.before != means.during || means.before != means.after {
                let lost = format!("{region} (volume {})", volume::name(of));
                plan.losses.push(Loss { lost, means: means.map(|outlook| Some(Meaning::of(outlook))) });
            }
        }
    }

    fn names(&self, then: &BTreeMap<String, Region>) -> BTreeMap<u64, (String, String)> {
        let all = self.known.iter().chain(then);
        let of = |(name, region): (&String, &Region)| {
            let node = |m: &MasterAt| (voters::node_id(region.number, m.id), (name.clone(), m.name.clone()));
            region.masters.iter().map(node).collect::<Vec<_>>()
        };
        all.flat_map(of).collect()
    }

    /// Who gets a vote and doesn't answer is waited for.
    fn waits_for(&self, plan: &mut Plan, before: &BTreeSet<u64>, after: &BTreeSet<u64>) {
        let is_new = |node: u64| after.contains(&node) && !before.contains(&node);
        for (_, region, m) in self.seats().filter(|(node, _, m)| is_new(*node) && m.reachable == Some(false))
        {
            plan.notes.push(format!(
                "Who votes between the regions changes once {} in {} answers, which it doesn't now; until then it stays as before.",
                m.name, region.name
            ));
        }
    }
}

fn told(votes: &[BTreeSet<u64>], names: &BTreeMap<u64, (String, String)>) -> (String, serde_json::Value) {
    let set = |set: &BTreeSet<u64>| {
        let mut regions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for node in set {
            match names.get(node) {
                Some((region, name)) => regions.entry(region).or_default().push(name.clone()),
                None => regions.entry("?").or_default().push(node.to_string()),
            }
        }
        let regions: Vec<String> =
            regions.iter().map(|(region, names)| format!("{region}/{}", names.join("+"))).collect();
        format!("{} ({} of {} are needed)", regions.join(", "), set.len() / 2 + 1, set.len())
    };
    let sets: Vec<String> = votes.iter().map(set).collect();
    let name = |node: &u64| names.get(node).map_or_else(|| node.to_string(), |(r, n)| format!("{r}/{n}"));
    let values: Vec<Vec<String>> = votes.iter().map(|set| set.iter().map(name).collect()).collect();
    (sets.join(", and of "), json!(values))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Regions with so many masters each, of which the best vote.
    pub fn reply(regions: &[(&str, usize)]) -> ListRegionsReply {
        let region = |(i, (name, masters)): (usize, &(&str, usize))| Told {
            name: (*name).into(),
            number: i as u32 + 1,
            witness: *masters == 1,
            masters: (1..=*masters as u64)
                .map(|id| RegionMaster {
                    id,
                    name: format!("m{id}"),
                    address: format!("{name}-{id}:1"),
                    zone: format!("z{id}"),
                    reachable: Some(true),
                    round_trip_us: Some(60_000),
                    ..RegionMaster::default()
                })
                .collect(),
            lease_age_ms: Some(500),
            lease_ran_out: false,
        };
        let mut reply = ListRegionsReply {
            version: 7,
            quorum: true,
            asked: regions[0].0.into(),
            regions: regions.iter().enumerate().map(region).collect(),
            ..ListRegionsReply::default()
        };
        let votes = voters::choose(Global::of(&reply).unwrap().known());
        for (i, region) in reply.regions.iter_mut().enumerate() {
            for m in &mut region.masters {
                m.voter = votes.contains(&voters::node_id(i as u16 + 1, m.id));
                m.leader = i == 0 && m.id == 1;
            }
        }
        reply
    }

    fn becomes(reply: &ListRegionsReply, change: impl Fn(&mut BTreeMap<String, Region>)) -> Plan {
        let global = Global::of(reply).unwrap();
        let mut then = global.known().clone();
        change(&mut then);
        let mut plan = Plan::new("It would change.");
        global.becomes(&mut plan, &then, None, &[]);
        plan
    }

    #[test]
    fn who_votes_between_regions_and_what_that_survives_is_told() {
        let three = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        let plan = becomes(&three, |then| drop(then.remove("w")));
        let text = plan.text();
        for part in [
            "Votes between the regions before: a/m1+m2, b/m1+m2, w/m1 (3 of 5 are needed); during: ",
            "after: a/m1+m2+m3 (2 of 3 are needed).",
            "If w were lost, before and during: The regions would go on",
            "If a were lost, before: The regions would go on agreeing with each other.",
            "If a were lost, during and after: The regions could agree on nothing any more",
            "It would be missed: That isn't so during and after: no majority would be left without a.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.goes_below(), Some(true));
        let votes = &plan.shape()["counts"]["global_votes"];
        assert_eq!(votes["before"][0][4], "w/m1");
        assert_eq!(
            (votes["during"].as_array().map(Vec::len), votes["after"].as_array().map(Vec::len)),
            (Some(2), Some(1))
        );
    }

    #[test]
    fn what_is_as_before_is_said_once() {
        let three = reply(&[("a", 3), ("b", 3), ("c", 3)]);
        let plan = becomes(&three, |_| ());
        let text = plan.text();
        assert!(
            text.contains("If any one region and one more master were lost, before, during and after:"),
            "{text}"
        );
        assert_eq!(plan.goes_below(), Some(false));
    }

    #[test]
    fn who_is_down_counts_as_lost_and_is_waited_for_where_it_is_to_vote() {
        let mut three = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        three.regions[0].masters[0].reachable = Some(false);
        let plan = becomes(&three, |_| ());
        assert_eq!(plan.goes_below(), Some(true), "{}", plan.text());
        assert!(plan.text().contains("without b"), "{}", plan.text());
        // A vote goes to one that is down, if a region with more masters is let go of.
        let mut two = reply(&[("a", 3), ("b", 3), ("c", 3), ("d", 3)]);
        two.regions[1].masters[2].reachable = Some(false);
        let plan = becomes(&two, |then| drop(then.remove("d")));
        assert!(plan.notes.iter().any(|note| note.contains("once m3 in b answers")), "{:?}", plan.notes);
    }

    #[test]
    fn without_a_majority_there_is_no_plan() {
        let mut three = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        three.quorum = false;
        assert_eq!(Global::of(&three).err().map(|failure| failure.exit_code()), Some(5));
        three.version = 0;
        assert_eq!(Global::of(&three).err().map(|failure| failure.exit_code()), Some(5));
    }

    #[test]
    fn a_region_that_hasnt_come_has_no_vote_yet() {
        let mut four = reply(&[("a", 3), ("b", 3), ("w", 1), ("d", 3)]);
        let others = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        for (region, as_before) in four.regions.iter_mut().zip(&others.regions) {
            region.clone_from(as_before);
        }
        four.regions[3].lease_age_ms = None;
        four.regions[3].masters.iter_mut().for_each(|m| m.voter = false);
        assert!(!Global::of(&four).unwrap().has_joined("d") && Global::of(&four).unwrap().has_joined("w"));
        let plan = becomes(&four, |_| ());
        let Stages { before, after, .. } = &plan.counts[0].stages;
        assert_eq!(before, after, "{}", plan.text());
    }

    #[test]
    fn a_regions_group_says_how_many_may_be_lost_meanwhile() {
        let seat = |id: u64, up: bool| (id, Seat { name: format!("m{id}"), zone: format!("z{id}"), up });
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let of = |down: &[u64], before: &[u64], after: &[u64]| {
            let seats = (1..=4).map(|id| seat(id, !down.contains(&id))).collect();
            let mut plan = Plan::new("It would change.");
            of_region(&mut plan, "r", &seats, &set(before), &set(after));
            plan
        };
        let added = of(&[], &[1, 2, 3], &[1, 2, 3, 4]);
        assert_eq!(added.goes_below(), Some(false), "{}", added.text());
        let text = of(&[], &[1, 2, 3], &[1, 3]).text();
        for part in [
            "Votes in the group of r before: m1, m2, m3 (2 of 3 are needed); during: m1, m2, m3 (2 of 3 are needed), and of m1, m3 (2 of 2 are needed);",
            "If any one master of r were lost, before: r would go on.",
            "If any one master of r were lost, during and after: r would wait",
            "If the zone z2 were lost, before, during and after: r would go on.",
            "If the zone z1 were lost, during and after: r would wait",
            "That isn't so during and after",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        // One that is lost is taken out: what is left is as it was.
        let lost = of(&[2], &[1, 2, 3], &[1, 3]);
        assert!(lost.text().contains("That isn't so before, during and after"), "{}", lost.text());
        // One that is up goes while another is down: nobody is left who could decide.
        let stuck = of(&[2], &[1, 2, 3], &[1, 2]);
        assert!(stuck.text().contains("r waits anyway"), "{}", stuck.text());
    }
}
