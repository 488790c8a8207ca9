//! Connections between processes of one host, past the kernel's TCP: the same TLS over a Unix socket, at half the processor time for each byte.
//!
//! Whoever listens on an address also listens on a socket in the abstract namespace that is named after it. Such names belong to a network
//! namespace, as addresses do: what is found under an address of this host's is meant by it. The socket proves nothing - anybody may
//! take a free name - and needn't: certificates are shown and checked as on any connection. One that doesn't lead to a
//! handshake soon isn't tried again for a while, and TCP is used.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

/// How long a handshake may take over such a socket: the processes share their processors, and nothing is lost on the way.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_millis(700);
/// A name that led nowhere is left alone for this long.
const AVOID_FOR: Duration = Duration::from_secs(60);
/// Names remembered as such, at most.
const AVOIDED_MAX: usize = 256;

/// The name, as tokio takes it: a leading zero byte means the abstract namespace.
fn name(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("\0mooseng/*:{}", address.port()),
        false => format!("\0mooseng/{address}"),
    }
}

/// Listens beside a TCP listener of that address; none where the name is taken.
pub(super) fn listen(address: SocketAddr) -> Option<UnixListener> {
    UnixListener::bind(name(address))
        .inspect_err(|error| {
            tracing::warn!(%address, %error, "the socket for processes on this host can't be made: they use TCP");
        })
        .ok()
}

/// Names that led nowhere.
#[derive(Debug, Default)]
pub(super) struct Near(Mutex<BTreeMap<SocketAddr, Instant>>);

impl Near {
    fn avoided<T>(&self, f: impl FnOnce(&mut BTreeMap<SocketAddr, Instant>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connects to whoever listens at that address on this host; none where nobody is found so.
    pub async fn connect(&self, address: SocketAddr) -> Option<UnixStream> {
        let now = Instant::now();
        if self.avoided(|avoided| avoided.get(&address).is_some_and(|until| *until > now)) {
            return None;
        }
        if let Ok(stream) = UnixStream::connect(name(address)).await {
            return Some(stream);
        }
        // All addresses of a host are one name: it must be this host's.
        let anywhere = SocketAddr::new([0, 0, 0, 0].into(), address.port());
        let ours = UdpSocket::bind((address.ip(), 0)).is_ok();
        if ours { UnixStream::connect(name(anywhere)).await.ok() } else { None }
    }

    /// It led nowhere.
    pub fn avoid(&self, address: SocketAddr) {
        let now = Instant::now();
        self.avoided(|avoided| {
            avoided.retain(|_, until| *until > now);
            if avoided.len() < AVOIDED_MAX {
                avoided.insert(address, now + AVOID_FOR);
            }
        });
    }
}
