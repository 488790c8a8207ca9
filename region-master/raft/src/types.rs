//! The types that openraft is instantiated with.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use openraft::{AsyncRuntime, OptionalSend, TokioInstant, TokioRuntime};
use serde::{Deserialize, Serialize};

use crate::snapshot::SnapshotSource;

/// A proposal: an encoded `CommitBatch` of the embedded engine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its bytes.
    pub bytes: Bytes,
    /// Where it was proposed, as long as it is in memory: the trace that it is a part of, if that is sampled. Neither in the log nor on the wire.
    #[serde(skip)]
    pub context: Bytes,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.bytes.len())
    }
}

/// What applying an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It held no batch.
    Nothing,
    /// The batch's changes hold.
    Applied,
    /// The batch was resolved against another state: nothing was changed.
    Mismatch,
}

/// A member of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
}

openraft::declare_raft_types!(
    /// The region group's types.
    pub TypeConfig:
        D = Batch,
        R = Outcome,
        NodeId = u64,
        Node = Node,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotSource,
        AsyncRuntime = Runtime,
);

/// tokio, with random numbers that the simulation can seed: openraft 0.9's own come from a system call that nothing replaces.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runtime;

/// `rand` 0.8's interface over `rand` 0.9's thread-local generator.
pub struct SeededRng;

impl openraft_rand::RngCore for SeededRng {
    fn next_u32(&mut self) -> u32 {
        rand::random()
    }
    fn next_u64(&mut self) -> u64 {
        rand::random()
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        rand::fill(dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), openraft_rand::Error> {
        rand::fill(dest);
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SeededRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }
    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }
    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }
    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }
    fn thread_rng() -> Self::ThreadLocalRng {
        SeededRng
    }
    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>)
    where
        T: OptionalSend,
    {
        TokioRuntime::oneshot()
    }
}
