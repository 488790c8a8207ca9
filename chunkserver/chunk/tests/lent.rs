//! Sealed chunks in the hands of somebody on the same host, on a real filesystem.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use common::{open, open_with, options};
use mooseng_chunk::layout::{block_at, entry_at};
use mooseng_chunk::lent::{LentChunk, LentError, Loan, ReadError, Terms};
use mooseng_chunk::{Append, ChunkError, ChunkStore, StoreOptions};
use mooseng_ports::disk::lent::{Keep, Wait};
use mooseng_ports::disk::os::OsDisk;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_wire::{ChunkId, Epoch};

const ONE: ChunkId = ChunkId(0x01);
const EPOCH: Epoch = Epoch(1);

struct Rig {
    store: ChunkStore,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state_dir, data) = (dir.path().join("state"), dir.path().join("data"));
        let options = StoreOptions { state_dir, data_dirs: vec![data], ..options(&[]) };
        Self { store: open_with(&OsDisk, options), dir }
    }

    fn sealed(&self, chunk: ChunkId, bytes: &[u8]) {
        append(&self.store, chunk, bytes);
        self.store.seal(chunk, EPOCH, bytes.len() as u64).unwrap();
    }

    fn loan(&self, chunk: ChunkId) -> Loan {
        self.store.lend(chunk).unwrap().unwrap()
    }

    fn lent(&self, chunk: ChunkId) -> LentChunk {
        let loan = self.loan(chunk);
        LentChunk::adopt(loan.descriptor, loan.terms).unwrap()
    }

    fn path(&self, chunk: ChunkId) -> PathBuf {
        self.dir.path().join(format!("data/chunks/{:02x}/{:016x}", chunk.0 & 0xff, chunk.0))
    }

    fn flip(&self, chunk: ChunkId, at: u64) {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(self.path(chunk)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn append(store: &ChunkStore, chunk: ChunkId, bytes: &[u8]) {
    store.write(&Append { chunk, epoch: EPOCH, offset: 0, bytes: Bytes::copy_from_slice(bytes) }).unwrap();
    store.flush(chunk).unwrap();
}

#[test]
fn any_range_is_read_as_the_chunkserver_reads_it() {
    let rig = Rig::new();
    for (n, length) in [1usize, 4095, 4096, 4097, 262_144, 262_145, 1_500_000].into_iter().enumerate() {
        let (chunk, all) = (ChunkId(n as u64 + 1), pattern(length));
        rig.sealed(chunk, &all);
        let lent = rig.lent(chunk);
        for (offset, bytes) in
            [(0, 1), (4095, 2), (262_143, 2), (100_000, 700_001), (0, length), (length - 1, 1)]
        {
            let expected = all.get(offset..offset + bytes);
            let read = lent.read(offset as u64, bytes as u64, Wait::ForDisk, Keep::Nothing);
            match expected {
                Some(expected) => assert!(read.unwrap() == expected, "{offset} {bytes} of {length}"),
                None => assert!(matches!(read, Err(ReadError::TooShort(_)))),
            }
        }
        // By now the kernel has all of it in memory, unless the filesystem can't tell.
        match lent.read(0, length as u64, Wait::Never, Keep::Pages) {
            Ok(read) => assert!(read == all),
            Err(error) => assert!(matches!(error, ReadError::NotInMemory), "{error}"),
        }
        lent.will_need(0, u64::MAX);
        assert!(lent.read(u64::MAX, 2, Wait::ForDisk, Keep::Nothing).is_err());
    }
}

/// Whole blocks, from any block on, past the page cache where the filesystem has that.
#[test]
fn whole_blocks_are_read_with_one_read_of_the_disk() {
    let rig = Rig::new();
    let all = pattern(1_500_000);
    rig.sealed(ONE, &all);
    for first in [0, 1, 63, 64, 65, 128] {
        for blocks in [32, 63, 64, 65, 128, 200] {
            // Known and unknown checksums.
            let lent = rig.lent(ONE);
            for _ in 0..2 {
                let read = lent.read(first * 4096, blocks * 4096, Wait::ForDisk, Keep::Nothing);
                let expected = &all[first as usize * 4096..(first + blocks) as usize * 4096];
                assert!(read.unwrap() == expected, "{blocks} from {first}");
            }
        }
    }
    rig.flip(ONE, block_at(70) + 5);
    let lent = rig.lent(ONE);
    let read = |first: u64, blocks: u64| lent.read(first * 4096, blocks * 4096, Wait::ForDisk, Keep::Nothing);
    assert!(matches!(read(64, 64), Err(ReadError::Corrupt(70))));
    assert!(read(71, 100).unwrap() == all[71 * 4096..171 * 4096]);
    rig.flip(ONE, entry_at(130));
    let lent = rig.lent(ONE);
    assert!(matches!(lent.read(0, 200 * 4096, Wait::ForDisk, Keep::Nothing), Err(ReadError::Corrupt(70))));
    assert!(matches!(
        lent.read(128 * 4096, 64 * 4096, Wait::ForDisk, Keep::Nothing),
        Err(ReadError::Corrupt(130))
    ));
}

#[test]
fn a_block_that_rots_is_noticed_and_no_other_is_held_against_it() {
    let rig = Rig::new();
    let all = pattern(600_000);
    rig.sealed(ONE, &all);
    let lent = rig.lent(ONE);
    rig.flip(ONE, block_at(70) + 5);
    assert!(matches!(lent.read(0, 600_000, Wait::ForDisk, Keep::Nothing), Err(ReadError::Corrupt(70))));
    assert!(lent.read(0, 4096 * 70, Wait::ForDisk, Keep::Nothing).unwrap() == all[..4096 * 70]);
    assert!(
        lent.read(4096 * 71, 10, Wait::ForDisk, Keep::Nothing).unwrap() == all[4096 * 71..4096 * 71 + 10]
    );
    // A checksum that rots, of a group that wasn't read yet, and the chunk's partial end.
    rig.flip(ONE, entry_at(130));
    rig.flip(ONE, block_at(146) + 1);
    assert!(matches!(lent.read(4096 * 130, 1, Wait::ForDisk, Keep::Nothing), Err(ReadError::Corrupt(130))));
    assert!(matches!(lent.read(599_999, 1, Wait::ForDisk, Keep::Nothing), Err(ReadError::Corrupt(146))));
}

#[test]
fn what_is_lent_stays_right_when_the_chunk_is_deleted() {
    let rig = Rig::new();
    let all = pattern(10_000);
    rig.sealed(ONE, &all);
    let lent = rig.lent(ONE);
    rig.store.delete(ONE, EPOCH, 1, 7).unwrap();
    assert!(!rig.path(ONE).exists());
    assert!(lent.read(0, 10_000, Wait::ForDisk, Keep::Nothing).unwrap() == all);
    assert!(matches!(rig.store.lend(ONE), Err(ChunkError::NotFound { .. })));
}

#[test]
fn only_a_sealed_and_sound_copy_is_lent_and_only_where_there_are_descriptors() {
    let rig = Rig::new();
    append(&rig.store, ONE, &pattern(10_000));
    assert!(rig.store.lend(ONE).unwrap().is_none());
    rig.store.seal(ONE, EPOCH, 10_000).unwrap();
    assert!(rig.store.lend(ONE).unwrap().is_some());
    rig.flip(ONE, block_at(1));
    assert!(rig.store.read(ONE, 0, 10_000).is_err());
    assert!(matches!(rig.store.lend(ONE), Err(ChunkError::DiskFailed { .. })));

    let simulated = open(&SimDisk::default(), &["/data"]);
    append(&simulated, ONE, b"x");
    simulated.seal(ONE, EPOCH, 1).unwrap();
    assert!(simulated.lend(ONE).unwrap().is_none());
}

#[test]
fn a_descriptor_of_anything_else_isnt_used() {
    let rig = Rig::new();
    let two = ChunkId(0x101);
    rig.sealed(ONE, &pattern(10_000));
    rig.sealed(two, &pattern(10_000));
    let adopt = |chunk, change: &dyn Fn(Terms) -> Terms| {
        let loan = rig.loan(chunk);
        LentChunk::adopt(loan.descriptor, change(loan.terms))
    };
    assert!(adopt(ONE, &|terms| terms).is_ok());
    let other_file = rig.loan(two).terms.file;
    assert!(matches!(adopt(ONE, &|terms| Terms { file: other_file, ..terms }), Err(LentError::OtherFile(_))));
    assert!(matches!(adopt(two, &|terms| Terms { chunk: ONE, ..terms }), Err(LentError::OtherFile(_))));
    for length in [20_000, u64::MAX] {
        assert!(matches!(adopt(ONE, &|terms| Terms { length, ..terms }), Err(LentError::OtherFile(_))));
    }
    assert!(matches!(adopt(ONE, &|terms| Terms { format: 2, ..terms }), Err(LentError::Format(2))));
    assert!(
        adopt(ONE, &|terms| Terms { tail_crc: 1, ..terms })
            .unwrap()
            .read(9_999, 1, Wait::ForDisk, Keep::Nothing)
            .is_err()
    );
}
