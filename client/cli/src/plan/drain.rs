//! What emptying a chunkserver would mean.

use mooseng_region::class::{self, Class, DEFAULT, Labels};
use mooseng_region::placement::{Candidate, may_drain};
use mooseng_wire::admin::{ChunkserverStatus, StatusReply, StorageClass};
use serde_json::json;

use super::{Amount, Copied, Count, Goal, Link, Loss, Meaning, Plan, Stages, refused, servers};
use crate::exit::{Failure, Kind};
use crate::output;
use crate::verdict;

/// To empty a chunkserver. `classes`: those that there are, if anybody told.
pub fn of(status: &StatusReply, name: &str, classes: Option<&[StorageClass]>) -> Result<Plan, Failure> {
    if !verdict::has_leader(status) {
        return Err(Failure::unavailable(
            "The region has no leader with a majority: nothing can be drained now, and no plan be made of it.",
        ));
    }
    let unknown = || {
        refused(
            Kind::NotFound,
            format!("no chunkserver called {name:?} is known; `mooseng status` shows them"),
        )
    };
    let server = status.chunkservers.iter().find(|server| server.name == name).ok_or_else(unknown)?;
    let before = servers::candidates(status);
    let least = usize::try_from(status.min_copies).unwrap_or(usize::MAX);
    may_drain(&before, name, least).map_err(|why| refused(Kind::Failed, why))?;
    let drained = |one: &Candidate| Candidate { draining: one.draining || one.name == name, ..one.clone() };
    let after: Vec<Candidate> = before.iter().map(drained).collect();
    let mut plan = Plan::new(would(server, &status.region));
    let used = server.disks.iter().fold(0_u64, |sum, disk| sum.saturating_add(disk.bytes_used));
    copied(&mut plan, status, server, used, &after);
    let facts = Facts { status, server, before: &before, after: &after };
    let classes = concerned(status, classes, &mut plan);
    for class in &classes {
        facts.class(&mut plan, class, used);
    }
    facts.any_one(&mut plan, &classes);
    facts.zones(&mut plan, &classes);
    if status.chunks_endangered > 0 {
        plan.notes.push(format!(
            "{} chunks of {} lack a copy now: these get theirs first.",
            status.chunks_endangered, status.region
        ));
    }
    plan.field("chunkserver", json!(name));
    plan.field("draining", json!(server.draining));
    plan.field("located", json!(server.located));
    Ok(plan)
}

fn would(server: &ChunkserverStatus, region: &str) -> String {
    let (name, located) = (&server.name, server.located);
    match server.draining {
        true => {
            format!("Chunkserver {name} of {region} is being emptied already: {located} chunks are left.")
        }
        false => format!(
            "Chunkserver {name} of {region} would be emptied: {located} chunks are to be moved, and new ones wouldn't go there."
        ),
    }
}

fn copied(plan: &mut Plan, status: &StatusReply, server: &ChunkserverStatus, used: u64, after: &[Candidate]) {
    if server.located == 0 && server.chunks == 0 {
        return;
    }
    let others = servers::takers(after, &Labels::new());
    let to = match others.is_empty() {
        true => "no other chunkserver, for none takes new chunks".to_owned(),
        false => servers::named(&others),
    };
    plan.copied.push(Copied {
        what: format!("What is on {}", server.name),
        from: match server.alive {
            true => "it, or other chunkservers that have it,".to_owned(),
            false => "other chunkservers that have it".to_owned(),
        },
        to,
        link: Link::Within(status.region.clone()),
        // What nothing uses any more is deleted instead.
        amount: Amount { chunks: Some(server.located), bytes: Some(used), at_most: true },
    });
    if server.located == 0 {
        plan.unknown.push(format!(
            "Its disks have {} chunks, and by the last scan nothing uses any: a leader that is new hasn't looked yet.",
            server.chunks
        ));
    }
    if !server.alive {
        plan.notes.push(format!(
            "{} sends no heartbeats: its copies count as lost once that is so for a while, drained or not, and are made anew of others.",
            server.name
        ));
    }
}

