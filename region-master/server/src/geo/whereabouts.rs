//! Where a volume is at home, as the regions have agreed, and what is refused elsewhere.

use std::sync::Arc;
use std::time::Duration;

use mooseng_global::{Stage, View};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::Home;
use mooseng_wire::{Epoch, VolumeId};
use prost::Message;
use tokio::time::Instant;
use tonic::Status;

use super::{ROOT_VOLUME, lock, moving};
use crate::master::{HOME_EPOCH, Master};

/// Addresses of other regions' masters that a client is told at most.
const ELSEWHERE_MAX: usize = 32;

/// A volume that this master hasn't heard of is waited for so long: masters hear of what was agreed on within a heartbeat or two of the global group.
pub(super) const NEWS_WITHIN: Duration = Duration::from_secs(1);

/// Where a volume is at home, for a master of any region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In this region, under that epoch.
    Here(Epoch),
    /// In another one, and this region has a replica.
    Elsewhere,
    /// In this region, but the epoch is closed: another home is being found.
    Closed(Epoch),
    /// This region doesn't have the volume, or it isn't known yet who has.
    Nowhere,
}

/// Where a volume is at home.
pub fn place_of(master: &Master, volume: VolumeId) -> Whereabouts {
    let Some(view) = master.geo.view() else { return Whereabouts::Here(HOME_EPOCH) };
    let Some(known) = view.volumes.get(&volume) else { return Whereabouts::Nowhere };
    if known.home == master.config.region {
        if known.open { Whereabouts::Here(known.epoch) } else { Whereabouts::Closed(known.epoch) }
    } else if known.regions.contains(&master.config.region) {
        Whereabouts::Elsewhere
    } else {
        Whereabouts::Nowhere
    }
}

/// What is agreed on once this master knows of that version; none if that takes too long.
pub(super) async fn agreed(master: &Master, version: u64, deadline: Instant) -> Option<Arc<View>> {
    let mut cluster = master.geo.cluster.clone()?;
    let heard = cluster.wait_for(|view| view.version >= version);
    Some(tokio::time::timeout_at(deadline, heard).await.ok()?.ok()?.clone())
}

/// Whether a volume was agreed on and not joined yet: nobody can have put anything there.
pub fn is_new(master: &Master, volume: VolumeId) -> bool {
    let stage = |view: Arc<View>| Some(view.volumes.get(&volume)?.join.as_ref()?.stage);
    master.geo.view().and_then(stage) == Some(Stage::Made)
}

/// Whether this region alone has a volume, as the regions have agreed.
pub fn is_alone(master: &Master, volume: VolumeId) -> bool {
    let ours = |view: Arc<View>| {
        view.volumes.get(&volume).is_some_and(|v| v.regions.iter().eq([&master.config.region]))
    };
    master.geo.view().is_some_and(ours)
}

/// Where masters of other regions with data are, for clients whose own region doesn't answer: of those first that have the volume, and of these of the nearest to
/// this one. Clients of other regions put them in order as they measure them.
pub fn elsewhere(master: &Master, volume: VolumeId) -> Vec<String> {
    let Some(view) = master.geo.view() else { return Vec::new() };
    let has_it = |name: &String| view.volumes.get(&volume).is_some_and(|v| v.regions.contains(name));
    let mut others: Vec<_> = view
        .regions
        .iter()
        .filter(|(name, region)| **name != master.config.region && !region.witness)
        .collect();
    let way = |name: &str| master.global.as_ref().and_then(|global| global.round_trip_to(name));
    others.sort_by_cached_key(|(name, _)| (!has_it(name), way(name).unwrap_or(Duration::MAX)));
    others
        .into_iter()
        .flat_map(|(_, region)| region.masters.iter().map(|m| m.address.clone()))
        .take(ELSEWHERE_MAX)
        .collect()
}

/// What a view says of whether there is a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    There,
    /// It is deleted, or about to be.
    Gone,
    /// No volume has had that number yet, or this view is from before.
    NotYet,
}

fn is_known(view: &View, volume: VolumeId) -> Known {
    match view.volumes.get(&volume) {
        Some(known) if known.join.as_ref().is_some_and(|join| join.stage == Stage::Leaving) => Known::Gone,
        Some(_) => Known::There,
        None if u32::from(volume.0) <= view.volume_highest => Known::Gone,
        None => Known::NotYet,
    }
}

