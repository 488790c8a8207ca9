//! Asks masters over gRPC.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::{
    CallFailure, ConnectError, Link, LinkOptions, Network, TRACE, grpc_channel, grpc_request, trace,
};
use mooseng_wire::Role;
use mooseng_wire::admin::{
    AddRegionRequest, ChangeMembersReply, ChangeMembersRequest, ChangeRegionsReply, CreateVolumeReply,
    CreateVolumeRequest, DeleteVolumeReply, DeleteVolumeRequest, DrainReply, DrainRequest, Finding,
    ListLossesReply, ListLossesRequest, ListRegionsReply, ListSalvageReply, ListSalvageRequest,
    ListVolumesReply, ListVolumesRequest, MoveHomeReply, MoveHomeRequest, RemoveRegionRequest,
    SetVolumeReply, SetVolumeRequest, ShowSalvageReply, ShowSalvageRequest, StatusReply, StatusRequest,
    VerifyDataReply, VerifyDataRequest, VerifyVolumeReply, VerifyVolumeRequest, Volume,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::Home;
use mooseng_wire::method::Method;
use prost::Message;
use tonic::Code;
use tonic::transport::Channel;

use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::outlook;
use crate::status::Wide;

mod certs;
mod cluster;
mod home;
mod plans;
mod regions;

pub use certs::*;
pub use cluster::*;
pub use home::*;
pub use plans::*;
pub use regions::*;

/// How long a master may take to answer about its status.
const STATUS_WAIT: Duration = Duration::from_secs(4);
/// How long a change of membership may take: a new master copies the whole store first.
const CHANGE_WAIT: Duration = Duration::from_secs(120);
/// How long it may take to note a draining: one commit.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// How long a master of any region may take to answer where others answer, too.
const FAR_WAIT: Duration = Duration::from_secs(2);
/// How long the regions may take to agree on something.
const AGREE_WAIT: Duration = Duration::from_secs(20);
/// How long a move of a home may take, and to make or delete a volume.
const MOVE_WAIT: Duration = Duration::from_secs(30);
/// How long a comparison of a volume may take.
const VERIFY_WAIT: Duration = Duration::from_secs(600);

/// The finding of a master about itself.
const FAILED: &str = "MASTER_FAILED";

/// What the masters answered.
#[derive(Debug)]
pub struct Answered {
    /// The leader's answer, or another master's if the leader didn't answer.
    pub reply: StatusReply,
    /// Masters that didn't answer, and why.
    pub silent: Vec<(String, String)>,
}

/// Runs a command's asynchronous part.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let tokio = tokio.map_err(|e| Failure::failed(format!("The runtime can't be started: {e}.")))?;
    // One trace for the whole command: whatever it asks of whomever is found by it in their logs, and at the collector of those that have one.
    let outcome = tokio.block_on(TRACE.scope(trace::requested(), future));
    tokio.shutdown_timeout(Duration::from_millis(200));
    outcome
}

/// Asks every master of the configuration at once.
pub async fn status(file: &ClientFile) -> Result<Answered, Failure> {
    let network = file.network()?;
    let asked: Vec<_> = file
        .masters
        .iter()
        .map(|address| {
            let (network, address) = (network.clone(), address.clone());
            let asking = async move { (address.clone(), ask(network, &address).await) };
            tokio::spawn(TRACE.scope(trace::current(), asking))
        })
        .collect();
    let mut replies = Vec::new();
    let mut silent = Vec::new();
    let mut denied = false;
    for task in asked {
        match task.await {
            Ok((address, Ok(reply))) => replies.push((address, reply)),
            Ok((address, Err(status))) => {
                denied |= status.code() == Code::PermissionDenied;
                silent.push((address, reason(&status)));
            }
            Err(e) => return Err(Failure::failed(format!("Asking a master failed inside: {e}."))),
        }
    }
    choose(replies, silent, denied)
}

