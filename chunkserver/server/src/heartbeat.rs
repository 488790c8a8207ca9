//! Reports to each master, so that whichever leads next knows its chunkservers, and what masters answer: keys, epochs, commands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use mooseng_chunk::{Change, ChunkError, ChunkInfo, ChunkStore};
use mooseng_ports::clock::Clock;
use mooseng_transport::grpc::registry_client::RegistryClient;
use mooseng_transport::{Blocking, Network, TRACE, grpc_channel, grpc_request, trace};
use mooseng_wire::admin::chunkserver_command::Command;
use mooseng_wire::admin::{ChunkReport, ChunkserverCommand, DiskReport, HeartbeatReply, HeartbeatRequest};
use mooseng_wire::founding::Founding;
use mooseng_wire::{ChunkId, Epoch, Role};
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::KeyRing;
use crate::config::ChunkserverConfig;
use crate::epochs::Epochs;
use crate::founding::{self, Foundings};
use crate::metrics::Metrics;
use crate::revocations::Kept;
use crate::scrub::unix_s;

/// Until a master says otherwise.
const INTERVAL: Duration = Duration::from_millis(500);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(2);
/// A master that doesn't answer within this is tried again over a new connection. Masters count on it: see [`OBEY_WITHIN`].
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A master of another founding of the region is asked again after this.
const OTHER_FOUNDING_PAUSE: Duration = Duration::from_secs(1);
/// Where a master is asked at once, it is after so long at least.
const AT_ONCE: Duration = Duration::from_millis(20);
/// Longest pause between attempts to reach a master.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Commands of a master that aren't begun within this are left: it sends them again, or has thought better of them. What was begun goes on beside the
/// heartbeats, for a disk may hang. Masters count on it that no deletion begins later, and that one which has begun is in the next heartbeat (`OBEYED_WITHIN` in their `desk/letting_go.rs`).
const OBEY_WITHIN: Duration = Duration::from_secs(1);
/// Chunks in one page of an inventory: some 100 kB.
const PAGE: usize = 4096;
/// Most commands of one answer that are obeyed; a master sends the rest again.
const COMMANDS_MAX: usize = 1024;
/// The root volume: home epochs of other volumes come with the volumes.
const ROOT_VOLUME: u16 = 0;

/// What heartbeats are made of.
pub struct Heartbeats {
    /// Who we are.
    pub config: ChunkserverConfig,
    /// Where others reach us.
    pub address: String,
    /// The chunks.
    pub store: Arc<ChunkStore>,
    /// Where disk work is done.
    pub blocking: Blocking,
    /// The network.
    pub network: Arc<dyn Network>,
    /// The ticket keys.
    pub keys: Arc<KeyRing>,
    /// Who waits for an epoch that isn't known yet.
    pub epochs: Arc<Epochs>,
    /// What masters told of their founding.
    pub foundings: Arc<Foundings>,
    /// Whom the cluster refuses.
    pub revoked: Kept,
    /// For the trash.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Metrics,
    /// Inventories that were begun.
    pub passes: AtomicU64,
}

/// What a master has been told of the chunks.
#[derive(Clone, Copy, Debug)]
struct Told {
    inventory: Inventory,
    /// Which inventory that is.
    pass: u64,
    /// The first change that it hasn't heard of.
    changes: u64,
}

/// Nothing yet.
const UNTOLD: Told = Told { inventory: Inventory::Due(None), pass: 0, changes: 0 };

/// A heartbeat, and what the master has been told once it is answered.
struct Beat {
    request: HeartbeatRequest,
    told: Told,
}

/// Whose turn it is to have a master's commands carried out, by the number of the data directory that they concern: those of one answer after those of the one
/// before, and none behind what is under way on another disk, which may hang.
#[derive(Default)]
struct Obeying(BTreeMap<Option<usize>, Arc<Semaphore>>);

impl Obeying {
    /// None while those of an earlier answer are under way.
    fn turn(&mut self, place: Option<usize>) -> Option<OwnedSemaphorePermit> {
        let turns = self.0.entry(place).or_insert_with(|| Arc::new(Semaphore::new(1)));
        turns.clone().try_acquire_owned().ok()
    }
}

/// How far an inventory has been sent to a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inventory {
    /// The next page begins behind this chunk.
    Due(Option<ChunkId>),
    Sent,
}

