//! `mooseng volume set`.

use mooseng_wire::admin::{ListRegionsReply, SetVolumeReply, SetVolumeRequest, StatusReply, Volume};
use serde_json::{Value, json};

use super::{Named, durability, failover, lag_max, name, on_sync_loss};
use crate::args::{Durability, Failover, Format, OnSyncLoss, VolumeSet};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::outlook::{self, Outlook};
use crate::{admin, output, plan};

/// Changes it, or says what would change.
pub fn run(args: &VolumeSet) -> Result<(), Failure> {
    let named = Named::parse(&args.volume)?;
    if args.regions.iter().any(String::is_empty) {
        return Err(Failure::usage(
            "--regions has an empty name: say A,B, all regions that are to have the volume.",
        ));
    }
    let file = ClientFile::load(&args.config)?;
    let request = request(args, named.number(&file)?);
    let changed = admin::block_on(async {
        let reply = admin::set_volume(&file, request).await?;
        let (regions, volumes) = admin::cluster(&file).await?;
        // Only for how much would be copied; a plan without it is one, too.
        let status = admin::status(&file).await.ok().map(|answered| answered.reply);
        Change::of(reply, &regions, volumes, status.as_ref())
    })?;
    match args.output.format {
        Format::Json => output::json(&changed.shape(args.plan)),
        Format::Table => output::text_line(&changed.text(args.plan)),
    }
}

fn request(args: &VolumeSet, volume: u32) -> SetVolumeRequest {
    SetVolumeRequest {
        volume,
        geo: args.durability.map(|durability| durability == Durability::Geo),
        automatic: args.failover.map(|failover| failover == Failover::Auto),
        lag_max_ms: args.lag_max.map(|most| u64::try_from(most.as_millis()).unwrap_or(u64::MAX)),
        blocks_alone: args.on_sync_loss.map(|loss| loss == OnSyncLoss::Block),
        regions: args.regions.clone(),
        plan: args.plan,
    }
}

/// A change, made or planned.
struct Change {
    before: Volume,
    after: Volume,
    version: u64,
    /// Regions that get a copy, with how long a message takes to them and back, in microseconds, as the asked region sees it.
    copied_to: Vec<(String, Option<u64>)>,
    /// Bytes of the files that are to be copied to each.
    bytes: Option<u64>,
    /// What each loss means before, and once the change is in effect.
    losses: Vec<(Outlook, Outlook)>,
}

impl Change {
    fn of(
        reply: SetVolumeReply,
        regions: &ListRegionsReply,
        volumes: Vec<Volume>,
        status: Option<&StatusReply>,
    ) -> Result<Self, Failure> {
        let (Some(mut before), Some(mut after)) = (reply.before, reply.after) else {
            return Err(Failure::failed("The master's answer doesn't say what the volume is like."));
        };
        // A region counts the chunks of all volumes that it has: what one of them is like is known only of the only one, where it is whole.
        let of_it = status.filter(|status| volumes.len() == 1 && status.region == before.home);
        let bytes = of_it.and_then(|status| status.house.as_ref()).map(|house| house.bytes_live);
        let replicas = volumes.into_iter().find(|v| v.id == after.id).map(|v| v.replicas).unwrap_or_default();
        for volume in [&mut before, &mut after] {
            let of = replicas.iter().filter(|replica| volume.regions.contains(&replica.region));
            volume.replicas = of.cloned().collect();
        }
        let in_effect = Volume {
            // Each region that has the volume is taken in once it has caught up.
            sync_set: if after.geo { after.regions.clone() } else { after.sync_set.clone() },
            ..after.clone()
        };
        let new = after.regions.iter().filter(|region| !before.regions.contains(region));
        let round_trip = |name: &String| {
            let region = regions.regions.iter().find(|region| region.name == *name)?;
            region.masters.iter().filter_map(|m| m.round_trip_us).min()
        };
        let losses = regions.regions.iter().map(|region| {
            let fatal = regions.fatal.contains(&region.name);
            (outlook::lost(&before, &region.name, fatal), outlook::lost(&in_effect, &region.name, fatal))
        });
        Ok(Self {
            copied_to: new.map(|region| (region.clone(), round_trip(region))).collect(),
            bytes,
            losses: losses.collect(),
            version: reply.version,
            before,
            after,
        })
    }

