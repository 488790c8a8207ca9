//! Volumes that are made and deleted: by the leader of the home of the volume above, which alone knows what its directories name
//! (docs/decisions/0032-volumes.md).
//!
//! ```text
//!  create: is the directory fit? --> global: CreateVolume --> its home has formatted it --> the directory names it --> global: JoinVolume
//!  delete: is it empty? (its home) --> global: LeaveVolume --> the directory is let go of --> global: DeleteVolume
//! ```
//! What is interrupted, at whichever step, is gone on with by the same command: each step finds what was done of it already. Until the directory names
//! the volume nobody sees it; and it is named no more before anything of it goes.
//!
//! Only an empty volume is deleted. Its home is asked before it is called *leaving*; from then on nobody is let into it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_global::{Stage, View, Volume};
use mooseng_namespace::{joins, upkeep};
use mooseng_region::sessions::View as SessionView;
use mooseng_schema::loss::LossRecord;
use mooseng_store::Store;
use mooseng_transport::call_error;
use mooseng_wire::admin::delete_volume_request::Which;
use mooseng_wire::admin::{CreateVolumeReply, CreateVolumeRequest, DeleteVolumeReply, DeleteVolumeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::Fact;
use mooseng_wire::geo::{AskServed, Served};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{CreateVolume, DeleteVolume, JoinVolume, LeaveVolume};
use mooseng_wire::method::Method;
use mooseng_wire::{InodeId, VolumeId};
use tokio::time::Instant;

use super::{ask, at_home, failed, home_of, losses, pause, sync};
use crate::errors::record_failed;
use crate::global::Global;
use crate::global::status::told;
use crate::master::Master;
use crate::own::{self, Repeat};
use crate::records::transact;
use crate::tree::Asked;

/// How often it is looked whether a volume's home has formatted it.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long sessions may take to tell what they made alone, before a volume is called empty: as long as another region's leader is waited for.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// What to do where a volume is to be made, or deleted, and nothing is there.
const MAKE_IT: &str = "make the directory first, on a mount (`mkdir`), and give its path";
const NAME_ANOTHER: &str =
    "`mooseng volume list` shows where volumes are joined; give the path of one of those directories";

fn refused(message: impl Into<String>) -> CallError {
    call_error(ErrorCode::InvalidRequest, message)
}

fn not_there(path: &str, or_else: &str) -> CallError {
    let message = format!(
        "{path} isn't there; {or_else} from the root of the filesystem (symbolic links aren't followed)"
    );
    call_error(ErrorCode::NotFound, message)
}

/// What the commands work with, on the leader of the home of the volume above.
struct Parent<'a> {
    master: &'a Arc<Master>,
    global: &'a Global,
    /// The volume above, with where the tree shows it.
    above: Asked,
    custody: u64,
    deadline: Instant,
}

impl<'a> Parent<'a> {
    async fn of(master: &'a Arc<Master>, above: u32, deadline: Instant) -> Result<Self, CallError> {
        let global = master.global.as_deref().ok_or_else(|| {
            refused("this cluster has one region, whose masters' configuration has no [global]: volumes besides the root are agreed on by the global group")
        })?;
        let above = u16::try_from(above).map(VolumeId).map_err(|_| super::no_volume(above))?;
        super::there_is(master, above, deadline).await?;
        let custody = master.serving_of(above)?;
        at_home(master, above)?;
        Ok(Self { master, global, above: Asked::about(master, above).await, custody, deadline })
    }

    fn volume(&self) -> VolumeId {
        self.above.volume
    }

    fn view(&self) -> Arc<View> {
        self.global.view()
    }

    /// What is agreed on once this master knows of that version.
    async fn known(&self, version: u64) -> Result<Arc<View>, CallError> {
        let late = || {
            let message =
                "what was agreed on isn't known here yet; `mooseng volume list` shows how far it came";
            call_error(ErrorCode::OutcomeUnknown, message)
        };
        super::agreed(self.master, version, self.deadline).await.ok_or_else(late)
    }

    /// What lies at a path of the volume; `or_else` says what to do where nothing does.
    async fn inode_at(&self, path: &Bytes, or_else: &str) -> Result<InodeId, CallError> {
        let volume = self.volume();
        let found = transact(&self.master.store, |tx| {
            let path = path.clone();
            async move {
                let found = upkeep::inode_at(&tx, volume, &path).await?;
                let other = joins::on_the_way(&tx, volume, &path).await?;
                Ok((tx, (found, other)))
            }
        });
        let (found, other) = found.await.map_err(|e| record_failed(&e))?;
        let path = self.above.told(path);
        // It was joined since the way was looked for, or an earlier release's command asks, which doesn't follow it.
        if let Some(other) = other {
            return Err(refused(format!(
                "{path} leads into volume {other}, whose home makes and deletes volumes there: repeat the command"
            )));
        }
        found.ok_or_else(|| not_there(&path, or_else))
    }

