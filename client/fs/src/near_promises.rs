//! What the replica in this host's region promises, kept and taken back (docs/decisions/0036-near-promises.md).
//!
//! ```text
//!   NearRead  -> news: forgotten here, then by the kernel -> grants are kept -> the answer
//!   home's answer at a place -> settle: what the kernel was told of the replica before that place is taken back -> the answer
//!   keep: opens the session, renews it, hears notices
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::{Attr, DirEntry};
use mooseng_wire::geo::{NearNews, NearRenew, NearRenewed, Place};
use mooseng_wire::method::Method;
use mooseng_wire::{Role, SessionId};
use prost::Message;
use tokio::time::Instant;

use crate::facts::{Facts, InodeFact, Validity};
use crate::near::{Near, State};
use crate::near_stream::{At, Heard, TakeBack};
use crate::peers::{Failure, Peers};
use crate::recalls::Recalls;
use crate::retry::Backoff;
use crate::session::{Notices, Session};

/// A leader gets so long to renew.
const RENEW_WITHIN: Duration = Duration::from_millis(700);
/// The replica gets so long to come where an answer of the home was.
const FOLLOW_WITHIN: Duration = Duration::from_millis(150);
/// A renewal that wasn't answered is tried again so much later.
const RENEW_AGAIN: Duration = Duration::from_millis(200);
/// A session that lasted so long was none that ended at once.
const LASTED: Duration = Duration::from_secs(5);
/// Masters that don't know of such sessions are asked again so much later.
const UNKNOWN_REST: Duration = Duration::from_secs(60);

fn at_of(place: Option<&Place>) -> At {
    place.map_or((0, 0), |place| (place.epoch, place.version))
}

/// Why a session wasn't opened or renewed.
enum Refused {
    /// There, and then, there is none.
    Ended,
    /// Nothing is known.
    Unanswered,
    /// The master is of a release that has none.
    Unknown,
}

impl Near {
    /// Whoever acts on what is taken back. Set once, before the first operation.
    pub fn forget_through(&self, recalls: Arc<Recalls>) {
        if self.recalls.set(recalls).is_err() {
            tracing::error!(
                "two mounts over one replica's promises: what is taken back reaches only the first"
            );
        }
    }

    /// What is promised, if that may be shown.
    fn shown(&self) -> Option<&Facts> {
        if !self.is_open() {
            return None;
        }
        let state = self.state();
        state.stream.shows(state.seen).then_some(&self.facts)
    }

    /// Whether there is a session under which something may be promised.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// What a name stands for, if that is promised.
    #[allow(clippy::option_option, reason = "whether it is known, and whether there is an entry")]
    pub fn entry(&self, directory: u64, name: &Bytes) -> Option<Option<u64>> {
        self.shown()?.entry(directory, name).map(|(target, _)| target)
    }

    /// An inode, if it is promised.
    pub fn inode(&self, inode: u64) -> Option<InodeFact> {
        self.shown()?.inode(inode).map(|(known, _)| known)
    }

    /// The entries of a directory behind a cookie, if all of that is promised.
    pub fn listing(&self, directory: u64, cookie: u64, most: usize) -> Option<(Vec<DirEntry>, bool)> {
        self.shown()?.listing(directory, cookie, most)
    }

    /// Names the time since which an inode is promised. Others may go by that until it is taken back.
    pub fn hold(&self, inode: u64) -> Option<u64> {
        if !self.is_open() {
            return None;
        }
        let mut state = self.state();
        if !state.stream.shows(state.seen) {
            return None;
        }
        let (known, _) = self.facts.inode(inode)?;
        state.stream.tells(Some(inode));
        Some(known.hold)
    }

    /// How long others may count on what was just answered. They are told so from now on.
    pub fn validity(&self, attr: Option<&Attr>, entry: Option<(u64, &Bytes)>) -> Validity {
        if !self.is_open() {
            return Validity::default();
        }
        // In one section: an answer of the home that comes in between finds what was told.
        let mut state = self.state();
        if !state.stream.shows(state.seen) {
            return Validity::default();
        }
        let validity = self.facts.validity(attr, entry);
        if let Some(attr) = attr.filter(|_| !validity.attr.is_zero()) {
            state.stream.tells(Some(attr.inode));
        }
        if !validity.entry.is_zero() {
            state.stream.tells(None);
        }
        validity
    }

