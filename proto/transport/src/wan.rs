//! Wide-area links for `mooseng dev` and tests: delays and cuts between regions, above TLS and at the dialing side only.
//!
//! ```text
//!  Link, grpc_channel -> WanNetwork -> Delayed (another region) -> Guarded, TLS -> socket
//!                            |    \--> as it is (our region) ------^
//!                        rules: [dev] wan = "wan.toml", looked at when it changes
//! ```
//! The peer's region is known from its certificate after the handshake. Bytes written and bytes read take half a round trip each, a connection one
//! more. What is cut stalls, as if packets were dropped: no reset, and once it is mended everything arrives. It costs a copy of each byte, and
//! nothing where there is no such setting.

mod delayed;
mod rules;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mooseng_wire::admin::CredentialReport;
use mooseng_wire::level::Levels;
use mooseng_wire::revocations::Agreed;
use mooseng_wire::{Identity, Role};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::network::{ConnectError, Connection, Listener, Network, Protocol};
use delayed::Delayed;

pub use rules::{Cut, Pair, WanRules};

/// How long a connection to a region that is cut off is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses whose region is remembered, at most.
const KNOWN_MAX: usize = 1024;

/// Settings that daemons and clients have for `mooseng dev` and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevConfig {
    /// The file of delays and cuts between regions; none where it isn't given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wan: Option<PathBuf>,
    /// The network namespace that the process speaks in (a file as `ip netns add` makes it); that which it was started in where it isn't given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<PathBuf>,
}

/// The network namespace can't be entered.
#[derive(Debug, thiserror::Error)]
#[error(
    "the setting `dev.namespace` is wrong: the network namespace {} can't be entered: {source}; it takes root, and `mooseng dev up` makes it",
    path.display()
)]
pub struct NamespaceError {
    path: PathBuf,
    source: io::Error,
}

/// The rules between regions are of no use.
#[derive(Debug, thiserror::Error)]
#[error(
    "the setting `dev.wan` is wrong: {reason}; give a file of delays and cuts between regions, or leave it out"
)]
pub struct WanSetupError {
    reason: String,
}

impl DevConfig {
    /// Moves this thread into the network namespace, if one is set, and with it the threads that it starts from now on: to be called before there
    /// are any.
    pub fn enter_namespace(&self) -> Result<(), NamespaceError> {
        let Some(path) = &self.namespace else { return Ok(()) };
        let enter = || -> io::Result<()> {
            let namespace = std::fs::File::open(path)?;
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), network)?)
        };
        enter().map_err(|source| NamespaceError { path: path.clone(), source })
    }

    /// The network with what lies between regions, if anything does. Must be called within a tokio runtime.
    pub fn beyond(&self, network: Arc<dyn Network>) -> Result<Arc<dyn Network>, WanSetupError> {
        let Some(path) = self.wan.clone() else { return Ok(network) };
        let rules = rules::watch(path).map_err(|reason| WanSetupError { reason })?;
        Ok(Arc::new(WanNetwork::new(network, rules)))
    }
}

/// A network whose connections to other regions take their time.
struct WanNetwork {
    below: Arc<dyn Network>,
    rules: watch::Receiver<Arc<WanRules>>,
    /// The regions that answered at addresses: one that is cut off isn't spoken to.
    known: Mutex<BTreeMap<String, String>>,
}

impl WanNetwork {
    fn new(below: Arc<dyn Network>, rules: watch::Receiver<Arc<WanRules>>) -> Self {
        Self { below, rules, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, address: &str, region: &str) {
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(address.to_owned(), region.to_owned());
    }

    /// Waits until nothing is cut between two regions.
    async fn passable(
        &self,
        ours: &str,
        theirs: &str,
        address: &str,
        deadline: Instant,
    ) -> Result<(), ConnectError> {
        let mut rules = self.rules.clone();
        let open = rules.wait_for(|rules| !rules.is_cut(ours, theirs));
        match timeout_at(deadline, open).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ConnectError::Unreachable {
                address: address.to_owned(),
                reason: format!("no answer from region {theirs}: the rules of [dev] wan cut it off"),
            }),
        }
    }
}

