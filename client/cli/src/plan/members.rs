//! What a change of a region's masters would mean: to its group, and to the one between regions, whose voters are chosen among all masters.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_global::{MasterAt, rules};
use mooseng_region::members::{Member, Senseless, answers_as, to_add, voters_after};
use mooseng_wire::admin::{ChangeMembersRequest, ListRegionsReply, MasterStatus, StatusReply, Volume};
use serde_json::json;

use super::group::{self, Global, Seat};
use super::{Amount, Copied, Count, Goal, Link, Plan, Stages, refused};
use crate::admin::Answered;
use crate::exit::{Failure, Kind};
use crate::verdict;

/// What is known of the other regions.
#[derive(Clone, Copy, Debug)]
pub enum Beyond<'a> {
    /// There are none.
    Alone,
    /// This.
    Known(&'a ListRegionsReply, &'a [Volume]),
    /// Nobody tells, for that reason.
    Untold(&'a str),
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The region's masters, by themselves.
    pub answered: &'a Answered,
    /// What is asked for.
    pub request: &'a ChangeMembersRequest,
    /// What those say that are to be added, by their ids, or why they don't.
    pub new: &'a BTreeMap<u64, Result<StatusReply, String>>,
    /// What is known of the other regions.
    pub beyond: Beyond<'a>,
}

/// To change the masters of a region.
pub fn change(facts: Facts<'_>) -> Result<Plan, Failure> {
    let status = &facts.answered.reply;
    if !verdict::has_leader(status) {
        return Err(Failure::unavailable(
            "The region has no leader with a majority: its members can't be changed now, and no plan be made of it.",
        ));
    }
    let known: BTreeMap<u64, &MasterStatus> = status.masters.iter().map(|m| (m.id, m)).collect();
    let before: BTreeSet<u64> = status.masters.iter().filter(|m| m.voter).map(|m| m.id).collect();
    let after = voters(&facts, &known, &before)?;
    let region = status.region.as_str();
    let mut plan = Plan::new(would(&facts, &known, region));
    let leader = status.masters.iter().find(|m| m.leader);
    for add in facts.request.add.iter().filter(|add| !known.contains_key(&add.id)) {
        plan.copied.push(Copied {
            what: format!("The whole metadata store of {region}"),
            from: leader.map_or_else(|| "the leader".to_owned(), |m| format!("{} at {}", m.name, m.address)),
            to: format!("{} at {}", add.name, add.address),
            link: Link::Within(region.to_owned()),
            amount: Amount::default(),
        });
    }
    let members = known.len();
    // An id that is named twice goes once.
    let removed: BTreeSet<u64> = facts.request.remove.iter().copied().collect();
    let left = known.keys().filter(|id| !removed.contains(id)).count();
    let copies = Stages::new(members, members, left + plan.copied.len());
    plan.counts.push(Count::number(
        "metadata_copies",
        format!("Copies of the metadata of {region}"),
        &copies,
    ));
    group::of_region(&mut plan, region, &seats(&facts, &known), &before, &after);
    notes(&mut plan, &facts, &known, leader);
    beyond(&mut plan, &facts, &known, region);
    plan.field("voters", json!({ "before": before, "after": after }));
    Ok(plan)
}

/// Who votes afterwards; a refusal where that makes no sense, or where somebody who is to be added isn't there.
fn voters(
    facts: &Facts<'_>,
    known: &BTreeMap<u64, &MasterStatus>,
    before: &BTreeSet<u64>,
) -> Result<BTreeSet<u64>, Failure> {
    let request = facts.request;
    let member = |name: &str, address: &str, zone: &str| Member {
        name: name.to_owned(),
        address: address.to_owned(),
        zone: zone.to_owned(),
    };
    let there = known.iter().map(|(id, m)| (*id, member(&m.name, &m.address, &m.zone))).collect();
    let add = to_add(request.add.iter().map(|m| (m.id, member(&m.name, &m.address, &m.zone))));
    let add = add.map_err(|why| refused(Kind::Failed, why))?;
    let remove = request.remove.iter().copied().collect();
    let after = voters_after(&there, before, &add, &remove).map_err(|why| {
        let kind = if matches!(why, Senseless::NoMember(_)) { Kind::NotFound } else { Kind::Failed };
        refused(kind, why)
    })?;
    for (id, said) in facts.new.iter().filter(|(id, _)| !known.contains_key(id)) {
        let address = add.get(id).map_or("", |m| m.address.as_str());
        let no = |why: &str| refused(Kind::Failed, format!("master {id} at {address} can't be added: {why}"));
        match said {
            Err(why) => return Err(no(why)),
            Ok(reply) if reply.region != facts.answered.reply.region => {
                return Err(no(&format!("a master of the region {} answers there", reply.region)));
            }
            Ok(reply) => answers_as(*id, reply.answers).map_err(|why| no(&why.to_string()))?,
        }
    }
    Ok(after)
}

