//! Storage classes with the real binaries: labels on chunkservers, classes on directories, and data that lies and moves accordingly.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use serde_json::Value;

use super::operations::{asked, planned, refused};

/// How long data may take to be where its class wants it: a scan, and some copies.
const MOVED_WITHIN: Duration = Duration::from_secs(90);

fn config(cluster: &DevCluster, name: &str) -> PathBuf {
    cluster.dir().join("etc").join(format!("{name}.toml"))
}

fn restart(cluster: &DevCluster, name: &str, config_text: &str) -> Result<()> {
    std::fs::write(config(cluster, name), config_text)?;
    cluster.dev("kill", name)?;
    cluster.dev("start", name).map(drop)
}

/// The chunkservers that hold copies of a file's chunks: of each chunk.
fn holders(cluster: &DevCluster, file: &Path) -> Result<Vec<BTreeSet<String>>> {
    let output = checked(cluster.mooseng(&["info", "-o", "json"]).arg(file))?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let chunks = told["chunks"].as_array().with_context(|| format!("{told}"))?;
    ensure!(!chunks.is_empty(), "{} has no chunks: {told}", file.display());
    let names = |chunk: &Value| -> BTreeSet<String> {
        let locations = chunk["locations"].as_array().cloned().unwrap_or_default();
        locations.iter().filter_map(|l| l["chunkserver"].as_str()).map(str::to_owned).collect()
    };
    Ok(chunks.iter().map(names).collect())
}

fn lie_on(cluster: &DevCluster, files: &[PathBuf], numbers: &[u32]) -> Result<()> {
    let expected: BTreeSet<String> = numbers.iter().map(|n| format!("chunkserver-{n}")).collect();
    for file in files {
        let all = holders(cluster, file)?;
        ensure!(all.iter().all(|names| *names == expected), "{}: {all:?}", file.display());
    }
    Ok(())
}

fn finding(cluster: &DevCluster, code: &str) -> Result<Option<Value>> {
    let status = cluster.status()?;
    let findings = status["findings"].as_array().cloned().unwrap_or_default();
    Ok(findings.into_iter().find(|f| f["code"] == code))
}

fn store(file: &Path, data: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(data)?;
    file.sync_all()
}

/// What a change of a class, or an assignment, would do: told before it is made.
fn plans(cluster: &DevCluster) -> Result<()> {
    let classes = || -> Result<Vec<String>> {
        let told: Value = serde_json::from_str(&asked(cluster, &["class", "list", "-o", "json"])?)?;
        let classes = told["classes"].as_array().with_context(|| format!("{told}"))?;
        Ok(classes.iter().map(|c| format!("{} {} {}", c["name"], c["copies"], c["labels"])).collect())
    };
    let before = classes()?;
    let set = planned(cluster, &["class", "set", "thrice", "--copies", "4"])?;
    ensure!(set["before"]["copies"] == 3 && set["after"]["copies"] == 4, "{set:#}");
    // There are three chunkservers.
    ensure!(set["goes_below_a_goal"] == true && set["copied"][0]["bytes"].as_u64() > Some(0), "{set:#}");
    let to_hdd = ["class", "set", "fast", "--labels", "media=hdd", "--copies", "1", "--min-copies", "1"];
    // A heartbeat may be late.
    wait_for("a plan of a chunkserver that is there", Duration::from_secs(60), || {
        let moved = planned(cluster, &to_hdd)?;
        let to = moved["copied"][0]["to"].as_str().unwrap_or_default();
        ensure!(to.starts_with("chunkserver-3 ") && moved["copied"][0]["at_most"] == true, "{moved:#}");
        Ok(())
    })?;
    refused(cluster, &["class", "set", "none", "--copies", "2", "--plan"], 3, "there is no storage class")?;
    refused(cluster, &["class", "set", "fast", "--copies", "1", "--plan"], 1, "at least 2")?;
    let assigned = planned(cluster, &["class", "assign", "thrice", "/fast", "-r"])?;
    ensure!(assigned["before"]["name"] == "fast" && assigned["after"]["name"] == "thrice", "{assigned:#}");
    ensure!(assigned["not_known"].to_string().contains("no quota counts it"), "{assigned:#}");
    refused(cluster, &["class", "assign", "none", "/fast", "--plan"], 3, "there is no storage class")?;
    let after = classes()?;
    ensure!(before == after, "a plan has changed something: {before:?} became {after:?}");
    Ok(())
}

