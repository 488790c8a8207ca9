//! How many requests are under way at once: so many of the mount, and of a volume that doesn't answer only a part of them, so that it doesn't keep the others'
//! from being read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_wire::VolumeId;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Waits for room, for good.
pub(crate) type Room = BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>;

/// Permits for requests.
#[derive(Debug)]
pub(crate) struct Permits {
    all: Arc<Semaphore>,
    /// Of a volume that doesn't answer.
    share: usize,
    taken: Mutex<BTreeMap<VolumeId, usize>>,
    warned: AtomicBool,
}

/// A request under way; it ends with the value.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    volume: VolumeId,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.taken(|taken| {
            if let Some(count) = taken.get_mut(&self.volume) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(&self.volume);
                }
            }
        });
    }
}

impl Permits {
    /// Permits for so many requests at once, three quarters of them for a volume that doesn't answer.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(most)),
            share: (most - most / 4).max(1),
            taken: Mutex::default(),
            warned: AtomicBool::new(false),
        })
    }

    fn taken<T>(&self, f: impl FnOnce(&mut BTreeMap<VolumeId, usize>) -> T) -> T {
        f(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A permit, for which `wait` waits where there is none. None where a volume has its share of them and doesn't answer: who asks then is told so at
    /// once.
    pub fn take(
        self: &Arc<Self>,
        volume: VolumeId,
        answers: impl FnOnce() -> bool,
        wait: impl FnOnce(Room) -> Result<OwnedSemaphorePermit, AcquireError>,
    ) -> Option<Permit> {
        let before = self.taken(|taken| taken.get(&volume).copied().unwrap_or(0));
        if before >= self.share && !answers() {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %volume,
                    requests = before,
                    "a volume doesn't answer, and so many requests wait for it that further ones are answered ETIMEDOUT at once; others go on"
                );
            }
            return None;
        }
        let place = match self.all.clone().try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => wait(self.all.clone().acquire_owned().boxed()).ok(),
        };
        self.taken(|taken| *taken.entry(volume).or_default() += 1);
        Some(Permit { permits: self.clone(), volume, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one without waiting.
    fn take(permits: &Arc<Permits>, volume: u16, answers: bool) -> Option<Permit> {
        permits.take(VolumeId(volume), || answers, |_| panic!("it would wait"))
    }

    #[test]
    fn a_volume_that_doesnt_answer_leaves_some_to_the_others() {
        let permits = Permits::new(8);
        let mut held: Vec<Permit> = (0..6).filter_map(|_| take(&permits, 7, false)).collect();
        assert_eq!(held.len(), 6);
        assert!(take(&permits, 7, false).is_none());
        held.extend((0..2).filter_map(|_| take(&permits, 0, false)));
        assert_eq!(held.len(), 8, "another one isn't concerned");
        held.truncate(5);
        assert!(take(&permits, 7, false).is_some(), "one of its own has ended");
    }

    #[test]
    fn one_that_answers_has_all_of_them_and_then_it_is_waited() {
        let permits = Permits::new(8);
        let held: Vec<Permit> = (0..8).filter_map(|_| take(&permits, 7, true)).collect();
        assert_eq!(held.len(), 8);
        let mut waited = false;
        let ninth = permits.take(
            VolumeId(0),
            || true,
            |_room| {
                waited = true;
                Ok(Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap())
            },
        );
        assert!(waited && ninth.is_some());
        drop((held, ninth));
        assert!(permits.taken(|taken| taken.is_empty()));
    }
}
