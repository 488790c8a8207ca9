//! What a master keeps in memory beside the store: sessions, chunkservers, fresh ids, ticket keys, seals to be told. One mutex with short
//! sections and no waiting inside owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_chunk::ticket::Key;
use mooseng_namespace::classes::is_of_cluster;
use mooseng_ports::clock::BootTime;
use mooseng_region::class::Class;
use mooseng_region::locks::LockWaits;
use mooseng_region::promises::PromiseTable;
use mooseng_region::quotas::Ledger;
use mooseng_region::registry::{self, Beat, BeatRefused, CopyFacts, DiskFacts, Registry};
use mooseng_region::sessions::{self, SessionTable};
use mooseng_wire::admin::{
    ChunkReport, ChunkserverCommand, DeleteCommand, HeartbeatRequest, HouseStatus, SealCommand, TrashStatus,
    chunkserver_command,
};
use mooseng_wire::founding::Founding;
use mooseng_wire::{ChunkId, InodeId, SessionId, VolumeId};

use crate::founding::{self, NotOurs, Strangers};
use crate::geo::ROOT_VOLUME;
use crate::seat::together;
pub use crate::seat::{ChunkCounts, House, VolumeSeat};

mod letting_go;

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
/// Unsealed copies from inventories that wait for a look at their records. Beyond it they wait for the next inventory.
const UNSEALED_MAX: usize = 100_000;

/// A copy that is to be deleted.
#[derive(Clone, Copy, Debug)]
struct Deletion {
    epoch: u64,
    told: Option<BootTime>,
}

/// A seal that a chunkserver has yet to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Where appends end.
    pub length: u64,
    /// The home epoch.
    pub epoch: u64,
}

/// Why a heartbeat isn't taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatRefused {
    /// By the registry.
    #[error(transparent)]
    Beat(#[from] BeatRefused),
    /// Its chunks aren't this region's.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
}

/// What a chunkserver is called among strangers.
fn stranger(chunkserver: &str) -> String {
    format!("chunkserver {chunkserver}")
}

/// A master's memory.
pub struct Desk {
    /// The region's founding mark. It stays known once this master has led: it never changes.
    founding: Option<Founding>,
    /// The marks that chunkservers told while this master didn't know its own.
    marks: BTreeMap<String, Founding>,
    /// Who was refused as of another founding.
    pub strangers: Strangers,
    /// The root volume's seat.
    pub root: VolumeSeat,
    /// Those of the other volumes that this region has, served or not.
    pub(crate) others: BTreeMap<VolumeId, VolumeSeat>,
    /// Of a volume that it doesn't have.
    nobody: VolumeSeat,
    /// The default storage class.
    pub(crate) by_default: Class,
    /// The root volume isn't in this region.
    rootless: bool,
    /// When this master began to serve.
    pub serving_since: BootTime,
    /// Sessions, of all volumes, as all that follows: their ids say of which. Only a leader's are true.
    pub sessions: SessionTable,
    /// What sessions are promised.
    pub promises: PromiseTable,
    /// Sessions of which an earlier custodian knew and that haven't answered this one yet.
    pub unanswered: BTreeSet<SessionId>,
    /// Those of them that are given up at this moment ([`Desk::give_up_waiting`], in [`crate::custody`]).
    pub(crate) overdue: BTreeSet<SessionId>,
    /// Who waits for locks.
    pub lock_waits: LockWaits,
    /// The roots of the subtrees that sessions are confined to, as far as they were looked for.
    pub roots: BTreeMap<SessionId, InodeId>,
    /// Sessions of whose ended lives locks may still be held.
    pub lock_debts: BTreeSet<SessionId>,
    /// Chunkservers. Every master's own.
    pub registry: Registry,
    /// Ticket keys, newest first.
    pub keys: Vec<Key>,
    /// How often drainings were set: a scan that began before the last time doesn't count for them.
    drainings_set: u64,
    /// Copies to be deleted, by chunkserver.
    deletions: BTreeMap<String, BTreeMap<ChunkId, Deletion>>,
    /// Volumes that this region lets go of, with the custody epoch in which it does.
    letting_go: BTreeMap<VolumeId, u64>,
    /// Chunkservers that were told to delete copies of a volume's chunks while this region was something else to that, and when.
    obeying: BTreeMap<VolumeId, BTreeMap<String, BootTime>>,
    /// Copies whose chunkserver has said that they are gone, since house-keeping last asked.
    gone: Vec<(ChunkId, String)>,
    /// Seals by chunkserver.
    seals: BTreeMap<String, BTreeMap<ChunkId, Seal>>,
    /// Copies that an inventory calls unsealed.
    unsealed: BTreeSet<(String, ChunkId)>,
    /// Chunkservers of whose present inventory something found no room there.
    left_out: BTreeSet<String>,
    /// Chunkservers whose whole inventory came in this leadership.
    compared: BTreeSet<String>,
}

