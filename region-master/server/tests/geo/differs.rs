//! Regions whose place isn't one of the log of the volume's home.

use mooseng_master::geo::ROOT_VOLUME;
use mooseng_replica::{apply, read};
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::LogPosition;
use mooseng_store::{Read, Store, Transaction};

use super::common::regions::Regions;
use super::giving_up::equal;
use super::{caught_up, change, client, mkdir, serves_as_home, serving};

/// What was copied of a tail that a failover then cut off stayed, where the copy was gone on with from the next home: behind any place of an earlier epoch
/// that one had something to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_begun_from_a_lost_home_has_nothing_of_what_was_cut_off() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("c", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    for n in 0..20 {
        change(&home, mkdir(&format!("d{n}"))).await;
    }
    caught_up(&regions, "b").await;
    regions.cut("b");
    for n in 0..5 {
        change(&home, mkdir(&format!("tail{n}"))).await;
    }
    caught_up(&regions, "c").await;
    let lost = serving(&regions, "a").unwrap().clone();
    let all = read::page(&lost.store.begin(), ROOT_VOLUME, None, 1 << 20).await.unwrap();
    let bytes: usize = all.pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
    let page = read::page(&lost.store.begin(), ROOT_VOLUME, None, bytes * 3 / 4).await.unwrap();
    assert!(page.next.is_some() && page.at > LogPosition::default());
    regions.kill_region("a").await;
    // As it was in the midst of its copy.
    let copying = serving(&regions, "c").unwrap().clone();
    let tx = copying.store.begin();
    apply::begin(&tx, ROOT_VOLUME).await.unwrap();
    apply::install(&tx, ROOT_VOLUME, &whole_volume(ROOT_VOLUME).begin, &page).await.unwrap();
    tx.commit().await.unwrap();
    copying.geo.forget(ROOT_VOLUME);
    regions.heal();
    serves_as_home(&regions, "b", 2).await;
    let next = serving(&regions, "b").unwrap().clone();
    let tx = next.store.begin();
    let mut cut_off = 0;
    for (key, value) in &page.pairs {
        cut_off += usize::from(tx.get(key, Read::Snapshot).await.unwrap().as_ref() != Some(value));
    }
    assert!(cut_off > 1, "the page has some of the tail");
    change(&client(&regions, "b", "b"), mkdir("after")).await;
    equal(&regions, "c").await;
}
