//! What a replica's leader promises to readers of its region, and takes back.

use std::collections::BTreeSet;
use std::time::Duration;

use mooseng_wire::call::ErrorCode;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsRequest, GetAttr, ReadDir, Unlink};
use mooseng_wire::geo::{NearNews, NearRead, NearRenew, NearRenewed, NearReply, NearSeat, Place};
use mooseng_wire::method::Method;
use mooseng_wire::{InodeId, LOCAL_ID_BITS};
use prost::Message;

use super::common::Client;
use super::common::regions::Regions;
use super::common::{unlapsed, until};
use super::{Caller, Rename, Rmdir, caught_up, change, client, lookup, mkdir, serves_as_home, serving};

/// A reader's side of it.
pub(super) struct Reader {
    pub client: Client,
    volume: u32,
    pub session: u64,
    have: u64,
    at: (u64, u64),
    pub held: BTreeSet<Fact>,
}

fn entry(name: &str) -> Fact {
    Fact::Entry(InodeId(1), name.as_bytes().to_vec().into())
}

fn request(op: Op) -> FsRequest {
    FsRequest { caller: Some(Caller { kernel_checked: true, ..Caller::default() }), op: Some(op) }
}

impl Reader {
    async fn open(client: Client) -> Self {
        Self::open_of(client, 0).await
    }

    /// A reader of a volume.
    pub async fn open_of(client: Client, volume: u32) -> Self {
        let renew = NearRenew { volume, ..NearRenew::default() };
        let renewed: NearRenewed = client.call(Method::NearRenew, &renew).await.unwrap();
        assert_eq!(renewed.session >> LOCAL_ID_BITS, u64::from(volume), "{renewed:?}");
        assert!(renewed.session != 0 && renewed.lease_ms > 0, "{renewed:?}");
        let news = renewed.news.unwrap();
        let mut reader =
            Self { client, volume, session: renewed.session, have: 0, at: (0, 0), held: BTreeSet::new() };
        reader.take(&news);
        reader
    }

    /// Answers what it gave up.
    fn take(&mut self, news: &NearNews) -> Vec<Fact> {
        assert_eq!(news.session, self.session);
        let mut given_up = Vec::new();
        let have = self.have;
        for recall in news.recalls.iter().filter(|recall| recall.number > have) {
            assert_eq!(recall.number, self.have + 1, "none is left out");
            self.have = recall.number;
            let fact = Fact::from_message(recall.fact.as_ref().unwrap()).unwrap();
            self.held.remove(&fact);
            given_up.push(fact);
        }
        assert!(self.have >= news.upto);
        let at = news.at.unwrap();
        self.at = self.at.max((at.epoch, at.version));
        given_up
    }

    fn seat(&self) -> NearSeat {
        NearSeat { session: self.session, have: self.have }
    }

    /// Reads, and answers what came before: what it gave up. None where the leader doesn't know it.
    pub async fn read(&mut self, op: FsRequest, at_least: Place) -> (Reply, Option<Vec<Fact>>) {
        let (at_least, seat) = (Some(at_least), Some(self.seat()));
        let read = NearRead { op: Some(op), at_least, seat, volume: self.volume };
        let reply: NearReply = self.client.call(Method::NearRead, &read).await.unwrap();
        let given_up = reply.news.as_ref().map(|news| self.take(news));
        assert!(given_up.is_some() || reply.granted.is_empty());
        self.held.extend(reply.granted.iter().filter_map(Fact::from_message));
        (reply.reply.unwrap().reply.unwrap(), given_up)
    }

    /// The same of one that the leader knows still: none where its lease has run out, as on a busy machine.
    pub async fn known(&mut self, op: FsRequest, at_least: Place) -> Option<(Reply, Vec<Fact>)> {
        let (reply, given_up) = self.read(op, at_least).await;
        Some((reply, given_up?))
    }

    async fn renewed(&self) -> Option<NearNews> {
        let renew = NearRenew { session: self.session, have: self.have, at_least: None, volume: 0 };
        let renewed: NearRenewed = self.client.call(Method::NearRenew, &renew).await.unwrap();
        // Another session is the beginning of a new one.
        renewed.news.filter(|_| renewed.session == self.session)
    }

