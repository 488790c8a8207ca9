//! Who means harm: connections by the thousand that say nothing, frames without end, peers that don't read. The mount that is there goes on, daemons
//! serve others, and their memory stays bounded.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use mooseng_certs::Authority;
use mooseng_e2e::cluster::{DevCluster, Process};
use mooseng_e2e::steps::Steps;
use mooseng_transport::{Connection, Network, Protocol, TlsFiles, TlsNetwork};
use mooseng_wire::frame::{Frame, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::{Role, version};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Connections to each port that never finish a handshake.
const SILENT: usize = 10_000;
/// Requests whose answers nobody reads.
const UNREAD: u64 = 200_000;
/// What a daemon's memory may grow by meanwhile, in KiB: buffers, and what the allocator keeps.
const GROWTH_MAX_KIB: u64 = 256 << 10;
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
    steps.finish()?;
    // A stranger is worth a WARN.
    cluster.finish(&[super::PEERS_COME_AND_GO, &["refused", "were turned away"]].concat())
}

/// Attacks a port while the mount is worked on.
fn under_attack(cluster: &DevCluster, port: &Process, attack: impl FnOnce() -> Result<()>) -> Result<()> {
    let pid = cluster.process(&port.name)?.pid.context("it doesn't run")?;
    let before = resident_kib(pid)?;
    let stop = AtomicBool::new(false);
    let mount = cluster.mount();
    let (attacked, worked) = std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&mount, &stop));
        let attacked = attack();
        stop.store(true, Ordering::Relaxed);
        (attacked, working.join())
    });
    attacked?;
    let (operations, longest) = worked.map_err(|_| anyhow::anyhow!("the workload panicked"))??;
    let grown = resident_kib(pid)?.saturating_sub(before);
    println!(
        "    {operations} operations meanwhile, the longest took {longest:.1?}; {grown} KiB more memory"
    );
    ensure!(operations > 0 && longest < OPERATION_MAX, "the mount waited");
    ensure!(grown < GROWTH_MAX_KIB, "its memory grew by {grown} KiB");
    Ok(())
}

/// Writes, flushes and reads back until told to stop. Answers how many operations there were, and the longest.
fn work(mount: &Path, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let (mut operations, mut longest) = (0, Duration::ZERO);
    let mut block = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) || operations == 0 {
        let began = Instant::now();
        let path = mount.join(format!("work{}", operations % 8));
        block.fill(operations as u8);
        let file = fs::File::create(&path)?;
        file.write_all_at(&block, 0)?;
        file.sync_all()?;
        drop(file);
        ensure!(fs::read(&path)? == block, "other bytes");
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
    let frame = Frame { kind, lane: 1, method: Method::FsRead as u16, call, meta, body, bulk };
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

/// A process's resident memory.
fn resident_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}
