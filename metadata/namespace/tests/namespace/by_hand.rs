//! Rules that random operations meet too seldom.

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;

use crate::harness::*;
use crate::model::*;

#[tokio::test]
async fn a_file_has_more_names_than_its_record_holds() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "n0").await;
    for i in 1..60 {
        let link = Link { inode, new_parent: ROOT, new_name: name(&format!("n{i}")) };
        assert_eq!(attr(client.ask(Op::Link(link)).await).nlink, i + 1);
    }
    volume.check();
    let Reply::Description(d) = client.ask(Op::Describe(Describe { inode })).await else { panic!() };
    assert_eq!(d.links.len(), 60);
    for i in (0..60).rev().filter(|i| i % 3 != 0) {
        client.ask(Op::Unlink(Unlink { parent: ROOT, name: name(&format!("n{i}")) })).await;
    }
    for i in (0..60).step_by(3) {
        let r = Rename {
            parent: ROOT,
            name: name(&format!("n{i}")),
            new_parent: ROOT,
            new_name: name(&format!("m{i}")),
            ..Default::default()
        };
        client.ask(Op::Rename(r)).await;
    }
    assert_eq!(client.attr(inode).await.nlink, 20);
    volume.check();
}

#[tokio::test]
async fn links_end_at_their_limit() {
    use mooseng_namespace::LINKS_MAX;
    use mooseng_schema::Record;
    use mooseng_schema::inode::{self, InodeRecord};
    use mooseng_store::{Read, Store, Transaction};
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let tx = volume.store.begin();
    let key = inode::key(mooseng_wire::InodeId(inode));
    let value = tx.get(&key, Read::Conflicting).await.unwrap().unwrap();
    let record = InodeRecord { nlink: LINKS_MAX, ..InodeRecord::from_value(&value).unwrap() };
    tx.set(&key, &record.to_value());
    tx.commit().await.unwrap();
    let link = Link { inode, new_parent: ROOT, new_name: name("more") };
    assert_eq!(client.errno(Op::Link(link)).await, 31);
}

#[tokio::test]
async fn a_removed_directory_takes_nothing_in_and_lists_nothing() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let d = client.mkdir(ROOT, "d").await;
    assert_eq!(client.errno(Op::Rmdir(Rmdir { parent: ROOT, name: name("d") })).await, 0);
    assert_eq!(client.attr(d).await.nlink, 0);
    assert!(client.list(d, 10, true).await.is_empty());
    let create = Create { parent: d, name: name("x"), ..Default::default() };
    assert_eq!(client.errno(Op::Create(create)).await, ENOENT);
    let file = client.create(ROOT, "f").await;
    let r =
        Rename { parent: ROOT, name: name("f"), new_parent: d, new_name: name("f"), ..Default::default() };
    assert_eq!(client.errno(Op::Rename(r)).await, ENOENT);
    let link = Link { inode: file, new_parent: d, new_name: name("x") };
    assert_eq!(client.errno(Op::Link(link)).await, ENOENT);
    volume.own(Op::Reap(Reap { inodes: vec![d] })).await;
    assert_eq!(client.errno(Op::GetAttr(GetAttr { inode: d })).await, ESTALE);
    volume.check();
}

#[tokio::test]
async fn other_volumes_are_other_devices() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let link = Link { inode, new_parent: 1 << 48, new_name: name("x") };
    assert_eq!(client.errno(Op::Link(link)).await, 18);
}

