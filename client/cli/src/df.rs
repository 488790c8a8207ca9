//! `mooseng df`: space by disk, and what of it is usable.

use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, Reading};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table, bytes};
use crate::{status, trash};

/// Asks and prints.
pub fn run(args: &Reading) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.config.as_deref())?)?;
    let reply = admin::block_on(admin::status(&file))?.reply;
    let alive = || {
        reply.chunkservers.iter().filter(|c| c.alive).flat_map(|c| &c.disks).filter(|d| d.error.is_empty())
    };
    let copies = u64::from(reply.copies.max(1));
    let usable_total = alive().map(|d| d.bytes_total).sum::<u64>() / copies;
    let usable_free = alive().filter(|d| d.writable).map(|d| d.bytes_free).sum::<u64>() / copies;
    if args.output.format == Format::Json {
        let servers: Vec<Value> = reply.chunkservers.iter().map(status::chunkserver).collect();
        return output::json(&json!({
            "version": output::VERSION, "region": reply.region, "copies": reply.copies,
            "trash": reply.trash.as_ref().map(trash::status_shape),
            "bytes_usable": usable_total, "bytes_usable_free": usable_free, "chunkservers": servers,
        }));
    }
    let mut table = Table::new(["CHUNKSERVER", "DISK", "SIZE", "USED", "FREE", "CHUNKS", "STATE"]);
    for c in &reply.chunkservers {
        for d in &c.disks {
            let state = match (c.alive, d.error.is_empty(), d.writable) {
                (false, ..) => "unreachable".to_owned(),
                (_, false, _) => format!("failed: {}", d.error),
                (_, _, false) => "full".to_owned(),
                _ => "ok".to_owned(),
            };
            let cells =
                [bytes(d.bytes_total), bytes(d.bytes_used), bytes(d.bytes_free), d.chunks.to_string()];
            let [size, used, free, chunks] = cells;
            table.row([c.name.clone(), d.path.clone(), size, used, free, chunks, state]);
        }
    }
    // Of what is used, so much comes back by itself.
    let trash = reply.trash.as_ref().filter(|t| t.files > 0).map(|t| format!(" {}", trash::summary(t)));
    output::text_line(&format!(
        "{}\n\nUsable with {} copies: {} of {} free.{}",
        table.render(),
        reply.copies,
        bytes(usable_free),
        bytes(usable_total),
        trash.unwrap_or_default()
    ))
}
