//! Changes that follow from others.

use bytes::Bytes;

use super::Change;
use crate::KeyRange;

/// Adds to each transaction, where it is applied, changes that follow from its own: a volume's log is written so. Every copy of a store
/// applies the same changes in the same order, so what is derived must depend on them, and on what a copy holds under
/// [`governed_by`](Self::governed_by), alone.
pub trait Derive: Send {
    /// The keys that say what is derived.
    fn governed_by(&self) -> KeyRange;
    /// Begins with a store in which these are the pairs under those keys.
    fn reset(&mut self, pairs: Vec<(Bytes, Bytes)>);
    /// What follows from the changes of the transaction with that version. Called once for each, in the order of versions.
    fn derive(&mut self, version: u64, changes: &[Change]) -> Vec<Change>;
}
