//! Whom the cluster refuses (docs/decisions/0040-revocations.md): this master's copy, which it goes by and hands on, and what administrators ask for.
//!
//! ```text
//!  administrator --Revoke--> any master --GlobalChange--> the global group's store     (a cluster of one region: its leader --> the region's store)
//!                                                                |  applied by each master, looked at four times a second
//!                                  its own network <--- Copy <---'
//!  chunkservers <--answers to heartbeats---'  '---answers to renewals--> mounts
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mooseng_embedded::Embedded;
use mooseng_global::rules::RuleError;
use mooseng_global::rules::revocations::{self as rules, Known, Refused, Space};
use mooseng_region::Liveness;
use mooseng_region::findings::AgreedFacts;
use mooseng_schema::revocation::Revocation;
use mooseng_store::{Read, Store, StoreError, Transaction};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::admin::{
    ListRevocationsReply, Revocation as Told, RevocationList, RevokeReply, RevokeRequest,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{Revoke, Unrevoke};
use mooseng_wire::level::Feature;
use mooseng_wire::revocations::{AGREED_MAX, Agreed};
use mooseng_wire::{Identity, Role};
use tokio::time::Instant;

use crate::global::transact;
use crate::master::Master;

/// How often the copy is compared with the store.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often leaders look for entries that aren't needed any more, or belong elsewhere.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// How long that may take.
const TIDY_WITHIN: Duration = Duration::from_secs(10);

/// Whoever hasn't heard of a change by then lags: heartbeats come twice a second, and masters ask each other every two.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// What this master knows.
#[derive(Debug, Default)]
pub struct Copy(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    region: Known,
    cluster: Known,
    /// Of both.
    now: Arc<Known>,
    agreed: Arc<Agreed>,
}

impl Copy {
    /// What is refused.
    pub fn now(&self) -> Arc<Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).now.clone()
    }

    /// For somebody who goes by that version; none where it has nothing newer.
    pub fn newer_than(&self, have: u64) -> Option<RevocationList> {
        let agreed = self.0.read().unwrap_or_else(PoisonError::into_inner).agreed.clone();
        (agreed.version > have).then(|| agreed.told())
    }

    fn region(&self) -> Known {
        self.0.read().unwrap_or_else(PoisonError::into_inner).region.clone()
    }

    fn versions(&self) -> (u64, u64) {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (inner.region.version, inner.cluster.version)
    }

    /// Takes what has changed, in either store.
    fn take(&self, region: Option<Known>, cluster: Option<Known>) -> Agreed {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = region {
            inner.region = region;
        }
        if let Some(cluster) = cluster {
            inner.cluster = cluster;
        }
        let now = inner.cluster.clone().and(inner.region.clone());
        inner.agreed = Arc::new(now.agreed());
        inner.now = Arc::new(now);
        (*inner.agreed).clone()
    }
}

/// A store's revocations as this member has applied them, unless they are at the version that the caller has.
pub(crate) async fn read(store: &Embedded, space: Space, have: u64) -> Result<Option<Known>, RuleError> {
    let tx = store.begin();
    tx.set_read_version(store.applied_version());
    match rules::version(&tx, space, Read::Snapshot).await? {
        same if same == have => Ok(None),
        _ => rules::known(&tx, space, Read::Snapshot).await.map(Some),
    }
}

/// Compares the copy with the stores, and has the network go by it where it is newer.
pub async fn look(master: &Master) {
    let (mut have_region, have_cluster) = master.revoked.versions();
    // What is handed over leaves the region's store at the version that it had.
    if master.global.is_some() && !master.revoked.region().revoked.is_empty() {
        have_region = u64::MAX;
    }
    let cluster = async {
        match &master.global {
            Some(global) => global.revoked(have_cluster).await,
            None => Ok(None),
        }
    };
    let (region, cluster) = tokio::join!(read(&master.store, Space::Region, have_region), cluster);
    let found = |found: Result<Option<Known>, RuleError>| match found {
        Ok(found) => found,
        // What was applied meanwhile may have made the version too old.
        Err(RuleError::Store(error)) if error.is_retryable() => None,
        Err(error) => {
            tracing::warn!(%error, "this master's copy of what is revoked can't be read; trying on");
            None
        }
    };
    let (region, cluster) = (found(region), found(cluster));
    if region.is_none() && cluster.is_none() {
        return;
    }
    let agreed = master.revoked.take(region, cluster);
    let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    master.metrics.revocations.set(gauge(agreed.revoked.len() as u64));
    master.metrics.revocations_version.set(gauge(agreed.version));
    master.network.refuse(agreed);
}

/// Keeps the copy up to date, and as a leader the store tidy.
pub async fn keep(master: Arc<Master>) {
    let looking = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            look(&master).await;
        }
    };
    let tidying = async {
        loop {
            tokio::time::sleep(TIDY_EVERY).await;
            if let Err(error) = tidy(&master).await {
                tracing::info!(error = %error.message, "revocations that aren't needed here any more go later");
            }
        }
    };
    tokio::select! {
        _ = async { tokio::join!(looking, tidying) } => {}
        () = master.shutdown.cancelled() => {}
    }
}

