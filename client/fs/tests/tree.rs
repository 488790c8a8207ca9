//! The volumes of a mount: entered by lookups, each with a session of its own that waits, fails and ends by itself. The region is one in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{
    Caller, ClientConfig, FileSystem, FsError, RenameMode, Tree, VOLUMES_MAX, WriteMode, WriteOptions,
};
use mooseng_ports::clock::ManualClock;
use tokio::time::Instant;

const ROOT: u64 = 1;

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

/// A mount of the region, and in it a directory `v` at which volume 7 is joined, whose home `m2` leads.
struct Rig {
    region: Arc<FakeRegion>,
    tree: Tree,
    /// The directory.
    joined_at: u64,
    /// The volume's root.
    below: u64,
}

fn config(region: &FakeRegion) -> ClientConfig {
    ClientConfig {
        masters: region.masters(),
        retry_timeout: Duration::from_secs(20),
        write_buffer_bytes: 1 << 20,
        ..ClientConfig::default()
    }
}

async fn rig() -> Rig {
    let region = Arc::new(FakeRegion::new());
    let clock = Arc::new(ManualClock::default());
    let fs = FileSystem::connect_through(config(&region), region.clone(), clock).await.unwrap();
    let joined_at = fs.mkdir(&me(), ROOT, b"v", 0o755).await.unwrap().inode;
    let below = region.make_volume(7, "m2");
    region.join(joined_at, 7);
    Rig { region, tree: fs.into(), joined_at, below }
}

impl Rig {
    /// Looks a name up that is there.
    async fn found(&self, parent: u64, name: &str) -> u64 {
        self.tree.find(&me(), parent, name.as_bytes()).await.unwrap().unwrap().attr.inode
    }

    async fn write(&self, parent: u64, name: &str, text: &'static str) -> Result<u64, FsError> {
        let fs = self.tree.of(parent)?;
        let flags = libc::O_CREAT | libc::O_RDWR;
        let made = fs.create(&me(), parent, name.as_bytes(), 0o644, flags).await?;
        let options = WriteOptions { mode: WriteMode::At, ..WriteOptions::default() };
        fs.write(&me(), made.handle, 0, Bytes::from_static(text.as_bytes()), options).await?;
        fs.fsync(made.handle, false).await?;
        fs.release(made.handle).await?;
        Ok(made.attr.inode)
    }

    async fn read(&self, inode: u64) -> Result<Bytes, FsError> {
        let fs = self.tree.of(inode)?;
        let opened = fs.open(&me(), inode, libc::O_RDONLY).await?;
        let bytes = fs.read(&me(), opened.handle, 0, 100).await?;
        fs.release(opened.handle).await?;
        Ok(bytes)
    }

