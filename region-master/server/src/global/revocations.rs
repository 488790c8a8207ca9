//! What the leader of the global group answers about certificates that are refused, and every master's copy of that.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_global::rules::RuleError;
use mooseng_global::rules::revocations::{self as rules, Known, Space};
use mooseng_schema::revocation::Revocation;
use mooseng_wire::call::CallError;
use mooseng_wire::global::{Changed, Revoke};
use mooseng_wire::{Identity, Role};

use super::Global;
use super::serve::refused;
use crate::revocations::{read, told};

impl Global {
    /// What this master's copy says, unless that is the version that the caller has.
    pub(crate) async fn revoked(&self, have: u64) -> Result<Option<Known>, RuleError> {
        read(&self.store, Space::Cluster, have).await
    }

    /// The SPIFFE ids of the masters that the regions have agreed on.
    pub(crate) fn takes_part(&self) -> BTreeSet<String> {
        let cluster = self.network.identity().cluster;
        let view = self.view();
        let named =
            view.regions.iter().flat_map(|(region, known)| known.masters.iter().map(move |m| (region, m)));
        named
            .map(|(region, master)| Identity {
                cluster: cluster.clone(),
                region: region.clone(),
                role: Role::Master,
                name: master.name.clone(),
            })
            .map(|identity| identity.to_string())
            .collect()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.unix_ns() / 1_000_000).unwrap_or(0)
    }

    pub(super) async fn revoke_here(&self, asked: Revoke) -> Result<Changed, CallError> {
        let now_ms = self.now_ms();
        // What a region refuses already, and hands over, isn't judged again.
        let (takes_part, now_unix) = match asked.at_least {
            0 => (self.takes_part(), i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX)),
            _ => (BTreeSet::new(), i64::MIN),
        };
        let mut wanted: BTreeMap<String, Revocation> = BTreeMap::new();
        for revocation in asked.revocations {
            let (what, revocation) = told(revocation);
            let what = rules::may_revoke(&what, &revocation, &takes_part, now_unix);
            wanted.insert(what.map_err(|e| refused(self, e.into()))?, revocation);
        }
        let (wanted, at) = (&wanted, (now_ms, asked.at_least));
        self.version_of(|tx| async move {
            let version = rules::revoke(&tx, Space::Cluster, wanted, at).await?;
            Ok((tx, version))
        })
        .await
    }

    pub(super) async fn unrevoke_here(&self, what: &str) -> Result<Changed, CallError> {
        let now_ms = self.now_ms();
        self.version_of(|tx| async move {
            let version = rules::unrevoke(&tx, Space::Cluster, what, now_ms).await?;
            Ok((tx, version))
        })
        .await
    }

    /// As the leader: lets go of those whose certificates have ended.
    pub(crate) async fn sweep_revocations(&self) -> Result<(), CallError> {
        let now_ms = self.now_ms();
        let swept = self.version_of(|tx| async move {
            let version = rules::sweep(&tx, Space::Cluster, now_ms).await?;
            Ok((tx, version))
        });
        swept.await.map(drop)
    }
}
