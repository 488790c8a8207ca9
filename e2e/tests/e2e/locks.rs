//! flock and fcntl locks between mounts and processes, through kills of leaders, of waiters, and of mounts.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooseng_e2e::cluster::{DevCluster, binary, checked, wait_for};
use mooseng_e2e::steps::Steps;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is answered soon comes within this time.
const SOON: Duration = Duration::from_secs(20);
/// A session's lease, and what it takes to note its end and to free what it held.
const LEASE: Duration = Duration::from_secs(10);
const NOTED: Duration = Duration::from_millis(1500);
/// Numbers that are handed on under a lock.
const HANDED_ON: u64 = 120;

#[test]
fn locks_hold_between_mounts() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("locks", &[])?;
    let (a, b) = (cluster.mount(), cluster.scratch().join("b"));
    mount(&cluster, &b)?;
    let mut steps = Steps::default();
    steps.run("levels and kinds, on two mounts", || levels_and_kinds(&a, &b));
    steps.run("ranges: cut, joined, raised, lowered, asked about", || ranges(&a, &b));
    steps.run("whoever gets a lock sees what its holder wrote", || handed_on(&a, &b));
    steps.run("who would wait for itself is told", || deadlock(&a, &b));
    steps.run("a waiter that is killed, or gets a signal, is gone", || waiters_go(&a, &b));
    steps.run("closing gives up", || closing(&a, &b));
    steps.run("locks, held and waited for, outlive leaders", || leaders_die(&cluster, &a, &b));
    steps.run("an unmounted mount's locks are free at once", || unmounted(&cluster, &a));
    // Each waits for a lease to end.
    let (slept, died) = std::thread::scope(|scope| {
        let died = scope.spawn(|| killed(&cluster, &a));
        (frozen(&cluster, &a), died.join())
    });
    steps.run("a killed mount's locks are free within its lease", || {
        died.map_err(|_| anyhow::anyhow!("it panicked"))?
    });
    steps.run("who slept through its lease has lost its locks, and is told", || slept);
    checked(cluster.mooseng(&["umount"]).arg(&b))?;
    steps.finish()?;
    let mut expected = super::PEERS_COME_AND_GO.to_vec();
    expected.push("the session's lease had lapsed");
    expected.push("the mount has lost its process");
    cluster.finish(&expected)
}

/// Mounts, and answers the daemon's pid.
fn mount(cluster: &DevCluster, path: &Path) -> Result<i32> {
    std::fs::create_dir_all(path)?;
    let output = checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(path))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let pid = text.split("(pid ").nth(1).and_then(|rest| rest.split(')').next());
    pid.and_then(|pid| pid.parse().ok()).with_context(|| format!("mooseng mount said: {text}"))
}

