//! `mooseng volume losses` and `mooseng salvage`: what failovers lost, and what of it is kept.

use mooseng_wire::admin::{
    Archive, LogPlace, Loss, NamedLoss, SalvagedContent, SalvagedEntry, SalvagedFile, ShowSalvageReply,
    ShowSalvageRequest, Volume,
};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, SalvageArgs, SalvageCommand, SalvageList, SalvageShow};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::output::{self, Table};
use crate::trash::{self, time};
use crate::volume::{self, Named};

/// Contents that a line shows at most.
const CONTENTS_SHOWN: usize = 3;

/// Asks and prints.
pub fn run(args: SalvageArgs) -> Result<(), Failure> {
    match args.command {
        SalvageCommand::List(args) => list(&args),
        SalvageCommand::Show(args) => show(&args),
        SalvageCommand::Restore(_) => {
            Err(Failure::not_built("restoring what was put aside (`mooseng salvage restore`)"))
        }
    }
}

fn shown(place: Option<&LogPlace>) -> String {
    place
        .filter(|place| place.epoch > 0)
        .map_or_else(|| "-".to_owned(), |at| format!("{}/{}", at.epoch, at.version))
}

/// A place as it is shown.
fn parse(text: &str) -> Result<LogPlace, Failure> {
    let parts =
        text.split_once('/').and_then(|(epoch, version)| Some((epoch.parse().ok()?, version.parse().ok()?)));
    let (epoch, version) = parts.ok_or_else(|| {
        Failure::usage(format!(
            "{text:?} isn't an archive: `mooseng salvage list` shows their ids, such as 1/300."
        ))
    })?;
    Ok(LogPlace { epoch, version })
}

/// `mooseng volume losses`.
pub fn losses(file: &ClientFile, volume: u32, format: Format) -> Result<(), Failure> {
    let reply = admin::block_on(admin::list_losses(file, volume))?;
    match format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "home": reply.home, "region": reply.region,
            "losses": reply.losses.iter().map(loss_shape).collect::<Vec<_>>(),
        })),
        Format::Table if reply.losses.is_empty() => {
            output::text_line("No failover of this volume is on record.")
        }
        Format::Table => {
            let mut text = loss_table(&reply.losses);
            for loss in &reply.losses {
                text.push_str(&format!("\n\n{}", told(loss, volume)));
                text.push_str(&files(loss, &reply.region));
            }
            if reply.home != reply.region {
                text.push_str(&format!(
                    "\n\nThis is what {} has replayed; the volume's home is {}.",
                    reply.region, reply.home
                ));
            }
            output::text_line(&text)
        }
    }
}

fn state(loss: &Loss) -> &'static str {
    if loss.named.is_some() { "named" } else { "open" }
}

/// How many entries were put aside; with a sign where there were others.
fn put_aside(named: &NamedLoss) -> String {
    format!("{}{}", named.entries, if named.gone_upto.is_some() { "+" } else { "" })
}

fn loss_table(losses: &[Loss]) -> String {
    let mut table = Table::new([
        "CLOSED",
        "OPENED",
        "OLD HOME",
        "NEW HOME",
        "WHEN",
        "CUT",
        "KNOWN",
        "UNDONE",
        "PUT ASIDE",
        "STATE",
    ]);
    for loss in losses {
        table.row([
            loss.closed.to_string(),
            loss.opened.to_string(),
            loss.old_home.clone(),
            loss.new_home.clone(),
            time(loss.at_ns),
            shown(loss.cut.as_ref()),
            shown(loss.known.as_ref()),
            loss.undone.to_string(),
            loss.named.as_ref().map_or_else(|| "-".to_owned(), put_aside),
            state(loss).to_owned(),
        ]);
    }
    table.render()
}

