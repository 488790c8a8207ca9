//! pjdfstest on a real mount: a counter that only rises. docs/posix.md lists what fails, and why.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, workspace};
use mooseng_e2e::steps::Steps;

#[test]
fn pjdfstest_fails_no_more_than_what_is_listed() {
    run().unwrap();
}

fn tool() -> PathBuf {
    std::env::var_os("PJDFSTEST")
        .map_or_else(|| workspace().join("target/tools/bin/pjdfstest"), PathBuf::from)
}

/// The page's list (`- name: reason`) and its counter (`passed: N`).
fn listed() -> Result<(BTreeSet<String>, usize)> {
    let page = std::fs::read_to_string(workspace().join("docs/posix.md"))?;
    let names = page
        .lines()
        .filter_map(|l| l.strip_prefix("- `"))
        .filter_map(|l| l.split('`').next().filter(|n| n.contains("::")))
        .map(str::to_owned);
    let count = page
        .lines()
        .find_map(|l| l.strip_prefix("passed: "))
        .context("docs/posix.md has no line `passed: N`")?;
    Ok((names.collect(), count.trim().parse()?))
}

fn run() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "pjdfstest needs root");
    let tool = tool();
    ensure!(tool.is_file(), "{} isn't there: scripts/install-deps installs it", tool.display());
    let cluster = DevCluster::up("posix", &[])?;
    let place = cluster.mount().join("pjdfstest");
    std::fs::create_dir(&place)?;
    std::os::unix::fs::chown(&place, Some(0), Some(0))?;
    let secondary = cluster.scratch().join("secondary");
    std::fs::create_dir(&secondary)?;
    let config = workspace().join("e2e/pjdfstest.toml");
    let output = Command::new(&tool)
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(&place)
        .arg("-s")
        .arg(&secondary)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kept = workspace().join("target/pjdfstest.txt");
    std::fs::write(&kept, &text)?;
    let (mut passed, mut failed, mut skipped) = (0, BTreeSet::new(), 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(name) = words.first().filter(|w| w.contains("::")) else { continue };
        match words.get(1).copied() {
            Some("ok") => passed += 1,
            Some("FAILED" | "failed") => drop(failed.insert((*name).to_owned())),
            Some("skipped") => skipped += 1,
            _ => {}
        }
    }
    println!("  pjdfstest: {passed} passed, {} failed, {skipped} skipped; {}", failed.len(), kept.display());
    let (known, counter) = listed()?;
    let new: Vec<&String> = failed.difference(&known).collect();
    ensure!(new.is_empty(), "these fail and aren't in docs/posix.md: {new:#?}\n{text}");
    let mended: Vec<&String> = known.difference(&failed).collect();
    ensure!(
        mended.is_empty(),
        "these are in docs/posix.md, but no longer fail: take them out, and raise the counter: {mended:#?}"
    );
    ensure!(passed >= counter, "{passed} passed, but docs/posix.md says {counter}: the counter only rises");
    if passed > counter {
        println!("  docs/posix.md says {counter}: raise it to {passed}");
    }
    let mut steps = Steps::default();
    steps.run("a full region says ENOSPC, and deleting makes room", || super::room::full(&cluster));
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, super::room::SAID].concat())
}
