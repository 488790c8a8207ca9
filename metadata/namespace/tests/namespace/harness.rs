//! A volume on a store, and clients of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mooseng_namespace::pack;
use mooseng_namespace::rewrite::{self, Destaged, Swapped};
use mooseng_namespace::touched::Charges;
use mooseng_namespace::trash::Terms;
use mooseng_namespace::{
    Admission, Driver, DriverError, Errno, Gate, Ids, OpContext, SessionCall, format, needs_chunk,
    needs_inode, quota, sessions,
};
use mooseng_schema::chunk::ChunkRecord;
use mooseng_schema::dirent::HashKey;
use mooseng_schema::location::LocationRecord;
use mooseng_schema::session::SessionRecord;
use mooseng_schema::staged::Staged;
use mooseng_store::Store;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, Epoch, Incarnation, InodeId, RequestNumber, SessionId, VolumeId};
use tokio::time::Instant;

use crate::faulty::Faulty;
use crate::recount;

pub const ROOT: u64 = 1;
pub const HASH_KEY: HashKey = HashKey([3; 16]);

pub struct Volume {
    pub store: Faulty,
    pub driver: Driver<Faulty>,
    inodes: AtomicU64,
    chunks: AtomicU64,
    pub now: AtomicI64,
    /// The home epoch.
    pub epoch: AtomicU64,
    /// Chunks that the rewriter made, with their bytes.
    made: Mutex<BTreeMap<u64, Vec<u8>>>,
}

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub fn request(caller: &Caller, op: Op) -> FsRequest {
    FsRequest { caller: Some(caller.clone()), op: Some(op) }
}

pub fn root() -> Caller {
    Caller::default()
}

pub fn user(uid: u32, gid: u32, groups: &[u32]) -> Caller {
    Caller { uid, gid, groups: groups.to_vec(), ..Default::default() }
}

