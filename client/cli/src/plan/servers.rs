//! Chunkservers as placement and house-keeping see them, by what a master tells of them; and whether they are enough for a storage class.

use std::collections::BTreeSet;
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_region::class::{Class, DEFAULT, Labels};
use mooseng_region::placement::{Candidate, takes_new};
use mooseng_region::registry::{Beat, DiskFacts, Limits, Registry};
use mooseng_wire::admin::{ChunkserverStatus, StatusReply, StorageClass};

use super::Goal;
use crate::output;

/// Chunkservers that are named at most.
const NAMED_MAX: usize = 8;

/// The chunkservers of a region, by their names: what the masters make of the same heartbeats.
pub fn candidates(status: &StatusReply) -> Vec<Candidate> {
    let limits = Limits {
        chunkservers_max: usize::MAX,
        // Whoever is told of isn't forgotten.
        forget_after: Duration::MAX,
        ..Limits::default()
    };
    // Any moment will do: only how long ago each was heard of counts.
    let now = BootTime(Duration::from_secs(u32::MAX.into()));
    let mut registry = Registry::new(limits);
    for server in &status.chunkservers {
        let silent = match server.alive {
            true => Duration::ZERO,
            false => Duration::from_millis(server.last_seen_ms).max(limits.alive_within),
        };
        // Each has a name of its own: none is refused for another one's start number.
        let _ = registry.beat(BootTime(now.0.saturating_sub(silent)), beat(server));
    }
    let draining = status.chunkservers.iter().filter(|server| server.draining);
    registry.set_draining(draining.map(|server| server.name.clone()).collect());
    registry.candidates(now)
}

fn beat(server: &ChunkserverStatus) -> Beat {
    let disk = |disk: &mooseng_wire::admin::DiskReport| DiskFacts {
        path: disk.path.clone(),
        id: disk.id.clone(),
        bytes_total: disk.bytes_total,
        bytes_free: disk.bytes_free,
        bytes_used: disk.bytes_used,
        chunks: disk.chunks,
        writable: disk.writable,
        error: disk.error.clone(),
        hangs_s: disk.hangs_s,
    };
    Beat {
        name: server.name.clone(),
        address: server.address.clone(),
        zone: server.zone.clone(),
        rack: server.rack.clone(),
        labels: server.labels.clone(),
        disks: server.disks.iter().map(disk).collect(),
        ..Beat::default()
    }
}

/// Those that take new chunks of a class with these labels.
pub fn takers<'a>(all: &'a [Candidate], labels: &Labels) -> Vec<&'a Candidate> {
    all.iter().filter(|candidate| takes_new(candidate, labels)).collect()
}

/// Their zones.
pub fn zones<'a>(of: &[&'a Candidate]) -> BTreeSet<&'a str> {
    of.iter().map(|candidate| candidate.zone.as_str()).collect()
}

/// What they have free.
pub fn free(of: &[&Candidate]) -> u64 {
    of.iter().fold(0, |sum, candidate| sum.saturating_add(candidate.bytes_free))
}

/// By name, with what they have free.
pub fn named(of: &[&Candidate]) -> String {
    let one = |candidate: &&Candidate| {
        let zone = match candidate.zone.as_str() {
            "" => String::new(),
            zone => format!("zone {zone}, "),
        };
        format!("{} ({zone}{} free)", candidate.name, output::bytes(candidate.bytes_free))
    };
    let mut names: Vec<String> = of.iter().take(NAMED_MAX).map(one).collect();
    if of.len() > NAMED_MAX {
        names.push(format!("{} more", of.len() - NAMED_MAX));
    }
    names.join(", ")
}

/// A storage class, as placement goes by it.
pub fn class_of(class: &StorageClass) -> Class {
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Class {
        id: class.id,
        name: class.name.clone(),
        copies: count(class.copies),
        min_copies: count(class.min_copies),
        labels: class.labels.clone(),
    }
}

/// The default class of a region.
pub fn default_of(status: &StatusReply) -> Class {
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Class::by_default(count(status.copies), count(status.min_copies))
}

/// What a class asks for, as a goal.
pub fn goal_of(class: &Class) -> String {
    let least = class.min_copies.max(1);
    let of = if class.id == DEFAULT {
        "each chunk".to_owned()
    } else {
        format!("each chunk of class {:?}", class.name)
    };
    match class.copies {
        1 => format!("one copy of {of}"),
        copies => format!("{copies} copies of {of}, {least} at least before a write is durable"),
    }
}