fn would(facts: &Facts<'_>, known: &BTreeMap<u64, &MasterStatus>, region: &str) -> String {
    let request = facts.request;
    let new = request.add.iter().filter(|m| !known.contains_key(&m.id));
    let added: Vec<String> =
        new.map(|m| format!("{} (id {}, zone {:?}) at {}", m.name, m.id, m.zone, m.address)).collect();
    let removed: BTreeSet<u64> = request.remove.iter().copied().collect();
    let gone: Vec<String> = removed
        .iter()
        .filter_map(|id| known.get(id))
        .map(|m| format!("{} (id {}) at {}", m.name, m.id, m.address))
        .collect();
    match (added.is_empty(), gone.is_empty()) {
        (true, true) => format!("The group of {region} is like that already: nothing would change."),
        (false, true) => format!(
            "{} would be taken into the group of {region}: without a vote until what was committed is there, then with one.",
            added.join(", ")
        ),
        (true, false) => format!("{} would be taken out of the group of {region}.", gone.join(", ")),
        (false, false) => format!(
            "{} would be taken into the group of {region}, and {} out of it.",
            added.join(", "),
            gone.join(", ")
        ),
    }
}

fn seats(facts: &Facts<'_>, known: &BTreeMap<u64, &MasterStatus>) -> BTreeMap<u64, Seat> {
    let silent = |address: &str| facts.answered.silent.iter().any(|(other, _)| other == address);
    let there = known.values().map(|m| {
        (m.id, Seat { name: m.name.clone(), zone: m.zone.clone(), up: m.reachable && !silent(&m.address) })
    });
    let new = facts.request.add.iter().filter(|m| !known.contains_key(&m.id));
    let new = new.map(|m| (m.id, Seat { name: m.name.clone(), zone: m.zone.clone(), up: true }));
    there.chain(new).collect()
}

fn notes(
    plan: &mut Plan,
    facts: &Facts<'_>,
    known: &BTreeMap<u64, &MasterStatus>,
    leader: Option<&MasterStatus>,
) {
    let remove = &facts.request.remove;
    if let Some(leader) = leader.filter(|leader| remove.contains(&leader.id)) {
        plan.notes.push(format!(
            "{} leads: changes wait until another master is elected in its place.",
            leader.name
        ));
    }
    if remove.iter().any(|id| known.contains_key(id)) {
        plan.notes.push(
            "Who is taken out runs on outside of the group, until its process is stopped; its id isn't given again. Where mounts and chunkservers name its address under `masters`, take it out there."
                .to_owned(),
        );
    }
    for m in &facts.request.add {
        // Releases that don't say it are asked with the change.
        let said = facts.new.get(&m.id).filter(|_| !known.contains_key(&m.id));
        if said.is_some_and(|said| said.as_ref().is_ok_and(|reply| reply.answers == 0)) {
            plan.unknown.push(format!(
                "Whether the master at {} has the id {} is asked only when it is added.",
                m.address, m.id
            ));
        }
    }
}

/// Nobody can say what becomes of the group between regions, and so not that nothing goes below its goal either.
fn untold(plan: &mut Plan, why: String) {
    let mut goal = Goal::new(group::REGIONS_GO_ON);
    goal.unknown.push(why);
    plan.goals.push(goal);
}

