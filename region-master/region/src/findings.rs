//! From facts to findings: what is wrong in the region, by health code.

use std::collections::BTreeMap;

use mooseng_wire::founding::Founding;

use crate::class::{self, Class};
use crate::codes::{self, HealthCode};
use crate::placement::{Candidate, failure_domains};
use crate::registry::{Chunkserver, DiskFacts, Liveness};

mod global;
mod revocations;

pub use global::{GlobalFacts, LevelFacts};
pub use revocations::AgreedFacts;

/// A master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterFacts {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// It votes.
    pub voter: bool,
    /// It answers, as far as the asked master knows; none where it doesn't.
    pub reachable: Option<bool>,
    /// Its disk is nearly full, as far as the asked master knows.
    pub short_of_room: bool,
}

/// A chunkserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkserverFacts {
    /// As a candidate for a placement.
    pub candidate: Candidate,
    /// Seconds since its last heartbeat.
    pub silent_s: u64,
    /// Its disks.
    pub disks: Vec<DiskFacts>,
}

impl ChunkserverFacts {
    /// Of a registered chunkserver.
    pub fn new(server: &Chunkserver, candidate: Candidate, silent_s: u64) -> Self {
        Self { candidate, silent_s, disks: server.beat.disks.clone() }
    }
}

/// A daemon's certificate, and the revocation list that it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFacts {
    /// The SPIFFE id.
    pub identity: String,
    /// Negative once it has expired.
    pub seconds_left: i64,
    /// From its issue to its end.
    pub lifetime_s: i64,
    /// Of whom the list refuses.
    pub revocations_digest: String,
    /// How many that are.
    pub revocations: u64,
    /// The version of those that the cluster has agreed on; 0 for none.
    pub agreed_version: u64,
}

/// What house-keeping tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HouseFacts {
    /// Chunks that wait for a copy.
    pub waiting: u64,
    /// Copies that are being made.
    pub copying: u64,
    /// Seconds for which the chunk that has been endangered longest has been so.
    pub endangered_oldest_s: u64,
    /// By chunkserver, chunks whose location names it.
    pub located: BTreeMap<String, u64>,
}

/// A volume's trash with files in it whose time is over by the clock, and that stay for the clock was set forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrashFacts {
    /// Which volume, for people.
    pub volume: String,
    /// How many files.
    pub held: u64,
    /// By how many seconds the clock was set forward.
    pub step_s: u64,
    /// For how many seconds it has gone on steadily since.
    pub steady_s: u64,
}

/// Danger that lasts so long isn't being mended.
const LATE_S: u64 = 900;

/// Everything that findings are made of.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The asked master knows a leader that a quorum follows.
    pub quorum: bool,
    /// Why the asked master can't take part in its group, if it can't.
    pub failure: Option<String>,
    /// The asked master leads, no other has room, and this is what it has.
    pub shortage: Option<String>,
    /// The masters.
    pub masters: Vec<MasterFacts>,
    /// The chunkservers.
    pub chunkservers: Vec<ChunkserverFacts>,
    /// Copies of a chunk of the default storage class.
    pub copies: usize,
    /// Its least number.
    pub min_copies: usize,
    /// The other storage classes.
    pub classes: Vec<Class>,
    /// A new chunk's space.
    pub chunk_bytes: u64,
    /// Chunks with a copy on a chunkserver without the labels of their storage class.
    pub chunks_misplaced: u64,
    /// Chunks with fewer reachable copies than their storage class asks for.
    pub chunks_endangered: u64,
    /// Chunks with none.
    pub chunks_unavailable: u64,
    /// What house-keeping does about that.
    pub house: HouseFacts,
    /// What the cluster has agreed to refuse.
    pub agreed: AgreedFacts,
    /// The daemons' certificates and revocation lists, as far as they were told.
    pub credentials: Vec<CredentialFacts>,
    /// Sessions in the table.
    pub sessions: usize,
    /// The limit of sessions.
    pub sessions_max: usize,
    /// Volumes with files that stay in the trash beyond their time.
    pub trash: Vec<TrashFacts>,
    /// The region's founding mark, if the asked master knows it.
    pub founding: Option<Founding>,
    /// Who was refused lately as of another founding, with its mark.
    pub strangers: Vec<(String, Founding)>,
    /// Of the global group, where there is one that the asked master takes part in.
    pub global: Option<GlobalFacts>,
}

impl Facts {
    /// The region has a voice and no data: one master, and no chunkservers.
    fn is_witness(&self) -> bool {
        self.global.as_ref().is_some_and(|global| global.witness)
    }
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The code.
    pub code: &'static HealthCode,
    /// What it is about.
    pub subject: String,
    /// The evidence, in a sentence.
    pub detail: String,
}

