//! A base on disk, in a fjall database.
//!
//! ```text
//!  directory/CURRENT          the name of the generation that counts, replaced atomically
//!  directory/gen-00000001/    a database; a snapshot is installed into the next generation
//! ```
//!
//! One keyspace holds the pairs (tag `d` before the key) and the position (tag `p`), so that one atomic batch writes both. A batch goes to
//! the operating system, not to the disk: a killed process loses nothing, a crashed machine what wasn't flushed, but never part of a batch.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::{Buf, BufMut, Bytes};
use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use mooseng_store::mvcc::{Change, Page, after};
use mooseng_store::{KeyRange, RangeLimit};

use super::{Base, BaseError, BasePin, BasePosition, Replacement, journal};
use crate::Position;

const KEYSPACE: &str = "pairs";
const POSITION_KEY: &[u8] = b"p";
const DATA_TAG: u8 = b'd';
const CURRENT: &str = "CURRENT";
const PREFIX: &str = "gen-";
/// The directory in a database that fjall has keyspaces in.
const KEYSPACES: &str = "keyspaces";
const FORMAT: u8 = 1;

/// A base on disk.
pub struct FjallBase {
    directory: PathBuf,
    generation: Arc<RwLock<Generation>>,
}

#[derive(Clone)]
pub(super) struct Generation {
    number: u64,
    place: String,
    pub(super) database: Database,
    pairs: Keyspace,
    position: Arc<Mutex<BasePosition>>,
}

fn failed(action: &'static str, place: impl std::fmt::Display, reason: impl std::fmt::Display) -> BaseError {
    BaseError::Failed { action, place: place.to_string(), reason: reason.to_string() }
}

fn data_key(key: &[u8]) -> Vec<u8> {
    let mut tagged = Vec::with_capacity(key.len() + 1);
    tagged.push(DATA_TAG);
    tagged.extend_from_slice(key);
    tagged
}

