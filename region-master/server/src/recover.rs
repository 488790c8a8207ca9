//! `mooseng-master recover`: a region goes on from the one master that is left, where a majority of its masters is lost for good.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use mooseng_embedded::{Base, BaseError, FjallBase};
use mooseng_ports::disk::Disk;
use mooseng_raft::Node;
use mooseng_raft::recover::{self, RecoverError, Recovered, Remains};
use mooseng_transport::{CallFailure, Link, LinkOptions, Network};
use mooseng_wal::{Options as WalOptions, Wal, WalError};
use mooseng_wire::Role;
use mooseng_wire::method::Method;
use mooseng_wire::session::{Renew, Renewed};

use crate::config::MasterConfig;
use crate::owner::{self, OwnerError};

/// How long a master may take to show that it is alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(3);

/// What somebody says who wants a region to be recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Masters that are lost for good.
    pub lost: BTreeSet<u64>,
    /// That they never come back.
    pub never_return: bool,
    /// That this master's log may lack acknowledged entries that it knows of.
    pub although_incomplete: bool,
}

/// Why a region isn't recovered.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum Refused {
    #[error("master {id} at {address} answers: as long as it is there it isn't lost. {}", if *.own { "Stop it first." } else { "Stop it for good before this one goes on without it, or let it take part." })]
    Alive { id: u64, address: String, own: bool },
    #[error("there is no master {0} in the group; its members are {1}")]
    NoMember(u64, String),
    #[error("master {0} is the one that the region would be recovered from: it can't be among the lost ones")]
    Oneself(u64),
    #[error(
        "masters {0} aren't among the lost ones, and are a majority: start them, and the region goes on by itself, with all that was acknowledged. If some of them are lost for good, too, name them with --lost"
    )]
    Majority(String),
    #[error(
        "the masters {0} would be left behind for good, and what they had acknowledged without this one would be lost. If they never come back, say so: --i-know-that-the-lost-masters-never-return"
    )]
    Unsaid(String),
    #[error(
        "this master's log began empty and was still being filled: acknowledged entries are missing in it{0}. If there is no better one, say so: --although-it-is-incomplete"
    )]
    Incomplete(String),
    #[error(
        "this machine's clock says {now}, but {what} is of {then}: what the region gives from now on would be told from what was lost by wrong numbers. Set the clock right first"
    )]
    Clock { now: String, what: &'static str, then: String },
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Log(#[from] WalError),
    #[error("{0} (a master that runs on this directory must be stopped)")]
    Store(#[from] BaseError),
    #[error("there is nothing of a master in {}: is `state_dir` right? What was lost with a part of it can't be recovered from the rest", .0.display())]
    Nothing(PathBuf),
}

fn list(ids: impl IntoIterator<Item = u64>) -> String {
    let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    ids.join(", ")
}

/// A stopped master's disk.
pub struct Disks {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    log: Wal,
    /// What is there.
    pub remains: Remains,
    /// When the log was written last.
    pub written: Option<SystemTime>,
}

impl Disks {
    /// Opens it. Nothing is changed but what any start mends (a torn end of the log).
    pub fn open(config: &MasterConfig, disk: Arc<dyn Disk>) -> Result<Self, Refused> {
        owner::check(&*disk, config)?;
        let dir = config.state_dir.join("raft");
        let names = std::fs::read_dir(&dir).map_err(|_| Refused::Nothing(dir.clone()))?;
        let segments = names.flatten().filter(|n| n.path().extension().is_some_and(|e| e == "wal"));
        let written = segments.filter_map(|n| n.metadata().ok()?.modified().ok()).max();
        if written.is_none() {
            return Err(Refused::Nothing(dir));
        }
        let store = config.state_dir.join("store");
        if !store.is_dir() {
            // Opening would make an empty one.
            return Err(Refused::Nothing(store));
        }
        let store = FjallBase::open(&store)?;
        let options = WalOptions { segment_bytes: config.raft.segment_bytes, ..WalOptions::default() };
        let log = Wal::open(disk.clone(), &dir, options)?;
        let remains = recover::look(&*disk, &dir, &log, &store.position().position)?;
        Ok(Self { disk, dir, log, remains, written })
    }

    /// Refuses what somebody says if it can't be so, or isn't said.
    pub fn judge(&self, own: u64, word: &Word) -> Result<(), Refused> {
        let members = &self.remains.members;
        if let Some(id) = word.lost.iter().find(|id| !members.contains_key(id)) {
            return Err(Refused::NoMember(*id, list(members.keys().copied())));
        }
        if word.lost.contains(&own) {
            return Err(Refused::Oneself(own));
        }
        let left: BTreeSet<u64> = members.keys().copied().filter(|id| !word.lost.contains(id)).collect();
        if self.remains.can_decide(&left) {
            return Err(Refused::Majority(list(left)));
        }
        if !word.never_return {
            return Err(Refused::Unsaid(list(members.keys().copied().filter(|id| *id != own))));
        }
        match self.remains.lacking {
            Some(lacking) if !word.although_incomplete => Err(Refused::Incomplete(match lacking {
                u64::MAX => String::new(),
                index => format!(", up to entry {index}"),
            })),
            _ => Ok(()),
        }
    }

    /// Makes the group of this master alone.
    pub fn recover(&self, own: u64, now: SystemTime) -> Result<Recovered, Refused> {
        clock_is_plausible(now, "the newest entry of the log", self.written)?;
        let now_s = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(recover::alone(&*self.disk, &self.dir, &self.log, &self.remains, own, now_s)?)
    }
}

/// How far clocks of a region may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(3600);
/// No clock that is right says more: the year 2100.
const CLOCK_MAX: Duration = Duration::from_secs(4_102_444_800);

/// Refuses a clock that is behind what it was when something was written, or is wrong in any case: lines, terms and ids after a recovery count by it.
pub fn clock_is_plausible(
    now: SystemTime,
    what: &'static str,
    written: Option<SystemTime>,
) -> Result<(), Refused> {
    let then = written.unwrap_or(SystemTime::UNIX_EPOCH);
    let behind = then.duration_since(now).is_ok_and(|behind| behind > CLOCKS_APART);
    if behind || now > SystemTime::UNIX_EPOCH + CLOCK_MAX {
        return Err(Refused::Clock { now: utc(now), what, then: utc(then) });
    }
    Ok(())
}

/// Refuses while any of these masters answers, this one included.
pub async fn nobody_answers(
    network: Arc<dyn Network>,
    own: u64,
    own_address: &str,
    members: &BTreeMap<u64, Node>,
) -> Result<(), Refused> {
    let others = members.iter().filter(|(id, _)| **id != own).map(|(id, node)| (*id, node.address.clone()));
    let asked = others.chain([(own, own_address.to_owned())]).map(|(id, address)| {
        let link = Link::new(network.clone(), address.clone(), Role::Master, LinkOptions::default());
        async move {
            let answer = link.request::<_, Renewed>(Method::Renew, &Renew::default(), ALIVE_WITHIN).await;
            link.close();
            // One that takes the call and doesn't answer is there, too.
            let alive = matches!(answer, Ok(_) | Err(CallFailure::Remote(_) | CallFailure::Timeout(_)));
            alive.then_some((id, address))
        }
    });
    match join_all(asked).await.into_iter().flatten().next() {
        Some((id, address)) => Err(Refused::Alive { id, address, own: id == own }),
        None => Ok(()),
    }
}

/// What is on the disk, for people.
pub struct Shown<'a> {
    /// The disk.
    pub disks: &'a Disks,
    /// Whose it is.
    pub own: u64,
    /// Where.
    pub state_dir: &'a Path,
    /// The time now.
    pub now: SystemTime,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remains = &self.disks.remains;
        writeln!(f, "The disk of master {} ({}):", self.own, self.state_dir.display())?;
        let mut members = String::new();
        for (id, node) in &remains.members {
            let _ = write!(
                members,
                "{}{id} ({} at {})",
                if members.is_empty() { "" } else { ", " },
                node.name,
                node.address
            );
        }
        writeln!(f, "  members            {members}")?;
        writeln!(f, "  last entry         {} of term {}", remains.last.1, remains.last.0)?;
        match remains.committed {
            Some(index) => writeln!(f, "  known acknowledged up to entry {index} at least")?,
            None => writeln!(f, "  known acknowledged nothing is noted")?,
        }
        writeln!(f, "  in the store       up to entry {}; the rest is in the log", remains.applied)?;
        if remains.ahead.is_some() {
            writeln!(
                f,
                "  in the log         less than that: a snapshot was being installed, and the store has all that is here"
            )?;
        }
        if let Some(written) = self.disks.written {
            let ago = self.now.duration_since(written).map_or(0, |d| d.as_secs());
            writeln!(f, "  last written       {} ({ago} s ago)", utc(written))?;
        }
        Ok(())
    }
}

/// What may be missing afterwards, for people.
pub fn missing(remains: &Remains) -> String {
    let (_, last) = remains.last;
    let kept = match remains.committed {
        Some(committed) if committed < last => format!(
            "Entries {} to {last} are kept, although it isn't known whether they were acknowledged: changes whose callers got no answer may be there.",
            committed + 1
        ),
        _ => format!("All {last} entries of its log are kept."),
    };
    let lacking = match remains.lacking {
        Some(u64::MAX) => {
            " This log was still being filled: acknowledged entries before its end may be missing, too."
                .into()
        }
        Some(index) => format!(
            " This log was still being filled: entries up to {index} were acknowledged and are missing."
        ),
        None => String::new(),
    };
    format!(
        "What may be missing: changes that the lost masters acknowledged behind entry {last}, while this one was down, cut off or slow. It can't be known whether \
         there were any; if this master led until the end, there were none. {kept}{lacking} Chunks that only missing changes name stay where they are: no file has them, and nobody deletes them."
    )
}

/// A time as people and logs write it, to the second.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // The civil date of a day number, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_do() {
        let at = |s| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_795_806_504), "2026-11-27T19:08:24Z");
    }
}
