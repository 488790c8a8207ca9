//! Holds, and answers that tell of names, over facts of one session.

use mooseng_ports::clock::ManualClock;
use mooseng_wire::InodeId;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    Create, DirPage, Entry, ExtentMap, FileKind, FsReply, FsRequest, GetAttr, Lookup, ReadDir, ReadExtents,
    SetAttr, Tell, Told, Unlink, Untold, Write, WritePiece, Written, write_piece,
};
use mooseng_wire::session::{Granted, Response};

use super::*;

const INODE: u64 = 7;

/// An answer that promises the inode, after this session has changed it or not.
fn answer(facts: &Facts, number: u64, changed: bool) {
    let fact = Fact::Inode(InodeId(INODE)).to_message();
    let op = if changed {
        Op::SetAttr(SetAttr { inode: INODE, ..SetAttr::default() })
    } else {
        Op::GetAttr(GetAttr { inode: INODE })
    };
    let attr = Attr { inode: INODE, ctime_ns: number as i64, ..Attr::default() };
    let response = Response {
        log_epoch: 0,
        log_version: 0,
        held: false,
        reply: Some(FsReply { reply: Some(Reply::Entry(Entry { attr: Some(attr) })) }),
        grant: number,
        read_version: number,
        granted: vec![Granted { fact: Some(fact.clone()), exclusive: false }],
        changed: if changed { vec![fact] } else { vec![] },
    };
    let flight = facts.begin();
    facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
}

/// The region moves access times without a word, and this session's own setattr may come in between.
#[test]
fn an_access_time_moves_unless_it_was_set_meanwhile() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    let known = || facts.inode(INODE).map(|(known, _)| (known.attr.atime_ns, known.hold));
    facts.touched(INODE, 1, 50);
    assert_eq!(known(), None);
    answer(&facts, 1, false);
    let hold = known().map(|(_, hold)| hold);
    facts.touched(INODE, 1, 50);
    facts.touched(INODE, 1, 40);
    assert_eq!(known(), Some(50).zip(hold));
    answer(&facts, 2, true);
    facts.touched(INODE, 1, 90);
    assert_eq!(known(), Some(0).zip(hold), "its time of change has moved");
    facts.renew_hold(INODE);
    assert!(known().map(|(_, hold)| hold) > hold);
}

/// A list is taken back as a whole once enough was taken out of it, and no entry's own recall comes then.
#[test]
fn an_entry_that_only_the_list_tells_of_says_so() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    let name = Bytes::from_static(b"a");
    let granted = |fact: Fact| vec![Granted { fact: Some(fact.to_message()), exclusive: false }];
    let answer = |op: Op, reply: Reply, number: u64, fact: Fact| {
        let response = Response {
            reply: Some(FsReply { reply: Some(reply) }),
            grant: number,
            granted: granted(fact),
            ..Response::default()
        };
        let flight = facts.begin();
        facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
    };
    let entry = DirEntry { name: name.clone(), inode: INODE, ..DirEntry::default() };
    let page = DirPage { entries: vec![entry], end: true };
    let list = ReadDir { inode: 2, ..ReadDir::default() };
    answer(Op::ReadDir(list), Reply::DirPage(page), 1, Fact::Directory(InodeId(2)));
    let attr = Attr { inode: INODE, ..Attr::default() };
    let validity = facts.validity(Some(&attr), Some((2, &name)));
    assert!(validity.listed && !validity.entry.is_zero(), "{validity:?}");
    let look = Lookup { parent: 2, name: name.clone() };
    let found = Reply::Entry(Entry { attr: Some(attr) });
    answer(Op::Lookup(look), found, 2, Fact::Entry(InodeId(2), name.clone()));
    let validity = facts.validity(Some(&attr), Some((2, &name)));
    assert!(!validity.listed && !validity.entry.is_zero(), "{validity:?}");
}

/// Found by the simulation: one task made a file, another heard EEXIST before that answer was taken in, and then was shown that there is none.
#[test]
fn who_heard_that_a_name_exists_is_not_shown_that_it_does_not() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    let name = Bytes::from_static(b"a");
    let digest = |op: Op, reply: Reply, granted: Vec<Granted>| {
        let reply = Some(FsReply { reply: Some(reply) });
        let response = Response { reply, grant: 1, granted, ..Response::default() };
        let flight = facts.begin();
        facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
    };
    let absent = || {
        let fact = Some(Fact::Entry(InodeId(2), name.clone()).to_message());
        let look = Op::Lookup(Lookup { parent: 2, name: name.clone() });
        digest(look, Reply::Errno(libc::ENOENT as u32), vec![Granted { fact, exclusive: false }]);
        assert!(facts.entry(2, &name).is_some_and(|(known, _)| known.is_none()));
    };
    absent();
    let create = Create { parent: 2, name: name.clone(), exclusive: true, ..Create::default() };
    digest(Op::Create(create.clone()), Reply::Errno(libc::EACCES as u32), vec![]);
    assert!(facts.entry(2, &name).is_some(), "that says nothing of the name");
    digest(Op::Create(create), Reply::Errno(libc::EEXIST as u32), vec![]);
    assert!(facts.entry(2, &name).is_none());
    absent();
    let unlink = Op::Unlink(Unlink { parent: 2, name: name.clone() });
    digest(unlink, Reply::Errno(libc::ENOENT as u32), vec![]);
    assert!(facts.entry(2, &name).is_some(), "that is what is known");
}

