//! Deleted files: kept with all that they are, listed, restored, purged, and never freed too early.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_namespace::fsck::Kind;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::trash::{self, Expired, Listed, Place, Purged, Refused};
use mooseng_namespace::{OpContext, clock};
use mooseng_schema::clock::{ClockRecord, Kept};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::{Record, number, trash as record};
use mooseng_store::{Store, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{InodeId, VolumeId};

use crate::harness::*;
use crate::model::*;

const VOLUME: VolumeId = VolumeId(0);
const DAY_S: u64 = 86_400;
const DAY_NS: i64 = 86_400 * 1_000_000_000;

async fn volume() -> Volume {
    Volume::with_trash(0, 0.0, DAY_S).await
}

async fn listed(volume: &Volume) -> Vec<Listed> {
    trash::list(&volume.store.inner.begin(), VOLUME, None, 1_000).await.unwrap().0
}

async fn restore(volume: &Volume, id: u64, to: Option<&str>) -> trash::Restored {
    let tx = volume.store.inner.begin();
    let touched = Touched::default();
    let to = to.map(str::as_bytes);
    let restored = trash::restore(&tx, &touched, 5_000, InodeId(id), to).await.unwrap();
    tx.commit().await.unwrap();
    restored
}

async fn expire(volume: &Volume, now_ns: i64) -> usize {
    let expired = expire_page(volume, now_ns, None, None).await;
    assert_eq!(expired.held, 0);
    expired.files
}

/// A page of two.
async fn expire_page(
    volume: &Volume,
    now_ns: i64,
    steady: Option<Duration>,
    after: Option<Place>,
) -> Expired {
    let tx = volume.store.inner.begin();
    let expired = trash::expire(&tx, VOLUME, now_ns, steady, after, 2).await.unwrap();
    tx.commit().await.unwrap();
    expired
}

async fn reap(volume: &Volume, inodes: Vec<u64>) -> u64 {
    match volume.own(Op::Reap(Reap { inodes })).await {
        Reply::Reaped(reaped) => reaped.freed,
        other => panic!("{other:?}"),
    }
}

fn unlink(parent: u64, text: &str) -> Op {
    Op::Unlink(Unlink { parent, name: name(text) })
}

async fn lookup(client: &Client<'_>, parent: u64, text: &str) -> u32 {
    client.errno(Op::Lookup(Lookup { parent, name: name(text) })).await
}

#[tokio::test]
async fn a_deleted_file_comes_back_with_all_that_it_was() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let (a, b) = (client.mkdir(ROOT, "a").await, client.mkdir(ROOT, "b").await);
    let inner = client.mkdir(a, "inner").await;
    let file = client.create(inner, "file").await;
    client.write(file, 0, &[7; 20_000]).await;
    let xattr = SetXattr { inode: file, name: name("user.x"), value: name("y"), ..Default::default() };
    client.ask(Op::SetXattr(xattr)).await;
    let set = SetAttr { inode: file, mode: Some(0o4750), uid: Some(7), gid: Some(8), ..Default::default() };
    client.ask(Op::SetAttr(set)).await;
    client.ask(Op::SetAttr(SetAttr { inode: inner, mode: Some(0o777), ..Default::default() })).await;
    let before = client.attr(file).await;
    assert_eq!(errno(&client.ask_as(&user(1000, 100, &[]), unlink(inner, "file")).await), 0);
    volume.check();
    // For whoever holds it open it has no links, and everything else as it was.
    let open = client.attr(file).await;
    assert_eq!(Attr { ctime_ns: open.ctime_ns, nlink: 0, ..before }, open);
    let [entry] = listed(&volume).await.try_into().unwrap();
    assert_eq!((entry.inode.0, entry.size, entry.deletion.uid), (file, 20_000, 1000));
    assert_eq!((&entry.deletion.directory[..], &entry.deletion.name[..]), (&b"/a/inner"[..], &b"file"[..]));
    assert_eq!(entry.until_ns, entry.deletion.deleted_ns + DAY_NS);
    assert!(volume.orphans().await.is_empty());
    // Its directory is another one's by now.
    let moved = Rename {
        parent: a,
        name: name("inner"),
        new_parent: b,
        new_name: name("moved"),
        ..Default::default()
    };
    client.ask(Op::Rename(moved)).await;
    assert_eq!(restore(&volume, file, None).await, Ok(b"/b/moved/file".to_vec()));
    volume.check();
    let after = client.attr(file).await;
    assert_eq!(Attr { ctime_ns: after.ctime_ns, ..before }, after);
    assert_eq!(client.read(file).await, [7; 20_000]);
    assert_eq!(client.errno(Op::GetXattr(GetXattr { inode: file, name: name("user.x") })).await, 0);
    assert_eq!(lookup(&client, inner, "file").await, 0);
    assert!(listed(&volume).await.is_empty());
    assert_eq!(restore(&volume, file, None).await, Err(Refused::NotThere(file)));
    // And again.
    client.ask(unlink(inner, "file")).await;
    assert_eq!(listed(&volume).await.len(), 1);
    volume.check();
}

