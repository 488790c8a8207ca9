//! Finding the volume's home and its leader, and opening the session there, or taking it up again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_ports::clock::BootTime;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::founding::Founding;
use mooseng_wire::geo::Home;
use mooseng_wire::method::Method;
use mooseng_wire::session::{OpenSession, Renew, SessionOpened};
use mooseng_wire::{InodeId, ROOT_INODE, Role, SessionId};
use prost::Message;
use rand::Rng;
use tokio::time::Instant;

use super::{Doubt, NoLeader, OPEN_TIMEOUT, Seat, Session, refusals};
use crate::error::FsError;
use crate::owners::{Reclaim, Tenure};
use crate::peers::{Failure, Peers};

/// A master that doesn't answer for this long is joined by the next one.
const STAGGER: Duration = Duration::from_millis(200);
/// Leaders tried in one search at most: the configured ones and those that were hinted at.
const CANDIDATES_MAX: usize = 16;
/// How often it is measured how far other regions are.
const MEASURE_EVERY: Duration = Duration::from_secs(600);

impl Session {
    /// Which other region is the home, whose leader was found at that address; none where it is this host's.
    fn home_elsewhere(&self, leader: &String, told: Option<Home>) -> Option<String> {
        let own = &self.config.masters;
        if own.contains(leader) {
            return None;
        }
        // Where nobody of this host's region answers, the home itself says that its masters are another region's.
        let is_away = || self.state(|s| s.elsewhere.iter().any(|address| own.contains(address)));
        told.map(|home| home.region).or_else(|| is_away().then(|| "another region".to_owned()))
    }

    /// One round over all masters: at most one leads, and opening a session there twice does no harm.
    pub(super) async fn search(&self) -> Result<(), NoLeader> {
        let mut waiting: VecDeque<String> = VecDeque::new();
        let (last, mut elsewhere) = self.state(|s| (s.last_leader.clone(), s.elsewhere.clone()));
        self.near.ways(|ways| ways.nearest_first(&mut elsewhere));
        for address in self.config.masters.iter().chain(&last) {
            if !waiting.contains(address) {
                waiting.push_back(address.clone());
            }
        }
        // Whoever led last comes first; otherwise all hosts would burden the first one of the list.
        let start = match last.and_then(|last| waiting.iter().position(|a| *a == last)) {
            Some(position) => position,
            None => self
                .random
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .random_range(0..waiting.len().max(1)),
        };
        waiting.rotate_left(start.min(waiting.len().saturating_sub(1)));
        for address in &elsewhere {
            if !waiting.contains(address) {
                waiting.push_back(address.clone());
            }
        }
        let mut known = waiting.len();
        let mut hinted: Vec<String> = Vec::new();
        let mut asked = FuturesUnordered::new();
        let mut error = "no masters are configured".to_owned();
        let (mut other, mut refused) = (None, None);
        // What a master that doesn't let this host's certificate in says of it, and whether any says anything else.
        let (mut shut_out, mut is_one_open) = (None, false);
        // Where a master of this host's region says that the home is.
        let mut home: Option<Home> = None;
        loop {
            if asked.is_empty() {
                let Some(address) = waiting.pop_front() else {
                    // The root's alone: of another volume, whose root was entered with the same certificate, operations wait as they do there.
                    let is_shut = !is_one_open && self.config.volume == 0;
                    let refused = refused.or(shut_out.filter(|_| is_shut));
                    elsewhere.retain(|address| !self.config.masters.contains(address));
                    self.near.home_is_lost(elsewhere);
                    return Err(NoLeader { error, refused, other, no_volume: false });
                };
                asked.push(self.open_at(address));
            }
            tokio::select! {
                biased;
                Some(outcome) = asked.next() => match outcome {
                    Ok(address) => {
                        self.near.home_is_found();
                        self.near.set_home(self.home_elsewhere(&address, home));
                        return Ok(());
                    }
                    Err((address, failure)) => {
                        match refusals::of_certificate(&failure) {
                            Some(why) => shut_out = Some(FsError::Denied(why)),
                            None => is_one_open = true,
                        }
                        if let Some(told) = home_of(&failure)
                            && home.as_ref().is_none_or(|known| told.epoch > known.epoch)
                        {
                            let fresh = |a: &&String| !hinted.contains(a);
                            let masters: Vec<String> = told.masters.iter().filter(fresh).cloned().collect();
                            waiting.retain(|a| !masters.contains(a));
                            for master in masters.into_iter().rev().take(CANDIDATES_MAX) {
                                hinted.push(master.clone());
                                waiting.push_front(master);
                            }
                            known = 0;
                            home = Some(told);
                        }
                        if let Failure::Refused(refusal) = &failure
                            && refusal.code() == ErrorCode::NotLeader
                            && !refusal.leader.is_empty()
                            && refusal.leader != address
                            && !hinted.contains(&refusal.leader)
                            && known < CANDIDATES_MAX
                        {
                            known += 1;
                            hinted.push(refusal.leader.clone());
                            waiting.retain(|a| *a != refusal.leader);
                            asked.push(self.open_at(refusal.leader.clone()));
                        } else if let Some(next) = waiting.pop_front() {
                            asked.push(self.open_at(next));
                        }
                        // Whoever leads says why it lets nobody in; the others say only that they don't lead.
                        let refuses = match &failure {
                            Failure::Refused(e) if e.code() == ErrorCode::NoVolume && self.config.volume != 0 => {
                                let error = format!("{address}: {failure}");
                                return Err(NoLeader { error, refused, other, no_volume: true });
                            }
                            Failure::Refused(e) => self.refusal(e),
                            _ => None,
                        };
                        if refuses.is_some() || refused.is_none() {
                            error = format!("{address}: {failure}");
                        }
                        refused = refuses.or(refused);
                        if matches!(&failure, Failure::Refused(e) if e.code() == ErrorCode::OtherFounding) {
                            other = Some(format!("{address}: {failure}"));
                        }
                    }
                },
                () = tokio::time::sleep(STAGGER), if !waiting.is_empty() => {
                    if let Some(next) = waiting.pop_front() {
                        asked.push(self.open_at(next));
                    }
                }
            }
        }
    }

