//! [`Peers`] over the transport's reconnecting links.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_transport::{CallFailure, ConnectError, Link, LinkOptions, Network};
use mooseng_wire::Role;
use mooseng_wire::method::Method;
use mooseng_wire::revocations::Agreed;
use tokio::sync::broadcast;

use crate::peers::{Answered, Failure, Peers, Unconnected};

/// Connections kept at most; the least recently used one is closed for another, a master's last: what a master sends by itself comes over it, and is waited
/// for however seldom it is called.
const LINKS_MAX: usize = 256;

/// [`Peers`] over reconnecting links.
pub struct LinkPeers {
    network: Arc<dyn Network>,
    shares_memory: bool,
    links_max: usize,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    tick: u64,
    by_address: BTreeMap<(Role, String), (u64, Link)>,
}

impl Links {
    /// The one that is given up for another.
    fn oldest(&self) -> Option<(Role, String)> {
        let worth = |((role, _), (used, _)): &(&(Role, String), &(u64, Link))| (*role == Role::Master, *used);
        self.by_address.iter().min_by_key(worth).map(|(key, _)| key.clone())
    }
}

impl LinkPeers {
    /// Calls through `network`. With `shares_memory` what is written to chunkservers on this host goes through memory that they share.
    pub fn new(network: Arc<dyn Network>, shares_memory: bool) -> Self {
        Self { network, shares_memory, links_max: LINKS_MAX, links: Mutex::default() }
    }

    fn link(&self, role: Role, address: &str) -> Link {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.tick += 1;
        let tick = links.tick;
        let key = (role, address.to_owned());
        if let Some((used, link)) = links.by_address.get_mut(&key) {
            *used = tick;
            return link.clone();
        }
        if links.by_address.len() >= self.links_max
            && let Some(oldest) = links.oldest()
            && let Some((_, link)) = links.by_address.remove(&oldest)
        {
            link.close();
        }
        let shares_memory = self.shares_memory && role == Role::Chunkserver;
        let options = LinkOptions { shares_memory, ..LinkOptions::default() };
        let link = Link::new(self.network.clone(), address.to_owned(), role, options);
        links.by_address.insert(key, (tick, link.clone()));
        link
    }
}

impl Drop for LinkPeers {
    fn drop(&mut self) {
        for (_, link) in self.links.lock().unwrap_or_else(PoisonError::into_inner).by_address.values() {
            link.close();
        }
    }
}

#[async_trait]
impl Peers for LinkPeers {
    fn refuse(&self, agreed: Agreed) {
        self.network.refuse(agreed);
    }

    fn refusing(&self) -> Option<u64> {
        self.network.refusing()
    }

