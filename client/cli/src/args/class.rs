//! `mooseng class`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::Output;

/// `mooseng class`.
#[derive(ClapArgs, Debug)]
pub struct ClassArgs {
    #[command(subcommand)]
    pub command: ClassCommand,
}

/// What to do with storage classes.
#[derive(Subcommand, Debug)]
pub enum ClassCommand {
    /// Make a class.
    Create(ClassCreate),
    /// Change a class. Chunks that have it are moved, copied and dropped until they are as it says.
    Set(ClassSet),
    /// Show all classes: what they ask for, and what has them in all volumes.
    List(ClassList),
    /// Delete a class that no file or directory has, in no volume.
    Delete(ClassName),
    /// Give a file or directory a class. What is made in a directory from then on inherits it; what is there already keeps its own, without -r.
    Assign(ClassAssign),
    /// Show the class of a file or directory.
    Get(ClassOf),
}

/// Whose class is meant.
#[derive(ClapArgs, Debug)]
pub struct OwnOf {
    /// Not the cluster's, but that volume's own, from before classes were the cluster's: by its number or the path that it is joined at.
    #[arg(long, value_name = "PATH|NUMBER")]
    pub volume: Option<String>,
}

/// What a listing shows.
#[derive(ClapArgs, Debug)]
pub struct AsIn {
    /// As that volume has them, its own included, by its number or the path that it is joined at; counted in it alone.
    #[arg(long, value_name = "PATH|NUMBER")]
    pub volume: Option<String>,
}

/// `mooseng class create`.
#[derive(ClapArgs, Debug)]
pub struct ClassCreate {
    /// Its name: letters, digits, dots, dashes and underscores.
    pub name: String,
    /// Copies of each chunk.
    #[arg(long, value_name = "N")]
    pub copies: u32,
    /// Copies below which nothing is written; 2, or 1 with one copy, if it isn't given.
    #[arg(long, value_name = "N")]
    pub min_copies: Option<u32>,
    /// Labels that a chunkserver must have, all of them, to hold a copy. `zone`, `rack` and `host` are labels, too.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = crate::class::parse_label)]
    pub labels: Vec<(String, String)>,
    /// For scripts of before: masters whose classes are the cluster's refuse it, and say so.
    #[arg(long, value_name = "PATH|NUMBER", hide = true)]
    pub volume: Option<String>,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng class set`.
#[derive(ClapArgs, Debug)]
pub struct ClassSet {
    /// Its name.
    pub name: String,
    /// Copies of each chunk.
    #[arg(long, value_name = "N")]
    pub copies: Option<u32>,
    /// Copies below which nothing is written.
    #[arg(long, value_name = "N")]
    pub min_copies: Option<u32>,
    /// Labels that a chunkserver must have, in place of those before.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = crate::class::parse_label)]
    pub labels: Vec<(String, String)>,
    /// Any chunkserver will do.
    #[arg(long, conflicts_with = "labels")]
    pub no_labels: bool,
    /// Only say what would be copied, and what that would mean.
    #[arg(long)]
    pub plan: bool,
    #[command(flatten)]
    pub of: OwnOf,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng class list`.
#[derive(ClapArgs, Debug)]
pub struct ClassList {
    #[command(flatten)]
    pub of: AsIn,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng class delete`.
#[derive(ClapArgs, Debug)]
pub struct ClassName {
    /// Its name.
    pub name: String,
    #[command(flatten)]
    pub of: OwnOf,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}

/// `mooseng class assign`.
#[derive(ClapArgs, Debug)]
pub struct ClassAssign {
    /// The class; `default` for what the masters' configuration says.
    pub name: String,
    /// A file or directory, from the root of the filesystem.
    pub path: PathBuf,
    /// Also everything below it in the same volume. It takes a request for some hundred entries; what is moved meanwhile may be passed over, then run it again.
    #[arg(short, long)]
    pub recursive: bool,
    /// Only say what would be copied, as far as that is known, and what that would mean.
    #[arg(long)]
    pub plan: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng class get`.
#[derive(ClapArgs, Debug)]
pub struct ClassOf {
    /// A file or directory, from the root of the filesystem.
    pub path: PathBuf,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}
