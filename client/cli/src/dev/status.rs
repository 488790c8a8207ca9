//! `mooseng dev status`: what runs where.

use std::path::Path;

use serde::Serialize;

use super::ready::Health;
use super::state::Cluster;
use super::wan;
use crate::args::Format;
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::process::State;

#[derive(Serialize)]
struct Row {
    name: String,
    region: String,
    state: &'static str,
    ready: bool,
    detail: String,
    pid: Option<u32>,
    address: String,
    http: String,
    log: String,
}

/// Prints every process, whether it runs and whether it is ready.
pub fn run(dir: &Path, format: Format) -> Result<(), Failure> {
    let cluster = Cluster::open(dir)?;
    let names = cluster.names();
    let rows: Vec<Row> = names.into_iter().map(|name| describe(&cluster, name)).collect();
    let up = cluster.state.up;
    let cuts = wan::cuts(&cluster)?;
    let dir = cluster.dir.clone();
    drop(cluster);
    if format == Format::Json {
        return output::json(
            &serde_json::json!({ "version": output::VERSION, "dir": dir, "up": up, "processes": rows, "cuts": cuts }),
        );
    }
    for pair in &cuts {
        output::text_line(&wan::describe(pair))?;
    }
    let mut table = Table::new(["NAME", "STATE", "READY", "PID", "ADDRESS", "HEALTH", "DETAIL"]);
    for r in rows {
        let pid = r.pid.map_or_else(|| "-".into(), |p| p.to_string());
        table.row([
            r.name,
            r.state.into(),
            if r.ready { "yes" } else { "no" }.into(),
            pid,
            r.address,
            r.http,
            r.detail,
        ]);
    }
    output::text_line(&table.render())
}

fn describe(cluster: &Cluster, name: String) -> Row {
    let process = cluster.state.running.get(&name).copied();
    let state = process.map_or(State::Dead, |p| p.state());
    let daemon = cluster.daemon(&name);
    let http = daemon.map(|d| d.http()).or_else(|| cluster.state.clients_http.get(&name).cloned());
    let http = http.unwrap_or_default();
    let client = cluster.state.plan.client(&name);
    let (ready, detail) = match state {
        State::Running if !http.is_empty() => match cluster.ask(&name, &http, "/readyz") {
            Health::Ok => (true, String::new()),
            Health::NotReady(text) | Health::Silent(text) => (false, text),
        },
        _ => (false, String::new()),
    };
    Row {
        state: state.as_str(),
        ready,
        detail,
        pid: process.map(|p| p.pid),
        address: daemon.map(|d| d.address()).unwrap_or_default(),
        http,
        region: daemon.map(|d| d.region.clone()).or(client.map(|c| c.region)).unwrap_or_default(),
        log: cluster.log_path(&name).display().to_string(),
        name,
    }
}