impl Desk {
    /// An empty one, of a cluster with this default storage class.
    pub fn new(sessions: sessions::Limits, by_default: Class) -> Self {
        Self {
            founding: None,
            marks: BTreeMap::new(),
            strangers: Strangers::default(),
            root: VolumeSeat::new(by_default.clone()),
            others: BTreeMap::new(),
            nobody: VolumeSeat::new(by_default.clone()),
            by_default,
            rootless: false,
            serving_since: BootTime::default(),
            sessions: SessionTable::new(sessions),
            promises: PromiseTable::new(mooseng_region::promises::Limits::default()),
            unanswered: BTreeSet::new(),
            overdue: BTreeSet::new(),
            lock_waits: LockWaits::new(mooseng_region::locks::Limits::default()),
            lock_debts: BTreeSet::new(),
            roots: BTreeMap::new(),
            registry: Registry::new(registry::Limits::default()),
            keys: Vec::new(),
            drainings_set: 0,
            deletions: BTreeMap::new(),
            letting_go: BTreeMap::new(),
            obeying: BTreeMap::new(),
            gone: Vec::new(),
            seals: BTreeMap::new(),
            unsealed: BTreeSet::new(),
            left_out: BTreeSet::new(),
            compared: BTreeSet::new(),
        }
    }

    /// What is known of a volume.
    pub fn seat(&self, volume: VolumeId) -> &VolumeSeat {
        match volume {
            ROOT_VOLUME => &self.root,
            other => self.others.get(&other).unwrap_or(&self.nobody),
        }
    }

    /// What is known of a volume that this region has: of another one nothing is kept.
    pub fn seat_mut(&mut self, volume: VolumeId) -> &mut VolumeSeat {
        if volume == ROOT_VOLUME {
            return &mut self.root;
        }
        if let Some(seat) = self.others.get_mut(&volume) {
            return seat;
        }
        self.nobody = VolumeSeat::new(self.by_default.clone());
        &mut self.nobody
    }

    /// Takes note of whether this region has a volume.
    pub fn note_here(&mut self, volume: VolumeId, here: bool) {
        match volume {
            ROOT_VOLUME => self.rootless = !here,
            other if here => {
                self.others.entry(other).or_insert_with(|| VolumeSeat::new(self.by_default.clone()));
            }
            other => self.drop_volume(other),
        }
    }

    /// There is no such volume any more, or not in this region: nothing of it is served here again in this term.
    fn drop_volume(&mut self, volume: VolumeId) {
        if self.others.remove(&volume).is_some() {
            self.forget_sessions(volume);
        }
    }

    /// Forgets the volumes besides the root that aren't among these: deleted, while another master led.
    pub fn keep_volumes(&mut self, is_there: impl Fn(VolumeId) -> bool) {
        let gone: Vec<VolumeId> = self.others.keys().copied().filter(|volume| !is_there(*volume)).collect();
        gone.into_iter().for_each(|volume| self.drop_volume(volume));
    }

    /// The custody epoch in which a volume is served.
    pub fn serving_of(&self, volume: VolumeId) -> Option<u64> {
        self.seat(volume).serving
    }

    /// The custody epochs in which volumes are served, or let go of.
    pub fn served(&self) -> impl Iterator<Item = u64> {
        let seats = std::iter::once(&self.root).chain(self.others.values());
        seats.filter_map(|seat| seat.serving).chain(self.letting_go.values().copied())
    }

    /// The seats of all volumes of which this region has chunks.
    fn seats(&self) -> impl Iterator<Item = &VolumeSeat> {
        std::iter::once(&self.root).filter(|_| !self.rootless).chain(self.others.values())
    }

