//! Drainings, heartbeats and commands of one desk.

use mooseng_wire::admin::{ChunkReport, HeartbeatRequest, SealCommand};

use super::heartbeats::UNSEALED_MAX;
use super::*;

fn desk() -> Desk {
    Desk::new(sessions::Limits::default(), Class::by_default(1, 1))
}

#[test]
fn a_drained_chunkserver_is_not_empty_before_a_scan_has_counted_since() {
    let mut desk = desk();
    desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::new());
    let before = desk.drainings_set();
    desk.set_draining(BTreeSet::from(["a".into()]));
    assert!(desk.located("a") > 0);
    assert_eq!(desk.located("b"), 0);
    desk.located_as_of(ROOT_VOLUME, before, BTreeMap::new());
    assert!(desk.located("a") > 0, "a scan that had begun before missed what was placed meanwhile");
    desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::from([("a".into(), 3)]));
    assert_eq!(desk.located("a"), 3);
    desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::new());
    assert_eq!(desk.located("a"), 0);
}

#[test]
fn that_nobody_has_a_label_is_known_once_everybody_can_have_reported() {
    let at = |s| BootTime(Duration::from_secs(s));
    let mut desk = desk();
    desk.serve(ROOT_VOLUME, at(100), 1, vec![], BTreeMap::new());
    let known = |desk: &Desk, now| desk.knows_all(at(now), Duration::from_secs(10));
    assert!(!known(&desk, 200), "no scan has told yet who there should be");
    desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::from([("a".into(), 3)]));
    assert!(!known(&desk, 200), "a may have any labels");
    let request = HeartbeatRequest { chunkserver: "a".into(), ..HeartbeatRequest::default() };
    desk.beat(at(104), request).unwrap();
    assert!(!known(&desk, 109) && known(&desk, 110));
    desk.follow();
    desk.serve(ROOT_VOLUME, at(300), 2, vec![], BTreeMap::new());
    assert!(!known(&desk, 400));
}

#[test]
fn seals_wait_for_their_chunkserver() {
    let mut desk = desk();
    let seal = Seal { length: 5, epoch: 1 };
    desk.want_seal("a", ChunkId(1), seal);
    desk.want_seal("a", ChunkId(2), seal);
    desk.want_seal("b", ChunkId(1), seal);
    desk.sealed("a", ChunkId(2));
    assert!(desk.take_seals("c").is_empty());
    assert_eq!(desk.take_seals("a"), vec![SealCommand { chunk: 1, epoch: 1, length: 5 }]);
    assert!(desk.take_seals("a").is_empty());
    assert_eq!(desk.seals_waiting(), 1);
    desk.follow();
    assert_eq!(desk.seals_waiting(), 0);
}

/// Found by the simulation: a copy stayed unsealed for good where the leader changed before its chunkserver heard of the seal, or where
/// too many copies were unsealed at once.
#[test]
fn a_new_leader_compares_every_inventory_and_one_that_found_no_room_again() {
    let mut desk = desk();
    let report = |chunk| ChunkReport { chunk, length: 9, sealed: false, epoch: 1 };
    let request = |page, inventory| HeartbeatRequest {
        chunkserver: "a".into(),
        inventory_page: page,
        inventory,
        ..HeartbeatRequest::default()
    };
    let now = BootTime::default();
    let many: Vec<ChunkReport> = (0..=UNSEALED_MAX as u64).map(report).collect();
    desk.beat(now, request(true, many.clone())).unwrap();
    assert!(!desk.beat(now, request(false, vec![])).unwrap(), "a follower compares nothing");
    desk.root.serving = Some(1);
    assert!(desk.beat(now, request(false, vec![])).unwrap());
    desk.beat(now, request(true, many.clone())).unwrap();
    assert!(desk.beat(now, request(false, vec![])).unwrap(), "one found no room");
    assert_eq!(desk.take_unsealed(ROOT_VOLUME, UNSEALED_MAX).len(), UNSEALED_MAX);
    desk.beat(now, request(true, many)).unwrap();
    assert_eq!(desk.take_unsealed(ROOT_VOLUME, 1).len(), 1);
    desk.take_unsealed(ROOT_VOLUME, UNSEALED_MAX);
    desk.beat(now, request(true, vec![report(7)])).unwrap();
    assert!(!desk.beat(now, request(false, vec![])).unwrap());
    desk.follow();
    desk.root.serving = Some(2);
    assert!(desk.beat(now, request(false, vec![])).unwrap());
}

#[test]
fn deletions_are_told_until_they_are_confirmed() {
    let mut desk = desk();
    let at = |s| BootTime(Duration::from_secs(s));
    let beat = |gone| HeartbeatRequest { chunkserver: "a".into(), gone, ..HeartbeatRequest::default() };
    desk.beat(at(0), beat(vec![])).unwrap();
    desk.want_deletion("a", ChunkId(1), 1);
    desk.want_deletion("a", ChunkId(1), 1);
    assert!(desk.is_deleting("a", ChunkId(1)) && !desk.is_deleting("b", ChunkId(1)));
    assert_eq!(desk.deleting(ChunkId(1)), BTreeSet::from(["a".to_owned()]));
    assert_eq!(desk.take_commands("a", at(0), 1).len(), 1);
    assert_eq!(desk.take_commands("a", at(1), 1).len(), 0, "an answer is under way");
    assert_eq!(desk.take_commands("a", at(6), 1).len(), 1, "it got lost");
    desk.beat(at(7), beat(vec![1, 2])).unwrap();
    assert!(desk.take_commands("a", at(20), 1).is_empty());
    assert_eq!(
        desk.take_gone(ROOT_VOLUME, 9),
        [(ChunkId(1), "a".to_owned())],
        "what nobody asked for isn't news"
    );
    assert!(desk.take_gone(ROOT_VOLUME, 9).is_empty());
}

