//! The verdict over a region: one sentence that says whether data is safe, from what a master answered. Pure.

use mooseng_region::Severity;
use mooseng_region::codes::ALL;
use mooseng_wire::admin::StatusReply;

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// ok, info, warning or critical.
    pub level: Level,
    /// What it means for data.
    pub sentence: String,
    /// The command to type next, if there is something to do.
    pub next: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// The next failure may hurt.
    Warning,
    /// Data or service is affected now.
    Critical,
}

impl Level {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Whether the region has a leader with a majority. A master that was cut off may still name the leader that it knew last, and
/// says by its finding that it knows of no majority.
pub fn has_leader(reply: &StatusReply) -> bool {
    reply.leader != 0 && reply.findings.iter().all(|f| f.code != "NO_QUORUM")
}

/// Judges an answer.
pub fn judge(reply: &StatusReply) -> Verdict {
    let worst = reply.findings.iter().max_by_key(|f| severity(&f.code));
    let next = worst.map(|f| f.code.as_str()).or((!has_leader(reply)).then_some("NO_QUORUM"));
    let next = next.map(|code| format!("mooseng explain {code}"));
    let level = match worst.map(|f| severity(&f.code)) {
        _ if !has_leader(reply) => Level::Critical,
        Some(Severity::Critical) => Level::Critical,
        Some(Severity::Warning) => Level::Warning,
        _ => Level::Ok,
    };
    let sentence = if !has_leader(reply) {
        "Every operation waits: the masters have no leader with a majority. What was acknowledged is on their disks.".to_owned()
    } else if reply.chunks_unavailable > 0 {
        format!(
            "{} chunks have no reachable copy: reads of the files that use them wait.",
            reply.chunks_unavailable
        )
    } else if reply.witness {
        "This region is a witness: it has a voice among the regions, and holds no data.".to_owned()
    } else {
        survives(reply)
    };
    Verdict { level, sentence, next }
}

fn severity(code: &str) -> Severity {
    // A code of a newer master than this command is taken for a warning.
    ALL.iter().find(|c| c.code == code).map_or(Severity::Warning, |c| c.severity)
}

/// What may be lost without a loss of acknowledged writes.
fn survives(reply: &StatusReply) -> String {
    let voters = reply.masters.iter().filter(|m| m.voter).count();
    let reachable = reply.masters.iter().filter(|m| m.voter && m.reachable).count();
    let master = reachable > voters / 2 + 1;
    // Its chunks lack a copy although the next scan is what counts them.
    let silent = reply.chunkservers.iter().find(|c| !c.alive && c.located > 0);
    // A class may ask for less than the default one. Masters of an earlier release know of none.
    let least = reply.min_copies_least.unwrap_or(reply.min_copies);
    let chunkserver = reply.copies >= 2
        && reply.min_copies >= 2
        && least >= 2
        && reply.chunks_endangered == 0
        && silent.is_none();
    match (master, chunkserver) {
        (true, true) => {
            "Every acknowledged write survives the loss of any one master and of any one chunkserver.".into()
        }
        (true, false) if reply.chunks_endangered > 0 => {
            format!(
                "Acknowledged writes survive the loss of any one master, but {} chunks lack a copy.",
                reply.chunks_endangered
            )
        }
        (true, false) if silent.is_some() => {
            let name = silent.map_or("", |c| c.name.as_str());
            format!(
                "Acknowledged writes survive the loss of any one master; chunks that lack a copy without {name} are being counted."
            )
        }
        (true, false) if reply.min_copies >= 2 => {
            "Acknowledged writes survive the loss of any one master, and of any one chunkserver but for files of storage classes that ask for one copy only.".into()
        }
        (true, false) => {
            "Acknowledged writes survive the loss of any one master, but each chunk has one copy only.".into()
        }
        (false, true) => {
            "Acknowledged writes survive the loss of any one chunkserver, but not of another master.".into()
        }
        (false, false) => {
            "Acknowledged writes are on disk, but survive no loss of a master, nor of a chunkserver.".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{ChunkserverStatus, Finding, MasterStatus};

    use super::*;

    fn healthy() -> StatusReply {
        let masters = (1..=3).map(|id| MasterStatus {
            id,
            voter: true,
            reachable: true,
            leader: id == 1,
            ..Default::default()
        });
        StatusReply { leader: 1, copies: 2, min_copies: 2, masters: masters.collect(), ..Default::default() }
    }

    #[test]
    fn a_healthy_region_is_ok() {
        let verdict = judge(&healthy());
        assert_eq!(verdict.level, Level::Ok);
        assert!(verdict.sentence.starts_with("Every acknowledged write survives"), "{}", verdict.sentence);
        assert_eq!(verdict.next, None);
    }

    #[test]
    fn a_witness_has_no_data_to_lose() {
        let mut reply = StatusReply { witness: true, ..healthy() };
        reply.masters.truncate(1);
        let verdict = judge(&reply);
        assert_eq!((verdict.level, verdict.next), (Level::Ok, None));
        assert!(verdict.sentence.contains("holds no data"));
    }

    #[test]
    fn a_dead_master_is_a_warning_and_says_what_to_type() {
        let mut reply = healthy();
        reply.masters[2].reachable = false;
        reply.findings.push(Finding {
            code: "MASTER_DOWN".into(),
            subject: "master-3".into(),
            detail: String::new(),
        });
        let verdict = judge(&reply);
        assert_eq!(verdict.level, Level::Warning);
        assert!(verdict.sentence.contains("but not of another master"), "{}", verdict.sentence);
        assert_eq!(verdict.next.as_deref(), Some("mooseng explain MASTER_DOWN"));
    }

    #[test]
    fn a_chunkserver_that_just_died_is_not_forgotten_until_a_scan_has_counted() {
        let mut reply = healthy();
        let down = ChunkserverStatus { name: "cs2".into(), alive: false, located: 5, ..Default::default() };
        reply.chunkservers.push(down);
        assert!(
            judge(&reply).sentence.contains("without cs2 are being counted"),
            "{}",
            judge(&reply).sentence
        );
        reply.chunks_endangered = 5;
        assert!(judge(&reply).sentence.contains("5 chunks lack a copy"));
        // Everything was copied elsewhere.
        (reply.chunks_endangered, reply.chunkservers[0].located) = (0, 0);
        assert!(judge(&reply).sentence.starts_with("Every acknowledged write survives"));
    }

    #[test]
    fn a_class_of_one_copy_is_told() {
        let reply = StatusReply { min_copies_least: Some(1), ..healthy() };
        assert!(judge(&reply).sentence.contains("but for files of storage classes that ask for one copy"));
        let reply = StatusReply { min_copies_least: Some(2), ..healthy() };
        assert!(judge(&reply).sentence.starts_with("Every acknowledged write survives"));
        let reply = StatusReply { min_copies: 1, min_copies_least: Some(1), ..healthy() };
        assert!(judge(&reply).sentence.contains("each chunk has one copy only"));
    }

    #[test]
    fn without_a_leader_it_is_critical() {
        let verdict = judge(&StatusReply { leader: 0, ..healthy() });
        assert_eq!(verdict.level, Level::Critical);
        assert_eq!(verdict.next.as_deref(), Some("mooseng explain NO_QUORUM"));
    }

    #[test]
    fn a_master_that_was_cut_off_is_no_leader() {
        let mut reply = healthy();
        reply.findings.push(Finding { code: "NO_QUORUM".into(), ..Default::default() });
        reply.findings.push(Finding { code: "MASTER_DOWN".into(), ..Default::default() });
        let verdict = judge(&reply);
        assert!(verdict.sentence.starts_with("Every operation waits"), "{}", verdict.sentence);
        assert_eq!(verdict.next.as_deref(), Some("mooseng explain NO_QUORUM"));
    }

    #[test]
    fn a_code_from_the_future_is_a_warning() {
        let mut reply = healthy();
        reply.findings.push(Finding { code: "MOON_FULL".into(), ..Default::default() });
        assert_eq!(judge(&reply).level, Level::Warning);
    }
}
