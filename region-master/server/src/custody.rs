//! What of a master's memory a custodian begins with and ends with, for each volume by itself: its sessions, what they are promised and owe. A volume whose
//! leader or home changes leaves the others' as they are.

use std::collections::BTreeMap;

use mooseng_ports::clock::BootTime;
use mooseng_ports::plant::{self, Plant};
use mooseng_region::quotas::Limit;
use mooseng_region::sessions::Recorded;
use mooseng_schema::quota::Account;
use mooseng_wire::{Incarnation, SessionId, VolumeId};

use crate::desk::{Desk, VolumeSeat};
use crate::geo::ROOT_VOLUME;

impl Desk {
    /// Whether sessions and promises of a volume are of that custody epoch still.
    pub fn is_custodian(&self, volume: VolumeId, custody: u64) -> bool {
        self.seat(volume).custody == Some(custody)
    }

    /// Begins to serve a volume in a custody epoch with its sessions on record. Those of a custody epoch in which it served it before it still knows.
    pub fn serve(
        &mut self,
        volume: VolumeId,
        now: BootTime,
        custody: u64,
        held: Vec<Recorded>,
        limits: BTreeMap<Account, Limit>,
    ) {
        if volume == ROOT_VOLUME {
            self.serving_since = now;
        } else {
            self.others.entry(volume).or_insert_with(|| VolumeSeat::new(self.by_default.clone()));
        }
        let goes_on = self.is_custodian(volume, custody);
        let seat = self.seat_mut(volume);
        seat.serving = Some(custody);
        if goes_on {
            seat.ledger.set_limits(limits);
            for recorded in held {
                if self.sessions.holds(recorded.session) {
                    continue;
                }
                self.promises.add_session(recorded.session);
                self.sessions.expect(now, recorded);
            }
            // One whose lapse was put on record just as this custodian stopped: nobody else forgets what it was promised.
            for session in self.promises.sessions_of(volume) {
                if !self.sessions.holds(session) {
                    self.forget_session(session);
                }
            }
            return;
        }
        seat.ledger.begin(custody, limits);
        seat.custody = Some(custody);
        seat.answer_by = None;
        self.forget_sessions(volume);
        if plant::is(Plant::TakeoverForgetsAll) {
            self.forget_promises_of_others(volume);
        }
        for recorded in &held {
            self.promises.add_session(recorded.session);
            self.unanswered.insert(recorded.session);
        }
        self.sessions.lead(volume, now, held);
    }

    /// A planted bug.
    fn forget_promises_of_others(&mut self, volume: VolumeId) {
        let all: Vec<VolumeId> = std::iter::once(ROOT_VOLUME).chain(self.others.keys().copied()).collect();
        for other in all.into_iter().filter(|other| *other != volume) {
            self.promises.forget(other);
            for session in self.sessions.of(other) {
                self.promises.add_session(session);
            }
        }
    }

    /// Forgets the sessions of a volume, and all that hangs on them.
    pub(crate) fn forget_sessions(&mut self, volume: VolumeId) {
        let is_other = |session: &SessionId| session.volume() != volume;
        self.sessions.forget(volume);
        self.promises.forget(volume);
        self.lock_waits.forget(volume);
        self.lock_debts.retain(is_other);
        self.roots.retain(|session, _| is_other(session));
        self.unanswered.retain(is_other);
        self.overdue.retain(is_other);
    }

    /// All leases that a volume's sessions had of earlier custodians are over for certain ([`crate::master::Master::lease_ms`]): who still lives gets until
    /// then to claim what it buffers, and isn't waited for longer.
    pub fn hurry(&mut self, volume: VolumeId, until: BootTime) {
        self.seat_mut(volume).answer_by = Some(until);
    }