    /// The region's chunks.
    pub fn counts(&self) -> ChunkCounts {
        self.seats().map(|seat| seat.counts).fold(ChunkCounts::default(), ChunkCounts::plus)
    }

    /// Bytes of staged data in the region.
    pub fn staged_bytes(&self) -> u64 {
        self.seats().map(|seat| seat.house.staged_bytes).sum()
    }

    /// The storage classes of all volumes that this region has, the default one apart: the cluster's once. Of volumes besides the root the names of those of their
    /// own say whose they are.
    pub fn classes(&self) -> Vec<Class> {
        let of_root = self.root.classes.iter().skip(1).filter(|_| !self.rootless).cloned();
        let of_others = self.others.iter().flat_map(|(volume, seat)| {
            let named = move |class: &Class| match is_of_cluster(class.id) {
                true => class.clone(),
                false => Class { name: format!("{} of volume {volume}", class.name), ..class.clone() },
            };
            seat.classes.iter().skip(1).map(named)
        });
        let mut told = BTreeSet::new();
        let is_new = |class: &Class| !is_of_cluster(class.id) || told.insert(class.id);
        of_root.chain(of_others).filter(is_new).collect()
    }

    /// What the trashes of all volumes hold.
    pub fn trash(&self) -> TrashStatus {
        let held = self.seats().filter_map(|seat| seat.trash);
        held.fold(TrashStatus::default(), |sum, held| TrashStatus {
            files: sum.files + held.files,
            bytes: sum.bytes + held.bytes,
            ..sum
        })
    }

    /// Accounts with limits, and bytes of them that sessions are promised.
    pub fn promised_of_quotas(&self) -> (usize, u64) {
        let ledgers = || self.seats().map(|seat| &seat.ledger);
        (ledgers().map(Ledger::limited).sum(), ledgers().map(Ledger::escrow).sum())
    }

    /// Figures of the region's house-keeping.
    pub fn house_status(&self) -> HouseStatus {
        self.seats().map(|seat| seat.house.status).fold(HouseStatus::default(), together)
    }

    /// The region's founding mark, once this master has led.
    pub fn founding(&self) -> Option<Founding> {
        self.founding
    }

    /// The mark by which mounts know a volume.
    pub fn volume_founding(&self, volume: VolumeId) -> Option<Founding> {
        let region = self.founding.filter(|_| volume == ROOT_VOLUME);
        self.seat(volume).founding.or(region)
    }

    /// Refuses a mount that tells another mark than the volume's, and remembers it under that name.
    pub fn let_in_to_volume(
        &mut self,
        volume: VolumeId,
        now: BootTime,
        who: &str,
        told: &[u8],
    ) -> Result<Option<Founding>, NotOurs> {
        founding::check(self.volume_founding(volume), told).inspect_err(|not_ours| {
            if let NotOurs::Other { told, own } = not_ours {
                self.strangers.refused(now, who.to_owned(), *told, *own);
            }
        })
    }

    /// Learns the region's founding mark, before it serves.
    pub fn found(&mut self, founding: Founding) {
        self.founding = Some(founding);
        if std::mem::take(&mut self.marks).values().any(|mark| *mark != founding) {
            // What came from chunkservers of another founding is told apart from the rest by their next heartbeats: within a second.
            self.registry = Registry::new(registry::Limits::default());
            self.unsealed.clear();
            self.left_out.clear();
            self.compared.clear();
        }
    }

    /// Refuses a caller that tells another founding mark, and remembers it under that name.
    pub fn let_in(&mut self, now: BootTime, who: &str, told: &[u8]) -> Result<Option<Founding>, NotOurs> {
        founding::check(self.founding, told).inspect_err(|not_ours| {
            if let NotOurs::Other { told, own } = not_ours {
                self.strangers.refused(now, who.to_owned(), *told, *own);
            }
        })
    }

    /// Sets which chunkservers are being drained.
    pub fn set_draining(&mut self, names: BTreeSet<String>) {
        self.drainings_set += 1;
        self.registry.set_draining(names);
    }

    /// To be remembered by a scan that begins, for [`Self::located_as_of`].
    pub fn drainings_set(&self) -> u64 {
        self.drainings_set
    }

