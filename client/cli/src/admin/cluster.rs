//! What is asked about the feature level.

use mooseng_transport::grpc_request;
use mooseng_wire::admin::{ClusterLevelReply, ClusterLevelRequest, RaiseLevelReply, RaiseLevelRequest};

use super::{AGREE_WAIT, STATUS_WAIT, at_any, at_leader};
use crate::config::ClientFile;
use crate::exit::Failure;

/// The feature level, as the first master that answers knows it.
pub async fn cluster_level(file: &ClientFile) -> Result<ClusterLevelReply, Failure> {
    at_any(file, |mut client| async move {
        client.cluster_level(grpc_request(ClusterLevelRequest {}, STATUS_WAIT)).await
    })
    .await
}

/// Raises it, or asks whether it could be raised.
pub async fn raise_level(file: &ClientFile, request: RaiseLevelRequest) -> Result<RaiseLevelReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(request, AGREE_WAIT);
        async move { client.raise_level(request).await }
    })
    .await
}