#[tokio::test]
async fn extended_attributes_have_limits() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let set = |text: &str, bytes: usize| {
        let value = vec![7u8; bytes].into();
        Op::SetXattr(SetXattr { inode, name: name(text), value, ..Default::default() })
    };
    assert_eq!(client.errno(set("user.big", 64 << 10)).await, 0);
    assert_eq!(client.errno(set("user.big", (64 << 10) + 1)).await, 7);
    let Reply::Value(v) = client.ask(Op::GetXattr(GetXattr { inode, name: name("user.big") })).await else {
        panic!()
    };
    assert_eq!(v.value.len(), 64 << 10);
    assert_eq!(client.errno(set(&format!("user.{}", "n".repeat(250)), 1)).await, 0);
    assert_eq!(client.errno(set(&format!("user.{}", "n".repeat(251)), 1)).await, 34);
    assert_eq!(client.errno(set("user.", 1)).await, EINVAL);
    assert_eq!(client.errno(set("system.posix_acl_access", 1)).await, EINVAL);
    assert_eq!(client.errno(set("system.other", 1)).await, ENOTSUP);
    let mut kept = 2;
    let full = loop {
        let text = format!("user.{}{kept:04}", "n".repeat(240));
        match client.errno(set(&text, 1)).await {
            0 => kept += 1,
            errno => break errno,
        }
    };
    assert_eq!(full, 28);
    assert!(kept > 255);
    let Reply::Names(names) = client.ask(Op::ListXattr(ListXattr { inode })).await else { panic!() };
    assert_eq!(names.names.len(), kept);
    volume.check();
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("f") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![inode] })).await;
    volume.check();
}

#[tokio::test]
async fn a_write_takes_a_programs_capabilities() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    client.ask(Op::SetAttr(SetAttr { inode, mode: Some(0o6777), ..Default::default() })).await;
    let capability = name("security.capability");
    client
        .ask(Op::SetXattr(SetXattr {
            inode,
            name: capability.clone(),
            value: name("c"),
            ..Default::default()
        }))
        .await;
    // root keeps them, as its kernel would have asked for their end.
    client.write(inode, 0, b"by root").await;
    assert_eq!(client.attr(inode).await.mode, 0o6777);
    let data = Some(write_piece::Data::Inline(name("x")));
    let write =
        Op::Write(Write { inode, pieces: vec![WritePiece { offset: 0, data }], ..Default::default() });
    client.ask_as(&user(1000, 100, &[]), write).await;
    assert_eq!(client.attr(inode).await.mode, 0o777);
    assert_eq!(client.errno(Op::GetXattr(GetXattr { inode, name: capability })).await, ENODATA);
    volume.check();
}

#[tokio::test]
async fn times_of_directories_may_be_set_and_move_on() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let d = client.mkdir(ROOT, "d").await;
    client.create(d, "x").await;
    let set = SetAttr { inode: d, mtime_ns: Some(5), atime_ns: Some(-7), ..Default::default() };
    let set = attr(client.ask(Op::SetAttr(set)).await);
    assert_eq!((set.mtime_ns, set.atime_ns), (5, -7));
    assert_eq!(client.attr(d).await.mtime_ns, 5);
    client.create(d, "y").await;
    let moved = client.attr(d).await;
    assert!(moved.mtime_ns > 1_000 && moved.ctime_ns > set.ctime_ns);
    let touch = |atime_ns| Op::TouchAtime(TouchAtime { touches: vec![AtimeTouch { inode: d, atime_ns }] });
    client.ask(touch(900)).await;
    client.ask(touch(800)).await;
    assert_eq!(client.attr(d).await.atime_ns, 900);
    assert_eq!(client.attr(d).await.ctime_ns, moved.ctime_ns);
}

#[tokio::test]
async fn small_appends_share_an_extent() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "log").await;
    for i in 0..64u8 {
        client.write(inode, u64::from(i) * 512, &[i; 512]).await;
    }
    let Reply::Description(d) = client.ask(Op::Describe(Describe { inode })).await else { panic!() };
    assert_eq!(d.extents.len(), 2);
    volume.check();
}

#[tokio::test]
async fn lookups_of_names_that_cant_be() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let file = client.create(ROOT, "f").await;
    let lookup = |parent, text: &str| Op::Lookup(Lookup { parent, name: name(text) });
    assert_eq!(client.errno(lookup(ROOT, &"n".repeat(256))).await, ENAMETOOLONG);
    assert_eq!(client.errno(lookup(file, "x")).await, ENOTDIR);
    assert_eq!(client.errno(lookup(99, "x")).await, ESTALE);
    assert_eq!(attr(client.ask(lookup(ROOT, "..")).await).inode, ROOT);
}