    /// Takes what a scan of a volume has counted that began when `drainings_set` was so.
    pub fn located_as_of(&mut self, volume: VolumeId, drainings_set: u64, located: BTreeMap<String, u64>) {
        let seat = self.seat_mut(volume);
        seat.house.located = located;
        seat.scanned = true;
        seat.counted = drainings_set;
    }

    /// Whether every chunkserver that there may be has reported: this master has served for that long, and all those are known that chunks' locations
    /// name. One that isn't known may have any labels.
    pub fn knows_all(&self, now: BootTime, heard_after: Duration) -> bool {
        let unknown = |name: &String| self.registry.get(name).is_none();
        let knows = |seat: &VolumeSeat| seat.scanned && !seat.house.located.keys().any(unknown);
        now.since(self.serving_since) >= heard_after && self.seats().all(knows)
    }

    /// How many chunks' locations name a chunkserver. One that was just set to be drained isn't empty before that was counted: somebody
    /// waits for the zero to stop it. Nor is any while a volume of this region isn't served, whose chunks nobody counts.
    pub fn located(&self, name: &str) -> u64 {
        let counted = self.seats().map(|seat| seat.house.located.get(name).copied().unwrap_or(0)).sum();
        let are_counted = self.seats().all(|seat| seat.counted == self.drainings_set);
        if are_counted || !self.registry.is_draining(name) {
            return counted;
        }
        let told = self.registry.get(name).map_or(0, |server| server.chunks());
        counted.max(told).max(1)
    }

    /// Forgets what only a leader may know.
    pub fn follow(&mut self) {
        self.root.leave();
        self.others.values_mut().for_each(VolumeSeat::leave);
        self.seals.clear();
        self.compared.clear();
        self.deletions.clear();
        self.letting_go.clear();
        // What comes from a leader of another term fences what this one has ordered.
        self.obeying.clear();
        self.gone.clear();
    }

    /// Forgets what only who serves a volume may know: this region isn't to it any more what it was.
    pub fn unseat(&mut self, volume: VolumeId) {
        self.seat_mut(volume).leave();
        let is_other = |chunk: &ChunkId| chunk.volume() != volume;
        self.seals.values_mut().for_each(|waiting| waiting.retain(|chunk, _| is_other(chunk)));
        self.seals.retain(|_, waiting| !waiting.is_empty());
        for (name, waiting) in &self.deletions {
            let told = waiting
                .iter()
                .filter(|(chunk, _)| !is_other(chunk))
                .filter_map(|(_, deletion)| deletion.told);
            if let Some(last) = told.max() {
                self.obeying.entry(volume).or_default().insert(name.clone(), last);
            }
        }
        self.letting_go.remove(&volume);
        self.deletions.values_mut().for_each(|waiting| waiting.retain(|chunk, _| is_other(chunk)));
        self.deletions.retain(|_, waiting| !waiting.is_empty());
        self.gone.retain(|(chunk, _)| is_other(chunk));
        // Whole inventories are compared with what the next part says of this volume's chunks.
        self.compared.clear();
    }

    /// Whether this master serves any volume.
    pub fn is_serving(&self) -> bool {
        self.served().next().is_some()
    }

