//! Two mounts of one region, as two hosts: what one has written, also unsynced, the other sees.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::child::absent;
use mooseng_e2e::cluster::{DevCluster, binary, checked, wait_for};
use mooseng_e2e::steps::Steps;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often everything is tried: unsynced writes that the other mount must see, and half of the records that each mount appends. `make test-all` asks
/// for ten times as many.
pub(super) fn times() -> u64 {
    std::env::var("COHERENCE").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}

/// A session's lease.
const LEASE: Duration = Duration::from_secs(10);
/// What an operation may take beside what it waits for.
const SLACK: Duration = Duration::from_secs(3);
/// What a leader's end may cost an operation.
const FAILOVER: Duration = Duration::from_secs(5);

/// Whether something goes on that was done so many times.
type More<'a> = &'a (dyn Fn(u64) -> bool + Sync);
/// Something that goes on beside others, by its name.
type Work<'a> = (&'a str, &'a (dyn Fn() -> Result<()> + Sync));

#[test]
fn two_mounts_show_one_filesystem() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("coherence", &[])?;
    let (a, b) = (cluster.mount(), cluster.scratch().join("other"));
    fs::create_dir(&b)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&b))?;
    let mut steps = Steps::default();
    let n = times();
    steps.run("unsynced writes are seen by stat and read, with both files open", || {
        open_on_both(&a, &b, &|i| i < n)
    });
    steps.run("unsynced writes are seen by who opens the file then", || opened_later(&a, &b, &|i| i < n));
    steps.run("two mounts append, no record is lost or torn", || appends(&a, &b, &|i| i < 2 * n));
    steps.run("names, renames, removals and absences", || names(&a, &b, &|i| i < n / 5));
    steps.run("two mounts fill one directory, nothing waits for a second", || {
        let until = Instant::now() + Duration::from_secs(n / 100).min(Duration::from_secs(60));
        one_directory(&a, &b, "shared", &|_| Instant::now() < until, Duration::from_secs(1))
    });
    steps.run("all of it at once, while leaders are killed", || while_leaders_die(&cluster, &a, &b));
    steps.run(
        "a mount whose daemon is stopped for two leases shows nothing old, and delays others by one",
        || stopped_for_two_leases(&cluster, &a, "stopped", false),
    );
    steps.run("so it is where the leader is killed meanwhile", || {
        stopped_for_two_leases(&cluster, &a, "stopped-through", true)
    });
    steps.run("random operations on both are as on a local disk", || random_operations(&cluster, &a, &b, 1));
    steps.run("so they are where no mount makes names alone", || random_operations_together(&cluster));
    steps.run("data that was never synced is stored by itself", || stored_by_itself(&cluster, &a));
    checked(cluster.mooseng(&["umount"]).arg(&b))?;
    steps.run("fsck finds nothing", || cluster.fsck());
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}

