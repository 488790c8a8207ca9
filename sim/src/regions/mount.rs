//! A mount: it works in the root, and where there is a second volume crosses into it and works there, too.

use std::sync::Arc;
use std::time::Duration;

use mooseng_client::{Caller, ClientConfig, FileSystem, Tree};
use mooseng_wire::Role;

use super::across;
use super::clients::{Mount, with};
use super::shape::Shape;
use super::volumes::{SECOND, Volume};
use crate::hosts::{self, Host};
use crate::kinds;
use crate::network::network;

/// How long an operation is tried: longer than faults last.
const RETRY: Duration = Duration::from_secs(60);

/// Who calls.
pub fn caller() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

/// Runs one mount until faults are over, and then has it look at everything once more.
pub async fn client(
    number: u8,
    name: String,
    seed: u64,
    shape: Arc<Shape>,
    host: Host,
    volumes: Vec<Volume>,
) -> turmoil::Result {
    let region = shape.region_of(&name);
    let config = ClientConfig {
        masters: region.all_masters().map(|master| hosts::address(master)).collect(),
        zone: "z1".into(),
        host: name.clone(),
        retry_timeout: RETRY,
        delegate: shape.alone,
        renew_interval: Duration::from_millis(600),
        connect_timeout: Duration::from_secs(120),
        ..ClientConfig::default()
    };
    let network = network(&region.name, Role::Client, &name, &host.gate);
    let fs = FileSystem::connect(config, network, Arc::new(host.clock.clone())).await?;
    let tree = Tree::from(fs.clone());
    let appends = kinds::appends(seed);
    let root = Mount::new(fs, number, &region.name, &volumes[0], shape.alone, appends);
    match volumes.iter().find(|volume| volume.id == SECOND) {
        None => root.work(seed).await,
        Some(second) => {
            tokio::join!(root.clone().work(seed), across::work(tree.clone(), root, second.clone(), seed));
        }
    }
    tree.close().await;
    volumes.iter().for_each(|volume| with(&volume.notes, |notes| notes.done += 1));
    Ok(())
}
