//! What a session may see and change: the rules for mounts in the configuration (`mounts`), until policies decide it.
//!
//! A client that is no longer let in by a changed configuration loses its rights with the master's restart: rules are looked up for each request.

use mooseng_namespace::Errno;
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, FileKind, FsReply, FsRequest, Lookup};
use mooseng_wire::{Identity, InodeId, Role, SessionId, VolumeId};

use crate::config::{MountRule, Squash};
use crate::errors::{denied, record_failed};
use crate::fs::context;
use crate::geo::ROOT_VOLUME;
use crate::master::Master;
use crate::records::transact;
use crate::tree::{self, Way};

/// Linux' O_ACCMODE, O_RDONLY and O_TRUNC.
const ACCESS_MODE: u32 = 3;
const READ_ONLY: u32 = 0;
const TRUNCATE: u32 = 0o1000;
/// In the mask of access(2).
const WRITE: u32 = 2;

/// The rule for a client; none where there is no rule for anybody, and for administrators.
pub fn of<'a>(master: &'a Master, who: &Identity) -> Result<Option<&'a MountRule>, CallError> {
    let rules = &master.config.mounts;
    if rules.is_empty() {
        return Ok(None);
    }
    if who.role == Role::Admin {
        return Ok(None);
    }
    let rule = rules.iter().find(|rule| rule.is_for(&who.name));
    rule.map(Some).ok_or_else(|| {
        denied(format!(
            "no rule under `mounts` in the masters' configuration lets the client {} mount",
            who.name
        ))
    })
}

/// Whether a rule confines its client to less than the whole filesystem.
fn confines(rule: &MountRule) -> bool {
    rule.components().next().is_some()
}

/// Refuses a volume to a client whose rule names a subtree, unless the tree shows the volume in that now.
async fn may_enter(master: &Master, volume: VolumeId, rule: &MountRule) -> Result<(), CallError> {
    let subtree = &rule.subtree;
    match tree::way_up(master, volume).await {
        (at, Way::Known) if is_below(&at, rule) => Ok(()),
        (_, Way::Unclear) => {
            let message =
                format!("whether volume {volume} is joined in {subtree} isn't known at present; try again");
            Err(call_error(ErrorCode::Unavailable, message))
        }
        (_, Way::Known) => Err(denied(format!(
            "the rule for this client lets it mount {subtree}, in which volume {volume} isn't joined"
        ))),
        (_, Way::Elsewhere) => Err(denied(format!(
            "the rule for this client lets it mount {subtree}, and whether volume {volume} is joined in that isn't known in this region, its home, which doesn't have all the volumes above: give it those (`mooseng volume set PATH --regions`)"
        ))),
    }
}

/// Whether a path lies below a rule's subtree.
fn is_below(path: &[u8], rule: &MountRule) -> bool {
    let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    rule.components().all(|component| names.next() == Some(component.as_bytes())) && names.next().is_some()
}

/// The root of what a session sees. It is looked for once in a session's life, and again by the next leader.
pub async fn root(
    master: &Master,
    session: SessionId,
    rule: Option<&MountRule>,
) -> Result<InodeId, CallError> {
    let volume = session.volume();
    let Some(rule) = rule.filter(|rule| confines(rule)) else { return Ok(InodeId::root_of(volume)) };
    if let Some(root) = master.desk(|desk| desk.roots.get(&session).copied()) {
        return Ok(root);
    }
    let found = find_root(master, volume, Some(rule)).await?;
    master.desk(|desk| desk.roots.insert(session, found));
    Ok(found)
}

