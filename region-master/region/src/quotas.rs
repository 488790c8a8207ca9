//! What the custodian keeps in mind of quotas: limits, what may commit and isn't counted yet (*flights*), what sessions were promised (*escrow*). A plain
//! state machine; whoever drives it reads what counts from the store, after a flight has begun.
//!
//! Both a session and the custodian count what was ever granted and what was ever spent or given back: a message that comes twice or late changes
//! nothing. What is left is the escrow.

use std::collections::BTreeMap;

use mooseng_wire::SessionId;

/// Of what is granted beyond what is needed: a share of what is left, so that others get some, too.
const SHARE: u64 = 4;
/// Of what an account has left, a session's escrow with it, that escrow is at most one part in so many: others always get some. Who gets no more
/// doesn't buffer, and writes as long as there is room.
const OF_ONE: u64 = 2;
/// What a session's escrow may come to however little is left: as much as one write of a mount.
const ONE_WRITE: u64 = 1 << 20;

/// What an account may have at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Inodes.
    pub inodes: Option<u64>,
}

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub bytes: i64,
    /// Inodes.
    pub inodes: i64,
}

/// What an account's room comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fits.
    Fits,
    /// It would fit but for what others were promised, or may be committing.
    Later,
    /// It doesn't.
    Over,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    granted: u64,
    spent: u64,
}

impl Held {
    fn left(self) -> u64 {
        self.granted.saturating_sub(self.spent)
    }
}

#[derive(Clone, Debug)]
struct Flight<A> {
    /// The session, if the change is of what it buffered: its escrow is there for it.
    covered_by: Option<SessionId>,
    /// It was found to fit: it may have committed.
    admitted: bool,
    adds: BTreeMap<A, Amount>,
}

/// Names a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlightId(u64);

/// What one session's escrow may come to of so many bytes.
fn most_of(bytes: u64) -> u64 {
    (bytes / OF_ONE).max(ONE_WRITE)
}

/// The custodian's ledger, by accounts of some kind.
#[derive(Clone, Debug)]
pub struct Ledger<A> {
    /// Changes with each change of a limit, and with each custodian: what sessions know of accounts without limits is true of one of these.
    version: u64,
    limits: BTreeMap<A, Limit>,
    held: BTreeMap<(SessionId, A), Held>,
    flights: BTreeMap<FlightId, Flight<A>>,
    last: u64,
}

impl<A: Copy + Ord> Default for Ledger<A> {
    fn default() -> Self {
        Self { version: 0, limits: BTreeMap::new(), held: BTreeMap::new(), flights: BTreeMap::new(), last: 0 }
    }
}

impl<A: Copy + Ord> Ledger<A> {
    /// A new custodian's, with the limits on record.
    pub fn begin(&mut self, term: u64, limits: BTreeMap<A, Limit>) {
        *self = Self { version: term << 24, limits, last: self.last, ..Self::default() };
    }

    /// The limits anew, of an interrupted custodian that goes on or after they were changed.
    pub fn set_limits(&mut self, limits: BTreeMap<A, Limit>) {
        if limits != self.limits {
            self.version += 1;
            self.limits = limits;
        }
    }

    /// What sessions know of accounts without limits is true of this version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether an account has a limit.
    pub fn is_limited(&self, account: A) -> bool {
        self.limits.contains_key(&account)
    }

    /// How many accounts have.
    pub fn limited(&self) -> usize {
        self.limits.len()
    }

    /// Bytes that sessions are promised.
    pub fn escrow(&self) -> u64 {
        self.held.values().fold(0, |sum, held| sum.saturating_add(held.left()))
    }

    /// A change may commit from now on that adds so much. None where no limit concerns it: then nothing has to be read.
    pub fn take_off(
        &mut self,
        covered_by: Option<SessionId>,
        adds: impl IntoIterator<Item = (A, Amount)>,
    ) -> Option<FlightId> {
        let grows = |amount: &Amount| amount.bytes > 0 || amount.inodes > 0;
        let limited = |(account, amount): &(A, Amount)| grows(amount) && self.limits.contains_key(account);
        let adds: BTreeMap<A, Amount> = adds.into_iter().filter(limited).collect();
        if adds.is_empty() {
            return None;
        }
        self.last += 1;
        let id = FlightId(self.last);
        self.flights.insert(id, Flight { covered_by, admitted: false, adds });
        Some(id)
    }

