//! A volume's storage classes at the leader of its home (docs/decisions/0019-storage-classes.md): those on record, taken up into its memory whenever they change,
//! and what administrators ask of them.
//!
//! Where there is a global group, classes are the cluster's: [`geo::class_commands`] answers what is asked of those, and the volume has copies
//! ([`geo::classes`]). What is made, changed and removed here are the volume's own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::classes::{
    self as records, Change, DEFAULT, Label, Refused, StorageClassRecord, is_of_cluster,
};
use mooseng_namespace::quota::Usage;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{OpError, upkeep};
use mooseng_region::class::{Class, Classes};
use mooseng_region::placement;
use mooseng_schema::Record;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_store::{Read, Transaction};
use mooseng_wire::admin::assign_class_request::Which;
use mooseng_wire::admin::{
    AssignClassReply, AssignClassRequest, ClassOfReply, CreateClassRequest, ListClassesReply,
    SetClassRequest, StorageClass,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::FileKind;
use mooseng_wire::{InodeId, VolumeId};
use tokio::time::Instant;
use tonic::Status;

use crate::config::MasterConfig;
use crate::errors::record_failed;
use crate::geo::{self, ROOT_VOLUME};
use crate::master::Master;
use crate::own::{self, Repeat};
use crate::records::transact;
use crate::tree::Asked;

/// How long a change may take.
const WITHIN: Duration = Duration::from_secs(15);
/// Entries of a directory that are assigned a class in one request.
const ENTRIES: usize = 256;

/// The default class.
pub fn by_default(config: &MasterConfig) -> Class {
    Class::by_default(config.copies, config.min_copies)
}

/// A class as placement goes by it.
pub fn class_of((id, record): (u32, StorageClassRecord)) -> Class {
    Class {
        id,
        name: record.name,
        copies: usize::try_from(record.copies).unwrap_or(usize::MAX),
        min_copies: usize::try_from(record.min_copies).unwrap_or(usize::MAX),
        labels: record.labels.into_iter().map(|label| (label.key, label.value)).collect(),
    }
}

/// A volume's classes on record.
pub async fn load(master: &Master, volume: VolumeId) -> Result<Vec<Class>, CallError> {
    let all = transact(&master.store, |tx| async move {
        let all = records::list(&tx, volume, Read::Snapshot).await?;
        Ok((tx, all))
    });
    Ok(all.await.map_err(|e| record_failed(&e))?.into_iter().map(class_of).collect())
}

/// All classes of a volume as this master's store has them: also where it doesn't lead.
pub async fn read<T: mooseng_store::Transaction>(
    master: &Master,
    volume: VolumeId,
    tx: &T,
) -> Result<Classes, OpError> {
    let mut classes = Classes::new(by_default(&master.config));
    classes.set(records::list(tx, volume, Read::Snapshot).await?.into_iter().map(class_of));
    Ok(classes)
}

/// Has placement and repair go by the classes as they are on record. Only one at a time reads and sets them.
pub async fn publish(master: &Master, volume: VolumeId, term: u64) -> Result<(), CallError> {
    let _one = master.classes_gate.lock().await;
    let classes = load(master, volume).await?;
    master.desk(|desk| {
        if desk.is_custodian(volume, term) {
            desk.seat_mut(volume).classes.set(classes);
        }
    });
    Ok(())
}

/// The class of which a chunk of an inode is made.
pub async fn of_inode(master: &Master, inode: InodeId) -> Result<Class, CallError> {
    let volume = inode.volume();
    if !master.desk(|desk| desk.seat(volume).classes.are_several()) {
        return Ok(by_default(&master.config));
    }
    let id = transact(&master.store, |tx| async move {
        let id = records::of_inode(&tx, inode, Read::Snapshot).await?;
        Ok((tx, id))
    });
    let id = id.await.map_err(|e| record_failed(&e))?.unwrap_or(DEFAULT);
    Ok(master.desk(|desk| desk.seat(volume).classes.get(id).clone()))
}

fn failed(error: CallError) -> Status {
    match error.code() {
        ErrorCode::DeadlineExceeded | ErrorCode::OutcomeUnknown => Status::deadline_exceeded(error.message),
        ErrorCode::Internal => Status::internal(error.message),
        _ => Status::unavailable(error.message),
    }
}

fn refused(asked: &Asked, why: Refused) -> Status {
    let message = match &why {
        // It may have had one of its own before there were classes of the cluster.
        Refused::NotThere(name) if asked.volume != ROOT_VOLUME => format!(
            "there is no storage class {name:?}, nor has {} one of its own: `mooseng class list` and `mooseng class list --volume {at}` show which there are",
            asked.name(),
            at = String::from_utf8_lossy(&asked.at)
        ),
        other => other.to_string(),
    };
    match why {
        Refused::NotThere(_) | Refused::NoInode => Status::not_found(message),
        Refused::Exists(_)
        | Refused::Unfit(_)
        | Refused::Leaving(_)
        | Refused::OfCluster(_)
        | Refused::InUse { .. }
        | Refused::OtherVolume(_)
        | Refused::TooMany => Status::invalid_argument(message),
    }
}

fn labels(labels: BTreeMap<String, String>) -> Vec<Label> {
    labels.into_iter().map(|(key, value)| Label { key, value }).collect()
}

fn deadline() -> Instant {
    Instant::now() + WITHIN
}

/// A class as it is told of a volume.
async fn shown(master: &Master, volume: VolumeId, class: &Class) -> Result<StorageClass, Status> {
    let id = class.id;
    if id == DEFAULT {
        return Ok(shown_as(master, class, Usage::default()));
    }
    let looked = transact(&master.store, |tx| async move {
        let usage = records::usage(&tx, volume, id, Read::Snapshot).await?;
        let leaving = records::is_leaving(&tx, volume, id, Read::Snapshot).await?;
        Ok((tx, (usage, leaving)))
    });
    let (usage, leaving) = looked.await.map_err(|e| failed(record_failed(&e)))?;
    let of_volume = master.global.is_some() && !is_of_cluster(id);
    Ok(StorageClass { leaving, of_volume, ..shown_as(master, class, usage) })
}

/// A class with what has it, and what fits it here.
pub fn shown_as(master: &Master, class: &Class, usage: Usage) -> StorageClass {
    let takers = master.desk(|desk| {
        let candidates = desk.registry.candidates(master.clock.boot());
        candidates.iter().filter(|c| placement::takes_new(c, &class.labels)).count()
    });
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    StorageClass {
        id: class.id,
        name: class.name.clone(),
        copies: count(class.copies),
        min_copies: count(class.min_copies),
        labels: class.labels.clone(),
        inodes: usage.inodes.max(0),
        bytes: usage.bytes.max(0),
        chunkservers: count(takers),
        ..StorageClass::default()
    }
}

/// With how many copies a class that is to be made is content.
pub fn min_copies(request: &CreateClassRequest) -> u32 {
    if request.min_copies == 0 { request.copies.min(2) } else { request.min_copies }
}

async fn shown_by_id(master: &Master, volume: VolumeId, id: u32) -> Result<StorageClass, Status> {
    let class = master.desk(|desk| desk.seat(volume).classes.get(id).clone());
    shown(master, volume, &class).await
}

/// Makes a class of the volume's own.
pub async fn create(
    master: &Arc<Master>,
    asked: &Asked,
    request: CreateClassRequest,
) -> Result<StorageClass, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let record = Arc::new(StorageClassRecord {
        min_copies: min_copies(&request),
        name: request.name,
        copies: request.copies,
        labels: labels(request.labels),
        set_ns: master.clock.unix_ns(),
        leaving: false,
    });
    let made = own::change(master, volume, term, Repeat::Never, deadline(), |tx, _| {
        let record = record.clone();
        Box::pin(async move { records::create(tx, volume, &record).await })
    });
    let id = made.await.map_err(failed)?.map_err(|why| refused(asked, why))?;
    publish(master, volume, term).await.map_err(failed)?;
    shown_by_id(master, volume, id).await
}