/// The classes of which something may lie there.
fn concerned(status: &StatusReply, known: Option<&[StorageClass]>, plan: &mut Plan) -> Vec<Class> {
    let mut classes = vec![servers::default_of(status)];
    match known {
        Some(known) => {
            let used = known.iter().filter(|class| class.id != DEFAULT && class.inodes > 0);
            classes.extend(used.map(servers::class_of));
        }
        None => {
            let mut goal = Goal::new("each storage class has the chunkservers that it asks for");
            goal.unknown.push(
                "Which storage classes there are nobody told: what only some chunkservers may hold is left out here."
                    .to_owned(),
            );
            plan.goals.push(goal);
        }
    }
    if classes.iter().any(|class| !class.labels.is_empty()) {
        plan.unknown.push("How much of what lies there has which storage class isn't known.".to_owned());
    }
    classes
}

struct Facts<'a> {
    status: &'a StatusReply,
    server: &'a ChunkserverStatus,
    before: &'a [Candidate],
    after: &'a [Candidate],
}

impl Facts<'_> {
    /// How many take chunks of a class, before and after.
    fn takers(&self, class: &Class) -> (usize, usize) {
        let count = |all| servers::takers(all, &class.labels).len();
        (count(self.before), count(self.after))
    }

    fn may_have(&self, class: &Class) -> bool {
        let own = self.before.iter().find(|one| one.name == self.server.name);
        own.is_some_and(|own| class::fits(&class.labels, own))
    }

    fn class(&self, plan: &mut Plan, class: &Class, used: u64) {
        let (name, region) = (&self.server.name, &self.status.region);
        let (before, after) = self.takers(class);
        let (key, what) = match class.id {
            DEFAULT => ("copies".to_owned(), "Copies of each chunk".to_owned()),
            _ => (
                format!("copies_of_{}", class.name),
                format!("Copies of each chunk of class {:?}", class.name),
            ),
        };
        // The copy there stays until its successor is confirmed, and as many good ones as it asks for stay elsewhere.
        plan.counts.push(Count::number(key, what, &Stages::new(class.copies, class.copies, class.copies)));
        let mut goal = Goal::new(servers::goal_of(class));
        if let Some(short) = servers::short(region, class, after).filter(|_| self.may_have(class)) {
            goal.below.push(short);
            goal.below.push(match before < class.copies {
                true => "It is so already.".to_owned(),
                false => format!(
                    "What lies on {name} stays there, and {name} isn't empty, until another chunkserver takes it."
                ),
            });
        }
        self.free(&mut goal, class, used);
        plan.goals.push(goal);
    }

    /// Notes whether there is room elsewhere for what lies there.
    fn free(&self, goal: &mut Goal, class: &Class, used: u64) {
        let name = &self.server.name;
        let takers = servers::takers(self.after, &class.labels);
        let free = servers::free(&takers);
        if class.id == DEFAULT && used > free {
            goal.below.push(format!(
                "{} are on {name}, and {} are free on the others: they would be full, and {name} not empty.",
                output::bytes(used),
                output::bytes(free)
            ));
        } else if self.may_have(class) && takers.len() >= class.copies {
            // None gets a second copy of a chunk: if all of them lie on the ones with the most room, too, that room is for none of them.
            let mut each: Vec<u64> = takers.iter().map(|one| one.bytes_free).collect();
            each.sort_unstable_by(|one, other| other.cmp(one));
            let others = each.into_iter().skip(class.copies.saturating_sub(1));
            let certain = others.fold(0_u64, u64::saturating_add);
            if used > certain {
                goal.unknown.push(format!(
                    "Up to {} are on {name}, and of what chunkservers that fit have free only {} are certain to be of use, for some of them may have these chunks already.",
                    output::bytes(used),
                    output::bytes(certain)
                ));
            }
        }
    }

    fn any_one(&self, plan: &mut Plan, classes: &[Class]) {
        let endangered = self.status.chunks_endangered;
        let means = |copies: usize| match (copies, endangered) {
            (0 | 1, _) => Meaning::keeps(Some(false), "Chunks would be lost that have no other copy."),
            (_, 0) => Meaning::keeps(Some(true), "Each chunk would have a copy left."),
            (_, n) => Meaning::keeps(
                None,
                format!(
                    "Each chunk would have a copy left but for {n} that lack one now, of which that isn't known."
                ),
            ),
        };
        let least = |takers: &dyn Fn(&Class) -> usize| {
            let copies = |class: &Class| match takers(class) {
                // Nothing is written then, and what is there keeps its copies.
                n if n < class.min_copies.max(1) => class.copies,
                n => class.copies.min(n),
            };
            classes.iter().filter(|class| self.may_have(class)).map(copies).min().unwrap_or(0)
        };
        // What is written meanwhile goes to the others, too.
        let (before, after) = (least(&|class| self.takers(class).0), least(&|class| self.takers(class).1));
        let means = Stages::new(before, after, after).map(|copies| Some(means(*copies)));
        plan.losses.push(Loss { lost: "any one chunkserver".into(), means });
    }

    /// What is left where a whole zone goes, as far as placement has the choice.
    fn zones(&self, plan: &mut Plan, classes: &[Class]) {
        let none = Labels::new();
        let (before, after) = (servers::takers(self.before, &none), servers::takers(self.after, &none));
        let all = servers::zones(&before);
        let copies = classes.iter().map(|class| class.copies).min().unwrap_or(0);
        if all.len() < 2 || copies < 2 {
            return;
        }
        for zone in all {
            let means = |takers: &[&Candidate]| {
                let elsewhere = takers.iter().any(|one| one.zone != zone);
                Some(match elsewhere {
                    true => Meaning::keeps(
                        None,
                        "Each chunk would have a copy in another zone, as far as copies are spread by then.",
                    ),
                    false => Meaning::keeps(
                        Some(false),
                        "All copies would lie there, and what is in them wait for it, or be lost.",
                    ),
                })
            };
            let means = Stages::new(means(&before), means(&after), means(&after));
            plan.losses.push(Loss { lost: format!("the zone {zone}"), means });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::servers::tests::{server, status};
    use super::*;

    fn region() -> StatusReply {
        let servers =
            vec![server("cs1", "z1", 3, 50), server("cs2", "z2", 4, 50), server("cs3", "z3", 5, 50)];
        status("r", servers)
    }

    #[test]
    fn a_plan_says_what_goes_where_and_that_copies_come_first() {
        let plan = of(&region(), "cs2", Some(&[])).unwrap();
        let text = plan.text();
        for part in [
            "Chunkserver cs2 of r would be emptied: 64 chunks are to be moved",
            "to cs1 (zone z1, 50.0 GiB free), cs3 (zone z3, 50.0 GiB free) (within r): at most 4.0 GiB in 64 chunks.",
            "Copies of each chunk before, during and after: 2.",
            "If any one chunkserver were lost, before, during and after: Each chunk would have a copy left.",
            "If the zone z1 were lost, before, during and after: Each chunk would have a copy in another zone",
            "Goal: 2 copies of each chunk, 2 at least before a write is durable. Nothing goes below it",
            "Nothing was changed.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let shape = plan.shape();
        assert_eq!((&shape["chunkserver"], &shape["located"]), (&json!("cs2"), &json!(64)));
        assert_eq!(shape["copied"][0]["bytes"], 4_u64 << 30);
        assert_eq!(shape["goes_below_a_goal"], false);
    }

    #[test]
    fn too_few_that_are_left_are_told_and_too_little_room() {
        let mut two = region();
        two.chunkservers.pop();
        // One is left, and a new chunk takes two.
        let failure = of(&two, "cs2", Some(&[])).unwrap_err();
        assert!(failure.exit_code() == 1 && failure.to_string().contains("would be left"), "{failure}");
        two.min_copies = 1;
        let plan = of(&two, "cs2", Some(&[])).unwrap();
        let text = plan.text();
        for part in [
            "In r 1 chunkservers would take a new chunk: it would get 1 copies rather than 2.",
            "What lies on cs2 stays there",
            "If any one chunkserver were lost, before: Each chunk would have a copy left.",
            "If any one chunkserver were lost, during and after: Chunks would be lost",
            "If the zone z1 were lost, during and after: All copies would lie there",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.goes_below(), Some(true));
        let mut full = region();
        full.chunkservers[0].disks[0].bytes_free = 1 << 30;
        full.chunkservers[2].disks[0].bytes_free = 2 << 30;
        let text = of(&full, "cs2", Some(&[])).unwrap().text();
        assert!(text.contains("4.0 GiB are on cs2, and 3.0 GiB are free on the others"), "{text}");
        // Where all of it lies on cs1, too, only cs3 has room for it.
        full.chunkservers[0].disks[0].bytes_free = 50 << 30;
        let plan = of(&full, "cs2", Some(&[])).unwrap();
        assert!(plan.text().contains("only 2.0 GiB are certain to be of use"), "{}", plan.text());
        assert_eq!(plan.goes_below(), None);
        // Nothing is written where the others are full, and what is there keeps its copies.
        full.chunkservers[0].disks[0].bytes_free = 5;
        let text = of(&full, "cs2", Some(&[])).unwrap().text();
        assert!(text.contains("before, during and after: Each chunk would have a copy left."), "{text}");
    }

    #[test]
    fn classes_with_labels_count_apart() {
        let mut labelled = region();
        for n in [0, 1] {
            labelled.chunkservers[n].labels.insert("media".into(), "ssd".into());
        }
        let class = StorageClass {
            id: 70_000,
            name: "fast".into(),
            copies: 2,
            min_copies: 2,
            labels: BTreeMap::from([("media".into(), "ssd".into())]),
            inodes: 3,
            ..StorageClass::default()
        };
        let plan = of(&labelled, "cs2", Some(std::slice::from_ref(&class))).unwrap();
        let text = plan.text();
        assert!(
            text.contains("In r 1 chunkservers would take a new chunk of class \"fast\", and it needs 2"),
            "{text}"
        );
        assert!(text.contains("has which storage class isn't known"), "{text}");
        assert_eq!(plan.shape()["counts"]["copies_of_fast"]["during"], 2);
        // It isn't concerned where none of it may lie, nor where nothing has it.
        assert_eq!(
            of(&labelled, "cs3", Some(std::slice::from_ref(&class))).unwrap().goes_below(),
            Some(false)
        );
        let unused = StorageClass { inodes: 0, ..class };
        assert_eq!(of(&labelled, "cs2", Some(&[unused])).unwrap().goes_below(), Some(false));
        let untold = of(&labelled, "cs2", None).unwrap();
        assert!(untold.text().contains("nobody told"), "{}", untold.text());
        assert_eq!(untold.goes_below(), None, "what isn't known is no promise");
    }

    #[test]
    fn what_is_silent_drained_or_unknown_is_said_to_be() {
        assert_eq!(of(&region(), "cs9", None).unwrap_err().exit_code(), 3);
        let mut silent = region();
        (silent.chunkservers[1].alive, silent.chunkservers[1].last_seen_ms) = (false, 60_000);
        silent.chunks_endangered = 5;
        let text = of(&silent, "cs2", Some(&[])).unwrap().text();
        for part in [
            "from other chunkservers that have it to",
            "sends no heartbeats",
            "but for 5 that lack one now",
            "these get theirs first",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let mut drained = region();
        drained.chunkservers[1].draining = true;
        let text = of(&drained, "cs2", Some(&[])).unwrap().text();
        assert!(text.contains("is being emptied already: 64 chunks are left"), "{text}");
        let mut leaderless = region();
        leaderless.leader = 0;
        assert_eq!(of(&leaderless, "cs2", None).unwrap_err().exit_code(), 5);
    }
}
