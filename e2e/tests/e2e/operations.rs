//! docs/operations.md, by the letter and with the real binaries: a lost master is replaced, a deleted file restored, a
//! directory limited, data placed by class, a chunkserver emptied, a certificate revoked.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, binary, checked, wait_for};
use mooseng_e2e::steps::Steps;

/// Data that doesn't fit inline.
const BYTES: usize = 3_000_000;

#[test]
fn operators_mend_a_region_by_the_book() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("operations", &[])?;
    let mut steps = Steps::default();
    let data = pattern();
    for n in 0..6 {
        std::fs::write(cluster.mount().join(format!("file-{n}")), &data)?;
    }
    let whole = || {
        for n in 0..6 {
            let read = std::fs::read(cluster.mount().join(format!("file-{n}")))?;
            ensure!(read == data, "file-{n} has other content");
        }
        Ok(())
    };

    steps.run("a master that lost its disk isn't let in under its old id", || lose_the_disk(&cluster));
    steps.run("it is replaced by one with a new id", || replace(&cluster));
    steps.run("the group survives the loss of another master then", || {
        let other = cluster.leader()?;
        ensure!(other != LOST, "the substitute leads already: nothing would be shown");
        cluster.dev("kill", &other)?;
        std::fs::write(cluster.mount().join("after"), &data)?;
        ensure!(std::fs::read(cluster.mount().join("after"))? == data, "other content");
        whole()?;
        cluster.dev("start", &other)?;
        cluster.wait_whole()
    });
    steps.run("`dev up` knows the substitute by its new id", || {
        cluster.up_again(&[])?;
        let config = std::fs::read_to_string(config_of_lost(&cluster))?;
        ensure!(config.lines().any(|l| l == "id = 4"), "{config}");
        Ok(())
    });
    steps
        .run("a file that was deleted by mistake is restored, another one purged", || trash(&cluster, &data));
    steps.run("a directory's and a user's quota reach the writer, and freeing mends it", || quota(&cluster));
    steps.run("a chunkserver is emptied", || drain(&cluster));
    steps.run("data lies where its storage class says, and moves when that changes", || {
        super::classes::data_lies_where_its_class_says(&cluster, &data)
    });
    steps.run("everything is still there", whole);
    steps.run("rules say what may mount where", || super::rules::what_may_mount_where(&cluster));
    steps.run("a revoked client loses its connections", || revoke(&cluster));
    steps.run("status names the daemon that goes by another list", || other_list(&cluster));
    steps.run("the region goes on from the one master that is left", || {
        super::recovery::majority_lost(&cluster, &whole)
    });
    steps.run("the region is made anew from a dump of its metadata", || {
        super::recovery::from_a_dump(&cluster, &whole)
    });
    steps.finish()?;
    let expected = [
        // A master that was left behind comes back.
        super::recovery::LEFT_BEHIND,
        "of another line of this group",
        // While two masters of three are gone nobody is answered.
        "ids can't be reserved",
        // A master was started with an empty log, on purpose.
        "MASTER_FAILED: this master's log is empty",
        "MASTER_FAILED: this master's group was recovered",
        // Who is revoked is refused, and the mount of that client says so.
        "PEER_REVOKED",
        "our certificate is revoked",
        "written data couldn't be",
        "changes of names that weren't told to the region yet are lost",
        "the filesystem is closed although changes of names couldn't be told",
        "the session's lease had lapsed",
        "an operation failed",
        // The list was withheld from a chunkserver.
        "REVOCATIONS_DIFFER",
        // A new leader.
        "this leader can't read its records yet",
    ];
    cluster.finish(&[super::PEERS_COME_AND_GO, &expected].concat())
}