/// Changes a class of the volume's own.
pub async fn set(
    master: &Arc<Master>,
    asked: &Asked,
    request: SetClassRequest,
) -> Result<StorageClass, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let SetClassRequest { name, copies, min_copies, labels: labelled, .. } = request;
    let change = Change { copies, min_copies, labels: labelled.map(|set| labels(set.labels)) };
    let (wanted, now_ns) = (Arc::new((name, change)), master.clock.unix_ns());
    let changed = own::change(master, volume, term, Repeat::Harmless, deadline(), |tx, _| {
        let wanted = wanted.clone();
        Box::pin(async move { records::change(tx, volume, now_ns, &wanted.0, &wanted.1).await })
    });
    let id = changed.await.map_err(failed)?.map_err(|why| refused(asked, why))?;
    publish(master, volume, term).await.map_err(failed)?;
    shown_by_id(master, volume, id).await
}

/// Removes a class of the volume's own.
pub async fn delete(master: &Arc<Master>, asked: &Asked, name: String) -> Result<(), Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let name = Arc::new(name);
    let removed = own::change(master, volume, term, Repeat::Never, deadline(), |tx, _| {
        let name = name.clone();
        Box::pin(async move { records::remove(tx, volume, &name).await })
    });
    removed.await.map_err(failed)?.map_err(|why| refused(asked, why))?;
    publish(master, volume, term).await.map_err(failed)
}

