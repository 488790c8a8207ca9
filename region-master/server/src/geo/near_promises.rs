//! What a replica's leader promises to readers of its region, at work (the decisions are [`mooseng_region::near`]'s; docs/decisions/0036-near-promises.md).
//!
//! ```text
//!   receive: coming(entries) -> commit -> Coming::applied -> NearNotice to whom it concerns
//!   near:    begin -> look -> grant -> NearReply with the news that come before it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_region::near::{Begun, Limits, NearId, NearTable, News, Touch};
use mooseng_replica::Entry;
use mooseng_schema::Record;
use mooseng_schema::dirent::DirentRecord;
use mooseng_schema::key::fact_of;
use mooseng_schema::log::LogPosition;
use mooseng_store::mvcc::Change;
use mooseng_store::{Read, Store, StoreError, Transaction};
use mooseng_transport::{ConnectionHandle, Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::Fact;
use mooseng_wire::geo::{NearNews, NearRecall, NearRenew, NearRenewed};
use mooseng_wire::method::Method;
use mooseng_wire::{InodeId, Role, VolumeId};
use prost::Message;
use rand::RngCore;
use tokio::time::Instant;

use super::{ROOT_VOLUME, lock, near, place, position};
use crate::master::Master;
use crate::rights;

/// Recalls in one notice.
const RECALLS_PER_NOTICE: usize = 256;
/// How often it is looked whose lease is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A lease is over here so much later than there: clocks may differ in rate.
const LEASE_MARGIN: Duration = Duration::from_millis(500);

/// A replica's promises, and on which connections its readers are told.
pub struct NearPromises {
    table: Mutex<NearTable<LogPosition>>,
    connections: Mutex<BTreeMap<NearId, ConnectionHandle>>,
}

impl Default for NearPromises {
    fn default() -> Self {
        Self { table: Mutex::new(NearTable::new(Limits::default())), connections: Mutex::default() }
    }
}

impl NearPromises {
    fn table<T>(&self, section: impl FnOnce(&mut NearTable<LogPosition>) -> T) -> T {
        section(&mut lock(&self.table))
    }

    /// To be called before a read begins.
    pub fn begin(&self) -> Begun {
        self.table(|table| table.begin())
    }

    /// Whether what a read has found may never have been: the replica has gone back meanwhile.
    pub fn has_ended_since(&self, begun: Begun) -> bool {
        self.table(|table| table.has_ended_since(begun))
    }

    /// Ends all sessions, before the replica goes back.
    pub fn end(&self) {
        self.table(NearTable::end);
        lock(&self.connections).clear();
    }

    /// Lets go of the connections of sessions that have ended.
    fn hang_up(&self) {
        lock(&self.connections).retain(|id, _| lock(&self.table).is_open(*id));
    }

    /// How many sessions there are, and how many promises.
    pub fn counts(&self) -> (usize, usize) {
        self.table(|table| (table.sessions(), table.promises()))
    }

    /// Tells those sessions what they don't have any more.
    fn tell(&self, master: &Master, concerned: &BTreeSet<NearId>) {
        for id in concerned {
            let Some(connection) = lock(&self.connections).get(id).cloned() else { continue };
            let Some(news) = self.table(|table| table.unsent(*id)) else { continue };
            master.metrics.near_recalls.inc_by(news.recalls.len() as u64);
            let pages = news.recalls.chunks(RECALLS_PER_NOTICE);
            let last = pages.len();
            for (n, page) in pages.enumerate() {
                let upto = page.last().map_or(news.upto, |(number, _)| *number);
                // It is there with the last of them only.
                let at = if n + 1 == last { news.at } else { LogPosition::default() };
                let notice = message(*id, News { upto, recalls: page.to_vec(), at });
                // Who isn't reached hears of it with the next answer.
                let _ = connection.notify(Method::NearNotice, notice.encode_to_vec().into());
            }
        }
    }

    /// Up to where an answer may show entries that a read has found: those that are being replayed, too.
    pub fn at_most(&self, readable: LogPosition) -> LogPosition {
        self.table(|table| table.at()).max(readable)
    }

    /// The news of a session that come before an answer at a place, and what of the answer is promised.
    pub fn answer(
        &self,
        (id, have): (NearId, u64),
        identity: &str,
        begun: Begun,
        facts: impl IntoIterator<Item = Fact>,
        at: LogPosition,
    ) -> Option<(NearNews, Vec<Fact>)> {
        self.table(|table| {
            if !table.is_of(id, identity) {
                return None;
            }
            let granted = table.promise(id, begun, facts);
            let mut news = table.news(id, have)?;
            news.at = news.at.max(at);
            Some((message(id, news), granted))
        })
    }
}

fn message(session: NearId, news: News<LogPosition>) -> NearNews {
    let recall = |(number, fact): (u64, Fact)| NearRecall { number, fact: Some(fact.to_message()) };
    let recalls = news.recalls.into_iter().map(recall).collect();
    NearNews { session, upto: news.upto, recalls, at: place(news.at) }
}

/// Entries that are being replayed, the last of them at that place.
pub(super) struct Coming(BTreeSet<NearId>, Option<LogPosition>);

/// Takes back what entries touch that are about to be replayed. Only while `applying` is held.
pub(super) async fn coming(
    master: &Master,
    volume: VolumeId,
    entries: &[Entry],
) -> Result<Coming, StoreError> {
    let Some(last) = entries.last().filter(|_| volume == ROOT_VOLUME) else {
        return Ok(Coming(BTreeSet::new(), None));
    };
    let touches = touched(master, volume, entries).await?;
    let touches = if plant::is(Plant::NearRecallSkipped) { BTreeSet::new() } else { touches };
    Ok(Coming(master.geo.near.table(|table| table.coming(last.at, &touches)), Some(last.at)))
}

impl Coming {
    /// The replica is there now.
    pub(super) fn applied(self, master: &Master, at: LogPosition) {
        if self.1.is_some_and(|last| last <= at) {
            master.geo.near.table(NearTable::applied);
        }
        master.geo.near.tell(master, &self.0);
    }
}

/// What entries touch. Names of directories of whose entries nobody is promised anything aren't looked up.
async fn touched(
    master: &Master,
    volume: VolumeId,
    entries: &[Entry],
) -> Result<BTreeSet<Touch>, StoreError> {
    let mut touches = BTreeSet::new();
    let mut names: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let tx = master.store.begin();
    for entry in entries {
        // One that can't be read isn't replayed either.
        let Ok(changes) = entry.changes() else { continue };
        for change in changes {
            let (key, value) = match &change {
                Change::Set(key, value) => (key, Some(value)),
                Change::Clear(key) => (key, None),
                Change::ClearRange(range) => (&range.begin, None),
            };
            let directory = match fact_of(volume, key) {
                Some(Fact::Directory(directory)) => directory,
                Some(fact) => {
                    touches.insert(Touch::One(fact));
                    continue;
                }
                None => continue,
            };
            if matches!(change, Change::ClearRange(_)) {
                touches.insert(Touch::Entries(directory));
                continue;
            }
            let now = value.and_then(|value| DirentRecord::from_value(value).ok()).map(|record| record.name);
            let before = match names.get(key) {
                Some(name) => Some(name.clone()),
                None => named(master, &tx, directory, key).await?,
            };
            let known = now.clone().or_else(|| before.clone());
            match known {
                Some(name) => drop(names.insert(key.clone(), name)),
                // It may be any; a read that is under way may find it.
                None => drop(touches.insert(Touch::Entries(directory))),
            }
            for name in now.into_iter().chain(before) {
                touches.insert(Touch::One(Fact::Entry(directory, name)));
            }
        }
    }
    Ok(touches)
}

/// The name that a directory entry's record has here, if anybody is promised anything of that directory's entries.
async fn named(
    master: &Master,
    tx: &impl Transaction,
    directory: InodeId,
    key: &Bytes,
) -> Result<Option<Bytes>, StoreError> {
    if !master.geo.near.table(|table| table.knows_of(directory)) {
        return Ok(None);
    }
    let value = tx.get(key, Read::Snapshot).await?;
    Ok(value.and_then(|value| DirentRecord::from_value(&value).ok()).map(|record| record.name))
}

/// Opens a session with a reader of this region, or renews it; with a place, once the replica is there.
pub async fn renew(
    master: &Master,
    peer: &Peer,
    connection: &ConnectionHandle,
    request: NearRenew,
    deadline: Instant,
) -> Result<NearRenewed, CallError> {
    master.allow(peer, &[Role::Client, Role::Admin])?;
    let term = master.serving()?;
    near::has_replica(master)?;
    if rights::of(master, &peer.identity)?.is_some() {
        return Err(near::elsewhere("a client under a mount rule reads at the volume's home"));
    }
    if request.at_least.is_some() {
        near::reached(master, position(request.at_least.as_ref()), deadline).await?;
    }
    let Some(at) = master.geo.replica(ROOT_VOLUME).readable() else {
        return Err(near::elsewhere("the volume is being copied to this region: ask its home"));
    };
    let identity = peer.uri.as_str();
    let lease_ms = master.lease_ms(ROOT_VOLUME);
    let lease = Duration::from_millis(lease_ms.into());
    let until = master.clock.boot().after(lease + LEASE_MARGIN);
    let (mut id, mut have) = (request.session, request.have);
    let news = master.geo.near.table(|table| {
        if id == 0 || !table.renew(id, identity, until) {
            (id, have) = (rand::rng().next_u64().max(1), 0);
            table.open(id, identity, until).map_err(|full| call_error(ErrorCode::Busy, full.to_string()))?;
        }
        let mut news = table.news(id, have).unwrap_or_default();
        news.at = news.at.max(at);
        Ok::<_, CallError>(news)
    })?;
    lock(&master.geo.near.connections).insert(id, connection.clone());
    master.may_answer(term)?;
    Ok(NearRenewed { session: id, lease_ms, news: Some(message(id, news)) })
}

/// Forgets readers whose leases are over, as long as this region has a replica.
pub async fn run(master: &Master) {
    loop {
        let now = master.clock.boot();
        master.geo.near.table(|table| table.lapse(now));
        master.geo.near.hang_up();
        let (sessions, promises) = master.geo.near.counts();
        master.metrics.near_sessions.set(sessions as i64);
        master.metrics.near_promises.set(promises as i64);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
