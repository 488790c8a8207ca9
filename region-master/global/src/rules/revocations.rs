//! Whom the cluster refuses (docs/decisions/0040-revocations.md): the global group decides it, or the region's group where a cluster has no other.
//!
//! They have a version of their own, beside that of everything else: a revocation is no reason to begin a move of a home anew, nor the other way round. It
//! grows with each change, and is never below the time of the change in milliseconds: a store that was made anew from an older dump goes on with higher ones
//! than those that daemons have kept, which take no lower one for news.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_schema::revocation::{self, Revocation, RevocationRecord};
use mooseng_schema::{Record, SchemaError, number};
use mooseng_store::{KeyRange, Read, Transaction};
use mooseng_wire::Identity;
use mooseng_wire::level::Feature;
use mooseng_wire::revocations::{AGREED_MAX, Agreed, Revocations, entry};

use super::{Ruled, get, level, pairs};
use crate::key;

/// Bytes of a reason at most.
pub const REASON_BYTES_MAX: usize = 200;
/// A certificate's entry stays so long after its end: clocks differ, and whoever's is behind takes the certificate for valid still.
pub const KEPT_AFTER_END_S: i64 = 3_600;

/// Which store they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The global group's.
    Cluster,
    /// That of the region's group.
    Region,
}

/// Why they aren't changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It isn't revoked.
    #[error("{0} isn't revoked; `mooseng certs revoked` lists what is")]
    NotRevoked(String),
    /// It is nothing that a certificate has.
    #[error(
        "{0:?} is neither a serial number in hexadecimal digits nor a SPIFFE id (spiffe://CLUSTER/REGION/ROLE/NAME)"
    )]
    Malformed(String),
    /// It is told too much.
    #[error("the reason has {0} bytes; {REASON_BYTES_MAX} is the most")]
    Reason(usize),
    /// A name doesn't end.
    #[error(
        "{0} is a name, under which certificates may be issued at any time: it has no end. Revoke the serial number of the one certificate instead, or leave the end out"
    )]
    NameWithEnd(String),
    /// It would be of no effect.
    #[error("the certificate {0} has ended already, and is refused for that")]
    Ended(String),
    /// There are too many.
    #[error(
        "{AGREED_MAX} certificates and names are revoked already, which is the most: take back those that aren't needed any more (`mooseng certs unrevoke`). Serial numbers whose end was given go by themselves once that is past"
    )]
    TooMany,
    /// Consensus takes it.
    #[error(
        "{0} is a master that takes part: without it masters couldn't agree any more, not even on taking this back. Take it out of its group first (`mooseng members remove`, or `mooseng regions remove` where it is its region's last one). If it is its key that fell into wrong hands, revoke the serial number of its certificate, and issue a new one"
    )]
    TakesPart(String),
}

impl Space {
    fn key(self, what: &str) -> Vec<u8> {
        match self {
            Self::Cluster => key::revocation(what),
            Self::Region => revocation::key(what),
        }
    }

    fn keys(self) -> KeyRange {
        match self {
            Self::Cluster => key::revocations(),
            Self::Region => revocation::keys(),
        }
    }

    fn parse(self, of: &[u8]) -> Result<String, SchemaError> {
        match self {
            Self::Cluster => key::parse_revocation(of),
            Self::Region => revocation::parse_key(of),
        }
    }

    fn version_key(self) -> Vec<u8> {
        match self {
            Self::Cluster => key::revocations_version(),
            Self::Region => revocation::version_key(),
        }
    }
}

/// What is refused, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// 0 where nothing was ever revoked.
    pub version: u64,
    /// By serial number or SPIFFE id.
    pub revoked: BTreeMap<String, Revocation>,
}

impl Known {
    /// As daemons go by it.
    pub fn agreed(&self) -> Agreed {
        Agreed { version: self.version, revoked: self.revoked.keys().cloned().collect::<Revocations>() }
    }

    /// With what another store refuses, at the higher version of both: while a region's own revocations go to the global group.
    pub fn and(mut self, other: Self) -> Self {
        self.version = self.version.max(other.version);
        for (what, revocation) in other.revoked {
            self.revoked.entry(what).or_insert(revocation);
        }
        self
    }

    /// Whether some entry isn't needed any more.
    pub fn has_ended(&self, now_unix: i64) -> bool {
        self.revoked.values().any(|revocation| has_ended(revocation, now_unix))
    }
}

fn has_ended(revocation: &Revocation, now_unix: i64) -> bool {
    revocation.expires_unix.is_some_and(|end| end.saturating_add(KEPT_AFTER_END_S) < now_unix)
}

/// The version of the revocations.
pub async fn version(tx: &impl Transaction, space: Space, read: Read) -> Ruled<u64> {
    Ok(number::decode(tx.get(&space.version_key(), read).await?.as_ref())?)
}

