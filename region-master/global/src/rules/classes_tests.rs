//! Storage classes of the cluster, over a store in memory.

use mooseng_schema::storage_class::{
    CLUSTER_FIRST, Change as ClassChange, StorageClassRecord as Asked, Unfit,
};
use mooseng_store::Store;
use mooseng_store::memory::MemoryStore;
use mooseng_wire::InodeId;
use proptest::prelude::*;

use super::joins::Making;
use super::tests::{founded, region, ruled, run, seen};
use super::*;
use crate::view::Place;

fn class(name: &str, copies: u32) -> Asked {
    Asked { name: name.into(), copies, min_copies: 1, labels: vec![], set_ns: 1, leaving: false }
}

fn of<T>(error: ClassError) -> Ruled<T> {
    Err(RuleError::Class(error))
}

/// All volumes, each in its present epoch.
async fn epochs(store: &MemoryStore) -> BTreeMap<VolumeId, Epoch> {
    seen(store).await.volumes.iter().map(|(id, volume)| (*id, volume.epoch)).collect()
}

#[tokio::test]
async fn a_class_is_made_changed_left_and_deleted_and_each_may_be_repeated() {
    let store = founded().await;
    let create = async |asked: &Asked| ruled!(&store, tx, create_class(&tx, asked));
    assert_eq!(seen(&store).await.classes_version, 0);
    let (id, version) = create(&class("fast", 2)).await.unwrap();
    assert_eq!((id, version), (CLUSTER_FIRST, 2));
    assert_eq!(create(&class("fast", 2)).await.unwrap(), (id, version), "done already");
    let again = Asked { set_ns: 2, ..class("fast", 2) };
    assert_eq!(create(&again).await, of(ClassError::Exists("fast".into())), "another command");
    assert_eq!(create(&class("default", 2)).await, of(ClassError::Unfit(Unfit::Default)));
    assert!(matches!(create(&class("a b", 2)).await, Err(RuleError::Class(ClassError::Unfit(_)))));
    let view = seen(&store).await;
    assert_eq!((view.classes_version, view.class_of("fast").unwrap().1.class.copies), (version, 2));

    let set = async |name: &str, copies| {
        let change = &ClassChange { copies: Some(copies), ..ClassChange::default() };
        ruled!(&store, tx, set_class(&tx, name, change, 9))
    };
    let (_, changed) = set("fast", 3).await.unwrap();
    assert_eq!(set("fast", 3).await.unwrap(), (id, changed), "done already");
    assert!(changed > version);
    assert_eq!(set("none", 3).await, of(ClassError::NotThere("none".into())));
    assert_eq!(set("default", 3).await, of(ClassError::Unfit(Unfit::Default)));
    assert!(matches!(set("fast", 0).await, Err(RuleError::Class(ClassError::Unfit(_)))));

    let all = &epochs(&store).await;
    let early = ruled!(&store, tx, delete_class(&tx, id, changed, all));
    assert_eq!(early, of(ClassError::Stayed("fast".into())), "it isn't leaving");
    let left = ruled!(&store, tx, leave_class(&tx, "fast")).unwrap();
    assert_eq!(ruled!(&store, tx, leave_class(&tx, "fast")).unwrap(), left, "done already");
    assert_eq!(create(&class("fast", 2)).await, of(ClassError::Leaving("fast".into())));
    assert_eq!(set("fast", 4).await, of(ClassError::Leaving("fast".into())));
    // It comes back, and goes again: who confirmed the first time confirmed nothing of the second.
    let back = ruled!(&store, tx, stay_class(&tx, id, left.1)).unwrap();
    assert!(!seen(&store).await.classes[&id].class.leaving);
    assert_eq!(ruled!(&store, tx, stay_class(&tx, id, left.1)).unwrap(), back, "done already");
    let again = ruled!(&store, tx, leave_class(&tx, "fast")).unwrap();
    assert_eq!(ruled!(&store, tx, stay_class(&tx, id, left.1)).unwrap(), again.1, "somebody else's by now");
    let stale = ruled!(&store, tx, delete_class(&tx, id, left.1, all));
    assert_eq!(stale, of(ClassError::Stayed("fast".into())));
    let deleted = ruled!(&store, tx, delete_class(&tx, id, again.1, all)).unwrap();
    assert_eq!(ruled!(&store, tx, delete_class(&tx, id, again.1, all)).unwrap(), deleted, "done already");
    assert_eq!(ruled!(&store, tx, stay_class(&tx, id, again.1)).unwrap(), deleted, "it is gone for good");
    let view = seen(&store).await;
    assert_eq!((view.classes.len(), view.classes_version), (0, deleted), "those who have copies hear of it");
    assert_eq!(create(&class("fast", 2)).await.unwrap().0, id + 1, "chunks may remember the old one's id");
    let unknown = ruled!(&store, tx, delete_class(&tx, id + 2, 1, all));
    assert!(matches!(unknown, Err(RuleError::Class(ClassError::NotThere(_)))), "{unknown:?}");
}

