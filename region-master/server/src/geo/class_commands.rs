//! What administrators ask of the storage classes of the cluster, at a master of any region (docs/decisions/0039-classes-of-the-cluster.md).
//!
//! ```text
//!  create, set: --> global: CreateClass, SetClass --> homes bring their volumes' copies up to date
//!  delete: does anything have it? (homes) --> global: LeaveClass --> homes: they know that, and still nothing has it --> global: DeleteClass
//!                                                              \--> something has it, or a home is silent --> global: StayClass
//! ```
//! A deletion that is interrupted leaves the class *leaving*; the same command goes on with it, or takes it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mooseng_global::View;
use mooseng_global::view::Volume;
use mooseng_namespace::quota::Usage;
use mooseng_schema::storage_class::StorageClassRecord;
use mooseng_transport::call_error;
use mooseng_wire::admin::{
    CreateClassRequest, ListClassesReply, SetClassRequest, StorageClass, UncountedVolume,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{AskClassUse, ClassUse, VolumeClassUse};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{
    Changed, ClassLabels, CreateClass, DeleteClass, LeaveClass, SetClass, StayClass, VolumeEpoch,
};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::{Instant, timeout};

use super::{ROOT_VOLUME, agreed, ask, classes, pause};
use crate::classes::{by_default, class_of, min_copies, shown_as};
use crate::global::Global;
use crate::master::Master;

/// How long a region's leader may take to say what has which class.
const ASK_WITHIN: Duration = Duration::from_secs(4);
/// How often homes are asked anew, where a volume was made or taken over meanwhile.
const TRIES: u32 = 3;
/// Between two times.
const AGAIN: Duration = Duration::from_millis(200);
/// How long it may take to take a deletion back, whatever time is left for the command.
const TAKE_BACK_WITHIN: Duration = Duration::from_secs(3);

/// What has a class in one volume, as its home has said, and the home's epoch then; or why it isn't known.
type InVolume = Result<(Epoch, BTreeMap<u32, Usage>), String>;

fn refused(message: impl Into<String>) -> CallError {
    call_error(ErrorCode::InvalidRequest, message)
}

fn global(master: &Master) -> Result<&Global, CallError> {
    master.global.as_deref().ok_or_else(|| refused("this cluster has no global group"))
}

/// What is agreed on, by the master that speaks for its region: its own volumes it looks at itself.
fn known(master: &Master) -> Result<Arc<View>, CallError> {
    let view = master.geo.view().filter(|view| view.version > 0).ok_or_else(|| {
        let message = "this master doesn't know yet what the regions agreed on; try again";
        call_error(ErrorCode::Unavailable, message)
    })?;
    let has_home = view.volumes.values().any(|volume| volume.home == master.config.region);
    if has_home && !master.raft.is_leading() {
        return Err(master.not_leader());
    }
    Ok(view)
}

/// The class that was made or changed.
async fn told(
    master: &Master,
    changed: &Changed,
    name: &str,
    deadline: Instant,
) -> Result<StorageClass, CallError> {
    let view = agreed(master, changed.version, deadline).await;
    let class = view.and_then(|view| Some(view.classes.get(&changed.class?)?.class.clone()));
    let class = class.ok_or_else(|| {
        let message = format!(
            "the storage class {name:?} is agreed on, or was, and this master doesn't know of it; `mooseng class list` shows which there are"
        );
        call_error(ErrorCode::OutcomeUnknown, message)
    })?;
    Ok(one(master, changed.class.unwrap_or_default(), class, Usage::default()))
}

fn one(master: &Master, id: u32, record: StorageClassRecord, usage: Usage) -> StorageClass {
    let leaving = record.leaving;
    StorageClass { leaving, ..shown_as(master, &class_of((id, record)), usage) }
}

/// Makes a class.
pub async fn create(
    master: &Arc<Master>,
    request: CreateClassRequest,
    deadline: Instant,
) -> Result<StorageClass, CallError> {
    if request.volume != 0 || request.of_volume {
        return Err(refused(
            "storage classes are the cluster's, the same in all volumes: none is made for one of them. Repeat the command without --volume",
        ));
    }
    let asked = CreateClass {
        name: request.name.clone(),
        copies: request.copies,
        min_copies: min_copies(&request),
        labels: request.labels,
        set_ns: master.clock.unix_ns(),
    };
    let made = global(master)?.change(Change::CreateClass(asked), deadline).await?;
    told(master, &made, &request.name, deadline).await
}

/// Changes a class.
pub async fn set(
    master: &Arc<Master>,
    request: SetClassRequest,
    deadline: Instant,
) -> Result<StorageClass, CallError> {
    let asked = SetClass {
        name: request.name.clone(),
        copies: request.copies,
        min_copies: request.min_copies,
        labels: request.labels.map(|set| ClassLabels { labels: set.labels }),
        set_ns: master.clock.unix_ns(),
    };
    let set = global(master)?.change(Change::SetClass(asked), deadline).await;
    let set = set.map_err(|error| or_its_own(master, &request.name, error))?;
    told(master, &set, &request.name, deadline).await
}

/// A refusal of a class that the cluster doesn't have: the root volume may have one of that name.
fn or_its_own(master: &Master, name: &str, error: CallError) -> CallError {
    let is_there = || {
        master.desk(|desk| {
            let own = desk.seat(ROOT_VOLUME).classes.iter().skip(1);
            own.into_iter()
                .any(|class| class.name == name && !mooseng_namespace::classes::is_of_cluster(class.id))
        })
    };
    if error.code() == ErrorCode::NotFound && is_there() {
        let message =
            format!("{}. The root volume has one of its own of that name: say --volume /", error.message);
        return call_error(ErrorCode::NotFound, message);
    }
    error
}

/// All classes, the default one first, with what has them in all volumes.
pub async fn list(master: &Arc<Master>) -> Result<ListClassesReply, CallError> {
    let view = known(master)?;
    let (mut used, mut uncounted) = (BTreeMap::<u32, Usage>::new(), Vec::new());
    for (volume, looked) in everywhere(master, &view, 0).await {
        match looked {
            Ok((_, classes)) => {
                for (class, of) in classes {
                    let sum = used.entry(class).or_default();
                    *sum = Usage { bytes: sum.bytes + of.bytes, inodes: sum.inodes + of.inodes };
                }
            }
            Err(why) => uncounted.push(UncountedVolume { volume: volume.0.into(), why }),
        }
    }
    let mut classes = vec![shown_as(master, &by_default(&master.config), Usage::default())];
    classes.extend(
        view.classes
            .iter()
            .map(|(id, of)| one(master, *id, of.class.clone(), used.get(id).copied().unwrap_or_default())),
    );
    Ok(ListClassesReply { classes, of_cluster: true, uncounted })
}

/// Deletes a class that nothing has, in no volume.
pub async fn delete(master: &Arc<Master>, name: &str, deadline: Instant) -> Result<(), CallError> {
    let (view, global) = (known(master)?, global(master)?);
    // Before anything changes: most refusals are these.
    if let Some((id, of)) = view.class_of(name)
        && !of.class.leaving
    {
        judge(&view, name, id, everywhere(master, &view, 0).await)?;
    }
    let left = global.change(Change::LeaveClass(LeaveClass { name: name.to_owned() }), deadline).await;
    let left = left.map_err(|error| or_its_own(master, name, error))?;
    let unnamed = || call_error(ErrorCode::Internal, "the leader of the global group named no storage class");
    let (class, since) = (left.class.ok_or_else(unnamed)?, left.version);
    match confirm_and_delete(master, name, class, since, deadline).await {
        Ok(gone) => {
            // Whoever asks this master next sees it.
            agreed(master, gone, deadline).await;
            Ok(())
        }
        Err(error) => Err(take_back(master, global, class, since, error).await),
    }
}

/// Asks all homes whether they know that the class is leaving and that nothing has it, and deletes it then. Answers the version that this makes.
async fn confirm_and_delete(
    master: &Arc<Master>,
    name: &str,
    class: u32,
    since: u64,
    deadline: Instant,
) -> Result<u64, CallError> {
    let late = || {
        let message = "what the regions agreed on isn't known here in time; try again";
        call_error(ErrorCode::Unavailable, message)
    };
    let mut tried = 0;
    loop {
        let view = agreed(master, since, deadline).await.ok_or_else(late)?;
        let confirmed = judge(&view, name, class, everywhere(master, &view, since).await)?;
        let confirmed = confirmed
            .into_iter()
            .map(|(volume, epoch)| VolumeEpoch { volume: volume.0.into(), epoch: epoch.0 });
        let asked = DeleteClass { class, since, confirmed: confirmed.collect() };
        tried += 1;
        match global(master)?.change(Change::DeleteClass(asked), deadline).await {
            Ok(gone) => return Ok(gone.version),
            // A volume was made, or taken over.
            Err(error) if error.code() == ErrorCode::StaleEpoch && tried < TRIES => {
                tokio::time::sleep(pause(AGAIN)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The class stays: nothing of a deletion that was refused is left, and one that is still under way by the same word is refused from then on.
async fn take_back(master: &Master, global: &Global, class: u32, since: u64, why: CallError) -> CallError {
    let stay = Change::StayClass(StayClass { class, since });
    let deadline = Instant::now() + TAKE_BACK_WITHIN;
    match global.change(stay, deadline).await {
        Ok(stayed) => {
            // Whoever asks this master next sees it.
            agreed(master, stayed.version, deadline).await;
            why
        }
        Err(error) => {
            let message = format!(
                "{}. Nor could that be taken back ({}): the class is being deleted still, and the same command goes on with that, or takes it back",
                why.message, error.message
            );
            CallError { message, ..why }
        }
    }
}

/// The homes of all volumes, where nothing has the class in any; a refusal otherwise.
fn judge(
    view: &View,
    name: &str,
    class: u32,
    looked: BTreeMap<VolumeId, InVolume>,
) -> Result<BTreeMap<VolumeId, Epoch>, CallError> {
    let (mut confirmed, mut used, mut unknown) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (id, of) in looked {
        let volume = || spoken(id, view.volumes.get(&id));
        match of {
            Err(why) => unknown.push(format!("{}: {why}", volume())),
            Ok((epoch, classes)) => match classes.get(&class).map_or(0, |of| of.inodes) {
                0 => drop(confirmed.insert(id, epoch)),
                inodes => used.push(format!("{inodes} in {}", volume())),
            },
        }
    }
    if !used.is_empty() {
        return Err(refused(format!(
            "the storage class {name:?} is in use: files and directories have it, those in the trash included ({}). Assign them another one first",
            used.join("; ")
        )));
    }
    if !unknown.is_empty() {
        let message = format!(
            "whether anything has the storage class {name:?} isn't known now, and the home of each volume has to say it ({}). It stays; try again",
            unknown.join("; ")
        );
        return Err(call_error(ErrorCode::Unavailable, message));
    }
    Ok(confirmed)
}

/// A volume, in a sentence.
fn spoken(id: VolumeId, known: Option<&Volume>) -> String {
    let place = known.and_then(|known| known.join.as_ref()).map(|join| join.place.path.as_str());
    match place {
        Some(path) => format!("volume {id}, at {path}"),
        None if id == ROOT_VOLUME => "the root volume".to_owned(),
        None => format!("volume {id}"),
    }
}

/// What has which class in each volume, as their homes say.
async fn everywhere(master: &Arc<Master>, view: &View, since: u64) -> BTreeMap<VolumeId, InVolume> {
    let homes: BTreeSet<&String> = view.volumes.values().map(|volume| &volume.home).collect();
    let asked =
        homes.into_iter().map(|region| async move { (region, in_region(master, region, since).await) });
    let said: BTreeMap<&String, Result<Vec<VolumeClassUse>, String>> =
        join_all(asked).await.into_iter().collect();
    let of = |(id, known): (&VolumeId, &Volume)| {
        let home = &known.home;
        let here = match said.get(home) {
            Some(Ok(volumes)) => volumes.iter().find(|of| of.volume == u32::from(id.0)),
            Some(Err(why)) => return (*id, Err(format!("its home {home} isn't heard ({why})"))),
            None => None,
        };
        (*id, here.map_or_else(|| Err(format!("{home} isn't its home any more")), in_volume))
    };
    view.volumes.iter().map(of).collect()
}

fn in_volume(of: &VolumeClassUse) -> InVolume {
    if !of.trouble.is_empty() {
        return Err(of.trouble.clone());
    }
    let used =
        |used: &mooseng_wire::geo::UsedClass| (used.class, Usage { bytes: used.bytes, inodes: used.inodes });
    Ok((Epoch(of.epoch), of.classes.iter().map(used).collect()))
}

async fn in_region(master: &Arc<Master>, region: &str, since: u64) -> Result<Vec<VolumeClassUse>, String> {
    if region == master.config.region {
        let looked = classes::in_volumes(master, since, Instant::now() + ASK_WITHIN).await;
        return looked.map_err(|error| error.message);
    }
    let message = AskClassUse { since };
    let asked = timeout(ASK_WITHIN, ask::<_, ClassUse>(master, region, Method::ClassUse, &message)).await;
    let said = asked.unwrap_or_else(|_| Err("it took too long to answer".to_owned()))?;
    Ok(said.volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(inodes: i64) -> InVolume {
        Ok((Epoch(2), BTreeMap::from([(70_000, Usage { bytes: 1, inodes })])))
    }

    #[test]
    fn a_class_goes_where_each_volumes_home_says_that_nothing_has_it() {
        let view = View::default();
        let judged = |looked: &[(u16, InVolume)]| {
            let looked = looked.iter().map(|(id, of)| (VolumeId(*id), of.clone())).collect();
            judge(&view, "fast", 70_000, looked).map_err(|error| (error.code(), error.message))
        };
        let none: InVolume = Ok((Epoch(3), BTreeMap::new()));
        let confirmed = judged(&[(0, used(0)), (1, none)]).unwrap();
        assert_eq!(confirmed, BTreeMap::from([(VolumeId(0), Epoch(2)), (VolumeId(1), Epoch(3))]));
        let (code, why) = judged(&[(0, used(0)), (1, used(7)), (2, Err("silent".into()))]).unwrap_err();
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(why.contains("(7 in volume 1)"), "{why}");
        let (code, why) = judged(&[(0, Err("silent".into())), (1, used(0))]).unwrap_err();
        assert_eq!(code, ErrorCode::Unavailable);
        assert!(why.contains("the root volume: silent") && why.contains("try again"), "{why}");
    }

    #[test]
    fn what_a_home_says_of_a_volume_that_it_cant_look_at_is_no_count() {
        let of = VolumeClassUse { volume: 1, epoch: 2, trouble: "it is moving".into(), classes: vec![] };
        assert_eq!(in_volume(&of), Err("it is moving".into()));
    }
}
