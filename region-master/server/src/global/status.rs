//! What administrators see of the global group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mooseng_global::voters::{self, Voters};
use mooseng_global::{Durability, MasterAt, View};
use mooseng_raft::{RaftNode, RaftStatus};
use mooseng_region::findings::GlobalFacts;
use mooseng_transport::CallFailure;
use mooseng_wire::admin::{ListRegionsReply, ListVolumesReply, Region, RegionMaster, Volume};
use mooseng_wire::method::Method;
use mooseng_wire::session::{Renew, Renewed};
use tokio::time::Instant;

use super::{Global, lock};
use crate::master::Master;

/// How often the other members are asked whether they are there.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long one may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks the other members now and then whether they are there.
pub async fn probe(global: &Arc<Global>) {
    loop {
        let others = global.members().into_iter().filter(|(_, m)| m.address != global.address);
        let asked = others.map(|(node, master)| {
            let link = global.link(&master.address);
            async move {
                let began = Instant::now();
                let answer =
                    link.request::<_, Renewed>(Method::Renew, &Renew::default(), PROBE_TIMEOUT).await;
                // A refusal is an answer, too.
                let there = matches!(answer, Ok(_) | Err(CallFailure::Remote(_)));
                (node, there.then(|| began.elapsed()))
            }
        });
        let probed = join_all(asked).await.into_iter().collect();
        *lock(&global.probed) = probed;
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How many vote, where, and which of them are up.
fn standing(raft: &RaftStatus, probed: &BTreeMap<u64, Option<Duration>>) -> Voters {
    let voters = raft.members.iter().filter(|m| m.voter).map(|m| m.id);
    // Who wasn't asked yet isn't taken for lost.
    Voters::with(voters, |node| node == raft.id || probed.get(&node).is_none_or(Option::is_some))
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

    /// What findings are made of; none before this master takes part.
    pub fn facts(&self, master: &Master) -> Option<GlobalFacts> {
        let raft = self.raft()?;
        let view = self.view();
        let own = view.regions.get(&self.region);
        let standing = standing(&raft.status(), &lock(&self.probed));
        let down =
            self.leases().into_iter().filter(|(region, (_, ran_out))| *ran_out && *region != self.region);
        let needs_it = view.volumes.values().any(|v| v.automatic && v.open && v.home == self.region);
        Some(GlobalFacts {
            witness: own.is_some_and(|region| region.witness),
            quorum: self.has_quorum(raft),
            fatal: fatal(&view, &standing),
            survives_a_region_and_a_master: standing.survives_a_region_and_a_master(),
            down: down.map(|(region, (age, _))| (region, age.as_secs())).collect(),
            lease_lost: needs_it && master.serving().is_ok() && !self.lease_valid(),
        })
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
            let master = |m: &MasterAt| self.master(voters::node_id(known.number, m.id), m, status, &probed);
            Region {
                name: name.clone(),
                number: known.number.into(),
                witness: known.witness,
                masters: known.masters.iter().map(master).collect(),
                lease_age_ms: lease.map(|(age, _)| millis(*age)),
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
        probed: &BTreeMap<u64, Option<Duration>>,
    ) -> RegionMaster {
        let member = raft.and_then(|raft| raft.members.iter().find(|m| m.id == node));
        let own = master.address == self.address;
        let answered = probed.get(&node);
        RegionMaster {
            id: master.id,
            name: master.name.clone(),
            address: master.address.clone(),
            zone: master.zone.clone(),
            voter: member.is_some_and(|m| m.voter),
            leader: raft.is_some_and(|raft| raft.leader == Some(node)),
            reachable: if own { Some(true) } else { answered.map(Option::is_some) },
            round_trip_us: answered
                .copied()
                .flatten()
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        }
    }

    /// The volumes as this master knows them.
    pub fn list_volumes(&self) -> ListVolumesReply {
        let view = self.view();
        let volume = |(id, known): (&mooseng_wire::VolumeId, &mooseng_global::Volume)| Volume {
            id: id.0.into(),
            home: known.home.clone(),
            epoch: known.epoch.0,
            open: known.open,
            geo: known.durability == Durability::Geo,
            regions: known.regions.iter().cloned().collect(),
            sync_set: known.sync_set.iter().cloned().collect(),
            automatic: known.automatic,
        };
        ListVolumesReply { version: view.version, volumes: view.volumes.iter().map(volume).collect() }
    }
}
