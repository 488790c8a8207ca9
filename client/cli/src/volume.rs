//! `mooseng volume`: where volumes have their home, and which regions have them.

use mooseng_wire::admin::{Replica, Volume, VolumeStage};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, Reading, VolumeArgs, VolumeCommand, VolumeNamed};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::outlook;
use crate::output::{self, Table};
use crate::salvage;

mod create;
mod move_home;
mod set;
mod verify;

/// Asks and prints.
pub fn run(args: VolumeArgs) -> Result<(), Failure> {
    match args.command {
        VolumeCommand::List(args) => list(&args),
        VolumeCommand::Info(args) => info(&args),
        VolumeCommand::Verify(args) => verify::run(&args),
        VolumeCommand::Losses(args) => {
            let named = Named::parse(&args.volume)?;
            let file = ClientFile::load(&args.config)?;
            salvage::losses(&file, named.number(&file)?, args.output.format)
        }
        VolumeCommand::Set(args) => set::run(&args),
        VolumeCommand::MoveHome(args) => move_home::run(&args),
        VolumeCommand::Create(args) => create::run(&args),
        VolumeCommand::Delete(args) => create::delete(&args),
    }
}

fn volumes(args: &Reading) -> Result<Vec<Volume>, Failure> {
    let file = ClientFile::load(&config::find(args.config.as_deref())?)?;
    Ok(admin::block_on(admin::list_volumes(&file))?.volumes)
}

fn list(args: &Reading) -> Result<(), Failure> {
    let volumes = volumes(args)?;
    match args.output.format {
        Format::Json => {
            let volumes: Vec<Value> = volumes.iter().map(shape).collect();
            output::json(&json!({ "version": output::VERSION, "volumes": volumes }))
        }
        Format::Table => output::text_line(&table(&volumes)),
    }
}

/// A volume, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// By its number.
    Number(u32),
    /// By the path that it was joined at, without a slash at its end.
    Path(String),
}

impl Named {
    /// By a number, or a path from the root of the filesystem.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with('/') {
            let path = text.trim_end_matches('/');
            return Ok(if path.is_empty() { Self::Number(0) } else { Self::Path(path.to_owned()) });
        }
        text.parse().map(Self::Number).map_err(|_| {
            Failure::usage(format!(
                "{text:?} isn't a volume: give its number, or the path of the directory at which it is joined, from the root of the filesystem."
            ))
        })
    }

    /// Which of these it is.
    fn find<'a>(&self, volumes: &'a [Volume]) -> Result<&'a Volume, Failure> {
        let is = |volume: &&Volume| match self {
            Self::Number(id) => volume.id == *id,
            Self::Path(at) => path(volume) == at,
        };
        let mut found = volumes.iter().filter(is);
        match (found.next(), found.next(), self) {
            (Some(one), None, _) => Ok(one),
            // A directory above it was renamed, and another one has its name by now.
            (Some(one), Some(other), _) => Err(Failure::usage(format!(
                "{} was the path of volume {} when that was made, and of volume {}: give the number of the one that you mean.",
                path(one),
                one.id,
                other.id
            ))),
            (None, _, Self::Number(id)) => Err(Failure::not_found(format!(
                "There is no volume {id}; `mooseng volume list` shows those that there are."
            ))),
            (None, _, Self::Path(at)) => Err(Failure::not_found(format!(
                "No volume was joined at {at}; `mooseng volume list` shows where those are that there are."
            ))),
        }
    }

    /// Its number. Masters are asked where it is named by its path.
    pub fn number(&self, file: &ClientFile) -> Result<u32, Failure> {
        match self {
            Self::Number(id) => Ok(*id),
            Self::Path(_) => {
                let all = admin::block_on(admin::list_volumes(file))?.volumes;
                self.find(&all).map(|volume| volume.id)
            }
        }
    }
}