#[tokio::test]
async fn a_restoration_tells_whom_it_concerns() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let file = client.create(ROOT, "file").await;
    client.write(file, 0, b"x").await;
    client.ask(unlink(ROOT, "file")).await;
    let touched = Touched::default();
    let tx = volume.store.inner.begin();
    trash::restore(&tx, &touched, 1, InodeId(file), None).await.unwrap().unwrap();
    let root = InodeId(ROOT);
    let expected = [Fact::Inode(root), Fact::Inode(InodeId(file)), Fact::Entry(root, name("file"))];
    assert_eq!(touched.into_facts(), expected.into_iter().collect());
}

#[tokio::test]
async fn only_a_last_name_with_data_behind_it_goes_to_the_trash() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let file = client.create(ROOT, "file").await;
    client.write(file, 0, b"data").await;
    client.ask(Op::Link(Link { inode: file, new_parent: ROOT, new_name: name("other") })).await;
    client.ask(unlink(ROOT, "file")).await;
    assert!(listed(&volume).await.is_empty());
    let empty = client.create(ROOT, "empty").await;
    let link = Op::Symlink(Symlink { parent: ROOT, name: name("link"), target: name("t") });
    let link = attr(client.ask(link).await).inode;
    for text in ["empty", "link"] {
        client.ask(unlink(ROOT, text)).await;
    }
    client.mkdir(ROOT, "dir").await;
    client.ask(Op::Rmdir(Rmdir { parent: ROOT, name: name("dir") })).await;
    volume.check();
    assert!(listed(&volume).await.is_empty());
    let orphans = volume.orphans().await;
    assert!(orphans.len() == 3 && orphans.contains(&empty) && orphans.contains(&link));
    assert_eq!(reap(&volume, orphans).await, 3);
    volume.check();
    // A rename that replaces takes the last name, too.
    let newer = client.create(ROOT, "newer").await;
    let rename = Rename {
        parent: ROOT,
        name: name("newer"),
        new_parent: ROOT,
        new_name: name("other"),
        ..Default::default()
    };
    client.ask(Op::Rename(rename)).await;
    let [entry] = listed(&volume).await.try_into().unwrap();
    assert_eq!(
        (entry.inode.0, &entry.deletion.directory[..], &entry.deletion.name[..]),
        (file, &b"/"[..], &b"other"[..])
    );
    assert_eq!(restore(&volume, file, None).await, Err(Refused::Exists("/other".into())));
    assert_eq!(client.attr(newer).await.nlink, 1);
    volume.check();
}

/// What a file is when its last descriptor is closed counts, not what it was when its name went: data may still be on its way.
#[tokio::test]
async fn what_is_written_to_a_nameless_file_counts() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let file = client.create(ROOT, "file").await;
    client.ask(unlink(ROOT, "file")).await;
    client.write(file, 0, &[1; 5_000]).await;
    volume.check();
    assert_eq!(volume.orphans().await, [file]);
    assert_eq!(reap(&volume, vec![file]).await, 0);
    assert!(volume.orphans().await.is_empty());
    assert_eq!(listed(&volume).await[0].size, 5_000);
    volume.check();
    let empty = SetAttr { inode: file, size: Some(0), ..Default::default() };
    client.ask(Op::SetAttr(empty)).await;
    assert!(listed(&volume).await.is_empty());
    assert_eq!(reap(&volume, volume.orphans().await).await, 1);
    assert_eq!(client.errno(Op::GetAttr(GetAttr { inode: file })).await, ESTALE);
    volume.check();
}

