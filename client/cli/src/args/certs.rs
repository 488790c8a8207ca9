//! `mooseng certs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{Output, Reading, parse_duration};

/// `mooseng certs`.
#[derive(ClapArgs, Debug)]
pub struct CertsArgs {
    #[command(subcommand)]
    pub command: CertsCommand,
}

/// What to do about certificates.
#[derive(Subcommand, Debug)]
pub enum CertsCommand {
    /// Refuse certificates in the whole cluster, by serial number or name: connections end within seconds, and no new ones are made.
    Revoke(CertsRevoke),
    /// Take a revocation back.
    Unrevoke(CertsUnrevoke),
    /// Show what is revoked, and which daemons have heard of it.
    Revoked(Reading),
}

/// `mooseng certs revoke`.
#[derive(ClapArgs, Debug)]
pub struct CertsRevoke {
    /// Serial numbers, or names as spiffe://CLUSTER/REGION/ROLE/NAME: whatever certificate is issued for such a name is refused, too.
    #[arg(required_unless_present = "cert")]
    pub what: Vec<String>,
    /// The certificate in this file, by its serial number, until it ends.
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Why, for those who list it later.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// The certificates with these serial numbers end within that time (24h, 90d): their entries go an hour after.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "what")]
    pub ends_within: Option<Duration>,
    /// Change nothing: say whether it would be taken, and what it would concern.
    #[arg(long)]
    pub plan: bool,
    /// Also the certificate that this is asked with.
    #[arg(long)]
    pub although_it_is_your_own: bool,
    /// Also a chunkserver that serves.
    #[arg(long)]
    pub although_it_serves: bool,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mooseng certs unrevoke`.
#[derive(ClapArgs, Debug)]
pub struct CertsUnrevoke {
    /// The serial number or name, as `mooseng certs revoked` shows it.
    pub what: String,
    /// A configuration whose certificate has the role admin.
    #[arg(long, env = "MOOSENG_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: Output,
}
