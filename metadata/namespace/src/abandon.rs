//! Sealing the chunk of a session that is gone.
//!
//! It is sealed at the length that extents name, and the chunkservers cut what lies behind. That length is found by reading a lot, so the session
//! may come back meanwhile, as its next incarnation, and commit what it appended before: the cut would destroy it. So the seal holds only if the
//! life that was over when the looking began is still over, and is the same one: a session whose lease ran out changes nothing until it begins
//! its next life, and a closed one never does.

use mooseng_store::Transaction;
use mooseng_wire::SessionId;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsRequest, SealChunk};

use crate::context::OpContext;
use crate::error::OpError;
use crate::ops::execute;
use crate::sessions::load_session;

/// A session's life that is over: the incarnation that lapsed, or none for a session without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over(Option<u64>);

/// Whether a session's newest life is over.
pub async fn over<T: Transaction>(tx: &T, session: SessionId) -> Result<Option<Over>, OpError> {
    Ok(match load_session(tx, session).await? {
        None => Some(Over(None)),
        Some(record) if record.lapsed_ns.is_some() => Some(Over(Some(record.incarnation))),
        Some(_) => None,
    })
}

/// Seals a chunk of a session whose life was `over` before the seal's length was looked for. Answers false, and does nothing, if the session has
/// come back since.
pub async fn seal<T: Transaction>(
    tx: &T,
    ctx: &OpContext,
    owner: SessionId,
    was_over: Over,
    seal: SealChunk,
) -> Result<bool, OpError> {
    if over(tx, owner).await? != Some(was_over) {
        return Ok(false);
    }
    execute(tx, ctx, &FsRequest { caller: None, op: Some(Op::SealChunk(seal)) }).await.map(|_| true)
}
