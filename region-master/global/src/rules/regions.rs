//! Regions: taken in with a join token, heard of by renewals of their leases, and let go of.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_schema::Record;
use mooseng_store::{Read, Transaction};
use mooseng_wire::{VolumeId, is_identity_word, join};

use super::{RuleError, Ruled, anew, changed, cluster, get, regions, typed, version, volumes};
use crate::key;
use crate::record::{LeaseRecord, RegionRecord};
use crate::view::{MasterAt, Region, Volume};
use crate::voters;

/// Masters of a region at most.
pub const MASTERS_MAX: usize = 16;
/// Regions at most.
pub const REGIONS_MAX: usize = 32;

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

/// What taking a region in comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joining {
    /// It is there, as it is asked for: nothing but its join token may change.
    Again,
    /// It is new, and has its number.
    New(Region),
}

/// Which regions have a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Having<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Its home.
    pub home: &'a str,
    /// All regions that have it, the home among them.
    pub regions: Vec<&'a str>,
}

impl<'a> Having<'a> {
    /// Of a volume.
    fn of(id: VolumeId, volume: &'a Volume) -> Self {
        let regions = volume.regions.iter().map(String::as_str).collect();
        Self { volume: id, home: &volume.home, regions }
    }
}

/// Whether a region may be beside others.
pub fn fits(name: &str, region: &Region, others: &BTreeMap<String, Region>) -> Ruled<()> {
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

/// Whether somebody can be reached at an address, as far as its form goes: host:port.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Whether a region may be taken in beside those that are known. `highest`: the highest number that was ever given to one; number 0 asks for the next. Refused where
/// the group could lose any region before, and couldn't then.
pub fn may_add(
    name: &str,
    region: &Region,
    known: &BTreeMap<String, Region>,
    highest: u32,
) -> Ruled<Joining> {
    let mut region = region.clone();
    if let Some(there) = known.get(name) {
        let same = region.number == 0 || region.number == there.number;
        region.number = there.number;
        if same && *there == region {
            return Ok(Joining::Again);
        }
        return Err(RuleError::Region {
            region: name.to_owned(),
            why: "there is one of that name, and it is another one".into(),
        });
    }
    // Of one that is to come: a region that is there goes on renewing its lease, whatever was let in before this was looked at.
    if let Some(m) = region.masters.iter().find(|m| !is_address(&m.address)) {
        let why = format!(
            "the address {:?} of {} isn't of the form host:port, with a port from 1 to 65535",
            m.address, m.name
        );
        return Err(RuleError::Region { region: name.to_owned(), why });
    }
    if known.len() >= REGIONS_MAX {
        let why = format!("there are {REGIONS_MAX} already, which is the most");
        return Err(RuleError::Region { region: name.to_owned(), why });
    }
    let next = highest + 1;
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
    fits(name, &region, known)?;
    if voters::check(known).is_ok() {
        let mut then = known.clone();
        then.insert(name.to_owned(), region.clone());
        voters::check(&then)?;
    }
    Ok(Joining::New(region))
}

/// Takes a region in. Number 0 asks for the next one. `join` is the hash of the secret that its first renewal must show, or empty.
pub async fn add_region(tx: &impl Transaction, name: &str, region: &Region, join: &[u8]) -> Ruled<u64> {
    let mut cluster = cluster(tx).await?;
    let known = regions(tx, Read::Conflicting).await?;
    let region = match may_add(name, region, &known, cluster.region_highest)? {
        Joining::New(region) => region,
        Joining::Again => {
            renew_token(tx, name, join).await?;
            return version(tx, Read::Conflicting).await;
        }
    };
    cluster.region_highest = region.number.into();
    tx.set(&key::cluster(), &cluster.to_value());
    tx.set(&key::region(name), &RegionRecord::from(&region).to_value());
    tx.set(&key::lease(name), &LeaseRecord { join: join.to_vec(), ..LeaseRecord::default() }.to_value());
    changed(tx).await
}

/// How a region is to be freed of a volume.
fn freed(of: &Having<'_>, region: &str) -> String {
    let id = of.volume;
    let others: Vec<&str> = of.regions.iter().copied().filter(|other| *other != region).collect();
    let set = |regions: &str| format!("`mooseng volume set {} --regions {regions}`", typed(id));
    let moved = |to: &str| format!("`mooseng volume move-home {} --to {to}`", typed(id));
    match others.first() {
        None => format!(
            "No other region does, and it would be gone: have it copied to another one first ({}), then move its home there ({}), then take {region} out of the volume's regions",
            set(&format!("{region},OTHER")),
            moved("OTHER")
        ),
        Some(other) if of.home == region => format!(
            "It is the volume's home: move that first ({}), then take {region} out of the volume's regions ({})",
            moved(other),
            set(&others.join(","))
        ),
        Some(_) => format!("Take it out of the volume's regions first ({})", set(&others.join(","))),
    }
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
    // Masters that were made anew count their terms from the beginning: below those of before nothing that they propose would be taken. What those may still have
    // under way is of an epoch that is over, for the region is nobody's home by now.
    let custody = if anew { custody } else { custody.max(lease.custody) };
    let renewed = LeaseRecord { sequence, custody, join: Vec::new(), founding };
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

/// Whether a region may be let go of: no volume has it. Refused where the group could lose any region before, and couldn't then.
pub fn may_remove(name: &str, known: &BTreeMap<String, Region>, volumes: &[Having<'_>]) -> Ruled<()> {
    let mut then = known.clone();
    then.remove(name).ok_or_else(|| RuleError::NoRegion(name.to_owned()))?;
    if let Some(of) = volumes.iter().find(|of| of.regions.contains(&name)) {
        let (region, volume) = (name.to_owned(), of.volume);
        return Err(RuleError::InUse { region, volume, mend: freed(of, name) });
    }
    if voters::check(known).is_ok() {
        voters::check(&then)?;
    }
    Ok(())
}

/// Lets go of a region that no volume has. Refused where the group could lose any region before, and couldn't then.
pub async fn remove_region(tx: &impl Transaction, name: &str) -> Ruled<u64> {
    let known = regions(tx, Read::Conflicting).await?;
    let volumes = volumes(tx, Read::Conflicting).await?;
    {
        let all: Vec<Having<'_>> = volumes.iter().map(|(id, volume)| Having::of(*id, volume)).collect();
        may_remove(name, &known, &all)?;
    }
    tx.clear(&key::region(name));
    tx.clear(&key::lease(name));
    changed(tx).await
}