#[async_trait]
impl Network for WanNetwork {
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let ours = self.identity().region;
        let known = self.known().get(address).cloned();
        if let Some(theirs) = known.filter(|theirs| *theirs != ours) {
            self.passable(&ours, &theirs, address, deadline).await?;
        }
        let connection = self.below.connect(address, protocol, role).await?;
        let theirs = connection.peer.identity.region.clone();
        self.remember(address, &theirs);
        if theirs == ours {
            return Ok(connection);
        }
        self.passable(&ours, &theirs, address, deadline).await?;
        let round_trip = self.rules.borrow().round_trip(&ours, &theirs);
        sleep(round_trip).await;
        let io = Delayed::new(connection.io, self.rules.clone(), &ours, &theirs);
        Ok(Connection { io: Box::new(io), ..connection })
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        self.below.listen(address).await
    }

    fn identity(&self) -> Identity {
        self.below.identity()
    }

    fn levels(&self) -> Levels {
        self.below.levels()
    }

    fn credentials(&self) -> Option<CredentialReport> {
        self.below.credentials()
    }

    fn refuse(&self, agreed: Agreed) -> bool {
        self.below.refuse(agreed)
    }

    fn refusing(&self) -> Option<u64> {
        self.below.refusing()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::plain::believed;

    const MS: Duration = Duration::from_millis(1);

    /// A network on which `us` answers at every address but `near`, where it is `eu`.
    #[derive(Default)]
    struct Pipes(Mutex<Vec<DuplexStream>>);

    #[async_trait]
    impl Network for Pipes {
        async fn connect(
            &self,
            address: &str,
            protocol: Protocol,
            role: Role,
        ) -> Result<Connection, ConnectError> {
            let (here, there) = duplex(1 << 20);
            self.0.lock().unwrap().push(there);
            let region = if address == "near" { "eu" } else { "us" };
            let peer = Identity { cluster: "c".into(), region: region.into(), role, name: "m".into() };
            Ok(Connection { io: Box::new(here), peer: believed(peer), protocol, retire_at: None })
        }
        async fn listen(&self, _: &str) -> io::Result<Box<dyn Listener>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn identity(&self) -> Identity {
            Identity::parse("spiffe://c/eu/client/x").unwrap()
        }
    }

    fn rules(cut: Cut) -> Arc<WanRules> {
        let mut rules = WanRules { default_round_trip_ms: 60, ..WanRules::default() };
        rules.pair_mut("eu", "us").cut = cut;
        Arc::new(rules)
    }

    fn network(cut: Cut) -> (Arc<Pipes>, WanNetwork, watch::Sender<Arc<WanRules>>) {
        let (sender, receiver) = watch::channel(rules(cut));
        let pipes = Arc::new(Pipes::default());
        (pipes.clone(), WanNetwork::new(pipes, receiver), sender)
    }

    async fn connect(network: &WanNetwork, address: &str) -> Result<Connection, ConnectError> {
        network.connect(address, Protocol::Stream, Role::Master).await
    }

    #[tokio::test(start_paused = true)]
    async fn another_region_is_as_far_as_the_rules_say_and_ours_is_not() {
        let (pipes, network, _rules) = network(Cut::None);
        let began = Instant::now();
        let mut near = connect(&network, "near").await.unwrap();
        near.io.write_all(b"x").await.unwrap();
        let mut pipe = pipes.0.lock().unwrap().remove(0);
        pipe.read_exact(&mut [0]).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        let mut far = connect(&network, "far").await.unwrap();
        assert_eq!(began.elapsed(), 60 * MS);
        let mut there = pipes.0.lock().unwrap().remove(0);
        far.io.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        there.read_exact(&mut bytes).await.unwrap();
        assert_eq!((&bytes, began.elapsed()), (b"ping", 90 * MS));
        there.write_all(b"pong").await.unwrap();
        far.io.read_exact(&mut bytes).await.unwrap();
        // Timers have steps of a millisecond.
        assert_eq!(&bytes, b"pong");
        assert!((120 * MS..=122 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
        drop(there);
        assert_eq!(far.io.read(&mut bytes).await.unwrap(), 0);
        assert!(began.elapsed() >= 150 * MS, "the end takes as long: {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_cut_off_is_unreachable_and_asked_again_once_it_is_not() {
        for cut in [Cut::Both, Cut::AToB, Cut::BToA] {
            let (pipes, network, sender) = network(cut);
            let began = Instant::now();
            for asked in [1, 1] {
                let failed = connect(&network, "far").await.err().unwrap();
                assert!(matches!(failed, ConnectError::Unreachable { .. }), "{failed}");
                // The second time it isn't even spoken to.
                assert_eq!(pipes.0.lock().unwrap().len(), asked);
            }
            assert_eq!(began.elapsed(), 2 * CONNECT_TIMEOUT);
            sender.send_replace(rules(Cut::None));
            connect(&network, "far").await.unwrap();
        }
    }

    #[test]
    fn a_namespace_that_is_not_there_is_said() {
        let config = DevConfig { namespace: Some("/nonexistent/net".into()), ..DevConfig::default() };
        let failed = config.enter_namespace().unwrap_err().to_string();
        assert!(failed.contains("`dev.namespace`") && failed.contains("/nonexistent/net"), "{failed}");
        DevConfig::default().enter_namespace().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_stalls_its_direction_only_and_nothing_is_lost() {
        let (pipes, network, sender) = network(Cut::None);
        let mut far = connect(&network, "far").await.unwrap();
        let mut there = pipes.0.lock().unwrap().remove(0);
        let (second, mut byte) = (Duration::from_secs(1), [0]);
        for (cut, arrives_there, arrives_here) in
            [(Cut::AToB, false, true), (Cut::BToA, true, false), (Cut::Both, false, false)]
        {
            sender.send_replace(rules(cut));
            far.io.write_all(b"a").await.unwrap();
            there.write_all(b"b").await.unwrap();
            let outward = tokio::time::timeout(second, there.read_exact(&mut byte)).await;
            assert_eq!(outward.is_ok(), arrives_there, "{cut:?}");
            let inward = tokio::time::timeout(second, far.io.read_exact(&mut byte)).await;
            assert_eq!(inward.is_ok(), arrives_here, "{cut:?}");
            sender.send_replace(rules(Cut::None));
            if !arrives_there {
                there.read_exact(&mut byte).await.unwrap();
            }
            if !arrives_here {
                far.io.read_exact(&mut byte).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn rules_that_can_not_be_read_are_refused_in_a_sentence() {
        let config = DevConfig { wan: Some("/nonexistent/wan.toml".into()), ..DevConfig::default() };
        let error = config.beyond(Arc::new(Pipes::default())).err().unwrap().to_string();
        assert!(error.contains("`dev.wan`") && error.contains("/nonexistent/wan.toml"), "{error}");
        assert!(DevConfig::default().beyond(Arc::new(Pipes::default())).is_ok());
    }
}
