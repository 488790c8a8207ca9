//! Sending a volume's log to one other region: what is sent next, and from where on again when something is lost.
//!
//! ```text
//!   Asking --at--> is that a place of the log? --yes--> Sending (several pushes in flight, each follows the one before) --lost, refused, elsewhere--> Asking
//!      \--still copies--> Asking, after a while
//! ```
//! Places are anything ordered; entries themselves don't come in here.

use std::collections::VecDeque;

/// Pushes in flight at most.
pub const IN_FLIGHT_MAX: usize = 8;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<P> {
    /// Ask how far the region is.
    Ask,
    /// Send what follows this place, if anything does.
    Send(P),
    /// Wait for answers.
    Wait,
}

/// What an answer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The region has taken what was sent.
    Taken,
    /// It has answered the question where it is: whether that is a place of the log is to be looked up ([`Shipping::agree`]).
    Asked,
    /// It is somewhere else than was thought: what is in flight is for nothing.
    Elsewhere,
    /// It copies the volume still.
    Copying,
    /// The answer to something that was given up.
    Late,
}

/// The sender's state about one volume and one region.
#[derive(Clone, Debug)]
pub struct Shipping<P> {
    /// The region is here at least, durably; a place of the log.
    acknowledged: Option<P>,
    /// Sent up to here.
    sent: Option<P>,
    in_flight: VecDeque<(u64, P)>,
    asking: bool,
    serial: u64,
}

impl<P: Copy + Ord> Default for Shipping<P> {
    fn default() -> Self {
        Self { acknowledged: None, sent: None, in_flight: VecDeque::new(), asking: false, serial: 0 }
    }
}

impl<P: Copy + Ord> Shipping<P> {
    /// What to do now.
    pub fn next(&self) -> Next<P> {
        match self.sent {
            None if self.asking => Next::Wait,
            None => Next::Ask,
            Some(_) if self.in_flight.len() >= IN_FLIGHT_MAX => Next::Wait,
            Some(sent) => Next::Send(sent),
        }
    }

    /// The region is here at least: what it has acknowledged in this sender's time. What it has said where it has something else than the log isn't that.
    pub fn acknowledged(&self) -> Option<P> {
        self.acknowledged
    }

    /// The region is here, and that is a place of the log: what follows it is being sent.
    pub fn agreed(&self) -> Option<P> {
        self.sent.and(self.acknowledged)
    }

    /// The region was asked. Answers the number of the question.
    pub fn asked(&mut self) -> u64 {
        self.asking = true;
        self.serial += 1;
        self.serial
    }

    /// Entries up to `upto` were sent. Answers the number of the push.
    pub fn pushed(&mut self, upto: P) -> u64 {
        debug_assert!(self.sent.is_some_and(|sent| sent < upto), "pushes go forward");
        self.serial += 1;
        self.sent = Some(upto);
        self.in_flight.push_back((self.serial, upto));
        self.serial
    }

    /// Where the region is, by its answer to the question, is a place of the log: what follows it is sent.
    pub fn agree(&mut self, at: P) {
        (self.acknowledged, self.sent) = (Some(at), Some(at));
    }

    /// Whether a region that is there has something else than what was sent.
    pub fn is_elsewhere(&self, at: P) -> bool {
        self.acknowledged.is_some_and(|known| at < known) || self.sent.is_some_and(|sent| sent < at)
    }

    /// The region answered a question or a push: it is at `at`.
    pub fn answered(&mut self, number: u64, at: P, copying: bool) -> Heard {
        let expected = if self.asking && number == self.serial {
            self.asking = false;
            None
        } else {
            // In the order in which they were sent, for each follows the one before.
            match self.in_flight.iter().position(|(n, _)| *n == number) {
                Some(place) => {
                    let (_, upto) = self.in_flight[place];
                    self.in_flight.drain(..=place);
                    Some(upto)
                }
                None => return Heard::Late,
            }
        };
        if copying {
            self.failed();
            return Heard::Copying;
        }
        match expected {
            None => Heard::Asked,
            // It may be further by a push that overtook this answer.
            Some(upto) if at >= upto && self.sent.is_some_and(|sent| at <= sent) => {
                self.acknowledged = Some(at);
                Heard::Taken
            }
            Some(_) => {
                self.failed();
                Heard::Elsewhere
            }
        }
    }

