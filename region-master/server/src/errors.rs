//! What callers are told: one place from inner errors to codes on the wire.

use mooseng_namespace::{DriverError, OpError};
use mooseng_region::sessions::Refusal;
use mooseng_store::StoreError;
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};

use crate::records::RecordFailure;

/// The answer to a request for something that isn't built yet. `docs/not-built.md` lists each use.
pub fn not_built(feature: &str) -> CallError {
    call_error(ErrorCode::NotBuilt, format!("{feature} isn't built yet (NotBuilt)"))
}

/// Another master leads, or none does.
pub fn not_leader(leader: Option<String>) -> CallError {
    let message = match &leader {
        Some(address) => format!("this master doesn't lead the region; {address} does"),
        None => "this master doesn't lead the region, and it knows of no leader yet; try again".to_owned(),
    };
    CallError { leader: leader.unwrap_or_default(), ..call_error(ErrorCode::NotLeader, message) }
}

/// A session's request was refused by the table.
pub fn refused(refusal: &Refusal) -> CallError {
    let code = match refusal {
        Refusal::Expired(_) | Refusal::Awaited(_) => ErrorCode::SessionExpired,
        Refusal::Foreign { .. } => ErrorCode::PermissionDenied,
        Refusal::Incarnation { .. } => ErrorCode::StaleEpoch,
        Refusal::SessionsMax(_)
        | Refusal::SessionsOfOne { .. }
        | Refusal::OpensMax { .. }
        | Refusal::OpensOfOne { .. }
        | Refusal::OpensOfAll(_) => ErrorCode::Busy,
        Refusal::Reaping(_) => ErrorCode::NotFound,
        Refusal::Owes(_) => ErrorCode::Unavailable,
    };
    call_error(code, refusal.to_string())
}

/// The master's own transaction failed.
pub fn record_failed(failure: &RecordFailure) -> CallError {
    let code = match failure.store() {
        // A store that fails proposes nothing from then on: another master leads before long.
        Some(StoreError::NotLeader | StoreError::Failed(_)) => ErrorCode::NotLeader,
        Some(StoreError::CommitUnknown) => ErrorCode::OutcomeUnknown,
        None => ErrorCode::Internal,
        Some(_) => ErrorCode::Unavailable,
    };
    call_error(code, failure.to_string())
}

/// The peer's certificate doesn't allow it.
pub fn denied(message: impl Into<String>) -> CallError {
    call_error(ErrorCode::PermissionDenied, message)
}

/// A filesystem request has no answer.
pub fn driver_failed(error: &DriverError, not_leader: impl FnOnce() -> CallError) -> CallError {
    let code = match error {
        DriverError::Store(StoreError::NotLeader) => return not_leader(),
        DriverError::Store(StoreError::CommitUnknown) => ErrorCode::OutcomeUnknown,
        // Nothing of this attempt was proposed; an earlier one of the same request may have been, and whoever leads next has its outcome.
        DriverError::Store(StoreError::Failed(_)) => ErrorCode::NotLeader,
        DriverError::Store(e) if e.is_retryable() => ErrorCode::Unavailable,
        // Too large in some way: the same request will be so again.
        DriverError::Store(_) => ErrorCode::InvalidRequest,
        DriverError::Deadline => ErrorCode::DeadlineExceeded,
        DriverError::Contended(_) | DriverError::Moving(_) => ErrorCode::Unavailable,
        DriverError::SessionExpired(_) | DriverError::SessionLapsed(_) => ErrorCode::SessionExpired,
        // Clients take this for the word that the change wasn't done and never will be, and send it anew under their next life.
        DriverError::StaleIncarnation { .. } => ErrorCode::StaleEpoch,
        // Another master may have done it.
        DriverError::StaleEpoch { .. } => return not_leader(),
        DriverError::OutcomeForgotten(_) | DriverError::NumberReused(_) | DriverError::NoNumber => {
            ErrorCode::InvalidRequest
        }
        DriverError::TooManyUnanswered { .. } => ErrorCode::Busy,
        DriverError::Op(OpError::Malformed(_)) => ErrorCode::InvalidRequest,
        DriverError::Op(OpError::NoVolume(_)) => ErrorCode::NotFound,
        DriverError::Op(_) => ErrorCode::Internal,
    };
    if code == ErrorCode::Internal {
        tracing::error!(%error, "a filesystem request failed for a reason of the master's own");
    }
    call_error(code, error.to_string())
}
