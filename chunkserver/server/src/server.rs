//! The daemon below `main`: everything that it runs, over ports, so that the simulation runs the same.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_chunk::{ChunkStore, OpenError, StoreOptions};
use mooseng_ports::clock::Clock;
use mooseng_ports::disk::Disk;
use mooseng_ports::disk::watched::WatchedDisk;
use mooseng_transport::{Blocking, Network, Peer, Protocol, Services, observe, serve};
use mooseng_wire::{Identity, Role};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::KeyRing;
use crate::config::ChunkserverConfig;
use crate::epochs::Epochs;
use crate::founding::Foundings;
use crate::health::{HUNG_AFTER, Health};
use crate::heartbeat::Heartbeats;
use crate::lend::Lender;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::revocations::Kept;
use crate::scrub::{self, Scrub};
use crate::service::{ChunkService, Parts};

/// Why a chunkserver doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate is somebody else's.
    #[error(
        "the certificate says {found}, the configuration {expected}: use the certificate that was issued for this chunkserver"
    )]
    Identity {
        /// Who the certificate says we are.
        found: String,
        /// Who the configuration says we are.
        expected: String,
    },
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The port can't be had.
    #[error("the address {address} can't be listened on: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

/// A running chunkserver. It stops when its token is cancelled.
pub struct ChunkserverServer {
    address: String,
    store: Arc<ChunkStore>,
    health: Arc<Health>,
    keys: Arc<KeyRing>,
    exposed: observe::Metrics,
    tasks: JoinSet<()>,
}

fn new_disk_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn allow(peer: &Peer, protocol: Protocol) -> Result<(), String> {
    match (protocol, peer.identity.role) {
        (Protocol::Stream, Role::Client | Role::Chunkserver | Role::Master) => Ok(()),
        (Protocol::Stream, role) => Err(format!("a {role} has no business with a chunkserver; ask a master")),
        (Protocol::Grpc, _) => Err("a chunkserver serves no gRPC; ask a master".into()),
    }
}

