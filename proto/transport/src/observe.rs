//! Seeing a daemon: logs, metrics, and whether it lives and is ready.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, registry::LookupSpan};

pub use crate::health::{Ready, serve_http};

/// What is logged where the configuration doesn't say. openraft tells of each attempt to reach a peer, ten in a second in several lines each; `mooseng_raft` says
/// once that one isn't reached, and why Raft has stopped where it has.
const FILTER: &str = "info,openraft=error,openraft::replication=off,openraft::engine::handler::replication_handler=off,openraft::core::raft_core=off";

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

impl LogConfig {
    fn env_filter(&self) -> io::Result<EnvFilter> {
        let filter = self.filter.as_deref().unwrap_or(FILTER);
        EnvFilter::try_new(filter)
            .map_err(|e| io::Error::other(format!("the log filter {filter:?} is malformed: {e}")))
    }

    /// Refuses a filter that [`init_logging`] would refuse. The file isn't touched: whoever checks a configuration may be another user than the daemon's.
    pub fn check(&self) -> io::Result<()> {
        self.env_filter().map(drop)
    }
}

/// Starts logging. Call it once, first.
pub fn init_logging(config: &LogConfig) -> io::Result<()> {
    let filter = config.env_filter()?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(true);
    let done = match &config.file {
        None => match config.format {
            LogFormat::Json => builder.json().with_writer(io::stderr).finish().with(NobodyWaits).try_init(),
            LogFormat::Text => {
                builder.with_ansi(false).with_writer(io::stderr).finish().with(NobodyWaits).try_init()
            }
        },
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|e| {
                io::Error::new(e.kind(), format!("the log file {} can't be opened: {e}", path.display()))
            })?;
            let file = Arc::new(file);
            match config.format {
                LogFormat::Json => builder.json().with_writer(file).finish().with(NobodyWaits).try_init(),
                LogFormat::Text => {
                    builder.with_ansi(false).with_writer(file).finish().with(NobodyWaits).try_init()
                }
            }
        }
    };
    done.map_err(|e| io::Error::other(format!("logging can't be started: {e}")))
}

/// Leaves out what fuser calls an error and isn't: an answer to the kernel that nobody waits for any more. It answers each FUSE_INTERRUPT with ENOSYS on
/// whichever descriptor it read it, and the kernel looks for the request on that one only.
struct NobodyWaits;

impl<S: Subscriber + for<'l> LookupSpan<'l>> Layer<S> for NobodyWaits {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        // The target of everything that comes from the crate `log`.
        if event.metadata().target() != "log" {
            return true;
        }
        let mut found = Found::default();
        event.record(&mut found);
        !(found.replies && found.unknown)
    }
}

#[derive(Default)]
struct Found {
    replies: bool,
    unknown: bool,
}

impl Visit for Found {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.replies |= field.name() == "log.target" && value == "fuser::reply";
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.unknown |= field.name() == "message" && format!("{value:?}").ends_with("(os error 2)");
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Found by review: 127 kB in 20 s while one of three masters was dead.
    #[test]
    fn openrafts_repeats_are_left_out_and_ours_and_its_errors_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(std::fs::File::create(&path).unwrap());
        let filter = LogConfig::default().env_filter().unwrap();
        let subscriber = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(file).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "openraft::replication", "RPCError");
            tracing::warn!(target: "openraft::engine::handler::replication_handler", "update progress error");
            tracing::error!(target: "openraft::core::raft_core", "while requesting vote");
            tracing::warn!(target: "openraft::engine::handler::establish_handler", "repeated");
            tracing::error!(target: "openraft::storage::callback", "kept: LogFlush error");
            tracing::info!(target: "mooseng_raft::leading", "kept: leads");
        });
        let log = std::fs::read_to_string(&path).unwrap();
        assert_eq!((log.lines().count(), log.matches("kept: ").count()), (2, 2), "{log}");
        let wrong = LogConfig { filter: Some("mooseng=loud".into()), ..LogConfig::default() };
        assert!(wrong.check().unwrap_err().to_string().contains("mooseng=loud"));
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_no_error_and_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(std::fs::File::create(&path).unwrap());
        let subscriber = tracing_subscriber::fmt().json().with_writer(file).finish().with(NobodyWaits);
        tracing::subscriber::with_default(subscriber, || {
            let said = |target: &str, error: &str| {
                tracing::event!(target: "log", tracing::Level::ERROR, log.target = target, "Failed to send FUSE reply: {error}");
            };
            said("fuser::reply", "No such file or directory (os error 2)");
            said("fuser::reply", "Invalid argument (os error 22)");
            said("other", "No such file or directory (os error 2)");
            tracing::error!("ours (os error 2)");
        });
        let log = std::fs::read_to_string(&path).unwrap();
        assert_eq!(log.lines().count(), 3, "{log}");
        assert!(log.contains("Invalid argument") && log.contains("other") && log.contains("ours"));
    }
}
