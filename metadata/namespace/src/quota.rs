//! Quotas (docs/decisions/0012-quotas.md): whom changes count for, limits, and the counting of a directory that isn't empty.
//!
//! ```text
//!   set --> counting: the directory is marked, and queued --step()--> its entries are marked, directories among them queued
//!                                                  queue empty --> enforced
//!   clear --> clearing: the same way back          queue empty --> no quota
//! ```
//! Several of these walks may pass one directory: a quota is set below one that is being cleared, say. Whoever gives a directory another mark, a walk or
//! a rename, queues it with both quotas (`queue_for_both`). So each list knows of all that its own quota waits for, whoever marked it:
//! - *counting or enforced*: a directory with this mark is in the list while an entry of it may lack the mark. New entries have it.
//! - *clearing*: a directory without this mark is in the list while an entry of it may have it.
//!
//! With an empty list there is nothing more of that, and a quota ends whatever other walks do: no walk waits for another. Each comes to an end, as
//! a mark is given only to what hasn't got that of the directory above: each of these settings goes once down the tree.
//!
//! Whoever commits a change compares its charges ([`Touched::charges`]) with the limits first: operations themselves don't.

use bytes::Bytes;
use mooseng_schema::dirent::{self, Cookie, DirentRecord};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::quota::{self, WorkRecord};
pub use mooseng_schema::quota::{Account, Charge, QuotaRecord, State, Usage};
use mooseng_schema::{Record, number};
use mooseng_store::{Atomic, KeyRange, RangeLimit, Read, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::{InodeId, VolumeId};

use crate::error::OpError;
use crate::touched::{Charges, Touched, difference};
use crate::view::is_directory;
use crate::{trash, upkeep};

/// Quotas that a volume has at most.
pub const QUOTAS_MAX: usize = 20_000;
/// How deep a directory may lie that gets a quota.
const DEPTH_MAX: usize = 4_096;

/// Adds up what changed.
pub(crate) fn add<T: Transaction>(tx: &T, inode: InodeId, charges: &Charges) {
    for (account, usage) in charges {
        let keys = quota::usage_keys(*account, inode);
        for (key, delta) in keys.iter().zip([usage.bytes, usage.inodes]) {
            if delta != 0 {
                tx.atomic(key, &number::encode_signed(delta), Atomic::Add);
            }
        }
    }
}

/// An inode's record changed, outside of an operation: adds up what that changes.
pub(crate) fn recount<T: Transaction>(tx: &T, inode: InodeId, before: &Charge, after: &InodeRecord) {
    add(tx, inode, &difference(Some(*before), Some(Charge::of(after))));
}

/// What counts for an account.
pub async fn usage<T: Transaction>(tx: &T, volume: VolumeId, account: Account) -> Result<Usage, OpError> {
    let range = quota::usage_range(volume, account);
    let page = tx.get_range(range, RangeLimit::default(), Read::Snapshot).await?;
    Ok(quota::read_usage(volume, &page.pairs)?)
}

/// An account's limits.
pub async fn find<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    account: Account,
    read: Read,
) -> Result<Option<QuotaRecord>, OpError> {
    let value = tx.get(&quota::key(volume, account), read).await?;
    Ok(value.map(|value| QuotaRecord::from_value(&value)).transpose()?)
}

/// The directory at a path from the root of its volume; none where there is no directory. Symbolic links aren't followed.
pub async fn directory_at<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    path: &[u8],
) -> Result<Option<InodeId>, OpError> {
    let Some(at) = upkeep::inode_at(tx, volume, path).await? else { return Ok(None) };
    Ok(load(tx, at).await?.filter(|record| is_directory(record.kind)).map(|_| at))
}

/// The quota for which what is made in a directory counts; none for none.
pub async fn of_directory<T: Transaction>(tx: &T, directory: InodeId) -> Result<Option<Account>, OpError> {
    let record = load(tx, directory).await?;
    Ok(record.filter(|record| record.quota != 0).map(|record| Account::Directory(record.quota)))
}

/// A directory's path; empty where it is gone.
pub async fn path<T: Transaction>(tx: &T, directory: InodeId) -> Result<Bytes, OpError> {
    match load(tx, directory).await? {
        Some(record) if !record.orphan => trash::path_of(tx, directory).await,
        _ => Ok(Bytes::new()),
    }
}

