//! `mooseng status`: the verdict, the evidence, the next command.

use mooseng_wire::admin::{ChunkserverStatus, StatusReply};
use serde_json::{Value, json};

use crate::admin::{self, Answered};
use crate::args::{Format, Reading};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::verdict::{self, Verdict};

/// Asks and prints. A region without a leader is exit code 5, after everything was printed.
pub fn run(args: &Reading) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.config.as_deref())?)?;
    let answered = admin::block_on(admin::status(&file))?;
    let verdict = verdict::judge(&answered.reply);
    match args.output.format {
        Format::Json => output::json(&shape(&answered, &verdict))?,
        Format::Table => output::text_line(&page(&answered, &verdict))?,
    }
    if !verdict::has_leader(&answered.reply) {
        return Err(Failure::unavailable("The region has no leader with a majority."));
    }
    Ok(())
}

fn page(answered: &Answered, verdict: &Verdict) -> String {
    let reply = &answered.reply;
    let mut parts = vec![format!("{}: {}", verdict.level.as_str().to_uppercase(), verdict.sentence)];
    if !reply.findings.is_empty() {
        let mut table = Table::new(["FINDING", "SUBJECT", "DETAIL"]);
        for f in &reply.findings {
            table.row([f.code.clone(), f.subject.clone(), f.detail.clone()]);
        }
        parts.push(table.render());
    }
    parts.push(format!(
        "Cluster {}, region {}: term {}, {} chunks ({} endangered, {} unavailable), {} copies (at least {}), version {}",
        reply.cluster,
        reply.region,
        reply.term,
        reply.chunks,
        reply.chunks_endangered,
        reply.chunks_unavailable,
        reply.copies,
        reply.min_copies,
        reply.version
    ));
    parts.push(masters(answered).render());
    parts.push(chunkservers(reply).render());
    let sessions = sessions(reply);
    if !sessions.is_empty() {
        parts.push(sessions.render());
    }
    if let Some(next) = &verdict.next {
        parts.push(format!("Next: {next}"));
    }
    parts.join("\n\n")
}

fn masters(answered: &Answered) -> Table {
    let mut table = Table::new(["MASTER", "ZONE", "ADDRESS", "STATE", "LOG", "APPLIED"]);
    for m in &answered.reply.masters {
        let silent = answered.silent.iter().any(|(a, _)| *a == m.address);
        let state = match (m.leader, m.reachable && !silent, m.voter) {
            (true, ..) => "leader",
            (_, false, _) => "down",
            (_, _, true) => "follower",
            _ => "learner",
        };
        table.row([
            m.name.clone(),
            m.zone.clone(),
            m.address.clone(),
            state.into(),
            m.last_log.to_string(),
            m.applied.to_string(),
        ]);
    }
    table
}

fn chunkservers(reply: &StatusReply) -> Table {
    let mut table = Table::new(["CHUNKSERVER", "ZONE", "ADDRESS", "STATE", "CHUNKS", "USED", "FREE"]);
    for c in &reply.chunkservers {
        let sum =
            |of: fn(&mooseng_wire::admin::DiskReport) -> u64| output::bytes(c.disks.iter().map(of).sum());
        table.row([
            c.name.clone(),
            c.zone.clone(),
            c.address.clone(),
            if c.alive { "up".into() } else { format!("down for {} s", c.last_seen_ms / 1000) },
            c.chunks.to_string(),
            sum(|d| d.bytes_used),
            sum(|d| d.bytes_free),
        ]);
    }
    table
}

fn sessions(reply: &StatusReply) -> Table {
    let mut table = Table::new(["SESSION", "HOST", "MOUNT", "LEASE", "OPENS"]);
    for s in &reply.sessions {
        table.row([
            s.session.to_string(),
            s.host.clone(),
            s.mount_path.clone(),
            format!("{:.1} s", s.lease_left_ms as f64 / 1000.0),
            s.opens.to_string(),
        ]);
    }
    table
}

fn shape(answered: &Answered, verdict: &Verdict) -> Value {
    let r = &answered.reply;
    let masters: Vec<Value> = r
        .masters
        .iter()
        .map(|m| {
            json!({ "id": m.id, "name": m.name, "address": m.address, "zone": m.zone, "leader": m.leader, "voter": m.voter,
                    "reachable": m.reachable, "last_log": m.last_log, "applied": m.applied })
        })
        .collect();
    let sessions: Vec<Value> = r
        .sessions
        .iter()
        .map(|s| {
            json!({ "session": s.session, "incarnation": s.incarnation, "host": s.host, "mount_path": s.mount_path, "identity": s.identity,
                    "lease_left_ms": s.lease_left_ms, "opens": s.opens })
        })
        .collect();
    let findings: Vec<Value> = r
        .findings
        .iter()
        .map(|f| json!({ "code": f.code, "subject": f.subject, "detail": f.detail }))
        .collect();
    let silent: Vec<Value> =
        answered.silent.iter().map(|(a, why)| json!({ "address": a, "reason": why })).collect();
    json!({
        "version": output::VERSION,
        "verdict": { "level": verdict.level.as_str(), "sentence": verdict.sentence },
        "next": verdict.next,
        "cluster": r.cluster, "region": r.region, "software": r.version,
        "leader": r.leader, "term": r.term, "custody_epoch": r.custody_epoch, "commit_version": r.commit_version,
        "copies": r.copies, "min_copies": r.min_copies,
        "chunks": r.chunks, "chunks_endangered": r.chunks_endangered, "chunks_unavailable": r.chunks_unavailable,
        "findings": findings, "masters": masters, "silent_masters": silent,
        "chunkservers": r.chunkservers.iter().map(chunkserver).collect::<Vec<_>>(), "sessions": sessions,
    })
}

/// A chunkserver in JSON.
pub fn chunkserver(c: &ChunkserverStatus) -> Value {
    let disks: Vec<Value> = c
        .disks
        .iter()
        .map(|d| {
            json!({ "path": d.path, "id": d.id, "bytes_total": d.bytes_total, "bytes_free": d.bytes_free, "bytes_used": d.bytes_used,
                    "chunks": d.chunks, "writable": d.writable, "error": d.error })
        })
        .collect();
    json!({ "name": c.name, "address": c.address, "zone": c.zone, "rack": c.rack, "alive": c.alive, "last_seen_ms": c.last_seen_ms,
            "chunks": c.chunks, "disks": disks })
}
