//! Which chunkservers lend files to this client, and which files it has: no sending, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_chunk::lent::HELD_FOR;
use tokio::time::Instant;

/// A loan that has lasted so long is renewed when it is next used, before it ends.
const RENEW_AFTER: Duration = Duration::from_secs(45);
/// A chunkserver that lends nothing isn't asked again for so long.
const FAR_FOR: Duration = Duration::from_secs(600);
/// A chunk that wasn't lent isn't asked for again for so long.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// One whose bytes were wrong.
const BAD_FOR: Duration = HELD_FOR;
/// Chunkservers, and chunks without a file, that are remembered.
const REMEMBERED_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nearness {
    Near,
    FarUntil(Instant),
    /// A first question is under way.
    Asked,
}

#[derive(Debug)]
enum Slot<C> {
    Asked,
    Held { chunk: C, since: Instant, used: u64, renewing: bool },
    Not { until: Instant },
}

/// What is known of a chunk's file at a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<C> {
    /// It is here. If told so, it is to be asked for again.
    Held(C, bool),
    /// It isn't; the caller is to ask for it.
    Ask,
    /// It, or whether the chunkserver lends at all, was asked for.
    Soon,
    /// It isn't, and nobody is to ask.
    Not,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<C> {
    /// The file.
    Lent(C),
    /// The chunkserver lends nothing to this client.
    Far,
    /// It lends, but not this chunk now.
    Refused,
    /// It didn't come to an answer.
    Failed,
}

/// Files that were lent, the ones used last.
#[derive(Debug)]
pub(crate) struct Shelf<C> {
    held_max: usize,
    servers: BTreeMap<String, Nearness>,
    chunks: BTreeMap<(u64, String), Slot<C>>,
    uses: u64,
}

impl<C: Clone> Shelf<C> {
    /// One for so many files.
    pub fn new(held_max: usize) -> Self {
        Self { held_max: held_max.max(1), servers: BTreeMap::new(), chunks: BTreeMap::new(), uses: 0 }
    }

    /// Files held.
    pub fn len(&self) -> usize {
        self.chunks.values().filter(|slot| matches!(slot, Slot::Held { .. })).count()
    }

    /// Whether the chunkserver at that address is known to lend.
    pub fn is_near(&self, address: &str) -> bool {
        self.servers.get(address) == Some(&Nearness::Near)
    }

    /// Looks for a chunk's file at a chunkserver. An `Ask` must be followed by [`Self::answered`].
    pub fn find(&mut self, chunk: u64, address: &str, now: Instant) -> Found<C> {
        let nearness = self.servers.get(address).copied();
        match nearness {
            Some(Nearness::Asked) => return Found::Soon,
            Some(Nearness::FarUntil(until)) if until > now => return Found::Not,
            _ => {}
        }
        self.uses += 1;
        let key = (chunk, address.to_owned());
        match self.chunks.get_mut(&key) {
            Some(Slot::Held { chunk, since, used, renewing }) if now < *since + HELD_FOR => {
                *used = self.uses;
                let renew = !*renewing && now >= *since + RENEW_AFTER;
                *renewing |= renew;
                return Found::Held(chunk.clone(), renew);
            }
            Some(Slot::Asked) => return Found::Soon,
            Some(Slot::Not { until }) if *until > now => return Found::Not,
            _ => {}
        }
        if !self.has_room(&key, now) {
            return Found::Not;
        }
        self.chunks.insert(key, Slot::Asked);
        if nearness != Some(Nearness::Near) {
            self.servers.insert(address.to_owned(), Nearness::Asked);
        }
        Found::Ask
    }

    fn has_room(&mut self, key: &(u64, String), now: Instant) -> bool {
        if self.chunks.len() >= REMEMBERED_MAX {
            self.sweep(now);
        }
        if self.servers.len() >= REMEMBERED_MAX {
            self.servers.retain(|_, nearness| *nearness != Nearness::Near);
        }
        (self.chunks.len() < REMEMBERED_MAX && self.servers.len() < REMEMBERED_MAX)
            || self.chunks.contains_key(key)
    }

    /// A question was answered, or came to nothing.
    pub fn answered(&mut self, chunk: u64, address: &str, now: Instant, outcome: Outcome<C>) {
        let nearness = match &outcome {
            Outcome::Lent(_) | Outcome::Refused => Some(Nearness::Near),
            Outcome::Far => Some(Nearness::FarUntil(now + FAR_FOR)),
            // What was known stays known.
            Outcome::Failed if self.is_near(address) => Some(Nearness::Near),
            Outcome::Failed => Some(Nearness::FarUntil(now + REFUSED_FOR)),
        };
        if let Some(nearness) = nearness {
            self.servers.insert(address.to_owned(), nearness);
        }
        let key = (chunk, address.to_owned());
        self.uses += 1;
        match (outcome, self.chunks.get_mut(&key)) {
            (Outcome::Lent(chunk), _) => {
                let held = Slot::Held { chunk, since: now, used: self.uses, renewing: false };
                self.chunks.insert(key, held);
                self.evict();
            }
            // A loan that wasn't renewed lasts until it ends.
            (Outcome::Refused | Outcome::Failed, Some(Slot::Held { .. })) => {}
            _ => drop(self.chunks.insert(key, Slot::Not { until: now + REFUSED_FOR })),
        }
    }

