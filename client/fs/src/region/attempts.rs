//! Sending a request until there is an answer: attempt by attempt, and what becomes of one that failed.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::session::{Request, Response};
use prost::Message;
use tokio::time::Instant;

use super::{Flight, Region};
use crate::error::FsError;
use crate::peers::Failure;
use crate::retry::Backoff;
use crate::session::{Seat, Session};
use crate::waits::{self, What};
use crate::{facts, journal};

/// An attempt ends after this long, whatever remains of the retry time.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// Closes taken along by one attempt.
const RELEASES_MAX: usize = 64;
/// An inner failure is retried this often.
const INTERNAL_RETRIES: u32 = 4;

/// What to do with a failed attempt.
enum Next {
    /// Send again.
    Again,
    /// It never happened, and under this number it never will: give it a fresh one.
    Renumber,
    /// Give up.
    Fail(FsError),
}

/// Whether a failed attempt may have been done.
fn leaves_doubt(failure: &Failure) -> bool {
    match failure {
        Failure::NotSent(_) => false,
        Failure::Lost | Failure::Timeout => true,
        Failure::Refused(refusal) => {
            matches!(
                refusal.code(),
                ErrorCode::OutcomeUnknown | ErrorCode::DeadlineExceeded | ErrorCode::Internal
            )
        }
    }
}

impl Region {
    /// Sends until there is an answer or the time is over.
    pub(super) fn fly<'a>(&'a self, flight: &'a mut Flight) -> BoxFuture<'a, Result<Reply, FsError>> {
        // As a value it is compiled once, and not anew with each operation that ends in it, in each program (docs/decisions/0005-layout.md).
        self.fly_on(flight).boxed()
    }

    async fn fly_on(&self, flight: &mut Flight) -> Result<Reply, FsError> {
        let mut backoff = Backoff::default();
        let mut after = 0;
        let mut last = "no leader is known".to_owned();
        // An attempt under this number ended without a word on whether it was done.
        let mut in_doubt = false;
        loop {
            let seat = tokio::select! {
                biased;
                seat = waits::on(|| What::Leader, self.session.seat(after, flight.deadline)) => seat,
                why = self.session.made_anew() => {
                    self.given_up(flight);
                    return Err(FsError::MadeAnew(why));
                }
                why = self.session.shut_out() => return Err(why),
            };
            let Some(seat) = seat else {
                self.given_up(flight);
                return Err(self.unanswered_error(flight.what, flight.patience, &last));
            };
            if flight.sent_as.is_some_and(|(session, _)| session != seat.session) && flight.number != 0 {
                self.given_up(flight);
                return Err(FsError::SessionLost);
            }
            if let Some(within) = flight.within {
                if flight.sent_as.is_none() && within.life != (seat.session, seat.incarnation) {
                    return Err(FsError::Lapsed);
                }
                if within.home.is_some_and(|homes| !homes.contain(seat.home, seat.locks_from)) {
                    // The home before may have done it; the one now mustn't.
                    if flight.sent_as.is_some() {
                        self.given_up(flight);
                    }
                    return Err(FsError::Lapsed);
                }
            }
            let failure = match self.attempt(flight, &seat).await {
                Ok(reply) => {
                    self.session.earned();
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            last = format!("{}: {failure}", seat.leader);
            tracing::debug!(what = flight.what, number = flight.number, sent_as = ?flight.sent_as, last, "a request has no answer yet");
            self.counters.update(|c| c.retries += 1);
            in_doubt |= leaves_doubt(&failure);
            match self.judge(flight, &seat, failure, &mut backoff, &mut after).await {
                Next::Again => {}
                Next::Renumber => {
                    self.finish(flight.number);
                    flight.number = 0;
                    flight.number =
                        self.begin(flight.what, flight.deadline, flight.patience, flight.urgent).await?;
                    flight.sent_as = None;
                    in_doubt = false;
                }
                Next::Fail(error) => {
                    // What an attempt before may have done nobody has said.
                    if in_doubt {
                        self.given_up(flight);
                    }
                    return Err(error);
                }
            }
            if Instant::now() >= flight.deadline {
                self.given_up(flight);
                return Err(self.unanswered_error(flight.what, flight.patience, &last));
            }
        }
    }

    /// Whether a change that was sent was done isn't known: what it may have touched isn't shown any more.
    fn given_up(&self, flight: &Flight) {
        if flight.number != 0 && flight.sent_as.is_some() {
            self.session.renounce();
        }
    }

    async fn attempt(&self, flight: &mut Flight, seat: &Seat) -> Result<Reply, Failure> {
        let (session, incarnation) = match flight.sent_as {
            // A change stays what it was, also when the session has become a new incarnation: old numbers still return their outcomes.
            Some(as_) if flight.number != 0 => as_,
            _ => (seat.session, seat.incarnation),
        };
        flight.order = self.session.next_order();
        // An older incarnation's attempts are about outcomes alone.
        let current = (session, incarnation) == (seat.session, seat.incarnation);
        let mut releasing = Releasing {
            session: &self.session,
            inodes: if current {
                self.session.opens.take_closed(flight.order, RELEASES_MAX)
            } else {
                Vec::new()
            },
        };
        let request = Request {
            releases: releasing.inodes.clone(),
            order: flight.order,
            session,
            incarnation,
            number: flight.number,
            oldest_unanswered: self.window(|w| w.oldest_unanswered()),
            custody_epoch: seat.custody_epoch,
            op: Some(flight.request.clone()),
        };
        let before = flight.sent_as.replace((session, incarnation));
        let digest = self.session.facts.begin_behind(flight.since).repeated(before.is_some());
        let timeout = flight
            .deadline
            .saturating_duration_since(Instant::now())
            .clamp(Duration::from_millis(1), ATTEMPT_MAX);
        let call = self.session.peers.call(
            Role::Master,
            &seat.leader,
            flight.method,
            request.encode_to_vec().into(),
            Bytes::new(),
            timeout,
        );
        tokio::pin!(call);
        let mut doubt = tokio::time::interval_at(
            Instant::now() + self.session.config.doubt_after,
            self.session.config.doubt_after.max(Duration::from_millis(50)),
        );
        let replaced = self.session.replaced(seat);
        tokio::pin!(replaced);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut call => break answer,
                () = &mut replaced => break Err(Failure::Lost),
                _ = doubt.tick() => {
                    // A renewal confirms the seat under a newer number: doubt whichever is current.
                    if let Some(now) = self.session.seat_now() {
                        self.session.doubt(&now);
                    }
                }
            }
        };
        match answer {
            Ok(answer) => {
                let response = Response::decode(answer.body).unwrap_or_default();
                releasing.inodes.clear();
                self.session.pace.heard(response.held, Instant::now());
                if !flight.unshown {
                    self.take_in(flight, &digest, &response).await;
                }
                let reply = response.reply.and_then(|r| r.reply);
                reply.ok_or_else(|| {
                    Failure::Refused(CallError {
                        code: ErrorCode::Internal.into(),
                        message: "the answer is empty or malformed".into(),
                        ..CallError::default()
                    })
                })
            }
            Err(failure) => {
                if matches!(failure, Failure::NotSent(_)) {
                    flight.sent_as = before;
                }
                Err(failure)
            }
        }
    }

