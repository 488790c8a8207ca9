//! Changes of the master's own that sessions may have been promised otherwise: they pass the same gate as sessions' changes before they commit.

use futures::future::BoxFuture;
use mooseng_embedded::EmbeddedTransaction;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{Admission, Gate, OpError, upkeep};
use mooseng_store::{Store, StoreError, Transaction};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::{FsReply, FsRequest};
use mooseng_wire::{Epoch, RequestNumber, SessionId, VolumeId};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use crate::errors::record_failed;
use crate::master::Master;
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

fn over_quota() -> CallError {
    call_error(ErrorCode::NoSpace, "a quota leaves no room for it; raise the limit, or free something there")
}

/// Runs `work` in a transaction, has sessions give up what they were promised of the facts that it notes, and commits.
pub async fn change<T, F>(
    master: &Arc<Master>,
    volume: VolumeId,
    term: u64,
    repeat: Repeat,
    deadline: Instant,
    work: F,
) -> Result<T, CallError>
where
    F: for<'t> Fn(&'t EmbeddedTransaction, &'t Touched) -> BoxFuture<'t, Result<T, OpError>>,
{
    let mut changes = Changes::begin(master, volume, term, deadline).await?;
    let changed = changes.change(repeat, TRIES, deadline, work).await?;
    changes.end();
    changed.ok_or_else(|| record_failed(&RecordFailure(StoreError::Conflict.into())))
}

/// Several changes, one after the other. What sessions gave up for one of them nobody is promised again before [`Self::end`].
pub struct Changes<'a> {
    master: &'a Arc<Master>,
    volume: VolumeId,
    gate: ChangeGate,
    /// Of the last commit.
    version: Option<u64>,
}

impl<'a> Changes<'a> {
    /// Begins, once this custodian may change anything of the volume.
    pub async fn begin(
        master: &'a Arc<Master>,
        volume: VolumeId,
        term: u64,
        deadline: Instant,
    ) -> Result<Self, CallError> {
        promises::custody_settled(master, volume, deadline).await?;
        let gate = ChangeGate::new(master.clone(), term, SessionId::new(volume, 0), RequestNumber(0));
        Ok(Self { master, volume, gate, version: None })
    }

    /// They are all done.
    pub fn end(self) {
        match self.version {
            Some(version) => drop(self.gate.committed(&FsRequest::default(), &FsReply::default(), version)),
            None => self.gate.refused(),
        }
    }

    /// One of them. None where it conflicted with others so often.
    pub async fn change<T, F>(
        &mut self,
        repeat: Repeat,
        tries: u32,
        deadline: Instant,
        work: F,
    ) -> Result<Option<T>, CallError>
    where
        F: for<'t> Fn(&'t EmbeddedTransaction, &'t Touched) -> BoxFuture<'t, Result<T, OpError>>,
    {
        let mut tried = 0;
        loop {
            let tx = self.master.store.begin();
            let touched = Touched::default();
            let failed =
                match attempt(&tx, (self.volume, self.master.epoch(self.volume)), &touched, &work).await {
                    Ok(value) => {
                        let charges = touched.charges();
                        let admitted = timeout_at(deadline, self.gate.admit(touched.into_facts(), charges));
                        match admitted.await.map_err(|_| too_late())? {
                            Admission::Commit => {}
                            Admission::Again => continue,
                            Admission::Refused(_) => return Err(over_quota()),
                            Admission::Deposed => return Err(self.master.not_leader()),
                        }
                        match tx.commit().await {
                            Ok(done) => {
                                self.version = Some(done.version.0);
                                return Ok(Some(value));
                            }
                            Err(error) => error,
                        }
                    }
                    Err(OpError::Store(error)) => error,
                    Err(other) => return Err(record_failed(&RecordFailure(other))),
                };
            tried += 1;
            let unknown = failed.is_maybe_committed();
            if unknown && repeat == Repeat::Never {
                let message = "whether a change of the master's own was made isn't known; look again";
                return Err(call_error(ErrorCode::DeadlineExceeded, message));
            }
            if !(failed.is_retryable() || unknown) || Instant::now() >= deadline {
                return Err(record_failed(&RecordFailure(failed.into())));
            }
            if tried >= tries {
                return match unknown {
                    true => Err(record_failed(&RecordFailure(failed.into()))),
                    false => Ok(None),
                };
            }
            let pause = rand::rng().random_range(1..=(2_u64 << tried.min(7)));
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

async fn attempt<T, F>(
    tx: &EmbeddedTransaction,
    (volume, epoch): (VolumeId, Epoch),
    touched: &Touched,
    work: &F,
) -> Result<T, OpError>
where
    F: for<'t> Fn(&'t EmbeddedTransaction, &'t Touched) -> BoxFuture<'t, Result<T, OpError>>,
{
    // A change of the volume's home epoch makes this transaction fail.
    let record = upkeep::load_volume(tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
    if record.epoch != epoch.0 {
        return Err(OpError::Malformed("the volume has another home epoch"));
    }
    work(tx, touched).await
}
