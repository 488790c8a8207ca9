//! What an administrator does in a run of one region: puts a substitute in a lost master's place, and has chunks move about by their storage class.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::grpc_channel;
use mooseng_wire::admin::assign_class_request::Which;
use mooseng_wire::admin::{
    AssignClassReply, AssignClassRequest, ChangeMembersRequest, CreateClassRequest, MemberToAdd,
};
use mooseng_wire::{ROOT_INODE, Role};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::hosts::{REGION, SERVERS, SUBSTITUTE, address, masters};
use crate::network::{Gate, network};
use crate::workload::{Shared, with};

/// Puts the substitute in a lost master's place, by the call that `mooseng members` makes.
pub async fn replace_master(at: Duration, lost: usize, shared: Shared) -> turmoil::Result {
    tokio::time::sleep(at).await;
    let network = network(REGION, Role::Admin, "admin", &Gate::default());
    let name = format!("m{SUBSTITUTE}");
    let substitute =
        MemberToAdd { id: SUBSTITUTE as u64, address: address(&name), zone: format!("z{lost}"), name };
    let request = ChangeMembersRequest { add: vec![substitute], remove: vec![lost as u64] };
    loop {
        for master in
            masters().into_iter().filter(|m| *m != format!("m{lost}")).chain([format!("m{SUBSTITUTE}")])
        {
            let change = async {
                let channel = grpc_channel(network.clone(), &address(&master), Role::Master).await;
                AdministrationClient::new(channel).change_members(request.clone()).await
            };
            match tokio::time::timeout(Duration::from_secs(60), change).await {
                Ok(Ok(reply)) => {
                    let mut voters = reply.into_inner().voters;
                    voters.sort_unstable();
                    let expected: Vec<u64> =
                        (1..=SUBSTITUTE as u64).filter(|id| *id != lost as u64).collect();
                    assert_eq!((voters.len(), &voters), (SERVERS, &expected), "the voters after the change");
                    tracing::info!(?voters, "the lost master is replaced");
                    return Ok(());
                }
                Ok(Err(status)) => tracing::info!(master, %status, "the members aren't changed yet"),
                Err(_) => tracing::info!(master, "the members aren't changed yet: no answer"),
            }
            if with(&shared, |notes| notes.healed) {
                tracing::info!("still replacing the lost master");
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// How long a master may take for a change of classes.
const CLASSES_WITHIN: Duration = Duration::from_secs(5);

/// Gives everything one storage class after the other, by the calls that `mooseng class` makes, so that its chunks move about, until faults are
/// over. What fails isn't repeated.
pub async fn assign_classes(seed: u64, shared: Shared) -> turmoil::Result {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xc1a5);
    while !with(&shared, |notes| notes.healed) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..6_000))).await;
        let name = ["a", "b", "default"][rng.random_range(0..3)];
        // There is one already, or there isn't: then nothing is assigned.
        if name != "default" {
            make_class(name).await;
        }
        let mut assigned = 0;
        let mut left = vec![(ROOT_INODE.0, false, 0)];
        while let Some((inode, entries, after)) = left.pop() {
            let (which, name) = (Some(Which::Inode(inode)), name.to_owned());
            let request = AssignClassRequest { name, which, entries, after, volume: 0 };
            let Some(reply) = assign_class(&request).await else { continue };
            assigned += reply.changed;
            match entries {
                false => left.push((inode, true, 0)),
                true => left.extend(reply.next.map(|next| (inode, true, next))),
            }
            left.extend(reply.directories.into_iter().map(|directory| (directory, true, 0)));
        }
        tracing::info!(name, assigned, "assigned a storage class");
    }
    Ok(())
}

async fn make_class(name: &str) {
    let labels = BTreeMap::from([(name.to_owned(), "yes".to_owned())]);
    let request =
        CreateClassRequest { name: name.to_owned(), copies: 2, min_copies: 2, labels, ..<_>::default() };
    for master in masters() {
        let made = async {
            let network = network(REGION, Role::Admin, "admin", &Gate::default());
            let channel = grpc_channel(network, &address(&master), Role::Master).await;
            AdministrationClient::new(channel).create_class(request.clone()).await
        };
        if let Ok(Ok(_)) = tokio::time::timeout(CLASSES_WITHIN, made).await {
            return;
        }
    }
}

async fn assign_class(request: &AssignClassRequest) -> Option<AssignClassReply> {
    for master in masters() {
        let assigned = async {
            let network = network(REGION, Role::Admin, "admin", &Gate::default());
            let channel = grpc_channel(network, &address(&master), Role::Master).await;
            AdministrationClient::new(channel).assign_class(request.clone()).await
        };
        if let Ok(Ok(reply)) = tokio::time::timeout(CLASSES_WITHIN, assigned).await {
            return Some(reply.into_inner());
        }
    }
    None
}
