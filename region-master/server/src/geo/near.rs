//! Reads of a replica: what was replayed of a volume whose home is elsewhere, for clients of this region.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_namespace::{OpContext, SessionCall, Within, may_be_near, within};
use mooseng_replica::needs::Needs;
use mooseng_schema::log::LogPosition;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::extent::Data;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::{ExtentMap, FsReply};
use mooseng_wire::geo::{NearRead, NearReply};
use mooseng_wire::{ChunkId, Role, VolumeId};
use tokio::time::Instant;

use super::{Geo, Whereabouts, place, place_of, position, sync};
use crate::errors::driver_failed;
use crate::fs::context;
use crate::master::Master;
use crate::{places, promises, rights};

/// What a client has seen is waited for so long: the home has it at once, a round trip away.
const WAIT: Duration = Duration::from_millis(100);
/// What others changed of a `geo` volume is told once its sync set has it: a round trip after it came, or two.
const SYNC_WAIT: Duration = Duration::from_millis(300);

pub(super) fn elsewhere(message: impl Into<String>) -> CallError {
    call_error(ErrorCode::Unavailable, message)
}

/// The volume that a reader names.
pub(super) fn volume_told(volume: u32) -> Result<VolumeId, CallError> {
    u16::try_from(volume).map(VolumeId).map_err(|_| super::no_volume(volume))
}

/// Refuses where there is nothing to read.
pub(super) fn has_replica(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    if place_of(master, volume) != Whereabouts::Elsewhere {
        return Err(elsewhere("this region has no replica of the volume: ask its home"));
    }
    Ok(())
}

/// Answers a read from the replica here, at a place that isn't before what the client has seen. UNAVAILABLE sends the client to the home. Clients of other regions
/// ask where neither theirs nor the home can answer.
pub async fn read(
    master: &Master,
    peer: &Peer,
    request: NearRead,
    deadline: Instant,
) -> Result<NearReply, CallError> {
    master.allow_of_cluster(peer, &[Role::Client, Role::Admin])?;
    let volume = volume_told(request.volume)?;
    let term = master.serving_of(volume)?;
    has_replica(master, volume)?;
    // A subtree's root and a mapping of users hang on a session, which the home has.
    if rights::of(master, &peer.identity)?.is_some() {
        return Err(elsewhere("a client under a mount rule reads at the volume's home"));
    }
    let fs = request.op.as_ref().filter(|fs| may_be_near(fs));
    let Some(fs) = fs else {
        return Err(call_error(ErrorCode::InvalidRequest, "only plain reads are answered by a replica"));
    };
    if within(volume, fs) != Within::All {
        let message = format!("the request names something of another volume than {volume}");
        return Err(call_error(ErrorCode::InvalidRequest, message));
    }
    reached(master, volume, position(request.at_least.as_ref()), deadline).await?;
    let seat = master.geo.seat(volume);
    let begun = seat.near.begin();
    let context: OpContext = context(master, volume);
    let (mut reply, _, looked) = master
        .driver
        .look(SessionCall::default(), &context, fs, deadline)
        .await
        .map_err(|e| driver_failed(&e, || master.not_leader()))?;
    // Whose change it is isn't known here: the home tells its own session at once.
    let tells = promises::told_by_read(fs, &reply, &looked);
    sync::admit(master, volume, &tells, None, deadline.min(Instant::now() + SYNC_WAIT)).await?;
    if places::names_chunks(&reply) {
        if !is_here(&master.geo, volume, &reply) {
            return Err(elsewhere("a chunk of the file isn't in this region yet: ask the volume's home"));
        }
        let (now, now_ns) = (master.clock.boot(), master.clock.unix_ns());
        master.desk(|desk| places::complete(desk, &mut reply, 0, now, now_ns));
    }
    // Looked up after the read, which may have seen what was replayed meanwhile; and nobody began to copy anew under it.
    let Some(at) = master.geo.replica(volume).readable() else {
        return Err(elsewhere("the volume is being copied to this region: ask its home"));
    };
    let at = seat.near.at_most(at);
    let promised = request.seat.as_ref().and_then(|session| {
        let facts = promises::promised_by_read(fs, &reply);
        let session = (session.session, session.have);
        seat.near.answer(session, peer.uri.as_str(), begun, facts, at)
    });
    // Before anything went back, be it only by a moment.
    if seat.near.has_ended_since(begun) {
        return Err(elsewhere("the replica has begun anew meanwhile: ask the volume's home"));
    }
    let (news, granted) = promised.map_or((None, Vec::new()), |(news, granted)| (Some(news), granted));
    master.metrics.near_granted.inc_by(granted.len() as u64);
    master.may_answer(term)?;
    let granted = granted.iter().map(Fact::to_message).collect();
    Ok(NearReply { reply: Some(reply), at: place(at), news, granted, behind_us: behind_us(master, volume) })
}

/// How old the replica is at most, with the way from the home.
fn behind_us(master: &Master, volume: VolumeId) -> Option<u64> {
    let age = master.geo.replica(volume).age.at_most(master.clock.boot())?;
    let global = master.global.as_ref()?;
    let home = global.view().volumes.get(&volume)?.home.clone();
    let way = global.round_trip_to(&home).unwrap_or_default() / 2;
    u64::try_from((age + way).as_micros()).ok()
}