/// Four thousand of them; `make test-all` has ten times as many. By the program, so that a signal (SIGBUS) is a failure of this alone.
fn random_operations(cluster: &DevCluster, a: &Path, b: &Path, seed: u64) -> Result<()> {
    let operations = (4 * times()).to_string();
    let mut program = Command::new(binary("mooseng-differential")?);
    program.args(["--seed", &seed.to_string(), "--operations", &operations, "--local"]);
    let output = checked(program.arg(cluster.scratch()).args([a, b]))?;
    print!("    {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn random_operations_together(cluster: &DevCluster) -> Result<()> {
    let config = cluster.client_config()?;
    let text = fs::read_to_string(&config)?;
    ensure!(text.contains("delegate = true"), "{} doesn't say `delegate`", config.display());
    let own = config.with_file_name("together.toml");
    fs::write(&own, text.replace("delegate = true", "delegate = false"))?;
    let mounts = ["together-a", "together-b"].map(|name| cluster.scratch().join(name));
    for mount in &mounts {
        fs::create_dir(mount)?;
        checked(cluster.mooseng(&["mount", "--config"]).arg(&own).arg(mount))?;
    }
    let outcome = random_operations(cluster, &mounts[0], &mounts[1], 2);
    for mount in &mounts {
        checked(cluster.mooseng(&["umount"]).arg(mount))?;
    }
    outcome
}

/// How often the leader is killed while all of it goes on: ten times with the issue's own figure.
fn kills() -> u64 {
    (times() / 1000).clamp(2, 10)
}

/// Kills the leader, and starts it again once another one leads.
fn leaders_die(cluster: &DevCluster) -> Result<()> {
    for _ in 0..kills() {
        cluster.wait_whole()?;
        let leader = cluster.leader()?;
        cluster.dev("kill", &leader)?;
        wait_for("another leader", Duration::from_secs(60), || {
            ensure!(cluster.leader()? != leader, "it is {leader} still, which was killed");
            Ok(())
        })?;
        cluster.dev("start", &leader)?;
    }
    cluster.wait_whole()
}

/// Each goes on for as many times as without it, and until the last leader was replaced.
fn while_leaders_die(cluster: &DevCluster, a: &Path, b: &Path) -> Result<()> {
    let (n, over) = (times(), AtomicBool::new(false));
    let often = |i: u64| i < n || !over.load(Ordering::SeqCst);
    let seldom = |i: u64| i < n / 5 || !over.load(Ordering::SeqCst);
    let work: [Work<'_>; 5] = [
        ("with both files open", &|| open_on_both(a, b, &often)),
        ("opened later", &|| opened_later(a, b, &often)),
        ("appends", &|| appends(a, b, &often)),
        ("names", &|| names(a, b, &seldom)),
        ("one directory", &|| one_directory(a, b, "shared-through", &seldom, FAILOVER + SLACK)),
    ];
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.iter().map(|(what, work)| (*what, scope.spawn(*work))).collect();
        let killed = leaders_die(cluster);
        over.store(true, Ordering::SeqCst);
        for (what, thread) in threads {
            let done = thread.join().map_err(|_| anyhow::anyhow!("{what}: it panicked"))?;
            done.with_context(|| what.to_owned())?;
        }
        killed
    })
}

fn open_on_both(a: &Path, b: &Path, more: More<'_>) -> Result<()> {
    let writer = File::create(a.join("both"))?;
    let reader = File::open(b.join("both"))?;
    let mut end = 0;
    for i in (0_u64..).take_while(|i| more(*i)) {
        let at = if i % 2 == 0 { 0 } else { i * 100 };
        writer.write_at(&i.to_be_bytes(), at)?;
        end = end.max(at + 8);
        let stat = fs::metadata(b.join("both"))?;
        ensure!(stat.len() == end, "write {i}: the other mount sees {} bytes, there are {end}", stat.len());
        let mut seen = [0; 8];
        reader.read_exact_at(&mut seen, at)?;
        ensure!(seen == i.to_be_bytes(), "write {i} isn't seen");
    }
    Ok(())
}

fn opened_later(a: &Path, b: &Path, more: More<'_>) -> Result<()> {
    let writer = File::create(a.join("later"))?;
    for i in (0_u64..).take_while(|i| more(*i)) {
        writer.write_at(&i.to_be_bytes(), (i % 7) * 8)?;
        if i % 3 == 0 {
            let (mine, other) = (fs::metadata(a.join("later"))?, fs::metadata(b.join("later"))?);
            let times = |m: &fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
            ensure!(
                times(&mine) == times(&other),
                "write {i}: {:?} here, {:?} there",
                times(&mine),
                times(&other)
            );
        }
        let seen = fs::read(b.join("later"))?;
        let at = (i % 7) as usize * 8;
        ensure!(seen.get(at..at + 8) == Some(&i.to_be_bytes()[..]), "write {i} isn't seen");
    }
    Ok(())
}

/// Answers how many records it wrote.
fn append(directory: &Path, tag: char, more: More<'_>) -> Result<u64> {
    let mut file = OpenOptions::new().append(true).open(directory.join("appended"))?;
    let mut written = 0;
    while more(written) {
        file.write_all(format!("{tag}{written:09}\n").as_bytes())?;
        written += 1;
    }
    Ok(written)
}

