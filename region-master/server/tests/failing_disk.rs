//! A master whose log disk fails or fills up says so at once, and one that can't go on ends.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Cluster, WAIT, until};
use mooseng_certs::Authority;
use mooseng_master::MasterServer;
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk as _, OpenMode};
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::{
    Link, LinkOptions, Network, PlainNetwork, TlsFiles, TlsNetwork, grpc_channel, observe,
};
use mooseng_wire::admin::StatusRequest;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Done, Mkdir, Rmdir, SetXattr};
use mooseng_wire::method::Method;
use mooseng_wire::session::{OpenSession, SessionOpened};
use mooseng_wire::{Identity, ROOT_INODE, Role};
use tokio_util::sync::CancellationToken;

/// Asks a path of a daemon's health port: the status, and what it says.
fn http(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()))
}

/// Sets writes going, whatever becomes of them.
fn provoke(network: Arc<dyn Network>, address: String) {
    tokio::spawn(async move {
        let link = Link::new(network, address, Role::Master, LinkOptions::default());
        loop {
            let open = OpenSession { host: "h".into(), mount_path: "/m".into(), ..OpenSession::default() };
            let wait = Duration::from_secs(1);
            let _ = link.request::<_, SessionOpened>(Method::OpenSession, &open, wait).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_whose_log_disk_fails_is_unready_at_once_with_the_reason_and_says_that_it_is_over() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    let server = cluster.running[0].as_ref().unwrap();
    let shutdown = CancellationToken::new();
    let readiness = server.readiness();
    let health = observe::serve_http("127.0.0.1:0", server.metrics(), readiness, shutdown.clone()).await;
    let health = health.unwrap().to_string();
    assert_eq!(http(&health, "/readyz").unwrap().0, 200);
    let network = |role, name| Arc::new(PlainNetwork::new(common::identity(role, name)));
    provoke(network(Role::Client, "c"), cluster.addresses().remove(0));
    cluster.sites[0].disk.set_fault(Fault::Failing);
    let reason = tokio::time::timeout(WAIT, server.failed()).await.expect("Raft stops");
    assert!(reason.contains("Raft has stopped"), "{reason}");
    let (status, text) = http(&health, "/readyz").unwrap();
    assert_eq!(status, 503, "not only after the silence of an election: {text}");
    assert!(text.starts_with("MASTER_FAILED: this master's Raft has stopped"), "{text}");
    let channel = grpc_channel(network(Role::Admin, "a"), &cluster.addresses()[0], Role::Master).await;
    let found = AdministrationClient::new(channel).status(StatusRequest {}).await.unwrap().into_inner();
    assert!(found.findings.iter().any(|f| f.code == "MASTER_FAILED"), "{:?}", found.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_whose_log_disk_is_full_is_unready_until_there_is_room_and_goes_on() {
    // Without a reserve, as where something else fills the disk from one moment to the next.
    let cluster = Cluster::start_with(1, Arc::new(OsClock), |config| config.reserve_bytes = 0).await;
    cluster.leader().await;
    let server = cluster.running[0].as_ref().unwrap();
    let disk = &cluster.sites[0].disk;
    let ballast = disk.open(Path::new("/ballast"), OpenMode::Create).unwrap();
    ballast.allocate(disk.space(Path::new("/")).unwrap().bytes_free).unwrap();
    // The segment that was begun is on the disk already: it is the next one that has no room.
    let client = Arc::new(cluster.client("c").await);
    client.open(&[]).await.unwrap();
    let writing = tokio::spawn(async move {
        for n in 0.. {
            let (name, value) = ("user.x".into(), vec![n as u8; 60_000].into());
            let set = SetXattr { inode: ROOT_INODE.0, name, value, create: false, replace: false };
            let _ = client.change(Op::SetXattr(set)).await;
        }
    });
    until("it is unready", async || server.ready().is_err_and(|why| why.contains("is full"))).await;
    let ended = tokio::time::timeout(Duration::from_secs(1), server.failed()).await;
    assert!(ended.is_err(), "a full disk is waited over: {ended:?}");
    ballast.set_len(0).unwrap();
    until("it is ready", async || server.ready().is_ok()).await;
    writing.abort();
}

/// The daemon on a log that refuses writes: past a file size limit that comes while it runs, as on a disk that fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_ends_with_a_sentence_once_its_log_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&dir.path().join("ca"), "c").unwrap();
    authority.region("eu").unwrap();
    let issue = |role, name: &str| {
        let identity = Identity { cluster: "c".into(), region: "eu".into(), role, name: name.into() };
        let out = dir.path().join(name);
        authority.issue(&identity, Duration::from_secs(3600), &out, false).unwrap();
        let file = |name: &str| out.join(name);
        TlsFiles { cert: file("cert.pem"), key: file("key.pem"), ca: file("ca.pem"), revocations: None }
    };
    let tls = issue(Role::Master, "m1");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (address, health) = (free(), free());
    let config = format!(
        "name = \"m1\"\nid = 1\nregion = \"eu\"\ncluster = \"c\"\nlisten = \"{address}\"\nhttp_listen = \"{health}\"\nstate_dir = {state:?}\n\
         [tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n[[members]]\nid = 1\nname = \"m1\"\naddress = \"{address}\"\n",
        tls.cert,
        tls.key,
        tls.ca,
        state = dir.path().join("state"),
    );
    let path = dir.path().join("master.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mooseng-master"));
    command.arg("--config").arg(&path).stderr(Stdio::piped());
    // Without this a write past the limit would be a signal instead of an error.
    let ignore = || {
        let action = nix::sys::signal::SigHandler::SigIgn;
        // SAFETY: it only sets a signal's disposition, between fork and exec.
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGXFSZ, action) }?;
        Ok(())
    };
    // SAFETY: `ignore` makes one system call and takes no lock.
    let mut daemon = unsafe { command.pre_exec(ignore) }.spawn().unwrap();
    until("it serves", async || http(&health, "/readyz").is_ok_and(|(status, _)| status == 200)).await;

    let pid = rustix::process::Pid::from_child(&daemon);
    let limit = rustix::process::Rlimit { current: Some(0), maximum: None };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    let network = Arc::new(TlsNetwork::load(issue(Role::Client, "c1")).unwrap());
    provoke(network, address);
    let began = Instant::now();
    let status = loop {
        match daemon.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > WAIT => {
                daemon.kill().unwrap();
                panic!("it runs on");
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut said = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("MASTER_FAILED: this master's Raft has stopped"), "{said}");
    assert!(last.contains("state_dir") && last.ends_with('.'), "{said}");
}

/// A change under one number, until it has an answer: whoever leads by now may have to get to know the session first.
async fn change(client: &Client, op: Op) -> Result<Reply, (ErrorCode, String)> {
    let number = client.number.fetch_add(1, Ordering::SeqCst) + 1;
    loop {
        match client.change_as(number, op.clone()).await {
            Err((ErrorCode::SessionExpired | ErrorCode::StaleEpoch, _)) => drop(client.open(&[]).await?),
            other => return other,
        }
    }
}

fn make(name: String) -> Op {
    Op::Mkdir(Mkdir { parent: ROOT_INODE.0, name: name.into_bytes().into(), mode: 0o755, alone: false })
}

fn remove(name: &str) -> Op {
    Op::Rmdir(Rmdir { parent: ROOT_INODE.0, name: name.as_bytes().to_vec().into() })
}

/// Found by the campaign of faults: a leader's full disk failed its store for good, every request was answered `Internal`, and programs
/// heard EIO.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_store_fails_makes_way_and_no_change_fails() {
    let cluster = Cluster::start(3, Arc::new(OsClock)).await;
    let first = cluster.leader().await;
    let client = Arc::new(cluster.client("c").await);
    client.open(&[]).await.unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let (writer, count) = (client.clone(), written.clone());
    let writing = tokio::spawn(async move {
        for n in 0..u64::MAX {
            match change(&writer, make(format!("d{n}"))).await {
                Ok(Reply::Entry(_)) => count.store(n + 1, Ordering::SeqCst),
                other => return format!("directory {n}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        String::new()
    });
    until("it writes", async || written.load(Ordering::SeqCst) > 3).await;
    // Its log is well: it would lead on.
    cluster.sites[first].store.set_fault(Fault::Full);
    let server = cluster.running[first].as_ref().unwrap();
    let reason = tokio::time::timeout(WAIT, server.failed()).await.expect("it ends");
    assert!(reason.starts_with("this master's metadata store has failed"), "{reason}");
    let told = server.ready().unwrap_err();
    assert!(told.starts_with("MASTER_FAILED: this master's metadata store has failed"), "{told}");
    let others = (0..3).filter(|i| *i != first);
    let serves = |i: usize| cluster.running[i].as_ref().is_some_and(MasterServer::is_serving);
    until("another one leads", async || others.clone().any(serves)).await;
    let before = written.load(Ordering::SeqCst);
    until("it writes on", async || written.load(Ordering::SeqCst) > before + 3 || writing.is_finished())
        .await;
    assert!(!writing.is_finished(), "{}", writing.await.unwrap());
    writing.abort();
}

/// Fills a disk until so much is free.
fn fill(disk: &SimDisk, bytes_left: u64) {
    let ballast = disk.open(Path::new("/ballast"), OpenMode::Create).unwrap();
    ballast.set_len(0).unwrap();
    ballast.allocate(disk.space(Path::new("/")).unwrap().bytes_free - bytes_left).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_short_of_room_makes_way_and_a_region_without_room_only_lets_go() {
    const ENOSPC: u32 = 28;
    let cluster = Cluster::start(3, Arc::new(OsClock)).await;
    let reserve = cluster.sites[0].config.reserve_bytes;
    let first = cluster.leader().await;
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    assert!(matches!(change(&client, make("early".into())).await, Ok(Reply::Entry(_))));
    fill(&cluster.sites[first].disk, reserve / 2 + (1 << 20));
    let serves = |i: usize| cluster.running[i].as_ref().is_some_and(MasterServer::is_serving);
    let mut made = 0;
    until("another one leads", async || {
        made += 1;
        // Nothing is refused while others have room.
        let reply = change(&client, make(format!("on-{made}"))).await;
        assert!(matches!(reply, Ok(Reply::Entry(_))), "{reply:?}");
        (0..3).any(|i| i != first && serves(i))
    })
    .await;
    let codes = |i: usize| {
        let status = cluster.running[i].as_ref().unwrap().status();
        status.findings.into_iter().map(|f| (f.code, f.subject)).collect::<Vec<_>>()
    };
    let second = cluster.leader().await;
    let low = ("MASTER_DISK_LOW".to_owned(), format!("m{}", first + 1));
    until("status tells", async || codes(second).contains(&low)).await;

    for site in &cluster.sites {
        fill(&site.disk, reserve / 2 + (1 << 20));
    }
    until("names are refused", async || {
        made += 1;
        let reply = change(&client, make(format!("on-{made}"))).await;
        reply == Ok(Reply::Errno(ENOSPC))
    })
    .await;
    let leader = cluster.leader().await;
    assert!(codes(leader).iter().any(|(code, _)| code == "MASTERS_FULL"), "{:?}", codes(leader));
    assert_eq!(change(&client, remove("early")).await, Ok(Reply::Done(Done {})));
    assert!(
        matches!(change(&client, remove("early")).await, Ok(Reply::Errno(2))),
        "refusals of its own come first"
    );

    // One with room is enough, and it leads.
    let roomy = (leader + 1) % 3;
    fill(&cluster.sites[roomy].disk, 4 * reserve);
    until("the one with room leads", async || serves(roomy)).await;
    until("names are taken", async || {
        made += 1;
        matches!(change(&client, make(format!("on-{made}"))).await, Ok(Reply::Entry(_)))
    })
    .await;
}
