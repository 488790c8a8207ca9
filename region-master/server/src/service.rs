//! The framed stream: sessions and filesystem requests of clients, Raft of masters.

use std::sync::Arc;

use async_trait::async_trait;
use mooseng_raft::{is_of_global, is_of_region};
use mooseng_transport::{Answer, Incoming, Service, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::method::Method;
use mooseng_wire::session::{Renew, Renewed};
use mooseng_wire::{Role, SessionId};
use tokio::time::Instant;

use crate::global::Global;
use crate::master::Master;
use crate::{fs, geo, promises, sessions};

/// Answers calls on framed streams.
pub struct MasterService(pub Arc<Master>);

#[async_trait]
impl Service for MasterService {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let master = &self.0;
        let method = incoming.method;
        if is_of_global(method) {
            return self.global()?.handle(incoming).await;
        }
        if is_of_region(method) {
            master.allow(&incoming.peer, &[Role::Master])?;
            return master.raft.handle(incoming).await;
        }
        let started = Instant::now();
        let answer = self.answer(incoming).await;
        let error = answer.as_ref().err().map(|e| e.code().as_str_name());
        master.metrics.answered(method.as_str(), error, started.elapsed().as_secs_f64());
        answer
    }

    fn disconnected(&self, connection: u64) {
        self.0.connections.forget(connection);
    }
}

impl MasterService {
    fn global(&self) -> Result<&Global, CallError> {
        let alone = "this master's cluster has one region (there is no [global] in its configuration)";
        self.0.global.as_deref().ok_or_else(|| call_error(ErrorCode::InvalidRequest, alone))
    }

    async fn answer(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let master = &self.0;
        // A master of any region that asks whether this one is there (`lead::probe`, `global::status`).
        if incoming.method == Method::Renew && incoming.peer.identity.role == Role::Master {
            master.allow_of_cluster(&incoming.peer, &[Role::Master])?;
            return Ok(Answer::of(&Renewed { lease_ms: 0, custody_epoch: master.raft.term(), quotas: 0 }));
        }
        if matches!(incoming.method, Method::GlobalRenew | Method::GlobalChange) {
            return self.global()?.answer(incoming).await;
        }
        let peer = incoming.peer.clone();
        let deadline = incoming.deadline;
        match incoming.method {
            Method::LogPush => {
                return geo::receive::push(master, &peer, incoming.decode()?, deadline)
                    .await
                    .map(|m| Answer::of(&m));
            }
            Method::VolumePage => {
                return geo::serve::page(master, &peer, incoming.decode()?).await.map(|m| Answer::of(&m));
            }
            Method::LogAsk => {
                return geo::serve::log(master, &peer, incoming.decode()?).await.map(|m| Answer::of(&m));
            }
            Method::VolumeDigest => {
                return geo::serve::digest(master, &peer, incoming.decode()?).await.map(|m| Answer::of(&m));
            }
            Method::VolumeServed => {
                return geo::serve::served(master, &peer, incoming.decode()?).map(|m| Answer::of(&m));
            }
            Method::ChunkSource => {
                return geo::chunks::source(master, &peer, incoming.decode()?).await.map(|m| Answer::of(&m));
            }
            Method::ChunkReceivers => {
                return geo::push::receivers(master, &peer, incoming.decode()?).await.map(|m| Answer::of(&m));
            }
            Method::LogComplete => {
                return geo::complete::heard(master, &peer, incoming.decode()?).map(|m| Answer::of(&m));
            }
            Method::NearRead => {
                return geo::near::read(master, &peer, incoming.decode()?, deadline)
                    .await
                    .map(|m| Answer::of(&m));
            }
            Method::NearRenew => {
                let connection = incoming.connection.clone();
                return geo::near_promises::renew(master, &peer, &connection, incoming.decode()?, deadline)
                    .await
                    .map(|m| Answer::of(&m));
            }
            _ => {}
        }
        master.allow_of_cluster(&peer, &[Role::Client, Role::Admin])?;
        geo::moving::unsealed(master, geo::ROOT_VOLUME, deadline).await?;
        geo::at_home(master, geo::ROOT_VOLUME)?;
        let identity = &peer.uri;
        let connection = incoming.connection.clone();
        match incoming.method {
            Method::OpenSession => {
                let opened = sessions::open(master, &peer, incoming.decode()?).await?;
                master.connections.note(SessionId(opened.session), &connection);
                Ok(Answer::of(&opened))
            }
            Method::AnswerRecalls => {
                promises::answered(master, identity, &incoming.decode()?).map(|m| Answer::of(&m))
            }
            Method::Renew => {
                let request: Renew = incoming.decode()?;
                let renewed = sessions::renew(master, identity, &request)?;
                master.connections.note(SessionId(request.session), &connection);
                Ok(Answer::of(&renewed))
            }
            Method::CloseSession => {
                sessions::close(master, identity, &incoming.decode()?).await.map(|m| Answer::of(&m))
            }
            Method::FsRead => {
                fs::read(master, &peer, incoming.decode()?, deadline).await.map(|m| Answer::of(&m))
            }
            Method::FsChange => {
                fs::change(master, &peer, incoming.decode()?, deadline).await.map(|m| Answer::of(&m))
            }
            other => {
                let message = format!("a master doesn't answer {}; ask a chunkserver", other.as_str());
                Err(call_error(ErrorCode::InvalidRequest, message))
            }
        }
    }
}
