//! A mount's socket, over which it tells what is under way ([`crate::live`]).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mooseng_client::waits::{self, TraceId, Waiting, What};
use mooseng_fuse::{Asked, Operation, Operations};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::live::{Latency, Live, Request, TOLD_MAX, TOLD_WITHIN, Wait};
use crate::process::Started;
use crate::runtime;

/// Before connections are looked for again, after there was none to be had.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells whoever may hear it until `shutdown`, one after the other.
pub fn serve(operations: Arc<Operations>, process: Started, shutdown: CancellationToken) -> io::Result<()> {
    runtime::make_dir(&runtime::dir())?;
    runtime::sweep_sockets();
    let path = runtime::socket_of(process);
    let listener = UnixListener::bind(&path)?;
    // Whoever came before that is asked who he is.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(tell(listener, operations, shutdown));
    Ok(())
}

async fn tell(listener: UnixListener, operations: Arc<Operations>, shutdown: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let answered = tokio::time::timeout(TOLD_WITHIN, answer(stream, &operations)).await;
                if !matches!(answered, Ok(Ok(()))) {
                    tracing::debug!(?answered, "somebody wasn't told what is under way");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "nobody can be told what is under way");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, operations: &Operations) -> io::Result<()> {
    if !may_hear(stream.peer_cred()?.uid()) {
        return Ok(());
    }
    let text = serde_json::to_vec(&live(operations)).map_err(io::Error::other)?;
    stream.write_all(&text).await
}

fn may_hear(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// What is to be told now.
fn live(operations: &Operations) -> Live {
    let asked = operations.under_way(TOLD_MAX);
    let more = operations.running().saturating_sub(asked.len() as u64);
    let spreads = Operation::ALL.iter().map(|operation| (operation.name(), operations.spread(*operation)));
    let latencies = spreads.filter(|(_, spread)| spread.count() > 0).map(|(name, spread)| {
        let buckets = spread.buckets.iter().map(|bucket| (bucket.from_us, bucket.below_us, bucket.count));
        (name.to_owned(), Latency { longest_us: spread.longest_us, buckets: buckets.collect() })
    });
    let now = Instant::now();
    Live { latencies: latencies.collect(), more, requests: asked.iter().map(|a| request(a, now)).collect() }
}

fn request(asked: &Asked, now: Instant) -> Request {
    let age = now.saturating_duration_since(asked.began);
    let waiting = match &asked.trace {
        Some(trace) => waits::of(trace),
        // It is read from the kernel, and doesn't go on before another one has ended.
        None => Some(Waiting { what: What::Turn, time: age }),
    };
    Request {
        operation: asked.operation.name().to_owned(),
        pid: asked.pid,
        inode: asked.inode,
        name: asked.name.as_ref().map(|name| String::from_utf8_lossy(name).into_owned()),
        path: None,
        age_us: us(age),
        trace: asked.trace.as_ref().map(hexadecimal),
        waits_for: waiting.map(|waiting| wait(&waiting)),
    }
}

fn wait(waiting: &Waiting) -> Wait {
    let (call, address) = match &waiting.what {
        What::Answer { method, address, .. } => (Some(method.as_str().to_owned()), Some(address.clone())),
        _ => (None, None),
    };
    Wait { what: waiting.what.word().to_owned(), call, address, us: us(waiting.time) }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// As logs have it.
fn hexadecimal(trace: &TraceId) -> String {
    mooseng_transport::trace::id(trace)
}

#[cfg(test)]
mod tests {
    use mooseng_wire::Role;
    use mooseng_wire::method::Method;

    use super::*;

    fn asked(trace: Option<TraceId>) -> Asked {
        Asked {
            operation: Operation::Create,
            pid: 31,
            inode: 7,
            name: Some(b"na\xffme".as_slice().into()),
            began: Instant::now(),
            trace,
        }
    }

    #[test]
    fn a_request_is_told_with_its_name_its_trace_and_its_wait() {
        let asked = asked(None);
        let told = request(&asked, asked.began + Duration::from_millis(5));
        assert_eq!((told.operation.as_str(), told.pid, told.inode, told.age_us), ("create", 31, 7, 5_000));
        assert_eq!(told.name.as_deref(), Some("na\u{fffd}me"));
        let turn = Wait { what: "turn".into(), us: 5_000, ..Wait::default() };
        assert_eq!((told.trace, told.waits_for), (None, Some(turn)), "its work hasn't begun");
        let begun = Asked { trace: Some([0xab; 16]), ..asked };
        let told = request(&begun, begun.began);
        assert_eq!((told.trace, told.waits_for), (Some("ab".repeat(16)), None));
        let what =
            What::Answer { role: Role::Master, address: "10.0.0.1:7000".into(), method: Method::FsChange };
        let told = wait(&Waiting { what, time: Duration::from_millis(3) });
        assert_eq!(
            (told.what.as_str(), told.call.as_deref(), told.address.as_deref(), told.us),
            ("master", Some("FsChange"), Some("10.0.0.1:7000"), 3_000)
        );
    }

    #[tokio::test]
    async fn whoever_mounted_is_told() {
        assert!(may_hear(0) && may_hear(rustix::process::geteuid().as_raw()));
        assert!(!may_hear(u32::MAX - 7));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (operations, shutdown) = (Arc::new(Operations::default()), CancellationToken::new());
        let listener = UnixListener::bind(&path).unwrap();
        let telling = tokio::spawn(tell(listener, operations, shutdown.clone()));
        for _ in 0..2 {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            let mut text = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut text).await.unwrap();
            assert_eq!(serde_json::from_slice::<Live>(&text).unwrap(), Live::default());
        }
        shutdown.cancel();
        telling.await.unwrap();
    }
}