#[tokio::test]
async fn each_volumes_present_home_has_to_confirm() {
    let store = founded().await;
    let (id, _) = ruled!(&store, tx, create_class(&tx, &class("fast", 2))).unwrap();
    let (_, since) = ruled!(&store, tx, leave_class(&tx, "fast")).unwrap();
    let before = &epochs(&store).await;
    let delete = async |confirmed: &BTreeMap<VolumeId, Epoch>| {
        ruled!(&store, tx, delete_class(&tx, id, since, confirmed))
    };
    let unconfirmed = |volume| of(ClassError::Unconfirmed { name: "fast".into(), volume });
    assert_eq!(delete(&BTreeMap::new()).await, unconfirmed(ROOT));
    // One that was made since.
    let place = Place { directory: InodeId::new(ROOT, 9), path: "/d".into() };
    let making =
        &Making { place, home: "b".into(), durability: Durability::Region, regions: BTreeSet::new() };
    let (second, _) = ruled!(&store, tx, create_volume(&tx, making)).unwrap();
    assert_eq!(delete(before).await, unconfirmed(second));
    // One that was taken over since, and before that, while nobody is its home.
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), None)).unwrap();
    let both = &epochs(&store).await;
    assert_eq!(delete(both).await, unconfirmed(ROOT));
    ruled!(&store, tx, open_epoch(&tx, ROOT, Epoch(1), "b", None)).unwrap();
    assert_eq!(delete(both).await, unconfirmed(ROOT));
    let now = &epochs(&store).await;
    delete(now).await.unwrap();
}

#[tokio::test]
async fn there_are_so_many_at_most_and_ids_end() {
    let store = founded().await;
    let create = async |name: String| {
        let asked = &class(&name, 1);
        ruled!(&store, tx, create_class(&tx, asked))
    };
    for n in 0..CLASSES_MAX {
        create(format!("c{n}")).await.unwrap();
    }
    assert_eq!(create("more".into()).await, of(ClassError::TooMany));
    let (id, since) = ruled!(&store, tx, leave_class(&tx, "c7")).unwrap();
    let all = &epochs(&store).await;
    ruled!(&store, tx, delete_class(&tx, id, since, all)).unwrap();
    let tx = store.begin();
    let spent = crate::record::StorageClassesRecord { highest: u32::MAX, version: 1 };
    tx.set(&key::storage_classes(), &spent.to_value());
    tx.commit().await.unwrap();
    assert_eq!(create("more".into()).await, of(ClassError::NoIds));
    let nowhere = MemoryStore::new();
    let asked = &class("fast", 1);
    assert_eq!(ruled!(&nowhere, tx, create_class(&tx, asked)), Err(RuleError::NotFounded));
}

/// A volume as its home has it: copies of classes, and how many inodes have each.
#[derive(Clone, Debug, Default)]
struct Copies {
    version: u64,
    /// Which are leaving.
    classes: BTreeMap<u32, bool>,
    names: BTreeMap<u32, String>,
    used: BTreeMap<u32, u32>,
}

impl Copies {
    fn used(&self, id: u32) -> u32 {
        self.used.get(&id).copied().unwrap_or_default()
    }

    /// As `mooseng_namespace::classes::take_over` does it.
    fn hear(&mut self, view: &View) {
        if view.classes_version < self.version {
            return;
        }
        self.version = view.classes_version;
        let mut gone = std::mem::take(&mut self.classes);
        for (id, class) in &view.classes {
            gone.remove(id);
            self.classes.insert(*id, class.class.leaving);
            self.names.insert(*id, class.class.name.clone());
        }
        for (id, _) in gone {
            if self.used(id) > 0 {
                self.classes.insert(id, true);
            }
        }
    }

