//! Whether writers of a `region` volume wait until another region has what they wrote: the decisions are [`mooseng_region::lag`]'s.

use std::sync::Arc;
use std::time::Duration;

use mooseng_global::Durability;
use mooseng_region::lag::{Facts, Lag, Tail};
use mooseng_schema::log::LogPosition;
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::Instant;

use super::{Seat, sync};
use crate::master::Master;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long one request of a writer waits: well within what a client takes for an attempt.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Looks at a volume's tail, as long as this region is its home under that epoch.
pub(super) async fn keep(master: &Arc<Master>, volume: VolumeId, epoch: Epoch) {
    let seat = master.geo.seat(volume);
    // Nobody waits for what isn't looked at any more.
    let _ends = Ends(&seat);
    let mut lag = Lag::<LogPosition>::default();
    loop {
        let view = master.geo.view();
        let known = view.as_ref().and_then(|view| view.volumes.get(&volume));
        let known = known
            .filter(|known| known.epoch == epoch && known.open && known.durability == Durability::Region);
        let tail = match known {
            Some(known) => {
                let facts = Facts {
                    regions: &sync::seen(master, volume, known),
                    newest: master.geo.newest(volume),
                    lag_max: known.lag_max,
                    blocks_alone: known.blocks_alone,
                    changes: changes_between,
                };
                lag.step(master.clock.boot(), &facts)
            }
            None => {
                lag = Lag::default();
                Tail::default()
            }
        };
        let before = seat.tail.send_replace(tail);
        let lag_max = known.and_then(|known| known.lag_max);
        if tail.held && !before.held {
            tracing::warn!(%volume, age = ?tail.age, ?lag_max, "writers wait: what no other region has of the volume is older than its lag_max");
        } else if before.held && !tail.held {
            tracing::info!(%volume, age = ?tail.age, ?lag_max, "writers go on");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn changes_between(later: LogPosition, earlier: LogPosition) -> Option<u64> {
    if later.epoch == earlier.epoch { later.version.checked_sub(earlier.version) } else { None }
}

struct Ends<'a>(&'a Seat);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.tail.send_replace(Tail::default());
    }
}

/// How old the tail of a volume is that is at home here, and whether writers wait.
pub fn tail(master: &Master, volume: VolumeId) -> Tail {
    *master.geo.seat(volume).tail.borrow()
}

/// Whether writers of a volume wait.
pub fn is_held(master: &Master, volume: VolumeId) -> bool {
    tail(master, volume).held
}

/// Waits until writers needn't wait any longer. Answers how it is then.
pub async fn let_through(master: &Master, volume: VolumeId, deadline: Instant) -> Tail {
    let until = deadline.min(Instant::now() + WAIT_MAX);
    let mut tail = master.geo.seat(volume).tail.subscribe();
    tokio::select! {
        _ = tail.wait_for(|tail| !tail.held) => {}
        () = tokio::time::sleep_until(until) => {}
        () = master.shutdown.cancelled() => {}
    }
    *master.geo.seat(volume).tail.borrow()
}
