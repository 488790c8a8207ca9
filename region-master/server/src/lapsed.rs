//! How long is kept what sessions leave behind whose leases ran out: what came of their changes, and files without a name that they may have open. A wall clock
//! that was set forward ends neither early (docs/decisions/0047-clocks-that-are-set-forward.md).
//!
//! ```text
//!   every second: is any session lapsed? the clock -> steady? -> on record, now and then, and before a first lapse -> which sessions lapsed long enough ago
//! ```

use std::time::Duration;

use mooseng_namespace::{OpError, sessions as records};
use mooseng_region::wall::Steady;
use mooseng_schema::clock::Kept;
use mooseng_schema::session::SessionRecord;
use mooseng_wire::VolumeId;
use mooseng_wire::call::CallError;

use crate::errors::record_failed;
use crate::master::Master;
use crate::reap::all_sessions;
use crate::records::transact;
use crate::steady::{self, Watch};

/// How often records of long-lapsed sessions are looked for; more often where they aren't kept for so long.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// How often those are looked for.
pub(crate) fn forget_every(master: &Master) -> Duration {
    FORGET_EVERY.min(Duration::from_secs(master.config.house.outcomes_kept_s))
}

/// The clock by which sessions lapsed long ago, or not.
#[derive(Clone, Copy)]
struct Now {
    wall_ns: i64,
    clock: Steady,
}

impl Now {
    fn has_been_for(self, lasts: Duration, record: &SessionRecord) -> bool {
        record.lapsed_ns.is_some_and(|since_ns| self.clock.is_over(since_ns, lasts, self.wall_ns))
    }
}

/// What is remembered of one volume's lapsed sessions within a leadership.
pub(crate) struct Lapsed {
    volume: VolumeId,
    watch: Watch,
    /// Whether any is on record, as far as that is known.
    is_any: Option<bool>,
    /// At the last look there was a session for which files are kept that it may have open.
    was_awaited: bool,
}

impl Lapsed {
    pub(crate) fn new(volume: VolumeId) -> Self {
        Self { volume, watch: Watch::new(volume, Kept::Lapsed), is_any: None, was_awaited: false }
    }

    /// To be called every second or so.
    pub(crate) async fn tick(&mut self, master: &Master) -> Result<(), CallError> {
        self.look(master).await.map(drop)
    }

    /// A session's lapse is about to be noted: what is seen of the clock is on record before. Answers the time of the lapse.
    pub(crate) async fn begin(&mut self, master: &Master) -> Result<i64, CallError> {
        self.is_any = Some(true);
        Ok(self.look(master).await?.wall_ns)
    }

    async fn look(&mut self, master: &Master) -> Result<Now, CallError> {
        let is_any = match self.is_any {
            Some(is_any) => is_any,
            None => {
                let sessions = all_sessions(master, self.volume).await?;
                let is_any = sessions.iter().any(|(_, record)| record.lapsed_ns.is_some());
                *self.is_any.insert(is_any)
            }
        };
        let (outcomes_s, opens_s) = kept_s(master);
        // The shorter one: by the longer one a step could be no step that is more than the shorter one lasts.
        let lasts = if opens_s == 0 { outcomes_s } else { outcomes_s.min(opens_s) };
        let (wall_ns, now) = steady::read(&*master.clock);
        let look = self.watch.look(master, (wall_ns, now), Duration::from_secs(lasts), is_any).await?;
        if look.was_set {
            tracing::warn!(
                volume = self.volume.0,
                step_s = look.clock.step().as_secs(),
                "the wall clock was set forward, or nobody led for so long: what is kept of sessions whose leases ran out stays as long as if they had run out now"
            );
        }
        // By the time that was looked at: the clock may have been set since.
        Ok(Now { wall_ns, clock: look.clock })
    }

    /// Whether files without a name are kept for a session that may have them open still: its lease ran out a short while ago, here or at the home before, and it
    /// hasn't come back. Nobody knows any more what it had open. `is_unnoted`: there are lapses that aren't on record yet.
    pub(crate) async fn keeps_opens(&mut self, master: &Master, is_unnoted: bool) -> Result<bool, CallError> {
        let keep = Duration::from_secs(master.config.house.opens_kept_s);
        if keep.is_zero() {
            return Ok(false);
        }
        let now = self.look(master).await?;
        let is_awaited =
            |record: &SessionRecord| record.lapsed_ns.is_some() && !now.has_been_for(keep, record);
        let awaited = is_unnoted
            || all_sessions(master, self.volume).await?.iter().any(|(_, record)| is_awaited(record));
        // One that comes back is first on record again, and then says what it has open.
        let was_awaited = std::mem::replace(&mut self.was_awaited, awaited);
        Ok(awaited || was_awaited)
    }

    /// Forgets a volume's sessions that lapsed long ago, with their outcomes.
    pub(crate) async fn forget(&mut self, master: &Master) -> Result<(), CallError> {
        let (outcomes_s, opens_s) = kept_s(master);
        // By its record it is known that a session may come back.
        let keep = Duration::from_secs(outcomes_s.max(opens_s));
        let now = self.look(master).await?;
        let mut stays = false;
        for (id, record) in all_sessions(master, self.volume).await? {
            if !now.has_been_for(keep, &record) {
                stays |= record.lapsed_ns.is_some();
                continue;
            }
            let gone = transact(&master.store, |tx| async move {
                let record = records::load_session(&tx, id).await?;
                let goes = record.is_none_or(|record| now.has_been_for(keep, &record));
                if goes {
                    records::close_session(&tx, id).await?;
                }
                Ok::<_, OpError>((tx, goes))
            })
            .await
            .map_err(|e| record_failed(&e))?;
            match gone {
                true => master.desk(|desk| desk.seat_mut(self.volume).ids.unbind(id)),
                false => stays = true,
            }
        }
        self.is_any = Some(stays);
        Ok(())
    }
}

/// For how many seconds outcomes are kept, and files that may be open.
fn kept_s(master: &Master) -> (u64, u64) {
    (master.config.house.outcomes_kept_s, master.config.house.opens_kept_s)
}
