//! Storage classes of the cluster (docs/decisions/0039-classes-of-the-cluster.md).
//!
//! What there is here volumes have copies of, which their homes bring up to date. So a class goes in two steps: it is *leaving* first ([`leave_class`]), from when
//! on nothing is assigned it in any volume whose home has heard of that; then, once the homes of all volumes have said that they have and that nothing has the
//! class, it is deleted ([`delete_class`]). Where something has it, it comes back ([`stay_class`]).

use std::collections::BTreeMap;

use mooseng_schema::Record;
use mooseng_schema::storage_class::{CLUSTER_FIRST, Change, StorageClassRecord as Asked, Unfit};
use mooseng_store::{Read, Transaction};
use mooseng_wire::level::Feature;
use mooseng_wire::{Epoch, VolumeId};

use super::{Ruled, changed, cluster, get, level, pairs, version, volumes};
use crate::key;
use crate::record::{StorageClassRecord, StorageClassesRecord};
use crate::view::StorageClass;

/// Storage classes of the cluster at most.
pub const CLASSES_MAX: usize = 200;

/// Why a storage class isn't made, changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassError {
    /// There is none of that name.
    #[error("there is no storage class {0:?}; `mooseng class list` shows which there are")]
    NotThere(String),
    /// There is one of that name.
    #[error("there is a storage class {0:?} already; `mooseng class set` changes it")]
    Exists(String),
    /// It can't be as it is asked for.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// It is being deleted.
    #[error(
        "the storage class {0:?} is being deleted: `mooseng class delete` goes on with that, or takes it back where something has the class"
    )]
    Leaving(String),
    /// Somebody has taken it back since.
    #[error("the storage class {0:?} isn't being deleted any more: somebody has taken that back meanwhile")]
    Stayed(String),
    /// Not every volume's present home has said that nothing has it.
    #[error(
        "the home of volume {volume} hasn't said in the volume's present epoch that nothing has the storage class {name:?}"
    )]
    Unconfirmed {
        /// The class.
        name: String,
        /// The volume.
        volume: VolumeId,
    },
    /// There are too many.
    #[error("there are {CLASSES_MAX} storage classes, which is the most there may be; delete some")]
    TooMany,
    /// All ids were given.
    #[error("all ids of storage classes were given; none is given twice")]
    NoIds,
}

/// All storage classes, and the version that their last change made.
pub(super) async fn all(tx: &impl Transaction, read: Read) -> Ruled<(BTreeMap<u32, StorageClass>, u64)> {
    let mut classes = BTreeMap::new();
    for (key, value) in pairs(tx, key::all_storage_classes(), read).await? {
        let record = StorageClassRecord::from_value(&value)?;
        classes.insert(key::parse_storage_class(&key)?, record.storage_class()?);
    }
    let of_all: Option<StorageClassesRecord> = get(tx, &key::storage_classes(), read).await?;
    Ok((classes, of_all.unwrap_or_default().version))
}

async fn of_all(tx: &impl Transaction) -> Ruled<StorageClassesRecord> {
    cluster(tx).await?;
    Ok(get(tx, &key::storage_classes(), Read::Conflicting).await?.unwrap_or_default())
}

async fn named(tx: &impl Transaction, name: &str) -> Ruled<(u32, StorageClass)> {
    Asked::is_changeable(name).map_err(ClassError::from)?;
    let (classes, _) = all(tx, Read::Conflicting).await?;
    let found = classes.into_iter().find(|(_, of)| of.class.name == name);
    Ok(found.ok_or_else(|| ClassError::NotThere(name.to_owned()))?)
}

/// Puts a class on record, or takes it off. Answers the version that this makes.
async fn put(tx: &impl Transaction, id: u32, now: Option<Asked>) -> Ruled<u64> {
    let before = of_all(tx).await?;
    let version = changed(tx).await?;
    let of_all = StorageClassesRecord { highest: before.highest.max(id), version };
    tx.set(&key::storage_classes(), &of_all.to_value());
    match now {
        Some(class) => {
            let record = StorageClassRecord::from(&StorageClass { class, version });
            tx.set(&key::storage_class(id), &record.to_value());
        }
        None => tx.clear(&key::storage_class(id)),
    }
    Ok(version)
}

