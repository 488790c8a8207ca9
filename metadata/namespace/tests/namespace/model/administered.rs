//! What administrators do with the model: limits and who counts for them, the trash, volumes that are joined.

use std::collections::BTreeMap;

use mooseng_namespace::quota::{Account, Usage};
use mooseng_wire::fs::fs_request::Op;

use super::*;

impl Model {
    /// What counts for an account.
    pub fn usage(&self, account: Account) -> Usage {
        let mut sum = Usage::default();
        for node in self.nodes.values() {
            let counts = match account {
                Account::Class(class) => {
                    // Also what is let off elsewhere.
                    let whole = Usage { bytes: node.bytes(), inodes: 1 };
                    sum = if node.class == class { sum.plus(whole) } else { sum };
                    false
                }
                Account::Directory(id) => node.quota == id,
                Account::User(uid) => node.uid == uid,
            };
            if counts {
                let bytes = node.bytes() - node.let_off.unwrap_or(0);
                sum = sum.plus(Usage { bytes: bytes.max(0), inodes: i64::from(node.let_off.is_none()) });
            }
        }
        sum
    }

    /// Whether something of an account that is over its limit became more.
    fn grew_too_much(&self, before: &BTreeMap<Account, Usage>) -> bool {
        before.iter().any(|(account, before)| {
            let (after, (bytes, inodes)) = (self.usage(*account), self.limits[account]);
            (after.bytes > before.bytes && after.bytes > bytes)
                || (after.inodes > before.inodes && after.inodes > inodes)
        })
    }

    pub(super) fn usages(&self) -> BTreeMap<Account, Usage> {
        self.limits.keys().map(|account| (*account, self.usage(*account))).collect()
    }

    /// [`Self::apply`], within the limits.
    pub fn apply_within(&mut self, at: &At<'_>, op: &Op) -> Answer {
        if self.limits.is_empty() {
            return self.apply(at, op);
        }
        self.before = self.usages();
        let nodes = self.nodes.clone();
        let answer = self.apply(at, op);
        if answer.is_ok() && self.grew_too_much(&self.before) {
            self.nodes = nodes;
            return Err(EDQUOT);
        }
        answer
    }

    /// A living directory's path.
    pub fn path(&self, mut id: u64) -> Vec<u8> {
        let mut path = Vec::new();
        while id != 1 {
            let parent = self.nodes[&id].parent;
            let entries = &self.nodes[&parent].entries;
            let (name, _) = entries.iter().find(|(_, inode)| **inode == id).unwrap();
            path = [b"/", name.as_slice(), &path].concat();
            id = parent;
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// Puts a file from the trash back, to a directory and a name, or where it was.
    pub fn restore(&mut self, id: u64, to: Option<(u64, &[u8])>, now: i64) -> Result<(), u32> {
        let node = self.nodes.get(&id).filter(|n| n.trash_until.is_some()).ok_or(ESTALE)?;
        let (was_in, was, _) = node.deletion.clone();
        let (parent, name) = to.map_or((was_in, was), |(parent, name)| (parent, name.to_vec()));
        let directory = self.nodes.get(&parent).filter(|n| !n.removed).ok_or(ENOENT)?;
        directory.uncovered()?;
        if directory.entries.contains_key(&name) {
            return Err(EEXIST);
        }
        let quota = directory.quota;
        let before: BTreeMap<Account, Usage> =
            self.limits.keys().map(|account| (*account, self.usage(*account))).collect();
        let node = self.node_mut(id);
        let was = (node.let_off, node.quota);
        (node.let_off, node.quota) = (None, quota);
        if self.grew_too_much(&before) {
            let node = self.node_mut(id);
            (node.let_off, node.quota) = was;
            return Err(EDQUOT);
        }
        let node = self.node_mut(id);
        (node.trash_until, node.orphan, node.removed) = (None, false, false);
        (node.names, node.parent, node.times[2]) = (1, parent, now);
        self.node_mut(parent).entries.insert(name, id);
        self.touch_dir(parent, now);
        Ok(())
    }

    /// Joins a volume at a directory. None where it can't be; false where it is.
    pub fn join(&mut self, id: u64, volume: u32, now: i64) -> Option<bool> {
        let node = self.nodes.get_mut(&id).filter(|n| n.is_living_directory() && n.entries.is_empty())?;
        if id == 1 || (node.joined != 0 && node.joined != volume) {
            return None;
        }
        if node.joined == volume {
            return Some(false);
        }
        node.joined = volume;
        node.times[2] = now;
        Some(true)
    }

    /// Takes those out of the trash for good. Answers how many there were.
    pub fn purge(&mut self, which: impl Fn(u64, &Node) -> bool) -> u64 {
        let mut purged = 0;
        for (id, node) in &mut self.nodes {
            if node.trash_until.is_some() && which(*id, node) {
                (node.trash_until, node.orphan) = (None, true);
                purged += 1;
            }
        }
        purged
    }
}
