//! Who may change a volume: at most one region at any instant, and one in each epoch. And what its custodians begin with: a custody epoch is of an epoch
//! that the volume has had, and within one of them its sessions are asked once who they are, whatever becomes of other volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooseng_master::geo::lag;
use mooseng_master::master::Master;
use mooseng_wire::VolumeId;

use crate::watch::Watch;

/// The bits of a custody epoch that are the term within a home epoch.
const TERM_BITS: u32 = 40;
/// An answer that arrives now left so long ago at least.
const WAY: Duration = Duration::from_millis(2);
/// A tail's age is exact to a share of its bound, or to this at least.
const SAMPLE: Duration = Duration::from_millis(50);
/// That share.
const SAMPLES: u32 = 256;
/// The bound where there is none.
const UNBOUNDED: Duration = Duration::from_secs(600);
/// A home looks at its tail so often, and a change may have come between two looks.
const LOOKS: Duration = Duration::from_millis(300);
/// Clocks differ by less than one part in so many.
const DRIFT: u32 = 50;

/// A region as the home, in one epoch.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// The epoch.
    pub epoch: u64,
    /// The region.
    pub region: String,
    /// When it was first seen to answer.
    pub from: Duration,
    /// When it was last.
    pub until: Duration,
    /// When all sessions were first seen to have answered it, or not to be waited for: before that nobody hears anything of it, and a mount that doesn't know of it
    /// yet is elsewhere.
    pub served: Option<Duration>,
}

#[derive(Default)]
struct Seen {
    tenures: Vec<Tenure>,
    /// The custody epochs that masters had sessions of.
    custodies: BTreeSet<u64>,
    /// Of each master, the custody epoch that it was in, and whether all of its sessions had answered that.
    settled: BTreeMap<String, (u64, bool)>,
    /// By epoch: of what its home had made by then it has said that another region has it.
    told: BTreeMap<u64, Duration>,
    /// The home of each epoch as masters knew it, and whether that epoch began because the home before was lost.
    agreed: BTreeMap<u64, (String, bool)>,
}

/// All tenures of a volume so far. Clones share them.
#[derive(Clone, Default)]
pub struct Homes {
    volume: VolumeId,
    seen: Arc<Mutex<Seen>>,
}

/// The epoch in which a master would let an answer leave now, by all that it asks before.
fn answers(master: &Master, volume: VolumeId) -> Option<u64> {
    let custody = master.serving_of(volume).ok()?;
    master.may_answer(custody).ok()?;
    master.is_home(volume).ok()?;
    master.global.as_ref()?.may_change(volume).map(|epoch| epoch.0)
}

/// By when another region has everything that was made, by what the home of a `region` volume says of its tail: what is younger is what a failover loses.
/// None where it says nothing, or the tail is so old that it doesn't know any more how old.
fn told_safe(master: &Master, volume: VolumeId, now: Duration) -> Option<Duration> {
    let view = master.geo.view()?;
    let bound = view.volumes.get(&volume)?.lag_max.unwrap_or(UNBOUNDED);
    let age = lag::tail(master, volume).age.filter(|age| *age <= bound * 2)?;
    let exact_to = (bound / SAMPLES).max(SAMPLE) * 2 + LOOKS + age / DRIFT;
    now.checked_sub(age + exact_to)
}

/// The home epoch that a custody epoch is of.
pub fn epoch_in(custody: u64) -> u64 {
    (custody >> TERM_BITS) + 1
}

impl Seen {
    /// Looks at what a master knows of the volume, and has of its sessions.
    fn look_at(&mut self, name: &str, master: &Master, volume: VolumeId) -> Result<(), String> {
        let view = master.geo.view();
        if let Some(known) = view.as_ref().and_then(|view| view.volumes.get(&volume)) {
            self.agreed
                .entry(known.epoch.0)
                .or_insert_with(|| (known.home.clone(), known.lost_home.is_some()));
        }
        let (custody, is_settled) = master.desk(|desk| (desk.seat(volume).custody, desk.is_settled(volume)));
        let Some(custody) = custody else { return Ok(()) };
        let (of, known) = (epoch_in(custody), master.epoch(volume).0);
        if of > known {
            return Err(format!(
                "{name} has sessions of volume {volume} in epoch {of}, and knows of epoch {known} as its newest"
            ));
        }
        self.custodies.insert(custody);
        let before = self.settled.insert(name.to_owned(), (custody, is_settled));
        if before == Some((custody, true)) && !is_settled {
            return Err(format!(
                "{name} waits for sessions of volume {volume}, of which all had answered that custodian ({custody}) before"
            ));
        }
        Ok(())
    }
}

