//! Rules for mounts: who sees and changes what.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::sync::Arc;

use common::{Client, Cluster};
use mooseng_master::{MasterConfig, MountRule, Squash};
use mooseng_ports::clock::OsClock;
use mooseng_schema::acl::{AclEntry, AclRecord};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::method::Method;
use mooseng_wire::session::{CloseSession, SessionClosed};
use mooseng_wire::{ACCESS_ACL, ROOT_INODE};

const EPERM: u32 = 1;
const EACCES: u32 = 13;
const EROFS: u32 = 30;
const ESTALE: u32 = 116;

fn rule(clients: &[&str]) -> MountRule {
    MountRule {
        clients: clients.iter().map(|c| (*c).to_owned()).collect(),
        subtree: "/".into(),
        read_only: false,
        squash: Squash::None,
        squash_uid: 65_534,
        squash_gid: 65_534,
    }
}

fn rules(config: &mut MasterConfig) {
    config.mounts = vec![
        rule(&["root-host"]),
        MountRule { subtree: "/srv/web".into(), ..rule(&["web-*"]) },
        MountRule { read_only: true, ..rule(&["reader"]) },
        MountRule { squash: Squash::Root, ..rule(&["guest"]) },
        MountRule { subtree: "/nowhere".into(), ..rule(&["lost"]) },
    ];
}

fn errno(reply: &Reply) -> u32 {
    match reply {
        Reply::Errno(errno) => *errno,
        _ => 0,
    }
}

fn inode(reply: Reply) -> u64 {
    match reply {
        Reply::Entry(entry) => entry.attr.unwrap().inode,
        Reply::Created(created) => created.attr.unwrap().inode,
        other => panic!("no attributes: {other:?}"),
    }
}

async fn mkdir(client: &Client, parent: u64, name: &str) -> u64 {
    let mkdir = Mkdir { parent, name: name.to_owned().into(), mode: 0o755, alone: false };
    inode(client.change(Op::Mkdir(mkdir)).await.unwrap())
}

async fn create(client: &Client, parent: u64, name: &str) -> Reply {
    let name = name.to_owned().into();
    let create = Create { parent, name, mode: 0o600, exclusive: true, truncate: false };
    client.change(Op::Create(create)).await.unwrap()
}

/// Nobody waits for what its session is promised.
async fn close(client: &Client) {
    let s = client.session.lock().await.clone();
    let close = CloseSession { session: s.session, incarnation: s.incarnation };
    let _: SessionClosed = client.call(Method::CloseSession, &close).await.unwrap();
}