/// What can be said of it, and where to look further.
fn told(loss: &Loss, volume: u32) -> String {
    let (old, new, cut) = (&loss.old_home, &loss.new_home, shown(loss.cut.as_ref()));
    let mut text = match loss.undone {
        0 => format!("Epoch {}: {new} had nothing beyond the cut.", loss.closed),
        n => {
            let times = match (loss.undone_from_ns, loss.undone_upto_ns) {
                (Some(from), Some(upto)) => format!(" of {} to {}", time(from), time(upto)),
                _ => String::new(),
            };
            format!("Epoch {}: {new} had {n} entries{times} beyond the cut, and undid them.", loss.closed)
        }
    };
    if let Some(ns) = loss.cut_ns {
        text.push_str(&format!(" The change at the cut is of {}: what came after it is lost.", time(ns)));
    }
    if let Some(ns) = loss.since_ns {
        text.push_str(&format!(
            " {new} had heard at {} that {old} had nothing beyond the cut: none of what is lost is older than that, but for the way between them.",
            time(ns)
        ));
    }
    if !loss.sessions.is_empty() {
        let more = if loss.more_sessions { ", and more" } else { "" };
        let sessions: Vec<String> =
            loss.sessions.iter().map(|of| format!("{} ({} entries)", of.session, of.entries)).collect();
        text.push_str(&format!(" What was undone came from the sessions {}{more}.", sessions.join(", ")));
    }
    match &loss.named {
        None => text.push_str(&format!(" What {old} had beyond it isn't known before it comes back.")),
        Some(named) if named.entries == 0 && named.gone_upto.is_none() => {
            text.push_str(&format!(" {old} had nothing beyond it."));
        }
        Some(named) if named.entries == 0 => text.push_str(&format!(" {old} put nothing aside.")),
        Some(named) => {
            let paths = format!("{}{}", named.paths, if named.more_paths { " and more" } else { "" });
            text.push_str(&format!(
                " {old} put {} entries aside, which concern {paths} paths: `mooseng salvage show {cut}{}` there.",
                named.entries,
                of_volume(volume)
            ));
        }
    }
    if let Some(named) = &loss.named
        && let Some(gone) = gone(named.gone_upto.as_ref(), old)
    {
        text.push_str(&format!(" {gone}"));
        if loss.undone > 0 {
            text.push_str(&format!(" What {new} undid is put aside there."));
        }
    }
    text
}

/// How a command is told of which volume it is.
fn of_volume(volume: u32) -> String {
    if volume == 0 { String::new() } else { format!(" --volume {volume}") }
}

/// The files that a loss concerns, as far as the asked region has put something of it aside; begins with a newline where there are such.
fn files(loss: &Loss, region: &str) -> String {
    let mut text = String::new();
    if !loss.files.is_empty() {
        text.push_str(&format!("\nFiles that it concerns, as {region} has them put aside:"));
    }
    for file in &loss.files {
        text.push_str(&format!("\n  {}  {}", file.inode, name_of(file)));
    }
    if loss.more_files {
        text.push_str("\n  and more: `mooseng salvage show` names them.");
    }
    text
}

/// What can't be told, for the log of a region didn't go back to the cut.
fn gone(upto: Option<&LogPlace>, region: &str) -> Option<String> {
    let upto = shown(Some(upto?));
    Some(format!(
        "The log of {region} didn't go back to the cut (`house.log_kept_mib`): what it had up to {upto} isn't among that, and can't be named any more."
    ))
}

fn place_shape(place: Option<&LogPlace>) -> Value {
    place.map_or(Value::Null, |place| json!({ "epoch": place.epoch, "version": place.version }))
}

fn loss_shape(loss: &Loss) -> Value {
    json!({
        "closed": loss.closed, "opened": loss.opened, "old_home": loss.old_home, "new_home": loss.new_home, "at_ns": loss.at_ns,
        "cut_ns": loss.cut_ns, "since_ns": loss.since_ns, "undone_from_ns": loss.undone_from_ns, "undone_upto_ns": loss.undone_upto_ns,
        "files": loss.files.iter().map(file_shape).collect::<Vec<_>>(), "more_files": loss.more_files,
        "cut": place_shape(loss.cut.as_ref()), "known": place_shape(loss.known.as_ref()), "undone": loss.undone,
        "undone_upto": place_shape(loss.undone_upto.as_ref()),
        "sessions": loss.sessions.iter().map(|of| json!({ "session": of.session, "entries": of.entries })).collect::<Vec<_>>(),
        "more_sessions": loss.more_sessions, "state": state(loss),
        "named": loss.named.as_ref().map(|named| json!({
            "at_ns": named.at_ns, "entries": named.entries, "paths": named.paths, "more_paths": named.more_paths,
            "gone_upto": place_shape(named.gone_upto.as_ref()),
        })),
    })
}

