//! `mooseng certs`: which certificates the cluster refuses. They are issued, and kept, elsewhere: `mooseng-certs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mooseng_wire::Identity;
use mooseng_wire::admin::{
    CredentialReport, ListRevocationsReply, Revocation, RevokeRequest, StatusReply, UnrevokeRequest,
};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{CertsArgs, CertsCommand, CertsRevoke, CertsUnrevoke, Format, Reading};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::trash::time_ms;

/// Asks for it, and prints what came of it.
pub fn run(args: CertsArgs) -> Result<(), Failure> {
    match args.command {
        CertsCommand::Revoke(args) => revoke(&args),
        CertsCommand::Unrevoke(args) => unrevoke(&args),
        CertsCommand::Revoked(args) => list(&args),
    }
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// The certificate that a file holds, by serial number and end. Those above it, which follow it there, aren't meant.
fn of_file(path: &Path) -> Result<(String, i64), Failure> {
    let found = mooseng_certs::inspect::file(path)
        .map_err(|e| Failure::usage(format!("The certificate to be revoked can't be read: {e}.")))?;
    match found.first() {
        Some(leaf) if !leaf.authority => Ok((leaf.serial.clone(), leaf.not_after_unix)),
        _ => Err(Failure::usage(format!(
            "{} holds an authority's certificate: those of daemons, mounts and administrators can be revoked.",
            path.display()
        ))),
    }
}

fn wanted(args: &CertsRevoke, now: i64) -> Result<Vec<Revocation>, Failure> {
    let of = |what: &str, expires_unix| Revocation {
        what: what.to_owned(),
        reason: args.reason.clone(),
        expires_unix,
        ..Revocation::default()
    };
    let end = args.ends_within.map_or(0, |within| now.saturating_add(seconds(within)));
    // Names have no end.
    let typed = args.what.iter().map(|what| of(what, if Identity::parse(what).is_ok() { 0 } else { end }));
    let mut all: Vec<Revocation> = typed.collect();
    if let Some(path) = &args.cert {
        let (serial, expires_unix) = of_file(path)?;
        all.push(of(&serial, expires_unix));
    }
    Ok(all)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn revoke(args: &CertsRevoke) -> Result<(), Failure> {
    let revocations = wanted(args, unix_now())?;
    let file = ClientFile::load(&args.config)?;
    let request = RevokeRequest {
        revocations: revocations.clone(),
        plan: args.plan,
        although_own: args.although_it_is_your_own,
        although_it_serves: args.although_it_serves,
    };
    let reply = admin::block_on(admin::revoke(&file, request))?;
    let what: Vec<&str> = revocations.iter().map(|revocation| revocation.what.as_str()).collect();
    if args.output.format == Format::Json {
        return output::json(&json!({
            "version": output::VERSION, "plan": args.plan, "revocations_version": reply.version, "revoked": what, "uses": reply.uses,
        }));
    }
    let (done, uses) = match args.plan {
        true => {
            ("Nothing was changed. These would be revoked", "What is known here of who would be refused:")
        }
        false => ("Revoked", "What was known here of who is refused from now on:"),
    };
    let mut parts = vec![format!("{done}: {}.", what.join(", "))];
    if !reply.uses.is_empty() {
        parts.push(format!("{uses}\n  {}", reply.uses.join("\n  ")));
    }
    let lasting = |r: &Revocation| r.expires_unix == 0 && Identity::parse(&r.what).is_err();
    if revocations.iter().any(lasting) {
        parts.push(
            "Of a serial number without an end it isn't known when it needs no revocation any more: it stays until `mooseng certs unrevoke` (`--cert FILE` and `--ends-within` tell the end).".to_owned(),
        );
    }
    if !args.plan {
        parts.push(format!(
            "Version {}: `mooseng certs revoked` shows which daemons have heard of it. A region that is cut off hears of it once it is back.",
            reply.version
        ));
    }
    output::text_line(&parts.join("\n"))
}

fn unrevoke(args: &CertsUnrevoke) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let reply = admin::block_on(admin::unrevoke(&file, UnrevokeRequest { what: args.what.clone() }))?;
    match args.output.format {
        Format::Json => output::json(
            &json!({ "version": output::VERSION, "revocations_version": reply.version, "unrevoked": args.what }),
        ),
        Format::Table => output::text_line(&format!(
            "{} isn't revoked any more. A line of it in a file that a daemon's `tls.revocations` names still counts there.",
            args.what
        )),
    }
}

/// A daemon, and the version that it goes by, as far as its region's leader has been told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Daemon {
    region: String,
    name: String,
    role: &'static str,
    version: Option<u64>,
}

