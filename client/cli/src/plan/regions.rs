//! What it would mean to take a region in, or to let go of one.

use std::collections::BTreeMap;

use mooseng_global::rules::{self, Having, Joining};
use mooseng_global::{MasterAt, Region, RuleError};
use mooseng_wire::VolumeId;
use mooseng_wire::admin::{ListRegionsReply, MemberToAdd, StatusReply, Volume};
use serde_json::json;

use super::group::Global;
use super::{Amount, Copied, Link, Plan, refused};
use crate::exit::{Failure, Kind};
use crate::output;
use crate::volume;

/// A refusal by a rule, with the exit code that it has where a master tells of it.
fn by_rule(error: &RuleError) -> Failure {
    let kind = match error {
        RuleError::NoRegion(_) | RuleError::NoVolume(_) => Kind::NotFound,
        _ => Kind::Failed,
    };
    refused(kind, error)
}

/// What a region is asked for as.
#[derive(Clone, Copy, Debug)]
pub struct Adding<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number; 0 for the next.
    pub number: u16,
    /// It has a voice and no data.
    pub witness: bool,
    /// Its masters.
    pub masters: &'a [MemberToAdd],
}

/// To take a region in.
pub fn add(asked: Adding<'_>, reply: &ListRegionsReply, volumes: &[Volume]) -> Result<Plan, Failure> {
    let global = Global::of(reply)?;
    let at = |m: &MemberToAdd| MasterAt {
        id: m.id,
        name: m.name.clone(),
        address: m.address.clone(),
        zone: m.zone.clone(),
    };
    let masters = asked.masters.iter().map(at).collect();
    let region = Region { number: asked.number, witness: asked.witness, masters };
    let name = asked.name;
    let joining = rules::may_add(name, &region, global.known(), global.highest());
    let (mut plan, region) = match joining.map_err(|error| by_rule(&error))? {
        Joining::Again if global.has_joined(name) => {
            return Err(by_rule(&RuleError::TokenSpent(name.to_owned())));
        }
        Joining::Again => {
            let there = global.known()[name].clone();
            let what = format!(
                "The region {name}, number {}, was taken in already, and hasn't joined: another token would be printed, and the one before counts no more.",
                there.number
            );
            (Plan::new(what), there)
        }
        Joining::New(region) => {
            let number = match asked.number {
                0 => format!("number {}, or a later one, if a region that is gone had that", region.number),
                n => format!("number {n}, unless a region that is gone had that: then it is refused"),
            };
            let what = format!(
                "The region {name} ({number}) would be taken in, and a token be printed that its masters join with.",
            );
            (Plan::new(what), region)
        }
    };
    plan.would.push(match region.witness {
        true => format!("{name} would be a witness, with a voice and no data."),
        false => format!(
            "No volume is copied to {name} by that: what it would mean that one is, `mooseng volume set PATH --regions A,B,{name} --plan` says."
        ),
    });
    plan.would.push(format!(
        "Until a master of {name} has shown the token, everything stays as it is; then its masters follow what the regions agree on, and who votes changes."
    ));
    let from = match global.leader() {
        Some((region, master)) => format!("{region}/{master}"),
        None => "the leader of the global group".to_owned(),
    };
    plan.copied.extend(region.masters.iter().map(|m| Copied {
        what: "What the regions have agreed on".to_owned(),
        from: from.clone(),
        to: format!("{name}/{} at {}", m.name, m.address),
        // Nobody has asked that one yet.
        link: Link::Between(None),
        amount: Amount::default(),
    }));
    let mut then = global.known().clone();
    then.insert(name.to_owned(), region.clone());
    global.becomes(&mut plan, &then, Some(name), volumes);
    plan.unknown.push(format!(
        "How long messages take to {name} and back isn't known before its masters run; `mooseng regions list` shows it then."
    ));
    plan.field("agreed_version", json!(reply.version));
    plan.field("region", json!({ "name": name, "number": region.number, "witness": region.witness }));
    Ok(plan)
}

