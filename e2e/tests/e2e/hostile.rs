//! Who means harm: connections by the thousand that say nothing, frames without end, peers that don't read what they ask for, be it much. The mount that is
//! there goes on, daemons serve others, and their memory stays bounded: meanwhile, too.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use mooseng_certs::Authority;
use mooseng_e2e::cluster::{DevCluster, Process, wait_for};
use mooseng_e2e::steps::Steps;
use mooseng_transport::{Connection, Link, LinkOptions, Network, Protocol, TlsFiles, TlsNetwork};
use mooseng_wire::call::CallMeta;
use mooseng_wire::chunk::Read;
use mooseng_wire::frame::{Frame, Kind};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, ChunkPlace, FsRequest, ReadExtents};
use mooseng_wire::level::Levels;
use mooseng_wire::method::{Lane, Method};
use mooseng_wire::session::{
    CloseSession, OpenSession, Renew, Renewed, Request, Response, SessionClosed, SessionOpened,
};
use mooseng_wire::{BULK_BYTES_MAX, Role, version};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Connections to each port that never finish a handshake.
const SILENT: usize = 10_000;
/// Requests whose answers nobody reads.
const UNREAD: u64 = 200_000;
/// What a daemon's memory may grow by meanwhile, in KiB: buffers, and what the allocator keeps.
const GROWTH_MAX_KIB: u64 = 256 << 10;
/// How much memory calls and answers of a daemon take up at most where nobody says otherwise (`memory_max_mib`), and what is said of the one that is asked
/// for chunks' bytes.
const MEMORY_MAX_MIB: u32 = 2_048;
const MEMORY_SET_MIB: u32 = 256;
/// Connections that ask for a chunk's bytes and read none of them, and how often each asks for 1 MiB: for 8 GiB together.
const SLOW: usize = 64;
const SLOW_READS: u64 = 128;
/// For how long.
const SLOW_FOR: Duration = Duration::from_secs(6);
/// How often a daemon's memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A call's answer.
const WITHIN: Duration = Duration::from_secs(10);
/// An operation of the mount may wait for a busy machine, but not for the end of an attack.
const OPERATION_MAX: Duration = Duration::from_secs(10);

#[test]
fn hostile_peers_keep_nobody_from_work() {
    run().unwrap();
}

fn run() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        most > SILENT as u64 + 1_000,
        "this test opens {SILENT} connections at once; a process may have {most} descriptors"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let cluster = DevCluster::up("hostile", &[])?;
    let mut ports: Vec<Process> =
        cluster.file()?.processes.into_iter().filter(|p| p.role != "client").collect();
    // One of each role is enough for every day; each takes half a minute.
    if std::env::var_os("HOSTILE_PORTS").is_none_or(|ports| ports != "all") {
        ports = vec![ports.remove(0), ports.pop().context("there is no chunkserver")?];
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut steps = Steps::default();
    for port in &ports {
        steps.run(&format!("{}: {SILENT} connections that never finish a handshake", port.name), || {
            under_attack(&cluster, port, || {
                let silent = silent(&port.address)?;
                ensure!(silent.len() == SILENT, "only {} connections were made", silent.len());
                // Somebody new is served beside them.
                let began = Instant::now();
                runtime.block_on(greeted(&cluster, port))?;
                cluster.status()?;
                println!("    somebody new is served after {:.1} s", began.elapsed().as_secs_f64());
                std::thread::sleep(Duration::from_secs(2));
                Ok(())
            })
        });
    }
    for port in &ports {
        steps.run(&format!("{}: a frame without end, and garbage", port.name), || {
            under_attack(&cluster, port, || {
                for announced in [u32::MAX, 1 << 31, 3, 0] {
                    let mut bytes = announced.to_le_bytes().to_vec();
                    bytes.extend([0xa5; 256 << 10]);
                    let left = runtime.block_on(async {
                        let mut connection = greeted(&cluster, port).await?;
                        let _closed = connection.io.write_all(&bytes).await;
                        Ok::<_, anyhow::Error>(ends(&mut connection).await)
                    })?;
                    ensure!(left, "a frame of {announced} bytes doesn't end its connection");
                }
                Ok(())
            })
        });
        steps.run(&format!("{}: {UNREAD} requests whose answers aren't read", port.name), || {
            under_attack(&cluster, port, || runtime.block_on(unread(&cluster, port)))
        });
    }
    steps.run("a chunk's bytes, asked for and not read", || slow_readers(&cluster, &runtime));
    steps.finish()?;
    // A stranger is worth a WARN.
    cluster.finish(&[super::PEERS_COME_AND_GO, &["refused", "were turned away"]].concat())
}