fn pattern() -> Vec<u8> {
    (0..BYTES as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn admin(cluster: &DevCluster) -> PathBuf {
    cluster.dir().join("etc/admin.toml")
}

/// `mooseng ... --config ADMIN`.
fn ask(cluster: &DevCluster, args: &[&str]) -> Result<Output> {
    cluster.mooseng(args).arg("--config").arg(admin(cluster)).output().with_context(|| format!("{args:?}"))
}

pub fn asked(cluster: &DevCluster, args: &[&str]) -> Result<String> {
    let output = ask(cluster, args)?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a command says with `--plan`, as JSON: nothing is changed by it.
pub fn planned(cluster: &DevCluster, args: &[&str]) -> Result<serde_json::Value> {
    let text = asked(cluster, &[args, &["--plan"]].concat())?;
    ensure!(text.ends_with("Nothing was changed. The same command without --plan does it.\n"), "{text}");
    let told = asked(cluster, &[args, &["--plan", "-o", "json"]].concat())?;
    let told: serde_json::Value = serde_json::from_str(&told).with_context(|| told.clone())?;
    ensure!(told["version"] == 1 && told["plan"] == true, "{told:#}");
    Ok(told)
}

pub fn refused(cluster: &DevCluster, args: &[&str], code: i32, words: &str) -> Result<()> {
    let output = ask(cluster, args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code) && said.contains(words), "{args:?}: {output:?}");
    Ok(())
}

const LOST: &str = "master-2";

fn config_of_lost(cluster: &DevCluster) -> PathBuf {
    cluster.dir().join("etc").join(format!("{LOST}.toml"))
}

pub fn empty_dir(dir: &Path) -> Result<()> {
    std::fs::remove_dir_all(dir)?;
    std::fs::create_dir(dir)?;
    Ok(())
}

fn lose_the_disk(cluster: &DevCluster) -> Result<()> {
    // The first leader is the one that made the group; should it be another one for once, it hands over when it is started again.
    while cluster.leader()? == LOST {
        cluster.dev("kill", LOST)?;
        cluster.dev("start", LOST)?;
        cluster.wait_whole()?;
    }
    let leader = cluster.leader()?;
    cluster.dev("kill", LOST)?;
    empty_dir(&cluster.process(LOST)?.state_dir)?;
    cluster.dev("start", LOST)?;
    wait_for("status to say that its log is lost", Duration::from_secs(60), || {
        let status = cluster.status()?;
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        let found = findings.iter().find(|f| f["code"] == "MASTER_FAILED").context("no finding")?;
        ensure!(found["subject"] == LOST, "{found}");
        ensure!(found["detail"].as_str().is_some_and(|d| d.contains("under a new id")), "{found}");
        Ok(())
    })?;
    ensure!(cluster.leader()? == leader, "the leader fell over it");
    cluster.dev("kill", LOST)
}

fn replace(cluster: &DevCluster) -> Result<()> {
    let lost = cluster.process(LOST)?;
    // Two of three vote afterwards, as two of three are there before.
    let plan = planned(cluster, &["members", "remove", "2"])?;
    ensure!(plan["voters"] == serde_json::json!({ "before": [1, 2, 3], "after": [1, 3] }), "{plan:#}");
    ensure!(plan["goes_below_a_goal"] == true && plan["copied"] == serde_json::json!([]), "{plan:#}");
    refused(cluster, &["members", "remove", "9", "--plan"], 3, "no master 9")?;
    asked(cluster, &["members", "remove", "2"])?;
    empty_dir(&lost.state_dir)?;
    let config = std::fs::read_to_string(config_of_lost(cluster))?;
    std::fs::write(config_of_lost(cluster), config.replacen("id = 2\n", "id = 4\n", 1))?;
    cluster.dev("start", LOST)?;
    let add = |id: &'static str, name: &'static str| {
        let address = lost.address.clone();
        move |run: &dyn Fn(&[&str]) -> Result<()>| {
            run(&["members", "add", "--id", id, "--name", name, "--address", &address, "--zone", "zone-2"])
        }
    };
    // Slips of the pen change nothing.
    add("5", LOST)(&|args| refused(cluster, args, 1, "this is master 4"))?;
    add("4", "master-1")(&|args| refused(cluster, args, 1, "is master-1"))?;
    refused(cluster, &["members", "remove", "2"], 3, "no master 2")?;
    let with_plan = |args: &[&str]| {
        wait_for("a plan of masters that all answer", Duration::from_secs(60), || {
            let plan = planned(cluster, args)?;
            let (copied, votes) = (&plan["copied"][0], &plan["counts"]["region_votes"]);
            ensure!(copied["within"] == "region-1" && copied["bytes"].is_null(), "{plan:#}");
            ensure!(votes["after"] == serde_json::json!([[1, 3, 4]]), "{plan:#}");
            ensure!(plan["goes_below_a_goal"] == false, "{plan:#}");
            Ok(())
        })
    };
    add("4", LOST)(&with_plan)?;
    add("4", "master-1")(&|args| refused(cluster, &[args, &["--plan"]].concat(), 1, "is master-1"))?;
    add("5", LOST)(&|args| refused(cluster, &[args, &["--plan"]].concat(), 1, "has the id 4"))?;
    let began = Instant::now();
    add("4", LOST)(&|args| {
        let told = asked(cluster, args)?;
        ensure!(["(id 1)", "(id 3)", "(id 4)"].iter().all(|id| told.contains(id)), "{told}");
        Ok(())
    })?;
    println!("    added after {:.2} s", began.elapsed().as_secs_f64());
    cluster.wait_whole()?;
    wait_for("the verdict", Duration::from_secs(60), || {
        let verdict = cluster.status()?["verdict"].clone();
        ensure!(verdict["level"] == "ok", "{verdict}");
        Ok(())
    })
}

/// `mooseng trash list`, of what was at that path or below it.
fn listed(cluster: &DevCluster, under: &str) -> Result<Vec<serde_json::Value>> {
    let told = asked(cluster, &["trash", "list", "--under", under, "-o", "json"])?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(told["version"] == 1 && told["more"] == false, "{told}");
    told["entries"].as_array().cloned().with_context(|| told.to_string())
}

fn trash(cluster: &DevCluster, data: &[u8]) -> Result<()> {
    let chunks = || -> Result<u64> { Ok(cluster.status()?["chunks"].as_u64().unwrap_or(0)) };
    // The scan counts, so it must have seen what was written before.
    let mut before_all = chunks()?;
    wait_for("the count of chunks to stay as it is", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_secs(6));
        let was = std::mem::replace(&mut before_all, chunks()?);
        ensure!(was == before_all, "{was} chunks became {before_all}");
        Ok(())
    })?;
    let (dir, second) = (cluster.mount().join("precious"), cluster.scratch().join("second"));
    std::fs::create_dir(&second)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&second))?;
    let seen_elsewhere = second.join("precious/thesis");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("thesis"), data)?;
    std::fs::write(dir.join("empty"), "")?;
    std::fs::set_permissions(dir.join("thesis"), std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    let before = std::fs::metadata(dir.join("thesis"))?;
    ensure!(std::fs::read(&seen_elsewhere)? == data, "other content");
    let retention = asked(cluster, &["trash", "retention"])?;
    ensure!(retention.trim() == "1d, unless they are younger than 1m", "{retention}");
    // A scratch file isn't kept.
    std::fs::write(dir.join("scratch"), data)?;
    std::fs::remove_file(dir.join("scratch"))?;
    ensure!(listed(cluster, "/precious")?.is_empty(), "a scratch file was kept");
    let all = asked(cluster, &["trash", "retention", "--min-age", "0"])?;
    ensure!(all.trim() == "1d", "{all}");

    // A plain mount shows at once what administrators do.
    std::fs::remove_file(dir.join("empty"))?;
    std::fs::remove_file(dir.join("thesis"))?;
    for path in [dir.join("thesis"), seen_elsewhere.clone()] {
        ensure!(!path.exists(), "{} is still there", path.display());
    }
    let entries = listed(cluster, "/precious")?;
    ensure!(entries.len() == 1, "{entries:?}");
    let (entry, id) = (&entries[0], entries[0]["id"].to_string());
    ensure!(entry["path"] == "/precious/thesis" && entry["size"] == data.len() as u64, "{entry}");
    let day = entry["expires_ns"].as_i64().unwrap_or(0) - entry["deleted_ns"].as_i64().unwrap_or(0);
    ensure!(day == 86_400_000_000_000, "{entry}");
    refused(cluster, &["trash", "restore", "1"], 3, "no file with the id 1 is in the trash")?;
    refused(cluster, &["trash", "restore", &id, "--to", "/file-0"], 1, "/file-0 exists")?;
    refused(cluster, &["trash", "restore", &id, "--to", "/none/x"], 3, "/none isn't there")?;
    refused(cluster, &["trash", "restore", &id, "--to", "x"], 2, "from the root of the filesystem")?;
    let client = cluster.client_config()?;
    let denied = cluster.mooseng(&["trash", "list", "--config"]).arg(&client).output()?;
    ensure!(denied.status.code() == Some(4), "{denied:?}");

    let told = asked(cluster, &["trash", "restore", &id])?;
    ensure!(told.trim() == "Restored as /precious/thesis", "{told}");
    for path in [dir.join("thesis"), seen_elsewhere] {
        ensure!(std::fs::read(&path)? == data, "{} has other content", path.display());
    }
    let after = std::fs::metadata(dir.join("thesis"))?;
    let same = |m: &std::fs::Metadata| {
        use std::os::unix::fs::MetadataExt;
        (m.ino(), m.mode(), m.uid(), m.gid(), m.nlink(), m.size(), m.mtime(), m.mtime_nsec())
    };
    ensure!(same(&before) == same(&after), "{:?} became {:?}", same(&before), same(&after));
    ensure!(listed(cluster, "/precious")?.is_empty(), "it is still in the trash");

    // Its directory goes, too.
    std::fs::remove_dir_all(&dir)?;
    refused(cluster, &["trash", "restore", &id], 3, "--to PATH")?;
    asked(cluster, &["trash", "restore", &id, "--to", "/rescued"])?;
    ensure!(std::fs::read(cluster.mount().join("rescued"))? == data, "other content");

    // What is kept takes its space, until it is purged.
    wait_for("the scan to count the file", Duration::from_secs(60), || {
        ensure!(chunks()? > before_all, "{} chunks as before", chunks()?);
        Ok(())
    })?;
    std::fs::remove_file(cluster.mount().join("rescued"))?;
    let status = cluster.status()?["trash"].clone();
    let listed_status = listed(cluster, "/")?;
    ensure!(listed_status.len() == 1, "{listed_status:?}; {status}");
    ensure!(asked(cluster, &["trash", "purge", "--older-than", "1h"])?.starts_with("0 files"), "too much");
    let told = asked(cluster, &["trash", "purge", &id])?;
    ensure!(told.starts_with("1 file of 2.9 MiB purged"), "{told}");
    refused(cluster, &["trash", "purge", &id], 3, "is in the trash")?;
    let began = Instant::now();
    wait_for("the space to come back", Duration::from_secs(180), || {
        let (left, is) = (cluster.status()?["trash"]["files"].clone(), chunks()?);
        ensure!(left == 0 && is <= before_all, "{left} files in the trash, {is} chunks, {before_all} before");
        Ok(())
    })?;
    println!("    the chunk of what was purged is gone after {:.1} s", began.elapsed().as_secs_f64());
    asked(cluster, &["trash", "retention", "0"])?;
    std::fs::write(cluster.mount().join("gone"), "for good")?;
    std::fs::remove_file(cluster.mount().join("gone"))?;
    ensure!(listed(cluster, "/")?.is_empty(), "it is kept");
    ensure!(asked(cluster, &["trash", "retention", "24h"])?.trim() == "1d", "the retention wasn't set");
    cluster.fsck()?;
    checked(cluster.mooseng(&["umount"]).arg(&second)).map(drop)
}

