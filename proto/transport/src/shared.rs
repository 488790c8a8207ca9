//! Memory that both ends of a connection see, where they are on one host: whoever calls writes large bulk there instead of sending it, and the serving end
//! copies it out when the request arrives. Encryption, sockets' small buffers and the copies between cost more than these two copies
//! (docs/decisions/0044-memory-shared.md).
//!
//! ```text
//!  calls                                                          serves
//!   --AskMemory (boot id)-->                                       makes it, fixes its size, keeps it with the connection
//!   <--MemoryLent (socket, token, which file)--
//!   --token--> Counter ([`crate::descriptors`]) -> descriptor
//!   bulk -> a free slot; request { shared_at, shared_bytes } -->   slot -> bytes of its own, before anything else is done with them
//! ```
//! Who may have it is decided on the authenticated stream; nobody else comes by the descriptor. What is in it the other end may change at any time: the
//! serving end believes no byte of it that it hasn't copied. A message whose bulk may go this way says a checksum of it.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::disk::direct::Aligned;
use mooseng_ports::disk::lent::FileIdentity;
use mooseng_wire::BULK_BYTES_MAX;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use tokio::time::Instant;

/// Calls whose bulk may lie in one connection's memory at a time; further ones send theirs.
const SLOTS: u32 = 16;
/// Room for one call's bulk.
const SLOT_BYTES: u64 = BULK_BYTES_MAX as u64;
/// Bulk from this size on goes this way: below, a system call more costs as much as is saved.
pub(crate) const BULK_MIN: usize = 64 << 10;
/// Beside the error that the serving end can't read the memory: its caller does without from then on. Others that say "unavailable" pass.
pub(crate) const UNREADABLE: &[u8] = b"shared memory";
/// How long a slot is left alone whose call wasn't waited for: its request may be on its way, and should find what belongs to it.
const REST: Duration = Duration::from_secs(30);

/// Seals that memory of a fixed size has: whoever writes to it can't shrink it under the other end's eyes.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Whatever is kept as long as memory is shared: room in a bound.
pub type Room = Box<dyn Any + Send + Sync>;

/// The serving end's. No page of it is taken up before it was written to; all are given back with it.
pub(crate) struct LentMemory {
    file: OwnedFd,
    _room: Room,
}

/// Why bulk can't be had from it.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// It isn't there.
    Nowhere(String),
    /// The system fails.
    Unreadable(io::Error),
}

impl LentMemory {
    fn make(room: Room) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Before Linux 6.3 the kernel doesn't know of NOEXEC_SEAL.
        let file = memfd_create("mooseng-bulk", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| memfd_create("mooseng-bulk", flags))?;
        ftruncate(&file, u64::from(SLOTS) * SLOT_BYTES)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(Self { file, _room: room })
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// Copies what a request says its bulk is.
    pub(crate) fn take(&self, at: u64, bytes: usize) -> Result<Bytes, NotTaken> {
        let end = at.checked_add(bytes as u64).filter(|end| *end <= u64::from(SLOTS) * SLOT_BYTES);
        if bytes > BULK_BYTES_MAX || end.is_none() {
            return Err(NotTaken::Nowhere(format!(
                "{bytes} bytes of bulk from {at} on don't lie in the memory that this connection shares"
            )));
        }
        // As direct I/O takes it, so that it isn't copied a second time.
        let mut taken = Aligned::of(bytes);
        let mut done = 0;
        while done < bytes {
            match rustix::io::pread(&self.file, &mut taken.as_mut()[done..], at + done as u64) {
                Ok(0) => return Err(NotTaken::Unreadable(io::ErrorKind::UnexpectedEof.into())),
                Ok(more) => done += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(NotTaken::Unreadable(error.into())),
            }
        }
        Ok(Bytes::from_owner(taken))
    }
}

/// Memory that waits for its descriptor to be fetched: only then it is the connection's.
pub struct MemoryOffer {
    memory: LentMemory,
    place: Weak<OnceLock<LentMemory>>,
}

impl MemoryOffer {
    pub(crate) fn make(place: &Arc<OnceLock<LentMemory>>, room: Room) -> io::Result<Self> {
        Ok(Self { memory: LentMemory::make(room)?, place: Arc::downgrade(place) })
    }

    /// Which memory the descriptor is of.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        FileIdentity::of(&self.memory.file)
    }

    /// The descriptor, for whoever calls on the connection. None if that has ended, or shares memory already.
    pub fn hand_over(self) -> Option<OwnedFd> {
        let (descriptor, place) = (self.memory.descriptor().ok()?, self.place.upgrade()?);
        place.set(self.memory).ok()?;
        Some(descriptor)
    }
}

/// The calling end's.
#[derive(Debug)]
pub(crate) struct BorrowedMemory {
    file: OwnedFd,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    free: Vec<u32>,
    /// Those that rest, and until when.
    resting: VecDeque<(Instant, u32)>,
}

