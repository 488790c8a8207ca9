//! What lies on disks: the Raft log, chunks, the metadata store, and dumps of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mooseng_chunk::{Append, ChunkStore, StoreOptions};
use mooseng_embedded::base::{decode_position, encode_position, end_of_batches};
use mooseng_embedded::{BasePosition, Position};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_store::dump::{Encoder, FORMAT, Header, Reader};
use mooseng_wal::{Entry, LogId, Options, Vote, Wal};
use mooseng_wire::{ChunkId, Epoch};
use xxhash_rust::xxh3::xxh3_64;

pub const LOG_DIR: &str = "/raft";
pub const STATE_DIR: &str = "/state";
pub const DATA_DIR: &str = "/data";
const CHUNK: ChunkId = ChunkId(1);
const EPOCH: Epoch = Epoch(1);
/// Bytes of the chunk that is damaged: two groups of blocks, and a piece of one.
const CHUNK_BYTES: usize = 66 * 4096 + 700;

/// Has a disk hold a file.
pub fn put(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let made = path.parent().map_or(Ok(()), |directory| disk.create_dir_all(directory));
    assert!(made.and_then(|()| write_atomically(disk, path, bytes)).is_ok(), "a new disk takes a file");
}

/// What a file holds, which must be there.
pub fn kept(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let read = disk.open(path, OpenMode::ReadOnly).and_then(|file| read_all(&*file));
    read.unwrap_or_else(|error| panic!("{} can't be read: {error}", path.display()))
}

/// Damage to a file: changed bytes, and where it ends.
///
/// The input is a row of changes, each of an offset (3 bytes), a length up to 15 or the mark of a cut (1 byte), and the bytes.
fn damage(disk: &SimDisk, path: &Path, input: &[u8]) {
    let Ok(file) = disk.open(path, OpenMode::Existing) else { return };
    let length = file.len().unwrap_or(0);
    let mut rest = input;
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let at = u64::from(u32::from_le_bytes([head[0], head[1], head[2], 0])) % length.max(1);
        if head[3] >= 0xf0 {
            let _ = file.set_len(at);
            rest = behind;
            continue;
        }
        let bytes = &behind[..usize::from(head[3] & 0x0f).min(behind.len())];
        let _ = file.write_at(bytes, at);
        rest = &behind[bytes.len()..];
    }
    let _ = file.sync_data();
}

fn files(disk: &SimDisk, below: &str) -> Vec<PathBuf> {
    disk.files().into_iter().map(|(path, _)| path).filter(|path| path.starts_with(below)).collect()
}

fn entry(index: u64) -> Entry {
    let payload = Bytes::from(vec![index as u8; 40 + index as usize % 50]);
    Entry { id: LogId { term: 1 + index / 8, node: 1, index }, payload }
}

/// A log whose segment is damaged somehow: it is refused, or holds entries that were appended, each in its place, and goes on.
pub fn log(input: &[u8]) {
    let disk = SimDisk::default();
    let open = || Wal::open(Arc::new(disk.clone()), Path::new(LOG_DIR), Options::default());
    {
        let Ok(wal) = open() else { panic!("a new log opens") };
        for index in 0..24 {
            assert!(wal.append(vec![entry(index)]).is_ok());
        }
        assert!(wal.save_vote(Vote { term: 9, node: 2, committed: true }).is_ok());
    }
    for path in files(&disk, LOG_DIR) {
        damage(&disk, &path, input);
    }
    let Ok(wal) = open() else { return };
    let Some(last) = wal.last() else { return };
    let first = wal.purged().map_or(0, |id| id.index + 1);
    if let Ok(read) = wal.read(first..last.index + 1, usize::MAX) {
        for (index, found) in (first..).zip(&read) {
            assert_eq!(*found, entry(index), "the log answers what nobody appended");
        }
    }
    let next = Entry { id: LogId { index: last.index + 1, ..last }, payload: Bytes::from_static(b"next") };
    if wal.append(vec![next]).is_ok() {
        assert_eq!(wal.last().map(|id| id.index), Some(last.index + 1));
    }
}

