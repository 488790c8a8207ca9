//! Making the root volume.

use bytes::Bytes;
use mooseng_schema::dirent::HashKey;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, ids, number};
use mooseng_store::{Atomic, Read, Transaction};
use mooseng_wire::fs::FileKind;
use mooseng_wire::{Epoch, InodeId, ROOT_INODE, VolumeId};

use crate::error::OpError;

/// Makes a volume whose root directory is everybody's to read and root's to write, unless it exists. Answers whether
/// it was made. `trash_retention_s` is how long it keeps deleted files, until that is changed ([`crate::trash`]).
pub async fn format<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
    hash_key: HashKey,
    now_ns: i64,
    trash_retention_s: u64,
) -> Result<bool, OpError> {
    let key = volume::key(volume);
    if tx.get(&key, Read::Conflicting).await?.is_some() {
        return Ok(false);
    }
    let root = InodeId::new(volume, ROOT_INODE.0);
    let record = VolumeRecord {
        epoch: epoch.0,
        hash_key: Bytes::copy_from_slice(&hash_key.0),
        root: root.0,
        born_ns: now_ns,
        trash_retention_s,
    };
    tx.set(&key, &record.to_value());
    let directory = InodeRecord {
        kind: FileKind::Directory as u32,
        mode: 0o755,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        ..Default::default()
    };
    tx.set(&inode::key(root), &directory.to_value());
    tx.atomic(&statistics::key(root, Statistic::Inodes), &number::encode(1), Atomic::Add);
    tx.set(&ids::key(ids::IdKind::Inode, volume), &number::encode(ROOT_INODE.0 + 1));
    Ok(true)
}
