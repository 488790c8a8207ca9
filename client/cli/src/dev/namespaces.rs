//! A network namespace for each region (`mooseng dev up --isolate`).
//!
//! ```text
//!  TAG-region-1: eth0 10.213.0.1 --\
//!  TAG-region-2: eth0 10.213.0.2 ---+-- bridge, in TAG-hub
//!  TAG-witness:  eth0 10.213.0.3 --/
//! ```
//! A region's daemons and mount speak in its own: their configurations name it (`dev.namespace`), and so does that of its administrator, by which
//! `mooseng` finds them from outside. Nothing leads out of them, so the machine's own network isn't touched, and each cluster may have the same addresses. Health
//! and metrics are on the loopback of each namespace. Whoever wants to see or break what regions say to each other enters one: `ip netns exec TAG-region-1 ...`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use mooseng_transport::wan::DevConfig;

use super::plan::{Plan, Region};
use super::state::Cluster;
use crate::exit::Failure;
use crate::output;

/// Where iproute2 keeps the namespaces that have names.
const NAMED: &str = "/run/netns";
/// A region's one interface.
const DEVICE: &str = "eth0";

/// What the names of a cluster's namespaces begin with: no other directory's do.
pub fn tag(dir: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    format!("mooseng-{:08x}", hasher.finish() as u32)
}

/// A region's address in its namespace.
pub fn address(region: &Region) -> String {
    format!("10.213.0.{}", region.number)
}

/// A region's namespace.
pub fn path(tag: &str, region: &str) -> PathBuf {
    Path::new(NAMED).join(format!("{tag}-{region}"))
}

/// Makes a cluster's namespaces, if it has some and they aren't there.
pub fn make(cluster: &Cluster) -> Result<(), Failure> {
    let plan = &cluster.state.plan;
    let Some(tag) = &plan.namespaces else { return Ok(()) };
    let missing = all(plan, tag).into_iter().find(|name| !Path::new(NAMED).join(name).exists());
    let Some(missing) = missing else { return Ok(()) };
    if !cluster.state.running.is_empty() {
        return Err(Failure::failed(format!(
            "The network namespace {missing} is gone while processes of the cluster run: stop them first, by `mooseng dev down --dir {}`.",
            output::shell_quote(&cluster.dir)
        )));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::usage("--isolate makes network namespaces, which takes root."));
    }
    remove(plan);
    build(plan, tag).inspect_err(|_| remove(plan))
}

/// Takes them away. Whatever still speaks in one keeps it until it ends.
pub fn remove(plan: &Plan) {
    let Some(tag) = &plan.namespaces else { return };
    for name in all(plan, tag) {
        if Path::new(NAMED).join(&name).exists()
            && let Err(failure) = ip(&["netns", "del", &name])
        {
            eprintln!("{failure}");
        }
    }
}

/// Does something in a namespace, on a thread of its own; right here where there is none.
pub fn within<T: Send>(
    namespace: Option<PathBuf>,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    if namespace.is_none() {
        return work();
    }
    let config = DevConfig { namespace, ..DevConfig::default() };
    let inside = || {
        config.enter_namespace().map_err(|e| Failure::failed(format!("{e}.")))?;
        work()
    };
    std::thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn hub(tag: &str) -> String {
    format!("{tag}-hub")
}

fn all(plan: &Plan, tag: &str) -> Vec<String> {
    let of_regions = plan.regions.iter().map(|region| format!("{tag}-{}", region.name));
    of_regions.chain([hub(tag)]).collect()
}

fn build(plan: &Plan, tag: &str) -> Result<(), Failure> {
    let hub = hub(tag);
    ip(&["netns", "add", &hub])?;
    ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
    ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
    for region in &plan.regions {
        let (own, port) = (format!("{tag}-{}", region.name), format!("port{}", region.number));
        ip(&["netns", "add", &own])?;
        ip(&["link", "add", &port, "netns", &hub, "type", "veth", "peer", "name", DEVICE, "netns", &own])?;
        ip(&["-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
        ip(&["-n", &own, "addr", "add", &format!("{}/24", address(region)), "dev", DEVICE])?;
        ip(&["-n", &own, "link", "set", DEVICE, "up"])?;
        ip(&["-n", &own, "link", "set", "lo", "up"])?;
    }
    Ok(())
}

fn ip(words: &[&str]) -> Result<(), Failure> {
    let command = format!("ip {}", words.join(" "));
    let output = Command::new("ip").args(words).output().map_err(|e| {
        Failure::failed(format!("`{command}` couldn't be started: {e}. It is in the package iproute2."))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::failed(format!("The regions' network namespaces: `{command}` failed: {why}.")))
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::up;
    use super::*;
    use crate::args::DevUp;

    #[test]
    fn clusters_have_names_of_their_own_and_what_is_gone_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let args = DevUp { regions: Some(2), isolate: true, ..up() };
        let plan = Plan::new(&args, dir.path()).unwrap();
        let tag = plan.namespaces.clone().unwrap();
        assert_ne!(tag, super::tag(&dir.path().join("other")));
        assert_eq!(all(&plan, &tag).len(), 4);
        let of = plan.namespace_of("region-2").unwrap();
        assert_eq!(of, Path::new(NAMED).join(format!("{tag}-region-2")));
        let hosts: Vec<&str> = plan.masters_of("witness").map(|d| d.host.as_str()).collect();
        assert_eq!(hosts, ["10.213.0.3"]);
        let failure = within(Some(of), || Ok(())).unwrap_err().to_string();
        assert!(failure.contains("can't be entered"), "{failure}");
        assert_eq!(within(None, || Ok(7)).unwrap(), 7);
    }
}
