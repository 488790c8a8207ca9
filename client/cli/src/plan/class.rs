//! What it would mean that a storage class changes, or that a file or directory gets another one.

use mooseng_global::rules::ClassError;
use mooseng_region::class::{self, Class, DEFAULT};
use mooseng_region::placement::Candidate;
use mooseng_schema::storage_class::{Change, DEFAULT_NAME, Label, StorageClassRecord, Unfit, is_of_cluster};
use mooseng_wire::admin::quota::Whose;
use mooseng_wire::admin::{Quota, SetClassRequest, StatusReply, StorageClass};
use serde_json::{Value, json};

use super::{Amount, Copied, Count, Goal, Link, Loss, Meaning, Plan, Stages, listed, refused, servers};
use crate::exit::{Failure, Kind};
use crate::output;

/// A region that has volumes with chunks of the class, or may have.
#[derive(Clone, Copy, Debug)]
pub struct InRegion<'a> {
    /// Its name.
    pub region: &'a str,
    /// What its leader says, if it answers.
    pub status: Option<&'a StatusReply>,
    /// Bytes of the files concerned in the volumes that it has, if that is known.
    pub bytes: Option<u64>,
}

/// How much of what is counted is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concerned {
    /// All of it, and all has the class of before.
    All,
    /// Not more than that.
    AtMost,
    /// All of it, of whatever classes it has by now.
    Mixed,
}

/// To change a class, one of those that masters tell.
pub fn set(
    known: &[StorageClass],
    asked: &SetClassRequest,
    regions: &[InRegion<'_>],
) -> Result<Plan, Failure> {
    let found = named(known, &asked.name, asked.of_volume)?;
    let label = |(key, value): (&String, &String)| Label { key: key.clone(), value: value.clone() };
    let record = StorageClassRecord {
        name: found.name.clone(),
        copies: found.copies,
        min_copies: found.min_copies,
        labels: found.labels.iter().map(label).collect(),
        set_ns: 0,
        leaving: false,
    };
    let change = Change {
        copies: asked.copies,
        min_copies: asked.min_copies,
        labels: asked.labels.as_ref().map(|set| set.labels.iter().map(label).collect()),
    };
    let now = record.with(&change, 0).map_err(|unfit| refused(Kind::Failed, unfit))?;
    let before = servers::class_of(found);
    let labels = now.labels.into_iter().map(|label| (label.key, label.value)).collect();
    let (copies, min_copies) = (count(now.copies), count(now.min_copies));
    let after = Class { copies, min_copies, labels, ..before.clone() };
    let mut plan = Plan::new(match before == after {
        true => format!("The class {:?} is like that already: nothing would change.", before.name),
        false => format!("The class {:?} would change: {}.", before.name, changes(&before, &after)),
    });
    plan.would.push(format!(
        "{} files and directories have it, with {} of data.",
        found.inodes.max(0),
        output::bytes(found.bytes.max(0).unsigned_abs())
    ));
    becomes(&mut plan, &before, &after, regions, Concerned::All);
    plan.field("inodes", json!(found.inodes));
    plan.field("bytes", json!(found.bytes));
    Ok(plan)
}

/// What it is about that gets a class.
#[derive(Clone, Copy, Debug)]
pub struct Assigning<'a> {
    /// The path, as it was given.
    pub path: &'a str,
    /// All that is below it, too.
    pub recursive: bool,
    /// The class' name.
    pub name: &'a str,
    /// The classes that the volume has.
    pub known: &'a [StorageClass],
    /// What lies at the path.
    pub inode: u64,
    /// The class that it has.
    pub has: &'a StorageClass,
    /// The quota that counts there, if there is one.
    pub quota: Option<&'a Quota>,
    /// Volumes that are joined below: they are left alone.
    pub joined: &'a [String],
}

