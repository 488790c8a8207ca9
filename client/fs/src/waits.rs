//! What operations wait for, for those who look at what is under way.
//!
//! Whoever waits notes it for as long as that takes, under the trace of the operation that it works for: that goes along into tasks which carry it on. What is
//! done at once is noted nowhere, and costs a comparison.
//!
//! A wait in the region, for another mount to give up a promise, say, is one for a master's answer here.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_transport::trace::TRACE;
use mooseng_wire::Role;
use mooseng_wire::method::Method;
use mooseng_wire::revocations::Agreed;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::peers::{Answered, Failure, Peers};
use crate::slots::{Slot, Slots};

/// What an operation's trace is known by, all over the cluster.
pub type TraceId = [u8; 16];

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Another daemon's answer.
    Answer {
        /// What it is.
        role: Role,
        /// Where.
        address: String,
        /// What it was asked for.
        method: Method,
    },
    /// A master that leads where the volume is at home.
    Leader,
    /// What this mount changed before, which comes first and isn't at the region yet.
    Earlier,
    /// Fewer changes of this mount without an answer.
    Unanswered,
    /// Room for written data.
    Room,
    /// Somebody else who sends the file's written data.
    Sender,
    /// Other regions, which lack more of the volume than its `lag_max` allows.
    Lag,
    /// The next attempt, after one that failed.
    Pause,
    /// A lock that somebody has.
    Lock,
    /// This host's disk, with a file that a chunkserver lent.
    Disk,
    /// Its turn: too many requests of the kernel are under way.
    Turn,
}

impl What {
    /// The word for it: of an answer, whose.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Answer { role, .. } => role.as_str(),
            Self::Leader => "leader",
            Self::Earlier => "earlier_changes",
            Self::Unanswered => "unanswered_changes",
            Self::Room => "room_for_data",
            Self::Sender => "sender",
            Self::Lag => "lag_max",
            Self::Pause => "pause",
            Self::Lock => "lock",
            Self::Disk => "disk",
            Self::Turn => "turn",
        }
    }
}

/// A wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// For what.
    pub what: What,
    /// How long it has lasted.
    pub time: Duration,
}

struct Noted {
    trace: TraceId,
    what: What,
    since: Instant,
}

/// One table for the process, as the trace of what a task works on is the process's: ids differ also between mounts.
static WAITS: Slots<Noted> = Slots::new();

/// The shard of a trace's waits: ids are random.
fn shard_of(trace: &TraceId) -> usize {
    trace[0].into()
}

/// The trace that this task works for, if there is one.
pub fn here() -> Option<TraceId> {
    TRACE.try_with(|context| context.get(..16).and_then(|id| id.try_into().ok())).ok().flatten()
}

/// What an operation has waited for longest of what it waits for now.
pub fn of(trace: &TraceId) -> Option<Waiting> {
    let mut longest: Option<(Instant, What)> = None;
    WAITS.each_in(shard_of(trace), |noted| {
        let is_longer = longest.as_ref().is_none_or(|(since, _)| noted.since < *since);
        if noted.trace == *trace && is_longer {
            longest = Some((noted.since, noted.what.clone()));
        }
    });
    longest.map(|(since, what)| Waiting { what, time: since.elapsed() })
}

/// What is noted as long as this is kept.
#[derive(Default)]
struct Note(Option<Slot>);

impl Note {
    fn begin(&mut self, what: impl FnOnce() -> What) {
        if let Some(trace) = here() {
            let noted = Noted { trace, what: what(), since: Instant::now() };
            self.0 = WAITS.put(shard_of(&trace), noted);
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            WAITS.take(slot);
        }
    }
}

/// Does `work`, which waits for `what` if it isn't done at once.
pub async fn on<T>(what: impl FnOnce() -> What, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut what = Some(what);
    let mut note = Note::default();
    std::future::poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        if polled.is_pending()
            && let Some(what) = what.take()
        {
            note.begin(what);
        }
        polled
    })
    .await
}

