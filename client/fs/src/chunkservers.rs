//! Chunk data from and to chunkservers: which replica first, when to ask another one, what to believe.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_chunk::lent::{LentChunk, ReadError};
use mooseng_ports::disk::lent::{Keep, Wait};
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{
    Append, Appended, ChainFailure, ChainMember, ChunkStat, Read, ReadDone, StatChunk, Ticket,
};
use mooseng_wire::fs::{ChunkLocation, ChunkPlace};
use mooseng_wire::method::Method;
use prost::Message;
use tokio::time::Instant;

use crate::borrow::{Borrower, Lent};
use crate::peers::{Failure, Peers};
use crate::status::{ChunkserverStatus, Counters, Latency};
use crate::waits::{self, What};

/// A chunkserver that failed is asked last, and not allocated on, for this long.
const SUSPECT_FOR: Duration = Duration::from_secs(10);
/// A chunkserver that doesn't answer a question about a chunk for this long is taken to be the one that hangs.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// One replica gets this long for a read, with others asked beside it meanwhile.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Chunkservers remembered at most.
const REMEMBERED_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    latency: Latency,
    failures: u64,
    suspect_until: Option<Instant>,
}

/// The chunkservers as this client knows them.
pub(crate) struct Chunkservers {
    peers: Arc<dyn Peers>,
    zone: String,
    hedge_after: Duration,
    borrower: Option<Arc<Borrower>>,
    health: Mutex<BTreeMap<String, Health>>,
}

/// Why an append wasn't acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct AppendFailure {
    /// Members to avoid, as far as known.
    pub failed: Vec<String>,
    pub reason: String,
    /// Somebody answered: nothing hangs.
    pub hung: bool,
}

impl Chunkservers {
    pub fn new(
        peers: Arc<dyn Peers>,
        zone: String,
        hedge_after: Duration,
        borrower: Option<Arc<Borrower>>,
    ) -> Self {
        Self { peers, zone, hedge_after, borrower, health: Mutex::default() }
    }

    /// Files of chunks that chunkservers on this host have lent.
    pub fn lent_files(&self) -> usize {
        self.borrower.as_ref().map_or(0, |borrower| borrower.held())
    }

    /// The file of a chunk, if a chunkserver on this host has lent it. One that isn't here yet is asked for.
    pub fn lent(&self, place: &ChunkPlace) -> Lent {
        let Some(borrower) = &self.borrower else { return Lent::Not };
        let mut best = Lent::Not;
        for location in &place.locations {
            match borrower.find(location, place) {
                Lent::Here(chunk) => return Lent::Here(chunk),
                Lent::Soon => best = Lent::Soon,
                Lent::Not => {}
            }
        }
        best
    }

    /// Has the kernel read ranges of files that were lent into memory.
    pub fn will_need(&self, ranges: Vec<(Arc<LentChunk>, u64, u64)>) {
        if let Some(borrower) = &self.borrower
            && !ranges.is_empty()
        {
            borrower.will_need(ranges);
        }
    }

    /// Reads what a chunkserver on this host has lent, if the kernel has it in memory.
    pub fn read_at_once(
        &self,
        place: &ChunkPlace,
        offset: u64,
        length: u64,
        keep: Keep,
        counters: &Counters,
    ) -> Option<Bytes> {
        let borrower = self.borrower.as_ref()?;
        for location in &place.locations {
            if let Lent::Here(chunk) = borrower.find(location, place) {
                match chunk.read(offset, length, Wait::Never, keep) {
                    Ok(bytes) => {
                        counters.read_here(length);
                        return Some(bytes);
                    }
                    Err(error) => self.not_read_here(borrower, location, place, &error, counters),
                }
            }
        }
        None
    }

    /// Reads what a chunkserver on this host has lent; none where that isn't possible, whyever.
    async fn read_here(
        &self,
        location: &ChunkLocation,
        place: &ChunkPlace,
        offset: u64,
        length: u64,
        keep: Keep,
        counters: &Counters,
    ) -> Option<Bytes> {
        let borrower = self.borrower.as_ref()?;
        let chunk = borrower.wait_for(location, place).await?;
        match waits::on(|| What::Disk, borrower.read(chunk, offset, length, keep)).await? {
            Ok(bytes) => {
                counters.read_here(length);
                Some(bytes)
            }
            Err(error) => {
                self.not_read_here(borrower, location, place, &error, counters);
                None
            }
        }
    }