fn finding(code: &'static HealthCode, subject: impl Into<String>, detail: impl Into<String>) -> Finding {
    Finding { code, subject: subject.into(), detail: detail.into() }
}

/// The findings, worst first, then by code and subject.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    masters(facts, &mut found);
    chunkservers(facts, &mut found);
    chunks(facts, &mut found);
    certificates(facts, &mut found);
    revocations::of(facts, &mut found);
    if facts.sessions_max > 0 && facts.sessions * 10 >= facts.sessions_max * 9 {
        found.push(finding(
            &codes::SESSIONS_FULL,
            "sessions",
            format!("{} of at most {} sessions are open.", facts.sessions, facts.sessions_max),
        ));
    }
    trash(facts, &mut found);
    strangers(facts, &mut found);
    if let Some(facts) = &facts.global {
        global::look(facts, &mut found);
    }
    found.sort_by(|a, b| {
        let key = |f: &Finding| (std::cmp::Reverse(f.code.severity), f.code.code, f.subject.clone());
        key(a).cmp(&key(b))
    });
    found
}

fn trash(facts: &Facts, found: &mut Vec<Finding>) {
    for TrashFacts { volume, held, step_s, steady_s } in &facts.trash {
        let detail = format!(
            "The time of {held} deleted files in the trash of {volume} is over by the clock of the master that leads, which was set forward by {step_s} s: they stay for as long as they were to, counted from then, {steady_s} s ago."
        );
        found.push(finding(&codes::TRASH_HELD, volume, detail));
    }
}

fn strangers(facts: &Facts, found: &mut Vec<Finding>) {
    let Some(own) = facts.founding else { return };
    for (who, mark) in &facts.strangers {
        let detail = format!(
            "It carries the founding mark {mark}, this region {own}: the region was made anew, and doesn't take it in."
        );
        found.push(finding(&codes::OTHER_FOUNDING, who, detail));
    }
}

fn masters(facts: &Facts, found: &mut Vec<Finding>) {
    if !facts.quorum {
        found.push(finding(
            &codes::NO_QUORUM,
            "region",
            "The asked master knows of no leader with a majority.",
        ));
    }
    if let Some(failure) = &facts.failure {
        found.push(finding(
            &codes::MASTER_FAILED,
            "asked master",
            format!("The asked master says: {failure}."),
        ));
    }
    if let Some(shortage) = &facts.shortage {
        let detail = format!("{shortage}, and no other master that answers has more.");
        found.push(finding(&codes::MASTERS_FULL, "masters", detail));
    }
    for master in facts.masters.iter().filter(|m| m.short_of_room) {
        let detail = format!("The disk of master {} has less free than its reserve.", master.name);
        found.push(finding(&codes::MASTER_DISK_LOW, &master.name, detail));
    }
    for master in facts.masters.iter().filter(|m| m.reachable == Some(false)) {
        found.push(finding(
            &codes::MASTER_DOWN,
            &master.name,
            format!("Master {} doesn't answer.", master.name),
        ));
    }
    let voters: Vec<&MasterFacts> = facts.masters.iter().filter(|m| m.voter).collect();
    if voters.is_empty() || facts.is_witness() {
        return;
    }
    if voters.len() < 3 {
        found.push(finding(
            &codes::MASTERS_FEW,
            "masters",
            format!("{} of the masters vote; three survive the loss of one.", voters.len()),
        ));
        return;
    }
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for voter in &voters {
        *zones.entry(voter.zone.as_str()).or_default() += 1;
    }
    if let Some((zone, n)) = zones.into_iter().find(|(_, n)| *n > voters.len() / 2) {
        found.push(finding(
            &codes::MASTERS_ONE_ZONE,
            format!("zone {zone:?}"),
            format!("{n} of {} voting masters lie in zone {zone:?}.", voters.len()),
        ));
    }
}

