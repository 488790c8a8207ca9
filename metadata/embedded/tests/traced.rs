//! Sampled transactions that share an entry of the log. One test: a process records its spans once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::*;
use mooseng_store::{Store, Transaction};
use mooseng_trace::{Ended, Link, TRACE, current, requested, start};
use tokio::sync::oneshot;

type Answer = oneshot::Sender<Result<ApplyOutcome, ProposeError>>;

/// Proposals wait until the test decides; it sees in which trace they were made.
#[derive(Default)]
struct Hand(Mutex<Vec<(Bytes, Bytes, Answer)>>);

#[async_trait]
impl CommitLog for Hand {
    async fn propose(&self, _term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError> {
        let (answer, outcome) = oneshot::channel();
        self.0.lock().unwrap().push((current(), batch, answer));
        outcome.await.unwrap_or(Err(ProposeError::Unknown))
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_part_of_its_first_sampled_transaction_and_the_others_point_there() {
    let (mut spans, _lost) = start(0.0, 64).unwrap();
    let engine =
        Embedded::open(Arc::new(MemoryBase::new()), Options { proposals_max: 1, ..Options::default() });
    let (engine, log) = (engine.unwrap(), Arc::new(Hand::default()));
    engine.set_log(log.clone());
    engine.lead(1);
    let commit = |key: &'static str, context: Bytes| {
        let tx = engine.begin();
        tx.set(key.as_bytes(), b"");
        tokio::spawn(TRACE.scope(context, tx.commit()))
    };
    let settled = || tokio::time::sleep(Duration::from_millis(20));
    let accept = |index: u64| {
        let (context, batch, answer) = log.0.lock().unwrap().remove(0);
        let count = CommitBatch::decode(&batch).unwrap().transactions.len();
        let entry = LogEntry { index, term: 1, node: 1, payload: Payload::Batch(batch) };
        answer.send(Ok(engine.apply(vec![entry]).unwrap()[0])).unwrap();
        (context, count)
    };

    let alone = commit("a", mooseng_trace::fresh());
    settled().await;
    // Behind the first, which is in flight: these share an entry.
    let contexts = [mooseng_trace::fresh(), requested(), requested()];
    let together =
        ["b", "c", "d"].into_iter().zip(contexts.clone()).map(|(key, context)| commit(key, context));
    let together: Vec<_> = together.collect();
    settled().await;
    assert_eq!(accept(1), (Bytes::new(), 1), "nothing of it is sampled");
    settled().await;
    let (context, count) = accept(2);
    assert_eq!(count, 3);
    for commit in std::iter::once(alone).chain(together) {
        commit.await.unwrap().unwrap();
    }

    let mut ended: Vec<Ended> = Vec::new();
    while let Ok(span) = spans.try_recv() {
        ended.push(span);
    }
    let of = |context: &Bytes, name: &str| -> Ended {
        let mut found = ended.iter().filter(|span| span.trace == context[..16] && span.name == name);
        let one = found.next().unwrap_or_else(|| panic!("no {name} in {ended:?}")).clone();
        assert_eq!(found.next(), None);
        one
    };
    let (first, second) = (of(&contexts[1], "commit"), of(&contexts[2], "commit"));
    assert_eq!(context[..16], first.trace);
    assert_eq!(context[16..24], first.id, "the entry is a part of the first one's commit");
    for (context, commit) in [(&contexts[1], &first), (&contexts[2], &second)] {
        assert_eq!(of(context, "commit.queue").parent, commit.id);
    }
    let shared = of(&contexts[2], "commit.shared");
    assert_eq!(
        (shared.parent, shared.links.as_slice()),
        (second.id, &[Link { trace: first.trace, span: first.id }][..])
    );
    assert_eq!(ended.len(), 5, "{ended:?}");
}