    fn evict(&mut self) {
        while self.len() > self.held_max {
            let oldest = self.chunks.iter().filter_map(|(key, slot)| match slot {
                Slot::Held { used, .. } => Some((*used, key)),
                _ => None,
            });
            let Some(oldest) = oldest.min().map(|(_, key)| key.clone()) else { return };
            self.chunks.remove(&oldest);
        }
    }

    /// A file's bytes were wrong or couldn't be read: it isn't used for a while.
    pub fn is_bad(&mut self, chunk: u64, address: &str, now: Instant) {
        self.chunks.insert((chunk, address.to_owned()), Slot::Not { until: now + BAD_FOR });
    }

    /// Drops what has lasted long enough.
    pub fn sweep(&mut self, now: Instant) {
        self.chunks.retain(|_, slot| match slot {
            Slot::Held { since, .. } => now < *since + HELD_FOR,
            Slot::Not { until } => *until > now,
            Slot::Asked => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: &str = "near:1";
    const FAR: &str = "far:1";

    fn held(shelf: &mut Shelf<u64>, chunk: u64, now: Instant) {
        assert!(matches!(shelf.find(chunk, NEAR, now), Found::Ask));
        shelf.answered(chunk, NEAR, now, Outcome::Lent(chunk));
    }

    #[test]
    fn a_chunkserver_is_asked_once_until_it_is_known() {
        let (mut shelf, now) = (Shelf::<u64>::new(4), Instant::now());
        assert_eq!(shelf.find(1, FAR, now), Found::Ask);
        assert_eq!((shelf.find(1, FAR, now), shelf.find(2, FAR, now)), (Found::Soon, Found::Soon));
        shelf.answered(1, FAR, now, Outcome::Far);
        assert_eq!(shelf.find(2, FAR, now + FAR_FOR - Duration::from_secs(1)), Found::Not);
        assert_eq!(shelf.find(2, FAR, now + FAR_FOR), Found::Ask);
        assert!(!shelf.is_near(FAR));
        held(&mut shelf, 1, now);
        assert!(shelf.is_near(NEAR));
        assert_eq!(shelf.find(2, NEAR, now), Found::Ask);
        shelf.answered(2, NEAR, now, Outcome::Failed);
        assert!(shelf.is_near(NEAR), "one question that failed makes nobody far");
    }

    #[test]
    fn a_loan_ends_and_is_renewed_before() {
        let (mut shelf, now) = (Shelf::new(4), Instant::now());
        held(&mut shelf, 1, now);
        assert_eq!(shelf.find(1, NEAR, now + RENEW_AFTER / 2), Found::Held(1, false));
        let later = now + RENEW_AFTER;
        assert_eq!(shelf.find(1, NEAR, later), Found::Held(1, true));
        assert_eq!(shelf.find(1, NEAR, later), Found::Held(1, false), "one question is enough");
        shelf.answered(1, NEAR, later, Outcome::Refused);
        assert_eq!(shelf.find(1, NEAR, later), Found::Held(1, false));
        assert_eq!(shelf.find(1, NEAR, now + HELD_FOR), Found::Ask, "and not a moment longer");
        shelf.answered(1, NEAR, now + HELD_FOR, Outcome::Lent(1));
        shelf.sweep(now + HELD_FOR * 2);
        assert_eq!(shelf.len(), 0);
    }

    #[test]
    fn what_wasnt_lent_or_was_wrong_is_left_alone_for_a_while() {
        let (mut shelf, now) = (Shelf::new(4), Instant::now());
        assert_eq!(shelf.find(1, NEAR, now), Found::Ask);
        shelf.answered(1, NEAR, now, Outcome::Refused);
        assert_eq!(shelf.find(1, NEAR, now), Found::Not);
        assert_eq!(shelf.find(1, NEAR, now + REFUSED_FOR), Found::Ask);
        shelf.answered(1, NEAR, now, Outcome::Lent(1));
        shelf.is_bad(1, NEAR, now);
        assert_eq!(shelf.find(1, NEAR, now + BAD_FOR - Duration::from_secs(1)), Found::Not);
        assert_eq!(shelf.find(1, NEAR, now + BAD_FOR), Found::Ask);
    }

    #[test]
    fn the_files_used_last_are_kept_and_no_more_is_remembered_than_that() {
        let (mut shelf, now) = (Shelf::new(2), Instant::now());
        held(&mut shelf, 1, now);
        assert_eq!(shelf.find(2, NEAR, now), Found::Ask);
        assert_eq!(shelf.find(2, NEAR, now), Found::Soon);
        shelf.answered(2, NEAR, now, Outcome::Lent(2));
        assert_eq!(shelf.find(1, NEAR, now), Found::Held(1, false));
        held(&mut shelf, 3, now);
        assert_eq!(shelf.len(), 2);
        assert_eq!(shelf.find(2, NEAR, now), Found::Ask, "2 was used longest ago");
        for chunk in 0..10_000 {
            if let Found::Ask = shelf.find(chunk, NEAR, now) {
                shelf.answered(chunk, NEAR, now, Outcome::Refused);
            }
        }
        assert!(shelf.chunks.len() <= REMEMBERED_MAX);
        assert!(matches!(shelf.find(20_000, NEAR, now + BAD_FOR), Found::Ask));
    }
}
