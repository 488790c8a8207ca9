//! What a daemon knows of itself, to an OpenTelemetry collector: spans and metrics, by OTLP over gRPC.
//!
//! ```text
//!  Span (mooseng-trace) --bounded queue--> spans::run --TraceService/Export-->  collector
//!  Metrics (observe)    --OpenMetrics text, now and then--> metrics::run --MetricsService/Export--> collector
//! ```
//! - [`OtlpConfig`]: the table `[otlp]` of all three daemons. Without it nothing here runs, and no span is made.
//! - [`Otlp`]: what runs, until [`Otlp::stop`].
//! - [`openmetrics`]: what `/metrics` shows, as OTLP's messages: the same names and figures, from the same text.
//! - [`collector`]: one for tests, behind the feature of that name.
//!
//! No operation waits for a collector. One that is slow or gone costs spans, which are counted.

#[cfg(feature = "collector")]
pub mod collector;
mod config;
mod export;
mod health;
pub mod openmetrics;
mod spans;

pub use config::{OtlpConfig, Wrong};
pub use export::{Otlp, StartError, Who};