    async fn end(self) {
        self.tree.close().await;
        self.region.with(|s| assert_eq!(s.violations, Vec::<String>::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_crosses_into_the_volume_that_is_joined_there() {
    let rig = rig().await;
    assert_eq!((rig.tree.entered().len(), rig.region.with(|s| s.sessions_of(7))), (0, 0), "not by mounting");
    assert_eq!(rig.tree.of(rig.below).err(), Some(FsError::NoVolume(7)));
    let found = rig.tree.find(&me(), ROOT, b"v").await.unwrap().unwrap();
    assert_eq!((found.attr.inode, found.crossed.unwrap().inode), (rig.below, rig.joined_at));
    assert_eq!((rig.tree.above(rig.below), rig.tree.above(ROOT)), (Some(ROOT), None));
    // What is done there is its own session's.
    let file = rig.write(rig.below, "f", "seven").await.unwrap();
    assert_eq!(file >> 48, 7);
    assert_eq!(rig.read(rig.found(rig.below, "f").await).await.unwrap(), "seven");
    assert_eq!(rig.region.with(|s| (s.sessions_of(0), s.sessions_of(7))), (1, 1));
    let sessions: Vec<u64> = rig.tree.entered().iter().map(|fs| fs.status().session).collect();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0] >> 48, 7);
    // The directory shows nothing of itself.
    let beneath = rig.tree.root().lookup(&me(), rig.joined_at, b"f").await;
    assert_eq!(beneath, Err(FsError::Joined));
    assert_eq!(FsError::Joined.errno(), libc::ESTALE);
    assert_eq!(rig.tree.find(&me(), rig.below, b"absent").await, Ok(None));
    let region = rig.region.clone();
    rig.end().await;
    assert_eq!(region.with(|s| (s.sessions_of(0), s.sessions_of(7))), (0, 0), "all are closed");
}

#[tokio::test(start_paused = true)]
async fn what_is_promised_is_crossed_without_asking_anybody() {
    let rig = rig().await;
    rig.region.with(|s| (s.exclusive, s.names_promised) = (true, true));
    assert_eq!(rig.tree.known(ROOT, b"v"), None);
    let found = rig.tree.find(&me(), ROOT, b"v").await.unwrap();
    assert_eq!(rig.tree.known(ROOT, b"v"), Some(found));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_moves_between_volumes() {
    let rig = rig().await;
    rig.found(ROOT, "v").await;
    let file = rig.write(ROOT, "f", "root").await.unwrap();
    let exdev = Err(FsError::Answered(libc::EXDEV));
    let root = rig.tree.root();
    let across = root.rename(&me(), ROOT, b"f", rig.below, b"f", RenameMode::Replace).await;
    assert_eq!(across, exdev);
    assert_eq!(root.link(&me(), file, rig.below, b"f").await.map(drop), exdev);
    let below = rig.tree.of(rig.below).unwrap();
    assert_eq!(below.rename(&me(), ROOT, b"f", rig.below, b"f", RenameMode::Replace).await, exdev);
    assert_eq!(below.link(&me(), file, rig.below, b"f").await.map(drop), exdev);
    // A handle of one isn't another's.
    let one = root.open(&me(), file, libc::O_RDWR).await.unwrap().handle;
    let inode = rig.write(rig.below, "g", "seven").await.unwrap();
    let other = below.open(&me(), inode, libc::O_RDWR).await.unwrap().handle;
    assert_ne!(one, other);
    assert_eq!(root.copy_range(&me(), (one, 0), (other, 0), 10).await, Err(FsError::BadHandle(other)));
    assert_eq!(below.read(&me(), one, 0, 10).await, Err(FsError::BadHandle(one)));
    // The directory stays where it is, and named.
    let busy = Err(FsError::Answered(libc::EBUSY));
    assert_eq!(root.rmdir(&me(), ROOT, b"v").await, busy);
    assert_eq!(root.rename(&me(), ROOT, b"v", ROOT, b"w", RenameMode::Replace).await, busy);
    rig.end().await;
}

/// Also where the parent is this mount's alone, and it decides such things by itself.
#[tokio::test(start_paused = true)]
async fn a_joined_directory_stays_where_it_is_in_a_directory_that_is_had_alone() {
    let rig = rig().await;
    rig.region.with(|s| (s.exclusive, s.alone) = (true, true));
    // The session is opened anew, and then it may make names alone.
    rig.region.lapse();
    for name in [&b"a"[..], b"b", b"c", b"d", b"e"] {
        rig.tree.root().mkdir(&me(), ROOT, name, 0o755).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.tree.find(&me(), ROOT, b"v").await.unwrap();
    let root = rig.tree.root();
    let alone = root.status().made_alone;
    root.rmdir(&me(), ROOT, b"e").await.unwrap();
    assert!(root.status().made_alone > alone, "the directory isn't had alone");
    let busy = Err(FsError::Answered(libc::EBUSY));
    assert_eq!(root.rmdir(&me(), ROOT, b"v").await, busy);
    assert_eq!(root.rename(&me(), ROOT, b"v", ROOT, b"w", RenameMode::Replace).await, busy);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn names_are_made_alone_in_a_volume_too() {
    let rig = rig().await;
    rig.region.with(|s| (s.exclusive, s.alone) = (true, true));
    rig.found(ROOT, "v").await;
    let below = rig.tree.of(rig.below).unwrap();
    for n in 0..20 {
        let made = below.mkdir(&me(), rig.below, format!("d{n}").as_bytes(), 0o755).await.unwrap();
        assert_eq!(made.inode >> 48, 7);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(below.status().made_alone > 0);
    below.fsync_directory(rig.below).await.unwrap();
    assert!(rig.region.with(|s| (0..20).all(|n| s.named(rig.below, format!("d{n}").as_bytes()).is_some())));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_doesnt_answer_keeps_no_other_waiting() {
    let rig = rig().await;
    rig.found(ROOT, "v").await;
    let file = rig.write(rig.below, "f", "seven").await.unwrap();
    rig.region.fault("m2", Some(Fault::Hung));
    let (tree, below) = (rig.tree.clone(), rig.below);
    let hangs = tokio::spawn(async move {
        let fs = tree.of(below).unwrap();
        fs.mkdir(&me(), below, b"d", 0o755).await
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    let other = rig.write(ROOT, "g", "root").await.unwrap();
    assert_eq!(rig.read(other).await.unwrap(), "root");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(rig.tree.root().ready().is_ok() && rig.tree.of(below).unwrap().ready().is_err());
    assert!(!hangs.is_finished());
    let why = hangs.await.unwrap().unwrap_err();
    assert_eq!(why.errno(), libc::ETIMEDOUT, "{why}");
    // It goes on where it was.
    rig.region.fault("m2", None);
    assert_eq!(rig.read(file).await.unwrap(), "seven");
    rig.end().await;
}

/// A kernel holds a directory's lock while it looks a name up in it.
#[tokio::test(start_paused = true)]
async fn a_lookup_doesnt_wait_long_for_a_volume_that_doesnt_answer() {
    let rig = rig().await;
    rig.region.fault("m2", Some(Fault::Hung));
    let began = Instant::now();
    let found = rig.tree.lookup(&me(), ROOT, b"v").await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((found.attr.inode, found.crossed.unwrap().inode), (rig.below, rig.joined_at));
    assert_eq!(rig.tree.of(rig.below).unwrap().validity(Some(&found.attr), None).attr, Duration::ZERO);
    // Who wants to know waits.
    let why = rig.tree.find(&me(), ROOT, b"v").await.unwrap_err();
    assert_eq!(why.errno(), libc::ETIMEDOUT, "{why}");
    rig.region.fault("m2", None);
    rig.found(ROOT, "v").await;
    let seen = rig.tree.of(rig.below).unwrap().getattr(&me(), rig.below).await.unwrap();
    rig.region.fault("m2", Some(Fault::Hung));
    assert_eq!(rig.tree.lookup(&me(), ROOT, b"v").await.unwrap().unwrap().attr, seen, "as it was last");
    rig.region.fault("m2", None);
    rig.end().await;
}

/// The room for written data is the mount's; what can't be sent of one volume may fill it.
#[tokio::test(start_paused = true)]
async fn written_data_that_cant_be_sent_keeps_no_other_volume_from_writing() {
    let rig = rig().await;
    rig.region.with(|s| s.exclusive = true);
    rig.found(ROOT, "v").await;
    let below = rig.tree.of(rig.below).unwrap();
    let flags = libc::O_CREAT | libc::O_RDWR;
    let made = below.create(&me(), rig.below, b"f", 0o644, flags).await.unwrap();
    let options = WriteOptions { mode: WriteMode::At, ..WriteOptions::default() };
    let (chunk, caller) = (Bytes::from(vec![7; 64 << 10]), me());
    below.write(&me(), made.handle, 0, chunk.clone(), options).await.unwrap();
    below.fsync(made.handle, false).await.unwrap();
    // Nobody takes what is written from now on.
    for address in ["m2", "c1", "c2", "c3"] {
        rig.region.fault(address, Some(Fault::Hung));
    }
    for at in 1..=16 {
        let written = below.write(&caller, made.handle, at * (64 << 10), chunk.clone(), options);
        if tokio::time::timeout(Duration::from_secs(2), written).await.is_err() {
            break;
        }
    }
    let held = below.status().dirty_bytes;
    assert!(held > (1 << 20) - (64 << 10), "{held} bytes fill the room");
    let began = Instant::now();
    rig.write(ROOT, "g", "root").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    for address in ["m2", "c1", "c2", "c3"] {
        rig.region.fault(address, None);
    }
    below.release(made.handle).await.unwrap();
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_deleted_is_left_and_what_is_joined_there_next_is_entered() {
    let rig = rig().await;
    rig.found(ROOT, "v").await;
    let file = rig.write(rig.below, "f", "seven").await.unwrap();
    let below = rig.tree.of(rig.below).unwrap();
    let handle = below.open(&me(), file, libc::O_RDONLY).await.unwrap().handle;
    rig.region.delete_volume(7);
    let began = Instant::now();
    assert_eq!(below.read(&me(), handle, 0, 10).await, Err(FsError::NoVolume(7)));
    assert_eq!(FsError::NoVolume(7).errno(), libc::ESTALE);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(below.is_gone());
    assert_eq!(rig.tree.of(file).err(), Some(FsError::NoVolume(7)));
    assert_eq!(rig.tree.entered().len(), 0);
    // The parent says otherwise yet, and is asked again.
    assert_eq!(rig.tree.find(&me(), ROOT, b"v").await, Err(FsError::NoVolume(7)));
    rig.region.join(rig.joined_at, 0);
    assert_eq!(rig.found(ROOT, "v").await, rig.joined_at);
    let next = rig.region.make_volume(8, "m1");
    rig.region.join(rig.joined_at, 8);
    assert_eq!(rig.found(ROOT, "v").await, next);
    rig.write(next, "f", "eight").await.unwrap();
    rig.end().await;
}

/// It was deleted while nobody of this mount asked for it: the renewal of its lease finds out.
#[tokio::test(start_paused = true)]
async fn a_volume_that_nobody_uses_is_left_too() {
    let rig = rig().await;
    rig.found(ROOT, "v").await;
    rig.region.delete_volume(7);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(rig.tree.entered().iter().all(FileSystem::is_gone));
    let opened = rig.region.with(|s| s.calls["OpenSession"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.region.with(|s| s.calls["OpenSession"]), opened, "it isn't asked for again and again");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lapse_of_one_volumes_session_is_its_own() {
    let rig = rig().await;
    rig.found(ROOT, "v").await;
    rig.write(rig.below, "f", "seven").await.unwrap();
    rig.region.with(|s| s.lapse_of(7));
    rig.write(rig.below, "g", "seven").await.unwrap();
    let below = rig.tree.of(rig.below).unwrap();
    assert_eq!((below.status().lapses, rig.tree.root().status().lapses), (1, 0));
    assert_eq!(rig.tree.status().lapses, 1, "of all volumes together");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_master_of_an_earlier_release_lets_nobody_into_a_volume() {
    let rig = rig().await;
    rig.region.make_volume(7, "m1");
    rig.region.with(|s| s.one_volume = true);
    let began = Instant::now();
    let why = rig.tree.find(&me(), ROOT, b"v").await.unwrap_err();
    assert!(matches!(&why, FsError::NotBuilt(_)), "{why}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let opened = || rig.region.with(|s| s.calls["OpenSession"]);
    let before = opened();
    // Between two searches.
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(opened() - before <= 4 * 31, "it isn't asked for all the time: {}", opened() - before);
    assert_eq!(rig.region.with(|s| s.sessions_of(0)), 1, "what they open instead is closed");
    // Once they are renewed it works.
    rig.region.with(|s| s.one_volume = false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.found(ROOT, "v").await, rig.below);
    rig.tree.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_volumes_are_entered_than_that() {
    let rig = rig().await;
    let fs = rig.tree.root().clone();
    let most = u16::try_from(VOLUMES_MAX).unwrap();
    for volume in 100..=100 + most {
        let name = format!("v{volume}");
        let directory = fs.mkdir(&me(), ROOT, name.as_bytes(), 0o755).await.unwrap().inode;
        rig.region.make_volume(volume, "m3");
        rig.region.join(directory, volume);
        let found = rig.tree.find(&me(), ROOT, name.as_bytes()).await;
        if volume < 100 + most {
            found.unwrap();
        } else {
            let why = found.unwrap_err();
            assert_eq!(why.errno(), libc::ENFILE, "{why}");
        }
    }
    // One that is gone makes room.
    rig.region.delete_volume(100);
    let gone = rig.found(ROOT, "v101").await;
    assert_eq!(gone >> 48, 101);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.found(ROOT, "v").await, rig.below);
    rig.end().await;
}
