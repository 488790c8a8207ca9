//! Traces: the context that travels with every call, and the spans that are recorded where it says so.
//!
//! ```text
//!  operation (FUSE) --context--> call --CallMeta, traceparent--> server --context--> call ... ;  Span, ended --> Recorder --> mooseng-otlp
//! ```
//! - [`context`]: W3C trace contexts, in a task's scope. Every operation has one: its trace id stands in logs.
//! - [`Span`]: a stretch of a trace. There is one only where the trace is sampled *and* this process records ([`start`]); everywhere else it is
//!   `None` inside, and costs a look at a flag.
//! - [`recorder`]: the bounded queue of ended spans. What finds it full is counted and forgotten: nobody waits for it.
//!
//! Nothing here knows how spans leave the process.

pub mod context;
pub mod recorder;
mod span;

pub use context::{
    TRACE, TRACE_BYTES, begun, carried, current, fresh, from_header, id, is_sampled, requested, to_header,
};
pub use recorder::{AlreadyStarted, Lost, start};
pub use span::{Ended, Kind, Link, Span, Value, client, internal, operation, server, within};
