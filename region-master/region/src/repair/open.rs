//! Chunks that are still appended to: when they are to be ended, and where, so that they can be repaired, moved or collected like sealed ones.

use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::ChunkId;

use super::Condition;
use crate::registry::Registry;

/// What is known of an open chunk's copy. Inventories tell of it, and changes only once it can't be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpenCopy {
    /// It is there.
    Sound,
    /// Nobody has said.
    Unknown,
    /// It can't be trusted, or isn't there though it was appended to.
    Lost,
}

/// What the registry knows of an open chunk's copy. `appended_for`: for how long every member should have had a part of it; none where it may be that nothing was
/// ever appended.
pub fn open_copy(
    registry: &Registry,
    name: &str,
    now: BootTime,
    chunk: ChunkId,
    appended_for: Option<Duration>,
    settle: Duration,
) -> OpenCopy {
    let Some(server) = registry.get(name) else { return OpenCopy::Unknown };
    // Only a whole inventory that was begun late enough would name it.
    let is_missed = || {
        let begun = server.inventory_at().map(|at| now.since(at).saturating_add(settle));
        begun.zip(appended_for).is_some_and(|(begun, appended)| begun < appended)
    };
    match server.copy(chunk) {
        Some(copy) if copy.corrupt => OpenCopy::Lost,
        Some(_) => OpenCopy::Sound,
        None if is_missed() => OpenCopy::Lost,
        None => OpenCopy::Unknown,
    }
}

/// A member of a chunk that is still appended to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether it is here.
    pub condition: Condition,
    /// It is to be left: it is being emptied, or lacks labels of the chunk's storage class.
    pub leaving: bool,
    /// What is known of its copy.
    pub copy: OpenCopy,
}

impl Member {
    /// Whether its copy may be read.
    pub fn is_reachable(&self) -> bool {
        self.condition == Condition::Here && self.copy != OpenCopy::Lost
    }

    fn is_lost(&self) -> bool {
        self.condition == Condition::Lost
            || (self.condition == Condition::Here && self.copy == OpenCopy::Lost)
    }
}

/// A chunk that is still appended to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFacts {
    /// Its members.
    pub members: Vec<Member>,
    /// Its file has another storage class than it.
    pub reclassed: bool,
    /// It is of an earlier home: whoever has it open appends to another one.
    pub earlier: bool,
    /// Extents name some of it.
    pub used: bool,
    /// How long ago it was made.
    pub age: Duration,
    /// From that age on a chunk that nothing uses is ended.
    pub unused_max: Duration,
    /// From that age on nobody has a ticket for appends to it any more.
    pub open_max: Duration,
}

