//! What the loss of a region would mean for a volume, by what is agreed on and how far replicas are. Pure.

use std::collections::BTreeMap;

use mooseng_wire::admin::{ListVolumesReply, Replica, Volume};
use serde_json::{Value, json};

/// What would be left of acknowledged writes for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// All of them.
    All,
    /// All but those of the last so many milliseconds; none where nobody knows how many.
    AllBut(Option<u64>),
    /// No other region has the volume.
    Nothing,
}

/// What would happen to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Its home goes on.
    GoesOn,
    /// Its home goes on, but what is flushed waits.
    FlushesWait,
    /// The home goes on for a while, then writers wait.
    WritersWait,
    /// Another region takes over by itself.
    FailsOver,
    /// It takes no changes until the region is back, or somebody decides.
    Waits,
}

impl Then {
    fn as_str(self) -> &'static str {
        match self {
            Self::GoesOn => "goes_on",
            Self::FlushesWait => "flushes_wait",
            Self::WritersWait => "writers_wait",
            Self::FailsOver => "fails_over",
            Self::Waits => "waits",
        }
    }
}

/// What the loss of one region would mean for one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The region.
    pub region: String,
    /// What would be left if it never came back.
    pub survives: Survives,
    /// What would happen.
    pub then: Then,
    /// Both in a sentence.
    pub sentence: String,
}

impl Outlook {
    /// In JSON.
    pub fn shape(&self) -> Value {
        let (survives, lost_ms) = match self.survives {
            Survives::All => ("all", Some(0)),
            Survives::AllBut(ms) => ("all_but_the_newest", ms),
            Survives::Nothing => ("nothing", None),
        };
        json!({ "region": self.region, "survives": survives, "lost_ms": lost_ms, "then": self.then.as_str(), "sentence": self.sentence })
    }
}

/// Seconds with three digits.
pub fn seconds(ms: u64) -> String {
    format!("{:.3} s", ms as f64 / 1_000.0)
}

/// What the loss of each region would mean. `regions`: all of the cluster. `fatal`: those without which the regions can agree on nothing.
pub fn of(volume: &Volume, regions: &[String], fatal: &[String]) -> Vec<Outlook> {
    regions.iter().map(|region| lost(volume, region, fatal.contains(region))).collect()
}

/// What the loss of one region would mean.
pub fn lost(volume: &Volume, region: &str, fatal: bool) -> Outlook {
    let (survives, then, sentence) = if region == volume.home {
        let (survives, kept) = kept(volume);
        let (then, goes) = without_home(volume, fatal, survives);
        (survives, then, format!("{kept} {goes}"))
    } else {
        let (then, goes) = without_other(volume, region, fatal);
        (Survives::All, then, format!("Nothing acknowledged would be lost. {goes}"))
    };
    Outlook { region: region.to_owned(), survives, then, sentence }
}

/// What a failover right now would lose.
pub fn failover_loses(volume: &Volume) -> String {
    kept(volume).1
}

/// The regions that may follow the home.
fn heirs(volume: &Volume) -> Vec<&str> {
    let fit = if volume.geo { &volume.sync_set } else { &volume.regions };
    fit.iter().map(String::as_str).filter(|region| *region != volume.home).collect()
}

