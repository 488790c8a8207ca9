//! Making the root volume, and the region's founding mark.

use bytes::Bytes;
use mooseng_schema::dirent::HashKey;
use mooseng_schema::founding::{self, FoundingRecord};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, ids, number};
use mooseng_store::{Atomic, Read, Transaction};
use mooseng_wire::founding::Founding;
use mooseng_wire::fs::FileKind;
use mooseng_wire::{Epoch, InodeId, ROOT_INODE, VolumeId};

use crate::error::OpError;
use crate::let_go;
use crate::quota::{self, Charge};
use crate::touched::difference;
use crate::trash::Terms;

/// Makes a volume whose root directory is everybody's to read and root's to write, unless it exists. Answers whether
/// it was made. `trash` says which deleted files it keeps and how long, until that is changed.
pub async fn format<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
    hash_key: HashKey,
    now_ns: i64,
    trash: Terms,
) -> Result<bool, OpError> {
    let key = volume::key(volume);
    if tx.get(&key, Read::Conflicting).await?.is_some() {
        return Ok(false);
    }
    // What is left here of the volume may be on its way out still.
    if let_go::state(tx, volume).await?.is_some() {
        return Err(OpError::LetGo(volume.0));
    }
    let root = InodeId::new(volume, ROOT_INODE.0);
    let record = VolumeRecord {
        epoch: epoch.0,
        hash_key: Bytes::copy_from_slice(&hash_key.0),
        root: root.0,
        born_ns: now_ns,
        trash_retention_s: trash.retention_s,
        trash_min_age_s: trash.min_age_s,
        moving_from: 0,
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
    quota::add(tx, root, &difference(None, Some(Charge::of(&directory))));
    tx.set(&inode::key(root), &directory.to_value());
    tx.atomic(&statistics::key(root, Statistic::Inodes), &number::encode(1), Atomic::Add);
    tx.set(&ids::key(ids::IdKind::Inode, volume), &number::encode(ROOT_INODE.0 + 1));
    Ok(true)
}

/// The region's founding mark. Where there is none yet, in a new region or one of an earlier release, it becomes `drawn`: 16 random bytes.
pub async fn found<T: Transaction>(tx: &T, drawn: Founding) -> Result<Founding, OpError> {
    let key = founding::key();
    if let Some(value) = tx.get(&key, Read::Conflicting).await? {
        return Ok(FoundingRecord::from_value(&value)?.mark()?);
    }
    tx.set(&key, &FoundingRecord::new(drawn).to_value());
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use mooseng_store::Store;
    use mooseng_store::memory::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn the_first_mark_stays() {
        let store = MemoryStore::default();
        let (first, second) = (Founding([1; 16]), Founding([2; 16]));
        for drawn in [first, second] {
            let tx = store.begin();
            assert_eq!(found(&tx, drawn).await.unwrap(), first);
            tx.commit().await.unwrap();
        }
        let tx = store.begin();
        tx.set(&founding::key(), &[1]);
        assert!(found(&tx, second).await.is_err(), "a damaged mark isn't replaced");
    }
}
