//! Storage classes as placement and repair go by them. Labels are strict: a copy lies on a chunkserver that has all of its class' labels, or waits
//! where it is until it can.

use std::collections::BTreeMap;

use crate::placement::Candidate;

/// Labels, by their keys.
pub type Labels = BTreeMap<String, String>;

/// The id of the default class.
pub const DEFAULT: u32 = 0;

/// A storage class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Copies of a chunk.
    pub copies: usize,
    /// Fewer than these won't do for a chunk that is written.
    pub min_copies: usize,
    /// What a chunkserver must be labelled with to hold a copy.
    pub labels: Labels,
}

impl Class {
    /// The default class: what the configuration says.
    pub fn by_default(copies: usize, min_copies: usize) -> Self {
        Self { id: DEFAULT, name: "default".into(), copies, min_copies, labels: Labels::new() }
    }

    /// Its labels as people write them.
    pub fn labelled(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.join(",")
    }

    /// A new chunk of it, in words.
    pub fn new_chunk(&self) -> String {
        if self.id == DEFAULT {
            "a new chunk".into()
        } else {
            format!("a new chunk of class {:?}", self.name)
        }
    }
}

/// Whether a chunkserver has all of these labels.
pub fn fits(labels: &Labels, candidate: &Candidate) -> bool {
    has(&candidate.labels, labels)
}

/// Whether some labels contain others.
pub fn has(all: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| all.get(key) == Some(value))
}

/// All classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    default: Class,
    others: BTreeMap<u32, Class>,
}

impl Classes {
    /// The default one alone.
    pub fn new(default: Class) -> Self {
        Self { default, others: BTreeMap::new() }
    }

    /// Sets the others.
    pub fn set(&mut self, others: impl IntoIterator<Item = Class>) {
        self.others = others.into_iter().map(|class| (class.id, class)).collect();
    }

    /// A class; the default one in place of one that isn't known: it was removed, and what still has it follows its files.
    pub fn get(&self, id: u32) -> &Class {
        self.others.get(&id).unwrap_or(&self.default)
    }

    /// Whether there are others than the default one.
    pub fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// All of them, the default one first.
    pub fn iter(&self) -> impl Iterator<Item = &Class> {
        std::iter::once(&self.default).chain(self.others.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_gone_is_as_the_default() {
        let mut classes = Classes::new(Class::by_default(2, 1));
        assert!(!classes.are_several());
        let fast = Class {
            id: 4,
            name: "fast".into(),
            copies: 3,
            min_copies: 2,
            labels: Labels::from([("media".into(), "ssd".into()), ("a".into(), "b".into())]),
        };
        classes.set([fast.clone()]);
        assert_eq!(classes.get(4), &fast);
        assert_eq!((classes.get(0).copies, classes.get(5).copies), (2, 2));
        assert_eq!(classes.iter().map(|class| class.id).collect::<Vec<_>>(), [0, 4]);
        assert_eq!(fast.labelled(), "a=b,media=ssd");
        assert_eq!(fast.new_chunk(), "a new chunk of class \"fast\"");
        assert_eq!(classes.get(0).new_chunk(), "a new chunk");
    }
}
