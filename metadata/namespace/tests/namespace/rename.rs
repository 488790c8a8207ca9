//! What may be renamed over what.

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;

use crate::harness::*;
use crate::model::*;

const EXDEV: u32 = 18;

fn rename(parent: u64, from: &str, new_parent: u64, to: &str) -> Rename {
    Rename { parent, name: name(from), new_parent, new_name: name(to), ..Default::default() }
}

/// file, empty and full directory, absent - over each other, plain, without replacement, exchanged.
#[tokio::test]
async fn the_matrix() {
    let kinds = ["absent", "file", "empty", "full"];
    for apart in [false, true] {
        for from in kinds {
            for to in kinds {
                for flag in ["plain", "no_replace", "exchange"] {
                    let volume = Volume::new().await;
                    let client = volume.client(1).await;
                    let other = client.mkdir(ROOT, "other").await;
                    let to_parent = if apart { other } else { ROOT };
                    let make = async |parent, text: &str, kind: &str| match kind {
                        "absent" => 0,
                        "file" => client.create(parent, text).await,
                        _ => {
                            let id = client.mkdir(parent, text).await;
                            if kind == "full" {
                                client.create(id, "inside").await;
                            }
                            id
                        }
                    };
                    let source = make(ROOT, "s", from).await;
                    let target = make(to_parent, "t", to).await;
                    let mut r = rename(ROOT, "s", to_parent, "t");
                    r.no_replace = flag == "no_replace";
                    r.exchange = flag == "exchange";
                    let got = client.errno(Op::Rename(r)).await;
                    let directory = |kind| kind == "empty" || kind == "full";
                    let expected = match (from, to, flag) {
                        ("absent", ..) => ENOENT,
                        (_, "absent", "exchange") => ENOENT,
                        (_, "absent", _) => 0,
                        (.., "exchange") => 0,
                        (.., "no_replace") => EEXIST,
                        _ if directory(from) && !directory(to) => ENOTDIR,
                        _ if !directory(from) && directory(to) => EISDIR,
                        (_, "full", _) => ENOTEMPTY,
                        _ => 0,
                    };
                    let at = format!("{from} to {to}, {flag}, apart {apart}");
                    assert_eq!(got, expected, "{at}");
                    volume.check();
                    let find = async |parent, text: &str| {
                        let op = Op::Lookup(Lookup { parent, name: name(text) });
                        match client.ask(op).await {
                            Reply::Entry(e) => e.attr.unwrap().inode,
                            _ => 0,
                        }
                    };
                    let now = (find(ROOT, "s").await, find(to_parent, "t").await);
                    let then = match (got, flag) {
                        (0, "exchange") => (target, source),
                        (0, _) => (0, source),
                        _ => (source, target),
                    };
                    assert_eq!(now, then, "{at}");
                }
            }
        }
    }
}

#[tokio::test]
async fn trees_stay_trees() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let a = client.mkdir(ROOT, "a").await;
    let b = client.mkdir(a, "b").await;
    let c = client.mkdir(b, "c").await;
    let errno = async |r: Rename| client.errno(Op::Rename(r)).await;
    assert_eq!(errno(rename(ROOT, "a", a, "x")).await, EINVAL);
    assert_eq!(errno(rename(ROOT, "a", c, "x")).await, EINVAL);
    assert_eq!(errno(rename(ROOT, "a", b, "c")).await, EINVAL);
    // Over an ancestor, which can't be empty.
    assert_eq!(errno(rename(b, "c", ROOT, "a")).await, ENOTEMPTY);
    assert_eq!(errno(Rename { exchange: true, ..rename(b, "c", ROOT, "a") }).await, EINVAL);
    assert_eq!(errno(Rename { exchange: true, ..rename(ROOT, "a", b, "c") }).await, EINVAL);
    assert_eq!(errno(rename(ROOT, "a", ROOT, "..")).await, EBUSY);
    assert_eq!(errno(rename(a, ".", ROOT, "x")).await, EBUSY);
    let twice = Rename { exchange: true, no_replace: true, ..rename(ROOT, "a", ROOT, "z") };
    assert_eq!(errno(twice).await, EINVAL);
    assert_eq!(errno(rename(ROOT, "a", 1 << 48, "x")).await, EXDEV);
    // Onto itself nothing happens, not even to the times.
    let before = client.attr(a).await;
    assert_eq!(errno(rename(ROOT, "a", ROOT, "a")).await, 0);
    assert_eq!(client.attr(a).await, before);
    assert_eq!(errno(Rename { no_replace: true, ..rename(ROOT, "a", ROOT, "a") }).await, EEXIST);
    // Moving changes "..".
    assert_eq!(errno(rename(b, "c", ROOT, "c")).await, 0);
    let up = client.ask(Op::Lookup(Lookup { parent: c, name: name("..") })).await;
    assert_eq!(attr(up).inode, ROOT);
    assert_eq!((client.attr(ROOT).await.nlink, client.attr(b).await.nlink), (4, 2));
    volume.check();
}

