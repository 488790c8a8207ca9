//! Who is in a `geo` volume's sync set: a home's decisions, which the global group makes true (DESIGN section 8).
//!
//! ```text
//!  outside --has caught up--> joining: waited for like a member --has what there was then--> proposed --agreed--> member
//!     ^--------------------- stalls ------/                                                                       |
//!     \------------------------------ agreed <-- proposed without it <-- stalls, while it is waited for still -----/
//! ```
//! Whoever is answered was waited for by all members that there were and those that were to be: so whatever set is agreed on, each of its members has
//! everything that was acknowledged. Places are anything ordered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// A member that isn't heard of for so long, while something waits for it, stalls.
pub const SILENT: Duration = Duration::from_secs(3);
/// And one that has been behind for so long, heard of or not.
pub const BEHIND: Duration = Duration::from_secs(30);
/// A region that is behind by less than this may join.
pub const CLOSE: Duration = Duration::from_secs(1);
/// One that was removed stays outside for so long, lest a bad link cost every writer its pauses again and again.
pub const REST: Duration = Duration::from_secs(10);
/// How often the newest place is taken note of.
const SAMPLE: Duration = Duration::from_millis(100);

/// What is known of a region besides the home.
#[derive(Clone, Copy, Debug)]
pub struct Seen<P> {
    /// It has everything up to here; none while that isn't known, or it copies the volume.
    pub complete: Option<P>,
    /// When it was heard of last.
    pub heard: Option<BootTime>,
}

/// What a decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a, P> {
    /// The volume's home, this region.
    pub home: &'a str,
    /// The set that is agreed on.
    pub agreed: &'a BTreeSet<String>,
    /// What is known of the other regions that have the volume.
    pub regions: &'a BTreeMap<String, Seen<P>>,
    /// The newest place of the log.
    pub newest: P,
    /// The home isn't to be alone in the set.
    pub blocks_alone: bool,
}

#[derive(Clone, Copy, Debug)]
struct Joining<P> {
    /// What there was once it was waited for; none until the next look: what was answered during the one before may not have waited.
    mark: Option<P>,
    /// A set with it was proposed: it may be agreed on at any time.
    proposed: bool,
}

/// A home's account of it, from when it became the home.
#[derive(Clone, Debug)]
pub struct SyncSet<P> {
    joining: BTreeMap<String, Joining<P>>,
    left: BTreeMap<String, BootTime>,
    /// The newest place at times gone by.
    samples: VecDeque<(BootTime, P)>,
}

/// The regions besides the home that are waited for: those that are agreed on and those that join. As long as it isn't known who might come into the set by what
/// was proposed before this account began, all that have the volume.
pub fn waited_for<'a>(
    home: &str,
    agreed: &'a BTreeSet<String>,
    joining: Option<&'a BTreeSet<String>>,
    all: &'a BTreeSet<String>,
) -> BTreeSet<&'a String> {
    agreed.iter().chain(joining.unwrap_or(all)).filter(|region| *region != home).collect()
}

impl<P> Default for SyncSet<P> {
    fn default() -> Self {
        Self { joining: BTreeMap::new(), left: BTreeMap::new(), samples: VecDeque::new() }
    }
}

impl<P: Copy + Ord> SyncSet<P> {
    /// The regions that aren't agreed on yet and are waited for.
    pub fn joining(&self) -> impl Iterator<Item = &str> {
        self.joining.keys().map(String::as_str)
    }

    /// Since when something is missing in a region, roughly; none where nothing is.
    fn behind_since(&self, complete: Option<P>, newest: P) -> Option<BootTime> {
        if complete.is_some_and(|complete| complete >= newest) {
            return None;
        }
        self.samples
            .iter()
            .find(|(_, place)| complete.is_none_or(|complete| *place > complete))
            .map(|(at, _)| *at)
    }

