//! `mooseng members`: changes a region's masters.

use std::path::Path;

use mooseng_wire::admin::{ChangeMembersRequest, MemberToAdd};
use serde_json::json;

use crate::admin;
use crate::args::{Format, MemberChange, Members};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::output;

/// Makes the change and prints who votes now.
pub fn run(args: Members) -> Result<(), Failure> {
    match args.change {
        MemberChange::Add { id, name, address, zone, config, output } => {
            let add = vec![MemberToAdd { id, name, address, zone }];
            change(&config, ChangeMembersRequest { add, remove: vec![] }, output.format)
        }
        MemberChange::Remove { ids, config, output } => {
            change(&config, ChangeMembersRequest { add: vec![], remove: ids }, output.format)
        }
    }
}

fn change(config: &Path, request: ChangeMembersRequest, format: Format) -> Result<(), Failure> {
    let file = ClientFile::load(config)?;
    let reply = admin::block_on(admin::change_members(&file, request))?;
    match format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "voters": reply.voters })),
        Format::Table => {
            let voters: Vec<String> = reply.voters.iter().map(u64::to_string).collect();
            output::text_line(&format!("The voters are now: {}.", voters.join(", ")))
        }
    }
}