/// Attacks a port while the mount is worked on.
fn under_attack(cluster: &DevCluster, port: &Process, attack: impl FnOnce() -> Result<()>) -> Result<()> {
    under_attack_within(cluster, port, MEMORY_MAX_MIB, attack)
}

/// [`under_attack`] of one that has so much memory for calls and answers.
fn under_attack_within(
    cluster: &DevCluster,
    port: &Process,
    memory_mib: u32,
    attack: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let pid = cluster.process(&port.name)?.pid.context("it doesn't run")?;
    let before = resident_kib(pid)?;
    let stop = AtomicBool::new(false);
    let mount = cluster.mount();
    let (attacked, worked, watched) = std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&mount, &stop));
        let watching = scope.spawn(|| most_kib(pid, &stop));
        let attacked = attack();
        stop.store(true, Ordering::Relaxed);
        (attacked, working.join(), watching.join())
    });
    attacked?;
    let (operations, longest) = worked.map_err(|_| anyhow::anyhow!("the workload panicked"))??;
    let most = watched.map_err(|_| anyhow::anyhow!("who watches its memory panicked"))??;
    let most = most.saturating_sub(before);
    let grown = resident_kib(pid)?.saturating_sub(before);
    println!(
        "    {operations} operations meanwhile, the longest took {longest:.1?}; {most} KiB more memory at most, {grown} KiB at the end"
    );
    ensure!(operations > 0 && longest < OPERATION_MAX, "the mount waited");
    ensure!(most < u64::from(memory_mib) << 10, "its memory grew by {most} KiB meanwhile");
    ensure!(grown < GROWTH_MAX_KIB, "its memory grew by {grown} KiB");
    Ok(())
}

/// The most memory that a process has until told to stop.
fn most_kib(pid: i32, stop: &AtomicBool) -> Result<u64> {
    // What it ever had at most tells of the time between two looks, unless it had as much before.
    let ever = memory_kib(pid, "VmHWM:")?;
    let mut most = resident_kib(pid)?;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        most = most.max(resident_kib(pid)?);
    }
    let ever_since = memory_kib(pid, "VmHWM:")?;
    Ok(if ever_since > ever { most.max(ever_since) } else { most })
}

/// Writes, flushes and reads back until told to stop: what masters keep and what chunkservers do, in turns. Answers how many operations there were, and the longest.
fn work(mount: &Path, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let (mut operations, mut longest) = (0, Duration::ZERO);
    let mut blocks = [vec![0; 64 << 10], vec![0; 256 << 10]];
    while !stop.load(Ordering::Relaxed) || operations == 0 {
        let began = Instant::now();
        let path = mount.join(format!("work{}", operations % 8));
        let block = &mut blocks[operations as usize % 2];
        block.fill(operations as u8);
        let file = fs::File::create(&path)?;
        file.write_all_at(block, 0)?;
        file.sync_all()?;
        drop(file);
        ensure!(fs::read(&path)? == *block, "other bytes");
        longest = longest.max(began.elapsed());
        operations += 1;
    }
    Ok((operations, longest))
}

/// Half of them begin a TLS record and go no further.
fn silent(address: &str) -> Result<Vec<TcpStream>> {
    use std::io::Write;
    let mut silent = Vec::with_capacity(SILENT);
    for n in 0..SILENT {
        let mut io = TcpStream::connect(address).with_context(|| format!("connection {n}"))?;
        if n % 2 == 0 {
            // The server may have ended it by now.
            let _ = io.write_all(&[0x16, 3, 1, 2, 0, 1, 0]);
        }
        silent.push(io);
    }
    Ok(silent)
}

fn client_files(cluster: &DevCluster) -> Result<TlsFiles> {
    let out: PathBuf = cluster.scratch().join("hostile-leaf");
    if !out.exists() {
        let ours = Authority::open(&cluster.dir().join("pki"))?;
        let identity = mooseng_wire::Identity {
            cluster: ours.cluster().into(),
            region: "region-1".into(),
            role: Role::Client,
            name: "hostile".into(),
        };
        ours.issue(&identity, Duration::from_secs(86_400), &out, true)?;
    }
    let file = |name: &str| out.join(name);
    Ok(TlsFiles { cert: file("cert.pem"), key: file("key.pem"), ca: file("ca.pem"), revocations: None })
}

