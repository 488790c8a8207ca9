use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ME: &str = "spiffe://c/r/client/a";

fn at(ms: u64) -> BootTime {
    BootTime(Duration::from_millis(ms))
}

fn recorded(id: u64, incarnation: u64) -> Recorded {
    Recorded {
        session: SessionId(id),
        incarnation: Incarnation(incarnation),
        identity: ME.into(),
        host: "h".into(),
        mount_path: "/m".into(),
    }
}

fn table() -> SessionTable {
    SessionTable::new(Limits { sessions_max: 3, opens_per_session_max: 2, ..Limits::default() })
}

const ROOT: VolumeId = VolumeId(0);
const S: SessionId = SessionId(1);
const I: Incarnation = Incarnation(1);

#[test]
fn a_lease_ends_and_a_renewal_moves_its_end() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 0, []).unwrap();
    assert_eq!(t.check(at(9_999), S, I, ME), Ok(()));
    assert_eq!(t.check(at(10_000), S, I, ME), Err(Refusal::Expired(S)));
    t.renew(at(9_000), S, I, ME).unwrap();
    assert_eq!(t.check(at(18_999), S, I, ME), Ok(()));
    assert!(t.lapse(ROOT, at(18_999)).is_empty());
    assert_eq!(t.lapse(ROOT, at(19_000)), vec![recorded(1, 1)]);
    assert_eq!(t.renew(at(19_000), S, I, ME), Err(Refusal::Expired(S)), "a lapsed lease can't be renewed");
    assert_eq!(t.comeback(at(19_000), S, I, ME), Ok(Comeback::Lapsed));
}

#[test]
fn a_session_is_its_identitys_and_its_newest_incarnations() {
    let mut t = table();
    t.admit(at(0), recorded(1, 2), 0, []).unwrap();
    let newest = Incarnation(2);
    assert!(matches!(t.check(at(1), S, newest, "spiffe://c/r/client/b"), Err(Refusal::Foreign { .. })));
    assert!(matches!(t.check(at(1), S, I, ME), Err(Refusal::Incarnation { .. })));
    assert_eq!(t.comeback(at(1), S, newest, ME), Ok(Comeback::Resume(newest)));
    assert_eq!(t.comeback(at(1), S, I, ME), Ok(Comeback::Repeat(newest)));
    assert!(t.comeback(at(1), S, Incarnation(3), ME).is_err());
    assert!(matches!(t.comeback(at(1), S, I, "other"), Err(Refusal::Foreign { .. })));
    assert!(t.admit(at(1), recorded(1, 1), 0, []).is_err(), "an older life doesn't replace a newer one");
    t.admit(at(1), recorded(1, 3), 0, []).unwrap();
}

#[test]
fn after_a_failover_nothing_is_freed_until_every_session_answered_or_ran_out() {
    let mut t = table();
    t.lead(ROOT, at(100), [recorded(1, 1), recorded(2, 1)]);
    let orphan = InodeId(7);
    assert!(t.begin_reap(ROOT, at(100), [orphan], 9).is_empty(), "both sessions may hold it");
    assert_eq!(t.check(at(100), S, I, ME), Err(Refusal::Awaited(S)));
    assert!(t.admit(at(200), recorded(1, 1), 1, [orphan]).unwrap().is_empty());
    assert!(t.begin_reap(ROOT, at(200), [InodeId(8)], 9).is_empty(), "session 2 may still come");
    assert_eq!(t.lapse(ROOT, at(10_100)), vec![recorded(2, 1)], "session 1 has a lease from its answer on");
    assert_eq!(t.begin_reap(ROOT, at(10_100), [orphan, InodeId(8)], 9), vec![InodeId(8)]);
    t.release(S, orphan, 1);
    assert!(
        t.begin_reap(ROOT, at(10_100), [orphan], 9).is_empty(),
        "a release that was sent before the declaration"
    );
    t.release(S, orphan, 2);
    assert_eq!(t.begin_reap(ROOT, at(10_100), [orphan], 9), vec![orphan]);
}