    /// Nothing is promised any more. What others were told is taken back before something else is shown ([`Self::settle`]).
    pub(crate) fn end(&self, state: &mut State) {
        self.is_open.store(false, Ordering::Release);
        state.stream.end();
        self.facts.renounce();
    }

    /// Ends the session, whichever there is.
    pub(crate) fn end_now(&self) {
        let mut state = self.state();
        if state.stream.session().is_some() {
            self.end(&mut state);
            drop(state);
            self.kick.notify_one();
        }
    }

    /// Ends the session of that number, if it is the present one.
    pub(crate) fn end_of(&self, session: u64) {
        let mut state = self.state();
        if state.stream.session() == Some(session) {
            self.end(&mut state);
            drop(state);
            self.kick.notify_one();
        }
    }

    /// Takes in what came of the session's stream: returns once nobody is shown any more what it takes back. False where something before it is
    /// missing.
    pub(crate) async fn take_news(&self, news: &NearNews) -> bool {
        // One after the other: who finds that he has nothing new to forget must find it forgotten.
        let _order = self.taking.lock().await;
        let fresh = {
            let mut state = self.state();
            match state.stream.hears(news) {
                Heard::Other => return true,
                Heard::Gap => return false,
                Heard::Recalls(fresh) => fresh,
            }
        };
        let mut facts = Vec::new();
        for (number, fact) in fresh {
            let Some(fact) = fact else {
                // Of a later release: it may be about anything.
                self.end_of(news.session);
                return true;
            };
            self.facts.recall(number, &fact, None);
            facts.push(fact);
        }
        if let Some(recalls) = self.recalls.get() {
            futures::future::join_all(facts.iter().map(|fact: &Fact| recalls.forget_fact(fact))).await;
        }
        let mut state = self.state();
        state.stream.reached(news.session, at_of(news.at.as_ref()));
        if state.stream.owes() {
            self.kick.notify_one();
        }
        true
    }

    /// Before an answer is shown that shows the volume at a place: whatever a kernel was told of the replica before that place is taken back, or the replica
    /// has followed.
    pub async fn settle(&self, peers: &dyn Peers, at: At) {
        // What somebody else is taking back at this moment is waited for.
        if self.state().stream.take_back(at).is_none() && self.settling.try_lock().is_ok() {
            return;
        }
        let _order = self.settling.lock().await;
        let take_back = {
            let mut state = self.state();
            let Some(take_back) = state.stream.take_back(at) else { return };
            if take_back != TakeBack::Much {
                state.stream.taken_back();
            }
            take_back
        };
        let Some(recalls) = self.recalls.get() else { return };
        match take_back {
            TakeBack::Few(inodes) => recalls.forget_few(&inodes).await,
            TakeBack::All => recalls.forget_all().await,
            TakeBack::Much => {
                self.follow(peers, at).await;
                let left = {
                    let mut state = self.state();
                    let left = state.stream.take_back(at).is_some();
                    if left {
                        state.stream.taken_back();
                    }
                    left
                };
                if left {
                    recalls.forget_all().await;
                }
            }
        }
    }

    /// Waits a little until the replica is at a place.
    async fn follow(&self, peers: &dyn Peers, at: At) {
        let (leader, seat) = {
            let mut state = self.state();
            let leader = state.stream.leader().to_owned();
            let seat = state.stream.seat(&leader);
            (leader, seat)
        };
        let Some(seat) = seat else { return };
        let at_least = Some(Place { epoch: at.0, version: at.1 });
        let renew =
            NearRenew { session: seat.session, have: seat.have, at_least, volume: self.volume.0.into() };
        if let Ok(renewed) = ask(peers, &leader, &renew, FOLLOW_WITHIN).await {
            if renewed.session != seat.session {
                return self.end_of(seat.session);
            }
            if let Some(news) = &renewed.news {
                self.take_news(news).await;
            }
        }
    }
}

async fn ask(
    peers: &dyn Peers,
    leader: &str,
    renew: &NearRenew,
    within: Duration,
) -> Result<NearRenewed, Refused> {
    let body = renew.encode_to_vec().into();
    match peers.call(Role::Master, leader, Method::NearRenew, body, Bytes::new(), within).await {
        Ok(answered) => NearRenewed::decode(answered.body).map_err(|_| Refused::Unanswered),
        Err(Failure::Refused(refusal)) => Err(match refusal.code() {
            ErrorCode::InvalidRequest | ErrorCode::NotBuilt => Refused::Unknown,
            _ => Refused::Ended,
        }),
        Err(Failure::NotSent(_) | Failure::Lost | Failure::Timeout) => Err(Refused::Unanswered),
    }
}

