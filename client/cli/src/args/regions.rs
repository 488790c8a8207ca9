//! `mooseng regions` and `mooseng volume`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use mooseng_wire::admin::MemberToAdd;

use super::{OfVolume, Output, Reading, Rest};

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
    /// Take a region in. Its masters take part once they are started.
    Add(RegionAdd),
    /// Let go of a region that no volume has.
    Remove(RegionRemove),
}

/// `mooseng regions add`.
#[derive(ClapArgs, Debug)]
pub struct RegionAdd {
    /// Its name, as in its masters' certificates.
    pub name: String,
    /// A master of it, with zone=Z if it is to be known; given once for each.
    #[arg(
        long = "master",
        required = true,
        value_name = "id=N,name=NAME,address=HOST:PORT",
        value_parser = crate::regions::parse_master
    )]
    pub masters: Vec<MemberToAdd>,
    /// Its number; the next one that was never given, if it isn't said.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub number: u16,
    /// It has a voice, one master, and no data.
    #[arg(long)]
    pub witness: bool,
    /// Only say what would happen; no token is printed.
    #[arg(long)]
    pub plan: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng regions remove`.
#[derive(ClapArgs, Debug)]
pub struct RegionRemove {
    /// Its name.
    pub name: String,
    /// Only say what would happen.
    #[arg(long)]
    pub plan: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
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
    /// Show one volume, and how far the regions are that have it.
    Info(VolumeNamed),
    /// Compare a region's replica of a volume with its home, range by range: run with the configuration of that region. Exit code 1 if they differ.
    Verify(VolumeVerify),
    /// Show what failovers lost: the loss ledger.
    Losses(VolumeLosses),
    /// Make a volume, and join it at an empty directory. Mounts cross into it there.
    Create(VolumeCreate),
    /// Change a volume's settings: when fsync returns, which regions have it, whether another one takes over by itself.
    Set(VolumeSet),
    /// Move a volume's home to another region that has it, without losing anything.
    MoveHome(VolumeMove),
    /// Delete an empty volume: its directory is an ordinary one again. What is in its trash goes with it.
    Delete(VolumeDelete),
}

/// When fsync returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// Once what it flushed is safe in the home region.
    Region,
    /// Once it is in every region of the sync set, too.
    Geo,
}

/// Who decides that another region takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Failover {
    /// The regions themselves, once the home's lease has run out.
    Auto,
    /// A person, by a command.
    Manual,
}

/// What fsync does where only the home is left of the sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnSyncLoss {
    /// It waits.
    Block,
    /// It returns with what the home has.
    Degrade,
}

/// `mooseng volume create`.
#[derive(ClapArgs, Debug)]
pub struct VolumeCreate {
    /// An empty directory, by its path from the root of the filesystem.
    #[arg(value_name = "PATH")]
    pub path: String,
    /// The region that is to be its home.
    #[arg(long, value_name = "REGION")]
    pub home: String,
    /// When fsync returns: with what is safe in the home region, or in each region of the sync set.
    #[arg(long, value_enum)]
    pub durability: Durability,
    /// All regions that are to have it, the home among them; otherwise those that have the root volume, and the home.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub regions: Vec<String>,
    /// Only say whether it could be made, and what that would mean.
    #[arg(long)]
    pub plan: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng volume delete`.
