//! What a dev cluster's root volume begins with.
//!
//! Its root directory is given to whoever runs the cluster: a new region's root is the superuser's, so that nobody else could write a first file.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mooseng_client::{Caller, FileSystem, SetAttr};
use mooseng_ports::clock::OsClock;
use mooseng_wire::admin::SetVolumeRequest;

use crate::admin;
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};

/// Before another attempt.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

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

/// Makes the root volume `geo`, or not, once the regions agree on that. `config` is that of an administrator.
pub fn set_durability(config: &Path, geo: bool, deadline: Instant) -> Result<(), Failure> {
    let file = ClientFile::load(config)?;
    let request = SetVolumeRequest { geo: Some(geo), ..SetVolumeRequest::default() };
    loop {
        match admin::block_on(admin::set_volume(&file, request.clone())) {
            Ok(_) if geo => return admin::block_on(in_sync(&file, deadline)),
            Ok(_) => return Ok(()),
            // They may be about to found the cluster.
            Err(failure) if failure.kind() == Kind::Unavailable && Instant::now() < deadline => {
                std::thread::sleep(AGAIN_AFTER);
            }
            Err(failure) => return Err(failure.context("The root volume can't be given its durability")),
        }
    }
}

/// Waits until every region that has the volume is in its sync set. One that takes longer is no failure: `mooseng status` tells of it.
async fn in_sync(file: &ClientFile, deadline: Instant) -> Result<(), Failure> {
    while Instant::now() < deadline {
        let volumes = admin::list_volumes(file).await.map(|reply| reply.volumes).unwrap_or_default();
        if volumes.first().is_some_and(|root| root.sync_set.len() == root.regions.len()) {
            return Ok(());
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    eprintln!("Not every region is in the sync set of the root volume yet.");
    Ok(())
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