#[tokio::test]
async fn nothing_is_freed_before_its_time_and_everything_after() {
    let volume = volume().await;
    let client = volume.client(1).await;
    // More extents than one transaction frees.
    let file = client.create(ROOT, "file").await;
    let piece = |offset| WritePiece { offset, data: Some(write_piece::Data::Inline(name("x"))) };
    for first in (0..3_000u64).step_by(250) {
        let pieces = (first..first + 250).map(|i| piece(i * 10)).collect();
        client.ask(Op::Write(Write { inode: file, pieces, ..Default::default() })).await;
    }
    let bytes = client.read(file).await;
    client.ask(unlink(ROOT, "file")).await;
    let until = listed(&volume).await[0].until_ns;
    assert_eq!(reap(&volume, vec![file]).await, 0);
    assert_eq!(expire(&volume, until - 1).await, 0);
    assert_eq!(reap(&volume, vec![file]).await, 0);
    assert!(client.read(file).await == bytes);
    volume.check();
    assert_eq!(expire(&volume, until).await, 1);
    volume.check();
    assert_eq!(restore(&volume, file, None).await, Err(Refused::NotThere(file)));
    assert_eq!(reap(&volume, volume.orphans().await).await, 1);
    let held = statistics::Statistics::default();
    let dump = volume.store.inner.dump();
    let of = |which| {
        let value = dump.get(&statistics::key(InodeId(file), which)[..]);
        number::decode(value).unwrap()
    };
    assert_eq!((of(Statistic::TrashFiles), of(Statistic::TrashBytes)), (held.trash_files, held.trash_bytes));
    volume.check();
}

/// Found by review: a wall clock that was set forward emptied the trash for good.
#[tokio::test]
async fn what_a_clock_that_was_set_forward_says_is_over_stays_for_its_time() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let mut files = Vec::new();
    let delete = async |name: &str| {
        let file = client.create(ROOT, name).await;
        client.write(file, 0, b"x").await;
        client.ask(unlink(ROOT, name)).await;
        file
    };
    let set_terms = async |seconds| {
        let tx = volume.store.inner.begin();
        trash::set_terms(&tx, VOLUME, Some(seconds), None).await.unwrap();
        tx.commit().await.unwrap();
    };
    for name in ["a", "b", "c"] {
        files.push(delete(name).await);
    }
    set_terms(60).await;
    let soon = delete("soon").await;
    // A year later by the clock, and an hour in truth: that one has been there for its minute.
    let (now, hour) = (listed(&volume).await[0].until_ns + 365 * DAY_NS, Duration::from_secs(3_600));
    let first = expire_page(&volume, now, Some(hour), None).await;
    assert_eq!((first.files, first.held), (1, 1), "what stays is in nobody's way");
    let rest = expire_page(&volume, now, Some(hour), first.next).await;
    assert_eq!((rest.files, rest.held), (0, 2));
    assert_eq!(expire_page(&volume, now, Some(hour), rest.next).await, Expired::default());
    assert_eq!(restore(&volume, soon, None).await, Err(Refused::NotThere(soon)));
    assert_eq!(listed(&volume).await.len(), 3);
    // The clock is set right again in the middle of it.
    let over = expire_page(&volume, 0, Some(hour), first.next).await;
    assert_eq!(over, Expired::default());
    // What was deleted by the wrong clock has its time by that one; a day is over in truth.
    let day = Duration::from_secs(DAY_S);
    assert_eq!(expire_page(&volume, now, Some(day - hour), None).await.held, 2);
    let first = expire_page(&volume, now, Some(day), None).await;
    assert_eq!((first.files, first.held), (2, 0));
    assert_eq!(expire_page(&volume, now, Some(day), first.next).await.files, 1);
    assert!(listed(&volume).await.is_empty());
    volume.check();
    assert_eq!(reap(&volume, files).await, 3);
}

