//! What may be changed, as functions of a transaction of the global store. Only the leader of the global group runs them.
//!
//! Each may run again where it isn't known whether it committed: done once, it answers the same and changes nothing more (only ids that were taken are
//! taken again). Every change counts up the version ([`crate::key::GlobalTag::Version`]), which each reads, so that they follow one another.
//!
//! Here is what all rules stand on, the founding, ids, and what a volume is set to. Whose home it has is in `homes`, how it is made and deleted in `joins`;
//! regions are in `regions`, those that were made anew in `anew`, storage classes in `classes`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_schema::ids::IdKind;
use mooseng_schema::{Record, number};
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction};
use mooseng_wire::level::FeatureLevel;
use mooseng_wire::{Epoch, LOCAL_ID_BITS, VolumeId};

use crate::key;
use crate::record::{ClusterRecord, LeaseRecord, RegionRecord, VolumeRecord};
use crate::view::{Durability, LAG_MAX_DEFAULT, LAG_MAX_RANGE, Region, View, Volume};
use crate::voters;

/// Ids in one range at most.
pub const IDS_MAX: u64 = 1 << 32;

/// The root volume.
pub const ROOT: VolumeId = VolumeId(0);

/// What a cluster begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// Its regions by name.
    pub regions: BTreeMap<String, Region>,
    /// The root volume's first home.
    pub root_home: String,
    /// How long a region's lease lasts.
    pub lease_ms: u64,
    /// The highest feature level of the release that founds it.
    pub level: FeatureLevel,
}

/// What is to be changed of a volume; what isn't said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// See [`Volume::regions`].
    pub regions: Option<BTreeSet<String>>,
    /// See [`Volume::sync_set`].
    pub sync_set: Option<BTreeSet<String>>,
    /// See [`Volume::durability`].
    pub durability: Option<Durability>,
    /// See [`Volume::automatic`].
    pub automatic: Option<bool>,
    /// See [`Volume::blocks_alone`].
    pub blocks_alone: Option<bool>,
    /// See [`Volume::lag_max`]; zero for none.
    pub lag_max: Option<Duration>,
    /// Only if this is the version of the global store.
    pub at_version: Option<u64>,
    /// Only if no leader of the home of a greater custody epoch has renewed its lease.
    pub custody: Option<u64>,
    /// The volume's home asks. That it needs its lease from the next version on, should this be agreed on, it has put down.
    pub by_home: bool,
}

type Ruled<T> = Result<T, RuleError>;

async fn get<R: Record>(tx: &impl Transaction, key: &[u8], read: Read) -> Ruled<Option<R>> {
    let value = tx.get(key, read).await?;
    Ok(value.as_ref().map(R::from_value).transpose()?)
}

async fn pairs(tx: &impl Transaction, range: KeyRange, read: Read) -> Ruled<Vec<(Bytes, Bytes)>> {
    let (mut all, mut range) = (Vec::new(), range);
    loop {
        let page = tx.get_range(range.clone(), RangeLimit::default(), read).await?;
        let last = page.pairs.last().map(|(key, _)| key.clone());
        all.extend(page.pairs);
        match last.filter(|_| page.more) {
            Some(last) => range.begin = mooseng_store::key_range(&last).end,
            None => return Ok(all),
        }
    }
}

/// The number of changes so far.
pub async fn version(tx: &impl Transaction, read: Read) -> Ruled<u64> {
    Ok(number::decode(tx.get(&key::version(), read).await?.as_ref())?)
}

/// Counts a change; answers the version that it makes.
async fn changed(tx: &impl Transaction) -> Ruled<u64> {
    let next = version(tx, Read::Conflicting).await? + 1;
    tx.set(&key::version(), &number::encode(next));
    Ok(next)
}

/// All regions.
async fn regions(tx: &impl Transaction, read: Read) -> Ruled<BTreeMap<String, Region>> {
    let mut regions = BTreeMap::new();
    for (key, value) in pairs(tx, key::regions(), read).await? {
        regions.insert(key::parse_region(&key)?, RegionRecord::from_value(&value)?.region()?);
    }
    Ok(regions)
}

/// All volumes.
async fn volumes(tx: &impl Transaction, read: Read) -> Ruled<BTreeMap<VolumeId, Volume>> {
    let mut volumes = BTreeMap::new();
    for (key, value) in pairs(tx, key::volumes(), read).await? {
        volumes.insert(key::parse_volume(&key)?, VolumeRecord::from_value(&value)?.into());
    }
    Ok(volumes)
}

