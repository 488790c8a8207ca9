//! What plans are made of, besides what other commands ask for. Nothing is changed by it.

use std::collections::BTreeMap;

use mooseng_transport::grpc_request;
use mooseng_wire::Role;
use mooseng_wire::admin::{ListRegionsReply, ListRegionsRequest, MemberToAdd, StatusReply, Volume};

use super::{FAR_WAIT, ask, everywhere, list_classes, reason};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::plan::links::Links;

/// Volumes that are asked for what has a class, each at its home.
const VOLUMES_MAX: usize = 64;

/// Refuses a plan to whom the masters of a region would refuse the change: what plans are made of others may ask, too.
pub fn may_administer(file: &ClientFile, region: &str) -> Result<(), Failure> {
    let identity = file.network()?.identity();
    let why = if identity.region != region {
        format!("{identity} is of another region than {region}")
    } else if identity.role != Role::Admin {
        format!("{identity} may not ask for this; it takes the role {}", Role::Admin)
    } else {
        return Ok(());
    };
    Err(Failure::new(Kind::Denied, format!("The masters would refuse this: {why}.")))
}

/// How long messages take between regions, as masters of all of them that answer measure it.
pub async fn links(file: &ClientFile, regions: &ListRegionsReply) -> Links {
    let told = everywhere(file, regions, |mut client| async move {
        client.list_regions(grpc_request(ListRegionsRequest {}, FAR_WAIT)).await
    });
    let told = told.await.unwrap_or_default();
    Links::of(told.iter().map(|(_, _, reply)| reply))
}

/// Asks masters that are to be added what they are, by their ids; why they don't say.
pub async fn newcomers(
    file: &ClientFile,
    add: &[MemberToAdd],
) -> Result<BTreeMap<u64, Result<StatusReply, String>>, Failure> {
    let network = file.network()?;
    let mut told = BTreeMap::new();
    for member in add {
        let said = ask(network.clone(), &member.address).await;
        told.insert(member.id, said.map_err(|status| reason(&status)));
    }
    Ok(told)
}

/// The bytes of what has a class in each of these volumes, by their numbers; none where their homes don't tell.
pub async fn class_bytes(file: &ClientFile, class: u32, volumes: &[Volume]) -> BTreeMap<u32, Option<u64>> {
    let mut told = BTreeMap::new();
    for volume in volumes {
        let asked = told.len() < VOLUMES_MAX;
        let reply = if asked { list_classes(file, volume.id, true).await.ok() } else { None };
        let bytes = reply.map(|reply| {
            let of = reply.classes.iter().find(|known| known.id == class);
            of.map_or(0, |known| known.bytes.max(0).unsigned_abs())
        });
        told.insert(volume.id, bytes);
    }
    told
}
