//! What a home's leader does about a volume's sessions and inodes, again and again: sessions whose leases ran out, what is to be freed, what expires.

use std::time::Duration;

use futures::StreamExt;
use mooseng_namespace::upkeep;
use mooseng_namespace::{OpError, SessionCall, sessions as records};
use mooseng_region::sessions::Recorded;
use mooseng_schema::session::SessionRecord;
use mooseng_wire::call::CallError;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsRequest, Reap};
use mooseng_wire::{InodeId, SessionId, VolumeId};
use tokio::time::Instant;

use crate::errors::{driver_failed, record_failed};
use crate::fs::context;
use crate::master::Master;
use crate::records::transact;
use crate::{expiry, locks};

/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Sessions given up at a time: their records are committed together.
const GIVEN_UP_AT_ONCE: usize = 64;
/// How often inodes are freed.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// Inodes freed at a time.
const REAP_MAX: usize = 64;
/// Orphans looked at for that.
const ORPHANS_PAGE: usize = 256;
/// Such pages worked off one after the other: what is deleted at once by thousands is freed soon, and other work gets its turn.
const PAGES_MAX: usize = 8;
/// How often records of long-lapsed sessions are looked for; more often where they aren't kept for so long.
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// Sessions read at a time.
const SESSIONS_PAGE: usize = 500;

/// How long a piece of housekeeping may wait for the store.
const HOUSEKEEPING_WITHIN: Duration = Duration::from_secs(10);

/// Keeps a volume's house, apart from its chunks, as long as this region is its home.
pub(crate) async fn run(master: &Master, volume: VolumeId) {
    let mut house = House::new(master, volume);
    loop {
        tokio::time::sleep(TICK).await;
        house.tick(master).await;
    }
}

/// What housekeeping remembers between ticks.
struct House {
    volume: VolumeId,
    next_reap: Instant,
    orphans_after: Option<InodeId>,
    trims_after: Option<InodeId>,
    next_forget: Instant,
    lapsed: Vec<Recorded>,
    expiry: expiry::Expiry,
    /// At the last look there was a session for which files are kept that it may have open.
    was_awaited: bool,
}

impl House {
    fn new(master: &Master, volume: VolumeId) -> Self {
        let now = Instant::now();
        Self {
            volume,
            next_reap: now + REAP_EVERY,
            orphans_after: None,
            trims_after: None,
            next_forget: now + forget_every(master),
            lapsed: Vec::new(),
            expiry: expiry::Expiry::new(volume),
            was_awaited: false,
        }
    }

    async fn tick(&mut self, master: &Master) {
        self.lapse(master).await;
        let mut troubles = Vec::new();
        if Instant::now() >= self.next_reap {
            self.next_reap = Instant::now() + REAP_EVERY;
            troubles.extend(self.expiry.tick(master).await.err());
            troubles.extend(self.reap(master).await.err());
            troubles.extend(self.trim(master).await.err());
        }
        if Instant::now() >= self.next_forget {
            self.next_forget = Instant::now() + forget_every(master);
            troubles.extend(forget_sessions(master, self.volume).await.err());
        }
        for error in troubles {
            tracing::info!(error = %error.message, "a piece of housekeeping failed and is tried again");
        }
    }