    /// The sessions of a volume that had to answer before now. They are to get a new incarnation, on record, before anybody is answered without them
    /// ([`Desk::given_up`]): if they come, it is as another life that claims nothing. Until then they are told to try again.
    pub fn give_up_waiting(&mut self, volume: VolumeId, now: BootTime) -> Vec<SessionId> {
        if self.seat(volume).answer_by.is_some_and(|until| now >= until) {
            self.seat_mut(volume).answer_by = None;
            // One that has come confirms with its next renewal, or its lease ends: what it claimed is its own until then.
            let of_it = self.unanswered.range(SessionId::all_of(volume));
            self.overdue.extend(of_it.filter(|id| self.sessions.is_awaited(**id)));
        }
        self.overdue.range(SessionId::all_of(volume)).copied().collect()
    }

    /// Whether every session of a volume of which an earlier custodian knew has answered, or is over.
    pub fn is_settled(&self, volume: VolumeId) -> bool {
        self.unanswered.range(SessionId::all_of(volume)).next().is_none()
    }

    /// A session that was waited for in vain has a new incarnation on record.
    pub fn given_up(&mut self, id: SessionId, incarnation: Incarnation) {
        if self.overdue.remove(&id) {
            self.sessions.begin_anew(id, incarnation);
            self.lock_debts.insert(id);
            self.unanswered.remove(&id);
        }
    }

    /// Whether this session is being given up: until that is on record nothing is known of it.
    pub fn is_overdue(&self, id: SessionId) -> bool {
        self.overdue.contains(&id)
    }

