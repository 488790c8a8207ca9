//! What must hold once everything was healed: replicas are equal to their home, and every byte that metadata names can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_replica::read;
use mooseng_store::{Store, Transaction};
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::grpc_channel;
use mooseng_wire::admin::{
    ListLossesReply, ListLossesRequest, ListSalvageRequest, SetVolumeRequest, ShowSalvageRequest,
    VerifyVolumeReply, VerifyVolumeRequest,
};
use mooseng_wire::{Role, VolumeId};

use super::administrator;
use super::clients::with;
use super::contents;
use super::ledger::{self, PutAside, Said};
use super::shape::{Region, Shape};
use super::volumes::{self, Second, Volume};
use crate::hosts;
use crate::network::{Gate, network};
use crate::watch::Watch;

/// How it is said that a replica does.
pub const DIFFERS: &str = "differs from its home";
/// An answer takes so long at most.
const WITHIN: Duration = Duration::from_secs(20);
/// What failed is tried again after that.
pub const AGAIN: Duration = Duration::from_millis(500);
/// How often the ledger is looked at until it has what was put aside.
const NAMED_TRIES: u32 = 60;

/// Makes the root volume what it is to be, by the calls that `mooseng volume set` makes, as soon as there is one; and the second one, if there is to be one.
pub async fn set_up(
    seed: u64,
    shape: Arc<Shape>,
    volumes: Vec<Volume>,
    second: Option<Second>,
) -> turmoil::Result {
    set_root(&shape, &volumes[0]).await;
    match second {
        Some(second) => administrator::work(&shape, &volumes, &second, seed).await,
        None => {
            if volumes::moves_alone(seed) {
                administrator::move_homes(&shape, &volumes[0], seed).await;
            }
            with(&volumes[0].notes, |notes| notes.is_settled = true);
        }
    }
    Ok(())
}