    /// Renews its lease, and answers what it gave up. None where that has run out.
    pub async fn renew(&mut self) -> Option<Vec<Fact>> {
        let news = self.renewed().await?;
        Some(self.take(&news))
    }

    /// Renews its lease, and hears nothing of what comes with it.
    pub async fn keep(&self) -> Option<()> {
        self.renewed().await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_promised_is_taken_back_before_anything_later_is_answered() {
    unlapsed(it_is_taken_back).await;
}

async fn it_is_taken_back() -> Option<()> {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let home = client(&regions, "b", "a");
    for name in ["x", "y", "z"] {
        change(&home, mkdir(name)).await;
    }
    caught_up(&regions, "b").await;
    let mut reader = Reader::open(client(&regions, "b", "b")).await;
    let mut notices = reader.client.link().notices();
    let start = Place::default();
    // Names, that there is none, attributes, a list.
    let Reply::Entry(x) = reader.known(lookup("x"), start).await?.0 else { panic!("it is there") };
    let x = InodeId(x.attr.unwrap().inode);
    reader.known(lookup("none"), start).await?;
    reader.known(request(Op::GetAttr(GetAttr { inode: 1 })), start).await?;
    let list = ReadDir { inode: 1, cookie: 0, entries_max: 100, plus: true };
    let Reply::DirPage(page) = reader.known(request(Op::ReadDir(list)), start).await?.0 else {
        panic!("a list")
    };
    let inodes: BTreeSet<Fact> = page.entries.iter().map(|entry| Fact::Inode(InodeId(entry.inode))).collect();
    let (root, all) = (Fact::Inode(InodeId(1)), Fact::Directory(InodeId(1)));
    assert_eq!(inodes.len(), 3);
    let expected = inodes.iter().cloned().chain([root.clone(), all.clone(), entry("x"), entry("none")]);
    assert_eq!(reader.held, expected.collect());

    // A name that was absent: told by a notice, and kept until the reader says that it has it.
    reader.keep().await?;
    let at = change(&home, mkdir("none")).await;
    let news = loop {
        let Ok(notice) = tokio::time::timeout(super::WITHIN, notices.recv()).await else {
            reader.keep().await?;
            panic!("it isn't told");
        };
        let (method, body) = notice.unwrap();
        assert_eq!(method, Method::NearNotice);
        let news = NearNews::decode(body).unwrap();
        let place = news.at.unwrap();
        if (place.epoch, place.version) >= (at.epoch, at.version) {
            break news;
        }
    };
    let told: BTreeSet<Fact> =
        news.recalls.iter().filter_map(|r| Fact::from_message(r.fact.as_ref()?)).collect();
    assert_eq!(told, BTreeSet::from([root.clone(), entry("none")]), "and nothing else");
    // Without having heard of it: it comes with the next answer, before it.
    let (reply, given_up) = reader.known(lookup("none"), at).await?;
    assert!(matches!(reply, Reply::Entry(_)));
    let given_up: BTreeSet<Fact> = given_up.into_iter().collect();
    assert_eq!(given_up, told);
    assert!(
        reader.held.contains(&entry("none"))
            && reader.held.contains(&all)
            && reader.held.contains(&entry("x"))
    );
    assert!(reader.at >= (at.epoch, at.version));

    // Names that go: of what was looked up, and of what is in the list.
    reader.keep().await?;
    let rename = Rename {
        parent: 1,
        name: b"x".to_vec().into(),
        new_parent: 1,
        new_name: b"w".to_vec().into(),
        ..Rename::default()
    };
    let at = change(&home, Op::Rename(rename)).await;
    let gone = change(&home, Op::Rmdir(Rmdir { parent: 1, name: b"y".to_vec().into() })).await;
    let (reply, given_up) = reader.known(lookup("x"), gone).await?;
    assert!(matches!(reply, Reply::Errno(2)) && at.version < gone.version);
    let given_up: BTreeSet<Fact> = given_up.into_iter().collect();
    for fact in [entry("x"), entry("w"), entry("y"), Fact::Inode(x)] {
        assert!(given_up.contains(&fact), "{fact:?} of {given_up:?}");
    }
    assert!(!given_up.contains(&entry("z")) && !given_up.contains(&all));
    assert!(reader.renew().await?.is_empty());

    // Nobody else reads under that session.
    let mut other = Reader { client: client(&regions, "b", "b"), held: BTreeSet::new(), ..reader };
    let network =
        mooseng_transport::PlainNetwork::new(super::identity_of("b", mooseng_wire::Role::Client, "o"));
    other.client = Client::over(std::sync::Arc::new(network), &super::addresses(&regions, "b"));
    assert_eq!(other.read(lookup("z"), start).await.1, None);
    // At home there is no such session, and a change isn't answered by a replica.
    let at_home = client(&regions, "a", "a");
    let refused = at_home
        .link()
        .request::<_, NearRenewed>(Method::NearRenew, &NearRenew::default(), super::WITHIN)
        .await;
    match refused {
        Err(super::CallFailure::Remote(error)) => assert_eq!(error.code(), ErrorCode::Unavailable),
        other => panic!("{other:?}"),
    }
    let unlink = request(Op::Unlink(Unlink { parent: 1, name: b"z".to_vec().into() }));
    let read = NearRead { op: Some(unlink), at_least: None, seat: Some(other.seat()), volume: 0 };
    let refused = other.client.call::<_, NearReply>(Method::NearRead, &read).await.unwrap_err();
    assert_eq!(refused.0, ErrorCode::InvalidRequest);
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_promised_ends_where_it_is_led_by_another_or_becomes_the_home() {
    unlapsed(it_ends).await;
}

async fn it_ends() -> Option<()> {
    let mut regions = Regions::start(&[("a", 1), ("b", 3), ("w", 1)]).await;
    let home = client(&regions, "b", "a");
    change(&home, mkdir("x")).await;
    caught_up(&regions, "b").await;
    let mut reader = Reader::open(client(&regions, "b", "b")).await;
    reader.known(lookup("x"), Place::default()).await?;
    assert!(reader.held.contains(&entry("x")));
    let counts = serving(&regions, "b").unwrap().geo.near_counts();
    reader.keep().await?;
    assert_eq!(counts, (1, 2));
    let leader = regions.of("b").into_iter().find(|i| regions.running[*i].as_ref().unwrap().is_serving());
    regions.kill(leader.unwrap()).await;
    until("another leads", async || serving(&regions, "b").is_some()).await;
    caught_up(&regions, "b").await;
    assert_eq!(reader.read(lookup("x"), Place::default()).await.1, None, "it knows nobody");
    let mut again = Reader::open(client(&regions, "b", "b")).await;
    assert_ne!(again.session, reader.session);
    again.known(lookup("x"), Place::default()).await?;
    assert!(again.held.contains(&entry("x")));
    regions.run(leader.unwrap()).await;
    regions.kill_region("a").await;
    serves_as_home(&regions, "b", 2).await;
    let at_home = serving(&regions, "b").unwrap().clone();
    assert_eq!(at_home.geo.near_counts(), (0, 0));
    Some(())
}

/// A reader that says nothing any more is forgotten, and the log goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_the_log_waits_for_no_reader() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let home = client(&regions, "b", "a");
    change(&home, mkdir("x")).await;
    caught_up(&regions, "b").await;
    let mut reader = Reader::open(client(&regions, "b", "b")).await;
    reader.read(lookup("n"), Place::default()).await;
    let begun = tokio::time::Instant::now();
    let at = change(&home, mkdir("n")).await;
    let other = client(&regions, "b", "b");
    assert!(super::near(&other, "n", &at).await.is_some());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let read = NearRead { op: Some(lookup("n")), at_least: None, seat: None, volume: 0 };
    let read: NearReply = other.call(Method::NearRead, &read).await.unwrap();
    let behind = Duration::from_micros(read.behind_us.expect("the home was heard"));
    assert!(behind > Duration::ZERO && behind < Duration::from_secs(2), "{behind:?}");
    let replica = serving(&regions, "b").unwrap().clone();
    until("the reader is forgotten", async || replica.geo.near_counts().0 == 0).await;
}
