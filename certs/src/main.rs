//! `mooseng-certs`: the cluster's certificate authority on the command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use mooseng_certs::{Authority, Error, Renewal, inspect};
use mooseng_wire::{Identity, Role};

/// A hundred years.
const HOURS_MAX: u64 = 100 * 365 * 24;

#[derive(Parser)]
#[command(version, about = "Makes, lists, renews and revokes the certificates of a MooseNG cluster")]
struct Args {
    /// The authority's directory.
    #[arg(long, global = true, default_value = "mooseng-ca", env = "MOOSENG_CA_DIR")]
    dir: PathBuf,
    /// How reading commands print.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the root of a new cluster.
    Init {
        /// The cluster's name.
        #[arg(long)]
        cluster: String,
        /// Overwrite an existing root: every certificate under it becomes worthless.
        #[arg(long)]
        force: bool,
    },
    /// Regions' intermediates.
    Region {
        #[command(subcommand)]
        command: RegionCommand,
    },
    /// Issues a leaf into a directory.
    Issue {
        /// master, chunkserver, client or admin.
        #[arg(long, value_parser = |w: &str| Role::parse(w).ok_or("a role is master, chunkserver, client or admin"))]
        role: Role,
        /// The region's name.
        #[arg(long)]
        region: String,
        /// The owner's name.
        #[arg(long)]
        name: String,
        /// Its life in hours.
        #[arg(long, default_value_t = 24)]
        hours: u64,
        /// Where cert.pem, key.pem and ca.pem go.
        #[arg(long)]
        out: PathBuf,
        /// Overwrite what lies there.
        #[arg(long)]
        force: bool,
    },
    /// Lists what was issued, with its end.
    List,
    /// Says what a certificate file holds.
    Inspect {
        /// A PEM file.
        file: PathBuf,
    },
    /// Issues leaves anew, for the same identities.
    Renew {
        /// The leaves' directories; without any, all that were issued.
        dirs: Vec<PathBuf>,
        /// Renew only leaves past half of their life, and go on doing so.
        #[arg(long)]
        watch: bool,
    },
    /// Revokes an identity (spiffe://...) or a serial number.
    Revoke {
        /// What.
        what: String,
        /// Copy the new list beside every issued leaf on this machine.
        #[arg(long)]
        distribute: bool,
    },
}

#[derive(Subcommand)]
enum RegionCommand {
    /// Makes a region's intermediate.
    Add {
        /// The region's name.
        name: String,
        /// Overwrite an existing intermediate: leaves under the old one live on until they end.
        #[arg(long)]
        force: bool,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// 1 failed, 2 usage, 3 not found, 4 denied.
fn exit_code(error: &Error) -> u8 {
    use std::io::ErrorKind;
    match error {
        Error::Name(_) => 2,
        Error::Missing { .. } => 3,
        Error::File { source, .. } if source.kind() == ErrorKind::NotFound => 3,
        Error::Denied { .. } => 4,
        Error::File { source, .. } if source.kind() == ErrorKind::PermissionDenied => 4,
        _ => 1,
    }
}

fn print_json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(&serde_json::json!({ "version": 1, "items": value }));
    println!("{}", text.unwrap_or_default());
}

fn utc(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| unix.to_string())
}