fn appends(a: &Path, b: &Path, more: More<'_>) -> Result<()> {
    File::create(a.join("appended"))?;
    let (here, there) = std::thread::scope(|scope| {
        let there = scope.spawn(|| append(b, 'b', more));
        let here = append(a, 'a', more)?;
        let there = there.join().map_err(|_| anyhow::anyhow!("the other writer panicked"))??;
        Ok::<_, anyhow::Error>((here, there))
    })?;
    let text = fs::read_to_string(a.join("appended"))?;
    ensure!(text == fs::read_to_string(b.join("appended"))?, "the mounts see different files");
    for (tag, written) in [('a', here), ('b', there)] {
        let mine: Vec<&str> = text.lines().filter(|line| line.starts_with(tag)).collect();
        let whole = (0..written).map(|i| format!("{tag}{i:09}"));
        ensure!(whole.eq(mine.iter().copied()), "records of {tag} are lost, torn or out of order");
    }
    ensure!(text.lines().count() as u64 == here + there, "there are {} records", text.lines().count());
    Ok(())
}

fn names(a: &Path, b: &Path, more: More<'_>) -> Result<()> {
    let absent = |path: &Path| matches!(fs::metadata(path), Err(e) if e.kind() == io::ErrorKind::NotFound);
    for i in (0_u64..).take_while(|i| more(*i)) {
        let (here, there) = if i % 2 == 0 { (a, b) } else { (b, a) };
        let (first, second) = (format!("first{}", i % 5), format!("second{}", i % 3));
        ensure!(absent(&there.join(&first)), "round {i}: there is a file before it is made");
        fs::write(here.join(&first), i.to_string())?;
        ensure!(
            fs::read_to_string(there.join(&first))? == i.to_string(),
            "round {i}: the new file isn't seen"
        );
        fs::rename(there.join(&first), there.join(&second))?;
        ensure!(absent(&here.join(&first)), "round {i}: the old name is seen");
        ensure!(
            fs::read_to_string(here.join(&second))? == i.to_string(),
            "round {i}: the new name isn't seen"
        );
        fs::remove_file(here.join(&second))?;
        ensure!(absent(&there.join(&second)), "round {i}: a removed file is seen");
        fs::create_dir(here.join(&second))?;
        ensure!(fs::read_dir(there.join(&second))?.next().is_none(), "round {i}: the directory isn't empty");
        fs::remove_dir(there.join(&second))?;
    }
    Ok(())
}

/// Files are made and removed from both mounts; no operation takes as long as `most`.
fn one_directory(a: &Path, b: &Path, name: &str, more: More<'_>, most: Duration) -> Result<()> {
    fs::create_dir(a.join(name))?;
    let fill = |directory: &Path, tag: &str| -> Result<(u64, Duration)> {
        let (mut n, mut longest) = (0, Duration::ZERO);
        while more(n) {
            let path = directory.join(name).join(format!("{tag}{n}"));
            let began = Instant::now();
            File::create(&path).with_context(|| path.display().to_string())?;
            longest = longest.max(began.elapsed());
            let began = Instant::now();
            if n % 2 == 0 {
                fs::remove_file(&path)?;
            }
            longest = longest.max(began.elapsed());
            n += 1;
        }
        Ok((n, longest))
    };
    let (here, there) = std::thread::scope(|scope| {
        let there = scope.spawn(|| fill(b, "b"));
        let here = fill(a, "a")?;
        Ok::<_, anyhow::Error>((here, there.join().map_err(|_| anyhow::anyhow!("the other one panicked"))??))
    })?;
    println!(
        "    {} and {} files, the longest operations took {:?} and {:?}",
        here.0, there.0, here.1, there.1
    );
    let list = |directory: &Path| -> Result<Vec<_>> {
        let mut names: Vec<_> = fs::read_dir(directory.join(name))?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        Ok(names)
    };
    let (mine, other) = (list(a)?, list(b)?);
    ensure!(mine == other && mine.len() as u64 == here.0 / 2 + there.0 / 2, "the lists differ");
    ensure!(here.1.max(there.1) < most, "an operation waited for {:.1?}", here.1.max(there.1));
    Ok(())
}

/// A mount in a process of its own, which can be stopped; it ends with the value.
struct Stoppable {
    daemon: Child,
    path: PathBuf,
}

