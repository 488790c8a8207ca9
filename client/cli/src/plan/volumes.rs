//! What it would mean to make a volume, or to delete one.

use std::collections::BTreeSet;

use mooseng_global::{LAG_MAX_DEFAULT, voters};
use mooseng_wire::admin::{
    CreateVolumeReply, DeleteVolumeReply, LogPlace, Replica, StatusReply, TrashStatus, Volume,
};
use serde_json::{Value, json};

use super::group::Global;
use super::links::Links;
use super::{Count, Goal, Loss, Meaning, Plan, Stages, servers, way};
use crate::exit::Failure;
use crate::outlook;
use crate::output;
use crate::status::Wide;
use crate::volume;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Creating<'a> {
    /// The directory, by its path from the root of the filesystem.
    pub path: &'a str,
    /// The volume in which it lies.
    pub parent: u32,
    /// The home.
    pub home: &'a str,
    /// When fsync returns: with what is in each region of the sync set.
    pub geo: bool,
    /// The regions that are to have it; none: those that have the parent, and the home.
    pub regions: &'a [String],
    /// The volume that is joined there already.
    pub joined: Option<u32>,
}

/// To make a volume, which the masters have said could be made.
pub fn create(
    asked: Creating<'_>,
    checked: &CreateVolumeReply,
    wide: &Wide,
    links: &Links,
) -> Result<Plan, Failure> {
    let Creating { path, home, .. } = asked;
    let global = Global::of(&wide.regions)?;
    let mut regions: BTreeSet<String> = asked.regions.iter().cloned().collect();
    if regions.is_empty() {
        let parent = wide.volumes.iter().find(|of| of.id == asked.parent);
        regions = parent.into_iter().flat_map(|of| of.regions.iter().cloned()).collect();
        regions.insert(home.to_owned());
    }
    let others: Vec<&str> = regions.iter().map(String::as_str).filter(|name| *name != home).collect();
    let made = Volume {
        home: home.to_owned(),
        epoch: 1,
        open: true,
        geo: asked.geo,
        regions: regions.iter().cloned().collect(),
        sync_set: vec![home.to_owned()],
        automatic: !others.is_empty() && voters::check(global.known()).is_ok(),
        lag_max_ms: u64::try_from(LAG_MAX_DEFAULT.as_millis()).unwrap_or(u64::MAX),
        // It has no number yet, and is named by its path.
        path: path.to_owned(),
        ..Volume::default()
    };
    // Each region that has it follows, and with `geo` is in the sync set, once it has begun; it begins empty.
    let follows = |name: &&str| Replica {
        region: (*name).to_owned(),
        epoch: 1,
        complete: Some(LogPlace { epoch: 1, version: 0 }),
        ..Replica::default()
    };
    let after = Volume {
        sync_set: if asked.geo { made.regions.clone() } else { made.sync_set.clone() },
        replicas: others.iter().map(follows).collect(),
        ..made.clone()
    };
    let durability = if asked.geo { "geo" } else { "region" };
    let mut plan = Plan::new(match asked.joined {
        Some(id) => {
            format!("Volume {id} is joined at {path} already, as it is asked for: nothing would change.")
        }
        None => format!(
            "A volume would be made and joined at {path}: its home is {home}, its durability {durability}, and {} would have it.",
            made.regions.join(", ")
        ),
    });
    plan.would.push(format!(
        "It begins empty. Mounts cross into it at {path}; between it and the volume above, mv copies (EXDEV), and the directory can be neither removed nor renamed."
    ));
    plan.would.extend(others.iter().map(|name| {
        let known = links.between(home, name);
        let way = if known.is_some() { way(known) } else { " (round trip not known)".to_owned() };
        format!("What is written in it goes from {home} to {name}{way} from then on.")
    }));
    let numbers = Stages::new(0, 1, made.regions.len());
    plan.counts.push(Count::number("regions_that_have_it", "Regions that have it whole", &numbers));
    losses(&mut plan, wide, &Stages::new(None, Some(&made), Some(&after)));
    plan.goals.push(held(&made, &after, &others));
    plan.goals.push(room(&after, wide));
    plan.field("agreed_version", json!(checked.version));
    plan.field("volume", Value::Null);
    plan.field("mounts_enter_it", json!(true));
    let mut shape = volume::shape(&after);
    shape["id"] = json!(asked.joined);
    shape["path"] = json!(path);
    shape["parent"] = json!(asked.parent);
    plan.field("after", shape);
    plan.field(
        "copied_to",
        others
            .iter()
            .map(|name| json!({ "region": name, "round_trip_us": links.between(home, name) }))
            .collect(),
    );
    Ok(plan)
}

