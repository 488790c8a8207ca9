//! `mooseng trash`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{OfVolume, Output, parse_duration};

/// `mooseng trash`.
#[derive(ClapArgs, Debug)]
pub struct Trash {
    #[command(subcommand)]
    pub command: TrashCommand,
}

/// What to do with deleted files.
#[derive(Subcommand, Debug)]
pub enum TrashCommand {
    /// What can be restored, the newest first: its id, when and by whom it was deleted, until when it stays, and its path then.
    List(TrashList),
    /// Put a file back where it was, or to another path. Nothing is overwritten.
    Restore(TrashRestore),
    /// Free files now, for good.
    Purge(TrashPurge),
    /// Show how long deleted files are kept, or set it.
    Retention(TrashRetention),
}

/// `mooseng trash list`.
#[derive(ClapArgs, Debug)]
pub struct TrashList {
    /// Only what was at this path or below it, from the root of the filesystem.
    #[arg(long, value_name = "PATH", conflicts_with = "volume")]
    pub under: Option<PathBuf>,
    #[command(flatten)]
    pub of: OfVolume,
    /// Show so many at most.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: usize,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng trash restore`.
#[derive(ClapArgs, Debug)]
pub struct TrashRestore {
    /// Its id, as in `mooseng trash list`.
    pub id: u64,
    /// Where to, from the root of the filesystem, in the same volume [default: where it was].
    #[arg(long, value_name = "PATH")]
    pub to: Option<PathBuf>,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng trash purge`.
#[derive(ClapArgs, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["id", "all", "older_than"])))]
pub struct TrashPurge {
    /// One file's id, as in `mooseng trash list`.
    pub id: Option<u64>,
    /// Everything.
    #[arg(long)]
    pub all: bool,
    /// What was deleted longer ago.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub older_than: Option<Duration>,
    /// Of that volume, by its number or the path that it is joined at [default: /]. An ID says itself of which volume the file is.
    #[arg(long, value_name = "PATH|NUMBER", conflicts_with = "id")]
    pub volume: Option<String>,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng trash retention`.
#[derive(ClapArgs, Debug)]
pub struct TrashRetention {
    /// How long files that are deleted from now on are kept, as 30m, 24h or 7d; 0 for not at all.
    #[arg(value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Files younger than that when they lose their last name aren't kept: most are scratch files. 0 keeps them, too.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub min_age: Option<Duration>,
    #[command(flatten)]
    pub of: OfVolume,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}
