//! `mooseng class`: how many copies data gets, and on which chunkservers; which files and directories that holds for.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_wire::admin::assign_class_request::Which;
use mooseng_wire::admin::quota_target::Whose as Target;
use mooseng_wire::admin::{
    AssignClassReply, AssignClassRequest, ClassLabels, CreateClassRequest, DeleteClassRequest,
    ListQuotasRequest, QuotaTarget, SetClassRequest, StorageClass, UncountedVolume, Volume,
};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{
    ClassArgs, ClassAssign, ClassCommand, ClassCreate, ClassList, ClassName, ClassOf, ClassSet, Format,
};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::output::{self, Table, bytes};
use crate::plan::class::InRegion;
use crate::plan::{self, Plan};
use crate::quota::from_root;
use crate::status::Wide;
use crate::tree::{self, Place};

/// Asks for it, and prints what came of it.
pub fn run(args: ClassArgs) -> Result<(), Failure> {
    match args.command {
        ClassCommand::Create(args) => create(args),
        ClassCommand::Set(args) => set(args),
        ClassCommand::List(args) => list(&args),
        ClassCommand::Delete(args) => delete(args),
        ClassCommand::Assign(args) => assign(&args),
        ClassCommand::Get(args) => get(&args),
    }
}

/// A label, as `media=ssd`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
    parts
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .ok_or_else(|| format!("{text:?}: give a label as KEY=VALUE"))
}

fn labels(given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for (key, value) in given {
        if let Some(other) = labels.insert(key.clone(), value) {
            return Err(Failure::usage(format!("The label {key:?} is given twice, with {other:?} first.")));
        }
    }
    Ok(labels)
}

fn create(args: ClassCreate) -> Result<(), Failure> {
    let mut request = CreateClassRequest {
        name: args.name,
        copies: args.copies,
        min_copies: args.min_copies.unwrap_or(0),
        labels: labels(args.labels)?,
        volume: 0,
        of_volume: args.volume.is_some(),
    };
    let file = ClientFile::load(&args.config)?;
    let made = admin::block_on(async {
        request.volume = tree::named(&file, args.volume.as_deref()).await?.volume;
        admin::create_class(&file, request).await
    })?;
    print(&made, args.output.format)
}

fn set(args: ClassSet) -> Result<(), Failure> {
    let changes_labels = args.no_labels || !args.labels.is_empty();
    if args.copies.is_none() && args.min_copies.is_none() && !changes_labels {
        let what = "Say what is to change: --copies, --min-copies, --labels or --no-labels.";
        return Err(Failure::usage(what));
    }
    let labels = labels(args.labels)?;
    let mut request = SetClassRequest {
        name: args.name,
        copies: args.copies,
        min_copies: args.min_copies,
        labels: changes_labels.then_some(ClassLabels { labels }),
        volume: 0,
        of_volume: args.of.volume.is_some(),
    };
    let file = ClientFile::load(&args.config)?;
    if args.plan {
        let plan = admin::block_on(async {
            request.volume = tree::named(&file, args.of.volume.as_deref()).await?.volume;
            planned_change(&file, &request).await
        })?;
        return plan.print(args.output.format);
    }
    let changed = admin::block_on(async {
        request.volume = tree::named(&file, args.of.volume.as_deref()).await?.volume;
        admin::set_class(&file, request).await
    })?;
    print(&changed, args.output.format)
}

/// What masters of all regions say, or those of the only one.
async fn everywhere(file: &ClientFile) -> Result<Wide, Failure> {
    if let Some(wide) = admin::wide(file).await {
        return Ok(wide);
    }
    let status = admin::status(file).await?.reply;
    // A region by itself has the root volume alone.
    let root =
        Volume { home: status.region.clone(), regions: vec![status.region.clone()], ..Volume::default() };
    Ok(Wide { volumes: vec![root], leaders: vec![(status.region.clone(), status)], ..Wide::default() })
}

