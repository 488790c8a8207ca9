//! A network of its own for each process, so that any two can be cut from each other.
//!
//! Each has a network namespace with one interface; all of them are joined by a bridge in a further namespace. A cut gives each of the two
//! a neighbour's address that nobody has: packets leave and arrive nowhere, silently, as with a switch that failed.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::cluster::checked;

/// Of every process.
const DEVICE: &str = "eth0";
/// An address that no interface has.
const NOBODY: &str = "02:00:00:00:ff:ff";

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
        let tag = format!("mnf{}", std::process::id());
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

    /// Undoes a cut.
    pub fn mend(&self, one: &str, other: &str) -> Result<()> {
        self.join(one, other, true)
    }

    fn join(&self, one: &str, other: &str, whole: bool) -> Result<()> {
        let (one, other) = (self.member(one)?, self.member(other)?);
        for (from, to) in [(one, other), (other, one)] {
            let hardware = if whole { hardware(to.number) } else { NOBODY.to_owned() };
            let (own, to) = (self.namespace(from.number), address(to.number));
            ip(&format!("-n {own} neigh replace {to} lladdr {hardware} dev {DEVICE} nud permanent"))?;
        }
        Ok(())
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
    use std::net::{TcpListener, TcpStream};
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

    #[test]
    fn two_are_cut_from_each_other_and_joined_again() {
        if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
            println!("skipped: networks need root and iproute2");
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
