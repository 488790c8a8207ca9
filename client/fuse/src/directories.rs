//! Listing directories: pages of entries, and what of one didn't fit into the kernel's buffer.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{FileHandle, INodeNo, ReplyDirectory, Request};
use mooseng_client::{Caller, DirEntry, FileSystem, FsError};

use crate::answers::Adapter;
use crate::convert;
use crate::operations::Operation;

/// Entries asked for at once.
const PAGE_ENTRIES: u32 = 512;
/// The offsets of "." and ".." come first; a directory's own cookies are shifted behind them.
const COOKIES_FROM: u64 = 2;

/// Entries that were fetched and didn't fit into the kernel's buffer, by directory handle.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    last: AtomicU64,
    left: Mutex<BTreeMap<u64, Left>>,
    /// Of open handles, the newest loss of changes that it has heard of.
    heard: Mutex<BTreeMap<u64, Arc<AtomicU64>>>,
}

#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The kernel's offset that they continue.
    offset: u64,
    entries: VecDeque<DirEntry>,
    end: bool,
}

impl Directories {
    /// A handle; what was lost before doesn't concern it.
    pub fn open(&self, losses: u64) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles(|heard| heard.insert(handle, Arc::new(AtomicU64::new(losses))));
        handle
    }
    fn handles<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<AtomicU64>>) -> T) -> T {
        f(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// The losses that a handle has heard of.
    pub fn heard(&self, handle: u64) -> Arc<AtomicU64> {
        self.handles(|heard| heard.get(&handle).cloned()).unwrap_or_default()
    }
    /// A handle is closed.
    pub fn close(&self, handle: u64) {
        self.map(|left| left.remove(&handle));
        self.handles(|heard| heard.remove(&handle));
    }
    fn take(&self, handle: u64, offset: u64) -> Option<Left> {
        self.map(|left| left.remove(&handle)).filter(|left| left.offset == offset && offset > COOKIES_FROM)
    }
    pub fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Left>) -> T) -> T {
        f(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Adapter {
    /// Answers a readdir.
    pub fn list(
        &self,
        req: &Request,
        (inode, fs): (u64, FileSystem),
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let (caller, directories) = (self.caller(&fs, req), self.directories.clone());
        // Above a volume's root is what only the crossing knows.
        let above = self.tree.above(inode);
        let work = async move {
            let page = first_page((&fs, above), &caller, &directories, inode, fh.0, offset).await?;
            Ok((directories, page))
        };
        self.run(Operation::ReadDirectory, req.pid(), inode, work, move |outcome| match outcome {
            Err(errno) => reply.error(errno),
            Ok((directories, page)) => {
                let mut at = offset;
                for (number, inode) in page.dots.iter().flatten() {
                    let name = if *number == 1 { "." } else { ".." };
                    if reply.add(INodeNo(*inode), *number, fuser::FileType::Directory, name) {
                        return reply.ok();
                    }
                    at = *number;
                }
                let mut left = Left { offset: at, entries: page.entries, end: page.end };
                while let Some(entry) = left.entries.front() {
                    let next = entry.cookie.saturating_add(COOKIES_FROM);
                    if reply.add(
                        INodeNo(entry.inode),
                        next,
                        convert::kind(entry.kind()),
                        OsStr::from_bytes(&entry.name),
                    ) {
                        break;
                    }
                    left.offset = next;
                    left.entries.pop_front();
                }
                if !left.entries.is_empty() || left.end {
                    directories.map(|map| map.insert(fh.0, left));
                }
                reply.ok();
            }
        });
    }
}

/// What a readdir answers from.
struct Page {
    /// The offset and inode of "." and "..", as far as they are asked for.
    dots: [Option<(u64, u64)>; 2],
    entries: VecDeque<DirEntry>,
    end: bool,
}

async fn first_page(
    (fs, above): (&FileSystem, Option<u64>),
    caller: &Caller,
    directories: &Directories,
    inode: u64,
    handle: u64,
    offset: u64,
) -> Result<Page, FsError> {
    if let Some(left) = directories.take(handle, offset)
        && (!left.entries.is_empty() || left.end)
    {
        return Ok(Page { dots: [None, None], entries: left.entries, end: left.end });
    }
    let fetch = async {
        match fs.readdir(caller, inode, offset.saturating_sub(COOKIES_FROM), PAGE_ENTRIES).await {
            // Removed while it was open: an empty directory.
            Err(FsError::Answered(libc::ENOENT)) => Ok((VecDeque::new(), true)),
            other => other.map(|page| (VecDeque::from(page.entries), page.end)),
        }
    };
    let (page, parent) = if offset < COOKIES_FROM {
        tokio::join!(fetch, parent_of((fs, above), caller, inode))
    } else {
        (fetch.await, inode)
    };
    let (entries, end) = page?;
    Ok(Page { dots: [(offset < 1).then_some((1, inode)), (offset < 2).then_some((2, parent))], entries, end })
}

/// For the inode number shown beside "..", so a failure isn't worth an error.
async fn parent_of((fs, above): (&FileSystem, Option<u64>), caller: &Caller, inode: u64) -> u64 {
    if above.is_some() || inode == fs.root() {
        return above.unwrap_or(inode);
    }
    match fs.describe(caller, inode).await {
        Ok(description) => description.links.first().map_or(inode, |link| link.parent),
        Err(_) => inode,
    }
}
