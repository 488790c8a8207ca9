//! Completes the places of chunks in answers: the namespace knows the names of chunkservers, the registry their addresses.

use mooseng_ports::clock::BootTime;
use mooseng_region::Liveness;
use mooseng_wire::ChunkId;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::{ChunkPlace, FsReply};

use crate::desk::Desk;
use crate::tickets;

/// Whether there is something to complete.
pub fn names_chunks(reply: &FsReply) -> bool {
    matches!(reply.reply, Some(Reply::Extents(_) | Reply::Description(_) | Reply::Allocated(_)))
}

/// Fills addresses, zones, reachability and tickets in.
pub fn complete(desk: &Desk, reply: &mut FsReply, session: u64, now: BootTime, now_ns: i64) {
    // Only the session that a chunk was made for may append to it.
    let append = matches!(reply.reply, Some(Reply::Allocated(_)));
    let places: &mut [ChunkPlace] = match &mut reply.reply {
        Some(Reply::Extents(map)) => &mut map.chunks,
        Some(Reply::Description(description)) => &mut description.chunks,
        Some(Reply::Allocated(allocated)) => match &mut allocated.place {
            Some(place) => std::slice::from_mut(place),
            None => return,
        },
        _ => return,
    };
    for place in places {
        complete_place(desk, place, session, append, now, now_ns);
    }
}

fn complete_place(
    desk: &Desk,
    place: &mut ChunkPlace,
    session: u64,
    append: bool,
    now: BootTime,
    now_ns: i64,
) {
    for location in &mut place.locations {
        let Some(server) = desk.registry.get(&location.chunkserver) else {
            location.reachable = false;
            continue;
        };
        location.address.clone_from(&server.beat.address);
        location.zone.clone_from(&server.beat.zone);
        location.reachable = server.liveness(now, desk.registry.limits()) == Liveness::Alive;
    }
    let volume = u64::from(ChunkId(place.chunk).volume().0);
    place.ticket = tickets::for_chunk(&desk.keys, session, volume, place.chunk, append, now_ns).into();
}
