//! `mooseng status`: the verdict, the evidence, the next command.

use std::time::{SystemTime, UNIX_EPOCH};

use mooseng_wire::SessionId;
use mooseng_wire::admin::{ChunkserverStatus, CredentialReport, HouseStatus, SessionStatus, StatusReply};
use serde_json::{Value, json};

use crate::admin::{self, Answered};
use crate::args::{Format, Reading};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::trash;
use crate::verdict::{self, Verdict};

mod wide;

pub use wide::Wide;

/// Asks and prints. A region without a leader is exit code 5, after everything was printed.
pub fn run(args: &Reading) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.config.as_deref())?)?;
    let (answered, wide) = admin::block_on(async {
        let answered = admin::status(&file).await?;
        Ok((answered, admin::wide(&file).await))
    })?;
    let own = verdict::judge(&answered.reply);
    let verdict = wide.as_ref().map_or_else(|| own.clone(), |wide| wide.judge(&own));
    match args.output.format {
        Format::Json => output::json(&shape(&answered, &verdict, &own, wide.as_ref()))?,
        Format::Table => output::text_line(&page(&answered, &verdict, &own, wide.as_ref()))?,
    }
    if !verdict::has_leader(&answered.reply) {
        return Err(Failure::unavailable("The region has no leader with a majority."));
    }
    Ok(())
}

fn page(answered: &Answered, verdict: &Verdict, own: &Verdict, wide: Option<&Wide>) -> String {
    let reply = &answered.reply;
    let mut parts = vec![format!("{}: {}", verdict.level.as_str().to_uppercase(), verdict.sentence)];
    if let Some(wide) = wide {
        parts.extend(wide.page());
        parts.push(format!("In {}: {}", reply.region, own.sentence));
    }
    if !reply.findings.is_empty() {
        let mut table = Table::new(["FINDING", "SUBJECT", "DETAIL"]);
        for f in &reply.findings {
            table.row([f.code.clone(), f.subject.clone(), f.detail.clone()]);
        }
        parts.push(table.render());
    }
    parts.push(format!(
        "Cluster {}, region {}: term {}, {} chunks ({} endangered, {} unavailable, {} misplaced), {} copies (at least {}), version {}",
        reply.cluster,
        reply.region,
        reply.term,
        reply.chunks,
        reply.chunks_endangered,
        reply.chunks_unavailable,
        reply.chunks_misplaced,
        reply.copies,
        reply.min_copies,
        reply.version
    ));
    if let Some(house) = &reply.house {
        parts.push(format!(
            "House-keeping: {} copies under way, {} chunks wait, {} copies made and {} dropped, {} sparse chunks rewritten and {} small ones merged, {} of small files packed into {} chunks and {} extents joined by this leader; {} of {} in sealed chunks in use",
            house.copying,
            house.waiting,
            house.copied,
            house.dropped,
            house.rewritten,
            house.merged,
            output::bytes(house.packed_bytes),
            house.packed_chunks,
            house.joined_extents,
            output::bytes(house.bytes_live),
            output::bytes(house.bytes)
        ));
    }
    parts.extend(reply.trash.as_ref().map(trash::summary));
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
    let mut table = Table::new(["MASTER", "ZONE", "ADDRESS", "STATE", "LOG", "APPLIED", "CERTIFICATE"]);
    for m in &answered.reply.masters {
        let silent = answered.silent.iter().any(|(a, _)| *a == m.address);
        let failed = reply_says_failed(&answered.reply, &m.name);
        let state = match (m.leader, m.reachable && !silent, m.voter) {
            (true, ..) => "leader",
            _ if failed => "failed",
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
            certificate(m.credentials.as_ref(), unix_now()),
        ]);
    }
    table
}

fn reply_says_failed(reply: &StatusReply, master: &str) -> bool {
    reply.findings.iter().any(|f| f.code == "MASTER_FAILED" && f.subject == master)
}