fn choose(
    mut replies: Vec<(String, StatusReply)>,
    silent: Vec<(String, String)>,
    denied: bool,
) -> Result<Answered, Failure> {
    let leads = |(address, reply): &(String, StatusReply)| {
        reply.masters.iter().any(|m| m.leader && m.address == *address)
    };
    // A master that was cut off may still believe in itself: the newest term speaks.
    replies.sort_by_key(|r| (leads(r), r.1.term));
    match replies.pop() {
        Some((_, mut reply)) => {
            replies.iter().for_each(|(address, own)| add_own_word(&mut reply, address, own));
            Ok(Answered { reply, silent })
        }
        None => {
            let list: Vec<String> = silent.iter().map(|(a, why)| format!("\n  {a}: {why}")).collect();
            let kind = if denied { Kind::Denied } else { Kind::Unavailable };
            Err(Failure::new(
                kind,
                format!("No master answers, so nothing is known about the region:{}", list.concat()),
            ))
        }
    }
}

/// What only a master itself can say: how far it has applied the log, and that it can't take part.
fn add_own_word(reply: &mut StatusReply, address: &str, own: &StatusReply) {
    let Some(listed) = reply.masters.iter_mut().find(|m| m.address == address) else { return };
    if let Some(told) = own.masters.iter().find(|m| m.address == address) {
        listed.applied = told.applied;
    }
    if let Some(failed) = own.findings.iter().find(|f| f.code == FAILED) {
        listed.reachable = false;
        let detail = failed.detail.replacen("The asked master", &format!("Master {}", listed.name), 1);
        reply.findings.push(Finding { subject: listed.name.clone(), detail, ..failed.clone() });
    }
}

/// Administration at one master.
pub async fn client(network: Arc<dyn Network>, address: &str) -> AdministrationClient<Channel> {
    AdministrationClient::new(grpc_channel(network, address, Role::Master).await)
}

async fn ask(network: Arc<dyn Network>, address: &str) -> Result<StatusReply, tonic::Status> {
    let mut client = client(network.clone(), address).await;
    match tokio::time::timeout(STATUS_WAIT, client.status(grpc_request(StatusRequest {}, STATUS_WAIT))).await
    {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(with_refusal(network, address, status).await),
        Err(_) => {
            Err(tonic::Status::deadline_exceeded(format!("no answer within {} s", STATUS_WAIT.as_secs())))
        }
    }
}

/// A peer that refuses our certificate says so after the handshake, where gRPC only sees a connection that closes: it is asked once more
/// over frames, which keep the reason.
async fn with_refusal(network: Arc<dyn Network>, address: &str, status: tonic::Status) -> tonic::Status {
    if status.source().is_none() {
        return status;
    }
    let link = Link::new(network, address.to_owned(), Role::Master, LinkOptions::default());
    let answer = link.call(Method::Renew, Bytes::new(), Bytes::new(), STATUS_WAIT).await;
    link.close();
    match answer {
        Err(CallFailure::Connect(
            ConnectError::Refused { reason, .. } | ConnectError::Certificate { reason, .. },
        )) => tonic::Status::permission_denied(reason),
        _ => status,
    }
}

/// The innermost reason of a failed call: what a person can act on.
pub fn reason(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}

/// Changes the members at whichever master leads.
pub async fn change_members(
    file: &ClientFile,
    request: ChangeMembersRequest,
) -> Result<ChangeMembersReply, Failure> {
    at_leader(file, CHANGE_WAIT, |mut client| {
        let mut call = tonic::Request::new(request.clone());
        call.set_timeout(CHANGE_WAIT);
        async move { client.change_members(call).await }
    })
    .await
}

/// Begins or ends the draining of a chunkserver at whichever master leads.
pub async fn drain_chunkserver(file: &ClientFile, request: DrainRequest) -> Result<DrainReply, Failure> {
    at_leader(file, DRAIN_WAIT, |mut client| {
        let request = request.clone();
        async move { client.drain_chunkserver(request).await }
    })
    .await
}

