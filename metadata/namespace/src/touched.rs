//! The facts that an operation changes, noted where it writes the records: what the custodian recalls before the commit (DESIGN section 6).

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use mooseng_wire::fact::Fact;

/// Facts that were touched by one run of an operation.
#[derive(Debug, Default)]
pub struct Touched(Mutex<BTreeSet<Fact>>);

impl Touched {
    /// This fact changes when the transaction commits.
    pub fn note(&self, fact: Fact) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(fact);
    }

    /// All of them.
    pub fn into_facts(self) -> BTreeSet<Fact> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