#[tokio::test]
async fn what_was_seen_of_the_clock_is_kept() {
    let volume = volume().await;
    let seen = ClockRecord { seen_ns: 5, steady_ns: Some(7), step_ns: 9 };
    for (kept, other) in [(Kept::Trash, None), (Kept::Lapsed, Some(seen.clone()))] {
        let tx = volume.store.inner.begin();
        assert_eq!(clock::seen(&tx, VOLUME, kept).await.unwrap(), None);
        assert_eq!(clock::seen(&tx, VOLUME, Kept::Trash).await.unwrap(), other);
        clock::note(&tx, VOLUME, kept, &seen);
        tx.commit().await.unwrap();
        let tx = volume.store.inner.begin();
        assert_eq!(clock::seen(&tx, VOLUME, kept).await.unwrap(), Some(seen.clone()));
    }
    volume.check();
}

#[tokio::test]
async fn purging_takes_what_it_is_told_to() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let mut files = Vec::new();
    for n in 0..5 {
        let file = client.create(ROOT, &format!("file {n}")).await;
        client.write(file, 0, &[n; 100]).await;
        client.ask(unlink(ROOT, &format!("file {n}"))).await;
        files.push(file);
    }
    let times: Vec<i64> = listed(&volume).await.iter().rev().map(|l| l.deletion.deleted_ns).collect();
    let tx = volume.store.inner.begin();
    assert_eq!(trash::purge(&tx, 9, InodeId(files[4])).await.unwrap(), Some(Purged { files: 1, bytes: 100 }));
    assert_eq!(trash::purge(&tx, 9, InodeId(files[4])).await.unwrap(), None);
    assert_eq!(trash::purge(&tx, 9, InodeId(999)).await.unwrap(), None);
    let (purged, next) = trash::purge_page(&tx, VOLUME, 9, times[1], None, 2).await.unwrap();
    assert_eq!(purged, Purged { files: 2, bytes: 200 });
    let (purged, next) = trash::purge_page(&tx, VOLUME, 9, times[1], next, 10).await.unwrap();
    assert_eq!((purged, next), (Purged::default(), None));
    tx.commit().await.unwrap();
    volume.check();
    let left: Vec<u64> = listed(&volume).await.iter().map(|l| l.inode.0).collect();
    assert_eq!(left, [files[3], files[2]]);
    assert_eq!(volume.orphans().await, [files[0], files[1], files[4]]);
    assert_eq!(reap(&volume, files).await, 3);
    volume.check();
}

#[tokio::test]
async fn where_a_file_is_put_back_is_told_in_sentences() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let dir = client.mkdir(ROOT, "dir").await;
    let file = client.create(dir, "file").await;
    client.write(file, 0, b"data").await;
    client.ask(unlink(dir, "file")).await;
    client.create(ROOT, "taken").await;
    let link = Symlink { parent: ROOT, name: name("link"), target: name("/dir") };
    client.ask(Op::Symlink(link)).await;
    client.ask(Op::Rmdir(Rmdir { parent: ROOT, name: name("dir") })).await;
    let gone = restore(&volume, file, None).await.unwrap_err();
    assert_eq!(gone, Refused::DirectoryGone("/dir".into()));
    assert!(gone.to_string().contains("--to PATH"), "{gone}");
    // Also once nothing is left of it.
    reap(&volume, vec![dir]).await;
    assert_eq!(restore(&volume, file, None).await, Err(Refused::DirectoryGone("/dir".into())));
    for (to, why) in [
        ("/taken", Refused::Exists("/taken".into())),
        ("/none/x", Refused::NoDirectory("/none".into())),
        ("/taken/x", Refused::NotADirectory("/taken".into())),
        ("/link/x", Refused::NotADirectory("/link".into())),
        ("relative", Refused::BadPath("relative".into())),
        ("/", Refused::BadPath("/".into())),
        ("", Refused::BadPath(String::new())),
        ("/name/", Refused::BadPath("/name/".into())),
        ("/a/../b", Refused::BadPath("/a/../b".into())),
        ("/a\0b", Refused::BadPath("/a\0b".into())),
    ] {
        assert_eq!(restore(&volume, file, Some(to)).await, Err(why), "{to:?}");
    }
    volume.check();
    assert_eq!(restore(&volume, file, Some("//back")).await, Ok(b"/back".to_vec()));
    assert_eq!(lookup(&client, ROOT, "back").await, 0);
    volume.check();
}

