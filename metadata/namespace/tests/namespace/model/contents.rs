//! The model's bytes and holes.

use mooseng_wire::fs::*;

use super::*;
use crate::harness::chunk_byte;

impl Model {
    pub(super) fn seek(&self, r: &Seek) -> Answer {
        let content = &self.file(r.inode)?.content;
        let from = r.offset as usize;
        if from >= content.len() {
            return Err(ENXIO);
        }
        let data = r.whence == SeekWhence::Data as i32;
        let place = content[from..].iter().position(|b| b.is_some() == data).map(|i| i + from);
        match (place, data) {
            (Some(place), _) => Ok(Expect::Offset(place as u64)),
            (None, true) => Err(ENXIO),
            (None, false) => Ok(Expect::Offset(content.len() as u64)),
        }
    }

    pub(super) fn fallocate(&mut self, at: &At<'_>, r: &Fallocate) -> Answer {
        if r.length == 0 {
            return Err(EINVAL);
        }
        match self.node(r.inode)?.kind {
            FILE => {}
            DIR => return Err(EISDIR),
            _ => return Err(ENODEV),
        }
        let node = self.node_mut(r.inode);
        let (from, to) = (r.offset as usize, (r.offset + r.length) as usize);
        if r.zero || !r.keep_size {
            let size = node.content.len();
            if r.zero && from < size {
                node.content[from..to.min(size)].fill(None);
            }
            node.resize(if r.keep_size { size } else { size.max(to) } as u64, at.now);
            node.strip_for(at.who, r.kill_suidgid);
        }
        Ok(Expect::Ranged(self.attr(r.inode), r.length, false))
    }

    /// Where the namespace doesn't refuse: which chunks are sealed the model doesn't know.
    pub(super) fn copy_range(&mut self, at: &At<'_>, r: &CopyRange) -> Answer {
        let source = self.file(r.source)?;
        let size = source.content.len() as u64;
        self.file(r.inode)?;
        let length = r.length.min(size.saturating_sub(r.source_offset));
        if r.source == r.inode && r.offset.abs_diff(r.source_offset) < length {
            return Err(EINVAL);
        }
        if length > 0 {
            let from = r.source_offset as usize;
            let bytes = source.content[from..from + length as usize].to_vec();
            let (from, to) = (r.offset as usize, (r.offset + length) as usize);
            let node = self.node_mut(r.inode);
            node.resize(node.content.len().max(to) as u64, at.now);
            node.content[from..to].copy_from_slice(&bytes);
            node.strip_for(at.who, r.kill_suidgid);
        }
        Ok(Expect::Ranged(self.attr(r.inode), length, false))
    }

    pub(super) fn write(&mut self, at: &At<'_>, r: &Write) -> Answer {
        let size = self.file(r.inode)?.content.len() as u64;
        let node = self.node_mut(r.inode);
        for piece in &r.pieces {
            let bytes: Vec<u8> = match piece.data.as_ref().unwrap() {
                write_piece::Data::Inline(bytes) => bytes.to_vec(),
                write_piece::Data::Run(run) => {
                    (0..run.length).map(|i| chunk_byte(run.chunk, run.chunk_offset + i)).collect()
                }
            };
            let offset = if r.append { node.content.len() } else { piece.offset as usize };
            let end = offset + bytes.len();
            if node.content.len() < end {
                node.content.resize(end, None);
            }
            for (place, byte) in node.content[offset..end].iter_mut().zip(bytes) {
                *place = Some(byte);
            }
        }
        node.times[1] = at.now;
        node.times[2] = at.now;
        if r.kill_suidgid || (at.who.uid != 0 && !at.who.kernel_checked) {
            node.strip();
        }
        let start = if r.append { size } else { r.pieces[0].offset };
        Ok(Expect::Written(self.attr(r.inode), start))
    }
}
