//! The dev cluster's own authority and everybody's leaf.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mooseng_certs::{Authority, Renewal};
use mooseng_wire::{Identity, Role};

use super::configs;
use super::plan::{ADMIN, CLIENT, CLUSTER, Plan};
use super::state::{self, Cluster};
use crate::config::TlsSection;
use crate::exit::Failure;

/// How often it is looked whether a leaf is due, or the list of revocations has changed.
const LOOK: Duration = Duration::from_secs(1);

fn authority_dir(dir: &Path) -> PathBuf {
    dir.join("pki")
}

fn leaf_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join("certs").join(name)
}

/// The certificate files of that name.
pub fn files(dir: &Path, name: &str) -> TlsSection {
    let leaf = leaf_dir(dir, name);
    TlsSection {
        cert: leaf.join("cert.pem"),
        key: leaf.join("key.pem"),
        ca: leaf.join("ca.pem"),
        revocations: Some(leaf.join("revocations.txt")),
    }
}

fn failed(error: mooseng_certs::Error) -> Failure {
    Failure::failed(format!("The cluster's certificates: {error}."))
}

/// Makes the authority if there is none, and a fresh leaf for everybody.
pub fn issue_all(cluster: &Cluster) -> Result<(), Failure> {
    let dir = &cluster.dir;
    let _alone = state::lock(dir, "certs.lock", Duration::from_secs(10))?;
    let pki = authority_dir(dir);
    configs::make_private_dir(&pki)?;
    configs::make_private_dir(&dir.join("certs"))?;
    let authority = if pki.join("authority.json").exists() {
        Authority::open(&pki)
    } else {
        Authority::create(&pki, CLUSTER)
    };
    let authority = authority.map_err(failed)?;
    let plan = &cluster.state.plan;
    for region in &plan.regions {
        authority.region(&region.name).map_err(failed)?;
    }
    for (name, identity) in identities(plan) {
        let leaf = leaf_dir(dir, &name);
        authority.issue(&identity, plan.leaf_lifetime(), &leaf, true).map_err(failed)?;
    }
    authority.distribute_revocations().map_err(failed)
}

/// Who has a certificate, each with its name within the cluster.
fn identities(plan: &Plan) -> Vec<(String, Identity)> {
    let identity = |region: &str, role: Role, own: &str| Identity {
        cluster: CLUSTER.into(),
        region: region.into(),
        role,
        name: own.into(),
    };
    let daemons = plan.daemons.iter().map(|d| (d.name.clone(), identity(&d.region, d.role, d.own_name())));
    let clients = plan.clients().into_iter().map(|c| (c.name, identity(&c.region, Role::Client, CLIENT)));
    let admins = plan.regions.iter().map(|r| (plan.admin(&r.name), identity(&r.name, Role::Admin, ADMIN)));
    daemons.chain(clients).chain(admins).collect()
}

/// Renews the leaves that are past half of their life and hands out the list of revocations. Answers when to look again.
pub fn renew_due(dir: &Path) -> Result<Duration, Failure> {
    let _alone = state::lock(dir, "certs.lock", Duration::from_secs(10))?;
    let authority = Authority::open(&authority_dir(dir)).map_err(failed)?;
    let revoked = authority.revoked().map_err(failed)?;
    for issued in authority.issued().map_err(failed)? {
        // Whoever was thrown out gets no new one; and leaves that were issued elsewhere are somebody else's.
        if !issued.out.starts_with(dir) || revoked.contains(&issued.spiffe) {
            continue;
        }
        if authority.renew_if_due(&issued.out).map_err(failed)? == Renewal::Renewed {
            eprintln!("INFO renewed {}", issued.spiffe);
        }
    }
    if !revoked.is_empty() && !is_distributed(dir, &authority) {
        authority.distribute_revocations().map_err(failed)?;
        eprintln!("INFO handed out the list of revocations");
    }
    Ok(LOOK)
}

fn is_distributed(dir: &Path, authority: &Authority) -> bool {
    let newest = std::fs::read(authority.revocations_path()).unwrap_or_default();
    let leaves =
        std::fs::read_dir(dir.join("certs")).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    leaves.iter().all(|l| std::fs::read(l.path().join("revocations.txt")).is_ok_and(|copy| copy == newest))
}