/// What fsync answers for.
fn held(made: &Volume, after: &Volume, others: &[&str]) -> Goal {
    let home = &made.home;
    if !made.geo && others.is_empty() {
        return Goal::new(format!("what was flushed is safe in {home}, and in no other region"));
    }
    if !made.geo {
        return Goal::new(format!(
            "what was flushed is safe in {home}; as long as another region follows, of what none has nothing is older than {}",
            outlook::seconds(after.lag_max_ms)
        ));
    }
    let mut goal = Goal::new(format!("what was flushed is in {}", after.sync_set.join(", ")));
    goal.below.push(format!(
        "From when it is made until {} is in its sync set, some seconds when all is well, fsync answers for what {home} alone has: write there what matters once `mooseng volume info {}` shows it.",
        others.join(" or "),
        made.path
    ));
    goal
}

/// Whether chunkservers are there for it in each of its regions.
fn room(after: &Volume, wide: &Wide) -> Goal {
    let mut goal = Goal::new("each of its regions has chunkservers for all copies of a new chunk");
    for region in &after.regions {
        let status = leader(wide, region);
        // What the default class is each region's own configuration says.
        let class =
            status.map(servers::default_of).unwrap_or_else(|| mooseng_region::class::Class::by_default(1, 1));
        servers::room(&mut goal, region, status, &class);
    }
    goal
}

fn leader<'a>(wide: &'a Wide, region: &str) -> Option<&'a StatusReply> {
    wide.leaders.iter().find(|(name, _)| name == region).map(|(_, status)| status)
}

/// What the loss of each region means to a volume, or to what becomes of it.
fn losses(plan: &mut Plan, wide: &Wide, stages: &Stages<Option<&Volume>>) {
    for region in &wide.regions.regions {
        let fatal = wide.regions.fatal.contains(&region.name);
        let means = stages.map(|of| of.map(|of| Meaning::of(&outlook::lost(of, &region.name, fatal))));
        plan.losses.push(Loss { lost: region.name.clone(), means });
    }
}

/// What is known of a volume that is to be deleted.
#[derive(Clone, Copy, Debug)]
pub struct Deleting<'a> {
    /// What its trash holds, if its home told.
    pub trash: Option<&'a TrashStatus>,
    /// What failovers of it have lost, and regions have put aside, may go with it.
    pub loses_put_aside: bool,
}

