//! What administrators see of the global group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mooseng_global::voters::{self, Voters};
use mooseng_global::{Durability, MasterAt, Stage, View};
use mooseng_raft::{RaftNode, RaftStatus};
use mooseng_region::findings::GlobalFacts;
use mooseng_transport::CallFailure;
use mooseng_wire::VolumeId;
use mooseng_wire::admin::{ListRegionsReply, ListVolumesReply, Region, RegionMaster, Volume, VolumeStage};
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::session::{Renew, Renewed};
use tokio::time::Instant;

use super::{Global, lock};
use crate::master::Master;

/// How often the other members are asked whether they are there.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long one may take to answer.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Probes without an answer after which a member counts as down: one may be lost where a connection broke.
const FAILED_MAX: u32 = 2;

/// What is known of a member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Probed {
    /// Probes in a row that weren't answered.
    failed: u32,
    /// How long the last answer took.
    took: Option<Duration>,
    /// The feature levels that it supports, as it told then.
    told: Option<Levels>,
}

impl Probed {
    fn is_up(self) -> bool {
        self.failed < FAILED_MAX
    }

    /// The feature levels that it supports, as it told last.
    pub(super) fn levels(self) -> Option<Levels> {
        self.told
    }

    /// Whether it is up; none before that is known.
    pub(super) fn reachable(self) -> Option<bool> {
        (self.took.is_some() || !self.is_up()).then_some(self.is_up())
    }
}

