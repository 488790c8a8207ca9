//! `mooseng chunkservers`: empties chunkservers, and takes them back into use.

use mooseng_wire::admin::DrainRequest;
use serde_json::json;

use crate::admin;
use crate::args::{ChunkserverChange, ChunkserverNamed, Chunkservers, Format};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::output;

/// Asks for it, and prints what is to be moved.
pub fn run(args: Chunkservers) -> Result<(), Failure> {
    match args.change {
        ChunkserverChange::Drain(named) => change(named, true),
        ChunkserverChange::Undrain(named) => change(named, false),
    }
}

fn change(named: ChunkserverNamed, drain: bool) -> Result<(), Failure> {
    let file = ClientFile::load(&named.config)?;
    let request = DrainRequest { chunkserver: named.name.clone(), drain };
    let located = admin::block_on(admin::drain_chunkserver(&file, request))?.located;
    match (named.output.format, drain) {
        (Format::Json, _) => output::json(
            &json!({ "version": output::VERSION, "chunkserver": named.name, "draining": drain, "located": located }),
        ),
        (Format::Table, true) => output::text_line(&format!(
            "Chunkserver {} is being emptied: {located} chunks are to be moved. `mooseng status` shows how many are left.",
            named.name
        )),
        (Format::Table, false) => {
            output::text_line(&format!("Chunkserver {} takes chunks again.", named.name))
        }
    }
}
