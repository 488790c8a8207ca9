//! Reading files that chunkservers on this host lend: a region in memory, whose chunks lie on real chunkservers, with real files and sockets.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_chunk::layout::block_at;
use mooseng_chunk::ticket::{self, APPEND, Claims, Key, READ};
use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_client::fake::FakeRegion;
use mooseng_client::peers::{Answered, Failure, Peers, Unconnected};
use mooseng_client::{Caller, ClientConfig, FileSystem, HandleId, WriteOptions};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::os::OsDisk;
use mooseng_transport::{Blocking, CallFailure, Link, LinkOptions, PlainNetwork};
use mooseng_wire::admin::TicketKey;
use mooseng_wire::chunk::{Append, Lend, Read};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, Identity, Role};
use prost::Message;
use tokio_util::sync::CancellationToken;

const ROOT: u64 = 1;
const WAIT: Duration = Duration::from_secs(20);
const BYTES: usize = 3_000_000;

fn id(role: &str, name: &str) -> Identity {
    Identity::parse(&format!("spiffe://test/eu/{role}/{name}")).unwrap()
}

fn key() -> Key {
    Key { id: 1, secret: vec![7; 32] }
}

fn any_ticket() -> Bytes {
    let claims = Claims { session: 1, volume: 0, chunk: 0, rights: READ | APPEND, expires_ms: u64::MAX / 2 };
    ticket::sign(&key(), &claims).into()
}

struct Chunkserver {
    server: ChunkserverServer,
    link: Link,
    dir: PathBuf,
    stop: CancellationToken,
}

/// Masters of a region in memory; what its chunkservers are asked for goes to real ones.
struct Peered {
    region: FakeRegion,
    chunkservers: BTreeMap<String, Chunkserver>,
    /// Tickets are left out of questions for files.
    ticketless: AtomicBool,
}

impl Peered {
    async fn start(dir: &Path) -> Arc<Self> {
        let mut chunkservers = BTreeMap::new();
        for name in ["c1", "c2", "c3"] {
            let dir = dir.join(name);
            std::fs::create_dir(&dir).unwrap();
            let config = ChunkserverConfig::parse(&format!(
                "name = \"{name}\"\nregion = \"eu\"\ncluster = \"test\"\nlisten = \"127.0.0.1:0\"\nmasters = [\"127.0.0.1:1\"]\nreserve_bytes = 0\ndata_dirs = [{:?}]\nstate_dir = {:?}\n",
                dir.join("data"),
                dir.join("state"),
            ));
            let network = Arc::new(PlainNetwork::new(id("chunkserver", name)));
            let (stop, clock) = (CancellationToken::new(), Arc::new(OsClock));
            let server = ChunkserverServer::start(
                config.unwrap(),
                network,
                Arc::new(OsDisk),
                Blocking::Pool,
                clock,
                stop.clone(),
            );
            let server = server.await.unwrap();
            server.keys().learn(&[TicketKey { id: 1, key: key().secret.into() }]);
            // No master tells it.
            server.store().see_epoch(0, Epoch(1)).unwrap();
            let network = Arc::new(PlainNetwork::new(id("client", "x")));
            let address = server.address().to_owned();
            let link = Link::new(network, address, Role::Chunkserver, LinkOptions::default());
            chunkservers.insert(name.to_owned(), Chunkserver { server, link, dir, stop });
        }
        let region = FakeRegion::new();
        region.with(|s| s.exclusive = true);
        Arc::new(Self { region, chunkservers, ticketless: AtomicBool::new(false) })
    }

    /// The message as a real region's client would send it.
    fn real(&self, method: Method, body: Bytes) -> Vec<u8> {
        match method {
            Method::ChunkAppend => {
                let mut append = Append::decode(body).unwrap();
                append.ticket = any_ticket();
                for member in &mut append.chain {
                    member.address = self.chunkservers[&member.chunkserver].server.address().to_owned();
                }
                append.encode_to_vec()
            }
            Method::ChunkRead => Read { ticket: any_ticket(), ..Read::decode(body).unwrap() }.encode_to_vec(),
            Method::ChunkLend => {
                let ticket = if self.ticketless.load(Ordering::SeqCst) { Bytes::new() } else { any_ticket() };
                Lend { ticket, ..Lend::decode(body).unwrap() }.encode_to_vec()
            }
            _ => body.to_vec(),
        }
    }

    /// Ends every chunk, as masters do once a writer is done with it. Answers those that have bytes.
    fn seal_all(&self) -> Vec<ChunkId> {
        let mut sealed = Vec::new();
        for chunkserver in self.chunkservers.values() {
            let store = chunkserver.server.store();
            for info in store.inventory(None, 100).0 {
                store.seal_here(info.chunk, Epoch(1)).unwrap();
                sealed.push(info.chunk);
            }
        }
        sealed
    }

