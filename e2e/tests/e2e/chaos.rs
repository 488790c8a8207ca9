//! kill -9 under a verified workload: of one, and of everything at once.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, binary, wait_for};
use mooseng_e2e::load::Timeline;
use mooseng_e2e::load::journal::now_ns;
use mooseng_e2e::steps::Steps;

const SECOND: u64 = 1_000_000_000;
/// A round counts only if so many operations were acknowledged in the second before the fault.
const OPERATIONS_MIN: usize = 50;
/// Rounds that didn't count are repeated, so often at most.
const TRIES: usize = 6;

/// A running `mooseng-load`.
pub struct Load {
    child: Child,
    pub dir: PathBuf,
    pub journals: PathBuf,
    stop_file: PathBuf,
}

impl Load {
    pub fn start(cluster: &DevCluster, name: &str, threads: usize) -> Result<Self> {
        let dir = cluster.mount().join(name);
        let journals = cluster.scratch().join(format!("{name}-journals"));
        let stop_file = cluster.scratch().join(format!("{name}-stop"));
        let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let mut command = Command::new(binary("mooseng-load")?);
        command
            .arg("run")
            .arg("--dir")
            .arg(&dir)
            .arg("--journals")
            .arg(&journals)
            .arg("--stop-file")
            .arg(&stop_file);
        command.args(["--threads", &threads.to_string(), "--seconds", "3000", "--seed", &seed.to_string()]);
        let child = command
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting mooseng-load")?;
        Ok(Self { child, dir, journals, stop_file })
    }

    pub fn timeline(&self) -> Result<Timeline> {
        Timeline::read(&self.journals)
    }

    /// Whether the load is heavy enough for a fault to count.
    fn counts(&self) -> Result<(usize, usize)> {
        let (timeline, now) = (self.timeline()?, now_ns());
        Ok((timeline.answered_between(now.saturating_sub(SECOND), now), timeline.unanswered_at(now)))
    }

    pub fn wait_heavy(&self) -> Result<()> {
        wait_for("the load to be heavy", Duration::from_secs(60), || {
            let (answered, unanswered) = self.counts()?;
            ensure!(
                answered >= OPERATIONS_MIN && unanswered > 0,
                "{answered} answered in a second, {unanswered} unanswered"
            );
            Ok(())
        })
    }

    /// Ends it; with `faultless`, no operation may have failed.
    pub fn stop(&mut self, faultless: bool) -> Result<()> {
        std::fs::write(&self.stop_file, "")?;
        let status = self.child.wait()?;
        ensure!(
            !faultless || status.success(),
            "an error reached the application: {:?}",
            self.timeline()?.errors
        );
        Ok(())
    }

    pub fn verify(&self) -> Result<()> {
        let report = mooseng_e2e::load::verify::verify(&self.dir, &self.journals)?;
        println!(
            "    verified {} files after {} acknowledged operations; {} were unanswered",
            report.files, report.acknowledged, report.unanswered
        );
        ensure!(report.problems.is_empty(), "lost or torn: {:#?}", report.problems);
        ensure!(report.acknowledged > 0, "nothing was acknowledged");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a fault did to the load.
fn report(what: &str, timeline: &Timeline, fault: u64, until: u64) -> bool {
    let answered = timeline.answered_between(fault - SECOND, fault);
    let unanswered = timeline.unanswered_at(fault);
    let (gap, longest) = timeline.stall(fault, until);
    println!(
        "    {what}: {answered} operations acknowledged in the second before, {unanswered} unanswered when it struck; \
         stall: {gap:.2} s without any answer, longest operation {longest:.2} s"
    );
    answered >= OPERATIONS_MIN && unanswered > 0
}

/// One fault under load; repeated until it counts.
fn round(cluster: &DevCluster, load: &Load, what: &str, victim: impl Fn() -> Result<String>) -> Result<()> {
    for _ in 0..TRIES {
        cluster.wait_whole()?;
        load.wait_heavy()?;
        let name = victim()?;
        let fault = now_ns();
        cluster.kill_now(std::slice::from_ref(&name))?;
        let what = format!("kill -9 of {what} ({name})");
        wait_for("operations after the fault", Duration::from_secs(60), || {
            let timeline = load.timeline()?;
            ensure!(timeline.errors.is_empty(), "an error reached the application: {:?}", timeline.errors);
            let now = now_ns();
            ensure!(
                timeline.spans.iter().filter(|s| s.0 < fault).all(|s| s.1.is_some()),
                "some are still unanswered"
            );
            ensure!(
                timeline.answered_between(fault, now) >= 50,
                "only {} answered",
                timeline.answered_between(fault, now)
            );
            Ok(())
        })?;
        let counted = report(&what, &load.timeline()?, fault, now_ns());
        cluster.dev("start", &name)?;
        if counted {
            return Ok(());
        }
        println!("    this round doesn't count: the load was too light; again");
    }
    bail!("no round of {TRIES} counted: the load was too light on this machine")
}

#[test]
fn one_dies_and_nobody_notices_then_everything_dies_and_nothing_is_lost() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("chaos", &[])?;
    let mut steps = Steps::default();
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(1);
    let mut load = Load::start(&cluster, "one", 8)?;
    for n in 1..=rounds {
        steps.run(&format!("the leader dies, round {n}"), || {
            round(&cluster, &load, "the leader", || cluster.leader())
        });
        steps.run(&format!("a follower dies, round {n}"), || {
            round(&cluster, &load, "a follower", || {
                let leader = cluster.leader()?;
                cluster.names("master")?.into_iter().find(|m| *m != leader).context("there is no follower")
            })
        });
        steps.run(&format!("a chunkserver dies, round {n}"), || {
            round(&cluster, &load, "a chunkserver", || Ok(format!("chunkserver-{}", 1 + n % 3)))
        });
    }
    steps.run("no error reached the application", || load.stop(true));
    steps.run("nothing was lost or torn", || load.verify());
    for n in 1..=rounds {
        steps.run(&format!("everything dies at once, round {n}"), || everything(&cluster, n));
    }
    steps.run("fsck finds nothing", || {
        cluster.wait_whole()?;
        cluster.fsck()
    });
    steps.finish()?;
    // What else may be warned of when daemons are killed, each for its reason.
    let expected = [
        // A leader that has just been elected lost its majority again.
        "this leader can't read its records yet",
        // The mount was away for longer than its lease.
        "the session's lease had lapsed",
        // A chunk's file was begun when its chunkserver was killed: nothing in it had been flushed.
        "a chunk file without a flushed byte wasn't removed",
    ];
    cluster.finish(&[super::PEERS_COME_AND_GO, &expected].concat())
}

fn everything(cluster: &DevCluster, n: usize) -> Result<()> {
    for attempt in 0..TRIES {
        cluster.wait_whole()?;
        let mut load = Load::start(cluster, &format!("all-{n}-{attempt}"), 8)?;
        load.wait_heavy()?;
        let all: Vec<String> =
            cluster.file()?.processes.into_iter().filter(|p| p.pid.is_some()).map(|p| p.name).collect();
        let fault = now_ns();
        cluster.kill_now(&all)?;
        let struck = now_ns();
        load.stop(false)?;
        cluster.up_again(&[])?;
        let counted =
            report(&format!("kill -9 of all {} processes", all.len()), &load.timeline()?, fault, struck);
        load.verify()?;
        if counted {
            return Ok(());
        }
    }
    bail!("no round of {TRIES} counted: the load was too light on this machine")
}
