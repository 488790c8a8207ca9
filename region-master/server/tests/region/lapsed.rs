//! What sessions leave behind whose leases ran out, and for how long it is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mooseng_namespace::clock;
use mooseng_namespace::sessions::load_session;
use mooseng_ports::clock::{BootTime, Clock, ManualClock};
use mooseng_schema::clock::{ClockRecord, Kept};
use mooseng_schema::session::SessionRecord;
use mooseng_store::Store;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::GetAttr;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::method::Method;
use mooseng_wire::session::{CloseSession, SessionClosed, SessionOpened};
use mooseng_wire::{ROOT_INODE, SessionId};

use crate::common::{Cluster, SetClock, until};
use crate::{create, created, entry, mkdir, unlink};

const DAY_S: i64 = 86_400;

/// One that goes by hand, and that is set by hand.
#[derive(Clone, Default)]
struct WrongClock {
    right: ManualClock,
    ahead_ns: Arc<AtomicI64>,
}

impl WrongClock {
    /// Sets it forward.
    fn step(&self, seconds: i64) {
        self.ahead_ns.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }
}

impl Clock for WrongClock {
    fn boot(&self) -> BootTime {
        self.right.boot()
    }
    fn unix_ns(&self) -> i64 {
        self.right.unix_ns() + self.ahead_ns.load(Ordering::SeqCst)
    }
}

async fn on_record(cluster: &Cluster, session: u64) -> Option<SessionRecord> {
    let tx = cluster.running[0].as_ref().unwrap().master().store.begin();
    load_session(&tx, SessionId(session)).await.unwrap()
}

