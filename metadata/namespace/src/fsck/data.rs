//! Data: extents, what chunks count of their use, chunks and where they lie.

use mooseng_schema::chunk::ChunkUse;
use mooseng_schema::extent::ExtentRecord;
use mooseng_schema::inode::InodeRecord;
use mooseng_schema::quota::Charge;
use mooseng_schema::staged::Staged;
use mooseng_schema::storage_class;
use mooseng_wire::{ChunkId, InodeId};

use super::{Check, Finding, Fix, Kept, Kind, Placed, Staging, Subject, difference};
use crate::extents::{Data, List};

/// Extents less what is recorded of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    extents: i64,
    bytes: i64,
}

impl Check {
    pub(super) fn take_extent(&mut self, inode: InodeId, offset: u64, extent: &ExtentRecord) {
        let mine = self.part.has(inode.0);
        let data = match Data::from_record(extent.clone()) {
            Ok(data) => data,
            Err(error) => {
                if mine {
                    let detail = format!("at offset {offset}: {error}");
                    self.found(Finding::new(Kind::Beyond, Subject::Inode(inode), detail));
                }
                return;
            }
        };
        let length = data.length();
        let end = offset.saturating_add(length);
        let list = data.list(end);
        if let Data::Run { chunk, offset: from, .. } = data {
            if !self.exactly() && self.part.has(chunk.0) {
                let reached = from + length;
                let named = &mut self.chunks.entry(chunk).or_default().named;
                if named.is_none_or(|(end, _)| end < reached) {
                    *named = Some((reached, inode));
                }
            }
            if mine {
                let used = self.uses.entry((chunk, inode)).or_default();
                used.extents += 1;
                used.bytes += length as i64;
            }
        }
        if !mine {
            return;
        }
        self.outcome.checked.extents += 1;
        self.outcome.checked.bytes += length;
        let facts = self.inodes.entry(inode).or_default();
        facts.extents += 1;
        facts.bytes += length;
        match list {
            Some(List::Staged) => {
                facts.staged.found = facts.staged.found.plus(Staged { bytes: length as i64, pieces: 1 });
                facts.staged.places = facts.staged.places.wrapping_add(Staging::place(offset));
            }
            Some(List::Packable) => facts.packable = facts.packable.wrapping_add(Staging::place(offset)),
            None => {}
        }
        let beyond = facts.record.as_ref().is_some_and(|record| lies_beyond(record, offset, end));
        if beyond {
            let detail = format!("its extent from {offset} to {end} reaches behind its end");
            self.found(Finding::new(Kind::Beyond, Subject::Inode(inode), detail));
        }
        if self.reached.0 == inode && offset < self.reached.1 {
            let detail = format!("two extents say what lies at offset {offset}");
            self.found(Finding::new(Kind::Overlap, Subject::Inode(inode), detail));
        }
        let before = if self.reached.0 == inode { self.reached.1 } else { 0 };
        self.reached = (inode, end.max(before));
    }

    pub(super) fn take_use(&mut self, chunk: ChunkId, inode: InodeId, used: ChunkUse) {
        if !self.part.has(inode.0) {
            return;
        }
        self.outcome.checked.uses += 1;
        let left = self.uses.entry((chunk, inode)).or_default();
        left.extents -= used.extents as i64;
        left.bytes -= used.bytes as i64;
        if *left == Use::default() {
            self.uses.remove(&(chunk, inode));
        }
    }

