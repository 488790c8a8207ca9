//! What the kernel is told unasked, as messages on a descriptor of our own (`linux/fuse.h`).

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;

/// FUSE_NOTIFY_INVAL_INODE.
const INVAL_INODE: i32 = 2;
/// FUSE_NOTIFY_INVAL_ENTRY.
const INVAL_ENTRY: i32 = 3;
/// FUSE_NOTIFY_INC_EPOCH, of kernel 6.16 and later.
const INC_EPOCH: i32 = 8;

/// A kernel that forgets what it is told to. ENOENT says that it doesn't have it.
pub(crate) trait Kernel: Send + Sync + 'static {
    /// Forgets an entry. Waits for the directory's lock.
    fn forget_entry(&self, directory: u64, name: &[u8]) -> io::Result<()>;
    /// Forgets an inode's attributes, and with `pages` what is cached of its contents: for pages in use it waits.
    fn forget_inode(&self, inode: u64, pages: bool) -> io::Result<()>;
    /// Believes no entry any more that it was told before. Waits for nobody. EINVAL where there are no epochs.
    fn raise_epoch(&self) -> io::Result<()>;
}

/// The kernel behind /dev/fuse.
#[derive(Debug)]
pub(crate) struct Device {
    session: File,
    /// The inode of the directory that is mounted: the kernel calls it [`ROOT`].
    root: u64,
}

/// What the kernel calls the directory that is mounted.
pub(crate) const ROOT: u64 = 1;

impl Device {
    /// Through a descriptor of the mount's session, where the directory with the inode `root` is mounted.
    pub fn new(descriptor: OwnedFd, root: u64) -> Self {
        Self { session: File::from(descriptor), root }
    }

    fn node(&self, inode: u64) -> [u8; 8] {
        if inode == self.root { ROOT.to_ne_bytes() } else { inode.to_ne_bytes() }
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = 16 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut header = [0_u8; 16];
        header[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&code.to_ne_bytes());
        let slices: Vec<IoSlice<'_>> =
            std::iter::once(&header[..]).chain(parts.iter().copied()).map(IoSlice::new).collect();
        // One message is one write.
        (&self.session).write_vectored(&slices).map(|_| ())
    }
}

impl Kernel for Device {
    fn forget_entry(&self, directory: u64, name: &[u8]) -> io::Result<()> {
        let mut head = [0_u8; 16];
        head[..8].copy_from_slice(&self.node(directory));
        head[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
        self.send(INVAL_ENTRY, &[&head, name, &[0]])
    }

    fn forget_inode(&self, inode: u64, pages: bool) -> io::Result<()> {
        let mut body = [0_u8; 24];
        body[..8].copy_from_slice(&self.node(inode));
        // From the first byte to the last; a negative offset means no byte.
        let (offset, length): (i64, i64) = if pages { (0, -1) } else { (-1, 0) };
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..].copy_from_slice(&length.to_ne_bytes());
        self.send(INVAL_INODE, &[&body])
    }

    fn raise_epoch(&self) -> io::Result<()> {
        self.send(INC_EPOCH, &[])
    }
}
