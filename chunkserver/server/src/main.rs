//! The daemon `mooseng-chunkserver`: parse, wire, run.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_otlp::{Otlp, OtlpConfig, Who};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::lock;
use mooseng_ports::disk::os::OsDisk;
use mooseng_ports::{plant, service_manager};
use mooseng_transport::{Blocking, TlsNetwork, observe};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stores chunks of a MooseNG cluster.
#[derive(Parser)]
#[command(name = "mooseng-chunkserver", version)]
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

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let path = &arguments.config;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the configuration {} can't be read", path.display()))?;
    let config = ChunkserverConfig::parse(&text).with_context(|| format!("in {}", path.display()))?;
    if arguments.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    if arguments.check_config {
        println!("{} is well", path.display());
        return Ok(());
    }
    config.dev.enter_namespace()?;
    mooseng_transport::run_daemon(run(config))?
}

/// Takes the state directory and the disks for this process alone: a second one would take what the first hasn't flushed yet for what a crash has left, and
/// remove it.
fn lock_directories(config: &ChunkserverConfig) -> anyhow::Result<Vec<File>> {
    let other = "a chunkserver that runs, or hangs; stop it first";
    let state_dir = &config.state_dir;
    let taken = lock::take(state_dir)
        .with_context(|| format!("the setting state_dir = {state_dir:?}: it can't be locked"))?;
    let mut all =
        vec![taken.with_context(|| format!("another process works in state_dir = {state_dir:?}: {other}"))?];
    // One that isn't there isn't made: a disk may not be mounted.
    for directory in config.data_dirs.iter().filter(|directory| directory.is_dir()) {
        match lock::take(directory) {
            Ok(taken) => all.push(taken.with_context(|| {
                format!("another process works in {directory:?}, one of data_dirs: {other}")
            })?),
            // The others go on without a broken disk.
            Err(error) => {
                tracing::warn!(path = %directory.display(), %error, "a data directory can't be locked")
            }
        }
    }
    Ok(all)
}

/// Has as many descriptors as the system allows, for files and connections: the lower limit is for programs that wait by select(2).
fn raise_descriptor_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::warn!(%error, "the limit of open files can't be raised to what the system allows");
    }
}

async fn run(config: ChunkserverConfig) -> anyhow::Result<()> {
    observe::init_logging(&config.log)?;
    raise_descriptor_limit();
    let _taken = lock_directories(&config)?;
    if let Some(plant) = plant::from_environment()? {
        tracing::warn!(%plant, "A BUG IS PLANTED in this process: it loses data on purpose, for tests");
    }
    let Some(tls) = config.tls.clone() else {
        bail!("the setting `tls` is missing: a chunkserver speaks mutual TLS only; give cert, key and ca");
    };
    let network = config.dev.beyond(Arc::new(TlsNetwork::load(tls)?))?;
    let otlp = config.otlp.clone();
    otlp.as_ref().map_or(Ok(()), OtlpConfig::check_files)?;
    let who = Who {
        service: "mooseng-chunkserver",
        instance: config.name.clone(),
        cluster: config.cluster.clone(),
        region: config.region.clone(),
    };
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let http = config.http_listen.clone();
    let server = ChunkserverServer::start(
        config,
        network,
        Arc::new(OsDisk),
        Blocking::Pool,
        Arc::new(OsClock),
        shutdown.clone(),
    )
    .await?;
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
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = service_manager::tell("STOPPING=1");
    tracing::info!("stopping");
    shutdown.cancel();
    server.stopped().await;
    if let Some(otlp) = otlp {
        otlp.stop().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_as_many_descriptors_as_it_may_have() {
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: most }).unwrap();
        raise_descriptor_limit();
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: most, maximum: most });
    }
}
