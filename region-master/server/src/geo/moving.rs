//! A planned move of a volume's home (the decisions are [`mooseng_region::moving`]'s).
//!
//! ```text
//!  MoveHome --ask--> the home's leader: run -- near? --> seal: answers nothing, the epoch's last entry is written
//!     --> the target is complete there --> one global entry: the next epoch is open at the target --> notices to sessions
//!     \--> comes to nothing --> taken up anew (lead): go_on makes sure that the move comes no more, and undoes the end
//! ```
//! Requests that come while the home is sealed wait; then they are answered, or told where the home is. What was under way and hasn't committed is to be sent
//! again, under its number. Whoever leads here next finds the end on record, and does as above.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mooseng_embedded::{EmbeddedTransaction, Seal};
use mooseng_global::{Durability, View, Volume};
use mooseng_region::moving::{AGREE_WITHIN, Answer, Facts, Move, Step, Verdict};
use mooseng_replica::{ReplicaError, logged_ranges, turn};
use mooseng_schema::log::{self, LogPosition};
use mooseng_store::{Store, StoreError, Transaction};
use mooseng_transport::call_error;
use mooseng_wire::admin::{LogPlace, MoveHomeReply, MoveHomeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change as Asked;
use mooseng_wire::global::{MoveHome, Position, StayHome};
use mooseng_wire::method::Method;
use mooseng_wire::session::Notice;
use mooseng_wire::{Epoch, VolumeId};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Whereabouts, lock, not_home, pause, place_of};
use crate::global::status::told;
use crate::master::Master;

/// How often it is looked how things are, where nothing happens.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After a failure.
const AGAIN: Duration = Duration::from_millis(50);
/// A request waits so long for a home that is sealed.
const SEALED_MAX: Duration = Duration::from_secs(8);
/// How long the regions may take to agree that the home goes on.
const STAY_WITHIN: Duration = Duration::from_secs(5);
/// Whoever asked for a move waits so long to hear that it was made, where its leader has ended.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);
/// How long the old home waits to hear of what was agreed on.
const HEAR_WITHIN: Duration = Duration::from_secs(10);
/// Tries of the last entry.
const TRIES: u32 = 5;

/// A move that somebody waits for.
pub struct Ordered {
    to: String,
    answer: oneshot::Sender<Done>,
}

/// How a move ended, for who asked for it.
struct Done {
    verdict: Verdict,
    cut: LogPosition,
    stopped: Duration,
    version: u64,
}

/// Waits while the home is sealed.
pub async fn unsealed(master: &Master, volume: VolumeId, deadline: Instant) -> Result<(), CallError> {
    let mut sealed = master.geo.seat(volume).sealed.subscribe();
    if !*sealed.borrow_and_update() {
        return Ok(());
    }
    let until = deadline.min(Instant::now() + SEALED_MAX);
    tokio::select! {
        _ = sealed.wait_for(|sealed| !sealed) => Ok(()),
        () = tokio::time::sleep_until(until) => Err(is_moving()),
        () = master.shutdown.cancelled() => Err(master.not_leader()),
    }
}

/// The refusal while nothing may be answered.
pub fn is_moving() -> CallError {
    call_error(ErrorCode::Unavailable, "the volume's home is being moved to another region; try again")
}

