//! The feature level of the cluster (docs/decisions/0042-feature-level.md): what may be written that masters of some releases don't know.
//!
//! It has a record of its own: masters of releases before it, which write the cluster's record without what they don't know of it, leave it alone.

use std::collections::BTreeMap;

use mooseng_schema::{SchemaError, number};
use mooseng_store::{Read, Transaction};
use mooseng_wire::level::{Below, Feature, FeatureLevel, Levels};

use super::{Ruled, changed, cluster, regions, version};
use crate::key;
use crate::view::Region;

/// What masters told that they support, by region and id; those that haven't told are missing.
pub type Told = BTreeMap<(String, u64), Levels>;

/// A master that stands in a level's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Its region.
    pub region: String,
    /// Its name.
    pub master: String,
    /// What it supports; none where that isn't known.
    pub told: Option<Levels>,
}

impl std::fmt::Display for Lacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { region, master, told } = self;
        match told {
            Some(levels) => write!(f, "{region}/{master} supports {levels}"),
            None => write!(f, "{region}/{master} doesn't answer, so that nobody knows what it supports"),
        }
    }
}

/// Why the level isn't raised, or something takes a higher one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// Something takes a higher one.
    #[error(transparent)]
    Below(#[from] Below),
    /// Not all masters support it.
    #[error(
        "the cluster can't be raised from feature level {present} to {to}: {}. Start each with a release that supports it; a master that is gone for good is taken out first (`mooseng members remove`, or `mooseng regions remove` for a whole region)",
        said(.lacking)
    )]
    Lacking {
        /// Where the cluster is.
        present: FeatureLevel,
        /// Where it was to be.
        to: FeatureLevel,
        /// Those that stand in the way.
        lacking: Vec<Lacking>,
    },
}

fn said(lacking: &[Lacking]) -> String {
    lacking.iter().map(Lacking::to_string).collect::<Vec<_>>().join("; ")
}

/// The level that the cluster is at: 0 where it was never raised, and not founded by a release that knows of levels.
pub async fn level(tx: &impl Transaction, read: Read) -> Ruled<FeatureLevel> {
    let known = number::decode(tx.get(&key::level(), read).await?.as_ref())?;
    let level = u32::try_from(known);
    let damaged = |_| SchemaError::damaged("feature level", format!("it is {known}"));
    Ok(FeatureLevel(level.map_err(damaged)?))
}

/// Refuses what takes a higher level than the cluster is at.
pub async fn require(tx: &impl Transaction, feature: Feature) -> Ruled<()> {
    let level = level(tx, Read::Conflicting).await?;
    Ok(level.require(feature).map_err(LevelError::from)?)
}

/// The level that a cluster begins with.
pub(super) fn begin(tx: &impl Transaction, level: FeatureLevel) {
    tx.set(&key::level(), &number::encode(level.0.into()));
}

/// The level that the cluster may be raised to: the one that is asked for, or else the highest that all masters support, which is the present one where none
/// supports a higher one. Refused where a master, up or down, doesn't support it or hasn't told.
pub fn plan(
    regions: &BTreeMap<String, Region>,
    told: &Told,
    present: FeatureLevel,
    asked: Option<FeatureLevel>,
) -> Result<FeatureLevel, LevelError> {
    let of = |(name, region): (&String, &Region)| {
        let seat = |m: &crate::view::MasterAt| Lacking {
            region: name.clone(),
            master: m.name.clone(),
            told: told.get(&(name.clone(), m.id)).copied(),
        };
        region.masters.iter().map(seat).collect::<Vec<_>>()
    };
    let all: Vec<Lacking> = regions.iter().flat_map(of).collect();
    let highest = || all.iter().filter_map(|master| master.told).map(|levels| levels.highest);
    let next = FeatureLevel(present.0.saturating_add(1));
    let to = asked.unwrap_or_else(|| match (highest().min(), highest().max()) {
        (Some(common), _) if common > present => common,
        (_, Some(best)) if best > present => next,
        _ => present,
    });
    if to <= present {
        return Ok(present);
    }
    let lacks = |master: &Lacking| !master.told.is_some_and(|levels| levels.include(to));
    let lacking: Vec<Lacking> = all.into_iter().filter(lacks).collect();
    match lacking.is_empty() {
        true => Ok(to),
        false => Err(LevelError::Lacking { present, to, lacking }),
    }
}

/// Raises the level, as [`plan`] says; answers the level that the cluster is at then, and the version. Raised already, it changes nothing; it never goes down.
pub async fn raise(
    tx: &impl Transaction,
    asked: Option<FeatureLevel>,
    told: &Told,
) -> Ruled<(FeatureLevel, u64)> {
    cluster(tx).await?;
    let present = level(tx, Read::Conflicting).await?;
    // Read for the conflict, too: a master that comes in between counts.
    let to = plan(&regions(tx, Read::Conflicting).await?, told, present, asked)?;
    if to == present {
        return Ok((present, version(tx, Read::Conflicting).await?));
    }
    begin(tx, to);
    Ok((to, changed(tx).await?))
}
