//! Quotas at the leader: limits that administrators set, the counting of directories that weren't empty, and escrow for mounts
//! (docs/decisions/0012-quotas.md; the ledger is [`mooseng_region::quotas`]').

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::OpError;
use mooseng_namespace::quota::{self as records, Account, QuotaRecord, Refused, State, Step};
use mooseng_region::quotas::{Amount, FlightId, Limit, Verdict};
use mooseng_store::{Read, Store};
use mooseng_wire::admin::quota::Whose as QuotaWhose;
use mooseng_wire::admin::quota_target::Whose as TargetWhose;
use mooseng_wire::admin::{
    ListQuotasReply, ListQuotasRequest, Quota, QuotaState, QuotaTarget, SetQuotaRequest,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::{self, AccountRoom, Escrow, Reserve, Reserved, account::Whose};
use mooseng_wire::{InodeId, SessionId, VolumeId};
use tokio::time::Instant;
use tonic::Status;

use crate::desk::Desk;
use crate::errors::record_failed;
use crate::master::Master;
use crate::own::{self, Repeat};
use crate::records::transact;
use crate::tree::Asked;

/// Quotas in one answer.
const LIST_PAGE: usize = 500;
/// Accounts in one request for escrow.
const ACCOUNTS_MAX: usize = 16;
/// Escrow that one request asks for at most: as much as a large buffer holds.
const WISH_MAX: u64 = 1 << 30;
/// Accounts of which one message tells what was spent.
const TOLD_MAX: usize = 4_096;
/// Entries that are marked in one transaction.
const MARKED_AT_ONCE: usize = 64;
/// And where that conflicts with whoever works there, or somebody doesn't answer a recall.
const MARKED_WITH_TROUBLE: usize = 1;
/// How often it is looked whether something is to be counted.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// A session that is gone delays a change by its lease.
const BEYOND_LEASE: Duration = Duration::from_secs(5);

fn account_of(account: Option<&fs::Account>) -> Option<Account> {
    match account?.whose.as_ref()? {
        Whose::Directory(id) => Some(Account::Directory(*id)),
        Whose::User(uid) => Some(Account::User(*uid)),
    }
}

/// What a session tells of its escrow: account, granted, spent.
pub fn told(escrow: &[Escrow]) -> Vec<(Account, u64, u64)> {
    let known = |e: &Escrow| account_of(e.account.as_ref()).map(|account| (account, e.granted, e.spent));
    escrow.iter().take(TOLD_MAX).filter_map(known).collect()
}

/// The limits that are enforced in a volume.
pub async fn limits(master: &Master, volume: VolumeId) -> Result<BTreeMap<Account, Limit>, CallError> {
    let mut limits = BTreeMap::new();
    for (account, record) in all(master, volume).await? {
        if record.state() == State::Enforced {
            limits.insert(account, Limit { bytes: record.bytes_max, inodes: record.inodes_max });
        }
    }
    Ok(limits)
}

async fn all(master: &Master, volume: VolumeId) -> Result<Vec<(Account, QuotaRecord)>, CallError> {
    let mut all: Vec<(Account, QuotaRecord)> = Vec::new();
    loop {
        let after = all.last().map(|(account, _)| *account);
        let page = transact(&master.store, |tx| async move {
            let page = records::list(&tx, volume, after, LIST_PAGE).await?;
            Ok((tx, page))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        let full = page.len() == LIST_PAGE;
        all.extend(page);
        if !full {
            return Ok(all);
        }
    }
}

/// Has the ledger know the limits as they are on record. Only one at a time reads and sets them.
async fn publish(master: &Master, volume: VolumeId, term: u64) -> Result<(), CallError> {
    let _one = master.limits_gate.lock().await;
    let limits = limits(master, volume).await?;
    master.desk(|desk| {
        if desk.is_custodian(volume, term) {
            desk.seat_mut(volume).ledger.set_limits(limits);
        }
    });
    Ok(())
}

async fn used(
    master: &Master,
    volume: VolumeId,
    accounts: &[Account],
) -> Result<BTreeMap<Account, Amount>, OpError> {
    let tx = master.store.begin();
    let mut used = BTreeMap::new();
    for account in accounts {
        let usage = records::usage(&tx, volume, *account).await?;
        used.insert(*account, Amount { bytes: usage.bytes, inodes: usage.inodes });
    }
    Ok(used)
}

/// Whether a flight fits. None in another term, and where the store can't be read: then the change is asked for anew.
pub async fn judge(master: &Master, volume: VolumeId, term: u64, flight: FlightId) -> Option<Verdict> {
    let in_office = |desk: &Desk| desk.is_custodian(volume, term);
    let reserved =
        master.desk(|desk| in_office(desk).then(|| desk.seat(volume).ledger.reserved_beside(flight)))?;
    let accounts: Vec<Account> = reserved.keys().copied().collect();
    match used(master, volume, &accounts).await {
        Ok(used) => master.desk(|desk| {
            in_office(desk).then(|| desk.seat_mut(volume).ledger.fits(flight, &reserved, &used))
        }),
        Err(error) => {
            tracing::debug!(%error, "what counts for a quota can't be read");
            None
        }
    }
}

/// A flight that ends with its question.
struct Landing<'a> {
    master: &'a Master,
    volume: VolumeId,
    flight: FlightId,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.master.desk(|desk| desk.seat_mut(self.volume).ledger.land(self.flight, false));
    }
}

/// Grants escrow.
pub async fn reserve(
    master: &Master,
    term: u64,
    session: SessionId,
    request: &Reserve,
) -> Result<Reserved, CallError> {
    if request.accounts.len() > ACCOUNTS_MAX {
        let message = format!("escrow is asked for {ACCOUNTS_MAX} accounts at a time at most");
        return Err(mooseng_transport::call_error(ErrorCode::InvalidRequest, message));
    }
    let volume = session.volume();
    let held = told(&request.held);
    let wish = request.wish.max(request.bytes).min(WISH_MAX);
    let needed = request.bytes.min(wish);
    let mut rooms = Vec::new();
    for asked in &request.accounts {
        let Some(account) = account_of(Some(asked)) else { continue };
        let known = held.iter().find(|(of, ..)| *of == account).map_or(0, |(_, granted, _)| *granted);
        let flight = master.desk(|desk| {
            let ledger = &mut desk.seat_mut(volume).ledger;
            for (account, _, spent) in &held {
                ledger.spent(session, *account, *spent);
            }
            let adds = Amount { bytes: wish.max(1) as i64, inodes: 0 };
            ledger.take_off(None, [(account, adds)])
        });
        // It lands also where whoever asked gives up.
        let _landing = flight.map(|flight| Landing { master, volume, flight });
        let mut room = AccountRoom { account: Some(*asked), limited: false, granted: known, enough: true };
        if let Some(flight) = flight {
            let reserved = master.desk(|desk| desk.seat(volume).ledger.reserved_beside(flight));
            let used = used(master, volume, &[account]).await;
            room.limited = true;
            (room.granted, room.enough) = master.desk(|desk| {
                let of = |amounts: &BTreeMap<_, Amount>| amounts.get(&account).copied().unwrap_or_default();
                match (&used, desk.is_custodian(volume, term), desk.sessions.holds(session)) {
                    (Ok(used), true, true) => {
                        let around = (of(&reserved), of(used));
                        let ledger = &mut desk.seat_mut(volume).ledger;
                        ledger.grant(session, account, known, (needed, wish), around)
                    }
                    _ => (known, needed == 0),
                }
            });
        }
        rooms.push(room);
    }
    let quotas = master.desk(|desk| desk.seat(volume).ledger.version());
    Ok(Reserved { accounts: rooms, quotas })
}

fn failed(error: CallError) -> Status {
    match error.code() {
        ErrorCode::DeadlineExceeded | ErrorCode::OutcomeUnknown => Status::deadline_exceeded(error.message),
        ErrorCode::Internal => Status::internal(error.message),
        _ => Status::unavailable(error.message),
    }
}

fn refused(why: &Refused) -> Status {
    let message = why.to_string();
    match why {
        Refused::NoDirectory | Refused::NotThere => Status::not_found(message),
        Refused::OtherVolume(_)
        | Refused::Inside(_)
        | Refused::Around(_)
        | Refused::Clearing
        | Refused::TooMany => Status::invalid_argument(message),
    }
}

/// The account that is meant: of a path, that of the directory there itself.
async fn target(master: &Master, asked: &Asked, target: Option<QuotaTarget>) -> Result<Account, Status> {
    let volume = asked.volume;
    match target.and_then(|target| target.whose) {
        None => Err(Status::invalid_argument("the request doesn't say whose quota is meant")),
        Some(TargetWhose::User(uid)) => Ok(Account::User(uid)),
        Some(TargetWhose::Directory(id)) if InodeId(id).volume() != volume => {
            Err(refused(&Refused::NoDirectory))
        }
        Some(TargetWhose::Directory(id)) => Ok(Account::Directory(id)),
        Some(TargetWhose::Path(path)) => {
            let found = transact(&master.store, |tx| {
                let path = path.clone();
                async move {
                    let found = records::directory_at(&tx, volume, &path).await?;
                    Ok((tx, found))
                }
            })
            .await
            .map_err(|e| failed(record_failed(&e)))?;
            let found = found.ok_or_else(|| {
                let path = asked.told(&path);
                Status::not_found(format!(
                    "{path} isn't a directory; give its path from the root of the filesystem (symbolic links aren't followed)"
                ))
            });
            Ok(Account::Directory(found?.0))
        }
    }
}

async fn shown(
    master: &Master,
    asked: &Asked,
    account: Account,
    record: Option<QuotaRecord>,
) -> Result<Quota, Status> {
    let volume = asked.volume;
    let (usage, path) = transact(&master.store, |tx| async move {
        let usage = records::usage(&tx, volume, account).await?;
        let path = match account {
            Account::Directory(id) => records::path(&tx, InodeId(id)).await?,
            Account::User(_) | Account::Class(_) => bytes::Bytes::new(),
        };
        Ok((tx, (usage, path)))
    })
    .await
    .map_err(|e| failed(record_failed(&e)))?;
    let whose = match account {
        Account::Directory(id) => QuotaWhose::Directory(id),
        Account::User(uid) => QuotaWhose::User(uid),
        // Classes aren't limited, and have no record among these.
        Account::Class(_) => return Err(Status::invalid_argument("storage classes have no quotas")),
    };
    let state = match record.map(|record| record.state()) {
        None => QuotaState::None,
        Some(State::Counting) => QuotaState::Counting,
        Some(State::Enforced) => QuotaState::Enforced,
        Some(State::Clearing) => QuotaState::Clearing,
    };
    Ok(Quota {
        whose: Some(whose),
        path: asked.shown(&path),
        state: state.into(),
        bytes_max: record.and_then(|record| record.bytes_max),
        inodes_max: record.and_then(|record| record.inodes_max),
        bytes: usage.bytes.max(0),
        inodes: usage.inodes.max(0),
    })
}

async fn record(master: &Master, volume: VolumeId, account: Account) -> Result<Option<QuotaRecord>, Status> {
    let found = transact(&master.store, |tx| async move {
        let found = records::find(&tx, volume, account, Read::Snapshot).await?;
        Ok((tx, found))
    });
    found.await.map_err(|e| failed(record_failed(&e)))
}

fn deadline(master: &Master) -> Instant {
    Instant::now() + master.config.session_lease() + BEYOND_LEASE
}

/// Sets limits.
pub async fn set(master: &Arc<Master>, asked: &Asked, request: SetQuotaRequest) -> Result<Quota, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let SetQuotaRequest { target: whose, bytes_max, inodes_max } = request;
    if bytes_max.is_none() && inodes_max.is_none() {
        return Err(Status::invalid_argument("say how many bytes or inodes there may be at most"));
    }
    let account = target(master, asked, whose).await?;
    let now_ns = master.clock.unix_ns();
    own::change(master, volume, term, Repeat::Harmless, deadline(master), |tx, touched| {
        Box::pin(records::set(tx, touched, now_ns, volume, account, bytes_max, inodes_max))
    })
    .await
    .map_err(failed)?
    .map_err(|why| refused(&why))?;
    publish(master, volume, term).await.map_err(failed)?;
    shown(master, asked, account, record(master, volume, account).await?).await
}

