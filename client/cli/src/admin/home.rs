//! What is asked about a volume: the leader of its home answers. The masters of the configuration's region are asked first, and say where it is at home if
//! that isn't there. Of storage classes of the cluster their leader answers itself.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::grpc_request;
use mooseng_wire::admin::{
    AssignClassReply, AssignClassRequest, ClassOfReply, ClassOfRequest, CreateClassRequest, CrossingReply,
    CrossingRequest, DeleteClassReply, DeleteClassRequest, ListClassesReply, ListClassesRequest,
    ListQuotasReply, ListQuotasRequest, ListTrashReply, ListTrashRequest, PurgeTrashReply, PurgeTrashRequest,
    Quota, QuotaTarget, RestoreTrashReply, RestoreTrashRequest, SetClassRequest, SetQuotaRequest,
    SetVolumeReply, SetVolumeRequest, StorageClass, TrashRetentionReply, TrashRetentionRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::{AGREE_WAIT, Led, leader_of};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};

/// How long a look at the trash or a change of it may take: a session that is gone delays a restoration by its lease.
const TRASH_WAIT: Duration = Duration::from_secs(30);
/// How long setting limits may take: as long as a change of the trash.
const QUOTA_WAIT: Duration = TRASH_WAIT;
/// How long a change of storage classes, or a look at a path, may take: some commits.
const CLASS_WAIT: Duration = Duration::from_secs(20);
/// Regions that are asked one after the other: the home may move meanwhile.
const REGIONS_MAX: usize = 3;

/// Asks the leader of the home of the volume that the call is about.
async fn at_home<T, F>(
    file: &ClientFile,
    wait: Duration,
    call: impl Fn(AdministrationClient<Channel>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut masters = file.masters.clone();
    for _ in 0..REGIONS_MAX {
        match leader_of(file, &masters, wait, &call).await? {
            Led::Answered(reply) => return Ok(reply),
            Led::Elsewhere(home) => masters = home.masters,
        }
    }
    Err(Failure::unavailable(
        "The home of the volume is just moving: each region that was asked named another one. Nothing was done; try again.",
    ))
}

/// Changes a volume's settings.
pub(super) async fn set_volume(
    file: &ClientFile,
    request: SetVolumeRequest,
) -> Result<SetVolumeReply, Failure> {
    let set = at_home(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), AGREE_WAIT);
        async move { client.set_volume(request).await }
    });
    set.await.map_err(|failure| match failure.kind() {
        Kind::Unavailable => Failure::unavailable(format!(
            "{failure} Only the home makes a volume fail over by itself: where its region is lost, `mooseng volume move-home {} --to REGION --force --plan` says what giving it up would mean.",
            request.volume
        )),
        _ => failure,
    })
}

/// How far a path leads within a volume. A master of an earlier release knows of the root volume alone, and doesn't take what is about another one for
/// what it is: so whoever means another one asks this first.
pub async fn find_crossing(file: &ClientFile, volume: u32, path: Bytes) -> Result<CrossingReply, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(CrossingRequest { volume, path: path.clone() }, CLASS_WAIT);
        async move {
            match client.find_crossing(request).await {
                Err(status) if status.code() == Code::Unimplemented => earlier_release(volume),
                answer => answer,
            }
        }
    })
    .await
}

fn earlier_release(volume: u32) -> Result<Response<CrossingReply>, Status> {
    match volume {
        0 => Ok(Response::new(CrossingReply::default())),
        other => Err(Status::unimplemented(format!(
            "this master is of an earlier release, of which administrators can ask about the root volume alone, not about volume {other}: bring the region's masters up to date first"
        ))),
    }
}

/// A page of what the trash holds, from whichever master leads the volume's home.
pub async fn list_trash(file: &ClientFile, request: ListTrashRequest) -> Result<ListTrashReply, Failure> {
    at_home(file, TRASH_WAIT, |mut client| {
        let request = grpc_request(request.clone(), TRASH_WAIT);
        async move { client.list_trash(request).await }
    })
    .await
}

