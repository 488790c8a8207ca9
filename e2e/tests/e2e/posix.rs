//! pjdfstest on real mounts: counters that only rise. docs/posix.md lists what fails and what is skipped, and why.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, workspace};
use mooseng_e2e::steps::Steps;

#[test]
fn pjdfstest_fails_no_more_than_what_is_listed() {
    run().unwrap();
}

fn tool() -> PathBuf {
    std::env::var_os("PJDFSTEST")
        .map_or_else(|| workspace().join("target/tools/bin/pjdfstest"), PathBuf::from)
}

/// What became of the tests of one run.
struct Outcome {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
    text: String,
}

impl Outcome {
    /// Of what pjdfstest printed, which is kept.
    fn of(text: String, kept: &Path) -> Result<Self> {
        std::fs::write(kept, &text).with_context(|| format!("writing {}", kept.display()))?;
        let (mut passed, mut failed, mut skipped) = <(BTreeSet<_>, BTreeSet<_>, BTreeSet<_>)>::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(name) = words.first().filter(|w| w.contains("::")) else { continue };
            let of = match words.get(1).copied() {
                Some("ok") => &mut passed,
                Some("FAILED" | "failed") => &mut failed,
                Some("skipped") => &mut skipped,
                _ => continue,
            };
            of.insert((*name).to_owned());
        }
        println!(
            "  pjdfstest: {} passed, {} failed, {} skipped; {}",
            passed.len(),
            failed.len(),
            skipped.len(),
            kept.display()
        );
        Ok(Self { passed, failed, skipped, text })
    }

    /// Against the page: what fails, and the counter that begins with these words.
    fn judge(&self, page: &str, counter: &str) -> Result<()> {
        let known = listed(page, "What fails");
        let new: Vec<&String> = self.failed.difference(&known).collect();
        ensure!(new.is_empty(), "these fail and aren't in docs/posix.md: {new:#?}\n{}", self.text);
        let mended: Vec<&String> = known.intersection(&self.passed).collect();
        ensure!(
            mended.is_empty(),
            "these are in docs/posix.md, but no longer fail: take them out, and raise the counter: {mended:#?}"
        );
        let passed = self.passed.len();
        let least: usize = page
            .lines()
            .find_map(|l| l.strip_prefix(counter))
            .with_context(|| format!("docs/posix.md has no line `{counter}N`"))?
            .trim()
            .parse()?;
        ensure!(
            passed >= least,
            "{passed} passed, but docs/posix.md says {counter}{least}: the counter only rises\n{}",
            self.text
        );
        if passed > least {
            println!("  docs/posix.md says {counter}{least}: raise it to {passed}");
        }
        Ok(())
    }
}

fn page() -> Result<String> {
    Ok(std::fs::read_to_string(workspace().join("docs/posix.md"))?)
}

/// The tests that a section of the page lists (`- `name`: reason`).
fn listed(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    section
        .lines()
        .filter_map(|l| l.strip_prefix("- `"))
        .filter_map(|l| l.split('`').next().filter(|n| n.contains("::")))
        .map(str::to_owned)
        .collect()
}

/// pjdfstest in a directory of a mount.
fn pjdfstest(config: &Path, mount: &Path, secondary: &Path) -> Result<Command> {
    let place = mount.join("pjdfstest");
    if !place.exists() {
        std::fs::create_dir(&place)?;
    }
    std::os::unix::fs::chown(&place, Some(0), Some(0))?;
    let mut command = Command::new(tool());
    command.arg("-c").arg(config).arg("-p").arg(place).arg("-s").arg(secondary);
    Ok(command)
}

fn run() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "pjdfstest needs root");
    let tool = tool();
    ensure!(tool.is_file(), "{} isn't there: scripts/install-deps installs it", tool.display());
    let cluster = DevCluster::up("posix", &[])?;
    let secondary = cluster.scratch().join("secondary");
    std::fs::create_dir(&secondary)?;
    let config = workspace().join("e2e/pjdfstest.toml");
    let output = pjdfstest(&config, &cluster.mount(), &secondary)?.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcome = Outcome::of(text, &workspace().join("target/pjdfstest.txt"))?;
    outcome.judge(&page()?, "passed: ")?;
    let mut steps = Steps::default();
    steps.run("what needs a read-only mount, on one of its own", || {
        read_only(&cluster, &secondary, &outcome.skipped)
    });
    steps.run("a full region says ENOSPC, and deleting makes room", || super::room::full(&cluster));
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, super::room::SAID].concat())
}

/// The tests that remount read-only, for which nobody else may work on the mount. With them each test that was `skipped` is run, or listed.
fn read_only(cluster: &DevCluster, secondary: &Path, skipped: &BTreeSet<String>) -> Result<()> {
    let (mnt, bin) = (cluster.scratch().join("read-only"), cluster.scratch().join("bin"));
    for dir in [&mnt, &bin] {
        std::fs::create_dir(dir)?;
    }
    // The mount(8) that pjdfstest calls: it would run the type's helper, which remounts nothing.
    let program = bin.join("mount");
    std::fs::write(&program, include_str!("mount_i.sh"))?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let mut config: toml::Table = std::fs::read_to_string(workspace().join("e2e/pjdfstest.toml"))?.parse()?;
    let settings = config.get_mut("settings").and_then(toml::Value::as_table_mut);
    settings.context("no [settings]")?.insert("allow_remount".into(), true.into());
    let changed = cluster.scratch().join("pjdfstest.toml");
    std::fs::write(&changed, toml::to_string(&config)?)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&mnt))?;
    let tested = pjdfstest(&changed, &mnt, secondary)
        .and_then(|mut command| Ok(command.arg("::erofs_").env("PATH", path).output()?));
    checked(cluster.mooseng(&["umount"]).arg(&mnt))?;
    let text = String::from_utf8_lossy(&tested?.stdout).into_owned();
    let outcome = Outcome::of(text, &workspace().join("target/pjdfstest-read-only.txt"))?;
    let page = page()?;
    outcome.judge(&page, "passed read-only: ")?;
    let listed = listed(&page, "What is skipped");
    let left: Vec<&String> =
        skipped.iter().filter(|test| !outcome.passed.contains(*test) && !listed.contains(*test)).collect();
    ensure!(left.is_empty(), "these are skipped and aren't in docs/posix.md: {left:#?}");
    Ok(())
}
