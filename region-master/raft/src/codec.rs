//! Our encoding of openraft's types.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mooseng_wal as wal;
use mooseng_wire::raft as wire;
use openraft::{CommittedLeaderId, EntryPayload, LeaderId, LogId, Membership, StoredMembership, Vote};
use prost::Message;

use crate::types::{Batch, Node, TypeConfig};

pub(crate) type RaftLogId = LogId<u64>;
pub(crate) type RaftVote = Vote<u64>;
pub(crate) type RaftEntry = openraft::Entry<TypeConfig>;

/// Bytes that aren't what they should be.
#[derive(Debug, thiserror::Error)]
#[error("a Raft message is malformed: {0}")]
pub struct Malformed(pub String);

pub(crate) fn missing(what: &str) -> Malformed {
    Malformed(format!("it has no {what}"))
}

/// To the wire.
pub fn log_id(id: &RaftLogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}
/// From the wire.
pub fn from_log_id(id: &wire::LogId) -> RaftLogId {
    LogId::new(CommittedLeaderId::new(id.term, id.node), id.index)
}
/// To the wire.
pub fn vote(vote: &RaftVote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}
/// From the wire.
pub fn from_vote(vote: &wire::Vote) -> RaftVote {
    Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed }
}
/// To the wire.
pub fn membership(m: &Membership<u64, Node>) -> wire::Membership {
    wire::Membership {
        configs: m
            .get_joint_config()
            .iter()
            .map(|c| wire::VoterSet { nodes: c.iter().copied().collect() })
            .collect(),
        nodes: m
            .nodes()
            .map(|(id, n)| {
                (*id, wire::Node { name: n.name.clone(), address: n.address.clone(), zone: n.zone.clone() })
            })
            .collect(),
    }
}
/// From the wire.
pub fn from_membership(m: wire::Membership) -> Membership<u64, Node> {
    let configs: Vec<BTreeSet<u64>> = m.configs.into_iter().map(|c| c.nodes.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Node> = m
        .nodes
        .into_iter()
        .map(|(id, n)| (id, Node { name: n.name, address: n.address, zone: n.zone }))
        .collect();
    Membership::new(configs, nodes)
}
/// To the wire.
pub fn stored_membership(m: &StoredMembership<u64, Node>) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: m.log_id().as_ref().map(log_id),
        membership: Some(membership(m.membership())),
    }
}
/// From the wire.
pub fn from_stored_membership(m: wire::StoredMembership) -> StoredMembership<u64, Node> {
    StoredMembership::new(
        m.log_id.as_ref().map(from_log_id),
        from_membership(m.membership.unwrap_or_default()),
    )
}
/// A membership as the engine keeps it.
pub fn stored_bytes(m: &StoredMembership<u64, Node>) -> Bytes {
    stored_membership(m).encode_to_vec().into()
}
/// A membership that the engine kept; empty bytes are no membership yet.
pub fn from_stored_bytes(bytes: Bytes) -> Result<StoredMembership<u64, Node>, Malformed> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let stored = wire::StoredMembership::decode(bytes).map_err(|e| Malformed(e.to_string()))?;
    Ok(from_stored_membership(stored))
}

/// To the wire and the log.
pub fn entry(e: &RaftEntry) -> wire::LogEntry {
    use wire::log_entry::Payload;
    let payload = match &e.payload {
        EntryPayload::Blank => Payload::Blank(wire::Blank {}),
        EntryPayload::Normal(batch) => Payload::Batch(batch.bytes.clone()),
        EntryPayload::Membership(m) => Payload::Membership(membership(m)),
    };
    wire::LogEntry { log_id: Some(log_id(&e.log_id)), payload: Some(payload) }
}
/// From the wire and the log.
pub fn from_entry(e: wire::LogEntry) -> Result<RaftEntry, Malformed> {
    use wire::log_entry::Payload;
    let log_id = from_log_id(&e.log_id.ok_or_else(|| missing("log id"))?);
    let payload = match e.payload.ok_or_else(|| missing("payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Batch(bytes) => EntryPayload::Normal(Batch { bytes, context: Bytes::new() }),
        Payload::Membership(m) => EntryPayload::Membership(from_membership(m)),
    };
    Ok(openraft::Entry { log_id, payload })
}

/// From the log's.
pub(crate) fn from_wal(id: wal::LogId) -> RaftLogId {
    from_log_id(&mooseng_wire::raft::LogId { term: id.term, node: id.node, index: id.index })
}

/// The log's.
pub(crate) fn to_wal(id: &RaftLogId) -> wal::LogId {
    wal::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}
