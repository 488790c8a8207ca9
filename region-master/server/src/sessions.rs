//! OpenSession, Renew and CloseSession.

use mooseng_namespace::{OpError, sessions as records};
use mooseng_region::sessions::{Comeback, Recorded};
use mooseng_schema::ids::IdKind;
use mooseng_schema::session::SessionRecord;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::founding::Founding;
use mooseng_wire::session::{
    CloseSession, OpenSession, Renew, Renewed, SessionClosed, SessionOpened, Squash as SquashWord,
};
use mooseng_wire::{Incarnation, InodeId, RequestNumber, SessionId, VolumeId};

use crate::config::Squash;
use crate::errors::{denied, record_failed, refused};
use crate::geo;
use crate::master::Master;
use crate::records::transact;
use crate::{locks, quotas, rights};

/// Longest host name and mount path that are kept, in bytes.
const WORDS_BYTES_MAX: usize = 4096;

/// What the table decided, in one section.
enum Decided {
    /// Whether it had lapsed, and whether this custodian waited for it still.
    Admitted(Recorded, bool, bool),
    FromRecord,
}

/// The volume that an [`OpenSession`] is about: that of the session that is taken up again, or the one for which another is to be opened. None where no
/// volume has such a number.
pub fn volume_of(request: &OpenSession) -> Option<VolumeId> {
    match request.session {
        0 => u16::try_from(request.volume).ok().map(VolumeId),
        session => Some(SessionId(session).volume()),
    }
}

/// Opens a session of a volume, or takes one up again.
pub async fn open(
    master: &Master,
    peer: &Peer,
    volume: VolumeId,
    request: OpenSession,
) -> Result<SessionOpened, CallError> {
    let identity = peer.uri.as_str();
    let term = master.serving_of(volume)?;
    // Before anything else: what the request names may mean something else in another region.
    let_in(master, volume, identity, &request.founding)?;
    master.custody_is_ours(term, request.custody_epoch)?;
    if request.host.len() > WORDS_BYTES_MAX || request.mount_path.len() > WORDS_BYTES_MAX {
        return Err(call_error(
            ErrorCode::InvalidRequest,
            "the host or the mount path is longer than 4096 bytes",
        ));
    }
    let rule = rights::of(master, &peer.identity)?;
    // Before there is a session: one that can't be served would stay on record.
    rights::find_root(master, volume, rule).await?;
    let opens: Vec<InodeId> = request.opens.iter().map(|o| InodeId(o.inode)).collect();
    let order = request.order;
    let id = SessionId(request.session);
    let home = master.epoch(volume);
    let decided = if request.session == 0 {
        Decided::FromRecord
    } else {
        master.desk(|desk| {
            if desk.is_overdue(id) {
                let message = "the session was waited for in vain and gets a new incarnation; try again";
                return Err(call_error(ErrorCode::Unavailable, message));
            }
            let now = master.clock.boot();
            let comeback = desk.sessions.comeback(now, id, Incarnation(request.incarnation), identity);
            let lapsed = match comeback.map_err(|r| refused(&r))? {
                Comeback::Lapsed => return Ok(Decided::FromRecord),
                Comeback::Resume(_) => false,
                Comeback::Repeat(_) => true,
            };
            let Some(recorded) = desk.sessions.recorded(id).cloned() else { return Ok(Decided::FromRecord) };
            desk.sessions
                .admit(now, recorded.clone(), order, opens.iter().copied())
                .map_err(|r| refused(&r))?;
            desk.sessions.settle(id, RequestNumber(request.oldest_unanswered));
            desk.promises.add_session(id);
            match lapsed {
                true => desk.seat_mut(volume).ledger.forget(id),
                false => {
                    let is_new = desk.unanswered.contains(&id);
                    desk.seat_mut(volume).ledger.declare(id, is_new, quotas::told(&request.escrow));
                }
            }
            // Only before a new custodian has answered anybody: nobody else can have been promised these.
            let reclaims = desk.unanswered.contains(&id) && !lapsed;
            if reclaims {
                for inode in &request.exclusive {
                    if !desk.promises.reclaim(id, InodeId(*inode)) {
                        tracing::error!(
                            session = id.0,
                            inode,
                            "what a session buffers of an inode was promised to another one already"
                        );
                    }
                }
                for directory in &request.alone {
                    if !desk.promises.reclaim_alone(id, InodeId(*directory)) {
                        tracing::error!(
                            session = id.0,
                            directory,
                            "a directory in which a session has changes to tell was promised to another one already"
                        );
                    }
                }
                // Under another home they are taken as records, below.
                let is_same_home = [0, home.0].contains(&request.locks_home);
                for inode in request.locks_alone.iter().filter(|_| is_same_home) {
                    if !desk.promises.reclaim_locks(id, InodeId(*inode)) {
                        tracing::error!(
                            session = id.0,
                            inode,
                            "an inode of which a session has given locks by itself was promised to another one already"
                        );
                    }
                }
            }
            Ok::<_, CallError>(Decided::Admitted(recorded, lapsed, reclaims))
        })?
    };
    let (recorded, lapsed, reclaims) = match decided {
        Decided::Admitted(recorded, lapsed, reclaims) => (recorded, lapsed, reclaims),
        Decided::FromRecord => {
            let lapsed = request.session != 0;
            let recorded = if lapsed {
                come_back(master, id, Incarnation(request.incarnation), identity).await?
            } else {
                create(master, volume, identity.to_owned(), &request).await?
            };
            master.desk(|desk| {
                if desk.serving_of(volume) != Some(term) {
                    return Err(master.not_leader());
                }
                let now = master.clock.boot();
                // Another comeback of the same life was faster, and its answer may have arrived: this life goes on.
                let there = desk.sessions.recorded(recorded.session).map(|there| there.incarnation);
                let goes_on = there == Some(recorded.incarnation);
                desk.sessions.admit(now, recorded.clone(), order, opens).map_err(|r| refused(&r))?;
                desk.sessions.settle(recorded.session, RequestNumber(request.oldest_unanswered));
                // A new life: what was promised to the one before is void.
                if !goes_on {
                    desk.forget_session(recorded.session);
                }
                desk.promises.add_session(recorded.session);
                // Of the lives before.
                if lapsed && !goes_on {
                    desk.lock_debts.insert(recorded.session);
                }
                Ok(())
            })?;
            (recorded, lapsed, false)
        }
    };
    let root = rights::root(master, recorded.session, rule).await?;
    let reclaimed = if reclaims && (1..master.epoch(volume).0).contains(&request.locks_home) {
        locks::reclaim(master, &recorded, root, &request.locks).await?
    } else {
        None
    };
    master.recalls_answered.notify_waiters();
    let squash = match rule.map_or(Squash::None, |rule| rule.squash) {
        Squash::None => SquashWord::None,
        Squash::Root => SquashWord::Root,
        Squash::All => SquashWord::All,
    };
    master.may_answer(term)?;
    master.is_home(volume)?;
    Ok(SessionOpened {
        session: recorded.session.0,
        incarnation: recorded.incarnation.0,
        lease_ms: master.lease_ms(volume),
        custody_epoch: term,
        lapsed,
        root: root.0,
        read_only: rule.is_some_and(|rule| rule.read_only),
        squash: squash.into(),
        founding: Founding::tell(master.desk(|desk| desk.volume_founding(volume))),
        alone: true,
        elsewhere: geo::elsewhere(master, volume),
        home_epoch: master.epoch(volume).0,
        locks_reclaimed: reclaimed.is_some(),
        locks_lost: reclaimed.unwrap_or_default(),
        locks_alone: true,
    })
}

