//! What `mooseng status` says of a cluster of several regions: the verdict over all of them, each region, each volume.

use mooseng_wire::admin::{ListRegionsReply, Region, StatusReply, Volume};
use serde_json::{Value, json};

use crate::outlook::{self, Outlook, Survives};
use crate::output::{self, Table};
use crate::verdict::{self, Level, Verdict};
use crate::{regions, volume};

/// What masters of all regions said.
#[derive(Debug, Default)]
pub struct Wide {
    /// The regions as one master knows them.
    pub regions: ListRegionsReply,
    /// The volumes, with how far replicas are.
    pub volumes: Vec<Volume>,
    /// What the leader of each region says, by the region's name; of a region that isn't reached, nothing.
    pub leaders: Vec<(String, StatusReply)>,
}

impl Wide {
    fn losses(&self, of: &Volume) -> Vec<Outlook> {
        let names: Vec<String> = self.regions.regions.iter().map(|region| region.name.clone()).collect();
        outlook::of(of, &names, &self.regions.fatal)
    }

    fn leader(&self, region: &str) -> Option<&StatusReply> {
        self.leaders.iter().find(|(name, _)| name == region).map(|(_, reply)| reply)
    }

    /// The verdict over the cluster; `own` is that over the asked region.
    pub fn judge(&self, own: &Verdict) -> Verdict {
        // Nothing that other regions have helps whoever works in a region that doesn't serve.
        if own.level == Level::Critical || self.volumes.is_empty() {
            return Verdict { level: own.level, sentence: own.sentence.clone(), next: own.next.clone() };
        }
        if !self.regions.quorum {
            let sentence = "The regions can't agree on anything: the global group has no leader with a majority, and a volume whose home is lost waits.";
            return Verdict {
                level: Level::Critical,
                sentence: sentence.to_owned(),
                next: Some("mooseng regions list".to_owned()),
            };
        }
        let lost = |of: &Volume| self.losses(of).into_iter().find(|loss| loss.survives != Survives::All);
        let at_risk = self.volumes.iter().find_map(|of| Some((of, lost(of)?)));
        let (level, sentence, next) = match at_risk {
            Some((of, loss)) => {
                let sentence = format!(
                    "Not every acknowledged write survives the loss of a region. If {} were lost, of volume {}: {}",
                    loss.region,
                    volume::name(of),
                    loss.sentence
                );
                // A volume that is as it is meant to be is nothing to be warned of.
                let (level, next) = match of.geo {
                    true => (Level::Warning, format!("mooseng volume info {}", volume::name(of))),
                    false => (
                        Level::Ok,
                        format!("mooseng volume set {} --durability geo --plan", volume::name(of)),
                    ),
                };
                (level, sentence, Some(next))
            }
            None => self.thin(),
        };
        Verdict { level: level.max(own.level), sentence, next: own.next.clone().or(next) }
    }

    /// Everything acknowledged survives: is that all?
    fn thin(&self) -> (Level, String, Option<String>) {
        let all = "Every acknowledged write survives the loss of any one region";
        if let Some(region) = self.regions.fatal.first() {
            let sentence = format!("{all}, but without {region} the regions couldn't agree on who goes on.");
            return (Level::Warning, sentence, Some("mooseng regions list".to_owned()));
        }
        let short = self.volumes.iter().find(|v| v.sync_set.len() < v.regions.len());
        match short {
            Some(of) => {
                let missing = of.regions.iter().filter(|region| !of.sync_set.contains(region));
                let missing: Vec<&str> = missing.map(String::as_str).collect();
                let sentence = format!(
                    "{all}; {} isn't in the sync set of volume {} yet.",
                    missing.join(", "),
                    volume::name(of)
                );
                (Level::Warning, sentence, Some(format!("mooseng volume info {}", volume::name(of))))
            }
            None => (Level::Ok, format!("{all}."), None),
        }
    }

    /// The parts of the page.
    pub fn page(&self) -> Vec<String> {
        let mut parts = vec![regions::survives(&self.regions), self.table()];
        for of in &self.volumes {
            parts.push(volume::table(std::slice::from_ref(of)));
            parts.push(volume::replicas(of));
            let mut lines = vec![format!("A failover right now: {}", outlook::failover_loses(of))];
            lines.extend(
                self.losses(of).iter().map(|loss| format!("If {} were lost: {}", loss.region, loss.sentence)),
            );
            parts.push(lines.join("\n"));
        }
        parts
    }

    fn table(&self) -> String {
        let mut table = Table::new([
            "REGION",
            "KIND",
            "LEASE",
            "LEADER",
            "CHUNKSERVERS",
            "FREE",
            "ROUND TRIP",
            "FINDINGS",
        ]);
        for region in &self.regions.regions {
            let told = self.leader(&region.name);
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            table.row([
                region.name.clone(),
                regions::kind(region).to_owned(),
                regions::lease(region),
                or_dash(told.and_then(leader)),
                or_dash(told.map(|reply| format!("{} of {}", alive(reply), reply.chunkservers.len()))),
                or_dash(told.map(|reply| output::bytes(free(reply)))),
                or_dash(round_trip(region).map(|us| format!("{:.1} ms", us as f64 / 1_000.0))),
                match told {
                    None => "no leader answers".to_owned(),
                    Some(reply) => findings(reply).join(" "),
                },
            ]);
        }
        table.render()
    }