/// Moves the home, or says whether it could be moved now.
pub async fn order(
    master: &Master,
    request: MoveHomeRequest,
    deadline: Instant,
) -> Result<MoveHomeReply, CallError> {
    let volume = u16::try_from(request.volume).map(VolumeId).unwrap_or(VolumeId(u16::MAX));
    // A home whose epoch is closed serves nothing, and may be the one for which it is given up.
    if !request.force {
        master.serving_of(volume)?;
    } else if !master.raft.is_leading() {
        return Err(master.not_leader());
    }
    let (Some(global), Some(view)) = (&master.global, master.geo.view()) else {
        let message = "this cluster has one region: there is no other one that could be the home";
        return Err(call_error(ErrorCode::InvalidRequest, message));
    };
    let Some(before) = view.volumes.get(&volume) else {
        let message = format!(
            "there is no volume {}; `mooseng volume list` names those that there are",
            request.volume
        );
        return Err(call_error(ErrorCode::NotFound, message));
    };
    if request.force {
        return super::giving_up::order(master, &request, (volume, before), deadline).await;
    }
    let term = master.serving_of(volume)?;
    super::at_home(master, volume)?;
    let check = MoveHome {
        volume: request.volume,
        epoch: before.epoch.0,
        to: request.to.clone(),
        ..MoveHome::default()
    };
    let checked = global.change(Asked::CheckMove(check), deadline).await?;
    let shipped = master.geo.shipped(volume).remove(&request.to).unwrap_or_default();
    if shipped.copying || !shipped.trouble.is_empty() || shipped.at.is_none() {
        let why = match (shipped.copying, shipped.trouble.as_str()) {
            (true, _) => "the volume is being copied to it still".to_owned(),
            (false, "") => "it hasn't been heard of since this leader began".to_owned(),
            (false, trouble) => format!("it isn't reached: {trouble}"),
        };
        return Err(refused(
            &request.to,
            &format!("{why}. With --force it is moved in spite of that, and what it lacks is lost"),
        ));
    }
    if request.plan
        && let Some(verdict) = too_far(master, volume, &request.to).await
        && let Some(error) = refusal(&request.to, verdict)
    {
        return Err(error);
    }
    let shipped = master.geo.shipped(volume).remove(&request.to).unwrap_or_default();
    let behind = super::lacking(master, volume, &shipped, master.clock.boot());
    let mut after = Volume { home: request.to.clone(), epoch: Epoch(before.epoch.0 + 1), ..before.clone() };
    if after.durability == Durability::Region {
        after.sync_set = [request.to.clone()].into();
    }
    let reply = MoveHomeReply {
        version: checked.version,
        before: Some(told(volume, before)),
        after: Some(told(volume, &after)),
        behind_ms: behind.map(|behind| millis(behind.age)),
        stopped_ms: 0,
        cut: None,
    };
    master.may_answer(term)?;
    if request.plan {
        return Ok(reply);
    }
    let (answer, answered) = oneshot::channel();
    let ordered = Ordered { to: request.to.clone(), answer };
    let busy = || {
        call_error(ErrorCode::Unavailable, "the home is being moved already, or has just begun; try again")
    };
    lock(&master.geo.seat(volume).moves).as_ref().ok_or_else(busy)?.try_send(ordered).map_err(|_| busy())?;
    let done = match tokio::time::timeout_at(deadline, answered).await {
        Ok(Ok(done)) => done,
        // Where this region heard of the move before it was answered, the leader is none of a home any more.
        _ => moved(master, volume, (before.epoch, &request.to)).await.ok_or_else(|| {
            let message = "the home's leader ended before the move did: `mooseng volume info /` shows where the home is";
            call_error(ErrorCode::OutcomeUnknown, message)
        })?,
    };
    match refusal(&request.to, done.verdict) {
        Some(error) => Err(error),
        None => Ok(MoveHomeReply {
            version: done.version,
            stopped_ms: millis(done.stopped),
            cut: Some(LogPlace { epoch: done.cut.epoch.0, version: done.cut.version }),
            ..reply
        }),
    }
}