/// Restores a file from the trash.
pub async fn restore_trash(
    file: &ClientFile,
    request: RestoreTrashRequest,
) -> Result<RestoreTrashReply, Failure> {
    at_home(file, TRASH_WAIT, |mut client| {
        let request = grpc_request(request.clone(), TRASH_WAIT);
        async move { client.restore_trash(request).await }
    })
    .await
}

/// Purges a file, or a part of the trash.
pub async fn purge_trash(file: &ClientFile, request: PurgeTrashRequest) -> Result<PurgeTrashReply, Failure> {
    at_home(file, TRASH_WAIT, |mut client| {
        let request = grpc_request(request, TRASH_WAIT);
        async move { client.purge_trash(request).await }
    })
    .await
}

/// How long deleted files are kept; sets it if the request says so.
pub async fn trash_retention(
    file: &ClientFile,
    request: TrashRetentionRequest,
) -> Result<TrashRetentionReply, Failure> {
    at_home(file, TRASH_WAIT, |mut client| {
        let request = grpc_request(request, TRASH_WAIT);
        async move { client.trash_retention(request).await }
    })
    .await
}

/// Sets limits.
pub async fn set_quota(file: &ClientFile, request: SetQuotaRequest) -> Result<Quota, Failure> {
    at_home(file, QUOTA_WAIT, |mut client| {
        let request = grpc_request(request.clone(), QUOTA_WAIT);
        async move { client.set_quota(request).await }
    })
    .await
}

/// Gives limits up.
pub async fn clear_quota(file: &ClientFile, target: QuotaTarget) -> Result<Quota, Failure> {
    at_home(file, QUOTA_WAIT, |mut client| {
        let request = grpc_request(target.clone(), QUOTA_WAIT);
        async move { client.clear_quota(request).await }
    })
    .await
}

/// A page of limits, or those of one.
pub async fn list_quotas(file: &ClientFile, request: ListQuotasRequest) -> Result<ListQuotasReply, Failure> {
    at_home(file, QUOTA_WAIT, |mut client| {
        let request = grpc_request(request.clone(), QUOTA_WAIT);
        async move { client.list_quotas(request).await }
    })
    .await
}

/// Makes a storage class.
pub async fn create_class(file: &ClientFile, request: CreateClassRequest) -> Result<StorageClass, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(request.clone(), CLASS_WAIT);
        async move { client.create_class(request).await }
    })
    .await
}

/// Changes one.
pub async fn set_class(file: &ClientFile, request: SetClassRequest) -> Result<StorageClass, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(request.clone(), CLASS_WAIT);
        async move { client.set_class(request).await }
    })
    .await
}

/// Removes one.
pub async fn delete_class(
    file: &ClientFile,
    request: DeleteClassRequest,
) -> Result<DeleteClassReply, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(request.clone(), CLASS_WAIT);
        async move { client.delete_class(request).await }
    })
    .await
}

/// All of them: the cluster's, or, with `of_volume`, as a volume has them.
pub async fn list_classes(
    file: &ClientFile,
    volume: u32,
    of_volume: bool,
) -> Result<ListClassesReply, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(ListClassesRequest { volume, of_volume }, CLASS_WAIT);
        async move { client.list_classes(request).await }
    })
    .await
}

/// Assigns one.
pub async fn assign_class(
    file: &ClientFile,
    request: AssignClassRequest,
) -> Result<AssignClassReply, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(request.clone(), CLASS_WAIT);
        async move { client.assign_class(request).await }
    })
    .await
}

/// That of a file or directory.
pub async fn class_of(file: &ClientFile, volume: u32, path: Bytes) -> Result<ClassOfReply, Failure> {
    at_home(file, CLASS_WAIT, |mut client| {
        let request = grpc_request(ClassOfRequest { path: path.clone(), volume }, CLASS_WAIT);
        async move { client.class_of(request).await }
    })
    .await
}