    /// `regions` and `volumes` in JSON.
    pub fn shape(&self) -> (Value, Value) {
        let region = |region: &Region| {
            let told = self.leader(&region.name);
            json!({
                "name": region.name, "witness": region.witness, "lease_age_ms": region.lease_age_ms, "lease_ran_out": region.lease_ran_out,
                "reached": told.is_some(), "leader": told.and_then(leader), "round_trip_us": round_trip(region),
                "chunkservers": told.map(|reply| reply.chunkservers.len()), "chunkservers_alive": told.map(alive),
                "bytes_free": told.map(free), "findings": told.map(findings),
            })
        };
        let of = |of: &Volume| {
            let losses: Vec<Value> = self.losses(of).iter().map(Outlook::shape).collect();
            json!({ "volume": volume::shape(of), "failover_now": outlook::failover_loses(of), "losses": losses })
        };
        let regions: Vec<Value> = self.regions.regions.iter().map(region).collect();
        let volumes: Vec<Value> = self.volumes.iter().map(of).collect();
        (json!(regions), json!(volumes))
    }
}

fn leader(reply: &StatusReply) -> Option<String> {
    verdict::has_leader(reply).then(|| reply.masters.iter().find(|m| m.leader).map(|m| m.name.clone()))?
}

fn alive(reply: &StatusReply) -> usize {
    reply.chunkservers.iter().filter(|c| c.alive).count()
}

fn free(reply: &StatusReply) -> u64 {
    reply.chunkservers.iter().flat_map(|c| &c.disks).map(|disk| disk.bytes_free).sum()
}

/// The nearest of its masters, from the master that was asked about regions.
fn round_trip(region: &Region) -> Option<u64> {
    region.masters.iter().filter_map(|m| m.round_trip_us).min()
}

fn findings(reply: &StatusReply) -> Vec<String> {
    let codes: std::collections::BTreeSet<String> = reply.findings.iter().map(|f| f.code.clone()).collect();
    codes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{LogPlace, MasterStatus, RegionMaster, Replica};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn own() -> Verdict {
        Verdict { level: Level::Ok, sentence: "x".into(), next: None }
    }

    fn wide(geo: bool, sync_set: &[&str]) -> Wide {
        let replica = Replica {
            region: "b".into(),
            epoch: 1,
            complete: Some(LogPlace { epoch: 1, version: 7 }),
            complete_behind_ms: Some(250),
            ..Replica::default()
        };
        let root = Volume {
            home: "a".into(),
            epoch: 1,
            open: true,
            automatic: true,
            geo,
            regions: names(&["a", "b"]),
            sync_set: names(sync_set),
            replicas: vec![replica],
            ..Volume::default()
        };
        let region = |name: &str| Region {
            name: name.into(),
            witness: name == "w",
            masters: vec![RegionMaster { round_trip_us: Some(60_100), ..RegionMaster::default() }],
            ..Region::default()
        };
        let master = MasterStatus { id: 1, name: "m1".into(), leader: true, ..MasterStatus::default() };
        let reply = StatusReply { leader: 1, masters: vec![master], ..StatusReply::default() };
        Wide {
            regions: ListRegionsReply {
                version: 3,
                quorum: true,
                regions: ["a", "b", "w"].map(region).into(),
                ..ListRegionsReply::default()
            },
            volumes: vec![root],
            leaders: vec![("a".into(), reply)],
        }
    }

    #[test]
    fn the_verdict_says_what_survives_the_loss_of_a_region() {
        let full = wide(true, &["a", "b"]).judge(&own());
        assert_eq!(full.sentence, "Every acknowledged write survives the loss of any one region.");
        assert_eq!((full.level, full.next), (Level::Ok, None));
        let alone = wide(true, &["a"]).judge(&own());
        assert_eq!((alone.level, alone.next.as_deref()), (Level::Warning, Some("mooseng volume info /")));
        let region = wide(false, &["a"]).judge(&own());
        assert_eq!(
            (region.level, region.next.as_deref()),
            (Level::Ok, Some("mooseng volume set / --durability geo --plan"))
        );
        assert!(
            region.sentence.contains("If a were lost") && region.sentence.contains("0.250 s"),
            "{}",
            region.sentence
        );
    }

    #[test]
    fn a_cluster_that_could_not_agree_is_no_safe_one() {
        let mut fatal = wide(true, &["a", "b"]);
        fatal.regions.fatal = names(&["a"]);
        let verdict = fatal.judge(&own());
        assert_eq!(verdict.level, Level::Warning);
        assert!(verdict.sentence.contains("without a the regions couldn't agree"), "{}", verdict.sentence);
        fatal.regions.quorum = false;
        assert_eq!(fatal.judge(&own()).level, Level::Critical);
        let critical = Verdict { level: Level::Critical, sentence: "waits".into(), next: None };
        assert_eq!(fatal.judge(&critical).sentence, "waits");
    }

    #[test]
    fn regions_and_volumes_are_shown() {
        let text = wide(true, &["a", "b"]).page().join("\n\n");
        for part in [
            "60.1 ms",
            "m1",
            "no leader answers",
            "A failover right now: Nothing acknowledged would be lost",
            "If w were lost",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let (regions, volumes) = wide(true, &["a", "b"]).shape();
        assert_eq!(
            (regions[0]["leader"].as_str(), regions[1]["reached"].as_bool()),
            (Some("m1"), Some(false))
        );
        assert_eq!(volumes[0]["losses"][0]["then"], "fails_over");
    }
}