/// To let go of a region. `leader`: what that says, if it answers.
pub fn remove(
    name: &str,
    reply: &ListRegionsReply,
    volumes: &[Volume],
    leader: Option<&StatusReply>,
) -> Result<Plan, Failure> {
    let global = Global::of(reply)?;
    // There is always the root volume.
    if volumes.is_empty() {
        return Err(Failure::unavailable(
            "No master tells which volumes there are, and so whether one has the region isn't known: try again.",
        ));
    }
    let having = volumes.iter().map(|of| Having {
        volume: VolumeId(u16::try_from(of.id).unwrap_or(u16::MAX)),
        home: &of.home,
        regions: of.regions.iter().map(String::as_str).collect(),
    });
    let having: Vec<Having<'_>> = having.collect();
    rules::may_remove(name, global.known(), &having).map_err(|error| by_rule(&error))?;
    let mut plan = Plan::new(format!(
        "The region {name} would be let go of: no volume has it. Its number isn't given again, and its masters can be stopped then."
    ));
    let mut then: BTreeMap<String, Region> = global.known().clone();
    then.remove(name);
    global.becomes(&mut plan, &then, None, volumes);
    left_there(&mut plan, name, volumes, leader);
    plan.field("agreed_version", json!(reply.version));
    plan.field("region", json!({ "name": name }));
    Ok(plan)
}

