//! `mooseng dev`: a cluster of real daemons on loopback, with certificates and ports of its own.
//!
//! ```text
//!  DIR/dev.json      the plan (names, ports, zones, settings) and what was started: ours        (state)
//!  DIR/cluster.json  what runs, for scripts outside: derived from the plan and /proc, always true (cluster)
//!  DIR/pki, certs/   the authority and everybody's leaf                                          (certs)
//!  DIR/etc/          configurations of daemons and clients                                       (configs)
//!  DIR/NAME/         a process's state;  DIR/log/ its log;  DIR/mnt the mount
//!  DIR/wan.toml      delays and cuts between regions, where there are several                   (wan)
//!  DIR/load/         what `load` did and was acknowledged                                        (load)
//! ```
//! `up` starts, `control` kills, pauses and starts processes, `down` ends; `supervise` renews leaves and keeps cluster.json
//! true while nobody types anything. Every change holds the lock of `DIR/dev.lock`.
//!
//! With one region processes have the names that they have in it (master-1, DIR/mnt); with several the region's name comes first
//! (region-2.master-1, DIR/mnt/region-2). Certificates name the region on their own.

mod certs;
mod cluster;
mod configs;
mod control;
mod down;
mod launch;
mod load;
pub mod namespaces;
mod plan;
pub mod ready;
mod root;
mod state;
mod status;
mod supervise;
mod up;
mod wan;

use std::io::Write;
use std::path::Path;

use crate::args::{Dev, DevCommand};
use crate::exit::Failure;

/// Does what `mooseng dev` was asked.
pub fn run(args: Dev) -> Result<(), Failure> {
    match args.command {
        DevCommand::Up(a) => up::run(&a),
        DevCommand::Kill(a) => control::kill(&a.dir, &a.target),
        DevCommand::Pause(a) => control::pause(&a.dir, &a.target),
        DevCommand::Resume(a) => control::resume(&a.dir, &a.target),
        DevCommand::Start(a) => control::start(&a.dir, &a.target),
        DevCommand::Partition(a) => wan::partition(&a.dir, &a.region, a.one_way),
        DevCommand::Heal(a) => wan::heal(&a.dir),
        DevCommand::Load(a) => load::run(&a),
        DevCommand::Verify(a) => load::verify(&a),
        DevCommand::Status(a) => status::run(&a.dir, a.output.format),
        DevCommand::Down(a) => down::run(&a.dir, a.purge),
        DevCommand::Supervise(a) => supervise::run(&a.dir),
    }
}

/// A program that is installed beside this one.
pub fn beside(name: &str) -> String {
    state::beside(name)
}

/// This program's file.
pub fn own_binary() -> String {
    state::beside("mooseng")
}

/// Replaces a file by a whole new one, or leaves the old one: readers never see half of it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}
