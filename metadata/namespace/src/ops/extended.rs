//! Extended attributes, and access control lists, which are asked for and set as such but lie in the inode.

use bytes::Bytes;
use mooseng_schema::Record;
use mooseng_schema::acl::AclRecord;
use mooseng_schema::inode::InodeRecord;
use mooseng_schema::xattr::{self, XattrRecord};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fs::{FileKind, Names, SetXattr, Value};
use mooseng_wire::{ACCESS_ACL, DEFAULT_ACL, InodeId};

use crate::acl;
use crate::errno::Errno;
use crate::error::OpError;
use crate::joins;
use crate::permission::{self, READ, STICKY, WRITE};
use crate::together::InOrder;
use crate::view::{View, is_directory, is_regular};
use crate::window::behind;

/// Longest value, as Linux has it.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Longest name, as Linux has it.
const NAME_BYTES_MAX: usize = 255;
/// Most bytes of an inode's names, each with a terminator: listxattr's answer, as Linux has it.
const LIST_BYTES_MAX: u32 = 64 << 10;

/// Who may use a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    /// Whoever may read or write the file.
    User,
    /// root alone; others don't even see it.
    Trusted,
    /// Everybody reads; root writes.
    Security,
    /// The list that governs access. Everybody reads; the owner writes.
    AccessList,
    /// The list that a directory hands down.
    DefaultList,
}

/// A name's namespace. Of `system.` there are the access control lists.
fn namespace(name: &[u8]) -> Result<Namespace, Errno> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    match name {
        ACCESS_ACL => return Ok(Namespace::AccessList),
        DEFAULT_ACL => return Ok(Namespace::DefaultList),
        _ => {}
    }
    let prefixes: [(&[u8], Namespace); 3] =
        [(b"user.", Namespace::User), (b"trusted.", Namespace::Trusted), (b"security.", Namespace::Security)];
    for (prefix, namespace) in prefixes {
        if let Some(rest) = name.strip_prefix(prefix) {
            return if rest.is_empty() { Err(Errno::EINVAL) } else { Ok(namespace) };
        }
    }
    Err(Errno::ENOTSUP)
}

fn may_read<T: Transaction>(view: &View<'_, T>, record: &InodeRecord, space: Namespace) -> Result<(), Errno> {
    match space {
        // On devices and symlinks mode bits mean something else, so that they have none.
        Namespace::User if !is_regular(record.kind) && !is_directory(record.kind) => Err(Errno::ENODATA),
        Namespace::User => permission::check(record, view.caller, READ),
        Namespace::Trusted if view.caller.uid != 0 => Err(Errno::ENODATA),
        Namespace::Trusted | Namespace::Security => Ok(()),
        Namespace::AccessList | Namespace::DefaultList => has_lists(record),
    }
}

/// A symlink's mode means nothing, and so would a list.
fn has_lists(record: &InodeRecord) -> Result<(), Errno> {
    if record.kind == FileKind::Symlink as u32 { Err(Errno::ENOTSUP) } else { Ok(()) }
}

fn may_write<T: Transaction>(
    view: &View<'_, T>,
    record: &InodeRecord,
    space: Namespace,
) -> Result<(), Errno> {
    joins::not_covered(record)?;
    match space {
        Namespace::User if !is_regular(record.kind) && !is_directory(record.kind) => Err(Errno::EPERM),
        Namespace::User => {
            // Whoever may only make entries in a sticky directory doesn't own it.
            if is_directory(record.kind) && record.mode & STICKY != 0 {
                permission::check_owner(record, view.caller)?;
            }
            permission::check(record, view.caller, WRITE)
        }
        Namespace::Trusted | Namespace::Security if view.caller.uid != 0 && !view.caller.kernel_checked => {
            Err(Errno::EPERM)
        }
        Namespace::Trusted | Namespace::Security => Ok(()),
        Namespace::AccessList | Namespace::DefaultList => {
            has_lists(record)?;
            permission::check_owner(record, view.caller)
        }
    }
}