/// What stays on the disks of a region that is let go of, and who works there.
fn left_there(plan: &mut Plan, name: &str, volumes: &[Volume], leader: Option<&StatusReply>) {
    for of in volumes {
        let letting_go = of.letting_go.iter().filter(|letting| letting.region == name);
        plan.notes.extend(letting_go.map(|letting| {
            format!(
                "{name} has something of volume {} still ({}): that stays on its disks for good, for it hears of nothing then. To have it go first, wait until `mooseng volume info {}` doesn't name {name} any more.",
                volume::name(of),
                letting.stage,
                volume::name(of)
            )
        }));
    }
    let Some(status) = leader else {
        plan.unknown.push(format!(
            "No leader of {name} answers: what its chunkservers have, and who has mounted there, isn't known."
        ));
        return;
    };
    let disks = || status.chunkservers.iter().flat_map(|server| &server.disks);
    let (chunks, bytes) = disks().fold((0_u64, 0_u64), |(chunks, bytes), disk| {
        (chunks.saturating_add(disk.chunks), bytes.saturating_add(disk.bytes_used))
    });
    if chunks > 0 {
        plan.notes.push(format!(
            "Its chunkservers have {chunks} chunks of {}: they stay on their disks, and nobody reads them.",
            output::bytes(bytes)
        ));
    }
    if !status.sessions.is_empty() {
        plan.notes.push(format!(
            "{} sessions are open at its masters: whoever mounts there needs masters of another region, and a certificate of that, from then on.",
            status.sessions.len()
        ));
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{LettingGo, SessionStatus};

    use super::super::group::tests::reply;
    use super::super::servers::tests::{server, status};
    use super::*;

    fn masters(n: u64) -> Vec<MemberToAdd> {
        let master = |id| MemberToAdd {
            id,
            name: format!("m{id}"),
            address: format!("new-{id}:1"),
            zone: format!("z{id}"),
        };
        (1..=n).map(master).collect()
    }

    fn root(regions: &[&str]) -> Volume {
        Volume {
            home: regions[0].into(),
            epoch: 1,
            open: true,
            geo: true,
            automatic: true,
            regions: regions.iter().map(|name| (*name).to_owned()).collect(),
            sync_set: regions.iter().map(|name| (*name).to_owned()).collect(),
            ..Volume::default()
        }
    }

    fn adding<'a>(name: &'a str, masters: &'a [MemberToAdd]) -> Adding<'a> {
        Adding { name, number: 0, witness: masters.len() == 1, masters }
    }

    #[test]
    fn a_region_that_is_taken_in_gets_votes_and_no_data() {
        let three = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        let plan = add(adding("c", &masters(3)), &three, &[root(&["a", "b"])]).unwrap();
        let text = plan.text();
        for part in [
            "The region c (number 4, or a later one",
            "No volume is copied to c by that",
            "What the regions have agreed on would be copied from a/m1 to c/m3 at new-3:1 (round trip not known): how much that is isn't known.",
            "c/m1",
            "Goal: any one region may be lost",
            "Nothing goes below it, neither on the way nor afterwards.",
            "Nothing was changed.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let shape = plan.shape();
        assert_eq!((&shape["agreed_version"], &shape["region"]["number"]), (&json!(7), &json!(4)));
        assert_eq!(shape["copied"].as_array().map(Vec::len), Some(3));
        let lost_before =
            shape["losses"].as_array().unwrap().iter().find(|loss| loss["lost"] == "c").unwrap();
        assert!(
            lost_before["before"].is_null() && lost_before["after"]["then"] == "goes_on",
            "{lost_before}"
        );
    }

    #[test]
    fn a_third_region_lets_volumes_fail_over() {
        let two = reply(&[("a", 3), ("b", 3)]);
        let mut two = two;
        two.fatal = vec!["a".into()];
        let plan = add(adding("w", &masters(1)), &two, &[root(&["a", "b"])]).unwrap();
        let text = plan.text();
        for part in [
            "w would be a witness, with a voice and no data.",
            "If a (volume /) were lost, before and during: Nothing acknowledged would be lost: b has it. The volume would wait for a",
            "If a (volume /) were lost, after: Nothing acknowledged would be lost: b has it. b would take over by itself.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        // It is so before, and until it is mended.
        let mended =
            "That isn't so before and during, and is afterwards: no majority would be left without a.";
        assert!(text.contains(mended), "{text}");
        assert_eq!(plan.goes_below(), Some(false));
    }

    #[test]
    fn what_the_masters_would_refuse_is_refused() {
        let three = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        let code = |asked: Adding<'_>| {
            let failure = add(asked, &three, &[root(&["a", "b"])]).unwrap_err();
            (failure.exit_code(), failure.to_string())
        };
        let new = masters(3);
        let (exit, why) = code(Adding { number: 2, ..adding("c", &new) });
        assert!(exit == 1 && why.contains("aren't given twice"), "{why}");
        let (exit, why) = code(adding("a", &new));
        assert!(exit == 1 && why.contains("another one"), "{why}");
        let there: Vec<MemberToAdd> = three.regions[0]
            .masters
            .iter()
            .map(|m| MemberToAdd {
                id: m.id,
                name: m.name.clone(),
                address: m.address.clone(),
                zone: m.zone.clone(),
            })
            .collect();
        let (exit, why) = code(adding("a", &there));
        assert!(exit == 1 && why.contains("has joined already"), "{why}");
        let mut awaited = three.clone();
        awaited.regions[0].lease_age_ms = None;
        awaited.regions[0].masters.iter_mut().for_each(|m| m.voter = false);
        let again = add(adding("a", &there), &awaited, &[root(&["b"])]).unwrap();
        assert!(again.text().contains("another token would be printed"), "{}", again.text());
    }

    #[test]
    fn a_region_is_let_go_of_where_no_volume_has_it() {
        let four = reply(&[("a", 3), ("b", 3), ("c", 3), ("d", 3)]);
        let mut volume = root(&["a", "b"]);
        volume.letting_go = vec![LettingGo { region: "d".into(), stage: "its records go".into() }];
        let volumes = [volume];
        let code =
            |name: &str, volumes: &[Volume]| remove(name, &four, volumes, None).unwrap_err().exit_code();
        assert_eq!((code("x", &volumes), code("b", &volumes), code("d", &[])), (3, 1, 5));
        let in_use = remove("a", &four, &volumes, None).unwrap_err().to_string();
        assert!(in_use.contains("volume 0 has it") && in_use.contains("move-home"), "{in_use}");
        let mut there = status("d", vec![server("cs1", "z1", 3, 5)]);
        there.sessions = vec![SessionStatus::default(); 2];
        let plan = remove("d", &four, &volumes, Some(&there)).unwrap();
        let text = plan.text();
        for part in [
            "The region d would be let go of: no volume has it.",
            "Nothing would be copied.",
            "d has something of volume / still (its records go): that stays on its disks for good",
            "Its chunkservers have 48 chunks of 3.0 GiB",
            "2 sessions are open",
            "after: a/m1+m2+m3, b/m1+m2+m3, c/m1+m2+m3 (5 of 9 are needed).",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.goes_below(), Some(false), "{text}");
        let silent = remove("d", &four, &volumes, None).unwrap();
        assert!(silent.shape()["not_known"][0].as_str().unwrap().contains("No leader of d answers"));
        let three = reply(&[("a", 3), ("b", 3), ("w", 1)]);
        let failure = remove("w", &three, &volumes, None).unwrap_err();
        assert!(failure.exit_code() == 1 && failure.to_string().contains("couldn't lose"), "{failure}");
    }
}
