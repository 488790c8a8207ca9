//! Draining a chunkserver: decided by an administrator, kept in the region's store, obeyed by placement and repair.

use std::collections::BTreeSet;

use mooseng_namespace::upkeep;
use mooseng_wire::call::CallError;
use tonic::Status;

use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;

/// The chunkservers that are being drained.
pub async fn load(master: &Master) -> Result<BTreeSet<String>, CallError> {
    let known = transact(&master.store, |tx| async move {
        let known = upkeep::list_chunkservers(&tx).await?;
        Ok((tx, known))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    let draining = known.into_iter().filter(|(_, record)| record.draining_since_ns.is_some());
    Ok(draining.map(|(name, _)| name).collect())
}

/// Begins or ends a draining. Answers how many chunks' locations name the chunkserver, as far as is known so soon.
pub async fn set(master: &Master, name: &str, drain: bool) -> Result<u64, Status> {
    master.serving().map_err(|e| Status::unavailable(e.message))?;
    let known = master.desk(|desk| {
        desk.registry.get(name).is_some() || desk.registry.is_draining(name) || desk.located(name) > 0
    });
    if !known {
        let message = format!("no chunkserver called {name:?} is known; `mooseng status` shows them");
        return Err(Status::not_found(message));
    }
    let since_ns = drain.then(|| master.clock.unix_ns());
    let kept = transact(&master.store, |tx| async move {
        upkeep::drain_chunkserver(&tx, name, since_ns).await?;
        Ok((tx, ()))
    });
    kept.await.map_err(|e| Status::unavailable(record_failed(&e).message))?;
    let draining = load(master).await.map_err(|e| Status::unavailable(e.message))?;
    Ok(master.desk(|desk| {
        desk.set_draining(draining);
        desk.located(name)
    }))
}