/// A connection with a right certificate, past its hello.
async fn greeted(cluster: &DevCluster, port: &Process) -> Result<Connection> {
    let network = TlsNetwork::load(client_files(cluster)?)?;
    let role = Role::parse(&port.role).context("role")?;
    let mut connection = network.connect(&port.address, Protocol::Stream, role).await?;
    let hello = frame(Kind::Hello, 0, version::hello(Levels::OURS).encode_to_vec().into());
    connection.io.write_all(&hello).await?;
    let mut buffer = BytesMut::new();
    loop {
        if let Some(answer) = Frame::decode(&mut buffer, 1 << 20)? {
            ensure!(answer.kind == Kind::HelloAnswer, "{answer:?}");
            return Ok(connection);
        }
        let read = tokio::time::timeout(Duration::from_secs(10), connection.io.read_buf(&mut buffer));
        ensure!(read.await?? > 0, "the server left");
    }
}

fn frame(kind: Kind, call: u64, body: Bytes) -> Vec<u8> {
    let (meta, bulk) = (Bytes::new(), Bytes::new());
    encoded(&Frame { kind, lane: 1, method: Method::FsRead as u16, call, meta, body, bulk })
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frame.encode_head(&mut bytes);
    bytes.to_vec()
}

/// Whether the server ends the connection.
async fn ends(connection: &mut Connection) -> bool {
    let mut buffer = vec![0; 64 << 10];
    let end = async {
        loop {
            match connection.io.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), end).await.is_ok()
}

/// Asks and asks, and reads no answer: the server stops reading at some point, or ends the connection.
async fn unread(cluster: &DevCluster, port: &Process) -> Result<()> {
    let mut connection = greeted(cluster, port).await?;
    let mut asked = 0;
    let asking = async {
        for call in 1..=UNREAD {
            connection.io.write_all(&frame(Kind::Request, call, vec![0xff; 64].into())).await?;
            asked = call;
        }
        connection.io.flush().await
    };
    let stopped = tokio::time::timeout(Duration::from_secs(5), asking).await;
    println!(
        "    {asked} requests were taken; {}",
        match stopped {
            Ok(Ok(())) => "all of them".to_owned(),
            Ok(Err(error)) => format!("then the connection ended: {error}"),
            Err(_) => "then the server read no more".to_owned(),
        }
    );
    ensure!(asked > 0, "nothing was taken");
    Ok(())
}

/// Mounts' requests as such, with right tickets, for more than fits; and none of the answers is read.
fn slow_readers(cluster: &DevCluster, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let path = cluster.mount().join("slow");
    let file = fs::File::create(&path)?;
    file.write_all_at(&vec![0x5a; 4 * BULK_BYTES_MAX], 0)?;
    file.sync_all()?;
    let place = runtime.block_on(place_of(cluster, file.metadata()?.ino()))?;
    drop(file);
    let at = &place.locations.first().context("the chunk is nowhere")?.address;
    let found = cluster.file()?.processes.into_iter().find(|p| p.address == *at);
    let port = found.with_context(|| format!("no process is at {at}"))?;
    super::room::configure(cluster, &port.name, |config| {
        config.insert("memory_max_mib".into(), i64::from(MEMORY_SET_MIB).into());
    })?;
    cluster.dev("kill", &port.name)?;
    cluster.dev("start", &port.name)?;
    cluster.wait_whole()?;
    let is_read = || wait_for("bytes", WITHIN, || runtime.block_on(read_one(cluster, &port, &place)));
    is_read()?;
    under_attack_within(cluster, &port, MEMORY_SET_MIB, || {
        runtime.block_on(asked_and_unread(cluster, &port, &place))
    })?;
    // The room is others' again.
    is_read()
}

async fn asked_and_unread(cluster: &DevCluster, port: &Process, place: &ChunkPlace) -> Result<()> {
    let mut slow = Vec::with_capacity(SLOW);
    for _ in 0..SLOW {
        let mut connection = greeted(cluster, port).await?;
        for call in 1..=SLOW_READS {
            connection.io.write_all(&read_frame(call, place)).await?;
        }
        connection.io.flush().await?;
        slow.push(connection);
    }
    tokio::time::sleep(SLOW_FOR).await;
    // That is what they were sent.
    ensure!(is_answered(&mut slow[0]).await?, "the answer is no chunk's bytes");
    Ok(())
}