impl Homes {
    /// Of a volume.
    pub fn of(volume: VolumeId) -> Self {
        Self { volume, ..Self::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all masters.
    pub fn check(&self, regions: &BTreeMap<String, Watch>, now: Duration) -> Result<(), String> {
        let checked = self.look(regions, now);
        checked.map_err(|what| format!("of volume {}: {what}", self.volume))
    }

    fn look(&self, regions: &BTreeMap<String, Watch>, now: Duration) -> Result<(), String> {
        let volume = self.volume;
        let seen = &mut *self.seen();
        let mut found: Vec<(u64, &String, bool)> = Vec::new();
        let mut looked = Ok(());
        for (region, watch) in regions {
            watch.each_master(|name, master| {
                let is_settled = || master.desk(|desk| desk.is_settled(volume));
                if let Some(epoch) = answers(master, volume) {
                    found.push((epoch, region, is_settled()));
                    let told = seen.told.entry(epoch).or_default();
                    *told = (*told).max(told_safe(master, volume, now).unwrap_or_default());
                }
                if looked.is_ok() {
                    looked = seen.look_at(name, master, volume);
                }
            });
        }
        looked?;
        if let [(epoch, one, _), (other_epoch, other, _), ..] = found[..]
            && one != other
        {
            return Err(format!(
                "two homes answer at the same instant: {one} in epoch {epoch} and {other} in epoch {other_epoch}"
            ));
        }
        let Some(&(epoch, region, is_settled)) = found.first() else { return Ok(()) };
        let all = &mut seen.tenures;
        if let Some(known) = all.iter_mut().find(|tenure| tenure.epoch == epoch) {
            if known.region != *region {
                return Err(format!("epoch {epoch} has two homes: {} and {region}", known.region));
            }
            known.until = now;
            known.served = known.served.or(is_settled.then_some(now));
            return Ok(());
        }
        if let Some(later) = all.iter().find(|tenure| tenure.epoch > epoch) {
            return Err(format!("{region} answers in epoch {epoch} after {later:?}"));
        }
        tracing::info!(%volume, epoch, region, ?now, "a home answers");
        let served = is_settled.then_some(now);
        all.push(Tenure { epoch, region: region.clone(), from: now, until: now, served });
        Ok(())
    }

    /// The tenure in which a call lay that was answered now in that region, if it lay in one.
    pub fn around(&self, region: &str, called: Duration, returned: Duration) -> Option<u64> {
        let seen = self.seen();
        let last = seen.tenures.last()?;
        let lay = last.served.is_some_and(|from| from <= called) && returned <= last.until + WAY;
        (last.region == region && lay).then_some(last.epoch)
    }

    /// All of them, in the order of their epochs.
    pub fn tenures(&self) -> Vec<Tenure> {
        self.seen().tenures.clone()
    }

    /// The newest epoch that answered.
    pub fn newest(&self) -> u64 {
        self.seen().tenures.last().map_or(0, |tenure| tenure.epoch)
    }

    /// Its home.
    pub fn home(&self) -> Option<String> {
        self.seen().tenures.last().map(|tenure| tenure.region.clone())
    }

    /// Whether the home was lost from one epoch to a later one.
    pub fn was_lost(&self, from: u64, to: u64) -> bool {
        from < to && self.seen().agreed.range(from + 1..=to).any(|(_, (_, is_lost))| *is_lost)
    }

    /// Whether nothing was lost from one epoch to another: they are the same, or the home was moved each time.
    pub fn kept(&self, from: u64, to: u64) -> bool {
        let seen = self.seen();
        let is_moved = |epoch: u64| {
            let (before, after) = (seen.agreed.get(&(epoch - 1)), seen.agreed.get(&epoch));
            before.zip(after).is_some_and(|((before, _), (after, is_lost))| before != after && !is_lost)
        };
        from <= to && (from + 1..=to).all(is_moved)
    }

    /// By epoch: of what was made by then its home has said that another region has it.
    pub fn told_safe(&self) -> BTreeMap<u64, Duration> {
        self.seen().told.clone()
    }

    /// Whether a master has had sessions in that custody epoch.
    pub fn has_had(&self, custody: u64) -> bool {
        self.seen().custodies.contains(&custody)
    }
}
