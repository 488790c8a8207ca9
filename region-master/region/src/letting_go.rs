//! When what a region has of a volume goes that it was taken out of, and which copies of its chunks the volume's home can do without. Places of the log are
//! anything ordered.
//!
//! ```text
//!  region:  Note -> Keep (a while) -> LookThrough -> Clear (records) -> Copies (those that the home can spare) -> Rest
//!                                        ^- all that is here is elsewhere
//!  home:    lacking(the volume's other regions)? none: is_spare(chunk)?
//! ```
//! Nothing goes by what this region believes: that it isn't to have the volume is confirmed, and what is elsewhere the home says, for each chunk anew before its
//! copies go. A home that doesn't answer, and whatever it doesn't know, leaves everything as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// What another region has counts if it was heard of within this time.
pub const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// What a region knows of a volume that it isn't to have any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Some record of it is here.
    pub records: bool,
    /// Chunkservers report copies of its chunks.
    pub copies: bool,
    /// It is on record that it is let go of, since that time (Unix, nanoseconds).
    pub since_ns: Option<i64>,
    /// Everything stays as it is until then.
    pub keep_until_ns: i64,
    /// It is on record that records have begun to go.
    pub clearing: bool,
    /// And that none is left.
    pub cleared: bool,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is here.
    Rest,
    /// It is taken note of.
    Note,
    /// Everything stays for so long: somebody may have made a mistake.
    Keep(Duration),
    /// The home is asked whether all that is here is elsewhere.
    LookThrough,
    /// Records go.
    Clear,
    /// Copies go, one look after the other.
    Copies,
}

/// Decides it.
pub fn next(facts: &Facts, now_ns: i64) -> Next {
    if facts.since_ns.is_none() {
        return if facts.records || facts.copies { Next::Note } else { Next::Rest };
    }
    match (facts.clearing, facts.cleared) {
        (true, true) if facts.records || facts.copies => Next::Copies,
        (true, true) => Next::Rest,
        (true, false) => Next::Clear,
        (false, _) if now_ns < facts.keep_until_ns => {
            let left_ns = facts.keep_until_ns.saturating_sub(now_ns);
            Next::Keep(Duration::from_nanos(u64::try_from(left_ns).unwrap_or(0)))
        }
        (false, _) => Next::LookThrough,
    }
}

/// What a home knows of another region that has its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other<P> {
    /// It has everything up to here, with the data that it names; none while that isn't known.
    pub complete: Option<P>,
    /// It copies the volume still.
    pub copying: bool,
    /// When it was heard of last.
    pub heard: Option<BootTime>,
}

/// Why a region that had everything up to `had` is needed still: one of the others that have the volume besides its home, by name, doesn't have as much, or
/// isn't heard of. Answers the first of them.
pub fn lacking<P: Copy + Ord>(
    others: &BTreeMap<String, Option<Other<P>>>,
    had: P,
    now: BootTime,
) -> Option<(&str, &'static str)> {
    others.iter().find_map(|(name, known)| {
        let why = match known {
            None => "hasn't said yet what it has",
            Some(other) if other.copying => "is being copied to",
            Some(other) if other.heard.is_none_or(|heard| now.since(heard) > HEARD_WITHIN) => {
                "isn't heard of"
            }
            Some(other) if other.complete.is_none_or(|complete| complete < had) => "is behind",
            Some(_) => return None,
        };
        Some((name.as_str(), why))
    })
}

/// What a home has of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtHome {
    /// It ends at a length that doesn't change any more.
    pub sealed: bool,
    /// That length.
    pub length: u64,
    /// All of its bytes are there.
    pub whole: bool,
    /// Copies that are known to be good, on chunkservers that are here and aren't told to delete them.
    pub good: usize,
    /// As many as its storage class asks for.
    pub copies: usize,
}

/// Whether a home can do without the copies that a region has which isn't to have its volume any more.
pub fn is_spare(of: &AtHome) -> bool {
    of.sealed && (of.length == 0 || (of.whole && of.good >= of.copies.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_before_it_is_on_record_for_a_while_and_looked_through() {
        let is = |facts: Facts, now_ns| next(&facts, now_ns);
        let nothing = Facts::default();
        assert_eq!(is(nothing, 5), Next::Rest);
        assert_eq!(is(Facts { records: true, ..nothing }, 5), Next::Note);
        assert_eq!(is(Facts { copies: true, ..nothing }, 5), Next::Note);
        // What nobody took note of doesn't go, whatever else is said.
        assert_eq!(is(Facts { records: true, clearing: true, cleared: true, ..nothing }, 5), Next::Note);
        let noted = Facts { records: true, since_ns: Some(1), keep_until_ns: 10, ..nothing };
        assert_eq!(is(noted, 7), Next::Keep(Duration::from_nanos(3)));
        assert_eq!(is(noted, 10), Next::LookThrough);
        assert_eq!(is(Facts { cleared: true, ..noted }, 7), Next::Keep(Duration::from_nanos(3)));
        let clearing = Facts { clearing: true, ..noted };
        assert_eq!(is(clearing, 7), Next::Clear, "what has begun goes on");
        let cleared = Facts { cleared: true, ..clearing };
        assert_eq!(is(cleared, 7), Next::Copies);
        assert_eq!(is(Facts { records: false, ..cleared }, 7), Next::Rest);
        assert_eq!(is(Facts { records: false, copies: true, ..cleared }, 7), Next::Copies);
    }

    #[test]
    fn a_region_is_needed_until_each_other_one_has_what_it_had() {
        let now = BootTime(Duration::from_secs(100));
        let heard = |s| Some(BootTime(Duration::from_secs(s)));
        let well = Other { complete: Some(7), copying: false, heard: heard(95) };
        let of = |b, c| BTreeMap::from([("b".to_owned(), b), ("c".to_owned(), c)]);
        let lack = |others: BTreeMap<String, Option<Other<i32>>>, had| {
            lacking(&others, had, now).map(|(name, _)| name.to_owned())
        };
        assert_eq!(lack(BTreeMap::new(), 7), None, "the home alone is to have it");
        assert_eq!(lack(of(Some(well), Some(well)), 7), None);
        assert_eq!(lack(of(Some(well), Some(well)), 8), Some("b".into()));
        for other in [
            None,
            Some(Other { complete: Some(6), ..well }),
            Some(Other { complete: None, ..well }),
            Some(Other { copying: true, ..well }),
            Some(Other { heard: None, ..well }),
            Some(Other { heard: heard(89), ..well }),
        ] {
            assert_eq!(lack(of(Some(well), other), 7), Some("c".into()), "{other:?}");
        }
    }

    #[test]
    fn a_chunk_is_spared_once_the_home_has_as_many_good_copies_as_are_asked_for() {
        let well = AtHome { sealed: true, length: 9, whole: true, good: 2, copies: 2 };
        assert!(is_spare(&well) && is_spare(&AtHome { good: 3, ..well }));
        for less in [
            AtHome { sealed: false, ..well },
            AtHome { whole: false, ..well },
            AtHome { good: 1, ..well },
            AtHome { good: 0, copies: 0, ..well },
        ] {
            assert!(!is_spare(&less), "{less:?}");
        }
        assert!(is_spare(&AtHome { length: 0, whole: false, good: 0, ..well }), "there are no bytes of it");
    }
}