    fn assign(&mut self, name: &str) {
        let is = |(id, leaving): &(&u32, &bool)| !**leaving && self.names[*id] == name;
        if let Some(id) = self.classes.iter().filter(is).map(|(id, _)| *id).next_back() {
            *self.used.entry(id).or_default() += 1;
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Create(&'static str),
    Leave(&'static str),
    /// Somebody who deletes asks a volume's home, which hears of it first, or is about to.
    Ask {
        deletion: usize,
        volume: u16,
        hears: bool,
    },
    /// All homes, which hear of it first.
    AskAll {
        deletion: usize,
    },
    Delete {
        deletion: usize,
    },
    Stay {
        deletion: usize,
    },
    Hear(u16),
    Assign(u16, &'static str),
    Free(u16, &'static str),
    MakeVolume,
    /// What the volume has now a failover won't take back.
    Settle(u16),
    FailOver {
        volume: u16,
        loses: bool,
    },
}

/// Mostly one class, in one volume or two, and the newest deletion, or the one before: what matters comes close together.
fn act() -> impl Strategy<Value = Act> {
    let name = || prop_oneof![6 => Just("x"), 1 => Just("y")];
    let volume = || prop_oneof![5 => Just(0_u16), 2 => Just(1), 1 => Just(2)];
    let deletion = || prop_oneof![3 => Just(0_usize), 2 => Just(1), 1 => Just(2)];
    prop_oneof![
        12 => name().prop_map(Act::Create),
        16 => name().prop_map(Act::Leave),
        10 => (deletion(), volume(), any::<bool>()).prop_map(|(deletion, volume, hears)| Act::Ask {
            deletion,
            volume,
            hears
        }),
        30 => deletion().prop_map(|deletion| Act::AskAll { deletion }),
        16 => deletion().prop_map(|deletion| Act::Delete { deletion }),
        10 => deletion().prop_map(|deletion| Act::Stay { deletion }),
        10 => volume().prop_map(Act::Hear),
        24 => (volume(), name()).prop_map(|(volume, name)| Act::Assign(volume, name)),
        12 => (volume(), name()).prop_map(|(volume, name)| Act::Free(volume, name)),
        1 => Just(Act::MakeVolume),
        10 => volume().prop_map(Act::Settle),
        10 => (volume(), any::<bool>()).prop_map(|(volume, loses)| Act::FailOver { volume, loses }),
    ]
}

/// A deletion that somebody has begun: of which class, since when, and who has confirmed it.
struct Deletion {
    id: u32,
    since: u64,
    confirmed: BTreeMap<VolumeId, Epoch>,
}

/// Volumes as their homes have them, and as they would be after a failover.
#[derive(Default)]
struct Model {
    volumes: BTreeMap<VolumeId, Copies>,
    settled: BTreeMap<VolumeId, Copies>,
    /// Those that a failover has taken back to before.
    lossy: BTreeSet<VolumeId>,
    deletions: Vec<Deletion>,
    deleted: BTreeSet<u32>,
    made: BTreeSet<u32>,
}

impl Model {
    async fn act(&mut self, store: &MemoryStore, act: Act) {
        let view = seen(store).await;
        match act {
            Act::Create(name) => {
                let asked = &Asked { set_ns: view.version as i64, ..class(name, 2) };
                if let Ok((id, _)) = ruled!(store, tx, create_class(&tx, asked)) {
                    assert!(self.made.insert(id), "an id is given once");
                }
            }
            Act::Leave(name) => {
                if let Ok((id, since)) = ruled!(store, tx, leave_class(&tx, name)) {
                    self.deletions.push(Deletion { id, since, confirmed: BTreeMap::new() });
                }
            }
            Act::Ask { deletion, volume, hears } => self.ask(&view, deletion, VolumeId(volume), hears),
            Act::AskAll { deletion } => {
                for volume in view.volumes.keys() {
                    self.ask(&view, deletion, *volume, true);
                }
            }
            Act::Delete { deletion } => {
                let Some(of) = pick(&mut self.deletions, deletion) else { return };
                let (id, since, confirmed) = (of.id, of.since, &of.confirmed);
                let deleted = ruled!(store, tx, delete_class(&tx, id, since, confirmed));
                if deleted.is_ok() && self.deleted.insert(id) {
                    for copies in self.volumes.values() {
                        assert_eq!(copies.used(id), 0, "one that is in use is deleted: {copies:?}");
                    }
                }
            }
            Act::Stay { deletion } => {
                let Some(&mut Deletion { id, since, .. }) = pick(&mut self.deletions, deletion) else {
                    return;
                };
                ruled!(store, tx, stay_class(&tx, id, since)).unwrap();
            }
            Act::Hear(volume) => {
                if let Some(copies) = self.volumes.get_mut(&VolumeId(volume)) {
                    copies.hear(&view);
                }
            }
            Act::Assign(volume, name) => {
                if let Some(copies) = self.volumes.get_mut(&VolumeId(volume)) {
                    copies.assign(name);
                }
            }
            Act::Free(volume, name) => {
                if let Some(copies) = self.volumes.get_mut(&VolumeId(volume)) {
                    let names = &copies.names;
                    copies.used.retain(|id, _| names[id] != name);
                }
            }
            Act::MakeVolume => {
                let directory = InodeId::new(ROOT, 9 + view.version);
                let place = Place { directory, path: "/d".into() };
                let home = "a".to_owned();
                let making =
                    &Making { place, home, durability: Durability::Region, regions: BTreeSet::new() };
                let (id, _) = ruled!(store, tx, create_volume(&tx, making)).unwrap();
                let mut copies = Copies::default();
                copies.hear(&seen(store).await);
                self.settled.insert(id, Copies::default());
                self.volumes.insert(id, copies);
            }
            Act::Settle(volume) => {
                if let Some(copies) = self.volumes.get(&VolumeId(volume)) {
                    self.settled.insert(VolumeId(volume), copies.clone());
                }
            }
            Act::FailOver { volume, loses } => {
                let id = VolumeId(volume);
                let Some(known) = view.volumes.get(&id) else { return };
                let to = if known.home == "a" { "b" } else { "a" };
                ruled!(store, tx, close_epoch(&tx, id, known.epoch, None)).unwrap();
                ruled!(store, tx, open_epoch(&tx, id, known.epoch, to, None)).unwrap();
                if loses {
                    self.lossy.insert(id);
                    self.volumes.insert(id, self.settled[&id].clone());
                }
                // Before it lets anybody assign anything: it knows at least that it is the home.
                let now = seen(store).await;
                self.volumes.get_mut(&id).unwrap().hear(&now);
            }
        }
        self.check();
    }

    fn ask(&mut self, view: &View, deletion: usize, volume: VolumeId, hears: bool) {
        let Some(of) = pick(&mut self.deletions, deletion) else { return };
        let Some(copies) = self.volumes.get_mut(&volume) else { return };
        if hears {
            copies.hear(view);
        }
        if copies.version >= of.since && copies.used(of.id) == 0 {
            of.confirmed.insert(volume, view.volumes[&volume].epoch);
        }
    }

    fn check(&self) {
        for (id, copies) in &self.volumes {
            for (class, used) in copies.used.iter().filter(|(_, used)| **used > 0) {
                assert!(
                    copies.classes.contains_key(class),
                    "{used} inodes have a class that isn't on record"
                );
                assert!(
                    !self.deleted.contains(class) || self.lossy.contains(id),
                    "a deleted class came into use in volume {id}, which lost nothing"
                );
            }
        }
    }
}

fn pick(deletions: &mut [Deletion], which: usize) -> Option<&mut Deletion> {
    let last = deletions.len().checked_sub(1)?;
    deletions.get_mut(last.saturating_sub(which))
}

proptest! {
    #[test]
    fn no_class_goes_that_something_has(acts in proptest::collection::vec(act(), 1..150)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = founded().await;
            let mut model = Model::default();
            model.volumes.insert(ROOT, Copies::default());
            model.settled.insert(ROOT, Copies::default());
            for act in acts {
                model.act(&store, act).await;
            }
        });
    }
}

#[tokio::test]
async fn regions_and_volumes_come_and_go_beside_classes() {
    let store = founded().await;
    ruled!(&store, tx, create_class(&tx, &class("fast", 2))).unwrap();
    let before = seen(&store).await;
    let c = &Region { number: 0, ..region(9, 3, false) };
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    let after = seen(&store).await;
    assert!(after.version > before.version);
    assert_eq!((after.classes_version, after.classes), (before.classes_version, before.classes));
}