/// A process that does what it is told.
struct Locker {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Locker {
    fn new(file: &Path) -> Result<Self> {
        let mut child = Command::new(binary("mooseng-lock")?)
            .arg("script")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("no standard input")?;
        let out = child.stdout.take().context("no standard output")?;
        let (answer, answers) = channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| answer.send(line))
        });
        let mut locker = Self { child, orders, answers };
        locker.ok(&format!("open {}", file.display()))?;
        Ok(locker)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").with_context(|| order.to_owned())
    }

    /// The next answer, if it comes within this time.
    fn answer(&self, within: Duration) -> Result<Option<String>> {
        match self.answers.recv_timeout(within) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the process ended"),
        }
    }

    fn ask(&mut self, order: &str) -> Result<String> {
        self.tell(order)?;
        self.answer(SOON)?.with_context(|| format!("{order:?} wasn't answered within {} s", SOON.as_secs()))
    }

    fn ok(&mut self, order: &str) -> Result<String> {
        let answer = self.ask(order)?;
        let rest = answer.strip_prefix("ok").with_context(|| format!("{order:?} was answered {answer:?}"))?;
        Ok(rest.trim().to_owned())
    }

    fn refused(&mut self, order: &str, errno: i32) -> Result<()> {
        let answer = self.ask(order)?;
        ensure!(answer == format!("error {errno}"), "{order:?} was answered {answer:?}");
        Ok(())
    }

    /// Begins to wait.
    fn wait(&mut self, order: &str) -> Result<()> {
        self.tell(order)?;
        let answer = self.answer(Duration::from_millis(300))?;
        ensure!(answer.is_none(), "{order:?} should wait, and was answered {answer:?}");
        Ok(())
    }

    fn still_waits(&self) -> Result<()> {
        let answer = self.answer(Duration::ZERO)?;
        ensure!(answer.is_none(), "it should wait, and was answered {answer:?}");
        Ok(())
    }

    fn got(&self, within: Duration) -> Result<Duration> {
        let began = Instant::now();
        let answer = self.answer(within)?.with_context(|| format!("no lock within {within:?}"))?;
        ensure!(answer.trim() == "ok", "the wait ended with {answer:?}");
        Ok(began.elapsed())
    }

    /// kill -9; answers once the process is gone.
    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn levels_and_kinds(a: &Path, b: &Path) -> Result<()> {
    let (mut here, mut there) = (Locker::new(&a.join("levels"))?, Locker::new(&b.join("levels"))?);
    for kind in ["flock", "fcntl"] {
        here.ok(&format!("lock {kind} shared 0 0"))?;
        there.ok(&format!("lock {kind} shared 0 0"))?;
        there.ok(&format!("unlock {kind} 0 0"))?;
        there.refused(&format!("lock {kind} exclusive 0 0 try"), libc::EAGAIN)?;
        here.ok(&format!("lock {kind} exclusive 0 0"))?;
        there.refused(&format!("lock {kind} shared 0 0 try"), libc::EAGAIN)?;
    }
    // One process has both kinds; the other one waits for both, one after the other.
    there.wait("lock flock exclusive 0 0")?;
    here.ok("unlock flock 0 0")?;
    there.got(SOON)?;
    there.wait("lock fcntl exclusive 0 0")?;
    here.refused("lock flock shared 0 0 try", libc::EAGAIN)?;
    here.ok("unlock fcntl 0 0")?;
    there.got(SOON)?;
    // Two readers that both want to write: flock takes the level anew, so that none waits for the other for ever.
    there.ok("lock flock shared 0 0")?;
    here.ok("lock flock shared 0 0")?;
    here.wait("lock flock exclusive 0 0")?;
    there.ok("lock flock exclusive 0 0").context("both wait")?;
    here.still_waits()?;
    there.ok("unlock flock 0 0")?;
    here.got(SOON)?;
    Ok(())
}

fn ranges(a: &Path, b: &Path) -> Result<()> {
    let (mut here, mut there) = (Locker::new(&a.join("ranges"))?, Locker::new(&b.join("ranges"))?);
    here.ok("lock fcntl exclusive 0 100")?;
    here.ok("unlock fcntl 40 20")?;
    there.ok("lock fcntl exclusive 40 20 try")?;
    let pid = here.pid();
    ensure!(there.ok("test 0 0")? == format!("exclusive 0 40 {pid}"), "the first part isn't told");
    ensure!(there.ok("test 60 0")? == format!("exclusive 60 40 {pid}"), "the second part isn't told");
    ensure!(
        there.ok("test 100 0")? == "free" && here.ok("test 0 40")? == "free",
        "nobody is in the way there"
    );
    there.ok("unlock fcntl 40 20")?;
    here.ok("lock fcntl exclusive 40 20")?;
    ensure!(there.ok("test 50 1")? == format!("exclusive 0 100 {pid}"), "the parts weren't joined");
    here.ok("lock fcntl shared 0 50")?;
    there.ok("lock fcntl shared 0 50 try")?;
    there.refused("lock fcntl shared 0 51 try", libc::EAGAIN)?;
    here.refused("lock fcntl exclusive 0 10 try", libc::EAGAIN)?;
    there.ok("unlock fcntl 0 0")?;
    here.ok("lock fcntl exclusive 0 0")?;
    ensure!(there.ok("test 5000000000 1")? == format!("exclusive 0 0 {pid}"), "up to the end of all files");
    there.wait("lock fcntl shared 7 1")?;
    here.ok("lock fcntl shared 0 0")?;
    there.got(SOON).context("a level that was lowered")?;
    Ok(())
}