/// What it means that so few chunkservers of a region take new chunks of a class; none where they are enough.
pub fn short(region: &str, class: &Class, takers: usize) -> Option<String> {
    let least = class.min_copies.max(1);
    let what = class.new_chunk();
    match takers {
        n if n >= class.copies => None,
        n if n < least => Some(format!(
            "In {region} {n} chunkservers would take {what}, and it needs {least}: no data of that class could be written there."
        )),
        n => Some(format!(
            "In {region} {n} chunkservers would take {what}: it would get {n} copies rather than {}.",
            class.copies
        )),
    }
}

/// Notes whether a region has what a class asks for.
pub fn room(goal: &mut Goal, region: &str, status: Option<&StatusReply>, class: &Class) {
    match status {
        None => goal.unknown.push(format!(
            "No leader of {region} answers, so that nobody knows what its chunkservers have room for."
        )),
        Some(status) => {
            let all = candidates(status);
            goal.below.extend(short(region, class, takers(&all, &class.labels).len()));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mooseng_wire::admin::DiskReport;

    use super::*;

    /// A chunkserver with so many GiB used and free.
    pub fn server(name: &str, zone: &str, used: u64, free: u64) -> ChunkserverStatus {
        let disk = DiskReport {
            bytes_used: used << 30,
            bytes_free: free << 30,
            bytes_total: (used + free) << 30,
            chunks: used * 16,
            writable: true,
            ..DiskReport::default()
        };
        ChunkserverStatus {
            name: name.into(),
            zone: zone.into(),
            alive: true,
            located: used * 16,
            chunks: used * 16,
            disks: vec![disk],
            ..ChunkserverStatus::default()
        }
    }

    /// A region with a leader, of which each chunk of the default class has two copies.
    pub fn status(region: &str, servers: Vec<ChunkserverStatus>) -> StatusReply {
        StatusReply {
            region: region.into(),
            leader: 1,
            copies: 2,
            min_copies: 2,
            chunkservers: servers,
            ..StatusReply::default()
        }
    }

    #[test]
    fn chunkservers_are_seen_as_the_masters_see_them() {
        let mut servers: Vec<ChunkserverStatus> =
            ["a", "b", "c", "d", "e"].iter().map(|name| server(name, "z", 1, 9)).collect();
        servers[1].draining = true;
        (servers[2].alive, servers[2].last_seen_ms) = (false, 700_000_000);
        servers[3].disks[0].bytes_free = 5;
        servers[4].disks[0].hangs_s = 3;
        servers[0].labels.insert("media".into(), "ssd".into());
        let all = candidates(&status("r", servers));
        assert_eq!(all.len(), 5, "a chunkserver that has been silent for a week is one still");
        let none = Labels::new();
        let takers = |labels: &Labels| {
            takers(&all, labels).iter().map(|c| c.name.clone()).collect::<Vec<_>>().join("")
        };
        assert_eq!(takers(&none), "a");
        for (key, value, fits) in
            [("media", "ssd", "a"), ("media", "hdd", ""), ("zone", "z", "a"), ("host", "a", "a")]
        {
            assert_eq!(takers(&Labels::from([(key.into(), value.into())])), fits, "{key}={value}");
        }
    }

    #[test]
    fn too_few_for_a_class_are_told() {
        let class = Class { id: 7, name: "fast".into(), copies: 3, min_copies: 2, labels: Labels::new() };
        assert_eq!(short("r", &class, 3), None);
        let fewer = short("r", &class, 2).unwrap();
        assert!(
            fewer.contains("a new chunk of class \"fast\": it would get 2 copies rather than 3"),
            "{fewer}"
        );
        assert!(short("r", &class, 1).unwrap().contains("needs 2: no data of that class could be written"));
        let mut goal = Goal::new(goal_of(&class));
        room(&mut goal, "r", None, &class);
        assert_eq!(goal.goes_below(), None);
        let servers = vec![server("a", "z", 0, 9), server("b", "z", 0, 9)];
        room(&mut goal, "r", Some(&status("r", servers)), &class);
        assert_eq!(goal.goes_below(), Some(true));
    }

    #[test]
    fn many_are_named_by_their_first_ones() {
        let servers = (0..12).map(|n| server(&format!("c{n:02}"), "z", 0, 1)).collect();
        let all = candidates(&status("r", servers));
        let text = named(&takers(&all, &Labels::new()));
        assert!(text.starts_with("c00 (zone z, 1.0 GiB free), c01"), "{text}");
        assert!(text.ends_with("c07 (zone z, 1.0 GiB free), 4 more"), "{text}");
    }
}
