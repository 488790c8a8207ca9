//! Telling the region of what was made alone: in order, many at a time, one request under way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FsReply, Tell, Told};

use crate::error::FsError;
use crate::facts::Facts;
use crate::fs::{FileSystem, Inner, daemon};
use crate::journal::{Change, Journal};
use crate::opens::Opens;
use crate::recalls::Recalls;
use crate::region::Region;

/// What telling needs of a mount, without keeping it alive.
struct Teller {
    region: Arc<Region>,
    journal: Arc<Journal>,
    facts: Arc<Facts>,
    opens: Arc<Opens>,
    recalls: Arc<Recalls>,
    mount: Weak<Inner>,
}

/// Tells as long as the mount lives.
pub(crate) async fn keep(mount: Weak<Inner>) {
    loop {
        let Some(journal) = mount.upgrade().map(|inner| inner.session.journal.clone()) else { return };
        if tokio::time::timeout(std::time::Duration::from_secs(1), journal.wait_for_work()).await.is_err() {
            continue;
        }
        let Some(inner) = mount.upgrade() else { return };
        let teller = Teller {
            region: inner.region.clone(),
            journal,
            facts: inner.facts.clone(),
            opens: inner.opens.clone(),
            recalls: inner.recalls.clone(),
            mount: mount.clone(),
        };
        drop(inner);
        teller.tell_next().await;
    }
}

/// What became of one request.
enum Outcome {
    Told(Told),
    /// As a whole; fewer at a time may be told.
    Refused(i32),
    /// The life in which all of it was made is over.
    Over(FsError),
}

impl Teller {
    async fn tell_next(&self) {
        let (life, batch) = self.journal.take(|change| change.made != 0 && self.opens.tell_open(change.made));
        let mut parts = VecDeque::from([batch]);
        while let Some(mut part) = parts.pop_front() {
            if part.is_empty() {
                continue;
            }
            match self.tell(life, &part).await {
                Outcome::Told(told) => self.digest(part, &told.replies).await,
                Outcome::Refused(_) if part.len() > 1 => {
                    let behind = part.split_off(part.len() / 2);
                    parts.push_front(behind);
                    parts.push_front(part);
                }
                Outcome::Refused(errno) => {
                    let reply = FsReply { reply: Some(Reply::Errno(errno.unsigned_abs())) };
                    self.digest(part, &[reply]).await;
                }
                Outcome::Over(error) => {
                    let rest = part.into_iter().chain(parts.drain(..).flatten());
                    let all: Vec<Change> = rest.chain(self.journal.take_all()).collect();
                    return self.lose(all, &error).await;
                }
            }
        }
    }

    async fn tell(&self, life: (u64, u64), part: &[Change]) -> Outcome {
        let tell = Tell { changes: part.iter().map(Change::to_wire).collect() };
        self.journal.tells();
        match self.region.tell(&daemon(), Op::Tell(tell), life).await {
            Ok(Reply::Told(told)) if told.replies.len() == part.len() => Outcome::Told(told),
            Ok(Reply::Errno(errno)) => Outcome::Refused(i32::try_from(errno).unwrap_or(libc::EIO)),
            Ok(_) => Outcome::Refused(libc::EIO),
            Err(
                error @ (FsError::Lapsed
                | FsError::SessionLost
                | FsError::MadeAnew(_)
                | FsError::NoVolume(_)
                | FsError::Closed
                | FsError::Unanswered { .. }),
            ) => Outcome::Over(error),
            Err(error) => Outcome::Refused(error.errno()),
        }
    }

