//! Names made alone beside names made the usual way: the same random operations by two clients of a real master, each in a tree of its own. They must hear
//! the same, and a third look must find the same.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Cluster, identity};
use mooseng_client::{
    Attr, Caller, ClientConfig, FileKind, FileSystem, FsError, RenameMode, SetAttr, WriteOptions,
};
use mooseng_ports::clock::OsClock;
use mooseng_transport::PlainNetwork;
use mooseng_wire::Role;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Linux' O_RDWR and O_EXCL.
const READ_WRITE: i32 = 0o2;
const EXCLUSIVE: i32 = 0o200;
const DIRECTORIES: usize = 3;
const NAMES: u8 = 4;

/// What is compared of attributes: all but ids and times.
type Shown = (i32, u32, u32, u32, u32, u64);

fn shown(attr: &Attr) -> Shown {
    (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, attr.size)
}

#[derive(Clone, Debug)]
enum Step {
    Create {
        at: (usize, u8),
        mode: u32,
        exclusive: bool,
        bytes: usize,
    },
    Make {
        at: (usize, u8),
        mode: u32,
        kind: FileKind,
    },
    Unlink((usize, u8)),
    Rmdir((usize, u8)),
    Rename {
        from: (usize, u8),
        to: (usize, u8),
        mode: RenameMode,
    },
    Link {
        from: (usize, u8),
        to: (usize, u8),
    },
    Set {
        at: (usize, u8),
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        mtime_ns: Option<i64>,
    },
    Truncate((usize, u8), u64),
    Mark((usize, u8)),
    Look((usize, u8)),
    /// The directory itself.
    Stat(usize),
}