    /// Looks at how things are. Answers a set to propose; who is `joining` afterwards is waited for before anything is answered.
    pub fn step(&mut self, now: BootTime, facts: &Facts<'_, P>) -> Option<BTreeSet<String>> {
        if self.samples.back().is_none_or(|(at, _)| now.since(*at) >= SAMPLE) {
            self.samples.push_back((now, facts.newest));
            // Longer ago than anybody may be behind.
            while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(at, _)| now.since(*at) > BEHIND)
            {
                self.samples.pop_front();
            }
        }
        self.joining.retain(|region, _| !facts.agreed.contains(region) && facts.regions.contains_key(region));
        let behind = |seen: &Seen<P>| self.behind_since(seen.complete, facts.newest);
        let stalls = |region: &String| {
            let Some(seen) = facts.regions.get(region) else { return true };
            let silent = seen.heard.is_none_or(|heard| now.since(heard) >= SILENT);
            behind(seen)
                .is_some_and(|since| (silent && now.since(since) >= SILENT) || now.since(since) >= BEHIND)
        };
        let others = facts.agreed.iter().filter(|region| *region != facts.home);
        let stalled: BTreeSet<String> = others.filter(|region| stalls(region)).cloned().collect();
        if !stalled.is_empty() {
            let left: BTreeSet<String> = facts.agreed.difference(&stalled).cloned().collect();
            if left.len() > 1 || !facts.blocks_alone {
                self.left.extend(stalled.into_iter().map(|region| (region, now)));
                return Some(left);
            }
        }
        let given_up: Vec<String> = self
            .joining
            .iter()
            .filter(|(region, j)| !j.proposed && stalls(region))
            .map(|(region, _)| region.clone())
            .collect();
        let close: Vec<String> = facts
            .regions
            .iter()
            .filter(|(region, seen)| {
                let rests = self.left.get(*region).is_some_and(|left| now.since(*left) < REST);
                let lives = seen.heard.is_some_and(|heard| now.since(heard) < CLOSE);
                let near =
                    seen.complete.is_some() && behind(seen).is_none_or(|since| now.since(since) < CLOSE);
                let outside = !facts.agreed.contains(*region) && !self.joining.contains_key(*region);
                outside && lives && near && !rests
            })
            .map(|(region, _)| region.clone())
            .collect();
        for joining in self.joining.values_mut() {
            joining.mark.get_or_insert(facts.newest);
        }
        for region in given_up {
            self.joining.remove(&region);
            self.left.insert(region, now);
        }
        for region in close {
            self.joining.insert(region, Joining { mark: None, proposed: false });
        }
        let mut proposed = facts.agreed.clone();
        for (region, joining) in &mut self.joining {
            let complete = facts.regions.get(region).and_then(|seen| seen.complete);
            joining.proposed |= joining.mark.is_some() && complete >= joining.mark;
            if joining.proposed {
                proposed.insert(region.clone());
            }
        }
        (proposed != *facts.agreed).then_some(proposed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        /// The home commits.
        Change,
        /// A region has what there is, and says so.
        Hear(usize),
        /// Time passes.
        Wait(u64),
        /// The home looks, and its proposal is agreed on, lost, or agreed on later.
        Look(u8),
        /// What was proposed and seemed lost is agreed on after all.
        Late,
        /// The home commits and answers while it looks.
        LookBeside,
        /// Another account begins: of another leader, or of the same one after a move that came to nothing.
        Anew,
        /// It has the version counted up.
        Count,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(
            prop_oneof![
                4 => Just(Event::Change),
                4 => (0_usize..2).prop_map(Event::Hear),
                3 => prop_oneof![Just(50_u64), Just(900), Just(3_100), Just(11_000)].prop_map(Event::Wait),
                6 => (0_u8..4).prop_map(Event::Look),
                3 => Just(Event::Late),
                3 => Just(Event::LookBeside),
                2 => Just(Event::Anew),
                2 => Just(Event::Count),
            ],
            0..120,
        )
    }

