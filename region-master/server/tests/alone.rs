//! Directories that a session has alone, and what it tells of them, as clients of a master meet them.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Client, Cluster, until};
use mooseng_ports::clock::OsClock;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    Caller, Create, FsRequest, GetAttr, HoldAlone, Lookup, Mkdir, ReserveInodes, Rmdir, Tell, Unlink, Untold,
};
use mooseng_wire::method::Method;
use mooseng_wire::session::{AnswerRecalls, CloseSession, RecallsAnswered, Response, SessionClosed};
use mooseng_wire::{InodeId, ROOT_INODE, VolumeId};

const PATIENCE: Duration = Duration::from_secs(10);

fn untold(op: Op, inode: u64) -> Untold {
    let caller = Some(Caller { kernel_checked: true, ..Caller::default() });
    Untold { request: Some(FsRequest { caller, op: Some(op) }), inode, at_ns: 5, open: false }
}

fn create(parent: u64, name: &str) -> Op {
    let name = name.to_owned().into();
    Op::Create(Create { parent, name, mode: 0o644, exclusive: true, truncate: false })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_has_alone_others_hear_of_once_it_is_told() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let (ours, other) = (cluster.client("ours").await, cluster.client("other").await);
    let opened = ours.open(&[]).await.unwrap();
    assert!(opened.alone, "the master says that it knows of this");
    other.open(&[]).await.unwrap();
    let mkdir = Op::Mkdir(Mkdir { parent: ROOT_INODE.0, name: "d".into(), mode: 0o755, alone: false });
    let directory = match ours.change_as(1, mkdir).await.unwrap() {
        Reply::Entry(made) => made.attr.unwrap().inode,
        other => panic!("not made: {other:?}"),
    };
    let hold = ours.request(0, Op::HoldAlone(HoldAlone { inode: directory })).await;
    let held: Response = ours.link().request(Method::FsRead, &hold, PATIENCE).await.unwrap();
    let granted: Vec<Fact> = held
        .granted
        .iter()
        .filter(|granted| granted.exclusive)
        .filter_map(|granted| Fact::from_message(granted.fact.as_ref()?))
        .collect();
    for fact in [Fact::Inode(InodeId(directory)), Fact::Directory(InodeId(directory))] {
        assert!(granted.contains(&fact), "{granted:?}");
    }
    let first = match ours.read(Op::ReserveInodes(ReserveInodes { count: 10 })).await.unwrap() {
        Reply::ReservedInodes(ids) => ids.first,
        other => panic!("not reserved: {other:?}"),
    };
    // An id that nobody was given.
    let beyond = Tell { changes: vec![untold(create(directory, "x"), first + 1_000_000)] };
    assert!(ours.change_as(2, Op::Tell(beyond)).await.is_err());

    // Others' answers and refusals wait for the session.
    let look = Op::Lookup(Lookup { parent: directory, name: "f".into() });
    let unlink = Op::Unlink(Unlink { parent: directory, name: "f".into() });
    let rmdir = Op::Rmdir(Rmdir { parent: ROOT_INODE.0, name: "d".into() });
    let asks = async {
        let (found, removed, again) = tokio::join!(
            other.read(look.clone()),
            other.change_as(1, rmdir.clone()),
            other.read(look.clone())
        );
        (found, removed, again, other.change_as(2, unlink).await)
    };
    let tells = async {
        let mut notices = ours.link().notices();
        let changes = vec![untold(create(directory, "f"), first), untold(create(directory, "g"), first + 1)];
        let mut told = false;
        loop {
            let (_, body) = notices.recv().await.unwrap();
            let notice = <mooseng_wire::session::Notice as prost::Message>::decode(body).unwrap();
            if !told {
                let reply = ours.change_as(3, Op::Tell(Tell { changes: changes.clone() })).await.unwrap();
                assert!(matches!(&reply, Reply::Told(told) if told.replies.len() == 2), "{reply:?}");
                told = true;
            }
            let session = ours.session().await;
            let answer = AnswerRecalls {
                session: session.session,
                incarnation: session.incarnation,
                custody_epoch: notice.custody_epoch,
                numbers: notice.recalls.iter().map(|recall| recall.number).collect(),
                oldest_unanswered: 4,
                ..AnswerRecalls::default()
            };
            let _: RecallsAnswered =
                ours.link().request(Method::AnswerRecalls, &answer, PATIENCE).await.unwrap();
        }
    };
    let (found, removed, again, unlinked) = tokio::select! {
        asked = asks => asked,
        () = tells => unreachable!("it answers for ever"),
    };
    for found in [found.unwrap(), again.unwrap()] {
        assert!(matches!(&found, Reply::Entry(e) if e.attr.unwrap().inode == first), "{found:?}");
    }
    assert_eq!(removed.unwrap(), Reply::Errno(39), "it isn't empty");
    assert_eq!(unlinked.unwrap(), Reply::Done(mooseng_wire::fs::Done {}));
}

