//! A base in memory, for tests and the simulation; with a disk it keeps what was last flushed in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes};
use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_store::memory::map_page;
use mooseng_store::mvcc::{Change, Page, bounds};
use mooseng_store::{KeyRange, RangeLimit};

use super::{Base, BaseError, BasePin, BasePosition, Replacement};
use crate::Position;

const MAGIC: &[u8; 8] = b"MNGBASE1";
const FILE_NAME: &str = "base";

/// A base in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryBase(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    file: Option<(Arc<dyn Disk>, PathBuf)>,
}

#[derive(Clone, Default)]
struct State {
    pairs: Arc<BTreeMap<Bytes, Bytes>>,
    position: BasePosition,
    /// The file doesn't have it yet.
    changed: bool,
}

impl MemoryBase {
    /// One that a crash empties.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose flushes write a file in `directory`, from which it opens again.
    pub fn on_disk(disk: Arc<dyn Disk>, directory: &Path) -> Result<Self, BaseError> {
        let path = directory.join(FILE_NAME);
        let failed = |action, error: std::io::Error| BaseError::Failed {
            action,
            place: path.display().to_string(),
            reason: error.to_string(),
        };
        disk.create_dir_all(directory).map_err(|error| failed("create its directory", error))?;
        let state = match disk.open(&path, OpenMode::ReadOnly) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(failed("open its file", error)),
            Ok(file) => {
                let bytes = read_all(&*file).map_err(|error| failed("read its file", error))?;
                let (pairs, position) = decode(bytes.into()).ok_or_else(|| BaseError::Damaged {
                    place: path.display().to_string(),
                    reason: "the checksum or the structure is wrong".into(),
                })?;
                State { pairs: Arc::new(pairs), position, changed: false }
            }
        };
        Ok(Self(Arc::new(Shared { state: Mutex::new(state), file: Some((disk, path)) })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dump(&self, state: &State) -> Result<(), BaseError> {
        let Some((disk, path)) = &self.0.file else { return Ok(()) };
        write_atomically(&**disk, path, &encode(&state.pairs, &state.position)).map_err(|error| {
            BaseError::Failed {
                action: "flush",
                place: path.display().to_string(),
                reason: error.to_string(),
            }
        })
    }
}

impl Base for MemoryBase {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, BaseError> {
        Ok(self.state().pairs.get(key).cloned())
    }

    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError> {
        Ok(map_page(&self.state().pairs, range, limit))
    }

    fn write(&self, changes: &[Change], position: &BasePosition) -> Result<(), BaseError> {
        let mut state = self.state();
        let pairs = Arc::make_mut(&mut state.pairs);
        for change in changes {
            match change {
                // Copied: a small value must not keep the batch alive in which it came.
                Change::Set(key, value) => {
                    drop(pairs.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                }
                Change::Clear(key) => drop(pairs.remove(key)),
                Change::ClearRange(range) if range.begin < range.end => {
                    let inside = pairs.range::<[u8], _>(bounds::between(&range.begin, &range.end));
                    for key in inside.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                        pairs.remove(&key);
                    }
                }
                Change::ClearRange(_) => {}
            }
        }
        state.position = position.clone();
        state.changed = true;
        Ok(())
    }

    fn flush(&self) -> Result<(), BaseError> {
        let picture = self.state().clone();
        if picture.changed {
            self.dump(&picture)?;
            self.state().changed = false;
        }
        Ok(())
    }

    fn position(&self) -> BasePosition {
        self.state().position.clone()
    }

    fn pin(&self) -> Result<Box<dyn BasePin>, BaseError> {
        Ok(Box::new(self.state().clone()))
    }

    fn replace(&self) -> Result<Box<dyn Replacement>, BaseError> {
        Ok(Box::new(MemoryReplacement { base: self.clone(), pairs: BTreeMap::new() }))
    }
}

impl BasePin for State {
    fn position(&self) -> BasePosition {
        self.position.clone()
    }
    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError> {
        Ok(map_page(&self.pairs, range, limit))
    }
}

struct MemoryReplacement {
    base: MemoryBase,
    pairs: BTreeMap<Bytes, Bytes>,
}

impl Replacement for MemoryReplacement {
    fn put(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), BaseError> {
        self.pairs.extend(pairs);
        Ok(())
    }
    fn finish(self: Box<Self>, position: &BasePosition) -> Result<(), BaseError> {
        let new = State { pairs: Arc::new(self.pairs), position: position.clone(), changed: false };
        self.base.dump(&new)?;
        *self.base.state() = new;
        Ok(())
    }
}

fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    out.put_u32(part.len() as u32);
    out.put_slice(part);
}

/// `magic | index | term | node | version | meta | pairs | {key | value} | crc32`, lengths as u32, integers big-endian.
fn encode(pairs: &BTreeMap<Bytes, Bytes>, at: &BasePosition) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for number in [at.position.index, at.position.term, at.position.node, at.version] {
        out.put_u64(number);
    }
    put_part(&mut out, &at.position.meta);
    out.put_u64(pairs.len() as u64);
    for (key, value) in pairs {
        put_part(&mut out, key);
        put_part(&mut out, value);
    }
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    out
}

fn decode(mut bytes: Bytes) -> Option<(BTreeMap<Bytes, Bytes>, BasePosition)> {
    let crc_at = bytes.len().checked_sub(4)?;
    let crc = bytes.split_off(crc_at).get_u32();
    if crc32fast::hash(&bytes) != crc || !bytes.starts_with(MAGIC) {
        return None;
    }
    bytes.advance(MAGIC.len());
    let number = |bytes: &mut Bytes| bytes.try_get_u64().ok();
    let (index, term) = (number(&mut bytes)?, number(&mut bytes)?);
    let (node, version) = (number(&mut bytes)?, number(&mut bytes)?);
    let meta = take_part(&mut bytes)?;
    let count = number(&mut bytes)?;
    let mut pairs = BTreeMap::new();
    for _ in 0..count {
        pairs.insert(take_part(&mut bytes)?, take_part(&mut bytes)?);
    }
    bytes
        .is_empty()
        .then_some((pairs, BasePosition { position: Position { index, term, node, meta }, version }))
}

fn take_part(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32().ok()? as usize;
    (bytes.len() >= length).then(|| bytes.split_to(length))
}