async fn tidy(master: &Master) -> Result<(), CallError> {
    let now_unix = now_ms(master) / 1_000;
    let now_unix = i64::try_from(now_unix).unwrap_or(i64::MAX);
    let ended = master.revoked.now().has_ended(now_unix);
    let leads = master.raft.is_leading();
    match &master.global {
        None if leads && ended => {
            let now_ms = now_ms(master);
            changed(master, |tx| async move {
                let version = rules::sweep(&tx, Space::Region, now_ms).await?;
                Ok((tx, version))
            })
            .await
            .map(drop)
        }
        Some(_) if leads && !master.revoked.region().revoked.is_empty() => hand_over(master).await,
        Some(global) if global.is_leading() && ended => global.sweep_revocations().await,
        _ => Ok(()),
    }
}

/// A cluster of one region has become one of several: what the region has revoked by itself is the global group's from now on.
async fn hand_over(master: &Master) -> Result<(), CallError> {
    let Some(global) = &master.global else { return Ok(()) };
    let own = master.revoked.region();
    let revocations = own.revoked.iter().map(|(what, revocation)| tell(what, revocation)).collect();
    let change = Change::Revoke(Revoke { revocations, at_least: own.version.max(1) });
    let version = global.change(change, Instant::now() + TIDY_WITHIN).await?.version;
    let taken: &BTreeSet<String> = &own.revoked.keys().cloned().collect();
    let cleared = transact(&master.store, |tx| async move {
        rules::hand_over(&tx, Space::Region, taken).await?;
        Ok((tx, ()))
    });
    cleared.await.map_err(|e| refused(master, e))?;
    tracing::info!(version, revocations = taken.len(), "the region's revocations are the cluster's now");
    Ok(())
}

fn now_ms(master: &Master) -> u64 {
    u64::try_from(master.clock.unix_ns() / 1_000_000).unwrap_or(0)
}

/// A revocation as it is told.
pub(crate) fn tell(what: &str, revocation: &Revocation) -> Told {
    Told {
        what: what.to_owned(),
        reason: revocation.reason.clone(),
        by: revocation.by.clone(),
        at_unix: revocation.at_unix,
        expires_unix: revocation.expires_unix.unwrap_or(0),
    }
}

/// What was told, by what is refused.
pub(crate) fn told(told: Told) -> (String, Revocation) {
    let expires_unix = (told.expires_unix != 0).then_some(told.expires_unix);
    let revocation = Revocation { reason: told.reason, by: told.by, at_unix: told.at_unix, expires_unix };
    (told.what, revocation)
}

fn invalid(message: impl Into<String>) -> CallError {
    call_error(ErrorCode::InvalidRequest, message)
}

/// A rule's refusal by the region's own store.
fn refused(master: &Master, error: RuleError) -> CallError {
    let code = match &error {
        RuleError::Store(StoreError::NotLeader | StoreError::Failed(_)) => return master.not_leader(),
        RuleError::Store(StoreError::CommitUnknown) => ErrorCode::OutcomeUnknown,
        RuleError::Store(_) => ErrorCode::Unavailable,
        RuleError::Revocation(Refused::NotRevoked(_)) => ErrorCode::NotFound,
        RuleError::Revocation(_) => ErrorCode::InvalidRequest,
        _ => ErrorCode::Internal,
    };
    call_error(code, error.to_string())
}

/// A change of the region's own store, by its leader.
async fn changed<F, Fut>(master: &Master, body: F) -> Result<u64, CallError>
where
    F: FnMut(mooseng_embedded::EmbeddedTransaction) -> Fut,
    Fut: Future<Output = Result<(mooseng_embedded::EmbeddedTransaction, u64), RuleError>>,
{
    master.serving()?;
    let version = transact(&master.store, body).await.map_err(|e| refused(master, e))?;
    look(master).await;
    Ok(version)
}

/// What this master knows of what is to be refused.
#[derive(Debug, Default, PartialEq, Eq)]
struct Uses {
    own: bool,
    serves: bool,
    said: Vec<String>,
}

fn uses(master: &Master, peer: &Peer, what: &str) -> Uses {
    let mut uses = Uses { own: what == peer.uri || what == peer.serial, ..Uses::default() };
    if uses.own {
        uses.said.push(format!("{what} is your own certificate: masters won't hear you any more."));
    }
    let Ok(identity) = Identity::parse(what) else { return uses };
    let now = master.clock.boot();
    master.desk(|desk| {
        let sessions = desk.sessions.views(now).into_iter().filter(|view| view.recorded.identity == what).count();
        if sessions > 0 {
            uses.said.push(format!(
                "{what} has {sessions} open sessions in {}: they end with their leases, and what they have buffered is lost.",
                master.identity.region
            ));
        }
        if identity.role == Role::Chunkserver && identity.region == master.identity.region {
            let limits = desk.registry.limits();
            let server = desk.registry.iter().find(|server| server.beat.name == identity.name);
            uses.serves = server.is_some_and(|server| server.liveness(now, limits) == Liveness::Alive);
            let located = desk.located(&identity.name);
            if located > 0 {
                uses.said.push(format!(
                    "{what} has copies of {located} chunks, which are made anew from others: `mooseng chunkservers drain {}` empties it first.",
                    identity.name
                ));
            }
        }
    });
    uses
}

