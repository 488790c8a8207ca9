//! Members of a group of which not all vote, step by step: what to change is the caller's to decide.

use std::collections::BTreeSet;

use openraft::{ChangeMembers, RaftMetrics};

use crate::node::RaftNode;
use crate::settings::{Member, RaftError};
use crate::types::Node;

fn refused(error: impl std::error::Error) -> RaftError {
    RaftError::Refused(error.to_string())
}

impl RaftNode {
    /// Takes in a member without a vote, which then gets the log. It must answer, and be who it is said to be. Done before, it does nothing.
    pub async fn add_learner(&self, id: u64, member: Member) -> Result<(), RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        if self.metrics().membership_config.membership().get_node(&id).is_some() {
            return Ok(());
        }
        self.greet(id, &member).await?;
        self.0.raft.add_learner(id, member, false).await.map(drop).map_err(refused)
    }

    /// These members vote, and no others, by joint consensus. Each must be a member already; whoever loses its vote stays one without.
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        if voters.is_empty() {
            return Err(RaftError::Refused("a group needs at least one master that votes".into()));
        }
        let known = self.metrics().membership_config;
        if let Some(id) = voters.iter().find(|id| known.membership().get_node(id).is_none()) {
            return Err(RaftError::NoMember(*id));
        }
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.0.raft.change_membership(change, true).await.map(drop).map_err(refused)
    }

    /// Lets go of members without a vote.
    pub async fn remove_learners(&self, ids: BTreeSet<u64>) -> Result<(), RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        let change = ChangeMembers::RemoveNodes(ids);
        self.0.raft.change_membership(change, true).await.map(drop).map_err(refused)
    }

    /// Waits until this member has applied an entry behind `index`, and answers the last one that it has applied. Pending once Raft has ended.
    pub async fn applied_beyond(&self, index: Option<u64>) -> u64 {
        let mut metrics = self.0.raft.metrics();
        let applied = |m: &RaftMetrics<u64, Node>| m.last_applied.map(|id| id.index);
        let seen = metrics.wait_for(|m| applied(m) > index).await.map(|m| applied(&m));
        match seen {
            Ok(seen) => seen.unwrap_or(0),
            Err(_) => std::future::pending().await,
        }
    }
}