impl Stoppable {
    fn new(cluster: &DevCluster, name: &str) -> Result<Self> {
        let path = cluster.scratch().join(name);
        fs::create_dir(&path)?;
        let mut command = cluster.mooseng(&["mount", "--foreground", "--unsupervised", "--config"]);
        let log = File::create(cluster.scratch().join(format!("{name}.log")))?;
        let daemon =
            command.arg(cluster.client_config()?).arg(&path).stdin(Stdio::null()).stderr(log).spawn()?;
        let mount = Self { daemon, path };
        let device = fs::metadata(cluster.scratch())?.dev();
        wait_for("the mount", Duration::from_secs(60), || {
            ensure!(fs::metadata(&mount.path)?.dev() != device, "nothing is mounted yet");
            Ok(())
        })?;
        Ok(mount)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.daemon.id() as i32), signal)?)
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGCONT);
        let _ = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// With `killed` the leader dies just after the mount was stopped. Its successor doesn't know when the mount was heard last, and waits a lease from its own
/// beginning (docs/decisions/0006-promises.md).
fn stopped_for_two_leases(cluster: &DevCluster, a: &Path, name: &str, killed: bool) -> Result<()> {
    let mount = Stoppable::new(cluster, name)?;
    let leader = cluster.leader()?;
    fs::write(a.join("frozen"), "old")?;
    fs::write(a.join("frozen-gone"), "old")?;
    fs::remove_file(a.join("frozen-new")).or_else(absent)?;
    let seen = mount.path.join("frozen");
    // The kernel keeps attributes, names, an absence and bytes.
    ensure!(fs::read_to_string(&seen)? == "old" && fs::metadata(&seen)?.len() == 3, "other bytes");
    ensure!(fs::metadata(mount.path.join("frozen-gone")).is_ok(), "there is no such file");
    ensure!(fs::metadata(mount.path.join("frozen-new")).is_err(), "it is there already");
    mount.signal(Signal::SIGSTOP)?;
    let stopped = Instant::now();
    if killed {
        cluster.dev("kill", &leader)?;
    }
    let mut longest = Duration::ZERO;
    let mut timed = |operation: &dyn Fn() -> io::Result<()>| -> Result<()> {
        let began = Instant::now();
        operation()?;
        longest = longest.max(began.elapsed());
        Ok(())
    };
    timed(&|| fs::write(a.join("frozen"), "newer"))?;
    timed(&|| fs::remove_file(a.join("frozen-gone")))?;
    timed(&|| fs::write(a.join("frozen-new"), "new"))?;
    let others = stopped.elapsed();
    println!("    the longest operation of others took {longest:.1?}, all of them {others:.1?}");
    let failover = if killed { FAILOVER } else { Duration::ZERO };
    ensure!(others < LEASE + failover + SLACK, "others were delayed by {others:.1?}");
    if killed {
        cluster.dev("start", &leader)?;
    }
    // After its lease the kernel asks the daemon, and waits.
    let left = (LEASE + Duration::from_secs(1)).saturating_sub(stopped.elapsed());
    std::thread::sleep(left);
    let (sender, looked) = std::sync::mpsc::channel();
    let path = mount.path.clone();
    std::thread::spawn(move || {
        let length = fs::metadata(path.join("frozen")).map(|m| m.len());
        let gone = fs::metadata(path.join("frozen-gone")).is_err();
        let new = fs::metadata(path.join("frozen-new")).is_ok();
        let _ = sender.send((length.map_err(|e| e.to_string()), gone, new));
    });
    std::thread::sleep((2 * LEASE + Duration::from_secs(1)).saturating_sub(stopped.elapsed()));
    mount.signal(Signal::SIGCONT)?;
    let seen_then = looked.recv_timeout(Duration::from_secs(30)).context("nobody answered")?;
    ensure!(seen_then == (Ok(5), true, true), "it showed {seen_then:?}");
    ensure!(fs::read_to_string(&seen)? == "newer", "old bytes after its lease");
    cluster.wait_whole()
}

/// Five seconds after a write its bytes are at the region, though nobody asked: the mount may die then.
fn stored_by_itself(cluster: &DevCluster, a: &Path) -> Result<()> {
    let file = File::create(a.join("unsynced"))?;
    file.write_all_at(b"never synced", 0)?;
    std::thread::sleep(Duration::from_secs(5));
    let client = cluster.names("client")?.into_iter().next().context("there is no client")?;
    cluster.dev("kill", &client)?;
    drop(file);
    let seen = fs::read(cluster.scratch().join("other/unsynced"))?;
    ensure!(seen == b"never synced", "the other mount reads {:?}", String::from_utf8_lossy(&seen));
    Ok(())
}
