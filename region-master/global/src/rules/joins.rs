//! Making and deleting volumes besides the root (docs/decisions/0032-volumes.md).
//!
//! A volume is made here first ([`create_volume`]), where nobody sees it; once its home has formatted it and a directory of the parent names it, it is
//! joined ([`join_volume`]). It is deleted the other way round: [`leave_volume`], after which nothing is joined in it, then the directory is let go of, then
//! [`delete_volume`]. Whatever is interrupted is gone on with by the same calls in the same order.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_schema::Record;
use mooseng_schema::ids::IdKind;
use mooseng_store::{Read, Transaction};
use mooseng_wire::level::Feature;
use mooseng_wire::{Epoch, LOCAL_ID_BITS, ROOT_INODE, VolumeId};

use super::{ROOT, RuleError, Ruled, changed, cluster, level, put, regions, unfit, version, volume, volumes};
use crate::key;
use crate::view::{Durability, Join, LAG_MAX_DEFAULT, Place, Region, Stage, Volume};
use crate::voters;

/// Volumes at most, the root among them: each is told of in each renewal of a region's lease.
pub const VOLUMES_MAX: usize = 256;
/// Bytes of a place's path at most.
const PATH_BYTES_MAX: usize = 4096;

/// What a volume is made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    /// Where it is to be joined.
    pub place: Place,
    /// Its first home.
    pub home: String,
    /// When fsync returns.
    pub durability: Durability,
    /// The regions that are to have it, the home among them; empty for those that have the parent, and the home.
    pub regions: BTreeSet<String>,
}

impl Making {
    fn no(&self, why: impl Into<String>) -> RuleError {
        RuleError::Place { path: self.place.path.clone(), why: why.into() }
    }

    /// The place by itself.
    fn is_sound(&self) -> Ruled<()> {
        let path = &self.place.path;
        if !path.starts_with('/') || path.len() > PATH_BYTES_MAX {
            return Err(self.no(format!("a path begins with / and has {PATH_BYTES_MAX} bytes at most")));
        }
        match self.place.directory.0 & ((1 << LOCAL_ID_BITS) - 1) {
            0 => Err(self.no("that isn't an inode")),
            root if root == ROOT_INODE.0 => Err(self.no("it is the root directory of a volume already")),
            _ => Ok(()),
        }
    }

    /// The volume that there is at that place already, if it is this one.
    fn is(&self, id: VolumeId, there: &Volume, stage: Stage) -> Ruled<()> {
        if stage == Stage::Leaving {
            return Err(RuleError::Leaving(id));
        }
        // Where another region has taken it over since, the one that was asked for first isn't the home any more.
        let same_home = there.home == self.home || there.epoch > Epoch(1);
        let same_regions = self.regions.is_empty() || self.regions == there.regions;
        if same_home && same_regions && self.durability == there.durability {
            return Ok(());
        }
        let typed = format!(
            "volume {id} is there, with the home {}, the durability {} and the regions {}; repeat the command with those, or delete it (`mooseng volume delete {}`)",
            there.home,
            there.durability.as_str(),
            there.regions.iter().cloned().collect::<Vec<_>>().join(","),
            self.place.path
        );
        Err(self.no(typed))
    }

    /// The volume as it begins, under its parent.
    fn volume(&self, parent: &Volume, known: &BTreeMap<String, Region>) -> Ruled<Volume> {
        let mut regions = self.regions.clone();
        if regions.is_empty() {
            regions = parent.regions.clone();
            regions.insert(self.home.clone());
        }
        for name in regions.iter().chain([&self.home]) {
            let region = known.get(name).ok_or_else(|| RuleError::NoRegion(name.clone()))?;
            if region.witness {
                return Err(unfit(name, "have the volume", "it is a witness, which holds no data"));
            }
        }
        if !regions.contains(&self.home) {
            let all: Vec<&str> = regions.iter().map(String::as_str).chain([self.home.as_str()]).collect();
            let why = format!("it isn't one of the volume's regions; say --regions {}", all.join(","));
            return Err(unfit(&self.home, "be the home of the volume", why));
        }
        let could_fail_over = regions.len() > 1 && voters::check(known).is_ok();
        if self.durability == Durability::Geo && !could_fail_over {
            return Err(self.nowhere_to_go(&regions, known));
        }
        Ok(Volume {
            home: self.home.clone(),
            epoch: Epoch(1),
            open: true,
            abandoned: false,
            cut: None,
            lost_home: None,
            forced_home: None,
            durability: self.durability,
            sync_set: [self.home.clone()].into(),
            regions,
            automatic: could_fail_over,
            blocks_alone: false,
            lag_max: Some(LAG_MAX_DEFAULT),
            join: Some(Join { place: self.place.clone(), stage: Stage::Made }),
        })
    }

    fn nowhere_to_go(&self, regions: &BTreeSet<String>, known: &BTreeMap<String, Region>) -> RuleError {
        let path = self.place.path.clone();
        let could = known.iter().filter(|(name, region)| !region.witness && !regions.contains(*name));
        let could: Vec<&str> = could.map(|(name, _)| name.as_str()).collect();
        let mend = match (regions.len(), could.is_empty()) {
            (0 | 1, true) => {
                "it takes two regions that have it, and there is no other one with data. Add one first (`mooseng regions add NAME --master ...`)".to_owned()
            }
            (0 | 1, false) => format!(
                "it takes two regions that have it. Name another one: `mooseng volume create {path} --home {home} --durability geo --regions {home},{}`",
                could.join("|"),
                home = self.home
            ),
            _ => "the cluster couldn't lose a region: it takes a third one, if only a witness, that has a voice when one is lost. Add it first (`mooseng regions add NAME --witness --master ...`)".to_owned(),
        };
        RuleError::NowhereToGo { path, mend }
    }
}