fn daemons(region: &str, reply: &StatusReply) -> Vec<Daemon> {
    let of = |role, name: &str, told: Option<&CredentialReport>| Daemon {
        region: region.to_owned(),
        name: name.to_owned(),
        role,
        version: told.map(|told| told.agreed_version),
    };
    let masters = reply.masters.iter().map(|m| of("master", &m.name, m.credentials.as_ref()));
    let servers = reply.chunkservers.iter().map(|c| of("chunkserver", &c.name, c.credentials.as_ref()));
    masters.chain(servers).collect()
}

fn list(args: &Reading) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.config.as_deref())?)?;
    let (reply, regions) = admin::block_on(async {
        let reply = admin::list_revocations(&file).await?;
        let mut regions: BTreeMap<String, Option<StatusReply>> = BTreeMap::new();
        if let Some(wide) = admin::wide(&file).await {
            regions.extend(wide.regions.regions.iter().map(|region| (region.name.clone(), None)));
            regions.extend(wide.leaders.into_iter().map(|(name, reply)| (name, Some(reply))));
        }
        // The configuration's own region is asked at its own masters.
        if let Ok(own) = admin::status(&file).await {
            regions.insert(own.reply.region.clone(), Some(own.reply));
        }
        Ok((reply, regions))
    })?;
    match args.output.format {
        Format::Json => output::json(&shape(&reply, &regions)),
        Format::Table => output::text_line(&page(&reply, &regions)),
    }
}

fn end(revocation: &Revocation) -> String {
    match revocation.expires_unix {
        0 => "-".to_owned(),
        end => time_ms(end.saturating_mul(1_000)),
    }
}

/// Who has heard of the newest, a sentence for each region.
fn heard(version: u64, regions: &BTreeMap<String, Option<StatusReply>>) -> Vec<String> {
    let of = |(region, reply): (&String, &Option<StatusReply>)| {
        let Some(reply) = reply else {
            return format!("{region}: not reached; it goes by what it heard last.");
        };
        let all = daemons(region, reply);
        let lacking: Vec<String> = all
            .iter()
            .filter(|daemon| daemon.version.is_none_or(|has| has < version))
            .map(|daemon| match daemon.version {
                None => format!("{} (hasn't told)", daemon.name),
                Some(has) => format!("{} ({has})", daemon.name),
            })
            .collect();
        match lacking.is_empty() {
            true => format!("{region}: all {} daemons have it.", all.len()),
            false => format!("{region}: {} of {} lack it: {}.", lacking.len(), all.len(), lacking.join(", ")),
        }
    };
    regions.iter().map(of).collect()
}

fn page(reply: &ListRevocationsReply, regions: &BTreeMap<String, Option<StatusReply>>) -> String {
    if reply.version == 0 {
        return "The cluster has never revoked a certificate. (Lists in files, which `tls.revocations` names, aren't shown here.)".to_owned();
    }
    let mut table = Table::new(["REVOKED", "SINCE", "ENDS", "BY", "REASON"]);
    for revocation in &reply.revocations {
        table.row([
            revocation.what.clone(),
            time_ms(revocation.at_unix.saturating_mul(1_000)),
            end(revocation),
            revocation.by.clone(),
            shown(&revocation.reason),
        ]);
    }
    let mut parts = Vec::new();
    match table.is_empty() {
        true => parts.push("Nothing is revoked now.".to_owned()),
        false => parts.push(table.render()),
    }
    parts.push(format!("Version {}, as seen from {}.", reply.version, reply.region));
    parts.push(heard(reply.version, regions).join("\n"));
    parts.join("\n\n")
}

