//! Data disks that are put into each other's chunkserver while both are down: each comes up with the other's, knows it by its identity file and doesn't use it,
//! and nothing on it is changed. Once they are where they belong again nothing is missing. State directories stay with their hosts.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mooseng_chunk::ChunkStore;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, DiskFile, OpenMode, Space, read_all};
use rand::Rng;
use rand::rngs::StdRng;

use crate::hosts::DATA_DIR;
use crate::kinds;
use crate::machines::Machines;

/// What swaps are drawn from.
const LABEL: u64 = 0x5a_4b5;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// A host's disk with another one's data in the place of its own.
pub struct OtherData {
    /// Its own.
    pub own: SimDisk,
    /// The one with the data.
    pub other: SimDisk,
}

impl OtherData {
    fn of(&self, path: &Path) -> &SimDisk {
        if path.starts_with(DATA_DIR) { &self.other } else { &self.own }
    }
}

impl Disk for OtherData {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.of(path).open(path, mode)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.of(path).create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.of(path).list(path)
    }
    /// Nobody moves a file from one disk to another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.of(from).rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.of(path).remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.of(path).sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.of(path).space(path)
    }
}

/// A checksum over the data that is durable on a disk: names and bytes.
pub fn data_checksum(disk: &SimDisk) -> u32 {
    let copy = disk.durable_copy(|path| path.starts_with(DATA_DIR));
    let mut hasher = crc32fast::Hasher::new();
    for (path, length) in copy.files() {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(&length.to_be_bytes());
        if let Ok(bytes) = copy.open(&path, OpenMode::ReadOnly).and_then(|file| read_all(&*file)) {
            hasher.update(&bytes);
        }
    }
    hasher.finalize()
}

/// A chunkserver that has come up with another's data disk uses nothing of it.
pub fn check_refused(name: &str, store: &ChunkStore) -> Result<(), String> {
    let used = store.directories().into_iter().find(|directory| directory.error.is_empty());
    if let Some(directory) = used {
        return Err(format!("{name} uses another chunkserver's data disk: {directory:?}"));
    }
    match store.inventory(None, 1).0.first() {
        Some(chunk) => Err(format!("{name} has a chunk of another chunkserver's data disk: {chunk:?}")),
        None => Ok(()),
    }
}

/// Swaps data disks now and then.
pub struct Swaps {
    rng: StdRng,
    next: Duration,
    /// Whose may be.
    pairs: Vec<(String, String)>,
}

impl Swaps {
    /// A seed's, of one of these pairs each time; none where it has none.
    pub fn of(seed: u64, pairs: Vec<(String, String)>) -> Option<Self> {
        if !kinds::swaps(seed) || pairs.is_empty() {
            return None;
        }
        let mut rng = kinds::draws(seed, LABEL);
        let next = MS(rng.random_range(8_000..14_000));
        Some(Self { rng, next, pairs })
    }

    /// Swaps two, if it is time.
    pub fn act(&mut self, machines: &mut Machines, sim: &mut turmoil::Sim<'_>, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + MS(self.rng.random_range(7_000..16_000));
        let (a, b) = self.pairs[self.rng.random_range(0..self.pairs.len())].clone();
        let restarts = now + MS(self.rng.random_range(50..1_500));
        let until = restarts + MS(self.rng.random_range(500..5_000));
        machines.drawing(&mut self.rng, |machines| {
            machines.swap_data(sim, (a.as_str(), b.as_str()), restarts, until);
        });
    }
}

#[cfg(test)]
mod tests {
    use mooseng_chunk::{Append, StoreOptions};
    use mooseng_wire::{ChunkId, Epoch};

    use super::*;
    use crate::hosts::{CLUSTER, STATE_DIR};

    fn open(name: &str, disk: Arc<dyn Disk>) -> ChunkStore {
        let options = StoreOptions {
            cluster: CLUSTER.into(),
            chunkserver: name.into(),
            state_dir: STATE_DIR.into(),
            data_dirs: vec![DATA_DIR.into()],
            reserve_bytes: 0,
            open_files_max: 4,
            trash: false,
        };
        ChunkStore::open(disk, options, &mut || format!("disk of {name}")).unwrap()
    }

    fn append(store: &ChunkStore, offset: u64, bytes: &'static [u8]) {
        let append = Append { chunk: ChunkId(7), epoch: Epoch(1), offset, bytes: bytes.into() };
        store.write(&append).unwrap();
    }

    #[test]
    fn a_chunkserver_uses_nothing_of_anothers_data_disk_and_leaves_it_as_it_is() {
        let (a, b) = (SimDisk::default(), SimDisk::default());
        let store = open("a", Arc::new(a.clone()));
        append(&store, 0, b"one");
        store.flush(ChunkId(7)).unwrap();
        assert!(check_refused("a", &store).is_err(), "it is its own");
        drop((store, open("b", Arc::new(b.clone()))));
        let held = data_checksum(&a);
        assert_ne!(held, data_checksum(&b));
        let swapped = open("b", Arc::new(OtherData { own: b.clone(), other: a.clone() }));
        check_refused("b", &swapped).unwrap();
        let append = Append { chunk: ChunkId(9), epoch: Epoch(1), offset: 0, bytes: (&b"x"[..]).into() };
        assert!(swapped.write(&append).is_err(), "there is nowhere to write to");
        drop(swapped);
        assert_eq!(data_checksum(&a), held);
        a.flip_bit(Path::new("/data/mooseng-disk"), 3);
        assert_ne!(data_checksum(&a), held);
        a.flip_bit(Path::new("/data/mooseng-disk"), 3);
        let back = [open("a", Arc::new(a)), open("b", Arc::new(b))];
        assert!(back.iter().all(|store| store.directories()[0].error.is_empty()));
        assert_eq!(&back[0].read(ChunkId(7), 0, 3).unwrap()[..], b"one");
    }
}
