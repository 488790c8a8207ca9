//! Reads from other regions' replicas, while no home is found.
//!
//! ```text
//!   nearest --no answer yet--> the next one beside it --...--> the first answer counts
//!       \-- refused, or not reached --> the next one at once
//! ```
//! Whoever is asked has its time to answer, however many others don't: all of them together take as long as the last one, which is asked soon.

use std::collections::VecDeque;
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

use super::{ANSWER_WITHIN, Near, REST};
use crate::peers::{Answered, Failure, Peers};

/// Masters of other regions that one read asks.
const ASKED_MAX: usize = 16;
/// One that hasn't answered for this long is joined by the next one: most regions are nearer than that.
const STAGGER: Duration = Duration::from_millis(100);

/// Whom a read asks, each once.
pub(super) struct Candidates {
    pub waiting: VecDeque<String>,
    asked: Vec<String>,
}

impl Candidates {
    /// In that order.
    pub(super) fn of(waiting: impl IntoIterator<Item = String>) -> Self {
        Self { waiting: waiting.into_iter().collect(), asked: Vec::new() }
    }

    /// The next one, who is asked then.
    pub(super) fn next(&mut self) -> Option<String> {
        while self.asked.len() < ASKED_MAX {
            let address = self.waiting.pop_front()?;
            if !self.asked.contains(&address) {
                self.asked.push(address.clone());
                return Some(address);
            }
        }
        None
    }

    /// Whether it was asked before.
    pub(super) fn was_asked(&self, address: &str) -> bool {
        self.asked.iter().any(|asked| asked == address)
    }

    /// Whether there may be one.
    pub(super) fn is_any(&self) -> bool {
        self.asked.len() < ASKED_MAX && !self.waiting.is_empty()
    }
}

impl Near {
    /// Asks other regions, as long as no home is found. Nothing is promised by these.
    pub(super) async fn read_afar(
        &self,
        peers: &dyn Peers,
        request: &FsRequest,
    ) -> Option<(Reply, Option<Duration>)> {
        let (seen, afar) = {
            let state = self.state();
            let rests = state.afar_resting_until.is_some_and(|until| Instant::now() < until);
            if state.afar.is_empty() || rests {
                return None;
            }
            (state.seen, state.afar.clone())
        };
        let near_read = NearRead {
            op: Some(request.clone()),
            at_least: Some(Place { epoch: seen.0, version: seen.1 }),
            seat: None,
            volume: self.volume.0.into(),
        };
        let body = Bytes::from(near_read.encode_to_vec());
        let flight = self.facts.begin();
        let mut candidates = Candidates::of(afar);
        let mut under_way = FuturesUnordered::new();
        let mut is_one_there = false;
        loop {
            if under_way.is_empty() {
                let Some(address) = candidates.next() else { break };
                under_way.push(ask(peers, address, body.clone()));
            }
            let (address, answered) = tokio::select! {
                biased;
                Some(answered) = under_way.next() => answered,
                () = tokio::time::sleep(STAGGER), if candidates.is_any() => {
                    if let Some(address) = candidates.next() {
                        under_way.push(ask(peers, address, body.clone()));
                    }
                    continue;
                }
            };
            match answered {
                Ok(answered) => {
                    let reply = NearReply::decode(answered.body).ok()?;
                    let age = reply.behind_us.map(Duration::from_micros);
                    self.answered_afar(&address);
                    let taken = self.take(peers, request, reply, (&flight, None), seen).await;
                    return taken.map(|reply| (reply, age));
                }
                Err(Failure::Refused(refusal)) if refusal.code() == ErrorCode::NotLeader => {
                    if !refusal.leader.is_empty() {
                        candidates.waiting.push_front(refusal.leader);
                    }
                }
                // Its region has no replica, or not what is asked for: another one may.
                Err(Failure::Refused(_)) => is_one_there = true,
                Err(Failure::NotSent(_) | Failure::Lost | Failure::Timeout) => {
                    self.ways(|ways| ways.lost(&address));
                }
            }
            if let Some(next) = candidates.next() {
                under_way.push(ask(peers, next, body.clone()));
            }
        }
        if !is_one_there {
            self.state().afar_resting_until = Some(Instant::now() + REST);
        }
        None
    }

    /// It is asked first the next time.
    fn answered_afar(&self, address: &str) {
        let mut state = self.state();
        // No home was found yet.
        if !state.afar.is_empty() {
            state.afar.retain(|known| known != address);
            state.afar.insert(0, address.to_owned());
        }
    }
}

