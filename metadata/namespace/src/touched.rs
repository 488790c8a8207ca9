//! What an operation changes, noted where it writes the records: the facts that the custodian recalls before the commit (DESIGN section 6), and
//! what counts more or less for whom, which it compares with limits. And what it looked at, noted where records are read: what a session holds back of
//! that must be told before anybody hears the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use mooseng_schema::quota::{Account, Charge, Usage};
use mooseng_wire::InodeId;
use mooseng_wire::fact::Fact;

/// What changes of accounts by one run of an operation.
pub type Charges = BTreeMap<Account, Usage>;

/// What was touched by one run of an operation.
#[derive(Debug, Default)]
pub struct Touched {
    facts: Mutex<BTreeSet<Fact>>,
    looked: Mutex<BTreeSet<Fact>>,
    accounts: Mutex<Accounts>,
}

#[derive(Debug, Default)]
struct Accounts {
    /// What inodes count as the store has them in this transaction; those that aren't here count nothing.
    counted: BTreeMap<InodeId, Charge>,
    charges: Charges,
}

impl Touched {
    /// This fact changes when the transaction commits.
    pub fn note(&self, fact: Fact) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).insert(fact);
    }

    /// What the operation answers rests on this fact.
    pub(crate) fn look(&self, fact: Fact) {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(fact);
    }

    /// The facts that were looked at up to here: an answer rests on them, a refusal too.
    pub fn looked(&self) -> BTreeSet<Fact> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An inode was read, which counts so much.
    pub(crate) fn counts(&self, inode: InodeId, charge: Charge) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).counted.insert(inode, charge);
    }

    /// From now on an inode counts so much, or nothing. Answers what is to be added for whom.
    pub(crate) fn recount(&self, inode: InodeId, charge: Option<Charge>) -> Charges {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match charge {
            Some(charge) => accounts.counted.insert(inode, charge),
            None => accounts.counted.remove(&inode),
        };
        let charges = difference(before, charge);
        for (account, usage) in &charges {
            let sum = accounts.charges.entry(*account).or_default();
            *sum = sum.plus(*usage);
        }
        charges
    }

    /// What has changed up to here counts, and isn't compared with limits.
    pub(crate) fn forgive(&self) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).charges.clear();
    }

    /// What is to be added, for whom. Without those for whom nothing changes.
    pub fn charges(&self) -> Charges {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = accounts.charges.iter().filter(|(_, usage)| !usage.is_zero());
        changed.map(|(account, usage)| (*account, *usage)).collect()
    }

    /// All facts.
    pub fn into_facts(self) -> BTreeSet<Fact> {
        self.facts.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be added for whom where an inode counted `before` and counts `after`.
pub(crate) fn difference(before: Option<Charge>, after: Option<Charge>) -> Charges {
    let mut charges = Charges::new();
    if before == after {
        return charges;
    }
    for charge in after.iter() {
        for (account, usage) in charge.shares() {
            let sum = charges.entry(account).or_default();
            *sum = sum.plus(usage);
        }
    }
    for charge in before.iter() {
        for (account, usage) in charge.shares() {
            let sum = charges.entry(account).or_default();
            *sum = sum.minus(usage);
        }
    }
    charges.retain(|_, usage| !usage.is_zero());
    charges
}
