//! Connections between processes of one host: the same TLS over a socket of the abstract namespace, and TCP where that leads nowhere.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mooseng_certs::Authority;
use mooseng_transport::{Connection, Network, Protocol, TlsFiles, TlsNetwork};
use mooseng_wire::{Identity, Role};
use tokio::net::UnixListener;

struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), "one").unwrap();
        authority.region("here").unwrap();
        Self { dir, authority }
    }

    fn network(&self, role: Role, name: &str) -> TlsNetwork {
        let out = self.dir.path().join(name);
        let identity = Identity { cluster: "one".into(), region: "here".into(), role, name: name.into() };
        self.authority.issue(&identity, Duration::from_secs(86_400), &out, true).unwrap();
        let file = |name: &str| out.join(name);
        let files =
            TlsFiles { cert: file("cert.pem"), key: file("key.pem"), ca: file("ca.pem"), revocations: None };
        TlsNetwork::load(files).unwrap()
    }
}

/// Where the server says that the connection comes from, and the connection.
async fn connect(server: &TlsNetwork, client: &TlsNetwork, listen: &str, dial: &str) -> (String, Connection) {
    let mut listener = server.listen(listen).await.unwrap();
    let port = listener.local_address().rsplit_once(':').unwrap().1.to_owned();
    let accepting = tokio::spawn(async move {
        let handshake = listener.accept().await.unwrap();
        let from = handshake.remote_address();
        let connection = handshake.finish().await.unwrap();
        assert_eq!(connection.peer.identity.name, "c1");
        from
    });
    let address = format!("{dial}:{port}");
    let connection = client.connect(&address, Protocol::Stream, Role::Master).await.unwrap();
    assert_eq!(connection.peer.identity.name, "m1");
    (accepting.await.unwrap(), connection)
}

#[tokio::test]
async fn processes_of_one_host_are_joined_past_tcp() {
    let cluster = Cluster::new();
    let (server, client) = (cluster.network(Role::Master, "m1"), cluster.network(Role::Client, "c1"));
    for (listen, dial) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("127.0.0.1:0", "localhost"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.9"),
    ] {
        let (from, _connection) = connect(&server, &client, listen, dial).await;
        assert_eq!(from, "this host", "{listen}, {dial}");
    }
}

#[tokio::test]
async fn somebody_who_took_the_name_gets_nothing_and_delays_one_connection() {
    let cluster = Cluster::new();
    let (server, client) = (cluster.network(Role::Master, "m1"), cluster.network(Role::Client, "c1"));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // It takes connections, and says nothing on them.
    let squatter = UnixListener::bind(format!("\0mooseng/{free}")).unwrap();
    let mut listener = server.listen(&free.to_string()).await.unwrap();
    tokio::spawn(async move {
        loop {
            let handshake = listener.accept().await.unwrap();
            assert!(handshake.remote_address().starts_with("127.0.0.1:"), "{}", handshake.remote_address());
            tokio::spawn(handshake.finish());
        }
    });
    let address = free.to_string();
    client.connect(&address, Protocol::Stream, Role::Master).await.unwrap();
    squatter.accept().await.unwrap();
    // From then on the name is left alone.
    for _ in 0..3 {
        client.connect(&address, Protocol::Stream, Role::Master).await.unwrap();
    }
    let again = tokio::time::timeout(Duration::from_millis(50), squatter.accept()).await;
    assert!(again.is_err(), "it was asked again");
}
