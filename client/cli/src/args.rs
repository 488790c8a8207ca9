//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

mod certs;
mod class;
mod cluster;
mod dev;
mod quota;
mod regions;
mod trash;

pub use certs::{CertsArgs, CertsCommand, CertsRevoke, CertsUnrevoke};
pub use class::{ClassArgs, ClassAssign, ClassCommand, ClassCreate, ClassList, ClassName, ClassOf, ClassSet};
pub use cluster::{ClusterArgs, ClusterCommand, ClusterLevel};
pub use dev::*;
pub use quota::{QuotaArgs, QuotaCommand, QuotaList, QuotaOf, QuotaSet, QuotaWhose, UsersVolume};
pub use regions::{
    Durability, Failover, OnSyncLoss, RegionAdd, RegionRemove, RegionsArgs, RegionsCommand, SalvageArgs,
    SalvageCommand, SalvageList, SalvageShow, VolumeArgs, VolumeCommand, VolumeCreate, VolumeDelete,
    VolumeMove, VolumeNamed, VolumeSet, VolumeVerify,
};
pub use trash::{Trash, TrashCommand, TrashList, TrashPurge, TrashRestore, TrashRetention};

/// MooseNG: a filesystem that spans regions.
#[derive(Parser, Debug)]
#[command(
    name = "mooseng",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Mount the filesystem on a directory; returns when the mount works.
    Mount(Mount),
    /// Unmount it.
    Umount(Umount),
    /// Is my data safe? The verdict, the evidence, the next command.
    Status(Reading),
    /// Where a file's data lies, and in what state.
    Info(Info),
    /// Space: by disk, and what is usable.
    Df(Reading),
    /// Count everything again: references, names, counters, copies; names the files of what doesn't agree.
    Fsck(Fsck),
    /// What a health code means, where it comes from and what to do.
    Explain(Explain),
    /// What the mounts on this machine are asked for, again and again, and what is under way.
    Top(Top),
    /// What a mount is asked for during some seconds, by operation, how long that takes, and what is under way.
    Profile(Profile),
    /// Change the masters of a region.
    Members(Members),
    /// Empty chunkservers, or take them back into use.
    Chunkservers(Chunkservers),
    /// Dump a region's metadata into a file, check such a file, or make a region anew from it.
    Metadata(Metadata),
    /// Deleted files: list, restore and purge them, and how long they are kept.
    Trash(Trash),
    /// Limits of directories and users, and what counts for them.
    Quota(QuotaArgs),
    /// Storage classes: how many copies data gets and on which chunkservers, and for which files and directories.
    Class(ClassArgs),
    /// Print completions for a shell.
    Completions(Completions),
    /// Write the manual pages into a directory.
    Man(Man),
    /// A cluster of real daemons on this machine.
    Dev(Dev),
    /// Volumes: where they have their home, and which regions have them.
    Volume(VolumeArgs),
    /// What failovers lost is kept: show what was put aside in a region.
    Salvage(SalvageArgs),
    /// Policies (not built yet).
    #[command(hide = true)]
    Policy(Rest),
    /// What happened in the cluster, in the order of time.
    Events(EventsArgs),
    /// The cluster's regions, and the group in which they agree.
    Regions(RegionsArgs),
    /// The cluster's feature level: which releases its masters may be of.
    Cluster(ClusterArgs),
    /// Certificates that the cluster refuses. (`mooseng-certs` issues them.)
    Certs(CertsArgs),
}

/// Arguments of a command that isn't built.
#[derive(ClapArgs, Debug)]
pub struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    #[allow(dead_code, reason = "taken so that the command is refused for the right reason")]
    rest: Vec<String>,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs; the shape carries a version.
    Json,
}

/// `-o table|json`.
#[derive(ClapArgs, Debug, Clone, Copy)]
pub struct Output {
    /// How to print the data.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub format: Format,
}