    pub(super) fn finish_data(&mut self) {
        let inodes = std::mem::take(&mut self.inodes);
        for (inode, facts) in &inodes {
            self.compare_staging(*inode, &facts.staged);
            if facts.packable != 0 {
                let detail = "its list of pieces that may go to a shared chunk isn't what there is";
                let found = Finding::new(Kind::PackableList, Subject::Inode(*inode), detail);
                self.found(found.fixed_by(Fix::Packable(*inode)));
            }
            let Some(record) = &facts.record else { continue };
            let totals = self.outcome.totals.entry(inode.volume()).or_default();
            totals.bytes += facts.bytes;
            let counted = InodeRecord {
                quota: record.quota,
                uid: record.uid,
                let_off: record.let_off,
                storage_class: record.storage_class,
                ..InodeRecord::default()
            };
            let charge = Charge::with_bytes(&counted, facts.bytes);
            for (account, usage) in charge.shares() {
                let sum = totals.usage.entry(account).or_default();
                *sum = sum.plus(usage);
            }
            let class = record.storage_class;
            if class != storage_class::DEFAULT && !self.classes.contains(&(inode.volume(), class)) {
                let detail = format!("it has the storage class {class}, which there isn't");
                self.found(Finding::new(Kind::ClassUnknown, Subject::Inode(*inode), detail));
            }
            let totals = self.outcome.totals.entry(inode.volume()).or_default();
            if record.trash_until_ns.is_some() {
                totals.trash_files += 1;
                totals.trash_bytes += facts.bytes;
                self.outcome.checked.trash_files += 1;
                self.outcome.checked.trash_bytes += facts.bytes;
            }
            if record.allocated != facts.bytes {
                let detail =
                    format!("it counts {} bytes, its extents cover {}", record.allocated, facts.bytes);
                let fix = Fix::Allocated(*inode, difference(facts.bytes, record.allocated));
                let found = Finding::new(Kind::Allocated, Subject::Inode(*inode), detail);
                self.found(found.fixed_by(fix));
            }
        }
        for ((chunk, inode), left) in std::mem::take(&mut self.uses) {
            let Use { extents, bytes } = left;
            let detail = format!(
                "file inode {} has {extents:+} extents and {bytes:+} bytes more in it than it counts",
                inode.0
            );
            let fix = Fix::Use(chunk, inode, extents, bytes);
            let found = Finding::new(Kind::ChunkUse, Subject::Chunk(chunk, Some(inode)), detail);
            self.found(found.fixed_by(fix));
        }
        for (chunk, facts) in std::mem::take(&mut self.chunks) {
            self.look_at_chunk(chunk, facts);
        }
        self.inodes = inodes;
    }

    fn compare_staging(&mut self, inode: InodeId, staging: &Staging) {
        let Staging { recorded, found, places } = staging;
        if recorded != found {
            let detail = format!(
                "it counts {} staged bytes in {} pieces, there are {} in {}",
                recorded.bytes, recorded.pieces, found.bytes, found.pieces
            );
            let fix = Fix::Staged(inode, found.minus(*recorded));
            self.found(Finding::new(Kind::Staged, Subject::Inode(inode), detail).fixed_by(fix));
        }
        if *places != 0 {
            let detail = "its list of staged pieces isn't what there is";
            self.found(Finding::new(Kind::StagedList, Subject::Inode(inode), detail));
        }
    }

    fn look_at_chunk(&mut self, chunk: ChunkId, facts: super::Chunk) {
        let file = facts.named.map(|(_, inode)| inode);
        let subject = Subject::Chunk(chunk, file);
        let mut tell = |kind, detail: String| self.found(Finding::new(kind, subject.clone(), detail));
        let Some(record) = facts.record else {
            if let Some((end, inode)) = facts.named {
                let detail =
                    format!("file inode {} names its bytes up to {end}, and it isn't there", inode.0);
                tell(Kind::ChunkMissing, detail);
            }
            if facts.location.is_some() {
                tell(Kind::ChunkPlace, "there is a location of it, and it isn't there".into());
            }
            return;
        };
        if facts.dead {
            tell(Kind::ChunkPlace, "it lives, and its copies are to be deleted".into());
        }
        if let Some((end, inode)) = facts.named
            && record.sealed
            && end > record.length
        {
            let detail =
                format!("file inode {} names its bytes up to {end}, it ends at {}", inode.0, record.length);
            tell(Kind::ChunkShort, detail);
        }
        match facts.location {
            Some(location) if !location.copies.is_empty() => {
                self.outcome.placed.push(Placed { chunk, record, location, file });
            }
            _ => tell(Kind::ChunkPlace, "no chunkserver is on record for it".into()),
        }
    }
}

/// Extents end with the file; behind it lies only what a truncation left, announced.
fn lies_beyond(record: &Kept, offset: u64, end: u64) -> bool {
    match record.trim_from {
        None => end > record.size,
        Some(from) => end > record.size && offset < from,
    }
}