pub async fn get<T: Transaction>(view: &View<'_, T>, id: InodeId, name: &[u8]) -> Result<Value, OpError> {
    let space = namespace(name)?;
    if matches!(space, Namespace::AccessList | Namespace::DefaultList) {
        let record = view.inode(id).await?;
        may_read(view, &record, space)?;
        let list = match space {
            Namespace::AccessList => acl::access(&record).map(|list| acl::encode(&list)),
            _ => record.default_acl.as_deref().map(acl::encode),
        };
        return Ok(Value { value: list.ok_or(Errno::ENODATA)? });
    }
    let key = xattr::key(id, name);
    let (record, value) =
        futures::join!(view.inode(id), async { Ok(view.tx.get(&key, view.read).await?) }).in_order()?;
    may_read(view, &record, space)?;
    let value = value.ok_or(Errno::ENODATA)?;
    Ok(Value { value: XattrRecord::from_value(&value)?.value })
}

pub async fn list<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<Names, OpError> {
    let record = view.inode(id).await?;
    let lists = [(record.access_acl.is_some(), ACCESS_ACL), (record.default_acl.is_some(), DEFAULT_ACL)];
    let mut names: Vec<Bytes> =
        lists.into_iter().filter(|(is, _)| *is).map(|(_, name)| Bytes::from_static(name)).collect();
    if record.xattr_name_bytes == 0 {
        return Ok(Names { names });
    }
    let whole = xattr::range(id);
    let mut range = whole.clone();
    loop {
        let page = view.tx.get_range(range, RangeLimit::default(), view.read).await?;
        for (key, _) in &page.pairs {
            let name = xattr::parse_key(id, key)?;
            if !name.starts_with(b"trusted.") || view.caller.uid == 0 {
                names.push(name);
            }
        }
        match page.pairs.last() {
            Some((last, _)) if page.more => range = behind(&whole, last),
            _ => return Ok(Names { names }),
        }
    }
}

pub async fn set<T: Transaction>(view: &View<'_, T>, r: &SetXattr) -> Result<(), OpError> {
    let space = namespace(&r.name)?;
    if r.value.len() > VALUE_BYTES_MAX {
        return Err(Errno::E2BIG.into());
    }
    let id = InodeId(r.inode);
    if matches!(space, Namespace::AccessList | Namespace::DefaultList) {
        return set_list(view, id, space, acl::decode(&r.value)?).await;
    }
    let key = xattr::key(id, &r.name);
    let (mut record, old) =
        futures::join!(view.inode(id), async { Ok(view.tx.get(&key, Read::Conflicting).await?) })
            .in_order()?;
    may_write(view, &record, space)?;
    if r.create && old.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if r.replace && old.is_none() {
        return Err(Errno::ENODATA.into());
    }
    if old.is_none() {
        record.xattr_name_bytes += r.name.len() as u32 + 1;
        if record.xattr_name_bytes > LIST_BYTES_MAX {
            return Err(Errno::ENOSPC.into());
        }
    }
    view.tx.set(&key, &XattrRecord { value: r.value.clone() }.to_value());
    record.ctime_ns = view.later(record.ctime_ns);
    view.put_inode(id, &record);
    Ok(())
}

pub async fn remove<T: Transaction>(view: &View<'_, T>, id: InodeId, name: &[u8]) -> Result<(), OpError> {
    let space = namespace(name)?;
    if matches!(space, Namespace::AccessList | Namespace::DefaultList) {
        return set_list(view, id, space, None).await;
    }
    let key = xattr::key(id, name);
    let (mut record, old) =
        futures::join!(view.inode(id), async { Ok(view.tx.get(&key, Read::Conflicting).await?) })
            .in_order()?;
    may_write(view, &record, space)?;
    if old.is_none() {
        return Err(Errno::ENODATA.into());
    }
    view.tx.clear(&key);
    record.xattr_name_bytes = record.xattr_name_bytes.saturating_sub(name.len() as u32 + 1);
    record.ctime_ns = view.later(record.ctime_ns);
    view.put_inode(id, &record);
    Ok(())
}

/// Sets a list, or takes it away. As on Linux, taking away what isn't there is no error, and whether there was one before doesn't matter.
async fn set_list<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    space: Namespace,
    list: Option<AclRecord>,
) -> Result<(), OpError> {
    let mut record = view.inode(id).await?;
    may_write(view, &record, space)?;
    if space == Namespace::AccessList {
        acl::set_access(&mut record, list, view.caller);
    } else if is_directory(record.kind) {
        record.default_acl = list.map(Box::new);
    } else if list.is_some() {
        return Err(Errno::EACCES.into());
    }
    record.ctime_ns = view.later(record.ctime_ns);
    view.put_inode(id, &record);
    Ok(())
}