/// The move, if it is known here that it was made.
async fn moved(master: &Master, volume: VolumeId, (from, to): (Epoch, &str)) -> Option<Done> {
    let mut cluster = master.geo.cluster.clone()?;
    let is_over = |view: &Arc<View>| view.volumes.get(&volume).is_some_and(|known| known.epoch > from);
    let view = tokio::time::timeout(KNOWN_WITHIN, cluster.wait_for(is_over)).await.ok()?.ok()?.clone();
    let known = view.volumes.get(&volume)?;
    if known.epoch.0 != from.0 + 1 || known.home != to || known.lost_home.is_some() {
        return None;
    }
    let stopped = lock(&master.geo.seat(volume).stopped).map(|since| since.elapsed()).unwrap_or_default();
    Some(Done { verdict: Verdict::Moved, cut: known.cut?, stopped, version: view.version })
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn refused(to: &str, why: &str) -> CallError {
    let message = format!("the home can't be moved to {to}: {why}");
    call_error(ErrorCode::InvalidRequest, message)
}

/// Why there was no move.
fn refusal(to: &str, verdict: Verdict) -> Option<CallError> {
    let seconds = |duration: Duration| format!("{:.1} s", duration.as_secs_f64());
    let why = match verdict {
        Verdict::Moved => return None,
        Verdict::Unknown => {
            let message = "the regions didn't agree on the move in time: it may be made or not, and `mooseng volume info /` shows where the home is";
            return Some(call_error(ErrorCode::OutcomeUnknown, message));
        }
        Verdict::Silent(None) => "it isn't heard of. With --force it is moved in spite of that, and what it lacks is lost: nobody knows how much".to_owned(),
        Verdict::Silent(Some(since)) => format!(
            "it hasn't been heard of for {}. With --force it is moved in spite of that, and what was written since is lost",
            seconds(since)
        ),
        Verdict::Behind(None) => "it lacks a part of what was written, and nobody knows how much. With --force it is moved in spite of that, and that is lost".to_owned(),
        Verdict::Behind(Some(by)) => format!(
            "it doesn't keep up: it lacks what was written in the last {} or more. With --force it is moved in spite of that, and that is lost",
            seconds(by)
        ),
        Verdict::NotEnded => "the home's masters couldn't agree on the end of its epoch; nothing has changed, and it goes on".to_owned(),
        Verdict::NotFollowed => "it didn't have the last changes in time; nothing has changed, and the home goes on".to_owned(),
        Verdict::Refused => "the regions have agreed on something else meanwhile; nothing was moved, and the home goes on".to_owned(),
    };
    Some(refused(to, &why))
}

/// Carries moves out that are asked for, as long as this region is the volume's home under that epoch. Returns where a move came to nothing after the home
/// was sealed: then it is to be taken up anew.
pub async fn run(master: &Arc<Master>, volume: VolumeId, epoch: Epoch) {
    if master.global.is_none() {
        return std::future::pending().await;
    }
    let (sender, mut orders) = mpsc::channel(1);
    *lock(&master.geo.seat(volume).moves) = Some(sender);
    let _open = Open(master, volume);
    while let Some(ordered) = orders.recv().await {
        tracing::info!(to = ordered.to, "the volume's home is to be moved");
        let mut end = None;
        let done = carry_out(master, volume, epoch, &ordered.to, &mut end).await;
        let (verdict, moved) = (done.verdict, done.verdict == Verdict::Moved);
        if moved {
            tracing::info!(to = ordered.to, cut = %done.cut, stopped = ?done.stopped, "the volume's home is moved");
        } else {
            tracing::info!(to = ordered.to, ?verdict, "the volume's home isn't moved");
        }
        // Whoever asked may be gone.
        let _ = ordered.answer.send(done);
        if moved {
            // What this region is from now on ends this.
            return std::future::pending().await;
        }
        if end.is_some() {
            return;
        }
    }
}

/// Moves can be asked for as long as it lives.
struct Open<'a>(&'a Master, VolumeId);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        *lock(&self.0.geo.seat(self.1).moves) = None;
    }
}

/// Keeps everything from the volume's records behind the last entry of an epoch. What may be answered isn't its matter: [`super::Geo::sealed`] stays until
/// it is known who the home is.
struct Sealed<'a>(&'a Master, VolumeId);

impl<'a> Sealed<'a> {
    fn put_on(master: &'a Master, volume: VolumeId) -> Self {
        master.geo.seat(volume).sealed.send_replace(true);
        let pass = log::logged_key(volume).into();
        master.store.seal(Seal { ranges: logged_ranges(volume).into(), pass });
        Self(master, volume)
    }
}

