//! Several volumes in one tree, in a cluster of two regions and a witness: made, entered from both regions, failed over apart, deleted.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::steps::Steps;

use super::regions::{HOME_LOST, shows, write};
use super::unlinked;

/// Where the root volume is at home, and where the others are.
const ROOT_HOME: &str = "region-1";
const OTHER: &str = "region-2";
/// A failover takes a region's lease, and what follows it.
const FAILED_OVER: Duration = Duration::from_secs(90);
/// Files that only the lost home has.
const TAIL: usize = 5;

/// What is said where a region goes back to the place of the log that its home has, too.
pub const UNDONE: &[&str] =
    &["what this region had of the volume's log beyond the cut is undone, and put aside"];

#[test]
fn volumes_are_one_tree_and_fail_over_apart() {
    run().unwrap();
}

/// `mooseng cluster level WORDS -o json`, by an administrator.
fn level(cluster: &DevCluster, words: &[&str]) -> Result<serde_json::Value> {
    let mut command = cluster.mooseng(&["cluster", "level", "-o", "json"]);
    command.args(words).arg("--config").arg(cluster.admin_config_of(OTHER)?);
    Ok(serde_json::from_slice(&checked(&mut command)?.stdout)?)
}

/// Nothing is left to raise, and every master has said so.
fn levels(cluster: &DevCluster) -> Result<()> {
    wait_for("all masters to have told what they support", Duration::from_secs(30), || {
        let shown = level(cluster, &[])?;
        let masters = shown["masters"].as_array().context("no masters")?;
        let all = masters.iter().all(|m| m["reachable"] == true && m["highest"] == shown["level"]);
        ensure!(shown["level"] == 1 && masters.len() >= 3 && all, "{shown:#}");
        ensure!(shown["raisable_to"].is_null() && shown["in_the_way"] == "", "{shown:#}");
        Ok(())
    })?;
    for words in [&["--raise", "--plan"][..], &["--raise"]] {
        let raised = level(cluster, words)?;
        ensure!(raised["level_before"] == 1 && raised["level"] == 1, "{raised:#}");
    }
    Ok(())
}

/// An attempt to delete a volume, which is refused for that reason.
fn refused(cluster: &DevCluster, path: &str, reason: &str) -> Result<()> {
    let refusal = cluster.volume(ROOT_HOME, &["delete", path]);
    ensure!(refusal.as_ref().is_err_and(|e| format!("{e:#}").contains(reason)), "{reason}: {refusal:?}");
    Ok(())
}

/// The volume in which a path is: the upper bits of its inode's number.
pub fn volume_of(path: &Path) -> Result<u64> {
    Ok(fs::symlink_metadata(path).with_context(|| format!("stat {}", path.display()))?.ino() >> 48)
}

/// Makes a volume and joins it at a directory below the root.
fn make(cluster: &DevCluster, mount: &Path, name: &str, durability: &str) -> Result<()> {
    fs::create_dir(mount.join(name)).with_context(|| format!("mkdir {name}"))?;
    fs::File::open(mount)?.sync_all().context("fsync of the root directory")?;
    let path = format!("/{name}");
    let create = ["create", &path, "--home", OTHER, "--durability", durability];
    super::plans::making(cluster, ROOT_HOME, &create)?;
    cluster.volume(ROOT_HOME, &create)?;
    wait_for("the mount to cross into the new volume", Duration::from_secs(60), || {
        ensure!(volume_of(&mount.join(name))? != 0, "it shows the directory still");
        Ok(())
    })
}

/// The files of a volume's chunks on the disks of all chunkservers: their names are the chunks' ids, of which the upper bits are the volume.
fn chunk_files(cluster: &DevCluster, volume: u64) -> Result<Vec<String>> {
    let name = format!("{volume:04x}????????????");
    let mut find = Command::new("find");
    find.arg(cluster.dir()).args(["-type", "f", "-path", "*/chunks/*", "-name", &name]);
    // Files may go while it looks.
    let found = find.output().context("find")?;
    Ok(String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect())
}