    /// The accounts of a flight.
    pub fn accounts(&self, id: FlightId) -> Vec<A> {
        self.flights.get(&id).map(|flight| flight.adds.keys().copied().collect()).unwrap_or_default()
    }

    /// What others than a flight may still add to its accounts. To be asked before it is read what counts: what lands in between is in one of the two.
    pub fn reserved_beside(&self, id: FlightId) -> BTreeMap<A, Amount> {
        let accounts = self.accounts(id).into_iter();
        accounts.map(|account| (account, self.reserved(account, Some(id)))).collect()
    }

    /// Whether a flight fits into what is left, with what others might add at a moment after it had taken off, and what counted after that. One that fits
    /// may commit from then on.
    pub fn fits(
        &mut self,
        id: FlightId,
        reserved: &BTreeMap<A, Amount>,
        used: &BTreeMap<A, Amount>,
    ) -> Verdict {
        let verdict = self.verdict(id, reserved, used);
        if let Some(flight) = self.flights.get_mut(&id).filter(|_| verdict == Verdict::Fits) {
            flight.admitted = true;
        }
        verdict
    }

    fn verdict(&self, id: FlightId, reserved: &BTreeMap<A, Amount>, used: &BTreeMap<A, Amount>) -> Verdict {
        let Some(flight) = self.flights.get(&id) else { return Verdict::Over };
        let mut verdict = Verdict::Fits;
        for (account, add) in &flight.adds {
            let Some(limit) = self.limits.get(account) else { continue };
            let used = used.get(account).copied().unwrap_or_default();
            let over = |others: Amount| {
                let over = |max: Option<u64>, used: i64, others: i64, add: i64| {
                    let sum = i128::from(used.max(0)) + i128::from(others) + i128::from(add);
                    add > 0 && max.is_some_and(|max| sum > i128::from(max))
                };
                over(limit.bytes, used.bytes, others.bytes, add.bytes)
                    || over(limit.inodes, used.inodes, others.inodes, add.inodes)
            };
            if over(Amount::default()) {
                return Verdict::Over;
            }
            if over(reserved.get(account).copied().unwrap_or_default()) {
                verdict = Verdict::Later;
            }
        }
        verdict
    }

    /// What others than this flight may still add to an account. A session's covered flights are part of its escrow, as far as that reaches. Of those
    /// that wait for room without cover only the earlier ones count, and none against what is covered: whoever came first, or was promised room, isn't
    /// kept waiting by them; when they are judged, they count whoever was before them.
    fn reserved(&self, account: A, but: Option<FlightId>) -> Amount {
        let own = but.and_then(|id| self.flights.get(&id)).and_then(|flight| flight.covered_by);
        let mut sum = Amount::default();
        let mut covered: BTreeMap<SessionId, i64> = BTreeMap::new();
        for (id, flight) in self.flights.iter().filter(|(id, _)| Some(**id) != but) {
            let Some(add) = flight.adds.get(&account) else { continue };
            let behind = but.is_some_and(|but| own.is_some() || *id > but);
            if flight.covered_by.is_none() && !flight.admitted && behind {
                continue;
            }
            sum.inodes = sum.inodes.saturating_add(add.inodes.max(0));
            match flight.covered_by {
                // Those of the session itself don't hide behind its escrow, which isn't counted.
                Some(session) if Some(session) != own => {
                    let covered = covered.entry(session).or_default();
                    *covered = covered.saturating_add(add.bytes.max(0));
                }
                _ => sum.bytes = sum.bytes.saturating_add(add.bytes.max(0)),
            }
        }
        for ((session, of), held) in &self.held {
            if *of == account && Some(*session) != own {
                let most = covered.entry(*session).or_default();
                *most = (*most).max(i64::try_from(held.left()).unwrap_or(i64::MAX));
            }
        }
        sum.bytes = covered.values().fold(sum.bytes, |sum, bytes| sum.saturating_add(*bytes));
        sum
    }

