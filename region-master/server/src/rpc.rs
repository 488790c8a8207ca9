//! gRPC: heartbeats of chunkservers, and administration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_raft::{Member, RaftError};
use mooseng_region::{members, placement};
use mooseng_transport::grpc::administration_server::Administration;
use mooseng_transport::grpc::registry_server::Registry;
use mooseng_transport::{peer_of, trace};
use mooseng_wire::Role;
use mooseng_wire::admin::assign_class_request::Which as Assigned;
use mooseng_wire::admin::purge_trash_request::Which as Purged;
use mooseng_wire::admin::{
    AddRegionRequest, AssignClassReply, AssignClassRequest, ChangeMembersReply, ChangeMembersRequest,
    ChangeRegionsReply, ClassOfReply, ClassOfRequest, ClusterLevelReply, ClusterLevelRequest,
    CreateClassRequest, CreateVolumeReply, CreateVolumeRequest, CredentialReport, CredentialsRequest,
    CrossingReply, CrossingRequest, DeleteClassReply, DeleteClassRequest, DeleteVolumeReply,
    DeleteVolumeRequest, DrainReply, DrainRequest, DumpPiece, DumpRequest, FsckNews, FsckRequest,
    HeartbeatReply, HeartbeatRequest, ListClassesReply, ListClassesRequest, ListEventsReply,
    ListEventsRequest, ListLossesReply, ListLossesRequest, ListQuotasReply, ListQuotasRequest,
    ListRegionsReply, ListRegionsRequest, ListRevocationsReply, ListRevocationsRequest, ListSalvageReply,
    ListSalvageRequest, ListTrashReply, ListTrashRequest, ListVolumesReply, ListVolumesRequest, MemberToAdd,
    MoveHomeReply, MoveHomeRequest, PurgeTrashReply, PurgeTrashRequest, Quota, QuotaTarget, RaiseLevelReply,
    RaiseLevelRequest, RemoveRegionRequest, RestoreTrashReply, RestoreTrashRequest, RevokeReply,
    RevokeRequest, SetClassRequest, SetQuotaRequest, SetVolumeReply, SetVolumeRequest, ShowSalvageReply,
    ShowSalvageRequest, StatusReply, StatusRequest, StorageClass, TicketKey, TransferLeaderReply,
    TransferLeaderRequest, TrashRetentionReply, TrashRetentionRequest, UnrevokeRequest, VerifyDataReply,
    VerifyDataRequest, VerifyVolumeReply, VerifyVolumeRequest, VolumeEpoch,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::founding::Founding;
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{AddRegion, Master as Seat, RemoveRegion};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use crate::desk::HeartbeatRefused;
use crate::geo::class_commands;
use crate::global::Global;
use crate::master::Master;
use crate::tree::Asked;
use crate::{classes, dump, fsck, geo, house, quotas, revocations, status, trash, tree};

/// How often chunkservers report.
const HEARTBEAT_INTERVAL_MS: u32 = 500;
/// How long a hand-over of leadership may take.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(5);
/// How long the regions may take to agree on something: an election among them is over by then.
const AGREE_WITHIN: Duration = Duration::from_secs(15);
/// How long a move of a home may take: until the target is near, has the last change, and the regions have agreed.
const MOVE_WITHIN: Duration = Duration::from_secs(25);
/// How long it may take to make or delete a volume: until its home has formatted it, and the regions have agreed, twice.
const JOIN_WITHIN: Duration = Duration::from_secs(25);
/// How long a change of members may take: a new one has to catch up first.
const CHANGE_WITHIN: Duration = Duration::from_secs(50);

/// Answers gRPC calls.
#[derive(Clone)]
pub struct Rpc(pub Arc<Master>);

impl Rpc {
    fn allow<T>(&self, request: &Request<T>, roles: &[Role]) -> Result<String, Status> {
        let peer = peer_of(request)?;
        self.0.allow(&peer, roles).map_err(|e| Status::permission_denied(e.message))?;
        Ok(peer.identity.name.clone())
    }

    /// For what concerns the whole cluster: peers of all its regions.
    fn allow_of_cluster<T>(&self, request: &Request<T>, roles: &[Role]) -> Result<String, Status> {
        let peer = peer_of(request)?;
        self.0.allow_of_cluster(&peer, roles).map_err(|e| match e.code() {
            ErrorCode::Unavailable => Status::unavailable(e.message),
            _ => Status::permission_denied(e.message),
        })?;
        Ok(peer.identity.name.clone())
    }

    /// Takes what an administrator of any region asks about a volume by its number, which has to be at home here: its replicas change by its log alone.
    async fn about<T>(
        &self,
        request: Request<T>,
        volume: impl FnOnce(&T) -> u32,
    ) -> Result<(String, Asked, T), Status> {
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let request = request.into_inner();
        let asked = tree::asked(&self.0, volume(&request), Instant::now() + AGREE_WITHIN).await?;
        Ok((who, asked, request))
    }

    fn global(&self) -> Result<&Global, Status> {
        let alone = "this cluster has one region: its masters' configuration has no [global]";
        self.0.global.as_deref().ok_or_else(|| Status::failed_precondition(alone))
    }

    /// Whether a request is about the storage classes of the cluster.
    fn of_cluster(&self, volume: u32, of_volume: bool) -> bool {
        self.0.global.is_some() && volume == 0 && !of_volume
    }

    async fn change_regions(&self, change: Change) -> Result<Response<ChangeRegionsReply>, Status> {
        let changed = self.global()?.change(change, Instant::now() + AGREE_WITHIN).await;
        changed
            .map(|changed| Response::new(ChangeRegionsReply { version: changed.version }))
            .map_err(not_agreed)
    }
}

/// The home epochs of the volumes besides the root.
fn epochs_of_others(master: &Master) -> Vec<VolumeEpoch> {
    let Some(view) = master.geo.view() else { return Vec::new() };
    let others = view.volumes.iter().filter(|(volume, _)| **volume != geo::ROOT_VOLUME);
    others.map(|(volume, known)| VolumeEpoch { volume: volume.0.into(), epoch: known.epoch.0 }).collect()
}

/// Refuses to have a chunkserver emptied without which no chunk could be written. Whom this master doesn't know, and what it doesn't serve, it says later.
fn may_drain(master: &Master, name: &str) -> Result<(), Status> {
    if master.serving().is_err() {
        return Ok(());
    }
    let now = master.clock.boot();
    let candidates = master.desk(|desk| desk.registry.candidates(now));
    placement::may_drain(&candidates, name, master.config.min_copies)
        .map_err(|refused| Status::invalid_argument(refused.to_string()))
}

/// What the regions refuse to agree on.
fn not_agreed(error: CallError) -> Status {
    match error.code() {
        ErrorCode::InvalidRequest => Status::invalid_argument(error.message),
        ErrorCode::NotFound | ErrorCode::NoVolume => Status::not_found(error.message),
        ErrorCode::PermissionDenied => Status::permission_denied(error.message),
        ErrorCode::StaleEpoch => Status::failed_precondition(error.message),
        _ => Status::unavailable(error.message),
    }
}

/// The same, where it may have been done.
fn not_done(error: CallError) -> Status {
    match error.code() {
        ErrorCode::OutcomeUnknown | ErrorCode::DeadlineExceeded => Status::deadline_exceeded(error.message),
        ErrorCode::NotBuilt => Status::unimplemented(error.message),
        _ => not_agreed(error),
    }
}

fn raft_refused(error: RaftError) -> Status {
    match error {
        RaftError::NotLeader { leader } => {
            let at = leader.map(|a| format!("; ask {a}")).unwrap_or_default();
            Status::unavailable(format!("this master doesn't lead the region{at}"))
        }
        RaftError::Senseless(_) => Status::invalid_argument(error.to_string()),
        RaftError::NoMember(_) => Status::not_found(error.to_string()),
        other => Status::failed_precondition(other.to_string()),
    }
}

fn beat_refused(refused: HeartbeatRefused) -> Status {
    match refused {
        HeartbeatRefused::Beat(refused) => Status::failed_precondition(refused.to_string()),
        HeartbeatRefused::NotOurs(not_ours) => {
            let error = CallError::from(not_ours);
            let details = error.encode_to_vec().into();
            Status::with_details(Code::FailedPrecondition, error.message, details)
        }
    }
}

#[tonic::async_trait]
impl Registry for Rpc {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let name = self.allow(&request, &[Role::Chunkserver])?;
        let request = request.into_inner();
        if request.chunkserver != name {
            let message = format!("the certificate is {name}'s, the heartbeat says {}", request.chunkserver);
            return Err(Status::permission_denied(message));
        }
        let master = &self.0;
        let now = master.clock.boot();
        let ordering = master.ordering();
        let others = epochs_of_others(master);
        let revocations = request.revocations_version.and_then(|have| master.revoked.newer_than(have));
        let reply = master.desk(|desk| {
            let want_inventory = desk.beat(now, request).map_err(beat_refused)?;
            // A leader that was replaced meanwhile has nothing to command: its successor may have decided otherwise.
            let custody = ordering.filter(|_| desk.served().next().is_some()).unwrap_or(0);
            let commands = if custody > 0 { desk.take_commands(&name, now, custody) } else { Vec::new() };
            Ok::<_, Status>(HeartbeatReply {
                want_inventory,
                custody,
                commands,
                ticket_keys: desk
                    .keys
                    .iter()
                    .map(|key| TicketKey { id: key.id, key: key.secret.clone().into() })
                    .collect(),
                epoch: master.epoch(geo::ROOT_VOLUME).0,
                others,
                interval_ms: HEARTBEAT_INTERVAL_MS,
                founding: Founding::tell(desk.founding().filter(|_| custody > 0)),
                revocations,
            })
        })?;
        Ok(Response::new(reply))
    }
}