/// The members on one of which an open chunk is to be ended, so that it can be repaired, moved or collected; none where it isn't. Its length on each is at
/// least what was ever acknowledged, unless its copy has lost something, and no append is acknowledged any more once one member refuses it. So any of them will do,
/// the first ones best.
pub fn end_open(facts: &OpenFacts) -> Vec<&str> {
    let leaves = facts.reclassed
        || facts.earlier
        || facts.members.iter().any(|member| member.is_lost() || member.leaving);
    let idle = facts.age >= facts.open_max || (!facts.used && facts.age >= facts.unused_max);
    if !leaves && !idle {
        return Vec::new();
    }
    let here = facts.members.iter().filter(|member| member.condition == Condition::Here);
    let mut here: Vec<&Member> = here.collect();
    here.sort_by_key(|member| (member.copy == OpenCopy::Lost, member.leaving, member.copy));
    here.into_iter().map(|member| member.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_chunks_are_ended_where_they_stand_in_the_way() {
        let member = |name: &str, condition, leaving| {
            let (name, copy) = (name.to_owned(), OpenCopy::Sound);
            Member { name, condition, leaving, copy }
        };
        let facts = OpenFacts {
            members: vec![member("a", Condition::Here, false), member("b", Condition::Here, false)],
            reclassed: false,
            earlier: false,
            used: true,
            age: Duration::from_secs(100),
            unused_max: Duration::from_secs(90),
            open_max: Duration::from_secs(4_000),
        };
        let nowhere: [&str; 0] = [];
        assert_eq!(end_open(&facts), nowhere);
        assert_eq!(end_open(&OpenFacts { used: false, ..facts.clone() }), ["a", "b"]);
        assert_eq!(end_open(&OpenFacts { reclassed: true, ..facts.clone() }), ["a", "b"]);
        assert_eq!(end_open(&OpenFacts { earlier: true, ..facts.clone() }), ["a", "b"]);
        assert_eq!(end_open(&OpenFacts { age: Duration::from_secs(4_000), ..facts.clone() }), ["a", "b"]);
        let with = |a: (Condition, bool), b: (Condition, bool)| OpenFacts {
            members: vec![member("a", a.0, a.1), member("b", b.0, b.1)],
            ..facts.clone()
        };
        assert_eq!(end_open(&with((Condition::Here, true), (Condition::Here, false))), ["b", "a"]);
        assert_eq!(end_open(&with((Condition::Lost, false), (Condition::Here, true))), ["b"]);
        assert_eq!(end_open(&with((Condition::Silent, false), (Condition::Here, false))), nowhere);
        assert_eq!(end_open(&with((Condition::Lost, false), (Condition::Silent, false))), nowhere);
    }

    /// Found by review: a copy on a disk that was lost counted as long as its chunkserver was there.
    #[test]
    fn open_chunks_are_ended_where_a_copy_of_them_is_lost() {
        let copies = |a, b| {
            let member = |name: &str, copy| {
                let (name, condition) = (name.to_owned(), Condition::Here);
                Member { name, condition, leaving: false, copy }
            };
            let members = vec![member("a", a), member("b", b)];
            let (age, most) = (Duration::from_secs(100), Duration::from_secs(4_000));
            OpenFacts {
                members,
                reclassed: false,
                earlier: false,
                used: true,
                age,
                unused_max: most,
                open_max: most,
            }
        };
        let nowhere: [&str; 0] = [];
        assert_eq!(end_open(&copies(OpenCopy::Sound, OpenCopy::Unknown)), nowhere);
        let lost = copies(OpenCopy::Lost, OpenCopy::Sound);
        assert_eq!(end_open(&lost), ["b", "a"], "where one fails the next will do");
        assert!(!lost.members[0].is_reachable() && lost.members[1].is_reachable());
        let mut drained = copies(OpenCopy::Lost, OpenCopy::Unknown);
        drained.members[1].leaving = true;
        assert_eq!(end_open(&drained), ["b", "a"], "a copy that is lost is the last to ask");
        drained.members[0].copy = OpenCopy::Unknown;
        drained.members[1] = Member { leaving: false, copy: OpenCopy::Sound, ..drained.members[1].clone() };
        let idle = OpenFacts { age: Duration::from_secs(4_000), ..drained };
        assert_eq!(end_open(&idle), ["b", "a"], "one that is known to be sound is the first");
    }

    #[test]
    fn what_the_registry_knows_of_an_open_chunks_copy() {
        use crate::registry::{Beat, CopyFacts, Limits};
        let at = |s| BootTime(Duration::from_secs(s));
        let (chunk, settle) = (ChunkId(1), Duration::from_secs(30));
        let mut r = Registry::new(Limits::default());
        r.beat(at(0), Beat { name: "a".into(), ..Beat::default() }).unwrap();
        let is = |r: &Registry, appended_for: Option<u64>| {
            open_copy(r, "a", at(200), chunk, appended_for.map(Duration::from_secs), settle)
        };
        assert_eq!(is(&r, Some(1_000)), OpenCopy::Unknown, "no inventory yet");
        r.inventory(at(100), "a", 1, [], false);
        // The inventory is a hundred seconds old.
        assert_eq!(is(&r, Some(130)), OpenCopy::Unknown, "it may have been made after it");
        assert_eq!(is(&r, Some(131)), OpenCopy::Lost);
        assert_eq!(is(&r, None), OpenCopy::Unknown, "nothing names any of it: it may never have been made");
        let copy = |corrupt| CopyFacts { length: 5, sealed: false, epoch: 1, corrupt };
        r.changed("a", &[(chunk, copy(true))], &[]);
        assert_eq!(is(&r, None), OpenCopy::Lost);
        r.inventory(at(150), "a", 2, [(chunk, copy(false))], false);
        assert_eq!(is(&r, Some(1_000)), OpenCopy::Sound);
        assert_eq!(open_copy(&r, "b", at(200), chunk, Some(settle * 9), settle), OpenCopy::Unknown);
    }
}