/// To give a file or directory a class.
pub fn assign(asked: Assigning<'_>, regions: &[InRegion<'_>]) -> Result<Plan, Failure> {
    let found = match asked.name {
        // What the masters' configuration says comes first.
        DEFAULT_NAME => asked.known.iter().find(|class| class.id == DEFAULT),
        name => Some(assignable(asked.known, name)?),
    };
    let found =
        found.ok_or_else(|| Failure::failed("The master's answer doesn't say what the default class is."))?;
    let (before, after) = (servers::class_of(asked.has), servers::class_of(found));
    let Assigning { path, recursive, .. } = asked;
    let mut plan = Plan::new(match (before.id == after.id, recursive) {
        (true, false) => format!("{path} has the class {:?} already: nothing would change.", after.name),
        (true, true) => format!(
            "{path} has the class {:?} already; what is below it with another one would get it.",
            after.name
        ),
        (false, _) => format!("{path} would get the class {:?} ({}).", after.name, changes(&before, &after)),
    });
    plan.would.push(match recursive {
        true => "So would everything below it in the same volume, and what is made there from then on.".to_owned(),
        false => "If it is a directory, what is made in it from then on inherits that, and what is there already keeps its own; if it is a file, its chunks are made to fit.".to_owned(),
    });
    if !asked.joined.is_empty() && recursive {
        plan.would
            .push(format!("Volumes that are joined below are left alone: {}.", asked.joined.join(", ")));
    }
    let counted = if recursive { counted(&asked, &mut plan) } else { None };
    if !recursive && before.id != after.id {
        plan.unknown.push(format!("Whether {path} is a file, and how large, isn't known to this plan."));
    }
    let with_bytes: Vec<InRegion<'_>> = regions.iter().map(|of| InRegion { bytes: counted, ..*of }).collect();
    // Below a directory there may be other classes than its own.
    let concerned = if recursive { Concerned::Mixed } else { Concerned::AtMost };
    becomes(&mut plan, &before, &after, &with_bytes, concerned);
    if recursive {
        plan.unknown.push(format!(
            "What below {path} has which class by now isn't known to this plan: what has that class already isn't copied."
        ));
    }
    plan.field("path", json!(path));
    plan.field("recursive", json!(recursive));
    Ok(plan)
}

/// The bytes below a directory that a quota counts: of the very directory, or of one above it, and then at most so many.
fn counted(asked: &Assigning<'_>, plan: &mut Plan) -> Option<u64> {
    let path = asked.path;
    let Some(quota) = asked.quota else {
        plan.unknown.push(format!(
            "How much lies below {path} isn't known, for no quota counts it (`mooseng quota set {path} --inodes N` does)."
        ));
        return None;
    };
    let (bytes, inodes) = (quota.bytes.max(0).unsigned_abs(), quota.inodes.max(0));
    let whole = quota.whose == Some(Whose::Directory(asked.inode));
    plan.would.push(match whole {
        true => format!(
            "By its quota there are {inodes} files and directories with {} of data.",
            output::bytes(bytes)
        ),
        false => format!(
            "By the quota of {} there are at most {inodes} files and directories with {} of data.",
            String::from_utf8_lossy(&quota.path),
            output::bytes(bytes)
        ),
    });
    Some(bytes)
}

fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The class of that name that can be changed.
fn named<'a>(known: &'a [StorageClass], name: &str, of_volume: bool) -> Result<&'a StorageClass, Failure> {
    StorageClassRecord::is_changeable(name).map_err(|unfit: Unfit| refused(Kind::Failed, unfit))?;
    let mut of_that_name = known.iter().filter(|class| class.name == name && class.id != DEFAULT);
    let found = match of_volume {
        false => of_that_name.next(),
        true => {
            let all: Vec<&StorageClass> = of_that_name.collect();
            let own = all.iter().find(|class| !is_of_cluster(class.id)).copied();
            if own.is_none() && !all.is_empty() {
                let why = format!("the storage class {name:?} is the cluster's: name no volume");
                return Err(refused(Kind::Failed, why));
            }
            own
        }
    };
    let found = found.ok_or_else(|| refused(Kind::NotFound, ClassError::NotThere(name.to_owned())))?;
    match found.leaving {
        true => Err(refused(Kind::Failed, ClassError::Leaving(name.to_owned()))),
        false => Ok(found),
    }
}

