//! The region's lease, renewed by the region's leader.

use std::sync::Arc;
use std::time::Duration;

use mooseng_global::failover::Standing;
use mooseng_schema::log::LogPosition;
use mooseng_wire::VolumeId;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::founding::Founding;
use mooseng_wire::global::{Master as Seat, Position, Renew, Standing as Told};
use tokio::time::Instant;

use super::{Global, lock};
use crate::geo::ROOT_VOLUME;
use crate::lead;
use crate::master::{Master, custody_of};

/// Renewals in one lease.
const PER_LEASE: u32 = 5;
/// After one that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Renews the lease as long as this master leads its region.
pub async fn run(global: &Arc<Global>, master: &Arc<Master>) {
    let mut leadership = master.raft.leadership();
    let (mut told, mut refused) = (false, String::new());
    loop {
        if !master.raft.is_leading() {
            told = false;
            *lock(&global.kept_out) = None;
            lock(&global.holder).forget();
            lock(&global.standings).clear();
            // An error says that the node ended.
            if leadership.wait_for(|now| now.leading.is_some()).await.is_err() {
                return;
            }
            if !master.raft.is_leading() {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            continue;
        }
        // Before anything else is asked for: whoever lost all of its disks says so.
        let founding = match lead::founding(master).await {
            Ok(founding) => founding,
            Err(error) => {
                tracing::info!(error = %error.message, "the region's founding mark can't be read yet; trying on");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
        };
        let every = global.lease() / PER_LEASE;
        let (sent, began) = (global.clock.boot(), Instant::now());
        match global.renew(&renewal(global, master, founding), began + every * 2).await {
            Ok(renewed) => {
                let lease = Duration::from_millis(renewed.lease_ms);
                lock(&global.holder).renewed(sent, lease, renewed.version);
                *lock(&global.kept_out) = None;
                if !told {
                    tracing::info!(sequence = renewed.sequence, "this region holds its lease");
                    told = true;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(began + every) => {}
                    // Somebody waits for its word.
                    () = global.stood.notified() => {}
                }
            }
            Err(error) => {
                let denied = error.code() == ErrorCode::PermissionDenied;
                if denied {
                    *lock(&global.kept_out) = Some(error.message.clone());
                }
                if denied && refused != error.message {
                    tracing::error!(error = %error.message, "the region's lease is refused; trying on");
                } else if !denied && (told || !global.lease_valid()) {
                    tracing::info!(error = %error.message, "the region's lease can't be renewed; trying on");
                }
                (told, refused) = (false, error.message);
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

fn told(volume: VolumeId, standing: &Standing) -> Told {
    let place = |at: LogPosition| Some(Position { epoch: at.epoch.0, version: at.version });
    Told {
        volume: volume.0.into(),
        refuses: standing.refuses.0,
        complete: place(standing.complete),
        newest: place(standing.newest),
    }
}

fn renewal(global: &Global, master: &Master, founding: Founding) -> Renew {
    let members = master.raft.status().members;
    let seat = |m: mooseng_raft::MemberStatus| Seat {
        id: m.id,
        name: m.node.name,
        address: m.node.address,
        zone: m.node.zone,
    };
    let standings = lock(&global.standings).clone();
    Renew {
        region: global.region.clone(),
        masters: members.into_iter().map(seat).collect(),
        custody: custody_of(master.epoch(ROOT_VOLUME), master.raft.term()).unwrap_or(0),
        secret: global.config.secret(),
        founding: Founding::tell(Some(founding)),
        stands_no_more: standings.iter().filter(|(_, s)| s.is_none()).map(|(v, _)| v.0.into()).collect(),
        standings: standings.iter().filter_map(|(v, s)| Some(told(*v, s.as_ref()?))).collect(),
    }
}
