//! Locks at work: one request at a time for an inode, queues of those who wait, grants as notices (DESIGN sections 4 and 5; the queues are
//! [`mooseng_region::locks`]', what is held is [`mooseng_namespace::held`]'s).
//!
//! ```text
//!   Lock -> gate of the inode -> change -> held                     -> answer
//!                                   \---> conflict -> queue, judge  -> answer "queued" (or EDEADLK)
//!   Unlock, a session's end -> change -> the inode's queue is looked through behind the same gate -> notice, until it is answered
//!   HoldLocks -> gate -> change -> none is on record, nobody waits, nobody else has the file open -> the session gives them by itself, until they are recalled
//!   RecordLocks, before such a recall is answered -> change: past the gate, where whoever had them recalled waits
//! ```
//! Whoever waits occupies nothing but its place in the queue. The gate keeps those who come later from what is granted to those who wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_namespace::held::{self, Verdict};
use mooseng_namespace::locks::Want;
use mooseng_namespace::{OpContext, SessionCall, reclaim};
use mooseng_ports::plant::{self, Plant};
use mooseng_region::locks::{Owner, Wait, WaitId};
use mooseng_region::sessions::Recorded;
use mooseng_schema::lock::LockOwner;
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsReply, FsRequest, Lock, LockState, Locked};
use mooseng_wire::method::Method;
use mooseng_wire::session::Notice;
use mooseng_wire::{InodeId, SessionId, VolumeId};
use prost::Message;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::errors::record_failed;
use crate::fs::context;
use crate::master::Master;
use crate::promises;
use crate::records::transact;

/// Notices that aren't answered are sent again so often, and queues looked through again.
const REPEAT_EVERY: Duration = Duration::from_millis(300);
/// Waits of one inode that are looked at in one transaction. There may be more.
const WAITS_AT_ONCE: usize = 256;
/// Inodes whose queues are looked through again at a time: what became free unseen is found.
const INODES_AT_ONCE: usize = 32;
/// Sessions with locks read at a time.
const HOLDERS_PAGE: usize = 100;
/// How often a chain of waits is looked at anew before it is believed to be none.
const CHAIN_LOOKS: usize = 8;

const EDEADLK: u32 = 35;
const ENOLCK: u32 = 37;

/// One gate for each inode that somebody works on.
#[derive(Default)]
pub struct Gates(Mutex<BTreeMap<InodeId, Arc<tokio::sync::Mutex<()>>>>);

impl Gates {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<InodeId, Arc<tokio::sync::Mutex<()>>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn pass(self: &Arc<Self>, inode: InodeId) -> Passed {
        let gate = self.map(|map| map.entry(inode).or_default().clone());
        // Also where this future is dropped before it is let in.
        let mut passed = Passed { gates: self.clone(), inode, guard: None };
        passed.guard = Some(gate.lock_owned().await);
        passed
    }
}

/// Whoever has it works on the inode's locks alone.
struct Passed {
    gates: Arc<Gates>,
    inode: InodeId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.guard = None;
        self.gates.map(|map| {
            // Clones are made under this lock alone: with one left, nobody is at the gate.
            if map.get(&self.inode).is_some_and(|gate| Arc::strong_count(gate) == 1) {
                map.remove(&self.inode);
            }
        });
    }
}

/// A change of locks under way. Once it is over, in whatever way, the queue of its inode is looked through.
pub struct Locking {
    master: Arc<Master>,
    term: u64,
    passed: Option<Passed>,
}

/// Begins a change of locks; none for other changes.
pub async fn begin(
    master: &Arc<Master>,
    term: u64,
    call: &SessionCall,
    request: &FsRequest,
    deadline: Instant,
) -> Result<Option<Locking>, CallError> {
    let inode = match &request.op {
        Some(Op::Lock(r)) => r.inode,
        Some(Op::Unlock(r)) => r.inode,
        Some(Op::CancelLock(r)) => r.inode,
        Some(Op::HoldLocks(r)) => r.inode,
        _ => return Ok(None),
    };
    let passed = tokio::time::timeout_at(deadline, master.lock_gates.pass(InodeId(inode)))
        .await
        .map_err(|_| call_error(ErrorCode::Unavailable, "too many work on this inode's locks; try again"))?;
    if let Some(Op::CancelLock(r)) = &request.op {
        // Before the store is asked: behind this gate it is granted no more.
        master.desk(|desk| desk.lock_waits.remove((call.session, r.wait)));
    }
    Ok(Some(Locking { master: master.clone(), term, passed: Some(passed) }))
}