/// A page of a volume's limits, behind an account.
pub async fn list<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<Account>,
    max: usize,
) -> Result<Vec<(Account, QuotaRecord)>, OpError> {
    let all = quota::range(volume);
    let begin = after.map_or(all.begin, |account| {
        let mut key = quota::key(volume, account);
        key.push(0);
        key.into()
    });
    let limit = RangeLimit { pairs_max: max, ..RangeLimit::default() };
    let page = tx.get_range(KeyRange { begin, end: all.end }, limit, Read::Snapshot).await?;
    let mut found = Vec::new();
    for (key, value) in &page.pairs {
        if let Some(account) = quota::parse_key(volume, key)? {
            found.push((account, QuotaRecord::from_value(value)?));
        }
    }
    Ok(found)
}

/// Why limits aren't set.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// It isn't a living directory.
    #[error("there is no such directory; only directories and users have quotas")]
    NoDirectory,
    /// Another volume is joined at it.
    #[error(
        "volume {0} is joined at it, and has quotas of its own: repeat the command, which sets one there (`mooseng` of this release or a later one)"
    )]
    OtherVolume(VolumeId),
    /// The directory lies in the tree of another quota.
    #[error(
        "the directory lies below one that has a quota, inode {0}: quotas aren't nested, so change that one, or clear it first"
    )]
    Inside(u64),
    /// Another quota's directory lies in its tree.
    #[error(
        "a directory below it has a quota, inode {0}: quotas aren't nested, so clear that one first (`mooseng quota list`)"
    )]
    Around(u64),
    /// The quota is being given up.
    #[error(
        "the directory's quota is being cleared; set it again when `mooseng quota list` doesn't show it any more"
    )]
    Clearing,
    /// There is none.
    #[error("there is no such quota; `mooseng quota list` shows which there are")]
    NotThere,
    /// There are too many.
    #[error("there are {QUOTAS_MAX} quotas, which is the most there may be; clear some")]
    TooMany,
}

/// Sets an account's limits. A directory's are enforced once its contents are counted ([`step`]).
pub async fn set<T: Transaction>(
    tx: &T,
    touched: &Touched,
    now_ns: i64,
    volume: VolumeId,
    account: Account,
    bytes_max: Option<u64>,
    inodes_max: Option<u64>,
) -> Result<Result<(), Refused>, OpError> {
    let key = quota::key(volume, account);
    let fresh = QuotaRecord { bytes_max, inodes_max, state: State::Enforced.into(), set_ns: now_ns };
    if let Some(record) = find(tx, volume, account, Read::Conflicting).await? {
        if record.state() == State::Clearing {
            return Ok(Err(Refused::Clearing));
        }
        tx.set(&key, &QuotaRecord { state: record.state, ..fresh }.to_value());
        return Ok(Ok(()));
    }
    // Other quotas that are set at the same moment conflict with this one.
    let limit = RangeLimit { pairs_max: QUOTAS_MAX, ..RangeLimit::default() };
    let others = tx.get_range(quota::range(volume), limit, Read::Conflicting).await?;
    if others.more || others.pairs.len() >= QUOTAS_MAX {
        return Ok(Err(Refused::TooMany));
    }
    let Account::Directory(id) = account else {
        tx.set(&key, &fresh.to_value());
        return Ok(Ok(()));
    };
    let directory = InodeId(id);
    let Some(mut record) = load(tx, directory).await? else { return Ok(Err(Refused::NoDirectory)) };
    if !is_directory(record.kind) || record.orphan || directory.volume() != volume {
        return Ok(Err(Refused::NoDirectory));
    }
    if let Some(other) = record.joined() {
        return Ok(Err(Refused::OtherVolume(other)));
    }
    if record.quota != 0 {
        return Ok(Err(Refused::Inside(record.quota)));
    }
    for (key, _) in &others.pairs {
        if let Some(Account::Directory(other)) = quota::parse_key(volume, key)?
            && lies_below(tx, InodeId(other), directory).await?
        {
            return Ok(Err(Refused::Around(other)));
        }
    }
    mark(tx, touched, directory, &mut record, id);
    tx.set(&key, &QuotaRecord { state: State::Counting.into(), ..fresh }.to_value());
    Ok(Ok(()))
}