#[tokio::test]
async fn attributes_come_with_the_data_that_they_were_set_over() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let piece =
        || WritePiece { offset: 0, data: Some(write_piece::Data::Inline(bytes::Bytes::from_static(b"x"))) };
    let set = SetAttr {
        inode,
        uid: Some(7),
        mode: Some(0o600),
        mtime_ns: Some(3),
        changed_ns: Some(9_000),
        ..Default::default()
    };
    let write = Write { inode, written_ns: Some(5_000), set: Some(set), ..Default::default() };
    let Reply::Written(written) =
        client.ask(Op::Write(Write { pieces: vec![piece()], ..write.clone() })).await
    else {
        panic!()
    };
    let shown = written.attr.unwrap();
    assert_eq!((shown.uid, shown.mode & 0o7777, shown.size), (7, 0o600, 1));
    assert_eq!((shown.mtime_ns, shown.ctime_ns), (3, 9_000));
    assert_eq!(client.attr(inode).await, shown);
    // Alone; ctime doesn't go back, nor stay.
    let set = SetAttr { inode, gid: Some(8), changed_ns: Some(10), ..Default::default() };
    client.ask(Op::Write(Write { inode, set: Some(set), ..Default::default() })).await;
    let shown = client.attr(inode).await;
    assert_eq!((shown.gid, shown.ctime_ns, shown.mtime_ns, shown.size), (8, 9_001, 3, 1));
    // The same rights are asked for as by themselves, and the data isn't stored without them.
    let stranger = user(1000, 1000, &[]);
    let set = SetAttr { inode, uid: Some(1000), ..Default::default() };
    let refused = Write {
        inode,
        pieces: vec![WritePiece { offset: 1, ..piece() }],
        set: Some(set),
        ..Default::default()
    };
    assert_eq!(errno(&client.ask_as(&stranger, Op::Write(refused)).await), EPERM);
    assert_eq!(client.attr(inode).await.size, 1);
    // Neither a size, nor another file's.
    for set in [
        SetAttr { inode, size: Some(0), ..Default::default() },
        SetAttr { inode: ROOT, uid: Some(1), ..Default::default() },
    ] {
        assert_eq!(
            client.errno(Op::Write(Write { inode, set: Some(set), ..Default::default() })).await,
            EINVAL
        );
    }
    volume.check();
}

/// What was done to a file between a write that was buffered and its arrival came later, and is seen so; and whatever its clock says, each write
/// is seen by the time of change.
#[tokio::test]
async fn times_of_change_never_go_back() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let bytes = bytes::Bytes::from_static(b"x");
    let pieces = vec![WritePiece { offset: 0, data: Some(write_piece::Data::Inline(bytes)) }];
    let write =
        |written_ns| Op::Write(Write { inode, written_ns, pieces: pieces.clone(), ..Default::default() });
    client.ask(write(Some(100_000))).await;
    assert_eq!(client.attr(inode).await.ctime_ns, 100_000);
    // Another host's clock is behind.
    let attribute = SetXattr { inode, name: name("user.a"), ..Default::default() };
    client.ask(Op::SetXattr(attribute)).await;
    assert_eq!(client.attr(inode).await.ctime_ns, 100_001);
    client.ask(Op::Link(Link { inode, new_parent: ROOT, new_name: name("g") })).await;
    client.ask(Op::SetAttr(SetAttr { inode, mode: Some(0o600), ..Default::default() })).await;
    let rename =
        Rename { parent: ROOT, name: name("g"), new_parent: ROOT, new_name: name("h"), ..Default::default() };
    client.ask(Op::Rename(rename)).await;
    assert_eq!(client.attr(inode).await.ctime_ns, 100_004);
    client.ask(write(Some(500))).await;
    let attr = client.attr(inode).await;
    assert_eq!((attr.mtime_ns, attr.ctime_ns), (500, 100_005));
    client.ask(write(Some(100_005))).await;
    assert_eq!(
        client.attr(inode).await.ctime_ns,
        100_005,
        "a buffer that is sent in several writes has one time"
    );
    client.ask(write(None)).await;
    assert_eq!(client.attr(inode).await.ctime_ns, 100_006);
    volume.check();
}