    /// Takes an answer in, before it is shown.
    async fn take_in(&self, flight: &Flight, digest: &facts::Flight<'_>, response: &Response) {
        let near = &self.session.near;
        let at = (response.log_epoch, response.log_version);
        self.session.facts.digest(digest, &flight.request, response);
        near.saw(at.0, at.1);
        if flight.number > 0 {
            let made = response.reply.as_ref().and_then(|reply| reply.reply.as_ref());
            near.changed(&journal::changed_by(&flight.request, made), at);
        }
        // What the replica promised before that place isn't shown beside this answer.
        near.settle(&*self.session.peers, at).await;
    }

    async fn judge(
        &self,
        flight: &Flight,
        seat: &Seat,
        failure: Failure,
        backoff: &mut Backoff,
        after: &mut u64,
    ) -> Next {
        let refusal = match failure {
            Failure::NotSent(_) | Failure::Lost => {
                self.session.gone(seat);
                *after = seat.confirmed;
                self.rest(backoff, flight.deadline).await;
                return Next::Again;
            }
            Failure::Timeout => {
                self.session.doubt(seat);
                *after = seat.confirmed;
                return Next::Again;
            }
            Failure::Refused(refusal) => refusal,
        };
        let code = refusal.code();
        match code {
            ErrorCode::NotLeader => {
                self.session.gone(seat);
                *after = seat.confirmed;
            }
            // The table of sessions says so before anybody has looked for the change's outcome.
            ErrorCode::SessionExpired => {
                self.session.gone(seat);
                *after = seat.confirmed;
            }
            ErrorCode::StaleEpoch => {
                // There is no outcome under the old incarnation, and there never will be.
                if flight.number != 0
                    && flight.sent_as.is_some_and(|(_, incarnation)| incarnation < seat.incarnation)
                {
                    if flight.within.is_some() {
                        return Next::Fail(FsError::Lapsed);
                    }
                    return Next::Renumber;
                }
                self.session.gone(seat);
                *after = seat.confirmed;
            }
            ErrorCode::OutcomeUnknown
            | ErrorCode::Unavailable
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Busy => {
                if backoff.attempts() % 4 == 3 {
                    self.session.doubt(seat);
                }
            }
            // The search for a leader decides whether it is the whole region, and goes on where the home is.
            ErrorCode::OtherFounding | ErrorCode::NotHome => {
                self.session.gone(seat);
                *after = seat.confirmed;
            }
            ErrorCode::NoVolume => {
                self.session.no_volume();
                return Next::Fail(FsError::NoVolume(self.session.config.volume));
            }
            ErrorCode::PermissionDenied => return Next::Fail(FsError::Denied(refusal.message)),
            ErrorCode::NotBuilt => return Next::Fail(FsError::NotBuilt(refusal.message)),
            ErrorCode::InvalidRequest => return Next::Fail(FsError::Invalid(refusal.message)),
            ErrorCode::NoSpace => return Next::Fail(FsError::Answered(libc::ENOSPC)),
            // An inode that is being freed.
            ErrorCode::NotFound => return Next::Fail(FsError::Answered(libc::ENOENT)),
            ErrorCode::Unspecified
            | ErrorCode::Corrupt
            | ErrorCode::ChainFailed
            | ErrorCode::ChunkSealed
            | ErrorCode::OffsetMismatch
            | ErrorCode::DiskFailed
            | ErrorCode::Internal => {
                if backoff.attempts() >= INTERNAL_RETRIES {
                    return Next::Fail(FsError::Internal(format!(
                        "{}: {}",
                        code.as_str_name(),
                        refusal.message
                    )));
                }
            }
        }
        self.rest(backoff, flight.deadline).await;
        Next::Again
    }

    async fn rest(&self, backoff: &mut Backoff, deadline: Instant) {
        let pause = self.session.pause(backoff);
        let over = tokio::time::sleep_until((Instant::now() + pause).min(deadline));
        waits::on(|| What::Pause, over).await;
    }
}

/// Closes that an attempt takes along; without an answer they wait again.
struct Releasing<'a> {
    session: &'a Session,
    inodes: Vec<u64>,
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        if !self.inodes.is_empty() {
            self.session.opens.put_back_closed(std::mem::take(&mut self.inodes), self.session.order());
        }
    }
}