/// Of two volumes at one table: what is led, awaited, out of time, freed or forgotten of one says nothing of the other.
#[test]
fn volumes_are_led_each_for_itself() {
    let mut t = table();
    let second = VolumeId(1);
    let theirs = SessionId::new(second, 1);
    let of_second = |incarnation| Recorded { session: theirs, ..recorded(1, incarnation) };
    let (open, orphan) = (InodeId::new(second, 7), InodeId(7));
    t.lead(ROOT, at(0), [recorded(1, 1)]);
    t.admit(at(0), recorded(1, 1), 1, [orphan]).unwrap();
    t.lead(second, at(9_000), [of_second(1)]);
    assert!(t.is_open(orphan) && t.check(at(9_000), S, I, ME).is_ok(), "the root's stay as they are");
    assert!(t.in_grace(second, at(9_000)) && !t.in_grace(ROOT, at(9_000)));
    assert!(t.begin_reap(second, at(9_000), [InodeId::new(second, 8)], 9).is_empty());
    assert_eq!(t.begin_reap(ROOT, at(9_000), [InodeId(8)], 9), vec![InodeId(8)]);
    assert_eq!(t.lapse(second, at(10_000)), vec![]);
    assert_eq!(t.lapse(ROOT, at(10_000)), vec![recorded(1, 1)], "and not the other's");
    assert_eq!(t.of(second), [theirs]);
    t.admit(at(10_000), of_second(1), 1, [open]).unwrap();
    t.admit(at(10_000), recorded(2, 1), 1, []).unwrap();
    t.admit(at(10_000), recorded(3, 1), 1, []).unwrap();
    assert_eq!(t.has_room(ME), Err(Refusal::SessionsMax(3)), "the bound is that of all together");
    t.forget(ROOT);
    assert_eq!((t.len(), t.of(second)), (1, vec![theirs]));
    assert!(t.is_open(open) && t.check(at(10_001), theirs, I, ME).is_ok());
    t.lead(second, at(11_000), []);
    assert!(t.is_empty() && !t.is_open(open));
}

#[test]
fn a_late_release_or_declaration_doesnt_close_what_was_opened_after_it() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 1, []).unwrap();
    let (inode, other) = (InodeId(9), InodeId(10));
    t.open(at(0), S, I, ME, inode, 2).unwrap();
    t.open(at(0), S, I, ME, inode, 5).unwrap();
    t.release(S, inode, 4);
    assert!(t.is_open(inode));
    t.admit(at(0), recorded(1, 1), 4, [other]).unwrap();
    assert!(t.is_open(inode) && t.is_open(other));
    t.open(at(0), S, I, ME, inode, 3).unwrap();
    t.release(S, inode, 4);
    assert!(t.is_open(inode), "an open that was overtaken doesn't lower the order");
    t.admit(at(0), recorded(1, 1), 6, [other]).unwrap();
    assert!(!t.is_open(inode));
    t.open(at(0), S, I, ME, inode, 7).unwrap();
    t.admit(at(0), recorded(1, 2), 6, []).unwrap();
    assert!(!t.is_open(inode) && !t.is_open(other), "a new life has only what it declares");
}

#[test]
fn an_open_that_came_to_nothing_leaves_what_was_there_before() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 1, []).unwrap();
    let inode = InodeId(9);
    let failed = t.open(at(0), S, I, ME, inode, 2).unwrap();
    t.take_back(S, failed);
    assert!(!t.is_open(inode));
    t.open(at(0), S, I, ME, inode, 3).unwrap();
    let failed = t.open(at(0), S, I, ME, inode, 4).unwrap();
    t.take_back(S, failed);
    assert!(t.is_open(inode));
    let failed = t.open(at(0), S, I, ME, inode, 5).unwrap();
    t.open(at(0), S, I, ME, inode, 6).unwrap();
    t.take_back(S, failed);
    assert!(t.is_open(inode), "a newer one has come");
}

#[test]
fn what_a_session_called_over_stays_over_however_late_an_older_request_comes() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 1, []).unwrap();
    assert_eq!(t.settle(S, RequestNumber(7)), RequestNumber(7));
    assert_eq!(t.settle(S, RequestNumber(5)), RequestNumber(7));
    t.admit(at(0), recorded(1, 2), 1, []).unwrap();
    assert_eq!(t.settled(S), RequestNumber(7));
}

#[test]
fn an_open_that_races_a_reap_is_refused_and_one_before_it_wins() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 0, []).unwrap();
    let inode = InodeId(9);
    assert_eq!(t.begin_reap(ROOT, at(0), [inode], 9), vec![inode]);
    assert!(t.begin_reap(ROOT, at(0), [inode], 9).is_empty(), "one reap of an inode at a time");
    assert_eq!(t.open(at(0), S, I, ME, inode, 1), Err(Refusal::Reaping(inode)));
    assert_eq!(t.admit(at(0), recorded(1, 1), 1, [inode]), Ok(vec![inode]), "a declared open is lost");
    t.reaped(&[inode]);
    t.open(at(0), S, I, ME, inode, 1).unwrap();
    assert!(t.begin_reap(ROOT, at(0), [inode], 9).is_empty());
}

