//! What has been in a volume's trash for its time leaves it, unless it is a wall clock that was set forward that says so
//! (docs/decisions/0047-clocks-that-are-set-forward.md).
//!
//! ```text
//!   every second: what the trash holds, the clock -> steady? -> on record, now and then -> a page of what is over after the other
//! ```

use std::time::Duration;

use mooseng_namespace::trash::{self as namespace_trash, Place};
use mooseng_ports::clock::BootTime;
use mooseng_region::wall::Steady;
use mooseng_schema::clock::Kept;
use mooseng_wire::VolumeId;
use mooseng_wire::call::CallError;

use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::seat::VolumeSeat;
use crate::steady::{self, Watch};
use crate::trash;

/// Files looked at in one transaction.
const PAGE: usize = 256;
/// Such pages worked off one after the other: other work gets its turn.
const PAGES_MAX: usize = 8;
/// How often files are looked at that stay although their time is over by the clock.
const HELD_EVERY: Duration = Duration::from_secs(60);

/// What is remembered of one volume's trash within a leadership.
pub(crate) struct Expiry {
    volume: VolumeId,
    watch: Watch,
    /// Where the next page begins, in the midst of a pass.
    after: Option<Place>,
    /// Files that this pass has left there.
    held: u64,
    /// No pass begins before.
    next: BootTime,
}

impl Expiry {
    pub(crate) fn new(volume: VolumeId) -> Self {
        Self {
            volume,
            watch: Watch::new(volume, Kept::Trash),
            after: None,
            held: 0,
            next: BootTime::default(),
        }
    }

    /// To be called every second or so.
    pub(crate) async fn tick(&mut self, master: &Master) -> Result<(), CallError> {
        let status = trash::publish(master, self.volume).await?;
        let (now_ns, now) = steady::read(&*master.clock);
        let kept = Duration::from_secs(status.retention_s);
        let look = self.watch.look(master, (now_ns, now), kept, status.files > 0).await?;
        let clock = look.clock;
        if look.was_set {
            (self.after, self.held, self.next) = (None, 0, now);
            tracing::warn!(
                volume = self.volume.0,
                step_s = clock.step().as_secs(),
                "the wall clock was set forward, or nobody led for so long: what is in the trash stays as long as if it had come there now"
            );
        }
        self.tell(master, |seat| seat.trash_clock = Some(clock));
        if status.files == 0 {
            (self.after, self.held, self.next) = (None, 0, BootTime::default());
            self.tell(master, |seat| seat.trash_held = 0);
            return Ok(());
        }
        // By the time that was looked at: the clock may have been set since.
        self.expire(master, now_ns, clock.steady()).await
    }

    /// Where status and purges find it.
    fn tell(&self, master: &Master, tell: impl FnOnce(&mut VolumeSeat)) {
        master.desk(|desk| {
            let seat = desk.seat_mut(self.volume);
            if seat.serving.is_some() {
                tell(seat);
            }
        });
    }

    async fn expire(
        &mut self,
        master: &Master,
        now_ns: i64,
        steady: Option<Duration>,
    ) -> Result<(), CallError> {
        let volume = self.volume;
        if self.after.is_none() && master.clock.boot() < self.next {
            return Ok(());
        }
        for _ in 0..PAGES_MAX {
            let after = self.after;
            let expired = transact(&master.store, |tx| async move {
                let expired = namespace_trash::expire(&tx, volume, now_ns, steady, after, PAGE).await?;
                Ok((tx, expired))
            })
            .await
            .map_err(|e| record_failed(&e))?;
            master.metrics.trash_expired.inc_by(expired.files as u64);
            self.held += expired.held as u64;
            self.after = expired.next;
            if self.after.is_none() {
                let held = std::mem::take(&mut self.held);
                if held > 0 {
                    self.next = master.clock.boot().after(HELD_EVERY);
                }
                self.tell(master, |seat| seat.trash_held = held);
                break;
            }
        }
        Ok(())
    }
}

/// The clock by which files in a volume's trash are old, as of now.
pub(crate) async fn clock(master: &Master, volume: VolumeId) -> Result<Steady, CallError> {
    let known = master.desk(|desk| {
        let seat = desk.seat(volume);
        seat.trash_clock.zip(seat.trash)
    });
    if let Some((mut clock, status)) = known {
        let kept = Duration::from_secs(status.retention_s);
        let (wall_ns, now) = steady::read(&*master.clock);
        clock.look(kept, wall_ns, now);
        return Ok(clock);
    }
    let status = trash::status(master, volume).await?;
    let seen = if status.files > 0 { steady::seen(master, volume, Kept::Trash).await? } else { None };
    let (wall_ns, now) = steady::read(&*master.clock);
    Ok(Steady::begin(seen, Duration::from_secs(status.retention_s), wall_ns, now))
}
