//! `mooseng`: mounts, administers and tries out MooseNG.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mooseng_cli::run(std::env::args_os())
}