/// All of them.
pub async fn known(tx: &impl Transaction, space: Space, read: Read) -> Ruled<Known> {
    let version = version(tx, space, read).await?;
    let mut revoked = BTreeMap::new();
    for (key, value) in pairs(tx, space.keys(), read).await? {
        revoked.insert(space.parse(&key)?, RevocationRecord::from_value(&value)?.into());
    }
    Ok(Known { version, revoked })
}

async fn changed(tx: &impl Transaction, space: Space, now_ms: u64, at_least: u64) -> Ruled<u64> {
    let before = version(tx, space, Read::Conflicting).await?.max(at_least);
    let next = before.saturating_add(1).max(now_ms);
    tx.set(&space.version_key(), &number::encode(next));
    Ok(next)
}

/// What is to be refused, in the one way to write it, if it may be: `takes_part` are the SPIFFE ids of the masters that do.
pub fn may_revoke(
    what: &str,
    revocation: &Revocation,
    takes_part: &BTreeSet<String>,
    now_unix: i64,
) -> Result<String, Refused> {
    let what = entry(what).ok_or_else(|| Refused::Malformed(what.to_owned()))?;
    if revocation.reason.len() > REASON_BYTES_MAX {
        return Err(Refused::Reason(revocation.reason.len()));
    }
    match (Identity::parse(&what), revocation.expires_unix) {
        (Ok(_), Some(_)) => Err(Refused::NameWithEnd(what)),
        (Ok(_), None) if takes_part.contains(&what) => Err(Refused::TakesPart(what)),
        (Err(_), Some(end)) if end < now_unix => Err(Refused::Ended(what)),
        _ => Ok(what),
    }
}

/// Refuses these from now on. One that is refused already stays so for the longer of both times; its first reason stays. Those that have ended go.
pub async fn revoke(
    tx: &impl Transaction,
    space: Space,
    wanted: &BTreeMap<String, Revocation>,
    (now_ms, at_least): (u64, u64),
) -> Ruled<u64> {
    let mut there = known(tx, space, Read::Conflicting).await?.revoked;
    let swept = clear_ended(tx, space, &mut there, now_ms);
    let mut news = false;
    for (what, revocation) in wanted {
        let now = match there.get(what) {
            None => revocation.clone(),
            Some(before) => {
                let longer = before.expires_unix.zip(revocation.expires_unix).map(|(a, b)| a.max(b));
                Revocation { expires_unix: longer, ..before.clone() }
            }
        };
        if there.get(what) != Some(&now) {
            tx.set(&space.key(what), &RevocationRecord::from(&now).to_value());
            there.insert(what.clone(), now);
            news = true;
        }
    }
    if there.len() > AGREED_MAX {
        return Err(Refused::TooMany.into());
    }
    if news && space == Space::Cluster {
        level::require(tx, Feature::Revocations).await?;
    }
    match news || swept {
        true => changed(tx, space, now_ms, at_least).await,
        false => version(tx, space, Read::Conflicting).await,
    }
}

/// Takes one back.
pub async fn unrevoke(tx: &impl Transaction, space: Space, what: &str, now_ms: u64) -> Ruled<u64> {
    let what = entry(what).ok_or_else(|| Refused::Malformed(what.to_owned()))?;
    let key = space.key(&what);
    if get::<RevocationRecord>(tx, &key, Read::Conflicting).await?.is_none() {
        return Err(Refused::NotRevoked(what).into());
    }
    tx.clear(&key);
    changed(tx, space, now_ms, 0).await
}

/// Lets go of those whose certificates have ended.
pub async fn sweep(tx: &impl Transaction, space: Space, now_ms: u64) -> Ruled<u64> {
    let mut there = known(tx, space, Read::Conflicting).await?.revoked;
    match clear_ended(tx, space, &mut there, now_ms) {
        true => changed(tx, space, now_ms, 0).await,
        false => version(tx, space, Read::Conflicting).await,
    }
}

/// Lets go of those that another store has taken over: what was there stays in force by that one's list, so that the version stays, too.
pub async fn hand_over(tx: &impl Transaction, space: Space, taken: &BTreeSet<String>) -> Ruled<()> {
    // A change that comes in between isn't passed by.
    version(tx, space, Read::Conflicting).await?;
    taken.iter().for_each(|what| tx.clear(&space.key(what)));
    Ok(())
}

fn clear_ended(
    tx: &impl Transaction,
    space: Space,
    there: &mut BTreeMap<String, Revocation>,
    now_ms: u64,
) -> bool {
    let now_unix = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
    let before = there.len();
    there.retain(|what, revocation| {
        let ended = has_ended(revocation, now_unix);
        if ended {
            tx.clear(&space.key(what));
        }
        !ended
    });
    there.len() < before
}
