//! `mooseng trash`: deleted files that can still be restored.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::InodeId;
use mooseng_wire::admin::purge_trash_request::Which;
use mooseng_wire::admin::{
    ListTrashReply, ListTrashRequest, PurgeTrashReply, PurgeTrashRequest, RestoreTrashRequest, TrashEntry,
    TrashRetentionRequest, TrashStatus,
};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, Trash, TrashCommand, TrashList, TrashPurge, TrashRestore, TrashRetention};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::output::{self, Table, bytes};
use crate::tree;

/// Asks for it, and prints what came of it.
pub fn run(args: Trash) -> Result<(), Failure> {
    match args.command {
        TrashCommand::List(args) => list(&args),
        TrashCommand::Restore(args) => restore(&args),
        TrashCommand::Purge(args) => purge(&args),
        TrashCommand::Retention(args) => retention(&args),
    }
}

fn list(args: &TrashList) -> Result<(), Failure> {
    let under = args.under.as_ref().map(|path| from_root(path)).transpose()?;
    let file = ClientFile::load(&args.config)?;
    let (place, (listed, more), others) = admin::block_on(async {
        let place = match &under {
            Some(under) => tree::find(&file, under.clone()).await?,
            None => tree::named(&file, args.of.volume.as_deref()).await?,
        };
        let listed = pages(&file, &place, args.limit).await?;
        let others = tree::others(&file, place.volume, under.as_deref()).await;
        Ok((place, listed, others))
    })?;
    let status = listed.status.unwrap_or_default();
    if args.output.format == Format::Json {
        let mut shape = shape(&listed.entries, &status, more);
        shape["volume"] = place.volume.into();
        shape["other_volumes"] = tree::others_shape(&others);
        return output::json(&shape);
    }
    let mut table = Table::new(["ID", "DELETED", "BY", "SIZE", "EXPIRES", "PATH"]);
    for entry in &listed.entries {
        table.row(cells(entry));
    }
    if !table.is_empty() {
        output::text_line(&format!("{}\n", table.render()))?;
    }
    output::text_line(&summary(&status))?;
    if more {
        eprintln!("There is more: only the first {} are shown (`--limit`).", args.limit);
    }
    tree::tell_of(&others);
    Ok(())
}

/// As many entries of a volume, at a path or below, as are wanted, page by page, and whether there are more.
async fn pages(
    file: &ClientFile,
    place: &tree::Place,
    limit: usize,
) -> Result<(ListTrashReply, bool), Failure> {
    let mut request = ListTrashRequest { under: place.path.clone(), before: None, volume: place.volume };
    let mut all = ListTrashReply::default();
    loop {
        let page = admin::list_trash(file, request.clone()).await?;
        all.entries.extend(page.entries);
        all.status = all.status.or(page.status);
        request.before = page.next;
        if all.entries.len() > limit || request.before.is_none() {
            let more = all.entries.len() > limit;
            all.entries.truncate(limit);
            return Ok((all, more));
        }
    }
}

/// A path from the root of the filesystem.
fn from_root(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    if !path.is_absolute() {
        return Err(Failure::usage(format!(
            "{}: give the path from the root of the filesystem, with a / at its beginning.",
            path.display()
        )));
    }
    Ok(path.as_os_str().as_bytes().to_vec())
}

fn cells(entry: &TrashEntry) -> [String; 6] {
    let place = entry.place.unwrap_or_default();
    [
        place.inode.to_string(),
        time(entry.deleted_ns),
        entry.deleted_by.to_string(),
        bytes(entry.size),
        time(place.until_ns),
        // A name may hold what would draw over the table.
        String::from_utf8_lossy(&entry.path).chars().flat_map(shown).collect(),
    ]
}