fn lookup(parent: u64, name: &str) -> Op {
    Op::Lookup(Lookup { parent, name: name.to_owned().into() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_sees_its_subtree_and_does_what_its_rule_allows() {
    let cluster = Cluster::start_with(1, Arc::new(OsClock), rules).await;
    let admin = cluster.client("root-host").await;
    assert_eq!(admin.open(&[]).await.unwrap().root, ROOT_INODE.0);
    let srv = mkdir(&admin, ROOT_INODE.0, "srv").await;
    let web = mkdir(&admin, srv, "web").await;
    let other = mkdir(&admin, srv, "other").await;
    let secret = inode(create(&admin, other, "secret").await);
    let both = inode(create(&admin, web, "both").await);
    let link = Link { inode: both, new_parent: other, new_name: "elsewhere".into() };
    assert_eq!(errno(&admin.change(Op::Link(link)).await.unwrap()), 0);
    let (private, listed) = (mkdir(&admin, web, "private").await, mkdir(&admin, web, "listed").await);
    mkdir(&admin, listed, "in it").await;
    for (inode, mode) in [(private, 0o700), (listed, 0o744)] {
        let set = SetAttr { inode, mode: Some(mode), ..SetAttr::default() };
        assert_eq!(errno(&admin.change(Op::SetAttr(set)).await.unwrap()), 0);
    }
    close(&admin).await;

    // Confined.
    let web_1 = cluster.client("web-1").await;
    let opened = web_1.open(&[]).await.unwrap();
    assert_eq!((opened.root, opened.read_only), (web, false));
    let page = inode(create(&web_1, web, "page").await);
    let inner = mkdir(&web_1, web, "d").await;
    assert_eq!(inode(web_1.read(lookup(inner, "..")).await.unwrap()), web);
    assert_eq!(inode(web_1.read(lookup(web, "..")).await.unwrap()), web, "its root is its own parent");
    for outside in [
        Op::GetAttr(GetAttr { inode: secret }),
        Op::GetAttr(GetAttr { inode: srv }),
        lookup(other, "secret"),
        lookup(ROOT_INODE.0, "srv"),
        Op::Open(Open { inode: secret, flags: 0 }),
        Op::ReadExtents(ReadExtents { inode: secret, offset: 0, length: 10 }),
        Op::ReadDir(ReadDir { inode: other, ..ReadDir::default() }),
    ] {
        assert_eq!(errno(&web_1.read(outside.clone()).await.unwrap()), ESTALE, "{outside:?}");
    }
    let out = Rename {
        parent: web,
        name: "page".into(),
        new_parent: other,
        new_name: "page".into(),
        ..Rename::default()
    };
    assert_eq!(errno(&web_1.change(Op::Rename(out)).await.unwrap()), ESTALE);
    let link = Link { inode: secret, new_parent: web, new_name: "mine".into() };
    assert_eq!(errno(&web_1.change(Op::Link(link)).await.unwrap()), ESTALE);
    // Open without a name any more, within and outside: what it declares open it hasn't reached by that.
    let unlink = |parent, name: &str| Op::Unlink(Unlink { parent, name: name.to_owned().into() });
    assert_eq!(errno(&web_1.change(unlink(web, "page")).await.unwrap()), 0);
    let admin = cluster.client("root-host").await;
    admin.open(&[]).await.unwrap();
    assert_eq!(errno(&admin.change(unlink(other, "secret")).await.unwrap()), 0);
    close(&admin).await;
    web_1.open(&[page, secret]).await.unwrap();
    assert_eq!(errno(&web_1.read(Op::GetAttr(GetAttr { inode: page })).await.unwrap()), 0);
    assert_eq!(errno(&web_1.read(Op::GetAttr(GetAttr { inode: secret })).await.unwrap()), ESTALE);
    // A further name outside isn't told.
    let Reply::Description(told) = web_1.read(Op::Describe(Describe { inode: both })).await.unwrap() else {
        panic!()
    };
    assert_eq!(told.links.len(), 1);

    // Read-only.
    let reader = cluster.client("reader").await;
    assert!(reader.open(&[]).await.unwrap().read_only);
    assert_eq!(inode(reader.read(lookup(web, "both")).await.unwrap()), both);
    assert_eq!(errno(&create(&reader, web, "no").await), EROFS);
    let write = Op::Open(Open { inode: both, flags: 2 });
    assert_eq!(errno(&reader.read(write).await.unwrap()), EROFS);
    assert_eq!(errno(&reader.read(Op::Open(Open { inode: both, flags: 0 })).await.unwrap()), 0);

    // root is nobody, whatever its kernel has checked.
    let guest = cluster.client("guest").await;
    guest.open(&[]).await.unwrap();
    assert_eq!(errno(&create(&guest, web, "no").await), EACCES);
    assert_eq!(errno(&guest.read(Op::Open(Open { inode: both, flags: 0 })).await.unwrap()), EACCES);
    // Nor does it list what others keep to themselves; opening a directory is no question of its own.
    let list = Op::ReadDir(ReadDir { inode: private, plus: true, ..ReadDir::default() });
    assert_eq!(errno(&guest.read(list).await.unwrap()), EACCES);
    let list = |plus| Op::ReadDir(ReadDir { inode: listed, plus, ..ReadDir::default() });
    for plus in [false, true] {
        let Reply::DirPage(page) = guest.read(list(plus)).await.unwrap() else { panic!("it isn't listed") };
        assert!(page.entries.len() == 1 && page.entries[0].attr.is_none(), "{page:?}");
    }

    // Unless a list says more of nobody.
    let list = AclRecord {
        owner: 6,
        mask: Some(4),
        users: vec![AclEntry { id: 65_534, permissions: 6 }],
        ..Default::default()
    };
    let set = SetXattr {
        inode: both,
        name: ACCESS_ACL.into(),
        value: mooseng_namespace::acl::encode(&list),
        ..Default::default()
    };
    assert_eq!(errno(&guest.change(Op::SetXattr(set.clone())).await.unwrap()), EPERM);
    for client in [&guest, &web_1, &reader] {
        close(client).await;
    }
    let admin = cluster.client("root-host").await;
    admin.open(&[]).await.unwrap();
    assert_eq!(errno(&admin.change(Op::SetXattr(set)).await.unwrap()), 0);
    close(&admin).await;
    let guest = cluster.client("guest").await;
    guest.open(&[]).await.unwrap();
    assert_eq!(errno(&guest.read(Op::Open(Open { inode: both, flags: 0 })).await.unwrap()), 0);
    let write = Op::Open(Open { inode: both, flags: 1 });
    assert_eq!(errno(&guest.read(write).await.unwrap()), EACCES, "the mask");

    // Who isn't let in.
    let (code, why) = cluster.client("stranger").await.open(&[]).await.unwrap_err();
    assert_eq!(code, ErrorCode::PermissionDenied);
    assert!(why.contains("stranger") && why.contains("mounts"), "{why}");
    let (code, why) = cluster.client("lost").await.open(&[]).await.unwrap_err();
    assert_eq!(code, ErrorCode::PermissionDenied);
    assert!(why.contains("/nowhere"), "{why}");
}
