//! Truncations of files of which data is kept that the region has no room for: asked of the region before anything is given up.

use std::sync::Arc;

use mooseng_wire::fs::{Attr, SetAttr};

use crate::buffers::Buffer;
use crate::dirty::Agreed;
use crate::error::FsError;
use crate::waits::{self, What};
use crate::writeback::WriteBack;

/// A change of the size beneath bytes that are kept, until [`Self::ended`] hears what became of it. Where it is dropped nobody knows, and the bytes stay.
pub(crate) struct Cutting {
    writer: Arc<WriteBack>,
    inode: u64,
    number: u64,
    sets_mtime: bool,
    /// None once it has ended.
    buffer: Option<Arc<Buffer>>,
}

impl WriteBack {
    /// [`Self::flush_before`] for a change of the file's size: bytes behind the new end needn't be stored, and those before it come after the cut as well as before
    /// it where the region has no room for them at present. Where there are such bytes, whatever is answered has to hear what becomes of the change.
    pub async fn flush_before_cut(
        self: &Arc<Self>,
        change: &SetAttr,
        size: u64,
    ) -> Result<Option<Cutting>, FsError> {
        let inode = change.inode;
        let Err(error) = self.flush_before(inode).await else { return Ok(None) };
        if !self.is_kept(inode) {
            return Err(error);
        }
        let Some(buffer) = self.buffers.get(inode) else { return Ok(None) };
        let number = {
            let _sender = waits::on(|| What::Sender, buffer.sender.lock()).await;
            self.buffers.change(inode, |dirty| dirty.begin_cut(size))
        };
        let sets_mtime = change.mtime_ns.is_some();
        Ok(Some(Cutting { writer: self.clone(), inode, number, sets_mtime, buffer: Some(buffer) }))
    }
}

impl Cutting {
    /// The size was changed, or that failed.
    pub fn ended(mut self, outcome: Result<&Attr, &FsError>) {
        self.end(outcome.map_err(Some));
    }

    fn end(&mut self, outcome: Result<&Attr, Option<&FsError>>) {
        let Some(buffer) = self.buffer.take() else { return };
        let (writer, inode, number) = (&self.writer, self.inode, self.number);
        // It may be on its way still: sent before it is over, what stays would be cut by it.
        let is_open = !matches!(outcome, Ok(_) | Err(Some(FsError::Answered(_))));
        let last = writer.region.last_number();
        let life = writer.region.session.life();
        let agreed = outcome.ok().map(|attr| Agreed { attr, sets_mtime: self.sets_mtime, life });
        let lost = writer.buffers.change(inode, |dirty| {
            if is_open {
                dirty.fence = dirty.fence.max(last);
            }
            dirty.end_cut(number, agreed)
        });
        if lost {
            let unknown = FsError::Answered(libc::EIO);
            let error = outcome.err().flatten().unwrap_or(&unknown);
            tracing::error!(
                inode,
                %error,
                "written data behind a truncation was given up, for others needed the file, and the truncation failed; the next fsync of each open handle reports it"
            );
            writer.note_loss(inode, error);
        }
        writer.buffers.give_back(inode, buffer);
    }
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.end(Err(None));
    }
}
