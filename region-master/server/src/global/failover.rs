//! Carries out what is decided where a volume's home is lost, as the leader of the global group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_global::failover::{Decision, Facts, Standing, Wait, decide};
use mooseng_global::rules;
use mooseng_ports::clock::BootTime;
use mooseng_wire::global::Standing as Told;
use mooseng_wire::{Epoch, VolumeId};

use super::serve::{position, transact};
use super::{Global, lock};

/// How often it is looked whether something is to be decided.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Global {
    /// Takes note of how a region stands with its copy of a volume.
    pub(super) fn stands(&self, volume: VolumeId, region: &str, told: &Told) {
        let at =
            |place: &Option<mooseng_wire::global::Position>| place.as_ref().map(position).unwrap_or_default();
        let standing =
            Standing { refuses: Epoch(told.refuses), complete: at(&told.complete), newest: at(&told.newest) };
        lock(&self.told).entry(volume).or_default().insert(region.to_owned(), standing);
    }

    /// A region can't take a volume over any more.
    pub(super) fn forget_standing(&self, volume: VolumeId, region: &str) {
        if let Some(told) = lock(&self.told).get_mut(&volume) {
            told.remove(region);
        }
    }

    /// Regions whose lease has run out, with the renewal that it ran out from.
    pub fn ran_out(&self) -> BTreeMap<String, u64> {
        let (now, lease) = (self.clock.boot(), self.lease());
        let receipts = lock(&self.receipts);
        let of = |region: &String| Some((region.clone(), receipts.ran_out(region, now, lease)?));
        self.view.borrow().regions.keys().filter_map(of).collect()
    }
}

/// What the leader remembers between two looks.
#[derive(Default)]
struct Memory {
    /// Since when it has seen an epoch closed.
    closed: BTreeMap<VolumeId, (Epoch, BootTime)>,
    /// What it waits for, said once.
    waits: BTreeMap<VolumeId, Wait>,
}

/// Decides about all volumes as long as this master leads the group.
pub async fn run(global: &Arc<Global>) {
    let raft = global.taking_part().await;
    let mut leadership = raft.leadership();
    loop {
        if leadership.wait_for(|now| now.leading.is_some()).await.is_err() {
            return;
        }
        // What regions said to this master when it led before may be long ago.
        lock(&global.told).clear();
        let mut memory = Memory::default();
        while leadership.borrow().leading.is_some() {
            tokio::time::sleep(LOOK_EVERY).await;
            if raft.is_leading() {
                look(global, &mut memory).await;
            }
        }
    }
}

async fn look(global: &Arc<Global>, memory: &mut Memory) {
    let (view, ran_out, now) = (global.view(), global.ran_out(), global.clock.boot());
    // What a region said of its copy before it was taken out of a volume's regions doesn't count should it be added again.
    for (id, told) in lock(&global.told).iter_mut() {
        let regions = view.volumes.get(id).map(|volume| &volume.regions);
        told.retain(|region, _| regions.is_some_and(|regions| regions.contains(region)));
    }
    for (id, volume) in
        view.volumes.iter().filter(|(_, volume)| volume.automatic || volume.forced_home.is_some())
    {
        let closed_for = match volume.open {
            true => {
                memory.closed.remove(id);
                Duration::ZERO
            }
            false => {
                let since = memory.closed.entry(*id).or_insert((volume.epoch, now));
                if since.0 != volume.epoch {
                    *since = (volume.epoch, now);
                }
                now.since(since.1)
            }
        };
        let standings = lock(&global.told).get(id).cloned().unwrap_or_default();
        let decision = decide(&Facts { volume, ran_out: &ran_out, standings: &standings, closed_for });
        if let Decision::Wait(wait) = &decision {
            if memory.waits.get(id) != Some(wait) {
                tracing::info!(
                    volume = id.0,
                    epoch = volume.epoch.0,
                    home = volume.home,
                    ?wait,
                    "a volume without a home waits"
                );
                memory.waits.insert(*id, wait.clone());
            }
        } else {
            memory.waits.remove(id);
        }
        carry_out(global, *id, decision).await;
    }
}

async fn carry_out(global: &Arc<Global>, id: VolumeId, decision: Decision) {
    let done = match &decision {
        Decision::Leave | Decision::Wait(_) => return,
        Decision::Close { epoch, judged } => {
            let (epoch, judged) = (*epoch, Some(*judged));
            transact(&global.store, |tx| async move {
                let version = rules::close_epoch(&tx, id, epoch, judged).await?;
                Ok((tx, version))
            })
            .await
        }
        Decision::Open { closed, home, cut } => {
            let (closed, cut) = (*closed, Some(*cut));
            transact(&global.store, |tx| async move {
                let version = rules::open_epoch(&tx, id, closed, home, cut).await?;
                Ok((tx, version))
            })
            .await
        }
    };
    match done {
        Ok(version) => tracing::info!(volume = id.0, version, ?decision, "a volume whose home was lost"),
        // Overtaken, or no leader any more: the next look sees how it is.
        Err(error) => {
            tracing::info!(volume = id.0, ?decision, %error, "a decision about a volume wasn't taken")
        }
    }
}
