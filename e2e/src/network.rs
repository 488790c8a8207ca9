//! A network of its own for each process or each region, so that any two can be cut from each other, or one from all.
//!
//! Each has a network namespace with one interface; all of them are joined by a bridge in a further namespace. A cut between two gives each of
//! them - of one way, only the one that sends - a neighbour's address that nobody has: packets leave and arrive nowhere, silently, as with a switch that failed. One is cut off from all
//! others by rules of nftables in its own namespace, which drop what goes out, what comes in, or both. What several processes within one
//! namespace say to each other goes over its loopback, and is never cut.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::cluster::checked;

/// Of every process.
const DEVICE: &str = "eth0";
/// The table of nftables that cuts one off.
const TABLE: &str = "inet cut";
/// What namespaces of all campaigns begin with.
const PREFIX: &str = "mnf";
/// An address that no interface has.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// Networks that this process made so far: tests run side by side.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// What is lost when one is cut off from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing gets out or in.
    Both,
    /// What it sends is lost.
    Out,
    /// What it is sent is lost.
    In,
}

/// The networks; they end with the value.
pub struct Network {
    tag: String,
    members: Vec<Member>,
}

struct Member {
    name: String,
    number: usize,
    namespace: File,
}

fn ip(words: &str) -> Result<()> {
    checked(Command::new("ip").args(words.split_whitespace())).map(drop)
}

fn address(number: usize) -> String {
    format!("10.98.7.{number}")
}

fn hardware(number: usize) -> String {
    format!("02:00:00:00:07:{number:02x}")
}

impl Network {
    /// One for each name.
    pub fn new(names: &[String]) -> Result<Self> {
        sweep();
        let tag = format!("{PREFIX}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        // From here on, whatever fails, what was made is taken away.
        let mut network = Self { tag, members: Vec::new() };
        let hub = network.namespace(0);
        ip(&format!("netns add {hub}")).context("a network namespace can't be made; root is needed")?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for (number, name) in (1..).zip(names) {
            let own = network.namespace(number);
            ip(&format!("netns add {own}"))?;
            let namespace = File::open(format!("/run/netns/{own}"))?;
            network.members.push(Member { name: name.clone(), number, namespace });
            ip(&format!("link add port{number} netns {hub} type veth peer name {DEVICE} netns {own}"))?;
            ip(&format!("-n {hub} link set port{number} master bridge up"))?;
            ip(&format!("-n {own} link set {DEVICE} address {} up", hardware(number)))?;
            ip(&format!("-n {own} addr add {}/24 dev {DEVICE}", address(number)))?;
            ip(&format!("-n {own} link set lo up"))?;
        }
        Ok(network)
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.tag)
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.members.iter().find(|m| m.name == name).with_context(|| format!("{name} has no network"))
    }

    /// A process's address.
    pub fn address(&self, name: &str) -> Result<String> {
        Ok(address(self.member(name)?.number))
    }