fn chunkservers(facts: &Facts, found: &mut Vec<Finding>) {
    for server in &facts.chunkservers {
        let name = &server.candidate.name;
        if server.candidate.liveness != Liveness::Alive {
            found.push(finding(
                &codes::CHUNKSERVER_DOWN,
                name,
                format!("The last heartbeat of chunkserver {name} came {} s ago.", server.silent_s),
            ));
        }
        for disk in &server.disks {
            let subject = format!("{name}:{}", disk.path);
            if disk.hangs_s > 0 {
                let detail = format!("{} hasn't answered for {} s.", disk.path, disk.hangs_s);
                found.push(finding(&codes::DISK_HUNG, subject, detail));
            } else if !disk.error.is_empty() {
                found.push(finding(&codes::DISK_FAILED, subject, format!("{}: {}", disk.path, disk.error)));
            } else if !disk.writable || disk.bytes_free < facts.chunk_bytes {
                let detail = format!("{} has {} bytes free for chunks.", disk.path, disk.bytes_free);
                found.push(finding(&codes::DISK_FULL, subject, detail));
            }
        }
    }
    for server in facts.chunkservers.iter().filter(|s| s.candidate.draining) {
        let name = &server.candidate.name;
        let detail = match facts.house.located.get(name).copied().unwrap_or(0) {
            0 => "It holds no chunks that anything uses: it may be stopped.".to_owned(),
            n => format!("{n} chunks are still to be moved from it."),
        };
        found.push(finding(&codes::CHUNKSERVER_DRAINING, name, detail));
    }
    let alive: Vec<Candidate> = facts
        .chunkservers
        .iter()
        .map(|s| &s.candidate)
        .filter(|c| c.liveness == Liveness::Alive)
        .cloned()
        .collect();
    let takes = |c: &&Candidate| c.writable && !c.draining && c.bytes_free >= facts.chunk_bytes;
    for of in &facts.classes {
        let takers = alive.iter().filter(takes).filter(|c| class::fits(&of.labels, c)).count();
        found.extend(class_short(of, takers));
    }
    if facts.is_witness() {
        return;
    }
    let takers = alive.iter().filter(takes).count();
    if alive.len() < facts.min_copies {
        found.push(finding(
            &codes::NO_CHUNKSERVERS,
            "chunkservers",
            format!("{} chunkservers are alive; a new chunk needs {}.", alive.len(), facts.min_copies),
        ));
    } else if takers < facts.min_copies {
        let (alive, draining) = (alive.len(), alive.iter().filter(|c| c.draining).count());
        let why = match draining {
            0 => "have space".to_owned(),
            n => format!(
                "take new chunks: {n} are being drained, {} have no space",
                alive.saturating_sub(takers + n)
            ),
        };
        let detail =
            format!("{takers} of {alive} living chunkservers {why}; a new chunk needs {}.", facts.min_copies);
        found.push(finding(&codes::CLUSTER_FULL, "chunkservers", detail));
    } else if failure_domains(&alive) < facts.copies {
        let domains = failure_domains(&alive);
        found.push(finding(
            &codes::REGION_SMALL,
            "chunkservers",
            format!(
                "The living chunkservers span {domains} failure domains; a chunk has {} copies.",
                facts.copies
            ),
        ));
    }
}

fn class_short(of: &Class, takers: usize) -> Option<Finding> {
    if takers >= of.copies {
        return None;
    }
    let labelled = match of.labels.is_empty() {
        true => String::new(),
        false => format!(" labelled {}", of.labelled()),
    };
    let outcome = if takers < of.min_copies.max(1) {
        "file data of this class is refused with ENOSPC"
    } else {
        "new chunks get fewer copies"
    };
    let detail = format!(
        "{takers} living chunkservers{labelled} have space; class {:?} asks for {} copies, at least {}: {outcome}.",
        of.name, of.copies, of.min_copies
    );
    Some(finding(&codes::CLASS_SHORT, format!("class {:?}", of.name), detail))
}

fn chunks(facts: &Facts, found: &mut Vec<Finding>) {
    let endangered = facts.chunks_endangered.saturating_sub(facts.chunks_unavailable);
    if endangered > 0 {
        let house = &facts.house;
        let detail = format!(
            "{endangered} chunks have fewer reachable copies than their storage class asks for, the first of them for {} s; {} copies are being made, {} chunks wait for one.",
            house.endangered_oldest_s, house.copying, house.waiting
        );
        // Nothing seems to happen for a minute: said why, before somebody mends it by hand.
        let silent = facts.chunkservers.iter().any(|s| s.candidate.liveness != Liveness::Alive);
        let idle = house.copying == 0 && house.waiting == 0 && silent;
        let detail = if idle {
            format!(
                "{detail} Copying begins once a silent chunkserver's grace is over (`house.grace_ms`), which a new leader counts anew."
            )
        } else {
            detail
        };
        found.push(finding(&codes::CHUNKS_ENDANGERED, "chunks", detail));
    }
    if facts.chunks_endangered > 0 && facts.house.endangered_oldest_s >= LATE_S {
        let detail = format!("A chunk has been endangered for {} s.", facts.house.endangered_oldest_s);
        found.push(finding(&codes::REPAIR_LATE, "chunks", detail));
    }
    if facts.chunks_misplaced > 0 {
        let detail = format!(
            "{} chunks have a copy on a chunkserver without the labels of their storage class; {} copies are being made, {} chunks wait for one.",
            facts.chunks_misplaced, facts.house.copying, facts.house.waiting
        );
        found.push(finding(&codes::CHUNKS_MISPLACED, "chunks", detail));
    }
    if facts.chunks_unavailable > 0 {
        let detail = format!("{} chunks have no reachable copy.", facts.chunks_unavailable);
        found.push(finding(&codes::CHUNKS_UNAVAILABLE, "chunks", detail));
    }
}

