//! Storage classes: data lies where its class says, also when what that says changes.

use std::collections::BTreeMap;

use mooseng_wire::admin::assign_class_request::Which;
use mooseng_wire::admin::{
    AssignClassReply, AssignClassRequest, ClassLabels, ClassOfRequest, CreateClassRequest,
    DeleteClassRequest, ListClassesRequest, SetClassRequest, StorageClass,
};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::Mkdir;
use tonic::{Code, Status};

use super::rewrite::content;
use super::trash::{anew, leader};
use super::*;

fn media(media: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("media".to_owned(), media.to_owned())])
}

fn names(these: &[usize]) -> BTreeSet<String> {
    these.iter().map(|i| name(*i)).collect()
}

pub async fn create(region: &Region, text: &str, copies: u32, on: &str) -> Result<StorageClass, Status> {
    let (name, labels) = (text.to_owned(), media(on));
    let request = CreateClassRequest { name, copies, labels, ..CreateClassRequest::default() };
    leader(region).await.create_class(request).await.map(tonic::Response::into_inner)
}

async fn set(region: &Region, text: &str, copies: u32, on: &str) {
    let labels = Some(ClassLabels { labels: media(on) });
    let request = SetClassRequest { name: text.to_owned(), copies: Some(copies), labels, ..<_>::default() };
    leader(region).await.set_class(request).await.unwrap();
}

pub async fn assign(region: &Region, name: &str, path: &str) -> Result<AssignClassReply, Status> {
    let which = Some(Which::Path(Bytes::copy_from_slice(path.as_bytes())));
    let request = AssignClassRequest { name: name.to_owned(), which, ..<_>::default() };
    leader(region).await.assign_class(request).await.map(tonic::Response::into_inner)
}

async fn of(region: &Region, path: &str) -> StorageClass {
    let request = ClassOfRequest { path: Bytes::copy_from_slice(path.as_bytes()), volume: 0 };
    leader(region).await.class_of(request).await.unwrap().into_inner().class.unwrap()
}

async fn delete(region: &Region, name: &str) -> Result<(), Status> {
    leader(region)
        .await
        .delete_class(DeleteClassRequest { name: name.to_owned(), ..<_>::default() })
        .await
        .map(drop)
}

async fn mkdir(region: &Region, text: &str) -> u64 {
    let mkdir = Mkdir { parent: ROOT_INODE.0, name: text.to_owned().into(), mode: 0o755, alone: false };
    match region.client.change(Op::Mkdir(mkdir)).await.unwrap() {
        Reply::Entry(entry) => entry.attr.unwrap().inode,
        other => panic!("{other:?}"),
    }
}

async fn file_in(region: &Region, parent: u64, text: &str, bytes: &[u8]) -> u64 {
    let name = text.to_owned().into();
    let create = Create { parent, name, mode: 0o644, exclusive: true, truncate: false };
    let Reply::Created(created) = region.client.change(Op::Create(create)).await.unwrap() else { panic!() };
    let inode = created.attr.unwrap().inode;
    region.client.read(Op::Release(Release { inode })).await.unwrap();
    let place = region.append(inode, bytes).await;
    let seal = SealChunk { chunk: place.chunk, acknowledged: bytes.len() as u64, failed: vec![] };
    region.client.change(Op::SealChunk(seal)).await.unwrap();
    inode
}

async fn lie_on(region: &Region, inodes: &[u64], on: &[usize]) {
    until(&format!("all copies are on {on:?} and nowhere else"), async || {
        for inode in inodes {
            if region.names(*inode).await != names(on) {
                return false;
            }
        }
        true
    })
    .await;
}