pub fn log_seeds() -> Vec<Vec<u8>> {
    vec![vec![], vec![64, 0, 0, 1, 7], vec![0, 2, 0, 4, 1, 2, 3, 4], vec![200, 1, 0, 0xf0]]
}

fn options() -> StoreOptions {
    StoreOptions {
        cluster: "c".into(),
        chunkserver: "cs".into(),
        state_dir: STATE_DIR.into(),
        data_dirs: vec![DATA_DIR.into()],
        reserve_bytes: 0,
        open_files_max: 8,
        trash: false,
    }
}

/// Chunkserver cs of cluster c.
pub fn store(disk: &SimDisk) -> Option<ChunkStore> {
    ChunkStore::open(Arc::new(disk.clone()), options(), &mut || "disk".to_owned()).ok()
}

fn content() -> Vec<u8> {
    (0..CHUNK_BYTES).map(|i| (i * 7 + i / 4096) as u8).collect()
}

/// A chunk whose file is damaged somehow, sealed or not: its bytes are those that were written, or there is an error.
pub fn chunk(input: &[u8]) {
    let Some((how, changes)) = input.split_first() else { return };
    let (disk, all) = (SimDisk::default(), content());
    {
        let Some(store) = store(&disk) else { panic!("a new store opens") };
        let mut offset = 0;
        for piece in all.chunks(40_000) {
            let append = Append { chunk: CHUNK, epoch: EPOCH, offset, bytes: Bytes::copy_from_slice(piece) };
            assert!(store.write(&append).is_ok() && store.flush(CHUNK).is_ok());
            offset += piece.len() as u64;
        }
        if how & 1 == 1 {
            assert!(store.seal(CHUNK, EPOCH, CHUNK_BYTES as u64).is_ok());
        }
    }
    for path in files(&disk, "/data/chunks") {
        damage(&disk, &path, changes);
    }
    let Some(store) = store(&disk) else { return };
    for (block, expected) in all.chunks(4096).enumerate() {
        if let Ok(read) = store.read(CHUNK, block as u64 * 4096, expected.len() as u64) {
            assert!(read == expected, "block {block} answers bytes that nobody wrote");
        }
    }
    // Whatever is left of it can be handled.
    let _ = store.stat(CHUNK);
    let _ = store.inventory(None, 10);
    let _ = store.seal_here(CHUNK, EPOCH);
    let _ = store.delete(CHUNK, EPOCH, 1, 0);
}

pub fn chunk_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0],
        vec![1],
        // A record, a table entry, a block, the end.
        vec![0, 0, 2, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![1, 0, 6, 0, 4, 1, 2, 3, 4],
        vec![0, 0, 32, 0, 1, 9],
        vec![1, 0, 32, 1, 0xff],
    ]
}

/// A dump of a store: it is refused, or is to the byte what these pairs are dumped as. What is read doesn't grow beyond a block.
///
/// Checksums would keep all but the seeds out: the first byte says whether they are put right, so that what lies behind them is reached.
pub fn dump(input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else { return };
    let bytes = if how % 2 == 0 { bytes.to_vec() } else { with_checksums(bytes) };
    let Ok(mut reader) = Reader::begin(&bytes[..]) else { return };
    // One that claims an earlier format is read, and would be written in this one.
    if bytes.get(8..12) != Some(&FORMAT.to_le_bytes()[..]) {
        return;
    }
    let (mut encoder, mut again) = Encoder::begin(&reader.header);
    loop {
        match reader.block() {
            Ok(Some(pairs)) => again.extend(encoder.block(&pairs)),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let (end, totals) = encoder.end();
    again.extend(end);
    assert_eq!(reader.totals(), Some(totals));
    assert!(again == bytes, "a dump was taken in that nobody would write so");
}

/// The same bytes, cut into header, blocks and end as they say themselves, with the checksums that fit.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let length_at = |at: usize| {
        let bytes: Option<[u8; 4]> = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(|b| u32::from_le_bytes(b) as usize)
    };
    let mut out = bytes.to_vec();
    // Where a piece begins, and what it is: the magic, a block, or the end.
    let (mut at, mut first) = (0, true);
    loop {
        let body = match (first, bytes.get(at)) {
            (true, _) => length_at(12).and_then(|length| length.checked_add(16)),
            (false, Some(1)) => length_at(at + 9).and_then(|length| length.checked_add(13)),
            (false, Some(2)) => Some(1 + 24 + 32),
            _ => None,
        };
        let Some(end) = body.and_then(|body| at.checked_add(body)) else { return out };
        let Some(piece) = out.get(at..end) else { return out };
        let crc = crc32fast::hash(piece).to_le_bytes();
        let Some(place) = out.get_mut(end..end + 4) else { return out };
        place.copy_from_slice(&crc);
        (at, first) = (end + 4, false);
    }
}