    /// Takes a heartbeat in. Answers whether an inventory is wanted.
    pub fn beat(&mut self, now: BootTime, request: HeartbeatRequest) -> Result<bool, HeartbeatRefused> {
        let name = request.chunkserver.clone();
        let mark = self.let_in(now, &stranger(&name), &request.founding)?;
        self.strangers.let_in(&stranger(&name));
        let (page, more) = (request.inventory_page, request.more);
        let corrupt: BTreeSet<u64> = request.corrupt.iter().copied().collect();
        let facts = |r: &ChunkReport| {
            let corrupt = corrupt.contains(&r.chunk);
            (ChunkId(r.chunk), CopyFacts { length: r.length, sealed: r.sealed, epoch: r.epoch, corrupt })
        };
        let copies: Vec<(ChunkId, CopyFacts)> = request.inventory.iter().map(facts).collect();
        let changed: Vec<(ChunkId, CopyFacts)> = request.changed.iter().map(facts).collect();
        let gone: Vec<ChunkId> = request.gone.iter().copied().map(ChunkId).collect();
        let beaten = self.registry.beat(now, beat_of(request))?;
        if let (None, Some(mark)) = (self.founding, mark) {
            self.marks.insert(name.clone(), mark);
        }
        for (chunk, copy) in copies.iter().chain(&changed) {
            let entry = (name.clone(), *chunk);
            if copy.sealed || copy.corrupt || self.unsealed.contains(&entry) {
                continue;
            }
            if self.unsealed.len() < UNSEALED_MAX {
                self.unsealed.insert(entry);
            } else {
                self.left_out.insert(name.clone());
                self.compared.remove(&name);
            }
        }
        let want_inventory = if page {
            if !more && !self.left_out.remove(&name) && self.is_serving() {
                self.compared.insert(name.clone());
            }
            !self.registry.inventory(now, &name, copies, more)
        } else {
            // Seals that an earlier leader decided and didn't get through are known from the store alone: a new leader compares anew.
            beaten.want_inventory || (self.is_serving() && !self.compared.contains(&name))
        };
        self.registry.changed(&name, &changed, &gone);
        for chunk in gone {
            self.is_gone(&name, chunk);
        }
        Ok(want_inventory)
    }

    /// A copy is to be deleted: its chunkserver hears of it with its heartbeats until it says that it is gone.
    pub fn want_deletion(&mut self, chunkserver: &str, chunk: ChunkId, epoch: u64) {
        let waiting = self.deletions.entry(chunkserver.to_owned()).or_default();
        if waiting.len() < DELETIONS_PER_SERVER_MAX {
            waiting.entry(chunk).or_insert(Deletion { epoch, told: None });
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

    /// Forgets what a chunkserver was to delete: it is lost. Its inventory is looked at when it comes back.
    pub fn forget_deletions(&mut self, chunkserver: &str) {
        self.deletions.remove(chunkserver);
    }

    fn is_gone(&mut self, chunkserver: &str, chunk: ChunkId) {
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

    /// The commands that go with a heartbeat's answer. Only for a leader that is in office.
    pub fn take_commands(&mut self, chunkserver: &str, now: BootTime) -> Vec<ChunkserverCommand> {
        let seals = self.take_seals(chunkserver).into_iter().map(chunkserver_command::Command::Seal);
        let mut commands: Vec<chunkserver_command::Command> = seals.collect();
        if let Some(waiting) = self.deletions.get_mut(chunkserver) {
            let due = waiting
                .iter_mut()
                .filter(|(_, d)| d.told.is_none_or(|told| now.since(told) >= DELETE_AGAIN))
                .take(COMMANDS_MAX);
            for (chunk, deletion) in due {
                deletion.told = Some(now);
                let delete = DeleteCommand { chunk: chunk.0, epoch: deletion.epoch };
                commands.push(chunkserver_command::Command::Delete(delete));
            }
        }
        commands.into_iter().map(|command| ChunkserverCommand { command: Some(command) }).collect()
    }

    /// Copies of a volume's chunks that an inventory called unsealed, to be compared with their records.
    pub fn take_unsealed(&mut self, volume: VolumeId, most: usize) -> Vec<(String, ChunkId)> {
        let of_it = self.unsealed.iter().filter(|(_, chunk)| chunk.volume() == volume);
        let taken: Vec<(String, ChunkId)> = of_it.take(most).cloned().collect();
        for copy in &taken {
            self.unsealed.remove(copy);
        }
        taken
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

    /// Names of the chunkservers whose heartbeats come.
    pub fn alive(&self, now: BootTime) -> BTreeSet<String> {
        let alive = |s: &&registry::Chunkserver| {
            s.liveness(now, self.registry.limits()) == mooseng_region::Liveness::Alive
        };
        self.registry.iter().filter(alive).map(|s| s.beat.name.clone()).collect()
    }
}

fn beat_of(request: HeartbeatRequest) -> Beat {
    let disk = |d: mooseng_wire::admin::DiskReport| DiskFacts {
        path: d.path,
        id: d.id,
        bytes_total: d.bytes_total,
        bytes_free: d.bytes_free,
        bytes_used: d.bytes_used,
        chunks: d.chunks,
        writable: d.writable,
        error: d.error,
    };
    Beat {
        name: request.chunkserver,
        address: request.address,
        zone: request.zone,
        rack: request.rack,
        labels: request.labels.into_iter().collect(),
        disks: request.disks.into_iter().map(disk).collect(),
        incarnation: request.incarnation,
        highest_epoch: request.highest_epoch,
        credentials: request.credentials.map(crate::credentials::of_heartbeat),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        Desk::new(sessions::Limits::default(), Class::by_default(1, 1))
    }

    #[test]
    fn a_drained_chunkserver_is_not_empty_before_a_scan_has_counted_since() {
        let mut desk = desk();
        desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::new());
        let before = desk.drainings_set();
        desk.set_draining(BTreeSet::from(["a".into()]));
        assert!(desk.located("a") > 0);
        assert_eq!(desk.located("b"), 0);
        desk.located_as_of(ROOT_VOLUME, before, BTreeMap::new());
        assert!(desk.located("a") > 0, "a scan that had begun before missed what was placed meanwhile");
        desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::from([("a".into(), 3)]));
        assert_eq!(desk.located("a"), 3);
        desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::new());
        assert_eq!(desk.located("a"), 0);
    }

    #[test]
    fn that_nobody_has_a_label_is_known_once_everybody_can_have_reported() {
        let at = |s| BootTime(Duration::from_secs(s));
        let mut desk = desk();
        desk.serve(ROOT_VOLUME, at(100), 1, vec![], BTreeMap::new());
        let known = |desk: &Desk, now| desk.knows_all(at(now), Duration::from_secs(10));
        assert!(!known(&desk, 200), "no scan has told yet who there should be");
        desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::from([("a".into(), 3)]));
        assert!(!known(&desk, 200), "a may have any labels");
        let request = HeartbeatRequest { chunkserver: "a".into(), ..HeartbeatRequest::default() };
        desk.beat(at(104), request).unwrap();
        assert!(!known(&desk, 109) && known(&desk, 110));
        desk.follow();
        desk.serve(ROOT_VOLUME, at(300), 2, vec![], BTreeMap::new());
        assert!(!known(&desk, 400));
    }