/// Other daemons, whose answers are noted as long as they are waited for.
pub(crate) struct Watched(pub Arc<dyn Peers>);

#[async_trait]
impl Peers for Watched {
    async fn call(
        &self,
        role: Role,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Failure> {
        let what = || What::Answer { role, address: address.to_owned(), method };
        on(what, self.0.call(role, address, method, body, bulk, timeout)).await
    }

    fn notices(&self, role: Role, address: &str) -> Option<broadcast::Receiver<(Method, Bytes)>> {
        self.0.notices(role, address)
    }

    fn refuse(&self, agreed: Agreed) {
        self.0.refuse(agreed);
    }

    fn refusing(&self) -> Option<u64> {
        self.0.refusing()
    }

    fn apart(&self) -> Option<Arc<dyn Peers>> {
        let apart = self.0.apart()?;
        Some(Arc::new(Self(apart)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_transport::trace;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_seen_under_the_operations_trace_until_it_came() {
        let (id, known) = oneshot::channel();
        let (first, comes) = oneshot::channel::<()>();
        let (second, comes_then) = oneshot::channel::<()>();
        let operation = tokio::spawn(trace::begun(async move {
            id.send(here().unwrap()).unwrap();
            // As a flush, in a task of its own that outlives nobody.
            let carried = trace::carried(on(|| What::Room, comes));
            let (beside, _) = tokio::join!(tokio::spawn(carried), on(|| What::Lock, comes_then));
            beside.unwrap().unwrap();
            on(|| unreachable!("it is done at once"), async { 7 }).await
        }));
        let trace = known.await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let waiting = of(&trace).unwrap();
        assert!(waiting.time >= Duration::from_millis(20), "{waiting:?}");
        assert!([What::Room, What::Lock].contains(&waiting.what), "{waiting:?}");
        first.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(of(&trace).unwrap().what, What::Lock);
        second.send(()).unwrap();
        assert_eq!(operation.await.unwrap(), 7);
        assert_eq!(of(&trace), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_leaves_nothing_and_outside_an_operation_nothing_is_noted() {
        let work = trace::begun(async {
            let trace = here().unwrap();
            let for_ever = on(|| What::Leader, std::future::pending::<()>());
            assert!(tokio::time::timeout(Duration::from_secs(1), for_ever).await.is_err());
            trace
        });
        let trace = work.await;
        assert_eq!(of(&trace), None);
        assert_eq!(here(), None);
        let nobody = on(|| unreachable!("it is nobody's"), tokio::time::sleep(Duration::from_secs(1)));
        nobody.await;
    }

    /// Never answers.
    struct Silent;

    #[async_trait]
    impl Peers for Silent {
        async fn call(
            &self,
            _: Role,
            _: &str,
            _: Method,
            _: Bytes,
            _: Bytes,
            timeout: Duration,
        ) -> Result<Answered, Failure> {
            tokio::time::sleep(timeout).await;
            Err(Failure::Timeout)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_a_wait_for_that_daemons_answer() {
        let call = trace::begun(async {
            let trace = here().unwrap();
            let watched = Watched(Arc::new(Silent));
            let timeout = Duration::from_secs(5);
            let call = watched.call(
                Role::Chunkserver,
                "c1:7100",
                Method::ChunkRead,
                Bytes::new(),
                Bytes::new(),
                timeout,
            );
            let look = async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                of(&trace).unwrap()
            };
            let (answer, waiting) = tokio::join!(call, look);
            assert_eq!(answer, Err(Failure::Timeout));
            waiting
        });
        let waiting = call.await;
        let (role, address, method) = (Role::Chunkserver, "c1:7100".to_owned(), Method::ChunkRead);
        assert_eq!(waiting.what, What::Answer { role, address, method });
        assert_eq!((waiting.what.word(), waiting.time.as_secs()), ("chunkserver", 2));
    }
}