/// What is left without the home, as things are.
fn kept(volume: &Volume) -> (Survives, String) {
    let heirs = heirs(volume);
    if volume.geo && !heirs.is_empty() {
        return (Survives::All, format!("Nothing acknowledged would be lost: {} has it.", or(&heirs)));
    }
    let others = volume.regions.iter().any(|region| *region != volume.home);
    if !others {
        return (
            Survives::Nothing,
            format!("Everything would be lost: only {} has the volume.", volume.home),
        );
    }
    // Whoever is complete furthest follows, and begins there: what it shows beyond that, without its data, would be lost.
    let whole = volume.replicas.iter().filter(|r| r.trouble.is_empty() && !r.copying && r.epoch > 0);
    let known = whole.filter_map(|replica| Some((replica.complete?, replica)));
    let best = known.max_by_key(|(at, _)| (at.epoch, at.version)).map(|(_, replica)| replica);
    match best {
        None => (
            Survives::AllBut(None),
            "What other regions lack would be lost; how much that is, nobody could say.".to_owned(),
        ),
        Some(Replica { region, complete_behind_ms: None, .. }) => (
            Survives::AllBut(Some(0)),
            format!(
                "Right now nothing would be lost: {region} lacks nothing. Nobody waits for it, so writes of the last moment can be."
            ),
        ),
        Some(Replica { region, complete_behind_ms: Some(ms), complete_behind_longer: true, .. }) => (
            Survives::AllBut(None),
            format!(
                "Writes of the last {} and earlier ones would be lost, which {region} lacks, or whose data it lacks; how much that is, nobody could say.",
                seconds(*ms)
            ),
        ),
        Some(Replica { region, complete_behind_ms: Some(ms), .. }) => (
            Survives::AllBut(Some(*ms)),
            format!(
                "Writes of the last {} would be lost, which {region} lacks, or whose data it lacks.",
                seconds(*ms)
            ),
        ),
    }
}

fn without_home(volume: &Volume, fatal: bool, survives: Survives) -> (Then, String) {
    let (home, heirs) = (&volume.home, heirs(volume));
    if survives == Survives::Nothing {
        return (Then::Waits, format!("The volume would wait for {home}."));
    }
    if fatal {
        let why = "the others couldn't agree on anything without it";
        return (Then::Waits, format!("The volume would wait for {home}: {why}."));
    }
    if heirs.is_empty() {
        let why = "no other region is in its sync set";
        return (Then::Waits, format!("The volume would wait for {home}: {why}."));
    }
    if !volume.automatic {
        let command =
            format!("mooseng volume move-home {} --to {} --force", crate::volume::name(volume), heirs[0]);
        let why = format!("it fails over by command only (`{command}`)");
        return (Then::Waits, format!("The volume would wait for {home}: {why}."));
    }
    (Then::FailsOver, format!("{} would take over by itself.", or(&heirs)))
}

fn without_other(volume: &Volume, region: &str, fatal: bool) -> (Then, String) {
    let home = &volume.home;
    if fatal && volume.automatic {
        let why = "its lease couldn't be renewed, for the regions couldn't agree on anything";
        return (Then::Waits, format!("{home} would stop: {why}."));
    }
    let waited_for = volume.geo && volume.sync_set.iter().any(|member| member == region);
    let left = heirs(volume).into_iter().filter(|heir| *heir != region).count();
    match (waited_for, left) {
        (true, 0) if volume.blocks_alone => (
            Then::FlushesWait,
            format!("{home} would go on, but fsync would wait until another region is in the sync set."),
        ),
        (true, 0) => (
            Then::GoesOn,
            format!(
                "{home} would go on alone: what is flushed then is in {home} only, until another region is back."
            ),
        ),
        (false, 0) if volume.blocks_alone && !volume.geo && volume.lag_max_ms > 0 => (
            Then::WritersWait,
            format!(
                "{home} would go on until what it alone has is older than {}; then writers would wait until another region follows.",
                seconds(volume.lag_max_ms)
            ),
        ),
        _ => (Then::GoesOn, format!("{home} would go on.")),
    }
}

fn or(names: &[&str]) -> String {
    names.join(" or ")
}