/// Found by the simulation: a read had waited until everything was told, something was made alone before it left, and its answer, which lacked that, was
/// kept as promised.
#[test]
fn what_is_made_alone_before_a_read_leaves_stays_known() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    let attr = |ctime_ns| Attr { inode: INODE, ctime_ns, ..Attr::default() };
    facts.alone(|alone| alone.made(attr(1), None));
    let about_to = facts.begin();
    facts.alone(|alone| alone.set(attr(2)));
    let flight = facts.begin_behind(Some(about_to.tick()));
    let fact = Fact::Inode(InodeId(INODE)).to_message();
    let response = Response {
        reply: Some(FsReply { reply: Some(Reply::Entry(Entry { attr: Some(attr(1)) })) }),
        grant: 1,
        granted: vec![Granted { fact: Some(fact), exclusive: true }],
        ..Response::default()
    };
    let op = Some(Op::GetAttr(GetAttr { inode: INODE }));
    facts.digest(&flight, &FsRequest { caller: None, op }, &response);
    assert_eq!(facts.inode(INODE).map(|(known, _)| known.attr.ctime_ns), Some(2));
}

/// They were forgotten with each of them, and asked for again by each read of a file that is written by turns.
#[test]
fn extents_stay_known_over_ones_own_writes_of_a_file_that_is_had_alone() {
    let attr = Attr { inode: INODE, size: 8, ..Attr::default() };
    let piece = WritePiece { offset: 2, data: Some(write_piece::Data::Inline(Bytes::from_static(b"ab"))) };
    let write = Write { inode: INODE, pieces: vec![piece], ..Write::default() };
    let written = || Reply::Written(Written { attr: Some(attr), offset: 2 });
    let tell = || {
        let request = FsRequest { caller: None, op: Some(Op::Write(write.clone())) };
        Op::Tell(Tell { changes: vec![Untold { request: Some(request), ..Untold::default() }] })
    };
    let told = |reply: Reply| Reply::Told(Told { replies: vec![FsReply { reply: Some(reply) }] });
    let append = Op::Write(Write { append: true, ..write.clone() });
    let set = Op::SetAttr(SetAttr { inode: INODE, ..SetAttr::default() });
    let alone = || Op::Write(write.clone());
    let cases = [
        ("a write", alone(), written(), (3, true, false), Some(1)),
        ("told along", tell(), told(written()), (3, true, false), Some(1)),
        ("told along and refused", tell(), told(Reply::Errno(5)), (3, true, false), None),
        ("not alone any more", alone(), written(), (3, false, false), None),
        ("older than what is known", alone(), written(), (1, true, false), None),
        ("refused", alone(), Reply::Errno(5), (3, true, false), None),
        ("appended", append, written(), (3, true, false), None),
        ("another change", set, Reply::Entry(Entry { attr: Some(attr) }), (3, true, false), None),
        // What is on record of it is answered under a number of its own, and this session may have punched a hole into it since.
        ("sent before", alone(), written(), (3, true, true), None),
        ("told before", tell(), told(written()), (3, true, true), None),
    ];
    for (what, op, reply, (number, exclusive, is_repeat), extents) in cases {
        let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
        facts.lease(BootTime(Duration::from_secs(1000)));
        let fact = || Fact::Inode(InodeId(INODE)).to_message();
        let answer =
            |op: Op, reply: Reply, grant: u64, (exclusive, is_repeat): (bool, bool), changed: bool| {
                let response = Response {
                    reply: Some(FsReply { reply: Some(reply) }),
                    grant,
                    granted: vec![Granted { fact: Some(fact()), exclusive }],
                    changed: if changed { vec![fact()] } else { vec![] },
                    ..Response::default()
                };
                let flight = facts.begin().repeated(is_repeat);
                facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
            };
        let ask = Op::ReadExtents(ReadExtents { inode: INODE, offset: 0, length: 8 });
        let map = ExtentMap { size: 8, covered: 8, attr: Some(attr), ..ExtentMap::default() };
        answer(ask, Reply::Extents(map), 2, (true, false), false);
        answer(op, reply, number, (exclusive, is_repeat), true);
        let known = facts.inode(INODE).map(|(known, _)| known.extents);
        let map = known.and_then(|known| known.lock().unwrap().find(0));
        assert_eq!(map.map(|map| map.extents.len()), extents, "{what}");
    }
}

fn hold(facts: &Facts) -> Option<u64> {
    facts.inode(INODE).map(|(known, _)| known.hold)
}