    fn holders(&self, chunk: ChunkId) -> Vec<&Chunkserver> {
        self.chunkservers.values().filter(|c| c.server.store().stat(chunk).is_ok()).collect()
    }
}

#[async_trait]
impl Peers for Peered {
    async fn call(
        &self,
        role: Role,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Failure> {
        if role == Role::Master || method == Method::ChunkAppend {
            // The region in memory wants to know of each byte that is named.
            let known = self.region.call(role, address, method, body.clone(), bulk.clone(), timeout).await?;
            if role == Role::Master {
                return Ok(known);
            }
        }
        let link = &self.chunkservers[address].link;
        match link.call(method, self.real(method, body).into(), bulk, timeout).await {
            Ok(answer) => Ok(Answered { body: answer.body, bulk: answer.bulk }),
            Err(CallFailure::Remote(error)) => Err(Failure::Refused(error)),
            Err(other) => Err(Failure::NotSent(Unconnected::Passing(other.to_string()))),
        }
    }
}

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

async fn mount(peers: &Arc<Peered>) -> FileSystem {
    let config = ClientConfig {
        masters: peers.region.masters(),
        same_host_reads: true,
        cache_bytes: 0,
        ..ClientConfig::default()
    };
    FileSystem::connect_through(config, peers.clone(), Arc::new(OsClock)).await.unwrap()
}

fn pattern() -> Vec<u8> {
    (0..BYTES).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A file in sealed chunks, open for reading.
async fn file(peers: &Arc<Peered>, fs: &FileSystem) -> (HandleId, Vec<ChunkId>) {
    let created = fs.create(&me(), ROOT, b"f", 0o644, libc::O_RDWR).await.unwrap();
    let written = fs.write(&me(), created.handle, 0, pattern().into(), WriteOptions::default()).await;
    written.unwrap();
    fs.fsync(created.handle, false).await.unwrap();
    fs.release(created.handle).await.unwrap();
    let chunks = peers.seal_all();
    let handle = fs.open(&me(), created.attr.inode, libc::O_RDONLY).await.unwrap().handle;
    (handle, chunks)
}

async fn read_all(fs: &FileSystem, handle: HandleId) {
    let expected = pattern();
    for at in (0..BYTES).step_by(1 << 20) {
        let bytes = fs.read(&me(), handle, at as u64, 1 << 20).await.unwrap();
        assert!(bytes == expected[at..BYTES.min(at + (1 << 20))], "at {at}");
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads until all of the file is read from what was lent.
async fn read_until_lent(fs: &FileSystem, handle: HandleId) {
    until("the file is read from what was lent", async || {
        let before = fs.status().same_host_bytes;
        read_all(fs, handle).await;
        fs.status().same_host_bytes - before == BYTES as u64
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lent_is_read_here_also_when_its_chunkserver_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let peers = Peered::start(dir.path()).await;
    let fs = mount(&peers).await;
    let (handle, _) = file(&peers, &fs).await;
    read_until_lent(&fs, handle).await;
    assert!(fs.status().lent_files > 0);
    for chunkserver in peers.chunkservers.values() {
        chunkserver.stop.cancel();
        chunkserver.link.close();
    }
    let before = fs.status().same_host_bytes;
    read_all(&fs, handle).await;
    assert_eq!(fs.status().same_host_bytes - before, BYTES as u64);
    assert_eq!((fs.status().same_host_failures, fs.status().corrupt_replicas), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_rots_is_read_from_another_copy_and_its_chunkserver_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let peers = Peered::start(dir.path()).await;
    let fs = mount(&peers).await;
    let (handle, chunks) = file(&peers, &fs).await;
    read_until_lent(&fs, handle).await;
    // In whichever copy is read first: one after the other, so that one is always well.
    let mut noticed = 0;
    let holders = peers.holders(chunks[0]);
    assert_eq!(holders.len(), 2);
    for holder in holders {
        let path = holder.dir.join(format!("data/chunks/{:02x}/{:016x}", chunks[0].0 & 0xff, chunks[0].0));
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = block_at(100) + 9;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        for _ in 0..3 {
            read_all(&fs, handle).await;
        }
        if fs.status().corrupt_replicas > noticed {
            noticed = fs.status().corrupt_replicas;
            until("the chunkserver knows that its copy is bad", async || {
                let (chunks, _) = holder.server.store().inventory(None, 100);
                chunks.iter().any(|info| !info.sound)
            })
            .await;
        }
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(noticed > 0, "neither copy was read from its file");
    assert!(fs.status().same_host_failures > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_lent_nothing_reads_over_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let peers = Peered::start(dir.path()).await;
    peers.ticketless.store(true, Ordering::SeqCst);
    let fs = mount(&peers).await;
    let (handle, _) = file(&peers, &fs).await;
    for _ in 0..5 {
        read_all(&fs, handle).await;
    }
    let status = fs.status();
    assert_eq!((status.same_host_reads, status.lent_files, status.same_host_failures), (0, 0, 0));
}