/// What `mooseng quota get` says.
fn quota_of(cluster: &DevCluster, whose: &[&str]) -> Result<serde_json::Value> {
    let told = asked(cluster, &[&["quota", "get"], whose, &["-o", "json"]].concat())?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    Ok(told["quota"].clone())
}

fn over<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(libc::EDQUOT) => Ok(()),
        other => bail!("it should be over its quota: {other:?}"),
    }
}

fn quota(cluster: &DevCluster) -> Result<()> {
    const MIB: usize = 1 << 20;
    let dir = cluster.mount().join("limited");
    std::fs::create_dir_all(dir.join("inner/most"))?;
    // What is there already counts.
    std::fs::write(dir.join("inner/first"), vec![1; MIB])?;
    std::fs::OpenOptions::new().write(true).open(dir.join("inner/first"))?.sync_all()?;
    asked(cluster, &["quota", "set", "/limited", "--bytes", "8M", "--inodes", "10"])?;
    let enforced = || -> Result<serde_json::Value> {
        let quota = quota_of(cluster, &["/limited/inner"])?;
        ensure!(quota["state"] == "enforced", "{quota}");
        Ok(quota)
    };
    wait_for("the directory to be counted", Duration::from_secs(60), || enforced().map(drop))?;
    let counted = enforced()?;
    ensure!(counted["bytes"] == MIB && counted["inodes"] == 4, "{counted}");
    ensure!(counted["path"] == "/limited", "{counted}");
    refused(cluster, &["quota", "set", "/limited/inner", "--bytes", "1M"], 1, "quotas aren't nested")?;
    refused(cluster, &["quota", "set", "/none", "--bytes", "1M"], 3, "/none isn't a directory")?;

    // The write itself says it, not a later fsync, and what fitted before is there.
    let mut file = std::fs::File::create(dir.join("inner/most/file"))?;
    let block = vec![7; MIB];
    let mut written = 0;
    let refusal = loop {
        match file.write(&block[..MIB / 4]) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
        ensure!(written <= 8 * MIB, "{written} bytes fitted");
    };
    over::<()>(Err(refusal))?;
    file.sync_all().context("what was taken is stored")?;
    ensure!(written >= 6 * MIB, "only {written} bytes fitted beside 1 MiB");
    let full = quota_of(cluster, &["/limited"])?;
    ensure!(full["bytes"].as_u64() <= Some(8 << 20), "{full}");
    // In place it can be overwritten.
    file.seek(std::io::SeekFrom::Start(0))?;
    file.write_all(&block).context("overwriting in a full quota")?;
    file.sync_all()?;
    let df = std::process::Command::new("df").args(["-B1", "--output=size"]).arg(&dir).output()?;
    let df = String::from_utf8_lossy(&df.stdout).into_owned();
    ensure!(df.lines().nth(1).is_some_and(|size| size.trim() == (8 << 20).to_string()), "{df}");

    // Freeing mends it, although the trash keeps what is freed.
    drop(file);
    std::fs::remove_file(dir.join("inner/most/file"))?;
    let mut file = std::fs::File::create(dir.join("again"))?;
    for _ in 0..4 {
        file.write_all(&block).context("after freeing")?;
    }
    file.sync_all()?;
    // Inodes, too.
    let made: std::io::Result<Vec<_>> =
        (0..10).map(|n| std::fs::File::create(dir.join(n.to_string()))).collect();
    over(made.map(|files| files.len()))?;
    // Across the border nothing is renamed or linked.
    let out = cluster.mount().join("out");
    for outcome in [std::fs::rename(dir.join("again"), &out), std::fs::hard_link(dir.join("again"), &out)] {
        ensure!(outcome.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EXDEV)), "{outcome:?}");
    }

    asked(cluster, &["quota", "set", "--user", "4242", "--bytes", "2M"])?;
    let theirs = cluster.mount().join("theirs");
    std::fs::write(&theirs, vec![1; MIB])?;
    std::os::unix::fs::chown(&theirs, Some(4242), None)?;
    let mut file = std::fs::OpenOptions::new().append(true).open(&theirs)?;
    over(file.write_all(&vec![2; 2 * MIB]))?;
    let large = cluster.mount().join("large");
    std::fs::write(&large, vec![1; 3 * MIB])?;
    over(std::os::unix::fs::chown(&large, Some(4242), None))?;
    for file in [&large, &theirs] {
        std::fs::remove_file(file)?;
    }
    let user = quota_of(cluster, &["--user", "4242"])?;
    ensure!(user["bytes_max"] == 2 * MIB, "{user}");
    asked(cluster, &["quota", "clear", "--user", "4242"])?;
    asked(cluster, &["quota", "clear", "/limited"])?;
    wait_for("the quota to be gone", Duration::from_secs(60), || {
        let list = asked(cluster, &["quota", "list"])?;
        ensure!(list.trim() == "There are no quotas in the root volume.", "{list}");
        Ok(())
    })?;
    std::fs::rename(dir.join("again"), &out).context("there is no border any more")?;
    cluster.fsck()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(std::fs::remove_file(&out)?)
}

