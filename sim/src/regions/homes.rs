//! Who may change the volume: at most one region at any instant, and one in each epoch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::master::Master;

use crate::watch::Watch;

/// An answer that arrives now left so long ago at least.
const WAY: Duration = Duration::from_millis(2);

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
}

/// All tenures so far. Clones share them.
#[derive(Clone, Default)]
pub struct Homes(Arc<Mutex<Vec<Tenure>>>);

/// The epoch in which a master would let an answer leave now, by all that it asks before.
fn answers(master: &Master) -> Option<u64> {
    let custody = master.serving().ok()?;
    master.may_answer(custody).ok()?;
    master.is_home(ROOT_VOLUME).ok()?;
    master.global.as_ref()?.may_change(ROOT_VOLUME).map(|epoch| epoch.0)
}

impl Homes {
    fn all(&self) -> MutexGuard<'_, Vec<Tenure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all masters.
    pub fn check(&self, regions: &BTreeMap<String, Watch>, now: Duration) -> Result<(), String> {
        let mut found: Vec<(u64, &String)> = Vec::new();
        for (region, watch) in regions {
            watch.each_master(|_, master| found.extend(answers(master).map(|epoch| (epoch, region))));
        }
        if let [(epoch, one), (other_epoch, other), ..] = found[..]
            && one != other
        {
            return Err(format!(
                "two homes answer at the same instant: {one} in epoch {epoch} and {other} in epoch {other_epoch}"
            ));
        }
        let Some(&(epoch, region)) = found.first() else { return Ok(()) };
        let mut all = self.all();
        if let Some(known) = all.iter_mut().find(|tenure| tenure.epoch == epoch) {
            if known.region != *region {
                return Err(format!("epoch {epoch} has two homes: {} and {region}", known.region));
            }
            known.until = now;
            return Ok(());
        }
        if let Some(later) = all.iter().find(|tenure| tenure.epoch > epoch) {
            return Err(format!("{region} answers in epoch {epoch} after {later:?}"));
        }
        tracing::info!(epoch, region, ?now, "a home answers");
        all.push(Tenure { epoch, region: region.clone(), from: now, until: now });
        Ok(())
    }

    /// The tenure in which a call lay that was answered now in that region, if it lay in one.
    pub fn around(&self, region: &str, called: Duration, returned: Duration) -> Option<u64> {
        let all = self.all();
        let last = all.last()?;
        (last.region == region && last.from <= called && returned <= last.until + WAY).then_some(last.epoch)
    }

    /// All of them, in the order of their epochs.
    pub fn tenures(&self) -> Vec<Tenure> {
        self.all().clone()
    }

    /// The newest epoch that answered.
    pub fn newest(&self) -> u64 {
        self.all().last().map_or(0, |tenure| tenure.epoch)
    }

    /// Its home.
    pub fn home(&self) -> Option<String> {
        self.all().last().map(|tenure| tenure.region.clone())
    }
}