/// Makes a storage class; answers its id and the version. Made already in every respect, it is the same one: `set_ns`, when it was asked for, tells one command from
/// another.
pub async fn create_class(tx: &impl Transaction, asked: &Asked) -> Ruled<(u32, u64)> {
    let highest = of_all(tx).await?.highest;
    let class = Asked { leaving: false, ..asked.clone() }.checked().map_err(ClassError::from)?;
    let (classes, _) = all(tx, Read::Conflicting).await?;
    if let Some((id, there)) = classes.iter().find(|(_, there)| there.class.name == class.name) {
        return match there.class == class {
            true => Ok((*id, there.version)),
            false if there.class.leaving => Err(ClassError::Leaving(class.name).into()),
            false => Err(ClassError::Exists(class.name).into()),
        };
    }
    level::require(tx, Feature::ClusterClasses).await?;
    if classes.len() >= CLASSES_MAX {
        return Err(ClassError::TooMany.into());
    }
    let id = highest.max(CLUSTER_FIRST - 1).checked_add(1).ok_or(ClassError::NoIds)?;
    Ok((id, put(tx, id, Some(class)).await?))
}

/// Changes a storage class; answers its id and the version.
pub async fn set_class(tx: &impl Transaction, name: &str, change: &Change, now_ns: i64) -> Ruled<(u32, u64)> {
    let (id, there) = named(tx, name).await?;
    if there.class.leaving {
        return Err(ClassError::Leaving(name.to_owned()).into());
    }
    let now = there.class.clone().with(change, now_ns).map_err(ClassError::from)?;
    if now == there.class {
        return Ok((id, there.version));
    }
    Ok((id, put(tx, id, Some(now)).await?))
}

/// Begins to delete a storage class: nothing is assigned it any more. Answers its id, and the version from which on that holds.
pub async fn leave_class(tx: &impl Transaction, name: &str) -> Ruled<(u32, u64)> {
    let (id, there) = named(tx, name).await?;
    if there.class.leaving {
        return Ok((id, there.version));
    }
    Ok((id, put(tx, id, Some(Asked { leaving: true, ..there.class })).await?))
}

/// Whether a class is leaving since that version still; none where it is deleted.
async fn leaving(tx: &impl Transaction, id: u32, since: u64) -> Ruled<Option<(StorageClass, bool)>> {
    let record: Option<StorageClassRecord> = get(tx, &key::storage_class(id), Read::Conflicting).await?;
    let Some(there) = record.map(StorageClassRecord::storage_class).transpose()? else {
        if (CLUSTER_FIRST..=of_all(tx).await?.highest).contains(&id) {
            return Ok(None);
        }
        return Err(ClassError::NotThere(id.to_string()).into());
    };
    let is_leaving = there.class.leaving && there.version == since;
    Ok(Some((there, is_leaving)))
}

/// Takes back that a storage class is leaving since that version. Where it is deleted, or somebody else has decided since, nothing changes.
pub async fn stay_class(tx: &impl Transaction, id: u32, since: u64) -> Ruled<u64> {
    match leaving(tx, id, since).await? {
        Some((there, true)) => put(tx, id, Some(Asked { leaving: false, ..there.class })).await,
        Some((_, false)) | None => version(tx, Read::Conflicting).await,
    }
}

/// Deletes a storage class that is leaving since that version, and of which the homes of all volumes have said, each in this epoch, that they know that and that
/// nothing has it. Its id isn't given again.
///
/// A volume that was made since is among them, too: its home can't have assigned the class, but whoever asks can't tell that volume from one of before.
pub async fn delete_class(
    tx: &impl Transaction,
    id: u32,
    since: u64,
    confirmed: &BTreeMap<VolumeId, Epoch>,
) -> Ruled<u64> {
    let Some((there, is_leaving)) = leaving(tx, id, since).await? else {
        return version(tx, Read::Conflicting).await;
    };
    let name = there.class.name;
    if !is_leaving {
        return Err(ClassError::Stayed(name).into());
    }
    let unsure = |(volume, known): (VolumeId, crate::view::Volume)| {
        (!known.open || confirmed.get(&volume) != Some(&known.epoch)).then_some(volume)
    };
    if let Some(volume) = volumes(tx, Read::Conflicting).await?.into_iter().find_map(unsure) {
        return Err(ClassError::Unconfirmed { name, volume }.into());
    }
    put(tx, id, None).await
}