    fn text(&self, planned: bool) -> String {
        let mut lines = vec![self.settings(planned)];
        let would = if planned { "would be" } else { "is" };
        for (region, round_trip) in &self.copied_to {
            let bytes = self.bytes.map_or(" and its chunks".to_owned(), |bytes| {
                format!(", {} of chunks", output::bytes(bytes))
            });
            let way = plan::way(*round_trip);
            lines.push(format!(
                "The whole volume {would} copied from {} to {region}{way}: its metadata{bytes}. Until that is done {region} counts for nothing.",
                self.after.home
            ));
        }
        lines.extend(self.taken_out(planned));
        if self.after.geo && self.after.sync_set.len() < self.after.regions.len() {
            let missing = self.after.regions.iter().filter(|region| !self.after.sync_set.contains(region));
            let missing: Vec<&str> = missing.map(String::as_str).collect();
            lines.push(format!(
                "In the sync set {would} {}; {} is taken in once it has caught up, and until then fsync doesn't wait for it.",
                self.after.sync_set.join(", "),
                missing.join(", ")
            ));
        }
        lines.extend(plan::before_and_after(&self.losses, "once this is in effect"));
        lines.push(format!(
            "A failover right now: {}",
            outlook::failover_loses(if planned { &self.before } else { &self.after })
        ));
        if planned {
            lines.push(plan::NOTHING_CHANGED.to_owned());
        }
        lines.join("\n")
    }

    /// What becomes of what regions have that are taken out.
    fn taken_out(&self, plan: bool) -> Vec<String> {
        let out = self.before.regions.iter().filter(|region| !self.after.regions.contains(region));
        let mut lines: Vec<String> = out
            .map(|region| {
                format!(
                    "{region} {} changes of it any more, and can't take it over. What {region} has of it stays for a while (an hour, unless house.let_go_after_s of its masters says something else), as long as another of the volume's regions lacks any of it or {home} has fewer healthy copies of a chunk than its storage class asks for, and goes then: records first, then copies of chunks. What was put aside there stays. Added again before that, {region} gets no chunk anew that it has; later it gets all of them.",
                    if plan { "wouldn't be sent" } else { "isn't sent" },
                    home = self.after.home,
                )
            })
            .collect();
        let new: Vec<&str> = self.copied_to.iter().map(|(region, _)| region.as_str()).collect();
        if let (false, false, true) = (lines.is_empty(), new.is_empty(), plan) {
            let all: Vec<&str> =
                self.before.regions.iter().map(String::as_str).chain(new.iter().copied()).collect();
            lines.push(format!(
                "Until {new} has its copy, fewer regions than now have what is written meanwhile. To never have fewer, add {new} first (--regions {all}), and take the others out once `mooseng volume info` says that {new} follows.",
                new = new.join(", "),
                all = all.join(","),
            ));
        }
        lines
    }

    fn settings(&self, plan: bool) -> String {
        let (before, after) = (&self.before, &self.after);
        let rows = [
            ("durability", durability(before).to_owned(), durability(after).to_owned()),
            ("failover", failover(before).to_owned(), failover(after).to_owned()),
            ("on sync loss", on_sync_loss(before).to_owned(), on_sync_loss(after).to_owned()),
            ("lag_max", lag_max(before), lag_max(after)),
            ("regions", before.regions.join(","), after.regions.join(",")),
        ];
        let changes: Vec<String> = rows
            .iter()
            .filter(|(_, before, after)| before != after)
            .map(|(what, before, after)| format!("{what} {before} -> {after}"))
            .collect();
        match (changes.is_empty(), plan) {
            (true, _) => format!("Volume {} is like that already: nothing changes.", name(after)),
            (false, true) => format!("Volume {} would change: {}.", name(after), changes.join("; ")),
            (false, false) => format!("Changed volume {}: {}.", name(after), changes.join("; ")),
        }
    }

