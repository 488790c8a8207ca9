//! Reads from a replica: where this host's region isn't the volume's home, plain reads go to the region's own masters first.
//!
//! A replica is a past state of the volume, and which one is known: each of its answers, and each of the home's, says up to which place of the
//! volume's log it may show. What this mount has seen it asks of every further answer, so that it sees its own changes, and never goes back. A
//! replica that isn't there yet, or lacks a chunk, or isn't reached, sends the read to the home. While nobody finds that, replicas of other regions are
//! asked, too, the nearest first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mooseng_namespace::may_be_near;
use mooseng_ports::clock::Clock;
use mooseng_wire::VolumeId;
use mooseng_wire::fs::FsRequest;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::geo::NearReply;
use mooseng_wire::session::{Granted, Response};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::ClientConfig;
use crate::facts::{Facts, Flight};
use crate::near_stream::{At, Stream};
use crate::peers::Peers;
use crate::recalls::Recalls;

mod afar;
mod here;
mod ways;

use ways::Ways;

/// A master of this region gets so long to answer: the home is a few times as far.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// A region whose masters weren't reached is left alone so long.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The region that is the home, while it isn't this host's.
    home: Option<String>,
    /// The newest place that was seen.
    pub seen: At,
    /// What the replica promises.
    pub stream: Stream,
    /// This mount's own changes that may not be in the sync set yet.
    changed: Changed,
    /// The master of this region that answered last.
    leader: Option<String>,
    /// Nobody is asked before.
    resting_until: Option<Instant>,
    /// How far masters of other regions are.
    ways: Ways,
    /// Masters of other regions that may have a replica, while the home isn't found.
    afar: Vec<String>,
    /// None of those is asked before.
    afar_resting_until: Option<Instant>,
}

/// Inodes whose changes are remembered apart.
const CHANGED_MAX: usize = 50_000;
/// Stands for inodes beyond that.
pub(crate) const SOME: u64 = 0;

/// Changes that aren't known to be in the sync set: of each inode the newest place of each home epoch, for what a later home answered says nothing of
/// what a failover took back of an earlier one.
#[derive(Debug, Default)]
struct Changed {
    /// By inode and epoch.
    of: BTreeMap<(u64, u64), u64>,
    /// By epoch, version and inode.
    order: BTreeSet<(u64, u64, u64)>,
}

impl Changed {
    fn note(&mut self, inode: u64, epoch: u64, version: u64) {
        self.put(inode, epoch, version);
        while self.of.len() > CHANGED_MAX {
            let Some((epoch, version, inode)) = self.order.iter().copied().find(|(.., inode)| *inode != SOME)
            else {
                return;
            };
            self.remove(inode, epoch);
            self.put(SOME, epoch, version);
        }
    }

    fn put(&mut self, inode: u64, epoch: u64, version: u64) {
        let before = self.remove(inode, epoch).unwrap_or(0);
        let version = version.max(before);
        self.of.insert((inode, epoch), version);
        self.order.insert((epoch, version, inode));
    }

    fn remove(&mut self, inode: u64, epoch: u64) -> Option<u64> {
        let version = self.of.remove(&(inode, epoch))?;
        self.order.remove(&(epoch, version, inode));
        Some(version)
    }

    fn synced(&mut self, (epoch, upto): At) {
        while let Some((epoch, _, inode)) =
            self.order.range((epoch, 0, 0)..=(epoch, upto, u64::MAX)).next().copied()
        {
            self.remove(inode, epoch);
        }
    }

    fn told(&mut self, inode: u64, (epoch, upto): At) {
        if self.of.get(&(inode, epoch)).is_some_and(|newest| *newest <= upto) {
            self.remove(inode, epoch);
        }
    }
}

impl State {
    /// With whom a session is wanted under which the replica promises something.
    pub fn wanted(&self) -> Option<String> {
        self.home.as_ref().and(self.leader.clone())
    }
}

/// This host's region as a replica.
pub(crate) struct Near {
    state: Mutex<State>,
    /// Everything is read at the home.
    strong: bool,
    /// Which one it is a replica of.
    pub volume: VolumeId,
    /// What the replica has promised; shown only where [`Stream::shows`] says so.
    pub facts: Facts,
    /// A session is open under which it does.
    pub is_open: AtomicBool,
    /// Who takes in what comes of it, one after the other.
    pub taking: tokio::sync::Mutex<()>,
    /// Who takes back what others were told.
    pub settling: tokio::sync::Mutex<()>,
    pub recalls: OnceLock<Arc<Recalls>>,
    /// Rung where a session is wanted, has ended, or is to be renewed.
    pub kick: Notify,
}

