//! lookup, readdir and readdirplus.

use mooseng_schema::Record;
use mooseng_schema::dirent::{self, Cookie, DirentRecord};
use mooseng_store::{RangeLimit, Transaction};
use mooseng_wire::InodeId;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::{DirEntry, DirPage, Entry, ReadDir};

use crate::errno::Errno;
use crate::error::OpError;
use crate::permission::{self, EXECUTE, READ};
use crate::together::InOrder;
use crate::view::{View, check_name, is_directory, wire_kind};

/// Entries in one answer.
const ENTRIES_MAX: u32 = 1024;
/// Bytes of entries in one answer, as they are stored.
const PAGE_BYTES_MAX: usize = 256 << 10;

pub async fn lookup<T: Transaction>(
    view: &View<'_, T>,
    parent: InodeId,
    name: &[u8],
) -> Result<Entry, OpError> {
    check_name(name)?;
    let (directory, id) = match name {
        b"." => (view.any_directory(parent).await?, parent),
        b".." => {
            let directory = view.any_directory(parent).await?;
            // The root is its own parent, that of the subtree to which a session is confined, too.
            let is_root = view.ctx.confined == Some(parent);
            let up = directory.links.first().filter(|_| !is_root);
            let id = up.map_or(parent, |link| InodeId(link.parent));
            (directory, id)
        }
        _ => {
            let (directory, slot) =
                futures::join!(view.directory(parent), view.slot(parent, name)).in_order()?;
            permission::check(&directory, view.caller, EXECUTE)?;
            let found = slot.found.ok_or(Errno::ENOENT)?;
            let record = view.named_inode(&found).await?;
            return Ok(Entry { attr: Some(view.attr(found.inode, &record).await?) });
        }
    };
    permission::check(&directory, view.caller, EXECUTE)?;
    let record = view.inode(id).await?;
    Ok(Entry { attr: Some(view.attr(id, &record).await?) })
}

/// A page of entries in the order of their cookies. No request opens a directory, so that who may read it is looked at here. Attributes of what is in it go only to
/// those who may search it.
pub async fn read<T: Transaction>(view: &View<'_, T>, r: &ReadDir) -> Result<DirPage, OpError> {
    let id = InodeId(r.inode);
    view.touched.look(Fact::Directory(id));
    let directory = view.directory(id).await?;
    permission::check(&directory, view.caller, READ)?;
    let plus = r.plus && permission::check(&directory, view.caller, EXECUTE).is_ok();
    let most = if r.entries_max == 0 { ENTRIES_MAX } else { r.entries_max.min(ENTRIES_MAX) };
    let limit = RangeLimit { pairs_max: most as usize, bytes_max: PAGE_BYTES_MAX, reverse: false };
    let page = view.tx.get_range(dirent::range_after(id, Cookie(r.cookie)), limit, view.read).await?;
    let entries = page.pairs.iter().map(|(key, value)| async move {
        let cookie = dirent::parse_key(id, key)?;
        let entry = DirentRecord::from_value(value)?;
        let inode = InodeId(entry.inode);
        let attr = match plus {
            true => {
                let found = crate::view::Found { cookie, inode };
                let record = view.named_inode(&found).await?;
                debug_assert_eq!(
                    is_directory(record.kind),
                    is_directory(entry.kind),
                    "entry and inode are of one kind"
                );
                Some(view.attr(inode, &record).await?)
            }
            false => None,
        };
        Ok::<_, OpError>(DirEntry {
            name: entry.name,
            inode: inode.0,
            kind: wire_kind(entry.kind),
            cookie: cookie.0,
            attr,
        })
    });
    Ok(DirPage { entries: futures::future::try_join_all(entries).await?, end: !page.more })
}
