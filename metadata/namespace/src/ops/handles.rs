//! open and access. That a session has a file open is registered by the master, in memory.

use mooseng_store::Transaction;
use mooseng_wire::InodeId;
use mooseng_wire::fs::{Entry, FileKind};

use crate::errno::Errno;
use crate::error::OpError;
use crate::permission::{self, READ, WRITE};
use crate::view::{View, is_directory};

// Flags of open(2) as Linux numbers them on x86-64 and arm64 alike, except O_DIRECTORY: both values of it are taken.
const O_ACCMODE: u32 = 0o3;
const O_WRONLY: u32 = 0o1;
const O_RDWR: u32 = 0o2;
const O_TRUNC: u32 = 0o1000;

pub async fn open<T: Transaction>(view: &View<'_, T>, id: InodeId, flags: u32) -> Result<Entry, OpError> {
    let record = view.inode(id).await?;
    let writes = matches!(flags & O_ACCMODE, O_WRONLY | O_RDWR) || flags & O_TRUNC != 0;
    let reads = flags & O_ACCMODE != O_WRONLY;
    if is_directory(record.kind) && writes {
        return Err(Errno::EISDIR.into());
    }
    if record.kind == FileKind::Symlink as u32 {
        return Err(Errno::ELOOP.into());
    }
    let mask = if reads { READ } else { 0 } | if writes { WRITE } else { 0 };
    permission::check(&record, view.caller, mask)?;
    Ok(Entry { attr: Some(view.attr(id, &record).await?) })
}

pub async fn access<T: Transaction>(view: &View<'_, T>, id: InodeId, mask: u32) -> Result<(), OpError> {
    let record = view.inode(id).await?;
    if mask & !0o7 != 0 {
        return Err(Errno::EINVAL.into());
    }
    // The question itself is about rights: it is answered even where the kernel checks them.
    if permission::allows(&record, view.caller, mask) { Ok(()) } else { Err(Errno::EACCES.into()) }
}
