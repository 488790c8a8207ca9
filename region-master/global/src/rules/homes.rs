//! Whose home a volume has, epoch by epoch: closed and opened elsewhere, moved, or given up for another one.

use std::collections::BTreeSet;

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::log::LogPosition;
use mooseng_store::{Read, Transaction};
use mooseng_wire::{Epoch, VolumeId};

use super::{RuleError, Ruled, changed, get, in_epoch, put, typed, unfit, version, volume};
use crate::key;
use crate::record::{LeaseRecord, RegionRecord};
use crate::view::{Durability, Volume};

/// Closes a volume's epoch: from then on nothing of it is taken that isn't known yet. With `judged`, only if the home needs its lease, and hasn't renewed it
/// since that renewal, from which it ran out.
pub async fn close_epoch(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    judged: Option<u64>,
) -> Ruled<u64> {
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open {
        return version(tx, Read::Conflicting).await;
    }
    if let Some(judged) = judged {
        if !found.automatic {
            return Err(RuleError::ByCommand(id));
        }
        let lease: LeaseRecord =
            get(tx, &key::lease(&found.home), Read::Conflicting).await?.unwrap_or_default();
        if lease.sequence != judged {
            return Err(RuleError::Renewed(found.home));
        }
    }
    put(tx, id, &Volume { open: false, abandoned: judged.is_some(), forced_home: None, ..found });
    changed(tx).await
}

/// Opens the epoch behind a closed one, at a home that has the volume; in a `geo` volume, one of its sync set. It begins behind `cut`; none where nothing is
/// cut off.
pub async fn open_epoch(
    tx: &impl Transaction,
    id: VolumeId,
    closed: Epoch,
    home: &str,
    cut: Option<LogPosition>,
) -> Ruled<u64> {
    let found = volume(tx, id).await?;
    let next = Epoch(closed.0 + 1);
    if found.epoch == next && found.open && found.home == home {
        return version(tx, Read::Conflicting).await;
    }
    if found.epoch != closed {
        return Err(RuleError::OtherEpoch { volume: id, asked: closed, present: found.epoch });
    }
    if found.open {
        return Err(RuleError::Open { volume: id, epoch: closed });
    }
    let what = "be the home of the volume";
    if !found.regions.contains(home) {
        return Err(unfit(home, what, "it isn't one of the volume's regions"));
    }
    let is_forced = found.forced_home.as_deref() == Some(home);
    if let Some(forced) = found.forced_home.as_deref().filter(|_| !is_forced) {
        let why = format!(
            "an administrator has given the home up for {forced} (`mooseng volume move-home --force`)"
        );
        return Err(unfit(home, what, why));
    }
    let takes_any = found.durability == Durability::Region || plant::is(Plant::SyncSetUnchecked) || is_forced;
    if !takes_any && !found.sync_set.contains(home) {
        return Err(unfit(
            home,
            what,
            "it isn't in the volume's sync set, and may lack what was acknowledged",
        ));
    }
    let mut sync_set = found.sync_set.clone();
    // Where the home may lack what was acknowledged, the others aren't known to have what it has. They come back into the set once they have.
    if found.durability == Durability::Region || !sync_set.contains(home) {
        sync_set = BTreeSet::new();
    }
    // What a home that was lost had acknowledged is in all others of the set; it comes back into it once it has caught up.
    if found.abandoned {
        sync_set.remove(&found.home);
    }
    sync_set.insert(home.to_owned());
    let lost_home = (cut.is_some() && found.home != home).then(|| found.home.clone());
    put(
        tx,
        id,
        &Volume {
            home: home.to_owned(),
            epoch: next,
            open: true,
            abandoned: false,
            cut,
            lost_home,
            sync_set,
            ..found
        },
    );
    changed(tx).await
}

/// A home hands its volume over to another region, which has everything up to `cut`, behind which the home has changed nothing: it is the home from then on,
/// and no epoch is closed in between. Only if the global store is at `at_version`: whoever isn't answered makes sure by [`stay_home`] that this comes no more.
pub async fn move_home(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    (from, to): (&str, &str),
    cut: LogPosition,
    at_version: u64,
) -> Ruled<u64> {
    let found = volume(tx, id).await?;
    let next = Epoch(epoch.0 + 1);
    if found.epoch == next && found.open && found.home == to && found.cut == Some(cut) {
        return version(tx, Read::Conflicting).await;
    }
    let found = own_open(tx, id, epoch, from).await?;
    let present = version(tx, Read::Conflicting).await?;
    if at_version != present {
        return Err(RuleError::Overtaken { asked: at_version, present });
    }
    may_move(tx, id, &found, to).await?;
    let mut sync_set = found.sync_set.clone();
    if found.durability == Durability::Region {
        sync_set = BTreeSet::from([to.to_owned()]);
    }
    let (home, cut) = (to.to_owned(), Some(cut));
    put(tx, id, &Volume { home, epoch: next, cut, lost_home: None, forced_home: None, sync_set, ..found });
    changed(tx).await
}

