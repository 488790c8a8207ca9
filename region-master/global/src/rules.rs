//! What may be changed, as functions of a transaction of the global store. Only the leader of the global group runs them.
//!
//! Each may run again where it isn't known whether it committed: done once, it answers the same and changes nothing more (only ids that were taken are
//! taken again). Every change counts up the version ([`crate::key::GlobalTag::Version`]), which each reads, so that they follow one another.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_schema::ids::IdKind;
use mooseng_schema::log::LogPosition;
use mooseng_schema::{Record, SchemaError, number};
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, RangeLimit, Read, StoreError, Transaction};
use mooseng_wire::level::FeatureLevel;
use mooseng_wire::{Epoch, LOCAL_ID_BITS, VolumeId, is_identity_word, join};

use crate::key;
use crate::record::{ClusterRecord, LeaseRecord, RegionRecord, VolumeRecord};
use crate::view::{Durability, MasterAt, Region, View, Volume};
use crate::voters::{self, CouldntLose};

/// Ids in one range at most.
pub const IDS_MAX: u64 = 1 << 32;
/// Masters of a region at most.
pub const MASTERS_MAX: usize = 16;
/// Regions at most.
pub const REGIONS_MAX: usize = 32;

/// The root volume.
pub const ROOT: VolumeId = VolumeId(0);

