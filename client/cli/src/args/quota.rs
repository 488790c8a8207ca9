//! `mooseng quota`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::{OfVolume, Output};

/// `mooseng quota`.
#[derive(ClapArgs, Debug)]
pub struct QuotaArgs {
    #[command(subcommand)]
    pub command: QuotaCommand,
}

/// What to do with limits.
#[derive(Subcommand, Debug)]
pub enum QuotaCommand {
    /// Set limits. What is in a directory already is counted first; until then nothing is refused.
    Set(QuotaSet),
    /// Show one: a directory's, or that of the tree it lies in, or a user's.
    Get(QuotaOf),
    /// Show all.
    List(QuotaList),
    /// Give limits up.
    Clear(QuotaOf),
}

/// Whose quota.
#[derive(ClapArgs, Debug)]
#[group(required = true, multiple = false)]
pub struct QuotaWhose {
    /// A directory, from the root of the filesystem.
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// A user, who counts as the owner, in each volume by itself.
    #[arg(long, value_name = "UID")]
    pub user: Option<u32>,
}

/// `--volume`, of a command that names a user.
#[derive(ClapArgs, Debug)]
pub struct UsersVolume {
    /// The user's quota in that volume, by its number or the path that it is joined at [default: /]. A PATH says itself in which volume it lies.
    #[arg(long, value_name = "PATH|NUMBER", conflicts_with = "path")]
    pub volume: Option<String>,
}

/// `mooseng quota set`.
#[derive(ClapArgs, Debug)]
pub struct QuotaSet {
    #[command(flatten)]
    pub whose: QuotaWhose,
    #[command(flatten)]
    pub of: UsersVolume,
    /// Bytes at most, as `du` counts them: 500M, 20G, 2T.
    #[arg(long, value_name = "SIZE", value_parser = crate::quota::parse_bytes)]
    pub bytes: Option<u64>,
    /// Files, directories and others at most, the directory itself included.
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng quota get` and `clear`.
#[derive(ClapArgs, Debug)]
pub struct QuotaOf {
    #[command(flatten)]
    pub whose: QuotaWhose,
    #[command(flatten)]
    pub of: UsersVolume,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng quota list`.
#[derive(ClapArgs, Debug)]
pub struct QuotaList {
    #[command(flatten)]
    pub of: OfVolume,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}
