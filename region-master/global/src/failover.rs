//! When a volume gets another home by itself, and which: a decision over what is agreed on, regions' leases, and what regions say of their copies.
//!
//! ```text
//!  home's lease ran out, somebody could take over --> Close: nothing of this epoch is taken any more
//!       closed --> Wait until those who could say durably that they refuse it, and how far they are
//!              --> Open the next epoch at whoever is complete furthest, from there on
//! ```
//! The leader of the global group decides, again and again; each decision is a transaction under the rules ([`crate::rules`]), which refuse what has
//! been overtaken. A new leader knows no standings: regions tell them with each renewal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_wire::Epoch;

use crate::view::{Durability, Volume};

/// How long a closed volume waits for regions that are up and haven't said how far they are.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What a region says of its copy of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It durably takes nothing of this epoch, or of one before, that it doesn't have; 0 for none.
    pub refuses: Epoch,
    /// It has every entry up to here, and the data that they name.
    pub complete: LogPosition,
    /// It has every entry up to here.
    pub newest: LogPosition,
}

impl Standing {
    /// What a replica stands for in a volume's present epoch, and in its end; none where it could begin no home: it lacks data, or has taken in what the cut at
    /// which the epoch began has taken back, or it isn't known whether it has.
    ///
    /// A place is one of the epoch's log if a home of the epoch has said so; or if it is one of the log before, up to the cut. To which log a place of
    /// longer ago belongs only a home can tell. What the replica has beyond where it is complete it can undo.
    pub fn of_replica(record: &ReplicaRecord, volume: &Volume) -> Option<Self> {
        let (complete, position) = (record.complete(), record.position());
        // What was just copied, and lacks data, is no state that a home could begin with.
        if record.copied_before.is_some() || complete == LogPosition::default() {
            return None;
        }
        let newest = match volume.cut {
            _ if record.of_log() >= volume.epoch => position,
            _ if record.of_log().0 + 1 < volume.epoch.0 => return None,
            Some(cut) => position.min(cut),
            // Nothing was cut off.
            None => position,
        };
        (complete <= newest).then_some(Self { refuses: Epoch(record.refuses), complete, newest })
    }
}

/// What a decision about a volume is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Regions whose lease has run out, with the renewal that it ran out from.
    pub ran_out: &'a BTreeMap<String, u64>,
    /// What regions said last of their copies: only who has a whole one says anything.
    pub standings: &'a BTreeMap<String, Standing>,
    /// For how long the decider has seen the epoch closed.
    pub closed_for: Duration,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Leave,
    /// Close the epoch, unless the home has renewed its lease since that renewal.
    Close {
        /// The present epoch.
        epoch: Epoch,
        /// The renewal that the lease ran out from.
        judged: u64,
    },
    /// Open the next epoch.
    Open {
        /// The closed epoch.
        closed: Epoch,
        /// The new home.
        home: String,
        /// Its first change follows this one; what others have beyond it is lost.
        cut: LogPosition,
    },
    /// Nothing can be done yet.
    Wait(Wait),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The home is gone, and of those that could take over none is there.
    ForSomebody {
        /// Who could.
        of: BTreeSet<String>,
    },
    /// These are there, and haven't said yet that they refuse the closed epoch.
    ForWord {
        /// Who.
        from: BTreeSet<String>,
    },
    /// The home was given up by an administrator, and neither says that it has stopped nor has its lease run out.
    ForEnd {
        /// The home.
        of: String,
    },
}

