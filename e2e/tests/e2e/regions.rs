//! A cluster of two regions and a witness, as the README's first screen makes it and loses its home: then its processes, what is cut between regions, and a
//! verified load.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, binary, checked, wait_for, workspace};
use mooseng_e2e::steps::Steps;
use mooseng_e2e::transcript::{self, Shell, Step};

const SOON: Duration = Duration::from_secs(30);
const UNHEARD: &str = "unheard";
/// Where the root volume is at home once the README's transcript has lost its first home, and where it isn't.
const HOME: &str = "region-2";
const AWAY: &str = "region-1";

#[test]
fn two_regions_and_a_witness_are_one_cluster() {
    run().unwrap();
}

/// What is said where a home dies with changes that no other region has: load that is under way always has some.
pub const HOME_LOST: &[&str] = &[
    // Made behind the cut and never fsynced: its inode is no more (DESIGN section 8), and fsync says so.
    "\"error\":\"Stale file handle (os error 116)\"",
    "isn't what its home has: it is put aside",
    "it copies the volume anew",
    "was lost with the volume's home",
    "the session's lease had lapsed",
];

/// What a volume's home says once nobody else has what is written there.
const BEHIND: &[&str] = &["writers wait: what no other region has of the volume is older than its lag_max"];

/// What is said where all copies of a chunk are gone.
const COPIES_GONE: &[&str] = &[
    "no copy of a chunk is of any use here",
    "a block doesn't match its checksum",
    "this copy of a chunk is corrupt",
    // Its end, of which its master hasn't heard yet that it was removed by hand.
    "this chunkserver has no chunk",
];

/// Writes a file, and has it safe.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all().with_context(|| format!("fsync of {}", path.display()))
}

/// Waits until a file has this content.
pub fn shows(path: &Path, text: &str) -> Result<()> {
    wait_for(&format!("{} to have what was written", path.display()), SOON, || {
        ensure!(std::fs::read_to_string(path)? == text, "it has something else");
        Ok(())
    })
}

/// The steps of the README's first screen, which calls its directory `two`.
fn first_screen() -> Result<Vec<Step>> {
    let page = std::fs::read_to_string(workspace().join("README.md"))?;
    let steps = transcript::parse(&page).into_iter().map(|step| Step {
        command: step.command.replace("two/", "cluster/").replace("--dir two", "--dir cluster"),
        ..step
    });
    Ok(steps.collect())
}

