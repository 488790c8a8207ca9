//! Regions' leases: who counts from when, so that a holder stops before anyone takes its lease for run out.
//!
//! ```text
//!  holder   sent --------------- lease ---------------| stops
//!                 \          / answered
//!  leader          committed
//!                      \
//!  member        appended, applied later ---- patience(lease) ----| ran out
//! ```
//! A renewal is an entry of the global log. Its holder counts from before it sent it, each member from when that came into its own log, which is later. Clocks
//! run on through suspension and may differ in rate, by [`DRIFT`] from the true one at most; nobody's time of day counts.
//!
//! Three things make that enough:
//! - A judgement names the renewal that it is about, and an entry that follows from it is refused where another renewal came first
//!   ([`crate::rules::close_epoch`]). A member that is behind can't do harm by it.
//! - A renewal says what the cluster had agreed on when it was made, and counts only once the holder's copy is as new. So a region whose volumes
//!   were given to another one learns that before it believes in a lease again.
//! - A member that starts takes every lease for renewed at that moment: it doesn't know when it applied the last renewal. One that becomes the leader
//!   needn't: as a member it has timed all along, and what it applied late it times the longer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// The share by which a clock's rate differs from the true one at most.
pub const DRIFT: f64 = 0.01;

/// Renewals that wait at most until the holder's copy has caught up.
const WAITING_MAX: usize = 8;
/// Renewals of one region whose coming is remembered.
const APPENDED_MAX: usize = 64;

/// For how long a member waits for the next renewal of a lease: by the slowest holder's clock the lease is over when it has passed on the fastest
/// member's.
pub fn patience(lease: Duration) -> Duration {
    // A fiftieth more than (1 + DRIFT) / (1 - DRIFT) asks for, against rounding.
    lease.mul_f64((1.0 + DRIFT) / (1.0 - DRIFT) + DRIFT / 50.0)
}

/// A renewal that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    sent: BootTime,
    until: BootTime,
    version: u64,
}

/// What a region's leader holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// In the order of sending.
    held: VecDeque<Held>,
}

impl Holder {
    /// A renewal was answered that had been sent then. It counts once the holder's copy of the global store is of that version.
    pub fn renewed(&mut self, sent: BootTime, lease: Duration, version: u64) {
        if self.held.back().is_some_and(|newest| newest.sent >= sent) {
            return;
        }
        if self.held.len() == WAITING_MAX {
            self.held.pop_front();
        }
        self.held.push_back(Held { sent, until: sent.after(lease), version });
    }

    /// Until when the lease lasts, as far as the holder's copy, of that version, lets it count. In the past if it is over.
    pub fn until(&self, version: u64) -> Option<BootTime> {
        self.held.iter().rev().find(|held| held.version <= version).map(|held| held.until)
    }

    /// Whether the region holds its lease.
    pub fn is_valid(&self, now: BootTime, version: u64) -> bool {
        self.until(version).is_some_and(|until| now < until)
    }

    /// When the renewal was sent by which it is held: the holder's copy, of that version, has whatever was agreed on before.
    pub fn sent(&self, version: u64) -> Option<BootTime> {
        self.held.iter().rev().find(|held| held.version <= version).map(|held| held.sent)
    }

    /// Gives it up.
    pub fn forget(&mut self) {
        self.held.clear();
    }
}

/// What a member of the global group knows of the leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    seen: BTreeMap<String, Receipt>,
}

/// When renewals came into a member's log, applied or not: one that the leader of the global group made just before it was lost is applied only under the
/// next leader, seconds later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    at: BTreeMap<String, VecDeque<Receipt>>,
}

impl Appended {
    /// An entry that renews a region's lease comes into the log. Another leader may write the same renewal again: the later time counts, for either may be
    /// the one that is applied.
    pub fn append(&mut self, now: BootTime, region: &str, sequence: u64) {
        let of = self.at.entry(region.to_owned()).or_default();
        of.retain(|receipt| receipt.sequence != sequence);
        if of.len() == APPENDED_MAX {
            of.pop_front();
        }
        of.push_back(Receipt { sequence, at: now });
    }

    /// What came may have been cut off again, or replaced by something else: nothing of it is known.
    pub fn forget(&mut self) {
        self.at.clear();
    }

