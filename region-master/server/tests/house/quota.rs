//! Limits of directories and users: set, counted, enforced at the commit, and escrow over a leader's death.

use mooseng_wire::admin::quota_target::Whose as Target;
use mooseng_wire::admin::{ListQuotasRequest, Quota, QuotaState, QuotaTarget, SetQuotaRequest};
use mooseng_wire::fs::account::Whose;
use mooseng_wire::fs::{
    Account, AccountRoom, Escrow, FileKind, Link, Mkdir, Mknod, Rename, Reserve, StatFs, Write, WritePiece,
    write_piece,
};
use mooseng_wire::session::{Renew, Renewed};
use tonic::{Code, Status};

use super::trash::{anew, leader};
use super::*;

const EDQUOT: u32 = 122;
const EXDEV: u32 = 18;

fn path(path: &str) -> Option<QuotaTarget> {
    Some(QuotaTarget { whose: Some(Target::Path(Bytes::copy_from_slice(path.as_bytes()))), volume: 0 })
}

fn user(uid: u32) -> Option<QuotaTarget> {
    Some(QuotaTarget { whose: Some(Target::User(uid)), volume: 0 })
}

async fn set(region: &Region, target: Option<QuotaTarget>, bytes: u64, inodes: u64) -> Result<Quota, Status> {
    let request = SetQuotaRequest { target, bytes_max: Some(bytes), inodes_max: Some(inodes) };
    leader(region).await.set_quota(request).await.map(tonic::Response::into_inner)
}

async fn get(region: &Region, only: Option<QuotaTarget>) -> Result<Quota, Status> {
    let request = ListQuotasRequest { only, ..ListQuotasRequest::default() };
    let reply = leader(region).await.list_quotas(request).await?;
    Ok(reply.into_inner().quotas.remove(0))
}

async fn mkdir(region: &Region, parent: u64, text: &str) -> u64 {
    let mkdir = Mkdir { parent, name: text.to_owned().into(), mode: 0o755, alone: false };
    match region.client.change(Op::Mkdir(mkdir)).await.unwrap() {
        Reply::Entry(entry) => entry.attr.unwrap().inode,
        other => panic!("{other:?}"),
    }
}

fn mknod(parent: u64, text: &str) -> Op {
    let (name, kind) = (text.to_owned().into(), FileKind::Regular.into());
    Op::Mknod(Mknod { parent, name, kind, mode: 0o644, rdev: 0 })
}

async fn made(region: &Region, parent: u64, text: &str) -> u64 {
    match region.client.change(mknod(parent, text)).await.unwrap() {
        Reply::Entry(entry) => entry.attr.unwrap().inode,
        other => panic!("{other:?}"),
    }
}

fn write(inode: u64, offset: u64, length: usize, buffered: bool) -> Op {
    let data = Some(write_piece::Data::Inline(vec![7; length].into()));
    let pieces = vec![WritePiece { offset, data }];
    Op::Write(Write { inode, pieces, written_ns: buffered.then_some(1), ..Write::default() })
}

async fn errno(region: &Region, op: Op) -> u32 {
    match region.client.change(op).await.unwrap() {
        Reply::Errno(errno) => errno,
        _ => 0,
    }
}

fn account(directory: u64) -> Account {
    Account { whose: Some(Whose::Directory(directory)) }
}

async fn reserve(region: &Region, directory: u64, bytes: u64, wish: u64, known: (u64, u64)) -> AccountRoom {
    let held = vec![Escrow { account: Some(account(directory)), granted: known.0, spent: known.1 }];
    let reserve = Reserve { accounts: vec![account(directory)], bytes, wish, held };
    match region.client.read(Op::Reserve(reserve)).await.unwrap() {
        Reply::Reserved(mut reserved) => reserved.accounts.remove(0),
        other => panic!("{other:?}"),
    }
}

