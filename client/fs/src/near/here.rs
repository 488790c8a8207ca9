//! Reads from this host's own region.
//!
//! ```text
//!   who answered last --no answer for a while--> the next master beside it --...--> the leader's answer counts
//!       \-- not the leader, or not reached --> the next one at once, unless it names one that was asked
//! ```
//! A leader that has died costs a read no more than that while.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_wire::Role;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::FsRequest;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::geo::{NearRead, NearReply, Place};
use mooseng_wire::method::Method;
use prost::Message;
use tokio::time::Instant;

use super::afar::Candidates;
use super::{ANSWER_WITHIN, Near, REST};
use crate::facts::Flight;
use crate::near_stream::At;
use crate::peers::{Answered, Failure, Peers};

/// One that hasn't answered for this long is joined by the next one. Most answers that wait for a `geo` volume's sync set are there by then.
const STAGGER: Duration = Duration::from_millis(150);

/// Who was asked, and as what.
struct Asked<'a> {
    address: String,
    session: Option<u64>,
    flight: Flight<'a>,
}

impl Near {
    /// Asks this host's region, first who answered last.
    pub(super) async fn read_here(
        &self,
        peers: &dyn Peers,
        masters: &[String],
        request: &FsRequest,
        (known, seen): (Option<String>, At),
    ) -> Option<(Reply, Option<Duration>)> {
        let mut candidates = Candidates::of(known.into_iter().chain(masters.iter().cloned()));
        let mut under_way = FuturesUnordered::new();
        let mut is_due = false;
        loop {
            if (under_way.is_empty() || is_due)
                && let Some(address) = candidates.next()
            {
                under_way.push(self.ask_here(peers, address, request, seen));
            }
            let (asked, answered) = tokio::select! {
                biased;
                answered = under_way.next() => match answered {
                    Some(answered) => answered,
                    None => break,
                },
                () = tokio::time::sleep(STAGGER), if candidates.is_any() => {
                    is_due = true;
                    continue;
                }
            };
            match answered {
                Ok(answered) => {
                    let reply = NearReply::decode(answered.body).ok()?;
                    let age = reply.behind_us.map(Duration::from_micros);
                    self.answered(asked.address, asked.session);
                    let taken = self.take(peers, request, reply, (&asked.flight, asked.session), seen).await;
                    return taken.map(|reply| (reply, age));
                }
                Err(Failure::Refused(refusal)) if refusal.code() == ErrorCode::NotLeader => {
                    is_due = !candidates.was_asked(&refusal.leader);
                    if is_due && !refusal.leader.is_empty() {
                        candidates.waiting.push_front(refusal.leader);
                    }
                }
                // The leader has said that it is the home's to answer.
                Err(Failure::Refused(_)) => {
                    self.answered(asked.address, asked.session);
                    return None;
                }
                Err(Failure::NotSent(_) | Failure::Lost | Failure::Timeout) => is_due = true,
            }
        }
        let mut state = self.state();
        state.leader = None;
        state.resting_until = Some(Instant::now() + REST);
        None
    }

    async fn ask_here(
        &self,
        peers: &dyn Peers,
        address: String,
        request: &FsRequest,
        seen: At,
    ) -> (Asked<'_>, Result<Answered, Failure>) {
        let seat = self.state().stream.seat(&address);
        let session = seat.map(|seat| seat.session);
        let near_read = NearRead {
            op: Some(request.clone()),
            at_least: Some(Place { epoch: seen.0, version: seen.1 }),
            seat,
            volume: self.volume.0.into(),
        };
        let flight = self.facts.begin();
        let body = near_read.encode_to_vec().into();
        let call = peers.call(Role::Master, &address, Method::NearRead, body, Bytes::new(), ANSWER_WITHIN);
        let answered = call.await;
        (Asked { address, session, flight }, answered)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use mooseng_wire::call::CallError;
    use mooseng_wire::fs::GetAttr;
    use mooseng_wire::fs::fs_request::Op;

    use super::super::afar::tests::{Slow, near};
    use super::*;

    async fn read(near: &Near, peers: &dyn Peers) -> (bool, Duration) {
        let masters = ["a", "b", "c"].map(str::to_owned);
        let request = FsRequest { op: Some(Op::GetAttr(GetAttr { inode: 1 })), caller: None };
        let began = Instant::now();
        let read = near.read(peers, &masters, &request).await;
        (read.is_some(), began.elapsed())
    }

    /// With a master beside them that knows of no leader.
    struct WithFollower(&'static str, Slow);

    #[async_trait]
    impl Peers for WithFollower {
        async fn call(
            &self,
            role: Role,
            address: &str,
            method: Method,
            body: Bytes,
            bulk: Bytes,
            timeout: Duration,
        ) -> Result<Answered, Failure> {
            if address == self.0 {
                let code = ErrorCode::NotLeader.into();
                return Err(Failure::Refused(CallError { code, ..CallError::default() }));
            }
            self.1.call(role, address, method, body, bulk, timeout).await
        }
    }

    /// Each of the two took its while.
    #[tokio::test(start_paused = true)]
    async fn behind_a_silent_master_one_that_doesnt_lead_holds_nothing_up() {
        let peers = WithFollower("b", Slow::new(&[("c", Duration::from_millis(5))]));
        let (is_read, took) = read(&near(&[]), &peers).await;
        assert!(is_read && took <= STAGGER + Duration::from_millis(50), "{took:?}");
        assert_eq!(peers.1.asked(), ["a", "c"]);
    }

    /// Masters that don't answer had half a second each, one after the other.
    #[tokio::test(start_paused = true)]
    async fn masters_that_dont_answer_hold_a_read_up_for_a_while_only() {
        let near = near(&[]);
        let peers = Slow::new(&[("c", Duration::from_millis(5))]);
        let (is_read, took) = read(&near, &peers).await;
        assert!(is_read && took <= 2 * STAGGER + Duration::from_millis(50), "{took:?}");
        assert_eq!(peers.asked(), ["a", "b", "c"]);
        // It is asked first then, and nobody else.
        let (is_read, took) = read(&near, &peers).await;
        assert!(is_read && took <= Duration::from_millis(20), "{took:?}");
        assert_eq!(peers.asked().len(), 4);
        // Who answers late isn't given up for those that never do.
        let late = Slow::new(&[("c", ANSWER_WITHIN - Duration::from_millis(10))]);
        assert!(read(&near, &late).await.0);
        let (is_read, took) = read(&near, &Slow::new(&[])).await;
        assert!(!is_read && took <= 2 * STAGGER + ANSWER_WITHIN + Duration::from_millis(50), "{took:?}");
    }
}