/// What was put aside in a region, of each volume.
struct Listed {
    region: String,
    archives: Vec<(u32, Archive)>,
}

fn list(args: &SalvageList) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let named = match &args.volume {
        Some(text) => Some(Named::parse(text)?.number(&file)?),
        None => None,
    };
    let listed = admin::block_on(async {
        let (mut region, volumes) = match named {
            Some(volume) => (String::new(), vec![volume]),
            None => had(&file).await?,
        };
        let mut archives = Vec::new();
        for volume in volumes {
            match admin::list_salvage(&file, volume).await {
                Ok(reply) => {
                    archives.extend(reply.archives.into_iter().map(|archive| (volume, archive)));
                    region = reply.region;
                }
                // It was deleted since.
                Err(failure) if named.is_none() && failure.kind() == Kind::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(Listed { region, archives })
    })?;
    match args.output.format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "region": listed.region,
            "archives": listed.archives.iter().map(|(of, archive)| listed_shape(*of, archive)).collect::<Vec<_>>(),
        })),
        Format::Table if listed.archives.is_empty() => {
            output::text_line(&format!("Nothing was put aside in {}.", listed.region))
        }
        Format::Table => {
            let mut text = archive_table(&listed.archives);
            for (volume, archive) in &listed.archives {
                if let Some(gone) = gone(archive.gone_upto.as_ref(), &listed.region) {
                    let (volume, cut) = (volume::name_of(*volume), shown(archive.cut.as_ref()));
                    text.push_str(&format!("\n\n{cut} of volume {volume}: {gone}"));
                }
            }
            output::text_line(&text)
        }
    }
}

/// The configured region, and the volumes that it has, or has something of still.
async fn had(file: &ClientFile) -> Result<(String, Vec<u32>), Failure> {
    match admin::cluster(file).await {
        Ok((regions, volumes)) => Ok((regions.asked.clone(), of_region(&volumes, &regions.asked))),
        // A cluster of one region has one volume.
        Err(failure) if failure.kind() == Kind::Failed => Ok((String::new(), vec![0])),
        Err(failure) => Err(failure),
    }
}

/// The volumes that a region has, or has something of still.
fn of_region(volumes: &[Volume], region: &str) -> Vec<u32> {
    let has = |volume: &&Volume| {
        volume.regions.iter().any(|of| of == region) || volume.letting_go.iter().any(|of| of.region == region)
    };
    volumes.iter().filter(has).map(|volume| volume.id).collect()
}

fn listed_shape(volume: u32, archive: &Archive) -> Value {
    let mut shape = archive_shape(archive);
    shape["volume"] = volume.into();
    shape
}

fn archive_table(archives: &[(u32, Archive)]) -> String {
    let mut table = Table::new(["VOLUME", "ID", "UP TO", "WHEN", "ENTRIES", "BYTES", "PATHS", "FROM"]);
    for (volume, archive) in archives {
        table.row([
            volume::name_of(*volume),
            shown(archive.cut.as_ref()),
            shown(archive.upto.as_ref()),
            time(archive.at_ns),
            archive.entries.to_string(),
            archive.bytes.to_string(),
            format!("{}{}", archive.paths, if archive.more_paths { "+" } else { "" }),
            origin(archive).to_owned(),
        ]);
    }
    table.render()
}

fn origin(archive: &Archive) -> &'static str {
    if archive.was_home { "home" } else { "replica" }
}

