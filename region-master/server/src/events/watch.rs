//! What has happened, by what a master sees now and saw before. Pure.
//!
//! Every master looks, so that a new leader knows how it was; only leaders tell. What all regions know (the global group's facts) carries a key, by which
//! those who read several masters' words know it for one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_global::{Stage, View, Volume};
use mooseng_region::events::{self, EventWord};
use mooseng_wire::VolumeId;

/// Looks in a row at which a finding must be there, or gone, before that is told: some come and go with an election.
const STEADY_LOOKS: u32 = 3;
/// Findings that are told of at a time, at most.
const FINDINGS_MAX: usize = 200;

/// A leader tells for how long there was none before it from so long a time on: elections last less.
const OUTAGE_MIN: Duration = Duration::from_secs(5);

/// What a master sees.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The term in which it leads its region, if it does.
    pub leads: Option<u64>,
    /// For how long it has heard of no leader of its region with a majority; zero before it has known its group.
    pub silence: Duration,
    /// The term in which it leads the global group, if it does.
    pub leads_global: Option<u64>,
    /// What the regions agreed on; none where there is one region.
    pub view: Option<Arc<View>>,
    /// Regions whose lease has run out, with the renewal that it ran out from.
    pub ran_out: BTreeMap<String, u64>,
    /// Other regions, and whether any of their masters answers; those that weren't asked yet are missing.
    pub reached: BTreeMap<String, bool>,
    /// The region's chunkservers, and whether they report.
    pub chunkservers: BTreeMap<String, bool>,
    /// Findings: code and subject, with the detail.
    pub findings: BTreeMap<(String, String), String>,
    /// Of the replicas here: whether they are copied still. Those of which that isn't known are missing.
    pub copying: BTreeMap<VolumeId, bool>,
    /// Volumes of which something that was cut off is kept here.
    pub salvage: BTreeSet<VolumeId>,
    /// Volumes that this region isn't to have, and of which it has something.
    pub letting_go: BTreeSet<VolumeId>,
}

/// An event, not yet written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub word: &'static EventWord,
    /// What it is about.
    pub subject: String,
    /// The rest, in a sentence.
    pub detail: String,
    /// The same for all who tell of the same fact; empty where only one can.
    pub key: String,
}

/// What a master remembers between two looks.
#[derive(Debug, Default)]
pub struct Watch {
    region: String,
    master: String,
    before: Option<Seen>,
    /// Findings that were told of.
    raised: BTreeSet<(String, String)>,
    /// Findings that are otherwise than told, and for how many looks.
    unsteady: BTreeMap<(String, String), u32>,
}

impl Watch {
    /// Nothing was seen yet.
    pub fn new(region: &str, master: &str) -> Self {
        Self { region: region.to_owned(), master: master.to_owned(), ..Self::default() }
    }

    /// Takes a look in; answers what is to be told of.
    pub fn look(&mut self, now: Seen) -> Vec<Told> {
        let before = self.before.replace(now.clone()).unwrap_or_else(|| Seen {
            // What was so before this master started is no news; that it leads is.
            leads: None,
            leads_global: None,
            ..now.clone()
        });
        let mut told = Vec::new();
        if now.leads.is_some() || now.leads_global.is_some() {
            agreed(&before, &now, &mut told);
        }
        if let Some(term) = now.leads_global.filter(|_| now.leads_global != before.leads_global) {
            let key = format!("global-leader/{term}");
            tell(
                &mut told,
                &events::GLOBAL_LEADER,
                &self.master,
                format!("Of the region {}, in term {term}.", self.region),
                key,
            );
        }
        let Some(term) = now.leads else {
            self.unsteady.clear();
            return told;
        };
        if now.leads != before.leads {
            // Nobody led who could have told of it, so whoever leads next does.
            if before.silence >= OUTAGE_MIN {
                let detail = format!(
                    "Until now {} had heard of no leader with a majority for {} s.",
                    self.master,
                    before.silence.as_secs()
                );
                let key = format!("outage/{}/{term}", self.region);
                tell(&mut told, &events::OUTAGE, &self.region, detail, key);
            }
            let detail = format!("{} leads it, in term {term}.", self.master);
            tell(
                &mut told,
                &events::LEADER_ELECTED,
                &self.region,
                detail,
                format!("leader/{}/{term}", self.region),
            );
            // Another leader may have told of other findings meanwhile.
            self.raised.clear();
        } else {
            self.chunkservers(&before, &now, &mut told);
        }
        self.reached(&before, &now, &mut told);
        self.replica(&before, &now, &mut told);
        self.findings(&now, &mut told);
        told
    }