/// What was read of a file under one hold is true under it, so it must end with each break of the promise, and with no other change.
#[test]
fn a_hold_outlives_changes_of_ones_own_and_nothing_else() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    answer(&facts, 1, false);
    let first = hold(&facts).unwrap();
    answer(&facts, 2, false);
    answer(&facts, 3, true);
    assert_eq!(hold(&facts), Some(first));
    facts.recall(4, &Fact::Inode(InodeId(INODE)), None);
    assert_eq!(hold(&facts), None);
    answer(&facts, 5, true);
    let second = hold(&facts).unwrap();
    assert_ne!(second, first, "others may have changed it between");
    facts.recall(6, &Fact::Inode(InodeId(INODE)), Some(Level::Shared));
    assert_eq!(hold(&facts), Some(second), "a lower level is a promise still");
    facts.renounce();
    answer(&facts, 7, false);
    assert!(hold(&facts).is_some_and(|hold| hold != first && hold != second));
}

/// An answer that came, with the facts that go beside it.
fn take_in(
    facts: &Facts,
    flight: &Flight<'_>,
    (op, reply): (Op, Reply),
    number: u64,
    (granted, changed): (Vec<Fact>, Vec<Fact>),
) {
    let granted = granted.iter().map(|fact| Granted { fact: Some(fact.to_message()), exclusive: false });
    let response = Response {
        reply: Some(FsReply { reply: Some(reply) }),
        grant: number,
        granted: granted.collect(),
        changed: changed.iter().map(Fact::to_message).collect(),
        ..Response::default()
    };
    facts.digest(flight, &FsRequest { caller: None, op: Some(op) }, &response);
}

/// A page of directory 2 from that cookie on, with these names behind it.
fn page(directory: u64, cookie: u64, names: &[String], end: bool) -> (Op, Reply) {
    let entry = |(at, name): (usize, &String)| DirEntry {
        name: name.clone().into(),
        inode: 100 + cookie + at as u64,
        cookie: cookie + 1 + at as u64,
        ..DirEntry::default()
    };
    let entries = names.iter().enumerate().map(entry).collect();
    let read = ReadDir { inode: directory, cookie, ..ReadDir::default() };
    (Op::ReadDir(read), Reply::DirPage(DirPage { entries, end }))
}

/// A page was read before this session removed a name, and its answer is taken in after that change's.
#[test]
fn a_further_page_brings_back_no_name_that_was_removed_meanwhile() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    let (a, z) = ("a".to_owned(), "z".to_owned());
    let first = facts.begin();
    let list = vec![Fact::Directory(InodeId(2))];
    take_in(&facts, &first, page(2, 0, std::slice::from_ref(&a), false), 1, (list, vec![]));
    drop(first);
    let second = facts.begin();
    let name: Bytes = z.clone().into();
    let removed = vec![Fact::Entry(InodeId(2), name.clone())];
    let unlink = Op::Unlink(Unlink { parent: 2, name: name.clone() });
    let done = Reply::Done(mooseng_wire::fs::Done {});
    take_in(&facts, &facts.begin(), (unlink, done), 2, (removed.clone(), removed));
    take_in(&facts, &second, page(2, 1, &[z], true), 3, (vec![], vec![]));
    assert_eq!(facts.entry(2, &name).map(|(known, _)| known), Some(None));
    facts.recall(4, &Fact::Entry(InodeId(2), a.clone().into()), None);
    assert!(facts.entry(2, &a.into()).is_none(), "the list is known, but for what was taken out");
    let other = Bytes::from_static(b"other");
    assert_eq!(facts.entry(2, &other).map(|(known, _)| known), Some(None));
    assert_eq!(facts.alone(|alone| alone.names(2)), 0, "a ghost would keep the directory from being removed");
}

/// Lists grow after they were put in: page by page, and one by one where they are had alone.
#[test]
fn lists_that_grow_stay_within_their_room() {
    let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
    facts.lease(BootTime(Duration::from_secs(1000)));
    let names_held = || {
        facts.listings.run_pending_tasks();
        let names = |listing: Arc<Mutex<Listing>>| listing.lock().unwrap().names.len();
        facts.listings.iter().map(|(_, listing)| names(listing)).sum::<usize>()
    };
    let most = (1 << 20) / 4 / 250;
    let mut held_most = 0;
    for directory in 2..102 {
        for n in 0..20 {
            let names: Vec<String> = (0..50).map(|at| format!("{n}-{at}")).collect();
            let list = vec![Fact::Directory(InodeId(directory)); usize::from(n == 0)];
            take_in(&facts, &facts.begin(), page(directory, n * 50, &names, n == 19), 1, (list, vec![]));
        }
        held_most = held_most.max(names_held());
    }
    assert!((1..=most).contains(&held_most), "{held_most}");
    facts.renounce();
    let mut held_most = 0;
    for directory in 2..102 {
        let attr = Attr { inode: directory, kind: FileKind::Directory.into(), ..Attr::default() };
        facts.alone(|alone| alone.made(attr, None));
        for n in 0..512 {
            facts.alone(|alone| alone.name(directory, &format!("{n}").into(), Some(1000 + n)));
        }
        held_most = held_most.max(names_held());
    }
    assert!((1..=most).contains(&held_most), "{held_most}");
}