#[test]
fn limits_are_kept() {
    let mut t = table();
    for id in 1..=3 {
        t.admit(at(0), recorded(id, 1), 0, []).unwrap();
    }
    assert_eq!(t.has_room(ME), Err(Refusal::SessionsMax(3)));
    assert!(t.admit(at(0), recorded(4, 1), 0, []).is_err());
    t.admit(at(0), recorded(3, 1), 0, []).unwrap();
    t.open(at(0), S, I, ME, InodeId(1), 1).unwrap();
    t.open(at(0), S, I, ME, InodeId(1), 1).unwrap();
    t.open(at(0), S, I, ME, InodeId(2), 1).unwrap();
    assert!(matches!(t.open(at(0), S, I, ME, InodeId(3), 1), Err(Refusal::OpensMax { .. })));
    let many = (10..13).map(InodeId);
    assert!(matches!(t.admit(at(0), recorded(1, 1), 1, many), Err(Refusal::OpensMax { .. })));
    assert!(t.is_open(InodeId(2)), "a refused admission changes nothing");
}

#[derive(Clone, Debug)]
enum Step {
    Admit(u64, u64, Vec<u64>),
    Open(u64, u64, u64),
    Release(u64, u64, u64),
    Fail(u64, u64, u64),
    Remove(u64),
    Wait(u64),
    Renew(u64),
    Reap(u64),
    Reaped(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let s = 1..4_u64;
    let i = 1..5_u64;
    let order = 0..20_u64;
    prop_oneof![
        (s.clone(), order.clone(), prop::collection::vec(i.clone(), 0..3))
            .prop_map(|(s, n, o)| Step::Admit(s, n, o)),
        (s.clone(), i.clone(), order.clone()).prop_map(|(s, i, n)| Step::Open(s, i, n)),
        (s.clone(), i.clone(), order.clone()).prop_map(|(s, i, n)| Step::Release(s, i, n)),
        (s.clone(), i.clone(), order).prop_map(|(s, i, n)| Step::Fail(s, i, n)),
        s.clone().prop_map(Step::Remove),
        (0..4_000_u64).prop_map(Step::Wait),
        s.prop_map(Step::Renew),
        i.clone().prop_map(Step::Reap),
        i.prop_map(Step::Reaped),
    ]
}

proptest! {
    /// What the table calls open is what the sessions hold, counted from scratch; nothing open is ever being reaped.
    #[test]
    fn opens_agree_with_a_recount(steps in prop::collection::vec(step(), 0..80)) {
        let mut t = SessionTable::new(Limits { opens_per_session_max: 9, ..Limits::default() });
        let mut now = 0;
        for step in steps {
            match step {
                Step::Admit(s, n, o) => { let _ = t.admit(at(now), recorded(s, 1), n, o.into_iter().map(InodeId)); }
                Step::Open(s, i, n) => { let _ = t.open(at(now), SessionId(s), I, ME, InodeId(i), n); }
                Step::Release(s, i, n) => t.release(SessionId(s), InodeId(i), n),
                Step::Fail(s, i, n) => {
                    if let Ok(failed) = t.open(at(now), SessionId(s), I, ME, InodeId(i), n) {
                        t.take_back(SessionId(s), failed);
                    }
                }
                Step::Remove(s) => { t.remove(SessionId(s)); }
                Step::Wait(ms) => { now += ms; t.lapse(ROOT, at(now)); }
                Step::Renew(s) => { let _ = t.renew(at(now), SessionId(s), I, ME); }
                Step::Reap(i) => { t.begin_reap(ROOT, at(now), [InodeId(i)], 1); }
                Step::Reaped(i) => t.reaped(&[InodeId(i)]),
            }
            let mut recount: BTreeMap<InodeId, usize> = BTreeMap::new();
            for session in t.sessions.values() {
                for inode in session.opens.keys() {
                    *recount.entry(*inode).or_default() += 1;
                }
            }
            prop_assert_eq!(&recount, &t.holders);
            let opens: usize = t.sessions.values().map(|session| session.opens.len()).sum();
            prop_assert_eq!((t.counts.all(), t.counts.of(ME)), (opens, opens));
            prop_assert!(t.reaping.iter().all(|i| !t.holders.contains_key(i)));
            prop_assert!(t.sessions.values().all(|s| s.state.until() > at(now)));
        }
    }
}

/// A refused renewal was the loss of its seat at the master for a mount: it told nothing any more, and so couldn't give up what it owed.
#[test]
fn a_mount_that_owes_works_on_until_its_lease_ends_and_not_beyond() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 0, []).unwrap();
    t.only_these_owe([S]);
    // As the mount counts: what is left is left from when it asked, half a second before that came here.
    let mut until = at(10_000);
    for sent in [3_000, 6_000, 9_000] {
        assert!(at(sent) < until, "it takes the lease for a lost one");
        let left = t.renew(at(sent + 500), S, I, ME).unwrap();
        until = at(sent).after(left);
        assert!(until <= at(10_000), "it counts on more than it has");
        assert_eq!(t.check(at(sent + 500), S, I, ME), Ok(()), "what it gives up is taken");
        assert_eq!(t.comeback(at(sent + 500), S, I, ME), Err(Refusal::Owes(S)));
    }
    assert!(at(9_499) < until);
    assert_eq!(t.renew(at(10_000), S, I, ME), Err(Refusal::Expired(S)));
    assert_eq!(t.lapse(ROOT, at(10_000)), vec![recorded(1, 1)]);
}