    fn chunkservers(&self, before: &Seen, now: &Seen, told: &mut Vec<Told>) {
        for (name, alive) in &now.chunkservers {
            let was = before.chunkservers.get(name);
            if was.is_some_and(|was| was != alive) {
                let (word, what) = match alive {
                    true => (&events::CHUNKSERVER_BACK, "reports again"),
                    false => (&events::CHUNKSERVER_LOST, "doesn't report any more"),
                };
                tell(told, word, name, format!("{name} of {} {what}.", self.region), String::new());
            }
        }
    }

    fn reached(&self, before: &Seen, now: &Seen, told: &mut Vec<Told>) {
        for (name, there) in &now.reached {
            let was = before.reached.get(name).copied().unwrap_or(true);
            if was != *there {
                let (word, what) = match there {
                    true => (&events::REGION_REACHED, "answer again"),
                    false => (&events::REGION_UNREACHABLE, "don't answer"),
                };
                tell(told, word, name, format!("Its masters {what} to {}.", self.region), String::new());
            }
        }
    }

    fn replica(&self, before: &Seen, now: &Seen, told: &mut Vec<Told>) {
        let of = |volume: VolumeId| now.view.as_ref().and_then(|view| view.volumes.get(&volume));
        let name = |volume: VolumeId| name(volume, of(volume));
        for (volume, copying) in &now.copying {
            let (word, detail) = match (before.copying.get(volume), copying) {
                (Some(false) | None, true) => {
                    (&events::COPY_BEGUN, format!("It copies volume {} from its home.", name(*volume)))
                }
                (Some(true), false) => {
                    (&events::COPY_FINISHED, format!("Its copy of volume {} is whole.", name(*volume)))
                }
                _ => continue,
            };
            tell(told, word, &self.region, detail, String::new());
        }
        for volume in now.salvage.difference(&before.salvage) {
            let detail = format!("What it alone had of volume {} is put aside in its store.", name(*volume));
            let epoch = of(*volume).map_or(0, |known| known.epoch.0);
            let key = match volume.0 {
                0 => format!("salvage/{}/{epoch}", self.region),
                other => format!("salvage/{}/{epoch}/{other}", self.region),
            };
            tell(told, &events::SALVAGE_KEPT, &self.region, detail, key);
        }
        for volume in before.letting_go.difference(&now.letting_go) {
            // It may be to have it again, or the volume was deleted.
            if of(*volume).is_some_and(|known| !known.regions.contains(&self.region)) {
                let detail = format!("Nothing is left there of volume {}.", name(*volume));
                tell(told, &events::VOLUME_LET_GO, &self.region, detail, String::new());
            }
        }
    }

    fn findings(&mut self, now: &Seen, told: &mut Vec<Told>) {
        let other =
            |finding: &(String, String)| now.findings.contains_key(finding) != self.raised.contains(finding);
        let differ: BTreeSet<(String, String)> = now
            .findings
            .keys()
            .chain(&self.raised)
            .filter(|f| other(f))
            .take(FINDINGS_MAX)
            .cloned()
            .collect();
        self.unsteady.retain(|finding, _| differ.contains(finding));
        for finding in differ {
            let looks = self.unsteady.entry(finding.clone()).or_default();
            *looks += 1;
            if *looks < STEADY_LOOKS {
                continue;
            }
            self.unsteady.remove(&finding);
            let (code, subject) = &finding;
            match now.findings.get(&finding) {
                Some(detail) => {
                    self.raised.insert(finding.clone());
                    tell(told, &events::HEALTH_RAISED, code, format!("{subject}: {detail}"), String::new());
                }
                None => {
                    self.raised.remove(&finding);
                    tell(told, &events::HEALTH_CLEARED, code, format!("{subject}."), String::new());
                }
            }
        }
    }
}

