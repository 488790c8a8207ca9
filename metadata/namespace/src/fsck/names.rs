//! Names: entries, the names that inodes know, counters of directories, orphans, ways to the root.

use std::collections::BTreeSet;

use mooseng_schema::directory::Counter;
use mooseng_schema::dirent::{Cookie, DirentRecord};
use mooseng_schema::ids::IdKind;
use mooseng_schema::inode::{InodeRecord, LinkName};
use mooseng_wire::InodeId;

use super::{Check, DIRECTORIES_MAX, Finding, Fix, Inode, Kept, Kind, Subject, difference, fits};
use crate::view::is_directory;

fn shown(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(name))
}

impl Check {
    pub(super) fn take_inode(&mut self, inode: InodeId, record: &InodeRecord) {
        if is_directory(record.kind)
            && !record.orphan
            && self.is_first()
            && self.parents.len() < DIRECTORIES_MAX
            && let Some(link) = record.links.first()
        {
            self.parents.insert(inode, InodeId(link.parent));
        }
        if let Some(volume) = record.joined()
            && self.is_first()
            && let Some(other) = self.joined.insert(volume, inode)
        {
            let detail = format!("volume {volume} is joined at it, and at inode {}", other.0);
            self.found(Finding::new(Kind::Joined, Subject::Inode(inode), detail));
        }
        if !self.part.has(inode.0) {
            return;
        }
        self.outcome.checked.inodes += 1;
        if !self.exactly() {
            self.seen_id(inode.volume(), IdKind::Inode, inode.0);
            let totals = self.outcome.totals.entry(inode.volume()).or_default();
            totals.inodes += 1;
        }
        for link in &record.links {
            self.note_known(inode, link);
        }
        self.inodes.entry(inode).or_default().record = Some(Box::new(Kept::of(record)));
    }

    pub(super) fn take_link(&mut self, inode: InodeId, link: &LinkName) {
        if self.part.has(inode.0) {
            self.note_known(inode, link);
        }
    }

    fn note_known(&mut self, inode: InodeId, link: &LinkName) {
        self.inodes.entry(inode).or_default().known.add(link.parent, &link.name);
        if self.exactly() {
            self.names.entry(inode).or_default().entry(link.clone()).or_default().0 += 1;
        }
    }

    pub(super) fn take_entry(&mut self, directory: InodeId, cookie: Cookie, entry: &DirentRecord) {
        let inode = InodeId(entry.inode);
        if self.part.has(directory.0) {
            self.outcome.checked.entries += 1;
            self.look_at_place(directory, cookie, entry);
            let facts = self.inodes.entry(directory).or_default();
            facts.entries += 1;
            facts.subdirectories += i64::from(is_directory(entry.kind));
        }
        if !self.part.has(inode.0) {
            return;
        }
        let facts = self.inodes.entry(inode).or_default();
        facts.named.add(directory.0, &entry.name);
        if facts.said_kind.is_none_or(|kind| kind == entry.kind) {
            facts.said_kind = Some(entry.kind);
        }
        // The records of inodes come before all entries.
        let record = facts.record.as_ref().map(|record| record.kind);
        let subject = || Subject::Entry(directory, entry.name.clone());
        match record {
            None => {
                let detail = format!("it names inode {}, which isn't there", inode.0);
                self.found(Finding::new(Kind::EntryDangling, subject(), detail));
            }
            Some(kind) if kind != entry.kind => {
                let detail = format!("it says kind {}, its inode {} is of kind {kind}", entry.kind, inode.0);
                self.found(Finding::new(Kind::EntryKind, subject(), detail));
            }
            Some(_) => {}
        }
        if self.exactly() {
            let name = LinkName { parent: directory.0, name: entry.name.clone() };
            self.names.entry(inode).or_default().entry(name).or_default().1 += 1;
        }
    }

