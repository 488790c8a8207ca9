//! What lies on disks: the Raft log and chunks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mooseng_chunk::{Append, ChunkStore, StoreOptions};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_wal::{Entry, LogId, Options, Vote, Wal};
use mooseng_wire::{ChunkId, Epoch};

const LOG_DIR: &str = "/raft";
const CHUNK: ChunkId = ChunkId(1);
const EPOCH: Epoch = Epoch(1);
/// Bytes of the chunk that is damaged: two groups of blocks, and a piece of one.
const CHUNK_BYTES: usize = 66 * 4096 + 700;

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
        state_dir: "/state".into(),
        data_dirs: vec!["/data".into()],
        reserve_bytes: 0,
        open_files_max: 8,
        trash: false,
    }
}

fn store(disk: &SimDisk) -> Option<ChunkStore> {
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