/// Who makes a directory, and says that it would have it alone, needs not ask for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_directory_is_its_makers_alone() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let ours = cluster.client("ours").await;
    ours.open(&[]).await.unwrap();
    let mkdir = |name: &str, alone| {
        Op::Mkdir(Mkdir { parent: ROOT_INODE.0, name: name.to_owned().into(), mode: 0o755, alone })
    };
    for (number, name, alone) in [(1, "shared", false), (2, "alone", true)] {
        let request = ours.request(number, mkdir(name, alone)).await;
        let made: Response = ours.link().request(Method::FsChange, &request, PATIENCE).await.unwrap();
        let inode = match made.reply.unwrap().reply.unwrap() {
            Reply::Entry(made) => InodeId(made.attr.unwrap().inode),
            other => panic!("not made: {other:?}"),
        };
        for fact in [Fact::Inode(inode), Fact::Directory(inode)] {
            let message = Some(fact.to_message());
            let granted = made.granted.iter().find(|granted| granted.fact == message);
            assert_eq!(granted.map(|granted| granted.exclusive), Some(alone), "{fact:?} of {name}");
        }
        // An answer out of the record is old.
        let again: Response = ours.link().request(Method::FsChange, &request, PATIENCE).await.unwrap();
        assert!(again.granted.iter().all(|granted| !granted.exclusive), "{again:?}");
    }
}

async fn reserve(client: &Client) -> u64 {
    match client.read(Op::ReserveInodes(ReserveInodes { count: 100 })).await.unwrap() {
        Reply::ReservedInodes(ids) => ids.first,
        other => panic!("not reserved: {other:?}"),
    }
}

/// A file was made alone, and its name removed again, while it is open or not.
fn made_and_removed(inode: u64, open: bool) -> Op {
    let name = format!("f{inode}");
    let unlink = Op::Unlink(Unlink { parent: ROOT_INODE.0, name: name.clone().into() });
    let made = Untold { open, ..untold(create(ROOT_INODE.0, &name), inode) };
    Op::Tell(Tell { changes: vec![made, untold(unlink, 0)] })
}

fn is_recorded(reply: &Reply, inode: u64) -> bool {
    let Reply::Told(told) = reply else { return false };
    let replies: Vec<_> = told.replies.iter().filter_map(|reply| reply.reply.as_ref()).collect();
    matches!(&replies[..], [Reply::Created(made), Reply::Done(_)] if made.attr.is_some_and(|attr| attr.inode == inode))
}

