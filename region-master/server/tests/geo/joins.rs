//! Volumes that are made at a directory, shown, and deleted: by the calls behind `mooseng volume create` and `delete`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::geo::joins::{create, delete};
use mooseng_master::master::Master;
use mooseng_master::own::{self, Repeat};
use mooseng_namespace::joins;
use mooseng_schema::deleted::ranges as left_of;
use mooseng_store::{RangeLimit, Read, Store, Transaction};
use mooseng_wire::admin::delete_volume_request::Which;
use mooseng_wire::admin::{
    CreateVolumeReply, CreateVolumeRequest, DeleteVolumeReply, DeleteVolumeRequest, Volume, VolumeStage,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, Lookup, Mkdir, Rename, Rmdir};
use mooseng_wire::geo::{NearRead, NearReply, Place};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{CreateVolume, DeleteVolume, JoinVolume, LeaveVolume};
use mooseng_wire::method::Method;
use mooseng_wire::{InodeId, VolumeId};
use tokio::time::Instant;

use super::common::Client;
use super::common::regions::Regions;
use super::common::until;
use super::volumes::{has, is_home, leads, make, unmake};
use super::{change, client, lookup, mkdir, serves_as_home};

const WITHIN: Duration = Duration::from_secs(20);
const EBUSY: u32 = 16;
const EREMOTE: u32 = 66;

fn deadline() -> Instant {
    Instant::now() + WITHIN
}

/// The leader of the root volume's home.
fn at_home(regions: &Regions) -> Arc<Master> {
    leads(regions, "a", ROOT_VOLUME).expect("the home has a leader").clone()
}

fn asked(path: &str, home: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { path: path.to_owned().into(), home: home.into(), ..CreateVolumeRequest::default() }
}

async fn made(regions: &Regions, asked: CreateVolumeRequest) -> Result<CreateVolumeReply, CallError> {
    create(&at_home(regions), asked, deadline()).await
}

async fn deleted(regions: &Regions, which: Which) -> Result<DeleteVolumeReply, CallError> {
    let request = DeleteVolumeRequest { which: Some(which), ..DeleteVolumeRequest::default() };
    delete(&at_home(regions), request, deadline()).await
}

fn path(text: &str) -> Which {
    Which::Path(text.to_owned().into())
}

/// The volumes besides the root, as `mooseng volume list` shows them.
fn listed(regions: &Regions) -> Vec<Volume> {
    let master = at_home(regions);
    let all = master.global.as_ref().unwrap().list_volumes(&master).volumes;
    all.into_iter().filter(|volume| volume.id != 0).collect()
}

async fn answer(mount: &Client, op: Op) -> Reply {
    mount.open(&[]).await.unwrap();
    let is_read = matches!(op, Op::Lookup(_));
    let number = if is_read { 0 } else { mount.number.fetch_add(1, Ordering::SeqCst) + 1 };
    let oldest_unanswered = if is_read { mount.number.load(Ordering::SeqCst) + 1 } else { number };
    let method = if is_read { Method::FsRead } else { Method::FsChange };
    super::asked(mount, method, number, oldest_unanswered, op).await.reply.unwrap().reply.unwrap()
}

async fn errno(mount: &Client, op: Op) -> u32 {
    match answer(mount, op).await {
        Reply::Errno(errno) => errno,
        _ => 0,
    }
}

