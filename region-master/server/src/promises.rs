//! Promises at work: which facts a request is about, recalls on their way, the gate before a commit (DESIGN section 6; the decisions are
//! [`mooseng_region::promises`]').
//!
//! When a read's answer may leave, and what it promises, is in `reads`; the gate of a change in `gate`; what is asked for again and again in `keep`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mooseng_region::promises::Recall;
use mooseng_transport::{ConnectionHandle, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::Level;
use mooseng_wire::method::Method;
use mooseng_wire::session::{self, AnswerRecalls, Granted, Notice, RecallsAnswered};
use mooseng_wire::{Incarnation, RequestNumber, SessionId, VolumeId};
use prost::Message;
use tokio::time::Instant;

use crate::desk::Desk;
use crate::errors::refused;
use crate::master::Master;

mod gate;
mod keep;
mod reads;

pub use gate::ChangeGate;
pub use keep::keep;
pub use reads::{RestsOn, admit_locks, admit_read, admit_source, promised_by_read, told_by_read};

/// Recalls in one notice.
const RECALLS_PER_NOTICE: usize = 256;

/// Sessions' connections, by which notices travel.
#[derive(Default)]
pub struct Connections(Mutex<BTreeMap<SessionId, ConnectionHandle>>);

impl Connections {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<SessionId, ConnectionHandle>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A session spoke on this connection.
    pub fn note(&self, session: SessionId, connection: &ConnectionHandle) {
        self.map(|map| match map.get(&session) {
            Some(known) if known.id == connection.id => {}
            _ => drop(map.insert(session, connection.clone())),
        });
    }

    /// A connection ended.
    pub fn forget(&self, connection: u64) {
        self.map(|map| map.retain(|_, known| known.id != connection));
    }

    /// Those of a volume's sessions.
    pub fn of(&self, volume: VolumeId) -> Vec<(SessionId, ConnectionHandle)> {
        self.map(|map| {
            let of_it = map.range(SessionId::all_of(volume));
            of_it.map(|(session, connection)| (*session, connection.clone())).collect()
        })
    }

    /// The connection of a session.
    pub fn get(&self, session: SessionId) -> Option<ConnectionHandle> {
        self.map(|map| map.get(&session).cloned())
    }
}

/// Sends recalls to whom they concern. One that can't be sent is repeated later.
pub fn send(master: &Master, custody_epoch: u64, recalls: &[Recall]) {
    let mut by_session: BTreeMap<SessionId, Vec<session::Recall>> = BTreeMap::new();
    for recall in recalls {
        by_session.entry(recall.session).or_default().push(session::Recall {
            number: recall.number,
            fact: Some(recall.fact.to_message()),
            keep_shared: recall.keep == Some(Level::Shared),
        });
    }
    for (id, recalls) in by_session {
        let Some(connection) = master.connections.get(id) else { continue };
        master.metrics.recalls.inc_by(recalls.len() as u64);
        for page in recalls.chunks(RECALLS_PER_NOTICE) {
            let notice = Notice { session: id.0, custody_epoch, recalls: page.to_vec(), ..Notice::default() };
            if connection.notify(Method::Notice, notice.encode_to_vec().into()).is_err() {
                break;
            }
        }
    }
}

/// A session says that it has given up what it was asked for.
pub fn answered(
    master: &Master,
    identity: &str,
    request: &AnswerRecalls,
) -> Result<RecallsAnswered, CallError> {
    let id = SessionId(request.session);
    let term = master.serving_of(id.volume())?;
    // Numbers of an earlier custodian mean other recalls.
    if request.custody_epoch != term {
        return Ok(RecallsAnswered {});
    }
    let woken = master.desk(|desk| {
        let now = master.clock.boot();
        desk.sessions
            .check(now, id, Incarnation(request.incarnation), identity)
            .map_err(|refusal| refused(&refusal))?;
        let settled = desk.sessions.settle(id, RequestNumber(request.oldest_unanswered));
        desk.promises.settle(id, settled);
        let mut woken = false;
        for number in &request.numbers {
            woken |= desk.promises.acknowledge(id, *number);
        }
        for wait in &request.locks {
            desk.lock_waits.told((id, *wait));
        }
        Ok::<_, CallError>(woken)
    })?;
    if woken {
        master.recalls_answered.notify_waiters();
    }
    Ok(RecallsAnswered {})
}

/// Waits until `ready` says yes to the desk, at most until the deadline.
async fn wait_until(
    master: &Master,
    deadline: Instant,
    what: &str,
    mut ready: impl FnMut(&mut Desk) -> bool,
) -> Result<(), CallError> {
    loop {
        let woken = master.recalls_answered.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if master.desk(&mut ready) {
            return Ok(());
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep_until(deadline) => {
                return Err(call_error(ErrorCode::Unavailable, format!("{what}; try again")));
            }
            () = master.shutdown.cancelled() => return Err(master.not_leader()),
        }
    }
}

/// A new custodian of a volume answers nothing of it until every session on record has said that it shows nothing any more that an earlier
/// custodian promised, or has run out: what it holds exclusively nobody else knows.
pub async fn custody_settled(master: &Master, volume: VolumeId, deadline: Instant) -> Result<(), CallError> {
    if master.desk(|desk| desk.is_settled(volume)) {
        return Ok(());
    }
    let what = "this master is new in office and still waits for sessions to answer or to run out";
    wait_until(master, deadline, what, |desk| desk.is_settled(volume)).await
}

/// What goes beside an answer.
#[derive(Debug, Default)]
pub struct Beside {
    /// Its place in the session's sequence.
    pub number: u64,
    /// What is promised.
    pub granted: Vec<Granted>,
    /// What the session changed of what it was promised.
    pub changed: Vec<session::Fact>,
}

/// Before the first answer that an inode isn't there: who has to tell first what it made alone. None: the answer stands.
fn untold(desk: &mut Desk, id: SessionId, tick: u64) -> Option<Vec<Recall>> {
    let recalls = desk.promises.untold(id);
    // What was given back since the run began may have been told since.
    (!recalls.is_empty() || desk.promises.tick() != tick).then_some(recalls)
}
