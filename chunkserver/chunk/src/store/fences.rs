//! What callers are told apart by: volumes' epochs, a leader's term, the region's founding mark. What is over, or of another region, is refused; what is
//! newer is durable before it counts.

use mooseng_ports::plant::{self, Plant};
use mooseng_wire::Epoch;
use mooseng_wire::founding::Founding;

use super::ChunkStore;
use crate::error::ChunkError;
use crate::files::lock;

impl ChunkStore {
    /// The newest epoch seen of any volume.
    pub fn highest_epoch(&self) -> Epoch {
        lock(&self.state).facts.epochs.values().copied().max().unwrap_or_default()
    }

    /// Whether an epoch is the newest seen of its volume: then [`ChunkStore::see_epoch`] does nothing.
    pub fn knows_epoch(&self, volume: u16, epoch: Epoch) -> bool {
        lock(&self.state).facts.epochs.get(&volume) == Some(&epoch)
    }

    /// The newest epoch seen of a volume.
    pub fn epoch_of(&self, volume: u16) -> Epoch {
        lock(&self.state).facts.epochs.get(&volume).copied().unwrap_or_default()
    }

    /// Refuses an epoch that is over, and makes a newer one durable.
    pub fn see_epoch(&self, volume: u16, epoch: Epoch) -> Result<(), ChunkError> {
        let mut state = lock(&self.state);
        let highest = state.facts.epochs.get(&volume).copied().unwrap_or_default();
        if epoch < highest && !plant::is(Plant::EpochUnchecked) {
            return Err(ChunkError::StaleEpoch { volume, epoch, highest });
        }
        if epoch > highest {
            let mut facts = state.facts.clone();
            facts.epochs.insert(volume, epoch);
            state.keep(facts).map_err(|e| ChunkError::StateFailed { epoch, reason: e.to_string() })?;
        }
        Ok(())
    }

    /// The founding mark of the region that the chunks are of; none before any leader has told one.
    pub fn founding(&self) -> Option<Founding> {
        lock(&self.state).facts.founding
    }

    /// Whether a mark is the chunks' region's and every directory carries it: then [`ChunkStore::see_founding`] does nothing.
    pub fn knows_founding(&self, told: Founding) -> bool {
        self.founding() == Some(told) && self.used().all(|d| d.founding().is_some())
    }

    /// Takes a leader's founding mark: the first one becomes the store's own for good, durably, and any other is refused.
    pub fn see_founding(&self, told: Founding) -> Result<(), ChunkError> {
        {
            let mut state = lock(&self.state);
            match state.facts.founding {
                Some(own) if own != told => return Err(ChunkError::OtherFounding { own, told }),
                Some(_) => {}
                None => {
                    let facts = crate::state::Facts { founding: Some(told), ..state.facts.clone() };
                    state
                        .keep(facts)
                        .map_err(|e| ChunkError::FoundingFailed { told, reason: e.to_string() })?;
                }
            }
        }
        self.carry_all(Some(told));
        Ok(())
    }

    /// Has each directory carry the mark, if there is one, and the count of starts. One that can't take them now gets them with a later heartbeat or start: the
    /// state directory has them already.
    pub(super) fn carry_all(&self, founding: Option<Founding>) {
        let incarnation = self.incarnation();
        for directory in self.used().filter(|d| d.dropped().is_none()) {
            if let Err(e) = directory.carry(founding, incarnation) {
                // Whether the disk takes writes at all is told by its probe.
                tracing::debug!(path = %directory.path.display(), error = %e, "a data directory doesn't take the founding mark and the count of starts yet");
            }
        }
    }

    /// Refuses a leader whose term is over, and makes a newer term durable. 0 is nobody's.
    pub fn see_custody(&self, custody: u64) -> Result<(), ChunkError> {
        let mut state = lock(&self.state);
        let newest = state.facts.custody;
        if custody < newest {
            return Err(ChunkError::StaleCustody { custody, newest });
        }
        if custody > newest {
            let mut facts = state.facts.clone();
            facts.custody = custody;
            state.keep(facts).map_err(|e| ChunkError::CustodyFailed { custody, reason: e.to_string() })?;
        }
        Ok(())
    }
}