    /// Notes lapsed sessions in the store, so that nothing of theirs that is still under way commits.
    async fn lapse(&mut self, master: &Master) {
        let (lapsed, late) = master.desk(|desk| {
            let now = master.clock.boot();
            let lapsed = desk.sessions.lapse(self.volume, now);
            for recorded in &lapsed {
                desk.forget_session(recorded.session);
            }
            (lapsed, desk.give_up_waiting(self.volume, now))
        });
        if !late.is_empty() {
            give_up(master, late).await;
        }
        if !lapsed.is_empty() {
            master.recalls_answered.notify_waiters();
        }
        for session in &lapsed {
            tracing::info!(session = session.session.0, host = session.host, "a session's lease ran out");
            master.metrics.lapsed.inc();
        }
        self.lapsed.extend(lapsed);
        let now_ns = master.clock.unix_ns();
        while let Some(session) = self.lapsed.last() {
            let (id, incarnation) = (session.session, session.incarnation.0);
            let noted = transact(&master.store, |tx| async move {
                // It may have come back meanwhile, as a newer incarnation.
                let record = records::load_session(&tx, id).await?;
                if record.is_some_and(|record| record.incarnation == incarnation) {
                    records::lapse_session(&tx, id, now_ns).await?;
                }
                Ok((tx, ()))
            })
            .await;
            match noted {
                Ok(()) => {
                    if let Err(error) = locks::free(master, id).await {
                        tracing::info!(session = id.0, error = %error.message, "a lapsed session's locks are freed later");
                    }
                    self.lapsed.pop()
                }
                Err(error) => {
                    tracing::info!(session = id.0, %error, "a lapse can't be noted yet; trying on");
                    return;
                }
            };
        }
    }

