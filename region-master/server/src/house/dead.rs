//! Buried chunks: their copies are deleted until each is gone, or its chunkserver is lost.

use std::time::Duration;

use mooseng_namespace::upkeep;
use mooseng_ports::clock::BootTime;
use mooseng_region::repair::Condition;
use mooseng_wire::ChunkId;
use mooseng_wire::call::CallError;

use super::Keeper;
use crate::errors::record_failed;
use crate::records::transact;

/// Dead chunks looked at in one tick.
const PAGE: usize = 256;
/// Copies that are forgotten in one transaction.
const FORGOTTEN_MAX: usize = 256;
/// Pause between two looks at all of them.
const EVERY: Duration = Duration::from_secs(1);

/// Where the look at all dead chunks is.
#[derive(Default)]
pub(super) struct Dead {
    after: Option<ChunkId>,
    next: Option<BootTime>,
    seen: u64,
}

impl Keeper<'_> {
    pub(super) async fn clear_dead(&mut self) -> Result<(), CallError> {
        let gone = self.master.desk(|desk| desk.take_gone(self.volume, FORGOTTEN_MAX));
        self.forget(gone).await?;
        let now = self.master.clock.boot();
        if self.dead.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        let (volume, after) = (self.volume, self.dead.after);
        let page = transact(&self.master.store, |tx| async move {
            let page = upkeep::list_dead(&tx, volume, after, PAGE).await?;
            Ok((tx, page))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        self.master.may_answer(self.term)?;
        self.dead.seen += page.len() as u64;
        self.dead.after = page.last().map(|(chunk, _)| *chunk);
        if page.len() < PAGE {
            self.figures.dead = std::mem::take(&mut self.dead.seen);
            self.dead.after = None;
            self.dead.next = Some(now.after(EVERY));
        }
        let epoch = self.master.epoch(self.volume).0;
        // A replica may have to undo what it isn't complete up to.
        let record = self.replica.then(|| self.master.geo.replica(self.volume).record.unwrap_or_default());
        let final_upto = record.map(|record| record.complete());
        let lost = self.master.desk(|desk| {
            let mut lost = Vec::new();
            for (chunk, record) in page {
                if final_upto.is_some_and(|upto| record.died() > upto) {
                    continue;
                }
                for name in record.copies {
                    // It is looked at again when it comes back.
                    if self.condition(desk, &name) == Condition::Lost {
                        lost.push((chunk, name));
                    } else {
                        desk.want_deletion(&name, chunk, record.epoch.max(epoch));
                    }
                }
            }
            lost
        });
        for part in lost.chunks(FORGOTTEN_MAX) {
            self.forget(part.to_vec()).await?;
        }
        Ok(())
    }

    async fn forget(&self, gone: Vec<(ChunkId, String)>) -> Result<(), CallError> {
        if gone.is_empty() {
            return Ok(());
        }
        transact(&self.master.store, |tx| {
            let gone = gone.clone();
            async move {
                upkeep::forget_copies(&tx, &gone).await?;
                Ok((tx, ()))
            }
        })
        .await
        .map_err(|e| record_failed(&e))
    }
}
