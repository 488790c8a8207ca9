//! `mooseng cluster`: the feature level.

use mooseng_wire::admin::{ClusterLevelReply, MasterLevels, RaiseLevelReply, RaiseLevelRequest};
use mooseng_wire::level::Levels;
use serde_json::{Value, json};

use crate::admin;
use crate::args::{ClusterArgs, ClusterCommand, ClusterLevel, Format};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};

/// Raised, no earlier release goes on.
const NO_WAY_BACK: &str =
    "Afterwards no master can be started with a release that doesn't support it: there is no way back.";

/// Asks, and prints what came of it.
pub fn run(args: &ClusterArgs) -> Result<(), Failure> {
    match &args.command {
        ClusterCommand::Level(args) if args.raise => raise(args),
        ClusterCommand::Level(args) => show(args),
    }
}

fn show(args: &ClusterLevel) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.reading.config.as_deref())?)?;
    let reply = admin::block_on(admin::cluster_level(&file))?;
    match args.reading.output.format {
        Format::Json => output::json(&shape(&reply)),
        Format::Table => output::text_line(&page(&reply)),
    }
}

fn raise(args: &ClusterLevel) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.reading.config.as_deref())?)?;
    let request = RaiseLevelRequest { to: None, plan: args.plan };
    let reply = admin::block_on(admin::raise_level(&file, request))?;
    match args.reading.output.format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "agreed_version": reply.version, "plan": args.plan,
            "level_before": reply.before, "level": reply.level, "allows": reply.allows,
        })),
        Format::Table => output::text_line(&raised(&reply, args.plan)),
    }
}

fn raised(reply: &RaiseLevelReply, plan: bool) -> String {
    let RaiseLevelReply { before, level, .. } = reply;
    if before == level {
        return format!("The cluster is at feature level {level}, and no master supports a higher one.");
    }
    match plan {
        true => format!(
            "Nothing was changed. The cluster could be raised from feature level {before} to {level}: all masters of all regions support it.{} {NO_WAY_BACK}",
            allowed(" That would allow: ", &reply.allows)
        ),
        false => format!(
            "The cluster is at feature level {level}; it was at {before}.{} No master can be started any more with a release that doesn't support it.",
            allowed(" From now on there may be: ", &reply.allows)
        ),
    }
}

fn allowed(begin: &str, allows: &[String]) -> String {
    if allows.is_empty() { String::new() } else { format!("{begin}{}.", allows.join(", ")) }
}

fn levels(master: &MasterLevels) -> Option<Levels> {
    Some(Levels::told(master.lowest?, master.highest?))
}

fn state(master: &MasterLevels, level: u32) -> &'static str {
    match (master.reachable, levels(master)) {
        (false, None) => "doesn't answer, never told",
        (false, Some(_)) => "doesn't answer, told before",
        (true, None) => "not asked yet",
        (true, Some(levels)) if !levels.include(mooseng_wire::level::FeatureLevel(level)) => {
            "not heard: other release needed"
        }
        (true, Some(_)) => "answers",
    }
}

fn page(reply: &ClusterLevelReply) -> String {
    if reply.version == 0 {
        return "The cluster isn't founded yet: it begins with the feature level of the release that founds it.".to_owned();
    }
    let mut table = Table::new(["REGION", "MASTER", "SUPPORTS", "STATE"]);
    for master in &reply.masters {
        let supports = levels(master).map_or_else(|| "-".to_owned(), |levels| levels.to_string());
        table.row([
            master.region.clone(),
            master.name.clone(),
            supports,
            state(master, reply.level).to_owned(),
        ]);
    }
    let next = match reply.raisable {
        Some(to) => format!(
            "All masters support feature level {to}: `mooseng cluster level --raise` raises it.{} {NO_WAY_BACK}",
            allowed(" That allows: ", &reply.allows)
        ),
        None if reply.in_the_way.is_empty() => "No master is known to support a higher one.".to_owned(),
        None => sentence(&reply.in_the_way),
    };
    let head = format!("The cluster is at feature level {}, as seen from {}.", reply.level, reply.asked);
    format!("{head}\n\n{}\n\n{next}", table.render())
}

