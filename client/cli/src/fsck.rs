//! `mooseng fsck`: has a master count everything again, and names what doesn't agree.

use std::time::Duration;

use mooseng_wire::admin::fsck_news::News;
use mooseng_wire::admin::{FsckDone, FsckFinding, FsckProgress, FsckRequest, FsckVolume};
use serde_json::json;

use crate::admin;
use crate::args::{Format, Fsck};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::output::{self, Table, bytes};
use crate::trash::shown;

/// A master that tells nothing for so long is taken for gone: it tells of its progress twice a second.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Asks, prints what was found, and fails if something was that isn't repaired.
pub fn run(args: &Fsck) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let (findings, done) = admin::block_on(ask(&file, args.repair))?;
    match args.output.format {
        Format::Json => output::json(&shape(&findings, &done))?,
        Format::Table => output::text_line(&text(&findings, &done))?,
    }
    match done.found - done.repaired.min(done.found) {
        0 => Ok(()),
        left => Err(Failure::failed(format!("{left} findings; the data isn't as it is recorded."))),
    }
}

/// Asks masters one after the other until one checks: followers first, for a leader has other work. Only the leader repairs.
async fn ask(file: &ClientFile, repair: bool) -> Result<(Vec<FsckFinding>, FsckDone), Failure> {
    let known = admin::status(file).await?.reply.masters;
    let leads = |address: &String| known.iter().any(|m| m.leader && m.address == *address);
    let mut addresses = file.masters.clone();
    addresses.sort_by_key(|address| leads(address) != repair);
    let mut refusals = Vec::new();
    for address in &addresses {
        match check(file, address, repair).await {
            Ok(outcome) => return Ok(outcome),
            Err(status) => match status.code() {
                tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => {
                    return Err(Failure::new(
                        Kind::Denied,
                        format!("{address} refuses: {}", status.message()),
                    ));
                }
                tonic::Code::DeadlineExceeded if repair => {
                    let text = format!(
                        "{address}: {}. Check again before anything else is repaired.",
                        status.message()
                    );
                    return Err(Failure::new(Kind::OutcomeUnknown, text));
                }
                _ => refusals.push(format!("\n  {address}: {}", admin::reason(&status))),
            },
        }
    }
    Err(Failure::unavailable(format!("No master has checked the whole store:{}", refusals.concat())))
}

async fn check(
    file: &ClientFile,
    address: &str,
    repair: bool,
) -> Result<(Vec<FsckFinding>, FsckDone), tonic::Status> {
    let network = file.network().map_err(|e| tonic::Status::failed_precondition(e.to_string()))?;
    let mut client = admin::client(network, address).await;
    let silent = |_| tonic::Status::unavailable(format!("no word for {} s", SILENCE_MAX.as_secs()));
    let request = FsckRequest { repair };
    let mut news =
        tokio::time::timeout(SILENCE_MAX, client.fsck(request)).await.map_err(silent)??.into_inner();
    let mut findings = Vec::new();
    let mut talked = false;
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, news.message()).await.map_err(silent)??;
        match next.and_then(|next| next.news) {
            Some(News::Progress(FsckProgress { pass, passes, records })) => {
                talked = true;
                eprint!("\rpass {pass} of {passes}: {records} records ");
            }
            Some(News::Finding(finding)) => findings.push(finding),
            Some(News::Done(done)) => {
                if talked {
                    eprintln!();
                }
                return Ok((findings, done));
            }
            None => return Err(tonic::Status::unavailable("the check ended before it was done")),
        }
    }
}

fn shape(findings: &[FsckFinding], done: &FsckDone) -> serde_json::Value {
    let findings: Vec<_> = findings
        .iter()
        .map(|f| {
            json!({
                "kind": f.kind, "subject": f.subject, "paths": paths(f), "detail": f.detail, "advice": f.advice,
                "repaired": f.repaired,
            })
        })
        .collect();
    json!({
        "version": output::VERSION, "found": done.found, "repaired": done.repaired, "findings": findings,
        "checked": {
            "inodes": done.inodes, "entries": done.entries, "extents": done.extents, "bytes": done.bytes,
            "trash_files": done.trash_files, "trash_bytes": done.trash_bytes,
            "chunks": done.chunks, "uses": done.uses, "copies": done.copies, "copies_unknown": done.copies_unknown,
            "chunks_misplaced": done.chunks_misplaced,
        },
        "commit_version": done.version, "master": done.master, "took_ms": done.took_ms,
        "volumes": done.volumes.iter().map(volume_shape).collect::<Vec<_>>(),
        "volumes_elsewhere": done.elsewhere.iter().map(volume_shape).collect::<Vec<_>>(),
    })
}

fn volume_shape(of: &FsckVolume) -> serde_json::Value {
    json!({ "id": of.volume, "path": of.path, "home": of.home })
}

/// A volume as it is typed, with its number.
fn named(of: &FsckVolume) -> String {
    match of.volume {
        0 => "/".to_owned(),
        id => format!("{} ({id})", of.path.chars().flat_map(shown).collect::<String>()),
    }
}

