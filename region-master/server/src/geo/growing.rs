//! What a chunkserver of this region is ordered to have of a chunk that another region has: what is missing of it is read there, unless it comes by itself.

use std::time::Duration;

use bytes::Bytes;
use mooseng_transport::CallFailure;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::chunk::{Follow, Followed};
use mooseng_wire::geo::Source;
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Role};

use super::fetch::{PACE_MIN, PULL_WITHIN, address_of};
use crate::master::Master;

/// What copies are ordered to have.
pub(super) struct Growing {
    /// By the leader of that custody epoch.
    pub term: u64,
    pub chunk: ChunkId,
    /// So much of it.
    pub upto: u64,
    /// Where they end there, too: what they are to be.
    pub digest: Bytes,
}

/// Why a copy hasn't it.
pub(super) struct NotFollowed {
    pub reason: String,
    /// What it has of the chunk can't become what is wanted.
    pub useless: bool,
    /// It has less, and was told of no source, or couldn't read any of those: another one may do.
    pub behind: bool,
}

impl Growing {
    /// Has a chunkserver have it; without a source, if it has it already, or so many milliseconds later. Answers how much it has.
    pub(super) async fn follow(
        &self,
        master: &Master,
        target: &str,
        source: Option<&Source>,
        expected_ms: u32,
    ) -> Result<u64, NotFollowed> {
        let Some(address) = address_of(master, target) else {
            let reason = format!("{target}, which has a part of it, hasn't reported to this leader yet");
            return Err(NotFollowed { reason, useless: false, behind: false });
        };
        let mut failed = NotFollowed {
            reason: "the home names nobody who has it".to_owned(),
            useless: false,
            behind: true,
        };
        let holders = match source {
            Some(source) => source.holders.iter().map(Some).collect(),
            None => vec![None],
        };
        for holder in holders {
            let order = Follow {
                chunk: self.chunk.0,
                epoch: master.epoch(self.chunk.volume()).0,
                upto: self.upto,
                custody: master.orders(self.term),
                source: holder.cloned(),
                ticket: source.map(|source| Bytes::clone(&source.ticket)).unwrap_or_default(),
                digest: self.digest.clone(),
                expected_ms,
            };
            let within = PULL_WITHIN + Duration::from_secs(self.upto / PACE_MIN);
            let link = master.link(Role::Chunkserver, &address);
            match link.request::<_, Followed>(Method::ChunkFollow, &order, within).await {
                Ok(followed) => return Ok(followed.length),
                // Another source would do if it were the source's fault.
                Err(error) => {
                    use ErrorCode::{ChunkSealed, Corrupt, DiskFailed};
                    failed.useless |= matches!(&error, CallFailure::Remote(e) if matches!(e.code(), ChunkSealed | Corrupt | DiskFailed));
                    let no_source =
                        if holder.is_some() { ErrorCode::Unavailable } else { ErrorCode::NotFound };
                    failed.behind &= matches!(&error, CallFailure::Remote(e) if e.code() == no_source);
                    let from =
                        holder.map_or_else(String::new, |holder| format!(" from {}", holder.chunkserver));
                    failed.reason = format!("{target}{from}: {error}");
                }
            }
        }
        Err(failed)
    }
}
