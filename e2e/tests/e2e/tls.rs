//! Who has the wrong certificate is refused with the reason, on every port.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mooseng_certs::Authority;
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::steps::Steps;
use mooseng_transport::{CallFailure, Link, LinkOptions, TlsFiles, TlsNetwork};
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role};
use prost::Message;

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn wrong_certificates_are_refused_on_every_port() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("tls", &["--no-mount"])?;
    let runtime = tokio::runtime::Runtime::new()?;
    let ours = Authority::open(&cluster.dir().join("pki"))?;
    let scratch = cluster.scratch().join("leaves");
    let other = Authority::create(&cluster.scratch().join("other-pki"), "other")?;
    other.region("region-1")?;
    // Somebody who gives his own authority our names.
    let impostor = Authority::create(&cluster.scratch().join("impostor-pki"), "dev")?;
    impostor.region("region-1")?;
    let mut steps = Steps::default();
    for port in cluster.file()?.processes {
        let role = Role::parse(&port.role).context("role")?;
        let ask = |files: TlsFiles, expected: Role, method: Method, body: Vec<u8>| {
            runtime.block_on(call(files, &port.address, expected, method, body))
        };
        let name = &port.name;
        steps.run(&format!("{name}: a right certificate is let in"), || {
            // An answer of the service, whatever it says, means that the connection stands.
            let right = leaf(&ours, Role::Client, "right", DAY, &scratch)?;
            match ask(right, role, Method::ChunkStat, vec![]) {
                Ok(()) | Err(CallFailure::Remote(_)) => Ok(()),
                Err(e) => anyhow::bail!("{e}"),
            }
        });
        steps.run(&format!("{name}: an expired certificate"), || {
            let expired = leaf(&ours, Role::Client, "expired", Duration::ZERO, &scratch)?;
            std::thread::sleep(Duration::from_millis(1100));
            refused(ask(expired, role, Method::ChunkStat, vec![]), &["expired"])
        });
        steps.run(&format!("{name}: a certificate of another cluster"), || {
            for (authority, name) in [(&other, "foreign"), (&impostor, "impostor")] {
                let foreign = leaf(authority, Role::Client, name, DAY, &scratch)?;
                // The client, too, must not trust whom it talks to: its root is another one.
                refused(
                    ask(foreign.clone(), role, Method::ChunkStat, vec![]),
                    &["unknown", "issuer", "signature", "cluster"],
                )?;
                // And a client that believes anybody is refused by the server.
                let files = format!(
                    "-cert {} -key {} -cert_chain {}",
                    foreign.cert.display(),
                    foreign.key.display(),
                    foreign.cert.display()
                );
                let text = openssl(&port.address, &files)?;
                ensure!(text.contains("alert"), "the server lets it in:\n{text}");
                ensure!(
                    ["unknown ca", "decrypt error", "bad certificate", "access denied"]
                        .iter()
                        .any(|w| text.contains(w)),
                    "the alert doesn't say why:\n{text}"
                );
            }
            Ok(())
        });
        steps.run(&format!("{name}: no certificate at all"), || no_certificate(&cluster, &port.address));
        steps.run(&format!("{name}: a server of another role is not believed"), || {
            let right = leaf(&ours, Role::Client, "right", DAY, &scratch)?;
            let wrong = if role == Role::Master { Role::Chunkserver } else { Role::Master };
            refused(ask(right, wrong, Method::ChunkStat, vec![]), &["was expected"])
        });
        steps.run(&format!("{name}: a client of the wrong role"), || {
            let (wrong, method, body) = match role {
                // Only masters speak Raft, only clients open sessions.
                Role::Master => (
                    Role::Client,
                    Method::RaftVote,
                    mooseng_wire::raft::VoteRequest::default().encode_to_vec(),
                ),
                _ => (Role::Admin, Method::ChunkRead, mooseng_wire::chunk::Read::default().encode_to_vec()),
            };
            let files = leaf(&ours, wrong, "wrong", DAY, &scratch)?;
            refused(ask(files, role, method, body), &["role", "admin", "client", "may not", "only"])?;
            if role == Role::Master {
                let files = leaf(&ours, Role::Chunkserver, "wrong", DAY, &scratch)?;
                let body = mooseng_wire::session::OpenSession::default().encode_to_vec();
                refused(ask(files, role, Method::OpenSession, body), &["role", "chunkserver", "only"])?;
            }
            Ok(())
        });
    }
    steps.run("changing the members takes an admin", || {
        let mut command = cluster.mooseng(&["members", "remove", "3", "--config"]);
        let output = command.arg(cluster.client_config()?).output()?;
        ensure!(output.status.code() == Some(4), "{output:?}");
        Ok(())
    });
    steps.run("whom an administrator revokes is refused on every port, also after restarts", || {
        revoked_everywhere(&cluster, |address, files, role| {
            runtime.block_on(call(files, address, role, Method::ChunkStat, vec![]))
        })
    });
    steps.finish()?;
    // A refused stranger is worth a WARN: somebody may be trying.
    cluster.finish(&[super::PEERS_COME_AND_GO, &["refused"]].concat())
}

