//! `mooseng regions` and `mooseng volume`.

use clap::{Args as ClapArgs, Subcommand};

use super::{Reading, Rest};

/// `mooseng regions`.
#[derive(ClapArgs, Debug)]
pub struct RegionsArgs {
    #[command(subcommand)]
    pub command: RegionsCommand,
}

/// What is asked about regions.
#[derive(Subcommand, Debug)]
pub enum RegionsCommand {
    /// Show the cluster's regions with their masters: which vote in the global group, and how old each region's lease is.
    List(Reading),
    /// Take a region in (not built yet).
    #[command(hide = true)]
    Add(Rest),
    /// Let go of a region (not built yet).
    #[command(hide = true)]
    Remove(Rest),
}

/// `mooseng volume`.
#[derive(ClapArgs, Debug)]
pub struct VolumeArgs {
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// What is asked about volumes.
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// Show all volumes: their homes, epochs, durability and regions.
    List(Reading),
    /// Show one volume.
    Info(VolumeNamed),
    /// Make a volume (not built yet).
    #[command(hide = true)]
    Create(Rest),
    /// Change a volume (not built yet).
    #[command(hide = true)]
    Set(Rest),
    /// Move a volume's home (not built yet).
    #[command(hide = true)]
    MoveHome(Rest),
    /// Remove a volume (not built yet).
    #[command(hide = true)]
    Delete(Rest),
}

/// `mooseng volume info`.
#[derive(ClapArgs, Debug)]
pub struct VolumeNamed {
    /// The volume: its number, or / for the root volume.
    pub volume: String,
    #[command(flatten)]
    pub reading: Reading,
}