    /// When that renewal came, if it is known: not of what came before this member started, or in a snapshot.
    pub fn of(&self, region: &str, sequence: u64) -> Option<BootTime> {
        self.at.get(region)?.iter().find(|receipt| receipt.sequence == sequence).map(|receipt| receipt.at)
    }

    /// Regions that are no more.
    fn retain(&mut self, leases: &BTreeMap<String, u64>) {
        // One that has just joined isn't applied yet.
        if self.at.len() > leases.len() + APPENDED_MAX {
            self.at.retain(|region, _| leases.contains_key(region));
        }
    }
}

/// The latest renewal of a region that a member applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which.
    pub sequence: u64,
    /// When it came into the member's log, or later.
    pub at: BootTime,
}

impl Receipts {
    /// The leases as they are in the member's copy, which was read before `now`. Of a member that starts it is the first call.
    pub fn applied(&mut self, now: BootTime, leases: &BTreeMap<String, u64>, appended: &mut Appended) {
        self.seen.retain(|region, _| leases.contains_key(region));
        appended.retain(leases);
        for (region, sequence) in leases {
            let at = appended.of(region, *sequence).unwrap_or(now);
            let receipt = Receipt { sequence: *sequence, at };
            let known = self.seen.entry(region.clone()).or_insert(receipt);
            if known.sequence != *sequence {
                *known = receipt;
            }
        }
    }

    /// The latest renewal of a region.
    pub fn of(&self, region: &str) -> Option<Receipt> {
        self.seen.get(region).copied()
    }

    /// How long ago a region renewed its lease, at least.
    pub fn age(&self, region: &str, now: BootTime) -> Option<Duration> {
        self.of(region).map(|receipt| now.since(receipt.at))
    }

    /// Whether a region's lease has run out: answers the renewal that it ran out from.
    pub fn ran_out(&self, region: &str, now: BootTime, lease: Duration) -> Option<u64> {
        let receipt = self.of(region)?;
        (now.since(receipt.at) > patience(lease)).then_some(receipt.sequence)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    #[test]
    fn a_holder_counts_from_before_it_sent_and_only_what_its_copy_has_reached() {
        let mut holder = Holder::default();
        assert!(!holder.is_valid(at(0), 9));
        holder.renewed(at(100), LEASE, 3);
        assert!(!holder.is_valid(at(200), 2), "its copy is older than the renewal");
        assert!(holder.is_valid(at(10_099), 3) && !holder.is_valid(at(10_100), 3));
        // A newer one that isn't reached leaves the older one.
        holder.renewed(at(5_000), LEASE, 4);
        assert_eq!((holder.sent(2), holder.sent(3), holder.sent(4)), (None, Some(at(100)), Some(at(5_000))));
        assert_eq!(holder.until(3), Some(at(10_100)));
        assert_eq!(holder.until(4), Some(at(15_000)));
        // An answer that was overtaken says nothing new.
        holder.renewed(at(4_000), LEASE, 4);
        assert_eq!(holder.until(4), Some(at(15_000)));
        holder.forget();
        assert!(!holder.is_valid(at(5_001), 9));
    }

    #[test]
    fn a_member_times_from_its_own_receipt_of_each_renewal() {
        let leases = |a| BTreeMap::from([("a".to_owned(), a)]);
        let mut receipts = Receipts::default();
        receipts.applied(at(1_000), &leases(7), &mut Appended::default());
        receipts.applied(at(9_000), &leases(7), &mut Appended::default());
        assert_eq!(receipts.age("a", at(9_000)), Some(Duration::from_secs(8)));
        assert_eq!(receipts.ran_out("a", at(11_100), LEASE), None, "it has patience");
        assert_eq!(receipts.ran_out("a", at(11_300), LEASE), Some(7));
        let mut appended = Appended::default();
        appended.append(at(2_000), "a", 8);
        appended.append(at(2_500), "a", 8);
        receipts.applied(at(11_300), &leases(8), &mut appended);
        assert_eq!(receipts.age("a", at(11_300)), Some(Duration::from_millis(8_800)), "since it came, last");
        assert_eq!(receipts.ran_out("a", at(11_300), LEASE), None);
        appended.append(at(2_600), "a", 9);
        appended.forget();
        receipts.applied(at(11_400), &leases(9), &mut appended);
        assert_eq!(receipts.age("a", at(11_400)), Some(Duration::ZERO), "nobody knows when it came");
        receipts.applied(at(11_300), &BTreeMap::new(), &mut appended);
        assert_eq!(receipts.of("a"), None);
    }

    /// A clock that runs at its own rate.
    #[derive(Clone, Copy, Debug)]
    struct Rate(f64);

    impl Rate {
        fn at(self, real_ms: f64) -> BootTime {
            BootTime(Duration::from_secs_f64(real_ms * self.0 / 1_000.0 + 50.0))
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// Time passes, in real milliseconds.
        Pass(u16),
        /// The holder sends a renewal.
        Send,
        /// A renewal on its way is committed, or its answer arrives.
        Deliver(u8),
        /// The holder's copy gets an entry, or several.
        HolderApplies(u8),
        /// An entry comes into a member's log, or several; it may be that they aren't the ones that are applied.
        MemberAppends(u8, u8, bool),
        /// A member's copy gets an entry, or several.
        MemberApplies(u8, u8),
        /// A member judges the lease, and proposes to close the epoch where it ran out.
        Close(u8),
        /// A member that judged is only heard now.
        CloseLate(u8),
        /// A member starts anew.
        Restart(u8),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1_u16..4_000).prop_map(Event::Pass),
            3 => Just(Event::Send),
            5 => any::<u8>().prop_map(Event::Deliver),
            4 => (1_u8..5).prop_map(Event::HolderApplies),
            4 => (0_u8..3, 1_u8..5, any::<bool>()).prop_map(|(m, n, cut)| Event::MemberAppends(m, n, cut)),
            5 => (0_u8..3, 1_u8..5).prop_map(|(m, n)| Event::MemberApplies(m, n)),
            2 => (0_u8..3).prop_map(Event::Close),
            1 => (0_u8..3).prop_map(Event::CloseLate),
            1 => (0_u8..3).prop_map(Event::Restart),
        ]
    }