fn archive_shape(archive: &Archive) -> Value {
    json!({
        "id": shown(archive.cut.as_ref()), "cut": place_shape(archive.cut.as_ref()), "upto": place_shape(archive.upto.as_ref()),
        "at_ns": archive.at_ns, "entries": archive.entries, "bytes": archive.bytes, "paths": archive.paths,
        "more_paths": archive.more_paths, "from": origin(archive), "gone_upto": place_shape(archive.gone_upto.as_ref()),
    })
}

fn show(args: &SalvageShow) -> Result<(), Failure> {
    let cut = parse(&args.id)?;
    let named = args.of.volume.as_deref().map(Named::parse).transpose()?;
    let file = ClientFile::load(&args.config)?;
    let volume = match named {
        Some(named) => named.number(&file)?,
        None => 0,
    };
    let reply = admin::block_on(async {
        let mut whole: Option<ShowSalvageReply> = None;
        loop {
            let after = whole.as_ref().and_then(|whole| whole.entries.last()).and_then(|entry| entry.at);
            let request = ShowSalvageRequest { volume, cut: Some(cut), after };
            let page = admin::show_salvage(&file, request).await?;
            let more = page.more && !page.entries.is_empty();
            match &mut whole {
                Some(whole) => whole.entries.extend(page.entries),
                None => whole = Some(page),
            }
            if !more {
                return Ok(whole.unwrap_or_default());
            }
        }
    })?;
    match args.output.format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "archive": reply.archive.as_ref().map(|archive| listed_shape(volume, archive)),
            "files": reply.files.iter().map(file_shape).collect::<Vec<_>>(),
            "entries": reply.entries.iter().map(entry_shape).collect::<Vec<_>>(),
        })),
        Format::Table => {
            let mut text = format!("{}\n\n{}", file_table(&reply.files), entry_table(&reply.entries));
            let archive = reply.archive.unwrap_or_default();
            if let Some(gone) = gone(archive.gone_upto.as_ref(), "the region") {
                text.push_str(&format!("\n\n{gone}"));
            }
            if archive.more_paths {
                text.push_str("\n\nMore paths are concerned than are named here; the inodes of all are among the entries.");
            }
            output::text_line(&text)
        }
    }
}

fn name_of(file: &SalvagedFile) -> String {
    match (file.path.is_empty(), file.gone) {
        (false, _) => file.path.chars().flat_map(trash::shown).collect(),
        (true, true) => "(gone)".to_owned(),
        (true, false) => "(no name)".to_owned(),
    }
}

fn file_table(files: &[SalvagedFile]) -> String {
    let mut table = Table::new(["INODE", "PATH", "SIZE", "CHANGED", "FIRST ENTRY"]);
    for file in files {
        table.row([
            file.inode.to_string(),
            name_of(file),
            file.size.to_string(),
            if file.gone { "-".to_owned() } else { time(file.mtime_ns) },
            shown(file.first.as_ref()),
        ]);
    }
    table.render()
}

fn entry_table(entries: &[SalvagedEntry]) -> String {
    let mut table = Table::new(["ENTRY", "TIME", "SESSION", "CHANGED", "INODES", "CONTENTS"]);
    for entry in entries {
        let kinds: Vec<String> = entry.kinds.iter().map(|of| format!("{} {}", of.records, of.kind)).collect();
        let inodes: Vec<String> = entry.inodes.iter().map(u64::to_string).collect();
        table.row([
            shown(entry.at.as_ref()),
            entry.time_ns.map_or_else(|| "-".to_owned(), time),
            if entry.session == 0 { "-".to_owned() } else { entry.session.to_string() },
            kinds.join(", "),
            inodes.join(" "),
            contents(&entry.contents, entry.more_contents),
        ]);
    }
    table.render()
}

fn contents(all: &[SalvagedContent], more: bool) -> String {
    let mut shown: Vec<String> = all.iter().take(CONTENTS_SHOWN).map(content).collect();
    match all.len().saturating_sub(CONTENTS_SHOWN) {
        0 if !more => {}
        n => shown.push(format!("and {n}{} more", if more { "+" } else { "" })),
    }
    if shown.is_empty() { "-".to_owned() } else { shown.join("; ") }
}