/// Asks the other members now and then whether they are there, and what they support.
pub async fn probe(global: &Arc<Global>, master: &Master) {
    loop {
        let answers = global.ask_all().await;
        {
            let mut probed = lock(&global.probed);
            let before = std::mem::take(&mut *probed);
            probed.extend(answers.into_iter().map(|(node, answer)| {
                let known = before.get(&node).copied().unwrap_or_default();
                let now = match answer {
                    // Where the connection has ended since, the next one tells.
                    Some((took, told)) => Probed { failed: 0, took: Some(took), told: told.or(known.told) },
                    None => Probed { failed: known.failed.saturating_add(1), ..known },
                };
                (node, now)
            }));
        }
        figures(global, master);
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// How long an answer took, and the feature levels that the one who answered supports, if its connection still lasts.
type Answered = (Duration, Option<Levels>);

impl Global {
    /// Asks the other members once; none of those that don't answer in time.
    pub(super) async fn ask_all(&self) -> Vec<(u64, Option<Answered>)> {
        self.ask_those(self.members().into_iter().filter(|(_, m)| m.address != self.address)).await
    }

    /// Asks those that weren't expected and haven't told yet what they support.
    pub(super) async fn ask_newcomers(&self, expected: impl Fn(u64) -> bool) {
        let untold = |node: u64| !expected(node) && self.supports_level(node).is_none();
        let new = self.members().into_iter().filter(|(node, m)| untold(*node) && m.address != self.address);
        let answers = self.ask_those(new).await;
        let mut probed = lock(&self.probed);
        for (node, answer) in answers {
            let told = answer.and_then(|(_, told)| told);
            if told.is_some() {
                probed.entry(node).or_default().told = told;
            }
        }
    }

    async fn ask_those(&self, those: impl Iterator<Item = (u64, MasterAt)>) -> Vec<(u64, Option<Answered>)> {
        let asked = those.map(|(node, member)| {
            let link = self.link(&member.address);
            async move {
                let began = Instant::now();
                let answer =
                    link.request::<_, Renewed>(Method::Renew, &Renew::default(), PROBE_TIMEOUT).await;
                // A refusal is an answer, too.
                let there = matches!(answer, Ok(_) | Err(CallFailure::Remote(_)));
                (node, there.then(|| (began.elapsed(), link.levels())))
            }
        });
        join_all(asked).await
    }
}

fn figures(global: &Global, master: &Master) {
    let m = &master.metrics;
    m.global_leading.set(i64::from(global.is_leading()));
    m.global_term.set(global.raft().map_or(0, |raft| i64::try_from(raft.term()).unwrap_or(i64::MAX)));
    m.feature_level.set(i64::from(global.view().level.0));
    m.agreed_version.set(i64::try_from(global.view().version).unwrap_or(i64::MAX));
    m.lease_held.set(i64::from(global.lease_valid()));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How many vote, where, and which of them are up.
fn standing(raft: &RaftStatus, probed: &BTreeMap<u64, Probed>) -> Voters {
    let voters = raft.members.iter().filter(|m| m.voter).map(|m| m.id);
    // Who wasn't asked yet isn't taken for lost.
    Voters::with(voters, |node| node == raft.id || probed.get(&node).is_none_or(|probed| probed.is_up()))
}

fn fatal(view: &View, standing: &Voters) -> Vec<String> {
    let fatal = standing.fatal();
    let named = view.regions.iter().filter(|(_, region)| fatal.contains(&region.number));
    named.map(|(name, _)| name.clone()).collect()
}

impl Global {
    /// A leader with a majority is known: it was heard within some elections.
    fn has_quorum(&self, raft: &RaftNode) -> bool {
        let silence_max = Duration::from_millis(self.config.raft.election_max_ms) * 2;
        raft.leader().is_some() && raft.silence() <= silence_max
    }

    /// Whether this master's region has a voice and no data.
    pub fn is_witness(&self) -> bool {
        let view = self.view();
        match view.regions.get(&self.region) {
            Some(own) => own.witness,
            None => self.config.regions.iter().any(|region| region.name == self.region && region.witness),
        }
    }

    /// What findings are made of; none before this master takes part.
    pub fn facts(&self, master: &Master) -> Option<GlobalFacts> {
        let raft = self.raft()?;
        let view = self.view();
        let standing = standing(&raft.status(), &lock(&self.probed));
        let down =
            self.leases().into_iter().filter(|(region, (_, ran_out))| *ran_out && *region != self.region);
        let needs_it = view.volumes.values().any(|v| v.automatic && v.open && v.home == self.region);
        Some(GlobalFacts {
            witness: self.is_witness(),
            quorum: self.has_quorum(raft),
            fatal: fatal(&view, &standing),
            survives_a_region_and_a_master: standing.survives_a_region_and_a_master(),
            down: down.map(|(region, (age, _))| (region, age.as_secs())).collect(),
            waiting: self.waiting(&view),
            held: held(master, &view),
            lease_lost: needs_it && master.serving().is_ok() && !self.lease_valid(),
            levels: self.level_facts(&view),
        })
    }

    /// Other regions, and whether any of their masters answered lately; those that weren't asked yet are missing.
    pub fn reached(&self) -> BTreeMap<String, bool> {
        let (view, probed) = (self.view(), lock(&self.probed));
        let others = view.regions.iter().filter(|(name, _)| **name != self.region);
        let reached = others.filter_map(|(name, region)| {
            let known = |m: &MasterAt| probed.get(&voters::node_id(region.number, m.id))?.reachable();
            let known: Vec<bool> = region.masters.iter().filter_map(known).collect();
            // One that wasn't asked yet may answer.
            let all = known.len() == region.masters.len();
            (all || known.contains(&true)).then(|| (name.clone(), known.contains(&true)))
        });
        reached.collect()
    }

    /// The shortest round trip to a master of that region, as they were measured last.
    pub fn round_trip_to(&self, region: &str) -> Option<Duration> {
        let (view, probed) = (self.view(), lock(&self.probed));
        let region = view.regions.get(region)?;
        let nodes = region.masters.iter().map(|master| voters::node_id(region.number, master.id));
        nodes.filter_map(|node| probed.get(&node).filter(|probed| probed.is_up())?.took).min()
    }

    /// Volumes that take no changes for their home is lost, and what they wait for.
    fn waiting(&self, view: &View) -> Vec<(String, String)> {
        let leases = self.leases();
        let gone = |region: &str| leases.get(region).is_some_and(|(_, ran_out)| *ran_out);
        let lost =
            view.volumes.iter().filter(|(_, volume)| (volume.open && gone(&volume.home)) || volume.abandoned);
        let told = lost.map(|(id, volume)| {
            let others = volume.heirs().filter(|region| !gone(region)).collect::<Vec<_>>().join(", ");
            let name = if id.0 == 0 { "/".to_owned() } else { id.to_string() };
            // It stays with the epoch that opened so, whose home may be lost in its turn.
            let given_up_for = volume.forced_home.as_deref().filter(|_| !volume.open);
            let what = match (given_up_for, volume.automatic, others.as_str()) {
                (Some(to), ..) => format!("It was given up for {to}, which is waited for."),
                (None, false, _) => format!(
                    "It fails over by command only (`mooseng volume move-home {name} --to REGION --force`): it waits for its home."
                ),
                (None, true, "") => "None of the regions that could take it over is there: it waits for one of them, or its home.".to_owned(),
                (None, true, others) => format!("It goes to one of those that have it and are there ({others})."),
            };
            (format!("volume {id}"), format!("Its home {} is lost. {what}", volume.home))
        });
        told.collect()
    }

    /// The regions as this master knows them.
    pub fn list_regions(&self) -> ListRegionsReply {
        let (view, leases) = (self.view(), self.leases());
        let raft = self.raft().map(|raft| (raft.status(), self.has_quorum(raft)));
        let status = raft.as_ref().map(|(status, _)| status);
        let probed = lock(&self.probed).clone();
        let standing = status.map(|status| standing(status, &probed));
        let region = |(name, known): (&String, &mooseng_global::Region)| {
            let lease = leases.get(name);
            // Whoever takes a region in counts from when it was taken in: that it came then isn't so.
            let came = lock(&self.receipts).of(name).is_some_and(|receipt| receipt.sequence > 0);
            let master = |m: &MasterAt| self.master(voters::node_id(known.number, m.id), m, status, &probed);
            Region {
                name: name.clone(),
                number: known.number.into(),
                witness: known.witness,
                masters: known.masters.iter().map(master).collect(),
                lease_age_ms: lease.filter(|_| came).map(|(age, _)| millis(*age)),
                lease_ran_out: lease.is_some_and(|(_, ran_out)| *ran_out),
            }
        };
        ListRegionsReply {
            version: view.version,
            regions: view.regions.iter().map(region).collect(),
            asked: self.region.clone(),
            lease_ms: millis(self.lease()),
            quorum: raft.as_ref().is_some_and(|(_, quorum)| *quorum),
            fatal: standing.as_ref().map(|standing| fatal(&view, standing)).unwrap_or_default(),
            survives_a_region_and_a_master: standing.is_some_and(|s| s.survives_a_region_and_a_master()),
        }
    }

    fn master(
        &self,
        node: u64,
        master: &MasterAt,
        raft: Option<&RaftStatus>,
        probed: &BTreeMap<u64, Probed>,
    ) -> RegionMaster {
        let member = raft.and_then(|raft| raft.members.iter().find(|m| m.id == node));
        let own = master.address == self.address;
        let probed = probed.get(&node).copied().unwrap_or_default();
        RegionMaster {
            id: master.id,
            name: master.name.clone(),
            address: master.address.clone(),
            zone: master.zone.clone(),
            voter: member.is_some_and(|m| m.voter),
            leader: raft.is_some_and(|raft| raft.leader == Some(node)),
            reachable: if own { Some(true) } else { probed.reachable() },
            round_trip_us: probed
                .took
                .filter(|_| probed.is_up())
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        }
    }

    /// The volumes as this master knows them.
    pub fn list_volumes(&self, master: &Master) -> ListVolumesReply {
        let view = self.view();
        let volume = |(id, known): (&VolumeId, &mooseng_global::Volume)| Volume {
            tail_ms: crate::geo::lag::tail(master, *id).age.map(millis),
            held: crate::geo::lag::is_held(master, *id),
            replicas: crate::geo::replicas(master, *id),
            letting_go: crate::geo::let_go::told(master, *id),
            ..told(*id, known)
        };
        ListVolumesReply { version: view.version, volumes: view.volumes.iter().map(volume).collect() }
    }
}

/// Volumes whose writers wait for other regions, and why.
fn held(master: &Master, view: &View) -> Vec<(String, String)> {
    let ours = view.volumes.iter().filter(|(_, known)| known.home == master.config.region);
    let held = ours.filter_map(|(id, known)| {
        let tail = crate::geo::lag::tail(master, *id);
        let age = tail.age.filter(|_| tail.held)?;
        let (age, most) = (age.as_secs(), known.lag_max.unwrap_or_default().as_secs_f64());
        let detail = format!("What no other region has of it is {age} s old; its lag_max is {most} s.");
        Some((format!("volume {id}"), detail))
    });
    held.collect()
}

fn stage(stage: Stage) -> VolumeStage {
    match stage {
        Stage::Made => VolumeStage::Made,
        Stage::Joined => VolumeStage::Joined,
        Stage::Leaving => VolumeStage::Leaving,
    }
}

/// A volume as it is agreed on.
pub(crate) fn told(id: VolumeId, known: &mooseng_global::Volume) -> Volume {
    let place = known.join.as_ref().map(|join| &join.place);
    Volume {
        id: id.0.into(),
        home: known.home.clone(),
        epoch: known.epoch.0,
        open: known.open,
        geo: known.durability == Durability::Geo,
        regions: known.regions.iter().cloned().collect(),
        sync_set: known.sync_set.iter().cloned().collect(),
        automatic: known.automatic,
        replicas: Vec::new(),
        letting_go: Vec::new(),
        blocks_alone: known.blocks_alone,
        lag_max_ms: known.lag_max.map_or(0, millis),
        tail_ms: None,
        held: false,
        stage: known.join.as_ref().map_or(VolumeStage::Unspecified, |join| stage(join.stage)).into(),
        parent: place.map_or(0, |place| place.parent().0.into()),
        directory: place.map_or(0, |place| place.directory.0),
        path: place.map_or_else(String::new, |place| place.path.clone()),
    }
}