/// Makes a volume that isn't joined yet, in epoch 1; answers its number and the version. Made already with the same settings, it is the same one.
pub async fn create_volume(tx: &impl Transaction, making: &Making) -> Ruled<(VolumeId, u64)> {
    let mut cluster = cluster(tx).await?;
    making.is_sound()?;
    let all = volumes(tx, Read::Conflicting).await?;
    let above = making.place.parent();
    let parent = all.get(&above).ok_or(RuleError::NoVolume(above))?;
    match parent.join.as_ref().map(|join| join.stage) {
        Some(Stage::Leaving) => return Err(RuleError::Leaving(above)),
        Some(Stage::Made) => return Err(making.no(format!("volume {above} isn't joined itself yet"))),
        Some(Stage::Joined) | None => {}
    }
    let at = |volume: &Volume| {
        volume.join.as_ref().filter(|j| j.place.directory == making.place.directory).map(|j| j.stage)
    };
    if let Some((id, there, stage)) = all.iter().find_map(|(id, v)| Some((*id, v, at(v)?))) {
        making.is(id, there, stage)?;
        return Ok((id, version(tx, Read::Conflicting).await?));
    }
    level::require(tx, Feature::Volumes).await?;
    let made = making.volume(parent, &regions(tx, Read::Conflicting).await?)?;
    if all.len() >= VOLUMES_MAX {
        return Err(RuleError::Volumes(format!("there are {VOLUMES_MAX} volumes, which is the most")));
    }
    // A release that doesn't know of the highest number leaves it out where it writes that record.
    let highest = all.keys().map(|id| u32::from(id.0)).fold(cluster.volume_highest, u32::max);
    let next = u16::try_from(highest + 1).map(VolumeId);
    let id = next.map_err(|_| {
        RuleError::Volumes("all numbers of volumes were given; none is given twice".to_owned())
    })?;
    cluster.volume_highest = id.0.into();
    tx.set(&key::cluster(), &cluster.to_value());
    put(tx, id, &made);
    Ok((id, changed(tx).await?))
}

/// A volume besides the root, with where it is joined.
async fn joined(tx: &impl Transaction, id: VolumeId) -> Ruled<(Volume, Join)> {
    let found = volume(tx, id).await?;
    let join = found.join.clone().ok_or(RuleError::Root)?;
    Ok((found, join))
}

/// Only the home of the volume above knows what its directory names.
async fn is_home_above(tx: &impl Transaction, join: &Join, caller: &str) -> Ruled<()> {
    let parent = join.place.parent();
    let home = volume(tx, parent).await?.home;
    if home == caller {
        return Ok(());
    }
    Err(RuleError::NotHome { volume: parent, home, asked: caller.to_owned() })
}

/// The directory names the volume now, as the home of its parent says.
pub async fn join_volume(tx: &impl Transaction, id: VolumeId, caller: &str) -> Ruled<u64> {
    let (found, join) = joined(tx, id).await?;
    is_home_above(tx, &join, caller).await?;
    match join.stage {
        Stage::Joined => version(tx, Read::Conflicting).await,
        Stage::Leaving => Err(RuleError::Leaving(id)),
        Stage::Made => {
            put(tx, id, &Volume { join: Some(Join { stage: Stage::Joined, ..join }), ..found });
            changed(tx).await
        }
    }
}

/// Whether a volume was there once and is deleted.
async fn is_gone(tx: &impl Transaction, id: VolumeId) -> Ruled<bool> {
    let given = id != ROOT && u32::from(id.0) <= cluster(tx).await?.volume_highest;
    Ok(given && tx.get(&key::volume(id), Read::Conflicting).await?.is_none())
}

/// Begins to delete a volume: from then on nothing is joined in it. Refused while something is.
pub async fn leave_volume(tx: &impl Transaction, id: VolumeId) -> Ruled<u64> {
    if is_gone(tx, id).await? {
        return version(tx, Read::Conflicting).await;
    }
    let (found, join) = joined(tx, id).await?;
    if join.stage == Stage::Leaving {
        return version(tx, Read::Conflicting).await;
    }
    for (below, other) in volumes(tx, Read::Conflicting).await? {
        if let Some(in_it) = other.join.filter(|join| join.place.parent() == id) {
            return Err(RuleError::Below { volume: id, below, path: in_it.place.path });
        }
    }
    put(tx, id, &Volume { join: Some(Join { stage: Stage::Leaving, ..join }), ..found });
    changed(tx).await
}

/// Deletes a volume whose directory names it no more, as the home of its parent says. Its number isn't given again.
pub async fn delete_volume(tx: &impl Transaction, id: VolumeId, caller: &str) -> Ruled<u64> {
    if is_gone(tx, id).await? {
        return version(tx, Read::Conflicting).await;
    }
    let (_, join) = joined(tx, id).await?;
    is_home_above(tx, &join, caller).await?;
    if join.stage != Stage::Leaving {
        return Err(RuleError::StillJoined(id));
    }
    tx.clear(&key::volume(id));
    for kind in [IdKind::Inode, IdKind::Chunk, IdKind::Session] {
        tx.clear(&key::ids(kind, id));
    }
    changed(tx).await
}
