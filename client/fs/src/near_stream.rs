//! The session with the leader of this host's region, where that has a replica: what of its promises is taken back, and when they may be shown
//! (docs/decisions/0036-near-promises.md). No sending, no cache.

use std::collections::BTreeSet;

use mooseng_wire::fact::Fact;
use mooseng_wire::geo::{NearNews, NearSeat};

/// A place in the volume's log: epoch and version.
pub(crate) type At = (u64, u64);

/// Inodes of which whoever shows things further may know by the replica alone, and which are told apart: so many are taken back in less time than the
/// replica takes to follow.
pub(crate) const FEW: usize = 64;
/// Recalls after which the leader is told that they were taken in.
const UNSAID_MAX: u64 = 1_024;

/// What a message of the leader means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is of another session.
    Other,
    /// Something before it is missing.
    Gap,
    /// These are to be forgotten, in this order; what isn't known by its kind is none.
    Recalls(Vec<(u64, Option<Fact>)>),
}

/// What a kernel, say, was told by the replica's word.
#[derive(Debug, Default)]
struct Told {
    inodes: BTreeSet<u64>,
    /// Entries, too.
    entries: bool,
    /// Of more inodes than are told apart.
    many: bool,
}

/// What has to be taken back before something may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TakeBack {
    /// All entries, and these inodes.
    Few(Vec<u64>),
    /// Everything, or the replica has to follow first.
    Much,
    /// Everything: those promises have ended.
    All,
}

/// The session.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    session: u64,
    leader: String,
    have: u64,
    said: u64,
    at: At,
    told: Told,
    /// What was told was promised by a session that has ended.
    ended: bool,
}

impl Stream {
    /// A session was opened with that leader, which is at that place.
    pub fn open(&mut self, leader: &str, session: u64, at: At) {
        self.end();
        (self.session, self.leader, self.at) = (session, leader.to_owned(), at);
    }

    /// What it promised isn't promised any more.
    pub fn end(&mut self) {
        let told = std::mem::take(&mut self.told);
        let ended = self.ended || told.entries || told.many || !told.inodes.is_empty();
        *self = Self { ended, ..Self::default() };
    }

    /// The session's id, if it is open.
    pub fn session(&self) -> Option<u64> {
        (self.session != 0).then_some(self.session)
    }

    /// With whom it is open.
    pub fn leader(&self) -> &str {
        &self.leader
    }

    /// What goes along with a question to a master.
    pub fn seat(&mut self, address: &str) -> Option<NearSeat> {
        let seat = (self.session != 0 && self.leader == address)
            .then_some(NearSeat { session: self.session, have: self.have });
        if seat.is_some() {
            self.said = self.have;
        }
        seat
    }

    /// Whether the leader should be told how far this is, for it keeps what it told until then.
    pub fn owes(&self) -> bool {
        self.have - self.said >= UNSAID_MAX
    }

    /// Whether what is promised may be shown to who has seen that much.
    pub fn shows(&self, seen: At) -> bool {
        self.session != 0 && self.at >= seen
    }

    /// A message has come. What is to be forgotten counts as heard from now on.
    pub fn hears(&mut self, news: &NearNews) -> Heard {
        if self.session == 0 || news.session != self.session {
            return Heard::Other;
        }
        let first = news.recalls.first().map_or(news.upto.saturating_add(1), |recall| recall.number);
        if first > self.have + 1 {
            return Heard::Gap;
        }
        let fresh = news.recalls.iter().filter(|recall| recall.number > self.have);
        let fresh =
            fresh.map(|r| (r.number, r.fact.as_ref().and_then(Fact::from_message))).collect::<Vec<_>>();
        self.have = self.have.max(news.upto);
        Heard::Recalls(fresh)
    }

    /// What was to be forgotten is, by everybody: what is promised still is true at that place.
    pub fn reached(&mut self, session: u64, at: At) {
        if session == self.session {
            self.at = self.at.max(at);
        }
    }

    /// Somebody is told of an inode, or of an entry, by what is promised.
    pub fn tells(&mut self, inode: Option<u64>) {
        match inode {
            None => self.told.entries = true,
            Some(_) if self.told.many => {}
            Some(inode) => {
                self.told.inodes.insert(inode);
                if self.told.inodes.len() > FEW {
                    self.told.inodes.clear();
                    self.told.many = true;
                }
            }
        }
    }