/// Which volumes were looked at, and which ones weren't. Nothing where there is none besides the root.
fn volumes(done: &FsckDone) -> Option<String> {
    if done.volumes.len() + done.elsewhere.len() < 2 {
        return None;
    }
    let looked: Vec<String> = done.volumes.iter().map(named).collect();
    let mut text = format!("Volumes that were looked at: {}.", looked.join(", "));
    for of in &done.elsewhere {
        let why = match of.home.as_str() {
            "" => {
                "its next home is just being found. Check again once `mooseng volume list` shows it as open"
                    .to_owned()
            }
            home => format!("its home is {home}. Run the command with a configuration of that region"),
        };
        text.push_str(&format!("\nVolume {} wasn't looked at: {why}.", named(of)));
    }
    Some(text)
}

fn paths(finding: &FsckFinding) -> Vec<String> {
    finding.paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

fn text(findings: &[FsckFinding], done: &FsckDone) -> String {
    let mut text = match done.found {
        0 if done.elsewhere.is_empty() => "Everything agrees.".to_owned(),
        0 => "Everything agrees of the volumes that were looked at.".to_owned(),
        1 => "One thing doesn't agree.".to_owned(),
        n => format!("{n} things don't agree."),
    };
    if !findings.is_empty() {
        let mut table = Table::new(["KIND", "WHAT", "PATHS", "DETAIL"]);
        for f in findings {
            let detail = match f.repaired.as_str() {
                "" => f.detail.clone(),
                repaired => format!("{} ({repaired})", f.detail),
            };
            table.row([f.kind.clone(), f.subject.clone(), paths(f).join(" "), detail]);
        }
        text.push_str(&format!("\n\n{}\n", table.render()));
        let mut advice: Vec<(&str, &str)> = findings.iter().map(|f| (&*f.kind, &*f.advice)).collect();
        advice.sort_unstable();
        advice.dedup();
        advice.iter().for_each(|(kind, what)| text.push_str(&format!("\n{kind}: {what}.")));
    }
    if done.found > findings.len() as u64 {
        text.push_str(&format!("\n{} more aren't shown.", done.found - findings.len() as u64));
    }
    text.push_str(&format!(
        "\n\nLooked at by {} as of version {}, in {:.1} s: {} inodes, {} names, {} extents of {}, {} chunks with {} copies.",
        done.master,
        done.version,
        done.took_ms as f64 / 1000.0,
        done.inodes,
        done.entries,
        done.extents,
        bytes(done.bytes),
        done.chunks,
        done.copies
    ));
    if let Some(volumes) = volumes(done) {
        text.push_str(&format!("\n{volumes}"));
    }
    if done.trash_files > 0 {
        text.push_str(&format!(
            "\nOf these, {} inodes with {} are in the trash.",
            done.trash_files,
            bytes(done.trash_bytes)
        ));
    }
    if done.copies_unknown > 0 {
        text.push_str(&format!(
            "\nOf {} copies nothing is known: their chunkservers are silent, or were just started.",
            done.copies_unknown
        ));
    }
    if done.chunks_misplaced > 0 {
        text.push_str(&format!(
            "\n{} chunks have a copy on a chunkserver without the labels of their storage class; repair moves them.",
            done.chunks_misplaced
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_first_and_advice_once() {
        let finding = |subject: &str| FsckFinding {
            kind: "LINK_COUNT".into(),
            subject: subject.into(),
            paths: vec![bytes::Bytes::from_static(b"/a/b")],
            detail: "it counts 2 names and has 1".into(),
            advice: "mend it".into(),
            repaired: String::new(),
        };
        let done = FsckDone {
            found: 3,
            master: "m1".into(),
            copies_unknown: 2,
            chunks_misplaced: 5,
            trash_files: 4,
            ..FsckDone::default()
        };
        let text = text(&[finding("inode 7"), finding("inode 8")], &done);
        assert!(text.starts_with("3 things don't agree."), "{text}");
        assert_eq!(text.matches("mend it").count(), 1);
        assert!(text.contains("inode 7  /a/b") && text.contains("1 more aren't shown"), "{text}");
        assert!(text.contains("4 inodes with 0 B are in the trash"), "{text}");
        assert!(text.contains("Of 2 copies nothing is known"));
        assert!(text.contains("5 chunks have a copy on a chunkserver without the labels"), "{text}");
        let shape = shape(&[finding("inode 7")], &done);
        assert_eq!(shape["findings"][0]["paths"][0], "/a/b");
        assert_eq!((shape["version"].as_u64(), shape["found"].as_u64()), (Some(1), Some(3)));
    }

    #[test]
    fn it_says_which_volumes_it_looked_at() {
        let volume =
            |volume, path: &str, home: &str| FsckVolume { volume, path: path.into(), home: home.into() };
        let alone = FsckDone { volumes: vec![volume(0, "/", "a")], ..FsckDone::default() };
        assert!(!text(&[], &alone).contains("olume"), "there is nothing to tell apart");
        let done = FsckDone {
            volumes: vec![volume(0, "/", "a"), volume(2, "/team", "a")],
            elsewhere: vec![volume(3, "/far", "b"), volume(4, "/lost", "")],
            ..FsckDone::default()
        };
        let text = text(&[], &done);
        for part in [
            "Everything agrees of the volumes that were looked at.",
            "Volumes that were looked at: /, /team (2).",
            "Volume /far (3) wasn't looked at: its home is b.",
            "Volume /lost (4) wasn't looked at: its next home is just being found.",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let shape = shape(&[], &done);
        assert_eq!(
            (&shape["volumes"][1]["path"], &shape["volumes_elsewhere"][0]["home"]),
            (&json!("/team"), &json!("b"))
        );
    }
}
