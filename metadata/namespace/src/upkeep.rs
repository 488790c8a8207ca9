//! The master's own upkeep over its transactions: id ranges, secrets, orphans, dead extents, chunks, drained chunkservers.

use std::ops::Range;

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_schema::chunk::{self, ChunkRecord, ChunkUse};
use mooseng_schema::chunkserver::{self, ChunkserverRecord};
use mooseng_schema::dead::{self, DeadRecord};
use mooseng_schema::ids::{self, IdKind, IdsUptoRecord};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::orphan::{self, OrphanRecord};
use mooseng_schema::statistics::{self, Statistics};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, number, secret};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fs::Caller;
use mooseng_wire::{ChunkId, Epoch, InodeId, LOCAL_ID_BITS, SessionId, VolumeId};

use crate::context::OpContext;
use crate::error::OpError;
use crate::quota::{self, Charge};
use crate::sessions::load_session;
use crate::together::InOrder;
use crate::touched::Touched;
use crate::view::{View, check_name, is_dots};
use crate::window;

/// Reserves `count` numbers of a kind and answers them; fewer where those end that this region may give ([`IdsUptoRecord`]). Inode and chunk numbers are the lower 48 bits of an id
/// ([`InodeId::new`], [`ChunkId::new`]); sessions' are the whole id (pass [`VolumeId`] 0). Once this committed, nobody else gets them.
pub async fn reserve_ids<T: Transaction>(
    tx: &T,
    kind: IdKind,
    volume: VolumeId,
    count: u64,
) -> Result<Range<u64>, OpError> {
    reserve_ids_from(tx, kind, volume, count, 1).await
}

/// The same, with no number below `least`: where the store may have forgotten numbers that were given. Those in between are kept apart as a gap.
pub async fn reserve_ids_from<T: Transaction>(
    tx: &T,
    kind: IdKind,
    volume: VolumeId,
    count: u64,
    least: u64,
) -> Result<Range<u64>, OpError> {
    let key = ids::key(kind, volume);
    let value = tx.get(&key, Read::Conflicting).await?;
    let given = number::decode(value.as_ref())?.max(1);
    let next = given.max(least);
    if next > given {
        // Of the ranges that were reserved last, two at most, it isn't known what of them was given.
        let first = given.saturating_sub(2 * count).max(1);
        tx.set(&ids::gap_key(kind, volume, first), &number::encode(next));
    }
    // What is beyond is given to other homes of the volume.
    let upto = tx.get(&ids::upto_key(kind, volume), Read::Conflicting).await?;
    let upto = upto.map(|value| IdsUptoRecord::from_value(&value)).transpose()?;
    let most = upto.map_or(1 << LOCAL_ID_BITS, |upto| upto.end.min(1 << LOCAL_ID_BITS));
    let end = next.saturating_add(count).min(most);
    if end <= next {
        return Err(OpError::IdsUsedUp(most));
    }
    tx.set(&key, &number::encode(end));
    Ok(next..end)
}

/// A secret of the region.
pub async fn load_secret<T: Transaction>(tx: &T, name: &str) -> Result<Option<Bytes>, OpError> {
    Ok(tx.get(&secret::key(name), Read::Conflicting).await?)
}

/// Sets a secret of the region.
pub fn store_secret<T: Transaction>(tx: &T, name: &str, value: &[u8]) {
    tx.set(&secret::key(name), value);
}

/// A volume's record.
pub async fn load_volume<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<VolumeRecord>, OpError> {
    match tx.get(&volume::key(volume), Read::Conflicting).await? {
        Some(value) => Ok(Some(VolumeRecord::from_value(&value)?)),
        None => Ok(None),
    }
}

/// What lies at a path from the root of its volume; none where nothing does. Symbolic links aren't followed.
pub async fn inode_at<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    path: &[u8],
) -> Result<Option<InodeId>, OpError> {
    let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
    let Some(record) = load_volume(tx, volume).await? else { return Ok(None) };
    let mut at = InodeId(record.root);
    if path.first() != Some(&b'/') {
        return Ok(None);
    }
    for name in names {
        let Some(found) = named_in(tx, at, name).await? else { return Ok(None) };
        at = found;
    }
    Ok(Some(at))
}

/// What a directory names so; none where it doesn't, or nothing can have that name.
pub(crate) async fn named_in<T: Transaction>(
    tx: &T,
    directory: InodeId,
    name: &[u8],
) -> Result<Option<InodeId>, OpError> {
    if check_name(name).is_err() || is_dots(name) {
        return Ok(None);
    }
    let (ctx, nobody, touched) = (OpContext::default(), Caller::default(), Touched::default());
    let view = View { tx, ctx: &ctx, caller: &nobody, read: Read::Snapshot, touched: &touched };
    Ok(view.slot(directory, name).await?.found.map(|found| found.inode))
}

