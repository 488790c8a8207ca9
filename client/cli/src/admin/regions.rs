//! What is asked about the cluster's regions.

use std::time::Duration;

use mooseng_transport::{TRACE, grpc_request, trace};
use mooseng_wire::admin::{ListRegionsReply, ListRegionsRequest};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::{STATUS_WAIT, client, reason, settled, with_refusal};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};

/// How long other masters may take to say that they know more, once one has said how things are.
const OTHERS_WAIT: Duration = Duration::from_millis(500);

/// The cluster's regions. All masters are asked at once: one that was taken out of its group and runs on hears of no majority, whatever the others agree on, and who is
/// believed for having answered first would have the regions agree on nothing.
pub async fn list_regions(file: &ClientFile) -> Result<ListRegionsReply, Failure> {
    let network = file.network()?;
    let mut asked = JoinSet::new();
    for address in &file.masters {
        let (network, address) = (network.clone(), address.clone());
        let asking = async move {
            let mut client = client(network.clone(), &address).await;
            let call = client.list_regions(grpc_request(ListRegionsRequest {}, STATUS_WAIT));
            let answer = match tokio::time::timeout(STATUS_WAIT, call).await {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(with_refusal(network, &address, status).await),
                Err(_) => Err(tonic::Status::deadline_exceeded("no answer in time")),
            };
            (address, answer)
        };
        asked.spawn(TRACE.scope(trace::current(), asking));
    }
    let (mut replies, mut refusals) = (Vec::new(), Vec::new());
    let mut until = None;
    loop {
        let next = match until {
            Some(until) => timeout_at(until, asked.join_next()).await.unwrap_or(None),
            None => asked.join_next().await,
        };
        let Some(answered) = next else { break };
        let (address, answer) =
            answered.map_err(|e| Failure::failed(format!("Asking a master failed inside: {e}.")))?;
        // Who hangs isn't waited for by somebody who has an answer: a majority's, or that there is no global group.
        let is_settled = match &answer {
            Ok(reply) => reply.quorum,
            Err(status) => status.code() == Code::FailedPrecondition,
        };
        if is_settled && until.is_none() {
            until = Some(Instant::now() + OTHERS_WAIT);
        }
        match answer {
            Ok(reply) => replies.push(reply),
            Err(status) => refusals.push((address, status)),
        }
    }
    best(replies).ok_or_else(|| untold(&refusals))
}

/// The reply of a master that hears of a majority, and of those the newest.
fn best(replies: Vec<ListRegionsReply>) -> Option<ListRegionsReply> {
    replies.into_iter().max_by_key(|reply| (reply.quorum, reply.version))
}

/// Why no master told what it was asked.
fn untold(refusals: &[(String, tonic::Status)]) -> Failure {
    let refusal = |kind: Kind| {
        let (address, status) = refusals.iter().find(|(_, status)| settled(status) == Some(kind))?;
        Some(Failure::new(kind, format!("{address} refuses: {}", reason(status))))
    };
    refusal(Kind::Denied).or_else(|| refusal(Kind::Failed)).unwrap_or_else(|| {
        let lines = refusals.iter().map(|(address, status)| format!("\n  {address}: {}", reason(status)));
        Failure::unavailable(format!("No master answers:{}", lines.collect::<String>()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hears_of_no_majority_is_believed_only_where_all_say_so() {
        let reply = |asked: &str, quorum, version| ListRegionsReply {
            asked: asked.into(),
            quorum,
            version,
            ..ListRegionsReply::default()
        };
        let chosen = |replies: Vec<ListRegionsReply>| best(replies).map(|reply| reply.asked);
        let removed = reply("removed", false, 9);
        assert_eq!(chosen(vec![removed.clone(), reply("a", true, 7)]).as_deref(), Some("a"));
        let late = reply("late", true, 6);
        assert_eq!(chosen(vec![reply("a", true, 7), late, removed.clone()]).as_deref(), Some("a"));
        assert_eq!(chosen(vec![reply("b", false, 8), removed]).as_deref(), Some("removed"));
        assert_eq!(chosen(vec![]), None);
        let told = |statuses: Vec<tonic::Status>| {
            untold(&statuses.into_iter().map(|status| ("a".to_owned(), status)).collect::<Vec<_>>())
                .exit_code()
        };
        let (silent, alone) =
            (tonic::Status::unavailable("gone"), tonic::Status::failed_precondition("one region"));
        assert_eq!(told(vec![silent.clone()]), 5);
        assert_eq!(told(vec![silent.clone(), alone]), 1);
        assert_eq!(told(vec![silent, tonic::Status::permission_denied("no")]), 4);
    }
}
