//! `mooseng regions`: the cluster's regions and the group in which they agree.

use mooseng_wire::admin::{AddRegionRequest, ListRegionsReply, MemberToAdd, Region, RegionMaster, Volume};
use std::time::Duration;

use mooseng_transport::root_sha256;
use mooseng_wire::global::{JoinRegion, JoinToken, Master};
use mooseng_wire::join;
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, Reading, RegionAdd, RegionRemove, RegionsArgs, RegionsCommand};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::plan;

/// How often is looked whether a master knows of a change.
const VERSION_TRIES: u32 = 50;
const VERSION_AGAIN: Duration = Duration::from_millis(200);

/// Asks and prints.
pub fn run(args: RegionsArgs) -> Result<(), Failure> {
    match args.command {
        RegionsCommand::List(args) => list(&args),
        RegionsCommand::Add(args) => add(args),
        RegionsCommand::Remove(args) => remove(args),
    }
}

/// A master, as `id=1,name=m1,address=HOST:PORT,zone=Z`.
pub fn parse_master(text: &str) -> Result<MemberToAdd, String> {
    let mut master = MemberToAdd::default();
    for part in text.split(',') {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("{part:?} isn't of the form KEY=VALUE"))?;
        match key {
            "id" => master.id = value.parse().map_err(|_| format!("{value:?} isn't a master's id"))?,
            "name" => master.name = value.to_owned(),
            "address" => master.address = value.to_owned(),
            "zone" => master.zone = value.to_owned(),
            other => return Err(format!("{other:?} isn't one of id, name, address, zone")),
        }
    }
    if master.id == 0 || master.name.is_empty() || master.address.is_empty() {
        return Err("a master needs an id from 1, a name and an address".to_owned());
    }
    match config::is_address(&master.address) {
        true => Ok(master),
        false => Err(format!(
            "the address {:?} of {} isn't of the form host:port, with a port from 1 to 65535",
            master.address, master.name
        )),
    }
}

fn add(args: RegionAdd) -> Result<(), Failure> {
    let RegionAdd { name, masters, number, witness, plan, config, output } = args;
    let file = ClientFile::load(&config)?;
    if plan {
        let asked = plan::regions::Adding { name: &name, number, witness, masters: &masters };
        let plan = admin::block_on(async {
            let (regions, volumes) = known(&file).await?;
            plan::regions::add(asked, &regions, &volumes)
        })?;
        return plan.print(output.format);
    }
    let secret: [u8; join::SECRET_BYTES] = rand::random();
    let hash = join::hash(&secret).to_vec().into();
    let request =
        AddRegionRequest { name: name.clone(), number: number.into(), witness, masters, join: hash };
    let reply = admin::block_on(admin::add_region(&file, request))?;
    let known = admin::block_on(regions_at(&file, reply.version))?;
    let root_sha256 = root_sha256(&file.tls.ca).map_err(|e| Failure::usage(format!("{e}.")))?;
    let token = join::to_text(&JoinToken {
        cluster: file.cluster.clone(),
        root_sha256: root_sha256.to_vec().into(),
        region: name.clone(),
        lease_ms: known.lease_ms,
        regions: known.regions.into_iter().map(joined).collect(),
        secret: secret.to_vec().into(),
    });
    match output.format {
        Format::Json => output::json(
            &json!({ "version": output::VERSION, "agreed_version": reply.version, "join": token }),
        ),
        Format::Table => output::text_line(&format!(
            "Took the region {name} in. Give its masters this in their configuration, and start them:\n\n[global]\njoin = {token:?}\n\n\
             It is of use once, and until the region is added again or removed. Keep it to yourself."
        )),
    }
}

/// What is agreed on at that version: the master that answers may hear of it a moment later than the one that was told.
async fn regions_at(file: &ClientFile, version: u64) -> Result<ListRegionsReply, Failure> {
    for _ in 0..VERSION_TRIES {
        let known = admin::list_regions(file).await?;
        if known.version >= version {
            return Ok(known);
        }
        tokio::time::sleep(VERSION_AGAIN).await;
    }
    let again = "the region was taken in, and the masters that answer don't know of it yet: run the command again for a token.";
    Err(Failure::failed(again.to_owned()))
}

