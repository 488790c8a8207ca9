//! The queue of ended spans, and which traces begin sampled. There is one for each process, as there is one log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use crate::span::Ended;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

struct Recorder {
    /// Traces whose id, its last 63 bits taken as a number, is below it begin sampled.
    below: u64,
    queue: mpsc::Sender<Ended>,
    lost: Lost,
}

/// How many spans were lost because the queue was full, or nobody takes from it any more.
#[derive(Clone, Debug, Default)]
pub struct Lost(Arc<AtomicU64>);

impl Lost {
    /// So many.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts spans that were lost behind the queue.
    pub fn add(&self, spans: u64) {
        self.0.fetch_add(spans, Ordering::Relaxed);
    }
}

/// Spans are recorded already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyStarted;

impl std::fmt::Display for AlreadyStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this process records its spans already")
    }
}

impl std::error::Error for AlreadyStarted {}

/// A share of traces as a bound of their ids: the same in every process, as OpenTelemetry's ratio of trace ids.
fn bound(sample: f64) -> u64 {
    const ALL: u64 = 1 << 63;
    // A float's cast saturates; a NaN becomes 0.
    ((sample * ALL as f64) as u64).min(ALL)
}

fn is_below(id: &[u8; 16], bound: u64) -> bool {
    let (_, low) = id.split_at(8);
    low.try_into().is_ok_and(|low| u64::from_be_bytes(low) >> 1 < bound)
}

/// From now on this process records the spans of sampled traces, `queue_max` of them until they are taken. Of the operations that begin here, the
/// share `sample` (0 to 1) is sampled. Returns where ended spans arrive, and how many were lost.
pub fn start(sample: f64, queue_max: usize) -> Result<(mpsc::Receiver<Ended>, Lost), AlreadyStarted> {
    let (queue, spans) = mpsc::channel(queue_max.max(1));
    let lost = Lost::default();
    RECORDER.set(Recorder { below: bound(sample), queue, lost: lost.clone() }).map_err(|_| AlreadyStarted)?;
    Ok((spans, lost))
}

/// Whether spans are recorded at all.
pub(crate) fn records() -> bool {
    RECORDER.get().is_some()
}

/// Whether a trace that begins here is sampled.
pub(crate) fn takes(id: &[u8; 16]) -> bool {
    RECORDER.get().is_some_and(|recorder| is_below(id, recorder.below))
}

/// Takes an ended span in, or loses it. Never waits.
pub(crate) fn take(span: Ended) {
    if let Some(recorder) = RECORDER.get()
        && recorder.queue.try_send(span).is_err()
    {
        recorder.lost.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_ids_is_sampled() {
        let ids: Vec<[u8; 16]> = (0..10_000).map(|_| rand::random::<u128>().to_be_bytes()).collect();
        let taken = |sample| ids.iter().filter(|id| is_below(id, bound(sample))).count();
        assert_eq!((taken(0.0), taken(1.0)), (0, ids.len()));
        assert!((800..1_200).contains(&taken(0.1)), "{}", taken(0.1));
        // A trace that is sampled at one share is at each higher one.
        assert!(ids.iter().all(|id| !is_below(id, bound(0.1)) || is_below(id, bound(0.2))));
        assert_eq!((bound(f64::NAN), bound(-1.0), bound(7.0)), (0, 0, 1 << 63));
    }
}