/// Gives an account's limits up. A directory's mark is taken from its contents by and by ([`step`]).
pub async fn clear<T: Transaction>(
    tx: &T,
    touched: &Touched,
    volume: VolumeId,
    account: Account,
) -> Result<Result<(), Refused>, OpError> {
    let key = quota::key(volume, account);
    let Some(record) = find(tx, volume, account, Read::Conflicting).await? else {
        return Ok(Err(Refused::NotThere));
    };
    if let Account::Directory(id) = account
        && let Some(mut directory) = load(tx, InodeId(id)).await?
    {
        if record.state() != State::Clearing {
            let around = around(tx, &directory).await?;
            mark(tx, touched, InodeId(id), &mut directory, around.map_or(0, |(quota, _)| quota));
            if let Some((quota, record)) = around
                && record.state() == State::Enforced
            {
                let record = QuotaRecord { state: State::Counting.into(), ..record };
                tx.set(&quota::key(volume, Account::Directory(quota)), &record.to_value());
            }
            tx.set(&key, &QuotaRecord { state: State::Clearing.into(), ..record }.to_value());
        }
    } else {
        tx.clear(&key);
    }
    Ok(Ok(()))
}

/// The quota of the tree in which a directory lies that had one itself: it got there while that one was being counted.
async fn around<T: Transaction>(
    tx: &T,
    directory: &InodeRecord,
) -> Result<Option<(u64, QuotaRecord)>, OpError> {
    let Some(link) = directory.links.first().filter(|_| !directory.orphan) else { return Ok(None) };
    let parent = InodeId(link.parent);
    let Some(InodeRecord { quota, .. }) = load(tx, parent).await? else { return Ok(None) };
    let found = find(tx, parent.volume(), Account::Directory(quota), Read::Conflicting).await?;
    Ok(found.map(|record| (quota, record)))
}

async fn load<T: Transaction>(tx: &T, id: InodeId) -> Result<Option<InodeRecord>, OpError> {
    let value = tx.get(&inode::key(id), Read::Conflicting).await?;
    Ok(value.map(|value| InodeRecord::from_value(&value)).transpose()?)
}

async fn lies_below<T: Transaction>(tx: &T, below: InodeId, directory: InodeId) -> Result<bool, OpError> {
    let mut at = below;
    for _ in 0..DEPTH_MAX {
        if at == directory {
            return Ok(true);
        }
        let Some(record) = load(tx, at).await? else { return Ok(false) };
        let Some(link) = record.links.first() else { return Ok(false) };
        at = InodeId(link.parent);
    }
    Ok(true)
}

/// Has an inode count for another directory quota. The caller's transaction has read it.
fn mark<T: Transaction>(tx: &T, touched: &Touched, id: InodeId, record: &mut InodeRecord, to: u64) {
    touched.counts(id, Charge::of(record));
    let from = std::mem::replace(&mut record.quota, to);
    add(tx, id, &touched.recount(id, Some(Charge::of(record))));
    touched.forgive();
    touched.note(Fact::Inode(id));
    tx.set(&inode::key(id), &record.to_value());
    if is_directory(record.kind) {
        queue_for_both(tx, from, to, id);
    }
}

/// A directory got another mark, from one quota's to another's: its entries are to be looked at from the first on, for both. 0 is none.
pub(crate) fn queue_for_both<T: Transaction>(tx: &T, from: u64, to: u64, directory: InodeId) {
    for quota in [from, to].into_iter().filter(|quota| *quota != 0) {
        tx.set(&quota::work_key(InodeId(quota), directory), &WorkRecord::default().to_value());
    }
}

/// What a step of counting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    More,
    /// Everything is counted, or unmarked, or there was nothing to do.
    Done,
}