/// The call is given up at all moments, so in some runs between the commit and its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_as_open_stays_though_its_first_answer_is_lost() {
    const TRIES: u64 = 60;
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let ours = cluster.client("ours").await;
    ours.open(&[]).await.unwrap();
    let first = reserve(&ours).await;
    let mut lost = 0;
    for n in 0..TRIES {
        let request = ours.request(n + 1, made_and_removed(first + n, true)).await;
        let began = std::time::Instant::now();
        let given_up = async {
            while began.elapsed() < Duration::from_micros(50 * n) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = ours.link().request::<_, Response>(Method::FsChange, &request, PATIENCE) => drop(answer.unwrap()),
            () = given_up => lost += 1,
        }
    }
    assert!(lost > 0, "none was given up");
    // One that nobody holds goes: by then the others, looked at before it, would have gone, too.
    let last = first + TRIES;
    let told = ours.change_as(TRIES + 1, made_and_removed(last, false)).await.unwrap();
    assert!(is_recorded(&told, last), "{told:?}");
    let look = |inode| Op::GetAttr(GetAttr { inode });
    until("it is freed", async || matches!(ours.read(look(last)).await.unwrap(), Reply::Errno(_))).await;
    for n in 0..TRIES {
        let told = ours.change_as(n + 1, made_and_removed(first + n, true)).await.unwrap();
        assert!(is_recorded(&told, first + n), "{told:?}");
        let found = ours.read(look(first + n)).await.unwrap();
        assert!(matches!(found, Reply::Entry(_)), "try {n}: it is open, and gone: {found:?}");
    }
}

/// Refused, it would be told again under another number, though it was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_is_answered_as_recorded_while_it_is_being_freed() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let ours = cluster.client("ours").await;
    ours.open(&[]).await.unwrap();
    let inode = reserve(&ours).await;
    let told = ours.change_as(1, made_and_removed(inode, true)).await.unwrap();
    assert!(is_recorded(&told, inode), "{told:?}");
    let master = cluster.running[0].as_ref().unwrap().master();
    let session = mooseng_wire::SessionId(ours.session().await.session);
    let chosen = master.desk(|desk| {
        desk.sessions.release(session, InodeId(inode), u64::MAX);
        desk.sessions.begin_reap(VolumeId(0), master.clock.boot(), [InodeId(inode)], 1)
    });
    assert_eq!(chosen, [InodeId(inode)]);
    let again = ours.change_as(1, made_and_removed(inode, true)).await;
    master.desk(|desk| desk.sessions.reaped(&chosen));
    assert!(is_recorded(&again.unwrap(), inode));
}

/// One whose program isn't ours took another one's ids, and had what that one wrote in its own file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_makes_an_inode_under_an_id_that_another_session_was_given() {
    let mut cluster = Cluster::start(3, Arc::new(OsClock)).await;
    let (ours, other) = (cluster.client("ours").await, cluster.client("other").await);
    ours.open(&[]).await.unwrap();
    other.open(&[]).await.unwrap();
    let first = reserve(&ours).await;
    let make = |inode: u64| {
        let changes = vec![untold(create(ROOT_INODE.0, &format!("f{inode}")), inode)];
        Op::Tell(Tell { changes })
    };
    let is_made = |reply: Reply| {
        let Reply::Told(told) = reply else { return false };
        told.replies.iter().all(|reply| matches!(&reply.reply, Some(Reply::Created(_))))
    };
    let refused = other.change_as(1, make(first)).await.unwrap_err();
    assert!(refused.0 == ErrorCode::InvalidRequest && refused.1.contains("another session"), "{refused:?}");
    assert!(is_made(ours.change_as(1, make(first)).await.unwrap()));
    assert!(is_made(ours.change_as(1, make(first)).await.unwrap()), "as recorded");

    let old = cluster.leader().await;
    cluster.kill(old).await;
    assert_ne!(cluster.leader().await, old);
    let (ours_again, other_again) = tokio::join!(ours.open(&[]), other.open(&[]));
    ours_again.and(other_again).unwrap();
    let refused = other.change_as(2, make(first + 1)).await.unwrap_err();
    assert!(refused.0 == ErrorCode::InvalidRequest && refused.1.contains("another session"), "{refused:?}");
    assert!(is_made(ours.change_as(2, make(first + 1)).await.unwrap()), "the next leader knows whose it is");

    // A mount whose session is gone has another one, and the ids of that still.
    let s = ours.session().await;
    let close = CloseSession { session: s.session, incarnation: s.incarnation };
    let _: SessionClosed = ours.call(Method::CloseSession, &close).await.unwrap();
    assert!(is_made(other.change_as(3, make(first + 2)).await.unwrap()));
}
