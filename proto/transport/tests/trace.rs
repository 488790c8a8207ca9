//! One operation, one trace id: in the debug logs of whoever calls, and of everyone who is called because of it.
//! A file of its own, for it listens to the logs of the whole process.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_transport::{
    Answer, Incoming, Limits, Link, LinkOptions, Network, PlainNetwork, Service, Services, serve, trace,
};
use mooseng_wire::call::CallError;
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role};
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(5);

fn network(role: Role, name: &str) -> Arc<PlainNetwork> {
    let identity = Identity { cluster: "c".into(), region: "r".into(), role, name: name.into() };
    Arc::new(PlainNetwork::new(identity))
}

/// Notes that it works; passes the call on to the next, as a master does to a chunkserver.
struct Passer(&'static str, Option<Link>);

#[async_trait]
impl Service for Passer {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        tracing::debug!(me = self.0, "works");
        if let Some(next) = &self.1 {
            next.call(incoming.method, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
        }
        Ok(Answer::default())
    }
}

async fn serving(role: Role, name: &'static str, next: Option<Link>) -> String {
    let listener = network(role, name).listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address();
    let services = Services { stream: Arc::new(Passer(name, next)), grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), CancellationToken::new()));
    address
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_same_id_stands_in_the_logs_of_client_master_and_chunkserver() {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).json();
    lines.with_writer(move || writer.clone()).init();
    let link = |from, to, role| Link::new(network(from, "x"), to, role, LinkOptions::default());
    let chunkserver = serving(Role::Chunkserver, "chunkserver", None).await;
    let onward = link(Role::Master, chunkserver, Role::Chunkserver);
    let client = link(Role::Client, serving(Role::Master, "master", Some(onward)).await, Role::Master);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = trace::begun(async {
            client.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
            trace::id(&trace::current())
        });
        ids.push(id.await);
    }
    assert_ne!(ids[0], ids[1], "each operation has an id of its own");
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for id in &ids {
        assert_eq!(id.len(), 32);
        let with = |what: &str| text.lines().filter(|l| l.contains(id.as_str()) && l.contains(what)).count();
        assert_eq!(with("a call is sent"), 2, "by the client and by the master: {text}");
        assert_eq!(with("a call arrived"), 2, "at the master and at the chunkserver: {text}");
        assert_eq!(with("\"me\":\"master\""), 1, "{text}");
        assert_eq!(with("\"me\":\"chunkserver\""), 1, "{text}");
    }
    let nested = trace::begun(async {
        let outer = trace::current();
        trace::begun(async { trace::current() }).await == outer
    });
    assert!(nested.await, "a trace that was begun goes on");
}
