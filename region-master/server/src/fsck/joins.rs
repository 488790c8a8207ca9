//! Directories that name volumes, against what the regions agreed on. A volume is made before a directory names it, and deleted after it doesn't any more:
//! so a directory that names one which there isn't is wrong, unless it was let go of meanwhile. As with copies, what seems wrong is looked at again.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_global::{Stage, View};
use mooseng_namespace::fsck::{Finding, Kind, Subject};
use mooseng_namespace::joins;
use mooseng_wire::call::CallError;
use mooseng_wire::{InodeId, VolumeId};

use super::copies::{BETWEEN, LOOKS};
use super::{failed, paths};
use crate::master::Master;

/// What seems wrong: a directory and a volume, of which one says that the volume is joined there, and not the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Doubt {
    directory: InodeId,
    volume: VolumeId,
}

/// Where the regions agreed that a volume is joined. Others may be about to be.
fn agreed(view: &View, volume: VolumeId) -> Option<(InodeId, &str)> {
    let join = view.volumes.get(&volume)?.join.as_ref()?;
    Some((join.place.directory, &join.place.path))
}

fn doubts(view: &View, named: &BTreeMap<VolumeId, InodeId>, of: &BTreeSet<VolumeId>) -> BTreeSet<Doubt> {
    let names = named.iter().map(|(volume, directory)| Doubt { directory: *directory, volume: *volume });
    let joined = view.volumes.iter().filter_map(|(volume, known)| {
        let join = known.join.as_ref().filter(|join| of.contains(&join.place.directory.volume()))?;
        Some(Doubt { directory: join.place.directory, volume: *volume })
    });
    let doubtful = |doubt: &Doubt| {
        let is_named = named.get(&doubt.volume) == Some(&doubt.directory);
        finding(view, *doubt, is_named).is_some()
    };
    names.chain(joined).filter(doubtful).collect()
}

/// What is wrong, where the directory names the volume, or doesn't.
fn finding(view: &View, doubt: Doubt, is_named: bool) -> Option<Finding> {
    let Doubt { directory, volume } = doubt;
    let told = |kind, subject, detail| Some(Finding { kind, subject, detail, fix: None });
    match (agreed(view, volume), is_named) {
        (None, true) => told(
            Kind::JoinDangling,
            Subject::Inode(directory),
            format!("it names volume {volume}, which there isn't"),
        ),
        (Some((elsewhere, path)), true) if elsewhere != directory => told(
            Kind::JoinDangling,
            Subject::Inode(directory),
            format!("it names volume {volume}, which is joined at {path}, inode {}", elsewhere.0),
        ),
        (Some((there, path)), false) if there == directory && is_joined(view, volume) => told(
            Kind::JoinLost,
            Subject::Volume(volume),
            format!("it is joined at {path}, and that directory, inode {}, doesn't name it", directory.0),
        ),
        _ => None,
    }
}

/// Neither about to be, nor about to be deleted.
fn is_joined(view: &View, volume: VolumeId) -> bool {
    let join = view.volumes.get(&volume).and_then(|known| known.join.as_ref());
    join.is_some_and(|join| join.stage == Stage::Joined)
}

/// What is wrong of the directories of these volumes, as they were found to name others.
pub(super) async fn compare(
    master: &Master,
    named: &BTreeMap<VolumeId, InodeId>,
    of: &BTreeSet<VolumeId>,
) -> Result<Vec<Finding>, CallError> {
    let view = || master.geo.view().unwrap_or_default();
    let mut left = doubts(&view(), named, of);
    let mut found = Vec::new();
    for _ in 0..LOOKS {
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
        found.clear();
        for doubt in std::mem::take(&mut left) {
            let names = joins::joined_at(&paths::reading(master), doubt.directory).await.map_err(failed)?;
            if let Some(finding) = finding(&view(), doubt, names == Some(doubt.volume)) {
                found.push(finding);
                left.insert(doubt);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use mooseng_global::{Durability, Join, Place, Volume};
    use mooseng_wire::Epoch;

    use super::*;

    const DIRECTORY: InodeId = InodeId(9);

    fn joined(stage: Stage, directory: InodeId) -> Volume {
        Volume {
            home: "a".into(),
            epoch: Epoch(1),
            open: true,
            abandoned: false,
            cut: None,
            lost_home: None,
            forced_home: None,
            durability: Durability::Region,
            regions: BTreeSet::new(),
            sync_set: BTreeSet::new(),
            automatic: false,
            blocks_alone: false,
            lag_max: None,
            join: Some(Join { place: Place { directory, path: "/d".into() }, stage }),
        }
    }

    fn view(volumes: &[(u16, Stage, InodeId)]) -> View {
        let volumes = volumes.iter().map(|(id, stage, at)| (VolumeId(*id), joined(*stage, *at))).collect();
        View { version: 1, volumes, volume_highest: 9, ..View::default() }
    }

    #[test]
    fn joins_are_right_where_both_sides_agree_and_while_they_are_made_and_deleted() {
        let root = BTreeSet::from([VolumeId(0)]);
        let named = |volume: u16| BTreeMap::from([(VolumeId(volume), DIRECTORY)]);
        let nothing = BTreeMap::new();
        let (joined, made, leaving) = (Stage::Joined, Stage::Made, Stage::Leaving);
        let kinds = |view: &View, named: &BTreeMap<VolumeId, InodeId>| -> Vec<Kind> {
            let is_named = |doubt: &Doubt| named.get(&doubt.volume) == Some(&doubt.directory);
            let of = doubts(view, named, &root).into_iter();
            of.map(|doubt| finding(view, doubt, is_named(&doubt)).unwrap().kind).collect()
        };
        for stage in [joined, made, leaving] {
            assert_eq!(kinds(&view(&[(3, stage, DIRECTORY)]), &named(3)), []);
        }
        for stage in [made, leaving] {
            assert_eq!(kinds(&view(&[(3, stage, DIRECTORY)]), &nothing), []);
        }
        assert_eq!(kinds(&view(&[(3, joined, DIRECTORY)]), &nothing), [Kind::JoinLost]);
        assert_eq!(kinds(&view(&[]), &named(4)), [Kind::JoinDangling]);
        let elsewhere = view(&[(3, made, InodeId(8))]);
        assert_eq!(kinds(&elsewhere, &named(3)), [Kind::JoinDangling]);
        // In a directory of a volume that isn't looked at here.
        let below = view(&[(3, joined, InodeId::new(VolumeId(2), 5))]);
        assert_eq!(kinds(&below, &nothing), []);
    }

    #[test]
    fn findings_say_what_is_named_and_where() {
        let doubt = Doubt { directory: DIRECTORY, volume: VolumeId(3) };
        let dangling = finding(&view(&[]), doubt, true).unwrap();
        assert_eq!(dangling.subject, Subject::Inode(DIRECTORY));
        assert!(dangling.detail.contains("volume 3"), "{dangling:?}");
        let lost = finding(&view(&[(3, Stage::Joined, DIRECTORY)]), doubt, false).unwrap();
        assert_eq!(lost.subject, Subject::Volume(VolumeId(3)));
        assert!(lost.detail.contains("/d") && lost.detail.contains("inode 9"), "{lost:?}");
    }
}
