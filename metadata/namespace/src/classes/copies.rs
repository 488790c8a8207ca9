//! A volume's copies of the classes that the regions have agreed on (docs/decisions/0039-classes-of-the-cluster.md). They are records of the volume, so that its
//! log brings them to each region that has it, its dump is whole, and a class is known where data is that has it.

use std::collections::BTreeMap;

use mooseng_schema::storage_class::{self, StorageClassRecord, is_of_cluster};
use mooseng_schema::{Record, number};
use mooseng_store::{Read, Transaction};
use mooseng_wire::VolumeId;

use super::{list, usage};
use crate::error::OpError;

/// Of which version of the cluster's classes the volume has copies; 0 for none.
pub async fn copied<T: Transaction>(tx: &T, volume: VolumeId, read: Read) -> Result<u64, OpError> {
    Ok(number::decode(tx.get(&storage_class::copied_key(volume), read).await?.as_ref())?)
}

/// What became of the volume's copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Something of them changed.
    pub changed: bool,
    /// Classes that the cluster doesn't have any more, and inodes here have.
    pub kept: Vec<u32>,
}

/// Makes the volume's copies those of that version, by their ids. Goes forward only: what is of an earlier version than the copies changes nothing.
///
/// A class that is gone goes here, too, once no inode has it. Normally none has, for the volume's home has said so; after a failover that took changes back some
/// may have it again. Then it stays, *leaving*, so that their data lies where it did, and whoever calls this again later has it removed.
pub async fn take_over<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    version: u64,
    classes: &BTreeMap<u32, StorageClassRecord>,
) -> Result<Copied, OpError> {
    let mut done = Copied::default();
    let before = copied(tx, volume, Read::Conflicting).await?;
    if version < before {
        return Ok(done);
    }
    let mut there: BTreeMap<u32, StorageClassRecord> =
        list(tx, volume, Read::Conflicting).await?.into_iter().collect();
    there.retain(|id, _| is_of_cluster(*id));
    for (id, record) in classes.iter().filter(|(id, _)| is_of_cluster(**id)) {
        if there.remove(id).as_ref() != Some(record) {
            tx.set(&storage_class::key(volume, *id), &record.to_value());
            done.changed = true;
        }
    }
    for (id, record) in there {
        // With conflicts: whoever makes an inode of the class at the same moment, or this, has to begin anew.
        if usage(tx, volume, id, Read::Conflicting).await?.inodes == 0 {
            tx.clear(&storage_class::key(volume, id));
            done.changed = true;
            continue;
        }
        done.kept.push(id);
        if !record.leaving {
            let record = StorageClassRecord { leaving: true, ..record };
            tx.set(&storage_class::key(volume, id), &record.to_value());
            done.changed = true;
        }
    }
    if version > before {
        tx.set(&storage_class::copied_key(volume), &number::encode(version));
        done.changed = true;
    }
    Ok(done)
}

/// Whether a class is being deleted: nothing is assigned it any more.
pub async fn is_leaving<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    class: u32,
    read: Read,
) -> Result<bool, OpError> {
    let value = tx.get(&storage_class::key(volume, class), read).await?;
    Ok(value
        .map(|value| StorageClassRecord::from_value(&value))
        .transpose()?
        .is_some_and(|record| record.leaving))
}
