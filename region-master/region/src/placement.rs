//! Built-in placement: which chunkservers take the copies of a fresh chunk.
//!
//! A pure function: the same candidates, wish and seed give the same answer. Copies go to different zones as long as there are some left,
//! then to different racks, then to different hosts; two chunkservers of one host share a chunk only where nothing else is left. Among equals
//! the choice is by lot, weighted by free space, so that disks fill evenly. Only chunkservers with all labels of the storage class are chosen.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use mooseng_wire::CHUNK_BYTES_MAX;

use crate::class::{Class, Labels, fits};
use crate::registry::Liveness;

/// A chunkserver that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its rack, within the zone.
    pub rack: String,
    /// Its machine.
    pub host: String,
    /// Bytes that new chunks may take.
    pub bytes_free: u64,
    /// Some disk takes new chunks.
    pub writable: bool,
    /// An administrator has it emptied.
    pub draining: bool,
    /// How it stands.
    pub liveness: Liveness,
    /// Its labels; `zone`, `rack` and `host` among them.
    pub labels: Labels,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// How many copies, and on what chunkservers.
    pub class: &'a Class,
    /// Bytes that a chosen chunkserver must have free.
    pub bytes_wanted: u64,
    /// Chunkservers that the writer found failing: taken only where `min_copies` can't be reached otherwise, for they may be well again.
    pub exclude: &'a BTreeSet<String>,
    /// Decides the lots.
    pub seed: u64,
}

/// Too few chunkservers can take a copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} needs {} copies{}, but only {usable} of {known} chunkservers can take one{}. Start chunkservers or free space; writes wait until then", class.new_chunk(), class.min_copies.max(1), self.where_to(), self.reasons())]
pub struct TooFew {
    /// The storage class.
    pub class: Class,
    /// Chunkservers that could take one.
    pub usable: usize,
    /// Chunkservers registered.
    pub known: usize,
    /// Chunkservers that can't, and why.
    pub unusable: Vec<(String, Unusable)>,
}

/// Why a chunkserver can't take a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// No heartbeat for long.
    Lost,
    /// No writable disk.
    NotWritable,
    /// It is being emptied.
    Draining,
    /// Not enough space.
    Full,
    /// It lacks labels of the storage class.
    Unlike,
}

impl Unusable {
    fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "sends no heartbeats",
            Self::NotWritable => "has no writable disk",
            Self::Draining => "is being drained",
            Self::Full => "has no space left",
            Self::Unlike => "hasn't these labels",
        }
    }
}

/// A message names this many chunkservers at most.
const NAMED_MAX: usize = 8;

impl TooFew {
    /// Whether waiting is in vain: of the chunkservers that are known, all that might take a copy once they are back can't.
    pub fn lasts(&self) -> bool {
        let lasting = |(_, why): &(String, Unusable)| matches!(why, Unusable::Full | Unusable::Unlike);
        !self.unusable.is_empty() && self.unusable.iter().all(lasting)
    }

    /// Whether labels have a part in that.
    pub fn is_for_labels(&self) -> bool {
        self.unusable.iter().any(|(_, why)| *why == Unusable::Unlike)
    }

    fn where_to(&self) -> String {
        match self.class.labels.is_empty() {
            true => String::new(),
            false => format!(" on chunkservers labelled {}", self.class.labelled()),
        }
    }

    fn reasons(&self) -> String {
        let mut text = String::new();
        // Those first that could be helped.
        let mut unusable: Vec<_> = self.unusable.iter().collect();
        unusable.sort_by_key(|(_, why)| *why == Unusable::Unlike);
        for (i, (name, why)) in unusable.into_iter().take(NAMED_MAX).enumerate() {
            let _ = write!(text, "{} {name} {}", if i == 0 { ":" } else { "," }, why.as_str());
        }
        if self.unusable.len() > NAMED_MAX {
            let _ = write!(text, " and {} more", self.unusable.len() - NAMED_MAX);
        }
        text
    }
}

