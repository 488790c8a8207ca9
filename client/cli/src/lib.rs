//! The command `mooseng`: mount, administration, `mooseng dev`.
//!
//! ```text
//!  args --> run --> mount (mounting, runtime)      a FUSE mount, as a daemon; as mount.mooseng for mount(8)
//!             |---> status, df, fsck, members, chunkservers, trash, quota, class, metadata, regions, volume, cluster, certs (admin)  what masters say, over gRPC
//!             |        |---- which volume of the tree is meant (tree)
//!             |        \---- what a change would do, before it is made (plan)
//!             |---> top, profile                   what mounts on this machine are asked for, from their metrics; and what is under way (live)
//!             |---> info                           where a path's chunks lie, over a session
//!             |---> explain, shell                 what needs no cluster
//!             \---> dev                            a cluster of real daemons on loopback
//! ```
//! Everything that reads has `-o table|json`; data goes to stdout, talk to stderr ([`output`]); exit codes are in [`exit`].

mod admin;
mod args;
mod certs;
mod chunkservers;
mod class;
mod cluster;
mod config;
mod dev;
mod df;
mod events;
mod exit;
mod explain;
mod fsck;
mod info;
mod live;
mod logs;
mod members;
mod metadata;
mod mount;
mod outlook;
mod output;
mod plan;
mod process;
mod profile;
mod quota;
mod regions;
mod runtime;
mod salvage;
mod shell;
mod status;
mod suggest;
mod trash;
mod tree;
mod verdict;
mod volume;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub use exit::Failure;

/// Parses the arguments, does what they ask, and answers with the exit code.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut argv = argv.into_iter().peekable();
    if argv.peek().is_some_and(|program| mount::helper::is_called(program.as_ref())) {
        return mount::helper::run(argv.skip(1));
    }
    let parsed = match args::Args::try_parse_from(argv) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(parsed.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("mooseng: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(command: args::Command) -> Result<(), Failure> {
    use args::Command::*;
    match command {
        Mount(a) => mount::mount(a),
        Umount(a) => mount::umount(&a.path, a.lazy),
        Status(a) => status::run(&a),
        Info(a) => info::run(&a),
        Df(a) => df::run(&a),
        Fsck(a) => fsck::run(&a),
        Explain(a) => explain::run(&a),
        Members(a) => members::run(a),
        Chunkservers(a) => chunkservers::run(a),
        Top(a) => profile::top(&a),
        Profile(a) => profile::profile(&a),
        Metadata(a) => metadata::run(a),
        Trash(a) => trash::run(a),
        Quota(a) => quota::run(a),
        Class(a) => class::run(a),
        Completions(a) => shell::completions(a.shell),
        Man(a) => shell::man(&a.dir),
        Dev(a) => dev::run(a),
        Events(a) => events::run(&a),
        Volume(a) => volume::run(a),
        Salvage(a) => salvage::run(a),
        Policy(_) => Err(Failure::not_built("policies (`mooseng policy`)")),
        Regions(a) => regions::run(a),
        Cluster(a) => cluster::run(&a),
        Certs(a) => certs::run(a),
    }
}
