//! `mooseng volume`: where volumes have their home, and which regions have them.

use mooseng_wire::admin::Volume;
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, Reading, VolumeArgs, VolumeCommand, VolumeNamed};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};

/// Asks and prints.
pub fn run(args: VolumeArgs) -> Result<(), Failure> {
    match args.command {
        VolumeCommand::List(args) => list(&args),
        VolumeCommand::Info(args) => info(&args),
        VolumeCommand::Create(_)
        | VolumeCommand::Set(_)
        | VolumeCommand::MoveHome(_)
        | VolumeCommand::Delete(_) => Err(Failure::not_built(
            "changing volumes (`mooseng volume create`, `set`, `move-home`, `delete`)",
        )),
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

/// A volume's number, as it is typed.
fn parse(text: &str) -> Result<u32, Failure> {
    if text == "/" {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        Failure::usage(format!("{text:?} isn't a volume: give its number, or / for the root volume."))
    })
}

fn info(args: &VolumeNamed) -> Result<(), Failure> {
    let id = parse(&args.volume)?;
    let found = volumes(&args.reading)?.into_iter().find(|volume| volume.id == id);
    let found = found.ok_or_else(|| {
        Failure::not_found(format!(
            "There is no volume {id}; `mooseng volume list` shows those that there are."
        ))
    })?;
    match args.reading.output.format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "volume": shape(&found) })),
        Format::Table => output::text_line(&table(std::slice::from_ref(&found))),
    }
}

fn durability(volume: &Volume) -> &'static str {
    if volume.geo { "geo" } else { "region" }
}

fn failover(volume: &Volume) -> &'static str {
    if volume.automatic { "automatic" } else { "manual" }
}

fn state(volume: &Volume) -> &'static str {
    if volume.open { "open" } else { "closed" }
}

fn table(volumes: &[Volume]) -> String {
    let mut table =
        Table::new(["VOLUME", "HOME", "EPOCH", "STATE", "DURABILITY", "FAILOVER", "REGIONS", "SYNC SET"]);
    for volume in volumes {
        table.row([
            if volume.id == 0 { "/".to_owned() } else { volume.id.to_string() },
            volume.home.clone(),
            volume.epoch.to_string(),
            state(volume).to_owned(),
            durability(volume).to_owned(),
            failover(volume).to_owned(),
            volume.regions.join(","),
            // Without `geo` nothing waits for it.
            if volume.geo { volume.sync_set.join(",") } else { "-".to_owned() },
        ]);
    }
    table.render()
}

fn shape(volume: &Volume) -> Value {
    json!({
        "id": volume.id, "home": volume.home, "epoch": volume.epoch, "state": state(volume), "durability": durability(volume),
        "failover": failover(volume), "regions": volume.regions, "sync_set": volume.sync_set,
    })
}

#[cfg(test)]
mod tests {
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
        };
        let other = Volume { id: 7, open: false, geo: true, automatic: false, ..root.clone() };
        let text = table(&[root, other.clone()]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["/", "a", "3", "open", "region", "automatic", "a,b", "-"]);
        assert_eq!(lines[2], ["7", "a", "3", "closed", "geo", "manual", "a,b", "a"]);
        assert_eq!(shape(&other)["failover"], "manual");
    }

    #[test]
    fn a_volume_is_named_by_its_number() {
        assert_eq!((parse("/").unwrap(), parse("7").unwrap()), (0, 7));
        for text in ["", "x", "-1", "/a"] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
