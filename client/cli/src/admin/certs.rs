//! What is asked about certificates that the cluster refuses.

use mooseng_transport::grpc_request;
use mooseng_wire::admin::{
    ListRevocationsReply, ListRevocationsRequest, RevokeReply, RevokeRequest, UnrevokeRequest,
};

use super::{AGREE_WAIT, STATUS_WAIT, at_any, at_leader};
use crate::config::ClientFile;
use crate::exit::Failure;

/// Refuses certificates, or asks whether that would be taken.
pub async fn revoke(file: &ClientFile, request: RevokeRequest) -> Result<RevokeReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), AGREE_WAIT);
        async move { client.revoke(request).await }
    })
    .await
}

/// Takes a revocation back.
pub async fn unrevoke(file: &ClientFile, request: UnrevokeRequest) -> Result<RevokeReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), AGREE_WAIT);
        async move { client.unrevoke(request).await }
    })
    .await
}

/// What is revoked, as the first master that answers knows it.
pub async fn list_revocations(file: &ClientFile) -> Result<ListRevocationsReply, Failure> {
    at_any(file, |mut client| async move {
        client.list_revocations(grpc_request(ListRevocationsRequest {}, STATUS_WAIT)).await
    })
    .await
}