/// A refusal, told as an answer.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", chars.as_str().trim_end_matches('.'))
}

fn shape(reply: &ClusterLevelReply) -> Value {
    let master = |m: &MasterLevels| json!({ "region": m.region, "id": m.id, "name": m.name, "lowest": m.lowest, "highest": m.highest, "reachable": m.reachable });
    json!({
        "version": output::VERSION, "agreed_version": reply.version, "asked": reply.asked, "level": reply.level,
        "masters": reply.masters.iter().map(master).collect::<Vec<_>>(),
        "raisable_to": reply.raisable, "allows": reply.allows, "in_the_way": reply.in_the_way,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    fn master(name: &str, told: Option<(u32, u32)>, reachable: bool) -> MasterLevels {
        MasterLevels {
            region: "a".into(),
            id: 1,
            name: name.into(),
            lowest: told.map(|(lowest, _)| lowest),
            highest: told.map(|(_, highest)| highest),
            reachable,
        }
    }

    fn reply() -> ClusterLevelReply {
        ClusterLevelReply {
            version: 4,
            level: 0,
            asked: "a".into(),
            masters: vec![master("m1", Some((0, 1)), true), master("m2", Some((0, 0)), true)],
            ..ClusterLevelReply::default()
        }
    }

    #[test]
    fn who_supports_what_is_shown_and_what_stands_in_the_way() {
        let in_the_way =
            "the cluster can't be raised from feature level 0 to 1: a/m2 supports feature level 0";
        let text = page(&ClusterLevelReply { in_the_way: in_the_way.into(), ..reply() });
        assert!(text.starts_with("The cluster is at feature level 0, as seen from a."), "{text}");
        assert!(text.contains("feature levels 0 to 1") && text.contains("answers"), "{text}");
        assert!(text.ends_with(
            "The cluster can't be raised from feature level 0 to 1: a/m2 supports feature level 0."
        ));
        let could = ClusterLevelReply { raisable: Some(1), allows: vec!["volumes".into()], ..reply() };
        let text = page(&could);
        assert!(
            text.contains("`mooseng cluster level --raise`") && text.contains("That allows: volumes."),
            "{text}"
        );
        assert!(text.contains("no way back"), "{text}");
        assert_eq!(shape(&could)["raisable_to"], 1);
        assert_eq!(shape(&could)["masters"][1]["highest"], 0);
        assert!(page(&ClusterLevelReply::default()).contains("isn't founded"));
    }

    #[test]
    fn a_master_that_is_away_or_left_behind_is_told_from_the_others() {
        assert_eq!(state(&master("m", None, false), 1), "doesn't answer, never told");
        assert_eq!(state(&master("m", Some((0, 1)), false), 1), "doesn't answer, told before");
        assert_eq!(state(&master("m", None, true), 1), "not asked yet");
        assert!(state(&master("m", Some((0, 0)), true), 1).starts_with("not heard"));
        assert_eq!(state(&master("m", Some((0, 1)), true), 1), "answers");
    }

    #[test]
    fn what_raising_means_is_said_before_and_after() {
        let reply = RaiseLevelReply {
            version: 5,
            before: 0,
            level: 1,
            allows: vec!["volumes".into(), "classes".into()],
        };
        let plan = raised(&reply, true);
        assert!(
            plan.starts_with("Nothing was changed.") && plan.contains("from feature level 0 to 1"),
            "{plan}"
        );
        assert!(plan.contains("volumes, classes.") && plan.contains("no way back"), "{plan}");
        let done = raised(&reply, false);
        assert!(done.starts_with("The cluster is at feature level 1; it was at 0."), "{done}");
        let nothing = raised(&RaiseLevelReply { before: 1, level: 1, ..reply }, false);
        assert!(nothing.contains("no master supports a higher one"), "{nothing}");
    }

    #[test]
    fn a_plan_is_of_raising() {
        let parse =
            |words: &[&str]| Args::try_parse_from(["mooseng", "cluster", "level"].iter().chain(words));
        assert!(parse(&[]).is_ok() && parse(&["--raise"]).is_ok() && parse(&["--raise", "--plan"]).is_ok());
        assert!(parse(&["--plan"]).is_err());
    }
}