impl Locking {
    /// The change was answered: what conflicts is queued.
    pub async fn end(
        mut self,
        call: &SessionCall,
        request: &FsRequest,
        reply: &mut FsReply,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let (Some(Op::Lock(lock)), Some(Reply::Locked(locked))) = (&request.op, &mut reply.reply) else {
            return Ok(());
        };
        let id = (call.session, lock.wait);
        match locked.state() {
            LockState::Queued => {
                let answer = self.queue(call, lock, deadline).await?;
                reply.reply = Some(answer);
            }
            // What was lost, or is waited for no more, wasn't granted later.
            LockState::Held | LockState::Gone | LockState::Unspecified => self.master.desk(|desk| {
                desk.lock_waits.remove(id);
                desk.lock_waits.told(id);
            }),
        }
        Ok(())
    }

    async fn queue(
        &mut self,
        call: &SessionCall,
        lock: &Lock,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let (master, term) = (self.master.clone(), self.term);
        let id = (call.session, lock.wait);
        // A recorded outcome is old: by now somebody may give the inode's locks by himself. Behind the gate nobody begins to.
        promises::admit_locks(&master, term, call.session, InodeId(lock.inode), deadline).await?;
        let wait = Wait {
            id,
            incarnation: call.incarnation,
            inode: InodeId(lock.inode),
            lock: lock.lock.unwrap_or_default(),
        };
        let queued = master.desk(|desk| {
            // Of a request that its session has given up nobody would hear.
            let over = desk.sessions.settled(call.session) > call.number
                || desk.sessions.recorded(call.session).is_none_or(|r| r.incarnation != call.incarnation)
                || !desk.is_custodian(call.session.volume(), term);
            if over { None } else { Some(desk.lock_waits.queue(wait.clone())) }
        });
        match queued {
            None => return Err(call_error(ErrorCode::StaleEpoch, "whoever asked for the lock is gone")),
            Some(Err(_)) => return Ok(Reply::Errno(ENOLCK)),
            Some(Ok(())) => {}
        }
        // A recorded outcome is old: by now it may be free. And whoever is in the way is known from now on.
        let judged = look_through(&master, term, InodeId(lock.inode), Some(&wait)).await;
        let stays = master.desk(|desk| desk.lock_waits.of_id(id).is_some());
        match judged {
            Err(error) => {
                master.desk(|desk| desk.lock_waits.remove(id));
                return Err(error);
            }
            Ok(granted) if !stays => {
                master.desk(|desk| desk.lock_waits.told(id));
                let held = Locked { state: LockState::Held.into(), custody_epoch: term };
                return Ok(if granted { Reply::Locked(held) } else { Reply::Errno(ENOLCK) });
            }
            Ok(_) => {}
        }
        if waits_for_itself(&master, id).await? {
            master.desk(|desk| desk.lock_waits.remove(id));
            return Ok(Reply::Errno(EDEADLK));
        }
        Ok(Reply::Locked(Locked { state: LockState::Queued.into(), custody_epoch: term }))
    }
}

impl Drop for Locking {
    fn drop(&mut self) {
        let Some(passed) = self.passed.take() else { return };
        if !self.master.desk(|desk| desk.lock_waits.is_waited_for(passed.inode)) {
            return;
        }
        let (master, term) = (self.master.clone(), self.term);
        tokio::spawn(async move {
            if let Err(error) = look_through(&master, term, passed.inode, None).await {
                tracing::debug!(error = %error.message, "a queue for locks is looked through later");
            }
            drop(passed);
        });
    }
}

fn want(wait: &Wait) -> Option<Want> {
    Want::new(wait.id.0, wait.incarnation, Some(&wait.lock), wait.id.1).ok()
}

fn owner(owner: &LockOwner) -> Owner {
    (owner.kind, owner.session, owner.owner)
}

/// Grants what can be granted on an inode, and notes who is in the way of the others: of all that wait, some at a time. The caller has passed
/// its gate. Answers whether that wait was granted.
async fn look_through(
    master: &Master,
    term: u64,
    inode: InodeId,
    also: Option<&Wait>,
) -> Result<bool, CallError> {
    let mut granted = false;
    // Behind the gate none comes into the queue. A lock on one part of the file may be free for the last of them.
    let ids = master.desk(|desk| desk.lock_waits.ids(inode));
    let also_id = also.map(|also| also.id);
    for ids in ids.chunks(WAITS_AT_ONCE) {
        let waits = master.desk(|desk| desk.lock_waits.of_ids(ids));
        granted |= judge(master, term, inode, &waits, also_id).await?;
    }
    if let Some(missing) = also.filter(|also| !ids.contains(&also.id)) {
        granted |= judge(master, term, inode, std::slice::from_ref(missing), also_id).await?;
    }
    Ok(granted)
}

