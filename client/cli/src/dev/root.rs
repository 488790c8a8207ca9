//! Gives a dev cluster's root directory to whoever runs the cluster: a new region's root is the superuser's, so that nobody else could
//! write a first file.

use std::path::Path;
use std::sync::Arc;

use mooseng_client::{Caller, FileSystem, SetAttr};
use mooseng_ports::clock::OsClock;

use crate::admin;
use crate::config::ClientFile;
use crate::exit::Failure;

/// Does so, unless it is root's by right or somebody's already. `config` is that of a client.
pub fn give(config: &Path) -> Result<(), Failure> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(());
    }
    let file = ClientFile::load(config)?;
    let given = admin::block_on(change(&file, uid.as_raw(), rustix::process::getegid().as_raw()));
    given.map_err(|f| f.context("The filesystem's root directory can't be given to you"))
}

async fn change(file: &ClientFile, uid: u32, gid: u32) -> Result<(), Failure> {
    let fs =
        FileSystem::connect(file.client_config(Path::new("")), file.network()?, Arc::new(OsClock)).await?;
    let done = change_in(&fs, uid, gid).await;
    fs.close().await;
    done
}

async fn change_in(fs: &FileSystem, uid: u32, gid: u32) -> Result<(), Failure> {
    // In a cluster of his own the user may say that he is root: the region takes a client's word.
    let superuser = Caller { pid: std::process::id(), ..Caller::default() };
    let found = fs.getattr(&superuser, fs.root()).await?;
    if found.uid == 0 {
        let change = SetAttr { inode: fs.root(), uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
        fs.setattr(&superuser, change).await?;
    }
    Ok(())
}
