//! Reading entries: from memory where they are recent, else frame by frame from their segments.

use std::ops::Range;

use bytes::Bytes;

use super::{Wal, WalError, failed, lock, segment_path};
use crate::frame;
use crate::record::{Entry, Record};

impl Wal {
    /// The entries of a range, as many as fit into about `bytes_max`, at least the first. Fewer than asked only at the log's end. Those
    /// that are purged or cut off meanwhile are [`WalError::Missing`].
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, WalError> {
        let mut found = Vec::new();
        let mut used = 0;
        let mut frame_read: Option<(u64, u64, Vec<Record>)> = None;
        for index in range {
            let (place, cached) = {
                let view = lock(&self.view);
                let Some(place) = view.entries.get(&index).copied() else {
                    if view.last().is_none_or(|last| index > last.index) {
                        break;
                    }
                    return Err(view.missing(index));
                };
                let first = view.cache.front().map_or(u64::MAX, |e| e.id.index);
                let cached = index.checked_sub(first).and_then(|i| view.cache.get(i as usize)).cloned();
                (place, cached.filter(|e| e.id == place.id))
            };
            let entry = match cached {
                Some(entry) => entry,
                None => {
                    if frame_read.as_ref().is_none_or(|(s, f, _)| (*s, *f) != (place.segment, place.frame)) {
                        let records = self.read_frame(place.segment, place.frame).map_err(|error| {
                            // Its file may have gone with a purge after the look at the entries.
                            let view = lock(&self.view);
                            let gone = view.entries.get(&index).is_none_or(|now| now.id != place.id);
                            if gone { view.missing(index) } else { error }
                        })?;
                        frame_read = Some((place.segment, place.frame, records));
                    }
                    let records = frame_read.iter().flat_map(|(_, _, records)| records);
                    let entry = records.filter_map(|r| if let Record::Entry(e) = r { Some(e) } else { None });
                    let corrupt = || WalError::Corrupt {
                        path: segment_path(&self.dir, place.segment),
                        offset: place.frame,
                    };
                    entry.clone().find(|e| e.id == place.id).cloned().ok_or_else(corrupt)?
                }
            };
            used += entry.payload.len();
            if used > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// What [`Self::read`] answers, if all of it is in memory: it blocks on no disk.
    pub fn read_cached(&self, range: Range<u64>, bytes_max: usize) -> Option<Vec<Entry>> {
        let view = lock(&self.view);
        let last = view.last().map_or(0, |last| last.index);
        let first = view.cache.front().map_or(u64::MAX, |e| e.id.index);
        let mut found = Vec::new();
        let mut used = 0;
        for index in range.start..range.end.min(last.saturating_add(1)) {
            let place = view.entries.get(&index)?;
            let entry = index.checked_sub(first).and_then(|i| view.cache.get(i as usize))?;
            if entry.id != place.id {
                return None;
            }
            used += entry.payload.len();
            if used > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
    }

    fn read_frame(&self, segment: u64, offset: u64) -> Result<Vec<Record>, WalError> {
        let path = segment_path(&self.dir, segment);
        let file = lock(&self.writer).segments.iter().find(|(n, _)| *n == segment).map(|(_, f)| f.clone());
        let corrupt = || WalError::Corrupt { path: path.clone(), offset };
        let file = file.ok_or_else(corrupt)?;
        let mut head = [0; 8];
        file.read_at(&mut head, offset).map_err(failed("reading", &path))?;
        let body = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if body > frame::BODY_BYTES_MAX {
            return Err(corrupt());
        }
        let mut bytes = vec![0; frame::HEADER_BYTES + body];
        file.read_at(&mut bytes, offset).map_err(failed("reading", &path))?;
        let frame = frame::decode(&Bytes::from(bytes), segment).ok_or_else(corrupt)?;
        frame::records(frame.body).map_err(|_| corrupt())
    }
}