impl Session {
    /// Keeps a session with the replica's leader while the volume's home is elsewhere, and knows how far other regions are, until shutdown.
    pub async fn keep_near(self: Arc<Self>) {
        tokio::select! {
            biased;
            () = self.shut_down() => {}
            () = self.keep_near_on() => {}
            () = self.measure_ways() => {}
        }
    }

    async fn keep_near_on(&self) {
        let mut backoff = Backoff::default();
        loop {
            // Whatever ended is taken back now, and not with the next answer only.
            self.near.settle(&*self.peers, At::default()).await;
            let Some(leader) = self.near.wanted() else {
                self.near.kick.notified().await;
                continue;
            };
            let pause = match self.open_near(&leader).await {
                Ok(session) => {
                    let opened = Instant::now();
                    self.renew_near(&leader, session).await;
                    if opened.elapsed() > LASTED {
                        backoff = Backoff::default();
                    }
                    self.near.settle(&*self.peers, At::default()).await;
                    self.pause(&mut backoff)
                }
                Err(Refused::Unknown) => UNKNOWN_REST,
                Err(Refused::Ended | Refused::Unanswered) => self.pause(&mut backoff) * 2,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens one.
    async fn open_near(&self, leader: &str) -> Result<u64, Refused> {
        let sent = self.clock.boot();
        let open = NearRenew { volume: self.near.volume.0.into(), ..NearRenew::default() };
        let renewed = ask(&*self.peers, leader, &open, RENEW_WITHIN).await?;
        // A master of an earlier release knows of the root's alone, and draws their ids from all there are.
        let volume = self.near.volume;
        if volume.0 != 0 && SessionId(renewed.session).volume() != volume {
            return Err(Refused::Unknown);
        }
        let at = at_of(renewed.news.as_ref().and_then(|news| news.at.as_ref()));
        let mut state = self.near.state();
        // Another leader may have answered meanwhile, or this is the home by now.
        if state.wanted().as_deref() != Some(leader) || renewed.session == 0 {
            return Err(Refused::Ended);
        }
        self.near.facts.renounce();
        self.near.facts.lease(sent.after(Duration::from_millis(renewed.lease_ms.into())));
        state.stream.open(leader, renewed.session, at);
        self.near.is_open.store(true, Ordering::Release);
        tracing::debug!(
            leader,
            session = renewed.session,
            ?at,
            "this region's replica is read under promises"
        );
        Ok(renewed.session)
    }

    /// A master has sent something. True if it is news before which something is missing.
    async fn missed_before(&self, notice: Option<(Method, Bytes)>) -> bool {
        match notice {
            Some((Method::NearNotice, body)) => match NearNews::decode(body) {
                Ok(news) => !self.near.take_news(&news).await,
                Err(_) => false,
            },
            Some(_) => false,
            // More came than was taken in.
            None => true,
        }
    }

    /// Renews it while it lasts.
    async fn renew_near(&self, leader: &str, session: u64) {
        let near = &self.near;
        let mut notices = Notices::of(&*self.peers, Some(leader));
        let mut renew_at = Instant::now() + self.config.renew_interval;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(renew_at) => {}
                () = near.kick.notified() => {}
                notice = notices.next() => {
                    // What is missing before it comes with a renewal.
                    if !self.missed_before(notice).await {
                        continue;
                    }
                }
            }
            let seat = near.state().stream.seat(leader);
            let Some(seat) = seat.filter(|seat| seat.session == session) else { return };
            let sent = self.clock.boot();
            let renew = NearRenew { session, have: seat.have, at_least: None, volume: near.volume.0.into() };
            renew_at = Instant::now() + self.config.renew_interval;
            match ask(&*self.peers, leader, &renew, RENEW_WITHIN).await {
                Ok(renewed) if renewed.session == session => {
                    if let Some(news) = &renewed.news {
                        near.take_news(news).await;
                    }
                    near.facts.lease(sent.after(Duration::from_millis(renewed.lease_ms.into())));
                }
                Ok(_) | Err(Refused::Ended | Refused::Unknown) => return near.end_of(session),
                // What isn't bound to a time is taken back with the lease: access control lists that the kernel has, and pages.
                Err(Refused::Unanswered) if near.facts.is_over() => return near.end_of(session),
                Err(Refused::Unanswered) => renew_at = Instant::now() + RENEW_AGAIN,
            }
        }
    }
}