impl Heartbeats {
    /// Reports to one master until told to stop.
    pub async fn run(&self, master: &str, shutdown: CancellationToken) {
        let mut failures = 0u32;
        let mut obeying = Obeying::default();
        while !shutdown.is_cancelled() {
            let connected = tokio::select! {
                () = shutdown.cancelled() => return,
                failed = self.report(master, &mut obeying, &mut failures) => failed,
            };
            if failures == 1 {
                tracing::warn!(master, reason = connected, "a master isn't reached; trying on");
            }
            self.metrics.heartbeat_failures.inc();
            let pause = (Duration::from_millis(100) * 2u32.saturating_pow(failures.min(6))).min(PAUSE_MAX);
            let pause = pause.mul_f32(rand::rng().random_range(0.5..1.0));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Reports over one connection until that fails; answers why it did.
    async fn report(&self, master: &str, obeying: &mut Obeying, failures: &mut u32) -> String {
        let channel =
            match timeout(ANSWER_WITHIN, grpc_channel(self.network.clone(), master, Role::Master)).await {
                Ok(channel) => channel,
                Err(_) => {
                    *failures += 1;
                    return "no connection in time".into();
                }
            };
        let mut client = RegistryClient::new(channel);
        let mut told = UNTOLD;
        let mut asked = self.epochs.asked();
        loop {
            asked.borrow_and_update();
            let beat = self.beat(master, told).await;
            let call = async { client.heartbeat(grpc_request(beat.request, ANSWER_WITHIN)).await };
            let answered = timeout(ANSWER_WITHIN, TRACE.scope(trace::fresh(), call)).await;
            let reply = match answered {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(status)) => {
                    if let Some(mark) = founding::refused_by(&status) {
                        self.foundings.other(master, mark);
                        told = UNTOLD;
                        sleep(OTHER_FOUNDING_PAUSE).await;
                        continue;
                    }
                    *failures += 1;
                    return format!("{}: {}", status.code(), status.message());
                }
                Err(_) => {
                    *failures += 1;
                    return format!("no answer within {} ms", ANSWER_WITHIN.as_millis());
                }
            };
            if std::mem::take(failures) > 0 {
                tracing::info!(master, "a master is reached again");
            }
            self.metrics.heartbeats.inc();
            let interval = Duration::from_millis(u64::from(reply.interval_ms));
            told = beat.told;
            if told.inventory == Inventory::Sent && reply.want_inventory {
                told.inventory = Inventory::Due(None);
            }
            if !self.belongs(master, &reply).await {
                told = UNTOLD;
                sleep(OTHER_FOUNDING_PAUSE).await;
                continue;
            }
            self.obey(master, obeying, reply).await;
            self.epochs.told();
            if !matches!(told.inventory, Inventory::Due(Some(_))) {
                let interval =
                    if interval.is_zero() { INTERVAL } else { interval.clamp(INTERVAL_MIN, INTERVAL_MAX) };
                let asked_at_once = async {
                    sleep(AT_ONCE).await;
                    asked.changed().await
                };
                tokio::select! {
                    () = sleep(interval) => {}
                    // It doesn't end before this.
                    _ = asked_at_once => {}
                }
            }
        }
    }

    /// A heartbeat, with a page of the inventory where one is due, and with what changed since the last one. A master of another founding hears
    /// nothing of the chunks.
    async fn beat(&self, master: &str, mut told: Told) -> Beat {
        let store = self.store.clone();
        let other = self.foundings.is_other(master);
        if told.inventory == Inventory::Due(None) {
            told.pass = self.passes.fetch_add(1, Ordering::Relaxed) + 1;
        }
        let gather = move || {
            let (mut page, mut changes) = (None, Some((Vec::new(), told.changes)));
            if !other {
                if told.inventory == Inventory::Due(None) {
                    // What changed before is in the inventory.
                    told.changes = store.next_change();
                }
                if let Inventory::Due(after) = told.inventory {
                    page = Some(store.inventory(after, PAGE));
                }
                // Behind the page, so that they are newer than it.
                changes = store.changes(told.changes, PAGE);
            }
            (store.directories(), page, changes, store.incarnation(), store.highest_epoch())
        };
        let (directories, page, changes, incarnation, highest) = self.blocking.run(gather).await;
        let after = page.as_ref().and_then(|(chunks, _)| chunks.last().map(|c| c.chunk));
        let inventory_page = page.is_some();
        let (chunks, more) = page.unwrap_or_default();
        told.inventory = if more { Inventory::Due(after) } else { Inventory::Sent };
        let changes = match changes {
            Some((changes, next)) => {
                told.changes = next;
                changes
            }
            None => {
                told.inventory = Inventory::Due(None);
                Vec::new()
            }
        };
        let mut changed: Vec<&ChunkInfo> = Vec::new();
        let mut gone = Vec::new();
        for change in &changes {
            match change {
                Change::Is(info) => changed.push(info),
                Change::Gone(chunk) => gone.push(chunk.0),
            }
        }
        let unsound = |info: &&ChunkInfo| !info.sound;
        let corrupt = chunks.iter().chain(changed.iter().copied()).filter(unsound).map(|info| info.chunk.0);
        let disks = directories
            .into_iter()
            .map(|d| DiskReport {
                path: d.path.display().to_string(),
                id: d.id,
                bytes_total: d.bytes_total,
                bytes_free: d.bytes_free,
                bytes_used: d.bytes_used,
                chunks: d.chunks,
                writable: d.writable,
                error: d.error,
                // Less than a second is no time, and would say that it doesn't hang.
                hangs_s: d.hangs.map_or(0, |since| since.as_secs().max(1)),
            })
            .collect();
        let request = HeartbeatRequest {
            chunkserver: self.config.name.clone(),
            address: self.address.clone(),
            zone: self.config.zone.clone(),
            rack: self.config.rack.clone(),
            labels: self.config.labels.clone(),
            disks,
            incarnation,
            corrupt: corrupt.collect(),
            changed: changed.into_iter().map(report).collect(),
            gone,
            inventory: chunks.iter().map(report).collect(),
            inventory_page,
            inventory_pass: told.pass,
            more,
            highest_epoch: highest.0,
            credentials: self.network.credentials(),
            founding: Founding::tell(self.store.founding()),
            revocations_version: self.network.refusing(),
        };
        Beat { request, told: if other { UNTOLD } else { told } }
    }

    /// Whether the master is of the region that the chunks are of, as far as it says. The first mark that a leader tells is kept before anything
    /// else of its answer is used.
    async fn belongs(&self, master: &str, reply: &HeartbeatReply) -> bool {
        let mark = match Founding::told(&reply.founding) {
            Ok(Some(mark)) => mark,
            // A follower, or a leader of an earlier version.
            Ok(None) => {
                self.foundings.well(master, false);
                return true;
            }
            Err(error) => {
                tracing::warn!(master, %error, "a master's answer isn't used");
                return false;
            }
        };
        if !self.store.knows_founding(mark) {
            let store = self.store.clone();
            match self.blocking.run(move || store.see_founding(mark)).await {
                Ok(()) => {}
                Err(ChunkError::OtherFounding { told, .. }) => {
                    self.foundings.other(master, told);
                    return false;
                }
                Err(error) => {
                    tracing::warn!(master, %error, "a master's answer isn't used before the region's founding mark is kept");
                    return false;
                }
            }
        }
        self.foundings.well(master, true);
        true
    }

    /// Carries a master's commands out, of each disk one answer's after the other's.
    async fn obey(&self, master: &str, obeying: &mut Obeying, mut reply: HeartbeatReply) {
        if reply.founding.is_empty() && self.store.founding().is_some() && !reply.commands.is_empty() {
            // A leader of an earlier version can't say which region it is of: commands wait for one that can.
            tracing::debug!(master, "commands without a founding mark aren't carried out");
            reply.commands.clear();
        }
        self.keys.learn(&reply.ticket_keys);
        if let Some(list) = &reply.revocations {
            self.revoked.told(master, list).await;
        }
        // An older one than we know is no error here: that master is behind.
        let epochs: Vec<(u16, Epoch)> =
            epochs_of(&reply).filter(|(volume, epoch)| *epoch > self.store.epoch_of(*volume)).collect();
        if reply.commands.is_empty() && epochs.is_empty() {
            return;
        }
        let order = Arc::new(Order {
            from: master.to_owned(),
            custody: reply.custody,
            now_s: unix_s(&*self.clock),
            came: Instant::now(),
        });
        let mut commands: BTreeMap<Option<usize>, Vec<ChunkserverCommand>> = BTreeMap::new();
        for command in reply.commands.into_iter().take(COMMANDS_MAX) {
            let place = chunk_of(&command).and_then(|chunk| self.store.place_of(chunk));
            commands.entry(place).or_default().push(command);
        }
        let (store, of_epochs) = (self.store.clone(), order.clone());
        let see = move || {
            for (volume, epoch) in epochs {
                // Another master may have told a later one meanwhile.
                if epoch > store.epoch_of(volume) {
                    store.see_epoch(volume, epoch).unwrap_or_else(|e| of_epochs.failed(&e));
                }
            }
        };
        let work = async {
            self.blocking.run(see).await;
            let begun = commands.into_iter().filter_map(|(place, commands)| {
                // While those of an earlier answer are under way, these wait: the master sends them again.
                let turn = obeying.turn(place)?;
                let (store, order) = (self.store.clone(), order.clone());
                Some(self.blocking.run(move || {
                    let _turn = turn;
                    order.carry_out(&store, commands);
                }))
            });
            join_all(begun).await;
        };
        if timeout(OBEY_WITHIN, work).await.is_err() {
            tracing::debug!(master, "a master's commands take long");
        }
    }
}

/// The chunk that a command is about.
fn chunk_of(command: &ChunkserverCommand) -> Option<ChunkId> {
    command.command.as_ref().map(|command| match command {
        Command::Seal(seal) => ChunkId(seal.chunk),
        Command::Delete(delete) => ChunkId(delete.chunk),
    })
}

/// The home epochs that a master tells, by volume.
fn epochs_of(reply: &HeartbeatReply) -> impl Iterator<Item = (u16, Epoch)> + '_ {
    let others = reply.others.iter();
    let others = others.filter_map(|told| Some((u16::try_from(told.volume).ok()?, Epoch(told.epoch))));
    std::iter::once((ROOT_VOLUME, Epoch(reply.epoch))).chain(others)
}