/// The regions that have some of these volumes, with how many bytes of them have the class, as far as that is known.
fn in_regions<'a>(
    wide: &'a Wide,
    volumes: &'a [Volume],
    bytes: &BTreeMap<u32, Option<u64>>,
) -> Vec<InRegion<'a>> {
    let regions: BTreeSet<&str> =
        volumes.iter().flat_map(|of| of.regions.iter().map(String::as_str)).collect();
    let one = |region: &'a str| {
        let had = volumes.iter().filter(|of| of.regions.iter().any(|name| name == region));
        let mut known = had.map(|of| bytes.get(&of.id).copied().flatten());
        let status = wide.leaders.iter().find(|(name, _)| name == region).map(|(_, status)| status);
        let sum = |sum: u64, bytes: Option<u64>| bytes.map(|bytes| sum.saturating_add(bytes));
        InRegion { region, status, bytes: known.try_fold(0, sum) }
    };
    regions.into_iter().map(one).collect()
}

async fn planned_change(file: &ClientFile, request: &SetClassRequest) -> Result<Plan, Failure> {
    let reply = admin::list_classes(file, request.volume, request.of_volume).await?;
    let wide = everywhere(file).await?;
    let volumes: Vec<Volume> = match reply.of_cluster {
        true => wide.volumes.clone(),
        false => wide.volumes.iter().filter(|of| of.id == request.volume).cloned().collect(),
    };
    let of_that_name = |class: &&StorageClass| class.name == request.name;
    let bytes = match reply.classes.iter().find(of_that_name) {
        Some(class) if reply.of_cluster => admin::class_bytes(file, class.id, &volumes).await,
        Some(class) => BTreeMap::from([(request.volume, Some(class.bytes.max(0).unsigned_abs()))]),
        None => BTreeMap::new(),
    };
    let mut plan = plan::class::set(&reply.classes, request, &in_regions(&wide, &volumes, &bytes))?;
    let uncounted = reply
        .uncounted
        .iter()
        .map(|of| format!("What has it in volume {} isn't counted: {}.", of.volume, of.why));
    plan.unknown.extend(uncounted);
    Ok(plan)
}

async fn planned_assignment(file: &ClientFile, args: &ClassAssign, path: Vec<u8>) -> Result<Plan, Failure> {
    let place = tree::find(file, path.clone()).await?;
    let told = admin::class_of(file, place.volume, place.path.clone()).await?;
    let unsaid = || Failure::new(Kind::Failed, "The master didn't say which class it has by now.");
    let has = told.class.ok_or_else(unsaid)?;
    let known = admin::list_classes(file, place.volume, true).await?.classes;
    let wide = everywhere(file).await?;
    // Where no quota counts nobody knows how much there is.
    let target = QuotaTarget { whose: Some(Target::Path(place.path)), volume: place.volume };
    let request = ListQuotasRequest { only: Some(target), after: None, volume: place.volume };
    let quotas = admin::list_quotas(file, request).await.map(|reply| reply.quotas).unwrap_or_default();
    let others = tree::others(file, place.volume, Some(&path)).await;
    let joined: Vec<String> = others.iter().map(tree::Other::path).collect();
    let volumes: Vec<Volume> = wide.volumes.iter().filter(|of| of.id == place.volume).cloned().collect();
    let asked = plan::class::Assigning {
        path: &args.path.display().to_string(),
        recursive: args.recursive,
        name: &args.name,
        known: &known,
        inode: told.inode,
        has: &has,
        quota: quotas.first(),
        joined: &joined,
    };
    plan::class::assign(asked, &in_regions(&wide, &volumes, &BTreeMap::new()))
}

fn delete(args: ClassName) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let of_volume = args.of.volume.is_some();
    let place = admin::block_on(async {
        let place = tree::named(&file, args.of.volume.as_deref()).await?;
        let request = DeleteClassRequest { name: args.name.clone(), volume: place.volume, of_volume };
        admin::delete_class(&file, request).await.map(|_| place)
    })?;
    match of_volume {
        true => output::text_line(&format!("Deleted the class {:?} of {}.", args.name, place.name())),
        false => output::text_line(&format!("Deleted the class {:?}.", args.name)),
    }
}

