//! What the kernel is told to forget, by a kernel that takes answers in late, and by the real one.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::mpsc::Receiver;

use fuser::{
    Config, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyEmpty, ReplyEntry, Request, Session, SessionACL,
};
use mooseng_client::fake::FakeRegion;
use mooseng_client::{Attr, Caller, ClientConfig, FileSystem, Tree};
use mooseng_ports::clock::OsClock;

use super::*;
use crate::answers::Adapter;
use crate::device::{mount_on, place};
use crate::mount::MountOptions;
use crate::{convert, unmount};

const DIRECTORY: u64 = 2;
const INODE: u64 = 7;
const VALID: Duration = Duration::from_secs(10);

/// A kernel whose threads run when the test lets them.
#[derive(Default)]
struct Slow {
    has: Mutex<BTreeSet<u64>>,
    /// How often attributes of [`INODE`] were forgotten while it had it.
    forgotten: AtomicU64,
    /// Of how often it was told to.
    told: AtomicU64,
    /// Whoever wants a directory's lock waits for a word here.
    lock: Mutex<Option<Receiver<()>>>,
    /// How often the epoch was raised.
    epochs: AtomicU64,
    /// How often an entry was forgotten.
    entries: AtomicU64,
    /// Inodes whose pages were dropped.
    dropped: Mutex<Vec<u64>>,
    /// Whoever drops pages waits for a word here, once.
    page: Mutex<Option<Receiver<()>>>,
}