fn run(args: Args) -> Result<(), Error> {
    let dir = args.dir;
    match args.command {
        Command::Init { cluster, force } => {
            Authority::create_with(&dir, &cluster, force)?;
            eprintln!(
                "The root of cluster {cluster} is in {}. Next: mooseng-certs region add NAME",
                dir.display()
            );
        }
        Command::Region { command: RegionCommand::Add { name, force } } => {
            Authority::open(&dir)?.add_region(&name, force)?;
            eprintln!(
                "Region {name} has its intermediate. Next: mooseng-certs issue --region {name} --role ... --name ... --out ..."
            );
        }
        Command::Issue { role, region, name, hours, out, force } => {
            let authority = Authority::open(&dir)?;
            let identity = Identity { cluster: authority.cluster().to_owned(), region, role, name };
            let life = Duration::from_secs(hours.saturating_mul(3600).min(HOURS_MAX * 3600));
            let issued = authority.issue(&identity, life, &out, force)?;
            if authority.revoked()?.contains(&issued.spiffe) {
                eprintln!(
                    "{} is on the revocation list: peers refuse it until its line is removed there.",
                    issued.spiffe
                );
            }
            eprintln!("Issued {} until {} into {}", issued.spiffe, utc(issued.not_after_unix), out.display());
        }
        Command::List => list(&Authority::open(&dir)?, args.output)?,
        Command::Inspect { file } => show(&inspect::file(&file)?, args.output),
        Command::Renew { dirs, watch } => renew(&Authority::open(&dir)?, dirs, watch)?,
        Command::Revoke { what, distribute } => {
            let authority = Authority::open(&dir)?;
            let mut lacking = authority.revoke(&what)?;
            if distribute {
                authority.distribute_revocations()?;
                // Leaves that lie on other machines lack it still.
                lacking = authority.revoke(&what)?;
            }
            if !authority.issued()?.iter().any(|i| i.spiffe == what || i.serial == what) {
                eprintln!("This authority has no record of {what}: look whether the name is right.");
            }
            eprintln!("{what} is revoked: {} has it.", authority.revocations_path().display());
            for issued in &lacking {
                println!(
                    "{} lacks the list: copy it to {}",
                    issued.spiffe,
                    issued.out.join("revocations.txt").display()
                );
            }
            eprintln!(
                "`mooseng certs revoke` has a running cluster refuse it at once, without this list. A daemon refuses it within 10 s of having the list under its setting tls.revocations. The list's digest is {}: \
                 `mooseng status` finds REVOCATIONS_DIFFER for each master and chunkserver that goes by another, and \
                 `mooseng status -o json` shows the digest of each.",
                authority.revocations()?.digest()
            );
        }
    }
    Ok(())
}

fn list(authority: &Authority, output: Output) -> Result<(), Error> {
    let issued = authority.issued()?;
    if output == Output::Json {
        print_json(&issued);
        return Ok(());
    }
    for own in authority.authorities()? {
        println!("{:<60} until {}  {}", own.subject, utc(own.not_after_unix), own.serial);
    }
    let revoked = authority.revoked()?;
    for leaf in issued {
        let gone =
            if revoked.iter().any(|r| *r == leaf.spiffe || *r == leaf.serial) { "  REVOKED" } else { "" };
        println!(
            "{:<60} until {}  {}  {}{gone}",
            leaf.spiffe,
            utc(leaf.not_after_unix),
            leaf.serial,
            leaf.out.display()
        );
    }
    Ok(())
}

fn show(found: &[inspect::Described], output: Output) {
    if output == Output::Json {
        return print_json(&found);
    }
    for cert in found {
        println!("{}", cert.spiffe.as_deref().unwrap_or(&cert.subject));
        println!("  issued by {}", cert.issuer);
        println!("  serial    {}", cert.serial);
        println!("  valid     {} to {}", utc(cert.not_before_unix), utc(cert.not_after_unix));
        println!("  authority {}", if cert.authority { "yes" } else { "no" });
    }
}

fn renew(authority: &Authority, dirs: Vec<PathBuf>, watch: bool) -> Result<(), Error> {
    let all = |dirs: &[PathBuf]| -> Result<Vec<PathBuf>, Error> {
        if dirs.is_empty() {
            Ok(authority.issued()?.into_iter().map(|i| i.out).collect())
        } else {
            Ok(dirs.to_vec())
        }
    };
    if !watch {
        for dir in all(&dirs)? {
            let issued = authority.renew(&dir)?;
            eprintln!("Renewed {} until {}", issued.spiffe, utc(issued.not_after_unix));
        }
        return Ok(());
    }
    loop {
        for dir in all(&dirs)? {
            report(&dir, authority.renew_if_due(&dir));
        }
        std::thread::sleep(Duration::from_secs(5));
    }
}

fn report(dir: &Path, renewal: Result<Renewal, Error>) {
    match renewal {
        Ok(Renewal::Renewed) => eprintln!("Renewed the leaf in {}", dir.display()),
        Ok(Renewal::DueAt(_)) => {}
        Err(error) => eprintln!("The leaf in {} couldn't be renewed: {error}", dir.display()),
    }
}