fn tell(told: &mut Vec<Told>, word: &'static EventWord, subject: &str, detail: String, key: String) {
    told.push(Told { word, subject: subject.to_owned(), detail, key });
}

/// What the regions agreed on, and their leases.
fn agreed(before: &Seen, now: &Seen, told: &mut Vec<Told>) {
    leases(before, now, told);
    let (Some(old), Some(new)) = (&before.view, &now.view) else { return };
    // A founding says nothing that anybody decided.
    if old.version == 0 || old.version == new.version {
        return;
    }
    if new.level > old.level {
        let detail = format!("The cluster was at {}.", old.level);
        tell(told, &events::LEVEL_RAISED, &new.level.to_string(), detail, format!("level/{}", new.level));
    }
    for name in new.regions.keys().filter(|name| !old.regions.contains_key(*name)) {
        tell(
            told,
            &events::REGION_ADDED,
            name,
            "It is one of the cluster's regions.".into(),
            format!("added/{name}/{}", new.regions[name].number),
        );
    }
    for (name, region) in old.regions.iter().filter(|(name, _)| !new.regions.contains_key(*name)) {
        tell(
            told,
            &events::REGION_REMOVED,
            name,
            "It is no region of the cluster any more.".into(),
            format!("removed/{name}/{}", region.number),
        );
    }
    for (id, volume) in &new.volumes {
        let was = old.volumes.get(id);
        came(*id, was, volume, told);
        if let Some(was) = was {
            changed(*id, (was, volume), new.version, told);
        }
    }
    for (id, volume) in old.volumes.iter().filter(|(id, _)| !new.volumes.contains_key(*id)) {
        let detail = "Its directory is an ordinary one.".to_owned();
        // Its number isn't given twice.
        tell(told, &events::VOLUME_DELETED, &name(*id, Some(volume)), detail, format!("deleted/{}", id.0));
    }
}

/// A volume, for people: by the path that it was joined at, and its number.
fn name(id: VolumeId, volume: Option<&Volume>) -> String {
    match (id.0, volume.and_then(|volume| volume.join.as_ref())) {
        (0, _) => "/".to_owned(),
        (other, Some(join)) => format!("{} ({other})", join.place.path),
        (other, None) => other.to_string(),
    }
}

/// A volume is there that wasn't, or a directory names it.
fn came(id: VolumeId, was: Option<&Volume>, is: &Volume, told: &mut Vec<Told>) {
    let name = name(id, Some(is));
    if was.is_none() {
        let regions = is.regions.iter().cloned().collect::<Vec<_>>().join(",");
        let detail = format!("Home {}, durability {}, regions {regions}.", is.home, is.durability.as_str());
        tell(told, &events::VOLUME_MADE, &name, detail, format!("made/{}", id.0));
    }
    let joined = |volume: &Volume| volume.join.as_ref().is_some_and(|join| join.stage == Stage::Joined);
    if joined(is) && !was.is_some_and(joined) {
        let detail = format!("Home {}: mounts cross into it.", is.home);
        tell(told, &events::VOLUME_JOINED, &name, detail, format!("joined/{}", id.0));
    }
}

fn leases(before: &Seen, now: &Seen, told: &mut Vec<Told>) {
    for (region, renewal) in &now.ran_out {
        if !before.ran_out.contains_key(region) {
            let key = format!("lease-lost/{region}/{renewal}");
            tell(
                told,
                &events::LEASE_LOST,
                region,
                format!("It was renewed {renewal} times, and not since."),
                key,
            );
        }
    }
    for (region, renewal) in &before.ran_out {
        if !now.ran_out.contains_key(region) {
            let key = format!("lease-renewed/{region}/{renewal}");
            tell(
                told,
                &events::LEASE_RENEWED,
                region,
                "Its masters are back in the global group.".into(),
                key,
            );
        }
    }
}

