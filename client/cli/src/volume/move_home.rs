//! `mooseng volume move-home`.

use std::time::{Duration, Instant};

use mooseng_wire::admin::{ListRegionsReply, LogPlace, MoveHomeReply, MoveHomeRequest, Replica, Volume};
use serde_json::{Value, json};

use super::{Named, name};
use crate::args::{Format, VolumeMove};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::outlook::{self, Outlook};
use crate::{admin, output, plan};

/// How long it is looked whether the new home takes changes.
const SERVES_WITHIN: Duration = Duration::from_secs(15);
/// And how often.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Moves it, or says what would happen.
pub fn run(args: &VolumeMove) -> Result<(), Failure> {
    let named = Named::parse(&args.volume)?;
    let file = ClientFile::load(&args.config)?;
    let moved = admin::block_on(async {
        let (regions, volumes) = admin::cluster(&file).await?;
        let found = named.find(&volumes)?.clone();
        let volume = found.id;
        // Where the home is given up, the next one sees to it.
        let asked = masters_of(&regions, if args.force { &args.to } else { &found.home });
        if args.force && asked.is_empty() {
            return Err(Failure::not_found(format!(
                "There is no region {}; `mooseng regions list` names those that there are.",
                args.to
            )));
        }
        let (to, loses_synced) = (args.to.clone(), args.although_it_loses_what_was_synced);
        let request = MoveHomeRequest { volume, to, plan: args.plan, force: args.force, loses_synced };
        let reply = admin::move_home(&file, &asked, request).await.map_err(|failure| {
            // Only where nobody answers: a home that refuses is there, and says what --force would do.
            if args.force || failure.kind() != Kind::Unavailable {
                return failure;
            }
            let (home, to) = (&found.home, &args.to);
            Failure::unavailable(format!(
                "{failure} Where {home} is lost, `mooseng volume move-home {} --to {to} --force --plan` says what giving it up would mean.",
                args.volume
            ))
        })?;
        if !args.plan {
            serves(&file, volume, &args.to).await?;
        }
        Move::of(reply, &regions, found)
    })?;
    match (args.output.format, args.force) {
        (Format::Json, force) => output::json(&moved.shape(args.plan, force)),
        (Format::Table, false) => output::text_line(&moved.text(args.plan)),
        (Format::Table, true) => output::text_line(&moved.forced_text(args.plan)),
    }
}

pub(super) fn masters_of(regions: &ListRegionsReply, name: &str) -> Vec<String> {
    let of = regions.regions.iter().find(|region| region.name == name);
    of.into_iter().flat_map(|region| region.masters.iter().map(|m| m.address.clone())).collect()
}