async fn has_finding(region: &Region, code: &str, subject: &str) -> bool {
    region.status().await.findings.iter().any(|f| f.code == code && f.subject.contains(subject))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_lies_where_its_class_says() {
    let mut region = Region::start(1, 0, |config| config.house.destage_after_ms = 500).await;
    for i in 0..4 {
        let on = if i < 2 { "ssd" } else { "hdd" };
        region.labels.insert(i, format!("media = \"{on}\""));
        region.add().await;
    }
    let bytes = pattern(300_000, 1);
    let dir = mkdir(&region, "dir").await;
    let before = file_in(&region, dir, "before", &bytes).await;
    let fast = create(&region, "fast", 2, "ssd").await.unwrap();
    assert_eq!((fast.id, fast.copies, fast.min_copies, fast.chunkservers), (1, 2, 2, 2));
    assert_eq!(create(&region, "fast", 2, "ssd").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(assign(&region, "none", "/dir").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(assign(&region, "fast", "/none").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(assign(&region, "fast", "/dir").await.unwrap().changed, 1);

    // What is made there inherits it, what was there doesn't; each lies accordingly at once.
    let mut inodes = vec![];
    for n in 0..4 {
        inodes.push(file_in(&region, dir, &format!("f{n}"), &bytes).await);
        assert_eq!(region.names(inodes[n]).await, names(&[0, 1]));
    }
    assert_eq!(
        (of(&region, "/dir/f0").await.name, of(&region, "/dir/before").await.name),
        ("fast".into(), "default".into())
    );
    // Also what goes through the metadata first, and what the next leader places.
    let staged = Write {
        inode: inodes[0],
        pieces: vec![WritePiece { offset: 200_000, data: Some(Data::Inline(vec![9; 4096].into())) }],
        ..Write::default()
    };
    region.client.change(Op::Write(staged)).await.unwrap();
    until("it is in a chunk", async || region.metric("mooseng_master_destaged_bytes_total").await == 4096)
        .await;
    region.cluster.kill(0).await;
    region.cluster.run(0).await;
    region.client.open(&[]).await.unwrap();
    until("chunkservers are known", async || {
        region.status().await.chunkservers.iter().filter(|c| c.alive).count() == 4
    })
    .await;
    let open = file_in(&region, dir, "f4", &bytes).await;
    let place = region.append(open, &bytes).await;
    let members: BTreeSet<String> = place.locations.iter().map(|l| l.chunkserver.clone()).collect();
    assert_eq!(members, names(&[0, 1]));
    inodes.push(open);

    // One more copy than there are chunkservers for it: those that there are have one, and status says so.
    set(&region, "fast", 3, "ssd").await;
    until("status says what is lacking", async || has_finding(&region, "CLASS_SHORT", "fast").await).await;
    until("chunks lack a copy", async || region.status().await.chunks_endangered >= 5).await;
    lie_on(&region, &inodes, &[0, 1]).await;
    region.stop(2).await;
    region.labels.insert(2, "media = \"ssd\"".into());
    region.run(2).await;
    // The one that is still appended to keeps its members.
    lie_on(&region, &inodes[..4], &[0, 1, 2]).await;
    until("nothing else lacks a copy", async || region.status().await.chunks_endangered == 1).await;

    // Another label: where too few have it everything stays where it is, and new data is refused.
    set(&region, "fast", 2, "hdd").await;
    until("status counts them", async || {
        let status = region.status().await;
        status.chunks_misplaced >= 6 && has_finding(&region, "CHUNKS_MISPLACED", "chunks").await
    })
    .await;
    let (code, text) = region
        .client
        .change(Op::AllocateChunk(AllocateChunk { inode: open, exclude: vec![] }))
        .await
        .unwrap_err();
    assert_eq!(code, ErrorCode::NoSpace);
    assert!(text.contains("class \"fast\"") && text.contains("media=hdd"), "{text}");
    for inode in &inodes {
        assert!(region.names(*inode).await.len() >= 2);
    }
    region.stop(1).await;
    region.labels.insert(1, "media = \"hdd\"".into());
    region.run(1).await;
    lie_on(&region, &inodes, &[1, 3]).await;
    until("nothing is out of place", async || region.status().await.chunks_misplaced == 0).await;
    assert!(!has_finding(&region, "CLASS_SHORT", "fast").await);

    // A file that is assigned a class is moved.
    assign(&region, "fast", "/dir/before").await.unwrap();
    inodes.push(before);
    lie_on(&region, &inodes, &[1, 3]).await;
    for inode in &inodes[1..4] {
        region.check(*inode, &bytes).await;
    }
    let refusal = delete(&region, "fast").await.unwrap_err();
    assert!(refusal.message().contains("is in use: 7 files and directories"), "{refusal}");
    anew(&mut region).await;
    let mut expected = bytes.clone();
    expected[200_000..204_096].fill(9);
    assert!(content(&region, inodes[0]).await == expected);
    fsck::finds_nothing(&region).await;

    // A tree at a time; then nothing has the class any more, and chunks follow.
    assert_eq!(assign(&region, "default", "/dir").await.unwrap().changed, 1);
    let request = AssignClassRequest {
        name: "default".into(),
        which: Some(Which::Inode(dir)),
        entries: true,
        ..AssignClassRequest::default()
    };
    let page = leader(&region).await.assign_class(request).await.unwrap().into_inner();
    assert_eq!((page.changed, page.next, page.directories), (6, None, vec![]));
    delete(&region, "fast").await.unwrap();
    let classes =
        leader(&region).await.list_classes(ListClassesRequest::default()).await.unwrap().into_inner();
    assert_eq!(classes.classes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["default"]);
    until("they have two copies", async || region.status().await.chunks_endangered == 0).await;
    fsck::finds_nothing(&region).await;
}