fn changed(id: VolumeId, (was, is): (&Volume, &Volume), version: u64, told: &mut Vec<Told>) {
    let name = name(id, Some(is));
    let key = |what: &str, at: u64| format!("{what}/{}/{at}", id.0);
    // No other change makes another region the home behind a place of the log, and names no home that was lost.
    let moved = was.open
        && is.epoch.0 == was.epoch.0 + 1
        && is.cut.is_some()
        && is.lost_home.is_none()
        && is.home != was.home;
    if moved {
        let detail = format!("{} -> {}, in epoch {}.", was.home, is.home, is.epoch.0);
        tell(told, &events::HOME_MOVED, &name, detail, key("moved", is.epoch.0));
    }
    let closed = was.open && (!is.open || is.epoch > was.epoch) && !moved;
    if closed {
        // Where the next epoch was opened between two looks, why is known no more.
        let why = match (is.open, is.abandoned) {
            (true, _) => format!("{} is its home no more", was.home),
            (false, true) => match &is.forced_home {
                Some(to) => format!("an administrator has given its home {} up for {to}", was.home),
                None => format!("the lease of its home {} ran out", was.home),
            },
            (false, false) => format!("its home {} gave it up", was.home),
        };
        tell(
            told,
            &events::EPOCH_CLOSED,
            &name,
            format!("Epoch {} is closed: {why}.", was.epoch.0),
            key("closed", was.epoch.0),
        );
    }
    if is.open && is.epoch > was.epoch {
        let cut = is.cut.map_or_else(
            || "nothing is cut off".to_owned(),
            |cut| format!("cut at {}/{}", cut.epoch.0, cut.version),
        );
        let detail = format!("Epoch {} is open: home {} -> {}, {cut}.", is.epoch.0, was.home, is.home);
        tell(told, &events::EPOCH_OPENED, &name, detail, key("opened", is.epoch.0));
    }
    if was.sync_set != is.sync_set {
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(",");
        let detail = format!("{} -> {}.", list(&was.sync_set), list(&is.sync_set));
        let word = match is.sync_set.is_superset(&was.sync_set) {
            true => &events::SYNC_SET_GROWN,
            false => &events::SYNC_SET_SHRUNK,
        };
        // It says nothing where nothing waits for it.
        if was.durability == is.durability && is.durability == mooseng_global::Durability::Geo {
            tell(told, word, &name, detail, key("sync-set", version));
        }
    }
    let settings = settings(was, is);
    if !settings.is_empty() {
        tell(
            told,
            &events::VOLUME_CHANGED,
            &name,
            format!("{}.", settings.join("; ")),
            key("settings", version),
        );
    }
}