fn handed_on(a: &Path, b: &Path) -> Result<()> {
    let (mut here, mut there) = (Locker::new(&a.join("handed-on"))?, Locker::new(&b.join("handed-on"))?);
    for number in 1..=HANDED_ON {
        let kind = if number % 3 == 0 { "fcntl" } else { "flock" };
        let (one, other) = if number % 2 == 0 { (&mut here, &mut there) } else { (&mut there, &mut here) };
        one.ok(&format!("lock {kind} exclusive 0 0"))?;
        let seen = one.ok("read")?;
        ensure!(seen == (number - 1).to_string(), "{seen} is seen instead of {}", number - 1);
        let waits = number % 10 == 0;
        if waits {
            other.wait(&format!("lock {kind} exclusive 0 0"))?;
        }
        one.ok(&format!("write {number}"))?;
        one.ok(&format!("unlock {kind} 0 0"))?;
        if waits {
            other.got(SOON)?;
            ensure!(other.ok("read")? == number.to_string(), "who waited sees an old number");
            other.ok(&format!("unlock {kind} 0 0"))?;
        }
    }
    Ok(())
}

fn deadlock(a: &Path, b: &Path) -> Result<()> {
    let file = |directory: &Path, name: &str| directory.join(format!("dead-{name}"));
    let (mut one, mut two, mut three) =
        (Locker::new(&file(a, "x"))?, Locker::new(&file(b, "x"))?, Locker::new(&file(b, "x"))?);
    one.ok("lock fcntl exclusive 0 1")?;
    two.ok("lock fcntl exclusive 1 1")?;
    three.ok("lock fcntl exclusive 2 1")?;
    one.wait("lock fcntl exclusive 1 1")?;
    two.wait("lock fcntl shared 2 1")?;
    three.refused("lock fcntl exclusive 0 1", libc::EDEADLK)?;
    three.ok("unlock fcntl 2 1")?;
    two.got(SOON)?;
    two.ok("unlock fcntl 0 0")?;
    one.got(SOON)?;
    // Two readers that both want to write.
    one.ok("unlock fcntl 0 0")?;
    one.ok("lock fcntl shared 0 0")?;
    two.ok("lock fcntl shared 0 0")?;
    one.wait("lock fcntl exclusive 0 0")?;
    two.refused("lock fcntl exclusive 0 0", libc::EDEADLK)?;
    two.ok("unlock fcntl 0 0")?;
    one.got(SOON)?;
    Ok(())
}

fn waiters_go(a: &Path, b: &Path) -> Result<()> {
    for kind in ["flock", "fcntl"] {
        let mut holder = Locker::new(&a.join("waiters"))?;
        holder.ok(&format!("lock {kind} exclusive 0 0"))?;
        let wait = format!("lock {kind} exclusive 0 0");
        for (directory, signal) in
            [(a, Signal::SIGKILL), (b, Signal::SIGKILL), (b, Signal::SIGUSR1), (a, Signal::SIGTERM)]
        {
            let mut waiter = Locker::new(&directory.join("waiters"))?;
            waiter.ok("handle-usr1")?;
            waiter.wait(&wait)?;
            let began = Instant::now();
            kill(waiter.pid(), signal)?;
            if signal == Signal::SIGUSR1 {
                let answer = waiter.answer(SOON)?;
                ensure!(answer.as_deref() == Some("error 4"), "the signal made it answer {answer:?}");
            } else {
                waiter.child.wait()?;
            }
            ensure!(began.elapsed() < Duration::from_secs(3), "{signal} took {:?}", began.elapsed());
            holder.ok(&format!("unlock {kind} 0 0"))?;
            holder.ok(&format!("{wait} try")).context("somebody who is gone has the lock")?;
        }
        // Who came later isn't kept by who is gone.
        let (mut gone, mut next) = (Locker::new(&b.join("waiters"))?, Locker::new(&b.join("waiters"))?);
        gone.wait(&wait)?;
        next.wait(&wait)?;
        gone.kill()?;
        holder.ok(&format!("unlock {kind} 0 0"))?;
        next.got(SOON)?;
    }
    Ok(())
}