/// Gives limits up.
pub async fn clear(master: &Arc<Master>, asked: &Asked, whose: QuotaTarget) -> Result<Quota, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let account = target(master, asked, Some(whose)).await?;
    let before = record(master, volume, account).await?;
    if before.is_none() {
        return Err(refused(&Refused::NotThere));
    }
    // A second run may find that it is gone: that was ours.
    let _ = own::change(master, volume, term, Repeat::Harmless, deadline(master), |tx, touched| {
        Box::pin(records::clear(tx, touched, volume, account))
    })
    .await
    .map_err(failed)?;
    publish(master, volume, term).await.map_err(failed)?;
    shown(master, asked, account, record(master, volume, account).await?).await
}

/// Tells of limits and of what counts.
pub async fn list(
    master: &Master,
    asked: &Asked,
    request: ListQuotasRequest,
) -> Result<ListQuotasReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let mut reply = ListQuotasReply::default();
    if request.only.is_some() {
        let mut account = target(master, asked, request.only).await?;
        if let Account::Directory(id) = account
            && record(master, volume, account).await?.is_none()
        {
            // That of the tree in which it lies.
            let of = transact(&master.store, |tx| async move {
                let of = records::of_directory(&tx, InodeId(id)).await?;
                Ok((tx, of))
            });
            let of = of.await.map_err(|e| failed(record_failed(&e)))?;
            account = of.ok_or_else(|| refused(&Refused::NotThere))?;
        }
        let record = record(master, volume, account).await?;
        reply.quotas.push(shown(master, asked, account, record).await?);
    } else {
        let after = match request.after {
            None => None,
            after => Some(target(master, asked, after).await?),
        };
        let page = transact(&master.store, |tx| async move {
            let page = records::list(&tx, volume, after, LIST_PAGE).await?;
            Ok((tx, page))
        });
        let page = page.await.map_err(|e| failed(record_failed(&e)))?;
        reply.more = page.len() == LIST_PAGE;
        for (account, record) in page {
            reply.quotas.push(shown(master, asked, account, Some(record)).await?);
        }
    }
    master.may_answer(term).map_err(failed)?;
    Ok(reply)
}