/// Options of the commands that ask a region's masters.
#[derive(ClapArgs, Debug)]
pub struct Reading {
    /// The client's configuration; without it the one of the mount on this machine, if there is one.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// `--volume`, of a command that is about one volume.
#[derive(ClapArgs, Debug)]
pub struct OfVolume {
    /// Of that volume, by its number or the path that it is joined at [default: /].
    #[arg(long, value_name = "PATH|NUMBER")]
    pub volume: Option<String>,
}

/// `mooseng events`.
#[derive(ClapArgs, Debug)]
pub struct EventsArgs {
    /// Go on until Ctrl-C, also while regions die and come back.
    #[arg(long)]
    pub follow: bool,
    /// Begin so long ago, as 10m, 2h or 7d.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1d")]
    pub since: Duration,
    #[command(flatten)]
    pub reading: Reading,
}

/// `mooseng mount`.
#[derive(ClapArgs, Debug)]
pub struct Mount {
    /// The client's configuration.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// The directory to mount on.
    pub path: PathBuf,
    /// Stay in the foreground and log to stderr.
    #[arg(long)]
    pub foreground: bool,
    /// Serve in this process, without a supervisor that mounts again when it dies.
    #[arg(long)]
    pub unsupervised: bool,
    /// Mount options, separated by commas: ro, noexec, allow_other, noatime, sync (each change is durable before it is answered), dirsync (each change of names
    /// is), consistency=session|strong (what other regions' replicas may answer, or only the volume's home), retry_timeout=SECONDS.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// How long an operation is retried before it fails, in seconds, at least one. Overrides the configuration.
    #[arg(
        long,
        env = "MOOSENG_RETRY_TIMEOUT_S",
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub retry_timeout_s: Option<u64>,
    /// Masters to use instead of the configuration's (host:port, separated by commas).
    #[arg(long, env = "MOOSENG_MASTERS", value_name = "ADDRESSES", value_delimiter = ',')]
    pub masters: Vec<String>,
    /// Set by the process that waits for this one: the answer goes to stdout, the log to this file.
    #[arg(long, hide = true, value_name = "LOG")]
    pub daemon_child: Option<PathBuf>,
    /// Set by the supervisor for the process that serves the mount.
    #[arg(long, hide = true, value_enum)]
    pub worker: Option<Worker>,
    /// The session and the incarnation of the dead process that a later one replaces.
    #[arg(long, hide = true, value_name = "SESSION:INCARNATION")]
    pub after: Option<String>,
    /// What the table of mounts shows as the source.
    #[arg(long, hide = true)]
    pub source: Option<String>,
    /// Ignore unknown mount options (mount -s).
    #[arg(long, hide = true)]
    pub sloppy: bool,
}

/// Which of a supervisor's processes it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Worker {
    /// The first: nothing is mounted there.
    First,
    /// A later one: it replaces the dead mount of the one before.
    Again,
}

impl Mount {
    /// A mount in the background, with nothing said but what and where.
    pub fn of(config: PathBuf, path: PathBuf) -> Self {
        Self {
            config: Some(config),
            path,
            foreground: false,
            unsupervised: false,
            options: Vec::new(),
            retry_timeout_s: None,
            masters: Vec::new(),
            daemon_child: None,
            worker: None,
            after: None,
            source: None,
            sloppy: false,
        }
    }
}

/// `mooseng umount`.
#[derive(ClapArgs, Debug)]
pub struct Umount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Take it out of the tree even if it is in use; it ends when its last user is gone.
    #[arg(long)]
    pub lazy: bool,
}