fn info(args: &VolumeNamed) -> Result<(), Failure> {
    let named = Named::parse(&args.volume)?;
    let file = ClientFile::load(&config::find(args.reading.config.as_deref())?)?;
    let (regions, all) = admin::block_on(admin::cluster(&file))?;
    let found = named.find(&all)?.clone();
    let names: Vec<String> = regions.regions.iter().map(|region| region.name.clone()).collect();
    let losses = outlook::of(&found, &names, &regions.fatal);
    match args.reading.output.format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "volume": shape(&found), "failover_now": outlook::failover_loses(&found),
            "losses": losses.iter().map(outlook::Outlook::shape).collect::<Vec<_>>(),
        })),
        Format::Table => {
            let (volume, replicas) = (table(std::slice::from_ref(&found)), replicas(&found));
            let losses: Vec<String> = losses
                .iter()
                .map(|loss| format!("If {} were lost: {}", loss.region, loss.sentence))
                .collect();
            output::text_line(&format!("{volume}\n\n{replicas}\n\n{}", losses.join("\n")))
        }
    }
}

/// How far the regions are that aren't the home, and those that aren't to have it any more.
pub fn replicas(volume: &Volume) -> String {
    let mut lines = vec![followers(volume)];
    if volume.held {
        lines.push(format!(
            "Writers wait: what no other region has is {} old, and its lag_max is {}.",
            volume.tail_ms.map_or_else(|| "too".to_owned(), outlook::seconds),
            lag_max(volume)
        ));
    }
    lines.extend(volume.letting_go.iter().map(|of| {
        format!("{} isn't to have it any more, and has something of it still: {}.", of.region, of.stage)
    }));
    lines.join("\n")
}

fn followers(volume: &Volume) -> String {
    if volume.replicas.is_empty() {
        return "No other region has it.".to_owned();
    }
    let mut table =
        Table::new(["REPLICA", "AT", "BEHIND", "COMPLETE AT", "DATA BEHIND", "LOG BEHIND", "STATE"]);
    for replica in &volume.replicas {
        table.row([
            replica.region.clone(),
            place(replica.epoch, replica.version),
            age(replica),
            replica.complete.map_or_else(|| "-".to_owned(), |at| place(at.epoch, at.version)),
            complete_age(replica),
            log_behind(replica),
            condition(replica),
        ]);
    }
    table.render()
}

/// A place of the log.
fn place(epoch: u64, version: u64) -> String {
    if epoch == 0 { "-".to_owned() } else { format!("{epoch}/{version}") }
}

/// For how long it has lacked what it lacks, data included, which is what a failover to it would lose; with a sign where it is longer than that.
fn complete_age(replica: &Replica) -> String {
    match replica.complete {
        Some(_) if replica.trouble.is_empty() => {
            let longer = if replica.complete_behind_longer { "+" } else { "" };
            format!("{}{longer}", outlook::seconds(replica.complete_behind_ms.unwrap_or(0)))
        }
        _ => "-".to_owned(),
    }
}

/// About how many bytes of the log lie behind where it is complete; with a sign where there are more.
fn log_behind(replica: &Replica) -> String {
    let more = if replica.log_bytes_more { "+" } else { "" };
    match replica.log_bytes_behind {
        Some(bytes) if replica.trouble.is_empty() => format!("{}{more}", output::bytes(bytes)),
        _ => "-".to_owned(),
    }
}

/// For how long it has lacked entries that it lacks: 0 where it lacks none.
fn age(replica: &Replica) -> String {
    match replica.behind_ms {
        None if replica.epoch == 0 || !replica.trouble.is_empty() => "-".to_owned(),
        behind => outlook::seconds(behind.unwrap_or(0)),
    }
}

fn condition(replica: &Replica) -> String {
    match (replica.trouble.as_str(), replica.copying, replica.chunks_awaited) {
        ("", true, _) => "is being copied".to_owned(),
        ("", false, 0) => "follows".to_owned(),
        ("", false, 1) => "follows; a chunk is still to be fetched".to_owned(),
        ("", false, n) => format!("follows; {n} chunks are still to be fetched"),
        (trouble, ..) => format!("isn't reached: {trouble}"),
    }
}

