//! Heartbeats of chunkservers: who is let in, what becomes of their inventories, and when another one is wanted.

use std::collections::BTreeSet;

use mooseng_ports::clock::BootTime;
use mooseng_region::registry::{Beat, BeatRefused, CopyFacts, DiskFacts};
use mooseng_wire::admin::{ChunkReport, HeartbeatRequest};
use mooseng_wire::{ChunkId, VolumeId};

use super::Desk;
use crate::founding::NotOurs;

/// Unsealed copies from inventories that wait for a look at their records. Beyond it they wait for the next inventory.
pub(super) const UNSEALED_MAX: usize = 100_000;

/// Why a heartbeat isn't taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatRefused {
    /// By the registry.
    #[error(transparent)]
    Beat(#[from] BeatRefused),
    /// Its chunks aren't this region's.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
}

/// What a chunkserver is called among strangers.
fn stranger(chunkserver: &str) -> String {
    format!("chunkserver {chunkserver}")
}

impl Desk {
    /// Takes a heartbeat in. Answers whether an inventory is wanted.
    pub fn beat(&mut self, now: BootTime, request: HeartbeatRequest) -> Result<bool, HeartbeatRefused> {
        let name = request.chunkserver.clone();
        let mark = self.let_in(now, &stranger(&name), &request.founding)?;
        self.strangers.let_in(&stranger(&name));
        let (page, more) = (request.inventory_page, request.more);
        let corrupt: BTreeSet<u64> = request.corrupt.iter().copied().collect();
        let facts = |r: &ChunkReport| {
            let corrupt = corrupt.contains(&r.chunk);
            (ChunkId(r.chunk), CopyFacts { length: r.length, sealed: r.sealed, epoch: r.epoch, corrupt })
        };
        let copies: Vec<(ChunkId, CopyFacts)> = request.inventory.iter().map(facts).collect();
        let changed: Vec<(ChunkId, CopyFacts)> = request.changed.iter().map(facts).collect();
        let gone: Vec<ChunkId> = request.gone.iter().copied().map(ChunkId).collect();
        let pass = request.inventory_pass;
        let beaten = self.registry.beat(now, beat_of(request))?;
        if let (None, Some(mark)) = (self.founding, mark) {
            self.marks.insert(name.clone(), mark);
        }
        for (chunk, copy) in copies.iter().chain(&changed) {
            let entry = (name.clone(), *chunk);
            if copy.sealed || copy.corrupt || self.unsealed.contains(&entry) {
                continue;
            }
            if self.unsealed.len() < UNSEALED_MAX {
                self.unsealed.insert(entry);
            } else {
                self.left_out.insert(name.clone());
                self.compared.remove(&name);
            }
        }
        let want_inventory = if page {
            if !more && !self.left_out.remove(&name) && self.is_serving() {
                self.compared.insert(name.clone());
            }
            !self.registry.inventory(now, &name, pass, copies, more)
        } else {
            // Seals that an earlier leader decided and didn't get through are known from the store alone: a new leader compares anew.
            beaten.want_inventory || (self.is_serving() && !self.compared.contains(&name))
        };
        self.registry.changed(&name, &changed, &gone);
        for chunk in gone {
            self.is_gone(&name, chunk);
        }
        Ok(want_inventory)
    }

    /// Copies of a volume's chunks that an inventory called unsealed, to be compared with their records.
    pub fn take_unsealed(&mut self, volume: VolumeId, most: usize) -> Vec<(String, ChunkId)> {
        let of_it = self.unsealed.iter().filter(|(_, chunk)| chunk.volume() == volume);
        let taken: Vec<(String, ChunkId)> = of_it.take(most).cloned().collect();
        for copy in &taken {
            self.unsealed.remove(copy);
        }
        taken
    }
}

fn beat_of(request: HeartbeatRequest) -> Beat {
    let disk = |d: mooseng_wire::admin::DiskReport| DiskFacts {
        path: d.path,
        id: d.id,
        bytes_total: d.bytes_total,
        bytes_free: d.bytes_free,
        bytes_used: d.bytes_used,
        chunks: d.chunks,
        writable: d.writable,
        error: d.error,
        hangs_s: d.hangs_s,
    };
    Beat {
        name: request.chunkserver,
        address: request.address,
        zone: request.zone,
        rack: request.rack,
        labels: request.labels.into_iter().collect(),
        disks: request.disks.into_iter().map(disk).collect(),
        incarnation: request.incarnation,
        highest_epoch: request.highest_epoch,
        credentials: request.credentials.map(crate::credentials::of_heartbeat),
    }
}