/// Raises a volume's home epoch: changes under an older one can't commit any more.
pub async fn raise_epoch<T: Transaction>(tx: &T, volume: VolumeId, epoch: Epoch) -> Result<(), OpError> {
    let mut record = load_volume(tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
    if epoch.0 < record.epoch {
        return Err(OpError::Malformed("the volume has a newer home epoch"));
    }
    record.epoch = epoch.0;
    tx.set(&volume::key(volume), &record.to_value());
    Ok(())
}

/// What a volume holds.
pub async fn statistics<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Statistics, OpError> {
    let page = tx.get_range(statistics::range(volume), RangeLimit::default(), Read::Snapshot).await?;
    Ok(Statistics::read(volume, &page.pairs)?)
}

/// Up to `max` orphans with ids above `after`, in order: inodes without a name that don't just lie in the trash, each since when. The master reaps
/// those that no session holds open.
pub async fn list_orphans<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<InodeId>,
    max: usize,
) -> Result<Vec<(InodeId, i64)>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(orphan::range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs
        .iter()
        .map(|(key, value)| Ok((orphan::parse_key(volume, key)?, OrphanRecord::from_value(value)?.since_ns)))
        .collect()
}

/// Up to `max` files with ids above `after` that hold dead extents behind their end, in order. The master hands them
/// to Reap, open or not: what lives of them stays.
pub async fn list_trims<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<InodeId>,
    max: usize,
) -> Result<Vec<InodeId>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(orphan::trim_range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs.iter().map(|(key, _)| Ok(orphan::parse_trim_key(volume, key)?)).collect()
}

/// Frees one page of an inode's extents from `from` on, for [`OpError::Drain`]. Answers whether that was all. Of an
/// inode that lives, or is in the trash, only extents that a truncation left dead are freed.
pub async fn drain<T: Transaction>(tx: &T, inode: InodeId, from: u64) -> Result<bool, OpError> {
    let key = inode::key(inode);
    let Some(value) = tx.get(&key, Read::Conflicting).await? else { return Ok(true) };
    let mut record = InodeRecord::from_value(&value)?;
    let free = record.orphan && record.trash_until_ns.is_none();
    let from = if free { from } else { record.trim_from.unwrap_or(u64::MAX) };
    if from == u64::MAX {
        return Ok(true);
    }
    let counted = Charge::of(&record);
    // An orphan's data goes for good once its reaping began: nobody has it open.
    let done = window::free_page(tx, inode, &mut record, from).await?;
    if free && record.size > from {
        record.size = from;
    }
    if done && record.trim_from.is_some_and(|t| t >= from) {
        record.trim_from = None;
        tx.clear(&orphan::trim_key(inode));
    }
    quota::recount(tx, inode, &counted, &record);
    tx.set(&key, &record.to_value());
    Ok(done)
}

/// Inodes of one chunk whose uses are summed up. A chunk of more has more live bytes than the sum says: who makes chunks for files to share keeps
/// to it.
pub const USES_MAX: usize = 4096;
/// Uses that a page of chunks reads, about.
const USES_OF_A_PAGE: usize = 4 * USES_MAX;
/// Chunks of a page that are read at once.
const READ_AT_ONCE: usize = 16;
/// Users of a chunk that are told one by one.
const USERS_TOLD: usize = 64;

/// A chunk with where it lies and how much of it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkListing {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its record.
    pub record: ChunkRecord,
    /// Where its copies lie; none when this region never had any.
    pub location: Option<LocationRecord>,
    /// What extents name of it, read without a conflict.
    pub used: ChunkUse,
    /// How many inodes' extents these are.
    pub users: u64,
    /// The first ones of them, each with its use.
    pub first_users: Vec<(InodeId, ChunkUse)>,
}

/// All inodes' uses of a chunk, summed up.
#[derive(Default)]
struct Uses {
    sum: ChunkUse,
    users: u64,
    first: Vec<(InodeId, ChunkUse)>,
}

async fn uses<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<Uses, OpError> {
    let limit = RangeLimit { pairs_max: USES_MAX, ..Default::default() };
    let mut range = chunk::reference_range(chunk);
    let mut uses = Uses::default();
    loop {
        let page = tx.get_range(range.clone(), limit, Read::Snapshot).await?;
        for (key, value) in &page.pairs {
            let one = ChunkUse::from_value(Some(value))?;
            uses.sum.extents = uses.sum.extents.saturating_add(one.extents);
            uses.sum.bytes = uses.sum.bytes.saturating_add(one.bytes);
            uses.users += 1;
            if uses.first.len() < USERS_TOLD {
                uses.first.push((chunk::parse_reference_key(chunk, key)?, one));
            }
        }
        let more = page.more && uses.users < USES_MAX as u64;
        let Some((last, _)) = page.pairs.last().filter(|_| more) else { return Ok(uses) };
        range = window::behind(&range, last);
    }
}

