//! Directories at which other volumes are joined.

use bytes::Bytes;
use mooseng_namespace::joins::{self, Refused};
use mooseng_namespace::quota::{self, Account};
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{Errno, Ids, OpContext, OpError, execute, trash};
use mooseng_store::memory::MemoryTransaction;
use mooseng_store::{Store, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{InodeId, VolumeId};

use crate::harness::*;
use crate::model::*;

const OTHER: VolumeId = VolumeId(3);

async fn try_join(tx: &MemoryTransaction, directory: u64, of: VolumeId) -> Result<bool, Refused> {
    joins::join(tx, &Touched::default(), 500, InodeId(directory), of).await.unwrap()
}

async fn join(volume: &Volume, directory: u64, of: VolumeId) -> Result<bool, Refused> {
    let tx = volume.store.inner.begin();
    let joined = try_join(&tx, directory, of).await;
    tx.commit().await.unwrap();
    joined
}

async fn let_go(volume: &Volume, directory: u64, of: VolumeId) -> bool {
    let tx = volume.store.inner.begin();
    let gone = joins::let_go(&tx, &Touched::default(), 500, InodeId(directory), of).await.unwrap();
    tx.commit().await.unwrap();
    gone
}

fn rename(from: (u64, &str), to: (u64, &str)) -> Rename {
    Rename { parent: from.0, name: name(from.1), new_parent: to.0, new_name: name(to.1), ..Rename::default() }
}

#[tokio::test]
async fn a_volume_is_joined_at_an_empty_directory_only() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let d = client.mkdir(ROOT, "d").await;
    let (full, file) = (client.mkdir(ROOT, "full").await, client.create(ROOT, "f").await);
    client.create(full, "x").await;
    let gone = client.mkdir(ROOT, "gone").await;
    assert_eq!(client.errno(Op::Rmdir(Rmdir { parent: ROOT, name: name("gone") })).await, 0);
    for (directory, why) in [
        (full, Refused::NotEmpty),
        (file, Refused::NotADirectory),
        (gone, Refused::NotThere),
        (999, Refused::NotThere),
        (ROOT, Refused::Root),
    ] {
        assert_eq!(join(&volume, directory, OTHER).await, Err(why));
        assert!(!let_go(&volume, directory, OTHER).await);
    }
    let tx = volume.store.inner.begin();
    for wrong in [VolumeId(0), InodeId(d).volume()] {
        let refused = joins::join(&tx, &Touched::default(), 500, InodeId(d), wrong).await;
        assert!(matches!(refused, Err(OpError::Malformed(_))), "{refused:?}");
    }
    assert_eq!(join(&volume, d, OTHER).await, Ok(true));
    assert_eq!(join(&volume, d, OTHER).await, Ok(false), "once more does no harm");
    assert_eq!(join(&volume, d, VolumeId(4)).await, Err(Refused::Taken(OTHER)));
    let at = |id: u64| {
        let tx = volume.store.inner.begin();
        async move { joins::joined_at(&tx, InodeId(id)).await.unwrap() }
    };
    assert_eq!((at(d).await, at(full).await, at(999).await), (Some(OTHER), None, None));
    volume.check();
    assert!(!let_go(&volume, d, VolumeId(4)).await, "it isn't that one");
    assert!(let_go(&volume, d, OTHER).await);
    assert!(!let_go(&volume, d, OTHER).await);
    assert_eq!(client.attr(d).await.joined, 0);
    client.create(d, "again").await;
    assert_eq!(join(&volume, d, OTHER).await, Err(Refused::NotEmpty));
    volume.check();
}