fn list(args: &ClassList) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    let of_volume = args.of.volume.is_some();
    let (place, reply, others) = admin::block_on(async {
        let place = tree::named(&file, args.of.volume.as_deref()).await?;
        let reply = admin::list_classes(&file, place.volume, of_volume).await?;
        let others = match reply.of_cluster {
            true => Vec::new(),
            false => tree::others(&file, place.volume, None).await,
        };
        Ok((place, reply, others))
    })?;
    match args.output.format {
        Format::Json => {
            let classes: Vec<Value> = reply.classes.iter().map(shape).collect();
            output::json(&json!({
                "version": output::VERSION, "volume": (!reply.of_cluster).then_some(place.volume), "classes": classes,
                "other_volumes": tree::others_shape(&others), "uncounted": uncounted_shape(&reply.uncounted),
            }))
        }
        Format::Table => {
            output::text_line(&table(&reply.classes))?;
            tree::tell_of(&others);
            for volume in &reply.uncounted {
                eprintln!("What has them in volume {} isn't counted: {}.", volume.volume, volume.why);
            }
            Ok(())
        }
    }
}

fn uncounted_shape(uncounted: &[UncountedVolume]) -> Value {
    uncounted.iter().map(|of| json!({ "volume": of.volume, "why": of.why })).collect()
}

fn get(args: &ClassOf) -> Result<(), Failure> {
    let path = from_root(&args.path)?;
    let file = ClientFile::load(&args.config)?;
    let reply = admin::block_on(async {
        let place = tree::find(&file, path).await?;
        admin::class_of(&file, place.volume, place.path).await
    })?;
    match reply.class {
        Some(class) => print(&class, args.output.format),
        None => Err(Failure::new(Kind::Failed, "The master didn't say which class it is.")),
    }
}

fn print(class: &StorageClass, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "class": shape(class) })),
        Format::Table => output::text_line(&table(std::slice::from_ref(class))),
    }
}

/// What was assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    changed: u64,
    directories: u64,
    /// Volumes that are joined below: they were left alone.
    joined: BTreeSet<u32>,
}

fn assign(args: &ClassAssign) -> Result<(), Failure> {
    let path = from_root(&args.path)?;
    let file = ClientFile::load(&args.config)?;
    if args.plan {
        return admin::block_on(planned_assignment(&file, args, path))?.print(args.output.format);
    }
    let sum = admin::block_on(assign_all(&file, &args.name, path, args.recursive))?;
    match args.output.format {
        Format::Json => {
            return output::json(&json!({
                "version": output::VERSION, "class": args.name, "changed": sum.changed, "volumes_left_alone": sum.joined,
            }));
        }
        Format::Table if sum.changed == 1 => {
            output::text_line(&format!("Assigned {:?} to one that had another class.", args.name))?;
        }
        Format::Table => {
            let changed = sum.changed;
            output::text_line(&format!("Assigned {:?} to {changed} that had another class.", args.name))?;
        }
    }
    if !sum.joined.is_empty() {
        let list: Vec<String> = sum.joined.iter().map(u32::to_string).collect();
        eprintln!(
            "Below it volumes are joined, which were left alone: {}. `mooseng volume list` says where they are.",
            list.join(", ")
        );
    }
    Ok(())
}

