//! What a replica's leader promises to readers of its region, at work (the decisions are [`mooseng_region::near`]'s; docs/decisions/0036-near-promises.md).
//!
//! ```text
//!   receive: coming(entries) -> commit -> Coming::applied -> NearNotice to whom it concerns
//!   near:    begin -> look -> grant -> NearReply with the news that come before it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_region::near::{Begun, Limits, NearId, NearTable, News, Totals, Touch};
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
use mooseng_wire::{InodeId, LOCAL_ID_BITS, Role, VolumeId};
use prost::Message;
use rand::RngCore;
use tokio::time::Instant;

use super::seat::Seat;
use super::{lock, near, place, position};
use crate::master::Master;
use crate::rights;

/// Recalls in one notice.
const RECALLS_PER_NOTICE: usize = 256;
/// How often it is looked whose lease is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A lease is over here so much later than there: clocks may differ in rate.
const LEASE_MARGIN: Duration = Duration::from_millis(500);

/// The promises of one volume's replica, and on which connections its readers are told.
pub struct NearPromises {
    table: Mutex<NearTable<LogPosition>>,
    connections: Mutex<BTreeMap<NearId, ConnectionHandle>>,
}

/// The volume of a session with a reader.
pub fn volume_of(session: NearId) -> VolumeId {
    VolumeId((session >> LOCAL_ID_BITS) as u16)
}

/// An id for a session with a reader: nobody has it but by chance.
fn fresh_id(volume: VolumeId) -> NearId {
    let drawn = rand::rng().next_u64() & ((1 << LOCAL_ID_BITS) - 1);
    (u64::from(volume.0) << LOCAL_ID_BITS) | drawn.max(1)
}

impl NearPromises {
    /// Nothing is promised. The bounds are those of all volumes together that count so.
    pub fn new(totals: Arc<Totals>) -> Self {
        let table = NearTable::new(Limits::default(), totals);
        Self { table: Mutex::new(table), connections: Mutex::default() }
    }

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
pub(super) struct Coming(Arc<Seat>, BTreeSet<NearId>, Option<LogPosition>);

/// Takes back what entries touch that are about to be replayed. Only while `applying` is held.
pub(super) async fn coming(
    master: &Master,
    volume: VolumeId,
    entries: &[Entry],
) -> Result<Coming, StoreError> {
    let seat = master.geo.seat(volume);
    let Some(last) = entries.last() else { return Ok(Coming(seat, BTreeSet::new(), None)) };
    let touches = touched(master, volume, entries).await?;
    let touches = if plant::is(Plant::NearRecallSkipped) { BTreeSet::new() } else { touches };
    let concerned = seat.near.table(|table| table.coming(last.at, &touches));
    Ok(Coming(seat, concerned, Some(last.at)))
}

impl Coming {
    /// The replica is there now.
    pub(super) fn applied(self, master: &Master, at: LogPosition) {
        let Self(seat, concerned, last) = self;
        if last.is_some_and(|last| last <= at) {
            seat.near.table(NearTable::applied);
        }
        seat.near.tell(master, &concerned);
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
    let seat = master.geo.seat(volume);
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
                None => named(&seat.near, &tx, directory, key).await?,
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
    near: &NearPromises,
    tx: &impl Transaction,
    directory: InodeId,
    key: &Bytes,
) -> Result<Option<Bytes>, StoreError> {
    if !near.table(|table| table.knows_of(directory)) {
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
    let volume = match request.session {
        0 => near::volume_told(request.volume)?,
        session => volume_of(session),
    };
    let term = master.serving_of(volume)?;
    near::has_replica(master, volume)?;
    if rights::of(master, &peer.identity)?.is_some() {
        return Err(near::elsewhere("a client under a mount rule reads at the volume's home"));
    }
    if request.at_least.is_some() {
        near::reached(master, volume, position(request.at_least.as_ref()), deadline).await?;
    }
    let Some(at) = master.geo.replica(volume).readable() else {
        return Err(near::elsewhere("the volume is being copied to this region: ask its home"));
    };
    let identity = peer.uri.as_str();
    let lease_ms = master.lease_ms(volume);
    let lease = Duration::from_millis(lease_ms.into());
    let until = master.clock.boot().after(lease + LEASE_MARGIN);
    let (mut id, mut have) = (request.session, request.have);
    let seat = master.geo.seat(volume);
    let news = seat.near.table(|table| {
        if id == 0 || !table.renew(id, identity, until) {
            (id, have) = (fresh_id(volume), 0);
            table.open(id, identity, until).map_err(|full| call_error(ErrorCode::Busy, full.to_string()))?;
        }
        let mut news = table.news(id, have).unwrap_or_default();
        news.at = news.at.max(at);
        Ok::<_, CallError>(news)
    })?;
    lock(&seat.near.connections).insert(id, connection.clone());
    master.may_answer(term)?;
    Ok(NearRenewed { session: id, lease_ms, news: Some(message(id, news)) })
}

/// Forgets readers whose leases are over, as long as this region has a replica of the volume.
pub async fn run(master: &Master, volume: VolumeId) {
    let seat = master.geo.seat(volume);
    loop {
        let now = master.clock.boot();
        seat.near.table(|table| table.lapse(now));
        seat.near.hang_up();
        let (sessions, promises) = master.geo.near_counts();
        master.metrics.near_sessions.set(sessions as i64);
        master.metrics.near_promises.set(promises as i64);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
