//! What a home's leader does about a volume's sessions and inodes, again and again: sessions whose leases ran out, what is to be freed, what expires.

use std::time::Duration;

use futures::StreamExt;
use mooseng_namespace::upkeep;
use mooseng_namespace::{SessionCall, sessions as records};
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
use crate::{expiry, lapsed, locks};

/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Sessions given up, or noted as lapsed, at a time: their records are committed together.
const GIVEN_UP_AT_ONCE: usize = 64;
/// How often inodes are freed.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// Inodes freed at a time.
const REAP_MAX: usize = 64;
/// Orphans looked at for that.
const ORPHANS_PAGE: usize = 256;
/// Such pages worked off one after the other: what is deleted at once by thousands is freed soon, and other work gets its turn.
const PAGES_MAX: usize = 8;
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
    /// Sessions that lapsed, and whose records don't say so yet.
    unnoted: Vec<Recorded>,
    lapsed: lapsed::Lapsed,
    expiry: expiry::Expiry,
}

impl House {
    fn new(master: &Master, volume: VolumeId) -> Self {
        let now = Instant::now();
        Self {
            volume,
            next_reap: now + REAP_EVERY,
            orphans_after: None,
            trims_after: None,
            next_forget: now + lapsed::forget_every(master),
            unnoted: Vec::new(),
            lapsed: lapsed::Lapsed::new(volume),
            expiry: expiry::Expiry::new(volume),
        }
    }

    async fn tick(&mut self, master: &Master) {
        self.lapse(master).await;
        let mut troubles = Vec::new();
        if Instant::now() >= self.next_reap {
            self.next_reap = Instant::now() + REAP_EVERY;
            troubles.extend(self.expiry.tick(master).await.err());
            troubles.extend(self.lapsed.tick(master).await.err());
            troubles.extend(self.reap(master).await.err());
            troubles.extend(self.trim(master).await.err());
        }
        if Instant::now() >= self.next_forget {
            self.next_forget = Instant::now() + lapsed::forget_every(master);
            troubles.extend(self.lapsed.forget(master).await.err());
        }
        for error in troubles {
            tracing::info!(error = %error.message, "a piece of housekeeping failed and is tried again");
        }
    }

    /// Notes lapsed sessions in the store, so that nothing of theirs that is still under way commits. What they were promised others get only then: a next leader
    /// that knows nothing of a lapse would take the session for having it still.
    async fn lapse(&mut self, master: &Master) {
        let (lapsed, late) = master.desk(|desk| {
            let now = master.clock.boot();
            let lapsed = desk.sessions.lapse(self.volume, now);
            for recorded in &lapsed {
                // Its record says that it lapsed, and not that it was given up.
                desk.overdue.remove(&recorded.session);
            }
            (lapsed, desk.give_up_waiting(self.volume, now))
        });
        if !late.is_empty() {
            give_up(master, late).await;
        }
        for session in &lapsed {
            tracing::info!(session = session.session.0, host = session.host, "a session's lease ran out");
            master.metrics.lapsed.inc();
        }
        self.unnoted.extend(lapsed);
        if self.unnoted.is_empty() {
            return;
        }
        let now_ns = match self.lapsed.begin(master).await {
            Ok(now_ns) => now_ns,
            Err(error) => {
                tracing::info!(error = %error.message, "lapses can't be noted yet; trying on");
                return;
            }
        };
        let unnoted = std::mem::take(&mut self.unnoted).into_iter();
        let noting = unnoted.map(|session| note_lapse(master, session, now_ns));
        let left = futures::stream::iter(noting).buffer_unordered(GIVEN_UP_AT_ONCE);
        self.unnoted = left.filter_map(std::future::ready).collect().await;
    }

    async fn reap(&mut self, master: &Master) -> Result<(), CallError> {
        if self.lapsed.keeps_opens(master, !self.unnoted.is_empty()).await? {
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

/// Notes that a session has lapsed. Answers it if that couldn't be done.
async fn note_lapse(master: &Master, session: Recorded, now_ns: i64) -> Option<Recorded> {
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
    if let Err(error) = noted {
        tracing::info!(session = id.0, %error, "a lapse can't be noted yet; trying on");
        return Some(session);
    }
    forget_life(master, id, incarnation);
    if let Err(error) = locks::free(master, id).await {
        tracing::info!(session = id.0, error = %error.message, "a lapsed session's locks are freed later");
    }
    None
}

/// A life of a session is over, on record: nobody waits for it any more. If the session is there again, it is as a newer life, which was promised nothing of this one's.
fn forget_life(master: &Master, id: SessionId, incarnation: u64) {
    master.desk(|desk| {
        let newer = desk.sessions.recorded(id).is_some_and(|there| there.incarnation.0 > incarnation);
        if !newer {
            desk.sessions.remove(id);
            desk.forget_session(id);
        }
    });
    master.recalls_answered.notify_waiters();
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
