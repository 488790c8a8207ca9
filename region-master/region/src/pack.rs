//! Which small files' inline data is moved into chunks that they share. Plain state, fed with what a scan sees.
//!
//! ```text
//!   scan: every file that has something packable -> see() -> due -> next(): files of one storage class, whose bytes make one new chunk
//! ```
//! - Due is a file that is large enough and that nobody changed for a while.
//! - A chunk is begun once enough is due for it: what little is left waits inline, where it costs nobody anything. So there are no chunks of a few bytes
//!   where files come one by one.
//! - A chunk has files of one storage class. They go in the order of their ids, which is about the order in which they were made: what was unpacked together
//!   lies together.
//! - Such chunks are small, for their bytes go through the master. The rewriter merges them ([`crate::rewrite`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_wire::InodeId;

/// Bounds of packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A file of fewer bytes stays inline.
    pub bytes_min: u64,
    /// One that was changed more lately isn't due.
    pub quiet: Duration,
    /// A chunk is begun once so many bytes of its class are due.
    pub fill_min: u64,
    /// Bytes of one new chunk, about.
    pub order_bytes: u64,
    /// Files of one new chunk.
    pub order_files: usize,
    /// New chunks at a time; 0 for none.
    pub at_once: usize,
    /// Due files that are remembered. The others have their turn in a later scan.
    pub files_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes_min: 4 << 10,
            quiet: Duration::from_secs(60),
            fill_min: 1 << 20,
            order_bytes: 2 << 20,
            order_files: 512,
            at_once: 1,
            files_max: 65_536,
        }
    }
}

/// A file that has something packable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packable {
    /// Which.
    pub inode: InodeId,
    /// Its storage class.
    pub storage_class: u32,
    /// About how many bytes.
    pub bytes: u64,
    /// How long ago it was changed.
    pub quiet_for: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    bytes: u64,
    pass: u64,
}

/// What is packable, as far as the scan has seen.
#[derive(Debug, Default)]
pub struct Packer {
    /// By storage class.
    due: BTreeMap<u32, BTreeMap<InodeId, Due>>,
    pass: u64,
    seen: (u64, u64),
    all: (u64, u64),
}

impl Packer {
    /// The scan comes across a file.
    pub fn see(&mut self, file: Packable, limits: &Limits) {
        self.seen = (self.seen.0 + 1, self.seen.1.saturating_add(file.bytes));
        let known: usize = self.due.values().map(BTreeMap::len).sum();
        let of_class = self.due.entry(file.storage_class).or_default();
        let is_due = file.bytes >= limits.bytes_min && file.quiet_for >= limits.quiet;
        if is_due && (known < limits.files_max || of_class.contains_key(&file.inode)) {
            of_class.insert(file.inode, Due { bytes: file.bytes, pass: self.pass });
        } else {
            of_class.remove(&file.inode);
        }
    }

    /// The scan has seen all files.
    pub fn passed(&mut self) {
        let pass = self.pass;
        self.due.values_mut().for_each(|files| files.retain(|_, due| due.pass == pass));
        self.due.retain(|_, files| !files.is_empty());
        self.pass += 1;
        self.all = std::mem::take(&mut self.seen);
    }

    /// Files that have something packable, and about how many bytes, as of the last complete scan.
    pub fn waiting(&self) -> (u64, u64) {
        self.all
    }