impl ChunkserverServer {
    /// Opens the disks, listens, and begins to report to the masters.
    pub fn start(
        config: ChunkserverConfig,
        network: Arc<dyn Network>,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<Self, StartError>> {
        // As a value it is compiled here, once; else each program and test that starts one would compile all of it anew (docs/decisions/0005-layout.md).
        Self::start_here(config, network, disk, blocking, clock, shutdown).boxed()
    }

    async fn start_here(
        config: ChunkserverConfig,
        network: Arc<dyn Network>,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let ours = identity(&config, &*network)?;
        let disk: Arc<dyn Disk> =
            Arc::new(WatchedDisk::new(disk, clock.clone(), &config.data_dirs, HUNG_AFTER));
        let store = open_store(&config, disk.clone(), &blocking, scrub::unix_s(&*clock)).await?;
        // Before anybody is let in.
        let revoked = Kept::load(network.clone(), disk.clone(), blocking, config.state_dir.clone()).await;
        let listen = |source| StartError::Listen { address: config.listen.clone(), source };
        let listener = network.listen(&config.listen).await.map_err(listen)?;
        let local = listener.local_address();
        // Port 0 lets the system choose, as tests do.
        let address = if config.advertise.is_empty() || config.advertise.ends_with(":0") {
            local
        } else {
            config.advertise.clone()
        };
        let exposed = observe::Metrics::default();
        let metrics = Metrics::new(&exposed);
        let keys = Arc::new(KeyRing::default());
        let foundings = Arc::new(Foundings::new(store.clone(), metrics.clone()));
        let health = Arc::new(Health::new(store.clone(), keys.clone(), foundings.clone()));
        let (reads, writes) =
            (config.same_host_reads && disk.lends(), config.same_host_writes && disk.lends());
        let lending = if reads || writes { Lender::start(&config.state_dir, reads, writes) } else { None };
        let epochs = Arc::new(Epochs::new(store.clone()));
        let service = Arc::new(ChunkService::new(Parts {
            ours,
            store: store.clone(),
            blocking,
            clock: clock.clone(),
            keys: keys.clone(),
            epochs: epochs.clone(),
            members: Members::new(network.clone(), writes),
            metrics: metrics.clone(),
            chain_timeout: Duration::from_millis(config.chain_timeout_ms),
            lender: lending.as_ref().map(|(lender, _)| lender.clone()),
        }));
        let mut tasks = JoinSet::new();
        if let Some((lender, counter)) = lending {
            tasks.spawn(lender.serve(counter, shutdown.clone()));
        }
        {
            let (service, shutdown, limits) = (service.clone(), shutdown.clone(), config.limits());
            tasks.spawn(async move {
                serve(listener, Services { stream: service.clone(), grpc: None, allow }, limits, shutdown)
                    .await;
                service.close();
            });
        }
        {
            let (health, metrics, shutdown) = (health.clone(), metrics.clone(), shutdown.clone());
            tasks.spawn(async move { health.run(blocking, metrics, shutdown).await });
        }
        let scrub = Scrub {
            store: store.clone(),
            blocking,
            disk,
            state_dir: config.state_dir.clone(),
            period: Duration::from_secs(config.scrub_period_s),
            metrics: metrics.clone(),
        };
        tasks.spawn(scrub.run(shutdown.clone()));
        let keep = Duration::from_secs(config.trash_s);
        tasks.spawn(scrub::empty_trash(store.clone(), blocking, clock.clone(), keep, shutdown.clone()));
        let masters = config.masters.clone();
        let heartbeats = Arc::new(Heartbeats {
            config,
            address: address.clone(),
            store: store.clone(),
            blocking,
            network,
            keys: keys.clone(),
            epochs,
            foundings,
            revoked,
            clock,
            metrics,
            passes: AtomicU64::new(0),
        });
        for master in masters {
            let (heartbeats, shutdown) = (heartbeats.clone(), shutdown.clone());
            tasks.spawn(async move { heartbeats.run(&master, shutdown).await });
        }
        tracing::info!(address, scan = ?store.scan(), incarnation = store.incarnation(), "the chunkserver serves");
        Ok(Self { address, store, health, keys, exposed, tasks })
    }

    /// Where others reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its chunks.
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// Its ticket keys: tests without masters teach it some.
    pub fn keys(&self) -> &Arc<KeyRing> {
        &self.keys
    }

    /// Ready, or why not.
    pub fn ready(&self) -> Result<(), String> {
        self.health.ready()
    }

    /// The same for whoever serves /readyz.
    pub fn readiness(&self) -> observe::Ready {
        let health = self.health.clone();
        Arc::new(move || health.ready())
    }

    /// The metrics, for whoever serves them.
    pub fn metrics(&self) -> observe::Metrics {
        self.exposed.clone()
    }

    /// Waits until everything has ended, after the token was cancelled.
    pub async fn stopped(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(e) = ended
                && e.is_panic()
            {
                tracing::error!(error = %e, "a task of the chunkserver panicked");
            }
        }
    }
}

fn identity(config: &ChunkserverConfig, network: &dyn Network) -> Result<Identity, StartError> {
    let found = network.identity();
    let expected = Identity {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        role: Role::Chunkserver,
        name: config.name.clone(),
    };
    if found != expected {
        return Err(StartError::Identity { found: found.to_string(), expected: expected.to_string() });
    }
    Ok(found)
}

async fn open_store(
    config: &ChunkserverConfig,
    disk: Arc<dyn Disk>,
    blocking: &Blocking,
    now_s: u64,
) -> Result<Arc<ChunkStore>, OpenError> {
    let options = StoreOptions {
        cluster: config.cluster.clone(),
        chunkserver: config.name.clone(),
        state_dir: config.state_dir.clone(),
        data_dirs: config.data_dirs.clone(),
        reserve_bytes: config.reserve_bytes,
        open_files_max: config.open_files_max,
        trash: config.trash_s > 0,
    };
    // Starts are fewer than seconds: should all that counted them be lost, this is more than they came to.
    blocking.run(move || ChunkStore::open_from(disk, options, now_s, &mut new_disk_id).map(Arc::new)).await
}
