//! Writers of a `region` volume wait while what no other region has is older than its `lag_max`.

use std::sync::Arc;
use std::time::Duration;

use mooseng_master::geo::{ROOT_VOLUME, lag};
use mooseng_transport::PlainNetwork;
use mooseng_wire::Role;
use mooseng_wire::fs::Pace;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::global::SetVolume;
use mooseng_wire::global::change::Change;
use tokio::time::Instant;

use super::common::regions::{Regions, identity_of};
use super::common::{Client, until};
use super::{addresses, change, mkdir, read_home, serves_as_home, serving};

const EAGAIN: u32 = 11;

async fn set(regions: &Regions, lag_max_ms: u64) {
    let set = SetVolume { volume: 0, epoch: 1, lag_max_ms: Some(lag_max_ms), ..SetVolume::default() };
    let leader = regions.leader().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    regions.global(leader).change(Change::SetVolume(set), deadline).await.unwrap();
    let most = Some(Duration::from_millis(lag_max_ms)).filter(|most| !most.is_zero());
    until("the home knows the bound", async || {
        let view = serving(regions, "a").and_then(|master| master.geo.view());
        view.is_some_and(|view| view.volumes[&ROOT_VOLUME].lag_max == most)
    })
    .await;
}

async fn ask(client: &Client) -> Reply {
    client.open(&[]).await.unwrap();
    read_home(client, Op::Pace(Pace {})).await
}

fn tail(regions: &Regions) -> mooseng_region::lag::Tail {
    serving(regions, "a").map(|master| lag::tail(master, ROOT_VOLUME)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_wait_for_a_region_that_falls_behind_and_go_on_as_it_catches_up() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let network = Arc::new(PlainNetwork::new(identity_of("a", Role::Client, "one")));
    let client = Arc::new(Client::over(network, &addresses(&regions, "a")));
    change(&client, mkdir("x")).await;
    set(&regions, 1_500).await;
    until("the other region counts", async || tail(&regions).age.is_some()).await;
    assert!(matches!(ask(&client).await, Reply::Done(_)));

    regions.cut("b");
    change(&client, mkdir("y")).await;
    assert!(!tail(&regions).held, "a moment is within the bound");
    until("writers wait", async || tail(&regions).held).await;
    // Who asks is answered once the region has come on.
    let asking = client.clone();
    let asked = tokio::spawn(async move { ask(&asking).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!asked.is_finished());
    regions.heal();
    assert!(matches!(asked.await.unwrap(), Reply::Done(_)));
    until("it has everything", async || tail(&regions).age == Some(Duration::ZERO)).await;

    // Nobody is made to wait for longer than a request may take, nor where there is no bound.
    regions.cut("b");
    change(&client, mkdir("z")).await;
    until("writers wait again", async || tail(&regions).held).await;
    let asked = ask(&client).await;
    assert!(matches!(asked, Reply::Errno(EAGAIN)), "{asked:?}");
    set(&regions, 0).await;
    until("nobody waits", async || !tail(&regions).held).await;
}