    /// Why a master that leads lets this host in nowhere; none where it may be otherwise soon.
    fn refusal(&self, refusal: &CallError) -> Option<FsError> {
        match refusal.code() {
            ErrorCode::PermissionDenied => Some(FsError::Denied(refusal.message.clone())),
            ErrorCode::NotBuilt if self.config.volume != 0 => {
                Some(FsError::NotBuilt(refusal.message.clone()))
            }
            _ => None,
        }
    }

    /// Answers the address.
    async fn open_at(&self, address: String) -> Result<String, (String, Failure)> {
        let (session, incarnation, custody_epoch) =
            self.state(|s| (s.session, s.incarnation, s.custody_epoch));
        let opened = match self.open_as(&address, session, incarnation, custody_epoch).await {
            // The record is gone (a day after the lease lapsed): nothing to take up again.
            Err(Failure::Refused(e))
                if session != 0 && matches!(e.code(), ErrorCode::SessionExpired | ErrorCode::NotFound) =>
            {
                self.open_as(&address, 0, 0, custody_epoch).await
            }
            // A new incarnation has lost its opens: declare them to it.
            Ok((opened, _, _)) if opened.lapsed => self
                .open_as(&address, opened.session, opened.incarnation, opened.custody_epoch)
                .await
                .map(|(again, sent, reclaim)| (SessionOpened { lapsed: true, ..again }, sent, reclaim)),
            other => other,
        };
        match opened {
            Ok((opened, sent, reclaim)) => {
                self.take(address.clone(), &opened, sent, &reclaim);
                Ok(address)
            }
            Err(failure) => Err((address, failure)),
        }
    }

