//! Changes that were sent and whose callers have gone: they go on, for they may have been done already. What becomes of them nobody is there to hear, so that what a
//! caller would do with the answer is done here; and whoever comes later waits until they are over ([`Region::behind_abandoned`]).

use bytes::Bytes;
use mooseng_wire::InodeId;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Created, FsRequest};

use super::{Flight, Region};
use crate::error::FsError;
use crate::journal::{self, SentOwned};
use crate::waits::{self, What};

/// The names that a change makes, moves or removes.
fn names_of(op: &Op) -> Vec<(u64, Bytes)> {
    match op {
        Op::Create(r) => vec![(r.parent, r.name.clone())],
        Op::Mknod(r) => vec![(r.parent, r.name.clone())],
        Op::Mkdir(r) => vec![(r.parent, r.name.clone())],
        Op::Symlink(r) => vec![(r.parent, r.name.clone())],
        Op::Link(r) => vec![(r.new_parent, r.new_name.clone())],
        Op::Unlink(r) => vec![(r.parent, r.name.clone())],
        Op::Rmdir(r) => vec![(r.parent, r.name.clone())],
        Op::Rename(r) => vec![(r.parent, r.name.clone()), (r.new_parent, r.new_name.clone())],
        _ => Vec::new(),
    }
}

/// What a change concerns of what is shown.
struct Shown {
    names: Vec<(u64, Bytes)>,
    /// What the names were known to stand for before it.
    inodes: Vec<u64>,
}

impl Region {
    /// Sends a change whose caller has gone until it is over. `sent` keeps those who come later waiting.
    pub(super) async fn settle(&self, mut flight: Flight, sent: Option<SentOwned>) {
        let shown = self.shown_by(&flight.request);
        let outcome = self.fly(&mut flight).await;
        self.finish(flight.number);
        match outcome {
            Ok(Reply::Errno(_)) => {}
            Ok(reply) => {
                self.close_unheard(&reply).await;
                // Who comes later needn't wait for the kernel.
                drop(sent);
                if let Some(shown) = shown {
                    self.show_anew(&flight.request, &reply, shown).await;
                }
            }
            // What it may have touched isn't promised any more then.
            Err(error) => tracing::debug!(what = flight.what, %error, "an interrupted change is settled"),
        }
    }

    fn shown_by(&self, request: &FsRequest) -> Option<Shown> {
        let op = request.op.as_ref().filter(|op| journal::comes_in_order(op))?;
        let names = names_of(op);
        let stood_for =
            |(directory, name): &(u64, Bytes)| self.session.known_entry(*directory, name).flatten();
        let inodes = names.iter().filter_map(stood_for).collect();
        Some(Shown { names, inodes })
    }

    /// The region holds a file open that was made, and nobody here knows: it hears that it is closed.
    async fn close_unheard(&self, reply: &Reply) {
        let Reply::Created(Created { attr: Some(made), created: true }) = reply else { return };
        let opens = &self.session.opens;
        let state = opens.add(made.inode);
        state.telling();
        if opens.remove(made.inode) {
            let _gate = state.gate.lock().await;
            if state.local() == 0 {
                opens.close(made.inode, self.session.order());
            }
        }
    }

    /// A kernel was told that the change failed, and may have asked since, before it was done. This session isn't asked to take back what it has changed itself.
    async fn show_anew(&self, request: &FsRequest, reply: &Reply, shown: Shown) {
        for (directory, name) in shown.names {
            self.recalls.forget_fact(&Fact::Entry(InodeId(directory), name)).await;
        }
        let mut inodes = journal::changed_by(request, Some(reply));
        inodes.extend(shown.inodes);
        inodes.sort_unstable();
        inodes.dedup();
        for inode in inodes {
            self.session.facts.renew_hold(inode);
            self.recalls.forget(inode).await;
        }
    }

    /// Waits until changes of these inodes are over that were sent and whose callers have gone: what comes later isn't to be overtaken by them.
    pub async fn behind_abandoned(&self, what: &'static str, inodes: &[u64]) -> Result<(), FsError> {
        let journal = &self.session.journal;
        if !journal.is_abandoned(inodes) {
            return Ok(());
        }
        let patience = self.patience();
        let over = waits::on(|| What::Earlier, journal.behind_abandoned(inodes));
        tokio::time::timeout(patience, over).await.map_err(|_| {
            self.unanswered_error(what, patience, "an earlier change isn't over whose process was killed")
        })
    }
}
