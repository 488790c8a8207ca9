//! The engine's memory: what was applied and isn't in the base yet. Synchronous, without I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use mooseng_ports::plant::{self, Plant};
use mooseng_store::StoreError;
use mooseng_store::mvcc::{Change, Derive, Leases, Life, Watches, Window};

use crate::{ApplyOutcome, BasePosition, CommitBatch, CommitLog, Position};

/// How far the window moves into the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Versions that are past their life.
    Aged,
    /// Versions that no running transaction reads at.
    Unheld,
    /// All of them.
    All,
}

/// Most bytes that one write to the base moves, unless one entry has more.
const MOVE_BYTES_MAX: usize = 4 << 20;

/// This master's leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    pub term: u64,
    /// The version at which it began: older reads may have seen what this leader can't check.
    pub start: u64,
}

pub(crate) struct State {
    pub window: Window,
    /// The last applied version.
    pub version: u64,
    /// The last applied entry.
    pub position: Position,
    /// Entries above the base's position, oldest first, with the version after each. Only the last of those with the same version.
    pub entries: VecDeque<BasePosition>,
    /// Versions below it can't be read: the base may have moved on.
    pub floor: u64,
    /// Versions below it are past their life.
    pub aged: u64,
    pub leases: Leases,
    pub life: Life,
    pub watches: Watches,
    pub lead: Option<Lead>,
    pub log: Option<Arc<dyn CommitLog>>,
    /// What follows from changes, where anything does.
    pub derive: Option<Box<dyn Derive>>,
    /// Why nothing works any more.
    pub failed: Option<String>,
}

impl State {
    pub fn new(base: BasePosition, life: Life) -> Self {
        Self {
            window: Window::default(),
            version: base.version,
            position: base.position,
            entries: VecDeque::new(),
            floor: base.version,
            aged: 0,
            leases: Leases::default(),
            life,
            watches: Watches::default(),
            lead: None,
            log: None,
            derive: None,
            failed: None,
        }
    }

    /// Whether a version can be read.
    pub fn check(&self, version: u64) -> Result<(), StoreError> {
        if let Some(reason) = &self.failed {
            return Err(StoreError::Failed(reason.clone()));
        }
        if version < self.floor || self.lead.is_some_and(|lead| version < lead.start) {
            return Err(StoreError::TooOld);
        }
        if version > self.version { Err(StoreError::FutureVersion) } else { Ok(()) }
    }

    /// Whether this entry was applied before. Index zero is an entry only to a state that holds none.
    pub fn holds(&self, index: u64) -> bool {
        index <= self.position.index && self.position != Position::default()
    }

    /// Moves past an entry.
    pub fn advance(&mut self, position: Position) {
        if self.entries.back().is_some_and(|last| last.version == self.version) {
            self.entries.pop_back();
        }
        self.entries.push_back(BasePosition { position: position.clone(), version: self.version });
        self.position = position;
    }

    /// Makes a batch's changes, if it fits.
    pub fn apply(&mut self, term: u64, batch: CommitBatch) -> ApplyOutcome {
        let fits = batch.term == term && batch.base_version == self.version;
        if !fits && !plant::is(Plant::MismatchApplied) {
            return ApplyOutcome::Mismatch;
        }
        for (version, mut changes) in batch.transactions {
            if let Some(derive) = &mut self.derive {
                let derived = derive.derive(version, &changes);
                changes.extend(derived);
            }
            if !self.watches.is_empty() {
                self.watches.changed(&changes);
            }
            self.window.insert(version, changes);
            self.version = version;
        }
        ApplyOutcome::Applied
    }

    /// The next piece to move into the base. From now on versions below its version can't be read.
    pub fn next_move(&mut self, reach: Reach) -> Option<(Vec<Change>, BasePosition)> {
        let wanted = match reach {
            Reach::Aged => self.aged,
            Reach::Unheld => self.leases.oldest().unwrap_or(u64::MAX),
            Reach::All => u64::MAX,
        };
        let most = self.window.fold_limit(MOVE_BYTES_MAX).unwrap_or(u64::MAX);
        let first = self.entries.front().filter(|entry| entry.version <= wanted)?;
        let fitting = self.entries.iter().take_while(|entry| entry.version <= wanted.min(most)).last();
        let target = fitting.unwrap_or(first).clone();
        self.floor = self.floor.max(target.version);
        Some((self.window.fold(target.version), target))
    }

    /// The base holds this piece now.
    pub fn moved(&mut self, target: &BasePosition) {
        self.window.prune(target.version);
        while self.entries.front().is_some_and(|entry| entry.position.index <= target.position.index) {
            self.entries.pop_front();
        }
    }
}