fn report(info: &ChunkInfo) -> ChunkReport {
    ChunkReport {
        chunk: info.chunk.0,
        length: info.stat.length,
        sealed: info.stat.sealed,
        epoch: info.stat.epoch.0,
    }
}

/// Whose commands they are, and when they came.
struct Order {
    /// The master's address.
    from: String,
    custody: u64,
    now_s: u64,
    came: Instant,
}

impl Order {
    fn failed(&self, error: &ChunkError) {
        let (master, reason) = (&self.from, error.to_string());
        tracing::warn!(master, reason, "a master's command wasn't carried out");
    }

    /// Those that are begun in time.
    fn carry_out(&self, store: &ChunkStore, commands: Vec<ChunkserverCommand>) {
        for command in commands {
            if self.came.elapsed() > OBEY_WITHIN {
                return;
            }
            obey(store, self, command).unwrap_or_else(|e| self.failed(&e));
        }
    }
}

/// Carries out one command. Masters repeat commands until a heartbeat shows their effect.
fn obey(store: &ChunkStore, order: &Order, command: ChunkserverCommand) -> Result<(), ChunkError> {
    match command.command {
        Some(Command::Seal(seal)) => store.seal(ChunkId(seal.chunk), Epoch(seal.epoch), seal.length),
        Some(Command::Delete(delete)) => {
            tracing::info!(chunk = delete.chunk, epoch = delete.epoch, "a master has a chunk deleted");
            let (chunk, epoch) = (ChunkId(delete.chunk), Epoch(delete.epoch));
            // It may wait long for its turn, behind a copy that a slow disk takes up.
            let wanted = || order.came.elapsed() <= OBEY_WITHIN;
            let done = store.delete_while(chunk, epoch, order.custody, order.now_s, wanted)?;
            if !done {
                tracing::info!(chunk = chunk.0, "a deletion came to its turn too late and is left");
            }
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_wait_for_those_about_the_same_disk_only() {
        let mut obeying = Obeying::default();
        let turn = obeying.turn(Some(0));
        assert!(turn.is_some() && obeying.turn(Some(0)).is_none());
        assert!(obeying.turn(Some(1)).is_some() && obeying.turn(None).is_some());
        drop(turn);
        assert!(obeying.turn(Some(0)).is_some());
    }
}
