//! Making one copy: the target pulls it, and answers when it is durable and has the source's digest; then the location changes, if the chunk is
//! still as it was planned.

use std::time::Duration;

use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_region::registry::CopyFacts;
use mooseng_schema::location::LocationRecord;
use mooseng_transport::CallFailure;
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{AskDigest, ChainMember, Digested, Follow, Followed, Pull, Pulled};
use mooseng_wire::method::Method;

use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::tickets;

/// How long a chunkserver may take to say what it has.
const DIGEST_WITHIN: Duration = Duration::from_secs(5);
/// How long a copy may take beyond what its pace allows.
const PULL_WITHIN: Duration = Duration::from_secs(60);
/// The slowest pace that is waited for where none is set: 1 MiB in a second.
const PACE_MIN: u64 = 1 << 20;

/// A copy to be made.
pub(super) struct Order {
    /// Of this chunk, as it was when that was decided.
    pub(super) listing: ChunkListing,
    /// From.
    pub(super) source: String,
    pub(super) source_address: String,
    /// To.
    pub(super) target: String,
    pub(super) target_address: String,
    /// It lies there already, and has only to be compared.
    pub(super) adopt: bool,
}

/// What came of it: the bytes that were copied.
pub(super) struct Done {
    pub(super) order: Order,
    pub(super) result: Result<u64, Failure>,
}

/// Why no copy was made.
pub(super) struct Failure {
    pub(super) reason: String,
    /// Chunkservers to which no order should be given for a while.
    pub(super) blamed: Vec<String>,
}

/// Makes a copy.
pub(super) async fn make(master: &Master, term: u64, order: Order) -> Done {
    let result = try_make(master, term, &order).await;
    Done { order, result }
}

async fn try_make(master: &Master, term: u64, order: &Order) -> Result<u64, Failure> {
    let (listing, length) = (&order.listing, order.listing.record.length);
    let Some(location) = listing.location.clone() else {
        return Err(Failure { reason: "it has no location".into(), blamed: vec![] });
    };
    let digest = digest(master, order, &order.source, &order.source_address).await?;
    if order.adopt {
        fence(master, term, order).await?;
        if digest != self::digest(master, order, &order.target, &order.target_address).await? {
            let reason = format!("the copies on {} and {} differ", order.source, order.target);
            tracing::error!(chunk = listing.chunk.0, reason, "two copies of a chunk aren't the same");
            // The location's is the chunk. The other isn't taken up until an inventory names it anew: a copy may be made in its place.
            let copy = CopyFacts { length, sealed: true, epoch: 0, corrupt: true };
            master.desk(|desk| desk.registry.changed(&order.target, &[(listing.chunk, copy)], &[]));
            return Err(Failure { reason, blamed: vec![order.target.clone()] });
        }
    } else {
        pull(master, term, order, master.epoch(listing.chunk.volume()).0, digest).await?;
    }
    let mut to = location;
    if !to.copies.contains(&order.target) {
        to.copies.push(order.target.clone());
    }
    let stale = || "the chunk isn't as it was when this was planned".to_owned();
    match relocate(master, listing, to).await {
        Ok(true) => {}
        Ok(false) => return Err(Failure { reason: stale(), blamed: vec![] }),
        Err(error) => return Err(Failure { reason: error.message, blamed: vec![] }),
    }
    let epoch = listing.location.as_ref().map_or(0, |l| l.epoch);
    let copy = CopyFacts { length, sealed: true, epoch, corrupt: false };
    master.desk(|desk| desk.registry.changed(&order.target, &[(listing.chunk, copy)], &[]));
    tracing::info!(
        chunk = listing.chunk.0,
        source = order.source,
        target = order.target,
        "a chunk has another copy"
    );
    Ok(if order.adopt { 0 } else { length })
}

async fn digest(master: &Master, order: &Order, name: &str, address: &str) -> Result<bytes::Bytes, Failure> {
    let asked = AskDigest {
        chunk: order.listing.chunk.0,
        length: order.listing.record.length,
        ..AskDigest::default()
    };
    let link = master.link(Role::Chunkserver, address);
    let answer = link.request::<_, Digested>(Method::ChunkDigest, &asked, DIGEST_WITHIN).await;
    answer.map(|digested| digested.digest).map_err(|e| Failure {
        reason: format!("{name} doesn't say what it has: {e}"),
        blamed: vec![name.to_owned()],
    })
}

/// Has the target of a copy that lies there already hear of this leader: a deletion that it was told before, by another one or while this region was something
/// else to the volume, is obeyed by now, or isn't any more.
async fn fence(master: &Master, term: u64, order: &Order) -> Result<(), Failure> {
    let chunk = order.listing.chunk;
    let follow = Follow {
        chunk: chunk.0,
        epoch: master.epoch(chunk.volume()).0,
        upto: order.listing.record.length,
        custody: master.orders(term),
        ..Follow::default()
    };
    let link = master.link(Role::Chunkserver, &order.target_address);
    let answer = link.request::<_, Followed>(Method::ChunkFollow, &follow, DIGEST_WITHIN).await;
    answer.map(drop).map_err(|failure| Failure {
        reason: format!("{} doesn't say that it has it: {failure}", order.target),
        blamed: match &failure {
            CallFailure::Remote(e) if matches!(e.code(), ErrorCode::Busy | ErrorCode::StaleEpoch) => vec![],
            _ => vec![order.target.clone()],
        },
    })
}

async fn pull(
    master: &Master,
    term: u64,
    order: &Order,
    epoch: u64,
    digest: bytes::Bytes,
) -> Result<(), Failure> {
    let (chunk, length) = (order.listing.chunk, order.listing.record.length);
    let pace = master.config.house.copy_mib_per_s << 20;
    let now_ns = master.clock.unix_ns();
    let volume = u64::from(chunk.volume().0);
    let ticket = master.desk(|desk| tickets::for_chunk(&desk.keys, 0, volume, chunk.0, false, now_ns));
    let pull = Pull {
        chunk: chunk.0,
        epoch,
        length,
        digest,
        custody: master.orders(term),
        source: Some(ChainMember {
            chunkserver: order.source.clone(),
            address: order.source_address.clone(),
        }),
        ticket: ticket.into(),
        bytes_per_s: pace,
    };
    let slowest = if pace == 0 { PACE_MIN } else { pace.min(PACE_MIN) };
    let within = PULL_WITHIN + Duration::from_secs(length / slowest);
    let link = master.link(Role::Chunkserver, &order.target_address);
    let pulled = link.request::<_, Pulled>(Method::ChunkPull, &pull, within).await;
    pulled.map(drop).map_err(|failure| Failure {
        reason: format!("{} made no copy: {failure}", order.target),
        blamed: match &failure {
            // It couldn't read from the source.
            CallFailure::Remote(e)
                if matches!(e.code(), ErrorCode::Unavailable | ErrorCode::NotFound | ErrorCode::Corrupt) =>
            {
                vec![order.source.clone()]
            }
            CallFailure::Remote(e) if e.code() == ErrorCode::StaleEpoch => vec![],
            _ => vec![order.target.clone()],
        },
    })
}

/// Changes where a chunk's copies lie, unless it isn't as it was planned any more.
pub(super) async fn relocate(
    master: &Master,
    planned: &ChunkListing,
    location: LocationRecord,
) -> Result<bool, CallError> {
    transact(&master.store, |tx| {
        let location = &location;
        async move {
            let moved = upkeep::move_chunk(&tx, planned, location).await?;
            Ok((tx, moved))
        }
    })
    .await
    .map_err(|e| record_failed(&e))
}
