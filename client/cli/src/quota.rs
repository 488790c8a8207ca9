//! `mooseng quota`: limits of directories and users, and what counts for them.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use mooseng_wire::admin::quota::Whose;
use mooseng_wire::admin::quota_target::Whose as Target;
use mooseng_wire::admin::{ListQuotasRequest, Quota, QuotaState, QuotaTarget, SetQuotaRequest};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, QuotaArgs, QuotaCommand, QuotaList, QuotaOf, QuotaSet, QuotaWhose, UsersVolume};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::output::{self, Table, bytes};
use crate::tree;

/// Asks for it, and prints what came of it.
pub fn run(args: QuotaArgs) -> Result<(), Failure> {
    match args.command {
        QuotaCommand::Set(args) => set(&args),
        QuotaCommand::Get(args) => get(&args),
        QuotaCommand::List(args) => list(&args),
        QuotaCommand::Clear(args) => clear(&args),
    }
}

/// Whose quota is meant, of the volume in which the path lies.
async fn target(file: &ClientFile, whose: &QuotaWhose, of: &UsersVolume) -> Result<QuotaTarget, Failure> {
    let (place, whose) = match (&whose.path, whose.user) {
        (Some(path), _) => {
            let place = tree::find(file, from_root(path)?).await?;
            let path = Target::Path(place.path.clone());
            (place, path)
        }
        (None, Some(uid)) => (tree::named(file, of.volume.as_deref()).await?, Target::User(uid)),
        (None, None) => return Err(Failure::usage("Say whose: a directory's PATH, or --user UID.")),
    };
    Ok(QuotaTarget { whose: Some(whose), volume: place.volume })
}

/// A path from the root of the filesystem.
pub fn from_root(path: &Path) -> Result<Vec<u8>, Failure> {
    if !path.is_absolute() {
        return Err(Failure::usage(format!(
            "{}: give the path from the root of the filesystem, with a / at its beginning.",
            path.display()
        )));
    }
    Ok(path.as_os_str().as_bytes().to_vec())
}

fn set(args: &QuotaSet) -> Result<(), Failure> {
    if args.bytes.is_none() && args.inodes.is_none() {
        return Err(Failure::usage("Say how much there may be: --bytes, --inodes, or both."));
    }
    let file = ClientFile::load(&args.config)?;
    let quota = admin::block_on(async {
        let target = Some(target(&file, &args.whose, &args.of).await?);
        let (bytes_max, inodes_max) = (args.bytes, args.inodes);
        admin::set_quota(&file, SetQuotaRequest { target, bytes_max, inodes_max }).await
    })?;
    print(&quota, args.output.format)
}

fn clear(args: &QuotaOf) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let quota = admin::block_on(async {
        let target = target(&file, &args.whose, &args.of).await?;
        admin::clear_quota(&file, target).await
    })?;
    print(&quota, args.output.format)
}

fn get(args: &QuotaOf) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let reply = admin::block_on(async {
        let only = target(&file, &args.whose, &args.of).await?;
        let request = ListQuotasRequest { volume: only.volume, only: Some(only), after: None };
        admin::list_quotas(&file, request).await
    })?;
    match reply.quotas.first() {
        Some(quota) => print(quota, args.output.format),
        None => Err(Failure::new(crate::exit::Kind::NotFound, "There is no such quota.")),
    }
}

fn print(quota: &Quota, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "quota": shape(quota) })),
        Format::Table => table(std::slice::from_ref(quota)),
    }
}

fn list(args: &QuotaList) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let (place, quotas, others) = admin::block_on(async {
        let place = tree::named(&file, args.of.volume.as_deref()).await?;
        let quotas = pages(&file, place.volume).await?;
        let others = tree::others(&file, place.volume, None).await;
        Ok((place, quotas, others))
    })?;
    match args.output.format {
        Format::Json => {
            let quotas: Vec<Value> = quotas.iter().map(shape).collect();
            return output::json(&json!({
                "version": output::VERSION, "volume": place.volume, "quotas": quotas,
                "other_volumes": tree::others_shape(&others),
            }));
        }
        Format::Table if quotas.is_empty() => {
            output::text_line(&format!("There are no quotas in {}.", place.name()))?;
        }
        Format::Table => table(&quotas)?,
    }
    tree::tell_of(&others);
    Ok(())
}