async fn ask(peers: &dyn Peers, address: String, body: Bytes) -> (String, Result<Answered, Failure>) {
    let call = peers.call(Role::Master, &address, Method::NearRead, body, Bytes::new(), ANSWER_WITHIN);
    let answered = call.await;
    (address, answered)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use mooseng_ports::clock::ManualClock;
    use mooseng_wire::fs::fs_request::Op;
    use mooseng_wire::fs::{Done, FsReply, GetAttr};

    use super::*;
    use crate::config::ClientConfig;
    use crate::facts::Facts;

    /// Masters that answer after so long; those that aren't named don't.
    pub(in crate::near) struct Slow {
        answer_after: Vec<(&'static str, Duration)>,
        asked: Mutex<Vec<String>>,
    }

    impl Slow {
        pub fn new(answer_after: &[(&'static str, Duration)]) -> Self {
            Self { answer_after: answer_after.to_vec(), asked: Mutex::default() }
        }

        pub fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Peers for Slow {
        async fn call(
            &self,
            _: Role,
            address: &str,
            _: Method,
            _: Bytes,
            _: Bytes,
            timeout: Duration,
        ) -> Result<Answered, Failure> {
            self.asked.lock().unwrap().push(address.to_owned());
            let after = self.answer_after.iter().find(|(master, _)| *master == address);
            match after.map(|(_, after)| *after).filter(|after| *after < timeout) {
                Some(after) => tokio::time::sleep(after).await,
                None => {
                    tokio::time::sleep(timeout).await;
                    return Err(Failure::Timeout);
                }
            }
            let reply = NearReply {
                reply: Some(FsReply { reply: Some(Reply::Done(Done {})) }),
                at: Some(Place { epoch: 1, version: 1 }),
                ..NearReply::default()
            };
            Ok(Answered { body: reply.encode_to_vec().into(), bulk: Bytes::new() })
        }
    }

    pub(in crate::near) fn near(afar: &[&str]) -> Near {
        let clock = Arc::new(ManualClock::default());
        let home = Arc::new(Facts::new(clock.clone(), 1 << 20));
        let near = Near::new(&ClientConfig::default(), clock, home);
        near.set_home(Some("elsewhere".into()));
        near.home_is_lost(afar.iter().map(|address| (*address).to_owned()).collect());
        near
    }

    /// Whether it is answered, and after how long.
    async fn read(near: &Near, peers: &Slow) -> (bool, Duration) {
        let request = FsRequest { op: Some(Op::GetAttr(GetAttr { inode: 1 })), caller: None };
        let began = Instant::now();
        let read = near.read(peers, &[], &request).await;
        (read.is_some(), began.elapsed())
    }

    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    /// Found by review: each of seven masters that weren't reached had its half second before the eighth was asked.
    #[tokio::test(start_paused = true)]
    async fn masters_that_dont_answer_hold_up_a_read_for_no_longer_than_the_last_ones_turn() {
        let near = near(&NAMES);
        let peers = Slow::new(&[("h", Duration::from_millis(80))]);
        let (is_read, took) = read(&near, &peers).await;
        assert!(is_read && took <= 7 * STAGGER + Duration::from_millis(150), "{took:?}");
        assert_eq!(peers.asked(), NAMES);
        // It is the first one then.
        let (is_read, took) = read(&near, &peers).await;
        assert!(is_read && took <= Duration::from_millis(99), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_late_isnt_given_up_for_those_that_never_do() {
        let late = ANSWER_WITHIN - Duration::from_millis(10);
        let near_one = near(&NAMES[..3]);
        let peers = Slow::new(&[("a", late)]);
        let (is_read, took) = read(&near_one, &peers).await;
        assert!(is_read && took <= late + Duration::from_millis(50), "{took:?}");
        let peers = Slow::new(&[("c", late)]);
        assert!(read(&near(&NAMES[..3]), &peers).await.0);
        assert_eq!(peers.asked(), NAMES[..3]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_well_is_the_only_one_that_is_asked() {
        let peers = Slow::new(&[("a", Duration::from_millis(80)), ("b", Duration::from_millis(1))]);
        assert!(read(&near(&NAMES), &peers).await.0);
        assert_eq!(peers.asked(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_answers_that_is_known_soon() {
        let many: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (near, peers) = (near(&many), Slow::new(&[]));
        let (is_read, took) = read(&near, &peers).await;
        assert!(!is_read && took <= 15 * STAGGER + ANSWER_WITHIN + Duration::from_millis(90), "{took:?}");
        assert_eq!(peers.asked().len(), ASKED_MAX);
        // And they are left alone for a while.
        assert!(!read(&near, &peers).await.0);
        assert_eq!(peers.asked().len(), ASKED_MAX);
    }
}
