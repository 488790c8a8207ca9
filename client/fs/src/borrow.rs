//! Files of sealed chunks that chunkservers on this host lend, to be read and checked here.
//!
//! Which chunkservers do is found out by asking each once, on the authenticated stream, which a read would have to make anyway. A read waits for
//! the answer for a moment at most, then it goes over the network. What is lent is used for a bounded time: see [`HELD_FOR`].
//!
//! [`HELD_FOR`]: mooseng_chunk::lent::HELD_FOR

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_chunk::lent::{LentChunk, ReadError, Terms};
use mooseng_ports::disk::lent::{FileIdentity, Keep, Wait};
use mooseng_transport::descriptors::{self, Token};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::chunk::{Lend, LendRefusal, Lent as Answer, Read};
use mooseng_wire::fs::{ChunkLocation, ChunkPlace};
use mooseng_wire::method::Method;
use mooseng_wire::{BLOCK_BYTES, ChunkId, Role};
use prost::Message;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::peers::{Failure, Peers};
use crate::shelf::{Found, Outcome, Shelf};

/// Files held at most; fewer where the system allows this process few.
const HELD_MAX: usize = 256;
/// The part of the system's limit that they may be.
const HELD_SHARE: usize = 4;
/// Questions under way at once.
const ASKS_MAX: usize = 16;
/// Reads that wait for a disk at once: a disk that hangs takes no more threads than that.
const READS_MAX: usize = 32;
/// How long a chunkserver may take to answer, and to hand a descriptor over.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a read waits for a file that was asked for.
const SOON: Duration = Duration::from_millis(20);
/// How often it is looked which files are to be closed.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A chunk's file, as far as it is here.
#[derive(Clone, Debug)]
pub(crate) enum Lent {
    Here(Arc<LentChunk>),
    /// It was asked for, and may come.
    Soon,
    Not,
}

/// What is lent to this client.
pub(crate) struct Borrower {
    peers: Arc<dyn Peers>,
    boot_id: Bytes,
    shelf: Mutex<Shelf<Arc<LentChunk>>>,
    answered: Notify,
    asks: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
    me: std::sync::Weak<Self>,
}