/// A certificate of a client's, revoked and taken back by an administrator: each daemon hears of it without a file.
fn revoked_everywhere(
    cluster: &DevCluster,
    ask: impl Fn(&str, TlsFiles, Role) -> Result<(), CallFailure>,
) -> Result<()> {
    let ours = Authority::open(&cluster.dir().join("pki"))?;
    let scratch = cluster.scratch().join("leaves");
    let stolen = leaf(&ours, Role::Client, "stolen", DAY, &scratch)?;
    let admin = cluster.admin_config_of("region-1")?.display().to_string();
    let cert = stolen.cert.display().to_string();
    let certs = |words: &[&str]| -> Result<serde_json::Value> {
        let output = checked(
            &mut cluster.mooseng(&[&["certs"], words, &["--config", &admin, "-o", "json"]].concat()),
        )?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let ports = cluster.file()?.processes;
    let on_every_port = |what: &str, within: Duration, right: &dyn Fn(Result<(), CallFailure>) -> bool| {
        wait_for(what, within, || {
            for port in &ports {
                let role = Role::parse(&port.role).context("role")?;
                ensure!(right(ask(&port.address, stolen.clone(), role)), "not at {}", port.name);
            }
            Ok(())
        })
    };
    let is_in = |answer: Result<(), CallFailure>| matches!(answer, Ok(()) | Err(CallFailure::Remote(_)));
    let is_out = |answer: Result<(), CallFailure>| {
        answer.is_err_and(|failure| failure.to_string().to_lowercase().contains("revoked"))
    };
    on_every_port("it is let in", Duration::from_secs(60), &is_in)?;
    let planned = certs(&["revoke", "--cert", &cert, "--plan"])?;
    ensure!(planned["revocations_version"] == 0, "a plan changed something: {planned}");
    let revoked = certs(&["revoke", "--cert", &cert, "--reason", "a test"])?;
    let began = Instant::now();
    on_every_port("it is refused", Duration::from_secs(20), &is_out)?;
    println!(
        "    refused on {} ports {:.1} s after it was revoked",
        ports.len(),
        began.elapsed().as_secs_f64()
    );
    let listed = || -> Result<serde_json::Value> {
        let listed = certs(&["revoked"])?;
        let daemons = listed["regions"].as_array().into_iter().flatten();
        let daemons: Vec<_> = daemons.filter_map(|r| r["daemons"].as_array()).flatten().collect();
        ensure!(daemons.len() == ports.len(), "{listed}");
        let newest = |d: &&serde_json::Value| d["revocations_version"] == listed["revocations_version"];
        ensure!(daemons.iter().all(newest), "{listed}");
        Ok(listed)
    };
    wait_for("all daemons to say so", Duration::from_secs(60), || listed().map(drop))?;
    let list = listed()?;
    ensure!(list["revocations_version"] == revoked["revocations_version"], "{list}");
    ensure!(list["revocations"][0]["reason"] == "a test", "{list}");
    ensure!(list["revocations"][0]["expires_unix"].is_i64(), "the file says when it ends: {list}");
    // Without a master, a chunkserver that starts refuses it still.
    let (masters, servers) = (cluster.names("master")?, cluster.names("chunkserver")?);
    for name in masters.iter().chain(&servers[..1]) {
        cluster.dev("kill", name)?;
    }
    // It waits for nobody: it serves, and nothing that it answers is of use to anyone but in being refused.
    let started = cluster.process(&servers[0])?.address;
    let _without_masters_it_is_not_ready = cluster.dev("start", &servers[0]);
    wait_for("it to refuse without a master", Duration::from_secs(60), || {
        ensure!(is_out(ask(&started, stolen.clone(), Role::Chunkserver)), "it doesn't refuse it");
        Ok(())
    })?;
    for name in &masters {
        cluster.dev("start", name)?;
    }
    let serial = list["revocations"][0]["what"].as_str().context("what")?.to_owned();
    wait_for("it to be taken back", Duration::from_secs(60), || certs(&["unrevoke", &serial]).map(drop))?;
    on_every_port("it is let in again", Duration::from_secs(60), &is_in)
}

fn leaf(authority: &Authority, role: Role, name: &str, life: Duration, dir: &Path) -> Result<TlsFiles> {
    let out: PathBuf = dir.join(format!("{role}-{name}"));
    let identity =
        Identity { cluster: authority.cluster().into(), region: "region-1".into(), role, name: name.into() };
    authority.issue(&identity, life, &out, true)?;
    Ok(TlsFiles {
        cert: out.join("cert.pem"),
        key: out.join("key.pem"),
        ca: out.join("ca.pem"),
        revocations: None,
    })
}

async fn call(
    files: TlsFiles,
    address: &str,
    role: Role,
    method: Method,
    body: Vec<u8>,
) -> Result<(), CallFailure> {
    let network = TlsNetwork::load(files).expect("the leaf that was just issued");
    let link = Link::new(Arc::new(network), address.to_owned(), role, LinkOptions::default());
    let answer = link.call(method, Bytes::from(body), Bytes::new(), Duration::from_secs(5)).await;
    link.close();
    answer.map(drop)
}

/// It must be refused, with one of these words in the reason.
fn refused(outcome: Result<(), CallFailure>, words: &[&str]) -> Result<()> {
    let Err(failure) = outcome else { anyhow::bail!("it was let in") };
    let reason = failure.to_string();
    println!("            {reason}");
    let lower = reason.to_lowercase();
    ensure!(words.iter().any(|w| lower.contains(w)), "the reason doesn't say why: {reason}");
    Ok(())
}

/// What openssl's client hears when it connects and sends a byte, in lower case.
fn openssl(address: &str, options: &str) -> Result<String> {
    let line = format!(
        "printf 'x' | timeout 10 openssl s_client -connect {address} -tls1_3 -alpn mooseng/1 {options} -ign_eof 2>&1 || true"
    );
    let output = Command::new("bash").args(["-c", &line]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).to_lowercase())
}

fn no_certificate(cluster: &DevCluster, address: &str) -> Result<()> {
    let ca = cluster.dir().join("certs/client-1/ca.pem");
    let text = openssl(address, &format!("-CAfile {}", ca.display()))?;
    ensure!(text.contains("certificate required"), "it isn't refused for want of a certificate:\n{text}");
    // And whoever doesn't even speak TLS gets nothing.
    use std::io::{Read, Write};
    let mut plain = std::net::TcpStream::connect(address)?;
    plain.set_read_timeout(Some(Duration::from_secs(10)))?;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    ensure!(!answer.starts_with(b"HTTP"), "it answers in clear");
    Ok(())
}