async fn attr(mount: &Client, name: &str) -> Attr {
    let op = Op::Lookup(Lookup { parent: 1, name: name.to_owned().into() });
    match answer(mount, op).await {
        Reply::Entry(entry) => entry.attr.unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Makes a directory in the root, and answers its id.
pub(super) async fn directory(mount: &Client, name: &str) -> u64 {
    change(mount, mkdir(name)).await;
    attr(mount, name).await.inode
}

pub(super) fn inside(parent: u64) -> Op {
    Op::Mkdir(Mkdir { parent, name: "x".into(), mode: 0o755, alone: false })
}

/// What a replica shows of a name in the root.
async fn shown_near(there: &Client, name: &str, at: Place) -> Attr {
    let request = NearRead { op: Some(lookup(name)), at_least: Some(at), seat: None, volume: 0 };
    let reply: NearReply = there.call(Method::NearRead, &request).await.unwrap();
    match reply.reply.unwrap().reply.unwrap() {
        Reply::Entry(entry) => entry.attr.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_shown_and_deleted() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let (mount, there) = (client(&regions, "a", "a"), client(&regions, "b", "b"));
    let (d, full) = (directory(&mount, "d").await, directory(&mount, "full").await);
    assert_eq!(errno(&mount, inside(full)).await, 0);

    // Nothing is made of what is refused, and it is said what mends it.
    let geo = |regions: &[&str]| CreateVolumeRequest {
        geo: true,
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        ..asked("/d", "b")
    };
    for (wrong, code, says) in [
        (asked("/full", "b"), ErrorCode::InvalidRequest, "isn't empty"),
        (asked("/none", "b"), ErrorCode::NotFound, "mkdir"),
        (asked("/", "b"), ErrorCode::InvalidRequest, "root directory"),
        (asked("d", "b"), ErrorCode::InvalidRequest, "isn't a path"),
        (asked("/d", "nowhere"), ErrorCode::NotFound, "nowhere"),
        (asked("/d", "w"), ErrorCode::InvalidRequest, "witness"),
        (
            geo(&["b"]),
            ErrorCode::InvalidRequest,
            "mooseng volume create /d --home b --durability geo --regions b,a",
        ),
        (geo(&["a", "x"]), ErrorCode::NotFound, "x"),
    ] {
        for plan in [true, false] {
            let error = made(&regions, CreateVolumeRequest { plan, ..wrong.clone() }).await.unwrap_err();
            assert!(error.code() == code && error.message.contains(says), "{wrong:?}: {error:?}");
        }
    }
    let elsewhere = create(leads(&regions, "b", ROOT_VOLUME).unwrap(), asked("/d", "b"), deadline()).await;
    assert_eq!(elsewhere.unwrap_err().code(), ErrorCode::NotHome);
    let plan = made(&regions, CreateVolumeRequest { plan: true, ..asked("/d", "b") }).await.unwrap();
    assert_eq!((plan.volume, listed(&regions)), (None, vec![]));

    let reply = made(&regions, asked("/d/", "b")).await.unwrap();
    let volume = reply.volume.clone().unwrap();
    let second = VolumeId(1);
    assert_eq!((volume.id, volume.home.as_str(), volume.path.as_str()), (1, "b", "/d"));
    assert_eq!((volume.stage(), volume.directory, volume.parent), (VolumeStage::Joined, d, 0));
    assert_eq!(made(&regions, asked("/d", "b")).await.unwrap(), reply, "once more it is the same one");
    let other = made(&regions, asked("/d", "a")).await.unwrap_err();
    assert!(other.message.contains("volume 1 is there"), "{other:?}");
    let below = made(&regions, asked("/d/x", "b")).await.unwrap_err();
    assert!(
        below.code() == ErrorCode::InvalidRequest && below.message.contains("into volume 1"),
        "{below:?}"
    );
    assert_eq!(listed(&regions).len(), 1);

    // Its home has it; the session of the root hears that what is in the directory is elsewhere, and the directory stays where it is.
    let home = is_home(&regions, "b", second, 1).await;
    assert!(records_of(&home, second).await > 0);
    assert_eq!(InodeId(make(&home, second, "s").await.unwrap()).volume(), second);
    let rename =
        Rename { parent: 1, name: "d".into(), new_parent: 1, new_name: "e".into(), ..Rename::default() };
    assert_eq!((attr(&mount, "d").await.joined, attr(&mount, "d").await.inode), (1, d));
    assert_eq!(errno(&mount, inside(d)).await, EREMOTE);
    assert_eq!(errno(&mount, Op::Lookup(Lookup { parent: d, name: "s".into() })).await, EREMOTE);
    assert_eq!(errno(&mount, Op::Rmdir(Rmdir { parent: 1, name: "d".into() })).await, EBUSY);
    assert_eq!(errno(&mount, Op::Rename(rename)).await, EBUSY);
    let at = change(&mount, mkdir("after")).await;
    assert_eq!(shown_near(&there, "d", at).await.joined, 1, "a replica shows the same");

    let root = deleted(&regions, Which::Volume(0)).await.unwrap_err();
    assert_eq!(root.code(), ErrorCode::InvalidRequest, "{root:?}");
    let nothing = deleted(&regions, path("/after")).await.unwrap_err();
    assert_eq!(nothing.code(), ErrorCode::NotFound, "{nothing:?}");
    // Only an empty one is deleted, as its home says.
    let full = deleted(&regions, path("/d")).await.unwrap_err();
    assert!(full.code() == ErrorCode::InvalidRequest && full.message.contains("rm -r"), "{full:?}");
    assert_eq!(listed(&regions)[0].stage(), VolumeStage::Joined, "nothing has begun");
    unmake(&home, second, "s").await;
    let gone = deleted(&regions, path("/d")).await.unwrap();
    assert_eq!((gone.volume, gone.path.as_str()), (1, "/d"));
    until("it is deleted here, too", async || listed(&regions).is_empty()).await;
    assert_eq!(attr(&mount, "d").await.joined, 0);
    // Its deleted files were kept no while, and so isn't what was left of it.
    for region in ["a", "b"] {
        let leader = leads(&regions, region, ROOT_VOLUME).unwrap();
        until("nothing is left of it", async || records_of(leader, second).await == 0).await;
    }
    for which in [path("/d"), Which::Volume(1), Which::Volume(1 << 20)] {
        assert_eq!(deleted(&regions, which).await.unwrap_err().code(), ErrorCode::NotFound);
    }
    assert_eq!(errno(&mount, inside(d)).await, 0, "it is an ordinary directory");
    let at = change(&mount, mkdir("later")).await;
    assert_eq!(shown_near(&there, "d", at).await.joined, 0);
    // A number isn't given twice.
    let third = made(&regions, asked("/after", "a")).await.unwrap().volume.unwrap();
    assert_eq!((third.id, third.home.as_str()), (2, "a"));
    let third = is_home(&regions, "a", VolumeId(2), 1).await;
    make(&third, VolumeId(2), "t").await.unwrap();
    assert!(has(&third, VolumeId(2), "t").await);
    assert_eq!(deleted(&regions, Which::Volume(2)).await.unwrap_err().code(), ErrorCode::InvalidRequest);
    unmake(&third, VolumeId(2), "t").await;
    assert_eq!(deleted(&regions, Which::Volume(2)).await.unwrap().path, "/after");
}

/// How many records a master has of a volume.
async fn records_of(master: &Arc<Master>, volume: VolumeId) -> usize {
    let tx = master.store.begin();
    let mut records = 0;
    for range in left_of(volume) {
        records += tx.get_range(range, RangeLimit::default(), Read::Snapshot).await.unwrap().pairs.len();
    }
    records
}

/// The steps by themselves, as a leader leaves them that dies on the way.
struct Steps<'a>(&'a Regions, u64);

impl Steps<'_> {
    async fn agree(&self, change: Change) -> u32 {
        let master = at_home(self.0);
        let changed = master.global.as_ref().unwrap().change(change, deadline()).await.unwrap();
        until("all know", async || {
            self.0.up().into_iter().all(|i| self.0.global(i).view().version >= changed.version)
        })
        .await;
        changed.volume.unwrap_or_default()
    }

    async fn record(&self, name: &str) -> VolumeId {
        let making =
            CreateVolume { directory: self.1, path: format!("/{name}"), home: "b".into(), ..<_>::default() };
        VolumeId(self.agree(Change::CreateVolume(making)).await as u16)
    }

    async fn name_it(&self, id: VolumeId, named: bool) {
        let (master, directory) = (at_home(self.0), InodeId(self.1));
        let custody = master.serving_of(ROOT_VOLUME).unwrap();
        let done = own::change(&master, ROOT_VOLUME, custody, Repeat::Harmless, deadline(), |tx, touched| {
            Box::pin(async move {
                match named {
                    true => Ok(joins::join(tx, touched, 1, directory, id).await?.unwrap()),
                    false => joins::let_go(tx, touched, 1, directory, id).await,
                }
            })
        });
        assert!(done.await.unwrap(), "it is new");
    }

    async fn leave(&self, id: VolumeId) {
        self.agree(Change::LeaveVolume(LeaveVolume { volume: id.0.into() })).await;
    }

    async fn delete(&self, id: VolumeId) {
        self.agree(Change::DeleteVolume(DeleteVolume { volume: id.0.into() })).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_interrupted_is_gone_on_with() {
    // The region outlives its leader on a slow machine, too: the next one renews what would last a second and a half otherwise.
    let mut regions = Regions::start_of(&[("a", 3), ("b", 1), ("w", 1)], 60_000).await;
    serves_as_home(&regions, "a", 1).await;
    let mount = client(&regions, "a", "a");
    // Made, up to each of its steps; and once joined, but for the directory, which a failover has lost.
    for (n, upto) in
        ["record", "formatted", "named", "another leader", "joined", "unnamed"].into_iter().enumerate()
    {
        let name = format!("d{n}");
        let d = directory(&mount, &name).await;
        let steps = Steps(&regions, d);
        let id = steps.record(&name).await;
        assert_eq!(listed(&regions).pop().unwrap().stage(), VolumeStage::Made);
        if n > 0 {
            is_home(&regions, "b", id, 1).await;
        }
        if (2..5).contains(&n) {
            steps.name_it(id, true).await;
        }
        if n > 3 {
            steps.agree(Change::JoinVolume(JoinVolume { volume: id.0.into() })).await;
        }
        if upto == "another leader" {
            let led = |i: &usize| regions.running[*i].as_ref().is_some_and(|server| server.is_serving());
            let leader = regions.of("a").into_iter().find(led).unwrap();
            regions.kill(leader).await;
            until("another one leads", async || leads(&regions, "a", ROOT_VOLUME).is_some()).await;
        }
        let reply = made(&regions, asked(&format!("/{name}"), "b")).await.unwrap().volume.unwrap();
        assert_eq!((reply.id, reply.stage()), (id.0.into(), VolumeStage::Joined), "{upto}");
        assert_eq!(attr(&mount, &name).await.joined, u32::from(id.0), "{upto}");
        make(&is_home(&regions, "b", id, 1).await, id, "s").await.unwrap();
    }
    // Deleted, up to each of its steps; and altogether, but for the directory.
    for (n, upto) in ["leaving", "let go", "still named"].into_iter().enumerate() {
        let name = format!("d{n}");
        let d = attr(&mount, &name).await;
        let (id, steps) = (VolumeId(d.joined as u16), Steps(&regions, d.inode));
        steps.leave(id).await;
        let again = made(&regions, asked(&format!("/{name}"), "b")).await.unwrap_err();
        assert!(again.message.contains("deleted"), "{again:?}");
        match upto {
            "let go" => steps.name_it(id, false).await,
            "still named" => steps.delete(id).await,
            _ => {}
        }
        if upto == "still named" {
            let again = made(&regions, asked(&format!("/{name}"), "b")).await.unwrap_err();
            assert!(again.message.contains(&format!("mooseng volume delete /{name}")), "{again:?}");
        }
        assert_eq!(
            deleted(&regions, path(&format!("/{name}"))).await.unwrap().volume,
            u32::from(id.0),
            "{upto}"
        );
        assert_eq!(attr(&mount, &name).await.joined, 0, "{upto}");
        assert!(listed(&regions).iter().all(|volume| volume.id != u32::from(id.0)), "{upto}");
    }
    assert_eq!(listed(&regions).len(), 3);
}

/// The home of the volume above makes and deletes them, whichever region that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_below_another_volume() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mount = client(&regions, "a", "a");
    directory(&mount, "d").await;
    let (first, second) = (VolumeId(1), VolumeId(2));
    made(&regions, asked("/d", "b")).await.unwrap();
    let above = is_home(&regions, "b", first, 1).await;
    let s = make(&above, first, "s").await.unwrap();

    let below = |path: &str| CreateVolumeRequest { parent: 1, ..asked(path, "a") };
    let elsewhere = made(&regions, below("/s")).await.unwrap_err();
    assert_eq!(elsewhere.code(), ErrorCode::NotHome, "the volume above is at home in b");
    let missing = create(&above, below("/none"), deadline()).await.unwrap_err();
    assert!(missing.code() == ErrorCode::NotFound && missing.message.contains("/d/none"), "{missing:?}");
    let its_root = create(&above, below("/"), deadline()).await.unwrap_err();
    assert!(its_root.message.contains("/d: it is the root directory of a volume"), "{its_root:?}");
    let volume = create(&above, below("/s"), deadline()).await.unwrap().volume.unwrap();
    assert_eq!((volume.id, volume.path.as_str(), volume.parent, volume.directory), (2, "/d/s", 1, s));
    assert_eq!(create(&above, below("/s"), deadline()).await.unwrap().volume.unwrap().id, 2);
    let home = is_home(&regions, "a", second, 1).await;
    make(&home, second, "x").await.unwrap();
    for region in ["a", "b"] {
        let leader = leads(&regions, region, ROOT_VOLUME).unwrap();
        until("the way is known", async || mooseng_master::tree::at(leader, second).await == "/d/s").await;
    }

    // What has a volume in it isn't deleted, and what is below goes by the home of what is above.
    unmake(&home, second, "x").await;
    let gone = async |master: &Arc<Master>, which: Which, parent: u32| {
        let request = DeleteVolumeRequest { which: Some(which), parent, ..DeleteVolumeRequest::default() };
        delete(master, request, deadline()).await
    };
    let refused = deleted(&regions, path("/d")).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidRequest, "{refused:?}");
    let refused = gone(&above, Which::Volume(1), 1).await.unwrap_err();
    assert!(refused.message.contains("joined in volume 0"), "{refused:?}");
    assert_eq!(gone(&above, path("/s"), 1).await.unwrap().path, "/d/s");
    until("it is deleted here, too", async || listed(&regions).len() == 1).await;
    unmake(&above, first, "s").await;
    assert_eq!(deleted(&regions, path("/d")).await.unwrap().volume, 1);
}

/// Where something is put into the directory before its volume is joined, the volume is given up or joined later, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_used_meanwhile_stays_one() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mount = client(&regions, "a", "a");
    let d = directory(&mount, "d").await;
    let id = Steps(&regions, d).record("d").await;
    assert_eq!(errno(&mount, inside(d)).await, 0);
    let refused = made(&regions, asked("/d", "b")).await.unwrap_err();
    assert!(refused.message.contains("isn't empty"), "{refused:?}");
    assert_eq!(listed(&regions)[0].stage(), VolumeStage::Made);
    assert_eq!(deleted(&regions, path("/d")).await.unwrap().volume, u32::from(id.0));
    let x = Op::Lookup(Lookup { parent: d, name: "x".into() });
    assert_eq!(errno(&mount, x).await, 0);
}
