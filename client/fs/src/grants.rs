//! Locks that are waited for: the custodian says when one was granted, under the number that the wait got here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::Role;
use mooseng_wire::method::Method;
use mooseng_wire::session::AnswerRecalls;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::session::{Seat, Session};

/// A master gets this long to take an answer. It asks again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(700);

/// All waits of a session.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    last: AtomicU64,
    waits: Mutex<BTreeMap<u64, Arc<Granted>>>,
}

/// Whether a wait was granted.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    is: AtomicBool,
    told: Notify,
}

impl Granted {
    /// Returns once it was granted. That is said once: the wait may be asked for anew.
    pub async fn wait(&self) {
        while !self.is.swap(false, Ordering::AcqRel) {
            self.told.notified().await;
        }
    }

    /// What was said before counts no more.
    pub fn forget(&self) {
        self.is.store(false, Ordering::Release);
    }
}

/// A wait's number, and its place among the others until it is dropped.
pub(crate) struct Waiting {
    grants: Arc<Grants>,
    /// Never given twice in a session.
    pub number: u64,
    pub granted: Arc<Granted>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.grants.map(|waits| waits.remove(&self.number));
    }
}

impl Grants {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<Granted>>) -> T) -> T {
        f(&mut self.waits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a wait.
    pub fn begin(self: &Arc<Self>) -> Waiting {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let granted = Arc::new(Granted::default());
        self.map(|waits| waits.insert(number, granted.clone()));
        Waiting { grants: self.clone(), number, granted }
    }

    /// These were granted. Of a wait that is over nothing is known, and nothing need be.
    pub fn granted(&self, numbers: &[u64]) {
        self.map(|waits| {
            for granted in numbers.iter().filter_map(|number| waits.get(number)) {
                granted.is.store(true, Ordering::Release);
                granted.told.notify_one();
            }
        });
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.map(|waits| waits.len())
    }
}

impl Session {
    /// Says to the custodian that these grants were heard of.
    pub async fn heard(&self, seat: Seat, locks: Vec<u64>) {
        let answer = AnswerRecalls {
            session: seat.session,
            incarnation: seat.incarnation,
            custody_epoch: seat.custody_epoch,
            numbers: Vec::new(),
            oldest_unanswered: self.settled.load(Ordering::Acquire),
            locks,
        };
        let body = answer.encode_to_vec().into();
        let told = self
            .peers
            .call(Role::Master, &seat.leader, Method::AnswerRecalls, body, Bytes::new(), ANSWER_TIMEOUT)
            .await;
        if let Err(failure) = told {
            tracing::debug!(%failure, "an answer to grants was lost; the master says them again");
        }
    }

    /// Returns once there is another custodian than that of this epoch, or the session has another life.
    pub async fn moved_on(&self, custody_epoch: u64, life: (u64, u64)) {
        let mut after = 0;
        loop {
            let until = Instant::now() + Duration::from_secs(3600);
            let Some(seat) = self.seat(after, until).await else {
                if self.is_shut_down() {
                    return;
                }
                continue;
            };
            if seat.custody_epoch != custody_epoch || (seat.session, seat.incarnation) != life {
                return;
            }
            after = seat.confirmed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_grant_is_heard_by_its_wait_and_by_nobody_later() {
        let grants = Arc::new(Grants::default());
        let (first, second) = (grants.begin(), grants.begin());
        assert_eq!((first.number, second.number, grants.len()), (1, 2, 2));
        grants.granted(&[2, 7]);
        second.granted.wait().await;
        grants.granted(&[1]);
        first.granted.forget();
        let waited = tokio::time::timeout(Duration::from_millis(20), first.granted.wait()).await;
        assert!(waited.is_err(), "it was asked for anew since");
        drop((first, second));
        assert_eq!(grants.len(), 0);
    }
}