#[tokio::test]
async fn of_a_deep_path_the_end_is_known() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let mut at = ROOT;
    for n in 0..40 {
        at = client.mkdir(at, &format!("d{n}")).await;
    }
    let file = client.create(at, "file").await;
    client.write(file, 0, b"data").await;
    client.ask(unlink(at, "file")).await;
    let path = listed(&volume).await[0].deletion.directory.clone();
    assert!(path.starts_with(b".../d8/d9/") && path.ends_with(b"/d38/d39"), "{path:?}");
    assert!(restore(&volume, file, None).await.unwrap().ends_with(b"/d39/file"));
    volume.check();
}

#[tokio::test]
async fn the_retention_is_that_of_the_deletion() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let delete = async |text: &str| {
        let file = client.create(ROOT, text).await;
        client.write(file, 0, b"data").await;
        client.ask(unlink(ROOT, text)).await;
    };
    let set = async |seconds| {
        let tx = volume.store.inner.begin();
        trash::set_terms(&tx, VOLUME, Some(seconds), None).await.unwrap();
        tx.commit().await.unwrap();
    };
    delete("before").await;
    set(10).await;
    delete("ten").await;
    set(5).await;
    delete("five").await;
    set(0).await;
    delete("after").await;
    let listed = listed(&volume).await;
    let names: Vec<&[u8]> = listed.iter().map(|l| &l.deletion.name[..]).collect();
    assert_eq!(names, [&b"ten"[..], b"five"]);
    assert_eq!(volume.orphans().await.len(), 2);
    let tx = volume.store.inner.begin();
    assert!(trash::set_terms(&tx, VOLUME, Some(trash::RETENTION_S_MAX + 1), None).await.is_err());
    volume.check();
}

#[tokio::test]
async fn scratch_files_are_not_kept() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let tx = volume.store.inner.begin();
    trash::set_terms(&tx, VOLUME, None, Some(60)).await.unwrap();
    tx.commit().await.unwrap();
    let make = async |text: &str| {
        let file = client.create(ROOT, text).await;
        client.write(file, 0, b"data").await;
        file
    };
    let pass = |seconds: i64| volume.now.fetch_add(seconds * 1_000_000_000, Ordering::Relaxed);
    let scratch = make("scratch").await;
    client.ask(unlink(ROOT, "scratch")).await;
    pass(59);
    // What is written to it later, while it is open, doesn't matter.
    client.write(scratch, 0, b"more").await;
    assert_eq!((volume.orphans().await, listed(&volume).await.len()), (vec![scratch], 0));
    let old = make("old").await;
    pass(60);
    // However it loses its name.
    make("newer").await;
    let rename = Rename {
        parent: ROOT,
        name: name("newer"),
        new_parent: ROOT,
        new_name: name("old"),
        ..Default::default()
    };
    client.ask(Op::Rename(rename)).await;
    assert_eq!(listed(&volume).await.iter().map(|l| l.inode.0).collect::<Vec<_>>(), [old]);
    // A leader whose clock is behind doesn't know how old a file is.
    pass(-3_600);
    client.ask(unlink(ROOT, "old")).await;
    assert_eq!(listed(&volume).await.len(), 2);
    assert_eq!(reap(&volume, volume.orphans().await).await, 1);
    volume.check();
}

