//! One append on a chain of chunkservers, seen from one member: its own result and the next member's make one answer. Pure.

use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Appended, ChainFailure};
use prost::Message;

use crate::chunk::Written;
use crate::error::ChunkError;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Our own write (and flush, if it was asked for) is done.
    Ours(Result<Written, ChunkError>),
    /// The next member answered, or couldn't be heard.
    Next(Result<Appended, NextFailure>),
}

/// Why the next member's answer isn't a success.
#[derive(Clone, Debug, PartialEq)]
pub enum NextFailure {
    /// No answer: not connected, connection lost, or nothing in time. The reason, for people.
    Silent(String),
    /// It answered with an error.
    Answered(CallError),
}

/// Collects the two results of one append.
#[derive(Clone, Debug)]
pub struct Round {
    next: Option<String>,
    ours: Option<Written>,
    theirs: Option<Appended>,
}

impl Round {
    /// A round whose next member is the chunkserver of that name; none for the tail.
    pub fn new(next: Option<String>) -> Self {
        Self { next, ours: None, theirs: None }
    }

    /// Takes an event in; answers once the outcome is certain. A failure is certain at once: the writer
    /// seals the chunk at what was acknowledged, so nothing is gained by waiting for the other side.
    pub fn step(&mut self, event: Event) -> Option<Result<Appended, CallError>> {
        match event {
            Event::Ours(Ok(written)) => self.ours = Some(written),
            Event::Ours(Err(e)) => return Some(Err(refusal(&e))),
            Event::Next(Ok(appended)) => self.theirs = Some(appended),
            Event::Next(Err(failure)) => return Some(Err(self.failed(failure))),
        }
        let ours = self.ours?;
        match (&self.next, &self.theirs) {
            (None, _) => Some(Ok(Appended { length: ours.length, flushed: ours.flushed })),
            (Some(_), None) => None,
            // Appends that came in between may have moved either end: what all members have is the smaller.
            (Some(_), Some(theirs)) => Some(Ok(Appended {
                length: ours.length.min(theirs.length),
                flushed: ours.flushed.min(theirs.flushed),
            })),
        }
    }

    fn failed(&self, failure: NextFailure) -> CallError {
        let next = self.next.as_deref().unwrap_or("?");
        match failure {
            NextFailure::Silent(reason) => chain_failed(next, reason),
            NextFailure::Answered(error) => match error.code() {
                // It already names the member. The writer is at fault, or the chunk has ended: no member failed.
                ErrorCode::ChainFailed
                | ErrorCode::StaleEpoch
                | ErrorCode::ChunkSealed
                | ErrorCode::PermissionDenied
                | ErrorCode::InvalidRequest => error,
                _ => chain_failed(next, error.message),
            },
        }
    }
}

/// The error that names a failed member.
pub fn chain_failed(member: &str, reason: String) -> CallError {
    let message = format!(
        "chunkserver {member} failed in the chain: {reason}; seal the chunk without it and continue in a fresh one"
    );
    let detail = ChainFailure { chunkserver: member.to_owned(), reason }.encode_to_vec().into();
    CallError { code: ErrorCode::ChainFailed.into(), message, leader: String::new(), detail }
}

/// Our own refusal or failure.
pub fn refusal(error: &ChunkError) -> CallError {
    CallError {
        code: error.code().into(),
        message: error.to_string(),
        leader: String::new(),
        detail: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::ChunkId;

    use super::*;

    fn ours(length: u64, flushed: u64) -> Event {
        Event::Ours(Ok(Written { length, flushed }))
    }
    fn theirs(length: u64, flushed: u64) -> Event {
        Event::Next(Ok(Appended { length, flushed }))
    }
    fn answered(code: ErrorCode) -> Event {
        Event::Next(Err(NextFailure::Answered(CallError {
            code: code.into(),
            message: "m".into(),
            ..Default::default()
        })))
    }
    fn named(error: &CallError) -> Option<String> {
        (error.code() == ErrorCode::ChainFailed)
            .then(|| ChainFailure::decode(&error.detail[..]).unwrap().chunkserver)
    }

    #[test]
    fn the_tail_answers_for_itself() {
        assert_eq!(Round::new(None).step(ours(9, 9)), Some(Ok(Appended { length: 9, flushed: 9 })));
    }

    #[test]
    fn both_results_are_needed_and_the_smaller_counts() {
        for order in [[ours(9, 9), theirs(8, 4)], [theirs(8, 4), ours(9, 9)]] {
            let mut round = Round::new(Some("b".into()));
            let [first, second] = order;
            assert_eq!(round.step(first), None);
            assert_eq!(round.step(second), Some(Ok(Appended { length: 8, flushed: 4 })));
        }
    }

    #[test]
    fn a_silent_or_failing_member_is_named_at_once() {
        let mut round = Round::new(Some("b".into()));
        let error = round
            .step(Event::Next(Err(NextFailure::Silent("no answer in 1500 ms".into()))))
            .unwrap()
            .unwrap_err();
        assert_eq!(named(&error).as_deref(), Some("b"));
        for code in [
            ErrorCode::DiskFailed,
            ErrorCode::NoSpace,
            ErrorCode::OffsetMismatch,
            ErrorCode::Unavailable,
            ErrorCode::Busy,
        ] {
            let error = Round::new(Some("b".into())).step(answered(code)).unwrap().unwrap_err();
            assert_eq!(named(&error).as_deref(), Some("b"), "{code:?}");
        }
    }

    #[test]
    fn a_later_members_name_and_the_writers_own_faults_pass_through() {
        let inner = chain_failed("c", "dead".into());
        let mut round = Round::new(Some("b".into()));
        let error = round.step(Event::Next(Err(NextFailure::Answered(inner)))).unwrap().unwrap_err();
        assert_eq!(named(&error).as_deref(), Some("c"));
        for code in [ErrorCode::StaleEpoch, ErrorCode::ChunkSealed, ErrorCode::PermissionDenied] {
            assert_eq!(Round::new(Some("b".into())).step(answered(code)).unwrap().unwrap_err().code(), code);
        }
    }

    #[test]
    fn our_own_failure_is_ours() {
        let error = ChunkError::NoSpace { bytes: 1 };
        let answer = Round::new(Some("b".into())).step(Event::Ours(Err(error))).unwrap().unwrap_err();
        assert_eq!(answer.code(), ErrorCode::NoSpace);
        let missing = ChunkError::NotFound { chunk: ChunkId(1) };
        assert_eq!(refusal(&missing).code(), ErrorCode::NotFound);
    }
}
