//! `mooseng dev load --verify` and `mooseng dev verify`: a workload on a mount that writes down what was acknowledged, outside of the mounts, and
//! its comparison with what a mount shows.
//!
//! ```text
//!  DIR/load/N/t*.journal   what run N began and was acknowledged   locked while it works
//!  MOUNT/load-N/           where it worked
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mooseng_ports::interrupt;
use mooseng_workload::verify::{self as check, Report};
use mooseng_workload::{Settings, run as work};
use nix::fcntl::Flock;
use serde::Serialize;

use super::configs;
use super::state::{self, Cluster};
use crate::args::{DevLoad, DevVerify, Format};
use crate::exit::Failure;
use crate::output;
use crate::runtime;

/// Without --seconds.
const UNTIL_INTERRUPTED: Duration = Duration::from_secs(365 * 86_400);
/// Problems that are shown.
const SHOWN_MAX: usize = 20;
const LOCK: &str = "lock";

/// What the cluster's directory says about a mount: nothing stays locked while the work goes on.
struct Place {
    loads: PathBuf,
    region: String,
    mount: PathBuf,
}

impl Place {
    fn find(dir: &Path, region: Option<&str>) -> Result<Self, Failure> {
        let cluster = Cluster::open(dir)?;
        let clients = cluster.state.plan.clients();
        if let Some(region) = region {
            cluster.region(region)?;
        }
        let client = clients.into_iter().find(|c| region.is_none_or(|region| c.region == region));
        let none = || Failure::not_found(format!("Region {} has no mount.", region.unwrap_or_default()));
        let client = client.ok_or_else(none)?;
        let mount = client.mount.filter(|path| runtime::is_mounted(path)).ok_or_else(|| {
            Failure::unavailable(format!(
                "Nothing is mounted in {}: `mooseng dev start {} --dir {}` mounts it.",
                client.region,
                client.name,
                output::shell_quote(&cluster.dir)
            ))
        })?;
        Ok(Self { loads: cluster.dir.join("load"), region: client.region, mount })
    }

    /// Numbers of the runs there are, in order.
    fn runs(&self) -> Result<Vec<u64>, Failure> {
        let entries = match std::fs::read_dir(&self.loads) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => {
                return Err(Failure::failed(format!("{} can't be listed: {e}.", self.loads.display())));
            }
        };
        let mut runs: Vec<u64> =
            entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        runs.sort_unstable();
        Ok(runs)
    }

    fn journals(&self, run: u64) -> PathBuf {
        self.loads.join(run.to_string())
    }

    fn work_dir(&self, run: u64) -> PathBuf {
        self.mount.join(format!("load-{run}"))
    }

    /// A new run, locked.
    fn begin(&self) -> Result<(u64, Flock<File>), Failure> {
        configs::make_dir(&self.loads)?;
        let _alone = state::lock(&self.loads, LOCK, Duration::from_secs(10))?;
        let run = self.runs()?.last().map_or(1, |last| last + 1);
        configs::make_dir(&self.journals(run))?;
        Ok((run, state::lock(&self.journals(run), LOCK, Duration::ZERO)?))
    }
}

/// Works on a mount.
pub fn run(args: &DevLoad) -> Result<(), Failure> {
    interrupt::catch();
    let place = Place::find(&args.dir, args.region.as_deref())?;
    let (run, _lock) = place.begin()?;
    let settings = Settings {
        dir: place.work_dir(run),
        journals: place.journals(run),
        threads: args.threads as usize,
        time: args.seconds.map_or(UNTIL_INTERRUPTED, Duration::from_secs),
        seed: run,
        go_on: true,
    };
    eprintln!(
        "Working in {} ({}); journals are in {}. Ctrl-C ends it.",
        settings.dir.display(),
        place.region,
        settings.journals.display()
    );
    let outcome =
        work(&settings, interrupt::asked).map_err(|e| Failure::failed(format!("The load failed: {e:#}.")))?;
    output::text_line(&format!(
        "{} operations acknowledged, {} failed. `mooseng dev verify --dir {}` looks whether all that was acknowledged is there.",
        outcome.operations,
        outcome.errors.len(),
        output::shell_quote(&args.dir)
    ))?;
    // What failed isn't acknowledged: when a home is lost, operations that were under way may end so.
    let told = told(&outcome.errors, "operations failed");
    // Wrong content is no failure that anything excuses.
    if outcome.operations == 0 || outcome.wrong().next().is_some() { told } else { Ok(()) }
}

#[derive(Serialize)]
struct Found {
    run: u64,
    threads: usize,
    files: usize,
    acknowledged: usize,
    unanswered: usize,
    problems: Vec<String>,
}

/// Compares all that was acknowledged with what a mount shows.
pub fn verify(args: &DevVerify) -> Result<(), Failure> {
    interrupt::catch();
    let place = Place::find(&args.dir, args.region.as_deref())?;
    let runs = place.runs()?;
    if runs.is_empty() {
        return Err(Failure::not_found(format!(
            "There is nothing to verify: `mooseng dev load --verify --dir {}` works on a mount.",
            output::shell_quote(&args.dir)
        )));
    }
    let deadline = Instant::now() + args.wait;
    let found =
        runs.into_iter().map(|run| verify_run(&place, run, deadline)).collect::<Result<Vec<_>, _>>()?;
    let problems: Vec<String> =
        found.iter().flat_map(|f| f.problems.iter().map(|p| format!("load-{}/{p}", f.run))).collect();
    if args.output.format == Format::Json {
        output::json(
            &serde_json::json!({ "version": output::VERSION, "region": place.region, "mount": place.mount, "runs": found }),
        )?;
    } else {
        let sum = |of: fn(&Found) -> usize| found.iter().map(of).sum::<usize>();
        output::text_line(&format!(
            "{} operations acknowledged in {} runs, {} of them unanswered at the end; {} files compared through {}: {} problems.",
            sum(|f| f.acknowledged),
            found.len(),
            sum(|f| f.unanswered),
            sum(|f| f.files),
            place.mount.display(),
            problems.len()
        ))?;
    }
    told(&problems, "things aren't as they were acknowledged")
}

/// Again until all is well or the time is over: a replica shows what it has so far.
fn verify_run(place: &Place, run: u64, deadline: Instant) -> Result<Found, Failure> {
    let journals = place.journals(run);
    let _lock = state::lock(&journals, LOCK, Duration::ZERO)
        .map_err(|_| Failure::unavailable(format!("Run {run} still works: verify once it has ended.")))?;
    let report = loop {
        let report = check::verify(&place.work_dir(run), &journals);
        let well = report.as_ref().is_ok_and(|report| report.problems.is_empty());
        if well || Instant::now() >= deadline || interrupt::asked() {
            break report;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let Report { threads, files, acknowledged, unanswered, problems } =
        report.map_err(|e| Failure::failed(format!("Run {run} can't be verified: {e:#}.")))?;
    Ok(Found { run, threads, files, acknowledged, unanswered, problems })
}

/// Shows what is wrong, and fails if anything is.
fn told(problems: &[String], what: &str) -> Result<(), Failure> {
    for problem in problems.iter().take(SHOWN_MAX) {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} {what}."))),
    }
}