/// What a copy of the global store says; none before the cluster is founded.
pub async fn view(tx: &impl Transaction) -> Ruled<Option<View>> {
    let read = Read::Snapshot;
    let version = version(tx, read).await?;
    if version == 0 {
        return Ok(None);
    }
    let cluster: Option<ClusterRecord> = get(tx, &key::cluster(), read).await?;
    let volume_highest = cluster.map_or(0, |cluster| cluster.volume_highest);
    let (regions, volumes) = (regions(tx, read).await?, volumes(tx, read).await?);
    let (classes, classes_version) = classes::all(tx, read).await?;
    let level = level::level(tx, read).await?;
    Ok(Some(View { version, regions, volumes, volume_highest, classes, classes_version, level }))
}

/// How long a region's lease lasts; none before the cluster is founded.
pub async fn lease_ms(tx: &impl Transaction) -> Ruled<Option<u64>> {
    let cluster: Option<ClusterRecord> = get(tx, &key::cluster(), Read::Snapshot).await?;
    Ok(cluster.map(|cluster| cluster.lease_ms))
}

/// How often each region has renewed its lease.
pub async fn leases(tx: &impl Transaction) -> Ruled<BTreeMap<String, u64>> {
    let mut leases = BTreeMap::new();
    for (key, value) in pairs(tx, key::leases(), Read::Snapshot).await? {
        leases.insert(key::parse_lease(&key)?, LeaseRecord::from_value(&value)?.sequence);
    }
    Ok(leases)
}

/// Regions that were taken in and haven't come yet: nobody has shown the secret of their join token.
pub async fn awaited(tx: &impl Transaction) -> Ruled<BTreeSet<String>> {
    let mut awaited = BTreeSet::new();
    for (key, value) in pairs(tx, key::leases(), Read::Snapshot).await? {
        if !LeaseRecord::from_value(&value)?.join.is_empty() {
            awaited.insert(key::parse_lease(&key)?);
        }
    }
    Ok(awaited)
}

/// The region whose lease a change renews, and the number of that renewal.
pub fn renewed_by(change: &Change) -> Option<(String, u64)> {
    let Change::Set(key, value) = change else { return None };
    let region = key::parse_lease(key).ok()?;
    Some((region, LeaseRecord::from_value(value).ok()?.sequence))
}

/// Founds the cluster, where it isn't: answers whether it wasn't. The root volume belongs to all regions with data, at `region` durability; another
/// one takes over by itself where the group could lose its home.
pub async fn found(tx: &impl Transaction, founding: &Founding) -> Ruled<bool> {
    if get::<ClusterRecord>(tx, &key::cluster(), Read::Conflicting).await?.is_some() {
        return Ok(false);
    }
    for (name, region) in &founding.regions {
        fits(name, region, &BTreeMap::new())?;
    }
    let with_data = founding.regions.iter().filter(|(_, region)| !region.witness);
    let with_data: BTreeSet<String> = with_data.map(|(name, _)| name.clone()).collect();
    if !with_data.contains(&founding.root_home) {
        return Err(unfit(
            &founding.root_home,
            "be the home of the root volume",
            "it isn't a region with data",
        ));
    }
    let highest = founding.regions.values().map(|region| region.number).max().unwrap_or(0);
    let cluster =
        ClusterRecord { lease_ms: founding.lease_ms, region_highest: highest.into(), volume_highest: 0 };
    tx.set(&key::cluster(), &cluster.to_value());
    for (name, region) in &founding.regions {
        tx.set(&key::region(name), &RegionRecord::from(region).to_value());
        tx.set(&key::lease(name), &LeaseRecord::default().to_value());
    }
    let root = Volume {
        home: founding.root_home.clone(),
        epoch: Epoch(1),
        open: true,
        abandoned: false,
        cut: None,
        durability: Durability::Region,
        automatic: with_data.len() > 1 && voters::check(&founding.regions).is_ok(),
        regions: with_data,
        sync_set: [founding.root_home.clone()].into(),
        blocks_alone: false,
        lag_max: Some(LAG_MAX_DEFAULT),
        lost_home: None,
        forced_home: None,
        join: None,
    };
    put(tx, ROOT, &root);
    level::begin(tx, founding.level);
    changed(tx).await?;
    Ok(true)
}