fn drain(cluster: &DevCluster) -> Result<()> {
    let name = "chunkserver-2";
    // A heartbeat may be late.
    wait_for("a plan of chunkservers that are all there", Duration::from_secs(60), || {
        let plan = planned(cluster, &["chunkservers", "drain", name])?;
        let copied = &plan["copied"][0];
        let to = copied["to"].as_str().unwrap_or_default();
        ensure!(
            to.contains("chunkserver-1") && to.contains("chunkserver-3") && !to.contains(name),
            "{plan:#}"
        );
        ensure!(copied["bytes"].as_u64() > Some(0) && plan["located"].as_u64() > Some(0), "{plan:#}");
        ensure!(plan["goes_below_a_goal"] == false && plan["counts"]["copies"]["during"] == 2, "{plan:#}");
        ensure!(plan["draining"] == false, "it is drained: {plan:#}");
        Ok(())
    })?;
    refused(cluster, &["chunkservers", "drain", "chunkserver-9", "--plan"], 3, "chunkserver-9")?;
    let client = cluster.client_config()?;
    let denied =
        cluster.mooseng(&["chunkservers", "drain", name, "--plan", "--config"]).arg(client).output()?;
    ensure!(denied.status.code() == Some(4), "{denied:?}");
    let told = asked(cluster, &["chunkservers", "drain", name, "-o", "json"])?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(told["located"].as_u64() > Some(0), "it counts as empty before anybody looked: {told}");
    let row = || -> Result<serde_json::Value> {
        let status = cluster.status()?;
        let servers = status["chunkservers"].as_array().cloned().unwrap_or_default();
        servers.into_iter().find(|c| c["name"] == name).with_context(|| format!("{status}"))
    };
    let began = Instant::now();
    let mut empty = serde_json::Value::Null;
    wait_for("it to be empty", Duration::from_secs(120), || {
        empty = row()?;
        ensure!(empty["draining"] == true && empty["located"] == 0, "{empty}");
        Ok(())
    })?;
    println!("    empty after {:.1} s", began.elapsed().as_secs_f64());
    ensure!(empty["chunks"] == 0, "status calls it empty while it has chunks: {empty}");
    asked(cluster, &["chunkservers", "undrain", name])?;
    ensure!(row()?["draining"] == false, "it is still drained");
    Ok(())
}