fn chunkservers(reply: &StatusReply) -> Table {
    let mut table =
        Table::new(["CHUNKSERVER", "ZONE", "ADDRESS", "STATE", "CHUNKS", "USED", "FREE", "CERTIFICATE"]);
    for c in &reply.chunkservers {
        let sum =
            |of: fn(&mooseng_wire::admin::DiskReport) -> u64| output::bytes(c.disks.iter().map(of).sum());
        table.row([
            c.name.clone(),
            c.zone.clone(),
            c.address.clone(),
            match (c.alive, c.draining) {
                (true, false) => "up".into(),
                (true, true) => format!("draining, {} left", c.located),
                (false, _) => format!("down for {} s", c.last_seen_ms / 1000),
            },
            c.chunks.to_string(),
            sum(|d| d.bytes_used),
            sum(|d| d.bytes_free),
            certificate(c.credentials.as_ref(), unix_now()),
        ]);
    }
    table
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// How long a daemon's certificate is still valid, as far as the daemon has told.
fn certificate(told: Option<&CredentialReport>, now: i64) -> String {
    let Some(told) = told else { return "-".to_owned() };
    let left = told.not_after_unix.saturating_sub(now);
    let span = match left.unsigned_abs() {
        s if s < 120 => format!("{s} s"),
        s if s < 7_200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    };
    if left > 0 { format!("{span} left") } else { format!("expired {span} ago") }
}

fn certificate_shape(told: Option<&CredentialReport>) -> Value {
    told.map_or(
        Value::Null,
        |t| json!({ "not_before_unix": t.not_before_unix, "not_after_unix": t.not_after_unix }),
    )
}

fn revocations_shape(told: Option<&CredentialReport>) -> Value {
    told.map_or(Value::Null, |t| {
        json!({ "configured": t.revocations_configured, "digest": t.revocations_digest, "entries": t.revocations,
                "agreed_version": t.agreed_version, "agreed_entries": t.agreed_revocations })
    })
}

/// The volume that a session is of: by its path, with its number.
fn volume_of(session: &SessionStatus) -> String {
    let path: String = session.volume_path.chars().flat_map(trash::shown).collect();
    match (volume_id(session), path.as_str()) {
        (0, _) => "/".to_owned(),
        (id, "") => format!("volume {id}"),
        (id, path) => format!("{path} ({id})"),
    }
}

/// By the session's id, which a master of an earlier release gives, too.
fn volume_id(session: &SessionStatus) -> u32 {
    SessionId(session.session).volume().0.into()
}

fn sessions(reply: &StatusReply) -> Table {
    let mut table = Table::new(["SESSION", "HOST", "MOUNT", "VOLUME", "LEASE", "OPENS"]);
    for s in &reply.sessions {
        table.row([
            s.session.to_string(),
            s.host.clone(),
            s.mount_path.clone(),
            volume_of(s),
            format!("{:.1} s", s.lease_left_ms as f64 / 1000.0),
            s.opens.to_string(),
        ]);
    }
    table
}

fn shape(answered: &Answered, verdict: &Verdict, own: &Verdict, wide: Option<&Wide>) -> Value {
    let r = &answered.reply;
    let masters: Vec<Value> = r
        .masters
        .iter()
        .map(|m| {
            json!({ "id": m.id, "name": m.name, "address": m.address, "zone": m.zone, "leader": m.leader, "voter": m.voter,
                    "reachable": m.reachable, "last_log": m.last_log, "applied": m.applied,
                    "certificate": certificate_shape(m.credentials.as_ref()), "revocations": revocations_shape(m.credentials.as_ref()) })
        })
        .collect();
    let sessions: Vec<Value> = r
        .sessions
        .iter()
        .map(|s| {
            json!({ "session": s.session, "incarnation": s.incarnation, "host": s.host, "mount_path": s.mount_path, "identity": s.identity,
                    "volume": volume_id(s), "volume_path": s.volume_path, "lease_left_ms": s.lease_left_ms, "opens": s.opens })
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
        "region_verdict": { "level": own.level.as_str(), "sentence": own.sentence },
        "regions": wide.map(|wide| wide.shape().0), "volumes": wide.map(|wide| wide.shape().1),
        "cluster": r.cluster, "region": r.region, "software": r.version,
        "leader": r.leader, "term": r.term, "custody_epoch": r.custody_epoch, "commit_version": r.commit_version,
        "copies": r.copies, "min_copies": r.min_copies,
        "chunks": r.chunks, "chunks_endangered": r.chunks_endangered, "chunks_unavailable": r.chunks_unavailable, "chunks_misplaced": r.chunks_misplaced,
        "house": r.house.as_ref().map(house),
        "trash": r.trash.as_ref().map(trash::status_shape),
        "findings": findings, "masters": masters, "silent_masters": silent,
        "chunkservers": r.chunkservers.iter().map(chunkserver).collect::<Vec<_>>(), "sessions": sessions,
    })
}

fn house(h: &HouseStatus) -> Value {
    json!({ "copies_waiting": h.waiting, "copies_under_way": h.copying, "endangered_oldest_s": h.endangered_oldest_s,
            "copies_made": h.copied, "copied_bytes": h.copied_bytes, "copies_dropped": h.dropped, "copies_failed": h.copies_failed,
            "chunks_dead": h.dead, "chunk_bytes": h.bytes, "chunk_bytes_live": h.bytes_live,
            "rewrites_under_way": h.rewriting, "chunks_rewritten": h.rewritten, "rewritten_bytes": h.rewritten_bytes,
            "rewrites_failed": h.rewrites_failed, "chunks_merged": h.merged,
            "packed_chunks": h.packed_chunks, "packed_bytes": h.packed_bytes, "joined_extents": h.joined_extents })
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
            "chunks": c.chunks, "located": c.located, "draining": c.draining, "labels": c.labels, "disks": disks,
            "certificate": certificate_shape(c.credentials.as_ref()), "revocations": revocations_shape(c.credentials.as_ref()) })
}