impl Borrower {
    /// One that holds nothing yet; none where this host can't be told from others.
    pub fn start(peers: Arc<dyn Peers>) -> Option<Arc<Self>> {
        let boot_id = descriptors::boot_id()?.into();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let borrower = Arc::new_cyclic(|me| Self {
            peers,
            boot_id,
            shelf: Mutex::new(Shelf::new(HELD_MAX.min(limit / HELD_SHARE))),
            answered: Notify::new(),
            asks: Arc::new(Semaphore::new(ASKS_MAX)),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            runtime: tokio::runtime::Handle::current(),
            me: me.clone(),
        });
        let weak = Arc::downgrade(&borrower);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(borrower) = weak.upgrade() else { return };
                borrower.shelf(|shelf| shelf.sweep(Instant::now()));
            }
        });
        Some(borrower)
    }

    fn shelf<T>(&self, f: impl FnOnce(&mut Shelf<Arc<LentChunk>>) -> T) -> T {
        f(&mut self.shelf.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Files that are lent now.
    pub fn held(&self) -> usize {
        self.shelf(|shelf| shelf.len())
    }

    /// Whether a chunkserver is known to lend.
    pub fn is_near(&self, location: &ChunkLocation) -> bool {
        self.shelf(|shelf| shelf.is_near(&location.address))
    }

    /// The file of a chunk at a chunkserver. What isn't here is asked for, if it is worth it.
    pub fn find(&self, location: &ChunkLocation, place: &ChunkPlace) -> Lent {
        match self.shelf(|shelf| shelf.find(place.chunk, &location.address, Instant::now())) {
            Found::Held(chunk, renew) => {
                if renew {
                    self.ask(location, place);
                }
                Lent::Here(chunk)
            }
            Found::Ask => {
                self.ask(location, place);
                Lent::Soon
            }
            Found::Soon => Lent::Soon,
            Found::Not => Lent::Not,
        }
    }

    /// [`Self::find`], waiting a little for what may come.
    pub async fn wait_for(&self, location: &ChunkLocation, place: &ChunkPlace) -> Option<Arc<LentChunk>> {
        let deadline = Instant::now() + SOON;
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            match self.find(location, place) {
                Lent::Here(chunk) => return Some(chunk),
                Lent::Soon => timeout_at(deadline, answered).await.ok()?,
                Lent::Not => return None,
            }
        }
    }

    /// Reads where it may wait for the disk; none where too many reads wait already.
    pub async fn read(
        &self,
        chunk: Arc<LentChunk>,
        offset: u64,
        length: u64,
        keep: Keep,
    ) -> Option<Result<Bytes, ReadError>> {
        let permit = self.reads.clone().try_acquire_owned().ok()?;
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            chunk.read(offset, length, Wait::ForDisk, keep)
        });
        read.await.ok()
    }

    /// Has the kernel read ranges of files into memory. Nobody waits for it.
    pub fn will_need(&self, ranges: Vec<(Arc<LentChunk>, u64, u64)>) {
        let Ok(permit) = self.reads.clone().try_acquire_owned() else { return };
        self.runtime.spawn_blocking(move || {
            let _permit = permit;
            ranges.iter().for_each(|(chunk, offset, length)| chunk.will_need(*offset, *length));
        });
    }

    /// A file gave wrong bytes or none. It is left alone for a while, and its chunkserver is asked to read the chunk's like itself.
    pub fn is_bad(&self, location: &ChunkLocation, place: &ChunkPlace, block: Option<u64>) {
        self.shelf(|shelf| shelf.is_bad(place.chunk, &location.address, Instant::now()));
        let Ok(permit) = self.asks.clone().try_acquire_owned() else { return };
        let (peers, address) = (self.peers.clone(), location.address.clone());
        let offset = block.unwrap_or(0) * BLOCK_BYTES as u64;
        let read = Read { chunk: place.chunk, offset, length: 1, ticket: place.ticket.clone() };
        self.runtime.spawn(async move {
            let _permit = permit;
            let (body, none) = (read.encode_to_vec().into(), Bytes::new());
            let answer =
                peers.call(Role::Chunkserver, &address, Method::ChunkRead, body, none, ASK_TIMEOUT).await;
            tracing::debug!(
                chunk = read.chunk,
                address,
                found = answer.is_err(),
                "a chunkserver was asked to look at its copy"
            );
        });
    }

    /// Asks for a file, beside whatever goes on.
    fn ask(&self, location: &ChunkLocation, place: &ChunkPlace) {
        let Some(me) = self.me.upgrade() else { return };
        let (address, chunk, ticket) = (location.address.clone(), place.chunk, place.ticket.clone());
        self.runtime.spawn(async move {
            let outcome = match me.asks.clone().try_acquire_owned() {
                Ok(_permit) => me.borrow(&address, chunk, ticket).await,
                Err(_) => Outcome::Failed,
            };
            me.shelf(|shelf| shelf.answered(chunk, &address, Instant::now(), outcome));
            me.answered.notify_waiters();
        });
    }

    async fn borrow(&self, address: &str, chunk: u64, ticket: Bytes) -> Outcome<Arc<LentChunk>> {
        let lend = Lend { chunk, ticket, boot_id: self.boot_id.clone() };
        let (body, none) = (lend.encode_to_vec().into(), Bytes::new());
        let called =
            self.peers.call(Role::Chunkserver, address, Method::ChunkLend, body, none, ASK_TIMEOUT).await;
        let answer = match called {
            Ok(answer) => answer,
            // A chunkserver of an earlier release.
            Err(Failure::Refused(e))
                if matches!(e.code(), ErrorCode::NotBuilt | ErrorCode::InvalidRequest) =>
            {
                return Outcome::Far;
            }
            Err(_) => return Outcome::Failed,
        };
        let Ok(lent) = Answer::decode(answer.body) else { return Outcome::Failed };
        match LendRefusal::try_from(lent.refused) {
            Ok(LendRefusal::Unspecified) => {}
            Ok(LendRefusal::NotSealed | LendRefusal::TooMuchLent) => return Outcome::Refused,
            // Whatever a later release says instead.
            Ok(LendRefusal::NotHere) | Err(_) => return Outcome::Far,
        }
        match self.fetch(chunk, &lent).await {
            Ok(chunk) => Outcome::Lent(Arc::new(chunk)),
            Err(reason) => {
                tracing::info!(
                    address,
                    chunk,
                    reason,
                    "a chunk's file that a chunkserver on this host offers can't be used; it is read over the network"
                );
                Outcome::Far
            }
        }
    }

    async fn fetch(&self, chunk: u64, lent: &Answer) -> Result<LentChunk, String> {
        let token = <[u8; 32]>::try_from(&lent.token[..]).map_err(|_| "the token isn't one".to_owned())?;
        let terms = Terms {
            chunk: ChunkId(chunk),
            format: lent.format,
            length: lent.length,
            tail_crc: lent.tail_crc,
            file: FileIdentity { device: lent.device, inode: lent.inode },
        };
        let fetched = descriptors::fetch(Path::new(&lent.socket), &Token(token), lent.uid, ASK_TIMEOUT).await;
        let descriptor = fetched.map_err(|e| e.to_string())?;
        // It reads the file's header.
        let adopted = tokio::task::spawn_blocking(move || LentChunk::adopt(descriptor, terms)).await;
        adopted.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}