/// Waits until the masters of the new home know that they are.
async fn serves(file: &ClientFile, volume: u32, to: &str) -> Result<(), Failure> {
    let until = Instant::now() + SERVES_WITHIN;
    loop {
        let (_, volumes) = admin::cluster(file).await?;
        let known = volumes.into_iter().find(|known| known.id == volume);
        // Its leader tells of replicas once it is the home.
        if known.is_some_and(|known| known.home == to && known.open) || Instant::now() >= until {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A move, made or planned.
struct Move {
    before: Volume,
    after: Volume,
    reply: MoveHomeReply,
    /// How long a message takes to the new home and back, in microseconds, as the asked region sees it.
    round_trip_us: Option<u64>,
    /// Chunks of which the new home has yet to fetch bytes.
    chunks_awaited: u64,
    /// What each loss means before and after.
    losses: Vec<(Outlook, Outlook)>,
}

impl Move {
    fn of(reply: MoveHomeReply, regions: &ListRegionsReply, known: Volume) -> Result<Self, Failure> {
        let (Some(mut before), Some(mut after)) = (reply.before.clone(), reply.after.clone()) else {
            return Err(Failure::failed("The master's answer doesn't say what the volume is like."));
        };
        let target = known.replicas.iter().find(|replica| replica.region == after.home).cloned();
        before.replicas.clone_from(&known.replicas);
        // The old home has everything that the new one begins with, and the others go on from where they are.
        after.replicas =
            known.replicas.iter().filter(|replica| replica.region != after.home).cloned().collect();
        after.replicas.push(Replica {
            region: before.home.clone(),
            epoch: before.epoch,
            // All of it, wherever that ends.
            complete: Some(LogPlace { epoch: after.epoch, version: 0 }),
            ..Default::default()
        });
        let region = regions.regions.iter().find(|region| region.name == after.home);
        let round_trip_us =
            region.and_then(|region| region.masters.iter().filter_map(|m| m.round_trip_us).min());
        let losses = regions.regions.iter().map(|region| {
            let fatal = regions.fatal.contains(&region.name);
            (outlook::lost(&before, &region.name, fatal), outlook::lost(&after, &region.name, fatal))
        });
        Ok(Self {
            losses: losses.collect(),
            round_trip_us,
            chunks_awaited: target.map_or(0, |replica| replica.chunks_awaited),
            before,
            after,
            reply,
        })
    }

    fn text(&self, planned: bool) -> String {
        let (from, to) = (&self.before.home, &self.after.home);
        let mut lines = Vec::new();
        let way = plan::way(self.round_trip_us);
        if planned {
            lines.push(format!(
                "The home of volume {} would move from {from} to {to}{way}.",
                name(&self.after)
            ));
            let lacks = match self.reply.behind_ms {
                None => format!("Right now {to} lacks nothing of what was written"),
                Some(ms) => format!(
                    "Right now {to} lacks what was written in the last {}, or its data",
                    outlook::seconds(ms)
                ),
            };
            let chunks = match self.chunks_awaited {
                0 => String::new(),
                n => format!(", and has bytes of {n} chunks to fetch"),
            };
            lines.push(format!(
                "{lacks}{chunks}. It gets what it lacks as ever, while {from} still takes changes; then {from} stops, {to} gets the last of them with their data, and changes go on there: for some round trips they wait, and none fails or is lost. Nothing else is copied."
            ));
        } else {
            let stopped = outlook::seconds(self.reply.stopped_ms);
            lines.push(format!(
                "The home of volume {} is {to}, in epoch {}. {from} had stopped for {stopped} when that was agreed on; nothing was lost.",
                name(&self.after),
                self.after.epoch
            ));
        }
        lines.push(format!(
            "{} copies before, during and after, in {}: {from} keeps its copy and follows {to}.",
            self.after.regions.len(),
            self.after.regions.join(", ")
        ));
        if self.after.geo {
            let during = "During it every fsync that returned is in the sync set, as ever";
            lines.push(format!("{during}: {}.", self.after.sync_set.join(", ")));
        } else {
            lines.push(format!(
                "During it, from when {from} has stopped until {to} has the last change, a loss of {from} is what it is before; then both have everything."
            ));
        }
        lines.extend(plan::before_and_after(&self.losses, "after"));
        if planned {
            lines.push(plan::NOTHING_CHANGED.to_owned());
        }
        lines.join("\n")
    }

    /// The same of a home that is given up.
    fn forced_text(&self, planned: bool) -> String {
        let (from, to, named) = (&self.before.home, &self.after.home, name(&self.after));
        let mut lines = Vec::new();
        if planned {
            lines.push(format!(
                "The home {from} of volume {named} would be given up, whether it is there or not, and {to} would go on from what it has, in epoch {}.",
                self.after.epoch
            ));
        } else {
            let cut = self.reply.cut.as_ref().map(|cut| format!(", behind {}/{}", cut.epoch, cut.version));
            lines.push(format!(
                "The home of volume {named} is {to}, in epoch {}{}. {from} was given up.",
                self.after.epoch,
                cut.unwrap_or_default()
            ));
        }
        let is_member = self.before.geo && self.before.sync_set.contains(to);
        let would = if planned { "would be" } else { "is" };
        lines.push(match (is_member, self.reply.behind_ms) {
            (true, _) => format!("{to} is in the sync set: nothing that fsync has covered {would} lost. What was answered otherwise and {to} lacks {would}."),
            (false, Some(ms)) => format!(
                "What {from} acknowledged and {to} lacks {would} lost: {to} had everything that there was {} ago, data included, and may have some of what came after.",
                outlook::seconds(ms)
            ),
            (false, None) => format!("What {from} acknowledged and {to} lacks {would} lost, and {to} doesn't know how much that is."),
        });
        if self.before.geo && !is_member {
            lines.push(format!(
                "{to} isn't in the sync set ({}): that {would} so for what fsync has covered, too. If one of these can still be had, give the home up for that one.",
                self.before.sync_set.join(", ")
            ));
        }
        let until = match self.before.automatic {
            true => "at the longest until its lease runs out",
            false => "for it fails over by command only and needs no lease",
        };
        lines.push(match planned {
            true => format!(
                "If {from} is well and merely can't be reached, it goes on until it hears of this, {until}; what it acknowledges then is lost, too. Once it comes back it puts aside what isn't in the volume (`mooseng salvage list`), and `mooseng volume losses {named}` names it."
            ),
            false => format!("`mooseng volume losses {named}` says what is known of it, and names it once {from} is back, which puts it aside (`mooseng salvage list`)."),
        });
        for (before, after) in &self.losses {
            if after.region == *to || before != after {
                lines.push(format!("If {} were lost, after: {}", after.region, after.sentence));
            }
        }
        if planned {
            lines.push(plan::NOTHING_CHANGED.to_owned());
        }
        lines.join("\n")
    }

    fn shape(&self, plan: bool, force: bool) -> Value {
        let losses = |(before, after): &(Outlook, Outlook)| json!({ "before": before.shape(), "after": after.shape() });
        let cut =
            self.reply.cut.as_ref().map(|cut| json!({ "log_epoch": cut.epoch, "log_version": cut.version }));
        json!({
            "version": output::VERSION, "agreed_version": self.reply.version, "plan": plan, "force": force,
            "before": super::shape(&self.before), "after": super::shape(&self.after),
            "behind_ms": self.reply.behind_ms, "round_trip_us": self.round_trip_us, "chunks_awaited": self.chunks_awaited,
            "stopped_ms": (!plan).then_some(self.reply.stopped_ms), "cut": cut,
            "losses": self.losses.iter().map(losses).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{Region, RegionMaster};

    use super::*;

    fn moved(geo: bool) -> Move {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let before = Volume {
            home: "a".into(),
            epoch: 1,
            open: true,
            automatic: true,
            geo,
            regions: names(&["a", "b"]),
            sync_set: names(if geo { &["a", "b"] } else { &["a"] }),
            ..Volume::default()
        };
        let after = Volume {
            home: "b".into(),
            epoch: 2,
            sync_set: names(if geo { &["a", "b"] } else { &["b"] }),
            ..before.clone()
        };
        // It has all entries.
        let replica = Replica {
            region: "b".into(),
            epoch: 1,
            version: 9,
            complete: Some(LogPlace { epoch: 1, version: 8 }),
            complete_behind_ms: Some(40),
            chunks_awaited: 2,
            ..Replica::default()
        };
        let known = Volume { replicas: vec![replica], ..before.clone() };
        let master = RegionMaster { round_trip_us: Some(60_200), ..RegionMaster::default() };
        let region =
            |name: &str| Region { name: name.into(), masters: vec![master.clone()], ..Region::default() };
        let regions = ListRegionsReply {
            regions: ["a", "b", "w"].map(region).into(),
            quorum: true,
            ..ListRegionsReply::default()
        };
        let reply = MoveHomeReply {
            version: 7,
            before: Some(before),
            after: Some(after),
            behind_ms: Some(40),
            stopped_ms: 180,
            cut: Some(LogPlace { epoch: 1, version: 12 }),
        };
        Move::of(reply, &regions, known).unwrap()
    }

    #[test]
    fn a_plan_says_what_would_be_sent_and_what_survives_which_loss() {
        let text = moved(false).text(true);
        for part in [
            "The home of volume / would move from a to b (round trip 60.2 ms).",
            "Right now b lacks what was written in the last 0.040 s, or its data, and has bytes of 2 chunks to fetch.",
            "2 copies before, during and after, in a, b",
            "If a were lost, before: Writes of the last 0.040 s would be lost, which b lacks, or whose data it lacks.",
            "If a were lost, after: Nothing acknowledged would be lost. b would go on.",
            "If b were lost, after: Right now nothing would be lost: a lacks nothing.",
            "Nothing was changed.",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert!(moved(true).text(true).contains("is in the sync set, as ever: a, b."));
    }

    #[test]
    fn giving_a_home_up_says_what_is_lost() {
        let lagging = moved(false).forced_text(true);
        for part in [
            "The home a of volume / would be given up",
            "b had everything that there was 0.040 s ago, data included",
            "at the longest until its lease runs out",
            "Nothing was changed.",
        ] {
            assert!(lagging.contains(part), "{part}\n\n{lagging}");
        }
        let member = moved(true).forced_text(false);
        assert!(
            member.starts_with("The home of volume / is b, in epoch 2, behind 1/12. a was given up."),
            "{member}"
        );
        assert!(member.contains("nothing that fsync has covered is lost"), "{member}");
        let mut other = moved(true);
        other.before.sync_set = vec!["a".into()];
        other.before.automatic = false;
        let other = other.forced_text(true);
        assert!(other.contains("b isn't in the sync set (a)") && other.contains("needs no lease"), "{other}");
    }

    #[test]
    fn a_move_says_how_long_it_stopped_and_where_it_cut() {
        let text = moved(true).text(false);
        assert!(
            text.starts_with("The home of volume / is b, in epoch 2. a had stopped for 0.180 s"),
            "{text}"
        );
        let shape = moved(true).shape(false, false);
        assert_eq!((&shape["after"]["home"], &shape["cut"]["log_version"]), (&json!("b"), &json!(12)));
    }
}
