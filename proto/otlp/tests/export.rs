//! Spans and metrics of a process at a collector. One test: a process records once.

use std::time::Duration;

use mooseng_otlp::collector::{Collector, texts};
use mooseng_otlp::{Otlp, OtlpConfig, Who};
use mooseng_trace::{Span, operation};
use mooseng_transport::observe::Metrics;
use prometheus_client::metrics::counter::Counter;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

fn judge(outcome: &Result<(), String>, span: &mut Span) {
    if let Err(error) = outcome {
        span.fail(|| error.clone());
    }
}

/// An authority's certificate, and certificates and keys of a collector and a daemon, PEM.
fn certificates() -> (String, [(String, String); 2]) {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(ca, key);
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (leaf.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    (authority, [leaf("localhost"), leaf("daemon")])
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_metrics_reach_a_collector_and_one_that_hangs_keeps_nobody_waiting() {
    let (authority, [(cert, key), (own_cert, own_key)]) = certificates();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .client_ca_root(Certificate::from_pem(&authority));
    let collector = Collector::start(Some(tls)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("ca", &authority), ("cert", &own_cert), ("key", &own_key)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let config = OtlpConfig {
        ca: Some("ca".into()),
        cert: Some("cert".into()),
        key: Some("key".into()),
        sample: 1.0,
        timeout_ms: 200,
        metrics_every_s: 1,
        headers: [("Authorization".to_owned(), "Bearer x".to_owned())].into(),
        ..OtlpConfig::to(format!("https://localhost:{}", collector.address().port()))
    };
    let config = config.below(dir.path());
    let metrics = Metrics::default();
    let calls = Counter::<u64>::default();
    metrics.register(|registry| registry.register("mooseng_calls", "Calls", calls.clone()));
    calls.inc_by(4);
    let who = Who {
        service: "mooseng-test",
        instance: "test-1".into(),
        cluster: "here".into(),
        region: "eu".into(),
    };
    let otlp = Otlp::start(&config, &who, &metrics).unwrap();

    operation("write", async { Err("no".to_owned()) }, judge).await.unwrap_err();
    until("the span", || !collector.spans().is_empty()).await;
    let taken = collector.spans().remove(0);
    assert_eq!((taken.service.as_str(), taken.instance.as_str()), ("mooseng-test", "test-1"));
    assert_eq!((taken.span.name.as_str(), taken.span.parent_span_id.len()), ("write", 0));
    assert_eq!(taken.span.status.unwrap().message, "no");
    assert_eq!(collector.authorization().as_deref(), Some("Bearer x"));

    let shown = metrics.encode();
    let is_shown = |name: &str| shown.lines().any(|line| line.split([' ', '{']).next() == Some(name));
    until("the metrics", || collector.metrics().contains_key("test-1")).await;
    let (resource, reported) = collector.metrics().remove("test-1").unwrap();
    for (key, value) in
        [("service.name", "mooseng-test"), ("mooseng.cluster", "here"), ("mooseng.region", "eu")]
    {
        assert_eq!(resource.get(key).map(String::as_str), Some(value));
    }
    assert!(reported.iter().all(|metric| is_shown(&metric.name)), "{reported:?}\n{shown}");
    assert!(reported.iter().any(|metric| metric.name == "mooseng_calls_total"));
    assert!(texts(&[]).is_empty());

    // While it hangs, operations end, also more of them than there is room for spans.
    collector.hang(true);
    for _ in 0..20_000 {
        operation("write", async { Ok(()) }, judge).await.unwrap();
    }
    collector.wait_hung(1).await;
    let lost = || {
        let text = metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix("mooseng_otlp_spans_lost_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert!(lost() > 0, "the queue has an end");
    collector.hang(false);
    collector.forget_spans();
    until("spans again", || !collector.spans().is_empty()).await;

    // What has ended is sent before the process ends.
    until("the queue to be empty", || {
        let text = metrics.encode();
        let count = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        count("mooseng_otlp_spans_total") + count("mooseng_otlp_spans_lost_total") == 20_001
    })
    .await;
    operation("last", async { Ok(()) }, judge).await.unwrap();
    otlp.stop().await;
    assert!(collector.spans().iter().any(|taken| taken.span.name == "last"));

    // The figures are listed.
    let doc = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics/otlp.md");
    let doc = std::fs::read_to_string(doc).unwrap();
    let text = metrics.encode();
    let ours = text.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name);
    for name in ours.filter(|name| name.starts_with("mooseng_otlp_")) {
        assert!(doc.contains(&format!("`{name}`")), "{name} isn't in docs/metrics/otlp.md");
    }
}