pub fn dump_seeds() -> Vec<Vec<u8>> {
    let header = Header {
        cluster: "c".into(),
        region: "r".into(),
        founding: vec![1; 16],
        version: 9,
        term: 2,
        taken_unix_s: 1_800_000_000,
    };
    let pair = |i: u8| (Bytes::from(vec![i; 1 + usize::from(i) % 3]), Bytes::from(vec![i; usize::from(i)]));
    let seed = |how: u8, blocks: usize| {
        let (mut encoder, bytes) = Encoder::begin(&header);
        let mut seed = vec![how];
        seed.extend(bytes);
        let pairs: Vec<_> = (0..30).map(pair).collect();
        for block in pairs.chunks(30 / blocks.max(1)).take(blocks) {
            seed.extend(encoder.block(block));
        }
        seed.extend(encoder.end().0);
        seed
    };
    vec![seed(0, 0), seed(0, 3), seed(1, 1), seed(1, 3)]
}

/// Where the metadata store stands in the log, as it keeps that: refused, or to the byte what would be written for that place.
pub fn position(input: &[u8]) {
    if let Some(at) = decode_position(input) {
        assert!(encode_position(&at) == input, "a position was taken in that nobody would write so");
    }
}

pub fn position_seeds() -> Vec<Vec<u8>> {
    let at = |version, meta: &'static [u8]| {
        let position = Position { index: 1, term: 2, node: 3, meta: Bytes::from_static(meta) };
        encode_position(&BasePosition { position, version })
    };
    vec![encode_position(&BasePosition::default()), at(4, b"membership"), at(u64::MAX, b"")]
}

/// The journal below the metadata store, whose end a power loss may have torn: what is kept of it is whole, and goes on.
pub fn journal(input: &[u8]) {
    let end = end_of_batches(input);
    let Some(whole) = input.get(..end) else { panic!("more is kept than there is") };
    assert_eq!(end_of_batches(whole), end, "what is kept isn't whole");
    let next = journal_batch(9, &[pair(b"next", b"value")]);
    assert_eq!(end_of_batches(&[whole, &next].concat()), end + next.len(), "what is kept doesn't go on");
}

/// A batch as fjall writes it.
fn journal_batch(sequence: u64, items: &[Vec<u8>]) -> Vec<u8> {
    let (count, items) = (items.len() as u32, items.concat());
    let mut batch = vec![1];
    batch.extend(count.to_le_bytes());
    batch.extend(sequence.to_le_bytes());
    batch.extend_from_slice(&items);
    batch.push(3);
    batch.extend(xxh3_64(&items).to_le_bytes());
    batch.extend_from_slice(b"FJL\x03");
    batch
}

/// An item of a batch: a key and a value that isn't compressed.
fn pair(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut item = vec![2, 0, 0];
    item.extend(1_u64.to_le_bytes());
    item.extend((key.len() as u16).to_le_bytes());
    let length = (value.len() as u32).to_le_bytes();
    [&item[..], &length, &length, key, value].concat()
}

pub fn journal_seeds() -> Vec<Vec<u8>> {
    let cleared = [&[4_u8][..], &1_u64.to_le_bytes()].concat();
    let first = journal_batch(1, &[pair(b"dk", b"value"), pair(b"p", &[1; 33])]);
    let second = journal_batch(2, &[cleared, pair(b"dl", b"")]);
    let both = [&first[..], &second].concat();
    assert_eq!(end_of_batches(&both), both.len(), "the journal's format is another one");
    // Torn, with zeros that were reserved behind it.
    let torn = [&both[..], &second[..20], &[0; 16]].concat();
    vec![vec![], first, both, torn]
}