/// Puts together what masters of several regions say of the volumes: settings by whoever knows the newest, replicas by the home's word and their own.
pub fn merged(told: Vec<(String, ListVolumesReply)>) -> Vec<Volume> {
    let newest = told.iter().map(|(_, reply)| reply).max_by_key(|reply| reply.version);
    let mut volumes = newest.map(|reply| reply.volumes.clone()).unwrap_or_default();
    for volume in &mut volumes {
        let words = |by: &dyn Fn(&str) -> bool, of: &str| {
            let mut said = told.iter().filter(|(region, _)| by(region)).filter_map(|(_, reply)| {
                let known = reply.volumes.iter().find(|v| v.id == volume.id && v.epoch == volume.epoch)?;
                known.replicas.iter().find(|replica| replica.region == of).cloned()
            });
            said.next()
        };
        let of = |region: &String| {
            let by_home = words(&|by| by == volume.home, region);
            let by_itself = words(&|by| by == region, region);
            match (by_home, by_itself) {
                (Some(home), Some(own)) => {
                    Replica { copying: own.copying, chunks_awaited: own.chunks_awaited, ..home }
                }
                (Some(known), None) | (None, Some(known)) => known,
                (None, None) => Replica {
                    region: region.clone(),
                    trouble: format!("neither {} nor {region} tells of it", volume.home),
                    ..Replica::default()
                },
            }
        };
        volume.replicas = volume.regions.iter().filter(|region| **region != volume.home).map(of).collect();
        // By its own word, else by the home's.
        let mut letting_go = BTreeMap::new();
        for (by, reply) in &told {
            let known = reply.volumes.iter().find(|known| known.id == volume.id);
            for of in known.iter().flat_map(|known| &known.letting_go) {
                if *by == of.region {
                    letting_go.insert(of.region.clone(), of.clone());
                } else if *by == volume.home {
                    letting_go.entry(of.region.clone()).or_insert_with(|| of.clone());
                }
            }
        }
        // Only the home's leader knows.
        let by_home = told.iter().filter(|(by, _)| *by == volume.home).flat_map(|(_, reply)| &reply.volumes);
        let mut of_it = by_home.filter(|v| v.id == volume.id && v.epoch == volume.epoch);
        (volume.tail_ms, volume.held) = of_it.next().map_or((None, false), |home| (home.tail_ms, home.held));
        letting_go.retain(|region, _| !volume.regions.contains(region));
        volume.letting_go = letting_go.into_values().collect();
    }
    volumes
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::LogPlace;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn volume(geo: bool, sync_set: &[&str], behind_ms: Option<u64>) -> Volume {
        let replica = Replica {
            region: "b".into(),
            epoch: 1,
            version: 7,
            behind_ms,
            complete: Some(LogPlace { epoch: 1, version: 7 }),
            complete_behind_ms: behind_ms,
            ..Replica::default()
        };
        Volume {
            home: "a".into(),
            epoch: 1,
            open: true,
            geo,
            regions: names(&["a", "b"]),
            sync_set: names(sync_set),
            automatic: true,
            replicas: vec![replica],
            ..Volume::default()
        }
    }

    fn judged(volume: &Volume, region: &str, fatal: bool) -> (Survives, Then) {
        let outlook = lost(volume, region, fatal);
        (outlook.survives, outlook.then)
    }

    #[test]
    fn what_each_loss_means() {
        let region = volume(false, &["a"], Some(120));
        assert_eq!(judged(&region, "a", false), (Survives::AllBut(Some(120)), Then::FailsOver));
        assert!(lost(&region, "a", false).sentence.contains("0.120 s"), "{:?}", lost(&region, "a", false));
        assert_eq!(judged(&region, "b", false), (Survives::All, Then::GoesOn));
        assert_eq!(judged(&region, "w", true), (Survives::All, Then::Waits));
        assert_eq!(judged(&region, "a", true), (Survives::AllBut(Some(120)), Then::Waits));
        let whole = volume(false, &["a"], None);
        assert_eq!(judged(&whole, "a", false), (Survives::AllBut(Some(0)), Then::FailsOver));
        let unheard = Volume { replicas: vec![], ..whole.clone() };
        assert_eq!(judged(&unheard, "a", false), (Survives::AllBut(None), Then::FailsOver));
        let only = Volume { regions: names(&["a"]), replicas: vec![], ..whole.clone() };
        assert_eq!(judged(&only, "a", false), (Survives::Nothing, Then::Waits));
        let manual = Volume { automatic: false, ..whole };
        assert_eq!(judged(&manual, "a", false).1, Then::Waits);
        assert_eq!(judged(&manual, "w", true).1, Then::GoesOn, "it needs no lease");
        let blocks = Volume { blocks_alone: true, lag_max_ms: 60_000, ..region };
        assert_eq!(judged(&blocks, "b", false), (Survives::All, Then::WritersWait));
    }

    #[test]
    fn what_is_shown_without_its_data_would_be_lost() {
        // All entries are there, and the bytes that one of them names aren't.
        let mut lags = volume(false, &["a"], None);
        lags.replicas[0].complete = Some(LogPlace { epoch: 1, version: 3 });
        lags.replicas[0].complete_behind_ms = Some(4_000);
        assert_eq!(judged(&lags, "a", false), (Survives::AllBut(Some(4_000)), Then::FailsOver));
        assert!(failover_loses(&lags).contains("4.000 s would be lost"), "{}", failover_loses(&lags));
        assert_eq!(lost(&lags, "a", false).shape()["lost_ms"], 4_000);
        // Whoever is complete furthest follows, whatever others show.
        let further = Replica {
            region: "c".into(),
            epoch: 1,
            version: 5,
            behind_ms: Some(900),
            complete: Some(LogPlace { epoch: 1, version: 5 }),
            complete_behind_ms: Some(900),
            ..Replica::default()
        };
        lags.replicas.push(further);
        assert!(failover_loses(&lags).contains("0.900 s would be lost, which c lacks"));
        lags.replicas.pop();
        // What is older than the home's leader nobody can say the age of.
        lags.replicas[0].complete_behind_longer = true;
        assert_eq!(judged(&lags, "a", false).0, Survives::AllBut(None));
        // Nor is it known what an earlier release says nothing of.
        lags.replicas[0].complete = None;
        assert_eq!(judged(&lags, "a", false).0, Survives::AllBut(None));
    }

    #[test]
    fn a_geo_volume_loses_nothing_as_long_as_somebody_is_in_its_sync_set() {
        let full = volume(true, &["a", "b"], Some(60));
        assert_eq!(judged(&full, "a", false), (Survives::All, Then::FailsOver));
        assert_eq!(judged(&full, "b", false), (Survives::All, Then::GoesOn));
        let blocks = Volume { blocks_alone: true, ..full.clone() };
        assert_eq!(judged(&blocks, "b", false), (Survives::All, Then::FlushesWait));
        assert_eq!(judged(&full, "a", true), (Survives::All, Then::Waits));
        let alone = volume(true, &["a"], Some(60));
        assert_eq!(judged(&alone, "a", false), (Survives::AllBut(Some(60)), Then::Waits));
        assert!(failover_loses(&full).starts_with("Nothing"));
    }

    #[test]
    fn what_several_masters_say_is_put_together() {
        let mut by_home = volume(false, &["a"], Some(5));
        by_home.replicas[0].version = 9;
        let mut own = volume(false, &["a"], None);
        (own.replicas[0].chunks_awaited, own.replicas[0].version) = (3, 8);
        let of = |volume: Volume, version| ListVolumesReply { version, volumes: vec![volume] };
        let told = vec![("b".to_owned(), of(own.clone(), 4)), ("a".to_owned(), of(by_home, 4))];
        let merged_of = |told| merged(told).remove(0).replicas;
        let both = merged_of(told);
        assert_eq!((both[0].version, both[0].chunks_awaited, both[0].behind_ms), (9, 3, Some(5)));
        assert_eq!(merged_of(vec![("b".to_owned(), of(own.clone(), 4))])[0].version, 8);
        own.replicas.clear();
        let silent = merged_of(vec![("b".to_owned(), of(own, 4))]);
        assert!(silent[0].trouble.contains("neither a nor b"));
    }
}