    /// Lets a command run in the network of `name`.
    pub fn enter(&self, name: &str, command: &mut Command) -> Result<()> {
        let namespace = self.member(name)?.namespace.try_clone()?;
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?));
        }
        Ok(())
    }

    /// Cuts two from each other.
    pub fn cut(&self, one: &str, other: &str) -> Result<()> {
        self.join(one, other, false)
    }

    /// What `from` sends to `to` is lost; the other way everything arrives.
    pub fn cut_one_way(&self, from: &str, to: &str) -> Result<()> {
        self.point(self.member(from)?, self.member(to)?, false)
    }

    /// Undoes a cut, also of one way.
    pub fn mend(&self, one: &str, other: &str) -> Result<()> {
        self.join(one, other, true)
    }

    /// Cuts one off from all others; what it was cut off by before is replaced.
    pub fn isolate(&self, name: &str, way: Way) -> Result<()> {
        self.restore(name)?;
        let mut rules = format!("add table {TABLE}\n");
        for (hook, word, lost) in
            [("input", "iifname", way != Way::Out), ("output", "oifname", way != Way::In)]
        {
            if lost {
                rules += &format!("add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; }}\n");
                rules += &format!("add rule {TABLE} {hook} {word} {DEVICE} drop\n");
            }
        }
        self.nft(name, &rules).with_context(|| format!("cutting off {name}"))
    }

    /// Bytes that have left its interface so far.
    pub fn bytes_sent(&self, name: &str) -> Result<u64> {
        let own = self.namespace(self.member(name)?.number);
        let told = checked(Command::new("ip").args(["-n", &own, "-s", "-j", "link", "show", "dev", DEVICE]))?;
        let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
        told[0]["stats64"]["tx"]["bytes"].as_u64().with_context(|| format!("no counter in {told}"))
    }

    /// Undoes [`Self::isolate`].
    pub fn restore(&self, name: &str) -> Result<()> {
        // Added first, for a table that isn't there can't be deleted.
        self.nft(name, &format!("add table {TABLE}\ndelete table {TABLE}\n"))
            .with_context(|| format!("letting {name} take part again"))
    }

    /// All of the rules at once, or none.
    fn nft(&self, name: &str, rules: &str) -> Result<()> {
        let own = self.namespace(self.member(name)?.number);
        let mut child = Command::new("ip")
            .args(["netns", "exec", &own, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting nft; it is in the package nftables")?;
        child.stdin.take().context("nft has no input")?.write_all(rules.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn join(&self, one: &str, other: &str, whole: bool) -> Result<()> {
        let (one, other) = (self.member(one)?, self.member(other)?);
        self.point(one, other, whole)?;
        self.point(other, one, whole)
    }

    /// What `from` sends to `to` goes there, or to nobody.
    fn point(&self, from: &Member, to: &Member, whole: bool) -> Result<()> {
        let hardware = if whole { hardware(to.number) } else { NOBODY.to_owned() };
        let (own, to) = (self.namespace(from.number), address(to.number));
        ip(&format!("-n {own} neigh replace {to} lladdr {hardware} dev {DEVICE} nud permanent"))
    }
}

/// Takes away what campaigns left that were killed.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
        let gone =
            |pid: &str| pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if owner.is_some_and(gone) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for number in 0..=self.members.len() {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(number)]).output();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use super::*;

    /// Runs something in the network of `name`, on a thread of its own.
    fn inside<T: Send>(network: &Network, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = network.member(name).unwrap().namespace.try_clone().unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn able() -> bool {
        let there = |program: &str, word: &str| Command::new(program).arg(word).output().is_ok();
        let able = nix::unistd::geteuid().is_root() && there("ip", "-V") && there("nft", "-v");
        if !able {
            println!("skipped: networks need root, iproute2 and nftables");
        }
        able
    }

    #[test]
    fn one_is_cut_off_from_all_either_way_and_takes_part_again() {
        if !able() {
            return;
        }
        let network = Network::new(&["a", "b"].map(str::to_owned)).unwrap();
        let socket = |name: &str| {
            let socket = inside(&network, name, || UdpSocket::bind("0.0.0.0:7001")).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        };
        let (a, b) = (socket("a"), socket("b"));
        // What is dropped on its way out is told to the sender.
        let gets = |from: &UdpSocket, to: &UdpSocket, name: &str| {
            let _ = from.send_to(b"x", format!("{}:7001", network.address(name).unwrap()));
            to.recv(&mut [0; 8]).is_ok()
        };
        let both = || (gets(&a, &b, "b"), gets(&b, &a, "a"));
        assert_eq!(both(), (true, true));
        for (way, left) in [(Way::Both, (false, false)), (Way::Out, (false, true)), (Way::In, (true, false))]
        {
            network.isolate("a", way).unwrap();
            assert_eq!(both(), left, "{way:?}");
        }
        network.restore("a").unwrap();
        network.restore("a").unwrap();
        assert_eq!(both(), (true, true));
    }

    #[test]
    fn one_way_is_cut_and_the_other_stays() {
        if !able() {
            return;
        }
        let network = Network::new(&["a", "b"].map(str::to_owned)).unwrap();
        let socket = |name: &str| {
            let socket = inside(&network, name, || UdpSocket::bind("0.0.0.0:7002")).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        };
        let (a, b) = (socket("a"), socket("b"));
        let gets = |from: &UdpSocket, to: &UdpSocket, name: &str| {
            let _ = from.send_to(b"x", format!("{}:7002", network.address(name).unwrap()));
            to.recv(&mut [0; 8]).is_ok()
        };
        let both = || (gets(&a, &b, "b"), gets(&b, &a, "a"));
        assert_eq!(both(), (true, true));
        network.cut_one_way("a", "b").unwrap();
        assert_eq!(both(), (false, true));
        network.mend("a", "b").unwrap();
        assert_eq!(both(), (true, true));
    }

    #[test]
    fn two_are_cut_from_each_other_and_joined_again() {
        if !able() {
            return;
        }
        let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let network = Network::new(&names).unwrap();
        let listener = inside(&network, "a", || TcpListener::bind("0.0.0.0:7000")).unwrap();
        let to = format!("{}:7000", network.address("a").unwrap()).parse().unwrap();
        let reached = |from: &str| {
            inside(&network, from, || TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
        };
        assert!(reached("b"));
        network.cut("a", "b").unwrap();
        assert!(!reached("b"));
        assert!(reached("c"), "the third isn't concerned");
        network.mend("b", "a").unwrap();
        assert!(reached("b"));
        drop(listener);
    }
}
