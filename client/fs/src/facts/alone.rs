//! What this session changes alone, under the exclusive promise: what is known is the newest then, and the region hears of it later ([`crate::alone`]).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mooseng_wire::InodeId;
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FileKind, Tell, Told};
use mooseng_wire::session::Response;

use super::listing::Listing;
use super::{Facts, InodeFact, Memo};

/// What is promised, for who changes it alone: nothing else changes while he looks and changes.
pub(crate) struct Alone<'a> {
    facts: &'a Facts,
    memo: &'a mut Memo,
    /// Lists that were looked at: what is known may be pushed out meanwhile, and a list that isn't there any more would seem empty.
    lists: BTreeMap<u64, Arc<Mutex<Listing>>>,
}

impl Alone<'_> {
    fn list(&mut self, directory: u64) -> Option<&Mutex<Listing>> {
        match self.lists.entry(directory) {
            Entry::Occupied(held) => Some(&**held.into_mut()),
            Entry::Vacant(free) => Some(&**free.insert(self.facts.listings.get(&directory)?)),
        }
    }

    /// The attributes of a directory that this session has alone, and knows entirely.
    pub fn directory(&mut self, directory: u64) -> Option<Attr> {
        let attr = self.inode(directory)?;
        let listing = self.list(directory)?.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = listing.alone && listing.complete && listing.holes.is_empty();
        (whole && attr.kind() == FileKind::Directory).then_some(attr)
    }

    /// The attributes of an inode that nobody else knows.
    pub fn inode(&self, inode: u64) -> Option<Attr> {
        let known = self.facts.inodes.get(&inode)?;
        // Of a directory at which a volume is joined nothing is changed but by the region.
        let free = known.level == Level::Exclusive && known.attr.joined == 0;
        (free && !self.facts.left().is_zero()).then_some(known.attr)
    }

    /// Whether an inode may be something else than a directory, as far as is known.
    pub fn may_be_file(&self, inode: u64) -> bool {
        self.facts.inodes.get(&inode).is_none_or(|known| known.attr.kind() != FileKind::Directory)
    }

    /// What a name stands for in a directory that is had alone.
    pub fn named(&mut self, directory: u64, name: &Bytes) -> Option<u64> {
        let listing = self.list(directory)?.lock().unwrap_or_else(PoisonError::into_inner);
        listing.names.get(name).copied()
    }

    /// How many names a directory has that is had alone.
    pub fn names(&mut self, directory: u64) -> usize {
        self.list(directory).map_or(0, |list| list.lock().unwrap_or_else(PoisonError::into_inner).names.len())
    }

    fn mark(&mut self, inode: u64) {
        if !self.memo.flights.is_empty() {
            self.memo.tick += 1;
            self.memo.changed_alone.insert(inode, self.memo.tick);
        }
    }

    /// An inode is as this says now.
    pub fn set(&mut self, attr: Attr) {
        self.mark(attr.inode);
        if let Some(known) = self.facts.inodes.get(&attr.inode) {
            self.facts.inodes.insert(attr.inode, InodeFact { attr, ..known });
        }
    }

    /// A name stands for that inode from now on, or for nothing.
    pub fn name(&mut self, directory: u64, name: &Bytes, inode: Option<u64>) {
        self.mark(directory);
        self.facts.entries.invalidate(&(directory, name.clone()));
        let Some(listing) = self.list(directory) else { return };
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.in_order = false;
        let grew = match inode {
            Some(inode) => listing.put(name, inode).1,
            None => {
                listing.names.remove(name);
                false
            }
        };
        drop(listing);
        if grew && let Some(listing) = self.lists.get(&directory) {
            self.facts.weigh_anew(directory, listing.clone());
        }
    }

    /// This session has made an inode, of which nobody else knows.
    pub fn made(&mut self, attr: Attr, target: Option<Bytes>) {
        self.memo.holds += 1;
        let (level, extents, hold) = (Level::Exclusive, Arc::default(), self.memo.holds);
        self.facts.inodes.insert(attr.inode, InodeFact { attr, level, target, extents, hold });
        if attr.kind() == FileKind::Directory {
            let listing = Listing { in_order: true, complete: true, alone: true, ..Listing::default() };
            self.facts.listings.insert(attr.inode, Arc::new(Mutex::new(listing)));
        }
    }

    /// A directory is gone.
    pub fn gone(&mut self, directory: u64) {
        self.mark(directory);
        self.lists.remove(&directory);
        self.facts.listings.invalidate(&directory);
    }
}