#[tokio::test]
async fn it_stays_a_directory_whose_entries_are_elsewhere() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (up, d) = (client.mkdir(ROOT, "up").await, client.mkdir(ROOT, "d").await);
    let (inside, file) = (client.mkdir(up, "inside").await, client.create(ROOT, "f").await);
    let before = client.attr(inside).await;
    join(&volume, inside, OTHER).await.unwrap();
    // It shows as what it was, in each way.
    let is = client.attr(inside).await;
    assert_eq!((is.joined, is.kind, is.mode, is.nlink), (3, before.kind, before.mode, 2));
    assert!(is.ctime_ns > before.ctime_ns, "{} and {}", is.ctime_ns, before.ctime_ns);
    let looked = Lookup { parent: up, name: name("inside") };
    assert_eq!(attr(client.ask(Op::Lookup(looked)).await), is);
    let listed = client.list(up, 10, true).await;
    assert_eq!((listed[0].inode, listed[0].kind, listed[0].attr), (inside, is.kind, Some(is)));
    for (text, expected) in [(".", inside), ("..", up)] {
        let lookup = Lookup { parent: inside, name: name(text) };
        assert_eq!(attr(client.ask(Op::Lookup(lookup)).await).inode, expected);
    }
    assert_eq!(client.attr(up).await.nlink, 3);
    // What it has in it, and what it is, are the other volume's.
    let create = Create { parent: inside, name: name("x"), mode: 0o644, ..Create::default() };
    let remote = [
        Op::Lookup(Lookup { parent: inside, name: name("x") }),
        Op::ReadDir(ReadDir { inode: inside, cookie: 0, entries_max: 9, plus: false }),
        Op::HoldAlone(HoldAlone { inode: inside }),
        Op::Create(create),
        Op::Mkdir(Mkdir { parent: inside, name: name("x"), mode: 0o755, alone: false }),
        Op::Symlink(Symlink { parent: inside, name: name("x"), target: name("t") }),
        Op::Link(Link { inode: file, new_parent: inside, new_name: name("x") }),
        Op::Unlink(Unlink { parent: inside, name: name("x") }),
        Op::Rmdir(Rmdir { parent: inside, name: name("x") }),
        Op::Rename(rename((ROOT, "f"), (inside, "x"))),
        Op::Rename(rename((inside, "x"), (ROOT, "y"))),
        Op::SetAttr(SetAttr { inode: inside, mode: Some(0o700), ..SetAttr::default() }),
        Op::SetXattr(SetXattr { inode: inside, name: name("user.a"), ..SetXattr::default() }),
        Op::RemoveXattr(RemoveXattr { inode: inside, name: name("user.a") }),
    ];
    for op in remote {
        assert_eq!(client.errno(op.clone()).await, EREMOTE, "{op:?}");
    }
    let tx = volume.store.inner.begin();
    for (path, expected) in [
        ("/up/inside/x", Some(OTHER)),
        ("/up/inside/x/y", Some(OTHER)),
        ("/up/inside", None),
        ("/d/x", None),
        ("/none/x", None),
    ] {
        assert_eq!(joins::on_the_way(&tx, VolumeId(0), path.as_bytes()).await.unwrap(), expected, "{path}");
    }
    for (path, expected) in [
        ("/up/inside/x/y", Some((OTHER, 10))),
        ("//up/inside//x", Some((OTHER, 11))),
        ("/up/inside/", Some((OTHER, 10))),
        ("/up/inside", Some((OTHER, 10))),
        ("/up", None),
        ("/up/../up/inside", None),
        ("/d/x", None),
        ("/", None),
    ] {
        assert_eq!(joins::crossing(&tx, VolumeId(0), path.as_bytes()).await.unwrap(), expected, "{path}");
    }
    // Nobody takes it away, as on Linux where something is mounted.
    let exchange = Rename { exchange: true, ..rename((ROOT, "d"), (up, "inside")) };
    let busy = [
        Op::Rmdir(Rmdir { parent: up, name: name("inside") }),
        Op::Rename(rename((up, "inside"), (up, "other"))),
        Op::Rename(rename((up, "inside"), (ROOT, "other"))),
        Op::Rename(rename((ROOT, "d"), (up, "inside"))),
        Op::Rename(rename((up, "inside"), (ROOT, "d"))),
        Op::Rename(exchange),
    ];
    for op in busy {
        assert_eq!(client.errno(op.clone()).await, EBUSY, "{op:?}");
    }
    assert_eq!(client.errno(Op::Unlink(Unlink { parent: up, name: name("inside") })).await, EISDIR);
    assert_eq!(client.errno(Op::Rmdir(Rmdir { parent: ROOT, name: name("up") })).await, ENOTEMPTY);
    // Its parent may go where it likes.
    assert_eq!(client.errno(Op::Rename(rename((ROOT, "up"), (d, "up")))).await, 0);
    assert_eq!(client.attr(inside).await.joined, 3);
    volume.check();
}

#[tokio::test]
async fn an_entry_and_a_join_at_the_same_moment_exclude_each_other() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (d, e) = (client.mkdir(ROOT, "d").await, client.mkdir(ROOT, "e").await);
    let tx = volume.store.inner.begin();
    assert_eq!(try_join(&tx, d, OTHER).await, Ok(true));
    client.create(d, "x").await;
    assert!(tx.commit().await.is_err(), "it has an entry by now");
    let create = Create { parent: e, name: name("x"), mode: 0o644, ..Create::default() };
    let tx = volume.store.inner.begin();
    let ids = Ids { inode: Some(InodeId(700)), chunk: None };
    let ctx = OpContext { now_ns: 5, ids, ..OpContext::default() };
    let reply = execute(&tx, &ctx, &request(&root(), Op::Create(create))).await.unwrap();
    assert!(matches!(reply.reply, Some(Reply::Created(_))), "{reply:?}");
    assert_eq!(join(&volume, e, OTHER).await, Ok(true));
    assert!(tx.commit().await.is_err(), "its entries are another volume's by now");
    volume.check();
}