    fn set(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|region| (*region).to_owned()).collect()
    }

    proptest! {
        // What goes wrong takes several rare events in a row.
        #![proptest_config(ProptestConfig::with_cases(8_000))]

        /// Each member of whatever set is agreed on has everything that was acknowledged, as long as it keeps what it has.
        #[test]
        fn members_have_what_was_acknowledged(events in events(), blocks_alone: bool) {
            let names = ["b", "c"];
            let mut decider = SyncSet::<u64>::default();
            let (mut now, mut newest, mut acknowledged) = (BootTime(Duration::from_millis(1_000)), 1_u64, 0_u64);
            let mut has = [0_u64; 2];
            let mut regions: BTreeMap<String, Seen<u64>> =
                names.iter().map(|n| ((*n).to_owned(), Seen { complete: None, heard: None })).collect();
            let mut agreed = set(&["a"]);
            // Each set that is agreed on makes another version of the global store.
            let (mut late, mut version): (Option<(u64, BTreeSet<String>)>, u64) = (None, 0);
            let mut joining = Some(BTreeSet::new());
            let all = set(&["a", "b", "c"]);
            // As `sync::synced` has it: by the set that is agreed on as far as the home knows, and those that join.
            let synced = |agreed: &BTreeSet<String>, joining: &Option<BTreeSet<String>>, regions: &BTreeMap<String, Seen<u64>>, newest: u64| {
                let members = waited_for("a", agreed, joining.as_ref(), &all);
                let synced = members.into_iter().map(|r| regions[r].complete.unwrap_or(0)).min();
                synced.unwrap_or(if blocks_alone { 0 } else { newest }).min(newest)
            };
            for event in events {
                match event {
                    Event::Change => newest += 1,
                    Event::Hear(n) => {
                        has[n] = newest;
                        regions.insert(names[n].to_owned(), Seen { complete: Some(newest), heard: Some(now) });
                    }
                    Event::Wait(ms) => now = now.after(Duration::from_millis(ms)),
                    Event::Anew => {
                        (decider, joining) = (SyncSet::default(), None);
                        for seen in regions.values_mut() {
                            *seen = Seen { complete: None, heard: None };
                        }
                    }
                    Event::Count => {
                        version += 1;
                        joining.get_or_insert_default();
                    }
                    // Before that it proposes nothing.
                    Event::Look(_) | Event::LookBeside if joining.is_none() => {}
                    Event::Look(_) | Event::LookBeside => {
                        let fate = if let Event::Look(fate) = event { fate } else { 2 };
                        let before = (agreed.clone(), joining.clone());
                        let facts = Facts { home: "a", agreed: &agreed, regions: &regions, newest, blocks_alone };
                        if let Some(proposed) = decider.step(now, &facts) {
                            prop_assert!(proposed.contains("a"));
                            prop_assert!(proposed.len() > 1 || agreed.len() == 1 || !blocks_alone);
                            match fate {
                                0 => {}
                                1 => late = Some((version, proposed)),
                                _ => (agreed, version) = (proposed, version + 1),
                            }
                        }
                        if let Event::LookBeside = event {
                            newest += 1;
                            acknowledged = acknowledged.max(synced(&before.0, &before.1, &regions, newest));
                        }
                        joining = Some(decider.joining().map(str::to_owned).collect());
                    }
                    Event::Late => {
                        if let Some((at, proposed)) = late.take() && at == version {
                            (agreed, version) = (proposed, version + 1);
                        }
                    }
                }
                for (n, name) in names.iter().enumerate() {
                    prop_assert!(!agreed.contains(*name) || has[n] >= acknowledged, "{name} has {}, {acknowledged} were acknowledged", has[n]);
                }
                acknowledged = acknowledged.max(synced(&agreed, &joining, &regions, newest));
            }
        }
    }

    #[test]
    fn all_are_waited_for_while_what_was_proposed_before_may_come() {
        let (agreed, all) = (set(&["a", "b"]), set(&["a", "b", "c", "d"]));
        let waited = |joining: Option<&[&str]>| {
            let joining = joining.map(set);
            let found = waited_for("a", &agreed, joining.as_ref(), &all);
            found.into_iter().cloned().collect::<BTreeSet<_>>()
        };
        assert_eq!(waited(None), set(&["b", "c", "d"]));
        assert_eq!(waited(Some(&[])), set(&["b"]));
        assert_eq!(waited(Some(&["c"])), set(&["b", "c"]));
    }

    #[test]
    fn a_silent_member_leaves_and_comes_back_after_a_rest() {
        let mut decider = SyncSet::<u64>::default();
        let mut agreed = set(&["a"]);
        let start = BootTime(Duration::from_millis(1_000));
        let at = |ms: u64| start.after(Duration::from_millis(ms));
        let look = |decider: &mut SyncSet<u64>,
                    agreed: &BTreeSet<String>,
                    ms: u64,
                    newest: u64,
                    complete: u64,
                    heard: u64| {
            let regions =
                [("b".to_owned(), Seen { complete: Some(complete), heard: Some(at(heard)) })].into();
            decider.step(at(ms), &Facts { home: "a", agreed, regions: &regions, newest, blocks_alone: false })
        };
        // It is close, is waited for, and joins once it has what there was then.
        assert_eq!(look(&mut decider, &agreed, 0, 5, 4, 0), None);
        assert_eq!(decider.joining().collect::<Vec<_>>(), ["b"]);
        assert_eq!(
            look(&mut decider, &agreed, 50, 6, 5, 50),
            None,
            "what was answered before it was waited for is at 6"
        );
        agreed = look(&mut decider, &agreed, 100, 7, 6, 100).unwrap();
        assert_eq!(agreed, set(&["a", "b"]));
        // Silent, but nothing waits for it.
        assert_eq!(look(&mut decider, &agreed, 9_000, 7, 7, 100), None);
        // Something does, for less than it may take.
        assert_eq!(look(&mut decider, &agreed, 9_100, 8, 7, 100), None);
        assert_eq!(look(&mut decider, &agreed, 12_000, 8, 7, 100), None);
        agreed = look(&mut decider, &agreed, 12_200, 8, 7, 100).unwrap();
        assert_eq!(agreed, set(&["a"]));
        // Back at once, and only after a rest in the set.
        assert_eq!(look(&mut decider, &agreed, 12_300, 8, 8, 12_300), None);
        assert_eq!(decider.joining().count(), 0);
        assert_eq!(look(&mut decider, &agreed, 22_300, 8, 8, 22_300), None);
        assert_eq!(look(&mut decider, &agreed, 22_350, 8, 8, 22_350), Some(set(&["a", "b"])));
        // One that is heard of and falls behind for long leaves, too.
        agreed = set(&["a", "b"]);
        for ms in (22_400..52_000).step_by(100) {
            assert_eq!(look(&mut decider, &agreed, ms, ms, 8, ms), None, "{ms}");
        }
        assert_eq!(look(&mut decider, &agreed, 52_500, 52_500, 8, 52_500), Some(set(&["a"])));
    }
}