/// The cluster's volumes.
pub async fn list_volumes(file: &ClientFile) -> Result<ListVolumesReply, Failure> {
    at_any(file, |mut client| async move {
        client.list_volumes(grpc_request(ListVolumesRequest {}, STATUS_WAIT)).await
    })
    .await
}

/// The cluster's regions and volumes as all of its masters that answer know them, wherever they are: how far replicas are is put together from the home's
/// word and their own. Masters that don't answer are left out; one must.
pub async fn cluster(file: &ClientFile) -> Result<(ListRegionsReply, Vec<Volume>), Failure> {
    let regions = list_regions(file).await?;
    let told = everywhere(file, &regions, |mut client| async move {
        client.list_volumes(grpc_request(ListVolumesRequest {}, FAR_WAIT)).await
    });
    let told = told.await?.into_iter().map(|(region, _, reply)| (region, reply)).collect();
    Ok((regions, outlook::merged(told)))
}

/// What masters of all regions say of the cluster; none where it has one region, or nobody tells.
pub async fn wide(file: &ClientFile) -> Option<Wide> {
    let (regions, volumes) = cluster(file).await.ok()?;
    let told = everywhere(file, &regions, |mut client| async move {
        client.status(grpc_request(StatusRequest {}, FAR_WAIT)).await
    });
    let mut leaders = BTreeMap::new();
    for (region, address, reply) in told.await.ok()? {
        let leads = reply.masters.iter().any(|m| m.leader && m.address == address);
        // Of two that believe in themselves the newer one is right.
        let newer = leaders.get(&region).is_none_or(|known: &StatusReply| known.term < reply.term);
        if leads && newer {
            leaders.insert(region, reply);
        }
    }
    Some(Wide { regions, volumes, leaders: leaders.into_iter().collect() })
}

/// Asks the masters of all regions that may be there, at once; answers what came in time, with region and address.
async fn everywhere<T, F>(
    file: &ClientFile,
    regions: &ListRegionsReply,
    call: impl Fn(AdministrationClient<Channel>) -> F + Clone + Send + Sync + 'static,
) -> Result<Vec<(String, String, T)>, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
{
    let network = file.network()?;
    let masters = regions.regions.iter().flat_map(|region| region.masters.iter().map(|m| (&region.name, m)));
    let asked: Vec<_> = masters
        .filter(|(_, m)| m.reachable != Some(false))
        .map(|(region, m)| {
            let (network, call) = (network.clone(), call.clone());
            let (region, address) = (region.clone(), m.address.clone());
            let asking = async move {
                let client = client(network, &address).await;
                let answer = tokio::time::timeout(FAR_WAIT, call(client)).await.ok()?.ok()?;
                Some((region, address, answer.into_inner()))
            };
            tokio::spawn(TRACE.scope(trace::current(), asking))
        })
        .collect();
    let mut told = Vec::new();
    for task in asked {
        told.extend(task.await.ok().flatten());
    }
    Ok(told)
}

/// Changes a volume's settings. That it fails over by itself its home alone turns on.
pub async fn set_volume(file: &ClientFile, request: SetVolumeRequest) -> Result<SetVolumeReply, Failure> {
    if request.automatic == Some(true) {
        return home::set_volume(file, request).await;
    }
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), AGREE_WAIT);
        async move { client.set_volume(request).await }
    })
    .await
}

/// Moves a volume's home, or asks whether it could be: the masters of the home, of which one leads.
pub async fn move_home(
    file: &ClientFile,
    home: &[String],
    request: MoveHomeRequest,
) -> Result<MoveHomeReply, Failure> {
    at_leader_of(file, home, MOVE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), MOVE_WAIT);
        async move { client.move_home(request).await }
    })
    .await
}

