//! Whether a lock is flock's or fcntl's.
//!
//! The kernel says so in the last field of its request (`lk_flags` of `fuse_lk_in`), which fuser reads and doesn't pass on. What it does
//! pass on is a reference to the request's header, in the buffer into which it read the whole request: the field lies 80 bytes behind its
//! beginning. It is read there through /proc/self/mem, which can't go wrong as a pointer beyond the header could, and believed only if all
//! that fuser did pass on is found in its place, too. Where that fails, a lock counts as fcntl's, as NFS has it: then flock and fcntl
//! locks of one file stand in each other's way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::Request;
use mooseng_client::LockKind;

/// Length of a request for a lock: `fuse_in_header` and `fuse_lk_in`.
const REQUEST_BYTES: usize = 88;
const OPCODES: std::ops::RangeInclusive<u32> = 31..=33;
/// FUSE_LK_FLOCK.
const IS_FLOCK: u32 = 1;

/// What fuser says of a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub unique: u64,
    pub inode: u64,
    pub handle: u64,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub kind: i32,
    pub pid: u32,
}

/// Reads requests where they lie.
#[derive(Debug)]
pub(crate) struct LockKinds {
    memory: Option<File>,
    warned: AtomicBool,
}

impl LockKinds {
    pub fn new() -> Self {
        let memory = File::open("/proc/self/mem")
            .inspect_err(|error| tracing::info!(%error, "this process may not read its own memory"));
        Self { memory: memory.ok(), warned: AtomicBool::new(false) }
    }

    /// Of which kind the lock is.
    pub fn of(&self, request: &Request, said: &Said) -> LockKind {
        let mut bytes = [0; REQUEST_BYTES];
        let address = std::ptr::from_ref(request).addr() as u64;
        let read =
            self.memory.as_ref().is_some_and(|memory| memory.read_exact_at(&mut bytes, address).is_ok());
        match read.then(|| kind_in(&bytes, said)).flatten() {
            Some(kind) => kind,
            None => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "flock can't be told from fcntl here: locks of both kinds on one file stand in each other's way"
                    );
                }
                LockKind::Range
            }
        }
    }
}

fn kind_in(bytes: &[u8; REQUEST_BYTES], said: &Said) -> Option<LockKind> {
    let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let u64_at = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let there = Said {
        unique: u64_at(8)?,
        inode: u64_at(16)?,
        handle: u64_at(40)?,
        owner: u64_at(48)?,
        start: u64_at(56)?,
        end: u64_at(64)?,
        kind: i32::try_from(u32_at(72)?).ok()?,
        pid: u32_at(76)?,
    };
    if u32_at(0)? as usize != REQUEST_BYTES || !OPCODES.contains(&u32_at(4)?) || there != *said {
        return None;
    }
    Some(if u32_at(80)? & IS_FLOCK != 0 { LockKind::File } else { LockKind::Range })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: Said = Said { unique: 2, inode: 3, handle: 4, owner: 5, start: 6, end: 7, kind: 1, pid: 8 };

    fn request(opcode: u32, flags: u32) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0xee; REQUEST_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &88u32.to_ne_bytes());
        put(4, &opcode.to_ne_bytes());
        for (at, field) in [(8, 2u64), (16, 3), (40, 4), (48, 5), (56, 6), (64, 7)] {
            put(at, &field.to_ne_bytes());
        }
        for (at, field) in [(72, 1u32), (76, 8), (80, flags)] {
            put(at, &field.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn the_flag_is_believed_only_behind_all_that_is_known() {
        assert_eq!(kind_in(&request(32, 1), &SAID), Some(LockKind::File));
        assert_eq!(kind_in(&request(33, 0), &SAID), Some(LockKind::Range));
        assert_eq!(kind_in(&request(30, 1), &SAID), None, "another request");
        assert_eq!(kind_in(&request(32, 1), &Said { owner: 6, ..SAID }), None);
    }

    #[test]
    fn memory_is_read_where_a_reference_points() {
        let kinds = LockKinds::new();
        let there = 0x1234_5678_9abc_def0_u64;
        let mut bytes = [0; 8];
        let address = std::ptr::from_ref(&there).addr() as u64;
        kinds.memory.unwrap().read_exact_at(&mut bytes, address).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), there);
    }
}