fn unfit(region: &str, what: &'static str, why: impl Into<String>) -> RuleError {
    RuleError::Unfit { region: region.to_owned(), what, why: why.into() }
}

fn put(tx: &impl Transaction, volume: VolumeId, now: &Volume) {
    tx.set(&key::volume(volume), &VolumeRecord::from(now).to_value());
}

async fn cluster(tx: &impl Transaction) -> Ruled<ClusterRecord> {
    get(tx, &key::cluster(), Read::Conflicting).await?.ok_or(RuleError::NotFounded)
}

/// A volume, as it is in that transaction.
pub async fn volume(tx: &impl Transaction, volume: VolumeId) -> Ruled<Volume> {
    let record: Option<VolumeRecord> = get(tx, &key::volume(volume), Read::Conflicting).await?;
    record.map(Volume::from).ok_or(RuleError::NoVolume(volume))
}

/// The volume, if it is in that epoch, open or closed.
async fn in_epoch(tx: &impl Transaction, id: VolumeId, asked: Epoch) -> Ruled<Volume> {
    let found = volume(tx, id).await?;
    if found.epoch == asked {
        Ok(found)
    } else {
        Err(RuleError::OtherEpoch { volume: id, asked, present: found.epoch })
    }
}

/// A volume's home.
pub async fn home(tx: &impl Transaction, id: VolumeId) -> Ruled<String> {
    volume(tx, id).await.map(|volume| volume.home)
}

/// Gives ids of a kind to a volume's home, under its present epoch: to nobody else and never again.
pub async fn take_ids(
    tx: &impl Transaction,
    kind: IdKind,
    id: VolumeId,
    region: &str,
    epoch: Epoch,
    wish: (u64, u64),
) -> Ruled<Range<u64>> {
    let (count, least) = wish;
    if !(1..=IDS_MAX).contains(&count) {
        return Err(RuleError::Ids(format!(
            "{count} ids were asked for at a time; 1 to {IDS_MAX} can be given"
        )));
    }
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open {
        return Err(RuleError::Closed { volume: id, epoch });
    }
    if found.home != region {
        return Err(RuleError::NotHome { volume: id, home: found.home, asked: region.to_owned() });
    }
    let key = key::ids(kind, id);
    let given = number::decode(tx.get(&key, Read::Conflicting).await?.as_ref())?;
    let next = if plant::is(Plant::IdRangesReused) { least } else { given.max(least) };
    let end = next.checked_add(count).filter(|end| *end <= 1 << LOCAL_ID_BITS);
    let end = end.ok_or_else(|| RuleError::Ids(format!("volume {id} has no ids left beyond {next}")))?;
    tx.set(&key, &number::encode(end));
    Ok(next..end)
}

