//! What a thread's directory must hold: the model, and what each operation does to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An operation, with everything that is needed to know its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A new file with one record.
    Create {
        /// Its name.
        name: String,
        /// Its number, which stays through renames.
        file: u64,
        /// Index into the record sizes.
        class: usize,
        /// The record's generation.
        generation: u64,
    },
    /// One more record at the end.
    Append {
        /// The file.
        name: String,
        /// The record's generation.
        generation: u64,
    },
    /// A record over an old one.
    Overwrite {
        /// The file.
        name: String,
        /// Which record.
        slot: u64,
        /// The new record's generation.
        generation: u64,
    },
    /// A new file with one record, renamed over an old one.
    Replace {
        /// The file that is replaced.
        name: String,
        /// The new file's number.
        file: u64,
        /// Index into the record sizes.
        class: usize,
        /// The record's generation.
        generation: u64,
    },
    /// Another name.
    Rename {
        /// The old one.
        name: String,
        /// The new one.
        to: String,
    },
    /// Removes a file.
    Unlink {
        /// Its name.
        name: String,
    },
    /// Cuts a file to so many records.
    Truncate {
        /// The file.
        name: String,
        /// How many remain.
        slots: u64,
    },
    /// Reads a file and compares it.
    Check {
        /// The file.
        name: String,
    },
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileModel {
    /// Its number.
    pub file: u64,
    /// Index into the record sizes.
    pub class: usize,
    /// The generation of each record.
    pub slots: Vec<u64>,
}

/// Files by name.
pub type Model = BTreeMap<String, FileModel>;

/// The name that a replacement has before it is renamed.
pub fn temporary(name: &str) -> String {
    format!("{name}.tmp")
}

/// What the operation makes of the model.
pub fn apply(model: &mut Model, op: &Op) {
    match op {
        Op::Create { name, file, class, generation } | Op::Replace { name, file, class, generation } => {
            model.insert(name.clone(), FileModel { file: *file, class: *class, slots: vec![*generation] });
        }
        Op::Append { name, generation } => {
            if let Some(f) = model.get_mut(name) {
                f.slots.push(*generation);
            }
        }
        Op::Overwrite { name, slot, generation } => {
            if let Some(s) = model.get_mut(name).and_then(|f| f.slots.get_mut(*slot as usize)) {
                *s = *generation;
            }
        }
        Op::Rename { name, to } => {
            if let Some(f) = model.remove(name) {
                model.insert(to.clone(), f);
            }
        }
        Op::Unlink { name } => {
            model.remove(name);
        }
        Op::Truncate { name, slots } => {
            if let Some(f) = model.get_mut(name) {
                f.slots.truncate(*slots as usize);
            }
        }
        Op::Check { .. } => {}
    }
}

/// Every state that may be found when the operation was unanswered: not done, done, and half done where it has halves.
pub fn possible(model: &Model, op: Option<&Op>) -> Vec<Model> {
    let mut states = vec![model.clone()];
    let Some(op) = op else { return states };
    let mut done = model.clone();
    apply(&mut done, op);
    states.push(done);
    if let Op::Create { name, file, class, .. } = op {
        let mut empty = model.clone();
        empty.insert(name.clone(), FileModel { file: *file, class: *class, slots: vec![] });
        states.push(empty);
    }
    states
}

/// The record that an unanswered write was about to put into a file, and where.
///
/// A `write()` that was cut short by the end of its process may have reached the file up to some byte, in order, as on a local
/// filesystem: the kernel hands it to a mount in pieces. Anything else is torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The file's name.
    pub name: String,
    /// What it held before.
    pub before: FileModel,
    /// Which record was written.
    pub slot: u64,
    /// Its generation.
    pub generation: u64,
}

/// What may be half written, if anything.
pub fn partial(model: &Model, op: &Op) -> Option<Partial> {
    let of = |name: &str, slot: Option<u64>, generation: u64| {
        let before = model.get(name)?.clone();
        let slot = slot.unwrap_or(before.slots.len() as u64);
        Some(Partial { name: name.to_owned(), before, slot, generation })
    };
    let fresh = |name: String, file: u64, class: usize, generation: u64| {
        Some(Partial { name, before: FileModel { file, class, slots: vec![] }, slot: 0, generation })
    };
    match op {
        Op::Append { name, generation } => of(name, None, *generation),
        Op::Overwrite { name, slot, generation } => of(name, Some(*slot), *generation),
        Op::Create { name, file, class, generation } => fresh(name.clone(), *file, *class, *generation),
        Op::Replace { name, file, class, generation } => fresh(temporary(name), *file, *class, *generation),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_change_the_model() {
        let mut model = Model::new();
        let create = Op::Create { name: "a".into(), file: 1, class: 0, generation: 1 };
        assert_eq!(possible(&model, Some(&create)).len(), 3);
        apply(&mut model, &create);
        apply(&mut model, &Op::Append { name: "a".into(), generation: 2 });
        apply(&mut model, &Op::Overwrite { name: "a".into(), slot: 0, generation: 3 });
        assert_eq!(model["a"].slots, [3, 2]);
        apply(&mut model, &Op::Truncate { name: "a".into(), slots: 1 });
        apply(&mut model, &Op::Rename { name: "a".into(), to: "b".into() });
        assert_eq!(model["b"].slots, [3]);
        apply(&mut model, &Op::Replace { name: "b".into(), file: 2, class: 1, generation: 4 });
        assert_eq!(model["b"], FileModel { file: 2, class: 1, slots: vec![4] });
        apply(&mut model, &Op::Unlink { name: "b".into() });
        assert!(model.is_empty());
    }
}