/// Waits a little until the replica is at a place.
pub(super) async fn reached(
    master: &Master,
    volume: VolumeId,
    wanted: LogPosition,
    deadline: Instant,
) -> Result<(), CallError> {
    let mut moved = master.geo.moved(volume);
    let until = deadline.min(Instant::now() + WAIT);
    loop {
        moved.borrow_and_update();
        match master.geo.replica(volume).readable() {
            Some(at) if at >= wanted => return Ok(()),
            Some(_) => {}
            None => return Err(elsewhere("the volume is being copied to this region: ask its home")),
        }
        if !matches!(tokio::time::timeout_at(until, moved.changed()).await, Ok(Ok(()))) {
            return Err(elsewhere(
                "this region hasn't replayed yet what the client has seen: ask the volume's home",
            ));
        }
    }
}

/// Whether all that an answer names of chunks is in this region. What isn't comes first from now on: whoever asks waits for it.
fn is_here(geo: &Geo, volume: VolumeId, reply: &FsReply) -> bool {
    let Some(Reply::Extents(map)) = &reply.reply else { return true };
    let looked = geo.needs(volume, |needs| {
        let known = geo.replica(volume).readable().is_some_and(|at| needs.noted() >= at);
        let missing = missing(map, needs);
        for (chunk, upto) in &missing {
            needs.missed(*chunk, *upto);
        }
        (known, missing.is_empty())
    });
    let (known, all) = looked.unwrap_or_default();
    if looked.is_some() && !all {
        geo.wanting.notify_one();
    }
    known && all
}

/// What an answer names of chunks that isn't here, each up to where it is named.
fn missing(map: &ExtentMap, needs: &Needs) -> BTreeMap<ChunkId, u64> {
    let mut named: BTreeMap<ChunkId, u64> = BTreeMap::new();
    for extent in &map.extents {
        if let Some(Data::Run(run)) = &extent.data {
            let upto = named.entry(ChunkId(run.chunk)).or_default();
            *upto = (*upto).max(run.chunk_offset + run.length);
        }
    }
    let unplaced = map.chunks.iter().filter(|place| place.locations.is_empty());
    let unplaced: BTreeSet<ChunkId> = unplaced.map(|place| ChunkId(place.chunk)).collect();
    named.retain(|chunk, upto| unplaced.contains(chunk) || needs.lacks(*chunk, *upto));
    for chunk in unplaced {
        named.entry(chunk).or_default();
    }
    named
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mooseng_replica::Tail;
    use mooseng_schema::log::ReplicaRecord;
    use mooseng_wire::Epoch;
    use mooseng_wire::fs::{ChunkLocation, ChunkPlace, ChunkRun, Extent};

    use super::super::{ROOT_VOLUME, TAIL_BYTES_MAX, lock};
    use super::*;

    fn answer(runs: &[(u64, u64, u64)], unplaced: u64) -> FsReply {
        let extent = |(chunk, chunk_offset, length): &(u64, u64, u64)| Extent {
            offset: 0,
            length: *length,
            data: Some(Data::Run(ChunkRun { chunk: *chunk, chunk_offset: *chunk_offset, length: *length })),
        };
        let place = |(chunk, ..): &(u64, u64, u64)| ChunkPlace {
            chunk: *chunk,
            locations: if *chunk == unplaced { Vec::new() } else { vec![ChunkLocation::default()] },
            ..ChunkPlace::default()
        };
        let map = ExtentMap {
            extents: runs.iter().map(extent).collect(),
            chunks: runs.iter().map(place).collect(),
            ..ExtentMap::default()
        };
        FsReply { reply: Some(Reply::Extents(map)) }
    }

    #[tokio::test]
    async fn what_a_reader_misses_is_picked_first() {
        let at = |version| LogPosition::new(Epoch(1), version);
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        assert!(!is_here(&geo, ROOT_VOLUME, &answer(&[(8, 0, 4)], 0)), "nothing is known");
        let mut needs = Needs::from(at(1));
        needs.note(at(2), [(ChunkId(5), 10)], []);
        needs.note(at(3), [(ChunkId(6), 10), (ChunkId(7), 10)], []);
        needs.met(ChunkId(7), 4);
        *lock(&geo.seat(ROOT_VOLUME).needs) = Some(needs);
        let record = ReplicaRecord { epoch: 1, version: 3, ..ReplicaRecord::default() };
        geo.note_replica(ROOT_VOLUME, |replica| replica.record = Some(record));
        let picked = || geo.needs(ROOT_VOLUME, |needs| needs.next_awaited(|_| false)).flatten();
        assert!(is_here(&geo, ROOT_VOLUME, &answer(&[(7, 0, 4), (8, 0, 99)], 0)));
        assert_eq!(picked(), None);
        assert!(!is_here(&geo, ROOT_VOLUME, &answer(&[(8, 0, 4), (7, 2, 3), (6, 0, 3)], 0)));
        assert!(!is_here(&geo, ROOT_VOLUME, &answer(&[(9, 1, 4)], 9)));
        let all: Vec<_> = std::iter::from_fn(picked).collect();
        assert_eq!(all, [(ChunkId(6), 10), (ChunkId(7), 10), (ChunkId(9), 5)]);
        // Whoever fetches is told.
        geo.wanting.notified().await;
    }
}
