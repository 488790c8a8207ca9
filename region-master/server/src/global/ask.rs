//! To the leader of the global group, wherever it is.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use mooseng_schema::ids::IdKind;
use mooseng_transport::{CallFailure, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change as Asked;
use mooseng_wire::global::{Change, Changed, Renew, Renewed, TakeIds};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, VolumeId};
use prost::Message;
use tokio::time::Instant;

use super::Global;
use super::status::PROBE_TIMEOUT;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// What an attempt came to.
enum Attempt<A> {
    Done(Result<A, CallError>),
    /// Another attempt may do better, at that address if one is named.
    Again(String, Option<String>),
}

impl Global {
    /// Changes the global store. Tries until the deadline; each change may be made again, so that only one that took ids has taken more than it knows of.
    pub async fn change(&self, change: Asked, deadline: Instant) -> Result<Changed, CallError> {
        // Before it answers this, the leader asks all masters itself.
        let asks = matches!(change, Asked::RaiseLevel(_) | Asked::CheckRaise(_));
        let patience = self.patience() + if asks { PROBE_TIMEOUT } else { Duration::ZERO };
        let message = Change { change: Some(change) };
        let here = || self.change_here(&self.region, message.clone());
        self.ask(Method::GlobalChange, &message, (patience, deadline), here).await
    }

    /// Takes ids of a volume whose home this region is, under its present epoch: so many, none below `least`. Nobody else is ever given them.
    pub async fn next_ids(
        &self,
        kind: IdKind,
        volume: VolumeId,
        epoch: Epoch,
        (count, least): (u64, u64),
        deadline: Instant,
    ) -> Result<Range<u64>, CallError> {
        let asked = TakeIds {
            kind: kind as u32,
            volume: volume.0.into(),
            region: self.region.clone(),
            epoch: epoch.0,
            count,
            least,
        };
        let changed = self.change(Asked::TakeIds(asked), deadline).await?;
        let missing = || call_error(ErrorCode::Internal, "the leader of the global group gave no ids");
        changed.ids.map(|ids| ids.first..ids.end).ok_or_else(missing)
    }

    /// Renews this region's lease.
    pub(super) async fn renew(&self, renew: &Renew, deadline: Instant) -> Result<Renewed, CallError> {
        let here = || self.renew_here(&self.region, renew.clone());
        self.ask(Method::GlobalRenew, renew, (self.patience(), deadline), here).await
    }

    /// How long a leader may take to answer: one that is cut off doesn't, and by then there is another one.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.config.raft.election_min_ms)
    }

    async fn ask<Q, A, Fut>(
        &self,
        method: Method,
        message: &Q,
        (patience, deadline): (Duration, Instant),
        here: impl Fn() -> Fut,
    ) -> Result<A, CallError>
    where
        Q: Message,
        A: Message + Default,
        Fut: Future<Output = Result<A, CallError>>,
    {
        let mut named = None;
        let mut others: Vec<String> = Vec::new();
        loop {
            let attempt = if self.is_leading() {
                let late = call_error(ErrorCode::OutcomeUnknown, "the global group doesn't answer in time");
                judged(tokio::time::timeout_at(deadline, here()).await.unwrap_or(Err(late)))
            } else {
                match self.seat(named.take(), &mut others) {
                    Some(address) => {
                        let wait = deadline.saturating_duration_since(Instant::now()).min(patience);
                        self.attempt(method, message, &address, wait).await
                    }
                    None => Attempt::Again("no other master is known".to_owned(), None),
                }
            };
            let why = match attempt {
                Attempt::Done(answer) => return answer,
                Attempt::Again(why, leader) => {
                    named = leader;
                    why
                }
            };
            if Instant::now() + PAUSE >= deadline {
                let message = format!("the leader of the global group can't be asked: {why}");
                return Err(call_error(ErrorCode::Unavailable, message));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whom to ask: who was named, or is known to lead, or else one after the other.
    fn seat(&self, named: Option<String>, others: &mut Vec<String>) -> Option<String> {
        let known = || self.raft().and_then(|raft| raft.leader()).map(|(_, address)| address);
        if let Some(address) = named.or_else(known).filter(|address| *address != self.address) {
            return Some(address);
        }
        if others.is_empty() {
            let all = self.members().into_values().map(|m| m.address);
            others.extend(all.filter(|address| *address != self.address));
        }
        others.pop()
    }

    async fn attempt<Q: Message, A: Message + Default>(
        &self,
        method: Method,
        message: &Q,
        address: &str,
        wait: Duration,
    ) -> Attempt<A> {
        match self.link(address).request(method, message, wait).await {
            Ok(answer) => Attempt::Done(Ok(answer)),
            Err(CallFailure::Remote(error)) => judged(Err(error)),
            Err(failure) => Attempt::Again(format!("{address}: {failure}"), None),
        }
    }
}

fn judged<A>(answer: Result<A, CallError>) -> Attempt<A> {
    match answer {
        Err(error) => match error.code() {
            ErrorCode::NotLeader
            | ErrorCode::Unavailable
            | ErrorCode::OutcomeUnknown
            | ErrorCode::DeadlineExceeded => {
                let leader = (!error.leader.is_empty()).then_some(error.leader);
                Attempt::Again(error.message, leader)
            }
            _ => Attempt::Done(Err(error)),
        },
        done => Attempt::Done(done),
    }
}
