//! tell: changes that a session made alone, in their order and in one transaction.
//!
//! What an operation leaves in the transaction when it is refused nobody cleans up. So a refusal ends the run, and the next one leaves that change
//! out, with its answer ([`OpContext::refused`]). What rests on it is refused in its turn, by what it finds.

use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_store::Transaction;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::{FsReply, Tell, Told, Untold};
use mooseng_wire::{InodeId, VolumeId};

use super::execute_noting;
use crate::context::{Ids, OpContext};
use crate::error::OpError;
use crate::request::{is_told, needs_inode, volume_of};
use crate::view::View;

/// Changes in one request at most.
pub const CHANGES_MAX: usize = 512;

pub async fn tell<T: Transaction>(view: &View<'_, T>, r: &Tell) -> Result<Told, OpError> {
    if r.changes.len() > CHANGES_MAX {
        return Err(OpError::Malformed("it tells of too many changes at once"));
    }
    let mut replies = Vec::with_capacity(r.changes.len());
    let of = r.changes.first().and_then(|first| first.request.as_ref()).map(volume_of);
    let mut ctx = OpContext { refused: Default::default(), ..view.ctx.clone() };
    for (at, change) in r.changes.iter().enumerate() {
        if let Some(errno) = view.ctx.refused.get(&at) {
            replies.push(FsReply { reply: Some(Reply::Errno(errno.0)) });
            continue;
        }
        ctx.now_ns = change.at_ns.min(view.ctx.now_ns);
        match one(view, &mut ctx, change, of).await {
            Ok(reply) => replies.push(reply),
            Err(OpError::Errno(errno)) => return Err(OpError::Told { at, errno }),
            Err(other) => return Err(other),
        }
    }
    Ok(Told { replies })
}

/// Boxed, for it runs what it is called by.
fn one<'a, T: Transaction>(
    view: &'a View<'_, T>,
    ctx: &'a mut OpContext,
    change: &'a Untold,
    of: Option<VolumeId>,
) -> BoxFuture<'a, Result<FsReply, OpError>> {
    async move {
        let request = change.request.as_ref().ok_or(OpError::Malformed("it tells of no change"))?;
        if !is_told(request) {
            return Err(OpError::Malformed("it tells of what nobody may change alone"));
        }
        // They commit together, which changes of several volumes can't.
        if Some(volume_of(request)) != of {
            return Err(OpError::Malformed("it tells of changes in several volumes"));
        }
        ctx.ids = Ids::default();
        if needs_inode(request) {
            let id = InodeId(change.inode);
            // The ids are the session's to give; one that it gave before would take that inode's place.
            if change.inode == 0 || view.inode_if(id).await?.is_some() {
                return Err(OpError::Malformed("it makes an inode under an id that was given already"));
            }
            ctx.ids.inode = Some(id);
        }
        execute_noting(view.tx, ctx, request, view.touched).await
    }
    .boxed()
}
