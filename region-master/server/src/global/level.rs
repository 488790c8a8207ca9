//! The feature level (docs/decisions/0042-feature-level.md): what the masters of all regions support, as their hellos tell, and whom this one hears.
//!
//! ```text
//!  every master --asks every other one, every two seconds (status::probe)--> what it supports, by the hello of that connection
//!  administrator --RaiseLevel--> any master --GlobalChange--> the leader: asks all of them anew, then changes the record
//! ```
//! What a connection's hello told is true as long as it lasts: another release is another process.

use std::collections::BTreeMap;

use mooseng_global::rules::level::{self as rules, LevelError, Told};
use mooseng_global::{Region, View, voters};
use mooseng_region::findings::LevelFacts;
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::Identity;
use mooseng_wire::admin::{ClusterLevelReply, MasterLevels, RaiseLevelReply, RaiseLevelRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{Changed, RaiseLevel};
use mooseng_wire::level::{FeatureLevel, Levels, Unsupported};
use tokio::time::Instant;

use super::serve::{refused, transact};
use super::{Global, lock};
use crate::errors::denied;
use crate::server::StartError;

/// A master of some region, and what it told.
struct Master {
    region: String,
    id: u64,
    name: String,
    told: Option<Levels>,
    reachable: bool,
}

/// What came with the levels behind `before`, up to `level`.
fn allows(before: FeatureLevel, level: FeatureLevel) -> Vec<String> {
    let levels = (before.0.saturating_add(1)..=level.0.min(Levels::OURS.highest.0)).map(FeatureLevel);
    levels.flat_map(FeatureLevel::brings).map(|feature| feature.what().to_owned()).collect()
}

impl Global {
    /// What this master supports.
    pub fn supports(&self) -> Levels {
        self.network.levels()
    }

    /// Refuses to go by what the regions have agreed on where this release doesn't support their level.
    pub fn is_supported(&self) -> Result<(), Unsupported> {
        self.supports_view(&self.view.borrow())
    }

    pub(super) fn supports_view(&self, view: &View) -> Result<(), Unsupported> {
        // Before anything is agreed on there is no level.
        if view.version == 0 { Ok(()) } else { self.supports().support(view.level) }
    }

    /// The same of what lies in this master's store, before it takes part in anything.
    pub(super) async fn supports_stored(&self) -> Result<(), StartError> {
        let tx = self.store.begin();
        tx.set_read_version(self.store.applied_version());
        let founded = mooseng_global::rules::version(&tx, Read::Snapshot).await? > 0;
        let level = rules::level(&tx, Read::Snapshot).await?;
        if founded {
            self.supports().support(level)?;
        }
        Ok(())
    }

    /// Hears no master whose release doesn't support the level: whatever it said would rest on what it can't read. Those that are from before levels can't know
    /// that by themselves.
    pub fn hears(&self, master: &Identity, levels: Levels) -> Result<(), CallError> {
        let view = self.view.borrow();
        if view.version == 0 {
            return Ok(());
        }
        levels.support(view.level).map_err(|unsupported| denied(format!("{master} {unsupported}")))
    }

    /// Whether a master told that it supports the level; none before it has told anything.
    pub(super) fn supports_level(&self, node: u64) -> Option<bool> {
        let told = lock(&self.probed).get(&node).and_then(|probed| probed.levels())?;
        Some(told.include(self.view.borrow().level))
    }

    fn masters(&self, view: &View) -> Vec<Master> {
        let probed = lock(&self.probed);
        let of = |(name, region): (&String, &Region)| {
            let master = |m: &mooseng_global::MasterAt| {
                let of = probed.get(&voters::node_id(region.number, m.id));
                let own = m.address == self.address;
                Master {
                    region: name.clone(),
                    id: m.id,
                    name: m.name.clone(),
                    told: if own { Some(self.supports()) } else { of.and_then(|probed| probed.levels()) },
                    reachable: own || of.and_then(|probed| probed.reachable()) == Some(true),
                }
            };
            region.masters.iter().map(master).collect::<Vec<_>>()
        };
        view.regions.iter().flat_map(of).collect()
    }

    /// This master's own levels, and what the others answered just now.
    fn told_now(&self, answers: &BTreeMap<u64, Levels>) -> Told {
        let view = self.view();
        let mut told = Told::new();
        for (name, region) in &view.regions {
            for master in &region.masters {
                let own = (master.address == self.address).then(|| self.supports());
                let levels = own.or_else(|| answers.get(&voters::node_id(region.number, master.id)).copied());
                told.extend(levels.map(|levels| ((name.clone(), master.id), levels)));
            }
        }
        told
    }

    /// Those that answer, with what they told. Of those that don't nobody knows which release they will be of when they do again.
    fn told(masters: &[Master]) -> Told {
        let answer = masters.iter().filter(|master| master.reachable);
        answer.filter_map(|master| Some(((master.region.clone(), master.id), master.told?))).collect()
    }

    /// What administrators see of it.
    pub fn cluster_level(&self) -> ClusterLevelReply {
        let view = self.view();
        let masters = self.masters(&view);
        let plan = rules::plan(&view.regions, &Self::told(&masters), view.level, None);
        let raisable = plan.as_ref().ok().copied().filter(|to| *to > view.level);
        let shown = |master: Master| MasterLevels {
            region: master.region,
            id: master.id,
            name: master.name,
            lowest: master.told.map(|levels| levels.lowest.0),
            highest: master.told.map(|levels| levels.highest.0),
            reachable: master.reachable,
        };
        ClusterLevelReply {
            version: view.version,
            level: view.level.0,
            asked: self.region.clone(),
            masters: masters.into_iter().map(shown).collect(),
            raisable: raisable.map(|to| to.0),
            allows: raisable.map(|to| allows(view.level, to)).unwrap_or_default(),
            in_the_way: plan.err().map(|error| error.to_string()).unwrap_or_default(),
        }
    }

    /// What findings are made of.
    pub(super) fn level_facts(&self, view: &View) -> LevelFacts {
        let masters = self.masters(view);
        let mut by_levels: BTreeMap<(FeatureLevel, FeatureLevel), Vec<String>> = BTreeMap::new();
        let mut outdated = Vec::new();
        for master in masters.iter().filter(|master| master.reachable) {
            let Some(levels) = master.told else { continue };
            let name = format!("{}/{}", master.region, master.name);
            if let Err(unsupported) = levels.support(view.level) {
                outdated.push((name.clone(), format!("It {unsupported}.")));
            }
            by_levels.entry((levels.lowest, levels.highest)).or_default().push(name);
        }
        let listed = |((lowest, highest), names): (&(FeatureLevel, FeatureLevel), &Vec<String>)| {
            let levels = Levels { lowest: *lowest, highest: *highest };
            format!("{levels}: {}", names.join(", "))
        };
        let differ = by_levels.len() > 1 && outdated.is_empty();
        let raisable = rules::plan(&view.regions, &Self::told(&masters), view.level, None);
        LevelFacts {
            level: view.level.0,
            raisable: raisable.ok().filter(|to| *to > view.level).map(|to| to.0),
            differ: differ.then(|| by_levels.iter().map(listed).collect::<Vec<_>>().join("; ")),
            outdated,
        }
    }

    /// As the leader: raises the level, or finds out whether it could. All masters are asked now: one may have been started with another release a moment ago.
    pub(super) async fn raise_here(&self, asked: RaiseLevel, commit: bool) -> Result<Changed, CallError> {
        let answers = self.ask_all().await.into_iter();
        let answers: BTreeMap<u64, Levels> =
            answers.filter_map(|(node, answered)| Some((node, answered?.1?))).collect();
        let (told, to) = (&self.told_now(&answers), asked.to.map(FeatureLevel));
        let raised = match commit {
            true => {
                transact(&self.store, |tx| async move {
                    let raised = rules::raise(&tx, to, told).await?;
                    Ok((tx, raised))
                })
                .await
            }
            // A transaction that isn't committed changes nothing.
            false => rules::raise(&self.store.begin(), to, told).await,
        };
        let (level, version) = raised.map_err(|e| refused(self, e))?;
        if commit {
            tracing::info!(%level, version, "the cluster is at this feature level");
        }
        let version = if commit { version } else { self.view().version };
        Ok(Changed { version, level: Some(level.0), ..Changed::default() })
    }

    /// An administrator raises the level, or asks whether it could be raised.
    pub async fn raise(
        &self,
        asked: &RaiseLevelRequest,
        deadline: Instant,
    ) -> Result<RaiseLevelReply, CallError> {
        let before = self.view().level;
        let raise = RaiseLevel { to: asked.to };
        let change = if asked.plan { Change::CheckRaise(raise) } else { Change::RaiseLevel(raise) };
        let changed = self.change(change, deadline).await?;
        let level = FeatureLevel(changed.level.unwrap_or(before.0));
        // This master's copy may lag, and the change may have been made before.
        let before = before.min(level);
        Ok(RaiseLevelReply {
            version: changed.version,
            before: before.0,
            level: level.0,
            allows: allows(before, level),
        })
    }
}

/// A refusal, as callers are told: nothing of it passes by itself.
pub(super) fn code(error: &LevelError) -> ErrorCode {
    match error {
        LevelError::Below(_) | LevelError::Lacking { .. } => ErrorCode::InvalidRequest,
    }
}
