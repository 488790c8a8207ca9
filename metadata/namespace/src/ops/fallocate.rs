//! fallocate: a longer file, or a hole in it.

use mooseng_store::{RangeLimit, Transaction};
use mooseng_wire::fs::{Fallocate, Ranged};
use mooseng_wire::{FILE_SIZE_MAX, InodeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::extents::Pieces;
use crate::view::{View, attr_of, is_directory, is_regular};
use crate::window::{self, FREE_PAGE_EXTENTS};

pub async fn fallocate<T: Transaction>(view: &View<'_, T>, r: &Fallocate) -> Result<Ranged, OpError> {
    let id = InodeId(r.inode);
    if r.length == 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut record = view.inode(id).await?;
    if is_directory(record.kind) {
        return Err(Errno::EISDIR.into());
    }
    if !is_regular(record.kind) {
        return Err(Errno::ENODEV.into());
    }
    let end = r.offset.checked_add(r.length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Errno::EFBIG)?;
    let answer =
        |record: &_, done, more| Ranged { attr: Some(attr_of(id, record, &<_>::default())), done, more };
    if r.keep_size && !r.zero {
        return Ok(answer(&record, r.length, false));
    }
    // Behind the end there is nothing but what a truncation left dead.
    let stop = end.min(record.size);
    let mut reached = end;
    if r.zero && r.offset < stop {
        let mut before = Pieces::default();
        let range = (r.offset, stop);
        let limit = RangeLimit { pairs_max: FREE_PAGE_EXTENTS, ..RangeLimit::default() };
        let loaded = window::load_some(view.tx, id, range, limit, &mut before).await?;
        let mut after = before.clone();
        after.cut(r.offset, loaded);
        window::store(view.tx, id, &mut record, &before, &after).await?;
        if loaded < stop {
            reached = loaded;
        }
    }
    if reached == end && !r.keep_size && end > record.size {
        window::need_trimmed(id, &record)?;
        record.size = end;
    }
    record.mtime_ns = view.ctx.now_ns;
    record.ctime_ns = view.later(record.ctime_ns);
    if view.kills_privileges(r.kill_suidgid) {
        view.kill_privileges(id, &mut record).await?;
    }
    view.put_inode(id, &record);
    Ok(answer(&record, reached - r.offset, reached < end))
}