/// The class of that name that files may be given: one of the cluster goes before one of the volume's own.
fn assignable<'a>(known: &'a [StorageClass], name: &str) -> Result<&'a StorageClass, Failure> {
    let of_that_name = known.iter().filter(|class| class.name == name && class.id != DEFAULT);
    let found = of_that_name.max_by_key(|class| class.id);
    let found = found.ok_or_else(|| refused(Kind::NotFound, ClassError::NotThere(name.to_owned())))?;
    match found.leaving {
        true => Err(refused(
            Kind::Failed,
            format!(
                "the storage class {name:?} is being deleted: assign another one. `mooseng class delete` goes on with that, or takes it back where something has the class"
            ),
        )),
        false => Ok(found),
    }
}

fn labelled(class: &Class) -> String {
    if class.labels.is_empty() { "none".to_owned() } else { class.labelled() }
}

fn changes(before: &Class, after: &Class) -> String {
    let rows = [
        ("copies", before.copies.to_string(), after.copies.to_string()),
        ("at least", before.min_copies.to_string(), after.min_copies.to_string()),
        ("labels", labelled(before), labelled(after)),
    ];
    let differ = rows.iter().filter(|(_, before, after)| before != after);
    let told: Vec<String> =
        differ.map(|(what, before, after)| format!("{what} {before} -> {after}")).collect();
    if told.is_empty() { "copies and labels as before".to_owned() } else { told.join("; ") }
}