/// Makes a volume, or asks whether it could be made: the masters of the root volume's home, of which one leads.
pub async fn create_volume(
    file: &ClientFile,
    home: &[String],
    request: CreateVolumeRequest,
) -> Result<CreateVolumeReply, Failure> {
    at_leader_of(file, home, MOVE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), MOVE_WAIT);
        async move { client.create_volume(request).await }
    })
    .await
}

/// Deletes one, or asks whether it could be deleted.
pub async fn delete_volume(
    file: &ClientFile,
    home: &[String],
    request: DeleteVolumeRequest,
) -> Result<DeleteVolumeReply, Failure> {
    at_leader_of(file, home, MOVE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), MOVE_WAIT);
        async move { client.delete_volume(request).await }
    })
    .await
}

/// What failovers of a volume lost, as the region's leader knows it.
pub async fn list_losses(file: &ClientFile, volume: u32) -> Result<ListLossesReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(ListLossesRequest { volume }, STATUS_WAIT);
        async move { client.list_losses(request).await }
    })
    .await
}

/// What of a volume was put aside in the region.
pub async fn list_salvage(file: &ClientFile, volume: u32) -> Result<ListSalvageReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(ListSalvageRequest { volume }, STATUS_WAIT);
        async move { client.list_salvage(request).await }
    })
    .await
}

/// A page of an archive.
pub async fn show_salvage(file: &ClientFile, asked: ShowSalvageRequest) -> Result<ShowSalvageReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(asked, AGREE_WAIT);
        async move { client.show_salvage(request).await }
    })
    .await
}

/// Compares a volume in this region with its home.
pub async fn verify_volume(file: &ClientFile, volume: u32) -> Result<VerifyVolumeReply, Failure> {
    at_leader(file, VERIFY_WAIT, |mut client| {
        let request = grpc_request(VerifyVolumeRequest { volume }, VERIFY_WAIT);
        async move { client.verify_volume(request).await }
    })
    .await
}

/// Compares a page of a volume's chunks in this region with the home's.
pub async fn verify_data(file: &ClientFile, asked: VerifyDataRequest) -> Result<VerifyDataReply, Failure> {
    at_leader(file, VERIFY_WAIT, |mut client| {
        let request = grpc_request(asked, VERIFY_WAIT);
        async move { client.verify_data(request).await }
    })
    .await
}

/// Takes a region in.
pub async fn add_region(file: &ClientFile, request: AddRegionRequest) -> Result<ChangeRegionsReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(request.clone(), AGREE_WAIT);
        async move { client.add_region(request).await }
    })
    .await
}

/// Lets go of a region.
pub async fn remove_region(file: &ClientFile, name: String) -> Result<ChangeRegionsReply, Failure> {
    at_leader(file, AGREE_WAIT, |mut client| {
        let request = grpc_request(RemoveRegionRequest { name: name.clone() }, AGREE_WAIT);
        async move { client.remove_region(request).await }
    })
    .await
}

/// Asks master after master until one answers. What a master can't answer by its configuration, none can.
async fn at_any<T, F>(
    file: &ClientFile,
    call: impl Fn(AdministrationClient<Channel>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let network = file.network()?;
    let mut silent = Vec::new();
    for address in &file.masters {
        let client = client(network.clone(), address).await;
        let status = match tokio::time::timeout(STATUS_WAIT, call(client)).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => with_refusal(network.clone(), address, status).await,
            Err(_) => tonic::Status::deadline_exceeded("no answer in time"),
        };
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                return Err(Failure::new(Kind::Denied, format!("{address} refuses: {}", reason(&status))));
            }
            Code::FailedPrecondition => {
                return Err(Failure::failed(format!("{address} refuses: {}", reason(&status))));
            }
            _ => silent.push(format!("\n  {address}: {}", reason(&status))),
        }
    }
    Err(Failure::unavailable(format!("No master answers:{}", silent.concat())))
}

