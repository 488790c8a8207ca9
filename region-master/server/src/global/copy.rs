//! This master's copy of the global store, read after each entry that it applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_embedded::Embedded;
use mooseng_global::rules::{self, RuleError};
use mooseng_global::{View, rules::version};
use mooseng_store::{Read, Store, Transaction};

use super::{Global, lock};

/// After a read that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often it is tried to have a raised level in the store: a second.
const FLUSH_TRIES: u32 = 20;

/// What was read.
struct Copy {
    /// None if it is as before.
    view: Option<View>,
    leases: BTreeMap<String, u64>,
    awaited: BTreeSet<String>,
    lease_ms: Option<u64>,
}

/// Reads what this member has applied, be it the newest or not.
async fn read(store: &Embedded, known: u64) -> Result<Copy, RuleError> {
    let tx = store.begin();
    tx.set_read_version(store.applied_version());
    let view = if version(&tx, Read::Snapshot).await? == known { None } else { rules::view(&tx).await? };
    Ok(Copy {
        view,
        leases: rules::leases(&tx).await?,
        awaited: rules::awaited(&tx).await?,
        lease_ms: rules::lease_ms(&tx).await?,
    })
}

/// Keeps the view and the receipts of leases up to date.
pub async fn keep(global: &Arc<Global>) {
    let raft = global.taking_part().await;
    let mut seen = None;
    loop {
        let index = raft.applied_beyond(seen).await;
        match read(&global.store, global.view().version).await {
            Ok(copy) => {
                seen = Some(index);
                keep_level(global, &copy).await;
                take(global, copy);
            }
            Err(error) => {
                // What was applied meanwhile may have made the version too old.
                if !matches!(&error, RuleError::Store(e) if e.is_retryable()) {
                    tracing::warn!(%error, "this master's copy of the global store can't be read; trying on");
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

/// Has a level that was raised on this disk before this master goes by it: an earlier release that knows of levels refuses to start then, whatever of its log it
/// has replayed.
async fn keep_level(global: &Global, copy: &Copy) {
    let before = global.view();
    let raised = copy.view.as_ref().is_some_and(|view| before.version > 0 && view.level > before.level);
    if !raised {
        return;
    }
    let wanted = global.store.position().index;
    for _ in 0..FLUSH_TRIES {
        match global.store.flush().await {
            Ok(flushed) if flushed >= wanted => return,
            // Somebody still reads what was there before.
            Ok(_) => tokio::time::sleep(AGAIN_AFTER).await,
            Err(error) => {
                return tracing::warn!(%error, "the feature level is in this master's log, and not in its store yet");
            }
        }
    }
    tracing::info!("the feature level is in this master's log, and not in its store yet");
}

fn take(global: &Global, copy: Copy) {
    if let Some(ms) = copy.lease_ms {
        *lock(&global.lease) = Duration::from_millis(ms);
    }
    // After the read: later than it was applied, never earlier. Of those of which it isn't known when they came.
    lock(&global.receipts).applied(global.clock.boot(), &copy.leases, &mut lock(&global.appended));
    // Before the view: of a region that is new in there it is known whether it has come.
    *lock(&global.awaited) = copy.awaited;
    if let Some(view) = copy.view {
        tracing::info!(
            version = view.version,
            regions = view.regions.len(),
            volumes = view.volumes.len(),
            "the regions have agreed on something new"
        );
        global.view.send_replace(Arc::new(view));
        // The level isn't raised before every master supports it; this one came back with another release, or joins with one.
        if let Err(unsupported) = global.is_supported() {
            tracing::error!("this master ends: its release {unsupported}");
            global.failure.send_replace(Some(format!("this master's release {unsupported}")));
        }
    }
}