fn random(rng: &mut StdRng) -> Step {
    let mut at = || (rng.random_range(0..DIRECTORIES), rng.random_range(0..NAMES));
    let (at, to) = (at(), at());
    let mode = [0o644, 0o755, 0o4755, 0o2755, 0o6777, 0o2644, 0o1777][rng.random_range(0..7)];
    match rng.random_range(0..24) {
        0..=5 => Step::Create { at, mode, exclusive: rng.random(), bytes: rng.random_range(0..3) * 700 },
        6 | 7 => {
            let kind = [FileKind::Directory, FileKind::Symlink, FileKind::Fifo, FileKind::Socket];
            Step::Make { at, mode, kind: kind[rng.random_range(0..4)] }
        }
        8..=10 => Step::Unlink(at),
        11 => Step::Rmdir(at),
        12..=14 => {
            let mode = match rng.random_range(0..5) {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            Step::Rename { from: at, to, mode }
        }
        15 => Step::Link { from: at, to },
        16..=18 => Step::Set {
            at,
            mode: rng.random::<bool>().then_some(mode),
            uid: (rng.random_range(0..3) == 0).then(|| rng.random_range(0..3)),
            gid: (rng.random_range(0..3) == 0).then(|| rng.random_range(0..3)),
            mtime_ns: (rng.random_range(0..4) == 0).then_some(12_345),
        },
        19 => Step::Truncate(at, rng.random_range(0..2000)),
        20 => Step::Mark(at),
        21 | 22 => Step::Look(at),
        _ => Step::Stat(at.0),
    }
}

struct Tree {
    fs: FileSystem,
    directories: Vec<u64>,
}

impl Tree {
    /// A directory, one in it, and one in that.
    async fn new(fs: FileSystem, name: String) -> Self {
        let me = Caller { kernel_checked: true, ..Caller::default() };
        let mut directories = Vec::new();
        let mut parent = fs.root();
        for depth in 0..DIRECTORIES {
            let name = if depth == 0 { name.clone() } else { format!("below{depth}") };
            let mode = if depth == 1 { 0o2775 } else { 0o755 };
            parent = fs.mkdir(&me, parent, name.as_bytes(), mode).await.unwrap().inode;
            if depth == 1 {
                // A group of its own, which what is made there inherits.
                let set = SetAttr { inode: parent, gid: Some(7), mode: Some(0o2775), ..SetAttr::default() };
                fs.setattr(&me, set).await.unwrap();
            }
            directories.push(parent);
        }
        Self { fs, directories }
    }

    async fn run(&self, caller: &Caller, step: &Step) -> Result<Option<Shown>, FsError> {
        let fs = &self.fs;
        let place = |(directory, n): (usize, u8)| (self.directories[directory], vec![b'a' + n]);
        let inode = async |at: (usize, u8)| {
            let (parent, name) = place(at);
            fs.lookup(caller, parent, &name).await.map(|attr| attr.inode)
        };
        match step.clone() {
            Step::Create { at, mode, exclusive, bytes } => {
                let (parent, name) = place(at);
                let flags = READ_WRITE | if exclusive { EXCLUSIVE } else { 0 };
                let made = fs.create(caller, parent, &name, mode, flags).await?;
                // What else there is of that name no kernel writes to through this.
                if bytes > 0 && made.attr.kind() == FileKind::Regular {
                    let data = Bytes::from(vec![b'x'; bytes]);
                    fs.write(caller, made.handle, 0, data, WriteOptions::default()).await?;
                }
                fs.release(made.handle).await?;
                Ok(Some(shown(&made.attr)))
            }
            Step::Make { at, mode, kind } => {
                let (parent, name) = place(at);
                let made = match kind {
                    FileKind::Directory => fs.mkdir(caller, parent, &name, mode).await?,
                    FileKind::Symlink => fs.symlink(caller, parent, &name, b"somewhere").await?,
                    kind => fs.mknod(caller, parent, &name, kind, mode, 0).await?,
                };
                Ok(Some(shown(&made)))
            }
            Step::Unlink(at) => {
                let (parent, name) = place(at);
                fs.unlink(caller, parent, &name).await.map(|()| None)
            }
            Step::Rmdir(at) => {
                let (parent, name) = place(at);
                fs.rmdir(caller, parent, &name).await.map(|()| None)
            }
            Step::Rename { from, to, mode } => {
                let ((parent, name), (new_parent, new_name)) = (place(from), place(to));
                fs.rename(caller, parent, &name, new_parent, &new_name, mode).await.map(|()| None)
            }
            Step::Link { from, to } => {
                let (inode, (parent, name)) = (inode(from).await?, place(to));
                fs.link(caller, inode, parent, &name).await.map(|attr| Some(shown(&attr)))
            }
            Step::Set { at, mode, uid, gid, mtime_ns } => {
                let inode = inode(at).await?;
                let set = SetAttr { inode, mode, uid, gid, mtime_ns, ..SetAttr::default() };
                fs.setattr(caller, set).await.map(|attr| Some(shown(&attr)))
            }
            Step::Truncate(at, size) => {
                let set = SetAttr { inode: inode(at).await?, size: Some(size), ..SetAttr::default() };
                fs.setattr(caller, set).await.map(|attr| Some(shown(&attr)))
            }
            Step::Mark(at) => {
                let inode = inode(at).await?;
                fs.setxattr(caller, inode, b"user.mark", b"1", false, false).await.map(|()| None)
            }
            Step::Look(at) => {
                let (parent, name) = place(at);
                fs.lookup(caller, parent, &name).await.map(|attr| Some(shown(&attr)))
            }
            Step::Stat(directory) => {
                let attr = fs.getattr(caller, self.directories[directory]).await?;
                Ok(Some(shown(&attr)))
            }
        }
    }
}

/// Everything in a directory, through that client: names, what is compared, and, for the same tree through different clients, ids and times.
async fn all(fs: &FileSystem, directory: u64) -> BTreeMap<Vec<u8>, Attr> {
    let root = Caller { kernel_checked: true, ..Caller::default() };
    let page = fs.readdir(&root, directory, 0, 1000).await.unwrap();
    assert!(page.end);
    let mut all = BTreeMap::new();
    for entry in page.entries {
        let attr = fs.lookup(&root, directory, &entry.name).await.unwrap();
        assert_eq!(attr.inode, entry.inode);
        all.insert(entry.name.to_vec(), attr);
    }
    all.insert(b".".to_vec(), fs.getattr(&root, directory).await.unwrap());
    all
}

fn compared(all: &BTreeMap<Vec<u8>, Attr>) -> BTreeMap<&[u8], Shown> {
    all.iter().map(|(name, attr)| (name.as_slice(), shown(attr))).collect()
}

async fn connect(cluster: &Cluster, name: &str, delegate: bool) -> FileSystem {
    let masters = cluster.addresses();
    let config = ClientConfig { masters, host: name.into(), delegate, ..ClientConfig::default() };
    let network = Arc::new(PlainNetwork::new(identity(Role::Client, name)));
    FileSystem::connect(config, network, Arc::new(OsClock)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_alone_is_as_what_is_made_the_usual_way() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    let (ours, other) = (connect(&cluster, "ours", true).await, connect(&cluster, "other", false).await);
    let mut made_alone = 0;
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (alone, usual) = tokio::join!(
            Tree::new(ours.clone(), format!("alone{seed}")),
            Tree::new(other.clone(), format!("usual{seed}"))
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        for n in 0..150 {
            let caller = match rng.random_range(0..4) {
                0 => Caller { uid: 1, gid: 1, umask: 0o022, kernel_checked: true, ..Caller::default() },
                1 => Caller { uid: 2, gid: 2, groups: vec![7], kernel_checked: true, ..Caller::default() },
                _ => Caller { umask: 0o027, kernel_checked: true, ..Caller::default() },
            };
            let step = random(&mut rng);
            let heard = async |tree: &Tree, name: &str| {
                let heard = tokio::time::timeout(common::WAIT, tree.run(&caller, &step)).await;
                heard.unwrap_or_else(|_| panic!("seed {seed}, step {n}: {step:?} hangs for {name}"))
            };
            let (one, two) = tokio::join!(heard(&alone, "ours"), heard(&usual, "other"));
            let errno = |heard: Result<Option<Shown>, FsError>| heard.map_err(|error| error.errno());
            assert_eq!(errno(one), errno(two), "seed {seed}, step {n}: {step:?} by {caller:?}");
            match rng.random_range(0..200) {
                0..=15 => tokio::time::sleep(Duration::from_millis(rng.random_range(0..15))).await,
                16 => ours.fsync_directory(alone.directories[0]).await.unwrap(),
                17 => {
                    // It is asked for again in a while; the others go on being this client's.
                    let directory = alone.directories[rng.random_range(0..DIRECTORIES)];
                    let (found, own) = (all(&other, directory).await, all(&ours, directory).await);
                    assert_eq!(found, own, "seed {seed}, step {n}");
                }
                _ => {}
            }
        }
        for (one, two) in alone.directories.iter().zip(&usual.directories) {
            let (own, found, expected) =
                (all(&ours, *one).await, all(&other, *one).await, all(&other, *two).await);
            assert_eq!(own, found, "seed {seed}: the region has it as its maker shows it");
            assert_eq!(compared(&own), compared(&expected), "seed {seed}");
        }
        let status = ours.status();
        assert_eq!((status.alone_corrected, status.untold_lost), (0, 0), "seed {seed}");
        made_alone = status.made_alone;
    }
    println!("{made_alone} changes were made alone");
    assert!(made_alone > 500, "only {made_alone} changes were made alone");
    ours.close().await;
    other.close().await;
}

/// A directory that another client has filled is emptied with a question for hundreds of its files, but for what somebody else knows of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_made_is_removed_without_a_question_for_each() {
    const FILES: usize = 600;
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    let root = Caller { kernel_checked: true, ..Caller::default() };
    let name = |n: usize| format!("f{n:03}").into_bytes();
    let maker = connect(&cluster, "maker", true).await;
    let directory = maker.mkdir(&root, maker.root(), b"d", 0o755).await.unwrap().inode;
    for n in 0..FILES {
        let made = maker.create(&root, directory, &name(n), 0o644, READ_WRITE).await.unwrap();
        maker.release(made.handle).await.unwrap();
    }
    let twice = maker.lookup(&root, directory, &name(20)).await.unwrap().inode;
    maker.link(&root, twice, maker.root(), b"twice").await.unwrap();
    // It goes on having all of them exclusively, for all it knows.
    let open = maker.lookup(&root, directory, &name(300)).await.unwrap().inode;

    let (reader, ours) = (connect(&cluster, "reader", true).await, connect(&cluster, "ours", true).await);
    let held = reader.open(&root, open, 0).await.unwrap();
    // It is promised the list, and a name that nobody changes.
    reader.readdir(&root, directory, 0, 1000).await.unwrap();
    reader.lookup(&root, directory, &name(1)).await.unwrap();
    for n in 0..FILES {
        match n % 3 {
            // Moved first.
            0 => {
                let moved = format!("g{n:03}").into_bytes();
                ours.rename(&root, directory, &name(n), directory, &moved, RenameMode::Replace)
                    .await
                    .unwrap();
                ours.unlink(&root, directory, &moved).await.unwrap();
            }
            // The next one stays.
            1 if n % 30 == 1 => {}
            _ => ours.unlink(&root, directory, &name(n)).await.unwrap(),
        }
    }
    let left = |page: mooseng_wire::fs::DirPage| -> Vec<Vec<u8>> {
        page.entries.iter().map(|entry| entry.name.to_vec()).collect()
    };
    let expected: Vec<Vec<u8>> = (0..FILES).filter(|n| n % 30 == 1).map(name).collect();
    // Somebody else looks at those that stay, one after the other, and finds them as they are, whoever holds them.
    let page = reader.readdir(&root, directory, 0, 1000).await.unwrap();
    let mut names = left(page);
    names.sort();
    assert_eq!(names, expected);
    for name in &expected {
        assert_eq!(reader.lookup(&root, directory, name).await.unwrap().nlink, 1);
    }
    for (inode, links) in [(open, 0), (twice, 1)] {
        assert_eq!(reader.getattr(&root, inode).await.unwrap().nlink, links);
    }
    reader.release(held.handle).await.unwrap();
    let status = ours.status();
    assert!(status.made_alone > 700, "{} of 780 changes were made alone", status.made_alone);
    assert_eq!((status.alone_corrected, status.untold_lost), (0, 0));
    maker.close().await;
    reader.close().await;
    ours.close().await;
}

/// A kernel that knew of no such name has checked what a maker may. What somebody else has made there meanwhile is opened, or cut, by who may open it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_creates_what_another_host_has_just_made_opens_it_as_anybody() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    let (ours, other) = (connect(&cluster, "ours", true).await, connect(&cluster, "other", true).await);
    let root = Caller { kernel_checked: true, ..Caller::default() };
    let user = |uid: u32| Caller { uid, gid: uid, kernel_checked: true, ..Caller::default() };
    let directory = ours.mkdir(&root, ours.root(), b"d", 0o777).await.unwrap().inode;
    assert!(ours.lookup(&user(1), directory, b"f").await.is_err());
    let made = other.create(&user(2), directory, b"f", 0o660, READ_WRITE).await.unwrap();
    other
        .write(&user(2), made.handle, 0, b"secret".as_slice().into(), WriteOptions::default())
        .await
        .unwrap();
    other.fsync(made.handle, false).await.unwrap();
    let flags = READ_WRITE | 0o1000;
    let size = async || other.getattr(&root, made.attr.inode).await.unwrap().size;
    let refused = ours.create(&user(1), directory, b"f", 0o644, flags).await;
    assert_eq!(refused.map(|created| created.created), Err(FsError::Answered(13)));
    assert_eq!(size().await, 6, "nothing was cut");
    // One of its group.
    let opened = ours.create_as(&user(1), || vec![2], (directory, b"f"), 0o644, READ_WRITE).await.unwrap();
    assert_eq!((opened.created, opened.attr.inode), (false, made.attr.inode));
    let owner = ours.create(&user(2), directory, b"f", 0o644, flags).await.unwrap();
    assert_eq!((owner.created, owner.attr.size, size().await), (false, 0, 0));
    for handle in [opened.handle, owner.handle] {
        ours.release(handle).await.unwrap();
    }
    other.release(made.handle).await.unwrap();
    ours.close().await;
    other.close().await;
}