/// Counts what is in a volume's directories that got a quota, and gives up the marks of those that lost it, as long as this master leads.
pub async fn count(master: &Arc<Master>, volume: VolumeId, term: u64) {
    let mut trouble = false;
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        let at_once = if trouble { MARKED_WITH_TROUBLE } else { MARKED_AT_ONCE };
        match count_all(master, volume, term, at_once).await {
            Ok(()) => trouble = false,
            Err(error) => {
                trouble = true;
                tracing::info!(error = %error.message, "counting for quotas goes on later");
            }
        }
    }
}

async fn count_all(
    master: &Arc<Master>,
    volume: VolumeId,
    term: u64,
    at_once: usize,
) -> Result<(), CallError> {
    for (account, record) in all(master, volume).await? {
        let Account::Directory(id) = account else { continue };
        if record.state() == State::Enforced {
            continue;
        }
        loop {
            let step =
                own::change(master, volume, term, Repeat::Harmless, deadline(master), |tx, touched| {
                    Box::pin(records::step(tx, touched, InodeId(id), at_once))
                });
            if step.await? == Step::Done {
                break;
            }
        }
        publish(master, volume, term).await?;
        tracing::info!(directory = id, state = ?record.state(), "a directory's quota has been counted");
    }
    Ok(())
}