/// To delete a volume, which the masters have said could be deleted: it is empty.
pub fn delete(facts: Deleting<'_>, checked: &DeleteVolumeReply, wide: &Wide) -> Result<Plan, Failure> {
    let DeleteVolumeReply { volume: id, path, version } = checked;
    let known = wide.volumes.iter().find(|of| of.id == *id);
    let mut plan = Plan::new(format!(
        "Volume {id}, at {path}, would be deleted: {path} would be an ordinary directory again, and empty. It can't be had back."
    ));
    trash(&mut plan, facts.trash);
    match known {
        Some(of) => {
            plan.would.push(format!(
                "{} have it: what each stores of it goes once its deleted files would have, its records first, then copies of chunks. A region that isn't heard of lets go once it is back.",
                of.regions.join(", ")
            ));
            let all = of.regions.len();
            plan.counts.push(Count::number(
                "regions_that_have_it",
                "Regions that have it",
                &Stages::new(all, all, 0),
            ));
            losses(&mut plan, wide, &Stages::new(Some(of), Some(of), None));
            mounts(&mut plan, of, wide);
        }
        None => {
            plan.unknown.push(format!("Nobody tells which regions have volume {id}: it may be gone already."))
        }
    }
    // The masters have looked.
    let mut goal = Goal::new("no file that has a name goes");
    if facts.loses_put_aside {
        goal.below.push(
            "What failovers of it have lost and regions have put aside, or will once they are back, goes with it, as --although-it-loses-what-was-put-aside says: `mooseng volume losses` names it."
                .to_owned(),
        );
    }
    plan.goals.push(goal);
    plan.field("agreed_version", json!(version));
    plan.field("volume", json!(id));
    plan.field("path", json!(path));
    Ok(plan)
}

fn trash(plan: &mut Plan, trash: Option<&TrashStatus>) {
    plan.field("trash", json!(trash.map(|trash| json!({ "files": trash.files, "bytes": trash.bytes }))));
    match trash {
        None => {
            plan.unknown.push("What its trash holds its home doesn't tell: that goes with it.".to_owned())
        }
        Some(trash) if trash.files == 0 => plan.would.push("Nothing is in its trash.".to_owned()),
        Some(trash) => plan.would.push(format!(
            "{} deleted files with {} are in its trash: they can't be restored then.",
            trash.files,
            output::bytes(trash.bytes)
        )),
    }
}

