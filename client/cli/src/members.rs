//! `mooseng members`: changes a region's masters.

use std::path::Path;

use mooseng_wire::admin::{ChangeMembersRequest, MasterStatus, MemberToAdd};
use serde_json::json;

use crate::admin;
use crate::args::{Format, MemberChange, Members};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::output;
use crate::plan::members::{self, Beyond, Facts};

/// Makes the change and prints who votes now, and whose process is to be stopped; or says what it would mean.
pub fn run(args: Members) -> Result<(), Failure> {
    let (request, plan, config, output) = match args.change {
        MemberChange::Add { id, name, address, zone, plan, config, output } => {
            let add = vec![MemberToAdd { id, name, address, zone }];
            (ChangeMembersRequest { add, remove: vec![] }, plan, config, output)
        }
        MemberChange::Remove { ids, plan, config, output } => {
            (ChangeMembersRequest { add: vec![], remove: ids }, plan, config, output)
        }
    };
    match plan {
        true => planned(&config, &request, output.format),
        false => change(&config, request, output.format),
    }
}

fn planned(config: &Path, request: &ChangeMembersRequest, format: Format) -> Result<(), Failure> {
    let file = ClientFile::load(config)?;
    let plan = admin::block_on(async {
        let answered = admin::status(&file).await?;
        admin::may_administer(&file, &answered.reply.region)?;
        let new = admin::newcomers(&file, &request.add).await?;
        let cluster = admin::cluster(&file).await;
        let untold = cluster.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let beyond = match &cluster {
            Ok((regions, volumes)) => Beyond::Known(regions, volumes),
            // A cluster of one region has no group between regions, and says so.
            Err(failure) if failure.kind() == Kind::Failed => Beyond::Alone,
            Err(_) => Beyond::Untold(&untold),
        };
        members::change(Facts { answered: &answered, request, new: &new, beyond })
    })?;
    plan.print(format)
}

fn change(config: &Path, request: ChangeMembersRequest, format: Format) -> Result<(), Failure> {
    let file = ClientFile::load(config)?;
    let (known, reply) = admin::block_on(async {
        // Who is taken out is in nobody's list afterwards. It is for names alone: without them the change is made, too.
        let known = admin::status(&file).await.map(|answered| answered.reply.masters).unwrap_or_default();
        let reply = admin::change_members(&file, request.clone()).await?;
        Ok((known, reply))
    })?;
    match format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "voters": reply.voters })),
        Format::Table => output::text_line(&said(&known, &request, &reply.voters)),
    }
}

fn said(known: &[MasterStatus], request: &ChangeMembersRequest, voters: &[u64]) -> String {
    let before = |id: u64| known.iter().find(|m| m.id == id);
    let vote = voters.iter().map(|id| {
        let added = request.add.iter().find(|m| m.id == *id).map(|m| m.name.as_str());
        let name = added.or_else(|| before(*id).map(|m| m.name.as_str()));
        name.map_or_else(|| format!("the one with the id {id}"), |name| format!("{name} (id {id})"))
    });
    let mut text = format!("The masters that vote now: {}.", vote.collect::<Vec<_>>().join(", "));
    let gone = request.remove.iter().map(|id| match before(*id) {
        Some(m) => format!("{} (id {id}) at {}", m.name, m.address),
        None => format!("the one with the id {id}"),
    });
    let gone: Vec<String> = gone.collect();
    if !gone.is_empty() {
        text.push_str(&format!(
            "\nStop the processes of those that were taken out, which run on outside of the group: {}. Where mounts and chunkservers name their addresses under `masters`, take them out there.",
            gone.join(", ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_by_name_who_votes_and_what_is_to_be_stopped() {
        let master = |id: u64| MasterStatus {
            id,
            name: format!("m{id}"),
            address: format!("10.0.0.{id}:7000"),
            ..MasterStatus::default()
        };
        let known: Vec<MasterStatus> = (1..=3).map(master).collect();
        let removed = ChangeMembersRequest { add: vec![], remove: vec![1, 2] };
        let text = said(&known, &removed, &[3]);
        assert!(text.starts_with("The masters that vote now: m3 (id 3).\nStop the processes"), "{text}");
        assert!(text.contains("m1 (id 1) at 10.0.0.1:7000, m2 (id 2) at 10.0.0.2:7000."), "{text}");
        let four = MemberToAdd { id: 4, name: "m4".into(), ..MemberToAdd::default() };
        let added = ChangeMembersRequest { add: vec![four], remove: vec![] };
        assert_eq!(said(&known, &added, &[3, 4]), "The masters that vote now: m3 (id 3), m4 (id 4).");
        assert!(said(&[], &removed, &[3]).contains("the one with the id 1"), "nobody told of names");
    }
}