/// An administrator gives a volume's home up for another region, whatever that lacks: the epoch is closed, and the next one opens there alone. Once more it is
/// given up for another one, should that never come.
pub async fn force_home(
    tx: &impl Transaction,
    id: VolumeId,
    epoch: Epoch,
    to: &str,
    loses_synced: bool,
) -> Ruled<u64> {
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open && found.forced_home.as_deref() == Some(to) {
        return version(tx, Read::Conflicting).await;
    }
    may_force(tx, id, &found, to, loses_synced).await?;
    put(tx, id, &Volume { open: false, abandoned: true, forced_home: Some(to.to_owned()), ..found });
    changed(tx).await
}

/// Whether it may be, as far as the regions have agreed on anything: of a `geo` volume for a member of its sync set, unless what fsync has covered may be lost.
pub async fn may_force(
    tx: &impl Transaction,
    id: VolumeId,
    found: &Volume,
    to: &str,
    loses_synced: bool,
) -> Ruled<()> {
    // A closed one goes back to its home as to any other region.
    may_hold(tx, id, found, to, found.open).await?;
    if found.durability == Durability::Geo && !loses_synced && !found.sync_set.contains(to) {
        let members: Vec<&str> = found.sync_set.iter().map(String::as_str).collect();
        let why = format!(
            "it isn't in the volume's sync set ({}), and may lack what fsync has covered. If none of these can be had any more, say --although-it-loses-what-was-synced",
            members.join(", ")
        );
        return Err(unfit(to, "be the home of the volume", why));
    }
    Ok(())
}

/// Whether a volume's home may be moved to a region, as far as the regions have agreed on anything.
pub async fn may_move(tx: &impl Transaction, id: VolumeId, found: &Volume, to: &str) -> Ruled<()> {
    may_hold(tx, id, found, to, true).await?;
    if found.durability == Durability::Geo && !found.sync_set.contains(to) {
        let why = "it isn't in the volume's sync set, and may lack what was acknowledged: it is taken in by itself once it has caught up";
        return Err(unfit(to, "be the home of the volume", why));
    }
    Ok(())
}

/// Whether a region has the volume, and data at all.
async fn may_hold(tx: &impl Transaction, id: VolumeId, found: &Volume, to: &str, another: bool) -> Ruled<()> {
    let what = "be the home of the volume";
    let region: Option<RegionRecord> = get(tx, &key::region(to), Read::Conflicting).await?;
    let region = region.ok_or_else(|| RuleError::NoRegion(to.to_owned()))?.region()?;
    if region.witness {
        return Err(unfit(to, what, "it is a witness, which holds no data"));
    }
    if another && found.home == to {
        return Err(unfit(to, "become the home of the volume", "it is its home already"));
    }
    if !found.regions.contains(to) {
        let all: Vec<&str> = found.regions.iter().map(String::as_str).chain([to]).collect();
        let why = format!(
            "it doesn't have it; `mooseng volume set {} --regions {}` has it copied there",
            typed(id),
            all.join(",")
        );
        return Err(unfit(to, what, why));
    }
    Ok(())
}

/// A home goes on with its volume: whatever was asked before of the global store at an earlier version, and wasn't done, is refused from now on.
pub async fn stay_home(tx: &impl Transaction, id: VolumeId, epoch: Epoch, home: &str) -> Ruled<u64> {
    own_open(tx, id, epoch, home).await?;
    changed(tx).await
}

/// The volume, if it is in that epoch, which is open, and at that home.
async fn own_open(tx: &impl Transaction, id: VolumeId, epoch: Epoch, home: &str) -> Ruled<Volume> {
    let found = in_epoch(tx, id, epoch).await?;
    if !found.open {
        return Err(RuleError::Closed { volume: id, epoch });
    }
    if found.home != home {
        return Err(RuleError::NotHome { volume: id, home: found.home, asked: home.to_owned() });
    }
    Ok(found)
}