/// All classes, the default one first.
pub async fn list(master: &Master, asked: &Asked) -> Result<ListClassesReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let all: Vec<Class> = master.desk(|desk| desk.seat(volume).classes.iter().cloned().collect());
    let mut classes = Vec::new();
    for class in &all {
        classes.push(shown(master, volume, class).await?);
    }
    master.may_answer(term).map_err(failed)?;
    Ok(ListClassesReply { classes, ..ListClassesReply::default() })
}

async fn inode_at(master: &Master, asked: &Asked, path: &bytes::Bytes) -> Result<InodeId, Status> {
    let volume = asked.volume;
    let found = transact(&master.store, |tx| {
        let path = path.clone();
        async move {
            let found = upkeep::inode_at(&tx, volume, &path).await?;
            Ok((tx, found))
        }
    });
    found.await.map_err(|e| failed(record_failed(&e)))?.ok_or_else(|| {
        Status::not_found(format!(
            "{} isn't there; give its path from the root of the filesystem (symbolic links aren't followed)",
            asked.told(path)
        ))
    })
}

/// Whether an inode has data, or hands its class on to what is made in it.
fn takes_a_class(kind: u32) -> bool {
    [FileKind::Regular, FileKind::Directory].iter().any(|takes| *takes as u32 == kind)
}

/// Gives an inode a class. None where it has no use for one; what isn't there any more is refused as such.
async fn give<T: Transaction>(
    tx: &T,
    touched: &Touched,
    id: InodeId,
    name: &str,
) -> Result<Option<Result<bool, Refused>>, OpError> {
    let value = tx.get(&inode::key(id), Read::Conflicting).await?;
    let record = value.map(|value| InodeRecord::from_value(&value)).transpose()?;
    match record {
        Some(record) if !takes_a_class(record.kind) => Ok(None),
        _ => records::assign(tx, touched, id, name).await.map(Some),
    }
}

/// Gives an inode, or entries of a directory, a class.
pub async fn assign(
    master: &Arc<Master>,
    asked: &Asked,
    request: AssignClassRequest,
) -> Result<AssignClassReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let AssignClassRequest { name, which, entries, after, .. } = request;
    let inode = match which {
        None => return Err(Status::invalid_argument("the request doesn't say what gets the class")),
        Some(Which::Inode(inode)) => InodeId(inode),
        Some(Which::Path(path)) => inode_at(master, asked, &path).await?,
    };
    geo::classes::ready(master, volume, term, &name, deadline()).await.map_err(failed)?;
    let name = Arc::new(name);
    if !entries {
        let assigned = own::change(master, volume, term, Repeat::Harmless, deadline(), |tx, touched| {
            let name = name.clone();
            Box::pin(async move { give(tx, touched, inode, &name).await })
        });
        let no_use = "a storage class is of files, and of directories for what is made in them: what lies there is neither (a symbolic link isn't followed), and would have no use for one. Give the path of a file or a directory";
        let assigned = assigned.await.map_err(failed)?.ok_or_else(|| Status::invalid_argument(no_use))?;
        let changed = assigned.map_err(|why| refused(asked, why))?;
        return Ok(AssignClassReply { inode: inode.0, changed: changed.into(), ..<_>::default() });
    }
    let assigned = own::change(master, volume, term, Repeat::Harmless, deadline(), |tx, touched| {
        let name = name.clone();
        Box::pin(async move { records::assign_entries(tx, touched, inode, after, ENTRIES, &name).await })
    });
    let assigned = assigned.await.map_err(failed)?.map_err(|why| refused(asked, why))?;
    Ok(AssignClassReply {
        inode: inode.0,
        changed: assigned.changed,
        directories: assigned.directories.into_iter().map(|directory| directory.0).collect(),
        next: assigned.next,
        joined: assigned.joined.into_iter().map(|other| other.0.into()).collect(),
    })
}

/// The class of what lies at a path.
pub async fn of_path(master: &Master, asked: &Asked, path: bytes::Bytes) -> Result<ClassOfReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(failed)?;
    let inode = inode_at(master, asked, &path).await?;
    let id = transact(&master.store, |tx| async move {
        let id = records::of_inode(&tx, inode, Read::Snapshot).await?;
        Ok((tx, id))
    });
    let id = id.await.map_err(|e| failed(record_failed(&e)))?;
    let class = shown_by_id(master, volume, id.ok_or_else(|| refused(asked, Refused::NoInode))?).await?;
    master.may_answer(term).map_err(failed)?;
    Ok(ClassOfReply { inode: inode.0, class: Some(class) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_of_files_and_directories() {
        let takes = |kind: FileKind| takes_a_class(kind as u32);
        assert!(takes(FileKind::Regular) && takes(FileKind::Directory));
        assert!(!takes(FileKind::Symlink) && !takes(FileKind::Fifo) && !takes_a_class(0));
    }
}