/// A session that is confined to a subtree keeps what it has open of it, and nothing else, wherever that has gone.
#[tokio::test]
async fn who_sees_a_subtree_only_sees_its_deleted_files_only() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let (mine, others) = (client.mkdir(ROOT, "mine").await, client.mkdir(ROOT, "others").await);
    let mut files = Vec::new();
    for directory in [mine, others] {
        let file = client.create(directory, "file").await;
        client.write(file, 0, b"data").await;
        client.ask(unlink(directory, "file")).await;
        files.push(file);
    }
    let sees = async |file| {
        let request = request(&root(), Op::GetAttr(GetAttr { inode: file }));
        let ctx = OpContext { confined: Some(InodeId(mine)), ..volume.context(&request) };
        let (reply, _) = volume.driver.run(client.call_of(0), &ctx, &request, deadline()).await.unwrap();
        errno(&reply.reply.unwrap()) == 0
    };
    assert_eq!((sees(files[0]).await, sees(files[1]).await), (true, false));
    // Also where it is to be freed, because it is empty, or was purged.
    let empty = SetAttr { inode: files[0], size: Some(0), ..Default::default() };
    client.ask(Op::SetAttr(empty)).await;
    assert_eq!((sees(files[0]).await, sees(files[1]).await), (true, false));
    let tx = volume.store.inner.begin();
    for file in &files {
        trash::purge(&tx, 9, InodeId(*file)).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!((sees(files[0]).await, sees(files[1]).await), (true, false));
    volume.check();
}

#[tokio::test]
async fn the_check_of_the_whole_store_understands_the_trash() {
    let volume = volume().await;
    let client = volume.client(1).await;
    let file = client.create(ROOT, "file").await;
    client.write(file, 0, b"data").await;
    client.ask(unlink(ROOT, "file")).await;
    volume.check();
    let until = listed(&volume).await[0].until_ns;
    let (key, entry) = (inode::key(InodeId(file)), record::key(until, InodeId(file)));
    let dump = || {
        let mut dump = volume.store.inner.dump();
        dump.remove(mooseng_schema::ids::key(mooseng_schema::ids::IdKind::Inode, VOLUME).as_slice());
        dump
    };
    let kinds = |dump: &crate::fsck::Dump| -> Vec<Kind> {
        let mut kinds: Vec<Kind> = crate::fsck::check(dump, 2).iter().map(|f| f.kind).collect();
        kinds.sort_unstable();
        kinds
    };
    let changed = |change: fn(&mut InodeRecord)| {
        let mut dump = dump();
        let mut record = InodeRecord::from_value(&dump[key.as_slice()]).unwrap();
        change(&mut record);
        dump.insert(key.clone().into(), record.to_value().into());
        kinds(&dump)
    };
    assert_eq!(kinds(&dump()), []);
    // The entry is lost; the inode is.
    let mut lost = dump();
    lost.remove(entry.as_slice()).unwrap();
    assert_eq!(kinds(&lost), [Kind::Orphan, Kind::Trash]);
    let mut lost = dump();
    lost.remove(key.as_slice()).unwrap();
    assert!(kinds(&lost).contains(&Kind::Leftover));
    // The inode doesn't know; knows another time. Then the totals differ, too, where it isn't counted.
    assert_eq!(
        changed(|record| record.trash_until_ns = None),
        [Kind::Trash, Kind::Statistics, Kind::Statistics]
    );
    assert_eq!(changed(|record| record.trash_until_ns = Some(5)), [Kind::Trash]);
    let mut twice = dump();
    let value = twice[entry.as_slice()].clone();
    twice.insert(record::key(until + 1, InodeId(file)).into(), value);
    assert_eq!(kinds(&twice), [Kind::Trash, Kind::Trash]);
    // What it counts is off, and is set right.
    let mut off = dump();
    for which in [Statistic::TrashFiles, Statistic::TrashBytes] {
        off.insert(statistics::key(InodeId(file), which).into(), number::encode(9).to_vec().into());
    }
    assert_eq!(kinds(&off), [Kind::Statistics, Kind::Statistics]);
    assert!(crate::fsck::check(&off, 1).iter().all(|f| f.fix.is_some()));
}