/// The group between regions: the region's leader tells it of its masters.
fn beyond(plan: &mut Plan, facts: &Facts<'_>, known: &BTreeMap<u64, &MasterStatus>, region: &str) {
    let (reply, volumes) = match facts.beyond {
        Beyond::Alone => return,
        Beyond::Known(reply, volumes) => (reply, volumes),
        Beyond::Untold(why) => {
            untold(plan, format!("What it means to the group between regions isn't known: {why}"));
            return;
        }
    };
    let global = match Global::of(reply) {
        Ok(global) => global,
        Err(failure) => {
            untold(plan, failure.to_string());
            return;
        }
    };
    let mut then = global.known().clone();
    let Some(own) = then.get_mut(region) else {
        let why = "what it means to the group between them isn't known.";
        untold(plan, format!("{region} isn't among the regions yet: {why}"));
        return;
    };
    let at = |id: u64, name: &str, address: &str, zone: &str| MasterAt {
        id,
        name: name.to_owned(),
        address: address.to_owned(),
        zone: zone.to_owned(),
    };
    let stay = known.values().filter(|m| !facts.request.remove.contains(&m.id));
    let new = facts.request.add.iter().filter(|m| !known.contains_key(&m.id));
    own.masters = stay
        .map(|m| at(m.id, &m.name, &m.address, &m.zone))
        .chain(new.map(|m| at(m.id, &m.name, &m.address, &m.zone)))
        .collect();
    own.masters.sort_by_key(|m| m.id);
    let now = own.clone();
    global.becomes(plan, &then, None, volumes);
    let mut others = then;
    others.remove(region);
    if let Err(error) = rules::fits(region, &now, &others) {
        let mut goal = Goal::new(format!("{region} keeps its lease"));
        goal.below
            .push(format!("The others wouldn't take note of such masters, nor renew its lease: {error}."));
        plan.goals.push(goal);
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::MemberToAdd;

    use super::super::group::tests::reply;
    use super::*;

    fn region(masters: &[(u64, bool)]) -> Answered {
        let master = |(id, reachable): &(u64, bool)| MasterStatus {
            id: *id,
            name: format!("m{id}"),
            address: format!("a-{id}:1"),
            zone: format!("z{id}"),
            voter: true,
            leader: *id == 1,
            reachable: *reachable,
            ..MasterStatus::default()
        };
        let reply = StatusReply {
            region: "a".into(),
            leader: 1,
            masters: masters.iter().map(master).collect(),
            ..StatusReply::default()
        };
        Answered { reply, silent: vec![] }
    }

    fn adding(id: u64) -> ChangeMembersRequest {
        let add =
            MemberToAdd { id, name: format!("m{id}"), address: format!("a-{id}:1"), zone: format!("z{id}") };
        ChangeMembersRequest { add: vec![add], remove: vec![] }
    }

    fn removing(ids: &[u64]) -> ChangeMembersRequest {
        ChangeMembersRequest { add: vec![], remove: ids.to_vec() }
    }

    fn planned(
        answered: &Answered,
        request: &ChangeMembersRequest,
        said: Result<StatusReply, String>,
        beyond: Beyond<'_>,
    ) -> Result<Plan, Failure> {
        let new = request.add.iter().map(|m| (m.id, said.clone())).collect();
        change(Facts { answered, request, new: &new, beyond })
    }

    fn there() -> Result<StatusReply, String> {
        Ok(StatusReply { region: "a".into(), answers: 4, ..StatusReply::default() })
    }

    #[test]
    fn a_master_that_is_added_gets_the_store_first() {
        let three = region(&[(1, true), (2, true), (3, true)]);
        let plan = planned(&three, &adding(4), there(), Beyond::Alone).unwrap();
        let text = plan.text();
        for part in [
            "m4 (id 4, zone \"z4\") at a-4:1 would be taken into the group of a",
            "The whole metadata store of a would be copied from m1 at a-1:1 to m4 at a-4:1 (within a): how much that is isn't known.",
            "Copies of the metadata of a before and during: 3; after: 4.",
            "after: m1, m2, m3, m4 (3 of 4 are needed).",
            "If any one master of a were lost, before, during and after: a would go on.",
            "Goal: a goes on without any one of its masters. Nothing goes below it",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.shape()["voters"], json!({ "before": [1, 2, 3], "after": [1, 2, 3, 4] }));
        let unsaid = "Whether the master at a-4:1 has the id 4 is asked only when it is added.";
        assert!(!text.contains(unsaid), "{text}");
        let earlier = Ok(StatusReply { answers: 0, ..there().unwrap() });
        let text = planned(&three, &adding(4), earlier, Beyond::Alone).unwrap().text();
        assert!(text.contains(unsaid), "{text}");
        let done = planned(&region(&[(1, true), (4, true)]), &adding(4), there(), Beyond::Alone).unwrap();
        assert!(done.text().contains("is like that already"), "{}", done.text());
    }

    #[test]
    fn taking_one_of_three_out_leaves_none_to_lose() {
        let three = region(&[(1, true), (2, true), (3, true)]);
        let plan = planned(&three, &removing(&[1]), there(), Beyond::Alone).unwrap();
        let text = plan.text();
        for part in [
            "m1 (id 1) at a-1:1 would be taken out of the group of a.",
            "Nothing would be copied.",
            "m1 leads: changes wait until another master is elected",
            "runs on outside of the group",
            "It would be missed: That isn't so during and after",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.goes_below(), Some(true));
        // An id that is named more than once goes once.
        let again = planned(&three, &removing(&[1, 1, 1, 1]), there(), Beyond::Alone).unwrap();
        assert_eq!(again.shape(), plan.shape());
        // One that is lost anyway goes, so that another one can take its place.
        let lost = region(&[(1, true), (2, false), (3, true)]);
        let text = planned(&lost, &removing(&[2]), there(), Beyond::Alone).unwrap().text();
        assert!(text.contains("That isn't so before, during and after"), "{text}");
        // And who is asked and doesn't answer is down, whatever the leader thinks of it.
        let mut silent = region(&[(1, true), (2, true), (3, true)]);
        silent.silent.push(("a-3:1".into(), "no route".into()));
        let text = planned(&silent, &removing(&[2]), there(), Beyond::Alone).unwrap().text();
        assert!(text.contains("a waits anyway"), "{text}");
    }

    #[test]
    fn the_group_between_regions_is_told_of_it() {
        let (three, regions) =
            (region(&[(1, true), (2, true), (3, true)]), reply(&[("a", 3), ("b", 3), ("w", 1)]));
        let beyond = Beyond::Known(&regions, &[]);
        let plan = planned(&three, &removing(&[2]), there(), beyond).unwrap();
        let text = plan.text();
        assert!(text.contains("after: a/m1+m3, b/m1+m2, w/m1 (3 of 5 are needed)."), "{text}");
        assert!(text.contains("Goal: any one region may be lost"), "{text}");
        // Down to one master, the others have one vote each, too.
        let text = planned(&three, &removing(&[2, 3]), there(), beyond).unwrap().text();
        assert!(text.contains("after: a/m1, b/m1, w/m1 (2 of 3 are needed)."), "{text}");
        let untold = planned(&three, &removing(&[2]), there(), Beyond::Untold("No master answers.")).unwrap();
        assert!(untold.text().contains("isn't known: No master answers."), "{}", untold.text());
        // What isn't known is no promise: of five one may go, as far as the region is concerned.
        let five = region(&[(1, true), (2, true), (3, true), (4, true), (5, true)]);
        let untold = planned(&five, &removing(&[2]), there(), Beyond::Untold("No master answers.")).unwrap();
        assert_eq!(untold.goes_below(), None, "{}", untold.text());
        let mut waits = regions.clone();
        waits.quorum = false;
        let untold = planned(&five, &removing(&[2]), there(), Beyond::Known(&waits, &[])).unwrap();
        assert_eq!(untold.goes_below(), None, "{}", untold.text());
        // An address of another region's: the lease wouldn't be renewed.
        let mut stolen = adding(4);
        stolen.add[0].address = "b-1:1".into();
        let plan = planned(&three, &stolen, there(), beyond).unwrap();
        assert!(plan.text().contains("nor renew its lease"), "{}", plan.text());
        assert_eq!(plan.goes_below(), Some(true));
    }

    #[test]
    fn what_the_masters_would_refuse_is_refused() {
        let three = region(&[(1, true), (2, true), (3, true)]);
        let refused = |request: &ChangeMembersRequest, said| {
            let failure = planned(&three, request, said, Beyond::Alone).unwrap_err();
            (failure.exit_code(), failure.to_string())
        };
        assert_eq!(refused(&removing(&[9]), there()).0, 3);
        assert_eq!(refused(&removing(&[1, 2, 3]), there()).0, 1);
        let (code, why) = refused(&adding(4), Err("no route to it".into()));
        assert!(code == 1 && why.contains("master 4 at a-4:1 can't be added: no route to it."), "{why}");
        let other = Ok(StatusReply { region: "b".into(), ..StatusReply::default() });
        assert!(refused(&adding(4), other).1.contains("a master of the region b answers there"));
        let mut taken = adding(4);
        taken.add[0].name = "m2".into();
        let (code, why) = refused(&taken, there());
        assert!(code == 1 && why.contains("master 2 is m2 at a-2:1 already"), "{why}");
        // An id that somebody else has, that nobody can have, and that the master there doesn't have.
        let mut given = adding(2);
        (given.add[0].name, given.add[0].address) = ("m9".into(), "a-9:1".into());
        let (code, why) = refused(&given, there());
        assert!(code == 1 && why.contains("there is a master 2 already, m2 at a-2:1"), "{why}");
        let (code, why) = refused(&adding(0), there());
        assert!(code == 1 && why.contains("needs an id from 1"), "{why}");
        let (code, why) = refused(&adding(5), there());
        let says = "master 5 at a-5:1 can't be added: the master there has the id 4, and not 5.";
        assert!(code == 1 && why.contains(says), "{why}");
        let mut leaderless = region(&[(1, true)]);
        leaderless.reply.leader = 0;
        let failure = planned(&leaderless, &adding(4), there(), Beyond::Alone).unwrap_err();
        assert_eq!(failure.exit_code(), 5);
    }
}
