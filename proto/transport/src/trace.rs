//! The trace context of a call, and spans: see `mooseng_trace`.

pub use mooseng_trace::*;
