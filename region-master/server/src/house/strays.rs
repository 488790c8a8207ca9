//! Copies that no location names: left by a chunkserver that was lost when its chunk moved or died, or by a plan that nobody finished.
//!
//! A copy is deleted only if its chunk's record was read for it, in a transaction of a leader that is in office; and only from a chunkserver whose
//! inventory is complete. A chunk without a record was buried, for a chunk is written only once its record is committed, and ids are never
//! given twice - unless its id was never given out: then the store is older than the chunk, and the copy may be all that is left.

use std::time::Duration;

use mooseng_namespace::upkeep::{self, Standing};
use mooseng_ports::clock::BootTime;
use mooseng_region::repair::{self, Condition, CopyState};
use mooseng_wire::ChunkId;
use mooseng_wire::call::CallError;

use super::Keeper;
use crate::errors::record_failed;
use crate::records::transact;

/// Copies looked at in one tick.
const PAGE: usize = 128;

/// Where the look at all inventories is.
#[derive(Default)]
pub(super) struct Strays {
    /// The chunkserver, and the last chunk of it that was looked at.
    at: Option<(String, Option<ChunkId>)>,
    next: Option<BootTime>,
    unknown: u64,
}

impl Keeper<'_> {
    pub(super) async fn look_at_strays(&mut self) -> Result<(), CallError> {
        let now = self.master.clock.boot();
        if self.strays.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        let Some((name, chunks)) = self.next_copies() else {
            let every = Duration::from_millis(self.master.config.house.scan_every_ms);
            self.strays.at = None;
            self.strays.next = Some(now.after(every));
            if std::mem::take(&mut self.strays.unknown) > 0 {
                tracing::warn!(
                    "chunkservers hold chunks that were never given out here: is the metadata store an older one? They are left alone"
                );
            }
            return Ok(());
        };
        let after = chunks.last().copied();
        let standings = transact(&self.master.store, |tx| {
            let (name, chunks) = (name.clone(), chunks.clone());
            async move {
                let standings = chunks.iter().map(|chunk| upkeep::standing(&tx, *chunk, &name));
                let standings = futures::future::try_join_all(standings).await?;
                Ok((tx, standings))
            }
        })
        .await
        .map_err(|e| record_failed(&e))?;
        // Whoever leads by now may have put a copy there.
        self.master.may_answer(self.term)?;
        self.strays.at = Some((name.clone(), after));
        for (chunk, standing) in chunks.into_iter().zip(standings) {
            self.stray(&name, chunk, standing);
        }
        Ok(())
    }

    /// The next copies of an inventory that is complete.
    fn next_copies(&self) -> Option<(String, Vec<ChunkId>)> {
        let (name, after) = self.strays.at.clone().unwrap_or_default();
        self.master.desk(|desk| {
            let servers = desk.registry.iter().filter(|s| s.beat.name >= name && s.inventory_at().is_some());
            for server in servers {
                if self.condition(desk, &server.beat.name) != Condition::Here {
                    continue;
                }
                let after = after.filter(|_| server.beat.name == name);
                let page: Vec<ChunkId> =
                    server.copies_of(self.volume, after).take(PAGE).map(|(chunk, _)| chunk).collect();
                if !page.is_empty() {
                    return Some((server.beat.name.clone(), page));
                }
            }
            None
        })
    }

    fn stray(&mut self, name: &str, chunk: ChunkId, standing: Standing) {
        if self.flights.has(chunk) || self.is_rewriting(chunk) {
            return;
        }
        let epoch = match standing {
            Standing::Placed => return,
            // What this region has of a chunk it fetched once the chunk was on record here.
            Standing::Unknown | Standing::Gone if self.master.geo.has_salvage(self.volume) => return,
            Standing::Unknown if self.replica => self.master.epoch(self.volume).0,
            Standing::Unknown => {
                self.strays.unknown += 1;
                return;
            }
            Standing::Gone => self.master.epoch(self.volume).0,
            Standing::Misplaced(listing) => {
                if !listing.record.sealed {
                    return;
                }
                let spare = self.master.desk(|desk| {
                    let facts = self.facts(desk, &listing);
                    let good = facts.copies.iter().filter(|(_, state)| *state == CopyState::Good).count();
                    // Where it may be needed, repair takes it up or leaves it as it is.
                    repair::need(&facts, &self.servers(desk)).is_none() && good >= facts.class.copies
                });
                if !spare {
                    return;
                }
                self.master.epoch(self.volume).0
            }
        };
        self.master.desk(|desk| {
            if !desk.is_deleting(name, chunk) {
                tracing::info!(
                    chunk = chunk.0,
                    chunkserver = name,
                    "a copy that no location names is deleted"
                );
                desk.want_deletion(name, chunk, epoch);
            }
        });
    }
}