    #[derive(Clone, Copy)]
    enum Entry {
        Renewed,
        Closed,
    }

    enum Way {
        Request(BootTime),
        Answer(BootTime, u64),
    }

    struct Member {
        rate: Rate,
        came: usize,
        applied: usize,
        appended: Appended,
        receipts: Receipts,
        judged: Option<u64>,
    }

    /// The log, the holder, and members that time it.
    struct Model {
        real_ms: f64,
        log: Vec<Entry>,
        ways: Vec<Way>,
        rate: Rate,
        holder: Holder,
        holder_applied: usize,
        members: Vec<Member>,
    }

    impl Model {
        fn new(holder: f64, members: [f64; 3]) -> Self {
            let member = |rate| Member {
                rate: Rate(rate),
                came: 0,
                applied: 0,
                appended: Appended::default(),
                receipts: Receipts::default(),
                judged: None,
            };
            let mut model = Self {
                real_ms: 0.0,
                log: Vec::new(),
                ways: Vec::new(),
                rate: Rate(holder),
                holder: Holder::default(),
                holder_applied: 0,
                members: members.into_iter().map(member).collect(),
            };
            (0..3).for_each(|m| model.look(m));
            model
        }

        fn count(log: &[Entry]) -> (u64, u64) {
            let renewed = log.iter().filter(|e| matches!(e, Entry::Renewed)).count() as u64;
            (renewed, log.len() as u64 - renewed)
        }

        fn look(&mut self, m: usize) {
            let member = &mut self.members[m];
            let (sequence, _) = Self::count(&self.log[..member.applied]);
            let (now, leases) = (member.rate.at(self.real_ms), BTreeMap::from([("r".into(), sequence)]));
            member.receipts.applied(now, &leases, &mut member.appended);
        }

        fn append(&mut self, m: usize, upto: usize) {
            let member = &mut self.members[m];
            for end in member.came + 1..=upto {
                if let Entry::Renewed = self.log[end - 1] {
                    let (sequence, _) = Self::count(&self.log[..end]);
                    member.appended.append(member.rate.at(self.real_ms), "r", sequence);
                }
            }
            member.came = member.came.max(upto);
        }

        /// A close commits only if no other renewal came first.
        fn close(&mut self, judged: Option<u64>) {
            if judged == Some(Self::count(&self.log).0) {
                self.log.push(Entry::Closed);
            }
        }