fn content(of: &SalvagedContent) -> String {
    let bytes = format!("{}: {}+{}", of.inode, of.offset, of.length);
    match (of.chunk, of.here) {
        (0, _) => format!("{bytes} inline"),
        (chunk, true) => format!("{bytes} in chunk {chunk}"),
        (chunk, false) => format!("{bytes} in chunk {chunk}, not here"),
    }
}

fn file_shape(file: &SalvagedFile) -> Value {
    json!({
        "inode": file.inode, "path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, "ctime_ns": file.ctime_ns,
        "gone": file.gone, "first": place_shape(file.first.as_ref()),
    })
}

fn entry_shape(entry: &SalvagedEntry) -> Value {
    json!({
        "at": place_shape(entry.at.as_ref()), "time_ns": entry.time_ns, "session": (entry.session != 0).then_some(entry.session),
        "changed": entry.kinds.iter().map(|of| (of.kind.clone(), json!(of.records))).collect::<serde_json::Map<_, _>>(),
        "inodes": entry.inodes, "more_contents": entry.more_contents,
        "contents": entry.contents.iter().map(|of| json!({
            "inode": of.inode, "offset": of.offset, "length": of.length, "chunk": (of.chunk != 0).then_some(of.chunk),
            "chunk_offset": of.chunk_offset, "here": of.here,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{LettingGo, LossSession, SalvagedKind};

    use super::*;

    fn at(epoch: u64, version: u64) -> Option<LogPlace> {
        Some(LogPlace { epoch, version })
    }

    #[test]
    fn an_archive_is_named_by_the_place_that_it_follows() {
        assert_eq!(parse("1/300").unwrap(), LogPlace { epoch: 1, version: 300 });
        for text in ["", "1", "1/", "/", "a/b", "1/2/3", "-1/2"] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!((shown(at(1, 300).as_ref()), shown(None)), ("1/300".to_owned(), "-".to_owned()));
    }

    #[test]
    fn a_loss_says_what_is_known_of_it() {
        let open = Loss {
            closed: 1,
            opened: 2,
            old_home: "a".into(),
            new_home: "b".into(),
            cut: at(1, 300),
            ..Loss::default()
        };
        assert_eq!(
            told(&open, 0),
            "Epoch 1: b had nothing beyond the cut. What a had beyond it isn't known before it comes back."
        );
        let named = Loss {
            undone: 2,
            sessions: vec![LossSession { session: 7, entries: 2 }],
            named: Some(NamedLoss { entries: 5, paths: 3, more_paths: true, at_ns: 1, gone_upto: None }),
            ..open.clone()
        };
        assert_eq!(
            told(&named, 0),
            "Epoch 1: b had 2 entries beyond the cut, and undid them. What was undone came from the sessions 7 (2 entries). \
             a put 5 entries aside, which concern 3 and more paths: `mooseng salvage show 1/300` there."
        );
        let nothing = Loss { named: Some(NamedLoss::default()), ..open.clone() };
        assert!(told(&nothing, 0).ends_with("a had nothing beyond it."));
        assert!(told(&named, 7).ends_with("`mooseng salvage show 1/300 --volume 7` there."));
        let timed = Loss { cut_ns: Some(1_000_000_000), ..open.clone() };
        assert!(told(&timed, 0).contains("The change at the cut is of 1970-01-01T00:00:01Z"));
        let heard = Loss {
            since_ns: Some(2_000_000_000),
            undone_from_ns: Some(3_000_000_000),
            undone_upto_ns: Some(4_000_000_000),
            ..named.clone()
        };
        let says = told(&heard, 0);
        let undid = "b had 2 entries of 1970-01-01T00:00:03Z to 1970-01-01T00:00:04Z beyond the cut";
        assert!(says.contains(undid), "{says}");
        assert!(says.contains("b had heard at 1970-01-01T00:00:02Z that a had nothing beyond"), "{says}");
        assert_eq!(loss_shape(&heard)["since_ns"], 2_000_000_000);
        assert_eq!(loss_shape(&named)["undone_upto_ns"], Value::Null);
        let file = SalvagedFile { inode: 9, path: "/d/f".into(), ..SalvagedFile::default() };
        let with = Loss { files: vec![file], more_files: true, ..open.clone() };
        let text = files(&with, "b");
        assert!(
            text.contains("as b has them") && text.contains("9  /d/f") && text.contains("and more"),
            "{text}"
        );
        assert_eq!(files(&open, "b"), "");
        assert_eq!(loss_shape(&with)["files"][0]["path"], "/d/f");
        let gone = |entries| Loss {
            named: Some(NamedLoss { entries, gone_upto: at(1, 700), ..NamedLoss::default() }),
            ..open.clone()
        };
        let told = |loss: &Loss| super::told(loss, 0);
        assert!(told(&gone(0)).contains("a put nothing aside. The log of a didn't go back to the cut"));
        assert!(told(&gone(2)).contains("what it had up to 1/700 isn't among that"), "{}", told(&gone(2)));
        assert!(told(&Loss { undone: 3, ..gone(2) }).ends_with("What b undid is put aside there."));
        assert_eq!(loss_shape(&gone(2))["named"]["gone_upto"]["version"], 700);
        assert_eq!(loss_shape(&named)["named"]["gone_upto"], Value::Null);
        assert!(loss_table(&[gone(2)]).contains("2+"));
        let archive = Archive { gone_upto: at(1, 700), ..Archive::default() };
        assert_eq!(archive_shape(&archive)["gone_upto"]["version"], 700);
        assert!(loss_table(&[open, named.clone()]).contains("named"));
        assert_eq!(loss_shape(&named)["state"], "named");
    }

    #[test]
    fn archives_of_all_volumes_are_listed_each_with_its_volume() {
        let of = |id, regions: &[&str], letting_go: &[&str]| Volume {
            id,
            regions: regions.iter().map(|of| (*of).to_owned()).collect(),
            letting_go: letting_go
                .iter()
                .map(|of| LettingGo { region: (*of).to_owned(), ..LettingGo::default() })
                .collect(),
            ..Volume::default()
        };
        let all = [of(0, &["a", "b"], &[]), of(1, &["a"], &[]), of(2, &["b"], &["a"]), of(3, &["b"], &[])];
        assert_eq!(of_region(&all, "a"), [0, 1, 2]);
        assert_eq!(of_region(&all, "w"), [0; 0]);
        let archive = Archive { cut: at(1, 300), ..Archive::default() };
        let text = archive_table(&[(0, archive), (7, archive)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][0], "VOLUME");
        assert_eq!((&lines[1][..2], &lines[2][..2]), (&["/", "1/300"][..], &["7", "1/300"][..]));
        assert_eq!(listed_shape(7, &archive)["volume"], 7);
    }

    #[test]
    fn an_entry_says_which_bytes_there_are() {
        let of = |chunk, here| SalvagedContent {
            inode: 7,
            offset: 0,
            length: 10,
            chunk,
            here,
            ..Default::default()
        };
        assert_eq!(contents(&[], false), "-");
        assert_eq!(contents(&[of(0, true), of(3, true)], false), "7: 0+10 inline; 7: 0+10 in chunk 3");
        let many = vec![of(3, false); 5];
        assert!(contents(&many, true).ends_with("7: 0+10 in chunk 3, not here; and 2+ more"));
        let entry = SalvagedEntry {
            at: at(1, 301),
            kinds: vec![SalvagedKind { kind: "inode".into(), records: 2 }],
            inodes: vec![7],
            ..SalvagedEntry::default()
        };
        assert!(entry_table(std::slice::from_ref(&entry)).contains("2 inode"));
        assert_eq!(entry_shape(&entry)["changed"]["inode"], 2);
        let gone = SalvagedFile { gone: true, ..SalvagedFile::default() };
        assert!(file_table(&[gone]).contains("(gone)"));
    }
}