    /// A flight is over: what it added counts by now if it `committed`; else it never will, or that isn't known. What was covered by escrow is spent, as
    /// far as it is known here: the session will say that it has spent as much, or more.
    pub fn land(&mut self, id: FlightId, committed: bool) {
        let Some(Flight { covered_by: Some(session), adds, .. }) = self.flights.remove(&id) else { return };
        for (account, add) in adds.into_iter().filter(|_| committed) {
            if let Some(held) = self.held.get_mut(&(session, account)) {
                let spent = held.spent.saturating_add(u64::try_from(add.bytes).unwrap_or(0));
                held.spent = spent.min(held.granted);
            }
        }
    }

    /// Promises a session at least `needed` bytes of an account, if there is room and it keeps some for others, and up to `wish`; `known` is what it knows to
    /// have been granted. A flight of that much must be under way, with what others might add beside it and what counted after. Answers what was granted in
    /// all, and whether what is new of it is enough.
    pub fn grant(
        &mut self,
        session: SessionId,
        account: A,
        known: u64,
        (needed, wish): (u64, u64),
        (reserved, used): (Amount, Amount),
    ) -> (u64, bool) {
        let Some(limit) = self.limits.get(&account) else { return (known, true) };
        let free = match limit.bytes {
            None => u64::MAX,
            Some(max) => {
                let taken = used.bytes.max(0).saturating_add(reserved.bytes.max(0));
                max.saturating_sub(u64::try_from(taken).unwrap_or(0))
            }
        };
        let held = self.held.entry((session, account)).or_default();
        // Nobody knows of more than was granted, or accepted when it was declared.
        let known = known.min(held.granted);
        // An answer that was lost has granted it already.
        let new = held.granted - known;
        let missing = needed.saturating_sub(new);
        let left = held.left();
        let room = free.min(most_of(free.saturating_add(left)).saturating_sub(left));
        if missing > 0 && missing <= room {
            let more = missing.max(wish.saturating_sub(new).min(free / SHARE)).min(room);
            held.granted = held.granted.saturating_add(more);
        }
        (held.granted, held.granted - known >= needed)
    }

    /// A session says what it has spent, or gives back, of what was ever granted.
    pub fn spent(&mut self, session: SessionId, account: A, spent: u64) {
        if let Some(held) = self.held.get_mut(&(session, account)) {
            held.spent = held.spent.max(spent.min(held.granted));
        }
    }

    /// A session says what it knows to have been granted and what it has spent, and knows of nothing else. A custodian that isn't new knows what it
    /// has granted; one that is believes it no more than there can be of one session's.
    pub fn declare(
        &mut self,
        session: SessionId,
        is_new: bool,
        told: impl IntoIterator<Item = (A, u64, u64)>,
    ) {
        let before = std::mem::take(&mut self.held);
        let known = |account: A| before.get(&(session, account)).copied().unwrap_or_default();
        self.held = before.iter().filter(|((of, _), _)| *of != session).map(|(k, v)| (*k, *v)).collect();
        for (account, granted, spent) in told {
            let (granted, spent) = match is_new {
                true => {
                    let most = self.limits.get(&account).and_then(|limit| limit.bytes).map(most_of);
                    (granted, spent.max(granted.saturating_sub(most.unwrap_or(u64::MAX))))
                }
                false => (granted.min(known(account).granted), spent.max(known(account).spent)),
            };
            self.held.insert((session, account), Held { granted, spent: spent.min(granted) });
        }
    }

