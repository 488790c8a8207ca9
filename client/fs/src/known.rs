//! What is promised, by the volume's home or by the replica in this host's region. The home's word comes first: it is newer.
//!
//! What this mount made alone and hasn't told the region yet the replica can't know: it isn't asked about that.

use bytes::Bytes;
use mooseng_wire::fs::{Attr, DirEntry};

use crate::facts::{InodeFact, Validity};
use crate::session::Session;

impl Session {
    /// Whether the replica may be believed about these.
    fn asks_near(&self, inode: u64) -> bool {
        // Before what is promised is looked at: what was told in between has hidden it by then.
        self.near.is_open() && !self.journal.has(inode)
    }

    /// What a name stands for, if that is promised.
    #[allow(clippy::option_option, reason = "whether it is known, and whether there is an entry")]
    pub fn known_entry(&self, directory: u64, name: &Bytes) -> Option<Option<u64>> {
        if let Some((target, _)) = self.facts.entry(directory, name) {
            return Some(target);
        }
        if self.asks_near(directory) { self.near.entry(directory, name) } else { None }
    }

    /// An inode, if it is promised.
    pub fn known_inode(&self, inode: u64) -> Option<InodeFact> {
        if let Some((known, _)) = self.facts.inode(inode) {
            return Some(known);
        }
        if self.asks_near(inode) { self.near.inode(inode) } else { None }
    }

    /// Names the time since which an inode has been promised without a break.
    pub fn known_hold(&self, inode: u64) -> Option<u64> {
        if let Some((known, _)) = self.facts.inode(inode) {
            return Some(known.hold);
        }
        if self.asks_near(inode) { self.near.hold(inode) } else { None }
    }

    /// The entries of a directory behind a cookie, in its order, if all of that is promised.
    pub fn known_listing(&self, directory: u64, cookie: u64, most: usize) -> Option<(Vec<DirEntry>, bool)> {
        if let Some(known) = self.facts.listing(directory, cookie, most) {
            return Some(known);
        }
        if self.asks_near(directory) { self.near.listing(directory, cookie, most) } else { None }
    }

    /// How long others may count on what was just answered.
    pub fn validity(&self, attr: Option<&Attr>, entry: Option<(u64, &Bytes)>) -> Validity {
        let mut validity = self.facts.validity(attr, entry);
        if !self.near.is_open() {
            return validity;
        }
        // What the home has told, be it otherwise, is newer.
        let of_attr =
            attr.is_some_and(|attr| self.facts.inode(attr.inode).is_none() && self.asks_near(attr.inode));
        let of_entry = entry.is_some_and(|(directory, name)| {
            self.facts.entry(directory, name).is_none() && self.asks_near(directory)
        });
        if of_attr || of_entry {
            let near = self.near.validity(attr, entry);
            if of_attr {
                validity.attr = near.attr;
            }
            if of_entry {
                (validity.entry, validity.listed) = (near.entry, near.listed);
            }
        }
        validity
    }
}