#[test]
fn the_lease_of_one_that_others_wait_for_isnt_renewed_until_it_answers_or_ends() {
    let mut t = table();
    t.admit(at(0), recorded(1, 1), 0, []).unwrap();
    assert_eq!(t.only_these_owe([S, SessionId(9)]), vec![recorded(1, 1)]);
    assert_eq!(t.only_these_owe([S]), vec![], "that isn't new");
    assert_eq!(t.renew(at(1_000), S, I, ME), Ok(Duration::from_secs(9)), "what is left of it");
    assert_eq!(t.comeback(at(1_000), S, I, ME), Err(Refusal::Owes(S)));
    assert_eq!(t.check(at(9_999), S, I, ME), Ok(()), "what it does is taken, its answer above all");
    assert_eq!(t.only_these_owe([]), vec![]);
    assert_eq!(t.renew(at(9_999), S, I, ME), Ok(Duration::from_secs(10)));
    t.only_these_owe([S]);
    assert_eq!(t.lapse(ROOT, at(20_000)), vec![recorded(1, 1)]);
    // Its next life begins without a debt.
    assert_eq!(t.comeback(at(20_000), S, I, ME), Ok(Comeback::Lapsed));
    t.admit(at(20_000), recorded(1, 2), 0, []).unwrap();
    assert!(t.renew(at(21_000), S, Incarnation(2), ME).is_ok());
}

#[test]
fn one_host_doesnt_keep_all_others_out() {
    let mut t =
        SessionTable::new(Limits { sessions_max: 4, sessions_per_identity_max: 2, ..Limits::default() });
    for id in 1..3 {
        t.admit(at(0), recorded(id, 1), 0, []).unwrap();
    }
    let full = Refusal::SessionsOfOne { identity: ME.into(), sessions: 2 };
    assert_eq!(t.has_room(ME), Err(full.clone()));
    assert_eq!(t.admit(at(0), recorded(3, 1), 0, []), Err(full));
    // Those that it has go on.
    t.admit(at(0), recorded(1, 1), 1, []).unwrap();
    assert_eq!(t.has_room("spiffe://c/r/client/b"), Ok(()));
}

const OTHER: &str = "spiffe://c/r/client/b";

fn of_other(id: u64) -> Recorded {
    Recorded { identity: OTHER.into(), ..recorded(id, 1) }
}

/// A million for each session were without end for a host with a thousand of them.
#[test]
fn one_host_doesnt_hold_open_all_that_may_be() {
    let limits = Limits { opens_per_identity_max: 3, opens_max: 5, ..Limits::default() };
    let mut t = SessionTable::new(limits);
    let inodes = |range: std::ops::Range<u64>| range.map(InodeId);
    t.admit(at(0), recorded(1, 1), 1, inodes(1..3)).unwrap();
    let of_one = Refusal::OpensOfOne { identity: ME.into(), opens: 2 };
    assert_eq!(t.admit(at(0), recorded(2, 1), 1, inodes(1..3)), Err(of_one), "the same two count again");
    assert!(!t.holds(SessionId(2)));
    t.admit(at(0), recorded(2, 1), 1, inodes(1..2)).unwrap();
    let of_one = Refusal::OpensOfOne { identity: ME.into(), opens: 3 };
    assert_eq!(t.has_room_for_opens(ME, 1), Err(of_one.clone()));
    assert_eq!(t.open(at(0), S, I, ME, InodeId(9), 2), Err(of_one));
    t.open(at(0), S, I, ME, InodeId(2), 2).unwrap();
    assert_eq!(t.has_room_for_opens(OTHER, 2), Ok(()));

    t.admit(at(0), of_other(3), 1, inodes(20..22)).unwrap();
    assert_eq!(t.open(at(0), SessionId(3), I, OTHER, InodeId(22), 2), Err(Refusal::OpensOfAll(5)));
    assert_eq!(t.admit(at(0), of_other(4), 1, inodes(1..2)), Err(Refusal::OpensOfAll(5)));
    t.admit(at(0), of_other(4), 1, []).unwrap();
    // Whoever declares no more than it has goes on.
    t.admit(at(0), recorded(1, 1), 3, inodes(1..3)).unwrap();
    t.release(S, InodeId(2), 9);
    t.open(at(0), SessionId(3), I, OTHER, InodeId(22), 2).unwrap();
    t.remove(S);
    t.remove(SessionId(2));
    assert_eq!((t.counts.all(), t.counts.of(ME), t.counts.of(OTHER)), (3, 0, 3));
}