    fn shape(&self, plan: bool) -> Value {
        let copied = |(region, us): &(String, Option<u64>)| json!({ "region": region, "round_trip_us": us });
        let losses = |(before, after): &(Outlook, Outlook)| json!({ "before": before.shape(), "after": after.shape() });
        json!({
            "version": output::VERSION, "agreed_version": self.version, "plan": plan,
            "before": super::shape(&self.before), "after": super::shape(&self.after),
            "copied_to": self.copied_to.iter().map(copied).collect::<Vec<_>>(), "chunk_bytes": self.bytes,
            "taken_out": self.before.regions.iter().filter(|r| !self.after.regions.contains(r)).collect::<Vec<_>>(),
            "losses": self.losses.iter().map(losses).collect::<Vec<_>>(),
            "failover_now": outlook::failover_loses(if plan { &self.before } else { &self.after }),
        })
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{HouseStatus, Region, RegionMaster};

    use super::*;

    fn change() -> Change {
        changed(vec![], None)
    }

    fn changed(volumes: Vec<Volume>, status: Option<&StatusReply>) -> Change {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let before = Volume {
            home: "a".into(),
            epoch: 1,
            open: true,
            automatic: true,
            regions: names(&["a"]),
            sync_set: names(&["a"]),
            ..Volume::default()
        };
        let after = Volume { geo: true, regions: names(&["a", "b"]), ..before.clone() };
        let reply = SetVolumeReply { version: 7, before: Some(before), after: Some(after) };
        let master = RegionMaster { round_trip_us: Some(60_200), ..RegionMaster::default() };
        let region =
            |name: &str| Region { name: name.into(), masters: vec![master.clone()], ..Region::default() };
        let regions = ListRegionsReply {
            regions: ["a", "b", "w"].map(region).into(),
            fatal: vec![],
            quorum: true,
            ..ListRegionsReply::default()
        };
        Change::of(reply, &regions, volumes, status).unwrap()
    }

    #[test]
    fn what_would_be_copied_is_told_where_it_is_known() {
        let house = HouseStatus { bytes_live: 3 << 40, ..HouseStatus::default() };
        let of = |region: &str| StatusReply {
            region: region.into(),
            house: Some(house),
            ..StatusReply::default()
        };
        let volumes = |n: u32| (0..n).map(|id| Volume { id, ..Volume::default() }).collect::<Vec<_>>();
        let told = changed(volumes(1), Some(&of("a"))).text(true);
        assert!(told.contains("its metadata, 3.0 TiB of chunks."), "{told}");
        for (volumes, region) in [(volumes(2), "a"), (volumes(1), "w")] {
            let told = changed(volumes, Some(&of(region)));
            assert!(told.text(true).contains("its metadata and its chunks."), "{}", told.text(true));
            assert!(told.shape(true)["chunk_bytes"].is_null());
        }
    }

    #[test]
    fn a_plan_says_what_is_copied_and_what_survives_which_loss() {
        let text = change().text(true);
        for part in [
            "Volume / would change: durability region -> geo; regions a -> a,b.",
            "would be copied from a to b (round trip 60.2 ms)",
            "If a were lost, before: Everything would be lost",
            "If a were lost, once this is in effect: Nothing acknowledged would be lost: b has it. b would take over by itself.",
            "A failover right now: Everything would be lost",
            "Nothing was changed.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        let shape = change().shape(true);
        assert_eq!(shape["copied_to"][0]["region"], "b");
        assert_eq!(shape["losses"][0]["after"]["survives"], "all");
    }

    #[test]
    fn what_becomes_of_a_region_that_is_taken_out_is_said() {
        let mut replaced = change();
        replaced.before.regions = vec!["a".into(), "c".into()];
        let text = replaced.text(true);
        for part in ["c wouldn't be sent changes of it any more", "Until b has its copy", "(--regions a,c,b)"]
        {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        replaced.copied_to.clear();
        assert!(!replaced.text(true).contains("Until b"));
        assert!(replaced.text(false).contains("c isn't sent changes of it any more"));
        assert_eq!(replaced.shape(true)["taken_out"], json!(["c"]));
    }

    #[test]
    fn what_is_done_is_said_and_nothing_is_said_to_be_done_twice() {
        assert!(change().text(false).starts_with("Changed volume /: durability region -> geo"));
        let mut same = change();
        same.before = same.after.clone();
        assert!(same.text(false).starts_with("Volume / is like that already"));
    }
}