impl Facts<'_> {
    /// The regions that may be the home: of a `geo` volume, those that have everything that was acknowledged.
    fn fit(&self) -> &BTreeSet<String> {
        match self.volume.durability {
            Durability::Geo if !plant::is(Plant::SyncSetUnchecked) => &self.volume.sync_set,
            Durability::Geo | Durability::Region => &self.volume.regions,
        }
    }

    fn is_up(&self, region: &str) -> bool {
        !self.ran_out.contains_key(region)
    }

    /// The home is gone, or was when the epoch was closed.
    fn lost_home(&self) -> bool {
        self.volume.abandoned || !self.is_up(&self.volume.home)
    }

    fn open(&self) -> Decision {
        let Some(judged) = self.ran_out.get(&self.volume.home) else { return Decision::Leave };
        let others: BTreeSet<String> = self.volume.heirs().map(str::to_owned).collect();
        // Whoever says nothing has no whole copy, or a release that can't take over: closing for it would help nobody.
        if others.iter().any(|region| self.is_up(region) && self.standings.contains_key(region)) {
            return Decision::Close { epoch: self.volume.epoch, judged: *judged };
        }
        Decision::Wait(Wait::ForSomebody { of: others })
    }

    /// The standing of a region that takes nothing of the closed epoch any more.
    fn refuses(&self, region: &str) -> Option<&Standing> {
        self.standings.get(region).filter(|standing| standing.refuses >= self.volume.epoch)
    }

    /// An administrator has said who it is to be. The home before may be well: it goes on until it hears of that, or its lease ends.
    fn forced(&self, to: &str) -> Decision {
        let only = || BTreeSet::from([to.to_owned()]);
        if !self.is_up(to) {
            return Decision::Wait(Wait::ForSomebody { of: only() });
        }
        let home = &self.volume.home;
        if self.is_up(home) && self.refuses(home).is_none() {
            return Decision::Wait(Wait::ForEnd { of: home.clone() });
        }
        match self.refuses(to) {
            Some(standing) => {
                Decision::Open { closed: self.volume.epoch, home: to.to_owned(), cut: standing.complete }
            }
            None => Decision::Wait(Wait::ForWord { from: only() }),
        }
    }

    fn closed(&self) -> Decision {
        let up: BTreeSet<&String> = self.fit().iter().filter(|region| self.is_up(region)).collect();
        if up.is_empty() {
            return Decision::Wait(Wait::ForSomebody { of: self.fit().clone() });
        }
        let silent: BTreeSet<String> = up
            .iter()
            .filter(|region| self.refuses(region).is_none())
            .map(|region| (*region).clone())
            .collect();
        // The home of before, should it have come back, is complete up to its last change. Of equals, it goes on; else the first by name.
        let of = |region: &&String| {
            let standing = self.refuses(region)?;
            let stays = **region == self.volume.home;
            Some((
                (standing.complete, standing.newest, stays, std::cmp::Reverse((*region).clone())),
                (*region).clone(),
            ))
        };
        let best = up.iter().filter_map(of).max_by(|a, b| a.0.cmp(&b.0));
        match best {
            Some(((cut, ..), home)) if silent.is_empty() || self.closed_for >= PATIENCE => {
                Decision::Open { closed: self.volume.epoch, home, cut }
            }
            _ => Decision::Wait(Wait::ForWord { from: silent }),
        }
    }
}

