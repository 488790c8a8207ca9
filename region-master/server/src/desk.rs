//! What a master keeps in memory beside the store: sessions, chunkservers, fresh ids, ticket keys, seals to be told. One mutex with short
//! sections and no waiting inside owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_chunk::ticket::Key;
use mooseng_ports::clock::BootTime;
use mooseng_region::class::Class;
use mooseng_region::locks::LockWaits;
use mooseng_region::promises::PromiseTable;
use mooseng_region::quotas::{Ledger, Limit};
use mooseng_region::registry::{self, Beat, BeatRefused, CopyFacts, DiskFacts, Registry};
use mooseng_region::sessions::{self, Recorded, SessionTable};
use mooseng_schema::quota::Account;
use mooseng_wire::admin::{
    ChunkReport, ChunkserverCommand, DeleteCommand, HeartbeatRequest, HouseStatus, SealCommand, TrashStatus,
    chunkserver_command,
};
use mooseng_wire::founding::Founding;
use mooseng_wire::{ChunkId, Incarnation, InodeId, SessionId, VolumeId};

use crate::founding::{self, NotOurs, Strangers};
use crate::geo::ROOT_VOLUME;
use crate::seat::together;
pub use crate::seat::{ChunkCounts, House, VolumeSeat};

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
    /// The mark by which mounts know the volume, where several regions have it: the same in each.
    volume_founding: Option<Founding>,
    /// The marks that chunkservers told while this master didn't know its own.
    marks: BTreeMap<String, Founding>,
    /// Who was refused as of another founding.
    pub strangers: Strangers,
    /// The root volume's seat.
    pub root: VolumeSeat,
    /// Those of the other volumes that this region has, served or not.
    others: BTreeMap<VolumeId, VolumeSeat>,
    /// Of a volume that it doesn't have.
    nobody: VolumeSeat,
    /// The default storage class.
    by_default: Class,
    /// The root volume isn't in this region.
    rootless: bool,
    /// When this master began to serve.
    pub serving_since: BootTime,
    /// The term, which is the custody epoch, that sessions and promises are of.
    pub custody: Option<u64>,
    /// Sessions. Only a leader's are true.
    pub sessions: SessionTable,
    /// What sessions are promised.
    pub promises: PromiseTable,
    /// Sessions of which an earlier custodian knew and that haven't answered this one yet.
    pub unanswered: BTreeSet<SessionId>,
    /// Those of them that are given up at this moment ([`Desk::give_up_waiting`]).
    overdue: BTreeSet<SessionId>,
    /// Until when they are waited for, if that isn't as long as their leases may last.
    answer_by: Option<BootTime>,
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
    /// Limits, what may commit and doesn't count yet, and what sessions were promised of it.
    pub ledger: Ledger<Account>,
    /// How often drainings were set: a scan that began before the last time doesn't count for them.
    drainings_set: u64,
    /// Copies to be deleted, by chunkserver.
    deletions: BTreeMap<String, BTreeMap<ChunkId, Deletion>>,
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
            volume_founding: None,
            marks: BTreeMap::new(),
            strangers: Strangers::default(),
            root: VolumeSeat::new(by_default.clone()),
            others: BTreeMap::new(),
            nobody: VolumeSeat::new(by_default.clone()),
            by_default,
            rootless: false,
            serving_since: BootTime::default(),
            custody: None,
            sessions: SessionTable::new(sessions),
            promises: PromiseTable::new(mooseng_region::promises::Limits::default()),
            unanswered: BTreeSet::new(),
            overdue: BTreeSet::new(),
            answer_by: None,
            lock_waits: LockWaits::new(mooseng_region::locks::Limits::default()),
            lock_debts: BTreeSet::new(),
            roots: BTreeMap::new(),
            registry: Registry::new(registry::Limits::default()),
            keys: Vec::new(),
            ledger: Ledger::default(),
            drainings_set: 0,
            deletions: BTreeMap::new(),
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

    /// Begins to serve a volume other than the root in that custody epoch.
    pub fn sit_down(&mut self, volume: VolumeId, custody: u64) -> &mut VolumeSeat {
        let seat = self.others.entry(volume).or_insert_with(|| VolumeSeat::new(self.by_default.clone()));
        seat.serving = Some(custody);
        seat
    }

    /// Takes note of whether this region has a volume.
    pub fn note_here(&mut self, volume: VolumeId, here: bool) {
        match volume {
            ROOT_VOLUME => self.rootless = !here,
            other if here => {
                self.others.entry(other).or_insert_with(|| VolumeSeat::new(self.by_default.clone()));
            }
            other => drop(self.others.remove(&other)),
        }
    }

    /// The custody epoch in which a volume is served.
    pub fn serving_of(&self, volume: VolumeId) -> Option<u64> {
        self.seat(volume).serving
    }

    /// The custody epochs in which volumes are served.
    pub fn served(&self) -> impl Iterator<Item = u64> {
        std::iter::once(&self.root).chain(self.others.values()).filter_map(|seat| seat.serving)
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

    /// What the trashes of all volumes hold.
    pub fn trash(&self) -> TrashStatus {
        let held = self.seats().filter_map(|seat| seat.trash);
        held.fold(TrashStatus::default(), |sum, held| TrashStatus {
            files: sum.files + held.files,
            bytes: sum.bytes + held.bytes,
            ..sum
        })
    }

    /// Figures of the region's house-keeping.
    pub fn house_status(&self) -> HouseStatus {
        self.seats().map(|seat| seat.house.status).fold(HouseStatus::default(), together)
    }

    /// The region's founding mark, once this master has led.
    pub fn founding(&self) -> Option<Founding> {
        self.founding
    }

    /// The mark by which mounts know what they have mounted.
    pub fn volume_founding(&self) -> Option<Founding> {
        self.volume_founding.or(self.founding)
    }

    /// Learns the volume's mark, where several regions have it.
    pub fn found_volume(&mut self, founding: Founding) {
        self.volume_founding = Some(founding);
    }

    /// Refuses a mount that tells another mark than the volume's, and remembers it under that name.
    pub fn let_in_to_volume(
        &mut self,
        now: BootTime,
        who: &str,
        told: &[u8],
    ) -> Result<Option<Founding>, NotOurs> {
        founding::check(self.volume_founding(), told).inspect_err(|not_ours| {
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
        // Sessions and promises stay: if this master leads again in the same term, nobody else was custodian in between, and what
        // it promised under that custody epoch still stands.
        self.root.leave();
        self.others.clear();
        self.seals.clear();
        self.compared.clear();
        self.deletions.clear();
        self.gone.clear();
    }

    /// Forgets what only who serves a volume may know: this region isn't to it any more what it was.
    pub fn unseat(&mut self, volume: VolumeId) {
        self.seat_mut(volume).leave();
        let is_other = |chunk: &ChunkId| chunk.volume() != volume;
        self.seals.values_mut().for_each(|waiting| waiting.retain(|chunk, _| is_other(chunk)));
        self.seals.retain(|_, waiting| !waiting.is_empty());
        self.deletions.values_mut().for_each(|waiting| waiting.retain(|chunk, _| is_other(chunk)));
        self.deletions.retain(|_, waiting| !waiting.is_empty());
        self.gone.retain(|(chunk, _)| is_other(chunk));
        // Whole inventories are compared with what the next part says of this volume's chunks.
        self.compared.clear();
    }

    /// Begins to serve in a term with the sessions on record. Those of a term in which it served before it still knows.
    pub fn serve(&mut self, now: BootTime, term: u64, held: Vec<Recorded>, limits: BTreeMap<Account, Limit>) {
        if self.custody == Some(term) {
            self.ledger.set_limits(limits);
            for recorded in held {
                if self.sessions.holds(recorded.session) {
                    continue;
                }
                self.promises.add_session(recorded.session);
                self.sessions.expect(now, recorded);
            }
        } else {
            self.ledger.begin(term, limits);
            self.promises.clear();
            self.lock_waits.clear();
            self.lock_debts.clear();
            self.roots.clear();
            self.unanswered.clear();
            self.overdue.clear();
            self.answer_by = None;
            for recorded in &held {
                self.promises.add_session(recorded.session);
                self.unanswered.insert(recorded.session);
            }
            self.sessions.lead(now, held);
        }
        self.custody = Some(term);
        self.root.serving = Some(term);
        self.serving_since = now;
    }

    /// All leases that sessions had of earlier custodians are over for certain ([`crate::master::Master::lease_ms`]): who still lives gets until then to
    /// claim what it buffers, and isn't waited for longer.
    pub fn hurry(&mut self, until: BootTime) {
        self.answer_by = Some(until);
    }

    /// The sessions that had to answer before now. They are to get a new incarnation, on record, before anybody is answered without them
    /// ([`Desk::given_up`]): if they come, it is as another life that claims nothing. Until then they are told to try again.
    pub fn give_up_waiting(&mut self, now: BootTime) -> Vec<SessionId> {
        if self.answer_by.is_some_and(|until| now >= until) {
            self.answer_by = None;
            // One that has come confirms with its next renewal, or its lease ends: what it claimed is its own until then.
            let waited = self.unanswered.iter().filter(|id| self.sessions.is_awaited(**id));
            self.overdue = waited.copied().collect();
        }
        self.overdue.iter().copied().collect()
    }

    /// A session that was waited for in vain has a new incarnation on record.
    pub fn given_up(&mut self, id: SessionId, incarnation: Incarnation) {
        if self.overdue.remove(&id) {
            self.sessions.begin_anew(id, incarnation);
            self.lock_debts.insert(id);
            self.unanswered.remove(&id);
        }
    }

    /// Whether this master serves any volume.
    fn is_serving(&self) -> bool {
        self.served().next().is_some()
    }

    /// Whether this session is being given up: until that is on record nothing is known of it.
    pub fn is_overdue(&self, id: SessionId) -> bool {
        self.overdue.contains(&id)
    }

    /// A session is gone: nobody waits for it any more.
    pub fn forget_session(&mut self, id: SessionId) {
        self.promises.drop_session(id);
        self.lock_waits.drop_session(id);
        self.ledger.forget(id);
        self.roots.remove(&id);
        self.unanswered.remove(&id);
        self.overdue.remove(&id);
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

    /// Takes 20 s instead of 12 where a mount was lost with its region, if nobody hurries (seen in a campaign that cuts regions off).
    #[test]
    fn sessions_of_a_lost_home_are_given_up_soon_and_claim_nothing_after() {
        let mut desk = desk();
        let at = |ms: u64| BootTime(std::time::Duration::from_millis(ms));
        let held = |n: u64| Recorded {
            session: SessionId(n),
            incarnation: Incarnation(3),
            identity: "c".into(),
            host: String::new(),
            mount_path: String::new(),
        };
        desk.serve(at(0), 7, vec![held(1), held(2), held(3)], BTreeMap::new());
        assert!(desk.give_up_waiting(at(9_000)).is_empty(), "by itself each lease is waited for");
        // It has come, and its renewal confirms that later (found by the simulation of three regions: what it had claimed was given up beneath it).
        desk.sessions.admit(at(1_500), held(3), 1, []).unwrap();
        desk.hurry(at(2_000));
        assert!(desk.give_up_waiting(at(1_999)).is_empty());
        assert!(desk.unanswered.remove(&SessionId(1)), "one that comes in time");
        assert_eq!(desk.give_up_waiting(at(2_000)), [SessionId(2)]);
        assert!(desk.is_overdue(SessionId(2)) && !desk.unanswered.is_empty(), "until it is on record");
        assert_eq!(desk.give_up_waiting(at(2_200)), [SessionId(2)], "what failed is done again");
        desk.given_up(SessionId(2), Incarnation(4));
        assert!(desk.unanswered.remove(&SessionId(3)));
        assert!(desk.unanswered.is_empty() && !desk.is_overdue(SessionId(2)));
        let comeback = desk.sessions.comeback(at(3_000), SessionId(2), Incarnation(3), "c");
        assert_eq!(comeback, Ok(sessions::Comeback::Repeat(Incarnation(4))));
        assert!(desk.give_up_waiting(at(4_000)).is_empty());
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
        desk.serve(at(100), 1, vec![], BTreeMap::new());
        let known = |desk: &Desk, now| desk.knows_all(at(now), Duration::from_secs(10));
        assert!(!known(&desk, 200), "no scan has told yet who there should be");
        desk.located_as_of(ROOT_VOLUME, desk.drainings_set(), BTreeMap::from([("a".into(), 3)]));
        assert!(!known(&desk, 200), "a may have any labels");
        let request = HeartbeatRequest { chunkserver: "a".into(), ..HeartbeatRequest::default() };
        desk.beat(at(104), request).unwrap();
        assert!(!known(&desk, 109) && known(&desk, 110));
        desk.follow();
        desk.serve(at(300), 2, vec![], BTreeMap::new());
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

    /// Found by the simulation: a leader that lost its lease and got it back in the same term had forgotten what it had promised, while its
    /// sessions took themselves for having answered that custody epoch.
    #[test]
    fn promises_outlive_an_interruption_within_a_term() {
        let mut desk = desk();
        let now = BootTime::default();
        let session = |n: u64| Recorded {
            session: SessionId(n),
            incarnation: mooseng_wire::Incarnation(1),
            identity: "c".into(),
            host: String::new(),
            mount_path: String::new(),
        };
        desk.serve(now, 7, vec![session(1)], BTreeMap::new());
        assert!(desk.unanswered.remove(&SessionId(1)));
        let fact = mooseng_region::promises::Fact::Inode(mooseng_wire::InodeId(5));
        assert!(desk.promises.grant(SessionId(1), &fact, mooseng_region::promises::Level::Shared, 1));
        desk.follow();
        assert_eq!(desk.root.serving, None);
        desk.serve(now, 7, vec![session(1), session(2)], BTreeMap::new());
        assert!(desk.promises.level(SessionId(1), &fact).is_some() && desk.unanswered.is_empty());
        assert!(desk.sessions.holds(SessionId(2)), "one that lapsed without a note is waited for once more");
        desk.follow();
        desk.serve(now, 8, vec![session(1)], BTreeMap::new());
        assert!(
            desk.promises.level(SessionId(1), &fact).is_none() && desk.unanswered.contains(&SessionId(1))
        );
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