    /// An entry must lie under its name's hash, and each name once.
    fn look_at_place(&mut self, directory: InodeId, cookie: Cookie, entry: &DirentRecord) {
        let subject = || Subject::Entry(directory, entry.name.clone());
        if let Some(secret) = self.hash_keys.get(&directory.volume())
            && !fits(secret, &entry.name, cookie)
        {
            let found = Finding::new(Kind::EntryPlace, subject(), "it lies where another name is looked for");
            self.found(found);
        }
        let first = cookie.0 & !(mooseng_schema::dirent::SAME_HASH_MAX - 1);
        if (self.slots.0, self.slots.1) != (directory, first) {
            self.slots = (directory, first, Vec::new());
        }
        if self.slots.2.contains(&entry.name) {
            self.found(Finding::new(Kind::EntryPlace, subject(), "its directory has this name twice"));
        } else {
            self.slots.2.push(entry.name.clone());
        }
    }

    pub(super) fn finish_names(&mut self) {
        let inodes = std::mem::take(&mut self.inodes);
        for (inode, facts) in &inodes {
            match &facts.record {
                None => self.look_at_remains(*inode, facts),
                Some(record) => self.look_at_inode(*inode, record, facts),
            }
        }
        self.inodes = inodes;
        self.look_for_ways();
    }