impl Facts {
    /// For a change that this session makes alone.
    pub fn alone<T>(&self, f: impl FnOnce(&mut Alone<'_>) -> T) -> T {
        self.memo(|memo| f(&mut Alone { facts: self, memo, lists: BTreeMap::new() }))
    }

    /// Whether a directory is had alone.
    pub fn is_alone(&self, directory: u64) -> bool {
        self.alone(|alone| alone.directory(directory).is_some())
    }

    /// The region has an inode so. With `later`, this session has moved or removed it alone since. Answers whether something was shown otherwise.
    pub fn correct(&self, attr: &Attr, later: bool) -> bool {
        self.memo(|_| {
            let Some(known) = self.inodes.get(&attr.inode) else { return false };
            let right = match later {
                true => Attr {
                    nlink: known.attr.nlink,
                    ctime_ns: known.attr.ctime_ns.max(attr.ctime_ns),
                    ..*attr
                },
                false => *attr,
            };
            let differs = right != known.attr;
            if differs {
                self.inodes.insert(attr.inode, InodeFact { attr: right, ..known });
            }
            differs
        })
    }

    /// What goes beside the answer to what was told is known here already, and better. But what the region doesn't let this session keep to
    /// itself isn't known any more. Of what was told before already (`is_repeat`) the answer may be an old one. The caller holds the memo.
    pub(super) fn confirm(
        &self,
        memo: &mut Memo,
        (tell, told): (&Tell, &Told),
        response: &Response,
        is_repeat: bool,
    ) {
        let granted: BTreeSet<Fact> = response
            .granted
            .iter()
            .filter(|granted| granted.exclusive)
            .filter_map(|granted| Fact::from_message(granted.fact.as_ref()?))
            .collect();
        for (change, reply) in tell.changes.iter().zip(&told.replies) {
            // Data that went along lies elsewhere than what was known of the file says.
            if let Some(request) = &change.request
                && let Some(Op::Write(write)) = &request.op
                && let Some(known) = self.inodes.get(&write.inode)
            {
                let reply = reply.reply.as_ref().filter(|_| !is_repeat);
                let extents = reply.and_then(|reply| known.extents_after(request, reply, response.grant));
                let extents = extents.unwrap_or_default();
                self.inodes.insert(write.inode, InodeFact { extents, ..known });
            }
            let is_made = change.inode != 0 && !matches!(reply.reply, Some(Reply::Errno(_)) | None);
            if !is_made {
                continue;
            }
            let (inode, list) = (Fact::Inode(InodeId(change.inode)), Fact::Directory(InodeId(change.inode)));
            if !granted.contains(&inode) {
                self.forget(&inode);
                self.forget(&list);
                memo.unconfirmed.push(change.inode);
            }
        }
    }

    /// The inodes of which nothing is known any more, since the region didn't let this session keep them.
    pub fn take_unconfirmed(&self) -> Vec<u64> {
        self.memo(|memo| std::mem::take(&mut memo.unconfirmed))
    }

    /// Files of a directory that is had alone which may be held with it, from that name on: others than this session may know them, as far as is known here.
    pub fn to_hold(&self, directory: u64, name: &Bytes, most: usize) -> Vec<u64> {
        let Some(listing) = self.listings.get(&directory) else { return Vec::new() };
        let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = listing.names.range(name.clone()..).chain(listing.names.range(..name.clone()));
        let may_be = |file: &u64| {
            self.inodes.get(file).is_none_or(|known| {
                known.level != Level::Exclusive && known.attr.kind() != FileKind::Directory
            })
        };
        from.map(|(_, file)| *file).filter(may_be).take(most).collect()
    }
}
