//! The daemon `mooseng-master`: parse, wire, run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use mooseng_embedded::{Base, FjallBase};
use mooseng_master::{MasterConfig, MasterServer, Ports, StartError, dump, global, owner, recover};
use mooseng_otlp::{Otlp, OtlpConfig, Who};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::lock;
use mooseng_ports::disk::os::OsDisk;
use mooseng_ports::{plant, service_manager};
use mooseng_raft::Node;
use mooseng_transport::{Blocking, Network, TlsNetwork, observe};
use mooseng_wire::{Identity, Role};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves the metadata of a MooseNG region.
#[derive(Parser)]
#[command(name = "mooseng-master", version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Checks the configuration, the certificates that it names, and that no other master's log lies in its state_dir, and exits.
    #[arg(long)]
    check_config: bool,
    /// Prints the configuration with its defaults and exits.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Lets the region go on from this master's disk alone, where a majority of its masters is lost for good. This master must be stopped.
    ///
    /// Without options it shows what is on the disk, and changes nothing.
    Recover(Recover),
    /// Makes the region anew on this master from a dump of its metadata (`mooseng metadata dump`). This master's state_dir must be empty.
    Load {
        /// The dump.
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct Recover {
    /// Ids of the masters that are lost for good, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    lost: Vec<u64>,
    /// They never come back: what they had acknowledged without this master is given up.
    #[arg(long, requires = "lost")]
    i_know_that_the_lost_masters_never_return: bool,
    /// This master's log was still being filled, and there is no better one.
    #[arg(long)]
    although_it_is_incomplete: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        // One sentence, whatever RUST_BACKTRACE says: it is for whoever runs the daemon.
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes a directory for this process alone.
fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let taken = lock::take(state_dir)
        .with_context(|| format!("the setting state_dir = {state_dir:?}: it can't be locked"))?;
    taken.with_context(|| {
        format!(
            "another process works in state_dir = {state_dir:?}: a master that runs, or hangs, or one that is recovered or loaded; stop it first"
        )
    })
}

fn start() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let path = &arguments.config;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the configuration {} can't be read", path.display()))?;
    let config = MasterConfig::parse(&text).with_context(|| format!("in {}", path.display()))?;
    if arguments.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    if arguments.check_config {
        check(&config).with_context(|| format!("in {}", path.display()))?;
        println!("{} is well", path.display());
        return Ok(());
    }
    match arguments.command {
        Some(Command::Recover(asked)) => recover_region(config, &asked),
        Some(Command::Load { file }) => load(config, &file),
        None => {
            config.dev.enter_namespace()?;
            mooseng_transport::run_daemon(run(config))?
        }
    }
}