/// `mooseng WORDS --config ADMIN`, asked of the masters of a region.
fn ask(cluster: &DevCluster, region: &str, words: &[&str]) -> Result<Output> {
    let mut command = cluster.mooseng(words);
    Ok(command.arg("--config").arg(cluster.admin_config_of(region)?).output()?)
}

/// What it prints.
pub fn told(cluster: &DevCluster, words: &[&str]) -> Result<String> {
    let output = ask(cluster, ROOT_HOME, words)?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What it prints as JSON.
pub fn shape(cluster: &DevCluster, words: &[&str]) -> Result<serde_json::Value> {
    let text = told(cluster, &[words, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("{words:?}: {text}"))
}

/// What it says where it refuses.
pub fn refusal(cluster: &DevCluster, words: &[&str], code: i32) -> Result<String> {
    let output = ask(cluster, ROOT_HOME, words)?;
    ensure!(output.status.code() == Some(code), "{words:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Quotas and trash of the volume v, and storage classes, whose home is the other region, asked with the configuration of the root's home; and fsck of both.
fn administered(cluster: &DevCluster, mount: &Path) -> Result<()> {
    sh(mount, "mkdir -p v/q/below; echo kept > v/q/file; sync -f v")?;
    quotas(cluster, mount)?;
    trash(cluster, mount)?;
    classes(cluster)?;
    fsck(cluster)
}

fn quotas(cluster: &DevCluster, mount: &Path) -> Result<()> {
    told(cluster, &["quota", "set", "/v/q", "--bytes", "1M"])?;
    wait_for("the quota to be enforced", Duration::from_secs(30), || {
        let quota = shape(cluster, &["quota", "get", "/v/q/below"])?["quota"].clone();
        ensure!(quota["state"] == "enforced" && quota["path"] == "/v/q", "{quota}");
        Ok(())
    })?;
    let over = fs::File::create(mount.join("v/q/big")).and_then(|mut file| {
        file.write_all(&vec![7; 4 << 20])?;
        file.sync_all()
    });
    ensure!(over.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EDQUOT)), "{over:?}");
    fs::remove_file(mount.join("v/q/big"))?;
    // A listing is of one volume, and says that there are others.
    let output = ask(cluster, ROOT_HOME, &["quota", "list"])?;
    let (out, talk) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(out.contains("no quotas in the root volume") && talk.contains("/v ("), "{output:?}");
    let list = told(cluster, &["quota", "list", "--volume", "/v"])?;
    ensure!(list.contains("/v/q"), "{list}");
    told(cluster, &["quota", "clear", "/v/q"]).map(drop)
}

fn trash(cluster: &DevCluster, mount: &Path) -> Result<()> {
    told(cluster, &["trash", "retention", "--min-age", "0", "--volume", "/v"])?;
    fs::remove_file(mount.join("v/q/file"))?;
    let listed = || shape(cluster, &["trash", "list", "--under", "/v/q/file"]);
    wait_for("the file to be in the trash", Duration::from_secs(30), || {
        let entries = listed()?["entries"].clone();
        ensure!(entries.as_array().is_some_and(|all| all.len() == 1), "{entries}");
        Ok(())
    })?;
    let list = listed()?;
    let entry = &list["entries"][0];
    ensure!(entry["path"] == "/v/q/file", "{list}");
    let id = entry["id"].to_string();
    let elsewhere = refusal(cluster, &["trash", "restore", &id, "--to", "/file"], 1)?;
    ensure!(elsewhere.contains("its own volume only"), "{elsewhere}");
    let none = refusal(cluster, &["trash", "restore", &id, "--to", "/v/none/file"], 3)?;
    ensure!(none.contains("/v/none isn't there"), "{none}");
    let back = told(cluster, &["trash", "restore", &id])?;
    ensure!(back.trim() == "Restored as /v/q/file", "{back}");
    shows(&mount.join("v/q/file"), "kept\n")
}

fn classes(cluster: &DevCluster) -> Result<()> {
    // Made by the root's home, it is there in the volume whose home is the other region, too.
    told(cluster, &["class", "create", "thrice", "--copies", "3"])?;
    told(cluster, &["class", "assign", "thrice", "/v/q", "-r"])?;
    let class = shape(cluster, &["class", "get", "/v/q/below"])?["class"].clone();
    ensure!(class["name"] == "thrice" && class["copies"] == 3, "{class}");
    told(cluster, &["class", "assign", "thrice", "/a"])?;
    let same = shape(cluster, &["class", "get", "/a"])?["class"].clone();
    ensure!(same["id"] == class["id"] && same["copies"] == 3, "{same}");
    told(cluster, &["class", "assign", "default", "/a"])?;
    let used = refusal(cluster, &["class", "delete", "thrice"], 1)?;
    ensure!(used.contains("is in use") && used.contains("at /v"), "{used}");
    told(cluster, &["class", "assign", "default", "/v/q", "-r"])?;
    // What was over its quota lies in the trash with the class of its directory, if it came to anything.
    told(cluster, &["trash", "purge", "--all", "--volume", "/v"])?;
    wait_for("nothing to have the class", Duration::from_secs(60), || {
        told(cluster, &["class", "delete", "thrice"]).map(drop)
    })
}

fn fsck(cluster: &DevCluster) -> Result<()> {
    for (region, paths) in [(ROOT_HOME, &["/"][..]), (OTHER, &["/v", "/w"])] {
        wait_for("fsck to find nothing", Duration::from_secs(180), || {
            let output = ask(cluster, region, &["fsck", "-o", "json"])?;
            let told: serde_json::Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("fsck in {region}: {output:?}"))?;
            let looked = told["volumes"].as_array().cloned().unwrap_or_default();
            let looked: Vec<&str> = looked.iter().filter_map(|volume| volume["path"].as_str()).collect();
            ensure!(looked == paths && told["found"] == 0, "in {region}: {told:#}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Makes a volume in the volume v, enters it from both regions, and deletes it.
fn below_a_volume(cluster: &DevCluster, here: &Path, there: &Path) -> Result<()> {
    fs::create_dir(here.join("v/in")).context("mkdir")?;
    fs::File::open(here.join("v"))?.sync_all().context("fsync of the directory")?;
    cluster.volume(ROOT_HOME, &["create", "/v/in", "--home", ROOT_HOME, "--durability", "region"])?;
    for mount in [here, there] {
        wait_for("the mount to cross into the volume below", Duration::from_secs(60), || {
            let inner = volume_of(&mount.join("v/in"))?;
            ensure!(inner != volume_of(&mount.join("v"))?, "{} shows the directory", mount.display());
            Ok(())
        })?;
    }
    write(&here.join("v/in/a"), "below")?;
    shows(&there.join("v/in/a"), "below")?;
    sh(there, "test \"$(cd v/in/..; pwd -P)\" = \"$(cd v; pwd -P)\"")?;
    let listed = cluster.volume(OTHER, &["info", "/v/in"])?;
    ensure!(listed["volume"]["path"] == "/v/in" && listed["volume"]["home"] == ROOT_HOME, "{listed:#}");
    let used = shape(cluster, &["class", "get", "/v/in/a"])?;
    ensure!(used["class"]["name"] == "default", "{used:#}");
    refused(cluster, "/v/in", "rm -r")?;
    fs::remove_file(here.join("v/in/a"))?;
    wait_for("nothing to be open there", Duration::from_secs(60), || {
        cluster.volume(ROOT_HOME, &["delete", "/v/in"]).map(drop)
    })?;
    wait_for("the directory to be an ordinary one", Duration::from_secs(60), || {
        ensure!(volume_of(&here.join("v/in"))? == volume_of(&here.join("v"))?, "it shows the volume still");
        Ok(())
    })?;
    fs::remove_dir(here.join("v/in")).context("rmdir")
}

/// The volume's home is lost right after it has acknowledged what no other region has: it is cut off, written
/// to, and killed before its lease has run out.
fn lost_with_a_tail(cluster: &DevCluster, there: &Path) -> Result<()> {
    // In a directory that nobody else has looked at: whoever was promised something of it would have to be asked, and is cut off for longer than the home's
    // lease lasts. And by that directory, which is open, for the way to it leads over a home that is cut off, too.
    let own = there.join("u/own");
    fs::create_dir(&own)?;
    let directory = fs::File::open(&own)?;
    directory.sync_all()?;
    let here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    cluster.cut(&["partition", OTHER])?;
    for n in 0..TAIL {
        write(&here.join(format!("tail-{n}")), "nobody else has it").context("behind the cut")?;
    }
    cluster.dev_words(&["kill", "region", OTHER])?;
    cluster.cut(&["heal"])
}

/// `mooseng WORDS --config ADMIN` in the lost home's region: what it prints, and the same as JSON.
fn told_there(cluster: &DevCluster, words: &[&str]) -> Result<(String, serde_json::Value)> {
    let print = |more: &[&str]| -> Result<String> {
        let output = ask(cluster, OTHER, &[words, more].concat())?;
        ensure!(output.status.success(), "{words:?}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let json = print(&["-o", "json"])?;
    Ok((print(&[])?, serde_json::from_str(&json).with_context(|| format!("{words:?}: {json}"))?))
}

/// A place of the log, as commands show and take it.
fn place(shape: &serde_json::Value) -> Result<String> {
    let (epoch, version) = (shape["epoch"].as_u64(), shape["version"].as_u64());
    let (epoch, version) = epoch.zip(version).with_context(|| format!("{shape} is no place"))?;
    Ok(format!("{epoch}/{version}"))
}

/// The only failover that the ledger of the volume u has, as a region tells it.
fn only_loss(cluster: &DevCluster, region: &str) -> Result<serde_json::Value> {
    let told = cluster.volume(region, &["losses", "/u"])?;
    ensure!(told["home"] == ROOT_HOME && told["region"] == region, "{told:#}");
    let losses = told["losses"].as_array().context("no losses")?;
    ensure!(losses.len() == 1, "{told:#}");
    Ok(losses[0].clone())
}

/// Whether one of these files, whose paths are those in their volume, is of the tail.
fn names_the_tail(files: &serde_json::Value) -> bool {
    let of_the_tail =
        |file: &serde_json::Value| file["path"].as_str().is_some_and(|path| path.ends_with("/tail-0"));
    files.as_array().is_some_and(|files| files.iter().any(of_the_tail))
}

/// Before the lost home is back it is known where the new one began, not what the old one had beyond that.
fn a_loss_is_open(cluster: &DevCluster) -> Result<()> {
    let loss = only_loss(cluster, ROOT_HOME)?;
    ensure!(loss["state"] == "open" && loss["named"].is_null(), "{loss:#}");
    ensure!(loss["old_home"] == OTHER && loss["new_home"] == ROOT_HOME, "{loss:#}");
    let (closed, opened) = (loss["closed"].as_u64(), loss["opened"].as_u64());
    ensure!(closed > Some(0) && opened > closed, "{loss:#}");
    let cut = place(&loss["cut"])?;
    let known = place(&loss["known"])?;
    let at = loss["at_ns"].as_i64().context("no time")?;
    ensure!(at > 0 && loss["cut_ns"].as_i64().is_none_or(|cut| cut <= at), "{loss:#}");
    // Of whom it came is told of what the new home had to undo.
    let sessions = loss["sessions"].as_array().context("no sessions")?;
    ensure!(loss["undone"] != 0 || sessions.is_empty(), "{loss:#}");
    let text = told(cluster, &["volume", "losses", "/u"])?;
    for part in ["CLOSED", "OLD HOME", "CUT", "STATE", cut.as_str(), known.as_str()] {
        ensure!(text.contains(part), "no {part}: {text}");
    }
    ensure!(text.lines().any(|line| line.ends_with("  open")), "{text}");
    ensure!(text.contains(&format!("What {OTHER} had beyond it isn't known before it comes back")), "{text}");
    Ok(())
}

/// Once it is back: how much it had beyond the cut, which files that concerns, and what it keeps of it.
fn a_loss_is_named(cluster: &DevCluster, number: u64) -> Result<()> {
    let mut loss = serde_json::Value::Null;
    wait_for("the loss to be named", FAILED_OVER, || {
        loss = only_loss(cluster, ROOT_HOME)?;
        ensure!(loss["state"] == "named", "{loss:#}");
        Ok(())
    })?;
    let named = &loss["named"];
    let entries = named["entries"].as_u64().context("no entries")?;
    ensure!(entries > 0 && named["paths"].as_u64() >= Some(TAIL as u64), "{loss:#}");
    ensure!(named["at_ns"].as_i64() >= loss["at_ns"].as_i64() && named["gone_upto"].is_null(), "{loss:#}");
    let (id, of) = (place(&loss["cut"])?, number.to_string());
    let text = told(cluster, &["volume", "losses", "/u"])?;
    for part in [
        format!("{OTHER} put {entries} entries aside"),
        // What is to be typed next.
        format!("`mooseng salvage show {id} --volume {of}` there"),
    ] {
        ensure!(text.contains(&part), "no {part:?}: {text}");
    }
    // The files are named where they were put aside, once the ledger has followed the volume there.
    wait_for("the lost home to name the files", FAILED_OVER, || {
        let loss = only_loss(cluster, OTHER)?;
        ensure!(loss["state"] == "named" && names_the_tail(&loss["files"]), "{loss:#}");
        Ok(())
    })?;
    let (text, _) = told_there(cluster, &["volume", "losses", "/u"])?;
    let replayed = format!("This is what {OTHER} has replayed; the volume's home is {ROOT_HOME}.");
    ensure!(text.contains("/tail-0") && text.contains(&replayed), "{text}");
    archives_are_shown(cluster, number, &id, entries)
}

/// `mooseng salvage`, in the region that has put something aside.
fn archives_are_shown(cluster: &DevCluster, number: u64, id: &str, entries: u64) -> Result<()> {
    let of = number.to_string();
    // Of all volumes, and of the one alone.
    for words in [&["salvage", "list"][..], &["salvage", "list", "--volume", "/u"]] {
        let (text, list) = told_there(cluster, words)?;
        let is_it = |archive: &&serde_json::Value| archive["volume"] == number && archive["id"] == id;
        let archive = list["archives"].as_array().into_iter().flatten().find(is_it);
        let archive = archive.with_context(|| format!("it isn't there: {list:#}"))?;
        ensure!(list["region"] == OTHER && archive["from"] == "home", "{list:#}");
        ensure!(archive["entries"] == entries && archive["bytes"].as_u64() > Some(0), "{list:#}");
        ensure!(place(&archive["cut"])? == id && place(&archive["upto"])? != id, "{list:#}");
        ensure!(text.starts_with("VOLUME  "), "{text}");
        let row = text.lines().find(|line| line.split_whitespace().take(2).eq([of.as_str(), id]));
        ensure!(row.is_some_and(|row| row.ends_with("home")), "{text}");
    }
    for named in ["/u", of.as_str()] {
        let (text, shown) = told_there(cluster, &["salvage", "show", id, "--volume", named])?;
        ensure!(shown["archive"]["volume"] == number && names_the_tail(&shown["files"]), "{shown:#}");
        let all = shown["entries"].as_array().context("no entries")?;
        ensure!(all.len() as u64 == entries, "{shown:#}");
        let by_a_session = |entry: &serde_json::Value| entry["session"].is_u64() && entry["time_ns"].is_i64();
        let has_bytes =
            |entry: &serde_json::Value| entry["contents"].as_array().is_some_and(|of| !of.is_empty());
        ensure!(all.iter().any(by_a_session) && all.iter().any(has_bytes), "{shown:#}");
        for part in ["INODE", "/tail-0", "ENTRY", "SESSION", "CONTENTS"] {
            ensure!(text.contains(part), "no {part}: {text}");
        }
    }
    for (words, code) in [(["salvage", "show", "9/9"], 3), (["salvage", "show", "nonsense"], 2)] {
        let output = ask(cluster, OTHER, &[&words[..], &["--volume", "/u"]].concat())?;
        ensure!(output.status.code() == Some(code), "{words:?}: {output:?}");
    }
    Ok(())
}

/// `mooseng events` tells of the failover in the order in which it went, and of what was put aside.
fn events_are_told(cluster: &DevCluster, number: u64) -> Result<()> {
    let (path, id) = (format!("/u ({number})"), place(&only_loss(cluster, ROOT_HOME)?["cut"])?);
    let opened = format!("home {OTHER} -> {ROOT_HOME}, cut at {id}.");
    let kept = format!("volume {path} is put aside");
    let expected = [
        ("LEASE_LOST", OTHER, ""),
        ("EPOCH_CLOSED", path.as_str(), ""),
        ("EPOCH_OPENED", path.as_str(), opened.as_str()),
        ("SALVAGE_KEPT", OTHER, kept.as_str()),
    ];
    wait_for("the events of the failover", Duration::from_secs(30), || {
        let told = shape(cluster, &["events"])?;
        let mut events = told["events"].as_array().context("no events")?.iter();
        for (event, about, what) in expected {
            let is_it = |of: &serde_json::Value| {
                of["event"] == event
                    && of["subject"] == about
                    && of["detail"].as_str().is_some_and(|detail| detail.contains(what))
                    && of["time"].is_string()
                    && of["unix_ms"].as_i64() > Some(0)
            };
            ensure!(events.any(is_it), "no {event} of {about} behind those before it: {told:#}");
        }
        Ok(())
    })?;
    let text = told(cluster, &["events"])?;
    for (event, about, what) in expected {
        let line = text.lines().find(|l| l.contains(event) && l.contains(about) && l.contains(what));
        ensure!(line.is_some(), "no {event} of {about}: {text}");
    }
    ensure!(text.starts_with("TIME "), "{text}");
    Ok(())
}

fn sh(directory: &Path, script: &str) -> Result<()> {
    checked(Command::new("sh").args(["-ec", script]).current_dir(directory)).map(drop)
}

fn run() -> Result<()> {
    // What is left of a deleted volume goes after a minute, as its deleted files would.
    let cluster = DevCluster::up("volumes", &["--regions", "2", "--trash-retention", "60s"])?;
    let mut steps = Steps::default();
    let (here, there) = (cluster.mount_of(ROOT_HOME)?, cluster.mount_of(OTHER)?);
    steps.run("a new cluster is at the feature level of its release, which all masters support", || {
        levels(&cluster)
    });
    steps.run("plans say what a region more or less would mean, and change nothing", || {
        super::plans::regions(&cluster)
    });
    steps.run("a geo volume and a region volume are made, and both mounts cross into them", || {
        make(&cluster, &here, "v", "geo")?;
        make(&cluster, &here, "w", "region")?;
        for mount in [&here, &there] {
            for name in ["v", "w"] {
                wait_for("the other mount to cross, too", Duration::from_secs(60), || {
                    ensure!(volume_of(&mount.join(name))? != 0, "{} isn't crossed", mount.display());
                    Ok(())
                })?;
            }
            ensure!(volume_of(&mount.join("v"))? != volume_of(&mount.join("w"))?, "they are the same");
            ensure!(volume_of(mount)? == 0, "the root isn't the root");
        }
        Ok(())
    });
    steps.run("what one mount writes there the other one reads, in all three volumes", || {
        for (name, writes, reads) in [("v/a", &here, &there), ("v/b", &there, &here), ("w/a", &here, &there)] {
            write(&writes.join(name), name)?;
            shows(&reads.join(name), name)?;
            ensure!(volume_of(&reads.join(name))? == volume_of(&reads.join(&name[..1]))?, "{name}");
        }
        write(&here.join("a"), "root")?;
        shows(&there.join("a"), "root")?;
        sh(&here, "mkdir -p v/x/y; for n in $(seq 200); do echo $n > v/x/y/$n; done; sync -f v; test $(ls v/x/y | wc -l) = 200")?;
        sh(&there, "test \"$(cat v/x/y/* | sort -n | tail -1)\" = 200; test \"$(cd v/x/../..; pwd -P)\" = \"$(pwd -P)\"")
    });
    steps.run("mv across copies, and rename and link say that it is another device", || {
        sh(&here, "head -c 3000000 /dev/urandom > big; sha256sum big > sums; mv big v/big; cd v; sha256sum -c ../sums > /dev/null; cd ..; mv v/big w/big; cd w; sha256sum -c ../sums > /dev/null")?;
        let across = fs::rename(here.join("w/big"), here.join("big"));
        ensure!(across.as_ref().is_err_and(|e| e.kind() == ErrorKind::CrossesDevices), "{across:?}");
        let across = fs::hard_link(here.join("w/big"), here.join("v/big"));
        ensure!(across.as_ref().is_err_and(|e| e.kind() == ErrorKind::CrossesDevices), "{across:?}");
        let busy = fs::rename(here.join("v"), here.join("moved"));
        ensure!(busy.as_ref().is_err_and(|e| e.kind() == ErrorKind::ResourceBusy), "{busy:?}");
        let busy = fs::remove_dir(here.join("v"));
        ensure!(busy.as_ref().is_err_and(|e| e.kind() == ErrorKind::ResourceBusy), "{busy:?}");
        Ok(())
    });
    steps.run(
        "administrators' commands reach a volume by its paths, from another region than its home",
        || administered(&cluster, &here),
    );
    steps.run("a volume is made in another volume, whose home is elsewhere, and deleted again", || {
        below_a_volume(&cluster, &here, &there)
    });
    steps.run("mooseng info looks across", || {
        let mut command = cluster.mooseng(&["info", "-o", "json"]);
        checked(command.arg(there.join("v/a"))).map(drop)
    });
    let deleted = volume_of(&here.join("w"))?;
    steps.run("a volume is deleted: its directory is an ordinary one again, on both mounts", || {
        refused(&cluster, "/w", "rm -r")?;
        let open = fs::File::open(here.join("w/a"))?;
        // What a mount made alone counts, too, and what it removed.
        sh(&here, "mkdir w/more; touch w/more/file")?;
        refused(&cluster, "/w", "rm -r")?;
        sh(&here, "rm -r w/*")?;
        refused(&cluster, "/w", "are open still")?;
        drop(open);
        let held = fs::File::open(here.join("w"))?;
        wait_for("nothing to be open there", Duration::from_secs(60), || {
            super::plans::deleting(&cluster, ROOT_HOME, "/w", deleted)?;
            cluster.volume(ROOT_HOME, &["delete", "/w"]).map(drop)
        })?;
        println!("    {} files of its chunks are left", chunk_files(&cluster, deleted)?.len());
        for mount in [&here, &there] {
            wait_for("the directory below the volume to be shown", Duration::from_secs(60), || {
                ensure!(volume_of(&mount.join("w"))? == 0, "{} shows the volume still", mount.display());
                Ok(())
            })?;
        }
        wait_for("what was open there to be stale", Duration::from_secs(60), || {
            let stale = held.metadata();
            ensure!(stale.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE)), "{stale:?}");
            Ok(())
        })?;
        ensure!(fs::read_dir(here.join("w"))?.next().is_none(), "it isn't empty");
        write(&here.join("w/own"), "the root's")?;
        shows(&there.join("w/own"), "the root's")
    });
    steps.run("a region volume more, which both regions have", || {
        make(&cluster, &here, "u", "region")?;
        wait_for("the other mount to cross, too", Duration::from_secs(60), || {
            ensure!(volume_of(&there.join("u"))? != 0, "{} isn't crossed", there.display());
            Ok(())
        })?;
        write(&there.join("u/kept"), "kept")?;
        shows(&here.join("u/kept"), "kept")
    });
    let with_a_tail = volume_of(&here.join("u"))?;
    let mut held = None;
    steps.run("a file of the geo volume is open in the other region, and has no name any more", || {
        held = Some(unlinked::hold(&cluster, ROOT_HOME)?);
        Ok(())
    });
    steps.run(
        "the volumes' home is lost: the root goes on at once, and the volumes at the other region",
        || {
            let fsynced: Vec<String> = (0..20).map(|n| format!("v/kept-{n}")).collect();
            for name in &fsynced {
                write(&here.join(name), name)?;
            }
            lost_with_a_tail(&cluster, &there)?;
            // The root's home is well: it is geo, too, and goes on without the lost region within the seconds that it takes to leave the sync set.
            let began = std::time::Instant::now();
            write(&here.join("root-goes-on"), "root")?;
            let took = began.elapsed();
            ensure!(took < Duration::from_secs(30), "a write in the root took {took:?}");
            wait_for("the volume to be written again", FAILED_OVER, || {
                write(&here.join("v/after"), "after")
            })?;
            for name in &fsynced {
                shows(&here.join(name), name)?;
            }
            wait_for("the region volume to be written again", FAILED_OVER, || {
                write(&here.join("u/after"), "after")
            })?;
            shows(&here.join("u/kept"), "kept")?;
            for n in 0..TAIL {
                ensure!(!here.join(format!("u/own/tail-{n}")).try_exists()?, "tail-{n} came through the cut");
            }
            let list = cluster.volume(ROOT_HOME, &["list"])?;
            let text = list.to_string();
            ensure!(!text.contains(&format!("\"home\":\"{OTHER}\"")), "{list:#}");
            Ok(())
        },
    );
    steps.run("what was open without a name is read and written, and goes with its close", || {
        let held = held.take().context("there is no such file")?;
        unlinked::lives_on_and_goes(&cluster, ROOT_HOME, held)
    });
    steps.run("what was lost with the home isn't known yet, and volume losses says so", || {
        a_loss_is_open(&cluster)
    });
    steps.run("the lost region comes back, and its mount sees what was written meanwhile", || {
        cluster.dev_words(&["start", "region", OTHER])?;
        wait_for("the mount there to read the volume", FAILED_OVER, || {
            shows(&there.join("v/after"), "after")
        })?;
        write(&there.join("v/back"), "back")?;
        shows(&here.join("v/back"), "back")
    });
    steps.run("volume losses and salvage name what was lost, and where it is kept", || {
        a_loss_is_named(&cluster, with_a_tail)
    });
    steps.run("events tell of the failover", || events_are_told(&cluster, with_a_tail));
    steps.run("nor is a chunk left of what was open without a name", || {
        unlinked::is_gone(&cluster, ROOT_HOME)
    });
    steps.run("nothing is left of the deleted volume on any disk", || {
        wait_for("its chunks to be gone", Duration::from_secs(120), || {
            let left = chunk_files(&cluster, deleted)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    });
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, HOME_LOST, UNDONE].concat())
}