#[test]
fn an_order_to_delete_is_taken_back_as_long_as_nobody_was_told() {
    let mut desk = desk();
    let now = BootTime::default();
    let one = ChunkId(1);
    desk.want_deletion("a", one, 1);
    desk.want_deletion("b", one, 1);
    assert!(desk.with_deletions().eq(["a", "b"]));
    assert_eq!(desk.take_commands("a", now, 1).len(), 1);
    assert_eq!(desk.untold(one), BTreeSet::from(["b".to_owned()]));
    assert!(!desk.take_back_deletion("a", one) && desk.is_deleting("a", one), "it may be at it");
    assert!(desk.take_back_deletion("b", one) && !desk.is_deleting("b", one));
    assert!(desk.take_commands("b", now, 1).is_empty());
    assert!(desk.take_back_deletion("c", one), "there is none");
}

#[test]
fn of_a_chunk_that_is_wanted_only_those_deletions_stay_that_may_be_under_way() {
    let mut desk = desk();
    let (now, one, other) = (BootTime::default(), ChunkId(1), ChunkId(2));
    for name in ["a", "b", "c"] {
        desk.want_deletion(name, one, 2);
    }
    desk.want_deletion("b", other, 2);
    assert_eq!(desk.take_commands("a", now, 1).len() + desk.take_commands("c", now, 1).len(), 2);
    let told = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
    assert_eq!(desk.take_back_deletions(one, 2), told);
    assert!(!desk.is_deleting("b", one) && desk.is_deleting("b", other) && desk.is_deleting("a", one));
    assert!(desk.take_back_deletions(one, 3).is_empty(), "of an earlier epoch");
    assert!(desk.take_back_deletions(ChunkId(3), 2).is_empty());
}

#[test]
fn what_a_lost_chunkserver_was_to_delete_is_forgotten_volume_by_volume() {
    let mut desk = desk();
    let (one, other) = (ChunkId(1), ChunkId::new(VolumeId(2), 1));
    desk.want_deletion("a", one, 1);
    desk.want_deletion("a", other, 1);
    desk.forget_deletions(ROOT_VOLUME, "a");
    assert!(!desk.is_deleting("a", one) && desk.is_deleting("a", other));
    desk.forget_deletions(VolumeId(2), "a");
    desk.forget_deletions(VolumeId(2), "b");
    assert_eq!(desk.with_deletions().count(), 0);
}

/// A follower doesn't know its region's mark before it leads, and hears of chunkservers all the same.
#[test]
fn what_chunkservers_of_another_founding_told_a_follower_is_forgotten_when_it_leads() {
    let (own, other) = (Founding([1; 16]), Founding([2; 16]));
    let now = BootTime::default();
    let beat = |name: &str, mark| HeartbeatRequest {
        chunkserver: name.into(),
        founding: Founding::tell(mark),
        inventory_page: true,
        inventory: vec![ChunkReport { chunk: 1, length: 9, sealed: false, epoch: 1 }],
        ..HeartbeatRequest::default()
    };
    for (mark, stay) in [(Some(own), true), (None, true), (Some(other), false)] {
        let mut desk = desk();
        desk.beat(now, beat("a", mark)).unwrap();
        desk.found(own);
        assert_eq!(desk.registry.get("a").is_some(), stay);
        assert_eq!(desk.take_unsealed(ROOT_VOLUME, 9).is_empty(), !stay);
        desk.follow();
        let refused = desk.beat(now, beat("a", Some(other))).unwrap_err();
        assert_eq!(refused, HeartbeatRefused::NotOurs(NotOurs::Other { told: other, own }));
        assert_eq!(desk.strangers.lately(now), [("chunkserver a".to_owned(), other)]);
        desk.beat(now, beat("a", Some(own))).unwrap();
        assert!(desk.strangers.lately(now).is_empty());
    }
}

#[test]
fn an_inventorys_unsealed_copies_are_looked_at() {
    let mut desk = desk();
    let report = |chunk, sealed| ChunkReport { chunk, length: 9, sealed, epoch: 1 };
    let request = |page, inventory, more| HeartbeatRequest {
        chunkserver: "a".into(),
        inventory_page: page,
        inventory,
        more,
        ..HeartbeatRequest::default()
    };
    let now = BootTime::default();
    assert!(desk.beat(now, request(false, vec![], false)).unwrap());
    assert!(desk.beat(now, request(true, vec![report(1, true), report(2, false)], true)).unwrap());
    assert!(!desk.beat(now, request(true, vec![report(3, false)], false)).unwrap());
    assert!(!desk.beat(now, request(false, vec![], false)).unwrap());
    assert_eq!(desk.take_unsealed(ROOT_VOLUME, 1), vec![("a".to_owned(), ChunkId(2))]);
    assert_eq!(desk.take_unsealed(ROOT_VOLUME, 9), vec![("a".to_owned(), ChunkId(3))]);
}
