//! `mooseng dev down`: unmount, ask everything to end, insist.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::namespaces;
use super::state::Cluster;
use crate::exit::Failure;
use crate::process::Started;
use crate::{mount, runtime};

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Stops a cluster; `purge` removes its directory.
pub fn run(dir: &Path, purge: bool) -> Result<(), Failure> {
    let mut cluster = Cluster::open(dir)?;
    cluster.state.up = false;
    for record in cluster.mounts() {
        unmount(&record);
    }
    let names = cluster.names();
    stop(&mut cluster, &names);
    cluster.reconcile();
    cluster.state.clients_http.clear();
    cluster.save()?;
    let left: Vec<&String> = cluster.state.running.keys().collect();
    if !left.is_empty() {
        return Err(Failure::failed(format!("These processes don't end even by SIGKILL: {left:?}.")));
    }
    namespaces::remove(&cluster.state.plan);
    if purge || cluster.state.plan.temporary {
        remove(&cluster)?;
    }
    Ok(())
}

fn remove(cluster: &Cluster) -> Result<(), Failure> {
    let dir = &cluster.dir;
    // Whatever lies on a mounted filesystem isn't ours to remove.
    let mounted = cluster.state.plan.clients().into_iter().filter_map(|c| c.mount);
    if let Some(path) = mounted.into_iter().find(|path| runtime::is_mounted(path)) {
        return Err(Failure::failed(format!(
            "{} is still mounted: {} stays.",
            path.display(),
            dir.display()
        )));
    }
    std::fs::remove_dir_all(dir)
        .map_err(|e| Failure::failed(format!("{} can't be removed: {e}.", dir.display())))
}

/// Ends a mount: politely first; one that is in use or doesn't answer is taken off the tree.
fn unmount(record: &runtime::MountRecord) {
    resume(record.process);
    let _ = record.process.signal(Signal::TERM);
    if !record.process.wait_gone(GRACE) {
        eprintln!(
            "The mount on {} is in use: it is detached, and ends with the cluster.",
            record.path.display()
        );
        let _ = mount::detach(&record.path);
        let _ = record.process.signal(Signal::KILL);
        record.process.wait_gone(GRACE);
    }
    if runtime::is_mounted(&record.path) {
        let _ = mount::detach(&record.path);
    }
    runtime::remove(&record.path, record.process);
}

/// Ends the processes of these names, all at once: SIGTERM, and SIGKILL for those that don't listen.
pub fn stop(cluster: &mut Cluster, names: &[String]) {
    let victims: Vec<(String, Started)> =
        names.iter().filter_map(|n| cluster.state.running.get(n).map(|p| (n.clone(), *p))).collect();
    for (_, process) in &victims {
        let _ = process.signal(Signal::TERM);
        resume(*process);
    }
    for (name, process) in victims {
        if !process.wait_gone(GRACE) {
            let _ = process.signal(Signal::KILL);
            process.wait_gone(GRACE);
        }
        if !process.is_alive() {
            cluster.state.running.remove(&name);
        }
    }
    for path in names.iter().filter_map(|name| cluster.mount_of(name)) {
        if runtime::is_mounted(&path) {
            let _ = mount::detach(&path);
        }
    }
}

/// A paused process can't end before it goes on.
fn resume(process: Started) {
    let _ = process.signal(Signal::CONT);
}
