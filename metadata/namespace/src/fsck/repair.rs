//! Setting right what is beyond doubt: counters. A difference that was found in one consistent view is added to the counter as it is now, for
//! every change since has kept it. So it must be done once only: where the outcome of the commit isn't known, nothing may be tried again before
//! everything was counted anew.

use mooseng_schema::chunk::{self, ChunkUse};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::quota;
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::{Record, SchemaError, directory, number, staged};
use mooseng_store::{Atomic, Read, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::{InodeId, VolumeId};

use super::Fix;
use crate::error::OpError;
use crate::pack;
use crate::touched::Touched;

/// Adds what is missing. Answers whether there still was something to add it to.
pub async fn repair<T: Transaction>(tx: &T, fix: &Fix, touched: &Touched) -> Result<bool, OpError> {
    match *fix {
        Fix::Links(id, by) => {
            change_inode(tx, id, touched, |record| {
                record.nlink = record.nlink.checked_add_signed(i32::try_from(by).ok()?)?;
                Some(())
            })
            .await
        }
        Fix::Xattrs(id, by) => {
            change_inode(tx, id, touched, |record| {
                record.xattr_name_bytes =
                    record.xattr_name_bytes.checked_add_signed(i32::try_from(by).ok()?)?;
                Some(())
            })
            .await
        }
        Fix::Allocated(id, by) => {
            change_inode(tx, id, touched, |record| {
                record.allocated = record.allocated.checked_add_signed(by)?;
                Some(())
            })
            .await
        }
        Fix::Staged(id, by) => {
            tx.atomic(&staged::key(id), &by.encode(), Atomic::Add);
            Ok(true)
        }
        Fix::Packable(id) => {
            pack::list_anew(tx, id).await?;
            Ok(true)
        }
        Fix::Counter(id, counter, by) => {
            touched.note(Fact::Inode(id));
            add(tx, &directory::key(id, counter), by).await?;
            Ok(true)
        }
        Fix::Use(chunk, inode, extents, bytes) => {
            let key = chunk::reference_key(chunk, inode);
            let value = tx.get(&key, Read::Conflicting).await?;
            let used = ChunkUse::from_value(value.as_ref())?.changed(extents, bytes);
            match used.ok_or_else(|| SchemaError::damaged("chunk use", "it counts less than there is"))? {
                ChunkUse { extents: 0, bytes: 0 } => tx.clear(&key),
                used => tx.set(&key, &used.to_value()),
            }
            Ok(true)
        }
        Fix::Inodes(volume, by) => {
            add(tx, &statistics::key(first_of(volume), Statistic::Inodes), by).await?;
            Ok(true)
        }
        Fix::Bytes(volume, by) => {
            add(tx, &statistics::key(first_of(volume), Statistic::Bytes), by).await?;
            Ok(true)
        }
        Fix::TrashFiles(volume, by) => {
            add(tx, &statistics::key(first_of(volume), Statistic::TrashFiles), by).await?;
            Ok(true)
        }
        Fix::TrashBytes(volume, by) => {
            add(tx, &statistics::key(first_of(volume), Statistic::TrashBytes), by).await?;
            Ok(true)
        }
        Fix::Usage(volume, account, by) => {
            let [bytes, inodes] = quota::usage_keys(account, first_of(volume));
            add(tx, &bytes, by.bytes).await?;
            add(tx, &inodes, by.inodes).await?;
            Ok(true)
        }
    }
}

/// An inode whose shard takes the difference.
fn first_of(volume: VolumeId) -> InodeId {
    InodeId::new(volume, 1)
}

async fn add<T: Transaction>(tx: &T, key: &[u8], by: i64) -> Result<(), OpError> {
    let value = tx.get(key, Read::Conflicting).await?;
    let number = number::decode(value.as_ref())?.wrapping_add(by as u64);
    tx.set(key, &number::encode(number));
    Ok(())
}

async fn change_inode<T: Transaction>(
    tx: &T,
    id: InodeId,
    touched: &Touched,
    change: impl FnOnce(&mut InodeRecord) -> Option<()>,
) -> Result<bool, OpError> {
    let key = inode::key(id);
    let Some(value) = tx.get(&key, Read::Conflicting).await? else { return Ok(false) };
    let mut record = InodeRecord::from_value(&value)?;
    change(&mut record).ok_or_else(|| SchemaError::damaged("inode", "a counter of it can't be right"))?;
    touched.note(Fact::Inode(id));
    tx.set(&key, &record.to_value());
    Ok(true)
}
