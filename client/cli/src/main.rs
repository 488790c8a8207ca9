//! `mooseng`: mounts, administers and tries out MooseNG.

use std::process::ExitCode;

fn main() -> ExitCode {
    mooseng_cli::run(std::env::args_os())
}