fn joined(region: Region) -> JoinRegion {
    let master = |m: RegionMaster| Master { id: m.id, name: m.name, address: m.address, zone: m.zone };
    let masters = region.masters.into_iter().map(master).collect();
    JoinRegion { name: region.name, number: region.number, witness: region.witness, masters }
}

/// What a plan is made of, asked by somebody who may change it.
async fn known(file: &ClientFile) -> Result<(ListRegionsReply, Vec<Volume>), Failure> {
    let (regions, volumes) = admin::cluster(file).await?;
    admin::may_administer(file, &regions.asked)?;
    Ok((regions, volumes))
}

fn planned_removal(file: &ClientFile, name: &str, format: Format) -> Result<(), Failure> {
    let plan = admin::block_on(async {
        let (regions, volumes) = known(file).await?;
        let leaders = admin::wide(file).await.map(|wide| wide.leaders).unwrap_or_default();
        let own = leaders.iter().find(|(region, _)| region == name).map(|(_, status)| status);
        plan::regions::remove(name, &regions, &volumes, own)
    })?;
    plan.print(format)
}

fn remove(args: RegionRemove) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    if args.plan {
        return planned_removal(&file, &args.name, args.output.format);
    }
    let reply = admin::block_on(admin::remove_region(&file, args.name.clone()))?;
    said(
        reply.version,
        &format!("Let go of the region {}. Its masters can be stopped.", args.name),
        args.output.format,
    )
}

fn said(version: u64, done: &str, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "agreed_version": version })),
        Format::Table => output::text_line(done),
    }
}

fn list(args: &Reading) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.config.as_deref())?)?;
    let reply = admin::block_on(admin::list_regions(&file))?;
    match args.output.format {
        Format::Json => output::json(&shape(&reply)),
        Format::Table => output::text_line(&page(&reply)),
    }
}

/// What the global group survives now, in a sentence.
pub fn survives(reply: &ListRegionsReply) -> String {
    if reply.version == 0 {
        return "The cluster isn't founded yet: the masters that vote at first must all be up for that."
            .into();
    }
    if !reply.quorum {
        return "The global group has no leader with a majority: nothing is decided between regions.".into();
    }
    match (reply.fatal.is_empty(), reply.survives_a_region_and_a_master) {
        (true, true) => "The global group survives the loss of any one region and one more master.".into(),
        (true, false) => "The global group survives the loss of any one region.".into(),
        (false, _) => format!("The global group wouldn't survive the loss of {}.", reply.fatal.join(" or ")),
    }
}

fn page(reply: &ListRegionsReply) -> String {
    let mut table =
        Table::new(["REGION", "NUMBER", "KIND", "LEASE", "MASTER", "ZONE", "ADDRESS", "STATE", "ROUND TRIP"]);
    for region in &reply.regions {
        for (i, master) in region.masters.iter().enumerate() {
            // Once for each region.
            let first = |text: String| if i == 0 { text } else { String::new() };
            table.row([
                first(region.name.clone()),
                first(region.number.to_string()),
                first(kind(region).to_owned()),
                first(lease(region)),
                master.name.clone(),
                master.zone.clone(),
                master.address.clone(),
                state(master).to_owned(),
                master
                    .round_trip_us
                    .map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1_000.0)),
            ]);
        }
    }
    let lasts =
        format!("A lease lasts {:.1} s; as seen from {}.", reply.lease_ms as f64 / 1_000.0, reply.asked);
    format!("{}\n\n{}\n\n{lasts}", survives(reply), table.render())
}

/// What it is for.
pub fn kind(region: &Region) -> &'static str {
    if region.witness { "witness" } else { "data" }
}

/// How old its lease is. One that was never renewed has no age.
pub fn lease(region: &Region) -> String {
    match (region.lease_age_ms, region.lease_ran_out) {
        (None, _) => "hasn't joined yet".to_owned(),
        (Some(age), true) => format!("ran out, renewed {:.1} s ago", age as f64 / 1_000.0),
        (Some(age), false) => format!("renewed {:.1} s ago", age as f64 / 1_000.0),
    }
}

fn state(master: &RegionMaster) -> &'static str {
    match (master.reachable, master.leader, master.voter) {
        (Some(false), ..) => "down",
        (_, true, _) => "leader",
        (_, _, true) => "voter",
        _ => "learner",
    }
}