    #[test]
    fn seals_wait_for_their_chunkserver() {
        let mut desk = desk();
        let seal = Seal { length: 5, epoch: 1 };
        desk.want_seal("a", ChunkId(1), seal);
        desk.want_seal("a", ChunkId(2), seal);
        desk.want_seal("b", ChunkId(1), seal);
        desk.sealed("a", ChunkId(2));
        assert!(desk.take_seals("c").is_empty());
        assert_eq!(desk.take_seals("a"), vec![SealCommand { chunk: 1, epoch: 1, length: 5 }]);
        assert!(desk.take_seals("a").is_empty());
        assert_eq!(desk.seals_waiting(), 1);
        desk.follow();
        assert_eq!(desk.seals_waiting(), 0);
    }

    /// Found by the simulation: a copy stayed unsealed for good where the leader changed before its chunkserver heard of the seal, or where
    /// too many copies were unsealed at once.
    #[test]
    fn a_new_leader_compares_every_inventory_and_one_that_found_no_room_again() {
        let mut desk = desk();
        let report = |chunk| ChunkReport { chunk, length: 9, sealed: false, epoch: 1 };
        let request = |page, inventory| HeartbeatRequest {
            chunkserver: "a".into(),
            inventory_page: page,
            inventory,
            ..HeartbeatRequest::default()
        };
        let now = BootTime::default();
        let many: Vec<ChunkReport> = (0..=UNSEALED_MAX as u64).map(report).collect();
        desk.beat(now, request(true, many.clone())).unwrap();
        assert!(!desk.beat(now, request(false, vec![])).unwrap(), "a follower compares nothing");
        desk.root.serving = Some(1);
        assert!(desk.beat(now, request(false, vec![])).unwrap());
        desk.beat(now, request(true, many.clone())).unwrap();
        assert!(desk.beat(now, request(false, vec![])).unwrap(), "one found no room");
        assert_eq!(desk.take_unsealed(ROOT_VOLUME, UNSEALED_MAX).len(), UNSEALED_MAX);
        desk.beat(now, request(true, many)).unwrap();
        assert_eq!(desk.take_unsealed(ROOT_VOLUME, 1).len(), 1);
        desk.take_unsealed(ROOT_VOLUME, UNSEALED_MAX);
        desk.beat(now, request(true, vec![report(7)])).unwrap();
        assert!(!desk.beat(now, request(false, vec![])).unwrap());
        desk.follow();
        desk.root.serving = Some(2);
        assert!(desk.beat(now, request(false, vec![])).unwrap());
    }

