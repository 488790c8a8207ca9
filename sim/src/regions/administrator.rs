//! What an administrator does where there is a second volume: makes it, by the calls that `mooseng volume create` makes; in half of those runs moves homes of
//! both, in some of those with one volume its home, and in half of those with data in three regions takes regions out of volumes and takes them in again. And where a master's disk is lost, he puts another
//! master in its place.

use std::time::Duration;

use mooseng_client::FsError;
use mooseng_wire::admin::{
    ChangeMembersRequest, CreateVolumeRequest, MemberToAdd, MoveHomeRequest, SetVolumeRequest, Volume as Told,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::audit::{AGAIN, Administration, ask_any, ask_region};
use super::clients::{EEXIST, with};
use super::contents;
use super::mount::caller;
use super::shape::{Region, Shape};
use super::volumes::{NAME, SECOND, Second, Volume};
use crate::hosts;

/// Makes the directory that the volume is joined at, on a mount of its own.
async fn make_directory(region: &Region) -> Result<(), String> {
    let tree = contents::mount("administrator", region).await?;
    let made = tree.root().mkdir(&caller(), tree.root().root(), NAME.as_bytes(), 0o755).await;
    let synced = tree.root().fsync_directory(tree.root().root()).await;
    tree.close().await;
    match made {
        Err(error) if error.errno() != EEXIST => Err(error.to_string()),
        _ => synced.map_err(|error: FsError| error.to_string()),
    }
}

async fn create(shape: &Shape, second: &Second) -> Result<Told, String> {
    let request = CreateVolumeRequest {
        path: format!("/{NAME}").into(),
        home: second.home.clone(),
        geo: second.geo,
        ..CreateVolumeRequest::default()
    };
    let reply =
        ask_any(shape, async |mut of: Administration| of.create_volume(request.clone()).await).await?;
    reply.volume.ok_or_else(|| "the answer names no volume".to_owned())
}

/// The second volume, made and joined: what is interrupted is gone on with by the same command, which mends what a failover of the root has lost, too.
async fn made(shape: &Shape, volumes: &[Volume], second: &Second) {
    loop {
        let told = match create(shape, second).await {
            Ok(told) => told,
            Err(why) => {
                tracing::info!(why, "the second volume isn't made yet");
                if let Some(region) = shape.regions.first()
                    && let Err(why) = make_directory(region).await
                {
                    tracing::info!(why, "its directory isn't made yet");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        tracing::info!(?told, "the second volume is made");
        let known = (told.id, told.geo, told.path.as_str());
        if known != (u32::from(SECOND.0), second.geo, format!("/{NAME}").as_str()) {
            let what = format!("instead of volume {SECOND} at /{NAME} there is {told:?}");
            with(&volumes[0].notes, |notes| notes.violations.push(what));
        }
        return;
    }
}

/// Moves one volume's home to another region, if that is possible now; or gives it up for that region, whether it is there or not, and whatever that lacks.
async fn move_home(shape: &Shape, volume: &Volume, rng: &mut StdRng) {
    let Some(home) = volume.homes.home() else { return };
    let others: Vec<&Region> = shape.with_data().filter(|region| region.name != home).collect();
    let to = others[rng.random_range(0..others.len())].name.clone();
    let force = rng.random_range(0..4) == 0;
    let asked = if force { &to } else { &home };
    let Some(region) = shape.regions.iter().find(|region| region.name == *asked) else { return };
    let request =
        MoveHomeRequest { volume: volume.id.0.into(), to: to.clone(), force, ..MoveHomeRequest::default() };
    with(&volume.notes, |notes| notes.moves.ordered += 1);
    match ask_region(region, async |mut of: Administration| of.move_home(request.clone()).await).await {
        Ok(reply) => {
            let from = reply.before.map_or(0, |before| before.epoch);
            tracing::info!(volume = %volume.id, from, to, force, stopped_ms = reply.stopped_ms, "a home is moved");
            // What is lost with a home that is given up is in the ledger, as with one that was lost.
            if !force {
                with(&volume.notes, |notes| notes.moves.made.insert(from));
            }
        }
        Err(why) => {
            tracing::info!(volume = %volume.id, to, force, why, "a home isn't moved, as far as is known")
        }
    }
}

/// Moves the home of the only volume until faults are over.
pub async fn move_homes(shape: &Shape, volume: &Volume, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x40_4e5);
    while !with(&volume.notes, |notes| notes.healed) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(1_000..7_000))).await;
        move_home(shape, volume, &mut rng).await;
    }
}

