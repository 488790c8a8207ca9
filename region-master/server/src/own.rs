//! Changes of the master's own that sessions may have been promised otherwise: they pass the same gate as sessions' changes before they commit.

use futures::future::BoxFuture;
use mooseng_embedded::EmbeddedTransaction;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{Admission, Gate, OpError, upkeep};
use mooseng_store::{Store, StoreError, Transaction};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::{FsReply, FsRequest};
use mooseng_wire::{RequestNumber, SessionId, VolumeId};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use crate::errors::record_failed;
use crate::master::{HOME_EPOCH, Master};
use crate::promises::{self, ChangeGate};
use crate::records::RecordFailure;

/// Tries of one change.
const TRIES: u32 = 20;

/// Whether a change may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A second run finds that there is nothing left to do.
    Harmless,
    /// It adds something: where the outcome isn't known, the caller has to look anew.
    Never,
}

fn too_late() -> CallError {
    call_error(
        ErrorCode::Unavailable,
        "a session hasn't given up in time what it was promised; it is tried later",
    )
}

/// Runs `work` in a transaction, has sessions give up what they were promised of the facts that it notes, and commits.
pub async fn change<T, F>(
    master: &Arc<Master>,
    term: u64,
    repeat: Repeat,
    deadline: Instant,
    work: F,
) -> Result<T, CallError>
where
    F: for<'t> Fn(&'t EmbeddedTransaction, &'t Touched) -> BoxFuture<'t, Result<T, OpError>>,
{
    promises::custody_settled(master, deadline).await?;
    let gate = ChangeGate::new(master.clone(), term, SessionId(0), RequestNumber(0));
    let mut tries = 0;
    loop {
        let tx = master.store.begin();
        let touched = Touched::default();
        let failed = match attempt(&tx, &touched, &work).await {
            Ok(value) => {
                match timeout_at(deadline, gate.admit(touched.into_facts())).await.map_err(|_| too_late())? {
                    Admission::Commit => {}
                    Admission::Again => continue,
                    Admission::Deposed => return Err(master.not_leader()),
                }
                match tx.commit().await {
                    Ok(done) => {
                        gate.committed(&FsRequest::default(), &FsReply::default(), done.version.0);
                        return Ok(value);
                    }
                    Err(error) => error,
                }
            }
            Err(OpError::Store(error)) => error,
            Err(other) => return Err(record_failed(&RecordFailure(other))),
        };
        tries += 1;
        let again = failed.is_retryable() || (failed.is_maybe_committed() && repeat == Repeat::Harmless);
        if !again || tries >= TRIES || Instant::now() >= deadline {
            if failed == StoreError::CommitUnknown {
                let message = "whether a change of the master's own was made isn't known; look again";
                return Err(call_error(ErrorCode::DeadlineExceeded, message));
            }
            return Err(record_failed(&RecordFailure(failed.into())));
        }
        let pause = rand::rng().random_range(1..=(2_u64 << tries.min(7)));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn attempt<T, F>(tx: &EmbeddedTransaction, touched: &Touched, work: &F) -> Result<T, OpError>
where
    F: for<'t> Fn(&'t EmbeddedTransaction, &'t Touched) -> BoxFuture<'t, Result<T, OpError>>,
{
    // A change of the volume's home epoch makes this transaction fail.
    let volume = upkeep::load_volume(tx, VolumeId(0)).await?.ok_or(OpError::NoVolume(0))?;
    if volume.epoch != HOME_EPOCH.0 {
        return Err(OpError::Malformed("the volume has another home epoch"));
    }
    work(tx, touched).await
}
