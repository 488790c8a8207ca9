//! `mooseng dev up`.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mooseng_ports::interrupt;
use mooseng_wire::Role;

use super::plan::{Plan, REGION};
use super::state::{self, Cluster};
use super::{certs, configs, down, launch, namespaces, root, supervise, wan};
use crate::args::DevUp;
use crate::exit::Failure;
use crate::output::{self, Table, shell_quote};
use crate::runtime;

/// Makes or starts a cluster, waits until it serves, and says what runs where.
pub fn run(args: &DevUp) -> Result<(), Failure> {
    interrupt::catch();
    let dir = directory(args)?;
    let mut cluster = Cluster::open_or(&dir, || Plan::new(args, &dir))?;
    cluster.state.plan.adapt(args, &dir)?;
    let before: Vec<String> = cluster.state.running.keys().cloned().collect();
    if let Err(failure) = bring_up(&mut cluster, args.wait) {
        return Err(undo(cluster, &before, failure));
    }
    if args.detach {
        supervise::spawn(&cluster)?;
        announce(&cluster, true)?;
        return Ok(());
    }
    announce(&cluster, false)?;
    let temporary = cluster.state.plan.temporary;
    drop(cluster);
    supervise::watch(&dir, interrupt::asked)?;
    eprintln!("Stopping.");
    down::run(&dir, temporary)
}