async fn has_lapsed(cluster: &Cluster, session: u64) -> bool {
    on_record(cluster, session).await.is_some_and(|record| record.lapsed_ns.is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_sessions_outcomes_are_kept_for_as_long_as_is_set() {
    let clock = ManualClock::default();
    let shared = Arc::new(clock.clone());
    let cluster = Cluster::start_with(1, shared, |config| config.house.outcomes_kept_s = 1).await;
    let client = cluster.client("c").await;
    let session = client.open(&[]).await.unwrap().session;
    client.change_as(1, mkdir("d")).await.unwrap();
    clock.advance(Duration::from_secs(11));
    until("the lapse is noted", async || has_lapsed(&cluster, session).await).await;
    clock.advance(Duration::from_secs(2));
    until("it is forgotten", async || on_record(&cluster, session).await.is_none()).await;
    // Never executed again.
    assert_eq!(client.open(&[]).await.unwrap_err().0, ErrorCode::SessionExpired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_is_kept_for_a_session_that_lapsed_and_may_come_back() {
    let clock = ManualClock::default();
    let shared = Arc::new(clock.clone());
    let cluster = Cluster::start_with(1, shared, |config| config.house.opens_kept_s = 60).await;
    let client = cluster.client("c").await;
    let session = client.open(&[]).await.unwrap().session;
    let file = created(client.change(create("f")).await.unwrap());
    client.change(unlink("f")).await.unwrap();
    let lapsed = async || has_lapsed(&cluster, session).await;
    clock.advance(Duration::from_secs(11));
    until("the lapse is noted", async || lapsed().await).await;
    // Two rounds in which it would be freed.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let opened = client.open(&[file]).await.unwrap();
    assert_eq!((opened.session, opened.incarnation, opened.lapsed), (session, 2, true));
    let get = Op::GetAttr(GetAttr { inode: file });
    assert_eq!(entry(client.read(get.clone()).await.unwrap()), file);
    // And no longer than that.
    clock.advance(Duration::from_secs(11));
    until("it has lapsed again", async || lapsed().await).await;
    clock.advance(Duration::from_secs(61));
    let other = cluster.client("d").await;
    other.open(&[]).await.unwrap();
    until("it is freed", async || matches!(other.read(get.clone()).await.unwrap(), Reply::Errno(_))).await;
}

/// What is on record of the clock.
async fn seen(cluster: &Cluster) -> Option<ClockRecord> {
    let tx = cluster.running[0].as_ref().unwrap().master().store.begin();
    clock::seen(&tx, ROOT_INODE.volume(), Kept::Lapsed).await.unwrap()
}

/// That it was set forward just now.
async fn is_seen_set(cluster: &Cluster) -> bool {
    seen(cluster).await.is_some_and(|seen| seen.steady_ns == Some(0) && seen.step_ns > 0)
}

/// Found by review: by a wall clock that was set forward every outcome was old, and a retry refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forward_forgets_no_outcomes() {
    let clock = WrongClock::default();
    let shared = Arc::new(clock.clone());
    let cluster = Cluster::start_with(1, shared, |config| config.house.outcomes_kept_s = 1).await;
    let client = cluster.client("c").await;
    let session = client.open(&[]).await.unwrap().session;
    let directory = client.request(1, mkdir("d")).await;
    let made = client.send(&directory).await.unwrap();
    let lapsed = async || has_lapsed(&cluster, session).await;
    clock.right.advance(Duration::from_secs(11));
    until("the lapse is noted", async || lapsed().await).await;
    assert!(seen(&cluster).await.is_some(), "what was seen of the clock is on record before");
    clock.step(DAY_S);
    until("the step is on record", async || is_seen_set(&cluster).await).await;
    // Two rounds in which it would be forgotten.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(lapsed().await);
    let opened = client.open(&[]).await.unwrap();
    assert_eq!((opened.session, opened.incarnation, opened.lapsed), (session, 2, true));
    assert_eq!(client.send(&directory).await.unwrap(), made, "the first outcome");
    // What lapses by the clock that was set has its time, and no more than that.
    clock.right.advance(Duration::from_secs(11));
    until("it has lapsed again", async || lapsed().await).await;
    clock.right.advance(Duration::from_secs(2));
    until("it is forgotten", async || on_record(&cluster, session).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forward_frees_nothing_that_a_session_may_have_open() {
    let clock = WrongClock::default();
    let shared = Arc::new(clock.clone());
    let cluster = Cluster::start_with(1, shared, |config| config.house.opens_kept_s = 60).await;
    let client = cluster.client("c").await;
    let session = client.open(&[]).await.unwrap().session;
    let file = created(client.change(create("f")).await.unwrap());
    client.change(unlink("f")).await.unwrap();
    clock.right.advance(Duration::from_secs(11));
    until("the lapse is noted", async || has_lapsed(&cluster, session).await).await;
    clock.step(DAY_S);
    until("the step is on record", async || is_seen_set(&cluster).await).await;
    // Two rounds in which it would be freed.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let get = Op::GetAttr(GetAttr { inode: file });
    let other = cluster.client("d").await;
    other.open(&[]).await.unwrap();
    assert_eq!(entry(other.read(get.clone()).await.unwrap()), file);
    let SessionOpened { session, incarnation, .. } = other.session.lock().await.clone();
    let _: SessionClosed =
        other.call(Method::CloseSession, &CloseSession { session, incarnation }).await.unwrap();
    // Its time is over once the clock has been steady for so long.
    clock.right.advance(Duration::from_secs(61));
    let other = cluster.client("e").await;
    other.open(&[]).await.unwrap();
    until("it is freed", async || matches!(other.read(get.clone()).await.unwrap(), Reply::Errno(_))).await;
}

/// Nobody led while it was set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_forward_while_the_master_was_down_is_found_out() {
    let clock = SetClock::default();
    let mut cluster = Cluster::start_with(1, Arc::new(clock.clone()), |config| {
        config.session_lease_ms = 1_000;
        config.house.outcomes_kept_s = 3_600;
    })
    .await;
    let session = cluster.client("c").await.open(&[]).await.unwrap().session;
    until("the clock is on record", async || seen(&cluster).await.is_some()).await;
    assert_eq!(seen(&cluster).await.unwrap().steady_ns, None, "it was never set");
    cluster.kill(0).await;
    clock.step(30 * DAY_S);
    cluster.run(0).await;
    cluster.leader().await;
    until("the step is on record", async || is_seen_set(&cluster).await).await;
    assert!(on_record(&cluster, session).await.is_some());
}