/// `mooseng info`.
#[derive(ClapArgs, Debug)]
pub struct Info {
    /// A path below a mount; with --config, a path from the root of the filesystem.
    pub path: PathBuf,
    /// Ask through a session of its own instead of finding the mount.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng fsck`.
#[derive(ClapArgs, Debug)]
pub struct Fsck {
    /// Set counters right that are off. What needs a decision is only named.
    #[arg(long)]
    pub repair: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng explain`.
#[derive(ClapArgs, Debug)]
pub struct Explain {
    /// The code, as in `mooseng status`; without it, all of them.
    pub code: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng members`.
#[derive(ClapArgs, Debug)]
pub struct Members {
    #[command(subcommand)]
    pub change: MemberChange,
}

/// A change of membership.
#[derive(Subcommand, Debug)]
pub enum MemberChange {
    /// Take a running master into the region's group; it catches up first.
    Add {
        /// Its id.
        #[arg(long)]
        id: u64,
        /// Its name, as in its certificate.
        #[arg(long)]
        name: String,
        /// host:port.
        #[arg(long)]
        address: String,
        /// Its zone.
        #[arg(long)]
        zone: String,
        /// Only say what would happen.
        #[arg(long)]
        plan: bool,
        /// A configuration whose certificate has the role admin.
        #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Take masters out of the region's group.
    Remove {
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<u64>,
        /// Only say what would happen.
        #[arg(long)]
        plan: bool,
        /// A configuration whose certificate has the role admin.
        #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
}

/// `mooseng chunkservers`.
#[derive(ClapArgs, Debug)]
pub struct Chunkservers {
    #[command(subcommand)]
    pub change: ChunkserverChange,
}

/// What is to become of a chunkserver.
#[derive(Subcommand, Debug)]
pub enum ChunkserverChange {
    /// Empty it: it takes no new chunks, and those that it has are moved to others.
    Drain(ChunkserverDrain),
    /// Take it back into use.
    Undrain(ChunkserverNamed),
}

/// Arguments of `mooseng chunkservers drain`.
#[derive(ClapArgs, Debug)]
pub struct ChunkserverDrain {
    /// Only say what would happen.
    #[arg(long)]
    pub plan: bool,
    #[command(flatten)]
    pub named: ChunkserverNamed,
}

/// Which chunkserver `mooseng chunkservers drain` and `undrain` are about.
#[derive(ClapArgs, Debug)]
pub struct ChunkserverNamed {
    /// The chunkserver's name.
    pub name: String,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng top`.
#[derive(ClapArgs, Debug)]
pub struct Top {
    /// How often it looks, e.g. 2s.
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    pub every: Duration,
    /// Look for that time once, print, and end.
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng profile`.
#[derive(ClapArgs, Debug)]
pub struct Profile {
    /// A mount, or a path below one.
    pub path: PathBuf,
    /// How long to look, e.g. 10s.
    #[arg(long = "for", value_parser = parse_duration, default_value = "5s")]
    pub time: Duration,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng metadata`.
#[derive(ClapArgs, Debug)]
pub struct Metadata {
    #[command(subcommand)]
    pub command: MetadataCommand,
}

/// What is to be done.
#[derive(Subcommand, Debug)]
pub enum MetadataCommand {
    /// Write the whole store, as of one moment, into a file, while the region works.
    Dump(MetadataDump),
    /// Read a dump, and say whether it is whole and what it is of.
    Verify(MetadataVerify),
    /// Make the region anew from a dump, on a stopped master with an empty state_dir. It runs `mooseng-master load`.
    Load(MetadataLoad),
}

/// Arguments of `mooseng metadata dump`.
#[derive(ClapArgs, Debug)]
pub struct MetadataDump {
    /// The file; it must not exist. It has this name only once it is whole, flushed and read again.
    pub file: PathBuf,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `mooseng metadata verify`.
#[derive(ClapArgs, Debug)]
pub struct MetadataVerify {
    /// The dump.
    pub file: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `mooseng metadata load`.
#[derive(ClapArgs, Debug)]
pub struct MetadataLoad {
    /// The dump.
    pub file: PathBuf,
    /// The configuration of the master that the region begins with.
    #[arg(long, value_name = "FILE")]
    pub master_config: PathBuf,
}

/// `mooseng completions`.
#[derive(ClapArgs, Debug)]
pub struct Completions {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// `mooseng man`.
#[derive(ClapArgs, Debug)]
pub struct Man {
    /// The directory to write into; made if it's missing.
    pub dir: PathBuf,
}

/// A time as `90s`, `10m`, `24h`, `500ms` or plain seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} isn't a time like 90s, 10m or 24h"))?;
    let ms = match &text[digits.len()..] {
        "" | "s" => 1000,
        "ms" => 1,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        unit => return Err(format!("{unit:?} isn't a unit of time: use ms, s, m, h or d")),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long a time"))
}

/// A bound as a time, or `none`, which is zero.
fn parse_lag_max(text: &str) -> Result<Duration, String> {
    match text {
        "none" => Ok(Duration::ZERO),
        text => parse_duration(text).and_then(|most| match most.is_zero() {
            true => Err("a bound of no time lets nobody write; `none` is no bound".to_owned()),
            false => Ok(most),
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn times() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(parse_lag_max("none"), Ok(Duration::ZERO));
        assert!(parse_lag_max("0s").is_err() && parse_lag_max("nothing").is_err());
        assert!(parse_duration("h").is_err());
        assert!(parse_duration("5 weeks").is_err());
        assert!(parse_duration("99999999999999999999d").is_err());
        assert!(parse_duration("9999999999999999999d").is_err());
    }

    #[test]
    fn an_operation_is_tried_for_a_second_at_least() {
        let timeout = |seconds: &str| {
            let line = ["mooseng", "mount", "--config", "/c", "--retry-timeout-s", seconds, "/m"];
            Args::try_parse_from(line).map(drop).map_err(|error| error.exit_code())
        };
        assert_eq!(timeout("0"), Err(2));
        assert_eq!(timeout("1"), Ok(()));
    }

    #[test]
    fn the_fixed_forms_parse() {
        for line in [
            "mooseng dev up --dir /d",
            "mooseng dev up --dir /d --masters 3 --chunkservers 3 --copies 2 --mount /m --detach",
            "mooseng dev up --no-mount",
            "mooseng dev up --dir /d --regions 2 --wan 60ms",
            "mooseng dev kill master-1 --dir /d",
            "mooseng dev kill region region-1 --dir /d",
            "mooseng dev pause --dir /d region region-1",
            "mooseng dev start region region-1 --dir /d",
            "mooseng dev partition region-2 --one-way --dir /d",
            "mooseng dev heal --dir /d",
            "mooseng dev load --verify --region region-2 --seconds 5 --dir /d",
            "mooseng dev load --verify --dir /d",
            "mooseng dev verify --dir /d",
            "mooseng dev verify --region region-2 --wait 1s -o json --dir /d",
            "mooseng dev pause master-1 --dir /d",
            "mooseng dev resume master-1 --dir /d",
            "mooseng dev start master-1 --dir /d",
            "mooseng dev status --dir /d",
            "mooseng dev down --dir /d --purge",
            "mooseng mount --config /c /m",
            "mooseng mount --config /c /m --foreground",
            "mooseng trash list --under /d --config /c -o json",
            "mooseng trash restore 7 --to /d/name --config /c",
            "mooseng trash purge 7 --config /c",
            "mooseng trash purge --all --config /c",
            "mooseng trash purge --older-than 2h --config /c",
            "mooseng trash purge --all --volume /d --config /c",
            "mooseng trash list --volume 3 --config /c",
            "mooseng trash retention 2h --volume /d --config /c",
            "mooseng quota set --user 7 --volume /d --bytes 1G --config /c",
            "mooseng quota list --volume 3 --config /c",
            "mooseng class create fast --copies 2 --volume /d --config /c",
            "mooseng class list --volume 3 --config /c",
            "mooseng class set fast --copies 2 --volume /d --config /c",
            "mooseng class delete fast --volume /d --config /c",
            "mooseng trash retention --config /c",
            "mooseng trash retention 7d --config /c",
            "mooseng trash retention --min-age 0 --config /c",
            "mooseng quota set /d --bytes 20G --inodes 1000 --config /c",
            "mooseng quota set --user 1000 --bytes 1T --config /c",
            "mooseng quota get /d --config /c -o json",
            "mooseng quota list --config /c",
            "mooseng quota clear --user 1000 --config /c",
            "mooseng class create fast --copies 2 --min-copies 1 --labels media=ssd,zone=a --config /c",
            "mooseng class set fast --copies 3 --config /c",
            "mooseng class set fast --no-labels --config /c",
            "mooseng class list --config /c -o json",
            "mooseng class assign fast /d -r --config /c",
            "mooseng class get /d --config /c -o json",
            "mooseng volume set / --durability geo --on-sync-loss block --plan --config /c",
            "mooseng regions add c --master id=1,name=m1,address=h:1 --plan --config /c -o json",
            "mooseng regions remove c --plan --config /c",
            "mooseng members add --id 4 --name m4 --address h:1 --zone z --plan --config /c",
            "mooseng members remove 2 --plan --config /c -o json",
            "mooseng chunkservers drain cs2 --plan --config /c -o json",
            "mooseng chunkservers undrain cs2 --config /c",
            "mooseng class set fast --copies 3 --plan --config /c",
            "mooseng class assign fast /d -r --plan --config /c -o json",
            "mooseng events --follow --since 10m --config /c",
            "mooseng events -o json",
            "mooseng volume set / --regions a,b --failover manual --config /c -o json",
            "mooseng class delete fast --config /c",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "mooseng trash purge --config /c",
            "mooseng trash purge 7 --all --config /c",
            "mooseng trash purge 7 --volume 3 --config /c",
            "mooseng trash list --under /d --volume 3 --config /c",
            "mooseng quota get /d --volume 3 --config /c",
            "mooseng quota get --config /c",
            "mooseng quota get /d --user 7 --config /c",
            "mooseng class create fast --config /c",
            "mooseng class create fast --copies 2 --labels ssd --config /c",
            "mooseng class set fast --labels a=b --no-labels --config /c",
            "mooseng volume set / --config /c",
            "mooseng volume set / --durability none --config /c",
            "mooseng chunkservers undrain cs2 --plan --config /c",
            "mooseng dev kill --dir /d",
            "mooseng dev kill region region-1 region-2 --dir /d",
            "mooseng dev load --dir /d",
            "mooseng dev load --verify --threads 0 --dir /d",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