/// Asks master after master until one takes the change.
async fn at_leader<T, F>(
    file: &ClientFile,
    wait: Duration,
    call: impl Fn(AdministrationClient<Channel>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    at_leader_of(file, &file.masters, wait, call).await
}

/// The same of those masters.
async fn at_leader_of<T, F>(
    file: &ClientFile,
    masters: &[String],
    wait: Duration,
    call: impl Fn(AdministrationClient<Channel>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    match leader_of(file, masters, wait, call).await? {
        Led::Answered(reply) => Ok(reply),
        Led::Elsewhere(home) => Err(Failure::failed(format!(
            "The home of the volume is the region {} by now, which wasn't asked: try again.",
            home.region
        ))),
    }
}

/// What a region's leader came to.
enum Led<T> {
    Answered(T),
    /// The volume's home is another region: nothing was done.
    Elsewhere(Home),
}

/// The home that a refusal names.
fn home_elsewhere(status: &tonic::Status) -> Option<Home> {
    let told = Some(status.details()).filter(|_| status.code() == Code::FailedPrecondition)?;
    let error = CallError::decode(told).ok().filter(|error| error.code() == ErrorCode::NotHome)?;
    Home::decode(error.detail).ok().filter(|home| !home.masters.is_empty())
}

async fn leader_of<T, F>(
    file: &ClientFile,
    masters: &[String],
    wait: Duration,
    call: impl Fn(AdministrationClient<Channel>) -> F,
) -> Result<Led<T>, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let network = file.network()?;
    let mut refusals = Vec::new();
    for address in masters {
        let client = client(network.clone(), address).await;
        let status = match tokio::time::timeout(wait, call(client)).await {
            Ok(Ok(reply)) => return Ok(Led::Answered(reply.into_inner())),
            Ok(Err(status)) => with_refusal(network.clone(), address, status).await,
            Err(_) => tonic::Status::deadline_exceeded("no answer in time"),
        };
        if let Some(home) = home_elsewhere(&status) {
            return Ok(Led::Elsewhere(home));
        }
        if let Some(kind) = settled(&status) {
            return Err(Failure::new(kind, format!("{address} refuses: {}", reason(&status))));
        }
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => {
                let text = format!(
                    "{address} didn't answer in time: the change may be made or not. `mooseng status` shows how it is."
                );
                return Err(Failure::new(Kind::OutcomeUnknown, text));
            }
            _ => refusals.push((address, reason(&status))),
        }
    }
    Err(Failure::unavailable(refused_by_all(&refusals)))
}

/// What a refusal is that no other master would take back; none where another one may do what was asked for.
fn settled(status: &tonic::Status) -> Option<Kind> {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Some(Kind::Denied),
        Code::NotFound => Some(Kind::NotFound),
        Code::InvalidArgument | Code::AlreadyExists | Code::Unimplemented => Some(Kind::Failed),
        // Who doesn't lead says that it is unavailable. With details it is about the volume's home, which another master may know.
        Code::FailedPrecondition if status.details().is_empty() => Some(Kind::Failed),
        _ => None,
    }
}

