//! Status: what this master knows, and what is wrong by it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use mooseng_namespace::Room;
use mooseng_region::findings::{ChunkserverFacts, Facts, HouseFacts, MasterFacts, findings};
use mooseng_region::{Liveness, registry};
use mooseng_wire::admin::{ChunkserverStatus, DiskReport, Finding, MasterStatus, SessionStatus, StatusReply};
use mooseng_wire::{CHUNK_BYTES_MAX, Role, VolumeId};

use crate::geo::ROOT_VOLUME;
use crate::master::Master;
use crate::{credentials, revocations};

/// Sessions named in one status.
const SESSIONS_MAX: usize = 1_000;

/// The status.
pub fn of(master: &Master) -> StatusReply {
    let mut raft = master.raft.status();
    if !master.raft.is_leading() {
        // By its own word one whose lease is over leads still.
        raft.leader = raft.leader.filter(|leader| *leader != master.config.id);
    }
    let leading = master.serving().is_ok();
    let masters = masters(master, &raft);
    let facts = facts(master, &masters);
    let found = findings(&facts).into_iter().map(|f| Finding {
        code: f.code.code.to_owned(),
        subject: f.subject,
        detail: f.detail,
    });
    let now = master.clock.boot();
    let least = master.desk(|desk| desk.classes().iter().map(|class| class.min_copies).min());
    let least = least.unwrap_or(usize::MAX).min(master.config.min_copies);
    let least = u32::try_from(least).unwrap_or(u32::MAX);
    let view = master.geo.view();
    let joined_at = |volume: VolumeId| {
        let join = view.as_ref().and_then(|view| view.volumes.get(&volume)?.join.as_ref());
        match volume {
            ROOT_VOLUME => "/".to_owned(),
            _ => join.map(|join| join.place.path.clone()).unwrap_or_default(),
        }
    };
    let (sessions, counts, house, trash, chunkservers) = master.desk(|desk| {
        let sessions: Vec<SessionStatus> = desk
            .sessions
            .views(now)
            .into_iter()
            .take(SESSIONS_MAX)
            .map(|view| SessionStatus {
                session: view.recorded.session.0,
                host: view.recorded.host,
                mount_path: view.recorded.mount_path,
                lease_left_ms: millis(view.lease_left),
                opens: view.opens as u64,
                identity: view.recorded.identity,
                incarnation: view.recorded.incarnation.0,
                volume: view.recorded.session.volume().0.into(),
                volume_path: joined_at(view.recorded.session.volume()),
            })
            .collect();
        let servers = desk.registry.iter().map(|server| ChunkserverStatus {
            name: server.beat.name.clone(),
            address: server.beat.address.clone(),
            zone: server.beat.zone.clone(),
            rack: server.beat.rack.clone(),
            alive: server.liveness(now, desk.registry.limits()) == Liveness::Alive,
            last_seen_ms: millis(now.since(server.last_beat)),
            disks: server.beat.disks.iter().map(disk).collect(),
            chunks: server.chunks(),
            draining: desk.registry.is_draining(&server.beat.name),
            located: desk.located(&server.beat.name),
            labels: server.beat.labels.clone().into_iter().collect(),
            credentials: server.beat.credentials.as_ref().map(credentials::report),
        });
        (sessions, desk.counts(), desk.house_status(), desk.root.trash, servers.collect())
    });
    StatusReply {
        cluster: master.config.cluster.clone(),
        region: master.config.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leader: raft.leader.unwrap_or(0),
        term: raft.term,
        custody_epoch: if leading { raft.term } else { 0 },
        masters,
        chunkservers,
        sessions,
        findings: found.collect(),
        house: Some(house),
        trash,
        chunks: counts.chunks,
        chunks_endangered: counts.endangered,
        chunks_unavailable: counts.unavailable,
        chunks_misplaced: counts.misplaced,
        copies: u32::try_from(master.config.copies).unwrap_or(u32::MAX),
        min_copies: u32::try_from(master.config.min_copies).unwrap_or(u32::MAX),
        min_copies_least: Some(least),
        commit_version: master.store.applied_version().0,
        witness: master.global.as_ref().is_some_and(|global| global.is_witness()),
        answers: master.config.id,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn disk(d: &registry::DiskFacts) -> DiskReport {
    DiskReport {
        path: d.path.clone(),
        id: d.id.clone(),
        bytes_total: d.bytes_total,
        bytes_free: d.bytes_free,
        bytes_used: d.bytes_used,
        chunks: d.chunks,
        writable: d.writable,
        error: d.error.clone(),
        hangs_s: d.hangs_s,
    }
}

fn masters(master: &Master, raft: &mooseng_raft::RaftStatus) -> Vec<MasterStatus> {
    let reachable = master.reachable.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let member = |m: &mooseng_raft::MemberStatus| {
        let own = m.id == master.config.id;
        let matched = m.matched.unwrap_or(0);
        MasterStatus {
            id: m.id,
            name: m.node.name.clone(),
            address: m.node.address.clone(),
            zone: m.node.zone.clone(),
            leader: raft.leader == Some(m.id),
            voter: m.voter,
            last_log: if own { raft.last_log } else { matched },
            applied: if own { raft.applied } else { 0 },
            // Whoever wasn't asked yet is there if it has acknowledged entries of this leader's.
            reachable: own || reachable.get(&m.id).copied().unwrap_or(matched > 0),
            credentials: credentials::of_master(master, m.id),
        }
    };
    raft.members.iter().map(member).collect()
}

/// What findings are made of.
pub(crate) fn facts_of(master: &Master) -> Facts {
    facts(master, &masters(master, &master.raft.status()))
}

fn facts(master: &Master, masters: &[MasterStatus]) -> Facts {
    let now = master.clock.boot();
    let probed = master.reachable.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let members = master.raft.status().members;
    let short: BTreeSet<u64> =
        members.iter().filter(|m| m.short_of_room == Some(true)).map(|m| m.id).collect();
    let shortage =
        (master.raft.is_leading() && master.room() != Room::Enough).then(|| master.measured().told());
    let of_master = |m: &MasterStatus| MasterFacts {
        name: m.name.clone(),
        zone: m.zone.clone(),
        voter: m.voter,
        reachable: if m.id == master.config.id { Some(true) } else { probed.get(&m.id).copied() },
        short_of_room: short.contains(&m.id),
    };
    let agreed = revocations::facts(master);
    // Not inside of the desk, which it looks at itself.
    let global = master.global.as_ref().and_then(|global| global.facts(master));
    master.desk(|desk| {
        let (counts, house) = (desk.counts(), desk.house_status());
        let servers = desk.registry.iter().zip(desk.registry.candidates(now));
        let of_server = |(server, candidate): (&registry::Chunkserver, _)| {
            ChunkserverFacts::new(server, candidate, now.since(server.last_beat).as_secs())
        };
        let of_masters = masters.iter().filter_map(|m| {
            let told = credentials::of_heartbeat(m.credentials.clone()?);
            Some(credentials::facts(master, Role::Master, &m.name, told))
        });
        let of_servers = desk.registry.iter().filter_map(|server| {
            let told = server.beat.credentials.clone()?;
            Some(credentials::facts(master, Role::Chunkserver, &server.beat.name, told))
        });
        Facts {
            quorum: quorum(master).is_ok(),
            failure: failure(master),
            shortage,
            masters: masters.iter().map(of_master).collect(),
            chunkservers: servers.map(of_server).collect(),
            copies: master.config.copies,
            min_copies: master.config.min_copies,
            classes: desk.classes(),
            chunk_bytes: CHUNK_BYTES_MAX,
            chunks_endangered: counts.endangered,
            chunks_unavailable: counts.unavailable,
            chunks_misplaced: counts.misplaced,
            house: HouseFacts {
                waiting: house.waiting,
                copying: house.copying,
                endangered_oldest_s: house.endangered_oldest_s,
                located: desk
                    .registry
                    .iter()
                    .map(|s| &s.beat.name)
                    .map(|n| (n.clone(), desk.located(n)))
                    .collect(),
            },
            agreed,
            credentials: of_masters.chain(of_servers).collect(),
            sessions: desk.sessions.len(),
            sessions_max: desk.sessions.limits().sessions_max,
            trash: desk.trash_held(),
            founding: desk.founding(),
            strangers: desk.strangers.lately(now),
            global,
        }
    })
}

/// How long a master may hear nothing of a leader and still be called ready: several elections.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Why this master takes no part in its group, if it doesn't.
fn failure(master: &Master) -> Option<String> {
    let taken_out = || {
        (master.raft.silence() > SILENCE_MAX && master.raft.is_taken_out()).then(|| {
            "this master was taken out of its group, or is about to be: stop it once `mooseng status`, asked of another master, doesn't name it any more".to_owned()
        })
    };
    master.raft.failure().or_else(taken_out)
}

/// Ready while it takes part in its group and a quorum is known: a leader by its lease, a follower by what it hears of a leader; and while the cluster lets its
/// region in.
pub fn ready(master: &Master) -> Result<(), String> {
    if let Some(failure) = failure(master) {
        return Err(format!("MASTER_FAILED: {failure}"));
    }
    quorum(master)?;
    master.global.as_ref().map_or(Ok(()), |global| global.is_let_in())
}

fn quorum(master: &Master) -> Result<(), String> {
    let silence = master.raft.silence();
    if silence > SILENCE_MAX {
        return Err(format!(
            "NO_QUORUM: this master has heard of no leader with a majority for {} s",
            silence.as_secs()
        ));
    }
    if master.raft.leader().is_none() {
        return Err("NO_QUORUM: this master knows of no leader yet".to_owned());
    }
    Ok(())
}
