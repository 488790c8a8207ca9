//! `mooseng dev ...`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{Durability, Output, parse_duration};

/// `mooseng dev`.
#[derive(ClapArgs, Debug)]
pub struct Dev {
    #[command(subcommand)]
    pub command: DevCommand,
}

/// The commands of `mooseng dev`.
#[derive(Subcommand, Debug)]
pub enum DevCommand {
    /// Make a cluster, or start the one that is kept in DIR, and mount it. Ctrl-C stops it.
    Up(DevUp),
    /// kill -9 a process.
    Kill(DevTarget),
    /// Stop a process (SIGSTOP) as if its machine froze.
    Pause(DevTarget),
    /// Let a paused process go on.
    Resume(DevTarget),
    /// Start a process that was killed.
    Start(DevTarget),
    /// Cut a region off from the others.
    Partition(DevPartition),
    /// Mend whatever is cut between regions.
    Heal(DevDir),
    /// Work on a mount, and write down what was acknowledged.
    Load(DevLoad),
    /// Compare all that `load` was acknowledged with what a mount shows.
    Verify(DevVerify),
    /// What runs where.
    Status(DevStatus),
    /// Unmount and stop everything.
    Down(DevDown),
    /// Renews certificates and keeps cluster.json true: the background half of `up --detach`.
    #[command(hide = true)]
    Supervise(DevDir),
}

/// `mooseng dev up`.
#[derive(ClapArgs, Debug, Clone)]
pub struct DevUp {
    /// Where the cluster is kept; without it, a temporary one that is removed at the end.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How many regions with data, 1 to 4; from 2 on there is a witness, too, a region of one master without data [default: 2, or as in DIR].
    #[arg(long)]
    pub regions: Option<u32>,
    /// Round trip between regions [default: 60ms, or as in DIR].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub wan: Option<Duration>,
    /// When fsync returns: with what is safe in the home region, or in others, too. Set once the cluster is up; later `mooseng volume set` changes it
    /// [default: geo with several regions, or as it is].
    #[arg(long, value_enum)]
    pub durability: Option<Durability>,
    /// How many masters in each region [default: 3, or as in DIR].
    #[arg(long)]
    pub masters: Option<u32>,
    /// How many chunkservers in each region [default: 3, or as in DIR].
    #[arg(long)]
    pub chunkservers: Option<u32>,
    /// Copies of each chunk in each region [default: 2, or as in DIR].
    #[arg(long)]
    pub copies: Option<u32>,
    /// Where to mount; with several regions each in a directory of its name below it [default: DIR/mnt].
    #[arg(long, value_name = "PATH", conflicts_with = "no_mount")]
    pub mount: Option<PathBuf>,
    /// Don't mount.
    #[arg(long)]
    pub no_mount: bool,
    /// Each region in a network namespace of its own, for a new cluster. It takes root, and iproute2. Commands find their way in by the configurations in DIR/etc; `ip netns
    /// exec` enters one, to look at what regions say to each other, or to break it.
    #[arg(long)]
    pub isolate: bool,
    /// Return once everything serves; `mooseng dev down` ends it.
    #[arg(long)]
    pub detach: bool,
    /// How long the daemons' certificates live; they are renewed at half of it [default: 24h, or as in DIR].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub leaf_lifetime: Option<Duration>,
    /// How long a new cluster keeps deleted files in its trash, 0 for not at all [default: 24h].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub trash_retention: Option<Duration>,
    /// Send the spans of all operations and all metrics to the OpenTelemetry collector there, as in http://127.0.0.1:4317; off for nowhere any
    /// more. Counts for processes that are started from now on [default: nowhere, or as in DIR].
    #[arg(long, value_name = "ENDPOINT")]
    pub otlp: Option<String>,
    /// How long to wait until everything serves.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "90s")]
    pub wait: Duration,
}

/// A process of a dev cluster, or all of a region.
#[derive(ClapArgs, Debug)]
pub struct DevTarget {
    /// Its name, as in cluster.json; or `region` and a region's name, for its masters and chunkservers.
    #[arg(value_name = "NAME | region R", num_args = 1..=2, required = true)]
    pub target: Vec<String>,
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// `mooseng dev partition`.
#[derive(ClapArgs, Debug)]
pub struct DevPartition {
    /// The region.
    pub region: String,
    /// Only what it sends is lost; it still hears the others.
    #[arg(long)]
    pub one_way: bool,
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// `mooseng dev load`.
#[derive(ClapArgs, Debug)]
pub struct DevLoad {
    /// Write down each operation and its acknowledgement below DIR/load, for `mooseng dev verify`.
    #[arg(long, required = true)]
    pub verify: bool,
    /// On the mount of this region [default: the first one].
    #[arg(long, value_name = "R")]
    pub region: Option<String>,
    /// For how long [default: until Ctrl-C].
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// How many operations at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// `mooseng dev verify`.
#[derive(ClapArgs, Debug)]
pub struct DevVerify {
    /// Through the mount of this region [default: the first one].
    #[arg(long, value_name = "R")]
    pub region: Option<String>,
    /// How long what is still on its way from another region may take to arrive.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    pub wait: Duration,
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// Where a dev cluster is kept.
#[derive(ClapArgs, Debug)]
pub struct DevDir {
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// `mooseng dev status`.
#[derive(ClapArgs, Debug)]
pub struct DevStatus {
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng dev down`.
#[derive(ClapArgs, Debug)]
pub struct DevDown {
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Remove DIR and everything in it.
    #[arg(long)]
    pub purge: bool,
}