/// Who has it mounted.
fn mounts(plan: &mut Plan, of: &Volume, wide: &Wide) {
    let Some(home) = leader(wide, &of.home) else {
        plan.unknown
            .push(format!("No leader of {} answers: which mounts have entered it isn't known.", of.home));
        return;
    };
    let hosts: BTreeSet<&str> =
        home.sessions.iter().filter(|s| s.volume == of.id).map(|s| s.host.as_str()).collect();
    if !hosts.is_empty() {
        plan.notes.push(format!(
            "Mounts of these hosts have entered it, and see the ordinary directory afterwards: {}.",
            hosts.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{ListRegionsReply, SessionStatus};

    use super::super::group::tests::reply;
    use super::super::servers::tests::{server, status};
    use super::*;

    fn region(name: &str) -> (String, StatusReply) {
        let servers = vec![server("cs1", "z1", 1, 9), server("cs2", "z2", 1, 9)];
        (name.to_owned(), status(name, servers))
    }

    fn wide(regions: ListRegionsReply) -> Wide {
        let root = Volume {
            home: "a".into(),
            epoch: 3,
            open: true,
            automatic: true,
            regions: vec!["a".into(), "b".into()],
            sync_set: vec!["a".into()],
            ..Volume::default()
        };
        let team = Volume { id: 3, path: "/team".into(), home: "b".into(), ..root.clone() };
        Wide { regions, volumes: vec![root, team], leaders: vec![region("a"), region("b")] }
    }

    fn creating(path: &str, geo: bool) -> Creating<'_> {
        Creating { path, parent: 0, home: "b", geo, regions: &[], joined: None }
    }

    #[test]
    fn a_volume_that_is_made_is_in_its_home_alone_at_first() {
        let wide = wide(reply(&[("a", 3), ("b", 3), ("w", 1)]));
        let links = Links::of([&wide.regions]);
        let checked = CreateVolumeReply { version: 9, volume: None };
        let plan = create(creating("/v", true), &checked, &wide, &links).unwrap();
        let text = plan.text();
        for part in [
            "A volume would be made and joined at /v: its home is b, its durability geo, and a, b would have it.",
            "What is written in it goes from b to a (round trip 60.0 ms) from then on.",
            "Nothing would be copied.",
            "Regions that have it whole before: 0; during: 1; after: 2.",
            "If b were lost, during: What other regions lack would be lost",
            "If b were lost, after: Nothing acknowledged would be lost: a has it. a would take over by itself.",
            "Goal: what was flushed is in a, b. It would be missed: From when it is made until a is in its sync set",
            "Goal: each of its regions has chunkservers for all copies of a new chunk. Nothing goes below it",
            "Nothing was changed.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let shape = plan.shape();
        assert_eq!((&shape["agreed_version"], &shape["volume"]), (&json!(9), &Value::Null));
        assert_eq!((&shape["after"]["path"], &shape["after"]["id"]), (&json!("/v"), &Value::Null));
        assert_eq!(shape["copied_to"][0]["round_trip_us"], 60_000);
        assert!(shape["losses"][0]["before"].is_null());
    }

    #[test]
    fn a_region_volume_says_what_it_bounds_and_one_that_is_there_that_it_is() {
        let mut wide = wide(reply(&[("a", 3), ("b", 3)]));
        wide.leaders.pop();
        let checked = CreateVolumeReply { version: 9, volume: None };
        let plan = create(creating("/v", false), &checked, &wide, &Links::default()).unwrap();
        let text = plan.text();
        for part in [
            "from b to a (round trip not known)",
            "nothing is older than 60.000 s. Nothing goes below it",
            // Two regions can't agree on a failover: it is named by its path, as long as it has no number.
            "`mooseng volume move-home /v --to a --force`",
            "No leader of b answers, so that nobody knows what its chunkservers have room for.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.goes_below(), None);
        // Nobody follows a home that has it alone: nothing bounds what no other region has.
        let own = ["b".to_owned()];
        let alone = Creating { regions: &own, ..creating("/v", false) };
        let text = create(alone, &checked, &wide, &Links::default()).unwrap().text();
        assert!(
            text.contains("safe in b, and in no other region.") && !text.contains("nothing is older"),
            "{text}"
        );
        let there = Creating { joined: Some(4), ..creating("/v", false) };
        let plan = create(there, &checked, &wide, &Links::default()).unwrap();
        assert!(plan.text().starts_with("Volume 4 is joined at /v already"), "{}", plan.text());
    }

    #[test]
    fn what_goes_with_a_volume_that_is_deleted_is_told() {
        let mut wide = wide(reply(&[("a", 3), ("b", 3), ("w", 1)]));
        wide.leaders[1].1.sessions =
            vec![SessionStatus { volume: 3, host: "host-7".into(), ..SessionStatus::default() }];
        let checked = DeleteVolumeReply { version: 9, volume: 3, path: "/team".into() };
        let trash = TrashStatus { files: 7, bytes: 2_048, ..TrashStatus::default() };
        let plan = delete(Deleting { trash: Some(&trash), loses_put_aside: false }, &checked, &wide).unwrap();
        let text = plan.text();
        for part in [
            "Volume 3, at /team, would be deleted",
            "7 deleted files with 2.0 KiB are in its trash: they can't be restored then.",
            "a, b have it: what each stores of it goes",
            "Regions that have it before and during: 2; after: 0.",
            "If w were lost, before and during: Nothing acknowledged would be lost.",
            "have entered it, and see the ordinary directory afterwards: host-7.",
            "Goal: no file that has a name goes. Nothing goes below it",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let shape = plan.shape();
        assert_eq!(
            (&shape["volume"], &shape["path"], &shape["trash"]["files"]),
            (&json!(3), &json!("/team"), &json!(7))
        );
        let aside = delete(Deleting { trash: None, loses_put_aside: true }, &checked, &wide).unwrap();
        assert_eq!(aside.goes_below(), Some(true));
        assert!(aside.text().contains("What its trash holds its home doesn't tell"), "{}", aside.text());
        wide.volumes.clear();
        let gone = delete(Deleting { trash: None, loses_put_aside: false }, &checked, &wide).unwrap();
        assert!(gone.text().contains("it may be gone already"), "{}", gone.text());
    }
}