/// Chooses chunkservers for a chunk, in chain order. Between `min_copies` and `copies` of them.
pub fn place(candidates: &[Candidate], wish: Wish<'_>) -> Result<Vec<String>, TooFew> {
    let mut unusable = Vec::new();
    // Preferred, excluded by the writer, suspect: each next tier is drawn on only to reach `min_copies`.
    let mut tiers: [Vec<&Candidate>; 3] = Default::default();
    for candidate in candidates {
        let excluded = wish.exclude.contains(&candidate.name);
        match verdict(candidate, wish) {
            Err(why) => unusable.push((candidate.name.clone(), why)),
            Ok(()) if candidate.liveness == Liveness::Suspect => tiers[2].push(candidate),
            Ok(()) if excluded => tiers[1].push(candidate),
            Ok(()) => tiers[0].push(candidate),
        }
    }
    let usable: usize = tiers.iter().map(Vec::len).sum();
    let min_copies = wish.class.min_copies.max(1);
    if usable < min_copies {
        return Err(TooFew { class: wish.class.clone(), usable, known: candidates.len(), unusable });
    }
    let mut lots = Lots(wish.seed);
    let mut chosen: Vec<&Candidate> = Vec::new();
    for (i, tier) in tiers.iter_mut().enumerate() {
        let target = if i == 0 { wish.class.copies.max(min_copies) } else { min_copies };
        while chosen.len() < target && !tier.is_empty() {
            let at = choose(tier, &chosen, &mut lots);
            chosen.push(tier.swap_remove(at));
        }
    }
    Ok(chosen.into_iter().map(|c| c.name.clone()).collect())
}

fn verdict(candidate: &Candidate, wish: Wish<'_>) -> Result<(), Unusable> {
    if !fits(&wish.class.labels, candidate) {
        return Err(Unusable::Unlike);
    }
    if candidate.liveness == Liveness::Lost {
        return Err(Unusable::Lost);
    }
    if !candidate.writable {
        return Err(Unusable::NotWritable);
    }
    if candidate.draining {
        return Err(Unusable::Draining);
    }
    if candidate.bytes_free < wish.bytes_wanted {
        return Err(Unusable::Full);
    }
    Ok(())
}

/// How much of its failure domain a candidate shares with what is chosen: 0 nothing, 1 a zone, 2 a rack, 3 a host.
pub fn closeness(candidate: &Candidate, chosen: &[&Candidate]) -> u8 {
    let shared = |c: &&Candidate| {
        if c.host == candidate.host {
            3
        } else if c.zone != candidate.zone {
            0
        } else if c.rack == candidate.rack {
            2
        } else {
            1
        }
    };
    chosen.iter().map(shared).max().unwrap_or(0)
}

fn choose(from: &[&Candidate], chosen: &[&Candidate], lots: &mut Lots) -> usize {
    let closest: Vec<u8> = from.iter().map(|c| closeness(c, chosen)).collect();
    let best = closest.iter().copied().min().unwrap_or(0);
    let eligible = || closest.iter().enumerate().filter(move |(_, c)| **c == best).map(|(i, _)| i);
    // In MiB, so that the sum of a thousand chunkservers fits.
    let weight = |i: usize| u128::from(from[i].bytes_free >> 20) + 1;
    let total: u128 = eligible().map(weight).sum();
    let mut lot = u128::from(lots.next()) % total.max(1);
    for i in eligible() {
        let weight = weight(i);
        if lot < weight {
            return i;
        }
        lot -= weight;
    }
    0
}

