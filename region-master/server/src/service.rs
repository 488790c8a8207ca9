//! The framed stream: sessions and filesystem requests of clients, Raft of masters.

use std::sync::Arc;

use async_trait::async_trait;
use mooseng_raft::{is_of_global, is_of_region};
use mooseng_transport::{Answer, Incoming, Service, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::session::{AnswerRecalls, CloseSession, OpenSession, Renew, Renewed, Request};
use mooseng_wire::{Role, SessionId, VolumeId};
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
        self.hears(&incoming)?;
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

    fn levels(&self) -> Levels {
        self.0.network.levels()
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

    /// A master of a release that doesn't support the cluster's feature level isn't heard, but where it asks whether this one is there.
    fn hears(&self, incoming: &Incoming) -> Result<(), CallError> {
        let identity = &incoming.peer.identity;
        match &self.0.global {
            Some(global) if identity.role == Role::Master && incoming.method != Method::Renew => {
                global.hears(identity, incoming.connection.levels)
            }
            _ => Ok(()),
        }
    }

    /// What sessions ask of a volume only its home answers, once that isn't about to be moved.
    async fn at_home(&self, volume: VolumeId, deadline: Instant) -> Result<(), CallError> {
        geo::there_is(&self.0, volume, deadline).await?;
        geo::moving::unsealed(&self.0, volume, deadline).await?;
        geo::at_home(&self.0, volume)
    }

    async fn answer(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let master = &self.0;
        // A master of any region that asks whether this one is there (`lead::probe`, `global::status`).
        if incoming.method == Method::Renew && incoming.peer.identity.role == Role::Master {
            master.allow_of_cluster(&incoming.peer, &[Role::Master])?;
            return Ok(Answer::of(&Renewed { custody_epoch: master.raft.term(), ..Renewed::default() }));
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
                return geo::serve::served(master, &peer, incoming.decode()?, deadline)
                    .await
                    .map(|m| Answer::of(&m));
            }
            Method::VolumeLetGo => {
                return geo::may_go::answer(master, &peer, incoming.decode()?).await.map(|m| Answer::of(&m));
            }
            Method::ClassUse => {
                return geo::classes::used(master, &peer, incoming.decode()?, deadline)
                    .await
                    .map(|m| Answer::of(&m));
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
        let identity = &peer.uri;
        let connection = incoming.connection.clone();
        match incoming.method {
            Method::OpenSession => {
                let request: OpenSession = incoming.decode()?;
                let volume = sessions::volume_of(&request).ok_or_else(|| geo::no_volume(request.volume))?;
                self.at_home(volume, deadline).await?;
                let opened = sessions::open(master, &peer, volume, request).await?;
                master.connections.note(SessionId(opened.session), &connection);
                Ok(Answer::of(&opened))
            }
            Method::AnswerRecalls => {
                let request: AnswerRecalls = incoming.decode()?;
                self.at_home(SessionId(request.session).volume(), deadline).await?;
                promises::answered(master, identity, &request).map(|m| Answer::of(&m))
            }
            Method::Renew => {
                let request: Renew = incoming.decode()?;
                self.at_home(SessionId(request.session).volume(), deadline).await?;
                let renewed = sessions::renew(master, identity, &request)?;
                master.connections.note(SessionId(request.session), &connection);
                Ok(Answer::of(&renewed))
            }
            Method::CloseSession => {
                let request: CloseSession = incoming.decode()?;
                self.at_home(SessionId(request.session).volume(), deadline).await?;
                sessions::close(master, identity, &request).await.map(|m| Answer::of(&m))
            }
            Method::FsRead => {
                let request: Request = incoming.decode()?;
                self.at_home(SessionId(request.session).volume(), deadline).await?;
                fs::read(master, &peer, request, deadline).await.map(|m| Answer::of(&m))
            }
            Method::FsChange => {
                let request: Request = incoming.decode()?;
                self.at_home(SessionId(request.session).volume(), deadline).await?;
                fs::change(master, &peer, request, deadline).await.map(|m| Answer::of(&m))
            }
            other => {
                let message = format!("a master doesn't answer {}; ask a chunkserver", other.as_str());
                Err(call_error(ErrorCode::InvalidRequest, message))
            }
        }
    }
}
