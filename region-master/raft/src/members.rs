//! Members of a group: those that it is founded with, changes of all who vote at once, and, where not all vote, step by step: what to change then is
//! the caller's to decide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_region::members::{self, Senseless};
use mooseng_wire::raft as wire;
use openraft::{ChangeMembers, RaftMetrics};

use crate::codec;
use crate::node::RaftNode;
use crate::settings::{Member, RaftError};
use crate::types::Node;

/// How long a member that is to be added may take to answer.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

fn refused(error: impl std::error::Error) -> RaftError {
    RaftError::Refused(error.to_string())
}

/// Who votes after a change of members, if that makes sense.
fn voters_after(
    known: &openraft::Membership<u64, Node>,
    add: &BTreeMap<u64, Member>,
    remove: &BTreeSet<u64>,
) -> Result<BTreeSet<u64>, RaftError> {
    let told = |(id, node): (&u64, &Node)| {
        let Node { name, address, zone } = node.clone();
        (*id, members::Member { name, address, zone })
    };
    let (nodes, added) = (known.nodes().map(told).collect(), add.iter().map(told).collect());
    let voters = known.voter_ids().collect();
    members::voters_after(&nodes, &voters, &added, remove).map_err(|why| match why {
        Senseless::NoMember(id) => RaftError::NoMember(id),
        Senseless::NoneLeft => RaftError::Refused(why.to_string()),
        other => RaftError::Senseless(other.to_string()),
    })
}

/// Whether a member was in a group and is in it no more, or is to leave it by a change that has begun.
fn is_out(known: &openraft::Membership<u64, Node>, id: u64) -> bool {
    let sets = known.get_joint_config();
    let leaves = sets.len() > 1
        && sets.iter().any(|set| set.contains(&id))
        && sets.last().is_some_and(|last| !last.contains(&id));
    // A log that is empty yet knows of nobody.
    known.nodes().next().is_some() && (leaves || known.get_node(&id).is_none())
}

impl RaftNode {
    /// Whether this member was taken out of its group, as far as its own log says: the end of the change isn't sent to whoever it takes out, so that one is out
    /// for which the change has begun. Of one that fills an empty log it is so for a while, too; that one hears of a leader.
    pub fn is_taken_out(&self) -> bool {
        is_out(self.metrics().membership_config.membership(), self.0.id)
    }

    /// Begins a new group with these members. Only for a member that has no log yet; elsewhere it does nothing. All must answer first
    /// that their logs are empty, and then have noted that these begin with the group: from then on, an empty log without that note has
    /// been lost. Fails while one doesn't answer, and where one has a log already. May be called again.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), RaftError> {
        if self.0.raft.is_initialized().await.map_err(|e| RaftError::Refused(e.to_string()))? {
            return Ok(());
        }
        if members.contains_key(&self.0.id) {
            self.found(&members).await?;
        }
        self.0.raft.initialize(members).await.map_err(|e| RaftError::Refused(e.to_string()))
    }

    /// Has all members note that their logs begin with the group. Nobody notes anything before everybody has said that its log is empty:
    /// were a single one asked to that has lost its log, in a group that is there already, it would vote as if it had lost nothing.
    async fn found(&self, members: &BTreeMap<u64, Member>) -> Result<(), RaftError> {
        for note in [false, true] {
            for (id, member) in members.iter().filter(|(id, _)| **id != self.0.id) {
                let message = wire::Found { group: self.group_word(), to: *id, note };
                let link = self.0.links.to(*id, &member.address);
                let answer: Result<wire::FoundAnswer, _> =
                    link.request(self.calls().found, &message, GREETING_TIMEOUT).await;
                answer.map_err(|e| RaftError::NotFounded {
                    id: *id,
                    address: member.address.clone(),
                    why: e.to_string(),
                })?;
            }
            self.on_found(note).await.map_err(|e| RaftError::Refused(e.message))?;
        }
        Ok(())
    }

    /// Changes the members, new ones first as learners until they have caught up, then by joint consensus. Answers the voters.
    pub async fn change_members(
        &self,
        add: BTreeMap<u64, Member>,
        remove: BTreeSet<u64>,
    ) -> Result<Vec<u64>, RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        let refused = |e: &dyn std::error::Error| RaftError::Refused(e.to_string());
        let known = self.metrics().membership_config;
        let voters = voters_after(known.membership(), &add, &remove)?;
        for (id, node) in add.iter().filter(|(id, _)| known.membership().get_node(id).is_none()) {
            self.greet(*id, node).await?;
        }
        for (id, node) in add {
            self.0.raft.add_learner(id, node, true).await.map_err(|e| refused(&e))?;
        }
        self.0
            .raft
            .change_membership(ChangeMembers::ReplaceAllVoters(voters.clone()), false)
            .await
            .map_err(|e| refused(&e))?;
        Ok(voters.into_iter().collect())
    }

    /// Looks whether a member that is to be added is there and is who it is said to be: the group would wait for it otherwise.
    pub(crate) async fn greet(&self, id: u64, node: &Node) -> Result<(), RaftError> {
        let vote = Some(codec::vote(&self.metrics().vote));
        // Whoever asks holds the lease, by the members that there are.
        let heartbeat =
            wire::AppendEntries { group: self.group_word(), vote, to: id, held: true, ..Default::default() };
        let link = self.0.links.to(id, &node.address);
        let answer: Result<wire::AppendAnswer, _> =
            link.request(self.calls().append, &heartbeat, GREETING_TIMEOUT).await;
        let failed = |e| RaftError::Senseless(format!("master {id} at {} can't be added: {e}", node.address));
        answer.map(drop).map_err(failed)
    }

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

#[cfg(test)]
mod tests {
    use openraft::Membership;

    use super::*;

    #[test]
    fn whoever_leaves_a_group_knows_it_by_the_beginning_of_the_change() {
        let nodes =
            |ids: &[u64]| ids.iter().map(|id| (*id, Node::default())).collect::<BTreeMap<u64, Node>>();
        let all = BTreeSet::from([1, 2, 3]);
        let left = BTreeSet::from([1, 3]);
        let known = Membership::new(vec![all.clone()], nodes(&[1, 2, 3, 4]));
        assert!(!is_out(&known, 2) && !is_out(&known, 4), "who doesn't vote is a member, too");
        assert!(is_out(&known, 5));
        let changing = Membership::new(vec![all, left.clone()], nodes(&[1, 2, 3]));
        assert!(is_out(&changing, 2) && !is_out(&changing, 3));
        assert!(is_out(&Membership::new(vec![left], nodes(&[1, 3])), 2));
        assert!(!is_out(&Membership::default(), 2), "it knows of no group yet");
    }
}
