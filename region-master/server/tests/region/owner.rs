//! A master starts over its own log, and over nobody else's.

use std::path::Path;
use std::sync::Arc;

use mooseng_embedded::MemoryBase;
use mooseng_master::StartError;
use mooseng_master::owner::{FILE, OwnerError};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::level::Levels;

use super::common::Cluster;
use super::common::regions::Regions;
use super::mkdir;

/// What the file beside a log says.
fn owner(disk: &SimDisk, dir: &str) -> Vec<u8> {
    read_all(&*disk.open(&Path::new(dir).join(FILE), OpenMode::ReadOnly).unwrap()).unwrap()
}

/// Each of the first two masters has the other one's disks.
fn swap(cluster: &mut Cluster) {
    let (first, others) = cluster.sites.split_first_mut().unwrap();
    let second = &mut others[0];
    std::mem::swap(&mut first.disk, &mut second.disk);
    std::mem::swap(&mut first.store, &mut second.store);
    std::mem::swap(&mut first.base, &mut second.base);
}

fn is_anothers(refused: &StartError) -> bool {
    matches!(refused, StartError::Owner(OwnerError::Other { .. }))
}

/// Found by review: it voted by the other one's log, and had forgotten what it had promised itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_whose_disks_were_swapped_dont_start_until_each_has_its_own() {
    let mut cluster = Cluster::start(3, Arc::new(OsClock)).await;
    cluster.leader().await;
    for i in [0, 1] {
        cluster.kill(i).await;
    }
    let whose = owner(&cluster.sites[1].disk, "/state/raft");
    swap(&mut cluster);
    for (i, found, ours) in [(0, "m2 (id 2)", "m1 (id 1)"), (1, "m1 (id 1)", "m2 (id 2)")] {
        let refused = cluster.try_run(i).await.unwrap_err();
        assert!(is_anothers(&refused), "{refused}");
        let says = format!(
            "the log in /state/raft is that of master {found} of region eu in cluster test, and this is master {ours} of region eu in cluster test: "
        );
        assert!(refused.to_string().starts_with(&says), "{refused}");
    }
    assert_eq!(owner(&cluster.sites[0].disk, "/state/raft"), whose, "nothing of it was changed");
    swap(&mut cluster);
    for i in [0, 1] {
        cluster.run(i).await;
    }
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    assert!(matches!(client.change(mkdir("d")).await, Ok(Reply::Entry(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_an_earlier_release_is_taken_over_at_its_first_start() {
    let mut cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    cluster.kill(0).await;
    let disk = cluster.sites[0].disk.clone();
    let whose = owner(&disk, "/state/raft");
    disk.remove(&Path::new("/state/raft").join(FILE)).unwrap();
    cluster.run(0).await;
    cluster.leader().await;
    assert_eq!(owner(&disk, "/state/raft"), whose);
}

/// Found by review: a first start that was refused for something else left the directory to a master that there never was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_fails_before_there_is_a_log_leaves_the_directory_nobodys() {
    let mut cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.kill(0).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let right = cluster.sites[0].config.clone();
    let site = &mut cluster.sites[0];
    (site.disk, site.store) = (SimDisk::default(), SimDisk::default());
    site.base = MemoryBase::on_disk(Arc::new(site.store.clone()), Path::new("/store")).unwrap();
    (site.config.id, site.config.listen) = (2, taken.local_addr().unwrap().to_string());
    let refused = cluster.try_run(0).await.unwrap_err();
    assert!(matches!(refused, StartError::Listen { .. }), "{refused}");
    cluster.sites[0].config = right;
    cluster.run(0).await;
    cluster.leader().await;
    let whose = String::from_utf8(owner(&cluster.sites[0].disk, "/state/raft")).unwrap();
    assert!(whose.contains("\nid 1\n"), "{whose}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_doesnt_start_over_anothers_log_of_the_global_group() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    for i in [0, 1] {
        regions.kill(i).await;
    }
    // Only that part of the directory was mounted in the wrong place.
    let dir = "/state/global/raft";
    let (disk, own) = (regions.sites[0].disk.clone(), owner(&regions.sites[0].disk, dir));
    let put = |bytes: &[u8]| write_atomically(&disk, &Path::new(dir).join(FILE), bytes).unwrap();
    put(&owner(&regions.sites[1].disk, dir));
    let refused = regions.run_at(0, Levels::OURS).await.unwrap_err();
    assert!(is_anothers(&refused), "{refused}");
    let names = "that of master b1 (id 1) of region b in cluster test, which is member ";
    assert!(refused.to_string().contains(names), "{refused}");
    put(&own);
    for i in [0, 1] {
        regions.run(i).await;
    }
    regions.holder("a").await;
}