fn durability(volume: &Volume) -> &'static str {
    if volume.geo { "geo" } else { "region" }
}

fn failover(volume: &Volume) -> &'static str {
    if volume.automatic { "automatic" } else { "manual" }
}

/// What fsync does while the home is alone in the sync set.
fn on_sync_loss(volume: &Volume) -> &'static str {
    if volume.blocks_alone { "block" } else { "degrade" }
}

/// How old what no other region has may be before writers wait.
fn lag_max(volume: &Volume) -> String {
    match volume.lag_max_ms {
        0 => "none".to_owned(),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// As it is typed. One that is planned has a path, and no number yet.
pub fn name(volume: &Volume) -> String {
    match volume.id {
        0 if !volume.path.is_empty() => volume.path.clone(),
        id => name_of(id),
    }
}

/// The same of its number.
pub fn name_of(id: u32) -> String {
    if id == 0 { "/".to_owned() } else { id.to_string() }
}

/// Where it is joined, as its path was when it was made.
pub fn path(volume: &Volume) -> &str {
    if volume.id == 0 { "/" } else { &volume.path }
}

/// Whether its directory names it.
fn joined(volume: &Volume) -> &'static str {
    match volume.stage() {
        VolumeStage::Unspecified => "-",
        VolumeStage::Made => "not yet",
        VolumeStage::Joined => "yes",
        VolumeStage::Leaving => "leaving",
    }
}

fn state(volume: &Volume) -> &'static str {
    if volume.open { "open" } else { "closed" }
}

/// Volumes, one a row.
pub fn table(volumes: &[Volume]) -> String {
    let mut table = Table::new([
        "VOLUME",
        "PATH",
        "JOINED",
        "HOME",
        "EPOCH",
        "STATE",
        "DURABILITY",
        "FAILOVER",
        "REGIONS",
        "SYNC SET",
        "ON SYNC LOSS",
        "LAG MAX",
    ]);
    for volume in volumes {
        table.row([
            name(volume),
            path(volume).to_owned(),
            joined(volume).to_owned(),
            volume.home.clone(),
            volume.epoch.to_string(),
            state(volume).to_owned(),
            durability(volume).to_owned(),
            failover(volume).to_owned(),
            volume.regions.join(","),
            // Without `geo` nothing waits for it.
            if volume.geo { volume.sync_set.join(",") } else { "-".to_owned() },
            on_sync_loss(volume).to_owned(),
            // What a `geo` volume's fsync has answered for isn't behind.
            if volume.geo { "-".to_owned() } else { lag_max(volume) },
        ]);
    }
    table.render()
}