#[derive(ClapArgs, Debug)]
pub struct VolumeDelete {
    /// The volume: the directory at which it is joined, by its path from the root of the filesystem, or its number.
    #[arg(value_name = "PATH")]
    pub volume: String,
    /// Only say whether it could be deleted, and what would go with it.
    #[arg(long)]
    pub plan: bool,
    /// Also where failovers of it have lost something: what regions have put aside of that, or will once they are back, goes with it.
    #[arg(long)]
    pub although_it_loses_what_was_put_aside: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng volume set`.
#[derive(ClapArgs, Debug)]
#[command(group(
    clap::ArgGroup::new("what").required(true).multiple(true).args(["durability", "regions", "failover", "on_sync_loss", "lag_max"])
))]
pub struct VolumeSet {
    /// The volume: the directory at which it is joined, by its path from the root of the filesystem, or its number.
    #[arg(value_name = "PATH")]
    pub volume: String,
    /// When fsync returns: with what is safe in the home region, or in each region of the sync set.
    #[arg(long, value_enum)]
    pub durability: Option<Durability>,
    /// All regions that have the volume, the home among them.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub regions: Vec<String>,
    /// Whether another region takes over by itself once the home is lost.
    #[arg(long, value_enum)]
    pub failover: Option<Failover>,
    /// What fsync of a `geo` volume does while only the home is left of its sync set; of a `region` volume: `block` has writers wait, too, once no other region
    /// has followed for longer than `--lag-max`.
    #[arg(long, value_enum)]
    pub on_sync_loss: Option<OnSyncLoss>,
    /// Of a `region` volume: writers wait while what no other region has is older than this, from 1s to 1d; `none`: they never do.
    #[arg(long, value_name = "DURATION|none", value_parser = super::parse_lag_max)]
    pub lag_max: Option<Duration>,
    /// Only say what would change.
    #[arg(long)]
    pub plan: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng volume move-home`.
#[derive(ClapArgs, Debug)]
pub struct VolumeMove {
    /// The volume: the directory at which it is joined, by its path from the root of the filesystem, or its number.
    #[arg(value_name = "PATH")]
    pub volume: String,
    /// The region that is to be the home.
    #[arg(long, value_name = "REGION")]
    pub to: String,
    /// Only say what would happen.
    #[arg(long)]
    pub plan: bool,
    /// Give the home up, without asking it, whatever the region lacks: that is lost. Where a home is lost that nobody takes over from by itself.
    #[arg(long)]
    pub force: bool,
    /// With --force, of a volume whose durability is geo: also a region that isn't in its sync set, and may lack what fsync has covered.
    #[arg(long, requires = "force")]
    pub although_it_loses_what_was_synced: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng volume verify`.
#[derive(ClapArgs, Debug)]
pub struct VolumeVerify {
    /// The volume: the directory at which it is joined, by its path from the root of the filesystem, or its number.
    pub volume: String,
    /// Read each byte of each copy, in both regions; otherwise the checksums are compared that chunkservers keep beside the bytes.
    #[arg(long)]
    pub read: bool,
    /// A configuration whose certificate has the role admin, in the region whose replica it is.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng volume losses`.
#[derive(ClapArgs, Debug)]
pub struct VolumeLosses {
    /// The volume: the directory at which it is joined, by its path from the root of the filesystem, or its number.
    #[arg(default_value = "/")]
    pub volume: String,
    /// A configuration whose certificate has the role admin, in a region that has the volume: best in its home.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng salvage`.
#[derive(ClapArgs, Debug)]
pub struct SalvageArgs {
    #[command(subcommand)]
    pub command: SalvageCommand,
}

/// What is asked about what was put aside.
#[derive(Subcommand, Debug)]
pub enum SalvageCommand {
    /// Show the archives of a region: of one volume, or of all that it has.
    List(SalvageList),
    /// Show an archive: the files that it concerns, and its entries.
    Show(SalvageShow),
    /// Bring something back (not built yet).
    #[command(hide = true)]
    Restore(Rest),
}

/// `mooseng salvage list`.
#[derive(ClapArgs, Debug)]
pub struct SalvageList {
    /// Of that volume alone, by its number or the path that it is joined at [default: all that the region has something of].
    #[arg(long, value_name = "PATH|NUMBER")]
    pub volume: Option<String>,
    /// A configuration whose certificate has the role admin, in the region.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng salvage show`.
#[derive(ClapArgs, Debug)]
pub struct SalvageShow {
    /// The archive: the place that its entries follow, as `mooseng salvage list` shows it.
    pub id: String,
    #[command(flatten)]
    pub of: OfVolume,
    /// A configuration whose certificate has the role admin, in the region.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng volume info`.
#[derive(ClapArgs, Debug)]
pub struct VolumeNamed {
    /// The volume: the directory at which it is joined, by its path from the root of the filesystem, or its number.
    pub volume: String,
    #[command(flatten)]
    pub reading: Reading,
}
