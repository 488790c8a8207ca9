//! What the group does by itself: its first master makes it, and its leader founds the cluster and sees that the right masters vote.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_global::voters::{self, Step};
use mooseng_global::{MasterAt, rules};
use mooseng_raft::{Member, RaftError, RaftNode, RaftStatus};

use super::serve::transact;
use super::{Global, lock};

/// How often the first members are asked whether the group can be made.
const FOUND_EVERY: Duration = Duration::from_millis(200);
/// Each so many attempts it is told why it can't.
const FOUND_TOLD_EVERY: u32 = 50;
/// How often the leader looks after the members.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A member that lacks no more entries than that can vote.
const ENTRIES_BEHIND: u64 = 1_000;

fn member(region: &str, master: &MasterAt) -> Member {
    Member {
        name: format!("{region}/{}", master.name),
        address: master.address.clone(),
        zone: master.zone.clone(),
    }
}

impl Global {
    /// The members that there are to be, as the group knows members.
    fn to_be(&self) -> BTreeMap<u64, Member> {
        let view = self.view();
        let regions = if view.version > 0 { view.regions.clone() } else { self.config.regions() };
        let of = |(name, region): (&String, &mooseng_global::Region)| {
            let number = region.number;
            region
                .masters
                .iter()
                .map(|m| (voters::node_id(number, m.id), member(name, m)))
                .collect::<Vec<_>>()
        };
        regions.iter().flat_map(of).collect()
    }
}

/// The first master makes the group, where there is none yet, as soon as all are there that vote at first.
pub async fn make_the_group(global: &Arc<Global>) {
    if !global.config.makes_the_group(&global.region, global.id) {
        return;
    }
    let raft = global.taking_part().await;
    let first = voters::choose(&global.config.regions());
    let members: BTreeMap<u64, Member> =
        global.to_be().into_iter().filter(|(id, _)| first.contains(id)).collect();
    let mut attempts = 0_u32;
    while let Err(error) = raft.initialize(members.clone()).await {
        // That the others aren't up at once is nothing to be warned of.
        let expected = matches!(error, RaftError::NotFounded { .. });
        match attempts {
            0 if expected => tracing::info!("the global group: {error}"),
            n if n % FOUND_TOLD_EVERY == 0 => tracing::warn!("the global group: {error}"),
            _ => {}
        }
        attempts = attempts.wrapping_add(1);
        tokio::time::sleep(FOUND_EVERY).await;
    }
}

/// As long as this master leads the group: founds the cluster, then looks after the members.
pub async fn run(global: &Arc<Global>) {
    let raft = global.taking_part().await;
    let mut leadership = raft.leadership();
    loop {
        if leadership.wait_for(|now| now.leading.is_some()).await.is_err() {
            return;
        }
        found(global).await;
        let mut absent = BTreeSet::new();
        while raft.is_leading() {
            if !step(global, raft, &mut absent).await {
                absent.clear();
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn found(global: &Arc<Global>) {
    let founding = &global.config.founding(global.supports().highest);
    let founded = transact(&global.store, |tx| async move {
        let founded = rules::found(&tx, founding).await?;
        Ok((tx, founded))
    });
    match founded.await {
        Ok(true) => tracing::info!(
            regions = founding.regions.len(),
            root_home = founding.root_home,
            "founded the cluster"
        ),
        Ok(false) => {}
        // Whoever leads next does it.
        Err(error) => tracing::info!(%error, "the cluster can't be founded yet"),
    }
}

/// One change of the members towards what they are to be; answers whether there was one to try.
async fn step(global: &Arc<Global>, raft: &RaftNode, absent: &mut BTreeSet<u64>) -> bool {
    let view = global.view();
    if view.version == 0 {
        return false;
    }
    let status = raft.status();
    let are: BTreeMap<u64, bool> = status.members.iter().map(|m| (m.id, m.voter)).collect();
    let named = voters::members(&global.config.regions());
    let expected = |node: u64| are.contains_key(&node) || named.contains_key(&node);
    global.ask_newcomers(expected).await;
    let ready = |node: u64| {
        let is_there = !absent.contains(&node) && (!are.contains_key(&node) || is_close(&status, node));
        // Nobody whom the configuration doesn't name is taken in before it has told which levels it supports.
        is_there && global.supports_level(node).unwrap_or_else(|| expected(node))
    };
    // Whoever hasn't shown its join token may be anybody with a certificate of that region, an earlier token's bearer, too: the group neither counts on it nor
    // tells it anything.
    let awaited = lock(&global.awaited).clone();
    let mut regions = view.regions.clone();
    regions.retain(|name, _| !awaited.contains(name));
    let Some(step) = voters::next_step(&are, &regions, ready) else { return false };
    let done = match &step {
        Step::Add(node) => {
            let Some(member) = global.to_be().remove(node) else { return false };
            let added = raft.add_learner(*node, member).await;
            if added.is_err() {
                absent.insert(*node);
            }
            added
        }
        Step::Vote(voters) => raft.set_voters(voters.clone()).await,
        Step::Remove(gone) => raft.remove_learners(gone.clone()).await,
    };
    match done {
        Ok(()) => tracing::info!(?step, "changed the members of the global group"),
        Err(error) => {
            tracing::info!(?step, %error, "the members of the global group aren't changed yet");
            return matches!(step, Step::Add(_));
        }
    }
    true
}

/// Whether a member has nearly everything.
fn is_close(status: &RaftStatus, node: u64) -> bool {
    let matched = status.members.iter().find(|m| m.id == node).and_then(|m| m.matched);
    node == status.id || matched.is_some_and(|matched| matched + ENTRIES_BEHIND >= status.last_log)
}