    async fn call(
        &self,
        role: Role,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Failure> {
        let answer = self.link(role, address).call(method, body, bulk, timeout).await;
        match answer {
            Ok(answer) => Ok(Answered { body: answer.body, bulk: answer.bulk }),
            Err(CallFailure::Connect(error)) => Err(Failure::NotSent(unconnected(&error))),
            Err(CallFailure::Lost(_)) => Err(Failure::Lost),
            Err(CallFailure::Timeout(_)) => Err(Failure::Timeout),
            Err(CallFailure::Remote(error)) => Err(Failure::Refused(error)),
        }
    }

    fn notices(&self, role: Role, address: &str) -> Option<broadcast::Receiver<(Method, Bytes)>> {
        Some(self.link(role, address).notices())
    }

    fn apart(&self) -> Option<Arc<dyn Peers>> {
        Some(Arc::new(Self::new(self.network.clone(), self.shares_memory)))
    }
}

fn unconnected(error: &ConnectError) -> Unconnected {
    match error {
        ConnectError::Certificate { .. } => Unconnected::Certificate(error.to_string()),
        ConnectError::Unreachable { .. }
        | ConnectError::Refused { .. }
        | ConnectError::Crowded { .. }
        | ConnectError::Timeout { .. } => Unconnected::Passing(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_transport::{
        Answer, ConnectionHandle, Incoming, Limits, PlainNetwork, Service, Services, serve,
    };
    use mooseng_wire::Identity;
    use mooseng_wire::call::CallError;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::session::Notices;

    const WAIT: Duration = Duration::from_secs(10);

    fn network(role: Role) -> PlainNetwork {
        let (cluster, region, name) = ("test".into(), "here".into(), "one".into());
        PlainNetwork::new(Identity { cluster, region, role, name })
    }

    fn with_room_for_two() -> LinkPeers {
        let mut peers = LinkPeers::new(Arc::new(network(Role::Client)), false);
        peers.links_max = 2;
        peers
    }

    /// A master that answers everything, and knows over which connection it was called last.
    #[derive(Clone, Default)]
    struct Called(Arc<Mutex<Option<ConnectionHandle>>>);

    #[async_trait]
    impl Service for Called {
        async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
            *self.0.lock().unwrap() = Some(incoming.connection);
            Ok(Answer::default())
        }
    }

    async fn start() -> (Called, String, CancellationToken) {
        let listener = network(Role::Master).listen("127.0.0.1:0").await.unwrap();
        let (called, address, shutdown) =
            (Called::default(), listener.local_address(), CancellationToken::new());
        let services = Services { stream: Arc::new(called.clone()), grpc: None, allow: |_, _| Ok(()) };
        tokio::spawn(serve(listener, services, Limits::default(), shutdown.clone()));
        (called, address, shutdown)
    }

    /// A client renews its lease, calls others of that role until there is no room for more links, renews again: what the master sends then it must hear.
    async fn hears_after_calls_of(others: Role) {
        let (called, master, _shutdown) = start().await;
        let peers = with_room_for_two();
        let call = |role, address: String| {
            let peers = &peers;
            async move { peers.call(role, &address, Method::Renew, Bytes::new(), Bytes::new(), WAIT).await }
        };
        let mut notices = Notices::of(&peers, Some(&master));
        call(Role::Master, master.clone()).await.unwrap();
        for port in [1, 2] {
            assert!(call(others, format!("127.0.0.1:{port}")).await.is_err(), "nobody listens there");
        }
        let hears = async {
            loop {
                if let Some(notice) = notices.next().await {
                    return notice;
                }
            }
        };
        let recalls = async {
            // Repeated until it is answered, as a recall is.
            loop {
                call(Role::Master, master.clone()).await.unwrap();
                let connection = called.0.lock().unwrap().clone().unwrap();
                connection.notify(Method::Notice, Bytes::from_static(b"recall")).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let heard = timeout(WAIT, async {
            tokio::select! {
                heard = hears => heard,
                () = recalls => unreachable!("it repeats for ever"),
            }
        });
        assert_eq!(heard.await.unwrap(), (Method::Notice, Bytes::from_static(b"recall")));
    }

    #[tokio::test]
    async fn recalls_are_heard_however_many_chunkservers_are_called() {
        hears_after_calls_of(Role::Chunkserver).await;
    }

    #[tokio::test]
    async fn recalls_are_heard_after_the_link_was_given_up() {
        hears_after_calls_of(Role::Master).await;
    }

    #[test]
    fn a_refusal_for_certificates_keeps_its_kind_and_its_words() {
        let address = "m1:1".to_owned();
        let reason = "the peer refused us: our certificate is revoked".to_owned();
        let for_certificates = ConnectError::Certificate { address: address.clone(), reason: reason.clone() };
        let refused = ConnectError::Refused { address, reason };
        let words = "the connection to m1:1 was refused: the peer refused us: our certificate is revoked";
        assert_eq!(unconnected(&for_certificates), Unconnected::Certificate(words.into()));
        assert_eq!(unconnected(&refused), Unconnected::Passing(words.into()));
        let failure = Failure::NotSent(unconnected(&refused));
        assert_eq!(failure.to_string(), format!("can't connect: {words}"));
    }

    #[test]
    fn a_masters_link_is_given_up_last() {
        let peers = with_room_for_two();
        let has = |role, address: &str| {
            peers.links.lock().unwrap().by_address.contains_key(&(role, address.to_owned()))
        };
        for (role, address) in [(Role::Master, "m"), (Role::Chunkserver, "a"), (Role::Chunkserver, "b")] {
            peers.link(role, address);
        }
        assert!(has(Role::Master, "m") && has(Role::Chunkserver, "b") && !has(Role::Chunkserver, "a"));
        peers.link(Role::Master, "n");
        peers.link(Role::Master, "o");
        assert!(has(Role::Master, "n") && has(Role::Master, "o") && !has(Role::Master, "m"));
    }
}
