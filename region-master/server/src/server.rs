//! The daemon below `main`: everything that it runs, over ports, so that tests and the simulation run the same.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_embedded::{Base, BaseError, Embedded, Offload, Options};
use mooseng_global::RuleError;
use mooseng_ports::clock::Clock;
use mooseng_ports::disk::Disk;
use mooseng_raft::{Member, RaftConfig as NodeConfig, RaftError, RaftNode, Timings};
use mooseng_replica::{Tail, VolumeLogs};
use mooseng_transport::grpc::administration_server::AdministrationServer;
use mooseng_transport::grpc::registry_server::RegistryServer;
use mooseng_transport::{Blocking, Network, Peer, Protocol, Services, observe, serve};
use mooseng_wal::Options as WalOptions;
use mooseng_wire::admin::StatusReply;
use mooseng_wire::level::Unsupported;
use mooseng_wire::{Identity, Role};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigError, MasterConfig};
use crate::geo::{self, Geo};
use crate::global::{self, Global, GlobalPorts};
use crate::kept::Kept;
use crate::master::{Master, Parts};
use crate::metrics::Metrics;
use crate::owner::{self, OwnerError};
use crate::rpc::Rpc;
use crate::service::MasterService;
use crate::{credentials, events, lead, locks, promises, revocations, room, seals, status};

/// How long a leader that is asked to stop waits for another one to take over.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);

/// How often the first members are asked whether the group can be made.
const FOUND_EVERY: Duration = Duration::from_millis(200);

/// Each so many attempts it is told why it can't.
const FOUND_TOLD_EVERY: u32 = 50;

/// What a master stands on.
pub struct Ports {
    /// The network.
    pub network: Arc<dyn Network>,
    /// The disk of the Raft log.
    pub disk: Arc<dyn Disk>,
    /// Where disk work runs.
    pub blocking: Blocking,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the metadata store lies on.
    pub base: Arc<dyn Base>,
    /// What the global group's store lies on, where the configuration names regions.
    pub global_base: Option<Arc<dyn Base>>,
}