/// Without what would spoil a terminal.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn shape(reply: &ListRevocationsReply, regions: &BTreeMap<String, Option<StatusReply>>) -> Value {
    let revocation = |r: &Revocation| {
        json!({ "what": r.what, "reason": r.reason, "by": r.by, "at_unix": r.at_unix,
                "expires_unix": (r.expires_unix != 0).then_some(r.expires_unix) })
    };
    let daemon = |d: &Daemon| json!({ "role": d.role, "name": d.name, "revocations_version": d.version });
    let region = |(name, status): (&String, &Option<StatusReply>)| {
        json!({ "name": name, "reached": status.is_some(),
                "daemons": status.as_ref().map(|s| daemons(name, s).iter().map(daemon).collect::<Vec<_>>()) })
    };
    json!({
        "version": output::VERSION, "revocations_version": reply.version, "asked": reply.region,
        "revocations": reply.revocations.iter().map(revocation).collect::<Vec<_>>(),
        "regions": regions.iter().map(region).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mooseng_wire::admin::{ChunkserverStatus, MasterStatus};

    use super::*;
    use crate::args::{Args, Command};

    fn args(words: &[&str]) -> Result<CertsRevoke, clap::Error> {
        let begin = ["mooseng", "certs", "revoke", "--config", "c.toml"];
        let parsed = Args::try_parse_from(begin.iter().chain(words))?;
        match parsed.command {
            Command::Certs(CertsArgs { command: CertsCommand::Revoke(args) }) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_have_no_end_and_serial_numbers_the_one_that_is_given() {
        let args_of =
            args(&["77", "spiffe://c/r/client/x", "--ends-within", "24h", "--reason", "lost"]).unwrap();
        let all = wanted(&args_of, 1_000).unwrap();
        let told: Vec<(&str, i64)> = all.iter().map(|r| (r.what.as_str(), r.expires_unix)).collect();
        assert_eq!(told, [("77", 87_400), ("spiffe://c/r/client/x", 0)]);
        assert!(all.iter().all(|r| r.reason == "lost"));
        assert!(args(&[]).is_err(), "something must be named");
        assert!(args(&["--cert", "x.pem"]).unwrap().what.is_empty());
    }

    #[test]
    fn a_certificates_file_says_serial_number_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let authority = mooseng_certs::Authority::create(&dir.path().join("ca"), "c").unwrap();
        authority.region("r").unwrap();
        let identity = Identity::parse("spiffe://c/r/client/x").unwrap();
        let out = dir.path().join("x");
        let issued = authority.issue(&identity, Duration::from_secs(3_600), &out, false).unwrap();
        let (serial, end) = of_file(&out.join("cert.pem")).unwrap();
        assert_eq!(mooseng_wire::revocations::plain_serial(&serial), issued.serial);
        assert_eq!(end, issued.not_after_unix);
        assert!(of_file(&out.join("ca.pem")).is_err(), "an authority");
    }

    #[test]
    fn who_lacks_the_newest_is_named() {
        let told = |agreed_version| Some(CredentialReport { agreed_version, ..CredentialReport::default() });
        let master = |name: &str, credentials| MasterStatus {
            name: name.into(),
            credentials,
            ..MasterStatus::default()
        };
        let server = |name: &str, credentials| ChunkserverStatus {
            name: name.into(),
            credentials,
            ..ChunkserverStatus::default()
        };
        let a = StatusReply {
            masters: vec![master("m1", told(7)), master("m2", None)],
            chunkservers: vec![server("cs1", told(6))],
            ..StatusReply::default()
        };
        let b = StatusReply { masters: vec![master("m1", told(8))], ..StatusReply::default() };
        let regions = [("a".to_owned(), Some(a)), ("b".to_owned(), Some(b)), ("c".to_owned(), None)].into();
        let said = heard(7, &regions);
        assert_eq!(said[0], "a: 2 of 3 lack it: m2 (hasn't told), cs1 (6).");
        assert_eq!(said[1], "b: all 1 daemons have it.");
        assert!(said[2].starts_with("c: not reached"));
        let revocations = vec![Revocation {
            what: "77".into(),
            reason: "lost\x1b[2J".into(),
            expires_unix: 86_400,
            ..Revocation::default()
        }];
        let reply = ListRevocationsReply { version: 7, revocations, region: "a".into() };
        let text = page(&reply, &regions);
        assert!(
            text.contains("1970-01-02") && !text.contains('\x1b') && text.contains("Version 7"),
            "{text}"
        );
        let shape = shape(&reply, &regions);
        assert_eq!(shape["regions"][0]["daemons"][2]["revocations_version"], 6);
        assert_eq!(shape["revocations"][0]["expires_unix"], 86_400);
        assert!(page(&ListRevocationsReply::default(), &regions).contains("never"));
    }
}