    /// A session is gone: nobody waits for it any more.
    pub fn forget_session(&mut self, id: SessionId) {
        self.promises.drop_session(id);
        self.lock_waits.drop_session(id);
        self.seat_mut(id.volume()).ledger.forget(id);
        self.roots.remove(&id);
        self.unanswered.remove(&id);
        self.overdue.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mooseng_region::class::Class;
    use mooseng_region::promises::{Fact, Level};
    use mooseng_region::sessions;
    use mooseng_wire::InodeId;

    use super::*;

    const SECOND: VolumeId = VolumeId(1);

    fn desk() -> Desk {
        Desk::new(sessions::Limits::default(), Class::by_default(1, 1))
    }

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn held(session: SessionId) -> Recorded {
        Recorded {
            session,
            incarnation: Incarnation(3),
            identity: "c".into(),
            host: String::new(),
            mount_path: String::new(),
        }
    }

    fn of_second(number: u64) -> SessionId {
        SessionId::new(SECOND, number)
    }

    /// Takes 20 s instead of 12 where a mount was lost with its region, if nobody hurries (seen in a campaign that cuts regions off).
    #[test]
    fn sessions_of_a_lost_home_are_given_up_soon_and_claim_nothing_after() {
        let mut desk = desk();
        let at = |ms: u64| BootTime(std::time::Duration::from_millis(ms));
        let held = |n: u64| Recorded {
            session: SessionId(n),
            incarnation: Incarnation(3),
            identity: "c".into(),
            host: String::new(),
            mount_path: String::new(),
        };
        desk.serve(ROOT_VOLUME, at(0), 7, vec![held(1), held(2), held(3)], BTreeMap::new());
        assert!(
            desk.give_up_waiting(ROOT_VOLUME, at(9_000)).is_empty(),
            "by itself each lease is waited for"
        );
        // It has come, and its renewal confirms that later (found by the simulation of three regions: what it had claimed was given up beneath it).
        desk.sessions.admit(at(1_500), held(3), 1, []).unwrap();
        desk.hurry(ROOT_VOLUME, at(2_000));
        assert!(desk.give_up_waiting(ROOT_VOLUME, at(1_999)).is_empty());
        assert!(desk.unanswered.remove(&SessionId(1)), "one that comes in time");
        assert_eq!(desk.give_up_waiting(ROOT_VOLUME, at(2_000)), [SessionId(2)]);
        assert!(desk.is_overdue(SessionId(2)) && !desk.unanswered.is_empty(), "until it is on record");
        assert_eq!(desk.give_up_waiting(ROOT_VOLUME, at(2_200)), [SessionId(2)], "what failed is done again");
        desk.given_up(SessionId(2), Incarnation(4));
        assert!(desk.unanswered.remove(&SessionId(3)));
        assert!(desk.unanswered.is_empty() && !desk.is_overdue(SessionId(2)));
        let comeback = desk.sessions.comeback(at(3_000), SessionId(2), Incarnation(3), "c");
        assert_eq!(comeback, Ok(sessions::Comeback::Repeat(Incarnation(4))));
        assert!(desk.give_up_waiting(ROOT_VOLUME, at(4_000)).is_empty());
    }

    /// Found by the simulation: a leader that lost its lease and got it back in the same term had forgotten what it had promised, while its
    /// sessions took themselves for having answered that custody epoch.
    #[test]
    fn promises_outlive_an_interruption_within_a_term() {
        let mut desk = desk();
        let now = BootTime::default();
        let session = |n: u64| Recorded {
            session: SessionId(n),
            incarnation: mooseng_wire::Incarnation(1),
            identity: "c".into(),
            host: String::new(),
            mount_path: String::new(),
        };
        desk.serve(ROOT_VOLUME, now, 7, vec![session(1)], BTreeMap::new());
        assert!(desk.unanswered.remove(&SessionId(1)));
        let fact = mooseng_region::promises::Fact::Inode(mooseng_wire::InodeId(5));
        assert!(desk.promises.grant(SessionId(1), &fact, mooseng_region::promises::Level::Shared, 1));
        desk.follow();
        assert_eq!(desk.root.serving, None);
        desk.serve(ROOT_VOLUME, now, 7, vec![session(1), session(2)], BTreeMap::new());
        assert!(desk.promises.level(SessionId(1), &fact).is_some() && desk.unanswered.is_empty());
        assert!(desk.sessions.holds(SessionId(2)), "one that lapsed without a note is waited for once more");
        desk.follow();
        desk.serve(ROOT_VOLUME, now, 8, vec![session(1)], BTreeMap::new());
        assert!(
            desk.promises.level(SessionId(1), &fact).is_none() && desk.unanswered.contains(&SessionId(1))
        );
    }

    /// Found by review: what a session was promised whose lapse was put on record just as its custodian stopped nobody forgot, and who wanted it waited in vain.
    #[test]
    fn who_lapsed_while_its_custodian_stopped_is_promised_nothing_any_more() {
        let mut desk = desk();
        let (gone, lives, other) = (SessionId(1), SessionId(2), of_second(1));
        desk.serve(ROOT_VOLUME, at(0), 7, vec![held(gone), held(lives)], BTreeMap::new());
        desk.serve(SECOND, at(0), 7, vec![held(other)], BTreeMap::new());
        let fact = Fact::Inode(InodeId(5));
        let theirs = Fact::Inode(InodeId::new(SECOND, 5));
        assert!(desk.promises.grant(gone, &fact, Level::Exclusive, 1));
        assert!(desk.promises.grant(other, &theirs, Level::Shared, 1));
        // It lapses, and that is on record; what follows from it wasn't done any more.
        assert!(desk.sessions.remove(gone));
        desk.unseat(ROOT_VOLUME);
        desk.serve(ROOT_VOLUME, at(1_000), 7, vec![held(lives)], BTreeMap::new());
        assert!(desk.promises.level(gone, &fact).is_none() && !desk.unanswered.contains(&gone));
        let (change, recalls) = desk.promises.begin(lives, 1.into(), [fact].into());
        assert!(recalls.is_empty() && desk.promises.is_ready(change));
        assert!(desk.sessions.holds(lives) && desk.unanswered.contains(&lives), "it goes on");
        assert!(desk.promises.level(other, &theirs).is_some());
    }

    /// One volume changes its custodian, beside another that doesn't: nobody of the other waits, is forgotten, or loses a promise.
    #[test]
    fn a_volume_that_is_taken_over_leaves_the_others_alone() {
        let mut desk = desk();
        let (root, other) = (SessionId(1), of_second(1));
        let (fact, theirs) = (Fact::Inode(InodeId(5)), Fact::Inode(InodeId::new(SECOND, 5)));
        desk.serve(ROOT_VOLUME, at(0), 7, vec![held(root)], BTreeMap::new());
        assert!(!desk.is_settled(ROOT_VOLUME) && desk.is_settled(SECOND));
        assert!(desk.unanswered.remove(&root) && desk.is_settled(ROOT_VOLUME));
        let limited = Account::User(9);
        let limits = BTreeMap::from([(limited, Limit { bytes: Some(1), inodes: None })]);
        desk.serve(SECOND, at(0), 7, vec![held(other), held(of_second(2))], limits);
        assert!(desk.is_settled(ROOT_VOLUME) && !desk.is_settled(SECOND), "the root's requests go on");
        assert!(!desk.root.ledger.is_limited(limited) && desk.seat(SECOND).ledger.is_limited(limited));
        desk.hurry(SECOND, at(2_000));
        assert!(desk.give_up_waiting(ROOT_VOLUME, at(2_000)).is_empty());
        assert_eq!(desk.give_up_waiting(SECOND, at(2_000)), [other, of_second(2)]);
        assert!(desk.unanswered.remove(&other));
        desk.given_up(of_second(2), Incarnation(4));
        desk.overdue.remove(&other);
        assert!(desk.is_settled(SECOND));
        assert!(desk.promises.grant(root, &fact, Level::Shared, 1));
        assert!(desk.promises.grant(other, &theirs, Level::Shared, 1));
        let (change, recalls) = desk.promises.begin(of_second(2), 1.into(), [theirs.clone()].into());
        assert_eq!((recalls.len(), desk.promises.is_ready(change)), (1, false));

        // Another home of the second one, in the same term of this master: custody epochs are of each volume.
        desk.unseat(SECOND);
        assert!(desk.serving_of(SECOND).is_none() && desk.serving_of(ROOT_VOLUME) == Some(7));
        assert!(desk.promises.level(other, &theirs).is_some(), "until another one is custodian");
        desk.serve(SECOND, at(3_000), 8, vec![held(other)], BTreeMap::new());
        assert!(desk.is_custodian(SECOND, 8) && desk.is_custodian(ROOT_VOLUME, 7));
        assert!(
            desk.promises.level(other, &theirs).is_none() && !desk.seat(SECOND).ledger.is_limited(limited)
        );
        assert_eq!(desk.promises.changes(), 0, "what was under way is of an earlier custodian");
        assert!(!desk.is_settled(SECOND) && desk.is_settled(ROOT_VOLUME));
        assert!(desk.promises.level(root, &fact).is_some() && desk.sessions.holds(root));
        assert!(!desk.sessions.holds(of_second(2)) && desk.lock_debts.is_empty());

        // And the root, beside the second one.
        assert!(desk.unanswered.remove(&other));
        assert!(desk.promises.grant(other, &theirs, Level::Shared, 9));
        desk.serve(ROOT_VOLUME, at(4_000), 9, vec![held(root)], BTreeMap::new());
        assert!(desk.promises.level(root, &fact).is_none() && !desk.is_settled(ROOT_VOLUME));
        assert!(desk.promises.level(other, &theirs).is_some() && desk.is_settled(SECOND));

        // A master that leads no more, and again in the same term, knows what it promised of each of them.
        desk.follow();
        assert!(desk.serving_of(SECOND).is_none() && desk.promises.level(other, &theirs).is_some());
        desk.serve(SECOND, at(5_000), 8, vec![held(other), held(of_second(3))], BTreeMap::new());
        assert!(desk.promises.level(other, &theirs).is_some() && desk.is_settled(SECOND));
        assert!(desk.sessions.holds(of_second(3)));

        // There is no second one any more.
        desk.follow();
        desk.keep_volumes(|_| false);
        assert!(desk.sessions.of(SECOND).is_empty() && desk.promises.level(other, &theirs).is_none());
        assert!(!desk.is_custodian(SECOND, 8) && desk.sessions.holds(root) && !desk.is_settled(ROOT_VOLUME));
    }
}
