//! How steadily the leader's wall clock has gone, by which something of a volume is old: looked at again and again, and on record for the leaders that follow
//! (docs/decisions/0047-clocks-that-are-set-forward.md).

use std::time::Duration;

use mooseng_namespace::clock as records;
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_region::wall::{Seen, Steady};
use mooseng_schema::clock::{ClockRecord, Kept};
use mooseng_wire::VolumeId;
use mooseng_wire::call::CallError;

use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;

/// How often what is seen of the clock is put on record, while there is something that it is for. A leader that follows takes a clock that is no more ahead of it
/// than this and some minutes for one that wasn't set.
const NOTE_EVERY: Duration = Duration::from_secs(600);
/// Both clocks are read within this.
const APART_MAX: Duration = Duration::from_secs(1);
/// Or at so many attempts.
const READ_TRIES: u32 = 8;

/// The wall clock, and the time since boot at which it said that: a process that was paused between the two would take the clock for one that was set.
pub(crate) fn read(clock: &dyn Clock) -> (i64, BootTime) {
    let mut tries = 1;
    loop {
        let (before, wall_ns, now) = (clock.boot(), clock.unix_ns(), clock.boot());
        if now.since(before) < APART_MAX || tries == READ_TRIES {
            return (wall_ns, now);
        }
        tries += 1;
    }
}

/// What a look at the clock showed.
pub(crate) struct Look {
    pub clock: Steady,
    /// It was set forward since the look before.
    pub was_set: bool,
}

/// Looks at the clock for one of a volume's things, within a leadership.
pub(crate) struct Watch {
    volume: VolumeId,
    kept: Kept,
    clock: Option<Steady>,
    /// It was set forward, and nobody was told yet.
    was_set: bool,
    /// When it was put on record last.
    noted: Option<BootTime>,
}

impl Watch {
    pub(crate) fn new(volume: VolumeId, kept: Kept) -> Self {
        Self { volume, kept, clock: None, was_set: false, noted: None }
    }

    /// The clock said `wall_ns` at `now`. `lasts`: for how long what it is for is kept; `is_any`: there is something of that. That it was set forward is on
    /// record before this is answered.
    pub(crate) async fn look(
        &mut self,
        master: &Master,
        (wall_ns, now): (i64, BootTime),
        lasts: Duration,
        is_any: bool,
    ) -> Result<Look, CallError> {
        if !is_any {
            // Whatever it was before: what comes from now on is told by this clock.
            let clock = Steady::begin(None, lasts, wall_ns, now);
            (self.clock, self.was_set, self.noted) = (Some(clock), false, None);
            return Ok(Look { clock, was_set: false });
        }
        let (clock, was_set) = match self.clock {
            Some(mut clock) => {
                let was_set = clock.look(lasts, wall_ns, now);
                (clock, was_set)
            }
            None => {
                let seen = seen(master, self.volume, self.kept).await?;
                let clock = Steady::begin(seen, lasts, wall_ns, now);
                (clock, clock.steady() == Some(Duration::ZERO))
            }
        };
        self.clock = Some(clock);
        if was_set {
            (self.was_set, self.noted) = (true, None);
        }
        if self.noted.is_none_or(|noted| now.since(noted) >= NOTE_EVERY) {
            note(master, self.volume, self.kept, clock.seen(wall_ns)).await?;
            self.noted = Some(now);
        }
        Ok(Look { clock, was_set: std::mem::take(&mut self.was_set) })
    }
}

/// What is on record of it.
pub(crate) async fn seen(master: &Master, volume: VolumeId, kept: Kept) -> Result<Option<Seen>, CallError> {
    let record = transact(&master.store, |tx| async move {
        let record = records::seen(&tx, volume, kept).await?;
        Ok((tx, record))
    });
    let record = record.await.map_err(|e| record_failed(&e))?;
    Ok(record.map(|ClockRecord { seen_ns, steady_ns, step_ns }| Seen {
        wall_ns: seen_ns,
        steady: steady_ns.map(Duration::from_nanos),
        step: Duration::from_nanos(step_ns),
    }))
}

async fn note(master: &Master, volume: VolumeId, kept: Kept, seen: Seen) -> Result<(), CallError> {
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let record = ClockRecord {
        seen_ns: seen.wall_ns,
        steady_ns: seen.steady.map(nanoseconds),
        step_ns: nanoseconds(seen.step),
    };
    let noted = transact(&master.store, |tx| {
        records::note(&tx, volume, kept, &record);
        std::future::ready(Ok((tx, ())))
    });
    noted.await.map_err(|e| record_failed(&e))
}