    pub(super) async fn open_as(
        &self,
        address: &str,
        session: u64,
        incarnation: u64,
        custody_epoch: u64,
    ) -> Result<(SessionOpened, BootTime, Reclaim), Failure> {
        let founding = self.state(|s| s.founding);
        let order = self.next_order();
        // Before the opens are looked at: whoever adds one afterwards sees this.
        self.declared.fetch_max(order, Ordering::SeqCst);
        let tenure = self.tenure();
        // In a cluster of one region there is one home.
        let reclaims = tenure.life == (session, incarnation) && self.has_elsewhere();
        let reclaim = if reclaims {
            // A next home is asked for what is held now: what were given, or given back, under the old promise, or one that comes yet, before its answer does would be
            // lost. It waits for that.
            let asking = self.facts.ask_locks();
            self.locks.reclaim(tenure).while_asking(asking)
        } else {
            Reclaim::default()
        };
        let open = OpenSession {
            locks_home: if reclaims { tenure.home } else { 0 },
            locks: reclaim.locks.clone(),
            // None of another life's.
            locks_alone: self.locks.held_here(Tenure { life: (session, incarnation), ..tenure }),
            order,
            oldest_unanswered: self.settled.load(Ordering::Acquire),
            session,
            incarnation,
            opens: self.opens.declare(),
            host: self.config.host.clone(),
            mount_path: self.config.mount_path.clone(),
            custody_epoch,
            exclusive: self.buffers.held_by((session, incarnation)),
            alone: self.journal.held_by((session, incarnation)),
            escrow: self.buffers.escrow.declare(),
            founding: Founding::tell(founding),
            volume: self.config.volume.into(),
        };
        // The lease counts from before the request left, so that ours ends before the master's.
        let sent = self.clock.boot();
        let asked = Instant::now();
        let answered = self
            .peers
            .call(
                Role::Master,
                address,
                Method::OpenSession,
                open.encode_to_vec().into(),
                Bytes::new(),
                OPEN_TIMEOUT,
            )
            .await;
        self.near.ways(|ways| match &answered {
            Ok(_) | Err(Failure::Refused(_)) => ways.answered(address, asked.elapsed()),
            Err(Failure::NotSent(_) | Failure::Lost | Failure::Timeout) => ways.lost(address),
        });
        let body = answered?.body;
        let opened = SessionOpened::decode(body).map_err(|_| Failure::Lost)?;
        if SessionId(opened.session).volume() != self.volume() {
            // Nobody has any use for it.
            if let Err(failure) = self.close_at(address, opened.session, opened.incarnation).await {
                tracing::debug!(%failure, session = opened.session, "a session of the root that a master opened for another volume ends with its lease");
            }
            return Err(Failure::Refused(CallError {
                code: ErrorCode::NotBuilt.into(),
                message: "entering volumes besides the root: the master is of an earlier release, which opens sessions of the root alone".into(),
                ..CallError::default()
            }));
        }
        // It should have refused; an earlier version tells no mark.
        match (founding, Founding::told(&opened.founding)) {
            (_, Err(_)) => Err(Failure::Lost),
            (Some(own), Ok(Some(told))) if own != told => Err(Failure::Refused(CallError {
                code: ErrorCode::OtherFounding.into(),
                message: format!(
                    "it is of the region with the founding mark {told}, the mounted one has the mark {own}"
                ),
                detail: opened.founding,
                ..CallError::default()
            })),
            _ => Ok((opened, sent, reclaim)),
        }
    }