    /// A file that was lent didn't give what was read of it. Its chunkserver is asked for the same over the network: so it finds out itself, and
    /// tells the masters if its copy is bad.
    fn not_read_here(
        &self,
        borrower: &Borrower,
        location: &ChunkLocation,
        place: &ChunkPlace,
        error: &ReadError,
        counters: &Counters,
    ) {
        let mut bad_block = None;
        match error {
            ReadError::NotInMemory | ReadError::TooShort(_) => return,
            ReadError::Corrupt(block) => {
                bad_block = Some(*block);
                counters.update(|c| c.corrupt_replicas += 1);
                tracing::warn!(chunkserver = %location.chunkserver, chunk = place.chunk, %error, "a replica on this host has bytes that don't match their checksum; another one is read");
            }
            ReadError::Io(_) => {
                tracing::debug!(chunkserver = %location.chunkserver, chunk = place.chunk, %error, "a file that was lent can't be read");
            }
        }
        counters.update(|c| c.same_host_failures += 1);
        borrower.is_bad(location, place, bad_block);
    }

    fn health<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Health>) -> T) -> T {
        f(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn suspect(&self, name: &str) {
        self.health(|health| {
            if health.len() < REMEMBERED_MAX || health.contains_key(name) {
                let entry = health.entry(name.to_owned()).or_default();
                entry.failures += 1;
                entry.suspect_until = Some(Instant::now() + SUSPECT_FOR);
            }
        });
    }

    fn well(&self, name: &str, took: Duration) {
        self.health(|health| {
            if health.len() < REMEMBERED_MAX || health.contains_key(name) {
                let entry = health.entry(name.to_owned()).or_default();
                entry.latency.record(took);
                entry.suspect_until = None;
            }
        });
    }

    /// Those to avoid for the moment.
    pub fn suspects(&self) -> Vec<String> {
        let now = Instant::now();
        self.health(|health| {
            health
                .iter()
                .filter(|(_, h)| h.suspect_until.is_some_and(|until| until > now))
                .map(|(name, _)| name.clone())
                .collect()
        })
    }

    pub fn view(&self) -> BTreeMap<String, ChunkserverStatus> {
        let now = Instant::now();
        self.health(|health| {
            health
                .iter()
                .map(|(name, h)| {
                    let suspect = h.suspect_until.is_some_and(|until| until > now);
                    (name.clone(), ChunkserverStatus { latency: h.latency, failures: h.failures, suspect })
                })
                .collect()
        })
    }

    /// Replicas, best first: those not suspected, reachable ones, the same host, the same zone, then by latency.
    pub fn order(&self, locations: &[ChunkLocation]) -> Vec<ChunkLocation> {
        let now = Instant::now();
        let mut ordered = locations.to_vec();
        let near = |location: &ChunkLocation| self.borrower.as_ref().is_some_and(|b| b.is_near(location));
        self.health(|health| {
            ordered.sort_by_cached_key(|location| {
                let known = health.get(&location.chunkserver).copied().unwrap_or_default();
                let suspect = known.suspect_until.is_some_and(|until| until > now);
                (
                    suspect,
                    !location.reachable,
                    !near(location),
                    self.zone.is_empty() || location.zone != self.zone,
                    known.latency.recent_us,
                )
            });
        });
        ordered
    }

    /// Reads [offset, offset + length), 1 MiB at most: the best replica first, joined by the next one when it fails or is slow.
    pub async fn read(
        &self,
        place: &ChunkPlace,
        offset: u64,
        length: u32,
        keep: Keep,
        counters: &Counters,
    ) -> Result<Bytes, String> {
        let mut waiting = self.order(&place.locations).into_iter();
        let Some(first) = waiting.next() else {
            return Err(format!("chunk {} has no known copy", place.chunk));
        };
        let mut asked = FuturesUnordered::new();
        asked.push(self.read_from(first, place, offset, length, keep, counters));
        let mut last = String::new();
        loop {
            let hedge = !waiting.as_slice().is_empty();
            tokio::select! {
                biased;
                outcome = asked.next() => match outcome {
                    Some(Ok(bytes)) => return Ok(bytes),
                    Some(Err(error)) => {
                        last = error;
                        if let Some(next) = waiting.next() {
                            counters.update(|c| c.hedges += 1);
                            asked.push(self.read_from(next, place, offset, length, keep, counters));
                        }
                    }
                    None => return Err(last),
                },
                () = tokio::time::sleep(self.hedge_after), if hedge => {
                    if let Some(next) = waiting.next() {
                        counters.update(|c| c.hedges += 1);
                        asked.push(self.read_from(next, place, offset, length, keep, counters));
                    }
                }
            }
        }
    }

    async fn read_from(
        &self,
        location: ChunkLocation,
        place: &ChunkPlace,
        offset: u64,
        length: u32,
        keep: Keep,
        counters: &Counters,
    ) -> Result<Bytes, String> {
        if let Some(bytes) = self.read_here(&location, place, offset, length.into(), keep, counters).await {
            return Ok(bytes);
        }
        let started = Instant::now();
        let name = &location.chunkserver;
        let read = Read { chunk: place.chunk, offset, length, ticket: place.ticket.clone() };
        // Named suspect as soon as it is slow, not only once it has timed out: the next read shall begin elsewhere.
        let call = self.peers.call(
            Role::Chunkserver,
            &location.address,
            Method::ChunkRead,
            read.encode_to_vec().into(),
            Bytes::new(),
            READ_TIMEOUT,
        );
        tokio::pin!(call);
        let answer = tokio::select! {
            biased;
            answer = &mut call => answer,
            () = tokio::time::sleep(self.hedge_after) => {
                self.suspect(name);
                call.await
            }
        };
        let answer = answer.map_err(|failure| {
            // A refused ticket is no fault of the chunkserver's.
            if !matches!(&failure, Failure::Refused(e) if matches!(e.code(), ErrorCode::PermissionDenied | ErrorCode::StaleEpoch)) {
                self.suspect(name);
            }
            format!("{name} at {}: {failure}", location.address)
        })?;
        let done = ReadDone::decode(answer.body).map_err(|e| format!("{name}: malformed answer: {e}"))?;
        if answer.bulk.len() != length as usize || crc32c::crc32c(&answer.bulk) != done.crc {
            counters.update(|c| c.corrupt_replicas += 1);
            self.suspect(name);
            tracing::warn!(chunkserver = %name, chunk = place.chunk, offset, length, got = answer.bulk.len(), "a replica answered with bytes that don't match their checksum or length; another one is read");
            return Err(format!("{name} answered with bytes that don't match their checksum"));
        }
        self.well(name, started.elapsed());
        Ok(answer.bulk)
    }

    /// Appends a packet down the chain; answered once every member has flushed it.
    pub async fn append(&self, packet: Packet<'_>, timeout: Duration) -> Result<Appended, AppendFailure> {
        let Some((first, rest)) = packet.locations.split_first() else {
            return Err(AppendFailure {
                failed: Vec::new(),
                reason: format!("chunk {} has no chunkservers", packet.chunk),
                hung: false,
            });
        };
        let append = Append {
            chunk: packet.chunk,
            epoch: packet.epoch,
            offset: packet.offset,
            flush: packet.flush,
            ticket: packet.ticket.clone(),
            chain: rest
                .iter()
                .map(|l| ChainMember { chunkserver: l.chunkserver.clone(), address: l.address.clone() })
                .collect(),
            crc: crc32c::crc32c(&packet.data),
        };
        let started = Instant::now();
        let answer = self
            .peers
            .call(
                Role::Chunkserver,
                &first.address,
                Method::ChunkAppend,
                append.encode_to_vec().into(),
                packet.data.clone(),
                timeout,
            )
            .await;
        match answer {
            Ok(answer) => {
                let appended = Appended::decode(answer.body).map_err(|e| AppendFailure {
                    failed: vec![first.chunkserver.clone()],
                    reason: format!("{}: malformed answer: {e}", first.chunkserver),
                    hung: false,
                })?;
                self.well(&first.chunkserver, started.elapsed());
                Ok(appended)
            }
            Err(failure) => {
                let hung = failure == Failure::Timeout;
                let failed = blame(&first.chunkserver, &failure);
                Err(AppendFailure {
                    failed,
                    reason: format!("{} at {}: {failure}", first.chunkserver, first.address),
                    hung,
                })
            }
        }
    }

    /// Which members of a chain that hangs don't answer at all.
    pub async fn silent(&self, chunk: u64, ticket: &Bytes, locations: &[ChunkLocation]) -> Vec<String> {
        let stat = Bytes::from(StatChunk { chunk, ticket: ticket.clone() }.encode_to_vec());
        let probes = locations.iter().map(|location| {
            let stat = stat.clone();
            async move {
                let answer = self
                    .peers
                    .call(
                        Role::Chunkserver,
                        &location.address,
                        Method::ChunkStat,
                        stat,
                        Bytes::new(),
                        PROBE_TIMEOUT,
                    )
                    .await;
                match answer {
                    Ok(answer) => {
                        ChunkStat::decode(answer.body).is_err().then(|| location.chunkserver.clone())
                    }
                    Err(Failure::Refused(_)) => None,
                    Err(_) => Some(location.chunkserver.clone()),
                }
            }
        });
        futures::future::join_all(probes).await.into_iter().flatten().collect()
    }
}

/// One append.
pub(crate) struct Packet<'a> {
    pub chunk: u64,
    pub epoch: u64,
    pub offset: u64,
    pub flush: bool,
    pub ticket: Bytes,
    pub locations: &'a [ChunkLocation],
    pub data: Bytes,
}