impl ChunkListing {
    fn new(chunk: ChunkId, record: ChunkRecord, location: Option<LocationRecord>, uses: Uses) -> Self {
        let Uses { sum, users, first } = uses;
        Self { chunk, record, location, used: sum, users, first_users: first }
    }
}

/// Up to `max` chunks with ids above `after`, in order, fewer where many inodes use them; and whether there may be more.
pub async fn list_chunks<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<ChunkId>,
    max: usize,
) -> Result<(Vec<ChunkListing>, bool), OpError> {
    let range = after.map_or_else(|| chunk::range(volume), chunk::range_after);
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let (mut all, mut read) = (Vec::new(), 0);
    for some in page.pairs.chunks(READ_AT_ONCE) {
        if read >= USES_OF_A_PAGE as u64 {
            return Ok((all, true));
        }
        let listings = some.iter().map(|(key, value)| async move {
            let chunk = chunk::parse_key(volume, key)?;
            let location_key = location::key(chunk);
            let (location, uses) =
                futures::join!(async { Ok(tx.get(&location_key, Read::Snapshot).await?) }, uses(tx, chunk))
                    .in_order()?;
            let location = location.map(|v| LocationRecord::from_value(&v)).transpose()?;
            Ok::<_, OpError>(ChunkListing::new(chunk, ChunkRecord::from_value(value)?, location, uses))
        });
        let listings = futures::future::try_join_all(listings).await?;
        read += listings.iter().map(|listing| listing.users).sum::<u64>();
        all.extend(listings);
    }
    Ok((all, page.more))
}

/// A chunk's record and location.
pub async fn load_chunk<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<Option<ChunkListing>, OpError> {
    let (chunk_key, location_key) = (chunk::key(chunk), location::key(chunk));
    let (record, location) =
        futures::join!(tx.get(&chunk_key, Read::Conflicting), tx.get(&location_key, Read::Conflicting))
            .in_order()?;
    let Some(record) = record else { return Ok(None) };
    let location = location.map(|v| LocationRecord::from_value(&v)).transpose()?;
    let uses = uses(tx, chunk).await?;
    Ok(Some(ChunkListing::new(chunk, ChunkRecord::from_value(&record)?, location, uses)))
}

/// The inodes with extents in a chunk, and how many each has; at most `max`.
pub async fn chunk_users<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    max: usize,
) -> Result<Vec<(InodeId, u64)>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(chunk::reference_range(chunk), limit, Read::Conflicting).await?;
    page.pairs
        .iter()
        .map(|(key, value)| {
            Ok((chunk::parse_reference_key(chunk, key)?, ChunkUse::from_value(Some(value))?.extents))
        })
        .collect()
}

/// Changes where a chunk's copies lie, unless the chunk isn't as `planned` any more: a plan is carried out long after it was made, and must
/// not undo a newer one. Answers whether it did. Doing it again after an unknown outcome is well.
pub async fn move_chunk<T: Transaction>(
    tx: &T,
    planned: &ChunkListing,
    location: &LocationRecord,
) -> Result<bool, OpError> {
    let Some(is) = load_chunk(tx, planned.chunk).await? else { return Ok(false) };
    if is.record != planned.record {
        return Ok(false);
    }
    if is.location.as_ref() == Some(location) {
        return Ok(true);
    }
    if is.location != planned.location {
        return Ok(false);
    }
    tx.set(&location::key(planned.chunk), &location.to_value());
    // One that died in a tail that was cut off lives again: its copies aren't to be deleted any more.
    tx.clear(&dead::key(planned.chunk));
    Ok(true)
}

/// Buries a sealed chunk that nothing names and that nothing can name any more: its record goes, and a dead record remembers its copies until
/// they are deleted. A session that isn't closed, even one that lapsed and may come back, may have appended something that its next request
/// names, so its chunk must have been sealed by `sealed_before_ns`. Answers whether the chunk is dead now.
pub async fn bury_chunk<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    now_ns: i64,
    sealed_before_ns: i64,
) -> Result<bool, OpError> {
    let Some(listing) = load_chunk(tx, chunk).await? else { return Ok(true) };
    let unchecked = plant::is(Plant::CollectionUnchecked);
    if !listing.record.sealed || !(unchecked || chunk_users(tx, chunk, 1).await?.is_empty()) {
        return Ok(false);
    }
    // Chunks without an owner are the master's own, which names them as late as a session would.
    let owner = SessionId(listing.record.owner);
    let owned = owner.0 == 0 || load_session(tx, owner).await?.is_some();
    if owned && listing.record.sealed_ns > sealed_before_ns {
        return Ok(false);
    }
    tx.clear(&chunk::key(chunk));
    tx.clear(&location::key(chunk));
    if let Some(location) = listing.location.filter(|l| !l.copies.is_empty()) {
        let (copies, epoch) = (location.copies, location.epoch);
        let dead = DeadRecord { copies, epoch, since_ns: now_ns, ..DeadRecord::default() };
        tx.set(&dead::key(chunk), &dead.to_value());
    }
    Ok(true)
}