/// Who has been told anything of what is in the directory, and who has its parent alone, is asked first; and the log says that its entries are others.
#[tokio::test]
async fn everybody_looks_again() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let d = client.mkdir(ROOT, "d").await;
    let tx = volume.store.inner.begin();
    let expected =
        [Fact::Inode(InodeId(d)), Fact::Entry(InodeId(ROOT), name("d")), Fact::Directory(InodeId(d))];
    for joins_it in [true, false] {
        let touched = Touched::default();
        match joins_it {
            true => drop(joins::join(&tx, &touched, 500, InodeId(d), OTHER).await.unwrap()),
            false => assert!(joins::let_go(&tx, &touched, 500, InodeId(d), OTHER).await.unwrap()),
        }
        assert!(touched.into_facts().into_iter().eq(expected.clone()));
    }
}

/// A request that names two volumes is refused whether there is something there or not.
#[tokio::test]
async fn nothing_is_done_across_volumes() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let file = client.create(ROOT, "f").await;
    let there = InodeId::new(OTHER, 77).0;
    let copy = CopyRange { source: there, inode: file, length: 1, ..CopyRange::default() };
    let touch = |inode: u64| AtimeTouch { inode, atime_ns: 9 };
    let across = [
        Op::Link(Link { inode: file, new_parent: there, new_name: name("x") }),
        Op::Link(Link { inode: 999, new_parent: there, new_name: name("x") }),
        Op::Rename(rename((ROOT, "f"), (there, "f"))),
        Op::Rename(rename((ROOT, "none"), (there, "f"))),
        Op::CopyRange(copy),
        Op::CopyRange(CopyRange { source: 999, inode: there, length: 1, ..copy }),
        Op::TouchAtime(TouchAtime { touches: vec![touch(file), touch(there)] }),
    ];
    let tx = volume.store.inner.begin();
    for op in across {
        let refused = execute(&tx, &OpContext::default(), &request(&root(), op.clone())).await;
        assert_eq!(refused, Err(Errno::EXDEV.into()), "{op:?}");
    }
    // What is told at once commits at once.
    let untold = |parent: u64, inode: u64| Untold {
        request: Some(request(
            &root(),
            Op::Mkdir(Mkdir { parent, name: name("n"), mode: 0o755, alone: false }),
        )),
        inode,
        ..Untold::default()
    };
    let tell = Tell { changes: vec![untold(ROOT, 800), untold(there, InodeId::new(OTHER, 801).0)] };
    let told = execute(&tx, &OpContext::default(), &request(&root(), Op::Tell(tell))).await;
    assert_eq!(told, Err(OpError::Malformed("it tells of changes in several volumes")));
}

#[tokio::test]
async fn administrators_hear_that_it_is_another_volume() {
    let volume = Volume::with_trash(0, 0.0, 10).await;
    let client = volume.client(1).await;
    let d = client.mkdir(ROOT, "d").await;
    let file = client.create(d, "f").await;
    client.write(file, 0, b"bytes").await;
    assert_eq!(client.errno(Op::Unlink(Unlink { parent: d, name: name("f") })).await, 0);
    join(&volume, d, OTHER).await.unwrap();
    let tx = volume.store.inner.begin();
    let touched = Touched::default();
    for to in [None, Some(Bytes::from_static(b"/d/g"))] {
        let restored = trash::restore(&tx, &touched, 900, InodeId(file), to.as_deref()).await.unwrap();
        assert!(matches!(restored, Err(trash::Refused::OtherVolume(_))), "{restored:?}");
    }
    let limited = quota::set(&tx, &touched, 900, VolumeId(0), Account::Directory(d), Some(1), None).await;
    assert_eq!(limited.unwrap(), Err(quota::Refused::OtherVolume(OTHER)));
    crate::classes::made(&volume, "one").await;
    assert!(crate::classes::assign(&volume, d, "one").await.is_err());
    // A tree is gone through up to there.
    let tx = volume.store.inner.begin();
    let page = mooseng_namespace::classes::assign_entries(&tx, &touched, InodeId(ROOT), 0, 9, "one").await;
    let page = page.unwrap().unwrap();
    assert_eq!((page.changed, page.joined, page.directories), (0, vec![OTHER], vec![]));
}
