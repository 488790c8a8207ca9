//! The daemon `mooseng-master`: parse, wire, run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use mooseng_embedded::FjallBase;
use mooseng_master::{MasterConfig, MasterServer, Ports};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::os::OsDisk;
use mooseng_ports::{plant, service_manager};
use mooseng_transport::{Blocking, TlsNetwork, observe};
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
    /// Checks the configuration and exits.
    #[arg(long)]
    check_config: bool,
    /// Prints the configuration with its defaults and exits.
    #[arg(long)]
    print_config: bool,
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
        println!("{} is well", path.display());
        return Ok(());
    }
    mooseng_transport::run_daemon(run(config))?
}

async fn run(config: MasterConfig) -> anyhow::Result<()> {
    observe::init_logging(&config.log).context("the setting `log` is wrong")?;
    if let Some(plant) = plant::from_environment()? {
        tracing::warn!(%plant, "A BUG IS PLANTED in this process: it loses data on purpose, for tests");
    }
    let Some(tls) = config.tls.clone() else {
        bail!("the setting `tls` is missing: a master speaks mutual TLS only; give cert, key and ca");
    };
    let network = Arc::new(TlsNetwork::load(tls).context("the setting `tls` is wrong")?);
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let http = config.http_listen.clone();
    let directory = config.state_dir.join("store");
    let base = FjallBase::open(&directory).with_context(|| {
        format!("the metadata store below state_dir = {:?} can't be opened", config.state_dir)
    })?;
    let ports = Ports {
        network,
        disk: Arc::new(OsDisk),
        blocking: Blocking::Pool,
        clock: Arc::new(OsClock),
        base: Arc::new(base),
    };
    let state_dir = config.state_dir.clone();
    let server = MasterServer::start(config, ports, shutdown.clone()).await?;
    if let Some(http) = http {
        observe::serve_http(&http, server.metrics(), server.readiness(), shutdown.clone())
            .await
            .with_context(|| format!("metrics and health can't be served on http_listen = {http:?}"))?;
    }
    // It answers: whether it is ready, for which a master needs the others, /readyz says.
    if let Err(error) = service_manager::tell("READY=1") {
        tracing::warn!(%error, "the service manager couldn't be told that this daemon is up");
    }
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failure = server.failed() => Some(failure),
    };
    let _ = service_manager::tell("STOPPING=1");
    tracing::info!("stopping");
    server.stop().await;
    // What acknowledged nothing since has nothing to lose by ending; whoever supervises the process sees that it is gone.
    match failure {
        None => Ok(()),
        Some(failure) => bail!(
            "MASTER_FAILED: {failure}. Mend the disk below state_dir = {state_dir:?} and start this master again; if the disk is lost, \
             start it with an empty one under a new id and change the members with `mooseng members`."
        ),
    }
}