pub fn certs(cluster: &DevCluster, args: &[&str]) -> Result<String> {
    let output = checked(
        Command::new(binary("mooseng-certs")?).arg("--dir").arg(cluster.dir().join("pki")).args(args),
    )?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn revoke(cluster: &DevCluster) -> Result<()> {
    let identity = "spiffe://dev/region-1/client/host-7";
    let (leaf, mount) = (cluster.scratch().join("host-7"), cluster.scratch().join("mnt-7"));
    let leaf_path = leaf.display().to_string();
    let issue =
        ["issue", "--role", "client", "--region", "region-1", "--name", "host-7", "--out", &leaf_path];
    certs(cluster, &issue)?;
    let config = std::fs::read_to_string(cluster.client_config()?)?;
    let own = cluster.dir().join("certs/client-1").display().to_string();
    let config = config.replace(&own, &leaf_path).replace("\"client-1\"", "\"host-7\"");
    let config_path = cluster.scratch().join("host-7.toml");
    std::fs::write(&config_path, config)?;
    std::fs::create_dir(&mount)?;
    let options = ["mount", "--retry-timeout-s", "5", "--config"];
    checked(cluster.mooseng(&options).arg(&config_path).arg(&mount))?;
    std::fs::write(mount.join("theirs"), "x")?;
    let lacking = certs(cluster, &["revoke", identity])?;
    let began = Instant::now();
    ensure!(lacking.contains("chunkserver/chunkserver-3 lacks the list"), "{lacking}");
    // Names that nobody has looked up: what is cached and promised may be shown for as long as the lease lasts.
    let mut n = 0;
    wait_for("its operations to fail", Duration::from_secs(60), || {
        n += 1;
        ensure!(std::fs::write(mount.join(format!("new-{n}")), "x").is_err(), "it still writes");
        Ok(())
    })?;
    println!(
        "    the mount fails {:.1} s after the list was made, of which it retries 5 s",
        began.elapsed().as_secs_f64()
    );
    ensure!(began.elapsed() < Duration::from_secs(16), "its connections lived for more than 10 s");
    let output = cluster.mooseng(&["status", "--config"]).arg(&config_path).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(4) && said.contains("our certificate is revoked"), "{output:?}");
    // The others don't notice.
    std::fs::write(cluster.mount().join("ours"), "x")?;
    checked(cluster.mooseng(&["umount", "--lazy"]).arg(&mount)).map(drop)
}