async fn set_root(shape: &Shape, root: &Volume) {
    let request = SetVolumeRequest {
        volume: 0,
        geo: Some(root.geo),
        blocks_alone: Some(root.blocks_alone),
        lag_max_ms: Some(shape.lag_max_ms()),
        ..SetVolumeRequest::default()
    };
    while !with(&root.notes, |notes| notes.healed) {
        for region in shape.with_data() {
            for master in &region.masters {
                let set = async |mut of: Administration| of.set_volume(request.clone()).await;
                match ask(&region.name, master, set).await {
                    Ok(Ok(reply)) => {
                        tracing::info!(?reply, "the volume is set");
                        return;
                    }
                    Ok(Err(status)) => tracing::info!(master, %status, "the volume isn't set yet"),
                    Err(_) => tracing::info!(master, "the volume isn't set yet: no answer"),
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A volume's records, as a region's leader has them.
fn records(watch: &Watch, volume: VolumeId) -> BTreeMap<Bytes, Bytes> {
    let mut found = BTreeMap::new();
    watch.each_master(|_, master| {
        if master.serving_of(volume).is_err() {
            return;
        }
        let tx = master.store.begin();
        tx.set_read_version(master.store.applied_version());
        let mut from = None;
        while let Ok((pairs, next)) = futures::executor::block_on(read::records(&tx, volume, from, 64 << 20))
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

/// Logs each record of a volume that one region has otherwise than the first one.
pub fn tell_differences(regions: &BTreeMap<String, Watch>, volume: VolumeId) {
    let all: Vec<(&String, BTreeMap<Bytes, Bytes>)> = regions
        .iter()
        .map(|(region, watch)| (region, records(watch, volume)))
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

/// What a master is asked by.
pub type Administration = AdministrationClient<tonic::transport::Channel>;

/// Asks a master. An error: it doesn't answer in time.
pub async fn ask<T>(
    region: &str,
    master: &str,
    call: impl AsyncFn(Administration) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<Result<T, tonic::Status>, tokio::time::error::Elapsed> {
    let asked = async {
        let network = network(region, Role::Admin, "admin", &Gate::default());
        let channel = grpc_channel(network, &hosts::address(master), Role::Master).await;
        call(AdministrationClient::new(channel)).await.map(tonic::Response::into_inner)
    };
    tokio::time::timeout(WITHIN, asked).await
}

/// Asks the masters of a region one after the other.
pub async fn ask_region<T>(
    region: &Region,
    call: impl AsyncFn(Administration) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, String> {
    let mut last = String::new();
    for master in region.all_masters() {
        match ask(&region.name, master, &call).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) => last = format!("{master}: {status}"),
            Err(_) => last = format!("{master}: no answer"),
        }
    }
    Err(last)
}

/// Asks all masters one after the other.
pub async fn ask_any<T>(
    shape: &Shape,
    call: impl AsyncFn(Administration) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, String> {
    let mut all = Vec::new();
    for region in shape.with_data() {
        match ask_region(region, &call).await {
            Ok(reply) => return Ok(reply),
            Err(why) => all.push(why),
        }
    }
    Err(all.join("; "))
}

async fn verify(region: &Region, volume: u32) -> Result<VerifyVolumeReply, String> {
    ask_region(region, async |mut of: Administration| of.verify_volume(VerifyVolumeRequest { volume }).await)
        .await
}

/// Everything of a volume that a region put aside.
async fn put_aside(region: &Region, volume: u32) -> Result<Vec<PutAside>, String> {
    let mut all = Vec::new();
    let list = ListSalvageRequest { volume };
    let listed = ask_region(region, async |mut of: Administration| of.list_salvage(list).await).await?;
    for archive in listed.archives {
        let mut of_it = PutAside { files: BTreeSet::new(), entries: BTreeMap::new(), archive };
        let mut after = None;
        loop {
            let asking = ShowSalvageRequest { volume, cut: of_it.archive.cut, after };
            let page =
                ask_region(region, async |mut of: Administration| of.show_salvage(asking).await).await?;
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

/// A volume's ledger, once it has what each region that was lost put aside: all of them are back.
async fn named_ledger(region: &Region, volume: u32) -> Result<ListLossesReply, String> {
    let mut tries = 0;
    loop {
        let asking = ListLossesRequest { volume };
        let found = ask_region(region, async |mut of: Administration| of.list_losses(asking).await).await;
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

/// What is known of a volume's losses.
struct Account {
    ledger: ListLossesReply,
    aside: Vec<PutAside>,
}

/// What regions show, what is missing and what is said of that.
async fn account(shape: &Shape, volumes: &[Volume]) -> Result<(), String> {
    let mut accounts = Vec::new();
    for volume in volumes {
        let of = |what: String| format!("of volume {}: {what}", volume.id);
        let home = volume.homes.home().unwrap_or_default();
        let home = shape.with_data().find(|region| region.name == home);
        let home = home.ok_or_else(|| of("there is no home".into()))?;
        let ledger = named_ledger(home, volume.id.0.into()).await.map_err(of)?;
        let moves = with(&volume.notes, |notes| notes.moves.clone());
        ledger::check_tenures(&volume.homes, &ledger, &moves).map_err(of)?;
        accounts.push((home, Account { ledger, aside: Vec::new() }));
    }
    let Some(first) = accounts.first().map(|(home, _)| *home) else { return Ok(()) };
    let contents = contents::read(first, volumes).await?;
    for region in shape.with_data() {
        for (volume, (_, account)) in volumes.iter().zip(&mut accounts) {
            account.aside.extend(put_aside(region, volume.id.0.into()).await?);
        }
        let there = contents::read(region, volumes).await?;
        let differs = |path: &&String| contents.get(*path) != there.get(*path);
        if let Some(path) = contents.keys().chain(there.keys()).find(differs) {
            return Err(format!(
                "{path} is {:?} in {}, the root's home, and {:?} in {}",
                contents.get(path),
                first.name,
                there.get(path),
                region.name
            ));
        }
    }
    for (volume, (_, Account { ledger, aside })) in volumes.iter().zip(&accounts) {
        let sequences = with(&volume.notes, |notes| notes.sequences.clone());
        // What one region has helps nobody where another one is the home next. Nor does a home that waits while it is alone say how old what it has is.
        let tells = shape.with_data().count() == 2 && !volume.blocks_alone;
        let safe = if tells { volume.homes.told_safe() } else { BTreeMap::new() };
        let said = Said { losses: &ledger.losses, put_aside: aside, safe: &safe };
        for (at, sequence) in sequences.iter().enumerate() {
            ledger::check_sequence((at, sequence), &contents, &said)
                .map_err(|what| format!("of volume {}: {what}", volume.id))?;
        }
        tracing::info!(
            volume = %volume.id,
            paths = contents.len(),
            losses = ledger.losses.len(),
            archives = aside.len(),
            "everything is accounted for"
        );
    }
    Ok(())
}

/// Waits until each replica of a volume was compared with its home, which must find them equal.
async fn compare_volume(shape: &Shape, volume: &Volume) {
    // A move that was ordered last may be made only now: what was compared with the home before is compared anew.
    'anew: loop {
        let home = volume.homes.home().unwrap_or_default();
        for region in shape.with_data().filter(|region| region.name != home) {
            loop {
                if volume.homes.home().is_some_and(|now| now != home) {
                    continue 'anew;
                }
                match verify(region, volume.id.0.into()).await {
                    Ok(reply) if reply.different.is_empty() => {
                        tracing::info!(volume = %volume.id, region = region.name, reply.ranges, reply.records, "equal to its home");
                        break;
                    }
                    Ok(reply) => {
                        let what = format!(
                            "the replica in {} {DIFFERS} {} in the ranges from {:?}",
                            region.name, reply.home, reply.different
                        );
                        with(&volume.notes, |notes| notes.violations.push(what));
                        break;
                    }
                    Err(why) => {
                        tracing::info!(volume = %volume.id, region = region.name, why, "not compared yet");
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
        return;
    }
}

/// Waits until the mounts are done, and then compares each volume's replicas with its home, and has account of everything.
pub async fn compare(shape: Arc<Shape>, volumes: Vec<Volume>, mounts: usize) -> turmoil::Result {
    let is_done = |volume: &Volume| with(&volume.notes, |notes| notes.done == mounts);
    let is_settled = |volume: &Volume| with(&volume.notes, |notes| notes.is_settled);
    while !volumes.iter().all(|volume| is_done(volume) && is_settled(volume)) {
        tokio::time::sleep(AGAIN).await;
    }
    for volume in &volumes {
        compare_volume(&shape, volume).await;
    }
    if let Err(what) = account(&shape, &volumes).await {
        with(&volumes[0].notes, |notes| notes.violations.push(format!("in the end {what}")));
    }
    Ok(())
}