/// [`look_through`] for these waits.
async fn judge(
    master: &Master,
    term: u64,
    inode: InodeId,
    waits: &[Wait],
    also: Option<WaitId>,
) -> Result<bool, CallError> {
    let (ids, wants): (Vec<WaitId>, Vec<Want>) =
        waits.iter().filter_map(|wait| Some((wait.id, want(wait)?))).unzip();
    if ids.is_empty() {
        return Ok(false);
    }
    let wants = &wants;
    let verdicts = transact(&master.store, move |tx| async move {
        let verdicts = held::grant(&tx, inode, wants).await?;
        Ok((tx, verdicts))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    let judged: Vec<(WaitId, Verdict)> = ids.into_iter().zip(verdicts).collect();
    let mut granted: BTreeMap<SessionId, Vec<u64>> = BTreeMap::new();
    master.desk(|desk| {
        if !desk.is_custodian(inode.volume(), term) {
            return;
        }
        for (id, verdict) in &judged {
            match verdict {
                Verdict::Granted => {
                    if desk.lock_waits.granted(*id) {
                        granted.entry(id.0).or_default().push(id.1);
                    }
                }
                Verdict::Blocked(owners) => {
                    desk.lock_waits.judged(*id, owners.iter().map(owner).collect());
                }
                Verdict::Dead => drop(desk.lock_waits.remove(*id)),
            }
        }
    });
    for (session, waits) in granted {
        // Who is answered at once needn't be told beside.
        let waits: Vec<u64> = waits.into_iter().filter(|wait| also != Some((session, *wait))).collect();
        tell(master, term, session, waits);
    }
    Ok(judged.iter().any(|(id, verdict)| Some(*id) == also && *verdict == Verdict::Granted))
}

/// Whether a wait is kept by its own owner, over others. A chain is believed only if each of its links is there at one moment: what was
/// judged before may be old, and a lock that is refused for nothing is an error of ours.
async fn waits_for_itself(master: &Master, id: WaitId) -> Result<bool, CallError> {
    for _ in 0..CHAIN_LOOKS {
        let Some(chain) = master.desk(|desk| desk.lock_waits.cycle(id)) else { return Ok(false) };
        let mut links = Vec::with_capacity(chain.len());
        for (wait, (kind, session, owner)) in &chain {
            let Some(want) = want(wait) else { return Ok(false) };
            links.push((wait.inode, want, LockOwner { kind: *kind, session: *session, owner: *owner }));
        }
        let links = &links;
        let there = transact(&master.store, move |tx| async move {
            let there = held::are_blocked(&tx, links).await?;
            Ok((tx, there))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        if there.iter().all(|there| *there) {
            return Ok(true);
        }
        master.desk(|desk| {
            for ((wait, owner), there) in chain.iter().zip(there) {
                if !there {
                    desk.lock_waits.not_blocked_by(wait.id, *owner);
                }
            }
        });
    }
    Ok(false)
}

fn tell(master: &Master, custody_epoch: u64, session: SessionId, locks: Vec<u64>) {
    if locks.is_empty() {
        return;
    }
    if let Some(connection) = master.connections.get(session) {
        // Whoever has the lock is to see what was done under it before, also at a replica.
        let shown = master.geo.shown(session.volume());
        let (log_epoch, log_version) = (shown.epoch.0, shown.version);
        let notice =
            Notice { session: session.0, custody_epoch, locks, log_epoch, log_version, ..Notice::default() };
        // One that can't be sent is repeated later.
        if connection.notify(Method::Notice, notice.encode_to_vec().into()).is_err() {
            tracing::debug!(session = session.0, "a grant couldn't be told yet");
        }
    }
}

/// Gives a session the locks that it had under the home before ([`mooseng_namespace::reclaim`]). Only while this custodian waits for it: nobody is
/// given any before.
pub async fn reclaim(
    master: &Master,
    session: &Recorded,
    root: InodeId,
    locks: &[Lock],
) -> Result<Option<Vec<u32>>, CallError> {
    if locks.is_empty() || plant::is(Plant::ReclaimSkipped) {
        return Ok(Some(Vec::new()));
    }
    let volume = session.session.volume();
    let context = OpContext {
        session: session.session,
        incarnation: session.incarnation,
        confined: (root != InodeId::root_of(volume)).then_some(root),
        ..context(master, volume)
    };
    let context = &context;
    let lost = transact(&master.store, move |tx| async move {
        let lost = reclaim::reclaim(&tx, volume, context, locks).await?;
        Ok((tx, lost))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    if let Some(lost) = &lost {
        tracing::info!(
            session = session.session.0,
            locks = locks.len(),
            lost = lost.len(),
            "a session has its locks again that it had under the home before"
        );
    }
    Ok(lost)
}

/// Frees the locks of a session's lives that are over, and grants what waited for them.
pub async fn free(master: &Master, session: SessionId) -> Result<(), CallError> {
    // Should this fail, it is tried again.
    master.desk(|desk| desk.lock_debts.insert(session));
    let mut after = None;
    loop {
        let (freed, last) = transact(&master.store, move |tx| async move {
            let freed = held::free_dead(&tx, session, after).await?;
            Ok((tx, freed))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        for inode in freed {
            look_again(master, inode).await?;
        }
        if last.is_none() {
            break;
        }
        after = last;
    }
    master.desk(|desk| desk.lock_debts.remove(&session));
    Ok(())
}

async fn look_again(master: &Master, inode: InodeId) -> Result<(), CallError> {
    if !master.desk(|desk| desk.lock_waits.is_waited_for(inode)) {
        return Ok(());
    }
    let passed = master.lock_gates.pass(inode).await;
    // While the volume isn't served here its queues wait.
    if let Some(term) = master.desk(|desk| desk.serving_of(inode.volume())) {
        look_through(master, term, inode, None).await?;
    }
    drop(passed);
    Ok(())
}

/// A new leader frees what ended sessions of a volume still hold: the one before may not have come to it.
pub async fn sweep(master: &Master, volume: VolumeId) {
    // No session has the number 0.
    let mut after = Some(SessionId::new(volume, 0));
    loop {
        let page = transact(&master.store, move |tx| async move {
            let page = held::holders(&tx, after, HOLDERS_PAGE).await?;
            Ok((tx, page))
        })
        .await;
        match page {
            Ok(page) => {
                let of_it = page.iter().copied().take_while(|session| session.volume() == volume);
                master.desk(|desk| desk.lock_debts.extend(of_it));
                let last = page.last().copied().filter(|session| session.volume() == volume);
                if page.len() < HOLDERS_PAGE || last.is_none() {
                    return;
                }
                after = last;
            }
            Err(error) => {
                tracing::info!(%error, "the sessions that hold locks can't be read yet; trying on");
                tokio::time::sleep(REPEAT_EVERY).await;
            }
        }
    }
}

/// Repeats notices that aren't answered, frees what is to be freed, and looks queues through again.
pub async fn keep(master: Arc<Master>) {
    let mut after = InodeId(0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(REPEAT_EVERY) => {}
            () = master.shutdown.cancelled() => return,
        }
        let Some((untold, debts, inodes)) = master.desk(|desk| {
            // What isn't served waits: its sessions and locks stay as they are until it is again.
            let custody = |volume| desk.serving_of(volume);
            let debts = desk.lock_debts.iter().copied().filter(|id| custody(id.volume()).is_some()).collect();
            let inodes = desk.lock_waits.inodes_behind(after, INODES_AT_ONCE);
            let untold = desk.lock_waits.untold().into_iter();
            let untold = untold.filter_map(|(id, waits)| Some((custody(id.volume())?, id, waits)));
            let found: (Vec<_>, Vec<SessionId>, Vec<InodeId>) = (untold.collect(), debts, inodes);
            desk.is_serving().then_some(found)
        }) else {
            continue;
        };
        after = if inodes.len() < INODES_AT_ONCE {
            InodeId(0)
        } else {
            inodes.last().copied().unwrap_or_default()
        };
        for (custody, session, waits) in untold {
            tell(&master, custody, session, waits);
        }
        let tidy = async {
            for session in debts {
                free(&master, session).await?;
            }
            for inode in inodes {
                look_again(&master, inode).await?;
            }
            Ok::<_, CallError>(())
        };
        tokio::select! {
            outcome = tidy => if let Err(error) = outcome {
                tracing::debug!(error = %error.message, "locks are looked after again later");
            },
            () = master.shutdown.cancelled() => return,
        }
    }
}

/// A pid means something on its own host only.
pub fn hide_pid(master: &Master, asker: SessionId, reply: &mut FsReply) {
    if let Some(Reply::LockHolder(holder)) = &mut reply.reply
        && let Some(lock) = &mut holder.lock
    {
        let same_host = master.desk(|desk| {
            let host = |id| desk.sessions.recorded(id).map(|recorded| recorded.host.clone());
            host(asker).is_some_and(|ours| host(SessionId(holder.session)) == Some(ours))
        });
        if !same_host {
            lock.pid = 0;
        }
    }
}