/// Who may not be refused by name.
fn takes_part(master: &Master) -> BTreeSet<String> {
    let of_group = master.raft.status().members.into_iter().map(|member| Identity {
        cluster: master.identity.cluster.clone(),
        region: master.identity.region.clone(),
        role: Role::Master,
        name: member.node.name,
    });
    let of_cluster = master.global.as_ref().map(|global| global.takes_part()).unwrap_or_default();
    of_group.map(|identity| identity.to_string()).chain(of_cluster).collect()
}

/// An administrator has certificates refused, or asks whether that could be.
pub async fn revoke(
    master: &Master,
    peer: &Peer,
    request: RevokeRequest,
    deadline: Instant,
) -> Result<RevokeReply, CallError> {
    let now_ms = now_ms(master);
    let now_unix = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
    let takes_part = takes_part(master);
    let (mut wanted, mut said) = (BTreeMap::new(), Vec::new());
    for asked in request.revocations {
        let (what, revocation) = told(asked);
        let revocation = Revocation { by: peer.uri.clone(), at_unix: now_unix, ..revocation };
        let what = rules::may_revoke(&what, &revocation, &takes_part, now_unix)
            .map_err(|e| invalid(e.to_string()))?;
        let named = Identity::parse(&what).ok();
        if named.is_some_and(|named| named.cluster != master.identity.cluster) {
            return Err(invalid(format!("{what} is of another cluster than {}", master.identity.cluster)));
        }
        let uses = uses(master, peer, &what);
        if uses.own && !request.although_own {
            return Err(invalid(format!(
                "{what} is the certificate that this was asked with: nothing could be taken back with it. Use another administrator's certificate, or say --although-it-is-your-own"
            )));
        }
        if uses.serves && !request.although_it_serves {
            return Err(invalid(format!(
                "{what} is a chunkserver that serves: its copies couldn't be reached any more. Empty it first (`mooseng chunkservers drain`), or say --although-it-serves"
            )));
        }
        said.extend(uses.said);
        wanted.insert(what, revocation);
    }
    let known = master.revoked.now();
    let more = wanted.keys().filter(|what| !known.revoked.contains_key(*what)).count();
    if wanted.is_empty() {
        return Err(invalid("nothing is named that is to be revoked"));
    }
    if known.revoked.len() + more > AGREED_MAX {
        return Err(invalid(Refused::TooMany.to_string()));
    }
    if request.plan {
        // The leader of the global group says so itself where it is to be done.
        let level = master.global.as_ref().map(|global| global.view().level);
        let allowed = level.map_or(Ok(()), |level| level.require(Feature::Revocations));
        allowed.map_err(|below| invalid(below.to_string()))?;
        return Ok(RevokeReply { version: known.version, uses: said });
    }
    let version = match &master.global {
        Some(global) => {
            let revocations = wanted.iter().map(|(what, revocation)| tell(what, revocation)).collect();
            let change = Change::Revoke(Revoke { revocations, at_least: 0 });
            global.change(change, deadline).await?.version
        }
        None => {
            let wanted = &wanted;
            changed(master, |tx| async move {
                let version = rules::revoke(&tx, Space::Region, wanted, (now_ms, 0)).await?;
                Ok((tx, version))
            })
            .await?
        }
    };
    Ok(RevokeReply { version, uses: said })
}

/// And takes one back.
pub async fn unrevoke(master: &Master, what: &str, deadline: Instant) -> Result<RevokeReply, CallError> {
    let version = match &master.global {
        Some(global) => {
            global.change(Change::Unrevoke(Unrevoke { what: what.to_owned() }), deadline).await?.version
        }
        None => {
            let now_ms = now_ms(master);
            changed(master, |tx| async move {
                let version = rules::unrevoke(&tx, Space::Region, what, now_ms).await?;
                Ok((tx, version))
            })
            .await?
        }
    };
    Ok(RevokeReply { version, uses: Vec::new() })
}

/// What findings are made of. Versions are times of changes in milliseconds, as a rule: where a clock was ahead, it is said later that somebody lags.
pub fn facts(master: &Master) -> AgreedFacts {
    let version = master.revoked.now().version;
    let since_ms = now_ms(master).saturating_sub(version);
    AgreedFacts { version, settled: Duration::from_millis(since_ms) >= HEARD_WITHIN }
}

/// What is refused, as this master knows it.
pub fn list(master: &Master) -> ListRevocationsReply {
    let known = master.revoked.now();
    ListRevocationsReply {
        version: known.version,
        revocations: known.revoked.iter().map(|(what, revocation)| tell(what, revocation)).collect(),
        region: master.identity.region.clone(),
    }
}