fn shape(reply: &ListRegionsReply) -> Value {
    let master = |m: &RegionMaster| {
        json!({ "id": m.id, "name": m.name, "address": m.address, "zone": m.zone, "voter": m.voter, "leader": m.leader,
                "reachable": m.reachable, "round_trip_us": m.round_trip_us })
    };
    let region = |r: &Region| {
        json!({ "name": r.name, "number": r.number, "witness": r.witness, "lease_age_ms": r.lease_age_ms, "lease_ran_out": r.lease_ran_out,
                "masters": r.masters.iter().map(master).collect::<Vec<_>>() })
    };
    json!({
        "version": output::VERSION,
        "agreed_version": reply.version, "asked": reply.asked, "lease_ms": reply.lease_ms,
        "global_group": {
            "quorum": reply.quorum, "fatal_regions": reply.fatal,
            "survives_a_region": reply.quorum && reply.fatal.is_empty(),
            "survives_a_region_and_a_master": reply.survives_a_region_and_a_master,
        },
        "regions": reply.regions.iter().map(region).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> ListRegionsReply {
        let master = |name: &str, voter, leader, reachable| RegionMaster {
            name: name.into(),
            zone: "z".into(),
            address: "h:1".into(),
            voter,
            leader,
            reachable,
            round_trip_us: reachable.filter(|there| *there).map(|_| 61_270),
            ..Default::default()
        };
        let a = Region {
            name: "a".into(),
            number: 1,
            masters: vec![master("a1", true, true, Some(true)), master("a2", false, false, None)],
            lease_age_ms: Some(1_500),
            ..Default::default()
        };
        let w = Region {
            name: "w".into(),
            number: 3,
            witness: true,
            masters: vec![master("w1", true, false, Some(false))],
            lease_age_ms: Some(12_000),
            lease_ran_out: true,
        };
        ListRegionsReply {
            version: 1,
            regions: vec![a, w],
            asked: "a".into(),
            lease_ms: 10_000,
            quorum: true,
            fatal: vec!["a".into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_region_is_shown_with_its_masters_and_its_lease() {
        let text = page(&reply());
        assert!(text.starts_with("The global group wouldn't survive the loss of a."), "{text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("h:1")).collect();
        assert!(
            rows[0].contains("leader")
                && rows[0].contains("61.3 ms")
                && rows[0].contains("renewed 1.5 s ago")
        );
        assert!(rows[1].contains("learner") && !rows[1].contains("data"));
        assert!(rows[2].contains("witness") && rows[2].contains("ran out") && rows[2].contains("down"));
        let mut reply = reply();
        reply.regions[0].lease_age_ms = None;
        assert!(page(&reply).contains("hasn't joined yet"));
        let shape = shape(&self::reply());
        assert_eq!(shape["global_group"]["fatal_regions"], json!(["a"]));
        assert_eq!(shape["regions"][1]["masters"][0]["round_trip_us"], Value::Null);
    }

    #[test]
    fn a_master_is_told_by_what_it_needs() {
        let master = parse_master("id=1,name=m1,address=h:1,zone=z").unwrap();
        assert_eq!((master.id, master.address.as_str(), master.zone.as_str()), (1, "h:1", "z"));
        for text in
            ["", "m1", "id=1,name=m1", "id=0,name=m1,address=h:1", "id=x,name=m1,address=h:1", "port=3"]
        {
            assert!(parse_master(text).is_err(), "{text}");
        }
        for address in ["1.2.3.4", "foo:99999", "foo:", ":7000"] {
            let error = parse_master(&format!("id=1,name=m1,address={address}")).unwrap_err();
            assert!(error.contains(address) && error.contains("host:port"), "{error}");
        }
    }

    #[test]
    fn what_is_survived_is_said() {
        let with = |change: &dyn Fn(&mut ListRegionsReply)| {
            let mut reply = reply();
            reply.fatal.clear();
            change(&mut reply);
            survives(&reply)
        };
        assert!(with(&|_| ()).contains("any one region."));
        assert!(with(&|r| r.survives_a_region_and_a_master = true).contains("one more master"));
        assert!(with(&|r| r.quorum = false).contains("no leader"));
        assert!(with(&|r| r.version = 0).contains("isn't founded"));
    }
}
