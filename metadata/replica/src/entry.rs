//! An entry of the log, and what of a transaction belongs into it.

use bytes::{Bytes, BytesMut};
use mooseng_schema::SchemaError;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition};
use mooseng_store::KeyRange;
use mooseng_store::mvcc::Change;
use mooseng_store::mvcc::codec::{put_changes, room_for, take_changes};
use mooseng_wire::VolumeId;

/// A transaction's changes to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub at: LogPosition,
    /// The changes, encoded: shared, for they are sent to several regions.
    pub bytes: Bytes,
}

impl Entry {
    /// The entry of those changes.
    pub fn new(at: LogPosition, changes: &[Change]) -> Self {
        let mut bytes = BytesMut::with_capacity(room_for(changes));
        put_changes(&mut bytes, changes);
        Self { at, bytes: bytes.freeze() }
    }

    /// Its changes.
    pub fn changes(&self) -> Result<Vec<Change>, SchemaError> {
        let mut left = self.bytes.clone();
        let changes = take_changes(&mut left).map_err(|e| SchemaError::damaged("log entry", e.0))?;
        if left.is_empty() {
            Ok(changes)
        } else {
            Err(SchemaError::damaged("log entry", "bytes follow its end"))
        }
    }
}

/// What is a volume's own: all of its records but the log itself, which has two parts, before and behind the log.
pub fn logged_ranges(volume: VolumeId) -> [KeyRange; 2] {
    let (whole, log) = (whole_volume(volume), log::range(volume));
    [KeyRange { begin: whole.begin, end: log.begin }, KeyRange { begin: log.end, end: whole.end }]
}

/// The part of a change that lies in a range.
pub fn within(change: &Change, range: &KeyRange) -> Option<Change> {
    let has = |key: &Bytes| range.begin <= *key && *key < range.end;
    match change {
        Change::Set(key, _) | Change::Clear(key) => has(key).then(|| change.clone()),
        Change::ClearRange(cleared) => {
            let begin = cleared.begin.clone().max(range.begin.clone());
            let end = cleared.end.clone().min(range.end.clone());
            (begin < end).then_some(Change::ClearRange(KeyRange { begin, end }))
        }
    }
}
