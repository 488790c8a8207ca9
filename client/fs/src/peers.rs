//! The port to other daemons: one call to one address. [`crate::links`] is it over the transport; tests have others.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_wire::Role;
use mooseng_wire::call::CallError;
use mooseng_wire::method::Method;
use mooseng_wire::revocations::Agreed;
use tokio::sync::broadcast;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The request never left.
    #[error("can't connect: {0}")]
    NotSent(Unconnected),
    /// It may have been received.
    #[error("the connection was lost")]
    Lost,
    /// It may have been received.
    #[error("no answer in time")]
    Timeout,
    /// The peer answered with an error.
    #[error("{}: {}", .0.code().as_str_name(), .0.message)]
    Refused(CallError),
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unconnected {
    /// The peer doesn't take this host's certificate, or its own is another cluster's: with these two it is so however often it is tried.
    #[error("{0}")]
    Certificate(String),
    /// Anything else: it may be otherwise soon.
    #[error("{0}")]
    Passing(String),
}

/// An answer's message and the bytes beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// The encoded message.
    pub body: Bytes,
    /// The bytes beside it.
    pub bulk: Bytes,
}

/// Calls other daemons.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Calls the daemon of that role at that address. Calls to one address on one lane arrive in the order in which they were started.
    async fn call(
        &self,
        role: Role,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Failure>;

    /// What the daemon at that address sends by itself, from now on; none where nothing can come.
    fn notices(&self, _role: Role, _address: &str) -> Option<broadcast::Receiver<(Method, Bytes)>> {
        None
    }

    /// Takes up whom the cluster refuses, where it is newer than what was taken up before.
    fn refuse(&self, _agreed: Agreed) {}

    /// The version of that, 0 for nothing yet; none where nothing is taken up.
    fn refusing(&self) -> Option<u64> {
        None
    }

    /// The same over connections of its own, for calls that mustn't wait behind these; none where calls don't keep each other waiting.
    fn apart(&self) -> Option<Arc<dyn Peers>> {
        None
    }
}