    async fn reap(&mut self, master: &Master) -> Result<(), CallError> {
        if self.keeps_opens(master).await? {
            return Ok(());
        }
        for _ in 0..PAGES_MAX {
            self.reap_page(master).await?;
            if self.orphans_after.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Whether files without a name are kept for a session that may have them open still: its lease ran out a short while ago, here or at the home before, and it
    /// hasn't come back. Nobody knows any more what it had open.
    async fn keeps_opens(&mut self, master: &Master) -> Result<bool, CallError> {
        let keep_s = master.config.house.opens_kept_s;
        if keep_s == 0 {
            return Ok(false);
        }
        let since = before(master, keep_s);
        let is_awaited = |record: &SessionRecord| record.lapsed_ns.is_some_and(|at| at >= since);
        let awaited = !self.lapsed.is_empty()
            || all_sessions(master, self.volume).await?.iter().any(|(_, record)| is_awaited(record));
        // One that comes back is first on record again, and then says what it has open.
        let was_awaited = std::mem::replace(&mut self.was_awaited, awaited);
        Ok(awaited || was_awaited)
    }

    async fn reap_page(&mut self, master: &Master) -> Result<(), CallError> {
        let (volume, after) = (self.volume, self.orphans_after);
        if master.desk(|desk| desk.sessions.in_grace(volume, master.clock.boot())) {
            return Ok(());
        }
        let orphans = transact(&master.store, |tx| async move {
            let orphans = upkeep::list_orphans(&tx, volume, after, ORPHANS_PAGE).await?;
            Ok((tx, orphans))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        // A page further with each call, so that open ones at the beginning don't hide the rest.
        self.orphans_after =
            if orphans.len() == ORPHANS_PAGE { orphans.last().map(|(inode, _)| *inode) } else { None };
        let orphans = orphans.into_iter().map(|(inode, _)| inode);
        let now = master.clock.boot();
        let chosen = master.desk(|desk| desk.sessions.begin_reap(volume, now, orphans, ORPHANS_PAGE));
        if chosen.is_empty() {
            return Ok(());
        }
        // Also where this future is dropped in between.
        let reaping = Reaping { master, chosen };
        for batch in reaping.chosen.chunks(REAP_MAX) {
            let freed = free(master, volume, batch).await?;
            master.metrics.reaped.inc_by(freed);
        }
        Ok(())
    }

    /// Dead extents behind the ends of truncated files: freed whether they are open or not.
    async fn trim(&mut self, master: &Master) -> Result<(), CallError> {
        let (volume, after) = (self.volume, self.trims_after);
        let files = transact(&master.store, |tx| async move {
            let files = upkeep::list_trims(&tx, volume, after, REAP_MAX).await?;
            Ok((tx, files))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        self.trims_after = if files.len() == REAP_MAX { files.last().copied() } else { None };
        for inode in files {
            // From the end of all offsets on: nothing of an orphan, which may be open, and of a file that lives what truncation left.
            while !transact(&master.store, |tx| async move {
                let done = upkeep::drain(&tx, inode, u64::MAX).await?;
                Ok((tx, done))
            })
            .await
            .map_err(|e| record_failed(&e))?
            {}
        }
        Ok(())
    }
}

/// Lets opens go again when the reap is over.
struct Reaping<'a> {
    master: &'a Master,
    chosen: Vec<InodeId>,
}

impl Drop for Reaping<'_> {
    fn drop(&mut self) {
        self.master.desk(|desk| desk.sessions.reaped(&self.chosen));
    }
}

/// Answers how many were freed: others stay in the trash.
async fn free(master: &Master, volume: VolumeId, inodes: &[InodeId]) -> Result<u64, CallError> {
    let reap = Reap { inodes: inodes.iter().map(|inode| inode.0).collect() };
    let request = FsRequest { caller: None, op: Some(Op::Reap(reap)) };
    let deadline = Instant::now() + HOUSEKEEPING_WITHIN;
    let ran = master.driver.run(SessionCall::default(), &context(master, volume), &request, deadline).await;
    let (reply, _) = ran.map_err(|e| driver_failed(&e, || master.not_leader()))?;
    Ok(match reply.reply {
        Some(Reply::Reaped(reaped)) => reaped.freed,
        _ => 0,
    })
}

/// So many seconds ago.
fn before(master: &Master, seconds: u64) -> i64 {
    let ns = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    master.clock.unix_ns().saturating_sub(ns)
}

fn forget_every(master: &Master) -> Duration {
    FORGET_EVERY.min(Duration::from_secs(master.config.house.outcomes_kept_s))
}

/// Forgets a volume's sessions that lapsed long ago, with their outcomes.
async fn forget_sessions(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    // By its record it is known that a session may come back.
    let house = &master.config.house;
    let before = before(master, house.outcomes_kept_s.max(house.opens_kept_s));
    let old = |record: &SessionRecord| record.lapsed_ns.is_some_and(|at| at < before);
    for (id, _) in all_sessions(master, volume).await?.into_iter().filter(|(_, record)| old(record)) {
        let gone = transact(&master.store, |tx| async move {
            let record = records::load_session(&tx, id).await?;
            let goes = record.is_none_or(|record| record.lapsed_ns.is_some_and(|at| at < before));
            if goes {
                records::close_session(&tx, id).await?;
            }
            Ok::<_, OpError>((tx, goes))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        if gone {
            master.desk(|desk| desk.seat_mut(volume).ids.unbind(id));
        }
    }
    Ok(())
}

/// Sessions that followed no home that was lost aren't waited for any more: what they may still buffer they don't have alone any more.
async fn give_up(master: &Master, late: Vec<SessionId>) {
    tracing::info!(
        sessions = late.len(),
        "sessions of a home that was lost haven't come yet; they aren't waited for any more"
    );
    futures::stream::iter(late)
        .for_each_concurrent(GIVEN_UP_AT_ONCE, |id| async move {
            let bumped = transact(&master.store, |tx| async move {
                let incarnation = records::bump_incarnation(&tx, id).await?;
                Ok((tx, incarnation))
            })
            .await;
            match bumped {
                Ok(Some(incarnation)) => master.desk(|desk| desk.given_up(id, incarnation)),
                Ok(None) => master.desk(|desk| desk.forget_session(id)),
                Err(error) => {
                    tracing::info!(session = id.0, %error, "a session can't be given up yet; trying on")
                }
            }
        })
        .await;
    master.recalls_answered.notify_waiters();
}

/// A volume's sessions on record.
pub(crate) async fn all_sessions(
    master: &Master,
    volume: VolumeId,
) -> Result<Vec<(SessionId, SessionRecord)>, CallError> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = transact(&master.store, |tx| async move {
            let page = records::list_sessions(&tx, volume, after, SESSIONS_PAGE).await?;
            Ok((tx, page))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        let full = page.len() == SESSIONS_PAGE;
        after = page.last().map(|(id, _)| *id);
        all.extend(page);
        if !full {
            return Ok(all);
        }
    }
}
