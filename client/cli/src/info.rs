//! `mooseng info PATH`: where a file's data lies, and in what state.
//!
//! It opens a session of its own with the mount's configuration and looks the path up: nothing in the mount has to know about it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use mooseng_client::{Caller, Description, FileKind, FileSystem, FsError, Tree};
use mooseng_ports::clock::OsClock;
use mooseng_wire::fs::extent::Data;
use mooseng_wire::fs::{ChunkPlace, Extent};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{Format, Info};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::output::{self, Table, bytes};
use crate::runtime;

/// Asks and prints.
pub fn run(args: &Info) -> Result<(), Failure> {
    let (config, inside) = place(args)?;
    let file = ClientFile::load(&config)?;
    let description = admin::block_on(describe(&file, &inside))?;
    match args.output.format {
        Format::Json => output::json(&shape(&inside, &description)),
        Format::Table => output::text_line(&page(&inside, &description)),
    }
}

/// The configuration to use, and the path from the root of the filesystem.
fn place(args: &Info) -> Result<(PathBuf, PathBuf), Failure> {
    if let Some(config) = &args.config {
        return Ok((crate::config::absolute(config)?, args.path.clone()));
    }
    let path = crate::config::absolute(&args.path)?;
    // The last component is taken as it is: a symlink has an inode, too.
    let resolved = match (path.parent().map(std::fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.clone(),
    };
    for candidate in [&resolved, &path] {
        if let Some(record) = runtime::covering(candidate) {
            let inside = candidate.strip_prefix(&record.path).unwrap_or(Path::new("")).to_owned();
            return Ok((record.config, inside));
        }
    }
    Err(Failure::not_found(format!("{} lies on no MooseNG mount of this machine.", path.display())))
}

async fn describe(file: &ClientFile, inside: &Path) -> Result<Description, Failure> {
    let fs =
        FileSystem::connect(file.client_config(Path::new("")), file.network()?, Arc::new(OsClock)).await?;
    let tree = Tree::from(fs);
    let found = walk(&tree, inside).await;
    tree.close().await;
    found
}

async fn walk(tree: &Tree, inside: &Path) -> Result<Description, Failure> {
    let caller = caller();
    let mut inode = tree.root().root();
    let mut so_far = PathBuf::from("/");
    for component in inside.components() {
        let Component::Normal(name) = component else { continue };
        so_far.push(name);
        let found = tree.find(&caller, inode, name.as_bytes()).await;
        let found = found.and_then(|found| found.ok_or(FsError::Answered(libc::ENOENT)));
        inode = found.map_err(|e| at(&so_far, e))?.attr.inode;
    }
    let described = async { tree.of(inode)?.describe(&caller, inode).await };
    described.await.map_err(|e| at(&so_far, e))
}

fn at(path: &Path, error: FsError) -> Failure {
    Failure::from(error).context(path.display())
}

fn caller() -> Caller {
    let groups = nix::unistd::getgroups().unwrap_or_default().into_iter().map(|g| g.as_raw()).collect();
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups,
        pid: std::process::id(),
        umask: 0o022,
        kernel_checked: false,
        own_account: false,
    }
}

fn kind(description: &Description) -> &'static str {
    match description.attr.as_ref().map(|a| a.kind()) {
        Some(FileKind::Regular) => "file",
        Some(FileKind::Directory) => "directory",
        Some(FileKind::Symlink) => "symlink",
        Some(FileKind::Fifo) => "fifo",
        Some(FileKind::Socket) => "socket",
        Some(FileKind::CharDevice) => "character device",
        Some(FileKind::BlockDevice) => "block device",
        _ => "unknown",
    }
}

/// A chunk's state in a word or two.
fn state(chunk: &ChunkPlace) -> String {
    let reachable = chunk.locations.iter().filter(|l| l.reachable).count();
    let sealed = if chunk.sealed { "sealed" } else { "open" };
    format!("{sealed}, {reachable} of {} copies reachable", chunk.locations.len())
}

fn page(inside: &Path, d: &Description) -> String {
    let attr = d.attr.unwrap_or_default();
    let names: Vec<String> = d
        .links
        .iter()
        .map(|l| format!("{:?} in inode {}", String::from_utf8_lossy(&l.name), l.parent))
        .collect();
    let mut parts = vec![format!(
        "/{}: {}, inode {}, {} ({} bytes), {} links, names: {}",
        inside.display(),
        kind(d),
        attr.inode,
        bytes(attr.size),
        attr.size,
        attr.nlink,
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    )];
    if !d.extents.is_empty() {
        let mut table = Table::new(["OFFSET", "LENGTH", "WHERE"]);
        for e in &d.extents {
            table.row([e.offset.to_string(), e.length.to_string(), place_of(e)]);
        }
        parts.push(table.render());
    }
    if !d.chunks.is_empty() {
        let mut table = Table::new(["CHUNK", "LENGTH", "STATE", "COPIES"]);
        for c in &d.chunks {
            let copies: Vec<String> = c
                .locations
                .iter()
                .map(|l| {
                    format!(
                        "{} ({}{})",
                        l.chunkserver,
                        l.zone,
                        if l.reachable { "" } else { ", unreachable" }
                    )
                })
                .collect();
            table.row([c.chunk.to_string(), c.length.to_string(), state(c), copies.join(", ")]);
        }
        parts.push(table.render());
    }
    parts.join("\n\n")
}

fn place_of(extent: &Extent) -> String {
    match &extent.data {
        Some(Data::Run(run)) => format!("chunk {} at {}", run.chunk, run.chunk_offset),
        Some(Data::Inline(_)) => "inline in the metadata store".into(),
        None => "nowhere".into(),
    }
}

fn shape(inside: &Path, d: &Description) -> Value {
    let attr = d.attr.unwrap_or_default();
    let extents: Vec<Value> = d
        .extents
        .iter()
        .map(|e| match &e.data {
            Some(Data::Run(run)) => {
                json!({ "offset": e.offset, "length": e.length, "chunk": run.chunk, "chunk_offset": run.chunk_offset })
            }
            _ => json!({ "offset": e.offset, "length": e.length, "inline": true }),
        })
        .collect();
    let chunks: Vec<Value> = d
        .chunks
        .iter()
        .map(|c| {
            let locations: Vec<Value> = c
                .locations
                .iter()
                .map(|l| json!({ "chunkserver": l.chunkserver, "address": l.address, "zone": l.zone, "reachable": l.reachable }))
                .collect();
            json!({ "chunk": c.chunk, "length": c.length, "sealed": c.sealed, "epoch": c.epoch, "locations": locations })
        })
        .collect();
    let links: Vec<Value> = d
        .links
        .iter()
        .map(|l| json!({ "parent": l.parent, "name": String::from_utf8_lossy(&l.name) }))
        .collect();
    json!({
        "version": output::VERSION, "path": format!("/{}", inside.display()), "kind": kind(d), "inode": attr.inode, "size": attr.size,
        "mode": attr.mode, "nlink": attr.nlink, "uid": attr.uid, "gid": attr.gid, "links": links, "extents": extents, "chunks": chunks,
    })
}