    /// The volume that a directory names.
    async fn joined_at(&self, directory: InodeId) -> Result<Option<VolumeId>, CallError> {
        let joined = transact(&self.master.store, |tx| async move {
            let joined = joins::joined_at(&tx, directory).await?;
            Ok((tx, joined))
        });
        joined.await.map_err(|e| record_failed(&e))
    }

    /// Refuses a directory at which nothing can be joined but what is there.
    async fn is_fit(&self, path: &str, directory: InodeId) -> Result<(), CallError> {
        let there = in_directory(&self.view(), directory).map(|(id, _)| id);
        let fit = transact(&self.master.store, |tx| async move {
            let fit = joins::may_join(&tx, directory, there).await?;
            Ok((tx, fit))
        });
        match fit.await.map_err(|e| record_failed(&e))? {
            Ok(()) => Ok(()),
            // A failover has lost that it was let go of, or what was agreed on isn't known here yet.
            Err(joins::Refused::Taken(other)) if !self.view().volumes.contains_key(&other) => {
                Err(refused(format!(
                    "{path} names volume {other}, of which this region doesn't know: if `mooseng volume list` doesn't show it, it is deleted, and `mooseng volume delete {path}` mends that"
                )))
            }
            Err(why) => Err(refused(format!("no volume can be joined at {path}: {why}"))),
        }
    }

    /// Waits until the leader of a volume's home serves it.
    async fn formatted(&self, id: VolumeId) -> Result<(), CallError> {
        loop {
            let why = match self.is_served(id).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if Instant::now() + LOOK_EVERY * 2 >= self.deadline {
                let message = format!(
                    "volume {id} is made, and its home doesn't serve it yet, so it isn't joined ({why}). Repeat the command once it does; `mooseng volume list` shows it until then"
                );
                return Err(call_error(ErrorCode::Unavailable, message));
            }
            tokio::time::sleep(pause(LOOK_EVERY)).await;
        }
    }

    async fn is_served(&self, id: VolumeId) -> Result<(), String> {
        let home = home_of(self.master, id)?;
        if home == self.master.config.region {
            at_home(self.master, id).map_err(|e| e.message)?;
            return self.master.serving_of(id).map(drop).map_err(|e| e.message);
        }
        let message = AskServed { volume: id.0.into(), ..AskServed::default() };
        ask::<_, Served>(self.master, &home, Method::VolumeServed, &message).await.map(drop)
    }

    /// Refuses a volume with something in it, as its home says. Only before it is being deleted: from then on nobody is let in.
    async fn is_empty(&self, path: &str, id: VolumeId, loses_put_aside: bool) -> Result<(), CallError> {
        let view = self.view();
        let stage = view.volumes.get(&id).and_then(|known| known.join.as_ref()).map(|join| join.stage);
        if stage != Some(Stage::Joined) {
            return Ok(());
        }
        let unknown = |why: String| {
            let message = format!(
                "whether volume {id} is empty isn't known now, and only an empty one is deleted: its home has to say it ({why}). Try again"
            );
            call_error(ErrorCode::Unavailable, message)
        };
        let home = home_of(self.master, id).map_err(unknown)?;
        let not_empty = if home == self.master.config.region {
            at_home(self.master, id).map_err(|e| unknown(e.message))?;
            let deadline = self.deadline.min(Instant::now() + EMPTY_WITHIN);
            not_empty(self.master, id, loses_put_aside, deadline).await.map_err(|e| unknown(e.message))?
        } else {
            let message = AskServed { volume: id.0.into(), whether_empty: true, loses_put_aside };
            let served = ask::<_, Served>(self.master, &home, Method::VolumeServed, &message).await;
            let served = served.map_err(unknown)?;
            if !served.looked {
                return Err(unknown("its masters are of an earlier release".into()));
            }
            served.not_empty
        };
        if not_empty.is_empty() {
            return Ok(());
        }
        Err(refused(format!("{path} isn't deleted: {not_empty}. Then repeat the command")))
    }

    /// Has the directory name the volume.
    async fn name_it(&self, path: &str, directory: InodeId, id: VolumeId) -> Result<(), CallError> {
        let now_ns = self.master.clock.unix_ns();
        let joined = own::change(
            self.master,
            self.volume(),
            self.custody,
            Repeat::Harmless,
            self.deadline,
            |tx, touched| Box::pin(async move { joins::join(tx, touched, now_ns, directory, id).await }),
        );
        joined.await?.map_err(|why| {
            refused(format!(
                "volume {id} is made, and can't be joined at {path}: {why}. Repeat the command then, or give the volume up (`mooseng volume delete {id}`)"
            ))
        })?;
        // Who takes over the volume above has that, too, before anybody else counts on it.
        sync::everything(self.master, self.volume(), self.deadline).await
    }

