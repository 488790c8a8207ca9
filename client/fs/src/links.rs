//! [`Peers`] over the transport's reconnecting links.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_transport::{CallFailure, Link, LinkOptions, Network};
use mooseng_wire::Role;
use mooseng_wire::method::Method;
use mooseng_wire::revocations::Agreed;
use tokio::sync::broadcast;

use crate::peers::{Answered, Failure, Peers};

/// Connections kept at most; the least recently used one is closed for another.
const LINKS_MAX: usize = 256;

/// [`Peers`] over reconnecting links.
pub struct LinkPeers {
    network: Arc<dyn Network>,
    shares_memory: bool,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    tick: u64,
    by_address: BTreeMap<(Role, String), (u64, Link)>,
}

impl LinkPeers {
    /// Calls through `network`. With `shares_memory` what is written to chunkservers on this host goes through memory that they share.
    pub fn new(network: Arc<dyn Network>, shares_memory: bool) -> Self {
        Self { network, shares_memory, links: Mutex::default() }
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
        if links.by_address.len() >= LINKS_MAX
            && let Some(oldest) =
                links.by_address.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone())
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
            Err(CallFailure::Connect(error)) => Err(Failure::NotSent(error.to_string())),
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
