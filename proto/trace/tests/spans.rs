//! Spans as a process that records has them. One test: a process has one recorder.

#![allow(clippy::unwrap_used)]

use mooseng_trace::{Kind, Span, client, current, id, internal, operation, requested, server, start};

#[tokio::test]
async fn spans_of_sampled_traces_are_parts_of_each_other_and_the_queue_never_waits() {
    let judge = |outcome: &Result<(), String>, span: &mut Span| {
        if let Err(error) = outcome {
            span.fail(|| error.clone());
        }
    };
    // Nobody records yet.
    assert!(!server("early", &requested()).is_recorded());
    let (mut spans, lost) = start(1.0, 4).unwrap();
    assert!(start(1.0, 4).is_err());

    let mut trace = String::new();
    let work = async {
        trace = id(&current());
        let asked = client("call").noted("bytes", || 7_u64);
        asked.run(async { server("answer", &current()).context() }, |_, _| {}).await;
        Err("no".to_owned())
    };
    operation("write", work, judge).await.unwrap_err();
    let [answer, call, write] = [(); 3].map(|()| spans.try_recv().unwrap());
    assert_eq!((answer.name, call.name, write.name), ("answer", "call", "write"));
    assert!([&answer, &call, &write].iter().all(|span| id(&span.trace) == trace));
    assert_eq!((answer.parent, call.parent, write.parent), (call.id, write.id, [0; 8]));
    assert_eq!((answer.parent_is_remote, call.parent_is_remote), (true, false));
    assert_eq!((call.kind, call.attributes.len()), (Kind::Client, 1));
    assert_eq!((write.failure.as_deref(), call.failure), (Some("no"), None));
    assert!(write.began <= call.began && call.ended <= write.ended);

    // Within a trace that isn't sampled nothing is, whatever this process would have begun.
    let fresh = mooseng_trace::fresh();
    let nothing = mooseng_trace::TRACE.scope(fresh.clone(), async {
        assert!(!internal("part").is_recorded());
        let inner = async {
            assert_eq!(current(), fresh);
            Ok(())
        };
        operation("inner", inner, judge).await
    });
    nothing.await.unwrap();
    assert!(spans.try_recv().is_err());

    // Work that is dropped ends its span.
    drop(Box::pin(server("dropped", &requested()).run(std::future::pending::<()>(), |(), _| {})));
    let dropped = spans.try_recv().unwrap();
    assert!(dropped.attributes.iter().any(|(key, _)| *key == "cancelled"));
    assert!(!dropped.parent_is_remote, "nobody has its parent");

    // A full queue, and one that nobody reads any more, loses spans and counts them.
    for _ in 0..6 {
        drop(server("many", &requested()));
    }
    assert_eq!(lost.count(), 2);
    drop(spans);
    drop(server("late", &requested()));
    assert_eq!(lost.count(), 3);
}