pub fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Volume {
    pub async fn new() -> Self {
        Self::with_faults(0, 0.0).await
    }

    pub async fn with_faults(seed: u64, share: f64) -> Self {
        Self::with_trash(seed, share, 0).await
    }

    /// A volume that keeps deleted files for that many seconds.
    pub async fn with_trash(seed: u64, share: f64, retention_s: u64) -> Self {
        let store = Faulty::new(seed, share);
        let trash = Terms { retention_s, min_age_s: 0 };
        let driver = Driver::new(store.clone());
        let (made, _) = driver
            .transact(deadline(), |tx| Box::pin(format(tx, VolumeId(0), Epoch(1), HASH_KEY, 1, trash)))
            .await
            .unwrap();
        assert!(made || share > 0.0);
        Self {
            store,
            driver,
            inodes: AtomicU64::new(2),
            chunks: AtomicU64::new(1),
            now: AtomicI64::new(1_000),
            epoch: AtomicU64::new(1),
            made: Mutex::default(),
        }
    }

    pub async fn client(&self, id: u64) -> Client<'_> {
        let record = SessionRecord { incarnation: 1, identity: format!("client-{id}"), ..Default::default() };
        self.driver
            .transact(deadline(), |tx| {
                let record = record.clone();
                Box::pin(async move { sessions::create_session(tx, SessionId(id), &record).await })
            })
            .await
            .unwrap();
        Client { volume: self, id, incarnation: AtomicU64::new(1), number: AtomicU64::new(0), caller: root() }
    }

    pub fn context(&self, request: &FsRequest) -> OpContext {
        let mut ids = Ids::default();
        if needs_inode(request) {
            ids.inode = Some(InodeId(self.inodes.fetch_add(1, Ordering::Relaxed)));
        }
        if needs_chunk(request) {
            ids.chunk = Some(ChunkId(self.chunks.fetch_add(1, Ordering::Relaxed)));
        }
        OpContext {
            now_ns: self.now.fetch_add(1, Ordering::Relaxed),
            ids,
            epoch: Epoch(self.epoch.load(Ordering::Relaxed)),
            placement: vec!["cs-1".into(), "cs-2".into()],
            ..Default::default()
        }
    }

    /// Makes a chunk of these bytes, as the rewriter does before it swaps.
    pub async fn make_chunk(&self, bytes: Vec<u8>) -> u64 {
        self.make_chunk_of_class(bytes, 0).await
    }

    async fn make_chunk_of_class(&self, bytes: Vec<u8>, storage_class: u32) -> u64 {
        let chunk = self.chunks.fetch_add(1, Ordering::Relaxed);
        let length = bytes.len() as u64;
        let record = ChunkRecord { length, sealed: true, sealed_ns: 1, storage_class, ..Default::default() };
        let location =
            LocationRecord { layout: 1, copies: vec!["cs-1".into(), "cs-2".into()], epoch: 1, partial: None };
        self.made.lock().unwrap().insert(chunk, bytes);
        self.driver
            .transact(deadline(), |tx| {
                let (record, location) = (record.clone(), location.clone());
                Box::pin(async move {
                    rewrite::record(tx, ChunkId(chunk), &record, &location);
                    Ok(())
                })
            })
            .await
            .unwrap();
        chunk
    }

    /// A byte of a chunk: of one that the rewriter made, or as tests take chunks to hold.
    fn byte(&self, chunk: u64, offset: u64) -> u8 {
        let made = self.made.lock().unwrap();
        made.get(&chunk).map_or_else(|| chunk_byte(chunk, offset), |bytes| bytes[offset as usize])
    }

    /// What a file has staged, put into a chunk of its own: what a swap may be tried with.
    pub async fn copy_staged(&self, inode: u64, max: usize) -> Option<(u64, Vec<Destaged>)> {
        let (pieces, ..) = rewrite::staged_pieces(&self.store.inner.begin(), InodeId(inode), 0, max, 1 << 20)
            .await
            .unwrap()?;
        if pieces.is_empty() {
            return None;
        }
        let mut bytes = Vec::new();
        let mut moved = Vec::new();
        for piece in pieces {
            let to_offset = bytes.len() as u64;
            bytes.extend_from_slice(&piece.bytes);
            moved.push(Destaged { piece, to_offset });
        }
        Some((self.make_chunk(bytes).await, moved))
    }

    /// The swap.
    pub async fn destage(&self, chunk: u64, moved: &[Destaged]) -> Swapped {
        let inode = moved[0].piece.inode;
        self.driver
            .transact(deadline(), |tx| {
                let moved = moved.to_vec();
                Box::pin(async move { rewrite::destage(tx, inode, ChunkId(chunk), &moved).await })
            })
            .await
            .unwrap()
            .0
    }

    /// What these files have packable, put into a chunk: what a swap may be tried with.
    pub async fn copy_packable(&self, inodes: &[u64], class: u32) -> Option<(u64, Vec<Destaged>)> {
        let (mut bytes, mut moved) = (Vec::new(), Vec::new());
        for inode in inodes {
            let found = pack::packable_pieces(&self.store.inner.begin(), InodeId(*inode)).await.unwrap();
            let Some((pieces, of)) = found else { continue };
            for piece in pieces.into_iter().filter(|_| of == class) {
                let to_offset = bytes.len() as u64;
                bytes.extend_from_slice(&piece.bytes);
                moved.push(Destaged { piece, to_offset });
            }
        }
        if moved.is_empty() {
            return None;
        }
        Some((self.make_chunk_of_class(bytes, class).await, moved))
    }

    /// The swap.
    pub async fn pack(&self, chunk: u64, moved: &[Destaged]) -> Swapped {
        let packed = self.driver.transact(deadline(), |tx| {
            let moved = moved.to_vec();
            Box::pin(async move { pack::pack(tx, ChunkId(chunk), &moved).await })
        });
        packed.await.unwrap().0
    }

    /// The files that have something packable.
    pub async fn packable(&self) -> Vec<u64> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = pack::packable_files(&self.store.inner.begin(), VolumeId(0), after, 3).await;
            let (files, next) = page.unwrap();
            all.extend(files.into_iter().map(|file| file.inode.0));
            if next.is_none() {
                return all;
            }
            after = next;
        }
    }

    /// What a file counts as staged.
    pub async fn staged(&self, inode: u64) -> Staged {
        let files = rewrite::staged_files(&self.store.inner.begin(), VolumeId(0), None, 10_000).await;
        let mine = files.unwrap().into_iter().find(|file| file.inode.0 == inode);
        mine.map_or_else(Staged::default, |file| file.staged)
    }

    /// Runs a request as the master itself.
    pub async fn own(&self, op: Op) -> Reply {
        let request = request(&root(), op);
        let ctx = self.context(&request);
        let (reply, _) = self.driver.run(SessionCall::default(), &ctx, &request, deadline()).await.unwrap();
        reply.reply.unwrap()
    }

    pub async fn orphans(&self) -> Vec<u64> {
        let (list, _) = self
            .driver
            .transact(deadline(), |tx| {
                Box::pin(mooseng_namespace::upkeep::list_orphans(tx, VolumeId(0), None, 10_000))
            })
            .await
            .unwrap();
        list.into_iter().map(|(inode, _)| inode.0).collect()
    }

    pub fn check(&self) {
        let mut dump = self.store.inner.dump();
        recount::check(&dump);
        // Ids are this harness's own.
        dump.remove(mooseng_schema::ids::key(mooseng_schema::ids::IdKind::Inode, VolumeId(0)).as_slice());
        for parts in [1, 2] {
            assert_eq!(crate::fsck::check(&dump, parts), [], "the check of the whole store");
        }
    }
}

/// Lets through what fits into the limits, as the one custodian of a volume that nobody else changes at the same moment.
struct Limits<'v>(&'v Volume);