async fn pages(file: &ClientFile, volume: u32) -> Result<Vec<Quota>, Failure> {
    let mut all: Vec<Quota> = Vec::new();
    let mut request = ListQuotasRequest { volume, ..ListQuotasRequest::default() };
    loop {
        let page = admin::list_quotas(file, request).await?;
        all.extend(page.quotas);
        let last = all.last().and_then(|quota| quota.whose).map(|whose| match whose {
            Whose::Directory(id) => Target::Directory(id),
            Whose::User(uid) => Target::User(uid),
        });
        if !page.more || last.is_none() {
            return Ok(all);
        }
        let after = Some(QuotaTarget { whose: last, volume });
        request = ListQuotasRequest { only: None, after, volume };
    }
}

fn whose(quota: &Quota) -> String {
    match quota.whose {
        Some(Whose::User(uid)) => format!("user {uid}"),
        Some(Whose::Directory(id)) if quota.path.is_empty() => format!("removed directory {id}"),
        Some(Whose::Directory(_)) => {
            // A name may hold what would draw over the table.
            let path = String::from_utf8_lossy(&quota.path);
            path.chars()
                .flat_map(|c| {
                    c.escape_default().filter(move |_| c.is_control()).chain((!c.is_control()).then_some(c))
                })
                .collect()
        }
        None => "?".to_owned(),
    }
}

fn state(quota: &Quota) -> &'static str {
    match quota.state() {
        QuotaState::None => "no limits",
        QuotaState::Counting => "counting",
        QuotaState::Enforced => "enforced",
        QuotaState::Clearing => "clearing",
    }
}

fn table(quotas: &[Quota]) -> Result<(), Failure> {
    let mut table = Table::new(["WHOSE", "BYTES", "OF", "INODES", "OF", "STATE"]);
    let unlimited = || "-".to_owned();
    for quota in quotas {
        table.row([
            whose(quota),
            bytes(quota.bytes.unsigned_abs()),
            quota.bytes_max.map_or_else(unlimited, bytes),
            quota.inodes.to_string(),
            quota.inodes_max.map_or_else(unlimited, |max| max.to_string()),
            state(quota).to_owned(),
        ]);
    }
    output::text_line(&table.render())
}

fn shape(quota: &Quota) -> Value {
    let (directory, user) = match quota.whose {
        Some(Whose::Directory(id)) => (Some(id), None),
        Some(Whose::User(uid)) => (None, Some(uid)),
        None => (None, None),
    };
    let path = directory.filter(|_| !quota.path.is_empty()).map(|_| String::from_utf8_lossy(&quota.path));
    json!({
        "directory": directory, "path": path, "user": user, "state": state(quota),
        "bytes": quota.bytes, "bytes_max": quota.bytes_max,
        "inodes": quota.inodes, "inodes_max": quota.inodes_max,
    })
}

/// A number of bytes, as 500M or 2T: powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(format!("{text:?}: give bytes as 1000000, 500M, 20G or 2T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} isn't a number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than can be counted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_units() {
        for (text, is) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("500M", 500 << 20),
            ("2TiB", 2 << 40),
            ("3 GB", 3 << 30),
        ] {
            assert_eq!(parse_bytes(text), Ok(is), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "99999999P"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_quota_says_whose_it_is_and_how_it_stands() {
        let quota = Quota {
            whose: Some(Whose::Directory(7)),
            path: bytes::Bytes::from_static(b"/a\nb"),
            state: QuotaState::Counting.into(),
            bytes_max: Some(1 << 20),
            bytes: 512,
            inodes: 3,
            ..Quota::default()
        };
        assert_eq!((whose(&quota).as_str(), state(&quota)), ("/a\\nb", "counting"));
        assert_eq!(whose(&Quota { path: bytes::Bytes::new(), ..quota.clone() }), "removed directory 7");
        let shape = shape(&quota);
        assert_eq!((&shape["directory"], &shape["bytes_max"]), (&json!(7), &json!(1 << 20)));
        assert_eq!((&shape["inodes_max"], &shape["user"]), (&Value::Null, &Value::Null));
    }
}