impl FjallBase {
    /// Opens the base in a directory, or creates it there. Generations that don't count are removed.
    pub fn open(directory: &Path) -> Result<Self, BaseError> {
        let place = directory.display().to_string();
        fs::create_dir_all(directory).map_err(|error| failed("create its directory", &place, error))?;
        let current = directory.join(CURRENT);
        let number = match fs::read_to_string(&current) {
            Ok(name) => parse(name.trim()).ok_or_else(|| BaseError::Damaged {
                place: current.display().to_string(),
                reason: format!("`{}` doesn't name a generation", name.trim()),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed("read which generation counts", current.display(), error)),
        };
        remove_others(directory, number)?;
        let generation = if number == 0 {
            let generation = Generation::open(directory, 1)?;
            generation.flush()?;
            point_to(directory, 1)?;
            generation
        } else {
            if !directory.join(name(number)).is_dir() {
                return Err(BaseError::Damaged {
                    place,
                    reason: format!("generation {} is missing", name(number)),
                });
            }
            Generation::open(directory, number)?
        };
        Ok(Self { directory: directory.into(), generation: Arc::new(RwLock::new(generation)) })
    }

    pub(super) fn current(&self) -> Generation {
        self.generation.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:08}")
}

fn parse(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok().filter(|number| *number > 0)
}

fn remove_others(directory: &Path, keep: u64) -> Result<(), BaseError> {
    let failed = |error| failed("remove old generations", directory.display(), error);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().and_then(parse).is_some_and(|number| number != keep) {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes a generation the one that counts.
fn point_to(directory: &Path, number: u64) -> Result<(), BaseError> {
    let write = || -> std::io::Result<()> {
        // The generation's own name must be there before it counts.
        fs::File::open(directory)?.sync_all()?;
        let temporary = directory.join("CURRENT.new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(name(number).as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, directory.join(CURRENT))?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error| failed("switch generations", directory.display(), error))
}

impl Generation {
    fn open(directory: &Path, number: u64) -> Result<Self, BaseError> {
        let path = directory.join(name(number));
        let place = path.display().to_string();
        if path.is_dir() {
            let cut = journal::make_durable(&path)
                .map_err(|error| self::failed("look through the journal", &place, error))?;
            if let Some(bytes) = cut {
                tracing::info!(
                    bytes,
                    place,
                    "cut the store's journal behind its last whole batch: what follows comes again from the log"
                );
            }
        }
        let failed = |error: fjall::Error| failed("open its database", &place, error);
        let database = Database::builder(&path).open().map_err(failed)?;
        let pairs = database.keyspace(KEYSPACE, KeyspaceCreateOptions::default).map_err(failed)?;
        // fjall 3.1 makes a keyspace's directory and doesn't flush its name: where no other flush happens to do it, a power loss takes the
        // whole store, behind which the Raft log is purged.
        fs::File::open(path.join(KEYSPACES))
            .and_then(|keyspaces| keyspaces.sync_all())
            .map_err(|error| self::failed("flush the names of its keyspaces", &place, error))?;
        let position = match pairs.get(POSITION_KEY).map_err(failed)? {
            None => BasePosition::default(),
            Some(bytes) => decode_position(&bytes).ok_or_else(|| BaseError::Damaged {
                place: place.clone(),
                reason: "its position can't be read".into(),
            })?,
        };
        Ok(Self { number, place, database, pairs, position: Arc::new(Mutex::new(position)) })
    }

    /// In a batch each key occurs once: the database doesn't order changes of one batch.
    fn write(&self, changes: &[Change], position: &BasePosition) -> Result<(), BaseError> {
        let mut last: BTreeMap<Vec<u8>, Option<&Bytes>> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Set(key, value) => drop(last.insert(data_key(key), Some(value))),
                Change::Clear(key) => drop(last.insert(data_key(key), None)),
                Change::ClearRange(range) if range.begin < range.end => {
                    let (begin, end) = (data_key(&range.begin), data_key(&range.end));
                    for (_, value) in last.range_mut(begin.clone()..end.clone()) {
                        *value = None;
                    }
                    for guard in self.pairs.range(begin..end) {
                        let key = guard.key().map_err(|error| failed("read", &self.place, error))?;
                        last.entry(key.to_vec()).or_insert(None);
                    }
                }
                Change::ClearRange(_) => {}
            }
        }
        let mut batch = self.database.batch();
        for (key, value) in last {
            match value {
                Some(value) => batch.insert(&self.pairs, key, &value[..]),
                None => batch.remove(&self.pairs, key),
            }
        }
        batch.insert(&self.pairs, POSITION_KEY, encode_position(position));
        batch.commit().map_err(|error| failed("write", &self.place, error))?;
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position.clone();
        Ok(())
    }

    fn flush(&self) -> Result<(), BaseError> {
        self.database.persist(PersistMode::SyncAll).map_err(|error| failed("flush", &self.place, error))
    }
}

/// A page out of an iterator over a range, which the caller took from the right end.
fn page(guards: impl Iterator<Item = Guard>, limit: RangeLimit, place: &str) -> Result<Page, BaseError> {
    let mut page = Page::default();
    let mut bytes = 0;
    for guard in guards {
        let (key, value) = guard.into_inner().map_err(|error| failed("read", place, error))?;
        let key = Bytes::copy_from_slice(&key[1..]);
        bytes += key.len() + value.len();
        let full = page.pairs.len() + 1 >= limit.pairs_max || bytes >= limit.bytes_max;
        if full {
            page.boundary = Some(if limit.reverse { key.clone() } else { after(&key) });
        }
        page.pairs.push((key, Bytes::copy_from_slice(&value)));
        if full {
            break;
        }
    }
    Ok(page)
}

fn page_of(
    range: &KeyRange,
    limit: RangeLimit,
    place: &str,
    iterate: impl FnOnce(std::ops::Range<Vec<u8>>) -> fjall::Iter,
) -> Result<Page, BaseError> {
    if range.begin >= range.end {
        return Ok(Page::default());
    }
    let guards = iterate(data_key(&range.begin)..data_key(&range.end));
    if limit.reverse { page(guards.rev(), limit, place) } else { page(guards, limit, place) }
}

impl Base for FjallBase {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, BaseError> {
        let generation = self.current();
        let value =
            generation.pairs.get(data_key(key)).map_err(|error| failed("read", &generation.place, error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError> {
        let generation = self.current();
        page_of(range, limit, &generation.place, |keys| generation.pairs.range(keys))
    }

    fn write(&self, changes: &[Change], position: &BasePosition) -> Result<(), BaseError> {
        self.current().write(changes, position)
    }

    fn flush(&self) -> Result<(), BaseError> {
        self.current().flush()
    }

    fn position(&self) -> BasePosition {
        self.current().position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pin(&self) -> Result<Box<dyn BasePin>, BaseError> {
        let generation = self.current();
        let snapshot = generation.database.snapshot();
        let bytes = snapshot
            .get(&generation.pairs, POSITION_KEY)
            .map_err(|error| failed("read its position", &generation.place, error))?;
        let position = match bytes {
            None => BasePosition::default(),
            Some(bytes) => decode_position(&bytes).ok_or_else(|| BaseError::Damaged {
                place: generation.place.clone(),
                reason: "its position can't be read".into(),
            })?,
        };
        Ok(Box::new(FjallPin { generation, snapshot, position }))
    }

    fn replace(&self) -> Result<Box<dyn Replacement>, BaseError> {
        let counts = self.current().number;
        remove_others(&self.directory, counts)?;
        let next = Generation::open(&self.directory, counts + 1)?;
        Ok(Box::new(FjallReplacement {
            directory: self.directory.clone(),
            target: self.generation.clone(),
            next: Some(next),
        }))
    }
}

struct FjallPin {
    generation: Generation,
    snapshot: Snapshot,
    position: BasePosition,
}

impl BasePin for FjallPin {
    fn position(&self) -> BasePosition {
        self.position.clone()
    }
    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError> {
        page_of(range, limit, &self.generation.place, |keys| {
            self.snapshot.range(&self.generation.pairs, keys)
        })
    }
}

struct FjallReplacement {
    directory: PathBuf,
    target: Arc<RwLock<Generation>>,
    /// None once it counts.
    next: Option<Generation>,
}

impl FjallReplacement {
    fn next(&self) -> Result<&Generation, BaseError> {
        self.next.as_ref().ok_or_else(|| BaseError::Misuse("a replacement was used behind its end".into()))
    }
}

impl Replacement for FjallReplacement {
    fn put(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), BaseError> {
        let changes: Vec<_> = pairs.into_iter().map(|(key, value)| Change::Set(key, value)).collect();
        self.next()?.write(&changes, &BasePosition::default())
    }

    fn finish(mut self: Box<Self>, position: &BasePosition) -> Result<(), BaseError> {
        let next = self.next()?;
        next.write(&[], position)?;
        next.flush()?;
        let number = next.number;
        point_to(&self.directory, number)?;
        let Some(next) = self.next.take() else { return Ok(()) };
        let old = std::mem::replace(&mut *self.target.write().unwrap_or_else(PoisonError::into_inner), next);
        let path = self.directory.join(name(old.number));
        // Pins may still read the old generation: on Linux its open files stay readable. What is left of it goes at the next start.
        drop(old);
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::info!(%error, path = %path.display(), "an old generation is removed at the next start");
        }
        Ok(())
    }
}

impl Drop for FjallReplacement {
    fn drop(&mut self) {
        if let Some(next) = self.next.take() {
            let path = self.directory.join(name(next.number));
            drop(next);
            // What is left goes at the next start.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// A position as a base keeps it: `format | index | term | node | version | meta`, integers big-endian.
pub fn encode_position(at: &BasePosition) -> Vec<u8> {
    let mut out = vec![FORMAT];
    for number in [at.position.index, at.position.term, at.position.node, at.version] {
        out.put_u64(number);
    }
    out.put_slice(&at.position.meta);
    out
}

/// What [`encode_position`] wrote; none for what it didn't write.
pub fn decode_position(bytes: &[u8]) -> Option<BasePosition> {
    let (format, mut left) = bytes.split_first()?;
    if *format != FORMAT {
        return None;
    }
    let mut number = || left.try_get_u64().ok();
    let (index, term, node, version) = (number()?, number()?, number()?, number()?);
    let meta = Bytes::copy_from_slice(left);
    Some(BasePosition { position: Position { index, term, node, meta }, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_position() {
        let position = Position { index: 1, term: 2, node: 3, meta: Bytes::from_static(b"m") };
        let at = BasePosition { position, version: 4 };
        let mut expected = vec![1];
        for n in 1..=4u64 {
            expected.extend(n.to_be_bytes());
        }
        expected.push(b'm');
        assert_eq!(encode_position(&at), expected);
        assert_eq!(decode_position(&expected), Some(at));
        assert_eq!(decode_position(&expected[..20]), None);
    }
}