/// Changes a volume's regions, sync set, durability, or whether it fails over by itself, as long as it is in that epoch.
pub async fn set_volume(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    change: &VolumeChange,
) -> Ruled<u64> {
    let found = in_epoch(tx, id, epoch).await?;
    if let Some(asked) = change.at_version {
        let present = version(tx, Read::Conflicting).await?;
        if asked != present {
            return Err(RuleError::Overtaken { asked, present });
        }
    }
    if let Some(asked) = change.custody {
        let lease: Option<LeaseRecord> = get(tx, &key::lease(&found.home), Read::Conflicting).await?;
        let present = lease.map_or(0, |lease| lease.custody);
        if asked < present {
            return Err(RuleError::Deposed { region: found.home, asked, present });
        }
    }
    // A home that needs no lease goes on as long as it doesn't hear that it does. It knows as long as nothing but this can make the next version.
    let is_known = change.by_home && change.at_version.is_some();
    if change.automatic == Some(true) && !found.automatic && !is_known {
        return Err(RuleError::OnlyHome { volume: id, home: found.home });
    }
    let mut now = found.clone();
    if let Some(regions) = &change.regions {
        now.regions.clone_from(regions);
        now.sync_set.retain(|region| regions.contains(region));
    }
    now.durability = change.durability.unwrap_or(now.durability);
    // Until now nobody was waited for, whoever was in the set before.
    if (found.durability, now.durability) == (Durability::Region, Durability::Geo) {
        now.sync_set = BTreeSet::from([now.home.clone()]);
    }
    if let Some(sync_set) = &change.sync_set {
        now.sync_set.clone_from(sync_set);
    }
    now.automatic = change.automatic.unwrap_or(now.automatic);
    now.blocks_alone = change.blocks_alone.unwrap_or(now.blocks_alone);
    match change.lag_max {
        None => {}
        Some(Duration::ZERO) => now.lag_max = None,
        Some(most) if LAG_MAX_RANGE.contains(&most) => now.lag_max = Some(most),
        Some(most) => return Err(RuleError::LagMax(most)),
    }
    if now == found {
        return version(tx, Read::Conflicting).await;
    }
    let known = regions(tx, Read::Conflicting).await?;
    for name in &now.regions {
        let region = known.get(name).ok_or_else(|| RuleError::NoRegion(name.clone()))?;
        if region.witness {
            return Err(unfit(name, "have the volume", "it is a witness, which holds no data"));
        }
    }
    // What an administrator changes takes nothing from what was promised: the home alone would answer fsync until another region has come into the set.
    if let (Some(regions), Durability::Geo, Durability::Geo) =
        (&change.regions, found.durability, now.durability)
        && now.sync_set.len() == 1
        && let Some(last) = found.sync_set.iter().find(|name| !regions.contains(*name))
    {
        return Err(unfit(last, "be taken out of the volume", last_member(typed(id), &found, regions)));
    }
    if let Some(name) = now.sync_set.iter().find(|name| !now.regions.contains(*name)) {
        return Err(unfit(name, "be in the volume's sync set", "it isn't one of the volume's regions"));
    }
    for (set, what) in [(&now.regions, "the volume's regions"), (&now.sync_set, "the volume's sync set")] {
        if !set.contains(&now.home) {
            let why = format!("it is the volume's home, which is always one of {what}; move the home first");
            return Err(unfit(&now.home, "be left out", why));
        }
    }
    if now.durability == Durability::Geo && (now.regions.len() < 2 || voters::check(&known).is_err()) {
        return Err(RuleError::NoFailover(id));
    }
    if now.durability == Durability::Geo
        && found.durability == Durability::Geo
        && now.blocks_alone
        && now.sync_set.len() == 1
        && found.sync_set.len() > 1
    {
        let why = "fsync would be answered by the home alone, and the volume is set to wait instead";
        return Err(unfit(&now.home, "be alone in the volume's sync set", why));
    }
    put(tx, id, &now);
    changed(tx).await
}

/// Why the last region besides the home isn't taken out of a `geo` volume's sync set, and what to do instead.
fn last_member(volume: String, found: &Volume, regions: &BTreeSet<String>) -> String {
    let why = "no other region besides the home is in the sync set of the `geo` volume, so that the home alone would answer fsync until another one is";
    if regions.is_subset(&found.regions) {
        return format!(
            "{why}. Wait until `mooseng volume info {volume}` shows one that stays in the sync set, or make the volume `region` first (`mooseng volume set {volume} --durability region`)"
        );
    }
    let all: Vec<&str> = found.regions.union(regions).map(String::as_str).collect();
    format!(
        "{why}. Add the new one first (`mooseng volume set {volume} --regions {}`), and take this one out once `mooseng volume info {volume}` shows the new one in the sync set",
        all.join(",")
    )
}

/// A volume as it is typed.
fn typed(id: VolumeId) -> String {
    if id == ROOT { "/".to_owned() } else { id.to_string() }
}

mod anew;
mod classes;
pub use classes::{CLASSES_MAX, ClassError, create_class, delete_class, leave_class, set_class, stay_class};
mod error;
pub use error::RuleError;
mod homes;
pub use homes::{close_epoch, force_home, may_force, may_move, move_home, open_epoch, stay_home};
mod joins;
pub use joins::{Making, VOLUMES_MAX, create_volume, delete_volume, join_volume, leave_volume};
mod regions;
pub use regions::{
    Having, Joining, MASTERS_MAX, REGIONS_MAX, Renewal, add_region, admit, fits, may_add, may_remove,
    remove_region, renew,
};

pub mod level;
pub use level::LevelError;
pub mod revocations;

#[cfg(test)]
mod anew_tests;
#[cfg(test)]
mod classes_tests;
#[cfg(test)]
mod joins_tests;
#[cfg(test)]
mod level_tests;
#[cfg(test)]
mod revocations_tests;
#[cfg(test)]
mod tests;