/// A counter, summed over the processes of a region that isn't the home whose names contain this.
fn counted(cluster: &DevCluster, processes: &str, counter: &str) -> Result<f64> {
    let output = cluster.dev_words(&["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let all = status["processes"].as_array().context("no processes")?;
    let of = all
        .iter()
        .filter(|p| p["region"] == AWAY && p["name"].as_str().is_some_and(|n| n.contains(processes)));
    let mut sum = 0.0;
    for http in of.filter_map(|p| p["http"].as_str()) {
        let text = super::otlp::shown_at(http)?;
        let line = text.lines().find(|l| l.starts_with(counter));
        let value = line.and_then(|l| l.rsplit_once(' ')).with_context(|| format!("no {counter}"))?.1;
        sum += value.parse::<f64>()?;
    }
    Ok(sum)
}

/// How many entries of the log the masters of a region have replayed that isn't the home.
fn replayed(cluster: &DevCluster) -> Result<f64> {
    counted(cluster, ".master-", "mooseng_master_log_replayed_total")
}

/// Files that the home's mount has made are removed by the other one, most of them without asking for each.
fn removed_elsewhere(cluster: &DevCluster, here: &Path, there: &Path) -> Result<()> {
    const FILES: usize = 200;
    std::fs::create_dir(here.join("many"))?;
    for n in 0..FILES {
        std::fs::write(here.join(format!("many/{n}")), "x")?;
    }
    write(&here.join("many/last"), "x")?;
    let alone = || counted(cluster, ".client-", "mooseng_mount_made_alone_total");
    shows(&there.join("many/last"), "x")?;
    let before = alone()?;
    std::fs::remove_dir_all(there.join("many")).context("removing what the other mount has made")?;
    let after = alone()?;
    ensure!(after - before > FILES as f64 / 2.0, "{} of {FILES} were removed alone", after - before);
    wait_for("the home's mount to have it gone", SOON, || {
        ensure!(!here.join("many").try_exists()?, "it is there");
        Ok(())
    })
}

/// Writes a file at home while the other region is cut off: nothing of it gets there.
///
/// Masters are asked, and not the mount there: what it saw just before may be more than its region has, and then it waits.
fn hears_nothing(cluster: &DevCluster, file: &Path) -> Result<()> {
    let before = replayed(cluster)?;
    write(file, UNHEARD)?;
    // It doesn't come however long one waits: this is several times as long as it would take.
    std::thread::sleep(Duration::from_millis(500));
    let after = replayed(cluster)?;
    ensure!(before == after, "{AWAY} replayed {} entries while it was cut off", after - before);
    Ok(())
}

/// Writes and flushes small files until it is told to end. Answers how many, and the longest that one took.
fn write_on(directory: &Path, ends: &AtomicBool) -> Result<(u32, Duration)> {
    let (mut n, mut longest) = (0, Duration::ZERO);
    while !ends.load(Ordering::SeqCst) {
        let began = Instant::now();
        write(&directory.join(n.to_string()), &format!("{n} of {}", directory.display()))?;
        longest = longest.max(began.elapsed());
        n += 1;
    }
    Ok((n, longest))
}

/// The other region is cut off from a `region` volume whose home writes on: writers wait once what they wrote is older than `lag_max`, and go on with it.
fn waits_for_the_other_region(cluster: &DevCluster, here: &Path, there: &Path) -> Result<()> {
    let volume = |words: &[&str]| cluster.volume(HOME, words);
    volume(&["set", "/", "--durability", "region", "--lag-max", "1s"])?;
    let info = || Ok::<_, anyhow::Error>(volume(&["info", "/"])?["volume"].clone());
    wait_for("the other region to count", SOON, || {
        let known = info()?;
        ensure!(known["tail_ms"].is_u64() && known["writers_held"] == false, "{known:#}");
        Ok(())
    })?;
    let directory = Path::new("paced");
    std::fs::create_dir(here.join(directory)).context("mkdir")?;
    cluster.cut(&["partition", AWAY])?;
    let ends = AtomicBool::new(false);
    let wrote = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&here.join(directory), &ends));
        let block = scope.spawn(|| overwrite_on(&here.join("paced-block"), &ends));
        std::thread::sleep(Duration::from_secs(5));
        let held = info();
        let healed = cluster.cut(&["heal"]);
        std::thread::sleep(Duration::from_secs(1));
        ends.store(true, Ordering::SeqCst);
        let over = block.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let (wrote, longest) = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        healed?;
        let held = held?;
        ensure!(held["writers_held"] == true && held["tail_ms"].as_u64() > Some(1_000), "{held:#}");
        ensure!(
            longest.min(over) > Duration::from_secs(2),
            "of {wrote} new files the longest took {longest:?}, and of one block's writes {over:?}"
        );
        Ok(wrote)
    })?;
    let last = format!("{} of {}", wrote - 1, here.join(directory).display());
    shows(&there.join(directory).join((wrote - 1).to_string()), &last)?;
    volume(&["set", "/", "--durability", "geo", "--lag-max", "1m"])?;
    wait_for("both regions to be in the sync set", SOON, || {
        let known = info()?;
        ensure!(known["sync_set"].as_array().map(Vec::len) == Some(2), "{known:#}");
        Ok(())
    })
}