/// Why something isn't changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The store's own.
    #[error("the global store: {0}")]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error("the global store: {0}")]
    Schema(#[from] SchemaError),
    /// There is nothing yet.
    #[error("the cluster isn't founded yet: the leader of the global group is about to; try again")]
    NotFounded,
    /// No such region.
    #[error("there is no region {0:?}; `mooseng regions list` names those that there are")]
    NoRegion(String),
    /// No such volume.
    #[error("there is no volume {0}; `mooseng volume list` names those that there are")]
    NoVolume(VolumeId),
    /// The epoch isn't the present one.
    #[error(
        "volume {volume} is in epoch {present}, not in epoch {asked}: somebody else has decided meanwhile"
    )]
    OtherEpoch {
        /// The volume.
        volume: VolumeId,
        /// What was asked about.
        asked: Epoch,
        /// What there is.
        present: Epoch,
    },
    /// The epoch was closed.
    #[error("epoch {epoch} of volume {volume} is closed: another home is being found")]
    Closed {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The epoch isn't closed.
    #[error("epoch {epoch} of volume {volume} is open: it must be closed before the next one is opened")]
    Open {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Only the home may.
    #[error("the home of volume {volume} is {home}, not {asked}")]
    NotHome {
        /// The volume.
        volume: VolumeId,
        /// Its home.
        home: String,
        /// Who asked.
        asked: String,
    },
    /// The lease was renewed since it was judged.
    #[error("the region {0} has renewed its lease meanwhile")]
    Renewed(String),
    /// What the region had is gone, and something rests on it.
    #[error(
        "the region {region} was made anew: its masters carry another founding mark than those that held its lease before, so that what they had of volume {volume}, whose home it is, isn't there. It gets no lease as long as it is: another region takes over by itself, or by `mooseng volume move-home {volume} --to REGION --force` where that is left to a person. If the old masters' disks can be had back, start those instead"
    )]
    MadeAnew {
        /// Which.
        region: String,
        /// Of what it is the home.
        volume: VolumeId,
    },
    /// What the change was made of may have changed.
    #[error("the global store is at version {present}, and the change was made of version {asked}")]
    Overtaken {
        /// It was made of this one.
        asked: u64,
        /// And the store is at that one.
        present: u64,
    },
    /// A leader that leads no more wanted to change who is waited for.
    #[error("the leader of {region} that asks has the custody epoch {asked}, and a later one {present}")]
    Deposed {
        /// The volume's home.
        region: String,
        /// The custody epoch of who asked.
        asked: u64,
        /// Of who renewed the region's lease.
        present: u64,
    },
    /// The region isn't one that may hold the volume.
    #[error("the region {region} can't {what}: {why}")]
    Unfit {
        /// Which.
        region: String,
        /// What it was to do.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// `geo` without anywhere to go.
    #[error(
        "volume {0} can't be `geo`: that takes two regions that have it, and a third region, if only a witness, that has a voice when one of them is lost. Add regions to the volume (`mooseng volume set {0} --regions A,B`) or to the cluster (`mooseng regions add NAME --witness --master ...`) first"
    )]
    NoFailover(VolumeId),
    /// The regions wouldn't do.
    #[error(transparent)]
    CouldntLose(#[from] CouldntLose),
    /// The region isn't as a region must be.
    #[error("the region {region:?} can't be added: {why}")]
    Region {
        /// Which.
        region: String,
        /// Why not.
        why: String,
    },
    /// It has come.
    #[error("the region {0} has joined already: a join token is of no use any more")]
    TokenSpent(String),
    /// It was taken in with another token.
    #[error(
        "the region {0} has to join first: give its masters the token that `mooseng regions add` printed last for it, as the setting global.join"
    )]
    NoToken(String),
    /// Something needs the region.
    #[error("the region {region} can't be removed: volume {volume} has it. {mend}")]
    InUse {
        /// Which.
        region: String,
        /// By what.
        volume: VolumeId,
        /// What is to be done first, a sentence.
        mend: String,
    },
    /// Nothing is above it.
    #[error("the root volume can't be deleted: all others are below it")]
    Root,
    /// No volume can be joined there.
    #[error("no volume can be made at {path:?}: {why}")]
    Place {
        /// Where.
        path: String,
        /// Why not.
        why: String,
    },
    /// `geo` without anywhere to go, of a volume that there isn't yet.
    #[error("the volume at {path:?} can't be `geo`: {mend}")]
    NowhereToGo {
        /// Where it is to be.
        path: String,
        /// What it lacks, and how it gets it.
        mend: String,
    },
    /// Another volume is joined in it.
    #[error(
        "volume {volume} can't be deleted: volume {below} is joined in it, at {path:?}. Delete that one first (`mooseng volume delete {path}`)"
    )]
    Below {
        /// What was to be deleted.
        volume: VolumeId,
        /// What is in it.
        below: VolumeId,
        /// Where that is.
        path: String,
    },
    /// It is being deleted.
    #[error("volume {0} is being deleted: `mooseng volume delete` goes on with it")]
    Leaving(VolumeId),
    /// Its directory still names it.
    #[error("volume {0} is still joined at its directory, which is let go of first")]
    StillJoined(VolumeId),
    /// There are too many.
    #[error("{0}")]
    Volumes(String),
    /// What is revoked isn't changed.
    #[error(transparent)]
    Revocation(#[from] revocations::Refused),
    /// There are none left, or too many were asked for.
    #[error("{0}")]
    Ids(String),
    /// About storage classes.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// About the feature level.
    #[error(transparent)]
    Level(#[from] LevelError),
}

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

/// A renewal of a region's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// How many there have been.
    pub sequence: u64,
    /// What the cluster had agreed on.
    pub version: u64,
    /// How long the lease lasts.
    pub lease_ms: u64,
    /// The region was made anew: nothing that it told before counts.
    pub anew: bool,
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
    /// Only if this is the version of the global store.
    pub at_version: Option<u64>,
    /// Only if no leader of the home of a greater custody epoch has renewed its lease.
    pub custody: Option<u64>,
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

/// A region's leader shows the secret of its join token: the first time it must be the one that it was taken in with, if there is one.
pub async fn admit(tx: &impl Transaction, name: &str, secret: &[u8]) -> Ruled<()> {
    let lease: LeaseRecord = get(tx, &key::lease(name), Read::Conflicting).await?.unwrap_or_default();
    if lease.join.is_empty() {
        return Ok(());
    }
    if lease.join[..] != join::hash(secret) {
        return Err(RuleError::NoToken(name.to_owned()));
    }
    tx.set(&key::lease(name), &LeaseRecord { join: Vec::new(), ..lease }.to_value());
    Ok(())
}

/// Renews a region's lease, as its leader of that custody epoch, and takes note of the masters that its group has now, unless that is empty, and of their
/// founding mark, if they tell one.
pub async fn renew(
    tx: &impl Transaction,
    name: &str,
    masters: &[MasterAt],
    custody: u64,
    founding: &[u8],
) -> Ruled<Renewal> {
    let cluster = cluster(tx).await?;
    let record: Option<RegionRecord> = get(tx, &key::region(name), Read::Conflicting).await?;
    let known = record.ok_or_else(|| RuleError::NoRegion(name.to_owned()))?.region()?;
    let lease: LeaseRecord = get(tx, &key::lease(name), Read::Conflicting).await?.unwrap_or_default();
    if !lease.join.is_empty() {
        return Err(RuleError::NoToken(name.to_owned()));
    }
    let sequence = lease.sequence + 1;
    let anew = anew::is_anew(&lease.founding, founding);
    if anew {
        anew::count_on_no_more(tx, name).await?;
    }
    let founding = if founding.is_empty() { lease.founding } else { founding.to_vec() };
    let renewed = LeaseRecord { sequence, custody: custody.max(lease.custody), join: Vec::new(), founding };
    tx.set(&key::lease(name), &renewed.to_value());
    // Read for the conflict, too: a change that commits before this renewal is one that its holder must know of.
    let mut version = version(tx, Read::Conflicting).await?;
    if !masters.is_empty() && known.masters != masters {
        let region = Region { masters: masters.to_vec(), ..known };
        let mut others = regions(tx, Read::Conflicting).await?;
        others.remove(name);
        fits(name, &region, &others)?;
        tx.set(&key::region(name), &RegionRecord::from(&region).to_value());
        version = changed(tx).await?;
    }
    Ok(Renewal { sequence, version, lease_ms: cluster.lease_ms, anew })
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

/// Closes a volume's epoch: from then on nothing of it is taken that isn't known yet. With `judged`, only if the home's lease hasn't been renewed since
/// that renewal, from which it ran out.
pub async fn close_epoch(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    judged: Option<u64>,
) -> Ruled<u64> {
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open {
        return version(tx, Read::Conflicting).await;
    }
    if let Some(judged) = judged {
        let lease: LeaseRecord =
            get(tx, &key::lease(&found.home), Read::Conflicting).await?.unwrap_or_default();
        if lease.sequence != judged {
            return Err(RuleError::Renewed(found.home));
        }
    }
    put(tx, id, &Volume { open: false, abandoned: judged.is_some(), forced_home: None, ..found });
    changed(tx).await
}

/// Opens the epoch behind a closed one, at a home that has the volume; in a `geo` volume, one of its sync set. It begins behind `cut`; none where nothing is
/// cut off.
pub async fn open_epoch(
    tx: &impl Transaction,
    id: VolumeId,
    closed: Epoch,
    home: &str,
    cut: Option<LogPosition>,
) -> Ruled<u64> {
    let found = volume(tx, id).await?;
    let next = Epoch(closed.0 + 1);
    if found.epoch == next && found.open && found.home == home {
        return version(tx, Read::Conflicting).await;
    }
    if found.epoch != closed {
        return Err(RuleError::OtherEpoch { volume: id, asked: closed, present: found.epoch });
    }
    if found.open {
        return Err(RuleError::Open { volume: id, epoch: closed });
    }
    let what = "be the home of the volume";
    if !found.regions.contains(home) {
        return Err(unfit(home, what, "it isn't one of the volume's regions"));
    }
    let is_forced = found.forced_home.as_deref() == Some(home);
    if let Some(forced) = found.forced_home.as_deref().filter(|_| !is_forced) {
        let why = format!(
            "an administrator has given the home up for {forced} (`mooseng volume move-home --force`)"
        );
        return Err(unfit(home, what, why));
    }
    let takes_any = found.durability == Durability::Region || plant::is(Plant::SyncSetUnchecked) || is_forced;
    if !takes_any && !found.sync_set.contains(home) {
        return Err(unfit(
            home,
            what,
            "it isn't in the volume's sync set, and may lack what was acknowledged",
        ));
    }
    let mut sync_set = found.sync_set.clone();
    // Where the home may lack what was acknowledged, the others aren't known to have what it has. They come back into the set once they have.
    if found.durability == Durability::Region || !sync_set.contains(home) {
        sync_set = BTreeSet::new();
    }
    // What a home that was lost had acknowledged is in all others of the set; it comes back into it once it has caught up.
    if found.abandoned {
        sync_set.remove(&found.home);
    }
    sync_set.insert(home.to_owned());
    let lost_home = (cut.is_some() && found.home != home).then(|| found.home.clone());
    put(
        tx,
        id,
        &Volume {
            home: home.to_owned(),
            epoch: next,
            open: true,
            abandoned: false,
            cut,
            lost_home,
            sync_set,
            ..found
        },
    );
    changed(tx).await
}

/// A home hands its volume over to another region, which has everything up to `cut`, behind which the home has changed nothing: it is the home from then on,
/// and no epoch is closed in between. Only if the global store is at `at_version`: whoever isn't answered makes sure by [`stay_home`] that this comes no more.
pub async fn move_home(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    (from, to): (&str, &str),
    cut: LogPosition,
    at_version: u64,
) -> Ruled<u64> {
    let found = volume(tx, id).await?;
    let next = Epoch(epoch.0 + 1);
    if found.epoch == next && found.open && found.home == to && found.cut == Some(cut) {
        return version(tx, Read::Conflicting).await;
    }
    let found = own_open(tx, id, epoch, from).await?;
    let present = version(tx, Read::Conflicting).await?;
    if at_version != present {
        return Err(RuleError::Overtaken { asked: at_version, present });
    }
    may_move(tx, id, &found, to).await?;
    let mut sync_set = found.sync_set.clone();
    if found.durability == Durability::Region {
        sync_set = BTreeSet::from([to.to_owned()]);
    }
    let (home, cut) = (to.to_owned(), Some(cut));
    put(tx, id, &Volume { home, epoch: next, cut, lost_home: None, forced_home: None, sync_set, ..found });
    changed(tx).await
}

/// An administrator gives a volume's home up for another region, whatever that lacks: the epoch is closed, and the next one opens there alone. Once more it is
/// given up for another one, should that never come.
pub async fn force_home(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    to: &str,
    loses_synced: bool,
) -> Ruled<u64> {
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open && found.forced_home.as_deref() == Some(to) {
        return version(tx, Read::Conflicting).await;
    }
    may_force(tx, id, &found, to, loses_synced).await?;
    put(tx, id, &Volume { open: false, abandoned: true, forced_home: Some(to.to_owned()), ..found });
    changed(tx).await
}

/// Whether it may be, as far as the regions have agreed on anything: of a `geo` volume for a member of its sync set, unless what fsync has covered may be lost.
pub async fn may_force(
    tx: &impl Transaction,
    id: VolumeId,
    found: &Volume,
    to: &str,
    loses_synced: bool,
) -> Ruled<()> {
    // A closed one goes back to its home as to any other region.
    may_hold(tx, id, found, to, found.open).await?;
    if found.durability == Durability::Geo && !loses_synced && !found.sync_set.contains(to) {
        let members: Vec<&str> = found.sync_set.iter().map(String::as_str).collect();
        let why = format!(
            "it isn't in the volume's sync set ({}), and may lack what fsync has covered. If none of these can be had any more, say --although-it-loses-what-was-synced",
            members.join(", ")
        );
        return Err(unfit(to, "be the home of the volume", why));
    }
    Ok(())
}

/// Whether a volume's home may be moved to a region, as far as the regions have agreed on anything.
pub async fn may_move(tx: &impl Transaction, id: VolumeId, found: &Volume, to: &str) -> Ruled<()> {
    may_hold(tx, id, found, to, true).await?;
    if found.durability == Durability::Geo && !found.sync_set.contains(to) {
        let why = "it isn't in the volume's sync set, and may lack what was acknowledged: it is taken in by itself once it has caught up";
        return Err(unfit(to, "be the home of the volume", why));
    }
    Ok(())
}

/// Whether a region has the volume, and data at all.
async fn may_hold(tx: &impl Transaction, id: VolumeId, found: &Volume, to: &str, another: bool) -> Ruled<()> {
    let what = "be the home of the volume";
    let region: Option<RegionRecord> = get(tx, &key::region(to), Read::Conflicting).await?;
    let region = region.ok_or_else(|| RuleError::NoRegion(to.to_owned()))?.region()?;
    if region.witness {
        return Err(unfit(to, what, "it is a witness, which holds no data"));
    }
    if another && found.home == to {
        return Err(unfit(to, "become the home of the volume", "it is its home already"));
    }
    if !found.regions.contains(to) {
        let all: Vec<&str> = found.regions.iter().map(String::as_str).chain([to]).collect();
        let why = format!(
            "it doesn't have it; `mooseng volume set {} --regions {}` has it copied there",
            typed(id),
            all.join(",")
        );
        return Err(unfit(to, what, why));
    }
    Ok(())
}

/// A home goes on with its volume: whatever was asked before of the global store at an earlier version, and wasn't done, is refused from now on.
pub async fn stay_home(tx: &impl Transaction, id: VolumeId, epoch: Epoch, home: &str) -> Ruled<u64> {
    own_open(tx, id, epoch, home).await?;
    changed(tx).await
}

/// The volume, if it is in that epoch, which is open, and at that home.
async fn own_open(tx: &impl Transaction, id: VolumeId, epoch: Epoch, home: &str) -> Ruled<Volume> {
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open {
        return Err(RuleError::Closed { volume: id, epoch });
    }
    if found.home != home {
        return Err(RuleError::NotHome { volume: id, home: found.home, asked: home.to_owned() });
    }
    Ok(found)
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

/// Whether a region may be beside others.
fn fits(name: &str, region: &Region, others: &BTreeMap<String, Region>) -> Ruled<()> {
    let no = |why: String| Err(RuleError::Region { region: name.to_owned(), why });
    if !is_identity_word(name) {
        return no("its name isn't a word of letters, digits, '-', '_' and '.'".into());
    }
    if region.number == 0 {
        return no("0 isn't a region's number; count from 1".into());
    }
    if region.masters.is_empty() || region.masters.len() > MASTERS_MAX {
        return no(format!("it has {} masters; 1 to {MASTERS_MAX} can be", region.masters.len()));
    }
    let mut ids = BTreeSet::new();
    if let Some(m) =
        region.masters.iter().find(|m| m.id == 0 || u32::try_from(m.id).is_err() || !ids.insert(m.id))
    {
        return no(format!("the id {} of a master is 0, given twice, or not below 2^32", m.id));
    }
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    for (other, of) in others {
        if of.number == region.number {
            return no(format!("its number {} is that of {other}", of.number));
        }
        taken.extend(of.masters.iter().map(|m| m.address.as_str()));
    }
    match region.masters.iter().find(|m| m.address.is_empty() || !taken.insert(&m.address)) {
        Some(m) => no(format!("the address {:?} of {} is empty, or another master's", m.address, m.name)),
        None => Ok(()),
    }
}

/// Takes a region in. Number 0 asks for the next one. `join` is the hash of the secret that its first renewal must show, or empty.
pub async fn add_region(tx: &impl Transaction, name: &str, region: &Region, join: &[u8]) -> Ruled<u64> {
    let mut cluster = cluster(tx).await?;
    let mut known = regions(tx, Read::Conflicting).await?;
    let mut region = region.clone();
    if let Some(there) = known.get(name) {
        let same = region.number == 0 || region.number == there.number;
        region.number = there.number;
        if same && *there == region {
            renew_token(tx, name, join).await?;
            return version(tx, Read::Conflicting).await;
        }
        return Err(RuleError::Region {
            region: name.to_owned(),
            why: "there is one of that name, and it is another one".into(),
        });
    }
    if known.len() >= REGIONS_MAX {
        let why = format!("there are {REGIONS_MAX} already, which is the most");
        return Err(RuleError::Region { region: name.to_owned(), why });
    }
    let next = cluster.region_highest + 1;
    if region.number == 0 {
        region.number = u16::try_from(next).unwrap_or(0);
    }
    if u32::from(region.number) < next {
        let why = format!(
            "numbers aren't given twice, and {} was given already; the next is {next}",
            region.number
        );
        return Err(RuleError::Region { region: name.to_owned(), why });
    }
    fits(name, &region, &known)?;
    let could = voters::check(&known).is_ok();
    known.insert(name.to_owned(), region.clone());
    if could {
        voters::check(&known)?;
    }
    cluster.region_highest = region.number.into();
    tx.set(&key::cluster(), &cluster.to_value());
    tx.set(&key::region(name), &RegionRecord::from(&region).to_value());
    tx.set(&key::lease(name), &LeaseRecord { join: join.to_vec(), ..LeaseRecord::default() }.to_value());
    changed(tx).await
}

/// How a region is to be freed of a volume.
fn freed(id: VolumeId, volume: &Volume, region: &str) -> String {
    let others: Vec<&str> =
        volume.regions.iter().map(String::as_str).filter(|other| *other != region).collect();
    let set = |regions: &str| format!("`mooseng volume set {} --regions {regions}`", typed(id));
    let moved = |to: &str| format!("`mooseng volume move-home {} --to {to}`", typed(id));
    match others.first() {
        None => format!(
            "No other region does, and it would be gone: have it copied to another one first ({}), then move its home there ({}), then take {region} out of the volume's regions",
            set(&format!("{region},OTHER")),
            moved("OTHER")
        ),
        Some(other) if volume.home == region => format!(
            "It is the volume's home: move that first ({}), then take {region} out of the volume's regions ({})",
            moved(other),
            set(&others.join(","))
        ),
        Some(_) => format!("Take it out of the volume's regions first ({})", set(&others.join(","))),
    }
}

/// A volume as it is typed.
fn typed(id: VolumeId) -> String {
    if id == ROOT { "/".to_owned() } else { id.to_string() }
}

/// Of a region that was taken in and hasn't come: the token before counts no more.
async fn renew_token(tx: &impl Transaction, name: &str, join: &[u8]) -> Ruled<()> {
    if join.is_empty() {
        return Ok(());
    }
    let lease: LeaseRecord = get(tx, &key::lease(name), Read::Conflicting).await?.unwrap_or_default();
    if lease.sequence > 0 {
        return Err(RuleError::TokenSpent(name.to_owned()));
    }
    tx.set(&key::lease(name), &LeaseRecord { join: join.to_vec(), ..lease }.to_value());
    Ok(())
}

/// Lets go of a region that no volume has. Refused where the group could lose any region before, and couldn't then.
pub async fn remove_region(tx: &impl Transaction, name: &str) -> Ruled<u64> {
    let mut known = regions(tx, Read::Conflicting).await?;
    let could = voters::check(&known).is_ok();
    known.remove(name).ok_or_else(|| RuleError::NoRegion(name.to_owned()))?;
    let volumes = volumes(tx, Read::Conflicting).await?;
    if let Some((id, volume)) = volumes.iter().find(|(_, volume)| volume.regions.contains(name)) {
        return Err(RuleError::InUse {
            region: name.to_owned(),
            volume: *id,
            mend: freed(*id, volume, name),
        });
    }
    if could {
        voters::check(&known)?;
    }
    tx.clear(&key::region(name));
    tx.clear(&key::lease(name));
    changed(tx).await
}

mod anew;
mod classes;
pub use classes::{CLASSES_MAX, ClassError, create_class, delete_class, leave_class, set_class, stay_class};
mod joins;
pub use joins::{Making, VOLUMES_MAX, create_volume, delete_volume, join_volume, leave_volume};

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
