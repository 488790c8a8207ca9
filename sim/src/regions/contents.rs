//! Everything that a region has, read through a mount of its own: every file can be read in every region, and they show the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, Tree};
use mooseng_wire::Role;
use mooseng_wire::fs::FileKind;

use super::clients::{self, ENOENT};
use super::mount::caller;
use super::shape::Region;
use super::volumes::Volume;
use crate::hosts::{self, SimClock};
use crate::network::{Gate, network};

/// Entries of a directory: more than there are.
const LISTED_MAX: u32 = 10_000;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its inode.
    pub inode: u64,
    /// The record that it holds.
    pub record: u64,
    length: usize,
    checksum: u32,
}

/// What a path is: a directory, or a file.
pub type Contents = BTreeMap<String, Option<File>>;

/// What a region is looked at through.
pub async fn mount(host: &str, region: &Region) -> Result<Tree, String> {
    let config = ClientConfig {
        masters: region.all_masters().map(|master| hosts::address(master)).collect(),
        zone: "z1".into(),
        host: format!("{host}-{}", region.name),
        retry_timeout: Duration::from_secs(40),
        delegate: false,
        ..ClientConfig::default()
    };
    let network = network(&region.name, Role::Client, host, &Gate::default());
    let fs = FileSystem::connect(config, network, Arc::new(SimClock::new(0, 0)));
    let fs = fs.await.map_err(|error| format!("nothing can be mounted in {}: {error}", region.name))?;
    Ok(Tree::from(fs))
}

/// The root of the volume that is joined at a directory.
async fn crossed(tree: &Tree, parent: u64, name: &[u8]) -> Result<u64, FsError> {
    match tree.find(&caller(), parent, name).await? {
        Some(found) if found.crossed.is_some() => Ok(found.attr.inode),
        _ => Err(FsError::Answered(ENOENT)),
    }
}

/// Reads all that there is, in all of these volumes.
pub async fn read(region: &Region, volumes: &[Volume]) -> Result<Contents, String> {
    let tree = mount("auditor", region).await?;
    let mut found = Contents::new();
    let mut left = vec![(tree.root().root(), String::new())];
    while let Some((inode, path)) = left.pop() {
        let failed = |error: FsError| format!("in {} {path:?} can't be read: {error}", region.name);
        let fs = tree.of(inode).map_err(failed)?;
        let page = fs.readdir(&caller(), inode, 0, LISTED_MAX).await.map_err(failed)?;
        for entry in page.entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let of_entry = |error: FsError| format!("in {} {path:?} can't be read: {error}", region.name);
            let is = if entry.kind() == FileKind::Directory {
                let is_volume = volumes.iter().any(|volume| volume.path == path);
                let into = if is_volume {
                    crossed(&tree, inode, &entry.name).await.map_err(of_entry)?
                } else {
                    entry.inode
                };
                left.push((into, path.clone()));
                None
            } else {
                Some(file(&fs, &caller(), entry.inode).await.map_err(of_entry)?)
            };
            found.insert(path, is);
        }
    }
    tree.close().await;
    Ok(found)
}

async fn file(fs: &FileSystem, caller: &Caller, inode: u64) -> Result<File, FsError> {
    let opened = fs.open(caller, inode, 0).await?;
    let read = fs.read(caller, opened.handle, 0, 1 << 20).await;
    let _ = fs.release(opened.handle).await;
    let bytes = read?;
    let at = clients::place(inode).0 as usize;
    let record = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    Ok(File { inode, record, length: bytes.len(), checksum: crc32fast::hash(&bytes) })
}