/// Says which regions have a volume.
async fn set_regions(shape: &Shape, volume: &Volume, regions: Vec<String>) -> Result<(), String> {
    let request =
        SetVolumeRequest { volume: volume.id.0.into(), regions: regions.clone(), ..Default::default() };
    let set = ask_any(shape, async |mut of: Administration| of.set_volume(request.clone()).await).await;
    match &set {
        Ok(_) => tracing::info!(volume = %volume.id, ?regions, "a volume's regions are set"),
        Err(why) => {
            tracing::info!(volume = %volume.id, ?regions, why, "a volume's regions aren't set, as far as is known")
        }
    }
    set.map(drop)
}

/// Takes a region out of a volume, or takes all in again. A region that is out lets go of what it has after three seconds, if the home is there and needs none of it.
async fn change_regions(shape: &Shape, volume: &Volume, is_out: &mut bool, rng: &mut StdRng) {
    let Some(home) = volume.homes.home() else { return };
    let all: Vec<String> = shape.with_data().map(|region| region.name.clone()).collect();
    let others: Vec<&String> = all.iter().filter(|name| **name != home).collect();
    let out = others[rng.random_range(0..others.len())].clone();
    // Whether a change was made isn't known where it wasn't answered.
    let was_out = std::mem::replace(is_out, true);
    let regions = if was_out { all } else { all.into_iter().filter(|name| *name != out).collect() };
    if set_regions(shape, volume, regions).await.is_ok() {
        *is_out = !was_out;
        with(&volume.notes, |notes| notes.moves.taken_out += usize::from(!was_out));
    }
}

/// Makes the second volume, moves homes until faults are over, and has the second volume joined then.
pub async fn work(shape: &Shape, volumes: &[Volume], second: &Second, seed: u64) {
    if let Some(region) = shape.regions.first()
        && let Err(why) = make_directory(region).await
    {
        tracing::info!(why, "the second volume's directory isn't made yet");
    }
    made(shape, volumes, second).await;
    let request = SetVolumeRequest {
        volume: SECOND.0.into(),
        blocks_alone: Some(second.blocks_alone),
        lag_max_ms: Some(shape.lag_max_ms()),
        ..SetVolumeRequest::default()
    };
    while let Err(why) =
        ask_any(shape, async |mut of: Administration| of.set_volume(request.clone()).await).await
    {
        tracing::info!(why, "the second volume isn't set yet");
        tokio::time::sleep(AGAIN).await;
    }
    let mut rng = StdRng::seed_from_u64(seed ^ 0x30_7e5);
    let mut out = vec![false; volumes.len()];
    while !with(&volumes[0].notes, |notes| notes.healed) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(1_000..7_000))).await;
        if second.takes_out && (!second.moves || rng.random()) {
            let of = rng.random_range(0..volumes.len());
            change_regions(shape, &volumes[of], &mut out[of], &mut rng).await;
        } else if second.moves {
            let of = rng.random_range(0..volumes.len());
            move_home(shape, &volumes[of], &mut rng).await;
        }
    }
    made(shape, volumes, second).await;
    if second.takes_out {
        let all: Vec<String> = shape.with_data().map(|region| region.name.clone()).collect();
        for volume in volumes {
            while set_regions(shape, volume, all.clone()).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    volumes.iter().for_each(|volume| with(&volume.notes, |notes| notes.is_settled = true));
}

/// Puts the substitute into the place of a master whose disk is lost then, by the call that `mooseng members` makes.
pub async fn replace_master(region: Region, lost: u64, at: Duration) -> turmoil::Result {
    let Some(name) = region.substitute.clone() else { return Ok(()) };
    tokio::time::sleep(at).await;
    let id = region.masters.len() as u64 + 1;
    let substitute = MemberToAdd { id, address: hosts::address(&name), zone: format!("z{id}"), name };
    let request = ChangeMembersRequest { add: vec![substitute], remove: vec![lost] };
    loop {
        let change = async |mut of: Administration| of.change_members(request.clone()).await;
        match ask_region(&region, change).await {
            Ok(reply) => {
                tracing::info!(region = region.name, lost, voters = ?reply.voters, "the lost master is replaced");
                return Ok(());
            }
            Err(why) => tracing::info!(region = region.name, lost, why, "the lost master isn't replaced yet"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