    /// Measures how far masters of other regions are, which are asked when none of this one answers: once they are told, and then now and then. Over connections
    /// of its own, which end with that: there are many mounts.
    pub(crate) async fn measure_ways(&self) {
        let mut confirmed = self.confirmed.subscribe();
        let mut measured: Option<(BTreeSet<String>, Instant)> = None;
        let is_far = |address: &String| !self.config.masters.contains(address);
        loop {
            let told: BTreeSet<String> = self.elsewhere().into_iter().filter(is_far).collect();
            let is_due =
                measured.as_ref().is_none_or(|(of, at)| *of != told || at.elapsed() >= MEASURE_EVERY);
            // What other volumes know comes of the calls that they make.
            if is_due && !told.is_empty() && self.config.volume == 0 {
                if let Some(peers) = self.peers.apart() {
                    for address in &told {
                        self.measure(&*peers, address).await;
                    }
                }
                measured = Some((told, Instant::now()));
            }
            if confirmed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Asks a master something that takes it no time: about a session that there isn't.
    async fn measure(&self, peers: &dyn Peers, address: &str) {
        let body = Bytes::from(Renew::default().encode_to_vec());
        // The first time with the connection.
        for _ in 0..2 {
            let asked = Instant::now();
            let call =
                peers.call(Role::Master, address, Method::Renew, body.clone(), Bytes::new(), OPEN_TIMEOUT);
            match call.await {
                Ok(_) | Err(Failure::Refused(_)) => {
                    self.near.ways(|ways| ways.measured(address, asked.elapsed()));
                }
                Err(Failure::NotSent(_) | Failure::Lost | Failure::Timeout) => {
                    return self.near.ways(|ways| ways.lost(address));
                }
            }
        }
    }

    fn take(&self, leader: String, opened: &SessionOpened, sent: BootTime, reclaim: &Reclaim) {
        self.state(|s| {
            if s.session != 0 && (opened.lapsed || opened.session != s.session) {
                self.buffers.escrow.lose();
                s.lapses += 1;
                tracing::warn!(session = opened.session, incarnation = opened.incarnation, "the session's lease had lapsed; it goes on as a new incarnation");
            }
            if s.last_leader.as_ref() != Some(&leader) {
                s.leader_changes += 1;
                tracing::info!(%leader, session = opened.session, custody_epoch = opened.custody_epoch, "found the region's leader");
            }
            (s.other_since, s.refused) = (None, None);
            if s.made_anew.take().is_some() {
                tracing::info!(%leader, "the region that was mounted is there again");
            }
            // The first one that is told stays.
            s.founding = s.founding.or_else(|| Founding::told(&opened.founding).ok().flatten());
            let life = (s.custody_epoch.max(opened.custody_epoch), opened.session, opened.incarnation);
            let now = self.clock.boot();
            if s.lease_until.is_some_and(|until| now >= until) {
                // It ran out before: nobody waits any more for what was promised under it, whatever life this is.
                s.answered = (0, 0, 0);
            }
            if s.answered != life {
                // Before anything of this life can come in. The home may be this host's region now.
                self.facts.renounce();
                self.near.end_now();
            }
            if s.session == 0 {
                // The first: nothing was promised before.
                s.answered = life;
            }
            if opened.home_epoch > s.home {
                self.facts.forget_locks();
                let next =
                    Tenure { life: (opened.session, opened.incarnation), home: opened.home_epoch };
                let is_reclaimed = opened.locks_reclaimed
                    && (s.session, s.incarnation) == next.life
                    && reclaim.is_of(Tenure { life: next.life, home: s.home });
                // Before the next seat can be seen: whoever finds its change refused there finds, too, what is held there.
                if !(is_reclaimed && self.locks.reclaimed(reclaim, &opened.locks_lost, next)) {
                    s.locks_from = opened.home_epoch;
                }
            }
            s.session = opened.session;
            s.incarnation = opened.incarnation;
            s.custody_epoch = s.custody_epoch.max(opened.custody_epoch);
            // An answer of a home that isn't any more comes late.
            s.home = s.home.max(opened.home_epoch);
            self.locks.begin_tenure(Tenure { life: (s.session, s.incarnation), home: s.home });
            s.root = match opened.root {
                0 => InodeId::new(self.volume(), ROOT_INODE.0).0,
                root => root,
            };
            (s.read_only, s.squash) = (opened.read_only, opened.squash());
            (s.alone, s.locks_alone) = (opened.alone, opened.locks_alone);
            s.elsewhere.clone_from(&opened.elsewhere);
            let until = sent.after(Duration::from_millis(opened.lease_ms.into()));
            s.lease_until = Some(until);
            self.facts.lease(until);
            s.last_leader = Some(leader.clone());
            s.last_error.clear();
            s.doubt = Doubt::None;
            s.confirmed += 1;
            s.seat = Some(Seat {
                leader,
                session: s.session,
                incarnation: s.incarnation,
                custody_epoch: s.custody_epoch,
                home: s.home,
                locks_from: s.locks_from,
                confirmed: s.confirmed,
            });
        });
        self.publish();
    }
}

/// Where a refusal says that the volume's home is.
fn home_of(failure: &Failure) -> Option<Home> {
    match failure {
        Failure::Refused(refusal) if refusal.code() == ErrorCode::NotHome => {
            Home::decode(refusal.detail.clone()).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use mooseng_ports::clock::ManualClock;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::buffers::{Buffers, Room};
    use crate::config::ClientConfig;
    use crate::facts::Facts;
    use crate::peers::{Answered, Unconnected};

    /// Masters of other regions, and how far they are; those that aren't named aren't reached. Nobody leads.
    #[derive(Clone)]
    struct Far {
        ways: Vec<(&'static str, Duration)>,
        searched: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl Peers for Far {
        async fn call(
            &self,
            _: Role,
            address: &str,
            method: Method,
            _: Bytes,
            _: Bytes,
            _: Duration,
        ) -> Result<Answered, Failure> {
            if method == Method::OpenSession {
                self.searched.lock().unwrap().push(address.to_owned());
            }
            let Some((_, way)) = self.ways.iter().find(|(master, _)| *master == address) else {
                return Err(Failure::NotSent(Unconnected::Passing("nobody is there".into())));
            };
            tokio::time::sleep(*way).await;
            Err(Failure::Refused(CallError { code: ErrorCode::NotLeader.into(), ..CallError::default() }))
        }

        fn apart(&self) -> Option<Arc<dyn Peers>> {
            Some(Arc::new(self.clone()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_nearest_of_the_other_regions_is_asked_first() {
        let searched = Arc::new(Mutex::new(Vec::new()));
        let ways = [("far", 120), ("near", 30), ("middle", 60)]
            .map(|(master, ms)| (master, Duration::from_millis(ms)));
        let peers = Arc::new(Far { ways: ways.into(), searched: searched.clone() });
        let clock = Arc::new(ManualClock::default());
        let facts = Arc::new(Facts::new(clock.clone(), 1 << 20));
        let buffers = Arc::new(Buffers::sharing(Arc::new(Room::new(1 << 20))));
        let config = ClientConfig { masters: vec!["own".into()], ..ClientConfig::default() };
        let session =
            Session::new(config, peers, clock, Arc::default(), facts, buffers, CancellationToken::new());
        session.hear_of(["far", "lost", "near", "own", "middle"].map(String::from).into());
        let measuring = tokio::time::timeout(Duration::from_secs(10), session.measure_ways()).await;
        assert!(measuring.is_err(), "it goes on");
        assert!(session.search().await.is_err());
        assert_eq!(*searched.lock().unwrap(), ["own", "near", "middle", "far", "lost"]);
    }
}
