//! What must hold once everything was healed: replicas are equal to their home, and every byte that metadata names can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_replica::read;
use mooseng_store::{Store, Transaction};
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::grpc_channel;
use mooseng_wire::Role;
use mooseng_wire::admin::{
    ListLossesReply, ListLossesRequest, ListSalvageRequest, SetVolumeRequest, ShowSalvageRequest,
    VerifyVolumeReply, VerifyVolumeRequest,
};

use super::clients::{Shared, with};
use super::contents;
use super::homes::Homes;
use super::ledger::{self, PutAside};
use super::shape::{Region, Shape};
use crate::hosts;
use crate::network::{Gate, network};
use crate::watch::Watch;

/// How it is said that a replica does.
pub const DIFFERS: &str = "differs from its home";
/// An answer takes so long at most.
const WITHIN: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(500);
/// How often the ledger is looked at until it has what was put aside.
const NAMED_TRIES: u32 = 60;

/// Makes the volume what it is to be, by the calls that `mooseng volume set` makes, as soon as there is one.
pub async fn set_up(shape: Arc<Shape>, shared: Shared) -> turmoil::Result {
    let request = SetVolumeRequest {
        volume: 0,
        geo: Some(shape.geo),
        blocks_alone: Some(shape.blocks_alone),
        ..SetVolumeRequest::default()
    };
    while !with(&shared, |notes| notes.healed) {
        for region in shape.with_data() {
            for master in &region.masters {
                let set = async {
                    let network = network(&region.name, Role::Admin, "admin", &Gate::default());
                    let channel = grpc_channel(network, &hosts::address(master), Role::Master).await;
                    AdministrationClient::new(channel).set_volume(request.clone()).await
                };
                match tokio::time::timeout(WITHIN, set).await {
                    Ok(Ok(reply)) => {
                        tracing::info!(reply = ?reply.into_inner(), "the volume is set");
                        return Ok(());
                    }
                    Ok(Err(status)) => tracing::info!(master, %status, "the volume isn't set yet"),
                    Err(_) => tracing::info!(master, "the volume isn't set yet: no answer"),
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}

/// The volume's records, as a region's leader has them.
fn records(watch: &Watch) -> BTreeMap<Bytes, Bytes> {
    let mut found = BTreeMap::new();
    watch.each_master(|_, master| {
        if master.serving().is_err() {
            return;
        }
        let tx = master.store.begin();
        tx.set_read_version(master.store.applied_version());
        let mut from = None;
        while let Ok((pairs, next)) =
            futures::executor::block_on(read::records(&tx, ROOT_VOLUME, from, 64 << 20))
        {
            found.extend(pairs);
            from = next;
            if from.is_none() {
                break;
            }
        }
    });
    found
}

/// Logs each record that one region has otherwise than the first one.
pub fn tell_differences(regions: &BTreeMap<String, Watch>) {
    let all: Vec<(&String, BTreeMap<Bytes, Bytes>)> = regions
        .iter()
        .map(|(region, watch)| (region, records(watch)))
        .filter(|(_, all)| !all.is_empty())
        .collect();
    let Some(((first, here), others)) = all.split_first() else { return };
    for (region, there) in others {
        let keys: BTreeSet<&Bytes> = here.keys().chain(there.keys()).collect();
        for key in keys.into_iter().filter(|key| here.get(*key) != there.get(*key)) {
            tracing::info!(?key, first, is = ?here.get(key), region, has = ?there.get(key), "a record differs");
        }
    }
}

/// Asks the masters of a region one after the other.
async fn ask<T>(
    region: &Region,
    call: impl AsyncFn(
        AdministrationClient<tonic::transport::Channel>,
    ) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, String> {
    let mut last = String::new();
    for master in &region.masters {
        let asked = async {
            let network = network(&region.name, Role::Admin, "admin", &Gate::default());
            let channel = grpc_channel(network, &hosts::address(master), Role::Master).await;
            call(AdministrationClient::new(channel)).await
        };
        match tokio::time::timeout(WITHIN, asked).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => last = format!("{master}: {status}"),
            Err(_) => last = format!("{master}: no answer"),
        }
    }
    Err(last)
}

async fn verify(region: &Region) -> Result<VerifyVolumeReply, String> {
    ask(region, async |mut of| of.verify_volume(VerifyVolumeRequest { volume: 0 }).await).await
}

/// Everything that a region put aside.
async fn put_aside(region: &Region) -> Result<Vec<PutAside>, String> {
    let mut all = Vec::new();
    for archive in
        ask(region, async |mut of| of.list_salvage(ListSalvageRequest { volume: 0 }).await).await?.archives
    {
        let mut of_it = PutAside { files: BTreeSet::new(), entries: BTreeMap::new(), archive };
        let mut after = None;
        loop {
            let asking = ShowSalvageRequest { volume: 0, cut: of_it.archive.cut, after };
            let page = ask(region, async |mut of| of.show_salvage(asking).await).await?;
            of_it.files.extend(page.files.iter().map(|file| file.inode));
            after = page.entries.last().and_then(|entry| entry.at);
            for entry in page.entries {
                let at = entry.at.map_or((0, 0), |at| (at.epoch, at.version));
                of_it.entries.insert(at, entry.inodes);
            }
            if !page.more || after.is_none() {
                break;
            }
        }
        all.push(of_it);
    }
    Ok(all)
}

/// The ledger, once it has what each region that was lost put aside: all of them are back.
async fn named_ledger(region: &Region) -> Result<ListLossesReply, String> {
    let mut tries = 0;
    loop {
        let found = ask(region, async |mut of| of.list_losses(ListLossesRequest { volume: 0 }).await).await;
        match found {
            Ok(ledger) if ledger.losses.iter().all(|loss| loss.named.is_some()) => return Ok(ledger),
            other if tries == NAMED_TRIES => {
                return Err(format!(
                    "the ledger doesn't have what each lost home put aside, though all are back: {other:?}"
                ));
            }
            _ => tries += 1,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What regions show, what is missing and what is said of that.
async fn account(shape: &Shape, shared: &Shared, homes: &Homes) -> Result<(), String> {
    let home = homes.home().unwrap_or_default();
    let home = shape.with_data().find(|region| region.name == home).ok_or("there is no home")?;
    let ledger = named_ledger(home).await?;
    ledger::check_tenures(&homes.tenures(), &ledger)?;
    let contents = contents::read(home).await?;
    let mut aside = Vec::new();
    for region in shape.with_data() {
        aside.extend(put_aside(region).await?);
        let there = contents::read(region).await?;
        let differs = |path: &&String| contents.get(*path) != there.get(*path);
        if let Some(path) = contents.keys().chain(there.keys()).find(differs) {
            return Err(format!(
                "{path} is {:?} at home in {}, and {:?} in {}",
                contents.get(path),
                home.name,
                there.get(path),
                region.name
            ));
        }
    }
    let sequences = with(shared, |notes| notes.sequences.clone());
    for (at, sequence) in sequences.iter().enumerate() {
        ledger::check_sequence((at, sequence), &contents, &ledger.losses, &aside)?;
    }
    tracing::info!(
        paths = contents.len(),
        losses = ledger.losses.len(),
        archives = aside.len(),
        "everything is accounted for"
    );
    Ok(())
}

/// Waits until the mounts are done, and then until each replica was compared with its home, which must find them equal; and has account of everything.
pub async fn compare(shape: Arc<Shape>, shared: Shared, homes: Homes, mounts: usize) -> turmoil::Result {
    while with(&shared, |notes| notes.done) < mounts {
        tokio::time::sleep(AGAIN).await;
    }
    let home = homes.home().unwrap_or_default();
    for region in shape.with_data().filter(|region| region.name != home) {
        loop {
            match verify(region).await {
                Ok(reply) if reply.different.is_empty() => {
                    tracing::info!(region = region.name, reply.ranges, reply.records, "equal to its home");
                    break;
                }
                Ok(reply) => {
                    let what = format!(
                        "the replica in {} {DIFFERS} {} in the ranges from {:?}",
                        region.name, reply.home, reply.different
                    );
                    with(&shared, |notes| notes.violations.push(what));
                    break;
                }
                Err(why) => tracing::info!(region = region.name, why, "not compared yet"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
    if let Err(what) = account(&shape, &shared, &homes).await {
        with(&shared, |notes| notes.violations.push(format!("in the end {what}")));
    }
    Ok(())
}