    /// Has it name the volume no more, if it does.
    async fn let_go(&self, directory: InodeId, id: VolumeId) -> Result<(), CallError> {
        let now_ns = self.master.clock.unix_ns();
        let gone = own::change(
            self.master,
            self.volume(),
            self.custody,
            Repeat::Harmless,
            self.deadline,
            |tx, touched| Box::pin(async move { joins::let_go(tx, touched, now_ns, directory, id).await }),
        );
        gone.await?;
        sync::everything(self.master, self.volume(), self.deadline).await
    }

    async fn agree(&self, change: Change) -> Result<mooseng_wire::global::Changed, CallError> {
        self.global.change(change, self.deadline).await
    }
}

/// Why a volume that is at home here isn't empty, and what to do, in a sentence; nothing where it is. Sessions tell first what they made alone in its root
/// directory; what they make after that goes with the volume.
pub(super) async fn not_empty(
    master: &Arc<Master>,
    volume: VolumeId,
    loses_put_aside: bool,
    deadline: Instant,
) -> Result<String, CallError> {
    let custody = master.serving_of(volume)?;
    if !loses_put_aside && has_put_aside(master, volume).await? {
        return Ok(format!(
            "failovers of it have lost something, which a region has put aside, or may once it is back, and which would go with it (`mooseng volume losses {volume}`, `mooseng salvage list`). Look at that, and say --although-it-loses-what-was-put-aside"
        ));
    }
    let root = InodeId::root_of(volume);
    let has_entries = own::change(master, volume, custody, Repeat::Harmless, deadline, |tx, touched| {
        touched.note(Fact::Inode(root));
        touched.note(Fact::Directory(root));
        Box::pin(joins::has_entries(tx, root))
    });
    if has_entries.await? {
        return Ok(
            "something is in it, which would be lost. Remove that on a mount (`rm -r`), or move it elsewhere"
                .into(),
        );
    }
    let now = master.clock.boot();
    let is_open = |view: &SessionView| view.recorded.session.volume() == volume && view.opens > 0;
    let open = master.desk(|desk| desk.sessions.views(now).into_iter().find(is_open));
    Ok(open.map_or_else(String::new, |view| {
        let recorded = view.recorded;
        format!(
            "files that were removed from it are open still on {}, in what is mounted at {}. End what has them open",
            recorded.host, recorded.mount_path
        )
    }))
}

/// Whether the ledger has something that a region has put aside, or may have still: a lost home that isn't back.
async fn has_put_aside(master: &Master, volume: VolumeId) -> Result<bool, CallError> {
    let ledger = losses::ledger(&master.store.begin(), volume).await.map_err(|e| failed(master, &e))?;
    let of = |loss: &LossRecord| loss.undone > 0 || loss.named.as_ref().is_none_or(|named| named.entries > 0);
    Ok(ledger.iter().any(|(_, loss)| of(loss)))
}

/// The volume that is made for a directory, or joined there.
fn in_directory(view: &View, directory: InodeId) -> Option<(VolumeId, &Volume)> {
    let is_there = |volume: &Volume| volume.join.as_ref().is_some_and(|j| j.place.directory == directory);
    view.volumes.iter().find(|(_, volume)| is_there(volume)).map(|(id, volume)| (*id, volume))
}

/// A path as it is looked up: without a slash at its end.
fn path_of(path: &Bytes) -> Result<Bytes, CallError> {
    if path.first() != Some(&b'/') {
        let path = String::from_utf8_lossy(path);
        return Err(refused(format!(
            "{path:?} isn't a path: give that of a directory, from the root of the filesystem, as /directory"
        )));
    }
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
    Ok(path.slice(..end))
}