/// What to do about a volume.
pub fn decide(facts: &Facts<'_>) -> Decision {
    let forced = facts.volume.forced_home.as_ref().filter(|to| facts.volume.regions.contains(*to));
    if let Some(to) = forced.filter(|_| !facts.volume.open) {
        return facts.forced(to);
    }
    match (facts.volume.automatic, facts.volume.open) {
        (false, _) => Decision::Leave,
        (true, true) => facts.open(),
        // A move that was planned is its home's to end, as long as that is there.
        (true, false) if !facts.lost_home() => Decision::Leave,
        (true, false) => facts.closed(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn volume(durability: Durability) -> Volume {
        Volume {
            home: "a".into(),
            epoch: Epoch(4),
            open: true,
            abandoned: false,
            cut: None,
            durability,
            regions: names(&["a", "b", "c"]),
            sync_set: names(&["a", "b"]),
            automatic: true,
            blocks_alone: false,
            lag_max: None,
            lost_home: None,
            forced_home: None,
            join: None,
        }
    }

    fn at(version: u64) -> LogPosition {
        LogPosition::new(Epoch(4), version)
    }

    fn standing(refuses: u64, complete: u64) -> Standing {
        Standing { refuses: Epoch(refuses), complete: at(complete), newest: at(complete + 5) }
    }

    #[test]
    fn a_replica_stands_for_what_is_of_the_epochs_log() {
        let record = |confirmed: u64, (epoch, version): (u64, u64), complete: u64| ReplicaRecord {
            epoch,
            version,
            complete_epoch: epoch,
            complete_version: complete,
            confirmed,
            refuses: 3,
            ..ReplicaRecord::default()
        };
        let stands = |record: &ReplicaRecord, cut: Option<(u64, u64)>| {
            let cut = cut.map(|(epoch, version)| LogPosition::new(Epoch(epoch), version));
            let standing = Standing::of_replica(record, &Volume { cut, ..volume(Durability::Region) })?;
            assert_eq!((standing.refuses, standing.complete), (Epoch(3), record.complete()));
            Some((standing.newest.epoch.0, standing.newest.version))
        };
        // The volume's epoch is 4.
        assert_eq!(stands(&record(0, (4, 20), 10), Some((3, 5))), Some((4, 20)));
        assert_eq!(stands(&record(4, (3, 20), 10), Some((3, 30))), Some((3, 20)), "nothing came since");
        assert_eq!(stands(&record(0, (3, 20), 10), Some((3, 15))), Some((3, 15)), "it undoes the rest");
        assert_eq!(stands(&record(0, (3, 20), 15), Some((3, 15))), Some((3, 15)));
        assert_eq!(stands(&record(0, (3, 20), 20), Some((3, 15))), None, "found by simulation, seed 27 then");
        assert_eq!(stands(&record(0, (3, 20), 20), None), Some((3, 20)));
        assert_eq!(stands(&record(3, (2, 20), 20), Some((2, 20))), Some((2, 20)));
        assert_eq!(stands(&record(0, (2, 20), 20), Some((3, 30))), None, "of which log?");
        let copying = ReplicaRecord { copied_before: Some(Default::default()), ..record(4, (4, 20), 10) };
        assert_eq!(stands(&copying, None), None);
        assert_eq!(stands(&record(4, (4, 20), 0), None).map(|_| ()), Some(()));
        assert_eq!(Standing::of_replica(&ReplicaRecord::default(), &volume(Durability::Region)), None);
    }

    struct Case {
        volume: Volume,
        ran_out: BTreeMap<String, u64>,
        standings: BTreeMap<String, Standing>,
        closed_ms: u64,
    }

    impl Case {
        fn new(durability: Durability) -> Self {
            let standings = [("b".to_owned(), standing(0, 70)), ("c".to_owned(), standing(0, 90))];
            Self {
                volume: volume(durability),
                ran_out: BTreeMap::new(),
                standings: standings.into(),
                closed_ms: 0,
            }
        }

        fn lost(mut self, regions: &[&str]) -> Self {
            self.ran_out.extend(regions.iter().map(|region| ((*region).to_owned(), 33)));
            self
        }

        fn closed(mut self, for_ms: u64) -> Self {
            (self.volume.open, self.volume.abandoned, self.closed_ms) = (false, true, for_ms);
            self
        }

        fn says(mut self, region: &str, refuses: u64, complete: u64) -> Self {
            self.standings.insert(region.to_owned(), standing(refuses, complete));
            self
        }

        fn decide(&self) -> Decision {
            decide(&Facts {
                volume: &self.volume,
                ran_out: &self.ran_out,
                standings: &self.standings,
                closed_for: Duration::from_millis(self.closed_ms),
            })
        }
    }

    fn opened(home: &str, complete: u64) -> Decision {
        Decision::Open { closed: Epoch(4), home: home.into(), cut: at(complete) }
    }

    #[test]
    fn an_open_volume_is_closed_once_its_home_is_gone_and_somebody_could_take_over() {
        let close = Decision::Close { epoch: Epoch(4), judged: 33 };
        for durability in [Durability::Region, Durability::Geo] {
            assert_eq!(Case::new(durability).decide(), Decision::Leave);
            assert_eq!(Case::new(durability).lost(&["b", "c"]).decide(), Decision::Leave);
            assert_eq!(Case::new(durability).lost(&["a"]).decide(), close);
            let mut manual = Case::new(durability).lost(&["a"]);
            manual.volume.automatic = false;
            assert_eq!(manual.decide(), Decision::Leave);
        }
        // Of a geo volume only the sync set can.
        let wait = |of: &[&str]| Decision::Wait(Wait::ForSomebody { of: names(of) });
        assert_eq!(Case::new(Durability::Geo).lost(&["a", "b"]).decide(), wait(&["b"]));
        assert_eq!(Case::new(Durability::Region).lost(&["a", "b"]).decide(), close);
        assert_eq!(Case::new(Durability::Region).lost(&["a", "b", "c"]).decide(), wait(&["b", "c"]));
        // Whoever has no whole copy can't.
        let mut nobody = Case::new(Durability::Region).lost(&["a"]);
        nobody.standings.clear();
        assert_eq!(nobody.decide(), wait(&["b", "c"]));
    }

    #[test]
    fn a_closed_volume_opens_at_whoever_is_complete_furthest_of_those_that_refuse_the_old_epoch() {
        let case = || Case::new(Durability::Region).lost(&["a"]).closed(0);
        let wait = |from: &[&str]| Decision::Wait(Wait::ForWord { from: names(from) });
        assert_eq!(case().decide(), wait(&["b", "c"]), "what was said before the close may be behind");
        assert_eq!(case().says("b", 4, 70).decide(), wait(&["c"]));
        assert_eq!(case().says("b", 4, 70).says("c", 3, 90).decide(), wait(&["c"]));
        assert_eq!(case().says("b", 4, 70).says("c", 4, 91).decide(), opened("c", 91));
        assert_eq!(case().says("b", 4, 91).says("c", 4, 91).decide(), opened("b", 91), "of equals the first");
        // One that is up and says nothing is waited for a while, one that is gone isn't.
        assert_eq!(case().closed(2_000).says("b", 4, 70).decide(), opened("b", 70));
        assert_eq!(case().lost(&["c"]).says("b", 4, 70).decide(), opened("b", 70));
        assert_eq!(case().closed(60_000).decide(), wait(&["b", "c"]), "without a word nothing is opened");
    }

    #[test]
    fn a_geo_volume_waits_for_a_member_of_its_sync_set() {
        let case = || Case::new(Durability::Geo).lost(&["a"]).closed(60_000).says("c", 4, 99);
        assert_eq!(case().decide(), Decision::Wait(Wait::ForWord { from: names(&["b"]) }));
        assert_eq!(case().says("b", 4, 70).decide(), opened("b", 70), "c may lack what was acknowledged");
        let gone = case().lost(&["b"]).says("b", 4, 70);
        assert_eq!(gone.decide(), Decision::Wait(Wait::ForSomebody { of: names(&["a", "b"]) }));
    }

    #[test]
    fn a_home_that_comes_back_before_another_is_opened_goes_on_with_everything() {
        let mut case = Case::new(Durability::Region).closed(0).says("b", 4, 70).says("c", 4, 90);
        assert_eq!(case.decide(), Decision::Wait(Wait::ForWord { from: names(&["a"]) }));
        case = case.says("a", 4, 95);
        assert_eq!(case.decide(), opened("a", 95));
        assert_eq!(case.says("c", 4, 95).decide(), opened("a", 95), "of equals the home");
    }

    #[test]
    fn a_planned_move_is_left_to_its_home_while_that_is_there() {
        let mut case = Case::new(Durability::Region).closed(60_000).says("b", 4, 70).says("c", 4, 90);
        case.volume.abandoned = false;
        assert_eq!(case.decide(), Decision::Leave);
        assert_eq!(case.lost(&["a"]).decide(), opened("c", 90));
    }

    #[test]
    fn a_home_that_was_given_up_ends_before_the_region_that_was_named_begins() {
        let case = |automatic: bool| {
            let mut case = Case::new(Durability::Geo).closed(60_000).says("b", 4, 95).says("c", 4, 70);
            (case.volume.automatic, case.volume.forced_home) = (automatic, Some("c".into()));
            case
        };
        for automatic in [false, true] {
            let ends = Decision::Wait(Wait::ForEnd { of: "a".into() });
            assert_eq!(case(automatic).decide(), ends, "it may answer still");
            assert_eq!(case(automatic).says("a", 3, 99).decide(), ends, "what it said of an epoch before");
            assert_eq!(case(automatic).says("a", 4, 99).decide(), opened("c", 70), "whoever has more");
            assert_eq!(case(automatic).lost(&["a"]).decide(), opened("c", 70));
            let unsaid = case(automatic).lost(&["a"]).says("c", 3, 70);
            assert_eq!(unsaid.decide(), Decision::Wait(Wait::ForWord { from: names(&["c"]) }));
            let gone = case(automatic).lost(&["a", "c"]);
            assert_eq!(gone.decide(), Decision::Wait(Wait::ForSomebody { of: names(&["c"]) }));
            // An epoch that has opened so is one like others.
            let mut open = case(automatic).lost(&["a"]);
            open.volume.open = true;
            assert_eq!(open.decide() == Decision::Leave, !automatic);
            // One that doesn't have the volume any more isn't waited for.
            let mut without = case(automatic).lost(&["a"]);
            without.volume.regions.remove("c");
            assert_eq!(without.decide(), if automatic { opened("b", 95) } else { Decision::Leave });
        }
    }

    proptest! {
        #[test]
        fn whatever_is_decided_loses_nothing_that_it_neednt(
            geo: bool, open: bool, abandoned: bool, automatic: bool,
            lost in proptest::collection::btree_set("[abc]", 0..4),
            said in proptest::collection::btree_map("[abc]", (0_u64..6, 0_u64..100), 0..4),
            closed_ms in 0_u64..5_000,
        ) {
            let mut case = Case::new(if geo { Durability::Geo } else { Durability::Region });
            (case.volume.open, case.volume.abandoned, case.volume.automatic) = (open, abandoned, automatic);
            case.ran_out = lost.iter().map(|region| (region.clone(), 33)).collect();
            case.standings =
                said.iter().map(|(region, (refuses, complete))| (region.clone(), standing(*refuses, *complete))).collect();
            case.closed_ms = closed_ms;
            match case.decide() {
                Decision::Close { .. } => prop_assert!(open && automatic && lost.contains("a")),
                Decision::Open { home, cut, closed } => {
                    prop_assert!(!open && automatic && closed == Epoch(4) && !lost.contains(&home));
                    prop_assert!(abandoned || lost.contains("a"));
                    prop_assert!(!geo || case.volume.sync_set.contains(&home));
                    prop_assert!(case.standings[&home].refuses >= Epoch(4) && case.standings[&home].complete == cut);
                    for (region, standing) in &case.standings {
                        let could = !geo || case.volume.sync_set.contains(region);
                        let there = !lost.contains(region) && standing.refuses >= Epoch(4);
                        prop_assert!(!(could && there) || standing.complete <= cut, "{} is further", region);
                    }
                }
                Decision::Leave | Decision::Wait(_) => {}
            }
        }
    }
}
