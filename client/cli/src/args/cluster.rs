//! `mooseng cluster`.

use clap::{Args as ClapArgs, Subcommand};

use super::Reading;

/// `mooseng cluster`.
#[derive(ClapArgs, Debug)]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What is asked about the whole cluster.
#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Show the feature level: what the masters of all regions can read, what each of them supports, and what stands in the way of a higher one.
    Level(ClusterLevel),
}

/// `mooseng cluster level`.
#[derive(ClapArgs, Debug)]
pub struct ClusterLevel {
    /// Raise it to the highest that all masters support, for good. Takes a configuration whose certificate has the role admin.
    #[arg(long)]
    pub raise: bool,
    /// With --raise: only say whether it could be raised, and what that would allow.
    #[arg(long, requires = "raise")]
    pub plan: bool,
    #[command(flatten)]
    pub reading: Reading,
}