/// The inode at the path first: what is made in a directory while this goes on inherits its class.
async fn assign_all(file: &ClientFile, name: &str, path: Vec<u8>, recursive: bool) -> Result<Sum, Failure> {
    let Place { volume, path, .. } = tree::find(file, path).await?;
    let ask = |which, entries, after| {
        let request =
            AssignClassRequest { name: name.to_owned(), which: Some(which), entries, after, volume };
        admin::assign_class(file, request)
    };
    let first = ask(Which::Path(path), false, 0).await?;
    let mut sum = Sum { changed: first.changed, ..Sum::default() };
    // Directories to go through, and behind which cookie. The last one first: so many wait as one path has levels, a page of each.
    let mut left = if recursive { vec![(first.inode, 0)] } else { Vec::new() };
    while let Some((directory, after)) = left.pop() {
        let AssignClassReply { changed, directories, next, joined, .. } =
            ask(Which::Inode(directory), true, after).await?;
        sum.changed += changed;
        sum.joined.extend(joined);
        sum.directories += u64::from(next.is_none());
        left.extend(next.map(|next| (directory, next)));
        left.extend(directories.into_iter().map(|directory| (directory, 0)));
        if sum.directories.is_multiple_of(1_000) && next.is_none() {
            eprintln!("{} directories done, {} assigned", sum.directories, sum.changed);
        }
    }
    Ok(sum)
}

fn labelled(class: &StorageClass) -> String {
    let labels: Vec<String> = class.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(",") }
}

fn table(classes: &[StorageClass]) -> String {
    let mut table = Table::new(["CLASS", "COPIES", "AT LEAST", "LABELS", "CHUNKSERVERS", "INODES", "BYTES"]);
    for class in classes {
        // Nobody counts what has the default class.
        let counted = |text: String| if class.id == 0 { "-".to_owned() } else { text };
        let name = match (class.leaving, class.of_volume) {
            (true, _) => format!("{} (being deleted)", class.name),
            (false, true) => format!("{} (the volume's own)", class.name),
            (false, false) => class.name.clone(),
        };
        table.row([
            name,
            class.copies.to_string(),
            class.min_copies.to_string(),
            labelled(class),
            class.chunkservers.to_string(),
            counted(class.inodes.to_string()),
            counted(bytes(class.bytes.unsigned_abs())),
        ]);
    }
    table.render()
}

fn shape(class: &StorageClass) -> Value {
    let counted = |n: i64| (class.id != 0).then_some(n);
    json!({
        "id": class.id, "name": class.name, "copies": class.copies, "min_copies": class.min_copies, "labels": class.labels,
        "chunkservers": class.chunkservers, "inodes": counted(class.inodes), "bytes": counted(class.bytes),
        "leaving": class.leaving, "of_volume": class.of_volume,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_pairs_each_once() {
        assert_eq!(parse_label("media=ssd"), Ok(("media".into(), "ssd".into())));
        for text in ["", "media", "=ssd", "media="] {
            assert!(parse_label(text).is_err(), "{text}");
        }
        let pair = |value: &str| ("a".to_owned(), value.to_owned());
        assert!(labels(vec![pair("1"), pair("2")]).is_err());
    }

    #[test]
    fn a_class_is_shown_with_what_has_it() {
        let fast = StorageClass {
            id: 2,
            name: "fast".into(),
            copies: 3,
            min_copies: 2,
            labels: BTreeMap::from([("media".into(), "ssd".into()), ("zone".into(), "a".into())]),
            inodes: 7,
            bytes: 2048,
            chunkservers: 4,
            ..<_>::default()
        };
        let default = StorageClass { name: "default".into(), copies: 2, min_copies: 2, ..<_>::default() };
        let text = table(&[default.clone(), fast.clone()]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["default", "2", "2", "-", "0", "-", "-"]);
        assert_eq!(lines[2][..6], ["fast", "3", "2", "media=ssd,zone=a", "4", "7"]);
        assert_eq!((&shape(&fast)["inodes"], &shape(&default)["inodes"]), (&json!(7), &Value::Null));
        assert_eq!(shape(&fast)["labels"]["media"], "ssd");
        let leaving = StorageClass { leaving: true, ..fast.clone() };
        let own = StorageClass { of_volume: true, ..fast };
        assert_eq!((&shape(&leaving)["leaving"], &shape(&own)["of_volume"]), (&json!(true), &json!(true)));
        let text = table(&[leaving, own]);
        assert!(text.contains("fast (being deleted)") && text.contains("fast (the volume's own)"), "{text}");
    }
}