/// Up to `max` dead chunks with ids above `after`, in order.
pub async fn list_dead<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<ChunkId>,
    max: usize,
) -> Result<Vec<(ChunkId, DeadRecord)>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(dead::range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs
        .iter()
        .map(|(key, value)| Ok((dead::parse_key(key)?, DeadRecord::from_value(value)?)))
        .collect()
}

/// Copies of dead chunks are gone, or won't come back: forgets them, and the chunks that have none left.
pub async fn forget_copies<T: Transaction>(tx: &T, gone: &[(ChunkId, String)]) -> Result<(), OpError> {
    for (chunk, chunkserver) in gone {
        let key = dead::key(*chunk);
        let Some(value) = tx.get(&key, Read::Conflicting).await? else { continue };
        let mut record = DeadRecord::from_value(&value)?;
        record.copies.retain(|name| name != chunkserver);
        match record.copies.is_empty() {
            true => tx.clear(&key),
            false => tx.set(&key, &record.to_value()),
        }
    }
    Ok(())
}

/// What a copy is to the region.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// The chunk's location names its chunkserver, or the record of its death does.
    Placed,
    /// The chunk lives, and its location names others.
    Misplaced(Box<ChunkListing>),
    /// The chunk is no more: it was given out once, and its record is gone.
    Gone,
    /// No such chunk was ever given out here. The store may be older than the chunk: it is left alone.
    Unknown,
}

/// What the copy of a chunk on a chunkserver is, read with conflicts.
pub async fn standing<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    chunkserver: &str,
) -> Result<Standing, OpError> {
    if let Some(listing) = load_chunk(tx, chunk).await? {
        let placed = listing.location.as_ref().is_some_and(|l| l.copies.iter().any(|c| c == chunkserver));
        return Ok(if placed { Standing::Placed } else { Standing::Misplaced(Box::new(listing)) });
    }
    // When it goes is for whoever looks after dead chunks to say.
    let dead = tx.get(&dead::key(chunk), Read::Conflicting).await?;
    if let Some(dead) = dead.map(|value| DeadRecord::from_value(&value)).transpose()?
        && dead.copies.iter().any(|copy| copy == chunkserver)
    {
        return Ok(Standing::Placed);
    }
    Ok(if was_given(tx, chunk).await? { Standing::Gone } else { Standing::Unknown })
}

/// Whether a chunk's number was given out, as far as this store knows.
pub(crate) async fn was_given<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<bool, OpError> {
    let next = tx.get(&ids::key(IdKind::Chunk, chunk.volume()), Read::Conflicting).await?;
    let given = number::decode(next.as_ref())?;
    let number = chunk.0 & ((1 << LOCAL_ID_BITS) - 1);
    Ok(number < given && !is_in_gap(tx, chunk.volume(), number).await?)
}

/// Whether a chunk's number lies where this store has given none, though it has given greater ones.
async fn is_in_gap<T: Transaction>(tx: &T, volume: VolumeId, number: u64) -> Result<bool, OpError> {
    let page =
        tx.get_range(ids::gaps(IdKind::Chunk, volume), RangeLimit::default(), Read::Conflicting).await?;
    for (key, value) in &page.pairs {
        if (ids::parse_gap_key(key)?..number::decode(Some(value))?).contains(&number) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The chunkservers about which something was decided.
pub async fn list_chunkservers<T: Transaction>(tx: &T) -> Result<Vec<(String, ChunkserverRecord)>, OpError> {
    let page = tx.get_range(chunkserver::range(), RangeLimit::default(), Read::Conflicting).await?;
    page.pairs
        .iter()
        .map(|(key, value)| Ok((chunkserver::parse_key(key)?, ChunkserverRecord::from_value(value)?)))
        .collect()
}

/// Decides that a chunkserver is to be drained, or not any more. One that is drained already keeps its time.
pub async fn drain_chunkserver<T: Transaction>(
    tx: &T,
    name: &str,
    since_ns: Option<i64>,
) -> Result<(), OpError> {
    let key = chunkserver::key(name);
    let value = tx.get(&key, Read::Conflicting).await?;
    let record = value.map(|v| ChunkserverRecord::from_value(&v)).transpose()?.unwrap_or_default();
    match since_ns {
        None => tx.clear(&key),
        Some(_) if record.draining_since_ns.is_some() => {}
        since => tx.set(&key, &ChunkserverRecord { draining_since_ns: since }.to_value()),
    }
    Ok(())
}