fn closing(a: &Path, b: &Path) -> Result<()> {
    let (mut here, mut there) = (Locker::new(&a.join("closing"))?, Locker::new(&b.join("closing"))?);
    for kind in ["flock", "fcntl"] {
        let take = format!("lock {kind} exclusive 0 0");
        here.ok(&take)?;
        there.wait(&take)?;
        here.ok("close")?;
        there.got(SOON)?;
        here.ok(&format!("open {}", a.join("closing").display()))?;
        here.wait(&take)?;
        there.kill()?;
        here.got(SOON)?;
        here.ok(&format!("unlock {kind} 0 0"))?;
        there = Locker::new(&b.join("closing"))?;
    }
    Ok(())
}

/// A process in a critical section on a mount.
fn critical(file: &Path, inside: &Path, kind: &str, stop_file: &Path) -> Result<Child> {
    let mut command = Command::new(binary("mooseng-lock")?);
    command.arg("critical").arg(file).arg(inside).arg(kind).arg(stop_file).stdout(Stdio::piped());
    command.spawn().context("starting mooseng-lock")
}

fn leaders_die(cluster: &DevCluster, a: &Path, b: &Path) -> Result<()> {
    let rounds: u32 = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(1).max(2);
    let mut held = Vec::new();
    for kind in ["flock", "fcntl"] {
        let file = format!("leaders-{kind}");
        let take = format!("lock {kind} exclusive 0 0");
        let mut holder = Locker::new(&a.join(&file))?;
        holder.ok(&take)?;
        let (mut here, mut there) = (Locker::new(&a.join(&file))?, Locker::new(&b.join(&file))?);
        here.wait(&take)?;
        there.wait(&take)?;
        held.push((kind, holder, vec![here, there]));
    }
    let stop_file = cluster.scratch().join("critical-stop");
    let mut workers: Vec<(PathBuf, Child)> = Vec::new();
    for kind in ["flock", "fcntl"] {
        for directory in [a, b, a, b] {
            let inside = cluster.scratch().join(format!("inside-{kind}"));
            let file = directory.join(format!("critical-{kind}"));
            workers.push((file.clone(), critical(&file, &inside, kind, &stop_file)?));
        }
    }
    for round in 0..rounds {
        cluster.wait_whole()?;
        let leader = cluster.leader()?;
        cluster.dev("kill", &leader)?;
        for (kind, holder, waiters) in &mut held {
            // Until there is a leader again this waits; then it is refused.
            let directory = if round % 2 == 0 { b } else { a };
            let mut third = Locker::new(&directory.join(format!("leaders-{kind}")))?;
            third.refused(&format!("lock {kind} shared 0 0 try"), libc::EAGAIN).context(leader.clone())?;
            waiters.iter().try_for_each(Locker::still_waits)?;
            holder.ok(&format!("write {round}"))?;
        }
        cluster.dev("start", &leader)?;
        for (file, worker) in &mut workers {
            ensure!(worker.try_wait()?.is_none(), "round {round}: a worker in {} ended", file.display());
        }
    }
    cluster.wait_whole()?;
    for (kind, mut holder, waiters) in held {
        holder.ok(&format!("unlock {kind} 0 0"))?;
        let mut waiters = waiters;
        for _ in 0..2 {
            let mut first = None;
            wait_for("one of those who wait to get the lock", SOON, || {
                let got = waiters
                    .iter()
                    .position(|w| matches!(w.answer(Duration::ZERO), Ok(Some(ok)) if ok.trim() == "ok"));
                first = Some(got.context("none has it")?);
                Ok(())
            })?;
            let mut first = waiters.swap_remove(first.context("none has it")?);
            std::thread::sleep(Duration::from_millis(300));
            waiters.iter().try_for_each(Locker::still_waits).context("two have it")?;
            first.ok(&format!("unlock {kind} 0 0"))?;
        }
    }
    std::fs::write(&stop_file, "")?;
    let mut counted = std::collections::BTreeMap::<String, u64>::new();
    for (file, worker) in workers {
        let output = worker.wait_with_output()?;
        ensure!(output.status.success(), "a worker in {} failed", file.display());
        let inside: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        *counted.entry(file.file_name().unwrap_or_default().to_string_lossy().into_owned()).or_default() +=
            inside;
    }
    for (name, inside) in counted {
        let number = std::fs::read(b.join(&name))?;
        let number = u64::from_be_bytes(number.get(..8).context("nothing was counted")?.try_into()?);
        ensure!(inside == number, "{name}: {inside} times inside, and {number} was counted");
        println!("    {name}: {inside} times inside, through {rounds} kills");
    }
    Ok(())
}

