//! Home and replica compared by hashes, range by range, each at one place of the log.

use std::time::Duration;

use bytes::Bytes;
use mooseng_replica::{apply, read};
use mooseng_store::{Read, Store};
use mooseng_wire::VolumeId;
use mooseng_wire::admin::VerifyVolumeReply;
use mooseng_wire::geo::{AskDigest, Digest};
use mooseng_wire::method::Method;

use super::{Whereabouts, ask, home_of, pause, place, place_of, serve};
use crate::master::Master;

use tonic::Status;

/// How often a range is tried whose place is too old at the home by the time it is asked.
const TRIES: u32 = 20;

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Ranges.
    pub ranges: u64,
    /// Records here.
    pub pairs: u64,
    /// The first keys of the ranges that differ.
    pub different: Vec<Bytes>,
}

/// Compares the replica here with its home.
pub async fn compare(master: &Master, volume: VolumeId) -> Result<Compared, String> {
    let home = home_of(master, volume)?;
    let (mut compared, mut from) = (Compared::default(), None::<Bytes>);
    loop {
        let (here, pairs, next, there) = range(master, volume, &home, from.clone()).await?;
        compared.ranges += 1;
        compared.pairs += pairs;
        let next_there = (!there.next.is_empty()).then_some(there.next);
        let equal = here[..] == there.digest[..] && next == next_there;
        if !equal {
            compared.different.push(from.clone().unwrap_or_default());
        }
        // Where they part, both go on behind the nearer end.
        match [next, next_there].into_iter().flatten().min() {
            Some(next) if from.as_ref().is_none_or(|from| next > *from) => from = Some(next),
            _ => return Ok(compared),
        }
    }
}

/// Answers an administrator.
pub async fn answer(master: &Master, volume: u32) -> Result<VerifyVolumeReply, Status> {
    let (volume, home) = home_of_replica(master, volume)?;
    let compared = compare(master, volume).await.map_err(Status::unavailable)?;
    Ok(VerifyVolumeReply {
        home,
        region: master.config.region.clone(),
        ranges: compared.ranges,
        records: compared.pairs,
        different: compared.different,
    })
}

/// The home of a volume of which this region has a replica, and serves.
pub(super) fn home_of_replica(master: &Master, volume: u32) -> Result<(VolumeId, String), Status> {
    let volume = super::known(master, volume)?;
    if place_of(master, volume) != Whereabouts::Elsewhere {
        let message = format!(
            "{} isn't a region with a replica of the volume: ask the masters of one that is (`mooseng volume info` names them)",
            master.config.region
        );
        return Err(Status::failed_precondition(message));
    }
    master.serving_of(volume).map_err(|error| Status::unavailable(error.message))?;
    let home = home_of(master, volume).map_err(Status::unavailable)?;
    Ok((volume, home))
}

type Range = ([u8; 32], u64, Option<Bytes>, Digest);

async fn range(master: &Master, volume: VolumeId, home: &str, from: Option<Bytes>) -> Result<Range, String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let tx = master.store.begin();
        let record = apply::state(&tx, volume, Read::Snapshot).await.map_err(|e| e.to_string())?;
        let record = record.filter(|record| record.copied_before.is_none());
        let record = record.ok_or("the volume is being copied to this region; compare later")?;
        let read = read::records(&tx, volume, from.clone(), serve::DIGEST_BYTES_MAX as usize).await;
        let (pairs, next) = read.map_err(|e| e.to_string())?;
        let message = AskDigest {
            volume: volume.0.into(),
            at: place(record.position()),
            from: from.clone().unwrap_or_default(),
            bytes_max: serve::DIGEST_BYTES_MAX,
        };
        match ask(master, home, Method::VolumeDigest, &message).await {
            Ok(there) => return Ok((read::digest(&pairs), pairs.len() as u64, next, there)),
            Err(error) => last = error,
        }
        tokio::time::sleep(pause(Duration::from_millis(200))).await;
    }
    Err(format!("a range couldn't be compared with {home}: {last}"))
}