/// SplitMix64: enough for lots, and the same everywhere.
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How many failure domains the candidates span at the widest level that tells them apart: zones, else racks, else hosts.
pub fn failure_domains(candidates: &[Candidate]) -> usize {
    let count =
        |key: fn(&Candidate) -> (&str, &str, &str)| candidates.iter().map(key).collect::<BTreeSet<_>>().len();
    let zones = count(|c| (c.zone.as_str(), "", ""));
    if zones > 1 {
        return zones;
    }
    let racks = count(|c| (c.zone.as_str(), c.rack.as_str(), ""));
    if racks > 1 {
        return racks;
    }
    count(|c| ("", "", c.host.as_str()))
}

/// Whether a chunkserver takes new chunks of a class with these labels, as things are.
pub fn takes_new(candidate: &Candidate, labels: &Labels) -> bool {
    let here = candidate.liveness == Liveness::Alive && candidate.writable && !candidate.draining;
    here && candidate.bytes_free >= CHUNK_BYTES_MAX && fits(labels, candidate)
}

/// A chunkserver isn't emptied: without it no chunk could be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "chunkserver {name} can't be drained: {left} living chunkservers would be left that aren't drained, and a new chunk needs {least} (`min_copies`), so that no file data could be written, and chunks had nowhere to go. Start another chunkserver first, or take one back into use (`mooseng chunkservers undrain`)"
)]
pub struct TooFewLeft {
    /// The chunkserver.
    pub name: String,
    /// How many would be left.
    pub left: usize,
    /// How many it takes.
    pub least: usize,
}