pub(crate) fn shown(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// The same with milliseconds.
pub fn time_ms(unix_ms: i64) -> String {
    let to_second = time(unix_ms.saturating_mul(1_000_000));
    format!("{}.{:03}Z", to_second.trim_end_matches('Z'), unix_ms.rem_euclid(1_000))
}

/// A time as people write it, in UTC.
pub(crate) fn time(ns: i64) -> String {
    let seconds = ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in cycles of 400 years (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// A span of time, as the command line takes it.
fn span(seconds: u64) -> String {
    match seconds {
        0 => "0".to_owned(),
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3_600 == 0 => format!("{}h", s / 3_600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

fn young(min_age_s: u64) -> String {
    match min_age_s {
        0 => String::new(),
        seconds => format!(", unless they are younger than {}", span(seconds)),
    }
}

/// What the trash holds, in a sentence.
pub fn summary(status: &TrashStatus) -> String {
    let kept = match status.retention_s {
        0 => "files that are deleted now are freed at once".to_owned(),
        seconds => {
            format!("files that are deleted now stay for {}{}", span(seconds), young(status.min_age_s))
        }
    };
    let holds = match status.files {
        0 => "is empty".to_owned(),
        1 => format!("holds one file of {}", bytes(status.bytes)),
        n => format!("holds {n} files of {}", bytes(status.bytes)),
    };
    format!("The trash {holds}; {kept}.")
}

/// The same in JSON.
pub fn status_shape(status: &TrashStatus) -> Value {
    json!({
        "files": status.files, "bytes": status.bytes, "retention_s": status.retention_s,
        "min_age_s": status.min_age_s,
    })
}

fn shape(entries: &[TrashEntry], status: &TrashStatus, more: bool) -> Value {
    let entries: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let place = entry.place.unwrap_or_default();
            json!({
                "id": place.inode, "path": String::from_utf8_lossy(&entry.path), "size": entry.size,
                "deleted_by": entry.deleted_by, "deleted_ns": entry.deleted_ns, "expires_ns": place.until_ns,
            })
        })
        .collect();
    json!({ "version": output::VERSION, "trash": status_shape(status), "entries": entries, "more": more })
}

fn restore(args: &TrashRestore) -> Result<(), Failure> {
    let to = args.to.as_ref().map(|path| from_root(path)).transpose()?;
    let file = ClientFile::load(&args.config)?;
    let restored = admin::block_on(async {
        let to = match to {
            Some(to) => Some(target(&file, args.id, to).await?),
            None => None,
        };
        admin::restore_trash(&file, RestoreTrashRequest { inode: args.id, to }).await
    })?;
    let path = String::from_utf8_lossy(&restored.path).into_owned();
    match args.output.format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "id": args.id, "path": path })),
        Format::Table => output::text_line(&format!("Restored as {path}")),
    }
}

/// The path in its volume that a file of the trash is restored to.
async fn target(file: &ClientFile, id: u64, to: Vec<u8>) -> Result<Bytes, Failure> {
    let volume = u32::from(InodeId(id).volume().0);
    let typed = String::from_utf8_lossy(&to).into_owned();
    let place = tree::find(file, to).await?;
    if place.volume == volume {
        return Ok(place.path);
    }
    let own = tree::named(file, Some(&volume.to_string())).await?;
    Err(Failure::failed(format!(
        "{typed} lies in {}, and the file {id} is one of {}: it is restored in its own volume only. Name a path there, and copy it then.",
        place.name(),
        own.name()
    )))
}