/// Whom a failed append is held against.
fn blame(first: &str, failure: &Failure) -> Vec<String> {
    match failure {
        Failure::NotSent(_) | Failure::Lost => vec![first.to_owned()],
        // Anyone of the chain: found out by asking each.
        Failure::Timeout => Vec::new(),
        Failure::Refused(error) => blame_refusal(first, error),
    }
}

fn blame_refusal(first: &str, error: &CallError) -> Vec<String> {
    match error.code() {
        ErrorCode::ChainFailed => ChainFailure::decode(error.detail.clone())
            .ok()
            .map(|f| f.chunkserver)
            .filter(|name| !name.is_empty())
            .into_iter()
            .collect(),
        ErrorCode::DiskFailed
        | ErrorCode::NoSpace
        | ErrorCode::Corrupt
        | ErrorCode::Busy
        | ErrorCode::Unavailable
        | ErrorCode::Internal
        | ErrorCode::NotBuilt => {
            vec![first.to_owned()]
        }
        // The chunk or the ticket is at fault: a fresh chunk is the remedy, on the same chunkservers if need be.
        ErrorCode::Unspecified
        | ErrorCode::NotLeader
        | ErrorCode::OutcomeUnknown
        | ErrorCode::DeadlineExceeded
        | ErrorCode::SessionExpired
        | ErrorCode::PermissionDenied
        | ErrorCode::InvalidRequest
        | ErrorCode::StaleEpoch
        | ErrorCode::NotFound
        | ErrorCode::ChunkSealed
        | ErrorCode::OffsetMismatch
        | ErrorCode::NotHome
        | ErrorCode::NoVolume
        | ErrorCode::OtherFounding => Vec::new(),
    }
}

/// When a ticket ends, in milliseconds since the Unix epoch; none if it doesn't say.
pub(crate) fn ticket_expires_ms(ticket: &Bytes) -> Option<u64> {
    Ticket::decode(ticket.clone()).ok().map(|t| t.expires_ms).filter(|&ms| ms > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_member_that_the_chain_names_is_blamed() {
        let detail =
            ChainFailure { chunkserver: "cs-3".into(), reason: "hung".into() }.encode_to_vec().into();
        let error = CallError { code: ErrorCode::ChainFailed.into(), detail, ..CallError::default() };
        assert_eq!(blame("cs-1", &Failure::Refused(error)), ["cs-3"]);
        assert_eq!(blame("cs-1", &Failure::Lost), ["cs-1"]);
        assert!(blame("cs-1", &Failure::Timeout).is_empty());
        let sealed = CallError { code: ErrorCode::ChunkSealed.into(), ..CallError::default() };
        assert!(blame("cs-1", &Failure::Refused(sealed)).is_empty());
    }
}