    /// The next files to be packed into one chunk, if another may be made beside what is under way. Those that are left alone wait.
    pub fn next(
        &mut self,
        under_way: usize,
        left_alone: &BTreeSet<InodeId>,
        limits: &Limits,
    ) -> Option<Vec<InodeId>> {
        if under_way >= limits.at_once {
            return None;
        }
        let open = |files: &BTreeMap<InodeId, Due>| -> u64 {
            let open = files.iter().filter(|(inode, _)| !left_alone.contains(inode));
            open.map(|(_, due)| due.bytes).sum()
        };
        let sums = self.due.iter().map(|(class, files)| (open(files), *class));
        let (bytes, class) = sums.max_by_key(|(bytes, class)| (*bytes, std::cmp::Reverse(*class)))?;
        if bytes == 0 || bytes < limits.fill_min {
            return None;
        }
        let files = self.due.get_mut(&class)?;
        let mut chosen = Vec::new();
        let mut sum = 0;
        for (inode, due) in files.iter().filter(|(inode, _)| !left_alone.contains(inode)) {
            if chosen.len() >= limits.order_files || sum + due.bytes > limits.order_bytes && sum > 0 {
                break;
            }
            sum += due.bytes;
            chosen.push(*inode);
        }
        files.retain(|inode, _| chosen.binary_search(inode).is_err());
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;

    fn file(inode: u64, storage_class: u32, bytes: u64, quiet_s: u64) -> Packable {
        Packable { inode: InodeId(inode), storage_class, bytes, quiet_for: Duration::from_secs(quiet_s) }
    }

    fn next(packer: &mut Packer, limits: &Limits) -> Vec<u64> {
        let files = packer.next(0, &BTreeSet::new(), limits).unwrap_or_default();
        files.into_iter().map(|inode| inode.0).collect()
    }

    #[test]
    fn quiet_files_are_packed_once_there_are_enough_of_one_class() {
        let limits = Limits { fill_min: 30 * KIB, order_bytes: 25 * KIB, ..Limits::default() };
        let mut packer = Packer::default();
        for pass in 0..2 {
            packer.see(file(1, 0, 10 * KIB, 100), &limits);
            packer.see(file(2, 0, 10 * KIB, 59), &limits);
            packer.see(file(3, 0, 4 * KIB - 1, 100), &limits);
            packer.see(file(4, 1, 29 * KIB, 100), &limits);
            packer.passed();
            assert_eq!(next(&mut packer, &limits), [0; 0], "pass {pass}: too little of each class");
        }
        assert_eq!(packer.waiting(), (4, 53 * KIB - 1));
        for inode in 5..9 {
            packer.see(file(inode, 0, 11 * KIB, 60), &limits);
        }
        assert_eq!(next(&mut packer, &limits), [1, 5], "one more would be too much: {packer:?}");
        assert_eq!(packer.next(1, &BTreeSet::new(), &limits), None, "one is under way");
        let busy = BTreeSet::from([InodeId(6)]);
        assert_eq!(packer.next(0, &busy, &limits), None, "what is left alone doesn't count");
        assert_eq!(next(&mut packer, &limits), [6, 7]);
        // What isn't seen any more is forgotten.
        packer.passed();
        packer.see(file(4, 1, 31 * KIB, 1), &limits);
        packer.passed();
        assert_eq!(next(&mut packer, &limits), [0; 0]);
    }

    proptest! {
        #[test]
        fn orders_keep_to_their_bounds(files in prop::collection::vec((1..300_u64, 0..3_u32, 0..80 * KIB, 0..120_u64), 0..200)) {
            let limits = Limits { fill_min: 20 * KIB, order_bytes: 100 * KIB, order_files: 7, files_max: 50, ..Limits::default() };
            let mut packer = Packer::default();
            let mut known = BTreeMap::new();
            for (inode, class, bytes, quiet_s) in files {
                // A file has one class.
                let file = *known.entry(inode).or_insert_with(|| file(inode, class, bytes, quiet_s));
                packer.see(file, &limits);
            }
            let mut chosen = BTreeSet::new();
            while let Some(order) = packer.next(0, &BTreeSet::new(), &limits) {
                prop_assert!(!order.is_empty() && order.len() <= limits.order_files);
                let of: Vec<&Packable> = order.iter().map(|inode| &known[&inode.0]).collect();
                prop_assert!(of.iter().all(|f| f.storage_class == of[0].storage_class && f.quiet_for >= limits.quiet && f.bytes >= limits.bytes_min));
                prop_assert!(order.len() == 1 || of.iter().map(|f| f.bytes).sum::<u64>() <= limits.order_bytes);
                for inode in order {
                    prop_assert!(chosen.insert(inode), "a file was chosen twice");
                }
            }
            prop_assert!(chosen.len() <= limits.files_max);
        }
    }
}