impl Near {
    /// Nothing is known yet.
    pub fn new(config: &ClientConfig, clock: Arc<dyn Clock>, home: Arc<Facts>) -> Self {
        Self {
            state: Mutex::default(),
            strong: config.strong,
            volume: VolumeId(config.volume),
            facts: Facts::of_replica(clock, config.facts_bytes, home),
            is_open: false.into(),
            taking: tokio::sync::Mutex::default(),
            settling: tokio::sync::Mutex::default(),
            recalls: OnceLock::new(),
            kick: Notify::new(),
        }
    }

    /// With whom a session is wanted under which the replica promises something.
    pub fn wanted(&self) -> Option<String> {
        self.state().wanted()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume's home is that region; none where it is this host's.
    pub fn set_home(&self, home: Option<String>) {
        let home = home.filter(|_| !self.strong);
        let mut state = self.state();
        if state.home != home {
            if let Some(home) = &home {
                tracing::info!(
                    home,
                    "the volume's home is another region: reads are asked of this one first"
                );
            }
            state.home = home;
            state.leader = None;
            self.end(&mut state);
            self.kick.notify_one();
        }
    }

    /// No home is found: whoever else may have a replica, in the order in which they are asked.
    pub fn home_is_lost(&self, afar: Vec<String>) {
        self.state().afar = afar;
    }

    /// It is found.
    pub fn home_is_found(&self) {
        let mut state = self.state();
        state.afar.clear();
        state.afar_resting_until = None;
    }

    /// How far masters of other regions are.
    pub fn ways<T>(&self, section: impl FnOnce(&mut Ways) -> T) -> T {
        section(&mut self.state().ways)
    }

    /// Whether the volume's home is another region.
    pub fn is_away(&self) -> bool {
        self.state().home.is_some()
    }

    /// An answer was taken that may show everything up to a place.
    pub fn saw(&self, epoch: u64, version: u64) {
        if epoch > 0 {
            let mut state = self.state();
            state.seen = state.seen.max((epoch, version));
        }
    }

    /// The newest place of the log, by epoch and version, that an answer may have shown.
    pub fn seen(&self) -> At {
        self.state().seen
    }

    /// Whether the volume has a log: where it has one, several regions have the volume.
    pub fn has_log(&self) -> bool {
        self.state().seen > At::default()
    }

    /// A change of this mount was answered, which concerns these inodes and is in the log up to a place.
    pub fn changed(&self, inodes: &[u64], (epoch, version): At) {
        if epoch > 0 {
            let mut state = self.state();
            inodes.iter().for_each(|inode| state.changed.note(*inode, epoch, version));
        }
    }

    /// Where changes of an inode are that may not be in the sync set yet, the newest of each home epoch; and of which inode, [`SOME`] where that isn't
    /// known any more.
    pub fn unsynced(&self, inode: u64) -> Vec<(u64, At)> {
        let state = self.state();
        let of = |inode: u64| {
            let range = state.changed.of.range((inode, 0)..=(inode, u64::MAX));
            range.map(move |((_, epoch), version)| (inode, (*epoch, *version)))
        };
        of(SOME).chain(of(inode).filter(|(inode, _)| *inode != SOME)).collect()
    }

    /// What was changed in that epoch is in the sync set up to there.
    pub fn synced(&self, upto: At) {
        self.state().changed.synced(upto);
    }

    /// What was changed of an inode in that epoch up to there is lost, and told so.
    pub fn told(&self, inode: u64, upto: At) {
        self.state().changed.told(inode, upto);
    }

    /// Reads from the replica, or, while the home isn't found, from another region's; none where the home has to be asked.
    pub async fn read(&self, peers: &dyn Peers, masters: &[String], request: &FsRequest) -> Option<Reply> {
        self.read_aged(peers, masters, request).await.map(|(reply, _)| reply)
    }

    /// [`Self::read`], and how old what it shows is at most, if that is known.
    pub async fn read_aged(
        &self,
        peers: &dyn Peers,
        masters: &[String],
        request: &FsRequest,
    ) -> Option<(Reply, Option<Duration>)> {
        if !may_be_near(request) {
            return None;
        }
        let (seen, here) = {
            let mut state = self.state();
            state.home.as_ref()?;
            let rests = state.resting_until.is_some_and(|until| Instant::now() < until);
            if !rests {
                state.resting_until = None;
            }
            (state.seen, (!rests).then(|| state.leader.clone()))
        };
        if let Some(known) = here
            && let Some(read) = self.read_here(peers, masters, request, (known, seen)).await
        {
            return Some(read);
        }
        self.read_afar(peers, request).await
    }

    /// This master leads. One that another session is of isn't the leader any more.
    fn answered(&self, address: String, session: Option<u64>) {
        let mut state = self.state();
        if state.leader.as_ref() == Some(&address) {
            return;
        }
        if session.is_none() && state.stream.session().is_some() && state.stream.leader() != address {
            self.end(&mut state);
        }
        state.leader = Some(address);
        drop(state);
        self.kick.notify_one();
    }

    /// Takes an answer in, which is shown then; none where it shows less than what was seen. What comes before it is forgotten first, and what it promises
    /// is kept.
    async fn take(
        &self,
        peers: &dyn Peers,
        request: &FsRequest,
        reply: NearReply,
        (flight, session): (&Flight<'_>, Option<u64>),
        seen: At,
    ) -> Option<Reply> {
        let at = reply.at.map_or((0, 0), |place| (place.epoch, place.version));
        match (&reply.news, session) {
            (Some(news), Some(_)) => {
                if !self.take_news(news).await {
                    self.end_of(news.session);
                }
                let granted = reply
                    .granted
                    .into_iter()
                    .map(|fact| Granted { fact: Some(fact), exclusive: false })
                    .collect();
                let beside =
                    Response { grant: news.upto, granted, reply: reply.reply.clone(), ..Response::default() };
                self.facts.digest(flight, request, &beside);
            }
            // It isn't known there any more.
            (None, Some(session)) => self.end_of(session),
            (_, None) => {}
        }
        if at < seen {
            return None;
        }
        self.saw(at.0, at.1);
        self.settle(peers, at).await;
        reply.reply?.reply
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use async_trait::async_trait;
    use bytes::Bytes;
    use mooseng_ports::clock::ManualClock;
    use mooseng_wire::Role;
    use mooseng_wire::call::{CallError, ErrorCode};
    use mooseng_wire::fs::fs_request::Op;
    use mooseng_wire::fs::{Done, FsReply, GetAttr, StatFs};
    use mooseng_wire::geo::Place;
    use mooseng_wire::method::Method;
    use prost::Message;

    use super::*;
    use crate::peers::{Answered, Failure};

    type Script = Mutex<VecDeque<(&'static str, Result<Answered, Failure>)>>;

    /// Answers in order, and checks whom it is asked of.
    struct Scripted(Script);

    #[async_trait]
    impl Peers for Scripted {
        async fn call(
            &self,
            _: Role,
            address: &str,
            method: Method,
            _: Bytes,
            _: Bytes,
            _: Duration,
        ) -> Result<Answered, Failure> {
            assert_eq!(method, Method::NearRead);
            let (expected, answer) = self.0.lock().unwrap().pop_front().expect("asked too often");
            assert_eq!(address, expected);
            answer
        }
    }

    fn refused(code: ErrorCode, leader: &str) -> Result<Answered, Failure> {
        Err(Failure::Refused(CallError { code: code.into(), leader: leader.into(), ..CallError::default() }))
    }

    fn at(epoch: u64, version: u64) -> Result<Answered, Failure> {
        let reply = NearReply {
            reply: Some(FsReply { reply: Some(Reply::Done(Done {})) }),
            at: Some(Place { epoch, version }),
            ..NearReply::default()
        };
        Ok(Answered { body: reply.encode_to_vec().into(), bulk: Bytes::new() })
    }

    fn nothing_known() -> Near {
        let clock = Arc::new(ManualClock::default());
        let home = Arc::new(Facts::new(clock.clone(), 1 << 20));
        Near::new(&ClientConfig::default(), clock, home)
    }

    fn get() -> FsRequest {
        FsRequest { op: Some(Op::GetAttr(GetAttr { inode: 1 })), caller: None }
    }

    #[tokio::test(start_paused = true)]
    async fn the_leader_is_found_and_what_was_seen_isnt_gone_behind() {
        let masters = ["a".to_owned(), "b".to_owned()];
        let near = nothing_known();
        let script =
            |steps: Vec<(&'static str, Result<Answered, Failure>)>| Scripted(Mutex::new(steps.into()));
        assert!(near.read(&script(vec![]), &masters, &get()).await.is_none(), "the home is here");
        near.set_home(Some("elsewhere".into()));
        let whole = FsRequest { op: Some(Op::StatFs(StatFs { inode: 1 })), caller: None };
        assert!(near.read(&script(vec![]), &masters, &whole).await.is_none(), "only the home knows");
        let found = script(vec![("a", refused(ErrorCode::NotLeader, "c")), ("c", at(1, 5))]);
        assert!(near.read(&found, &masters, &get()).await.is_some());
        assert!(near.read(&script(vec![("c", at(1, 6))]), &masters, &get()).await.is_some());
        assert!(
            near.read(&script(vec![("c", at(1, 4))]), &masters, &get()).await.is_none(),
            "it would go back"
        );
        near.saw(1, 9);
        let behind = script(vec![("c", refused(ErrorCode::Unavailable, ""))]);
        assert!(near.read(&behind, &masters, &get()).await.is_none(), "the home is asked");
        assert!(near.read(&script(vec![("c", at(1, 9))]), &masters, &get()).await.is_some());
        let gone =
            script(vec![("c", Err(Failure::Lost)), ("a", Err(Failure::Timeout)), ("b", Err(Failure::Lost))]);
        assert!(near.read(&gone, &masters, &get()).await.is_none());
        assert!(near.read(&script(vec![]), &masters, &get()).await.is_none(), "it is left alone for a while");
        tokio::time::advance(REST).await;
        assert!(near.read(&script(vec![("a", at(2, 1))]), &masters, &get()).await.is_some());
        near.set_home(None);
        assert!(near.read(&script(vec![]), &masters, &get()).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn while_no_home_is_found_other_regions_replicas_are_read() {
        let masters = ["a".to_owned()];
        let near = nothing_known();
        let script =
            |steps: Vec<(&'static str, Result<Answered, Failure>)>| Scripted(Mutex::new(steps.into()));
        let unavailable = || refused(ErrorCode::Unavailable, "");
        near.set_home(Some("elsewhere".into()));
        near.saw(1, 5);
        near.home_is_lost(vec!["x".into(), "y".into(), "z".into()]);
        assert!(near.read(&script(vec![("a", at(1, 5))]), &masters, &get()).await.is_some(), "it is here");
        // One that isn't reached, one that lacks it, and one whose leader has it.
        let others = script(vec![
            ("a", unavailable()),
            ("x", Err(Failure::Timeout)),
            ("y", unavailable()),
            ("z", refused(ErrorCode::NotLeader, "w")),
            ("w", at(1, 7)),
        ]);
        assert!(near.read(&others, &masters, &get()).await.is_some());
        assert!(others.0.lock().unwrap().is_empty());
        // That is asked first then, and what it has shown isn't gone behind.
        assert_eq!(near.seen(), (1, 7));
        let behind = script(vec![("a", unavailable()), ("w", at(1, 6))]);
        assert!(near.read(&behind, &masters, &get()).await.is_none());
        // This region isn't reached: the others are read all the same.
        let alone = script(vec![("a", Err(Failure::Lost)), ("w", at(1, 8))]);
        assert!(near.read(&alone, &masters, &get()).await.is_some());
        assert!(near.read(&script(vec![("w", at(1, 8))]), &masters, &get()).await.is_some());
        tokio::time::advance(REST).await;
        // Where nobody is reached anywhere, nobody is asked for a while.
        let lost = ["a", "w", "x", "y", "z"].map(|address| (address, Err(Failure::Lost)));
        assert!(near.read(&script(lost.into()), &masters, &get()).await.is_none());
        assert!(near.read(&script(vec![]), &masters, &get()).await.is_none());
        tokio::time::advance(REST).await;
        near.home_is_found();
        assert!(near.read(&script(vec![("a", unavailable())]), &masters, &get()).await.is_none());
    }

    #[test]
    fn what_an_earlier_home_answered_isnt_settled_by_a_later_one_nor_by_another_inodes_loss() {
        let near = nothing_known();
        near.changed(&[7], (0, 0));
        assert_eq!(near.unsynced(7), []);
        near.changed(&[7, 8], (1, 9));
        near.changed(&[7], (2, 3));
        near.changed(&[7], (1, 8));
        assert_eq!(near.unsynced(7), [(7, (1, 9)), (7, (2, 3))]);
        near.changed(&[7], (2, 4));
        near.synced((2, 3));
        // Who asks first is told of its own.
        near.told(7, (1, 9));
        assert_eq!((near.unsynced(7), near.unsynced(8)), (vec![(7, (2, 4))], vec![(8, (1, 9))]));
        near.synced((2, 4));
        assert_eq!(near.unsynced(7), []);
        // Beyond the bound it isn't known whose it was.
        for inode in 0..CHANGED_MAX as u64 {
            near.changed(&[100 + inode], (3, inode));
        }
        assert_eq!(near.unsynced(8).first(), Some(&(SOME, (1, 9))));
        assert_eq!(near.unsynced(8), near.unsynced(9));
        assert!(near.state().changed.of.len() <= CHANGED_MAX);
        near.synced((3, u64::MAX));
        near.told(SOME, (1, 9));
        assert!(near.state().changed.of.is_empty() && near.state().changed.order.is_empty());
    }
}