fn unmounted(cluster: &DevCluster, a: &Path) -> Result<()> {
    let c = cluster.scratch().join("unmounted");
    let pid = mount(cluster, &c)?;
    let mut there = Locker::new(&c.join("gone"))?;
    there.ok("lock flock exclusive 0 0")?;
    there.ok("lock fcntl exclusive 0 0")?;
    let (mut one, mut two) = (Locker::new(&a.join("gone"))?, Locker::new(&a.join("gone"))?);
    one.wait("lock flock exclusive 0 0")?;
    two.wait("lock fcntl exclusive 0 0")?;
    // It ends under its user, whom it gives a moment.
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let gone = Instant::now();
    wait_for("the mount's daemon to end", SOON, || {
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "it runs");
        Ok(())
    })?;
    let ended = gone.elapsed();
    one.got(Duration::from_secs(1)).with_context(|| format!("the daemon ended after {ended:?}"))?;
    two.got(Duration::from_secs(1))?;
    Ok(())
}

fn killed(cluster: &DevCluster, a: &Path) -> Result<()> {
    let c = cluster.scratch().join("killed");
    let pid = mount(cluster, &c)?;
    let (mut there, mut waits_there) = (Locker::new(&c.join("killed"))?, Locker::new(&c.join("killed"))?);
    there.ok("lock fcntl exclusive 0 0")?;
    waits_there.wait("lock fcntl exclusive 0 0")?;
    let mut here = Locker::new(&a.join("killed"))?;
    here.wait("lock fcntl exclusive 0 0")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let began = Instant::now();
    here.got(LEASE + NOTED)?;
    println!("    free after {:?}", began.elapsed());
    checked(cluster.mooseng(&["umount", "--lazy"]).arg(&c)).map(drop)
}

fn frozen(cluster: &DevCluster, a: &Path) -> Result<()> {
    let c = cluster.scratch().join("frozen");
    let pid = mount(cluster, &c)?;
    let (mut there, mut other) = (Locker::new(&c.join("frozen"))?, Locker::new(&c.join("frozen"))?);
    there.ok("lock flock exclusive 0 0")?;
    there.ok("write 1")?;
    let mut here = Locker::new(&a.join("frozen"))?;
    here.wait("lock flock exclusive 0 0")?;
    kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    let got = here.got(LEASE + NOTED);
    let wrote = got.and_then(|_| here.ok("write 2"));
    kill(Pid::from_raw(pid), Signal::SIGCONT)?;
    wrote?;
    there.refused("write 3", libc::EIO)?;
    there.refused("read", libc::EIO)?;
    there.refused("lock flock exclusive 0 0 try", libc::EIO)?;
    ensure!(other.ok("read")? == "2", "who had no lock isn't concerned");
    there.refused("unlock flock 0 0", libc::EIO)?;
    ensure!(there.ok("read")? == "2", "once unlocked, the file may be read again");
    there.wait("lock flock exclusive 0 0")?;
    here.ok("unlock flock 0 0")?;
    there.got(SOON)?;
    there.ok("write 4")?;
    there.ok("close")?;
    other.ok("close")?;
    checked(cluster.mooseng(&["umount"]).arg(&c)).map(drop)
}