#[cfg(test)]
mod tests {
    use mooseng_wire::VolumeId;
    use mooseng_wire::admin::MasterStatus;

    use super::*;

    #[test]
    fn sessions_are_told_with_the_volume_that_they_are_of() {
        let session = |id: u64, path: &str| SessionStatus {
            session: SessionId::new(VolumeId(id as u16), 5).0,
            host: "h".into(),
            mount_path: "/m".into(),
            volume_path: path.into(),
            ..SessionStatus::default()
        };
        let reply = StatusReply {
            sessions: vec![session(0, "/"), session(3, "/team"), session(0, ""), session(4, "")],
            ..StatusReply::default()
        };
        let told: Vec<String> = reply.sessions.iter().map(volume_of).collect();
        assert_eq!(told, ["/", "/team (3)", "/", "volume 4"]);
        let text = sessions(&reply).render();
        assert!(text.lines().nth(2).is_some_and(|line| line.contains("/m     /team (3)")), "{text}");
        let answered = Answered { reply, silent: vec![] };
        let verdict = verdict::judge(&answered.reply);
        let shape = shape(&answered, &verdict, &verdict, None);
        let of = &shape["sessions"][1];
        assert_eq!((&of["volume"], &of["volume_path"]), (&json!(3), &json!("/team")));
    }

    #[test]
    fn status_shows_whose_certificate_ends_when_and_who_goes_by_which_list() {
        let told = CredentialReport {
            not_before_unix: 0,
            not_after_unix: 86_400,
            revocations_digest: "abc".into(),
            revocations: 2,
            revocations_configured: true,
            agreed_version: 9,
            agreed_revocations: 4,
        };
        for (now, text) in [
            (0, "24 h left"),
            (86_300, "100 s left"),
            (86_400, "expired 0 s ago"),
            (90_400, "expired 66 min ago"),
        ] {
            assert_eq!(certificate(Some(&told), now), text);
        }
        assert_eq!(certificate(None, 0), "-");
        let master =
            MasterStatus { name: "m1".into(), credentials: Some(told.clone()), ..Default::default() };
        let server = ChunkserverStatus { name: "cs1".into(), credentials: Some(told), ..Default::default() };
        let reply = StatusReply {
            leader: 1,
            masters: vec![master],
            chunkservers: vec![server],
            ..Default::default()
        };
        let answered = Answered { reply, silent: vec![] };
        let verdict = verdict::judge(&answered.reply);
        let shape = shape(&answered, &verdict, &verdict, None);
        assert_eq!(shape["regions"], Value::Null, "of a cluster of one region");
        for list in ["masters", "chunkservers"] {
            assert_eq!(shape[list][0]["certificate"]["not_after_unix"], 86_400);
            assert_eq!(
                shape[list][0]["revocations"],
                json!({ "configured": true, "digest": "abc", "entries": 2, "agreed_version": 9, "agreed_entries": 4 })
            );
        }
    }
}