fn certificates(facts: &Facts, found: &mut Vec<Finding>) {
    for cert in &facts.credentials {
        if cert.seconds_left <= 0 {
            let detail = format!("The certificate of {} has expired.", cert.identity);
            found.push(finding(&codes::CERT_EXPIRED, &cert.identity, detail));
        // Renewal happens at half of the life: at a quarter it has failed for long.
        } else if cert.seconds_left < cert.lifetime_s / 4 {
            let detail = format!("The certificate of {} ends in {} s.", cert.identity, cert.seconds_left);
            found.push(finding(&codes::CERT_EXPIRING, &cert.identity, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, zone: &str) -> ChunkserverFacts {
        let disk =
            DiskFacts { path: "/d".into(), bytes_free: 1 << 40, writable: true, ..DiskFacts::default() };
        ChunkserverFacts {
            candidate: Candidate {
                name: name.into(),
                zone: zone.into(),
                rack: String::new(),
                host: name.into(),
                bytes_free: 1 << 40,
                writable: true,
                draining: false,
                liveness: Liveness::Alive,
                labels: class::Labels::new(),
            },
            silent_s: 0,
            disks: vec![disk],
        }
    }

    fn drained() -> ChunkserverFacts {
        let mut server = server("d", "1");
        server.candidate.draining = true;
        server
    }

    fn master(name: &str, zone: &str) -> MasterFacts {
        MasterFacts {
            name: name.into(),
            zone: zone.into(),
            voter: true,
            reachable: Some(true),
            short_of_room: false,
        }
    }

    pub(super) fn well() -> Facts {
        Facts {
            quorum: true,
            masters: vec![master("m1", "1"), master("m2", "2"), master("m3", "3")],
            chunkservers: vec![server("a", "1"), server("b", "2"), server("c", "3")],
            copies: 2,
            min_copies: 2,
            chunk_bytes: 64 << 20,
            sessions: 1,
            sessions_max: 100,
            ..Facts::default()
        }
    }

    #[test]
    fn a_class_says_what_it_lacks() {
        let of = |facts: &Facts| -> Vec<String> {
            let found = findings(facts).into_iter();
            found.filter(|f| f.code == &codes::CLASS_SHORT).map(|f| f.detail).collect()
        };
        let labels = class::Labels::from([("media".into(), "ssd".into())]);
        let fast = Class { id: 1, name: "fast".into(), labels, ..Class::by_default(2, 1) };
        let mut facts = Facts { classes: vec![fast], ..well() };
        let none = &of(&facts)[0];
        assert!(
            none.contains("0 living chunkservers labelled media=ssd") && none.contains("ENOSPC"),
            "{none}"
        );
        let label = |facts: &mut Facts, i: usize| {
            facts.chunkservers[i].candidate.labels.insert("media".into(), "ssd".into());
        };
        label(&mut facts, 0);
        assert!(of(&facts)[0].contains("new chunks get fewer copies"));
        label(&mut facts, 1);
        assert!(of(&facts).is_empty());
        facts.chunkservers[1].candidate.draining = true;
        assert_eq!(of(&facts).len(), 1);
        facts.chunks_misplaced = 3;
        let codes: Vec<&str> = findings(&facts).iter().map(|f| f.code.code).collect();
        assert_eq!(codes, ["CLASS_SHORT", "CHUNKSERVER_DRAINING", "CHUNKS_MISPLACED"]);
    }

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
        let mut facts = well();
        change(&mut facts);
        findings(&facts).into_iter().map(|f| f.code.code).collect()
    }

    pub(super) fn cert(identity: &str, seconds_left: i64) -> CredentialFacts {
        CredentialFacts {
            identity: identity.into(),
            seconds_left,
            lifetime_s: 86_400,
            revocations_digest: "e".into(),
            revocations: 0,
            agreed_version: 0,
        }
    }

    #[test]
    fn one_fact_one_finding() {
        assert_eq!(found(|_| ()), Vec::<&str>::new());
        assert_eq!(found(|f| f.quorum = false), ["NO_QUORUM"]);
        assert_eq!(found(|f| f.failure = Some("its disk is full".into())), ["MASTER_FAILED"]);
        assert_eq!(found(|f| f.masters[0].reachable = Some(false)), ["MASTER_DOWN"]);
        assert_eq!(found(|f| f.masters[0].reachable = None), Vec::<&str>::new());
        assert_eq!(found(|f| f.masters.truncate(1)), ["MASTERS_FEW"]);
        assert_eq!(found(|f| f.masters[0].zone = "2".into()), ["MASTERS_ONE_ZONE"]);
        assert_eq!(found(|f| f.chunkservers[0].candidate.liveness = Liveness::Suspect), ["CHUNKSERVER_DOWN"]);
        assert_eq!(found(|f| f.chunkservers.clear()), ["NO_CHUNKSERVERS"]);
        assert_eq!(
            found(|f| f.chunkservers.iter_mut().for_each(|s| s.candidate.zone = "1".into())),
            Vec::<&str>::new()
        );
        assert_eq!(found(|f| f.copies = 4), ["REGION_SMALL"]);
        assert_eq!(
            found(|f| f.chunkservers.iter_mut().for_each(|s| s.candidate.bytes_free = 5)),
            ["CLUSTER_FULL"]
        );
        let mut facts = well();
        facts.chunkservers.truncate(2);
        facts.chunkservers.push(drained());
        facts.chunkservers[1].candidate.draining = true;
        let full = findings(&facts).into_iter().find(|f| f.code.code == "CLUSTER_FULL").unwrap();
        assert!(
            full.detail.starts_with("1 of 3") && full.detail.contains("2 are being drained, 0 have"),
            "{full:?}"
        );
        assert_eq!(found(|f| f.chunkservers[1].disks[0].error = "EIO".into()), ["DISK_FAILED"]);
        assert_eq!(found(|f| f.chunkservers[1].disks[0].bytes_free = 1), ["DISK_FULL"]);
        let hangs = |f: &mut Facts| {
            let disk = &mut f.chunkservers[1].disks[0];
            (disk.hangs_s, disk.writable, disk.error) = (7, false, "it hasn't answered for 7 s".into());
        };
        assert_eq!(found(hangs), ["DISK_HUNG"]);
        assert_eq!(found(|f| f.chunks_endangered = 3), ["CHUNKS_ENDANGERED"]);
        let waits = |f: &mut Facts| {
            f.chunks_endangered = 3;
            f.chunkservers[0].candidate.liveness = Liveness::Suspect;
        };
        let mut facts = well();
        waits(&mut facts);
        let told = findings(&facts).into_iter().find(|f| f.code.code == "CHUNKS_ENDANGERED").unwrap();
        assert!(told.detail.contains("house.grace_ms"), "{}", told.detail);
        let late = |f: &mut Facts| (f.chunks_endangered, f.house.endangered_oldest_s) = (3, 900);
        assert_eq!(found(late), ["CHUNKS_ENDANGERED", "REPAIR_LATE"]);
        assert_eq!(found(|f| f.chunkservers.push(drained())), ["CHUNKSERVER_DRAINING"]);
        assert_eq!(found(|f| f.sessions = 90), ["SESSIONS_FULL"]);
        let volume = "volume 0".to_owned();
        let held = vec![TrashFacts { volume, held: 3, step_s: 86_400, steady_s: 60 }];
        assert_eq!(found(|f| f.trash = held), ["TRASH_HELD"]);
        assert_eq!(found(|f| f.credentials.push(cert("x", 43_000))), Vec::<&str>::new());
        assert_eq!(found(|f| f.credentials.push(cert("x", 21_000))), ["CERT_EXPIRING"]);
        assert_eq!(found(|f| f.credentials.push(cert("x", -1))), ["CERT_EXPIRED"]);
    }

    #[test]
    fn the_worst_comes_first_and_unavailable_chunks_count_once() {
        let codes = found(|f| {
            f.masters[0].reachable = Some(false);
            f.chunks_endangered = 2;
            f.chunks_unavailable = 2;
        });
        assert_eq!(codes, ["CHUNKS_UNAVAILABLE", "MASTER_DOWN"]);
    }

    #[test]
    fn who_is_of_another_founding_is_named() {
        let strangers = vec![("chunkserver a".to_owned(), Founding([2; 16]))];
        let codes = found(|f| (f.founding, f.strangers) = (Some(Founding([1; 16])), strangers));
        assert_eq!(codes, ["OTHER_FOUNDING"]);
    }
}