/// Refuses a volume that there isn't, or not any more. One that was just made is waited for a little: whoever crosses into it has heard of it from another
/// master.
pub async fn there_is(master: &Master, volume: VolumeId, deadline: Instant) -> Result<(), CallError> {
    if volume == ROOT_VOLUME {
        return Ok(());
    }
    let Some(mut cluster) = master.geo.cluster.clone().filter(|_| master.global.is_some()) else {
        return Err(no_volume(volume.0.into()));
    };
    if !master.raft.is_leading() && is_known(&cluster.borrow(), volume) == Known::NotYet {
        return Err(master.not_leader());
    }
    let until = deadline.min(Instant::now() + NEWS_WITHIN);
    let news = cluster.wait_for(|view| is_known(view, volume) != Known::NotYet);
    let known = match tokio::time::timeout_at(until, news).await {
        Ok(Ok(view)) => is_known(&view, volume),
        Ok(Err(_)) | Err(_) => Known::NotYet,
    };
    match known {
        Known::There => Ok(()),
        Known::Gone => Err(no_volume(volume.0.into())),
        // Whoever is told that there is none gives up what it has of it: that isn't said by a view which may be from before.
        Known::NotYet => {
            let message =
                format!("this master doesn't know yet whether there is a volume {volume}; try again");
            Err(call_error(ErrorCode::Unavailable, message))
        }
    }
}

/// The refusal of what is about a volume that there isn't.
pub fn no_volume(volume: u32) -> CallError {
    let message = format!("there is no volume {volume}, or not any more: nothing was done");
    call_error(ErrorCode::NoVolume, message)
}

/// Refuses what only a volume's home may do.
pub fn at_home(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    match place_of(master, volume) {
        Whereabouts::Here(_) if master.geo.is_sealed(volume) => Err(moving::is_moving()),
        Whereabouts::Here(_) => Ok(()),
        Whereabouts::Closed(epoch) => {
            let message = format!(
                "epoch {} of the volume is over, and its next home is being found; try again",
                epoch.0
            );
            Err(call_error(ErrorCode::Unavailable, message))
        }
        Whereabouts::Elsewhere | Whereabouts::Nowhere => Err(not_home(master, volume)),
    }
}

pub(super) fn not_home(master: &Master, volume: VolumeId) -> CallError {
    let view = master.geo.view();
    let home = view.as_ref().and_then(|view| {
        let volume = view.volumes.get(&volume)?;
        let mut masters: Vec<String> =
            view.regions.get(&volume.home)?.masters.iter().map(|m| m.address.clone()).collect();
        // Whoever led there last is asked first.
        let leader = lock(&master.geo.leaders).get(&volume.home).cloned();
        masters.sort_by_key(|address| Some(address) != leader.as_ref());
        Some(Home { region: volume.home.clone(), masters, epoch: volume.epoch.0 })
    });
    let Some(home) = home else {
        let message = "this master doesn't know yet which region is the home of the volume; try again";
        return call_error(ErrorCode::Unavailable, message);
    };
    let message =
        format!("the home of the volume is the region {}, not {}", home.region, master.config.region);
    CallError { detail: home.encode_to_vec().into(), ..call_error(ErrorCode::NotHome, message) }
}

/// The volume of which an administrator asks.
pub(super) fn known(master: &Master, asked: u32) -> Result<VolumeId, Status> {
    let volume = u16::try_from(asked).ok().map(VolumeId);
    let is_known = |volume: &VolumeId| match master.geo.view() {
        Some(view) => view.volumes.contains_key(volume),
        None => *volume == ROOT_VOLUME,
    };
    volume.filter(is_known).ok_or_else(|| Status::not_found(format!("there is no volume {asked}")))
}

/// The region that is a volume's home.
pub(super) fn home_of(master: &Master, volume: VolumeId) -> Result<String, String> {
    let view = master.geo.view().ok_or("there is no global group")?;
    view.volumes
        .get(&volume)
        .map(|known| known.home.clone())
        .ok_or_else(|| "the volume isn't known".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mooseng_global::{Durability, Join, Volume};
    use mooseng_wire::InodeId;

    use super::*;

    #[test]
    fn a_volume_is_there_gone_or_not_known_yet() {
        let volume = |stage| {
            let place = mooseng_global::Place { directory: InodeId(9), path: "/d".into() };
            Volume {
                home: "a".into(),
                epoch: Epoch(1),
                open: true,
                abandoned: false,
                cut: None,
                lost_home: None,
                forced_home: None,
                durability: Durability::Region,
                regions: BTreeSet::new(),
                sync_set: BTreeSet::new(),
                automatic: false,
                blocks_alone: false,
                lag_max: None,
                join: Some(Join { place, stage }),
            }
        };
        let stages = [(1, Stage::Made), (2, Stage::Joined), (4, Stage::Leaving)];
        let volumes = stages.into_iter().map(|(id, stage)| (VolumeId(id), volume(stage))).collect();
        let view = View { version: 1, volumes, volume_highest: 5, ..View::default() };
        let known: Vec<Known> = (1..=6).map(|id| is_known(&view, VolumeId(id))).collect();
        let (there, gone, not_yet) = (Known::There, Known::Gone, Known::NotYet);
        assert_eq!(known, [there, there, gone, gone, gone, not_yet]);
        assert_eq!(is_known(&View::default(), VolumeId(1)), not_yet);
    }
}