/// Data lies on the chunkservers that its class names, moves when that changes, and is refused where there are none.
pub fn data_lies_where_its_class_says(cluster: &DevCluster, data: &[u8]) -> Result<()> {
    let names = ["chunkserver-1", "chunkserver-2", "chunkserver-3"];
    let mut before = Vec::new();
    for (name, media) in names.iter().zip(["ssd", "ssd", "hdd"]) {
        let text = std::fs::read_to_string(config(cluster, name))?;
        restart(cluster, name, &format!("{text}\n[labels]\nmedia = \"{media}\"\n"))?;
        before.push(text);
    }
    wait_for("the labels to be known", Duration::from_secs(30), || {
        let status = cluster.status()?;
        let servers = status["chunkservers"].as_array().cloned().unwrap_or_default();
        let known = servers.iter().filter(|c| c["alive"] == true && c["labels"]["media"].is_string()).count();
        ensure!(known == 3, "{servers:?}");
        Ok(())
    })?;

    let mount = cluster.mount();
    let (fast, thrice, nowhere) = (mount.join("fast"), mount.join("thrice"), mount.join("nowhere"));
    for dir in [&fast, &thrice, &nowhere] {
        std::fs::create_dir(dir)?;
    }
    let earlier = fast.join("earlier");
    store(&earlier, data)?;
    asked(cluster, &["class", "create", "fast", "--copies", "2", "--labels", "media=ssd"])?;
    asked(cluster, &["class", "create", "thrice", "--copies", "3"])?;
    let tape = ["class", "create", "nowhere", "--copies", "2", "--min-copies", "1", "--labels", "media=tape"];
    asked(cluster, &tape)?;
    refused(cluster, &["class", "create", "fast", "--copies", "2"], 1, "already")?;
    refused(cluster, &["class", "assign", "none", "/fast"], 3, "there is no storage class")?;
    for name in ["fast", "thrice", "nowhere"] {
        asked(cluster, &["class", "assign", name, &format!("/{name}")])?;
    }
    let list = asked(cluster, &["class", "list"])?;
    ensure!(list.lines().count() == 5 && list.contains("media=ssd"), "{list}");

    // At once where it belongs, and only there.
    let mut files = Vec::new();
    std::fs::create_dir(fast.join("inner"))?;
    for path in ["a", "b", "inner/c", "inner/d"] {
        files.push(fast.join(path));
        store(&fast.join(path), data)?;
    }
    lie_on(cluster, &files, &[1, 2])?;
    store(&thrice.join("file"), data)?;
    lie_on(cluster, &[thrice.join("file")], &[1, 2, 3])?;

    // The writer hears of a class that no chunkserver fits, and status says why.
    match store(&nowhere.join("file"), data) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
        other => bail!("no chunkserver is labelled so, and yet: {other:?}"),
    }
    let short = finding(cluster, "CLASS_SHORT")?.context("status doesn't say that a class is short")?;
    ensure!(short["detail"].as_str().is_some_and(|d| d.contains("media=tape")), "{short}");

    plans(cluster)?;
    // The class changes: its data moves, also what was assigned to it later than it was made.
    let told = asked(cluster, &["class", "assign", "fast", "/fast", "-r"])?;
    ensure!(told.contains("to one that had another class"), "{told}");
    files.push(earlier);
    asked(cluster, &["class", "set", "fast", "--labels", "media=hdd", "--copies", "1", "--min-copies", "1"])?;
    let began = Instant::now();
    wait_for("the data to move", MOVED_WITHIN, || lie_on(cluster, &files, &[3]))?;
    println!("    moved after {:.1} s", began.elapsed().as_secs_f64());
    // A chunkserver's label changes.
    restart(cluster, names[1], &format!("{}\n[labels]\nmedia = \"hdd\"\n", before[1]))?;
    asked(cluster, &["class", "set", "fast", "--copies", "2", "--min-copies", "2"])?;
    let began = Instant::now();
    wait_for("the second copies", MOVED_WITHIN, || lie_on(cluster, &files, &[2, 3]))?;
    println!("    copied after {:.1} s", began.elapsed().as_secs_f64());
    for file in &files {
        ensure!(std::fs::read(file)? == data, "{} has other content", file.display());
    }
    wait_for("nothing to be out of place", MOVED_WITHIN, || {
        ensure!(cluster.status()?["chunks_misplaced"] == 0, "{:?}", finding(cluster, "CHUNKS_MISPLACED")?);
        Ok(())
    })?;
    cluster.fsck()?;

    refused(cluster, &["class", "delete", "fast"], 1, "is in use")?;
    for (name, dir) in [("fast", &fast), ("thrice", &thrice), ("nowhere", &nowhere)] {
        asked(cluster, &["class", "assign", "default", &format!("/{name}"), "-r"])?;
        asked(cluster, &["class", "delete", name])?;
        std::fs::remove_dir_all(dir)?;
    }
    for (name, text) in names.iter().zip(&before) {
        restart(cluster, name, text)?;
    }
    cluster.wait_whole()
}
