//! Storage classes: how many copies data gets, and on which chunkservers. Class 0, the default, has no record: it is what the masters'
//! configuration says.
//!
//! Ids from [`CLUSTER_FIRST`] on are of classes that the regions have agreed on: what a volume has under them are copies of what the global group says
//! (docs/decisions/0039-classes-of-the-cluster.md). Lower ones are the volume's own, of a cluster without a global group, or from before there were others.

use mooseng_store::KeyRange;
use mooseng_wire::VolumeId;

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// The id of the class that the masters' configuration describes.
pub const DEFAULT: u32 = 0;
/// Its name.
pub const DEFAULT_NAME: &str = "default";
/// The least id of a class of the cluster; those below are a volume's own.
pub const CLUSTER_FIRST: u32 = 1 << 16;
/// Copies that a class asks for at most.
pub const COPIES_MAX: u32 = 16;
/// Labels of one class at most.
pub const LABELS_MAX: usize = 16;
/// Bytes of a name, and of a label's key and value, at most.
pub const NAME_BYTES_MAX: usize = 64;

/// Whether a class is one of the cluster, whose definition a volume has a copy of.
pub fn is_of_cluster(class: u32) -> bool {
    class >= CLUSTER_FIRST
}

/// Why a class can't be as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The default class isn't a record.
    #[error(
        "the class {DEFAULT_NAME:?} is what the masters' configuration says (`copies`, `min_copies`): it is changed there, and can't be removed"
    )]
    Default,
    /// A name, or a part of a label, isn't one.
    #[error(
        "{0:?} can't be a class' name or part of a label: take 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores"
    )]
    BadWord(String),
    /// The numbers don't fit.
    #[error(
        "{copies} copies, at least {min_copies}: there must be 1 to {COPIES_MAX} copies, and between 1 and so many at least"
    )]
    BadCopies {
        /// Copies.
        copies: u32,
        /// At least.
        min_copies: u32,
    },
    /// A label's key comes twice, or there are too many labels.
    #[error("a class has at most {LABELS_MAX} labels, each with a key of its own")]
    BadLabels,
}

/// A storage class. Its id is its key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StorageClassRecord {
    /// What people call it, unique among the cluster's, and among a volume's own.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Copies of a chunk.
    #[prost(uint32, tag = "2")]
    pub copies: u32,
    /// Fewer than these won't do for a chunk that is written.
    #[prost(uint32, tag = "3")]
    pub min_copies: u32,
    /// Labels that a chunkserver must have, all of them, to hold a copy. In the order of their keys.
    #[prost(message, repeated, tag = "4")]
    pub labels: Vec<Label>,
    /// When it was made or changed last.
    #[prost(sfixed64, tag = "5")]
    pub set_ns: i64,
    /// It is being deleted: nothing is assigned it any more.
    #[prost(bool, tag = "6")]
    pub leaving: bool,
}

/// What is to change of a class; what isn't said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Copies.
    pub copies: Option<u32>,
    /// At least.
    pub min_copies: Option<u32>,
    /// All labels.
    pub labels: Option<Vec<Label>>,
}

fn is_word(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed)
}

impl StorageClassRecord {
    /// Refuses the default class, which is no record.
    pub fn is_changeable(name: &str) -> Result<(), Unfit> {
        if name == DEFAULT_NAME { Err(Unfit::Default) } else { Ok(()) }
    }

    /// A class as it may be on record: its labels in the order of their keys.
    pub fn checked(mut self) -> Result<Self, Unfit> {
        Self::is_changeable(&self.name)?;
        let labels = self.labels.iter().flat_map(|label| [&label.key, &label.value]);
        if let Some(bad) = [&self.name].into_iter().chain(labels).find(|word| !is_word(word)) {
            return Err(Unfit::BadWord(bad.clone()));
        }
        let (copies, min_copies) = (self.copies, self.min_copies);
        if !(1..=COPIES_MAX).contains(&copies) || !(1..=copies).contains(&min_copies) {
            return Err(Unfit::BadCopies { copies, min_copies });
        }
        self.labels.sort_by(|a, b| a.key.cmp(&b.key));
        if self.labels.len() > LABELS_MAX || self.labels.windows(2).any(|pair| pair[0].key == pair[1].key) {
            return Err(Unfit::BadLabels);
        }
        Ok(self)
    }

    /// The class with what is to change of it, at that time (Unix, nanoseconds).
    pub fn with(self, change: &Change, now_ns: i64) -> Result<Self, Unfit> {
        let before = self.clone();
        let now = Self {
            copies: change.copies.unwrap_or(self.copies),
            min_copies: change.min_copies.unwrap_or(self.min_copies),
            labels: change.labels.clone().unwrap_or_else(|| self.labels.clone()),
            ..self
        };
        let now = now.checked()?;
        Ok(if now == before { now } else { Self { set_ns: now_ns, ..now } })
    }
}