/// Makes a volume and joins it, or says whether that could be done now. Done already, it is the same one.
pub async fn create(
    master: &Arc<Master>,
    request: CreateVolumeRequest,
    deadline: Instant,
) -> Result<CreateVolumeReply, CallError> {
    let parent = Parent::of(master, request.parent, deadline).await?;
    let _one = master.joins_gate.lock().await;
    let path = path_of(&request.path)?;
    let shown = parent.above.told(&path);
    let directory = parent.inode_at(&path, MAKE_IT).await?;
    parent.is_fit(&shown, directory).await?;
    let making = CreateVolume {
        directory: directory.0,
        path: shown.clone(),
        home: request.home,
        geo: request.geo,
        regions: request.regions,
    };
    if request.plan {
        let checked = parent.agree(Change::CheckCreate(making)).await?;
        master.may_answer(parent.custody)?;
        return Ok(CreateVolumeReply { version: checked.version, volume: None });
    }
    let made = parent.agree(Change::CreateVolume(making)).await?;
    let unnumbered =
        || call_error(ErrorCode::Internal, "the leader of the global group gave the volume no number");
    let number = made.volume.ok_or_else(unnumbered)?;
    let id = u16::try_from(number).map(VolumeId).map_err(|_| unnumbered())?;
    parent.known(made.version).await?;
    parent.formatted(id).await?;
    parent.name_it(&shown, directory, id).await?;
    let joined = match parent.agree(Change::JoinVolume(JoinVolume { volume: number })).await {
        Ok(joined) => joined,
        // It was deleted meanwhile, by another leader: the directory isn't to name it.
        Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidRequest) => {
            parent.let_go(directory, id).await?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    let view = parent.known(joined.version).await?;
    Ok(CreateVolumeReply {
        version: joined.version,
        volume: view.volumes.get(&id).map(|known| told(id, known)),
    })
}

/// Which volume is to be deleted, and the directory that names it.
async fn sought(parent: &Parent<'_>, which: Which) -> Result<(VolumeId, InodeId, String), CallError> {
    let view = parent.view();
    let place = |id: VolumeId| view.volumes.get(&id).and_then(|known| known.join.as_ref()).map(|j| &j.place);
    match which {
        Which::Volume(number) => {
            let id = super::known(parent.master, number)
                .map_err(|status| call_error(ErrorCode::NotFound, status.message()))?;
            // The root volume is nowhere: that it stays is the global group's to say.
            let Some(place) = place(id) else { return Ok((id, InodeId::root_of(id), "/".to_owned())) };
            if place.parent() != parent.volume() {
                return Err(refused(format!(
                    "volume {id} is joined in volume {}, whose home deletes it, not in volume {}",
                    place.parent(),
                    parent.volume()
                )));
            }
            Ok((id, place.directory, place.path.clone()))
        }
        Which::Path(path) => {
            let path = path_of(&path)?;
            let shown = parent.above.told(&path);
            let directory = parent.inode_at(&path, NAME_ANOTHER).await?;
            let made = || in_directory(&view, directory).map(|(id, _)| id);
            let id = parent.joined_at(directory).await?.or_else(made).ok_or_else(|| {
                let message = format!(
                    "no volume is joined at {shown}; `mooseng volume list` names those that there are"
                );
                call_error(ErrorCode::NotFound, message)
            })?;
            match place(id) {
                Some(other) if other.directory != directory => Err(refused(format!(
                    "{shown} names volume {id}, which is joined at {}: report it",
                    other.path
                ))),
                _ => Ok((id, directory, shown)),
            }
        }
    }
}

/// Deletes a volume, or says whether that could be done now. What was deleted already, and is named still, is let go of.
pub async fn delete(
    master: &Arc<Master>,
    request: DeleteVolumeRequest,
    deadline: Instant,
) -> Result<DeleteVolumeReply, CallError> {
    let parent = Parent::of(master, request.parent, deadline).await?;
    let _one = master.joins_gate.lock().await;
    let which =
        request.which.ok_or_else(|| refused("the request doesn't say which volume is to be deleted"))?;
    let (id, directory, path) = sought(&parent, which).await?;
    let number = u32::from(id.0);
    let done = |version: u64| DeleteVolumeReply { version, volume: number, path: path.clone() };
    let leaving = LeaveVolume { volume: number };
    parent.is_empty(&path, id, request.loses_put_aside).await?;
    if request.plan {
        let checked = parent.agree(Change::CheckLeave(leaving)).await?;
        master.may_answer(parent.custody)?;
        return Ok(done(checked.version));
    }
    parent.agree(Change::LeaveVolume(leaving)).await?;
    parent.let_go(directory, id).await?;
    let deleted = parent.agree(Change::DeleteVolume(DeleteVolume { volume: number })).await?;
    // Whoever asks this master next sees it.
    parent.known(deleted.version).await?;
    Ok(done(deleted.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_deletes_what_is_not_there_is_not_told_to_make_it() {
        let making = not_there("/nope", MAKE_IT);
        assert!(making.message.starts_with("/nope isn't there; make the directory first"), "{making:?}");
        let deleting = not_there("/nope", NAME_ANOTHER);
        assert_eq!(deleting.code(), ErrorCode::NotFound);
        assert!(!deleting.message.contains("mkdir"), "{}", deleting.message);
        assert!(deleting.message.contains("`mooseng volume list`"), "{}", deleting.message);
    }
}
