//! What the leader of the global group answers: changes of the global store, each a transaction under its rules.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use mooseng_embedded::{Embedded, EmbeddedTransaction};
use mooseng_global::rules::revocations::Refused as Revocation;
use mooseng_global::rules::{self, RuleError, VolumeChange};
use mooseng_global::{Durability, MasterAt, Region};
use mooseng_schema::ids::IdKind;
use mooseng_schema::log::LogPosition;
use mooseng_store::{Store, StoreError, Transaction};
use mooseng_transport::{Answer, Incoming, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change as Asked;
use mooseng_wire::global::{
    AddRegion, Change, Changed, CloseEpoch, IdRange, Master, MoveHome, OpenEpoch, Position, Regions,
    RemoveRegion, Renew, Renewed, SetVolume, StayHome, TakeIds,
};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, VolumeId};
use rand::Rng;

use super::{Global, classes, level, lock};
use crate::errors::denied;

/// Tries of one transaction.
const TRIES: u32 = 10;

/// Runs `body` until it commits. It may commit more than once, where the first outcome stays unknown.
pub(crate) async fn transact<T, F, Fut>(store: &Embedded, mut body: F) -> Result<T, RuleError>
where
    F: FnMut(EmbeddedTransaction) -> Fut,
    Fut: Future<Output = Result<(EmbeddedTransaction, T), RuleError>>,
{
    let mut tries = 0;
    loop {
        let outcome = match body(store.begin()).await {
            Ok((tx, value)) => tx.commit().await.map(|_| value).map_err(RuleError::Store),
            Err(error) => Err(error),
        };
        let error = match outcome {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        tries += 1;
        let again = matches!(&error, RuleError::Store(e) if e.is_retryable() || e.is_maybe_committed());
        if tries >= TRIES || !again {
            return Err(error);
        }
        let pause = rand::rng().random_range(1..=2_u64 << tries.min(7));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// A rule's refusal, as callers are told.
pub(super) fn refused(global: &Global, error: RuleError) -> CallError {
    let code = match &error {
        RuleError::Store(StoreError::NotLeader | StoreError::Failed(_)) => return global.not_leader(),
        RuleError::Store(StoreError::CommitUnknown) => ErrorCode::OutcomeUnknown,
        RuleError::Store(_) | RuleError::NotFounded => ErrorCode::Unavailable,
        RuleError::Schema(_) => ErrorCode::Internal,
        RuleError::NoRegion(_) | RuleError::NoVolume(_) => ErrorCode::NotFound,
        RuleError::Revocation(Revocation::NotRevoked(_)) => ErrorCode::NotFound,
        RuleError::OtherEpoch { .. }
        | RuleError::Closed { .. }
        | RuleError::Open { .. }
        | RuleError::NotHome { .. }
        | RuleError::Overtaken { .. }
        | RuleError::Deposed { .. }
        | RuleError::ByCommand(_)
        | RuleError::Renewed(_) => ErrorCode::StaleEpoch,
        RuleError::NoToken(_) | RuleError::MadeAnew { .. } => ErrorCode::PermissionDenied,
        RuleError::Revocation(_)
        | RuleError::TokenSpent(_)
        | RuleError::OnlyHome { .. }
        | RuleError::LagMax(_)
        | RuleError::Unfit { .. }
        | RuleError::NoFailover(_)
        | RuleError::CouldntLose(_)
        | RuleError::Region { .. }
        | RuleError::InUse { .. }
        | RuleError::Root
        | RuleError::Place { .. }
        | RuleError::NowhereToGo { .. }
        | RuleError::Below { .. }
        | RuleError::Leaving(_)
        | RuleError::StillJoined(_)
        | RuleError::Volumes(_)
        | RuleError::Ids(_) => ErrorCode::InvalidRequest,
        RuleError::Class(error) => classes::code(error),
        RuleError::Level(error) => level::code(error),
    };
    call_error(code, error.to_string())
}

pub(super) fn volume_id(volume: u32) -> Result<VolumeId, CallError> {
    let id = u16::try_from(volume).map(VolumeId);
    id.map_err(|_| {
        call_error(
            ErrorCode::InvalidRequest,
            format!("{volume} isn't a volume's number: 65535 is the highest"),
        )
    })
}

fn id_kind(kind: u32) -> Result<IdKind, CallError> {
    let known = [IdKind::Inode, IdKind::Chunk, IdKind::Session];
    let known = known.into_iter().find(|known| *known as u32 == kind);
    known.ok_or_else(|| call_error(ErrorCode::InvalidRequest, format!("{kind} isn't a kind of ids")))
}

fn master_at(m: Master) -> MasterAt {
    MasterAt { id: m.id, name: m.name, address: m.address, zone: m.zone }
}

pub(super) fn position(position: &Position) -> LogPosition {
    LogPosition::new(Epoch(position.epoch), position.version)
}

fn names(regions: Regions) -> BTreeSet<String> {
    regions.names.into_iter().collect()
}

/// A change of a volume by a region. Who is waited for is its home's own to know, as is whether it goes by a lease.
async fn set_volume(
    tx: &EmbeddedTransaction,
    caller: &str,
    (volume, epoch): (VolumeId, Epoch),
    change: &VolumeChange,
) -> Result<u64, RuleError> {
    let home = rules::home(tx, volume).await?;
    if change.sync_set.is_some() && home != caller {
        return Err(RuleError::NotHome { volume, home, asked: caller.to_owned() });
    }
    let change = VolumeChange { by_home: home == caller, ..change.clone() };
    rules::set_volume(tx, volume, epoch, &change).await
}

impl Global {
    /// The refusal that names the leader.
    pub(super) fn not_leader(&self) -> CallError {
        let leader = self.raft().and_then(|raft| raft.leader()).map(|(_, address)| address);
        // One whose lease is over is the leader by its own word still.
        let leader = leader.filter(|address| *address != self.address);
        let message = match &leader {
            Some(address) => format!("this master doesn't lead the global group; {address} does"),
            None => "this master doesn't lead the global group, and it knows of no leader yet; try again"
                .to_owned(),
        };
        CallError { leader: leader.unwrap_or_default(), ..call_error(ErrorCode::NotLeader, message) }
    }

    /// Answers a call of a master of any region, by the caller's region as its certificate says it.
    pub async fn answer(&self, incoming: Incoming) -> Result<Answer, CallError> {
        self.allow(&incoming.peer)?;
        let region = &incoming.peer.identity.region;
        match incoming.method {
            Method::GlobalRenew => {
                let renewed = self.renew_here(region, incoming.decode()?);
                self.in_time(&incoming, renewed).await.map(|m| Answer::of(&m))
            }
            Method::GlobalChange => {
                let changed = self.change_here(region, incoming.decode()?);
                self.in_time(&incoming, changed).await.map(|m| Answer::of(&m))
            }
            other => Err(call_error(
                ErrorCode::InvalidRequest,
                format!("{} isn't a call to the global group", other.as_str()),
            )),
        }
    }

    async fn in_time<T>(
        &self,
        incoming: &Incoming,
        answer: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let late =
            || call_error(ErrorCode::OutcomeUnknown, "the global group took longer than the caller waits");
        tokio::time::timeout_at(incoming.deadline, answer).await.unwrap_or_else(|_| Err(late()))
    }

    /// Renews a region's lease, as the leader.
    pub(super) async fn renew_here(&self, caller: &str, renew: Renew) -> Result<Renewed, CallError> {
        if renew.region != caller {
            return Err(denied(format!("a master of {caller} can't renew the lease of {}", renew.region)));
        }
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        for volume in &renew.stands_no_more {
            self.forget_standing(volume_id(*volume)?, caller);
        }
        for standing in &renew.standings {
            self.stands(volume_id(standing.volume)?, caller, standing);
        }
        let masters: Vec<MasterAt> = renew.masters.into_iter().map(master_at).collect();
        let (region, masters, custody, secret) = (&renew.region, &masters, renew.custody, &renew.secret);
        let founding = &renew.founding;
        let renewal = transact(&self.store, |tx| async move {
            rules::admit(&tx, region, secret).await?;
            let renewal = rules::renew(&tx, region, masters, custody, founding).await?;
            Ok((tx, renewal))
        });
        let renewal = renewal.await.map_err(|e| refused(self, e))?;
        if renewal.anew {
            tracing::warn!(
                region,
                "the region was made anew: its masters carry another founding mark than before, so what they had is gone. It is in no sync set any more, and gets a copy of its volumes"
            );
            // What it said before it said of what is gone; what it says now it says again.
            let volumes: Vec<VolumeId> = self.view.borrow().volumes.keys().copied().collect();
            volumes.into_iter().for_each(|volume| self.forget_standing(volume, caller));
        }
        Ok(Renewed { lease_ms: renewal.lease_ms, version: renewal.version, sequence: renewal.sequence })
    }

    /// Changes the global store, as the leader.
    pub(super) async fn change_here(&self, caller: &str, change: Change) -> Result<Changed, CallError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        let nothing = || call_error(ErrorCode::InvalidRequest, "the change says nothing");
        match change.change.ok_or_else(nothing)? {
            Asked::TakeIds(asked) => self.take_ids(caller, asked).await,
            Asked::CloseEpoch(asked) => self.close_epoch(caller, asked).await,
            Asked::OpenEpoch(asked) => self.open_epoch(asked).await,
            Asked::SetVolume(asked) => self.set_volume(caller, asked, true).await,
            Asked::CheckVolume(asked) => self.set_volume(caller, asked, false).await,
            Asked::AddRegion(asked) => self.add_region(asked).await,
            Asked::RemoveRegion(asked) => self.remove_region(asked).await,
            Asked::MoveHome(asked) => self.move_home(caller, asked).await,
            Asked::CheckMove(asked) => self.check_move(asked).await,
            Asked::StayHome(asked) => self.stay_home(caller, asked).await,
            Asked::ForceHome(asked) => self.force_home(asked, true).await,
            Asked::CheckForce(asked) => self.force_home(asked, false).await,
            Asked::CreateVolume(asked) => self.create_volume(asked, true).await,
            Asked::CheckCreate(asked) => self.create_volume(asked, false).await,
            Asked::JoinVolume(asked) => self.join_volume(caller, asked.volume).await,
            Asked::LeaveVolume(asked) => self.leave_volume(asked.volume, true).await,
            Asked::CheckLeave(asked) => self.leave_volume(asked.volume, false).await,
            Asked::DeleteVolume(asked) => self.delete_volume(caller, asked.volume).await,
            Asked::CreateClass(asked) => self.create_class(asked).await,
            Asked::SetClass(asked) => self.set_class(asked).await,
            Asked::LeaveClass(asked) => self.leave_class(asked).await,
            Asked::StayClass(asked) => self.stay_class(asked).await,
            Asked::DeleteClass(asked) => self.delete_class(asked).await,
            Asked::Revoke(asked) => self.revoke_here(asked).await,
            Asked::Unrevoke(asked) => self.unrevoke_here(&asked.what).await,
            Asked::RaiseLevel(asked) => self.raise_here(asked, true).await,
            Asked::CheckRaise(asked) => self.raise_here(asked, false).await,
        }
    }

    pub(super) async fn version_of<F, Fut>(&self, body: F) -> Result<Changed, CallError>
    where
        F: FnMut(EmbeddedTransaction) -> Fut,
        Fut: Future<Output = Result<(EmbeddedTransaction, u64), RuleError>>,
    {
        let version = transact(&self.store, body).await.map_err(|e| refused(self, e))?;
        Ok(Changed { version, ..Changed::default() })
    }

    async fn take_ids(&self, caller: &str, asked: TakeIds) -> Result<Changed, CallError> {
        if asked.region != caller {
            return Err(denied(format!("a master of {caller} can't take ids for {}", asked.region)));
        }
        let (kind, volume) = (id_kind(asked.kind)?, volume_id(asked.volume)?);
        let asked = &asked;
        let taken = transact(&self.store, |tx| async move {
            let wish = (asked.count, asked.least);
            let ids = rules::take_ids(&tx, kind, volume, &asked.region, Epoch(asked.epoch), wish).await?;
            Ok((tx, ids))
        });
        let ids = taken.await.map_err(|e| refused(self, e))?;
        let version = self.view.borrow().version;
        let ids = Some(IdRange { first: ids.start, end: ids.end });
        Ok(Changed { version, ids, ..Changed::default() })
    }

    /// A home gives its volume up. A home that is gone isn't asked: [`super::lead`].
    async fn close_epoch(&self, caller: &str, asked: CloseEpoch) -> Result<Changed, CallError> {
        let (volume, epoch) = (volume_id(asked.volume)?, Epoch(asked.epoch));
        self.version_of(|tx| async move {
            let home = rules::home(&tx, volume).await?;
            if home != caller {
                return Err(RuleError::NotHome { volume, home, asked: caller.to_owned() });
            }
            let version = rules::close_epoch(&tx, volume, epoch, None).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn open_epoch(&self, asked: OpenEpoch) -> Result<Changed, CallError> {
        let (volume, closed, home) = (volume_id(asked.volume)?, Epoch(asked.closed), &asked.home);
        let cut = asked.cut.as_ref().map(position);
        self.version_of(|tx| async move {
            let version = rules::open_epoch(&tx, volume, closed, home, cut).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn move_home(&self, caller: &str, asked: MoveHome) -> Result<Changed, CallError> {
        let (volume, epoch, to) = (volume_id(asked.volume)?, Epoch(asked.epoch), &asked.to);
        let missing = || call_error(ErrorCode::InvalidRequest, "a move of a home names no last place");
        let cut = position(asked.cut.as_ref().ok_or_else(missing)?);
        self.version_of(|tx| async move {
            let version = rules::move_home(&tx, volume, epoch, (caller, to), cut, asked.at_version).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn check_move(&self, asked: MoveHome) -> Result<Changed, CallError> {
        let volume = volume_id(asked.volume)?;
        // A transaction that isn't committed changes nothing.
        let tx = self.store.begin();
        let checked = async {
            let found = rules::volume(&tx, volume).await?;
            rules::may_move(&tx, volume, &found, &asked.to).await
        };
        checked.await.map_err(|e| refused(self, e))?;
        Ok(Changed { version: self.view.borrow().version, ..Changed::default() })
    }

    async fn stay_home(&self, caller: &str, asked: StayHome) -> Result<Changed, CallError> {
        let (volume, epoch) = (volume_id(asked.volume)?, Epoch(asked.epoch));
        self.version_of(|tx| async move {
            let version = rules::stay_home(&tx, volume, epoch, caller).await?;
            Ok((tx, version))
        })
        .await
    }

    /// Gives a home up for a region of which this leader knows that it could begin.
    async fn force_home(&self, asked: MoveHome, commit: bool) -> Result<Changed, CallError> {
        let (volume, epoch, to) = (volume_id(asked.volume)?, Epoch(asked.epoch), &asked.to);
        // A transaction that isn't committed changes nothing.
        let tx = self.store.begin();
        let checked = async {
            let found = rules::volume(&tx, volume).await?;
            rules::may_force(&tx, volume, &found, to, asked.loses_synced).await
        };
        checked.await.map_err(|e| refused(self, e))?;
        let stands = lock(&self.told).get(&volume).is_some_and(|told| told.contains_key(to));
        if !stands || self.ran_out().contains_key(to) {
            let message = format!(
                "the home can't be given up for {to}: it isn't heard of, or has no whole copy of the volume to begin with, and then nobody would serve it. `mooseng volume info` shows what each region has"
            );
            return Err(call_error(ErrorCode::InvalidRequest, message));
        }
        if !commit {
            return Ok(Changed { version: self.view.borrow().version, ..Changed::default() });
        }
        self.version_of(|tx| async move {
            let version = rules::force_home(&tx, volume, epoch, to, asked.loses_synced).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn set_volume(&self, caller: &str, asked: SetVolume, commit: bool) -> Result<Changed, CallError> {
        let (volume, epoch) = (volume_id(asked.volume)?, Epoch(asked.epoch));
        let change = &VolumeChange {
            regions: asked.regions.map(names),
            sync_set: asked.sync_set.map(names),
            durability: asked.geo.map(|geo| if geo { Durability::Geo } else { Durability::Region }),
            automatic: asked.automatic,
            blocks_alone: asked.blocks_alone,
            lag_max: asked.lag_max_ms.map(Duration::from_millis),
            at_version: asked.at_version,
            custody: asked.custody,
            by_home: false,
        };
        let of = (volume, epoch);
        if !commit {
            // A transaction that isn't committed changes nothing.
            let tx = self.store.begin();
            set_volume(&tx, caller, of, change).await.map_err(|e| refused(self, e))?;
            return Ok(Changed { version: self.view.borrow().version, ..Changed::default() });
        }
        self.version_of(|tx| async move {
            let version = set_volume(&tx, caller, of, change).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn add_region(&self, asked: AddRegion) -> Result<Changed, CallError> {
        let number = u16::try_from(asked.number).map_err(|_| {
            call_error(
                ErrorCode::InvalidRequest,
                format!("{} is too high a number for a region", asked.number),
            )
        })?;
        if !asked.join.is_empty() && asked.join.len() != 32 {
            return Err(call_error(
                ErrorCode::InvalidRequest,
                "the hash of a join token's secret has 32 bytes",
            ));
        }
        let masters = asked.masters.into_iter().map(master_at).collect();
        let join = &asked.join[..];
        let (name, region) = (&asked.name, &Region { number, witness: asked.witness, masters });
        self.version_of(|tx| async move {
            let version = rules::add_region(&tx, name, region, join).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn remove_region(&self, asked: RemoveRegion) -> Result<Changed, CallError> {
        let name = &asked.name;
        self.version_of(|tx| async move {
            let version = rules::remove_region(&tx, name).await?;
            Ok((tx, version))
        })
        .await
    }
}
