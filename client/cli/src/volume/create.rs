//! `mooseng volume create`, and `delete`.

use mooseng_wire::admin::delete_volume_request::Which;
use mooseng_wire::admin::{
    CreateVolumeReply, CreateVolumeRequest, DeleteVolumeReply, DeleteVolumeRequest, ListTrashRequest, Volume,
};
use serde_json::{Value, json};

use super::move_home::masters_of;
use super::{Named, durability, shape};
use crate::args::{Durability, Format, VolumeCreate, VolumeDelete};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::plan::{Plan, volumes};
use crate::status::Wide;
use crate::tree::{self, Place};
use crate::{admin, output};

/// Makes one, or says whether it could be made.
pub fn run(args: &VolumeCreate) -> Result<(), Failure> {
    if args.regions.iter().any(String::is_empty) {
        return Err(Failure::usage(
            "--regions has an empty name: say A,B, all regions that are to have the volume.",
        ));
    }
    let asked = |place: Place| CreateVolumeRequest {
        path: place.path,
        parent: place.volume,
        home: args.home.clone(),
        geo: args.durability == Durability::Geo,
        regions: args.regions.clone(),
        plan: args.plan,
    };
    let file = ClientFile::load(&args.config)?;
    if args.plan {
        let plan = admin::block_on(async {
            let place = place_of(&file, &args.path).await?;
            let parent = place.volume;
            let home = home_of(&file, parent).await?;
            let checked = admin::create_volume(&file, &home, asked(place)).await?;
            planned(&file, args, parent, &checked).await
        })?;
        return plan.print(args.output.format);
    }
    let made = admin::block_on(async {
        let place = place_of(&file, &args.path).await?;
        let home = home_of(&file, place.volume).await?;
        admin::create_volume(&file, &home, asked(place)).await
    })?;
    match args.output.format {
        Format::Json => output::json(&created_shape(&made, args.plan)),
        Format::Table => output::text_line(&created(&args.path, &made)),
    }
}

/// What a volume would be that the masters have said could be made.
async fn planned(
    file: &ClientFile,
    args: &VolumeCreate,
    parent: u32,
    checked: &CreateVolumeReply,
) -> Result<Plan, Failure> {
    let wide = wide(file).await?;
    let links = admin::links(file, &wide.regions).await;
    // What is joined at the directory already is another volume than the one in which that lies. Where its home is silent, a plan without it is one, too.
    let there = tree::find(file, args.path.clone().into_bytes()).await;
    let there = there.map_or(parent, |place| place.volume);
    let asked = volumes::Creating {
        path: &args.path,
        parent,
        home: &args.home,
        geo: args.durability == Durability::Geo,
        regions: &args.regions,
        joined: (there != parent).then_some(there),
    };
    volumes::create(asked, checked, &wide, &links)
}

/// What masters of all regions say.
async fn wide(file: &ClientFile) -> Result<Wide, Failure> {
    let untold = "It could be done, and what it would mean no master tells: try again. Nothing was changed.";
    admin::wide(file).await.ok_or_else(|| Failure::unavailable(untold))
}

/// Deletes one, or says whether it could be deleted.
pub fn delete(args: &VolumeDelete) -> Result<(), Failure> {
    let named = Named::parse(&args.volume)?;
    let file = ClientFile::load(&args.config)?;
    let (plan, loses_put_aside) = (args.plan, args.although_it_loses_what_was_put_aside);
    let (gone, planned) = admin::block_on(async {
        let (which, parent) = match named {
            Named::Number(id) => (Which::Volume(id), parent_of(&file, id).await?),
            // The home looks it up.
            Named::Path(path) => {
                let place = place_of(&file, &path).await?;
                (Which::Path(place.path), place.volume)
            }
        };
        let request = DeleteVolumeRequest { which: Some(which), plan, loses_put_aside, parent };
        let home = home_of(&file, parent).await?;
        let gone = admin::delete_volume(&file, &home, request).await?;
        let planned = match plan {
            true => Some(planned_deletion(&file, &gone, loses_put_aside).await?),
            false => None,
        };
        Ok((gone, planned))
    })?;
    if let Some(plan) = planned {
        return plan.print(args.output.format);
    }
    match args.output.format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "agreed_version": gone.version, "plan": args.plan, "volume": gone.volume, "path": gone.path,
        })),
        Format::Table => output::text_line(&deleted(&gone)),
    }
}