async fn enforced(region: &Region, text: &str) -> Quota {
    until("the directory is counted", async || {
        // What isn't marked yet counts for none.
        get(region, path(text)).await.is_ok_and(|quota| quota.state() == QuotaState::Enforced)
    })
    .await;
    get(region, path(text)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_not_empty_is_counted_and_limited_over_a_leaders_death() {
    let mut region = Region::start(3, 2, |_| {}).await;
    region.file("elsewhere", &pattern(50_000, 1)).await;
    let dir = mkdir(&region, ROOT_INODE.0, "dir").await;
    let inner = mkdir(&region, dir, "inner").await;
    for n in 0..70 {
        made(&region, inner, &format!("f{n}")).await;
    }
    let file = made(&region, inner, "file").await;
    assert_eq!(errno(&region, write(file, 0, 3_000, false)).await, 0);
    anew(&mut region).await;
    assert_eq!(set(&region, path("/dir"), 10_000, 75).await.unwrap().state(), QuotaState::Counting);
    let counted = enforced(&region, "/dir/inner").await;
    assert_eq!((counted.bytes, counted.inodes, &counted.path[..]), (3_000, 73, &b"/dir"[..]));
    fsck::finds_nothing(&region).await;

    // Who may ask, and what is refused.
    let refusal = set(&region, path("/dir/inner"), 1, 1).await.unwrap_err();
    assert!(refusal.message().contains("aren't nested"), "{refusal}");
    assert_eq!(set(&region, path("/none"), 1, 1).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(set(&region, path("/"), 1, 1).await.unwrap_err().code(), Code::InvalidArgument);

    for limit in [0, 1] {
        made(&region, dir, &format!("g{limit}")).await;
    }
    assert_eq!(errno(&region, mknod(dir, "one too many")).await, EDQUOT);
    assert_eq!(errno(&region, write(file, 0, 3_000, false)).await, 0, "in place");
    assert_eq!(errno(&region, write(file, 3_000, 7_001, false)).await, EDQUOT);
    let link = Link { inode: file, new_parent: ROOT_INODE.0, new_name: "out".into() };
    assert_eq!(errno(&region, Op::Link(link)).await, EXDEV);
    let rename = Rename {
        parent: dir,
        name: "inner".into(),
        new_parent: ROOT_INODE.0,
        new_name: "out".into(),
        ..Rename::default()
    };
    assert_eq!(errno(&region, Op::Rename(rename)).await, EXDEV);
    match region.client.read(Op::StatFs(StatFs { inode: inner })).await.unwrap() {
        Reply::StatFs(stat) => assert_eq!((stat.files, stat.files_free), (75, 0)),
        other => panic!("{other:?}"),
    }

    // Escrow, which the next leader hears of before it answers anybody.
    let room = reserve(&region, dir, 5_000, 5_000, (0, 0)).await;
    assert_eq!((room.limited, room.granted, room.enough), (true, 5_000, true));
    assert_eq!(reserve(&region, dir, 5_000, 5_000, (0, 0)).await.granted, 5_000, "the answer was lost");
    region.cluster.kill(region.cluster.leader().await).await;
    region.client.escrow = vec![Escrow { account: Some(account(dir)), granted: 5_000, spent: 0 }];
    region.client.open(&[]).await.unwrap();
    // What isn't covered has what is left beside it.
    assert!(!reserve(&region, dir, 2_001, 0, (5_000, 0)).await.enough);
    assert_eq!(errno(&region, write(file, 3_000, 5_000, true)).await, 0, "it was buffered, and covered");
    let renew = region.client.session().await;
    let spent = vec![Escrow { account: Some(account(dir)), granted: 5_000, spent: 5_000 }];
    let renew = Renew { escrow: spent, ..renew };
    let renewed: Renewed = region.client.call(Method::Renew, &renew).await.unwrap();
    assert!(renewed.quotas > 0);
    assert_eq!(errno(&region, write(file, 8_000, 2_001, false)).await, EDQUOT);
    assert_eq!(errno(&region, write(file, 8_000, 2_000, false)).await, 0);
    assert_eq!(get(&region, path("/dir")).await.unwrap().bytes, 10_000);

    // Freeing mends it, and clearing ends it.
    let unlink = Unlink { parent: inner, name: "file".into() };
    assert_eq!(errno(&region, Op::Unlink(unlink)).await, 0);
    until("it counts no more", async || get(&region, path("/dir")).await.unwrap().bytes == 0).await;
    region.client.escrow.clear();
    anew(&mut region).await;
    leader(&region).await.clear_quota(path("/dir").unwrap()).await.unwrap();
    until("the quota is gone", async || get(&region, path("/dir")).await.is_err()).await;
    made(&region, dir, "one too many").await;
    fsck::finds_nothing(&region).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_limit_holds_at_once() {
    let region = Region::start(1, 2, |_| {}).await;
    region.file("elsewhere", &pattern(50_000, 1)).await;
    let file = made(&region, ROOT_INODE.0, "file").await;
    assert_eq!(errno(&region, write(file, 0, 5_000, false)).await, 0);
    let before = get(&region, user(0)).await.unwrap();
    assert_eq!((before.state(), before.bytes), (QuotaState::None, 55_000));
    let inodes = before.inodes as u64 + 1;
    assert_eq!(set(&region, user(0), 56_000, inodes).await.unwrap().state(), QuotaState::Enforced);
    assert_eq!(errno(&region, write(file, 5_000, 1_001, false)).await, EDQUOT);
    assert_eq!(errno(&region, write(file, 5_000, 1_000, false)).await, 0);
    made(&region, ROOT_INODE.0, "second").await;
    assert_eq!(errno(&region, mknod(ROOT_INODE.0, "third")).await, EDQUOT);
    assert_eq!(region.metric("mooseng_master_quota_refusals_total").await, 2);
    fsck::finds_nothing(&region).await;
}