    /// A session is over, or has lost what it held.
    pub fn forget(&mut self, session: SessionId) {
        self.held.retain(|(of, _), _| *of != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn ledger(bytes: u64) -> Ledger<u8> {
        let mut ledger = Ledger::default();
        ledger.begin(1, [(7, Limit { bytes: Some(bytes), inodes: Some(3) })].into());
        ledger
    }

    fn bytes(bytes: i64) -> Amount {
        Amount { bytes, inodes: 0 }
    }

    fn fits(l: &mut Ledger<u8>, id: FlightId, counted: i64) -> Verdict {
        let reserved = l.reserved_beside(id);
        l.fits(id, &reserved, &used(counted))
    }

    fn grant(l: &mut Ledger<u8>, who: SessionId, known: u64, wish: (u64, u64), counted: i64) -> (u64, bool) {
        let most = wish.0.max(wish.1) as i64;
        let Some(flight) = l.take_off(None, [(7, bytes(most))]) else { return (known, true) };
        let reserved = l.reserved_beside(flight)[&7];
        let granted = l.grant(who, 7, known, wish, (reserved, bytes(counted)));
        l.land(flight, false);
        granted
    }

    fn used(n: i64) -> BTreeMap<u8, Amount> {
        [(7, bytes(n))].into()
    }

    #[test]
    fn what_others_hold_is_not_there_for_one() {
        let mut l = ledger(100);
        assert_eq!(grant(&mut l, A, 0, (10, 80), 20), (20, true), "a quarter of what is left");
        let flight = l.take_off(None, [(7, bytes(61))]).unwrap();
        assert_eq!(fits(&mut l, flight, 20), Verdict::Later);
        assert_eq!(fits(&mut l, flight, 40), Verdict::Over);
        l.spent(A, 7, 1);
        assert_eq!(fits(&mut l, flight, 20), Verdict::Fits);
        // It is on its way: nobody else gets that.
        assert_eq!(grant(&mut l, B, 0, (1, 1), 20), (0, false));
        l.land(flight, false);
        assert_eq!(grant(&mut l, B, 0, (1, 1), 20), (1, true));
        l.forget(A);
        assert_eq!(l.escrow(), 1);
    }

    /// What only waits for room kept away what had been promised it, and all who waited kept each other away.
    #[test]
    fn who_waits_without_cover_keeps_nobody_waiting_who_came_before_or_is_covered() {
        let mut l = ledger(100);
        assert_eq!(grant(&mut l, A, 0, (40, 40), 60), (40, true));
        let waits = l.take_off(None, [(7, bytes(30))]).unwrap();
        assert_eq!(fits(&mut l, waits, 60), Verdict::Later);
        let covered = l.take_off(Some(A), [(7, bytes(40))]).unwrap();
        assert_eq!(fits(&mut l, covered, 60), Verdict::Fits);
        assert_eq!(fits(&mut l, waits, 60), Verdict::Later);
        l.land(covered, false);
        l.forget(A);
        let behind = l.take_off(None, [(7, bytes(30))]).unwrap();
        assert_eq!(fits(&mut l, behind, 60), Verdict::Later, "the one before it may need the room");
        assert_eq!(fits(&mut l, waits, 60), Verdict::Fits);
        let third = l.take_off(None, [(7, bytes(10))]).unwrap();
        assert_eq!(fits(&mut l, third, 60), Verdict::Later);
        l.land(behind, false);
        assert_eq!(fits(&mut l, third, 60), Verdict::Fits);
    }

    #[test]
    fn a_session_is_believed_no_more_than_it_was_granted() {
        let mut l = ledger(100);
        assert_eq!(grant(&mut l, A, u64::MAX, (10, 10), 0), (10, true));
        assert_eq!(l.escrow(), 10);
    }

    #[test]
    fn one_session_doesnt_hold_all_that_is_left_of_an_account() {
        const MIB: u64 = 1 << 20;
        let mut l = ledger(100 * MIB);
        assert_eq!(grant(&mut l, A, 0, (100 * MIB, 100 * MIB), 0), (0, false));
        assert_eq!(grant(&mut l, A, 0, (50 * MIB, 50 * MIB), 0), (50 * MIB, true));
        assert_eq!(grant(&mut l, A, 50 * MIB, (1, MIB), 0), (50 * MIB, false), "it has its half");
        assert_eq!(grant(&mut l, B, 0, (26 * MIB, 0), 0), (0, false));
        assert_eq!(grant(&mut l, B, 0, (25 * MIB, 0), 0), (25 * MIB, true), "half of what is left");
        let through = l.take_off(None, [(7, bytes(25 * MIB as i64))]).unwrap();
        assert_eq!(fits(&mut l, through, 0), Verdict::Fits, "whoever has none finds room");
        l.land(through, false);
        // What it has spent isn't held.
        l.spent(A, 7, 50 * MIB);
        let counted = 50 * MIB as i64;
        assert_eq!(grant(&mut l, A, 50 * MIB, (12 * MIB, 0), counted), (62 * MIB, true));
        // Of little that is left a write gets all.
        l.forget(A);
        l.forget(B);
        let counted = (99 * MIB + MIB / 2) as i64;
        assert_eq!(grant(&mut l, A, 0, (MIB / 2, MIB), counted), (MIB / 2, true));
        // A new custodian knows nothing, and is told anything.
        l.begin(2, [(7, Limit { bytes: Some(100 * MIB), inodes: None })].into());
        l.declare(A, true, [(7, u64::MAX, 5)]);
        assert_eq!(l.escrow(), 50 * MIB);
        l.declare(B, true, [(7, 40 * MIB, 5), (8, u64::MAX, 0)]);
        l.forget(A);
        l.spent(B, 8, u64::MAX);
        assert_eq!(l.escrow(), 40 * MIB - 5);
    }

    #[test]
    fn what_was_buffered_has_its_room() {
        let mut l = ledger(100);
        assert_eq!(grant(&mut l, A, 0, (100, 100), 0), (100, true));
        let first = l.take_off(Some(A), [(7, bytes(60))]).unwrap();
        let second = l.take_off(Some(A), [(7, bytes(40))]).unwrap();
        for flight in [first, second] {
            assert_eq!(fits(&mut l, flight, 0), Verdict::Fits);
        }
        // Through: its own escrow is for what it has buffered.
        let through = l.take_off(None, [(7, bytes(1))]).unwrap();
        assert_eq!(fits(&mut l, through, 0), Verdict::Later);
        assert_eq!(l.take_off(None, [(7, bytes(-5)), (8, bytes(5))]), None, "nothing limited grows");
    }

    #[test]
    fn messages_that_come_twice_or_late_change_nothing() {
        let mut l = ledger(100);
        assert_eq!(grant(&mut l, A, 0, (10, 0), 0), (10, true));
        assert_eq!(grant(&mut l, A, 0, (10, 0), 0), (10, true), "the answer was lost");
        l.spent(A, 7, 8);
        l.spent(A, 7, 3);
        l.spent(A, 7, 99);
        assert_eq!(l.escrow(), 0, "no more than was granted");
        l.declare(A, true, [(7, 30, 5)]);
        assert_eq!(l.escrow(), 25);
        assert_eq!(grant(&mut l, A, 30, (80, 0), 0), (30, false));
        l.declare(A, false, [(7, 90, 1), (8, 5, 0)]);
        assert_eq!(l.escrow(), 25, "the same custodian knows better");
    }

    proptest! {
        /// Two sessions with buffers, changes that go through, and an account: what counts never exceeds the limit, and what was buffered under escrow
        /// always fits.
        #[test]
        fn nothing_exceeds_the_limit(steps in prop::collection::vec((0..2u64, 0..5u8, 1..40u64), 0..200)) {
            let mut l = ledger(100);
            let mut counted = 0_i64;
            let mut clients = [(0_u64, 0_u64, 0_u64); 2];
            for (who, what, n) in steps {
                let session = SessionId(who + 1);
                let (granted, spent, buffered) = &mut clients[who as usize];
                match what {
                    0 => {
                        let (all, enough) = grant(&mut l, session, *granted, (n, 2 * n), counted);
                        prop_assert!(!enough || all >= *granted + n);
                        *granted = all;
                    }
                    1 => *buffered += n.min(*granted - *spent - *buffered),
                    2 if *buffered > 0 => {
                        let n = n.min(*buffered);
                        let flight = l.take_off(Some(session), [(7, bytes(n as i64))]).unwrap();
                        prop_assert_eq!(fits(&mut l, flight, counted), Verdict::Fits);
                        counted += n as i64;
                        l.land(flight, true);
                        (*buffered, *spent) = (*buffered - n, *spent + n);
                    }
                    3 => {
                        let flight = l.take_off(None, [(7, bytes(n as i64))]).unwrap();
                        if fits(&mut l, flight, counted) == Verdict::Fits {
                            counted += n as i64;
                        }
                        l.land(flight, true);
                    }
                    _ => {
                        if n % 3 == 0 {
                            *spent = *granted - *buffered;
                        }
                        if n % 5 == 0 {
                            l.begin(n, [(7, Limit { bytes: Some(100), inodes: None })].into());
                            for (i, (granted, spent, _)) in clients.iter().enumerate() {
                                l.declare(SessionId(i as u64 + 1), true, [(7, *granted, *spent)]);
                            }
                        } else {
                            l.spent(session, 7, clients[who as usize].1);
                        }
                    }
                }
                let held: u64 = clients.iter().map(|(granted, spent, _)| granted - spent).sum();
                prop_assert!(counted + held as i64 <= 100);
                prop_assert!(l.escrow() >= held);
            }
        }
    }
}