/// The same with one block of a file that stays open.
fn overwrite_on(path: &Path, ends: &AtomicBool) -> Result<Duration> {
    let file = std::fs::File::create(path)?;
    let mut longest = Duration::ZERO;
    while !ends.load(Ordering::SeqCst) {
        let began = Instant::now();
        file.write_all_at(&[7; 4096], 0)?;
        file.sync_all()?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

fn move_home(cluster: &DevCluster, to: &str, plan: bool) -> Result<serde_json::Value> {
    let mut command = cluster.mooseng(&["volume", "move-home", "/", "--to", to, "-o", "json", "--config"]);
    command.arg(cluster.admin_config_of(AWAY)?);
    if plan {
        command.arg("--plan");
    }
    let moved: serde_json::Value = serde_json::from_slice(&checked(&mut command)?.stdout)?;
    ensure!(moved["after"]["home"] == to && moved["plan"] == plan, "{moved:#}");
    Ok(moved)
}

/// What a file says of how old what is read of it may be, in seconds.
fn staleness(path: &Path) -> Result<f64> {
    let mut value = [0; 32];
    let length = rustix::fs::getxattr(path, "mooseng.staleness", &mut value[..])
        .with_context(|| format!("mooseng.staleness of {}", path.display()))?;
    Ok(std::str::from_utf8(&value[..length])?.parse()?)
}

/// A mount in the other region with `-o consistency=strong` shows at once what the home's mount has made and
/// fsynced, without waiting for the replica there.
fn strong_mount(cluster: &DevCluster, here: &Path) -> Result<()> {
    let strong = cluster.scratch().join("strong");
    std::fs::create_dir(&strong)?;
    let mut mount = cluster.mooseng(&["mount", "-o", "consistency=strong", "--config"]);
    checked(mount.arg(cluster.client_config_of(AWAY)?).arg(&strong))?;
    let seen = seen_at_once(here, &strong);
    checked(cluster.mooseng(&["umount"]).arg(&strong))?;
    seen
}

fn seen_at_once(here: &Path, strong: &Path) -> Result<()> {
    std::fs::create_dir(here.join("strong")).context("mkdir")?;
    std::fs::File::open(here)?.sync_all().context("fsync of the root directory")?;
    for n in 0..5 {
        let name = format!("strong/{n}");
        // That it isn't there is kept, too, until it is taken back.
        ensure!(!strong.join(&name).try_exists()?, "{name} is there before it was made");
        for text in ["made", "written again"] {
            write(&here.join(&name), text)?;
            let seen = std::fs::read_to_string(strong.join(&name)).with_context(|| name.clone())?;
            ensure!(seen == text, "{name} has {seen:?} instead of {text:?}");
        }
    }
    let age = staleness(&strong.join("strong/0"))?;
    ensure!(age == 0.0, "what is read there is {age} s old");
    Ok(())
}

/// All daemons of a region are frozen and go on, by the commands for it. What is written meanwhile comes there,
/// and `start` doesn't take what is frozen for something that doesn't run.
fn pauses(cluster: &DevCluster, region: &str, here: &Path, there: &Path) -> Result<()> {
    let name = format!("paused-{region}");
    let start = || -> Result<std::process::Output> {
        let mut start = cluster.mooseng(&["dev", "start", "region", region, "--dir"]);
        Ok(start.arg(cluster.dir()).output()?)
    };
    cluster.dev_words(&["pause", "region", region])?;
    // Whatever comes of these, it must go on.
    let (refused, written) = (start(), write(&here.join(&name), "meanwhile"));
    cluster.dev_words(&["resume", "region", region])?;
    written?;
    let refused = refused?;
    let talk = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && talk.contains("paused: `mooseng dev resume"), "{refused:?}");
    let started = start()?;
    let talk = String::from_utf8_lossy(&started.stderr);
    ensure!(started.status.success() && talk.contains("runs already"), "{started:?}");
    shows(&there.join(&name), "meanwhile")
}

/// Moves the home there and back while a mount in each region writes.
fn moves(cluster: &DevCluster, mounts: &[&Path]) -> Result<()> {
    let ends = AtomicBool::new(false);
    let directories: Vec<PathBuf> = (0..mounts.len()).map(|n| PathBuf::from(format!("moves-{n}"))).collect();
    for (mount, directory) in mounts.iter().zip(&directories) {
        std::fs::create_dir(mount.join(directory)).context("mkdir")?;
    }
    let (written, moved) = std::thread::scope(|scope| {
        let writers: Vec<_> = mounts
            .iter()
            .zip(&directories)
            .map(|(mount, directory)| (mount.join(directory), &ends))
            .map(|(directory, ends)| scope.spawn(move || write_on(&directory, ends)))
            .collect();
        let moved = (|| {
            std::thread::sleep(Duration::from_secs(1));
            move_home(cluster, AWAY, true)?;
            let there = move_home(cluster, AWAY, false)?;
            std::thread::sleep(Duration::from_secs(2));
            let back = move_home(cluster, HOME, false)?;
            std::thread::sleep(Duration::from_secs(2));
            Ok::<_, anyhow::Error>((there, back))
        })();
        ends.store(true, Ordering::SeqCst);
        let written: Vec<_> =
            writers.into_iter().map(|writer| writer.join().expect("a writer panicked")).collect();
        (written, moved)
    });
    let (there, back) = moved?;
    println!("    stopped for {} and {} ms", there["stopped_ms"], back["stopped_ms"]);
    for ((mount, directory), written) in mounts.iter().zip(&directories).zip(written) {
        let (n, longest) = written?;
        println!("    {}: {n} files, the longest took {longest:?}", directory.display());
        ensure!(n > 5, "{n} files in {directory:?}");
        let path = mount.join(directory);
        for seen in mounts {
            for file in 0..n {
                shows(
                    &seen.join(directory).join(file.to_string()),
                    &format!("{file} of {}", path.display()),
                )?;
            }
        }
    }
    cluster.compared(AWAY, |all| all["equal"] == true)
}

/// Takes all copies that a region has of a file's chunk from its disks, while its chunkservers are down: it has the home to fetch it from.
fn remove_all_copies(cluster: &DevCluster, here: &Path, there: &Path) -> Result<()> {
    const MARKER: &[u8] = b"all copies of this are gone in one region";
    let mut content = vec![7; 1 << 20];
    content[500_000..500_000 + MARKER.len()].copy_from_slice(MARKER);
    std::fs::write(here.join("gone"), &content)?;
    std::fs::File::open(here.join("gone"))?.sync_all()?;
    let copies = || cluster.chunks_with(AWAY, MARKER);
    let two = || {
        let found = copies()?;
        ensure!(found.len() == 2, "{found:?}");
        Ok(())
    };
    wait_for("two chunkservers to have it", SOON, two)?;
    // Sealed, and on record as whole.
    std::thread::sleep(Duration::from_secs(8));
    cluster.dev_words(&["kill", "region", AWAY])?;
    copies()?.iter().try_for_each(std::fs::remove_file)?;
    cluster.dev_words(&["start", "region", AWAY])?;
    wait_for("two chunkservers to have it again", Duration::from_secs(120), two)?;
    ensure!(std::fs::read(there.join("gone"))? == content, "it has other bytes");

    // A bit of one copy: `volume verify --read` finds it, and what finds it has it repaired.
    cluster.compared(AWAY, |all| all["equal"] == true)?;
    let rotten = copies()?.into_iter().next().context("no copy")?;
    let mut bytes = std::fs::read(&rotten)?;
    let at = bytes.windows(MARKER.len()).position(|window| window == MARKER).context("no marker")?;
    bytes[at] ^= 4;
    std::fs::write(&rotten, bytes)?;
    cluster.compared(AWAY, |all| {
        let different = all["different_copies"].as_array().map_or(0, Vec::len);
        all["equal"] == false && different == 1 && all["different_copies"][0]["region"] == AWAY
    })?;
    cluster.compared(AWAY, |all| all["equal"] == true)
}

fn run() -> Result<()> {
    let cluster = DevCluster::prepared("regions")?;
    let mut steps = Steps::default();
    let mooseng = binary("mooseng")?;
    let mut shell = Shell::start(cluster.scratch(), mooseng.parent().context("no directory")?)?;
    let typed = first_screen()?;
    ensure!(typed.len() > 5, "the README has no transcript");
    for step in &typed {
        // What comes later needs what came before.
        println!("  $ {}", step.command);
        shell.step(step).context("the first screen of the README")?;
    }
    let (here, there) = (cluster.mount_of(HOME)?, cluster.mount_of(AWAY)?);
    steps.run("each region has daemons and a mount of its own, and all are ready", || {
        for (region, count) in [("region-1", 6), ("region-2", 6), ("witness", 1)] {
            ensure!(
                cluster.daemons_of(region)?.len() == count,
                "{region}: {:?}",
                cluster.daemons_of(region)?
            );
            ensure!(cluster.admin_config_of(region)?.is_file(), "{region} has no administrator");
        }
        let output = cluster.dev_words(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let processes = status["processes"].as_array().context("no processes")?;
        ensure!(processes.len() == 15 && processes.iter().all(|p| p["ready"] == true), "{status:#}");
        ensure!(status["cuts"].as_array().is_some_and(Vec::is_empty), "{status:#}");
        Ok(())
    });
    steps.run("write in one region, read in the other, and the way takes its time", || {
        write(&here.join("a"), HOME)?;
        shows(&there.join("a"), HOME)?;
        let began = Instant::now();
        write(&there.join("b"), AWAY)?;
        let took = began.elapsed();
        ensure!(took >= Duration::from_millis(60), "a change went to the home and back within {took:?}");
        shows(&here.join("b"), AWAY)?;
        let (at_home, half_a_trip) = (staleness(&here.join("a"))?, 0.030);
        ensure!(at_home == 0.0, "at home a read is {at_home} s old");
        wait_for("the replica's answer, not the home's, with its age", SOON, || {
            let age = staleness(&there.join("a"))?;
            ensure!((half_a_trip..5.0).contains(&age), "elsewhere a read is {age} s old");
            Ok(())
        })?;
        // A directory of the home's own: nobody elsewhere must be asked to give it up before there is a new name in it.
        std::fs::create_dir(here.join("home")).context("mkdir")
    });
    steps.run("a strong mount elsewhere shows at once what the home's mount has fsynced", || {
        strong_mount(&cluster, &here)
    });
    steps.run("what the home's mount has made is removed elsewhere without a question for each", || {
        removed_elsewhere(&cluster, &here, &there)
    });
    steps.run("the home moves there and back under writers in both regions, and nothing is lost", || {
        moves(&cluster, &[&here, &there])
    });
    steps.run("a region that is cut off hears nothing until it is healed", || {
        cluster.cut(&["partition", AWAY])?;
        hears_nothing(&cluster, &here.join("home/c"))?;
        let output = cluster.dev_words(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(status["cuts"].as_array().map(Vec::len) == Some(2), "{status:#}");
        cluster.cut(&["heal"])?;
        shows(&there.join("home/c"), UNHEARD)
    });
    steps.run("one way: the home doesn't hear of what the other region has, and goes on without it", || {
        cluster.cut(&["partition", AWAY, "--one-way"])?;
        write(&here.join("home/d"), UNHEARD)?;
        cluster.cut(&["heal"])?;
        shows(&there.join("home/d"), UNHEARD)
    });
    steps.run("writers of a region volume wait for a region that falls behind", || {
        waits_for_the_other_region(&cluster, &here, &there)
    });
    steps.run("a region without data is killed and started, and so is one with data", || {
        for region in ["witness", AWAY] {
            cluster.dev_words(&["kill", "region", region])?;
            let file = cluster.file()?;
            let alive = |p: &mooseng_e2e::cluster::Process| {
                p.region == region && p.role != "client" && p.pid.is_some()
            };
            ensure!(!file.processes.iter().any(alive), "{file:?}");
            write(&here.join(region), "meanwhile")?;
            cluster.dev_words(&["start", "region", region])?;
            shows(&there.join(region), "meanwhile")?;
        }
        Ok(())
    });
    steps.run("a region without data is paused and goes on, and so is one with data", || {
        ["witness", AWAY].iter().try_for_each(|region| pauses(&cluster, region, &here, &there))
    });
    steps.run("a region whose copies of a chunk are all gone fetches it from the home again", || {
        remove_all_copies(&cluster, &here, &there)
    });
    steps.run("what a load was acknowledged is there in both regions", || {
        for region in ["region-1", "region-2"] {
            cluster.dev_words(&["load", "--verify", "--region", region, "--seconds", "5"])?;
        }
        for region in ["region-1", "region-2"] {
            let output = cluster.dev_words(&["verify", "--region", region, "-o", "json"])?;
            let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let runs = found["runs"].as_array().context("no runs")?;
            let worked = |r: &serde_json::Value| r["acknowledged"].as_u64() > Some(0);
            ensure!(runs.len() == 3 && runs.iter().all(worked), "{found:#}");
        }
        Ok(())
    });
    steps.run("verify finds what is lost", || {
        // The last one's: the transcript's is of a load that ended within a failover.
        let work = here.join("load-3/t0");
        let entry = std::fs::read_dir(&work)?.next().context("the load left no file")??;
        std::fs::remove_file(entry.path())?;
        let mut command = cluster.mooseng(&["dev", "verify", "--region", HOME, "--wait", "0", "--dir"]);
        let output = command.arg(cluster.dir()).output()?;
        let talk = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && talk.contains("LOST"), "{output:?}");
        Ok(())
    });
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, HOME_LOST, COPIES_GONE, BEHIND].concat())
}
