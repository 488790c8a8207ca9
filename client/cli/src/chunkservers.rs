//! `mooseng chunkservers`: empties chunkservers, and takes them back into use.

use mooseng_wire::admin::{DrainRequest, StorageClass};
use serde_json::json;

use crate::admin;
use crate::args::{ChunkserverChange, ChunkserverNamed, Chunkservers, Format};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::output;
use crate::plan::{Plan, drain};

/// Asks for it, and prints what is to be moved; or what would be.
pub fn run(args: Chunkservers) -> Result<(), Failure> {
    match args.change {
        ChunkserverChange::Drain(drain) if drain.plan => planned(&drain.named),
        ChunkserverChange::Drain(drain) => change(drain.named, true),
        ChunkserverChange::Undrain(named) => change(named, false),
    }
}

fn planned(named: &ChunkserverNamed) -> Result<(), Failure> {
    let file = ClientFile::load(&named.config)?;
    let plan: Plan = admin::block_on(async {
        let status = admin::status(&file).await?.reply;
        admin::may_administer(&file, &status.region)?;
        drain::of(&status, &named.name, classes(&file).await.as_deref())
    })?;
    plan.print(named.output.format)
}

/// The storage classes of the cluster, and those of the root volume's own; none where nobody tells.
async fn classes(file: &ClientFile) -> Option<Vec<StorageClass>> {
    let mut classes = admin::list_classes(file, 0, false).await.ok()?.classes;
    if let Ok(own) = admin::list_classes(file, 0, true).await {
        classes.extend(own.classes.into_iter().filter(|class| class.of_volume));
    }
    Some(classes)
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
