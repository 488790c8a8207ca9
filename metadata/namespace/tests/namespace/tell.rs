//! Changes that a session made alone and tells of afterwards: in their order, in one transaction, once.

use bytes::Bytes;
use mooseng_namespace::{Errno, SessionCall};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data;
use mooseng_wire::fs::*;
use mooseng_wire::{Incarnation, RequestNumber, SessionId};

use crate::harness::{Client, ROOT, Volume, deadline, name, request, root};

fn untold(op: Op, inode: u64, at_ns: i64) -> Untold {
    Untold { request: Some(request(&root(), op)), inode, at_ns, open: false }
}

fn create(parent: u64, text: &str, inode: u64, at_ns: i64) -> Untold {
    let op = Op::Create(Create { parent, name: name(text), mode: 0o644, exclusive: true, truncate: false });
    untold(op, inode, at_ns)
}

async fn tell(volume: &Volume, client: &Client<'_>, number: u64, changes: Vec<Untold>) -> Vec<Reply> {
    let request = request(&root(), Op::Tell(Tell { changes }));
    let call = SessionCall {
        session: SessionId(client.id),
        incarnation: Incarnation(1),
        number: RequestNumber(number),
        oldest_unanswered: RequestNumber(1),
    };
    let ctx = volume.context(&request);
    let (reply, _) = volume.driver.run(call, &ctx, &request, deadline()).await.unwrap();
    match reply.reply.unwrap() {
        Reply::Told(told) => told.replies.into_iter().map(|reply| reply.reply.unwrap()).collect(),
        other => vec![other],
    }
}

fn attr(reply: &Reply) -> Attr {
    match reply {
        Reply::Created(made) => made.attr.unwrap(),
        Reply::Entry(entry) => entry.attr.unwrap(),
        Reply::Written(written) => written.attr.unwrap(),
        other => panic!("{other:?} has no attributes"),
    }
}

#[tokio::test]
async fn a_tree_is_told_at_once_and_each_change_sees_those_before() {
    let volume = Volume::new().await;
    volume.now.store(10_000, std::sync::atomic::Ordering::Relaxed);
    let client = volume.client(1).await;
    let piece = WritePiece { offset: 0, data: Some(Data::Inline(Bytes::from_static(b"hello"))) };
    let changes = vec![
        untold(Op::Mkdir(Mkdir { parent: ROOT, name: name("d"), mode: 0o755, alone: false }), 1000, 2_000),
        create(1000, "a", 1001, 2_001),
        untold(
            Op::Write(Write {
                inode: 1001,
                pieces: vec![piece],
                written_ns: Some(2_002),
                ..Write::default()
            }),
            0,
            2_002,
        ),
        untold(
            Op::Rename(Rename {
                parent: 1000,
                name: name("a"),
                new_parent: 1000,
                new_name: name("b"),
                ..Rename::default()
            }),
            0,
            2_003,
        ),
        create(1000, "a", 1002, 2_004),
        untold(Op::Unlink(Unlink { parent: 1000, name: name("a") }), 0, 2_005),
    ];
    let replies = tell(&volume, &client, 1, changes.clone()).await;
    assert_eq!(replies.len(), 6);
    assert_eq!((attr(&replies[0]).inode, attr(&replies[0]).ctime_ns), (1000, 2_000));
    assert_eq!((attr(&replies[2]).size, attr(&replies[2]).mtime_ns), (5, 2_002));
    assert_eq!(replies[5], Reply::Done(Done {}));
    // Told again, under the same number: nothing is done twice.
    assert_eq!(tell(&volume, &client, 1, changes).await, replies);
    let Reply::DirPage(page) = client.ask(Op::ReadDir(ReadDir { inode: 1000, ..ReadDir::default() })).await
    else {
        panic!("the directory can't be listed")
    };
    let listed: Vec<(Bytes, u64)> = page.entries.into_iter().map(|entry| (entry.name, entry.inode)).collect();
    assert_eq!(listed, vec![(name("b"), 1001)]);
    assert_eq!(client.read(1001).await, b"hello");
    volume.check();
}

#[tokio::test]
async fn what_is_refused_takes_only_what_rests_on_it_with_it() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    volume.now.store(10_000, std::sync::atomic::Ordering::Relaxed);
    let made = tell(&volume, &client, 1, vec![create(ROOT, "there", 1000, 5)]).await;
    assert_eq!(attr(&made[0]).inode, 1000);
    let changes = vec![
        create(ROOT, "first", 1001, 6),
        untold(Op::Mkdir(Mkdir { parent: ROOT, name: name("there"), mode: 0o755, alone: false }), 1002, 7),
        create(1002, "below", 1003, 8),
        create(ROOT, "last", 1004, 9),
    ];
    let replies = tell(&volume, &client, 2, changes).await;
    assert_eq!(attr(&replies[0]).inode, 1001);
    assert_eq!(replies[1], Reply::Errno(Errno::EEXIST.0));
    assert_eq!(replies[2], Reply::Errno(Errno::ESTALE.0));
    assert_eq!(attr(&replies[3]).inode, 1004);
    volume.check();
}

#[tokio::test]
async fn times_are_not_in_the_future_and_ids_are_given_once() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let made = tell(&volume, &client, 1, vec![create(ROOT, "a", 1000, i64::MAX)]).await;
    assert!(attr(&made[0]).ctime_ns < 2_000);
    let again = request(&root(), Op::Tell(Tell { changes: vec![create(ROOT, "b", 1000, 5)] }));
    let call = SessionCall {
        session: SessionId(1),
        incarnation: Incarnation(1),
        number: RequestNumber(2),
        oldest_unanswered: RequestNumber(1),
    };
    let ctx = volume.context(&again);
    assert!(volume.driver.run(call, &ctx, &again, deadline()).await.is_err());
    volume.check();
}

#[tokio::test]
async fn many_refusals_at_once_are_too_much_for_one_request() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let rmdir = |n: u64| untold(Op::Rmdir(Rmdir { parent: ROOT, name: name(&format!("no{n}")) }), 0, 5);
    let replies = tell(&volume, &client, 1, (0..40).map(rmdir).collect()).await;
    assert_eq!(replies, vec![Reply::Errno(Errno::E2BIG.0)]);
    let replies = tell(&volume, &client, 2, (0..10).map(rmdir).collect()).await;
    assert_eq!(replies, vec![Reply::Errno(Errno::ENOENT.0); 10]);
}