/// Refuses a session of another founding of the region. One that knows no mark yet holds nothing of any region.
fn let_in(master: &Master, volume: VolumeId, identity: &str, told: &[u8]) -> Result<(), CallError> {
    let now = master.clock.boot();
    let who = format!("the mount of {identity}");
    master.desk(|desk| desk.let_in_to_volume(volume, now, &who, told)).map(drop).map_err(CallError::from)
}

async fn create(
    master: &Master,
    volume: VolumeId,
    identity: String,
    request: &OpenSession,
) -> Result<Recorded, CallError> {
    let ids = master.desk(|desk| {
        // Before there is a record: one that can't be taken in would stay.
        let sessions = &desk.sessions;
        let room = sessions.has_room(&identity);
        let room = room.and_then(|()| sessions.has_room_for_opens(&identity, request.opens.len()));
        room.map_err(|r| refused(&r))?;
        Ok::<_, CallError>(desk.seat_mut(volume).ids.take(IdKind::Session, 1))
    })?;
    let id = match ids.as_deref() {
        Some([id]) => SessionId::new(volume, *id),
        _ => return Err(master.ids_used_up()),
    };
    let record = SessionRecord {
        incarnation: 1,
        identity: identity.clone(),
        host: request.host.clone(),
        mount_path: request.mount_path.clone(),
        opened_ns: master.clock.unix_ns(),
        lapsed_ns: None,
        inode_runs: Vec::new(),
    };
    let record = &record;
    transact(&master.store, move |tx| async move {
        // Of a first try whose outcome wasn't known: the id is ours alone.
        if records::load_session(&tx, id).await?.is_none() {
            records::create_session(&tx, id, record).await?;
        }
        Ok((tx, ()))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    Ok(Recorded {
        session: id,
        incarnation: Incarnation(1),
        identity,
        host: request.host.clone(),
        mount_path: request.mount_path.clone(),
    })
}

async fn come_back(
    master: &Master,
    id: SessionId,
    known: Incarnation,
    identity: &str,
) -> Result<Recorded, CallError> {
    let found = transact(&master.store, move |tx| async move {
        let Some(record) = records::load_session(&tx, id).await? else { return Ok((tx, None)) };
        if record.identity != identity {
            return Ok((tx, Some((record, None))));
        }
        let incarnation = records::come_back(&tx, id, known).await?;
        Ok((tx, Some((record, incarnation))))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    match found {
        None => {
            let message = format!("session {id} doesn't exist any more; open a new one");
            Err(call_error(ErrorCode::SessionExpired, message))
        }
        Some((_, None)) => Err(denied(format!("session {id} belongs to another identity than {identity}"))),
        Some((record, Some(incarnation))) => Ok(recorded(id, incarnation, record)),
    }
}

/// A session's record as the table takes it.
pub fn recorded(id: SessionId, incarnation: Incarnation, record: SessionRecord) -> Recorded {
    Recorded {
        session: id,
        incarnation,
        identity: record.identity,
        host: record.host,
        mount_path: record.mount_path,
    }
}

/// Renews a lease.
pub fn renew(master: &Master, identity: &str, request: &Renew) -> Result<Renewed, CallError> {
    let (id, incarnation) = (SessionId(request.session), Incarnation(request.incarnation));
    let volume = id.volume();
    let term = master.serving_of(volume)?;
    let_in(master, volume, identity, &request.founding)?;
    let left = master.desk(|desk| {
        let now = master.clock.boot();
        let left = desk.sessions.renew(now, id, incarnation, identity).map_err(|r| refused(&r))?;
        let settled = desk.sessions.settle(id, RequestNumber(request.oldest_unanswered));
        desk.promises.settle(id, settled);
        for (account, _, spent) in quotas::told(&request.escrow) {
            desk.seat_mut(volume).ledger.spent(id, account, spent);
        }
        if request.custody_epoch == term && desk.unanswered.remove(&id) {
            master.recalls_answered.notify_waiters();
        }
        Ok::<_, CallError>(left)
    })?;
    master.may_answer(term)?;
    master.is_home(volume)?;
    let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let lease_ms = master.lease_ms(volume).min(left_ms);
    let quotas = master.desk(|desk| desk.seat(volume).ledger.version());
    let revocations = request.revocations_version.and_then(|have| master.revoked.newer_than(have));
    let held = geo::lag::is_held(master, volume);
    Ok(Renewed { lease_ms, custody_epoch: term, quotas, revocations, held })
}

/// Ends a session. One that is gone already is well: the request is repeated.
pub async fn close(
    master: &Master,
    identity: &str,
    request: &CloseSession,
) -> Result<SessionClosed, CallError> {
    let (id, incarnation) = (SessionId(request.session), request.incarnation);
    let term = master.serving_of(id.volume())?;
    let closed = transact(&master.store, move |tx| async move {
        match records::load_session(&tx, id).await? {
            None => Ok((tx, Ok(true))),
            Some(record) if record.identity != identity => Ok((tx, Err(()))),
            // An older life that says goodbye late doesn't end the newer one.
            Some(record) if record.incarnation > incarnation => Ok((tx, Ok(false))),
            Some(_) => {
                records::close_session(&tx, id).await?;
                Ok::<_, OpError>((tx, Ok(true)))
            }
        }
    })
    .await
    .map_err(|e| record_failed(&e))?;
    let Ok(gone) = closed else {
        return Err(denied(format!("session {id} belongs to another identity than {identity}")));
    };
    master.desk(|desk| {
        if gone {
            desk.seat_mut(id.volume()).ids.unbind(id);
        }
        let there = desk.sessions.recorded(id).map(|r| r.incarnation.0);
        if there.is_some_and(|there| there <= incarnation) {
            desk.sessions.remove(id);
            desk.forget_session(id);
        }
    });
    master.recalls_answered.notify_waiters();
    if let Err(error) = locks::free(master, id).await {
        tracing::info!(session = id.0, error = %error.message, "a closed session's locks are freed later");
    }
    master.may_answer(term)?;
    master.is_home(id.volume())?;
    Ok(SessionClosed {})
}
