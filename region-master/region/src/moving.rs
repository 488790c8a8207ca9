//! A planned move of a volume's home: a home's decisions, which the global group makes true (DESIGN section 8).
//!
//! ```text
//!  Nearing --the target lacks next to nothing--> Ending --the last entry is at a place--> Following --the target is complete there--> Proposing --> moved
//!     \--it doesn't come near-----\----\--it can't be written-----------\--the target doesn't come there----------\--refused, no word--> goes on
//! ```
//! From `Ending` on the home answers nothing, and changes nothing behind its last entry. Whoever ends so without having moved makes sure that the move
//! comes no more, undoes the end, and goes on; a leader that follows does the same, by what it finds on record. Places are anything ordered.

use std::collections::VecDeque;
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// A target that lacks no more than what is so new is near.
pub const NEAR: Duration = Duration::from_millis(300);
/// And was heard of so lately.
pub const HEARD: Duration = Duration::from_secs(1);
/// How long it may take to come near.
pub const NEAR_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to have the last entry, while nothing is changed.
pub const FOLLOW_WITHIN: Duration = Duration::from_secs(2);
/// How long the regions may take to agree, while nothing is changed.
pub const AGREE_WITHIN: Duration = Duration::from_secs(3);
/// How often the newest place is taken note of.
const SAMPLE: Duration = Duration::from_millis(20);

/// What a decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<P> {
    /// The newest place of the log.
    pub newest: P,
    /// The target has everything up to here, data and all; none while that isn't known, or it copies the volume.
    pub complete: Option<P>,
    /// When it was heard of last.
    pub heard: Option<BootTime>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<P> {
    /// Look again before long.
    Wait,
    /// Answer nothing any more, and write the last entry: then tell [`Move::ended`].
    End,
    /// Have the regions agree that the target is the home behind this place: then tell [`Move::answered`]. May come again.
    Propose(P),
    /// It is over.
    Over(Verdict),
}

/// How the regions answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They agree.
    Agreed,
    /// Something else was agreed on in between, and this wasn't: it may be proposed again.
    Overtaken,
    /// They don't, and won't.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target is the home.
    Moved,
    /// The target hasn't been heard of for so long, or never; nothing was stopped.
    Silent(Option<Duration>),
    /// It lacks what is so old, or nobody knows what; nothing was stopped.
    Behind(Option<Duration>),
    /// The last entry couldn't be written. The home is to go on.
    NotEnded,
    /// The target didn't have the last entry in time. The home is to go on.
    NotFollowed,
    /// The regions don't agree. The home is to go on.
    Refused,
    /// Whether they agree isn't known: that is to be found out before the home goes on.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State<P> {
    Nearing,
    Ending,
    Following(P),
    Proposing(P),
    Over(Verdict),
}

/// One move, as the home's leader decides about it.
#[derive(Clone, Debug)]
pub struct Move<P> {
    state: State<P>,
    /// When this state was come to.
    since: BootTime,
    /// The newest place at times gone by.
    samples: VecDeque<(BootTime, P)>,
}

impl<P: Copy + Ord> Move<P> {
    /// It was asked for.
    pub fn new(now: BootTime) -> Self {
        Self { state: State::Nearing, since: now, samples: VecDeque::new() }
    }

    fn to(&mut self, now: BootTime, state: State<P>) {
        (self.state, self.since) = (state, now);
    }

    /// How old what the target lacks is at least; zero where it lacks nothing, none where nobody knows.
    pub fn behind(&self, now: BootTime, facts: &Facts<P>) -> Option<Duration> {
        let complete = facts.complete?;
        if complete >= facts.newest {
            return Some(Duration::ZERO);
        }
        let lacking = self.samples.iter().find(|(_, place)| *place > complete);
        lacking.map(|(at, _)| now.since(*at))
    }

    fn nearing(&self, now: BootTime, facts: &Facts<P>) -> Step<P> {
        let silent = facts.heard.map(|heard| now.since(heard));
        let behind = self.behind(now, facts);
        // Since it was asked for, too: what was heard before says nothing of a link that broke since.
        let heard = silent.is_some_and(|silent| silent < HEARD) && facts.heard >= Some(self.since);
        // What was there before the first look may be of any age.
        let known = self.samples.front().is_some_and(|(_, first)| facts.complete >= Some(*first));
        if heard && known && behind.is_none_or(|behind| behind < NEAR) && facts.complete.is_some() {
            return Step::End;
        }
        if now.since(self.since) < NEAR_WITHIN {
            return Step::Wait;
        }
        Step::Over(if heard { Verdict::Behind(behind) } else { Verdict::Silent(silent) })
    }

    /// Looks at how things are.
    pub fn step(&mut self, now: BootTime, facts: &Facts<P>) -> Step<P> {
        if self.samples.back().is_none_or(|(at, _)| now.since(*at) >= SAMPLE) {
            self.samples.push_back((now, facts.newest));
            while self.samples.len() > 2
                && self.samples.get(1).is_some_and(|(at, _)| now.since(*at) > NEAR_WITHIN)
            {
                self.samples.pop_front();
            }
        }
        let step = match self.state {
            State::Nearing => self.nearing(now, facts),
            // Until it is told.
            State::Ending => Step::Wait,
            State::Following(last) if facts.complete >= Some(last) => Step::Propose(last),
            State::Following(_) if now.since(self.since) >= FOLLOW_WITHIN => Step::Over(Verdict::NotFollowed),
            State::Following(_) => Step::Wait,
            State::Proposing(_) if now.since(self.since) >= AGREE_WITHIN => Step::Over(Verdict::Unknown),
            State::Proposing(last) => Step::Propose(last),
            State::Over(verdict) => Step::Over(verdict),
        };
        match (step, self.state) {
            (Step::End, _) => self.to(now, State::Ending),
            (Step::Propose(last), State::Following(_)) => self.to(now, State::Proposing(last)),
            (Step::Over(verdict), _) => self.to(now, State::Over(verdict)),
            _ => {}
        }
        step
    }

    /// The last entry is at that place; none if it couldn't be written, or isn't known to be.
    pub fn ended(&mut self, now: BootTime, last: Option<P>) {
        if self.state == State::Ending {
            self.to(now, last.map_or(State::Over(Verdict::NotEnded), State::Following));
        }
    }

    /// The regions have answered a proposal.
    pub fn answered(&mut self, now: BootTime, answer: Answer) {
        if !matches!(self.state, State::Proposing(_)) {
            return;
        }
        match answer {
            Answer::Agreed => self.to(now, State::Over(Verdict::Moved)),
            Answer::Refused => self.to(now, State::Over(Verdict::Refused)),
            Answer::Unknown => self.to(now, State::Over(Verdict::Unknown)),
            // Within its time it is proposed again.
            Answer::Overtaken => {}
        }
    }
}

#[cfg(test)]
mod tests;
