//! Certificates and revocation lists: this master's own, the other masters' as they tell it, the chunkservers' as their heartbeats do.
//!
//! What a daemon told last is kept when it falls silent: whoever is refused because its certificate has ended can't say so any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use mooseng_region::findings::CredentialFacts;
use mooseng_region::registry::Credentials;
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::{Network, grpc_channel, grpc_request};
use mooseng_wire::admin::{CredentialReport, CredentialsRequest};
use mooseng_wire::{Identity, Role};
use tonic::transport::Channel;

use crate::master::Master;

/// How often the other masters are asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What the other masters told last, by id.
#[derive(Debug, Default)]
pub struct Told(Mutex<BTreeMap<u64, CredentialReport>>);

impl Told {
    fn of(&self, id: u64) -> Option<CredentialReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn take(&self, told: impl Iterator<Item = (u64, CredentialReport)>, members: &[u64]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(told);
        all.retain(|id, _| members.contains(id));
    }
}

/// What is known of a master's credentials: our own now, another's as it told last.
pub fn of_master(master: &Master, id: u64) -> Option<CredentialReport> {
    if id == master.config.id { master.network.credentials() } else { master.told.of(id) }
}

/// A chunkserver's, out of its heartbeat.
pub fn of_heartbeat(report: CredentialReport) -> Credentials {
    Credentials {
        not_before_unix: report.not_before_unix,
        not_after_unix: report.not_after_unix,
        revocations_digest: report.revocations_digest,
        revocations: report.revocations,
        revocations_configured: report.revocations_configured,
        agreed_version: report.agreed_version,
        agreed_revocations: report.agreed_revocations,
    }
}

/// And back, for status.
pub fn report(credentials: &Credentials) -> CredentialReport {
    CredentialReport {
        not_before_unix: credentials.not_before_unix,
        not_after_unix: credentials.not_after_unix,
        revocations_digest: credentials.revocations_digest.clone(),
        revocations: credentials.revocations,
        revocations_configured: credentials.revocations_configured,
        agreed_version: credentials.agreed_version,
        agreed_revocations: credentials.agreed_revocations,
    }
}

/// Facts about a daemon of this region.
pub fn facts(master: &Master, role: Role, name: &str, credentials: Credentials) -> CredentialFacts {
    let now = master.clock.unix_ns() / 1_000_000_000;
    let (cluster, region) = (master.identity.cluster.clone(), master.identity.region.clone());
    CredentialFacts {
        identity: Identity { cluster, region, role, name: name.to_owned() }.to_string(),
        seconds_left: credentials.not_after_unix.saturating_sub(now),
        lifetime_s: credentials.not_after_unix.saturating_sub(credentials.not_before_unix),
        revocations_digest: credentials.revocations_digest,
        revocations: credentials.revocations,
        agreed_version: credentials.agreed_version,
    }
}

/// Asks the other masters now and then. Networks without certificates have nothing to ask about.
pub async fn ask(master: Arc<Master>) {
    if master.network.credentials().is_none() {
        return;
    }
    let mut channels: BTreeMap<String, AdministrationClient<Channel>> = BTreeMap::new();
    loop {
        let members = master.raft.status().members;
        let addresses: Vec<&String> = members.iter().map(|m| &m.node.address).collect();
        channels.retain(|address, _| addresses.contains(&address));
        let mut asked = Vec::new();
        for member in members.iter().filter(|m| m.id != master.config.id) {
            let address = &member.node.address;
            let client = match channels.get(address) {
                Some(client) => client.clone(),
                None => {
                    let client = connect(master.network.clone(), address).await;
                    channels.insert(address.clone(), client.clone());
                    client
                }
            };
            asked.push(one(member.id, client));
        }
        let told = join_all(asked).await.into_iter().flatten();
        master.told.take(told, &members.iter().map(|m| m.id).collect::<Vec<_>>());
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = master.shutdown.cancelled() => return,
        }
    }
}

async fn connect(network: Arc<dyn Network>, address: &str) -> AdministrationClient<Channel> {
    AdministrationClient::new(grpc_channel(network, address, Role::Master).await)
}

async fn one(id: u64, mut client: AdministrationClient<Channel>) -> Option<(u64, CredentialReport)> {
    let call = client.credentials(grpc_request(CredentialsRequest {}, ANSWER_WITHIN));
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(answer)) => Some((id, answer.into_inner())),
        // That it is away is said by MASTER_DOWN.
        Ok(Err(_)) | Err(_) => None,
    }
}