/// What would go with a volume that the masters have said could be deleted.
async fn planned_deletion(
    file: &ClientFile,
    checked: &DeleteVolumeReply,
    loses_put_aside: bool,
) -> Result<Plan, Failure> {
    let wide = wide(file).await?;
    // Only its home knows; a plan without it is one, too.
    let request = ListTrashRequest { volume: checked.volume, ..ListTrashRequest::default() };
    let trash = admin::list_trash(file, request).await.ok().and_then(|reply| reply.status);
    volumes::delete(volumes::Deleting { trash: trash.as_ref(), loses_put_aside }, checked, &wide)
}

/// The volume in which a directory lies, and its path there.
async fn place_of(file: &ClientFile, path: &str) -> Result<Place, Failure> {
    if !path.starts_with('/') {
        return Err(Failure::usage(format!(
            "{path:?} isn't a path: give that of a directory, from the root of the filesystem, as /directory."
        )));
    }
    tree::above(file, path.to_owned().into_bytes()).await
}

/// The volume above; of one that isn't known, and may be named by a directory still, it is taken for the root.
async fn parent_of(file: &ClientFile, id: u32) -> Result<u32, Failure> {
    let (_, volumes) = admin::cluster(file).await?;
    Ok(volumes.into_iter().find(|volume| volume.id == id).map_or(0, |volume| volume.parent))
}

/// The masters of a volume's home: its directories are theirs.
async fn home_of(file: &ClientFile, id: u32) -> Result<Vec<String>, Failure> {
    let (regions, volumes) = admin::cluster(file).await?;
    let known = volumes.into_iter().find(|volume| volume.id == id);
    let known = known.ok_or_else(|| Failure::unavailable("The regions haven't agreed on anything yet."))?;
    Ok(masters_of(&regions, &known.home))
}

fn created(path: &str, reply: &CreateVolumeReply) -> String {
    let Some(volume) = &reply.volume else {
        return format!("A volume could be made and joined at {path}. Nothing has changed.");
    };
    format!(
        "Volume {} is joined at {}: its home is {}, its durability {}, and {} have it.\n{}",
        volume.id,
        volume.path,
        volume.home,
        durability(volume),
        volume.regions.join(", "),
        seen(volume)
    )
}

/// What it is to whoever works there.
fn seen(volume: &Volume) -> String {
    format!(
        "Mounts cross into it at {}. Between it and the volume above, mv copies (EXDEV); the directory can be neither removed nor renamed.",
        volume.path
    )
}

fn created_shape(reply: &CreateVolumeReply, plan: bool) -> Value {
    json!({
        "version": output::VERSION, "agreed_version": reply.version, "plan": plan, "volume": reply.volume.as_ref().map(shape),
        "mounts_enter_it": true,
    })
}

fn deleted(reply: &DeleteVolumeReply) -> String {
    let DeleteVolumeReply { volume, path, .. } = reply;
    format!(
        "Volume {volume} is deleted; {path} is an ordinary directory, and empty. What the regions stored of the volume isn't cleared yet."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_what_a_new_volume_is_to_mounts() {
        let volume = Volume {
            id: 3,
            path: "/team".into(),
            home: "a".into(),
            geo: true,
            regions: vec!["a".into(), "b".into()],
            ..Volume::default()
        };
        let made = CreateVolumeReply { version: 9, volume: Some(volume) };
        let text = created("/team", &made);
        assert!(text.contains("Volume 3 is joined at /team") && text.contains("geo"), "{text}");
        assert!(text.contains("cross into it at /team") && text.contains("EXDEV"), "{text}");
        assert_eq!(created_shape(&made, false)["mounts_enter_it"], true);
        let planned = created("/team", &CreateVolumeReply { version: 9, volume: None });
        assert!(planned.contains("Nothing has changed"), "{planned}");
    }
}
