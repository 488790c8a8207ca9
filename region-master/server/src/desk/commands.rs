//! Commands to chunkservers, which go with the answers to their heartbeats: seals, and deletions until they are confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::admin::{ChunkserverCommand, DeleteCommand, SealCommand, chunkserver_command};
use mooseng_wire::{ChunkId, VolumeId};

use super::Desk;

/// Seals that wait to be told to one chunkserver at most. Beyond it they wait for its next inventory.
const SEALS_PER_SERVER_MAX: usize = 10_000;
/// Commands in one heartbeat's answer.
const COMMANDS_MAX: usize = 256;
/// Deletions that wait to be told to one chunkserver at most. Beyond it they are found again.
const DELETIONS_PER_SERVER_MAX: usize = 10_000;
/// Copies that are gone and of which nobody has taken note. Beyond it they are deleted, and reported, again.
const GONE_MAX: usize = 100_000;
/// A deletion that isn't confirmed so long after it was told is told again.
const DELETE_AGAIN: Duration = Duration::from_secs(5);

/// A copy that is to be deleted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deletion {
    pub(super) epoch: u64,
    pub(super) told: Option<BootTime>,
    /// In which custody epoch it was told last.
    pub(super) custody: u64,
}

/// A seal that a chunkserver has yet to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Where appends end.
    pub length: u64,
    /// The home epoch.
    pub epoch: u64,
}

impl Desk {
    /// A copy is to be deleted: its chunkserver hears of it with its heartbeats until it says that it is gone.
    pub fn want_deletion(&mut self, chunkserver: &str, chunk: ChunkId, epoch: u64) {
        let waiting = self.deletions.entry(chunkserver.to_owned()).or_default();
        if waiting.len() < DELETIONS_PER_SERVER_MAX {
            waiting.entry(chunk).or_insert(Deletion { epoch, told: None, custody: 0 });
        }
    }

    /// Whether a chunkserver is told to delete its copy of a chunk.
    pub fn is_deleting(&self, chunkserver: &str, chunk: ChunkId) -> bool {
        self.deletions.get(chunkserver).is_some_and(|waiting| waiting.contains_key(&chunk))
    }

    /// The chunkservers that are told to delete their copies of a chunk.
    pub fn deleting(&self, chunk: ChunkId) -> BTreeSet<String> {
        let waits = |(_, waiting): &(&String, &BTreeMap<ChunkId, Deletion>)| waiting.contains_key(&chunk);
        self.deletions.iter().filter(waits).map(|(name, _)| name.clone()).collect()
    }

    /// Those of them that haven't heard of it: no answer to their heartbeats had it.
    pub fn untold(&self, chunk: ChunkId) -> BTreeSet<String> {
        let is_untold = |(_, waiting): &(&String, &BTreeMap<ChunkId, Deletion>)| {
            waiting.get(&chunk).is_some_and(|deletion| deletion.told.is_none())
        };
        self.deletions.iter().filter(is_untold).map(|(name, _)| name.clone()).collect()
    }

    /// Takes an order back that a chunkserver hasn't heard. Answers whether it has none to delete its copy, now.
    pub fn take_back_deletion(&mut self, chunkserver: &str, chunk: ChunkId) -> bool {
        let Some(waiting) = self.deletions.get_mut(chunkserver) else { return true };
        if waiting.get(&chunk).is_some_and(|deletion| deletion.told.is_some()) {
            return false;
        }
        waiting.remove(&chunk);
        if waiting.is_empty() {
            self.deletions.remove(chunkserver);
        }
        true
    }

    /// A chunk is wanted here: takes back what chunkservers haven't heard. Answers who may delete its copy yet, whatever is said to it from now on; an order of an
    /// epoch before this one nobody obeys who has heard anything in this one.
    pub fn take_back_deletions(&mut self, chunk: ChunkId, epoch: u64) -> BTreeSet<String> {
        for name in self.untold(chunk) {
            self.take_back_deletion(&name, chunk);
        }
        let may_obey = |(_, waiting): &(&String, &BTreeMap<ChunkId, Deletion>)| {
            waiting.get(&chunk).is_some_and(|deletion| deletion.epoch >= epoch)
        };
        self.deletions.iter().filter(may_obey).map(|(name, _)| name.clone()).collect()
    }

    /// The chunkservers that have something to delete.
    pub fn with_deletions(&self) -> impl Iterator<Item = &String> {
        self.deletions.keys()
    }