fn settings(was: &Volume, is: &Volume) -> Vec<String> {
    let regions = |volume: &Volume| volume.regions.iter().cloned().collect::<Vec<_>>().join(",");
    let failover = |volume: &Volume| if volume.automatic { "auto" } else { "manual" }.to_owned();
    let alone = |volume: &Volume| if volume.blocks_alone { "block" } else { "degrade" }.to_owned();
    let durability = |volume: &Volume| volume.durability.as_str().to_owned();
    let lag_max = |volume: &Volume| volume.lag_max.map_or("none".to_owned(), |most| format!("{most:?}"));
    let rows = [
        ("durability", durability(was), durability(is)),
        ("failover", failover(was), failover(is)),
        ("on sync loss", alone(was), alone(is)),
        ("lag_max", lag_max(was), lag_max(is)),
        ("regions", regions(was), regions(is)),
    ];
    rows.into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(what, was, is)| format!("{what} {was} -> {is}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use mooseng_global::{Durability, Join, Place, Region};
    use mooseng_schema::log::LogPosition;
    use mooseng_wire::level::FeatureLevel;
    use mooseng_wire::{Epoch, InodeId};

    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn view(version: u64, volume: Volume) -> Option<Arc<View>> {
        let regions = [("a".to_owned(), Region::default()), ("b".to_owned(), Region::default())].into();
        Some(Arc::new(View { version, regions, volumes: [(VolumeId(0), volume)].into(), ..View::default() }))
    }

    fn volume() -> Volume {
        Volume {
            home: "a".into(),
            epoch: Epoch(1),
            open: true,
            abandoned: false,
            cut: None,
            durability: Durability::Geo,
            regions: names(&["a", "b"]),
            sync_set: names(&["a", "b"]),
            automatic: true,
            blocks_alone: false,
            lag_max: None,
            lost_home: None,
            forced_home: None,
            join: None,
        }
    }

    fn leading() -> Seen {
        Seen { leads: Some(3), view: view(4, volume()), ..Seen::default() }
    }

    fn watching() -> Watch {
        let mut watch = Watch::new("b", "master-1");
        let told = watch.look(leading());
        assert_eq!(
            told.iter().map(|t| t.word.word).collect::<Vec<_>>(),
            ["LEADER_ELECTED"],
            "the rest is no news"
        );
        watch
    }

    fn words(told: &[Told]) -> Vec<&str> {
        told.iter().map(|t| t.word.word).collect()
    }

    #[test]
    fn a_failover_is_told() {
        let mut watch = watching();
        let lost = Seen { ran_out: [("a".to_owned(), 7)].into(), ..leading() };
        let told = watch.look(lost.clone());
        assert_eq!((words(&told), told[0].key.as_str()), (vec!["LEASE_LOST"], "lease-lost/a/7"));
        let closed = Volume { open: false, abandoned: true, ..volume() };
        let told = watch.look(Seen { view: view(5, closed), ..lost.clone() });
        assert_eq!(words(&told), ["EPOCH_CLOSED"]);
        assert!(told[0].detail.contains("the lease of its home a ran out"), "{told:?}");
        let given_up = Volume { open: false, abandoned: true, forced_home: Some("b".into()), ..volume() };
        let told_so = watching().look(Seen { view: view(5, given_up), ..leading() });
        assert!(told_so[0].detail.contains("has given its home a up for b"), "{told_so:?}");
        let cut = Some(LogPosition::new(Epoch(1), 9));
        let opened = Volume { home: "b".into(), epoch: Epoch(2), cut, sync_set: names(&["b"]), ..volume() };
        let told = watch.look(Seen { view: view(6, opened.clone()), ..lost });
        assert_eq!(words(&told), ["EPOCH_OPENED", "SYNC_SET_SHRUNK"]);
        assert!(told[0].detail.contains("home a -> b, cut at 1/9"), "{told:?}");
        let told = watch.look(Seen { view: view(6, opened), ..leading() });
        assert_eq!((words(&told), told[0].key.as_str()), (vec!["LEASE_RENEWED"], "lease-renewed/a/7"));
    }

    #[test]
    fn a_level_that_is_raised_is_told_once_for_all() {
        let mut watch = watching();
        let raised = View { level: FeatureLevel(2), ..View::clone(&view(5, volume()).unwrap()) };
        let told = watch.look(Seen { view: Some(Arc::new(raised.clone())), ..leading() });
        assert_eq!((words(&told), told[0].subject.as_str()), (vec!["LEVEL_RAISED"], "2"));
        assert_eq!(told[0].key, "level/2");
        let later = Seen { view: Some(Arc::new(View { version: 6, ..raised })), ..leading() };
        assert_eq!(watch.look(later), vec![]);
    }

    #[test]
    fn both_ends_of_an_epoch_are_told_where_they_came_between_two_looks() {
        let mut watch = watching();
        let opened = Volume { home: "b".into(), epoch: Epoch(2), ..volume() };
        assert_eq!(
            words(&watch.look(Seen { view: view(6, opened), ..leading() })),
            ["EPOCH_CLOSED", "EPOCH_OPENED"]
        );
    }

    #[test]
    fn a_move_of_the_home_is_told_as_one() {
        let mut watch = watching();
        let cut = Some(LogPosition::new(Epoch(1), 300));
        let moved = Volume { home: "b".into(), epoch: Epoch(2), cut, ..volume() };
        let told = watch.look(Seen { view: view(5, moved), ..leading() });
        assert_eq!(words(&told), ["HOME_MOVED", "EPOCH_OPENED"]);
        assert!(told[0].detail.contains("a -> b"), "{}", told[0].detail);
    }

    #[test]
    fn who_leads_nothing_tells_nothing_and_remembers() {
        let mut watch = Watch::new("b", "master-2");
        let follows = Seen { leads: None, ..leading() };
        assert_eq!(watch.look(follows.clone()), []);
        let changed = Volume { durability: Durability::Region, ..volume() };
        assert_eq!(watch.look(Seen { view: view(5, changed.clone()), ..follows }), []);
        let told = watch.look(Seen { view: view(5, changed), ..leading() });
        assert_eq!(words(&told), ["LEADER_ELECTED"], "what it saw as a follower isn't news");
    }

    #[test]
    fn a_new_leader_tells_for_how_long_there_was_none() {
        let silent = |s| Seen { leads: None, silence: Duration::from_secs(s), ..leading() };
        let again = || Seen { leads: Some(4), ..leading() };
        let mut watch = watching();
        watch.look(silent(4));
        assert_eq!(words(&watch.look(again())), ["LEADER_ELECTED"], "an election takes a while");
        watch.look(silent(62));
        watch.look(silent(63));
        let told = watch.look(again());
        assert_eq!((words(&told), told[0].subject.as_str()), (vec!["OUTAGE", "LEADER_ELECTED"], "b"));
        assert!(
            told[0].detail.contains("master-1 had heard of no leader with a majority for 63 s"),
            "{told:?}"
        );
        assert_eq!(watch.look(again()), [], "once");
    }

    #[test]
    fn settings_and_regions_are_told() {
        let mut watch = watching();
        let changed = Volume { durability: Durability::Region, blocks_alone: true, ..volume() };
        let told = watch.look(Seen { view: view(5, changed), ..leading() });
        assert_eq!(told[0].detail, "durability geo -> region; on sync loss degrade -> block.");
        let mut more = View::clone(leading().view.as_ref().unwrap());
        more.version = 6;
        more.regions.insert("c".into(), Region { number: 3, ..Region::default() });
        let told = watch.look(Seen { view: Some(Arc::new(more)), ..leading() });
        assert!(words(&told).contains(&"REGION_ADDED"), "{told:?}");
    }

    #[test]
    fn findings_are_told_once_they_are_steady() {
        let mut watch = watching();
        let found = Seen {
            findings: [(("DISK_FAILED".into(), "cs1".into()), "It is gone.".into())].into(),
            ..leading()
        };
        for _ in 1..STEADY_LOOKS {
            assert_eq!(watch.look(found.clone()), []);
        }
        assert_eq!(watch.look(leading()), [], "it flickers");
        for _ in 1..STEADY_LOOKS {
            assert_eq!(watch.look(found.clone()), []);
        }
        let told = watch.look(found.clone());
        assert_eq!((words(&told), told[0].detail.as_str()), (vec!["HEALTH_RAISED"], "cs1: It is gone."));
        assert_eq!(watch.look(found), [], "once");
        let told: Vec<Told> = (0..STEADY_LOOKS).flat_map(|_| watch.look(leading())).collect();
        assert_eq!(words(&told), ["HEALTH_CLEARED"]);
    }

    #[test]
    fn what_a_regions_leader_sees_is_told() {
        let mut watch = watching();
        let with = |alive, there, copying| Seen {
            chunkservers: [("cs1".to_owned(), alive)].into(),
            reached: [("a".to_owned(), there)].into(),
            copying: [(VolumeId(0), copying)].into(),
            ..leading()
        };
        assert_eq!(watch.look(with(true, true, false)), [], "a new chunkserver that reports is no event");
        assert_eq!(
            words(&watch.look(with(false, false, true))),
            ["CHUNKSERVER_LOST", "REGION_UNREACHABLE", "COPY_BEGUN"]
        );
        assert_eq!(
            words(&watch.look(with(true, true, false))),
            ["CHUNKSERVER_BACK", "REGION_REACHED", "COPY_FINISHED"]
        );
        let kept = Seen { salvage: [VolumeId(0)].into(), ..with(true, true, false) };
        let told = watch.look(kept);
        assert_eq!((words(&told), told[0].key.as_str()), (vec!["SALVAGE_KEPT"], "salvage/b/1"));
    }

    #[test]
    fn that_a_region_has_let_go_of_a_volume_is_told_once_nothing_is_left() {
        let without = |regions: &[&str]| Volume {
            regions: regions.iter().map(|name| (*name).to_owned()).collect(),
            ..second(Stage::Joined)
        };
        let seen = |version, second, something: bool| Seen {
            letting_go: something.then_some(VolumeId(3)).into_iter().collect(),
            ..with_second(version, second)
        };
        let mut watch = watching();
        watch.look(seen(5, Some(without(&["a"])), true));
        assert_eq!(watch.look(seen(5, Some(without(&["a"])), true)), []);
        let told = watch.look(seen(5, Some(without(&["a"])), false));
        assert_eq!((words(&told), told[0].subject.as_str()), (vec!["VOLUME_LET_GO"], "b"));
        assert_eq!(told[0].detail, "Nothing is left there of volume /team (3).");
        // It is to have it again, or nobody is.
        for after in [Some(without(&["a", "b"])), None] {
            let mut watch = watching();
            watch.look(seen(5, Some(without(&["a"])), true));
            let told = watch.look(seen(6, after, false));
            assert!(!words(&told).contains(&"VOLUME_LET_GO"), "{told:?}");
        }
    }

    fn second(stage: Stage) -> Volume {
        let place = Place { directory: InodeId(9), path: "/team".into() };
        Volume { join: Some(Join { place, stage }), ..volume() }
    }

    /// What is agreed on of the root and, perhaps, of a second volume.
    fn with_second(version: u64, second: Option<Volume>) -> Seen {
        let mut view = View::clone(leading().view.as_ref().unwrap());
        view.version = version;
        view.volumes.extend(second.map(|second| (VolumeId(3), second)));
        Seen { view: Some(Arc::new(view)), ..leading() }
    }

    #[test]
    fn what_happens_to_a_volume_names_its_path() {
        let mut watch = watching();
        let mut told = Vec::new();
        let moved = Volume {
            home: "b".into(),
            epoch: Epoch(2),
            cut: Some(LogPosition::new(Epoch(1), 300)),
            ..second(Stage::Joined)
        };
        let steps = [Some(second(Stage::Made)), Some(second(Stage::Joined)), Some(moved), None];
        for (step, version) in steps.into_iter().zip(5..) {
            told.extend(watch.look(with_second(version, step)));
        }
        assert_eq!(
            words(&told),
            ["VOLUME_MADE", "VOLUME_JOINED", "HOME_MOVED", "EPOCH_OPENED", "VOLUME_DELETED"]
        );
        assert!(told.iter().all(|told| told.subject == "/team (3)"), "{told:?}");
        assert_eq!(told[0].detail, "Home a, durability geo, regions a,b.");
        let keys: BTreeSet<&str> = told.iter().map(|told| told.key.as_str()).collect();
        assert_eq!(keys.len(), told.len(), "{keys:?}");
    }

    #[test]
    fn a_volume_that_was_made_and_joined_between_two_looks_is_told_as_both() {
        let told = watching().look(with_second(6, Some(second(Stage::Joined))));
        assert_eq!(words(&told), ["VOLUME_MADE", "VOLUME_JOINED"]);
    }

    #[test]
    fn each_replica_is_copied_for_itself() {
        let mut watch = watching();
        let seen = |version, copying: bool| Seen {
            copying: [(VolumeId(0), false), (VolumeId(3), copying)].into(),
            ..with_second(version, Some(second(Stage::Joined)))
        };
        let of_copies = |told: Vec<Told>| told.into_iter().find(|told| told.word.word.starts_with("COPY"));
        let begun = of_copies(watch.look(seen(5, true))).unwrap();
        assert_eq!(begun.detail, "It copies volume /team (3) from its home.");
        let whole = of_copies(watch.look(seen(5, false))).unwrap();
        assert_eq!(whole.detail, "Its copy of volume /team (3) is whole.");
        assert_eq!(of_copies(watch.look(seen(5, false))), None);
    }
}