    /// The region has answered each change of a part.
    async fn digest(&self, mut part: Vec<Change>, replies: &[FsReply]) {
        let errno = |at: usize| match replies.get(at).and_then(|reply| reply.reply.as_ref()) {
            Some(Reply::Errno(errno)) => Some(i32::try_from(*errno).unwrap_or(libc::EIO)),
            Some(_) => None,
            None => Some(libc::EIO),
        };
        // Whoever waits for the answer himself decides what it means; nobody has been told otherwise yet.
        let lost = |change: &Change, at: usize| errno(at).filter(|_| change.reply.is_none());
        let mut refused = false;
        for (at, change) in part.iter().enumerate() {
            if let Some(errno) = lost(change, at) {
                refused = true;
                self.report(change, errno);
            }
        }
        let looks = self.compare(&part, replies);
        let waiting: Vec<_> = part.iter_mut().map(|change| change.reply.take()).collect();
        let is_waited: Vec<bool> = waiting.iter().map(Option::is_some).collect();
        self.close_told(&part, &errno);
        self.journal.resolve(&part, |at| errno(at).filter(|_| !is_waited[at]));
        for (reply, waiting) in replies.iter().zip(waiting) {
            if let Some(waiting) = waiting {
                let reply = reply.reply.clone();
                let answer = reply.ok_or_else(|| FsError::Malformed("an empty answer to a change".into()));
                // Who isn't there any more needs none.
                let _ = waiting.send(answer);
            }
        }
        if refused {
            // What was shown since then rests on what never was.
            self.region.session.renounce();
        }
        for inode in looks.into_iter().chain(self.facts.take_unconfirmed()) {
            self.recalls.forget(inode).await;
        }
    }

    /// Shows what the region has where that isn't what was shown. Answers the inodes that whoever shows them must look at anew.
    fn compare(&self, part: &[Change], replies: &[FsReply]) -> Vec<u64> {
        let mut newest: BTreeMap<u64, Option<(Attr, bool)>> = BTreeMap::new();
        for (change, reply) in part.iter().zip(replies) {
            let told = match &reply.reply {
                Some(Reply::Created(made)) => made.attr,
                Some(Reply::Entry(entry)) => entry.attr,
                Some(Reply::Written(written)) => written.attr,
                _ => None,
            };
            let written = matches!(reply.reply, Some(Reply::Written(_)));
            match told {
                Some(attr) => drop(newest.insert(attr.inode, Some((attr, written)))),
                // Renamed or removed: what was written stands, the rest is the next answer's to say.
                None => change.about.iter().for_each(|inode| {
                    if let Some(Some((_, written))) = newest.get(inode)
                        && !written
                    {
                        newest.insert(*inode, None);
                    }
                }),
            }
        }
        let mut looks = Vec::new();
        for (attr, written) in newest.into_values().flatten() {
            let is_directory = attr.kind() == mooseng_wire::fs::FileKind::Directory;
            let later = self.journal.is_about_more(attr.inode, part);
            if is_directory || (later && !written) {
                continue;
            }
            if self.facts.correct(&attr, later) && !written {
                self.journal.corrected();
                looks.push(attr.inode);
            }
        }
        looks
    }

    /// A change that was answered is lost: the next fsync of each handle that it concerns says so.
    fn report(&self, change: &Change, errno: i32) {
        for inode in &change.about {
            if let Some(open) = self.opens.get(*inode) {
                open.failed(errno);
            }
        }
    }

    /// Files that were told with an open: the region holds those that were made.
    fn close_told(&self, part: &[Change], errno: &dyn Fn(usize) -> Option<i32>) {
        for (at, change) in part.iter().enumerate().filter(|(_, change)| change.open) {
            if let (None, Some(open)) = (errno(at), self.opens.get(change.made)) {
                open.held();
            }
            if self.opens.remove(change.made)
                && let Some(inner) = self.mount.upgrade()
            {
                let (fs, inode) = (FileSystem { inner }, change.made);
                self.region.spawn(async move { fs.released(inode).await });
            }
        }
    }

    async fn lose(&self, changes: Vec<Change>, error: &FsError) {
        let mut changes = changes;
        let waiting: Vec<_> = changes.iter_mut().map(|change| change.reply.take()).collect();
        let lost = waiting.iter().filter(|waiting| waiting.is_none()).count();
        for (change, waiting) in changes.iter().zip(&waiting) {
            if waiting.is_none() {
                self.report(change, libc::EIO);
            }
        }
        if lost > 0 {
            tracing::error!(
                changes = lost,
                %error,
                "changes of names that weren't told to the region yet are lost with the session's lease; the next fsync of each open file and directory that they concern reports it"
            );
        }
        self.close_told(&changes, &|_| Some(libc::EIO));
        let waited: Vec<bool> = waiting.iter().map(Option::is_some).collect();
        self.journal.resolve(&changes, |at| (!waited[at]).then_some(libc::EIO));
        for waiting in waiting.into_iter().flatten() {
            let _ = waiting.send(Err(FsError::Lapsed));
        }
        self.region.session.renounce();
    }
}