fn other_list(cluster: &DevCluster) -> Result<()> {
    // This daemon's list is a file that nobody hands a new one to.
    let name = "chunkserver-3";
    let config_path = cluster.dir().join("etc").join(format!("{name}.toml"));
    let own = cluster.scratch().join("own-list.txt");
    std::fs::copy(cluster.dir().join("pki/revocations.txt"), &own)?;
    let config = std::fs::read_to_string(&config_path)?;
    let listed = cluster.dir().join("certs").join(name).join("revocations.txt");
    ensure!(config.contains(&listed.display().to_string()), "{config}");
    std::fs::write(&config_path, config.replace(&listed.display().to_string(), &own.display().to_string()))?;
    cluster.dev("kill", name)?;
    cluster.dev("start", name)?;
    certs(cluster, &["revoke", "spiffe://dev/region-1/client/host-8"])?;
    let differ = || -> Result<Vec<String>> {
        let status = cluster.status()?;
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        let codes = findings.iter().filter(|f| f["code"] == "REVOCATIONS_DIFFER");
        Ok(codes.map(|f| f["subject"].to_string()).collect())
    };
    wait_for("the finding", Duration::from_secs(60), || {
        let found = differ()?;
        ensure!(found.len() == 1 && found[0].contains(name), "{found:?}");
        Ok(())
    })?;
    std::fs::copy(cluster.dir().join("pki/revocations.txt"), &own)?;
    wait_for("the finding to go", Duration::from_secs(60), || {
        let found = differ()?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })
}