/// What masters said of whom none does what was asked for, once where all say the same.
fn refused_by_all(refusals: &[(&String, String)]) -> String {
    match refusals {
        [(_, first), others @ ..] if others.iter().all(|(_, other)| other == first) => {
            format!("The masters refuse: {first}")
        }
        _ => {
            let lines = refusals.iter().map(|(address, why)| format!("\n  {address}: {why}"));
            format!("No master does it:{}", lines.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::MasterStatus;

    use super::*;

    fn reply(term: u64, leader: &str) -> StatusReply {
        let masters =
            ["a", "b"].map(|a| MasterStatus { address: a.into(), leader: a == leader, ..Default::default() });
        StatusReply { term, masters: masters.into(), ..Default::default() }
    }

    #[test]
    fn a_master_speaks_for_itself_where_the_leader_can_not_know() {
        let mut own = reply(2, "a");
        own.masters[1].applied = 7;
        own.findings.push(Finding {
            code: FAILED.into(),
            subject: "asked master".into(),
            detail: "The asked master says: its disk is gone.".into(),
        });
        let mut leaders = reply(2, "a");
        leaders.masters.iter_mut().for_each(|m| (m.name, m.reachable) = (format!("m-{}", m.address), true));
        let replies = vec![("a".into(), leaders), ("b".into(), own)];
        let chosen = choose(replies, vec![], false).unwrap().reply;
        assert_eq!((chosen.masters[0].reachable, chosen.masters[1].reachable), (true, false));
        assert_eq!(chosen.masters[1].applied, 7);
        assert_eq!(chosen.findings[0].subject, "m-b");
        assert_eq!(chosen.findings[0].detail, "Master m-b says: its disk is gone.");
    }

    #[test]
    fn a_refusal_says_where_the_home_is() {
        let refused = |code, error: &CallError| {
            tonic::Status::with_details(code, "it isn't here", error.encode_to_vec().into())
        };
        let home = Home { region: "b".into(), masters: vec!["m:1".into()], epoch: 2 };
        let not_home = CallError {
            code: ErrorCode::NotHome.into(),
            detail: home.encode_to_vec().into(),
            ..CallError::default()
        };
        assert_eq!(home_elsewhere(&refused(Code::FailedPrecondition, &not_home)), Some(home));
        let nobody = CallError { detail: Home::default().encode_to_vec().into(), ..not_home.clone() };
        let other = CallError { code: ErrorCode::Unavailable.into(), ..not_home };
        for error in [nobody, other] {
            assert_eq!(home_elsewhere(&refused(Code::FailedPrecondition, &error)), None);
        }
        assert_eq!(home_elsewhere(&tonic::Status::failed_precondition("no")), None);
    }

    #[test]
    fn what_no_other_master_would_do_is_a_refusal_and_no_silence() {
        let code = |status: tonic::Status| {
            settled(&status).map(|kind| Failure::new(kind, status.message()).exit_code())
        };
        // A cluster of one region, a group without members, a volume that is at home there.
        assert_eq!(code(tonic::Status::failed_precondition("this cluster has one region")), Some(1));
        assert_eq!(code(tonic::Status::invalid_argument("no")), Some(1));
        assert_eq!(code(tonic::Status::not_found("no")), Some(3));
        assert_eq!(code(tonic::Status::permission_denied("no")), Some(4));
        assert_eq!(code(tonic::Status::unavailable("this master doesn't lead the region")), None);
        let not_home = CallError { code: ErrorCode::NotHome.into(), ..CallError::default() };
        let details = not_home.encode_to_vec().into();
        let unknown = tonic::Status::with_details(Code::FailedPrecondition, "whose?", details);
        assert_eq!(code(unknown), None, "another one may know");
    }

    #[test]
    fn the_leader_speaks() {
        let replies = vec![("a".into(), reply(2, "a")), ("b".into(), reply(2, "a"))];
        let chosen = choose(replies, vec![], false).unwrap();
        assert_eq!(chosen.reply.term, 2);
        let replies = vec![("a".into(), reply(7, "a")), ("b".into(), reply(3, "b"))];
        assert_eq!(choose(replies, vec![], false).unwrap().reply.term, 7);
        let failure = choose(vec![], vec![("a".into(), "refused".into())], false).unwrap_err();
        assert_eq!(failure.exit_code(), 5);
        assert!(failure.to_string().contains("a: refused"));
        assert_eq!(choose(vec![], vec![], true).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn what_all_masters_say_is_said_once() {
        let (a, b) = ("m1:1".to_owned(), "m2:1".to_owned());
        let said = |one: &str, other: &str| refused_by_all(&[(&a, one.to_owned()), (&b, other.to_owned())]);
        assert_eq!(said("not now", "not now"), "The masters refuse: not now");
        assert_eq!(said("not now", "who?"), "No master does it:\n  m1:1: not now\n  m2:1: who?");
    }
}