/// A label.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

impl Record for StorageClassRecord {
    const NAME: &'static str = "storage class";
}

/// A class' key.
pub fn key(volume: VolumeId, class: u32) -> Vec<u8> {
    volume_key(volume, VolumeTag::StorageClass, &(class,))
}

/// All classes of a volume.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::StorageClass, &())
}

/// The class in a key of [`range`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<u32, SchemaError> {
    let (class, _): (u32, u64) = parse_volume_key(volume, VolumeTag::StorageClass, key)?;
    Ok(class)
}

/// The key of the highest id that was ever given to a class of the volume's own ([`crate::number`]): ids aren't given twice, for chunks remember theirs.
pub fn highest_key(volume: VolumeId) -> Vec<u8> {
    volume_key(volume, VolumeTag::StorageClassHighest, &())
}

/// The key of the version of the cluster's classes of which the volume has copies ([`crate::number`]); it only grows.
pub fn copied_key(volume: VolumeId) -> Vec<u8> {
    volume_key(volume, VolumeTag::StorageClassesCopied, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let label = Label { key: "m".into(), value: "ssd".into() };
        let class = StorageClassRecord {
            name: "fast".into(),
            copies: 3,
            min_copies: 2,
            labels: vec![label],
            set_ns: 1,
            leaving: false,
        };
        golden(&class, "010a04666173741003180222080a016d1203737364290100000000000000");
        let leaving = StorageClassRecord { leaving: true, ..class };
        golden(&leaving, "010a04666173741003180222080a016d12037373642901000000000000003001");
        assert_eq!(hex(&key(VolumeId(0), 7)), "02760014151615071 4".replace(' ', ""));
        assert_eq!(hex(&highest_key(VolumeId(0))), "0276001415171 4".replace(' ', ""));
        assert_eq!(hex(&copied_key(VolumeId(0))), "02760014151b1 4".replace(' ', ""));
    }

    #[test]
    fn what_a_class_may_be() {
        let label = |key: &str| Label { key: key.into(), value: "x".into() };
        let class = StorageClassRecord {
            name: "fast-1.0_a".into(),
            copies: 3,
            min_copies: 2,
            labels: vec![label("m"), label("b")],
            set_ns: 1,
            leaving: false,
        };
        let sorted = class.clone().checked().unwrap();
        assert_eq!(sorted.labels.iter().map(|l| l.key.as_str()).collect::<Vec<_>>(), ["b", "m"]);
        for name in ["", "a b", "a=b", "ä", &"a".repeat(NAME_BYTES_MAX + 1)] {
            let bad = StorageClassRecord { name: name.into(), ..class.clone() };
            assert_eq!(bad.checked(), Err(Unfit::BadWord(name.into())));
        }
        assert_eq!(
            StorageClassRecord { name: DEFAULT_NAME.into(), ..class.clone() }.checked(),
            Err(Unfit::Default)
        );
        for (copies, min_copies) in [(0, 0), (2, 0), (2, 3), (COPIES_MAX + 1, 1)] {
            let bad = StorageClassRecord { copies, min_copies, ..class.clone() };
            assert_eq!(bad.checked(), Err(Unfit::BadCopies { copies, min_copies }));
        }
        let twice = StorageClassRecord { labels: vec![label("b"), label("b")], ..class.clone() };
        assert_eq!(twice.checked(), Err(Unfit::BadLabels));
        let many = (0..=LABELS_MAX).map(|n| label(&format!("l{n}"))).collect();
        assert_eq!(StorageClassRecord { labels: many, ..class }.checked(), Err(Unfit::BadLabels));
        // Nothing is set anew where nothing changes.
        let same =
            Change { copies: Some(3), labels: Some(vec![label("m"), label("b")]), ..Change::default() };
        assert_eq!(sorted.clone().with(&same, 9), Ok(sorted.clone()));
        let more = Change { copies: Some(4), ..Change::default() };
        assert_eq!(
            sorted.clone().with(&more, 9),
            Ok(StorageClassRecord { copies: 4, set_ns: 9, ..sorted.clone() })
        );
        assert!(sorted.with(&Change { min_copies: Some(4), ..Change::default() }, 9).is_err());
    }

    proptest! {
        #[test]
        fn round_trips(name in "[a-z]{1,9}", copies: u32, min_copies: u32, set_ns: i64, leaving: bool, class: u32, labels in prop::collection::vec(("[a-z]{1,9}", "[a-z]{1,9}"), 0..4)) {
            let labels = labels.into_iter().map(|(key, value)| Label { key, value }).collect();
            round_trip(&StorageClassRecord { name, copies, min_copies, labels, set_ns, leaving });
            prop_assert_eq!(parse_key(VolumeId(3), &key(VolumeId(3), class)).unwrap(), class);
        }
    }
}