#[async_trait::async_trait]
impl Gate for Limits<'_> {
    async fn admit(&self, _facts: BTreeSet<Fact>, charges: Charges) -> Admission {
        let tx = self.0.store.inner.begin();
        match quota::all_fit(&tx, VolumeId(0), &charges).await.unwrap() {
            true => Admission::Commit,
            false => Admission::Refused(Errno::EDQUOT),
        }
    }
}

pub struct Client<'v> {
    pub volume: &'v Volume,
    pub id: u64,
    pub incarnation: AtomicU64,
    pub number: AtomicU64,
    pub caller: Caller,
}

impl Client<'_> {
    pub fn call_of(&self, number: u64) -> SessionCall {
        SessionCall {
            session: SessionId(self.id),
            incarnation: Incarnation(self.incarnation.load(Ordering::Relaxed)),
            number: RequestNumber(number),
            oldest_unanswered: RequestNumber(number.saturating_sub(3)),
        }
    }

    pub async fn send(&self, number: u64, request: &FsRequest) -> Result<Reply, DriverError> {
        let ctx = self.volume.context(request);
        let gate = Limits(self.volume);
        let answer =
            self.volume.driver.run_through(self.call_of(number), &ctx, request, &gate, deadline()).await;
        answer.map(|(reply, _)| reply.reply.unwrap())
    }

    pub fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub async fn ask(&self, op: Op) -> Reply {
        self.ask_as(&self.caller, op).await
    }

    pub async fn ask_as(&self, caller: &Caller, op: Op) -> Reply {
        let request = request(caller, op);
        let number = if mooseng_namespace::is_change(&request) { self.next_number() } else { 0 };
        self.send(number, &request).await.unwrap()
    }

    /// The errno of an answer; 0 for success.
    pub async fn errno(&self, op: Op) -> u32 {
        errno(&self.ask(op).await)
    }

    pub async fn mkdir(&self, parent: u64, text: &str) -> u64 {
        let op = Op::Mkdir(Mkdir { parent, name: name(text), mode: 0o755, alone: false });
        attr(self.ask(op).await).inode
    }

    pub async fn create(&self, parent: u64, text: &str) -> u64 {
        let op =
            Op::Create(Create { parent, name: name(text), mode: 0o644, exclusive: true, truncate: false });
        attr(self.ask(op).await).inode
    }

    pub async fn write(&self, inode: u64, offset: u64, bytes: &[u8]) -> Reply {
        let pieces = bytes
            .chunks(16 << 10)
            .enumerate()
            .map(|(i, part)| WritePiece {
                offset: offset + (i * (16 << 10)) as u64,
                data: Some(write_piece::Data::Inline(Bytes::copy_from_slice(part))),
            })
            .collect();
        self.ask(Op::Write(Write { inode, pieces, ..Default::default() })).await
    }

    /// A file's bytes, holes as zeros.
    pub async fn read(&self, inode: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let offset = bytes.len() as u64;
            let op = Op::ReadExtents(ReadExtents { inode, offset, length: u64::MAX });
            let Reply::Extents(map) = self.ask(op).await else { panic!("no extents") };
            bytes.resize(map.covered as usize, 0);
            for extent in map.extents {
                let at = extent.offset as usize;
                match extent.data.unwrap() {
                    extent::Data::Inline(data) => bytes[at..at + data.len()].copy_from_slice(&data),
                    extent::Data::Run(run) => {
                        assert!(map.chunks.iter().any(|c| c.chunk == run.chunk && c.locations.len() == 2));
                        for i in 0..run.length {
                            bytes[at + i as usize] = self.volume.byte(run.chunk, run.chunk_offset + i);
                        }
                    }
                }
            }
            if map.covered == map.size {
                return bytes;
            }
        }
    }

    /// All entries, page by page.
    pub async fn list(&self, inode: u64, entries_max: u32, plus: bool) -> Vec<DirEntry> {
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let cookie = entries.last().map_or(0, |e| e.cookie);
            let op = Op::ReadDir(ReadDir { inode, cookie, entries_max, plus });
            let Reply::DirPage(page) = self.ask(op).await else { panic!("no page") };
            entries.extend(page.entries);
            if page.end {
                return entries;
            }
        }
    }

    pub async fn attr(&self, inode: u64) -> Attr {
        attr(self.ask(Op::GetAttr(GetAttr { inode })).await)
    }
}

/// The bytes that tests take chunks to hold.
pub fn chunk_byte(chunk: u64, offset: u64) -> u8 {
    (chunk.wrapping_mul(31) ^ offset.wrapping_mul(7) ^ (offset >> 8)) as u8
}

pub fn errno(reply: &Reply) -> u32 {
    match reply {
        Reply::Errno(errno) => *errno,
        _ => 0,
    }
}

pub fn attr(reply: Reply) -> Attr {
    match reply {
        Reply::Entry(e) => e.attr.unwrap(),
        Reply::Created(c) => c.attr.unwrap(),
        Reply::Written(w) => w.attr.unwrap(),
        Reply::Ranged(r) => r.attr.unwrap(),
        other => panic!("no attributes: {other:?}"),
    }
}