impl Drop for Sealed<'_> {
    fn drop(&mut self) {
        // Nobody is served before it is known who the home is.
        self.0.desk(|desk| desk.unseat(self.1));
        self.0.store.unseal(&log::logged_key(self.1));
    }
}

/// How far the target of a move is.
fn facts(master: &Master, volume: VolumeId, to: &str) -> Facts<LogPosition> {
    let known = master.geo.shipped(volume).remove(to).unwrap_or_default();
    Facts { newest: master.geo.newest(volume), complete: known.complete_at(), heard: known.heard }
}

/// Looks whether a target comes near enough for the home to be stopped, for as long as a move would. None: it has.
async fn too_far(master: &Master, volume: VolumeId, to: &str) -> Option<Verdict> {
    let mut acknowledged = master.geo.seat(volume).acknowledged.subscribe();
    let mut moving = Move::<LogPosition>::new(master.clock.boot());
    loop {
        acknowledged.borrow_and_update();
        match moving.step(master.clock.boot(), &facts(master, volume, to)) {
            Step::Wait => drop(tokio::time::timeout(LOOK_EVERY, acknowledged.changed()).await),
            Step::Over(verdict) => return Some(verdict),
            Step::End | Step::Propose(_) => return None,
        }
    }
}

async fn carry_out<'a>(
    master: &'a Arc<Master>,
    volume: VolumeId,
    epoch: Epoch,
    to: &str,
    sealed: &mut Option<Sealed<'a>>,
) -> Done {
    let seat = master.geo.seat(volume);
    let mut acknowledged = seat.acknowledged.subscribe();
    let mut moving = Move::<LogPosition>::new(master.clock.boot());
    let mut done =
        Done { verdict: Verdict::Unknown, cut: LogPosition::default(), stopped: Duration::ZERO, version: 0 };
    let mut stopped = None;
    loop {
        acknowledged.borrow_and_update();
        match moving.step(master.clock.boot(), &facts(master, volume, to)) {
            Step::Wait => drop(tokio::time::timeout(LOOK_EVERY, acknowledged.changed()).await),
            Step::End => {
                stopped = Some(Instant::now());
                *lock(&seat.stopped) = stopped;
                *sealed = Some(Sealed::put_on(master, volume));
                let last = end(master, volume, epoch).await;
                moving.ended(master.clock.boot(), last);
            }
            Step::Propose(last) => {
                let (answer, version) = propose(master, volume, epoch, to, last).await;
                (done.cut, done.version) = (last, version);
                moving.answered(master.clock.boot(), answer);
                if answer == Answer::Overtaken {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            Step::Over(verdict) => {
                done.stopped = stopped.map(|since| since.elapsed()).unwrap_or_default();
                return Done { verdict, ..done };
            }
        }
    }
}

/// Writes the last entry of the epoch. None where that didn't work, or isn't known to have.
async fn end(master: &Master, volume: VolumeId, epoch: Epoch) -> Option<LogPosition> {
    for _ in 0..TRIES {
        let tx = master.store.begin();
        let failure = match turn::end_for_move(&tx, volume, epoch).await {
            Ok(()) => match tx.commit().await {
                Ok(committed) => return Some(LogPosition::new(epoch, committed.version.0)),
                Err(error) => ReplicaError::Store(error),
            },
            Err(error) => error,
        };
        // Where it isn't known whether it was written, another one may be the last.
        if !matches!(&failure, ReplicaError::Store(error) if error.is_retryable() && *error != StoreError::CommitUnknown)
        {
            tracing::info!(error = %failure, "the end of the epoch can't be written");
            return None;
        }
        tokio::time::sleep(pause(Duration::from_millis(1))).await;
    }
    None
}

async fn propose(
    master: &Master,
    volume: VolumeId,
    epoch: Epoch,
    to: &str,
    last: LogPosition,
) -> (Answer, u64) {
    let (Some(global), Some(view)) = (&master.global, master.geo.view()) else { return (Answer::Refused, 0) };
    let change = MoveHome {
        volume: volume.0.into(),
        epoch: epoch.0,
        to: to.to_owned(),
        cut: Some(Position { epoch: last.epoch.0, version: last.version }),
        at_version: view.version,
        ..MoveHome::default()
    };
    match global.change(Asked::MoveHome(change), Instant::now() + AGREE_WITHIN).await {
        Ok(changed) => (Answer::Agreed, changed.version),
        Err(error) => {
            tracing::info!(error = %error.message, "the move of the home isn't agreed on");
            let answer = match error.code() {
                // Of another epoch it will be so again, until its time is over.
                ErrorCode::StaleEpoch => Answer::Overtaken,
                ErrorCode::InvalidRequest | ErrorCode::NotFound | ErrorCode::PermissionDenied => {
                    Answer::Refused
                }
                _ => Answer::Unknown,
            };
            (answer, 0)
        }
    }
}

/// Waits until this master knows of what was agreed on.
async fn hear(master: &Master, version: u64) {
    let Some(mut cluster) = master.geo.cluster.clone() else { return };
    let known = cluster.wait_for(|view| view.version >= version);
    if !matches!(tokio::time::timeout(HEAR_WITHIN, known).await, Ok(Ok(_))) {
        tracing::info!("this master hasn't heard yet of the move that it asked for");
    }
}

/// Sessions hear at once that they go on elsewhere, from who was the home in that custody epoch.
pub fn say_so(master: &Master, volume: VolumeId, custody: u64) {
    for (session, connection) in master.connections.of(volume) {
        let notice = Notice { session: session.0, custody_epoch: custody, moved: true, ..Notice::default() };
        // Who doesn't hear it is told with the next renewal.
        let _ = connection.notify(Method::Notice, notice.encode_to_vec().into());
    }
}

/// A home that is taken up goes on from a move that came to nothing, before it serves.
pub async fn go_on(master: &Master, volume: VolumeId, epoch: Epoch) -> Result<(), CallError> {
    let Some(global) = &master.global else { return Ok(()) };
    let failed = |error: ReplicaError| super::failed(master, &error);
    let ended = retried(master, |tx| async move {
        let ended = turn::is_ended_for_move(&tx, volume, epoch).await?;
        Ok((tx, ended))
    });
    if ended.await.map_err(failed)? {
        let stay = StayHome { volume: volume.0.into(), epoch: epoch.0 };
        let stays = global.change(Asked::StayHome(stay), Instant::now() + STAY_WITHIN).await?;
        hear(master, stays.version).await;
        if place_of(master, volume) != Whereabouts::Here(epoch) {
            return Err(not_home(master, volume));
        }
        let goes_on = retried(master, |tx| async move {
            turn::go_on(&tx, volume, epoch).await?;
            Ok((tx, ()))
        });
        goes_on.await.map_err(failed)?;
        tracing::info!(epoch = epoch.0, "a move of the home came to nothing: this region goes on as it");
    }
    master.geo.unseal(volume);
    Ok(())
}

/// Commits what may be committed twice.
async fn retried<T, F, Fut>(master: &Master, mut body: F) -> Result<T, ReplicaError>
where
    F: FnMut(EmbeddedTransaction) -> Fut,
    Fut: Future<Output = Result<(EmbeddedTransaction, T), ReplicaError>>,
{
    let mut tries = 0;
    loop {
        let error = match body(master.store.begin()).await {
            Ok((tx, value)) => match tx.commit().await {
                Ok(_) => return Ok(value),
                Err(error) => ReplicaError::Store(error),
            },
            Err(error) => error,
        };
        tries += 1;
        let again =
            matches!(&error, ReplicaError::Store(e) if e.is_retryable() || *e == StoreError::CommitUnknown);
        if !again || tries >= TRIES {
            return Err(error);
        }
        tokio::time::sleep(pause(Duration::from_millis(1 << tries))).await;
    }
}