#[tonic::async_trait]
impl Administration for Rpc {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.allow_of_cluster(&request, &[Role::Admin, Role::Master, Role::Client])?;
        Ok(Response::new(status::of(&self.0)))
    }

    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialReport>, Status> {
        self.allow(&request, &[Role::Admin, Role::Master])?;
        let own = self.0.network.credentials();
        own.map(Response::new).ok_or_else(|| Status::failed_precondition("this master has no certificate"))
    }

    async fn drain_chunkserver(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainReply>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        let DrainRequest { chunkserver, drain } = request.into_inner();
        if drain {
            may_drain(&self.0, &chunkserver)?;
        }
        tracing::info!(who, chunkserver, drain, "a chunkserver's draining is to change");
        house::drain::set(&self.0, &chunkserver, drain)
            .await
            .map(|located| Response::new(DrainReply { located }))
    }

    type FsckStream = tokio_stream::wrappers::ReceiverStream<Result<FsckNews, Status>>;

    async fn fsck(&self, request: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        let FsckRequest { repair } = request.into_inner();
        tracing::info!(who, repair, "the whole store is to be checked");
        Ok(Response::new(fsck::stream(self.0.clone(), repair)))
    }

    type DumpMetadataStream = tokio_stream::wrappers::ReceiverStream<Result<DumpPiece, Status>>;

    async fn dump_metadata(
        &self,
        request: Request<DumpRequest>,
    ) -> Result<Response<Self::DumpMetadataStream>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        tracing::info!(who, "the whole store is dumped");
        dump::stream(self.0.clone()).map(Response::new)
    }

    async fn find_crossing(
        &self,
        request: Request<CrossingRequest>,
    ) -> Result<Response<CrossingReply>, Status> {
        let (_, asked, request) = self.about(request, |request| request.volume).await?;
        tree::crossing(&self.0, &asked, request).await.map(Response::new)
    }

    async fn list_trash(
        &self,
        request: Request<ListTrashRequest>,
    ) -> Result<Response<ListTrashReply>, Status> {
        let (_, asked, request) = self.about(request, |request| request.volume).await?;
        trash::list(&self.0, &asked, request).await.map(Response::new)
    }

    async fn restore_trash(
        &self,
        request: Request<RestoreTrashRequest>,
    ) -> Result<Response<RestoreTrashReply>, Status> {
        let (who, asked, request) = self.about(request, |request| tree::of_inode(request.inode)).await?;
        tracing::info!(who, ?request, "a file is to be restored from the trash");
        // Goes on where the caller gives up, so that it is told to all whom it concerns.
        let master = self.0.clone();
        let restoring = trace::carried(async move { trash::restore(&master, &asked, request).await });
        match tokio::spawn(restoring).await {
            Ok(outcome) => outcome.map(Response::new),
            Err(_) => Err(Status::internal("the restoration ended without an outcome; list the trash again")),
        }
    }

    async fn purge_trash(
        &self,
        request: Request<PurgeTrashRequest>,
    ) -> Result<Response<PurgeTrashReply>, Status> {
        let volume = |request: &PurgeTrashRequest| match request.which {
            Some(Purged::Inode(inode)) => tree::of_inode(inode),
            _ => request.volume,
        };
        let (who, asked, request) = self.about(request, volume).await?;
        tracing::info!(who, ?request, "files in the trash are to be freed");
        trash::purge(&self.0, &asked, request).await.map(Response::new)
    }

    async fn trash_retention(
        &self,
        request: Request<TrashRetentionRequest>,
    ) -> Result<Response<TrashRetentionReply>, Status> {
        let (who, asked, request) = self.about(request, |request| request.volume).await?;
        if let Some(seconds) = request.set_s {
            tracing::info!(who, volume = %asked.volume, seconds, "how long deleted files are kept is to change");
        }
        trash::retention(&self.0, &asked, request).await.map(Response::new)
    }

    async fn set_quota(&self, request: Request<SetQuotaRequest>) -> Result<Response<Quota>, Status> {
        let volume = |request: &SetQuotaRequest| request.target.as_ref().map_or(0, |of| of.volume);
        let (who, asked, request) = self.about(request, volume).await?;
        tracing::info!(who, ?request, "a quota is to be set");
        // Goes on where the caller gives up, so that what is recalled for it isn't for nothing.
        let master = self.0.clone();
        let setting = trace::carried(async move { quotas::set(&master, &asked, request).await });
        match tokio::spawn(setting).await {
            Ok(outcome) => outcome.map(Response::new),
            Err(_) => Err(Status::internal("setting the quota ended without an outcome; list the quotas")),
        }
    }

    async fn clear_quota(&self, request: Request<QuotaTarget>) -> Result<Response<Quota>, Status> {
        let (who, asked, request) = self.about(request, |request| request.volume).await?;
        tracing::info!(who, ?request, "a quota is to be given up");
        let master = self.0.clone();
        let clearing = trace::carried(async move { quotas::clear(&master, &asked, request).await });
        match tokio::spawn(clearing).await {
            Ok(outcome) => outcome.map(Response::new),
            Err(_) => Err(Status::internal("clearing the quota ended without an outcome; list the quotas")),
        }
    }

    async fn list_quotas(
        &self,
        request: Request<ListQuotasRequest>,
    ) -> Result<Response<ListQuotasReply>, Status> {
        let volume = |request: &ListQuotasRequest| match &request.only {
            Some(only) => only.volume,
            None => request.volume,
        };
        let (_, asked, request) = self.about(request, volume).await?;
        quotas::list(&self.0, &asked, request).await.map(Response::new)
    }

    async fn create_class(
        &self,
        request: Request<CreateClassRequest>,
    ) -> Result<Response<StorageClass>, Status> {
        if self.0.global.is_some() {
            let (who, request) = (self.allow_of_cluster(&request, &[Role::Admin])?, request.into_inner());
            tracing::info!(who, ?request, "a storage class of the cluster is to be made");
            let made = class_commands::create(&self.0, request, Instant::now() + AGREE_WITHIN).await;
            return made.map(Response::new).map_err(not_done);
        }
        let (who, asked, request) = self.about(request, |request| request.volume).await?;
        tracing::info!(who, ?request, "a storage class is to be made");
        classes::create(&self.0, &asked, request).await.map(Response::new)
    }

    async fn set_class(&self, request: Request<SetClassRequest>) -> Result<Response<StorageClass>, Status> {
        if self.of_cluster(request.get_ref().volume, request.get_ref().of_volume) {
            let (who, request) = (self.allow_of_cluster(&request, &[Role::Admin])?, request.into_inner());
            tracing::info!(who, ?request, "a storage class of the cluster is to change");
            let set = class_commands::set(&self.0, request, Instant::now() + AGREE_WITHIN).await;
            return set.map(Response::new).map_err(not_done);
        }
        let (who, asked, request) = self.about(request, |request| request.volume).await?;
        tracing::info!(who, ?request, "a storage class is to change");
        classes::set(&self.0, &asked, request).await.map(Response::new)
    }

    async fn delete_class(
        &self,
        request: Request<DeleteClassRequest>,
    ) -> Result<Response<DeleteClassReply>, Status> {
        if self.of_cluster(request.get_ref().volume, request.get_ref().of_volume) {
            let (who, request) = (self.allow_of_cluster(&request, &[Role::Admin])?, request.into_inner());
            tracing::info!(who, ?request, "a storage class of the cluster is to be deleted");
            // Goes on where the caller gives up, so that the class isn't left between here and gone.
            let master = self.0.clone();
            let deleting = trace::carried(async move {
                class_commands::delete(&master, &request.name, Instant::now() + AGREE_WITHIN).await
            });
            return match tokio::spawn(deleting).await {
                Ok(outcome) => outcome.map(|()| Response::new(DeleteClassReply {})).map_err(not_done),
                Err(_) => Err(Status::internal("the deletion ended without an outcome; list the classes")),
            };
        }
        let (who, asked, request) = self.about(request, |request| request.volume).await?;
        tracing::info!(who, ?request, "a storage class is to be removed");
        classes::delete(&self.0, &asked, request.name).await.map(|()| Response::new(DeleteClassReply {}))
    }

    async fn list_classes(
        &self,
        request: Request<ListClassesRequest>,
    ) -> Result<Response<ListClassesReply>, Status> {
        if self.of_cluster(request.get_ref().volume, request.get_ref().of_volume) {
            self.allow_of_cluster(&request, &[Role::Admin])?;
            return class_commands::list(&self.0).await.map(Response::new).map_err(not_agreed);
        }
        let (_, asked, _) = self.about(request, |request| request.volume).await?;
        classes::list(&self.0, &asked).await.map(Response::new)
    }

    async fn assign_class(
        &self,
        request: Request<AssignClassRequest>,
    ) -> Result<Response<AssignClassReply>, Status> {
        let volume = |request: &AssignClassRequest| match request.which {
            Some(Assigned::Inode(inode)) => tree::of_inode(inode),
            _ => request.volume,
        };
        let (who, asked, request) = self.about(request, volume).await?;
        // A tree takes a request for each directory.
        match request.entries {
            false => tracing::info!(who, ?request, "a storage class is to be assigned"),
            true => {
                tracing::debug!(who, ?request, "a storage class is to be assigned to what is in a directory")
            }
        }
        classes::assign(&self.0, &asked, request).await.map(Response::new)
    }

    async fn class_of(&self, request: Request<ClassOfRequest>) -> Result<Response<ClassOfReply>, Status> {
        let (_, asked, request) = self.about(request, |request| request.volume).await?;
        classes::of_path(&self.0, &asked, request.path).await.map(Response::new)
    }

    async fn list_regions(
        &self,
        request: Request<ListRegionsRequest>,
    ) -> Result<Response<ListRegionsReply>, Status> {
        self.allow_of_cluster(&request, &[Role::Admin, Role::Master, Role::Client])?;
        Ok(Response::new(self.global()?.list_regions()))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesReply>, Status> {
        self.allow_of_cluster(&request, &[Role::Admin, Role::Master, Role::Client])?;
        Ok(Response::new(self.global()?.list_volumes(&self.0)))
    }

    async fn verify_volume(
        &self,
        request: Request<VerifyVolumeRequest>,
    ) -> Result<Response<VerifyVolumeReply>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        let volume = request.into_inner().volume;
        tracing::info!(who, volume, "the volume is to be compared with its home");
        geo::verify::answer(&self.0, volume).await.map(Response::new)
    }

    async fn verify_data(
        &self,
        request: Request<VerifyDataRequest>,
    ) -> Result<Response<VerifyDataReply>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        let asked = request.into_inner();
        tracing::info!(
            who,
            asked.volume,
            asked.after,
            asked.read,
            "chunks are to be compared with the home's"
        );
        geo::verify_data::answer(&self.0, asked).await.map(Response::new)
    }

    async fn list_losses(
        &self,
        request: Request<ListLossesRequest>,
    ) -> Result<Response<ListLossesReply>, Status> {
        self.allow(&request, &[Role::Admin])?;
        geo::losses::list_losses(&self.0, request.into_inner().volume).await.map(Response::new)
    }

    async fn list_salvage(
        &self,
        request: Request<ListSalvageRequest>,
    ) -> Result<Response<ListSalvageReply>, Status> {
        self.allow(&request, &[Role::Admin])?;
        geo::losses::list_salvage(&self.0, request.into_inner().volume).await.map(Response::new)
    }

    async fn show_salvage(
        &self,
        request: Request<ShowSalvageRequest>,
    ) -> Result<Response<ShowSalvageReply>, Status> {
        self.allow(&request, &[Role::Admin])?;
        geo::losses::show_salvage(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn add_region(
        &self,
        request: Request<AddRegionRequest>,
    ) -> Result<Response<ChangeRegionsReply>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        let AddRegionRequest { name, number, witness, masters, join } = request.into_inner();
        tracing::info!(who, name, number, witness, ?masters, "a region is to be taken in");
        let seat = |m: MemberToAdd| Seat { id: m.id, name: m.name, address: m.address, zone: m.zone };
        let masters = masters.into_iter().map(seat).collect();
        self.change_regions(Change::AddRegion(AddRegion { name, number, witness, masters, join })).await
    }

    async fn remove_region(
        &self,
        request: Request<RemoveRegionRequest>,
    ) -> Result<Response<ChangeRegionsReply>, Status> {
        let who = self.allow(&request, &[Role::Admin])?;
        let name = request.into_inner().name;
        tracing::info!(who, name, "a region is to be let go of");
        self.change_regions(Change::RemoveRegion(RemoveRegion { name })).await
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsReply>, Status> {
        self.allow_of_cluster(&request, &[Role::Admin, Role::Client])?;
        Ok(Response::new(self.0.events.page(&self.0, &request.into_inner())))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        if !request.plan {
            tracing::info!(who, ?request, "certificates are to be revoked");
        }
        let revoked = revocations::revoke(&self.0, &peer, request, Instant::now() + AGREE_WITHIN).await;
        revoked.map(Response::new).map_err(not_done)
    }

    async fn unrevoke(&self, request: Request<UnrevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let what = request.into_inner().what;
        tracing::info!(who, what, "a revocation is to be taken back");
        let taken_back = revocations::unrevoke(&self.0, &what, Instant::now() + AGREE_WITHIN).await;
        taken_back.map(Response::new).map_err(not_done)
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsReply>, Status> {
        self.allow_of_cluster(&request, &[Role::Admin, Role::Client])?;
        Ok(Response::new(revocations::list(&self.0)))
    }

    async fn cluster_level(
        &self,
        request: Request<ClusterLevelRequest>,
    ) -> Result<Response<ClusterLevelReply>, Status> {
        self.allow_of_cluster(&request, &[Role::Admin, Role::Client])?;
        Ok(Response::new(self.global()?.cluster_level()))
    }

    async fn raise_level(
        &self,
        request: Request<RaiseLevelRequest>,
    ) -> Result<Response<RaiseLevelReply>, Status> {
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let request = request.into_inner();
        if !request.plan {
            tracing::info!(who, ?request, "the feature level is to be raised");
        }
        let raised = self.global()?.raise(&request, Instant::now() + AGREE_WITHIN).await;
        raised.map(Response::new).map_err(not_done)
    }

    async fn set_volume(
        &self,
        request: Request<SetVolumeRequest>,
    ) -> Result<Response<SetVolumeReply>, Status> {
        // What only the home does administrators of any region ask for.
        let who = match request.get_ref().automatic {
            Some(true) => self.allow_of_cluster(&request, &[Role::Admin])?,
            _ => self.allow(&request, &[Role::Admin])?,
        };
        let request = request.into_inner();
        if !request.plan {
            tracing::info!(who, ?request, "a volume's settings are to change");
        }
        let set = geo::leased::set(&self.0, self.global()?, &request, Instant::now() + AGREE_WITHIN).await;
        set.map(Response::new).map_err(|error| match error.code() {
            ErrorCode::NotHome => tree::refusal(error),
            _ => not_agreed(error),
        })
    }

    async fn move_home(&self, request: Request<MoveHomeRequest>) -> Result<Response<MoveHomeReply>, Status> {
        // Of any region: the home may be where the administrator isn't.
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let request = request.into_inner();
        if !request.plan {
            tracing::info!(who, ?request, "a volume's home is to be moved");
        }
        let moved = geo::moving::order(&self.0, request, Instant::now() + MOVE_WITHIN).await;
        moved.map(Response::new).map_err(not_done)
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeReply>, Status> {
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let request = request.into_inner();
        if !request.plan {
            tracing::info!(who, ?request, "a volume is to be made");
        }
        let made = geo::joins::create(&self.0, request, Instant::now() + JOIN_WITHIN).await;
        made.map(Response::new).map_err(not_done)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeReply>, Status> {
        let who = self.allow_of_cluster(&request, &[Role::Admin])?;
        let request = request.into_inner();
        if !request.plan {
            tracing::info!(who, ?request, "a volume is to be deleted");
        }
        let deleted = geo::joins::delete(&self.0, request, Instant::now() + JOIN_WITHIN).await;
        deleted.map(Response::new).map_err(not_done)
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersReply>, Status> {
        let who = self.allow(&request, &[Role::Admin, Role::Master])?;
        let request = request.into_inner();
        let named = request.add.into_iter().map(|m| {
            let MemberToAdd { id, name, address, zone } = m;
            (id, members::Member { name, address, zone })
        });
        let add = members::to_add(named).map_err(|why| Status::invalid_argument(why.to_string()))?;
        let node =
            |(id, m): (u64, members::Member)| (id, Member { name: m.name, address: m.address, zone: m.zone });
        let add: BTreeMap<u64, Member> = add.into_iter().map(node).collect();
        let remove: BTreeSet<u64> = request.remove.into_iter().collect();
        tracing::info!(who, ?add, ?remove, "the members are to change");
        // The change goes on where the caller gives up: half a change of members helps nobody.
        let raft = self.0.raft.clone();
        let change = tokio::spawn(trace::carried(async move { raft.change_members(add, remove).await }));
        match tokio::time::timeout(CHANGE_WITHIN, change).await {
            Ok(Ok(changed)) => {
                Ok(Response::new(ChangeMembersReply { voters: changed.map_err(raft_refused)? }))
            }
            Ok(Err(_)) => {
                Err(Status::internal("the change of members ended without an outcome; look at the status"))
            }
            Err(_) => {
                Err(Status::deadline_exceeded("the change of members still goes on; look at the status"))
            }
        }
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let who = self.allow(&request, &[Role::Admin, Role::Master])?;
        let to = request.into_inner().to;
        if to != 0 {
            let error = crate::errors::not_built("choosing the master that leadership is handed to");
            return Err(Status::unimplemented(error.message));
        }
        tracing::info!(who, "leadership is to be handed over");
        let raft = self.0.raft.clone();
        let handing =
            tokio::spawn(trace::carried(async move { raft.transfer_leader(HAND_OVER_WITHIN).await }));
        match handing.await {
            Ok(outcome) => outcome.map(|_| Response::new(TransferLeaderReply {})).map_err(raft_refused),
            Err(_) => Err(Status::internal("the hand-over ended without an outcome; look at the status")),
        }
    }
}