#[tokio::test]
async fn a_replaced_file_lives_until_it_is_reaped() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (a, b) = (client.create(ROOT, "a").await, client.create(ROOT, "b").await);
    client.write(b, 0, b"old").await;
    assert_eq!(client.errno(Op::Rename(rename(ROOT, "a", ROOT, "b"))).await, 0);
    assert_eq!(client.attr(b).await.nlink, 0);
    assert_eq!(client.read(b).await, b"old");
    assert_eq!(volume.orphans().await, [b]);
    let link = Link { inode: b, new_parent: ROOT, new_name: name("back") };
    assert_eq!(client.errno(Op::Link(link)).await, ENOENT);
    volume.own(Op::Reap(Reap { inodes: vec![a, b] })).await;
    assert_eq!(client.errno(Op::GetAttr(GetAttr { inode: b })).await, ESTALE);
    assert_eq!(client.attr(a).await.nlink, 1);
    volume.check();
}

/// Two names of one file, renamed onto each other, both stay.
#[tokio::test]
async fn names_of_one_file_dont_replace_each_other() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let a = client.create(ROOT, "a").await;
    client.ask(Op::Link(Link { inode: a, new_parent: ROOT, new_name: name("b") })).await;
    assert_eq!(client.errno(Op::Rename(rename(ROOT, "a", ROOT, "b"))).await, 0);
    assert_eq!(client.list(ROOT, 10, false).await.len(), 2);
    assert_eq!(client.attr(a).await.nlink, 2);
    volume.check();
}

#[tokio::test]
async fn sticky_directories_and_foreign_directories_hold_what_they_have() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let mode = |inode, mode| Op::SetAttr(SetAttr { inode, mode: Some(mode), ..Default::default() });
    client.ask(mode(ROOT, 0o1777)).await;
    let (one, two) = (user(1000, 100, &[]), user(1001, 101, &[]));
    let mk = |text: &str| Op::Mkdir(Mkdir { parent: ROOT, name: name(text), mode: 0o777, alone: false });
    let mine = attr(client.ask_as(&one, mk("mine")).await).inode;
    client.ask(mode(mine, 0o755)).await;
    let to = Op::Rename(rename(ROOT, "mine", ROOT, "x"));
    assert_eq!(errno(&client.ask_as(&two, to.clone()).await), EPERM);
    let trusted = Caller { kernel_checked: true, ..two.clone() };
    assert_eq!(errno(&client.ask_as(&trusted, to).await), 0);
    // Whoever may not write a directory may not give it another parent.
    client.ask(mode(ROOT, 0o777)).await;
    let other = attr(client.ask_as(&two, mk("other")).await).inode;
    let away = Op::Rename(rename(ROOT, "x", other, "x"));
    assert_eq!(errno(&client.ask_as(&two, away.clone()).await), EACCES);
    client.ask(mode(other, 0o777)).await;
    assert_eq!(errno(&client.ask_as(&one, away).await), 0);
    volume.check();
}