fn purge(args: &TrashPurge) -> Result<(), Failure> {
    let which = match (args.id, args.all, args.older_than) {
        (Some(inode), ..) => Which::Inode(inode),
        (None, true, _) => Which::OlderThanS(0),
        (None, false, Some(age)) if age >= Duration::from_secs(1) => Which::OlderThanS(age.as_secs()),
        (None, false, Some(_)) => {
            return Err(Failure::usage("--older-than takes a second at least; --all purges everything."));
        }
        (None, false, None) => {
            return Err(Failure::usage("Say what to purge: an ID, --all or --older-than."));
        }
    };
    let file = ClientFile::load(&args.config)?;
    let mut so_far = PurgeTrashReply::default();
    let outcome = admin::block_on(async {
        let volume = tree::named(&file, args.volume.as_deref()).await?.volume;
        let request = PurgeTrashRequest { which: Some(which), after: None, volume };
        purge_pages(&file, request, &mut so_far).await
    });
    let PurgeTrashReply { files, bytes: freed, .. } = so_far;
    if let Err(failure) = outcome {
        return match files {
            0 => Err(failure),
            _ => Err(failure.context(format!("After {files} files of {}", bytes(freed)))),
        };
    }
    match args.output.format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "files": files, "bytes": freed })),
        Format::Table => output::text_line(&format!(
            "{} of {} purged; the space is free within minutes.",
            if files == 1 { "1 file".to_owned() } else { format!("{files} files") },
            bytes(freed)
        )),
    }
}

async fn purge_pages(
    file: &ClientFile,
    mut request: PurgeTrashRequest,
    so_far: &mut PurgeTrashReply,
) -> Result<(), Failure> {
    loop {
        let page = admin::purge_trash(file, request).await?;
        so_far.files += page.files;
        so_far.bytes += page.bytes;
        request.after = page.next;
        if request.after.is_none() {
            return Ok(());
        }
    }
}

fn retention(args: &TrashRetention) -> Result<(), Failure> {
    let seconds = |duration: Option<Duration>| match duration {
        Some(duration) if duration.subsec_millis() != 0 => {
            Err(Failure::new(Kind::Usage, "The retention and the age are counted in whole seconds."))
        }
        duration => Ok(duration.map(|duration| duration.as_secs())),
    };
    let (set_s, set_min_age_s) = (seconds(args.duration)?, seconds(args.min_age)?);
    let file = ClientFile::load(&args.config)?;
    let reply = admin::block_on(async {
        let volume = tree::named(&file, args.of.volume.as_deref()).await?.volume;
        admin::trash_retention(&file, TrashRetentionRequest { set_s, set_min_age_s, volume }).await
    })?;
    let (seconds, min_age_s) = (reply.retention_s, reply.min_age_s);
    match (args.output.format, seconds) {
        (Format::Json, _) => output::json(
            &json!({ "version": output::VERSION, "retention_s": seconds, "min_age_s": min_age_s }),
        ),
        (Format::Table, 0) => output::text_line("0: files that are deleted now are freed at once."),
        (Format::Table, _) => output::text_line(&format!("{}{}", span(seconds), young(min_age_s))),
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::TrashPlace;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(time(seconds * 1_000_000_000), text);
        }
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        for (seconds, text) in [(0, "0"), (86_400, "1d"), (5_400, "90m"), (7_200, "2h"), (61, "61s")] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn an_entry_says_what_was_where() {
        let entry = TrashEntry {
            place: Some(TrashPlace { until_ns: 2_000_000_000, inode: 7 }),
            size: 2048,
            deleted_by: 1000,
            deleted_ns: 1_000_000_000,
            path: bytes::Bytes::from_static(b"/a\nb"),
        };
        let row = cells(&entry);
        assert_eq!(row, ["7", "1970-01-01T00:00:01Z", "1000", "2.0 KiB", "1970-01-01T00:00:02Z", "/a\\nb"]);
        let status = TrashStatus { files: 1, bytes: 2048, retention_s: 86_400, min_age_s: 60 };
        assert_eq!(
            summary(&status),
            "The trash holds one file of 2.0 KiB; files that are deleted now stay for 1d, unless they are younger than 1m."
        );
        let shape = shape(&[entry], &status, false);
        assert_eq!((shape["version"].as_u64(), shape["entries"][0]["id"].as_u64()), (Some(1), Some(7)));
        assert_eq!((shape["trash"]["files"].as_u64(), &shape["more"]), (Some(1), &json!(false)));
    }
}
