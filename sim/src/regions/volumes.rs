//! The volumes of a run: the root, and in one seed of four a second one, whose home is another region than the root's at first.
//!
//! Whether there is one, and what it is like, is drawn by itself: seeds without it run as they do where nobody draws.

use std::collections::BTreeSet;

use mooseng_master::geo::ROOT_VOLUME;
use mooseng_wire::VolumeId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clients::Shared;
use super::homes::Homes;
use super::shape::Shape;

/// The second volume: numbers are given from 1 on, and there is one.
pub const SECOND: VolumeId = VolumeId(1);
/// The directory that it is joined at.
pub const NAME: &str = "second";
/// One seed in so many has it.
const ONE_IN: u32 = 4;
/// Of those without it, in one of so many an administrator moves the root's home.
const MOVES_ONE_IN: u32 = 6;

/// A volume of a run, and what is noted of it. Clones share the notes.
#[derive(Clone)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// The path of its root, without a slash at its end.
    pub path: String,
    /// It is a `geo` one.
    pub geo: bool,
    /// While its home is left alone, fsync waits.
    pub blocks_alone: bool,
    /// What mounts do in it, and see.
    pub notes: Shared,
    /// Who was its home when.
    pub homes: Homes,
}

/// What a run's second volume is like besides.
#[derive(Clone, Debug)]
pub struct Second {
    /// Its home at first.
    pub home: String,
    /// It is a `geo` one.
    pub geo: bool,
    /// While its home is left alone, fsync waits.
    pub blocks_alone: bool,
    /// An administrator moves homes of both volumes.
    pub moves: bool,
    /// And takes regions out of them, and in again.
    pub takes_out: bool,
}

impl Second {
    /// A seed's.
    pub fn of(seed: u64, shape: &Shape) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x2e_c09d);
        if rng.random_range(0..ONE_IN) > 0 {
            return None;
        }
        let first = shape.regions.first().map(|region| &region.name);
        let others: Vec<&String> =
            shape.with_data().map(|region| &region.name).filter(|name| Some(*name) != first).collect();
        Some(Self {
            home: others[rng.random_range(0..others.len())].clone(),
            geo: rng.random_range(0..4) > 0,
            blocks_alone: rng.random_range(0..3) == 0,
            moves: rng.random(),
            takes_out: rng.random::<bool>() && shape.with_data().count() > 2,
        })
    }
}

/// Whether an administrator moves the root's home in a run without a second volume: a seed's.
pub fn moves_alone(seed: u64) -> bool {
    StdRng::seed_from_u64(seed ^ 0x6d_07e5).random_range(0..MOVES_ONE_IN) == 0
}

/// The volumes of a run.
pub fn all(shape: &Shape, second: Option<&Second>) -> Vec<Volume> {
    let root = Volume {
        id: ROOT_VOLUME,
        path: String::new(),
        geo: shape.geo,
        blocks_alone: shape.blocks_alone,
        notes: Shared::default(),
        homes: Homes::of(ROOT_VOLUME),
    };
    let second = second.map(|second| Volume {
        id: SECOND,
        path: format!("/{NAME}"),
        geo: second.geo,
        blocks_alone: second.blocks_alone,
        notes: Shared::default(),
        homes: Homes::of(SECOND),
    });
    std::iter::once(root).chain(second).collect()
}

/// What an administrator did with homes and regions of a volume.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    /// So many moves were asked for.
    pub ordered: usize,
    /// Epochs from which the home was moved, by an answer.
    pub made: BTreeSet<u64>,
    /// So often a region was taken out of the volume, by an answer.
    pub taken_out: usize,
}