/// The region begins anew on this master, with what a dump holds.
fn load(config: MasterConfig, file: &Path) -> anyhow::Result<()> {
    let Some(tls) = config.tls.clone() else {
        bail!(
            "the setting `tls` is missing: the other masters are asked whether they are alive; give cert, key and ca"
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let members = config
        .members
        .iter()
        .map(|m| (m.id, Node { name: m.name.clone(), address: m.address.clone(), zone: m.zone.clone() }));
    let members: BTreeMap<u64, Node> = members.collect();
    runtime.block_on(async {
        let network = Arc::new(TlsNetwork::load(tls).context("the setting `tls` is wrong")?);
        anyhow::Ok(recover::nobody_answers(network, config.id, &config.advertise, &members).await?)
    })?;
    let _lock = lock(&config.state_dir)?;
    let loaded = dump::load(&config, Arc::new(OsDisk), file, SystemTime::now())?;
    println!(
        "Loaded {} records ({} bytes) as of {}, commit version {}. What was changed since then is missing; chunks that only later changes name stay where they are, in no file.\nMaster {} is the only member of its group, from term {} on (line {}). Start it; then `mooseng fsck`. Other masters are added with empty disks \
         and ids that were never used (`mooseng members add`); masters of before, should they come back, are refused.",
        loaded.totals.pairs,
        loaded.totals.bytes,
        recover::utc(SystemTime::UNIX_EPOCH + Duration::from_secs(loaded.header.taken_unix_s)),
        loaded.header.version,
        config.id,
        loaded.group.term,
        loaded.group.line.0
    );
    Ok(())
}

/// The region goes on from this master's disk.
fn recover_region(config: MasterConfig, asked: &Recover) -> anyhow::Result<()> {
    let Some(tls) = config.tls.clone() else {
        bail!(
            "the setting `tls` is missing: the other masters are asked whether they are alive; give cert, key and ca"
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = |members: BTreeMap<u64, Node>| -> anyhow::Result<()> {
        runtime.block_on(async {
            let network = Arc::new(TlsNetwork::load(tls.clone()).context("the setting `tls` is wrong")?);
            Ok(recover::nobody_answers(network, config.id, &config.advertise, &members).await?)
        })
    };
    // First this one: a running master's files mustn't be opened.
    ask(BTreeMap::new())?;
    let _lock = lock(&config.state_dir)?;
    let disks = recover::Disks::open(&config, Arc::new(OsDisk))?;
    let now = SystemTime::now();
    print!("{}", recover::Shown { disks: &disks, own: config.id, state_dir: &config.state_dir, now });
    if asked.lost.is_empty() {
        println!(
            "Nothing was changed. If a majority of these masters can still be started, start them. If not, look at each disk that is left, take the one with the \
             newest last entry (the term counts first), and name the others: recover --lost IDS --i-know-that-the-lost-masters-never-return"
        );
        return Ok(());
    }
    let word = recover::Word {
        lost: asked.lost.iter().copied().collect(),
        never_return: asked.i_know_that_the_lost_masters_never_return,
        although_incomplete: asked.although_it_is_incomplete,
    };
    disks.judge(config.id, &word)?;
    ask(disks.remains.members.clone())?;
    let recovered = disks.recover(config.id, now)?;
    println!("{}", recover::missing(&disks.remains));
    println!(
        "Master {} is the only member of its group now, from term {} on (line {}). Start it; then `mooseng fsck`. Other masters are added with empty disks and new \
         ids (`mooseng members add`). The lost ones, should they come back, are refused, and must be emptied.",
        config.id, recovered.term, recovered.line.0
    );
    Ok(())
}

/// What a start refuses before it touches anything.
fn check(config: &MasterConfig) -> anyhow::Result<()> {
    config.log.check().context("the setting `log` is wrong")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { network(config).map(drop) })?;
    owner::check(&OsDisk, config)?;
    Ok(())
}

/// The network under the files that the configuration names, if they are those of this master in this cluster.
fn network(config: &MasterConfig) -> anyhow::Result<TlsNetwork> {
    let Some(tls) = config.tls.clone() else {
        bail!("the setting `tls` is missing: a master speaks mutual TLS only; give cert, key and ca");
    };
    if let Some(global) = &config.global {
        global.check_root(&tls.ca)?;
    }
    let network = TlsNetwork::load(tls).context("the setting `tls` is wrong")?;
    let expected = Identity {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        role: Role::Master,
        name: config.name.clone(),
    };
    let found = network.identity();
    if found != expected {
        return Err(StartError::Identity { found: found.to_string(), expected: expected.to_string() }.into());
    }
    config.otlp.as_ref().map_or(Ok(()), OtlpConfig::check_files)?;
    Ok(network)
}

async fn run(config: MasterConfig) -> anyhow::Result<()> {
    observe::init_logging(&config.log).context("the setting `log` is wrong")?;
    if let Some(plant) = plant::from_environment()? {
        tracing::warn!(%plant, "A BUG IS PLANTED in this process: it loses data on purpose, for tests");
    }
    let network = config.dev.beyond(Arc::new(network(&config)?))?;
    let otlp = config.otlp.clone();
    let who = Who {
        service: "mooseng-master",
        instance: config.name.clone(),
        cluster: config.cluster.clone(),
        region: config.region.clone(),
    };
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let http = config.http_listen.clone();
    let _lock = lock(&config.state_dir)?;
    // Opening another one's store would already mend what a crash has left in it.
    owner::check(&OsDisk, &config)?;
    let directory = config.state_dir.join("store");
    let base = FjallBase::open(&directory).with_context(|| {
        format!("the metadata store below state_dir = {:?} can't be opened", config.state_dir)
    })?;
    let global_base = match &config.global {
        None => None,
        Some(_) => {
            let base = FjallBase::open(&global::store_dir(&config.state_dir)).with_context(|| {
                format!("the global group's store below state_dir = {:?} can't be opened", config.state_dir)
            })?;
            Some(Arc::new(base) as Arc<dyn Base>)
        }
    };
    let ports = Ports {
        network,
        disk: Arc::new(OsDisk),
        blocking: Blocking::Pool,
        clock: Arc::new(OsClock),
        base: Arc::new(base),
        global_base,
    };
    let state_dir = config.state_dir.clone();
    let server = MasterServer::start(config, ports, shutdown.clone()).await?;
    if let Some(http) = http {
        observe::serve_http(&http, server.metrics(), server.readiness(), shutdown.clone())
            .await
            .with_context(|| format!("metrics and health can't be served on http_listen = {http:?}"))?;
    }
    let otlp = otlp.map(|otlp| Otlp::start(&otlp, &who, &server.metrics())).transpose()?;
    // It answers: whether it is ready, for which a master needs the others, /readyz says.
    if let Err(error) = service_manager::tell("READY=1") {
        tracing::warn!(%error, "the service manager couldn't be told that this daemon is up");
    }
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failure = server.failed() => Some(failure),
        broken = server.broken() => {
            // What it holds in memory may be in pieces: nothing more is done with it, and another master leads.
            bail!(
                "MASTER_FAILED: a bug ended {broken}; the log says where. This master ends, so that another one leads. Start it again, and report it."
            );
        }
    };
    let outdated = server.outdated();
    let _ = service_manager::tell("STOPPING=1");
    tracing::info!("stopping");
    server.stop().await;
    if let Some(otlp) = otlp {
        otlp.stop().await;
    }
    // What acknowledged nothing since has nothing to lose by ending; whoever supervises the process sees that it is gone.
    match (failure, outdated) {
        (None, _) => Ok(()),
        (Some(_), Some(outdated)) => bail!("MASTER_OUTDATED: this master's release {outdated}."),
        (Some(failure), None) => bail!(
            "MASTER_FAILED: {failure}. Mend the disk below state_dir = {state_dir:?} and start this master again; if the disk is lost, \
             start it with an empty one under a new id and change the members with `mooseng members`."
        ),
    }
}
