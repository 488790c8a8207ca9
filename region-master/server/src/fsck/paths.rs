//! From a finding to the paths of the files that it concerns, as they are now.

use bytes::Bytes;
use mooseng_embedded::EmbeddedTransaction;
use mooseng_namespace::OpError;
use mooseng_namespace::fsck::Subject;
use mooseng_namespace::trash as namespace_trash;
use mooseng_namespace::upkeep;
use mooseng_schema::Record;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::{ChunkId, InodeId};

use crate::geo::ROOT_VOLUME;
use crate::master::Master;
use crate::tree;

/// Files named for one finding.
const FILES_MAX: usize = 20;
/// Directories on the way to the root.
const DEPTH_MAX: usize = 4_096;

/// A transaction that reads what is applied here, on a follower too.
pub(crate) fn reading(master: &Master) -> EmbeddedTransaction {
    let tx = master.store.begin();
    tx.set_read_version(master.store.applied_version());
    tx
}

/// What it is about, for people.
pub(super) fn shown(subject: &Subject) -> String {
    match subject {
        Subject::Inode(inode) => format!("inode {}", inode.0),
        Subject::Entry(directory, name) => {
            format!("{:?} in directory inode {}", String::from_utf8_lossy(name), directory.0)
        }
        Subject::Chunk(chunk, _) => format!("chunk {}", chunk.0),
        Subject::Volume(volume) => format!("volume {}", volume.0),
        Subject::Key(key) => {
            let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
            format!("key {hex}")
        }
    }
}

/// The paths, as the tree shows them.
pub(super) async fn of(master: &Master, subject: &Subject) -> Result<Vec<Bytes>, OpError> {
    let Some(volume) = subject.volume() else { return Ok(Vec::new()) };
    let at = tree::at(master, volume).await;
    let within = within(master, subject).await?;
    Ok(within.iter().map(|path| tree::below(&at, path)).collect())
}

/// The paths in its volume.
async fn within(master: &Master, subject: &Subject) -> Result<Vec<Vec<u8>>, OpError> {
    let tx = reading(master);
    let mut paths = Vec::new();
    match subject {
        Subject::Inode(inode) => paths.extend(path(&tx, *inode).await?),
        Subject::Entry(directory, name) => {
            if let Some(mut above) = path(&tx, *directory).await? {
                if above != b"/" {
                    above.push(b'/');
                }
                above.extend_from_slice(name);
                paths.push(above);
            }
        }
        Subject::Chunk(chunk, file) => {
            for inode in users(&tx, *chunk, *file).await? {
                paths.extend(path(&tx, inode).await?);
            }
        }
        Subject::Volume(volume) if *volume != ROOT_VOLUME => paths.push(b"/".to_vec()),
        Subject::Volume(_) | Subject::Key(_) => {}
    }
    Ok(paths)
}

async fn users(
    tx: &EmbeddedTransaction,
    chunk: ChunkId,
    file: Option<InodeId>,
) -> Result<Vec<InodeId>, OpError> {
    let mut users: Vec<InodeId> = file.into_iter().collect();
    for (inode, _) in upkeep::chunk_users(tx, chunk, FILES_MAX).await? {
        if !users.contains(&inode) {
            users.push(inode);
        }
    }
    Ok(users)
}

/// An inode's path in its volume by its first name, or the one that it had before it went to the trash; none for one that has none.
pub(crate) async fn path(tx: &EmbeddedTransaction, inode: InodeId) -> Result<Option<Vec<u8>>, OpError> {
    if let Some(listed) = namespace_trash::find(tx, inode).await? {
        let mut path = namespace_trash::joined(&listed.directory, &listed.name);
        path.extend_from_slice(b" (in the trash)");
        return Ok(Some(path));
    }
    let mut names: Vec<Bytes> = Vec::new();
    let mut at = inode;
    while at != InodeId::root_of(inode.volume()) {
        let Some(value) = tx.get(&inode::key(at), Read::Snapshot).await? else { return Ok(None) };
        let record = InodeRecord::from_value(&value)?;
        let Some(link) = record.links.first().filter(|_| names.len() < DEPTH_MAX) else { return Ok(None) };
        names.push(link.name.clone());
        at = InodeId(link.parent);
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok(Some(if path.is_empty() { b"/".to_vec() } else { path }))
}