/// What chunks of one class come to that are to be as another one says.
fn becomes(plan: &mut Plan, before: &Class, after: &Class, regions: &[InRegion<'_>], concerned: Concerned) {
    let mut goal = Goal::new(servers::goal_of(after));
    for of in regions {
        in_region(plan, &mut goal, before, after, *of, concerned);
    }
    // The new copy is made first, and only then an old one dropped.
    let least = before.copies.min(after.copies);
    let copies = Stages::new(before.copies, least, after.copies);
    plan.counts.push(Count::number("copies", "Copies of each of its chunks", &copies));
    let at_least = Stages::new(before.min_copies, before.min_copies.min(after.min_copies), after.min_copies);
    plan.counts.push(Count::number("copies_at_least", "Copies without which nothing is written", &at_least));
    if before.copies > after.copies {
        plan.notes.push(format!(
            "It asks for fewer copies than before: {} rather than {}. Those that are too many are dropped once the others are known to be good.",
            after.copies, before.copies
        ));
    }
    let (has_all, will_have_all) = (all_have(regions, before), all_have(regions, after));
    losses(plan, &copies, &at_least, &Stages::new(has_all, has_all && will_have_all, will_have_all));
    plan.goals.push(goal);
    plan.field("before", shape(before));
    plan.field("after", shape(after));
}

fn shape(class: &Class) -> Value {
    json!({ "id": class.id, "name": class.name, "copies": class.copies, "min_copies": class.min_copies, "labels": class.labels })
}

/// Whether each of these regions answers, and has chunkservers for all copies that a class asks for.
fn all_have(regions: &[InRegion<'_>], class: &Class) -> bool {
    let has = |status: &StatusReply| {
        servers::takers(&servers::candidates(status), &class.labels).len() >= class.copies
    };
    regions.iter().all(|of| of.status.is_some_and(has))
}

/// So many chunkservers are lost at once, of those that have a chunk. `have_all`: there are chunkservers for as many copies everywhere.
fn losses(plan: &mut Plan, copies: &Stages<usize>, at_least: &Stages<usize>, have_all: &Stages<bool>) {
    let mut numbers: Vec<usize> = [1, copies.before.saturating_sub(1), copies.after.saturating_sub(1)].into();
    numbers.retain(|n| *n > 0);
    numbers.sort_unstable();
    numbers.dedup();
    for n in numbers {
        let means = |copies: usize, at_least: usize, have_all: bool| {
            Some(match (copies > n, at_least > n, have_all) {
                (true, true, true) => Meaning::keeps(Some(true), "Every chunk of it would have a copy left."),
                (true, false, true) => Meaning::keeps(
                    None,
                    format!(
                        "Every chunk of it that has all its copies would have one left; one that was just written may have {at_least} only."
                    ),
                ),
                (true, _, false) => Meaning::keeps(
                    None,
                    "Every chunk of it that has all its copies would have one left; that chunkservers are there for all copies isn't known of every region, or isn't so.",
                ),
                (false, ..) => {
                    Meaning::keeps(Some(false), "Chunks of it would be lost whose copies all lie there.")
                }
            })
        };
        let lost = if n == 1 {
            "any one chunkserver".to_owned()
        } else {
            format!("any {n} chunkservers of a region")
        };
        let means = Stages::new(
            means(copies.before, at_least.before, have_all.before),
            means(copies.during, at_least.during, have_all.during),
            means(copies.after, at_least.after, have_all.after),
        );
        plan.losses.push(Loss { lost, means });
    }
}

fn in_region(
    plan: &mut Plan,
    goal: &mut Goal,
    before: &Class,
    after: &Class,
    of: InRegion<'_>,
    concerned: Concerned,
) {
    let region = of.region;
    servers::room(goal, region, of.status, after);
    // Whoever had the labels before has those that are asked for now.
    let stays = class::has(&before.labels, &after.labels);
    let (factor, at_most) = match concerned {
        Concerned::Mixed => (after.copies, true),
        _ if before == after => (0, false),
        _ if !stays => (after.copies, true),
        concerned => (after.copies.saturating_sub(before.copies), concerned == Concerned::AtMost),
    };
    let all = of.status.map(servers::candidates).unwrap_or_default();
    let fit: Vec<&Candidate> = servers::takers(&all, &after.labels);
    if factor > 0 && of.bytes != Some(0) {
        let bytes = of.bytes.map(|bytes| bytes.saturating_mul(u64::try_from(factor).unwrap_or(u64::MAX)));
        let to = match (of.status.is_some(), fit.is_empty()) {
            (false, _) => "others".to_owned(),
            (true, true) => "no chunkserver, for none fits".to_owned(),
            (true, false) => servers::named(&fit),
        };
        plan.copied.push(Copied {
            what: format!("Chunks of class {:?}", after.name),
            from: "chunkservers that have them".to_owned(),
            to,
            link: Link::Within(region.to_owned()),
            amount: Amount { chunks: None, bytes, at_most },
        });
        let free = servers::free(&fit);
        if let Some(bytes) = bytes.filter(|bytes| of.status.is_some() && *bytes > free) {
            let (needed, free) = (output::bytes(bytes), output::bytes(free));
            match at_most {
                true => goal.unknown.push(format!(
                    "In {region} up to {needed} would be needed, and {free} are free on chunkservers that fit: it may be that not all chunks get their copies."
                )),
                false => goal.below.push(format!(
                    "In {region} {needed} would be needed, and {free} are free on chunkservers that fit: not all chunks would get their copies."
                )),
            }
        }
    }
    let zones = |labels| servers::zones(&servers::takers(&all, labels)).len();
    let (then, now) = (zones(&after.labels), zones(&before.labels));
    if then == 1 && now > 1 && after.copies > 1 {
        let only: Vec<&str> = servers::zones(&fit).into_iter().collect();
        plan.notes.push(format!(
            "In {region} all copies would lie in one zone, {}, the loss of which they don't survive; until then they lie in {now}.",
            listed(&only)
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mooseng_wire::admin::ClassLabels;

    use super::super::servers::tests::{server, status};
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn fast() -> StorageClass {
        StorageClass {
            id: 70_000,
            name: "fast".into(),
            copies: 2,
            min_copies: 2,
            inodes: 7,
            bytes: 3 << 30,
            ..StorageClass::default()
        }
    }

    fn default() -> StorageClass {
        StorageClass { name: "default".into(), copies: 2, min_copies: 2, ..StorageClass::default() }
    }

    fn region() -> StatusReply {
        let mut servers =
            vec![server("cs1", "z1", 3, 50), server("cs2", "z2", 4, 50), server("cs3", "z3", 5, 50)];
        servers[0].labels = labels(&[("media", "ssd")]);
        status("r", servers)
    }

    fn asking(copies: Option<u32>, labelled: Option<&[(&str, &str)]>) -> SetClassRequest {
        SetClassRequest {
            name: "fast".into(),
            copies,
            labels: labelled.map(|pairs| ClassLabels { labels: labels(pairs) }),
            ..SetClassRequest::default()
        }
    }

    fn set_in(asked: &SetClassRequest, bytes: Option<u64>) -> Plan {
        let there = region();
        let regions = [InRegion { region: "r", status: Some(&there), bytes }];
        set(&[default(), fast()], asked, &regions).unwrap()
    }

    #[test]
    fn more_copies_are_copied_and_nothing_is_dropped_before() {
        let plan = set_in(&asking(Some(3), None), Some(3 << 30));
        let text = plan.text();
        for part in [
            "The class \"fast\" would change: copies 2 -> 3.",
            "7 files and directories have it, with 3.0 GiB of data.",
            "Chunks of class \"fast\" would be copied from chunkservers that have them to cs1 (zone z1, 50.0 GiB free)",
            "(within r): 3.0 GiB.",
            "Copies of each of its chunks before and during: 2; after: 3.",
            "If any one chunkserver were lost, before, during and after: Every chunk of it would have a copy left.",
            "If any 2 chunkservers of a region were lost, before and during: Chunks of it would be lost",
            "If any 2 chunkservers of a region were lost, after: Every chunk of it that has all its copies",
            "Goal: 3 copies of each chunk of class \"fast\", 2 at least before a write is durable. Nothing goes below it",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let shape = plan.shape();
        assert_eq!((&shape["before"]["copies"], &shape["after"]["copies"]), (&json!(2), &json!(3)));
        assert_eq!(shape["copied"][0]["bytes"], 3_u64 << 30);
        let four = set_in(&asking(Some(4), None), None);
        assert!(four.text().contains("it would get 3 copies rather than 4"), "{}", four.text());
        assert!(four.text().contains("how much that is isn't known"), "{}", four.text());
        // There are three chunkservers: that three may be lost nobody promises.
        let three =
            "If any 3 chunkservers of a region were lost, after: Every chunk of it that has all its copies";
        assert!(four.text().contains(three), "{}", four.text());
        let losses = four.shape()["losses"].as_array().cloned().unwrap();
        let lost = losses.iter().find(|loss| loss["lost"] == "any 3 chunkservers of a region").unwrap();
        assert!(lost["after"]["survives"].is_null() && lost["before"]["survives"] == "not_all", "{lost}");
    }

    #[test]
    fn labels_move_what_they_have_to_and_say_where_it_doesnt_fit() {
        let plan = set_in(&asking(None, Some(&[("media", "ssd")])), Some(100 << 30));
        let text = plan.text();
        for part in [
            "labels none -> media=ssd",
            "to cs1 (zone z1, 50.0 GiB free) (within r): at most 200.0 GiB.",
            "In r 1 chunkservers would take a new chunk of class \"fast\", and it needs 2",
            "In r up to 200.0 GiB would be needed, and 50.0 GiB are free on chunkservers that fit",
            "In r all copies would lie in one zone, z1",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(plan.goes_below(), Some(true));
    }

    #[test]
    fn fewer_copies_copy_nothing() {
        let asked = SetClassRequest { min_copies: Some(1), ..asking(Some(1), None) };
        let text = set_in(&asked, Some(3 << 30)).text();
        for part in [
            "Nothing would be copied.",
            "It asks for fewer copies than before: 1 rather than 2.",
            "If any one chunkserver were lost, before: Every chunk",
            "If any one chunkserver were lost, during and after: Chunks of it would be lost",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let same = set_in(&asking(Some(2), None), Some(1)).text();
        assert!(same.contains("is like that already") && same.contains("Nothing would be copied."), "{same}");
        let regions = [InRegion { region: "r", status: None, bytes: None }];
        let unheard = set(&[fast()], &asking(Some(3), None), &regions).unwrap();
        assert_eq!(unheard.goes_below(), None, "{}", unheard.text());
    }

    #[test]
    fn what_the_masters_would_refuse_is_refused() {
        let code = |known: &[StorageClass], asked: &SetClassRequest| {
            let failure = set(known, asked, &[]).unwrap_err();
            (failure.exit_code(), failure.to_string())
        };
        let known = [default(), fast()];
        assert_eq!(code(&known[..1], &asking(Some(3), None)).0, 3);
        let (exit, why) = code(&known, &SetClassRequest { name: "default".into(), ..asking(Some(3), None) });
        assert!(exit == 1 && why.contains("what the masters' configuration says"), "{why}");
        assert_eq!(code(&known, &asking(Some(17), None)).0, 1);
        let leaving = StorageClass { leaving: true, ..fast() };
        let (exit, why) = code(std::slice::from_ref(&leaving), &asking(Some(3), None));
        assert!(exit == 1 && why.contains("is being deleted"), "{why}");
        let own = SetClassRequest { of_volume: true, ..asking(Some(3), None) };
        assert!(code(&known, &own).1.contains("is the cluster's: name no volume"));
        let (has, there) = (default(), region());
        let regions = [InRegion { region: "r", status: Some(&there), bytes: None }];
        let assigning = |name, known| Assigning {
            path: "/d",
            recursive: true,
            name,
            known,
            inode: 9,
            has: &has,
            quota: None,
            joined: &[],
        };
        assert_eq!(assign(assigning("none", &known), &regions).unwrap_err().exit_code(), 3);
        let leaving = [default(), leaving];
        assert_eq!(assign(assigning("fast", &leaving), &regions).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn an_assignment_says_what_is_counted_below_and_what_isnt_known() {
        let thrice = StorageClass { id: 70_001, name: "thrice".into(), copies: 3, ..fast() };
        let (known, has, there) = ([default(), thrice], default(), region());
        let regions = [InRegion { region: "r", status: Some(&there), bytes: None }];
        let joined = ["/d/v".to_owned()];
        let of = |recursive, quota: Option<&Quota>| {
            let asked = Assigning {
                path: "/d",
                recursive,
                name: "thrice",
                known: &known,
                inode: 9,
                has: &has,
                quota,
                joined: &joined,
            };
            assign(asked, &regions).unwrap()
        };
        let quota = Quota {
            whose: Some(Whose::Directory(9)),
            bytes: 2 << 30,
            inodes: 40,
            path: b"/d".as_slice().into(),
            ..Quota::default()
        };
        let text = of(true, Some(&quota)).text();
        for part in [
            "/d would get the class \"thrice\" (copies 2 -> 3).",
            "So would everything below it in the same volume",
            "Volumes that are joined below are left alone: /d/v.",
            "By its quota there are 40 files and directories with 2.0 GiB of data.",
            "(within r): at most 6.0 GiB.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let above = Quota { whose: Some(Whose::Directory(2)), path: b"/".as_slice().into(), ..quota };
        assert!(of(true, Some(&above)).text().contains("By the quota of / there are at most 40"));
        let untold = of(true, None).text();
        assert!(untold.contains("isn't known, for no quota counts it"), "{untold}");
        let alone = of(false, None);
        assert!(alone.text().contains("what is there already keeps its own"), "{}", alone.text());
        assert!(!alone.text().contains("are left alone"), "{}", alone.text());
        assert_eq!(alone.shape()["recursive"], false);
    }
}