    fn look_at_remains(&mut self, inode: InodeId, facts: &Inode) {
        let mut left = Vec::new();
        let mut note = |is: bool, what: &'static str| {
            if is {
                left.push(what);
            }
        };
        note(facts.known.count > 0, "names");
        note(facts.entries > 0, "entries");
        note(facts.counted, "counters");
        note(facts.extents > 0, "extents");
        note(facts.xattr_bytes > 0, "attributes");
        note(facts.orphan_mark, "the mark of an orphan");
        note(facts.trim_mark, "the mark of dead extents");
        note(facts.trash_mark.is_some(), "its place in the trash");
        if !left.is_empty() {
            let detail = format!("the inode isn't there, but of it are left: {}", left.join(", "));
            self.found(Finding::new(Kind::Leftover, Subject::Inode(inode), detail));
        }
    }

    fn look_at_inode(&mut self, inode: InodeId, record: &Kept, facts: &Inode) {
        let subject = || Subject::Inode(inode);
        let directory = is_directory(record.kind);
        let mut counted = true;
        if facts.known != facts.named {
            counted = false;
            if !self.exactly() {
                self.outcome.suspects.insert(inode);
            } else {
                self.tell_names(inode);
            }
        }
        if counted && !directory && u64::from(record.nlink) != facts.named.count {
            let detail = format!("it counts {} names and has {}", record.nlink, facts.named.count);
            let fix = Fix::Links(inode, difference(facts.named.count, record.nlink.into()));
            self.found(Finding::new(Kind::Links, subject(), detail).fixed_by(fix));
        }
        let root = self.roots.contains(&inode);
        if counted && record.orphan != (facts.named.count == 0 && !root) {
            let detail = match record.orphan {
                true => format!("it is marked as an orphan and has {} names", facts.named.count),
                false => "it has no name and isn't marked as an orphan".to_owned(),
            };
            self.found(Finding::new(Kind::Orphan, subject(), detail));
        }
        // What is in the trash goes once it expires: it needn't be on the list of orphans, and may be.
        let listed = facts.orphan_mark || facts.trash_mark.is_some();
        if record.orphan && !listed || facts.orphan_mark && !record.orphan {
            let detail = match record.orphan {
                true => "it is an orphan that isn't on the list of orphans, so it is never freed",
                false => "it is on the list of orphans and isn't one",
            };
            self.found(Finding::new(Kind::Orphan, subject(), detail));
        }
        if record.trash_until_ns != facts.trash_mark {
            let detail = match (record.trash_until_ns, facts.trash_mark) {
                (Some(_), None) => "it takes itself for being in the trash, which doesn't have it",
                (None, _) => "it is in the trash, and doesn't know of it",
                (Some(_), Some(_)) => "it and the trash say different times until which it is there",
            };
            self.found(Finding::new(Kind::Trash, subject(), detail));
        }
        if facts.trash_mark.is_some() && !record.orphan {
            self.found(Finding::new(Kind::Trash, subject(), "it is in the trash and has a name"));
        }
        if record.trim_from.is_some() != facts.trim_mark {
            let detail = "its dead extents and the list of files that have some don't agree";
            self.found(Finding::new(Kind::Trim, subject(), detail));
        }
        if u64::from(record.xattr_name_bytes) != facts.xattr_bytes {
            let (recorded, is) = (u64::from(record.xattr_name_bytes), facts.xattr_bytes);
            let detail = format!("it counts {recorded} bytes of attributes' names, there are {is}");
            let fix = Fix::Xattrs(inode, difference(is, recorded));
            self.found(Finding::new(Kind::Xattrs, subject(), detail).fixed_by(fix));
        }
        if let Some(fault) = record.acl_fault {
            let detail = format!("an access control list of it can't be: {fault}");
            self.found(Finding::new(Kind::Acl, subject(), detail));
        }
        if let Some(volume) = record.joined
            && (!directory || record.orphan || facts.entries > 0 || root || volume == inode.volume())
        {
            let detail = format!(
                "volume {volume} is joined at it, and it isn't an empty directory below another volume's root"
            );
            self.found(Finding::new(Kind::Joined, subject(), detail));
        }
        match directory && !record.orphan {
            true => self.look_at_counters(inode, facts),
            false if facts.entries > 0 => {
                let detail = format!("{} names lie in it, and it is no living directory", facts.entries);
                self.found(Finding::new(Kind::EntryParent, subject(), detail));
            }
            false => {}
        }
    }

    fn look_at_counters(&mut self, inode: InodeId, facts: &Inode) {
        let is = [(Counter::Entries, facts.entries), (Counter::Subdirectories, facts.subdirectories)];
        for ((counter, is), recorded) in is.into_iter().zip(facts.counters) {
            let is = is.unsigned_abs();
            if is != recorded {
                let what = if counter == Counter::Entries { "entries" } else { "subdirectories" };
                let detail = format!("it counts {recorded} {what} and has {is}");
                let fix = Fix::Counter(inode, counter, difference(is, recorded));
                let found = Finding::new(Kind::Entries, Subject::Inode(inode), detail);
                self.found(found.fixed_by(fix));
            }
        }
    }

    /// Says which names differ.
    fn tell_names(&mut self, inode: InodeId) {
        let names = self.names.remove(&inode).unwrap_or_default();
        for (link, (known, named)) in names.into_iter().filter(|(_, (known, named))| known != named) {
            let (parent, name) = (link.parent, shown(&link.name));
            let detail = match known > named {
                true => {
                    format!(
                        "it takes itself for {name} in directory {parent}, which has no such entry for it"
                    )
                }
                false => format!("directory {parent} names it {name}, of which it doesn't know"),
            };
            self.found(Finding::new(Kind::Names, Subject::Inode(inode), detail));
        }
    }

    /// Each directory has a way to the root.
    fn look_for_ways(&mut self) {
        let parents = std::mem::take(&mut self.parents);
        if parents.len() >= DIRECTORIES_MAX {
            return;
        }
        let mut known: BTreeSet<InodeId> = self.roots.clone();
        let mut lost = BTreeSet::new();
        for start in parents.keys() {
            let mut way = Vec::new();
            let mut on_way = BTreeSet::new();
            let mut at = *start;
            let arrived = loop {
                if known.contains(&at) {
                    break true;
                }
                if lost.contains(&at) || !on_way.insert(at) {
                    break false;
                }
                way.push(at);
                match parents.get(&at) {
                    Some(parent) => at = *parent,
                    None => break false,
                }
            };
            match arrived {
                true => known.extend(way),
                false => lost.extend(way),
            }
        }
        for inode in lost {
            let detail = "no way leads from this directory to the root";
            self.found(Finding::new(Kind::Unreachable, Subject::Inode(inode), detail));
        }
    }
}
