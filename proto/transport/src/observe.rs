//! Seeing a daemon: logs, metrics, and whether it lives and is ready.

use std::fs::OpenOptions;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Where and how a daemon logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// JSON or text.
    pub format: LogFormat,
    /// A file; without it standard error.
    pub file: Option<PathBuf>,
    /// A filter such as `info` or `mooseng_raft=debug,info`.
    pub filter: Option<String>,
}

/// Starts logging. Call it once, first.
pub fn init_logging(config: &LogConfig) -> io::Result<()> {
    let filter = config.filter.as_deref().unwrap_or("info,openraft=warn");
    let filter = EnvFilter::try_new(filter)
        .map_err(|e| io::Error::other(format!("the log filter {filter:?} is malformed: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(true);
    let done = match &config.file {
        None => match config.format {
            LogFormat::Json => builder.json().with_writer(io::stderr).try_init(),
            LogFormat::Text => builder.with_ansi(false).with_writer(io::stderr).try_init(),
        },
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|e| {
                io::Error::new(e.kind(), format!("the log file {} can't be opened: {e}", path.display()))
            })?;
            let file = Arc::new(file);
            match config.format {
                LogFormat::Json => builder.json().with_writer(file).try_init(),
                LogFormat::Text => builder.with_ansi(false).with_writer(file).try_init(),
            }
        }
    };
    done.map_err(|e| io::Error::other(format!("logging can't be started: {e}")))
}

/// A daemon's metrics.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// Registers metrics.
    pub fn register(&self, f: impl FnOnce(&mut Registry)) {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(error) => format!("# the metrics can't be written: {error}\n# EOF\n"),
        }
    }
}

/// Tells whether the daemon is ready, with the reason if not.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves /metrics, /healthz and /readyz on a loopback address, until `shutdown`. Returns the address once it listens.
pub async fn serve_http(
    address: &str,
    metrics: Metrics,
    ready: Ready,
    shutdown: CancellationToken,
) -> io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    if !local.ip().is_loopback() {
        return Err(io::Error::other(format!(
            "http_listen = {address:?} isn't a loopback address: metrics and health are spoken in clear and stay on this machine"
        )));
    }
    let content_type = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { (content_type, metrics.encode()) }))
        .route(
            "/readyz",
            get(move || async move {
                match ready() {
                    Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                    Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                }
            }),
        );
    tokio::spawn(async move {
        if let Err(error) =
            axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
        {
            tracing::error!(%error, "the metrics and health endpoint ended");
        }
    });
    Ok(local)
}