/// The directory of a volume that a rule's subtree is now; of a volume that is joined in that, its root.
pub async fn find_root(
    master: &Master,
    volume: VolumeId,
    rule: Option<&MountRule>,
) -> Result<InodeId, CallError> {
    let Some(rule) = rule.filter(|rule| confines(rule)) else { return Ok(InodeId::root_of(volume)) };
    if volume != ROOT_VOLUME {
        may_enter(master, volume, rule).await?;
        return Ok(InodeId::root_of(volume));
    }
    let context = context(master, volume);
    let context = &context;
    let found = transact(&master.store, move |tx| async move {
        let mut at = InodeId::root_of(volume);
        for component in rule.components() {
            let name = component.to_owned().into();
            let lookup = FsRequest { op: Some(Op::Lookup(Lookup { parent: at.0, name })), caller: None };
            let reply = mooseng_namespace::execute(&tx, context, &lookup).await;
            let attr = match reply {
                Ok(FsReply { reply: Some(Reply::Entry(entry)) }) => entry.attr,
                Err(mooseng_namespace::OpError::Errno(_)) => None,
                Ok(_) => None,
                Err(error) => return Err(error),
            };
            let directory = attr.filter(|attr| attr.kind() == FileKind::Directory);
            let Some(directory) = directory else { return Ok((tx, None)) };
            at = InodeId(directory.inode);
        }
        Ok((tx, Some(at)))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    found.ok_or_else(|| {
        denied(format!(
            "the rule for this client lets it mount {}, which isn't a directory now; make it, or change `mounts` in the masters' configuration",
            rule.subtree
        ))
    })
}

/// Puts a rule on a request: who asks is whom the rule makes of them. Answers the refusal of what a read-only mount may not do.
pub fn put_on(rule: &MountRule, request: &mut FsRequest) -> Option<FsReply> {
    if let Some(caller) = &mut request.caller {
        squash(rule, caller);
    }
    if let Some(Op::Tell(tell)) = &mut request.op {
        let callers = tell.changes.iter_mut().filter_map(|change| change.request.as_mut()?.caller.as_mut());
        callers.for_each(|caller| squash(rule, caller));
    }
    let changes = match &request.op {
        // Locks are allowed where nothing can be written, as on a local filesystem.
        Some(Op::Lock(_) | Op::Unlock(_) | Op::CancelLock(_) | Op::HoldLocks(_) | Op::RecordLocks(_)) => {
            false
        }
        Some(Op::Open(open)) => open.flags & ACCESS_MODE != READ_ONLY || open.flags & TRUNCATE != 0,
        Some(Op::Access(access)) => access.mask & WRITE != 0,
        Some(
            Op::Acquire(_) | Op::Reserve(_) | Op::HoldAlone(_) | Op::HoldFiles(_) | Op::ReserveInodes(_),
        ) => true,
        _ => mooseng_namespace::is_change(request),
    };
    let refused = rule.read_only && changes;
    refused.then(|| FsReply { reply: Some(Reply::Errno(Errno::EROFS.0)) })
}

/// What a host's kernel has checked for somebody whom the rule makes another one counts for nothing.
fn squash(rule: &MountRule, caller: &mut Caller) {
    let squashed = match rule.squash {
        Squash::None => false,
        // The mount's daemon sends for all its users. Where no user's word is taken, its isn't either.
        Squash::Root => caller.uid == 0 && !caller.own_account,
        Squash::All => true,
    };
    if squashed {
        caller.uid = rule.squash_uid;
        caller.gid = rule.squash_gid;
        caller.groups.clear();
        caller.kernel_checked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_a_subtree_begins_with_all_of_its_names() {
        let rule = |subtree: &str| MountRule {
            clients: vec!["*".into()],
            subtree: subtree.into(),
            read_only: false,
            squash: Squash::None,
            squash_uid: 65_534,
            squash_gid: 65_534,
        };
        for (subtree, path, is) in [
            ("/srv", "/srv/web", true),
            ("/srv/", "/srv//web/x", true),
            ("/srv", "/srv", false),
            ("/srv", "/srvx/web", false),
            ("/srv/web", "/srv/wiki", false),
            ("/srv/web", "/srv", false),
        ] {
            assert_eq!(is_below(path.as_bytes(), &rule(subtree)), is, "{path} of {subtree}");
        }
    }
}