    /// What was told has to be taken back before an answer is shown that shows the volume as it was at a place.
    pub fn take_back(&self, at: At) -> Option<TakeBack> {
        if self.ended {
            return Some(TakeBack::All);
        }
        let told = self.told.entries || self.told.many || !self.told.inodes.is_empty();
        if !told || self.at >= at {
            return None;
        }
        match self.told.many {
            true => Some(TakeBack::Much),
            false => Some(TakeBack::Few(self.told.inodes.iter().copied().collect())),
        }
    }

    /// It is about to be. Nothing is told until this is where that answer was.
    pub fn taken_back(&mut self) {
        self.told = Told::default();
        self.ended = false;
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::InodeId;
    use mooseng_wire::geo::{NearRecall, Place};

    use super::*;

    fn fact(n: u64) -> Fact {
        Fact::Inode(InodeId(n))
    }

    fn news(numbers: std::ops::RangeInclusive<u64>, at: u64) -> NearNews {
        let upto = *numbers.end();
        let recall = |number| NearRecall { number, fact: Some(fact(number).to_message()) };
        let at = Some(Place { epoch: 1, version: at });
        NearNews { session: 5, upto, recalls: numbers.map(recall).collect(), at }
    }

    fn recalls(numbers: std::ops::RangeInclusive<u64>) -> Heard {
        Heard::Recalls(numbers.map(|n| (n, Some(fact(n)))).collect())
    }

    #[test]
    fn messages_are_taken_in_whatever_their_order_and_none_is_left_out() {
        let mut stream = Stream::default();
        assert_eq!(stream.hears(&news(1..=1, 4)), Heard::Other);
        stream.open("a", 5, (1, 3));
        assert_eq!(stream.hears(&NearNews { session: 6, ..news(1..=1, 4) }), Heard::Other);
        assert_eq!(stream.hears(&news(2..=3, 9)), Heard::Gap);
        assert_eq!(stream.hears(&NearNews { recalls: vec![], ..news(1..=2, 9) }), Heard::Gap);
        assert_eq!(stream.seat("a").map(|seat| seat.have), Some(0));
        assert_eq!(stream.hears(&news(1..=3, 9)), recalls(1..=3));
        assert_eq!(stream.hears(&news(1..=2, 7)), Heard::Recalls(vec![]), "that is known");
        assert_eq!(stream.hears(&news(2..=4, 7)), recalls(4..=4));
        assert_eq!(stream.seat("a"), Some(NearSeat { session: 5, have: 4 }));
        assert_eq!(stream.seat("b"), None);
        assert!(!stream.owes());
        stream.hears(&news(5..=UNSAID_MAX + 4, 9));
        assert!(stream.owes());
    }

    #[test]
    fn what_is_promised_is_shown_to_who_has_seen_no_more() {
        let mut stream = Stream::default();
        assert!(!stream.shows((0, 0)));
        stream.open("a", 5, (1, 3));
        assert!(stream.shows((1, 3)) && !stream.shows((1, 4)) && !stream.shows((2, 0)));
        stream.reached(5, (1, 9));
        stream.reached(5, (1, 8));
        stream.reached(4, (3, 0));
        assert!(stream.shows((1, 9)) && !stream.shows((1, 10)));
        stream.end();
        assert!(!stream.shows((0, 0)) && stream.session().is_none());
    }

    #[test]
    fn what_was_told_is_taken_back_before_something_later_is_shown() {
        let mut stream = Stream::default();
        stream.open("a", 5, (1, 3));
        assert_eq!(stream.take_back((9, 9)), None, "nobody was told anything");
        stream.tells(None);
        stream.tells(Some(7));
        assert_eq!(stream.take_back((1, 3)), None);
        assert_eq!(stream.take_back((1, 4)), Some(TakeBack::Few(vec![7])));
        stream.taken_back();
        assert_eq!(stream.take_back((1, 4)), None);
        (0..=FEW as u64).for_each(|inode| stream.tells(Some(inode)));
        assert_eq!(stream.take_back((1, 4)), Some(TakeBack::Much));
        stream.reached(5, (1, 4));
        assert_eq!(stream.take_back((1, 4)), None, "it has followed");
        stream.end();
        assert_eq!(stream.take_back((0, 0)), Some(TakeBack::All));
        stream.open("b", 6, (1, 9));
        assert_eq!(stream.take_back((0, 0)), Some(TakeBack::All), "that is of the session before");
        stream.taken_back();
        stream.end();
        assert_eq!(stream.take_back((0, 0)), None);
    }
}