/// Where the first bytes of a file lie, with a ticket, as a mount's session is told.
async fn place_of(cluster: &DevCluster, inode: u64) -> Result<ChunkPlace> {
    let network: Arc<dyn Network> = Arc::new(TlsNetwork::load(client_files(cluster)?)?);
    let mut failures = Vec::new();
    for master in cluster.file()?.processes.into_iter().filter(|p| p.role == "master") {
        let link = Link::new(network.clone(), master.address, Role::Master, LinkOptions::default());
        match told_place(&link, inode).await {
            Ok(place) => return Ok(place),
            // It doesn't lead.
            Err(error) => failures.push(format!("{}: {error:#}", master.name)),
        }
    }
    anyhow::bail!("no master told the place: {failures:?}")
}

async fn told_place(link: &Link, inode: u64) -> Result<ChunkPlace> {
    let open =
        OpenSession { host: "hostile".into(), mount_path: "/hostile".into(), ..OpenSession::default() };
    let opened: SessionOpened = link.request(Method::OpenSession, &open, WITHIN).await?;
    let (session, incarnation, custody_epoch) = (opened.session, opened.incarnation, opened.custody_epoch);
    let founding = opened.founding.clone();
    let renew = Renew { session, incarnation, custody_epoch, founding, ..Renew::default() };
    let _renewed: Renewed = link.request(Method::Renew, &renew, WITHIN).await?;
    let caller = Some(Caller { kernel_checked: true, ..Caller::default() });
    let op = Some(Op::ReadExtents(ReadExtents { inode, offset: 0, length: BULK_BYTES_MAX as u64 }));
    let request = Request {
        session,
        incarnation,
        number: 0,
        oldest_unanswered: 1,
        custody_epoch,
        op: Some(FsRequest { caller, op }),
        order: 1,
        releases: Vec::new(),
    };
    let response: Response = link.request(Method::FsRead, &request, WITHIN).await?;
    let close = CloseSession { session, incarnation };
    let _closed: SessionClosed = link.request(Method::CloseSession, &close, WITHIN).await?;
    match response.reply.and_then(|reply| reply.reply) {
        Some(Reply::Extents(map)) => map.chunks.into_iter().next().context("the file has no chunk"),
        other => anyhow::bail!("the extents of {inode} are {other:?}"),
    }
}

fn read_of(place: &ChunkPlace) -> Read {
    let (chunk, ticket) = (place.chunk, place.ticket.clone());
    Read { chunk, offset: 0, length: BULK_BYTES_MAX as u32, ticket }
}

/// Reads 1 MiB as one should.
async fn read_one(cluster: &DevCluster, port: &Process, place: &ChunkPlace) -> Result<()> {
    let network: Arc<dyn Network> = Arc::new(TlsNetwork::load(client_files(cluster)?)?);
    let link = Link::new(network, port.address.clone(), Role::Chunkserver, LinkOptions::default());
    let body = Bytes::from(read_of(place).encode_to_vec());
    let answer = link.call(Method::ChunkRead, body, Bytes::new(), WITHIN).await?;
    ensure!(answer.bulk.len() == BULK_BYTES_MAX, "{} bytes were read", answer.bulk.len());
    Ok(())
}

/// A call for 1 MiB, whose caller has a minute.
fn read_frame(call: u64, place: &ChunkPlace) -> Vec<u8> {
    let meta = CallMeta { deadline_ms: 60_000, ..CallMeta::default() };
    encoded(&Frame {
        kind: Kind::Request,
        lane: Lane::Read as u8,
        method: Method::ChunkRead as u16,
        call,
        meta: meta.encode_to_vec().into(),
        body: read_of(place).encode_to_vec().into(),
        bulk: Bytes::new(),
    })
}

/// Whether the first answer that waits on a connection is 1 MiB of a chunk.
async fn is_answered(connection: &mut Connection) -> Result<bool> {
    let mut buffer = BytesMut::new();
    loop {
        match Frame::decode(&mut buffer, 2 * BULK_BYTES_MAX)? {
            Some(answer) if [Kind::Response, Kind::Error].contains(&answer.kind) => {
                return Ok(answer.kind == Kind::Response && answer.bulk.len() == BULK_BYTES_MAX);
            }
            // It asks whether we are there.
            Some(_) => {}
            None => {
                let read = tokio::time::timeout(WITHIN, connection.io.read_buf(&mut buffer));
                ensure!(read.await?? > 0, "the server left");
            }
        }
    }
}

/// A process's resident memory.
fn resident_kib(pid: i32) -> Result<u64> {
    memory_kib(pid, "VmRSS:")
}

fn memory_kib(pid: i32, what: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with(what)).with_context(|| format!("no {what}"))?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}