/// A volume in JSON.
pub fn shape(volume: &Volume) -> Value {
    json!({
        "id": volume.id, "home": volume.home, "epoch": volume.epoch, "state": state(volume), "durability": durability(volume),
        "path": path(volume), "parent": (volume.id != 0).then_some(volume.parent), "joined": joined(volume),
        "failover": failover(volume), "regions": volume.regions, "sync_set": volume.sync_set, "on_sync_loss": on_sync_loss(volume),
        "lag_max_ms": (volume.lag_max_ms > 0).then_some(volume.lag_max_ms), "tail_ms": volume.tail_ms, "writers_held": volume.held,
        "replicas": volume.replicas.iter().map(|r| json!({
            "region": r.region, "log_epoch": r.epoch, "log_version": r.version, "copying": r.copying, "behind_ms": r.behind_ms,
            "complete_epoch": r.complete.map(|at| at.epoch), "complete_version": r.complete.map(|at| at.version),
            "complete_behind_ms": r.complete_behind_ms, "complete_behind_longer": r.complete_behind_longer,
            "log_bytes_behind": r.log_bytes_behind, "log_bytes_more": r.log_bytes_more,
            "chunks_awaited": r.chunks_awaited, "trouble": r.trouble,
        })).collect::<Vec<_>>(),
        "letting_go": volume.letting_go.iter().map(|of| json!({ "region": of.region, "stage": of.stage })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{LettingGo, LogPlace};

    use super::*;

    #[test]
    fn a_volume_is_shown() {
        let root = Volume {
            id: 0,
            home: "a".into(),
            epoch: 3,
            open: true,
            geo: false,
            regions: vec!["a".into(), "b".into()],
            sync_set: vec!["a".into()],
            automatic: true,
            ..Volume::default()
        };
        let other = Volume {
            id: 7,
            open: false,
            geo: true,
            automatic: false,
            path: "/team".into(),
            stage: VolumeStage::Joined.into(),
            ..root.clone()
        };
        let text = table(&[root, other.clone()]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            ["/", "/", "-", "a", "3", "open", "region", "automatic", "a,b", "-", "degrade", "none"]
        );
        assert_eq!(
            lines[2],
            ["7", "/team", "yes", "a", "3", "closed", "geo", "manual", "a,b", "a", "degrade", "-"]
        );
        assert_eq!(shape(&other)["failover"], "manual");
        assert_eq!((&shape(&other)["path"], &shape(&other)["parent"]), (&json!("/team"), &json!(0)));
    }

    #[test]
    fn replicas_are_shown_with_what_is_amiss() {
        let replica = Replica {
            region: "b".into(),
            epoch: 2,
            version: 7,
            behind_ms: Some(1_250),
            complete: Some(LogPlace { epoch: 2, version: 5 }),
            complete_behind_ms: Some(3_500),
            log_bytes_behind: Some(2_048),
            ..Replica::default()
        };
        let of = shape(&Volume { replicas: vec![replica.clone()], ..Volume::default() });
        let of = &of["replicas"][0];
        assert_eq!((&of["behind_ms"], &of["complete_behind_ms"]), (&json!(1_250), &json!(3_500)));
        assert_eq!((&of["complete_version"], &of["log_bytes_behind"]), (&json!(5), &json!(2_048)));
        let longer = Replica { complete_behind_longer: true, log_bytes_more: true, ..replica.clone() };
        assert_eq!(complete_age(&longer), "3.500 s+");
        assert_eq!(log_behind(&longer), "2.0 KiB+");
        let lost = Replica { region: "c".into(), trouble: "no route".into(), ..Replica::default() };
        let text = replicas(&Volume { replicas: vec![replica, lost], ..Volume::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["b", "2/7", "1.250", "s", "2/5", "3.500", "s", "2.0", "KiB", "follows"]
        );
        assert!(lines[2].contains("isn't reached: no route"));
        let of = LettingGo { region: "d".into(), stage: "its records go".into() };
        let alone = Volume { letting_go: vec![of], ..Volume::default() };
        let text = replicas(&alone);
        assert!(text.starts_with("No other region has it.\nd isn't to have it any more"), "{text}");
        assert!(text.ends_with("still: its records go."), "{text}");
        assert_eq!(shape(&alone)["letting_go"][0]["region"], "d");
    }

    #[test]
    fn a_volume_is_named_by_its_number_or_its_path() {
        let of = |id, path: &str| Volume { id, path: path.into(), ..Volume::default() };
        let all = [of(0, ""), of(1, "/a"), of(2, "/a/b"), of(3, "/a/b")];
        let find = |text: &str| Named::parse(text)?.find(&all).map(|volume| volume.id);
        for (text, id) in [("/", 0), ("0", 0), ("1", 1), ("/a", 1), ("/a/", 1), ("2", 2)] {
            assert_eq!(find(text).unwrap(), id, "{text}");
        }
        for text in ["", "x", "-1", "a", "/a/b"] {
            assert_eq!(find(text).unwrap_err().exit_code(), 2, "{text}");
        }
        let said = |text: &str| find(text).unwrap_err().to_string();
        assert!(said("7").contains("no volume 7") && said("/c").contains("joined at /c"));
        assert!(said("/a/b").contains('2') && said("/a/b").contains('3'));
    }
}