/// Marks up to `max` entries of one directory of a quota's queue. Limits don't stand in the way: what is there is there.
pub async fn step<T: Transaction>(
    tx: &T,
    touched: &Touched,
    directory_quota: InodeId,
    max: usize,
) -> Result<Step, OpError> {
    let (volume, account) = (directory_quota.volume(), Account::Directory(directory_quota.0));
    let Some(record) = find(tx, volume, account, Read::Conflicting).await? else { return Ok(Step::Done) };
    if record.state() == State::Enforced {
        return Ok(Step::Done);
    }
    let first = RangeLimit { pairs_max: 1, ..RangeLimit::default() };
    let page = tx.get_range(quota::work_range(directory_quota), first, Read::Conflicting).await?;
    let Some((key, value)) = page.pairs.first() else {
        let key = quota::key(volume, account);
        match record.state() {
            State::Clearing => tx.clear(&key),
            _ => tx.set(&key, &QuotaRecord { state: State::Enforced.into(), ..record }.to_value()),
        }
        return Ok(Step::Done);
    };
    let directory = quota::parse_work_key(directory_quota, key)?;
    let WorkRecord { after } = WorkRecord::from_value(value)?;
    // Its entries follow the directory, which may have got another quota by now.
    let Some(InodeRecord { quota: to, .. }) = load(tx, directory).await? else {
        tx.clear(key);
        return Ok(Step::More);
    };
    let all = dirent::range(directory);
    let begin = match after {
        0 => all.begin,
        after => {
            let mut begin = dirent::key(directory, Cookie(after));
            begin.push(0);
            begin.into()
        }
    };
    let limit = RangeLimit { pairs_max: max.max(1), ..RangeLimit::default() };
    // Without a conflict: what is made meanwhile is marked as it is made, and what is moved as it is moved.
    let entries = tx.get_range(KeyRange { begin, end: all.end }, limit, Read::Snapshot).await?;
    let mut reached = after;
    for (key, value) in &entries.pairs {
        reached = dirent::parse_key(directory, key)?.0;
        let id = InodeId(DirentRecord::from_value(value)?.inode);
        // Removed meanwhile, and freed.
        let Some(mut record) = load(tx, id).await? else { continue };
        let here = record.links.iter().any(|link| link.parent == directory.0)
            || (!is_directory(record.kind) && !record.orphan);
        if here && record.quota != to && record.quota != id.0 && !is_anothers(tx, id, &record).await? {
            mark(tx, touched, id, &mut record, to);
        }
    }
    match entries.more {
        true => tx.set(key, &WorkRecord { after: reached }.to_value()),
        false => tx.clear(key),
    }
    Ok(Step::More)
}

/// Whether a file with several names counts for the quota of another one of them. It counts for one, and stays there while it has several.
pub(crate) async fn is_anothers<T: Transaction>(
    tx: &T,
    id: InodeId,
    record: &InodeRecord,
) -> Result<bool, OpError> {
    if record.nlink < 2 || record.quota == 0 || is_directory(record.kind) {
        return Ok(false);
    }
    let other = find(tx, id.volume(), Account::Directory(record.quota), Read::Conflicting).await?;
    Ok(other.is_some_and(|other| other.state() != State::Clearing))
}

/// Whether a change fits into what is left of an account's limits, with what others may still add.
pub fn fits(record: &QuotaRecord, usage: Usage, reserved: Usage, charge: Usage) -> bool {
    let over = |max: Option<u64>, used: i64, reserved: i64, delta: i64| {
        let sum = i128::from(used.max(0)) + i128::from(reserved) + i128::from(delta);
        delta > 0 && max.is_some_and(|max| sum > i128::from(max))
    };
    record.state() != State::Enforced
        || !(over(record.bytes_max, usage.bytes, reserved.bytes, charge.bytes)
            || over(record.inodes_max, usage.inodes, reserved.inodes, charge.inodes))
}

/// Whether charges fit into all limits, with nobody else about. A damaged record is an error.
pub async fn all_fit<T: Transaction>(tx: &T, volume: VolumeId, charges: &Charges) -> Result<bool, OpError> {
    for (account, charge) in charges {
        if charge.bytes <= 0 && charge.inodes <= 0 {
            continue;
        }
        if let Some(record) = find(tx, volume, *account, Read::Snapshot).await?
            && !fits(&record, usage(tx, volume, *account).await?, Usage::default(), *charge)
        {
            return Ok(false);
        }
    }
    Ok(true)
}