impl Slow {
    fn meets(&self, inode: u64) {
        self.has.lock().unwrap().insert(inode);
    }
    fn counts(&self) -> (u64, u64) {
        (self.told.load(Ordering::SeqCst), self.forgotten.load(Ordering::SeqCst))
    }
    fn dropped(&self) -> usize {
        self.dropped.lock().unwrap().len()
    }
    fn wait_for_drops(&self, count: usize) {
        let begun = std::time::Instant::now();
        while self.dropped() < count {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{} of {count} drops have come",
                self.dropped()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Kernel for Slow {
    fn forget_entry(&self, _directory: u64, _name: &[u8]) -> io::Result<()> {
        if let Some(lock) = &*self.lock.lock().unwrap() {
            let _ = lock.recv();
        }
        self.entries.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }
    fn forget_inode(&self, inode: u64, pages: bool) -> io::Result<()> {
        let has = self.has.lock().unwrap().contains(&inode);
        if !pages {
            self.told.fetch_add(1, Ordering::SeqCst);
            self.forgotten.fetch_add(u64::from(has), Ordering::SeqCst);
        } else {
            let page = self.page.lock().unwrap().take();
            if let Some(page) = page {
                let _ = page.recv();
            }
            self.dropped.lock().unwrap().push(inode);
        }
        if has { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
    }
    fn raise_epoch(&self) -> io::Result<()> {
        self.epochs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Found by the campaign of faults: entries that the kernel kept from a list outlived the list's promise, and an old file was shown under a
/// name that another mount had given to a new one.
#[tokio::test(start_paused = true)]
async fn entries_that_a_list_told_of_go_with_its_promise() {
    let (kernel, notifier) = rig();
    let epochs = || kernel.epochs.load(Ordering::SeqCst);
    notifier.directory(DIRECTORY).await;
    assert_eq!(epochs(), 0, "no entry is kept from it");
    assert_eq!(notifier.telling_listed(DIRECTORY, VALID), VALID);
    notifier.inode(DIRECTORY).await;
    assert_eq!(epochs(), 0, "its attributes say nothing of its entries");
    notifier.directory(DIRECTORY).await;
    assert_eq!(epochs(), 1);
    notifier.directory(DIRECTORY).await;
    assert_eq!(epochs(), 1);
}

/// An answer for another name of the inode makes the kernel's attributes good for longer, and with them the list that it has.
#[tokio::test(start_paused = true)]
async fn a_list_outlives_the_time_of_attributes_and_goes_with_a_recall_all_the_same() {
    let (kernel, notifier) = rig();
    kernel.meets(INODE);
    notifier.telling(INODE, VALID, How::Known);
    assert!(notifier.telling_list(INODE, true));
    notifier.inode(INODE).await;
    let (told, forgotten) = kernel.counts();
    assert_eq!(told, forgotten);
    notifier.inode(INODE).await;
    assert_eq!(kernel.counts(), (told, forgotten), "it has nothing any more");
    assert!(notifier.telling_list(INODE, true));
    notifier.inode(INODE).await;
    assert_eq!(kernel.counts(), (told + 1, forgotten + 1));
    assert!(notifier.telling_list(INODE, true));
    notifier.everything(VolumeId(0)).await;
    assert_eq!(kernel.counts(), (told + 2, forgotten + 2));
    // Of what isn't promised nothing is remembered: it is taken back at once.
    assert!(!notifier.telling_list(INODE, false));
    notifier.inode(INODE).await;
    assert_eq!(kernel.counts(), (told + 2, forgotten + 2));
    // What the kernel has dropped it doesn't have.
    notifier.telling(INODE, Duration::ZERO, How::Met);
    assert!(notifier.telling_list(INODE, true));
    notifier.given_back(INODE, 1);
    notifier.inode(INODE).await;
    assert_eq!(kernel.counts(), (told + 2, forgotten + 2));
}

/// Another volume's promises have ended: what the kernel has of this one it keeps.
#[tokio::test(start_paused = true)]
async fn only_a_volumes_own_inodes_are_forgotten_with_all_of_its_promises() {
    let (kernel, notifier) = rig();
    kernel.meets(INODE);
    notifier.telling(INODE, VALID, How::Known);
    assert!(notifier.telling_list(INODE, true) && !notifier.keeps_pages(INODE, Some(1)));
    notifier.of(VolumeId(7)).everything().await;
    assert_eq!(kernel.counts(), (0, 0));
    assert!(notifier.keeps_pages(INODE, Some(1)));
    notifier.of(VolumeId(0)).everything().await;
    let (told, forgotten) = kernel.counts();
    assert!(told > 0 && told == forgotten);
    assert!(!notifier.keeps_pages(INODE, Some(1)));
}

/// The name is promised still, and that a volume is joined at its directory isn't: the kernel would go on to show a volume that was deleted, for as long as
/// the name is promised.
#[tokio::test(start_paused = true)]
async fn an_entry_that_leads_to_another_volume_goes_with_the_attributes_of_the_directory_between() {
    let (kernel, notifier) = rig();
    let epochs = || kernel.epochs.load(Ordering::SeqCst);
    let entries = || kernel.entries.load(Ordering::SeqCst);
    assert_eq!(notifier.telling_crossing(INODE, (DIRECTORY, b"v"), Duration::ZERO), Duration::ZERO);
    notifier.inode(INODE).await;
    assert_eq!((entries(), epochs()), (0, 0), "it keeps none");
    assert_eq!(notifier.telling_crossing(INODE, (DIRECTORY, b"v"), VALID), VALID);
    notifier.inode(DIRECTORY).await;
    assert_eq!((entries(), epochs()), (0, 0));
    notifier.inode(INODE).await;
    assert!(entries() + epochs() > 0);
    assert!(notifier.crossings(|crossings| crossings.is_empty()), "it has none any more");
}

/// A fault of a mapping asks for pages and never for attributes: from the second write elsewhere on the kernel wasn't told to drop them, for nothing else
/// was told of the inode since the first.
#[tokio::test]
async fn pages_are_dropped_with_each_recall_that_comes_after_they_were_given() {
    let (kernel, notifier) = rig();
    kernel.meets(INODE);
    notifier.telling(INODE, VALID, How::Met);
    notifier.inode(INODE).await;
    kernel.wait_for_drops(1);
    for hold in 2..4 {
        notifier.gives_pages(INODE, Some(hold as u64));
        notifier.inode(INODE).await;
        kernel.wait_for_drops(hold);
    }
    // On their way while they are recalled.
    notifier.giving_pages(INODE);
    notifier.inode(INODE).await;
    kernel.wait_for_drops(4);
    notifier.gives_pages(INODE, Some(9));
    notifier.everything(VolumeId(0)).await;
    kernel.wait_for_drops(5);
    // Once is enough, and what was dropped with its inode isn't there.
    notifier.gives_pages(INODE, Some(9));
    notifier.given_back(INODE, 1);
    notifier.inode(INODE).await;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(*kernel.dropped.lock().unwrap(), [INODE; 5]);
}

/// Nobody recalls them: a mapping would show them for ever.
#[tokio::test]
async fn pages_that_nothing_promises_are_dropped_soon() {
    let (kernel, notifier) = rig();
    notifier.gives_pages(INODE, None);
    notifier.gives_pages(INODE, None);
    assert_eq!(kernel.dropped(), 0, "they are to be read");
    kernel.wait_for_drops(1);
    notifier.gives_pages(INODE, None);
    kernel.wait_for_drops(2);
    assert_eq!(kernel.dropped(), 2);
}

/// Mappings depend on each of them, and the kernel may keep the first waiting for long.
#[tokio::test]
async fn no_drop_gets_lost_however_many_wait() {
    let (kernel, notifier) = rig();
    let (free, page) = mpsc::channel();
    *kernel.page.lock().unwrap() = Some(page);
    for inode in 1..=5_000 {
        notifier.telling(inode, VALID, How::Known);
    }
    notifier.inode(1).await;
    notifier.everything(VolumeId(0)).await;
    free.send(()).unwrap();
    kernel.wait_for_drops(5_000);
    let dropped: BTreeSet<u64> = kernel.dropped.lock().unwrap().iter().copied().collect();
    assert!((1..=5_000).eq(dropped));
}

/// A page that is written in a mapping comes as a write before it is dropped, and before that no other mount may change the file.
#[tokio::test]
async fn a_recall_waits_for_what_was_written_to_a_mapping_and_not_for_ever() {
    let (kernel, notifier) = rig();
    let write_back = || {
        let notifier = notifier.clone();
        tokio::spawn(async move { notifier.write_back(INODE).await })
    };
    notifier.gives_pages(INODE, Some(1));
    notifier.mappings.opened(INODE, libc::O_RDONLY);
    write_back().await.unwrap();
    assert_eq!(kernel.dropped(), 0, "nobody can have written it");
    notifier.mappings.opened(INODE, libc::O_RDWR);
    let (free, page) = mpsc::channel();
    *kernel.page.lock().unwrap() = Some(page);
    let waits = write_back();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waits.is_finished());
    free.send(()).unwrap();
    waits.await.unwrap();
    assert_eq!(*kernel.dropped.lock().unwrap(), [INODE]);
    // One of this mount's own writes may hold the page.
    let writing = notifier.mappings.writing(INODE);
    write_back().await.unwrap();
    assert_eq!(kernel.dropped(), 1);
    drop(writing);
    let (free, page) = mpsc::channel();
    *kernel.page.lock().unwrap() = Some(page);
    let begun = std::time::Instant::now();
    write_back().await.unwrap();
    assert!(
        (WRITTEN_BACK_WITHIN..WRITTEN_BACK_WITHIN * 10).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    free.send(()).unwrap();
    kernel.wait_for_drops(2);
    // What was taken back isn't there.
    notifier.inode(INODE).await;
    kernel.wait_for_drops(3);
    write_back().await.unwrap();
    assert_eq!(kernel.dropped(), 3);
}

fn rig() -> (Arc<Slow>, Arc<Notifier>) {
    let kernel = Arc::new(Slow::default());
    let notifier = Notifier::over(kernel.clone()).unwrap();
    (kernel, notifier)
}

fn recall(notifier: &Arc<Notifier>) -> tokio::task::JoinHandle<()> {
    let notifier = notifier.clone();
    tokio::spawn(async move { notifier.inode(INODE).await })
}

/// Some of the ladder's pauses.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn a_recall_waits_until_the_kernel_has_met_an_inode_that_it_is_being_told_of() {
    let (kernel, notifier) = rig();
    assert_eq!(notifier.telling(INODE, VALID, How::Met), VALID);
    let recall = recall(&notifier);
    a_while().await;
    assert!(!recall.is_finished() && kernel.counts().1 == 0, "{:?}", kernel.counts());
    kernel.meets(INODE);
    recall.await.unwrap();
    assert_eq!(kernel.counts().1, 1);
}

#[tokio::test(start_paused = true)]
async fn a_recall_of_everything_waits_for_it_too() {
    let (kernel, notifier) = rig();
    notifier.telling(INODE, VALID, How::Met);
    let own = notifier.clone();
    let recall = tokio::spawn(async move { own.everything(VolumeId(0)).await });
    a_while().await;
    assert!(!recall.is_finished());
    kernel.meets(INODE);
    recall.await.unwrap();
    assert_eq!(kernel.counts().1, 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_has_dropped_is_waited_for_only_for_a_while() {
    let (kernel, notifier) = rig();
    notifier.telling(INODE, VALID, How::Met);
    let begun = Instant::now();
    recall(&notifier).await.unwrap();
    let took = begun.elapsed();
    assert!(took >= TAKEN_IN_WITHIN && took < TAKEN_IN_WITHIN * 2, "{took:?}");
    assert_eq!(kernel.counts().1, 0);
}

/// Two mounts that make and remove the same names would wait for each other a second each time.
#[tokio::test(start_paused = true)]
async fn what_the_kernel_has_given_back_is_not_waited_for() {
    for how in [How::Met, How::Made(DIRECTORY)] {
        let (_kernel, notifier) = rig();
        notifier.telling(INODE, VALID, how);
        notifier.telling(INODE, VALID, How::Met);
        notifier.given_back(INODE, 2);
        let begun = Instant::now();
        recall(&notifier).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_has_for_sure_costs_one_message_and_no_time() {
    for how in [How::Known, How::Met] {
        let (kernel, notifier) = rig();
        kernel.meets(INODE);
        notifier.telling(INODE, VALID, how);
        let begun = Instant::now();
        recall(&notifier).await.unwrap();
        assert_eq!((kernel.counts(), begun.elapsed()), ((1, 1), Duration::ZERO));
    }
    // Long ago.
    let (kernel, notifier) = rig();
    notifier.telling(INODE, VALID, How::Made(DIRECTORY));
    tokio::time::sleep(TAKEN_IN_WITHIN * 2).await;
    let begun = Instant::now();
    recall(&notifier).await.unwrap();
    assert_eq!((kernel.counts(), begun.elapsed()), ((1, 0), Duration::ZERO));
}

/// An answer that made an entry is believed whatever was invalidated before it was taken in.
#[tokio::test]
async fn what_was_made_is_forgotten_again_once_its_directory_is_free() {
    let (kernel, notifier) = rig();
    let (free, lock) = mpsc::channel();
    *kernel.lock.lock().unwrap() = Some(lock);
    kernel.meets(INODE);
    notifier.telling(INODE, VALID, How::Made(DIRECTORY));
    let recall = recall(&notifier);
    tokio::time::timeout(Duration::from_secs(10), async {
        while kernel.counts().1 < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    assert!(!recall.is_finished());
    let before = kernel.counts().1;
    free.send(()).unwrap();
    recall.await.unwrap();
    assert!(kernel.counts().1 > before);
}

/// Two hosts that take away what the other has just made would wait for each other's directory locks.
#[tokio::test(start_paused = true)]
async fn a_later_change_of_the_directory_proves_that_it_was_taken_in() {
    let (kernel, notifier) = rig();
    let (_never, lock) = mpsc::channel();
    *kernel.lock.lock().unwrap() = Some(lock);
    kernel.meets(INODE);
    notifier.telling(INODE, VALID, How::Made(DIRECTORY));
    tokio::time::advance(Duration::from_millis(1)).await;
    notifier.changing(DIRECTORY);
    let begun = Instant::now();
    recall(&notifier).await.unwrap();
    assert_eq!((kernel.counts(), begun.elapsed()), ((1, 1), Duration::ZERO));
    // Also one that comes while it is waited.
    notifier.telling(INODE, VALID, How::Made(DIRECTORY));
    let waiting = recall(&notifier);
    a_while().await;
    assert!(!waiting.is_finished());
    notifier.changing(DIRECTORY);
    waiting.await.unwrap();
    assert!(begun.elapsed() < TAKEN_IN_WITHIN / 2);
}

fn may_mount() -> bool {
    let may = nix::unistd::geteuid().is_root() && std::path::Path::new("/dev/fuse").exists();
    if !may {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
    }
    may
}

/// Found by review: CREATE kept nothing of it that its entry was known from the list alone, and the entry outlived the list's promise.
#[test]
fn an_entry_that_was_made_alone_goes_with_the_directorys_list() {
    if !may_mount() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let region = Arc::new(FakeRegion::new());
    region.with(|s| (s.exclusive, s.alone) = (true, true));
    let config = ClientConfig { masters: region.masters(), delegate: true, ..ClientConfig::default() };
    let fs = FileSystem::connect_through(config, region.clone(), Arc::new(OsClock));
    let fs = runtime.block_on(fs).unwrap();
    let mounted = tempfile::tempdir().unwrap();
    let (path, mode) = place(mounted.path()).unwrap();
    let descriptor = mount_on(&path, mode, &MountOptions::default()).unwrap();
    // The real kernel isn't told.
    let (kernel, notifier) = rig();
    let adapter = Adapter::new(Tree::from(fs), runtime.handle().clone(), 100, notifier.clone());
    let session = Session::from_fd(adapter, descriptor, SessionACL::All, Config::default()).unwrap();
    let served = std::thread::spawn(move || session.run());
    let directory = path.join("d");
    std::fs::create_dir(&directory).unwrap();
    let inode = std::fs::metadata(&directory).unwrap().ino();
    // It keeps by the list that there is no such name: what makes it comes without a lookup.
    std::fs::metadata(directory.join("f")).unwrap_err();
    runtime.block_on(notifier.directory(inode));
    let epochs = || kernel.epochs.load(Ordering::SeqCst);
    let before = epochs();
    std::fs::File::create(directory.join("f")).unwrap();
    runtime.block_on(notifier.directory(inode));
    let after = epochs();
    unmount(&path, false).unwrap();
    served.join().unwrap().unwrap();
    assert_eq!((before, after), (1, 2));
}

/// A file's first page, mapped.
struct Page(*mut libc::c_void);

impl Page {
    fn of(file: &std::fs::File) -> Self {
        Self::mapped(file, libc::PROT_READ)
    }
    fn mapped(file: &std::fs::File, protection: i32) -> Self {
        // SAFETY: a fresh mapping of an open file.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED);
        Self(map)
    }
    /// Its first byte.
    fn shown(&self) -> u8 {
        // SAFETY: within the mapping, which lives as long as this.
        unsafe { self.0.cast::<u8>().read_volatile() }
    }
    /// Changes it, where it is mapped to be written.
    fn write(&self, byte: u8) {
        // SAFETY: as above.
        unsafe { self.0.cast::<u8>().write_volatile(byte) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: nothing else has it.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

/// What is in a dirty page is the mount's once the write-back returns, without a word of the program's. On a real mount.
#[test]
fn a_dirty_page_of_a_mapping_is_written_before_the_file_is_given_up() {
    if !may_mount() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let fs = FileSystem::connect_through(config, region.clone(), Arc::new(OsClock));
    let fs = runtime.block_on(fs).unwrap();
    let mounted = tempfile::tempdir().unwrap();
    let (path, mode) = place(mounted.path()).unwrap();
    let descriptor = mount_on(&path, mode, &MountOptions::default()).unwrap();
    let notifier = Notifier::new(descriptor.try_clone().unwrap(), 1).unwrap();
    let adapter = Adapter::new(Tree::from(fs.clone()), runtime.handle().clone(), 100, notifier.clone());
    let session = Session::from_fd(adapter, descriptor, SessionACL::All, Config::default()).unwrap();
    let served = std::thread::spawn(move || session.run());
    let name = path.join("f");
    std::fs::write(&name, [b'.'; 4096]).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let inode = file.metadata().unwrap().ino();
    let page = Page::mapped(&file, libc::PROT_READ | libc::PROT_WRITE);
    let has = || {
        runtime.block_on(async {
            let me = Caller { kernel_checked: true, ..Caller::default() };
            let opened = fs.open(&me, inode, libc::O_RDONLY).await.unwrap();
            let bytes = fs.read(&me, opened.handle, 0, 4096).await.unwrap();
            fs.release(opened.handle).await.unwrap();
            (bytes.len(), bytes[0])
        })
    };
    page.write(b'X');
    let before = has();
    runtime.block_on(notifier.write_back(inode));
    let after = has();
    let may_be_mapped = notifier.may_be_mapped(inode);
    drop((page, file));
    // Its release comes on its own.
    let begun = std::time::Instant::now();
    while notifier.mappings.may_be_dirty(inode) && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let is_still_mapped = notifier.mappings.may_be_dirty(inode);
    unmount(&path, false).unwrap();
    served.join().unwrap().unwrap();
    assert_eq!((before, after), ((4096, b'.'), (4096, b'X')));
    assert_eq!((may_be_mapped, is_still_mapped), (true, false));
}

/// Writes elsewhere show in a mapping, one after the other, though nobody asks for the file's attributes between them. On a real mount.
#[test]
fn a_mapping_shows_each_write_elsewhere() {
    if !may_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (path, mode) = place(directory.path()).unwrap();
    let descriptor = mount_on(&path, mode, &MountOptions::default()).unwrap();
    let notifier = Notifier::new(descriptor.try_clone().unwrap(), 1).unwrap();
    let file = OneFile::new(1, &notifier);
    let content = file.content.clone();
    let session = Session::from_fd(file, descriptor, SessionACL::All, Config::default()).unwrap();
    let served = std::thread::spawn(move || session.run());
    let file = std::fs::File::open(path.join("looked-up")).unwrap();
    let page = Page::of(&file);
    assert_eq!(page.shown(), 0);
    let mut missed = None;
    for written in 1..5 {
        content.store(written, Ordering::SeqCst);
        runtime.block_on(notifier.inode(INODE));
        let begun = std::time::Instant::now();
        while page.shown() != written && missed.is_none() {
            missed = (begun.elapsed() > Duration::from_secs(5)).then_some(written);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop((page, file));
    unmount(&path, false).unwrap();
    served.join().unwrap().unwrap();
    assert_eq!(missed, None);
}

/// One file, whose size and first byte are what was set; everything else doesn't exist.
struct OneFile {
    size: Arc<AtomicU64>,
    content: Arc<AtomicU8>,
    notifier: Arc<Notifier>,
    /// How many answers with attributes of the file were written.
    answered: Arc<AtomicU64>,
}

impl OneFile {
    fn new(size: u64, notifier: &Arc<Notifier>) -> Self {
        let size = Arc::new(AtomicU64::new(size));
        Self { size, content: Arc::default(), notifier: notifier.clone(), answered: Arc::default() }
    }

    fn attr(&self) -> fuser::FileAttr {
        let size = self.size.load(Ordering::SeqCst);
        let kind = mooseng_client::FileKind::Regular.into();
        convert::attr(&Attr { inode: INODE, kind, size, nlink: 1, mode: 0o644, ..Attr::default() })
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name != "looked-up" {
            return reply.error(Errno::ENOENT);
        }
        let showing = self.notifier.showing();
        let attr = self.attr();
        let time = self.notifier.telling(INODE, VALID, How::Met);
        reply.entry(&time, &attr, Generation(0));
        drop(showing);
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.notifier.changing(parent.0);
        let showing = self.notifier.showing();
        let attr = self.attr();
        let time = self.notifier.telling(INODE, VALID, How::Made(parent.0));
        reply.created(&time, &attr, Generation(0), FileHandle(1), FopenFlags::empty());
        drop(showing);
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: fuser::ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<fuser::LockOwner>,
        reply: fuser::ReplyData,
    ) {
        self.notifier.giving_pages(ino.0);
        let _showing = self.notifier.showing();
        self.notifier.gives_pages(ino.0, Some(1));
        reply.data(&[self.content.load(Ordering::SeqCst)]);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: fuser::LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let root = Attr {
            inode: 1,
            kind: mooseng_client::FileKind::Directory.into(),
            nlink: 2,
            mode: 0o755,
            ..Attr::default()
        };
        let attr = if ino.0 == 1 { convert::attr(&root) } else { self.attr() };
        reply.attr(&Duration::ZERO, &attr);
    }
}

/// Binds the calling thread to the second processor. False where there is none for us.
fn bind() -> bool {
    // SAFETY: a set of processors of our own, filled before it is read.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(1, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set) == 0
    }
}

/// Lets the calling thread run where nobody else wants to.
fn step_back() {
    let policy = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live over the call.
    unsafe { assert_eq!(libc::sched_setscheduler(0, libc::SCHED_IDLE, &policy), 0) };
}

/// A thread asks, doesn't get to run when it is answered, and meanwhile what it was answered is recalled and changed: it must not be shown
/// the old value any more. On a real mount.
#[test]
fn whoever_runs_late_isnt_shown_what_was_recalled_meanwhile() {
    if !may_mount() {
        return;
    }
    if !std::thread::spawn(bind).join().unwrap() {
        eprintln!("SKIPPED: it takes two processors");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut late, mut stale) = (0, Vec::new());
    for round in 0..60 {
        // A mount for each round, so that the kernel meets the file anew.
        let (path, mode) = place(directory.path()).unwrap();
        let descriptor = mount_on(&path, mode, &MountOptions::default()).unwrap();
        let notifier = Notifier::new(descriptor.try_clone().unwrap(), 1).unwrap();
        let file = OneFile::new(1, &notifier);
        let (size, answered) = (file.size.clone(), file.answered.clone());
        let session = Session::from_fd(file, descriptor, SessionACL::All, Config::default()).unwrap();
        let served = std::thread::spawn(move || session.run());
        let stop = Arc::new(AtomicBool::new(false));
        let hog = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                bind();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let created = round % 2 == 1;
        let asked = path.join(if created { "created" } else { "looked-up" });
        let ran = Arc::new(AtomicBool::new(false));
        let asks = {
            let ran = ran.clone();
            std::thread::spawn(move || {
                bind();
                step_back();
                if created {
                    let file = std::fs::File::create(&asked).unwrap();
                    ran.store(true, Ordering::SeqCst);
                    (file.metadata().unwrap().size(), file.metadata().unwrap().size())
                } else {
                    let first = std::fs::metadata(&asked).unwrap().size();
                    ran.store(true, Ordering::SeqCst);
                    (first, std::fs::metadata(&asked).unwrap().size())
                }
            })
        };
        while answered.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        late += u32::from(!ran.load(Ordering::SeqCst));
        let begun = std::time::Instant::now();
        runtime.block_on(notifier.inode(INODE));
        let took = begun.elapsed();
        size.store(2, Ordering::SeqCst);
        // Whoever ran before the change may have been shown the old value.
        let seen_before = ran.load(Ordering::SeqCst);
        stop.store(true, Ordering::SeqCst);
        let (first, second) = asks.join().unwrap();
        if !seen_before && second != 2 && took < TAKEN_IN_WITHIN {
            stale.push((round, first, second, took));
        }
        hog.join().unwrap();
        unmount(&path, false).unwrap();
        served.join().unwrap().unwrap();
    }
    eprintln!("{late} of 60 ran late");
    assert_eq!(stale, []);
}