fn directory(args: &DevUp) -> Result<PathBuf, Failure> {
    let dir = match &args.dir {
        Some(dir) => crate::config::absolute(dir)?,
        None => std::env::temp_dir().join(format!(
            "mooseng-dev-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        )),
    };
    state::make_dir(&dir)?;
    Ok(dir)
}

fn bring_up(cluster: &mut Cluster, wait: Duration) -> Result<(), Failure> {
    let progress = Progress::new(cluster.names().len() as u64 + 1);
    wan::write(cluster)?;
    namespaces::make(cluster)?;
    cluster.state.up = true;
    for name in ["etc", "log"] {
        configs::make_dir(&cluster.dir.join(name))?;
    }
    progress.say("certificates");
    certs::issue_all(cluster)?;
    configs::adopt_ids(cluster);
    configs::write(cluster)?;
    cluster.save()?;
    progress.step();
    let deadline = Instant::now() + wait;
    let daemons = cluster.state.plan.daemons.clone();
    let mut found: BTreeSet<String> = cluster.state.running.keys().cloned().collect();
    // Masters first, so that chunkservers find somebody to report to.
    for role in [Role::Master, Role::Chunkserver] {
        start_missing(cluster, role, &progress)?;
        for name in cluster
            .state
            .plan
            .daemons
            .iter()
            .filter(|d| d.role == role)
            .map(|d| d.name.clone())
            .collect::<Vec<_>>()
        {
            wait_for(cluster, &name, launch::Until::Answers, deadline, &mut found)?;
        }
    }
    for daemon in &daemons {
        progress.say(&format!("waiting for {}", daemon.name));
        wait_for(cluster, &daemon.name, launch::Until::Ready, deadline, &mut found)?;
        progress.step();
    }
    let clients = cluster.state.plan.clients();
    for client in clients.iter().filter(|c| c.region == REGION) {
        root::give(&cluster.config_path(&client.name))?;
    }
    for client in clients {
        let Some(path) = client.mount else { continue };
        progress.say(&format!("mounting on {}", path.display()));
        if !cluster.state.running.contains_key(&client.name) {
            prepare_mount_point(&path)?;
            launch::start(cluster, &client.name)?;
            cluster.save()?;
        }
        wait_for(cluster, &client.name, launch::Until::Ready, deadline, &mut found)?;
        progress.step();
    }
    if let Some(geo) = cluster.state.plan.geo_due {
        progress.say("settings of the root volume");
        let config = cluster.config_path(&cluster.state.plan.admin(REGION));
        let namespace = cluster.state.plan.namespace_of(REGION);
        namespaces::within(namespace, || root::set_durability(&config, geo, deadline))?;
        cluster.state.plan.geo_due = None;
    }
    progress.done();
    cluster.save()
}

/// Waits for a process. One of those that were found running may have been dying, after a `kill -9` a moment ago: it is started anew.
fn wait_for(
    cluster: &mut Cluster,
    name: &str,
    until: launch::Until,
    deadline: Instant,
    found: &mut BTreeSet<String>,
) -> Result<(), Failure> {
    let outcome = launch::wait(cluster, name, until, deadline);
    if outcome.is_ok() || cluster.state.running.contains_key(name) || !found.remove(name) {
        return outcome;
    }
    if let Some(path) = cluster.mount_of(name) {
        prepare_mount_point(&path)?;
    }
    launch::start(cluster, name)?;
    cluster.save()?;
    launch::wait(cluster, name, until, deadline)
}

fn start_missing(cluster: &mut Cluster, role: Role, progress: &Progress) -> Result<(), Failure> {
    let names: Vec<String> =
        cluster.state.plan.daemons.iter().filter(|d| d.role == role).map(|d| d.name.clone()).collect();
    for name in names {
        if !cluster.state.running.contains_key(&name) {
            progress.say(&format!("starting {name}"));
            launch::start(cluster, &name)?;
            cluster.save()?;
        }
    }
    Ok(())
}

/// Makes the mount point; what a killed mount left there is taken away.
pub fn prepare_mount_point(path: &Path) -> Result<(), Failure> {
    if runtime::is_mounted(path) {
        crate::mount::detach(path)?;
    }
    std::fs::create_dir_all(path)
        .map_err(|e| Failure::failed(format!("The mount point {} can't be made: {e}.", path.display())))
}

/// A start that failed leaves nothing behind that it started; the logs stay.
fn undo(mut cluster: Cluster, before: &[String], failure: Failure) -> Failure {
    let ours: Vec<String> = cluster.state.running.keys().filter(|n| !before.contains(n)).cloned().collect();
    down::stop(&mut cluster, &ours);
    if before.is_empty() {
        cluster.state.up = false;
        namespaces::remove(&cluster.state.plan);
    }
    let _ = cluster.save();
    failure.context(format!("The cluster in {} didn't come up", cluster.dir.display()))
}

/// What runs where, and what to try.
fn announce(cluster: &Cluster, detached: bool) -> Result<(), Failure> {
    let mut table = Table::new(["NAME", "ZONE", "PID", "ADDRESS", "HEALTH"]);
    for name in cluster.names() {
        let daemon = cluster.daemon(&name);
        table.row([
            name.clone(),
            daemon.map_or_else(|| "zone-1".into(), |d| d.zone.clone()),
            cluster.state.running.get(&name).map_or_else(|| "-".into(), |p| p.pid.to_string()),
            daemon.map_or_else(|| "-".into(), |d| d.address()),
            daemon
                .map(|d| d.http())
                .or_else(|| cluster.state.clients_http.get(&name).cloned())
                .map_or_else(|| "-".into(), |h| format!("http://{h}/readyz")),
        ]);
    }
    let me = shell_quote(Path::new(&state::beside("mooseng")));
    let dir = cluster.dir.display();
    let tries = tries(&me, cluster);
    let end = if detached {
        format!("Stop it with:\n  {me} dev down --dir {}", shell_quote(&cluster.dir))
    } else {
        "Ctrl-C stops it.".to_owned()
    };
    let networks = match &cluster.state.plan.namespaces {
        Some(tag) => format!(
            "Each region is in a network namespace of its own: `ip netns exec {tag}-{REGION} ...` enters that of {REGION}.\n"
        ),
        None => String::new(),
    };
    output::text_line(&format!("{}\n\n{networks}State and logs: {dir}\nTry:\n{tries}\n{end}", table.render()))
}

fn tries(me: &str, cluster: &Cluster) -> String {
    let clients = cluster.state.plan.clients();
    let Some(first) = clients.first() else { return String::new() };
    let config = shell_quote(&cluster.config_path(&first.name));
    let status = format!("  {me} status --config {config}");
    let mounts: Vec<&Path> = clients.iter().filter_map(|c| c.mount.as_deref()).collect();
    let hello = |mount: &Path| shell_quote(&mount.join("hello"));
    let next = match mounts.as_slice() {
        [] => format!("  {me} mount --config {config} PATH"),
        [mount] => format!("  cp -r /etc/skel {} && {me} info {}", hello(mount), shell_quote(mount)),
        [here, there, ..] => {
            let (here, there) = (hello(here), hello(there));
            format!("  cp -r /etc/skel {here} && sync {here} && ls -A {there}")
        }
    };
    format!("{status}\n{next}")
}

/// Progress on stderr, where somebody looks at it.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(steps: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }
    fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
        }
    }
    fn step(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }
    fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::up;
    use super::*;

    #[test]
    fn what_is_to_be_tried_can_be_typed_wherever_the_cluster_is() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("my cluster");
        std::fs::create_dir(&odd).unwrap();
        let plan = |mount: bool| {
            let args = DevUp { dir: Some(odd.clone()), no_mount: !mount, ..up() };
            Plan::new(&args, &odd)
        };
        let mut cluster = Cluster::open_or(&odd, || plan(true)).unwrap();
        let base = dir.path().display();
        let said = tries("mooseng", &cluster);
        assert!(said.contains(&format!("--config '{base}/my cluster/etc/client-1.toml'")), "{said}");
        assert!(said.contains(&format!("'{base}/my cluster/mnt/hello'")), "{said}");
        cluster.state.plan = plan(false).unwrap();
        let said = tries("mooseng", &cluster);
        assert!(
            said.contains(&format!("mount --config '{base}/my cluster/etc/client-1.toml' PATH")),
            "{said}"
        );
    }
}