impl BorrowedMemory {
    /// Takes a descriptor on, if it is of that memory, whose size is fixed: a descriptor of a file or a device isn't written to.
    pub(crate) fn adopt(file: OwnedFd, identity: FileIdentity) -> io::Result<Self> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
        if FileIdentity::of(&file)? != identity {
            return refused("the descriptor isn't of the memory that was offered");
        }
        // Only memory has seals.
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SEALS)) {
            return refused("the descriptor isn't of memory whose size is fixed");
        }
        if u64::try_from(fstat(&file)?.st_size).ok() != Some(u64::from(SLOTS) * SLOT_BYTES) {
            return refused("the memory hasn't the size that it is to have");
        }
        // The first comes out first: memory that was used before is used again.
        let free = (0..SLOTS).rev().collect();
        Ok(Self { file, slots: Mutex::new(Slots { free, resting: VecDeque::new() }) })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a call's bulk there; none if there is no room, and it is to be sent.
    pub(crate) fn put(self: &Arc<Self>, bulk: &[u8]) -> Option<Slot> {
        if bulk.len() < BULK_MIN || bulk.len() > BULK_BYTES_MAX {
            return None;
        }
        let number = {
            let (slots, now) = (&mut *self.slots(), Instant::now());
            while let Some((_, rested)) = slots.resting.pop_front_if(|(until, _)| *until <= now) {
                slots.free.push(rested);
            }
            slots.free.pop()?
        };
        let slot = Slot { memory: self.clone(), number, is_free: false };
        let mut put = 0;
        while put < bulk.len() {
            match rustix::io::pwrite(&self.file, &bulk[put..], slot.at() + put as u64) {
                Ok(more) if more > 0 => put += more,
                Err(rustix::io::Errno::INTR) => {}
                // It is sent instead.
                Ok(_) | Err(_) => {
                    slot.give_back();
                    return None;
                }
            }
        }
        Some(slot)
    }
}

/// Where a call's bulk lies until it is answered.
#[derive(Debug)]
pub(crate) struct Slot {
    memory: Arc<BorrowedMemory>,
    number: u32,
    is_free: bool,
}

impl Slot {
    /// Where in the memory.
    pub(crate) fn at(&self) -> u64 {
        u64::from(self.number) * SLOT_BYTES
    }

    /// The other end has seen the request, and reads it no more; or it was never sent.
    pub(crate) fn give_back(mut self) {
        self.is_free = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let slots = &mut *self.memory.slots();
        if self.is_free {
            slots.free.push(self.number);
        } else {
            slots.resting.push_back((Instant::now() + REST, self.number));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn memory() -> (LentMemory, Arc<BorrowedMemory>) {
        let lent = LentMemory::make(Box::new(())).unwrap();
        let descriptor = lent.descriptor().unwrap();
        let identity = FileIdentity::of(&descriptor).unwrap();
        (lent, Arc::new(BorrowedMemory::adopt(descriptor, identity).unwrap()))
    }

    #[tokio::test]
    async fn what_is_put_there_is_taken_out() {
        let (lent, borrowed) = memory();
        let bulks: Vec<Vec<u8>> = (1..=3u8).map(|n| vec![n; BULK_MIN * usize::from(n) + 5]).collect();
        let slots: Vec<Slot> = bulks.iter().map(|bulk| borrowed.put(bulk).unwrap()).collect();
        for (bulk, slot) in bulks.iter().zip(&slots) {
            assert_eq!(lent.take(slot.at(), bulk.len()).unwrap(), bulk[..]);
        }
        assert!(borrowed.put(&[0; BULK_MIN - 1]).is_none(), "small bulk is sent");
        assert!(borrowed.put(&vec![0; BULK_BYTES_MAX + 1]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn slots_that_were_answered_are_free_and_others_rest() {
        let (_lent, borrowed) = memory();
        let bulk = vec![7; BULK_MIN];
        let first = borrowed.put(&bulk).unwrap();
        let number = first.number;
        first.give_back();
        let mut held: Vec<Slot> = std::iter::from_fn(|| borrowed.put(&bulk)).collect();
        assert_eq!((held[0].number, held.len()), (number, SLOTS as usize));
        drop(held.pop());
        assert!(borrowed.put(&bulk).is_none(), "nobody waited for its answer: its request may still be read");
        tokio::time::advance(REST).await;
        assert!(borrowed.put(&bulk).is_some());
    }

    #[tokio::test]
    async fn what_doesnt_lie_there_isnt_taken() {
        let (lent, _) = memory();
        let end = u64::from(SLOTS) * SLOT_BYTES;
        for (at, bytes) in
            [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX, usize::MAX), (0, BULK_BYTES_MAX + 1)]
        {
            assert!(lent.take(at, bytes).is_err(), "{at} {bytes}");
        }
        assert_eq!(lent.take(end - 1, 1).unwrap(), [0][..]);
        assert_eq!(lent.take(0, 0).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn only_the_memory_that_was_offered_is_written_to_and_its_size_is_fixed() {
        let (lent, _) = memory();
        let descriptor = || lent.descriptor().unwrap();
        let identity = FileIdentity::of(&descriptor()).unwrap();
        let other = FileIdentity { inode: identity.inode + 1, ..identity };
        assert!(BorrowedMemory::adopt(descriptor(), other).is_err());
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let its = FileIdentity::of(&file).unwrap();
        assert!(BorrowedMemory::adopt(file, its).is_err(), "a file of the disk");
        let loose = memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&loose, u64::from(SLOTS) * SLOT_BYTES).unwrap();
        let its = FileIdentity::of(&loose).unwrap();
        assert!(BorrowedMemory::adopt(loose, its).is_err(), "somebody may shrink it");
        let file = File::from(descriptor());
        assert!(file.set_len(1).is_err() && file.set_len(1 << 30).is_err());
        assert!(file.write_at(b"x", u64::from(SLOTS) * SLOT_BYTES).is_err());
    }
}