    #[test]
    fn deletions_are_told_until_they_are_confirmed() {
        let mut desk = desk();
        let at = |s| BootTime(Duration::from_secs(s));
        let beat = |gone| HeartbeatRequest { chunkserver: "a".into(), gone, ..HeartbeatRequest::default() };
        desk.beat(at(0), beat(vec![])).unwrap();
        desk.want_deletion("a", ChunkId(1), 1);
        desk.want_deletion("a", ChunkId(1), 1);
        assert!(desk.is_deleting("a", ChunkId(1)) && !desk.is_deleting("b", ChunkId(1)));
        assert_eq!(desk.deleting(ChunkId(1)), BTreeSet::from(["a".to_owned()]));
        assert_eq!(desk.take_commands("a", at(0)).len(), 1);
        assert_eq!(desk.take_commands("a", at(1)).len(), 0, "an answer is under way");
        assert_eq!(desk.take_commands("a", at(6)).len(), 1, "it got lost");
        desk.beat(at(7), beat(vec![1, 2])).unwrap();
        assert!(desk.take_commands("a", at(20)).is_empty());
        assert_eq!(
            desk.take_gone(ROOT_VOLUME, 9),
            [(ChunkId(1), "a".to_owned())],
            "what nobody asked for isn't news"
        );
        assert!(desk.take_gone(ROOT_VOLUME, 9).is_empty());
    }

    /// A follower doesn't know its region's mark before it leads, and hears of chunkservers all the same.
    #[test]
    fn what_chunkservers_of_another_founding_told_a_follower_is_forgotten_when_it_leads() {
        let (own, other) = (Founding([1; 16]), Founding([2; 16]));
        let now = BootTime::default();
        let beat = |name: &str, mark| HeartbeatRequest {
            chunkserver: name.into(),
            founding: Founding::tell(mark),
            inventory_page: true,
            inventory: vec![ChunkReport { chunk: 1, length: 9, sealed: false, epoch: 1 }],
            ..HeartbeatRequest::default()
        };
        for (mark, stay) in [(Some(own), true), (None, true), (Some(other), false)] {
            let mut desk = desk();
            desk.beat(now, beat("a", mark)).unwrap();
            desk.found(own);
            assert_eq!(desk.registry.get("a").is_some(), stay);
            assert_eq!(desk.take_unsealed(ROOT_VOLUME, 9).is_empty(), !stay);
            desk.follow();
            let refused = desk.beat(now, beat("a", Some(other))).unwrap_err();
            assert_eq!(refused, HeartbeatRefused::NotOurs(NotOurs::Other { told: other, own }));
            assert_eq!(desk.strangers.lately(now), [("chunkserver a".to_owned(), other)]);
            desk.beat(now, beat("a", Some(own))).unwrap();
            assert!(desk.strangers.lately(now).is_empty());
        }
    }

    #[test]
    fn an_inventorys_unsealed_copies_are_looked_at() {
        let mut desk = desk();
        let report = |chunk, sealed| ChunkReport { chunk, length: 9, sealed, epoch: 1 };
        let request = |page, inventory, more| HeartbeatRequest {
            chunkserver: "a".into(),
            inventory_page: page,
            inventory,
            more,
            ..HeartbeatRequest::default()
        };
        let now = BootTime::default();
        assert!(desk.beat(now, request(false, vec![], false)).unwrap());
        assert!(desk.beat(now, request(true, vec![report(1, true), report(2, false)], true)).unwrap());
        assert!(!desk.beat(now, request(true, vec![report(3, false)], false)).unwrap());
        assert!(!desk.beat(now, request(false, vec![], false)).unwrap());
        assert_eq!(desk.take_unsealed(ROOT_VOLUME, 1), vec![("a".to_owned(), ChunkId(2))]);
        assert_eq!(desk.take_unsealed(ROOT_VOLUME, 9), vec![("a".to_owned(), ChunkId(3))]);
    }
}