/// Refuses to have a chunkserver emptied without which too few would be left for a chunk with `least` copies. Of one that isn't known, or is being emptied, it says
/// nothing.
pub fn may_drain(candidates: &[Candidate], name: &str, least: usize) -> Result<(), TooFewLeft> {
    if !candidates.iter().any(|c| c.name == name && !c.draining) {
        return Ok(());
    }
    let stays = |c: &&Candidate| c.name != name && !c.draining && c.liveness == Liveness::Alive;
    match candidates.iter().filter(stays).count() {
        left if left < least => Err(TooFewLeft { name: name.to_owned(), left, least }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn candidate(name: &str, zone: &str, rack: &str) -> Candidate {
        Candidate {
            name: name.into(),
            zone: zone.into(),
            rack: rack.into(),
            host: name.into(),
            bytes_free: 1 << 40,
            writable: true,
            draining: false,
            liveness: Liveness::Alive,
            labels: Labels::new(),
        }
    }

    fn class(copies: usize, min_copies: usize) -> Class {
        Class::by_default(copies, min_copies)
    }

    static TWO: std::sync::LazyLock<Class> = std::sync::LazyLock::new(|| class(2, 2));

    fn wish(exclude: &BTreeSet<String>) -> Wish<'_> {
        Wish { class: &TWO, bytes_wanted: 64 << 20, exclude, seed: 1 }
    }

    #[test]
    fn copies_go_to_zones_then_racks_then_hosts() {
        let none = BTreeSet::new();
        let zones = [candidate("a", "1", "r"), candidate("b", "1", "r"), candidate("c", "2", "r")];
        for seed in 0..50 {
            let got = place(&zones, Wish { seed, ..wish(&none) }).unwrap();
            assert!(got.contains(&"c".to_owned()), "{got:?} leaves the second zone out");
        }
        let racks = [candidate("a", "1", "r"), candidate("b", "1", "r"), candidate("c", "1", "s")];
        for seed in 0..50 {
            assert!(place(&racks, Wish { seed, ..wish(&none) }).unwrap().contains(&"c".to_owned()));
        }
        let mut hosts = [candidate("a", "1", "r"), candidate("b", "1", "r"), candidate("c", "1", "r")];
        hosts[1].host = "a".into();
        for seed in 0..50 {
            assert!(place(&hosts, Wish { seed, ..wish(&none) }).unwrap().contains(&"c".to_owned()));
        }
        assert_eq!(
            place(&hosts[..2], wish(&none)).unwrap().len(),
            2,
            "one host is better than no second copy"
        );
    }

    #[test]
    fn excluded_and_suspect_ones_are_taken_only_in_need() {
        let exclude = BTreeSet::from(["b".to_owned()]);
        let mut all = vec![candidate("a", "1", ""), candidate("b", "2", ""), candidate("c", "1", "")];
        assert_eq!(
            place(&all, wish(&exclude)).unwrap().into_iter().collect::<BTreeSet<_>>(),
            BTreeSet::from(["a".into(), "c".into()])
        );
        all[2].liveness = Liveness::Suspect;
        assert_eq!(
            place(&all, wish(&exclude)).unwrap(),
            ["a", "b"],
            "a living excluded one before a silent one"
        );
        all.remove(1);
        assert_eq!(place(&all, wish(&exclude)).unwrap(), ["a", "c"]);
        let three = [candidate("a", "1", ""), candidate("b", "2", ""), candidate("c", "1", "")];
        let got = place(&three, Wish { class: &class(3, 2), ..wish(&exclude) }).unwrap();
        assert!(
            got.len() == 2 && !got.contains(&"b".to_owned()),
            "a third copy isn't worth an excluded one: {got:?}"
        );
    }

    #[test]
    fn too_few_says_what_is_missing() {
        let none = BTreeSet::new();
        let mut all = [
            candidate("a", "1", ""),
            candidate("b", "2", ""),
            candidate("c", "3", ""),
            candidate("d", "3", ""),
            candidate("e", "4", ""),
        ];
        all[4].draining = true;
        all[1].liveness = Liveness::Lost;
        all[2].writable = false;
        all[3].bytes_free = 5;
        let error = place(&all, wish(&none)).unwrap_err();
        assert_eq!((error.usable, error.known), (1, 5));
        let text = error.to_string();
        for part in [
            "b sends no heartbeats",
            "c has no writable disk",
            "d has no space left",
            "e is being drained",
            "needs 2 copies",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(place(&[], wish(&none)).unwrap_err().to_string().contains("only 0 of 0"));
    }

    #[test]
    fn a_class_with_labels_takes_none_but_those_that_have_them() {
        let none = BTreeSet::new();
        let mut all = [
            candidate("a", "1", ""),
            candidate("b", "2", ""),
            candidate("c", "3", ""),
            candidate("d", "4", ""),
        ];
        for i in [0, 2, 3] {
            all[i].labels.insert("media".into(), "ssd".into());
        }
        all[3].labels.insert("media".into(), "hdd".into());
        let labels = Labels::from([("media".into(), "ssd".into())]);
        let fast = Class { id: 1, name: "fast".into(), labels, ..class(3, 2) };
        let wish = Wish { class: &fast, ..wish(&none) };
        for seed in 0..50 {
            let got: BTreeSet<String> = place(&all, Wish { seed, ..wish }).unwrap().into_iter().collect();
            assert_eq!(
                got,
                BTreeSet::from(["a".into(), "c".into()]),
                "two will do where three are asked for"
            );
        }
        all[2].liveness = Liveness::Lost;
        let error = place(&all, wish).unwrap_err();
        let text = error.to_string();
        for part in [
            "a new chunk of class \"fast\" needs 2 copies on chunkservers labelled media=ssd",
            "only 1 of 4",
            "c sends no heartbeats, b hasn't these labels, d hasn't these labels",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!error.lasts() && error.is_for_labels(), "c may come back");
        all[2].liveness = Liveness::Alive;
        all[2].bytes_free = 0;
        assert!(place(&all, wish).unwrap_err().lasts());
        all[2].labels.clear();
        assert!(place(&all, wish).unwrap_err().lasts());
        assert!(!place(&[], wish).unwrap_err().lasts(), "nobody is known yet");
    }

    #[test]
    fn free_space_weighs() {
        let none = BTreeSet::new();
        let mut all = [candidate("a", "1", ""), candidate("b", "1", "")];
        all[1].bytes_free = (1 << 40) * 9;
        let mut hits: BTreeMap<String, u32> = BTreeMap::new();
        for seed in 0..2_000 {
            let got = place(&all, Wish { class: &class(1, 1), seed, ..wish(&none) }).unwrap();
            *hits.entry(got[0].clone()).or_default() += 1;
        }
        assert!((100..400).contains(&hits["a"]), "a tenth of the space should get about a tenth: {hits:?}");
    }

    #[test]
    fn nothing_is_emptied_that_is_needed_for_a_new_chunk() {
        let mut all = [candidate("a", "1", ""), candidate("b", "2", ""), candidate("c", "3", "")];
        assert_eq!(may_drain(&all, "a", 2), Ok(()));
        all[1].liveness = Liveness::Suspect;
        let refused = may_drain(&all, "a", 2).unwrap_err();
        assert_eq!((refused.left, refused.least), (1, 2));
        assert!(refused.to_string().starts_with("chunkserver a can't be drained: 1 living"), "{refused}");
        assert_eq!(may_drain(&all, "a", 1), Ok(()));
        // What is drained already, or isn't there, nobody refuses here.
        all[0].draining = true;
        assert_eq!((may_drain(&all, "a", 2), may_drain(&all, "x", 9)), (Ok(()), Ok(())));
        assert_eq!(may_drain(&all, "c", 1).unwrap_err().left, 0);
    }

    #[test]
    fn who_takes_new_chunks() {
        let none = Labels::new();
        let one = candidate("a", "1", "");
        assert!(takes_new(&one, &none));
        let zone = Labels::from([("zone".to_owned(), "2".to_owned())]);
        for not in [
            Candidate { draining: true, ..one.clone() },
            Candidate { writable: false, ..one.clone() },
            Candidate { liveness: Liveness::Suspect, ..one.clone() },
            Candidate { bytes_free: CHUNK_BYTES_MAX - 1, ..one.clone() },
        ] {
            assert!(!takes_new(&not, &none), "{not:?}");
        }
        assert!(!takes_new(&one, &zone));
    }

    #[test]
    fn domains_are_counted_at_the_widest_level_that_differs() {
        assert_eq!(failure_domains(&[]), 0);
        assert_eq!(
            failure_domains(&[candidate("a", "1", ""), candidate("b", "2", ""), candidate("c", "2", "")]),
            2
        );
        assert_eq!(failure_domains(&[candidate("a", "1", "r"), candidate("b", "1", "s")]), 2);
        assert_eq!(
            failure_domains(&[candidate("a", "", ""), candidate("b", "", ""), candidate("c", "", "")]),
            3
        );
    }

    proptest! {
        /// Never two copies in one zone where another zone has a usable chunkserver left, and always the same answer.
        #[test]
        fn zones_are_used_up_first(zones in prop::collection::vec((0..4_u8, 0..3_u8, 0..2_u64), 2..12), copies in 1..5_usize, seed: u64) {
            let all: Vec<Candidate> = zones.iter().enumerate().map(|(i, (z, r, free))| Candidate {
                bytes_free: (free + 1) << 30,
                ..candidate(&format!("c{i}"), &z.to_string(), &r.to_string())
            }).collect();
            let none = BTreeSet::new();
            let class = class(copies, 1);
            let wish = Wish { class: &class, bytes_wanted: 1, exclude: &none, seed };
            let got = place(&all, wish).unwrap();
            prop_assert_eq!(&got, &place(&all, wish).unwrap());
            prop_assert_eq!(got.len(), copies.min(all.len()));
            prop_assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), got.len());
            let zone = |name: &String| all.iter().find(|c| c.name == *name).unwrap().zone.clone();
            let used: BTreeSet<String> = got.iter().map(zone).collect();
            let there: BTreeSet<String> = all.iter().map(|c| c.zone.clone()).collect();
            prop_assert_eq!(used.len(), got.len().min(there.len()));
        }
    }
}