        fn step(&mut self, event: Event) {
            match event {
                Event::Pass(ms) => self.real_ms += f64::from(ms),
                Event::Send => self.ways.push(Way::Request(self.rate.at(self.real_ms))),
                Event::Deliver(which) if !self.ways.is_empty() => {
                    let which = usize::from(which) % self.ways.len();
                    match self.ways.swap_remove(which) {
                        Way::Request(sent) => {
                            self.log.push(Entry::Renewed);
                            self.ways.push(Way::Answer(sent, Self::count(&self.log).1));
                        }
                        Way::Answer(sent, version) => self.holder.renewed(sent, LEASE, version),
                    }
                }
                Event::Deliver(_) => {}
                Event::HolderApplies(n) => {
                    self.holder_applied = (self.holder_applied + usize::from(n)).min(self.log.len());
                }
                Event::MemberAppends(m, n, cut) => {
                    let (came, (renewed, _)) = (self.members[usize::from(m)].came, Self::count(&self.log));
                    let upto = (came + usize::from(n)).min(self.log.len());
                    self.append(m.into(), upto);
                    let member = &mut self.members[usize::from(m)];
                    if cut && upto == self.log.len() {
                        // Of a leader that nobody follows: something that is never applied, then it is cut off.
                        member.appended.append(member.rate.at(self.real_ms), "r", renewed + 1);
                        member.appended.forget();
                    }
                }
                Event::MemberApplies(m, n) => {
                    let upto = (self.members[usize::from(m)].applied + usize::from(n)).min(self.log.len());
                    self.append(m.into(), upto);
                    let member = &mut self.members[usize::from(m)];
                    member.applied = (member.applied + usize::from(n)).min(self.log.len());
                    self.look(m.into());
                }
                Event::Close(m) => {
                    let member = &mut self.members[usize::from(m)];
                    let now = member.rate.at(self.real_ms);
                    member.judged = member.receipts.ran_out("r", now, LEASE);
                    let judged = member.judged;
                    self.close(judged);
                }
                Event::CloseLate(m) => {
                    let judged = self.members[usize::from(m)].judged;
                    self.close(judged);
                }
                Event::Restart(m) => {
                    self.members[usize::from(m)].receipts = Receipts::default();
                    self.members[usize::from(m)].appended = Appended::default();
                    self.members[usize::from(m)].judged = None;
                    self.look(m.into());
                }
            }
        }

        /// Whoever believes in its lease knows of every close there is.
        fn is_safe(&self) -> bool {
            let (_, known) = Self::count(&self.log[..self.holder_applied]);
            let (_, closed) = Self::count(&self.log);
            known == closed || !self.holder.is_valid(self.rate.at(self.real_ms), known)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]
        #[test]
        fn no_holder_believes_in_its_lease_once_a_member_acted_on_its_end(
            holder in 0.99..1.01, members in proptest::array::uniform3(0.99..1.01),
            events in proptest::collection::vec(event(), 1..120),
        ) {
            let mut model = Model::new(holder, members);
            for event in events {
                model.step(event.clone());
                prop_assert!(model.is_safe(), "after {event:?} at {} ms", model.real_ms);
            }
        }
    }

    /// The model finds what it is for: a member without patience for slower clocks acts while the holder still believes.
    #[test]
    fn the_slowest_holder_and_the_fastest_member_are_told_apart() {
        let (slow, fast) = (Rate(0.99), Rate(1.01));
        let mut holder = Holder::default();
        holder.renewed(slow.at(0.0), LEASE, 0);
        let mut receipts = Receipts::default();
        receipts.applied(fast.at(0.0), &BTreeMap::from([("r".into(), 1)]), &mut Appended::default());
        let mut bare = 0;
        for real_ms in 0..12_000 {
            let real_ms = f64::from(real_ms);
            let holds = holder.is_valid(slow.at(real_ms), 0);
            assert!(!holds || receipts.ran_out("r", fast.at(real_ms), LEASE).is_none(), "{real_ms}");
            bare += u32::from(holds && receipts.age("r", fast.at(real_ms)).unwrap() > LEASE);
        }
        assert!(bare > 100, "without patience they would overlap");
    }
}