/// Why a master doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting can't work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate is somebody else's.
    #[error(
        "the certificate says {found}, the settings `cluster`, `region` and `name` say {expected}: use the certificate that was issued for this master"
    )]
    Identity {
        /// Who the certificate says we are.
        found: String,
        /// Who the configuration says we are.
        expected: String,
    },
    /// What lies in the directory is another master's.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The metadata store can't be opened.
    #[error("the metadata store below `state_dir` can't be opened: {0}")]
    Store(#[from] BaseError),
    /// The cluster is at a feature level that this release doesn't support.
    #[error("MASTER_OUTDATED: this master's release {0}")]
    Outdated(#[from] Unsupported),
    /// What the regions have agreed on can't be read.
    #[error("the global group's store below `state_dir`: {0}")]
    Global(#[from] RuleError),
    /// The Raft log can't be opened, or the group can't be joined.
    #[error("the Raft log below `state_dir` can't be opened: {0}")]
    Raft(#[from] RaftError),
    /// The port can't be had.
    #[error("the setting `listen` is wrong: {address} can't be listened on: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// A directory can't be made.
    #[error("the setting `state_dir` is wrong: {path} can't be made: {source}")]
    StateDir {
        /// The directory.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// A running master. It stops when its token is cancelled; [`MasterServer::stop`] hands leadership over first.
pub struct MasterServer {
    address: String,
    master: Arc<Master>,
    exposed: observe::Metrics,
    tasks: Kept,
}

fn allow(peer: &Peer, protocol: Protocol) -> Result<(), String> {
    match (protocol, peer.identity.role) {
        (Protocol::Stream, Role::Client | Role::Admin | Role::Master) => Ok(()),
        (Protocol::Stream, role) => Err(format!("a {role} speaks gRPC with a master, not frames")),
        (Protocol::Grpc, _) => Ok(()),
    }
}

impl MasterServer {
    /// Opens the store and the log, listens, and takes part in the group.
    pub fn start(
        config: MasterConfig,
        ports: Ports,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<Self, StartError>> {
        // As a value it is compiled here, once; else each program and test that starts one would compile all of it anew (docs/decisions/0005-layout.md).
        Self::start_here(config, ports, shutdown).boxed()
    }

    async fn start_here(
        config: MasterConfig,
        ports: Ports,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        config.check()?;
        let Ports { network, disk, blocking, clock, base, global_base } = ports;
        identity(&config, &*network)?;
        let raft_dir = config.state_dir.join("raft");
        make_dir(&*disk, &raft_dir)?;
        owner::check(&*disk, &config)?;
        let listen = |source| StartError::Listen { address: config.listen.clone(), source };
        let listener = network.listen(&config.listen).await.map_err(listen)?;
        let address = if config.advertise.is_empty() || config.advertise.ends_with(":0") {
            listener.local_address()
        } else {
            config.advertise.clone()
        };
        let config = MasterConfig { advertise: address.clone(), ..config };
        let options = Options { offload: offload(blocking), ..Options::default() };
        let tail = Arc::new(Tail::new(geo::TAIL_BYTES_MAX));
        let logs = Box::new(VolumeLogs::new(tail.clone()));
        let opening = move || {
            let store = Embedded::open(base, options)?;
            store.set_derive(logs)?;
            Ok::<_, BaseError>(store)
        };
        let store = blocking.run(opening).await?;
        // Not before: whoever corrects what was refused until here finds a directory that is nobody's still.
        owner::claim(&*disk, &config)?;
        let node = NodeConfig {
            timings: Timings {
                heartbeat: Duration::from_millis(config.raft.heartbeat_ms),
                election_min: Duration::from_millis(config.raft.election_min_ms),
                election_max: Duration::from_millis(config.raft.election_max_ms),
            },
            wal: WalOptions { segment_bytes: config.raft.segment_bytes, ..WalOptions::default() },
            entries_kept: config.raft.entries_kept,
            entries_between_snapshots: config.raft.entries_between_snapshots,
            defer: Duration::from_millis(config.raft.defer_ms),
            ..NodeConfig::new(config.id, &config.name, &address, &config.zone, raft_dir)
        };
        let global = match global_base.filter(|_| config.global.is_some()) {
            None => None,
            Some(base) => {
                make_dir(&*disk, &global::raft_dir(&config.state_dir))?;
                let (network, disk, clock) = (network.clone(), disk.clone(), clock.clone());
                let ports = GlobalPorts { network, disk, blocking, clock, base };
                Global::start(&config, ports, shutdown.clone()).await?
            }
        };
        let looker = room::Looker { disk: disk.clone(), blocking, state_dir: config.state_dir.clone() };
        let place = events::Place { disk: disk.clone(), blocking, state_dir: config.state_dir.clone() };
        let raft =
            RaftNode::start(node, disk, blocking, clock.clone(), network.clone(), store.clone()).await?;
        let exposed = observe::Metrics::default();
        let mut metrics = None;
        exposed.register(|registry| metrics = Some(Metrics::new(registry)));
        let metrics = metrics.expect("register calls its closure");
        let (told, waiting) = mpsc::channel(seals::WAITING_MAX);
        let geo = Geo::new(tail, global.as_ref().map(|global| global.watch()));
        let master = Arc::new(Master::new(Parts {
            config,
            clock,
            network,
            raft,
            global,
            store,
            metrics,
            seals: told,
            geo,
            shutdown: shutdown.clone(),
        }));
        // Before it stands for election.
        room::look(&master, &looker).await;
        // Before anybody is let in.
        revocations::look(&master).await;
        let mut tasks = Kept::default();
        let routes = tonic::service::Routes::new(RegistryServer::new(Rpc(master.clone())))
            .add_service(AdministrationServer::new(Rpc(master.clone())));
        let services =
            Services { stream: Arc::new(MasterService(master.clone())), grpc: Some(routes), allow };
        let limits = master.config.limits();
        tasks.spawn("serving connections", serve(listener, services, limits, shutdown.clone()));
        tasks.spawn("leading the region", lead::run(master.clone()));
        tasks.spawn("looking after the disk", lead::probe(master.clone()));
        tasks.spawn("looking after certificates", credentials::ask(master.clone()));
        tasks.spawn("keeping revocations", revocations::keep(master.clone()));
        tasks.spawn("keeping promises", promises::keep(master.clone()));
        tasks.spawn("keeping locks", locks::keep(master.clone()));
        tasks.spawn("sealing chunks", seals::run(master.clone(), waiting));
        tasks.spawn("looking after room", room::keep(master.clone(), looker));
        tasks.spawn("telling events", events::keep(master.clone(), place));
        tasks.spawn("making the group", make_the_group(master.clone()));
        if let Some(global) = &master.global {
            tasks.spawn("taking part in the global group", global::run(global.clone(), master.clone()));
        }
        tracing::info!(address, id = master.config.id, "the master serves");
        Ok(Self { address, master, exposed, tasks })
    }

    /// Where others reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its parts.
    pub fn master(&self) -> &Arc<Master> {
        &self.master
    }

    /// Whether it leads and serves now.
    pub fn is_serving(&self) -> bool {
        self.master.serving().is_ok()
    }

    /// What it knows.
    pub fn status(&self) -> StatusReply {
        status::of(&self.master)
    }

    /// Ready, or why not.
    pub fn ready(&self) -> Result<(), String> {
        status::ready(&self.master)
    }

    /// The same for whoever serves /readyz.
    pub fn readiness(&self) -> observe::Ready {
        let master = self.master.clone();
        Arc::new(move || status::ready(&master))
    }

    /// The metrics, for whoever serves them.
    pub fn metrics(&self) -> observe::Metrics {
        self.exposed.clone()
    }

    /// Waits until a task of this master has panicked, without which it does its work only in part, and says what that did. Pending while none has.
    pub async fn broken(&self) -> &'static str {
        self.tasks.broken().await
    }

    /// Waits until this master can't take part in its group any more, and says why. Pending while it can, and while it is told to end.
    pub async fn failed(&self) -> String {
        let global = async {
            match &self.master.global {
                Some(global) => global.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = self.master.raft.stopped() => failure,
            failure = global => failure,
        }
    }

    /// Why this master's release can't serve the cluster, if it has learned that it can't.
    pub fn outdated(&self) -> Option<Unsupported> {
        self.master.global.as_ref().and_then(|global| global.is_supported().err())
    }

    /// Hands leadership over if it leads, then ends.
    pub async fn stop(self) {
        if let Some(global) = &self.master.global {
            global.hand_over(HAND_OVER_WITHIN).await;
        }
        if self.master.raft.is_leading() && self.master.raft.status().members.len() > 1 {
            match self.master.raft.transfer_leader(HAND_OVER_WITHIN).await {
                Ok(leader) => tracing::info!(leader, "handed leadership over"),
                Err(error) => tracing::info!(%error, "leadership wasn't handed over"),
            }
        }
        self.master.shutdown.cancel();
        self.stopped().await;
    }

    /// Waits until everything has ended, after the token was cancelled.
    pub async fn stopped(mut self) {
        self.tasks.stopped().await;
        self.master.raft.shutdown().await;
        if let Some(global) = &self.master.global {
            global.stop().await;
        }
    }
}

fn identity(config: &MasterConfig, network: &dyn Network) -> Result<(), StartError> {
    let found = network.identity();
    let expected = Identity {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        role: Role::Master,
        name: config.name.clone(),
    };
    if found != expected {
        return Err(StartError::Identity { found: found.to_string(), expected: expected.to_string() });
    }
    Ok(())
}

fn make_dir(disk: &dyn Disk, path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::StateDir { path: path.display().to_string(), source };
    disk.create_dir_all(path).map_err(failed)
}

pub(crate) fn offload(blocking: Blocking) -> Offload {
    match blocking {
        Blocking::Inline => Offload::inline(),
        Blocking::Pool => Offload::new(|job| Box::pin(Blocking::Pool.run(job))),
    }
}

/// The first member makes the group, where there is none yet, as soon as all first members are there.
async fn make_the_group(master: Arc<Master>) {
    let config = &master.config;
    if !config.makes_the_group() {
        return;
    }
    let member = |m: &crate::config::MemberConfig| {
        // Of ourselves we know the address better: port 0 is chosen by the system.
        let address = if m.id == config.id { config.advertise.clone() } else { m.address.clone() };
        (m.id, Member { name: m.name.clone(), address, zone: m.zone.clone() })
    };
    let members: BTreeMap<u64, Member> = config.members.iter().map(member).collect();
    let making = async {
        let mut attempts = 0u32;
        while let Err(error) = master.raft.initialize(members.clone()).await {
            // That the others aren't up at once is nothing to be warned of.
            let expected = matches!(error, RaftError::NotFounded { .. });
            match attempts {
                0 if expected => tracing::info!("{error}"),
                n if n % FOUND_TOLD_EVERY == 0 => tracing::warn!("{error}"),
                _ => {}
            }
            attempts = attempts.wrapping_add(1);
            tokio::time::sleep(FOUND_EVERY).await;
        }
    };
    tokio::select! {
        () = making => {}
        () = master.shutdown.cancelled() => {}
    }
}