    /// Forgets what a chunkserver was to delete of a volume: it is lost. Its inventory is looked at when it comes back.
    pub fn forget_deletions(&mut self, volume: VolumeId, chunkserver: &str) {
        let Some(waiting) = self.deletions.get_mut(chunkserver) else { return };
        waiting.retain(|chunk, _| chunk.volume() != volume);
        if waiting.is_empty() {
            self.deletions.remove(chunkserver);
        }
    }

    pub(super) fn is_gone(&mut self, chunkserver: &str, chunk: ChunkId) {
        let Some(waiting) = self.deletions.get_mut(chunkserver) else { return };
        if waiting.remove(&chunk).is_some() && self.gone.len() < GONE_MAX {
            self.gone.push((chunk, chunkserver.to_owned()));
        }
        if waiting.is_empty() {
            self.deletions.remove(chunkserver);
        }
    }

    /// Copies of a volume's chunks that were to be deleted and are gone, each once.
    pub fn take_gone(&mut self, volume: VolumeId, most: usize) -> Vec<(ChunkId, String)> {
        let mut taken = Vec::new();
        self.gone.retain(|gone| {
            let take = taken.len() < most && gone.0.volume() == volume;
            if take {
                taken.push(gone.clone());
            }
            !take
        });
        taken
    }

    /// Forgets that copies of these volumes' chunks are gone: nobody asks for it.
    pub fn drop_gone(&mut self, of: impl Fn(VolumeId) -> bool) {
        self.gone.retain(|(chunk, _)| !of(chunk.volume()));
    }

    /// The commands that go with a heartbeat's answer, in that custody epoch. Only for a leader that is in office.
    pub fn take_commands(
        &mut self,
        chunkserver: &str,
        now: BootTime,
        custody: u64,
    ) -> Vec<ChunkserverCommand> {
        let seals = self.take_seals(chunkserver).into_iter().map(chunkserver_command::Command::Seal);
        let mut commands: Vec<chunkserver_command::Command> = seals.collect();
        if let Some(waiting) = self.deletions.get_mut(chunkserver) {
            let due = waiting
                .iter_mut()
                .filter(|(_, d)| d.told.is_none_or(|told| now.since(told) >= DELETE_AGAIN))
                .take(COMMANDS_MAX);
            for (chunk, deletion) in due {
                (deletion.told, deletion.custody) = (Some(now), custody);
                let delete = DeleteCommand { chunk: chunk.0, epoch: deletion.epoch };
                commands.push(chunkserver_command::Command::Delete(delete));
            }
        }
        commands.into_iter().map(|command| ChunkserverCommand { command: Some(command) }).collect()
    }

    /// A chunkserver has to hear of a seal.
    pub fn want_seal(&mut self, chunkserver: &str, chunk: ChunkId, seal: Seal) {
        let waiting = self.seals.entry(chunkserver.to_owned()).or_default();
        if waiting.len() < SEALS_PER_SERVER_MAX {
            waiting.insert(chunk, seal);
        }
    }

    /// It has.
    pub fn sealed(&mut self, chunkserver: &str, chunk: ChunkId) {
        if let Some(waiting) = self.seals.get_mut(chunkserver) {
            waiting.remove(&chunk);
            if waiting.is_empty() {
                self.seals.remove(chunkserver);
            }
        }
    }

    /// Whether a seal still waits for a chunkserver.
    pub fn seal_waits(&self, chunkserver: &str, chunk: ChunkId) -> bool {
        self.seals.get(chunkserver).is_some_and(|waiting| waiting.contains_key(&chunk))
    }

    /// How many seals wait.
    pub fn seals_waiting(&self) -> usize {
        self.seals.values().map(BTreeMap::len).sum()
    }

    /// The seals that go with a heartbeat's answer. A lost answer is made up for by the next inventory.
    pub fn take_seals(&mut self, chunkserver: &str) -> Vec<SealCommand> {
        let Some(waiting) = self.seals.get_mut(chunkserver) else { return Vec::new() };
        let chosen: Vec<ChunkId> = waiting.keys().take(COMMANDS_MAX).copied().collect();
        let mut commands = Vec::with_capacity(chosen.len());
        for chunk in chosen {
            if let Some(seal) = waiting.remove(&chunk) {
                commands.push(SealCommand { chunk: chunk.0, epoch: seal.epoch, length: seal.length });
            }
        }
        if waiting.is_empty() {
            self.seals.remove(chunkserver);
        }
        commands
    }
}