    /// An answer won't come, or the region is to be asked anew for another reason. What it has acknowledged it has.
    pub fn failed(&mut self) {
        self.sent = None;
        self.asking = false;
        self.in_flight.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        /// The sender does what is next.
        Go,
        /// One of the messages arrives.
        Arrive(usize),
        /// One of the answers arrives.
        Answer(usize),
        /// A message or answer is lost, and the sender hears of it.
        Lose(usize),
        /// The region's state goes back: it began anew.
        Reset,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(
            prop_oneof![
                6 => Just(Event::Go),
                6 => (0usize..9).prop_map(Event::Arrive),
                6 => (0usize..9).prop_map(Event::Answer),
                1 => (0usize..9).prop_map(Event::Lose),
                1 => Just(Event::Reset),
            ],
            0..200,
        )
    }

    proptest! {
        /// A region that takes only what follows its place gets everything in order, whatever is lost or overtaken.
        #[test]
        fn everything_arrives(events in events()) {
            let newest = 40_u32;
            let mut sender = Shipping::<u32>::default();
            let (mut region, mut messages, mut answers) = (0_u32, Vec::new(), Vec::new());
            let mut resets = 0;
            let run = |event: Event, sender: &mut Shipping<u32>, region: &mut u32, messages: &mut Vec<(u64, Option<(u32, u32)>)>, answers: &mut Vec<(u64, u32)>| {
                match event {
                    Event::Go => match sender.next() {
                        Next::Ask => messages.push((sender.asked(), None)),
                        Next::Send(after) if after < newest => {
                            let upto = (after + 3).min(newest);
                            messages.push((sender.pushed(upto), Some((after, upto))));
                        }
                        Next::Send(_) | Next::Wait => {}
                    },
                    Event::Arrive(n) if n < messages.len() => {
                        let (number, push) = messages.remove(n);
                        if let Some((after, upto)) = push && *region >= after && *region < upto {
                            *region = upto;
                        }
                        answers.push((number, *region));
                    }
                    Event::Answer(n) if n < answers.len() => {
                        let (number, at) = answers.remove(n);
                        if sender.answered(number, at, false) == Heard::Asked {
                            sender.agree(at);
                        }
                    }
                    Event::Lose(n) if n < messages.len() => {
                        messages.remove(n);
                        sender.failed();
                    }
                    Event::Reset => *region = 0,
                    _ => {}
                }
            };
            for event in events {
                resets += usize::from(matches!(event, Event::Reset));
                run(event, &mut sender, &mut region, &mut messages, &mut answers);
                if resets == 0 {
                    prop_assert!(sender.acknowledged().is_none_or(|at| at <= region));
                }
                prop_assert!(sender.in_flight.len() <= IN_FLIGHT_MAX);
            }
            // From now on all arrive, in order.
            for _ in 0..2_000 {
                for event in [Event::Go, Event::Arrive(0), Event::Answer(0)] {
                    run(event, &mut sender, &mut region, &mut messages, &mut answers);
                }
                if messages.is_empty() && answers.is_empty() && sender.next() == Next::Wait {
                    sender.failed();
                }
                // A region that began anew behind the sender's back is found by the next question.
                if messages.is_empty() && answers.is_empty() && region < newest && sender.next() == Next::Send(newest) {
                    sender.failed();
                }
            }
            prop_assert_eq!(region, newest);
        }
    }

    #[test]
    fn a_region_that_copies_is_asked_again_and_a_late_answer_counts_for_nothing() {
        let mut sender = Shipping::<u32>::default();
        let question = sender.asked();
        assert_eq!(sender.next(), Next::Wait);
        assert_eq!(sender.answered(question, 0, true), Heard::Copying);
        assert_eq!((sender.next(), sender.acknowledged()), (Next::Ask, None));
        let question = sender.asked();
        assert_eq!(sender.answered(question, 4, false), Heard::Asked);
        assert_eq!((sender.acknowledged(), sender.agreed()), (None, None), "it may be of another log");
        sender.agree(4);
        let pushes: Vec<u64> = (5..13).map(|upto| sender.pushed(upto)).collect();
        assert_eq!(sender.next(), Next::Wait);
        assert_eq!(sender.answered(pushes[1], 7, false), Heard::Taken);
        assert_eq!(sender.answered(pushes[0], 7, false), Heard::Late);
        assert_eq!((sender.next(), sender.acknowledged()), (Next::Send(12), Some(7)));
        assert!(
            [7, 12].iter().all(|at| !sender.is_elsewhere(*at))
                && [6, 13].iter().all(|at| sender.is_elsewhere(*at))
        );
        assert_eq!(sender.answered(pushes[5], 99, false), Heard::Elsewhere);
        assert_eq!((sender.next(), sender.acknowledged()), (Next::Ask, Some(7)), "99 is no place of the log");
    }
}
