//! Which files' staged data is moved into chunks. Plain state, fed with what a scan sees and the time.
//!
//! ```text
//!   scan: every file that has something staged -> see() -> due -> next(): files whose staged bytes make one new chunk
//! ```
//! - Due is a file that has much staged, so that neither the store nor whoever reads it carries it for long; one whose staged data was left alone for
//!   a while; and one that has had some for long. Each file that is overwritten fsync by fsync so costs one chunk for many of them.
//! - While the region has much staged altogether, every file is due. Above `closed_bytes` nothing more is staged anywhere.
//! - The most comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::InodeId;

/// Bounds of destaging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A file with more bytes staged is due.
    pub bytes: u64,
    /// One with more pieces, too.
    pub pieces: u64,
    /// One whose staged data didn't change for so long, too.
    pub quiet: Duration,
    /// And one that has had some for so long.
    pub age: Duration,
    /// While all files together have more bytes staged, all are due.
    pub pressed_bytes: u64,
    /// Above so many bytes nothing more is staged.
    pub closed_bytes: u64,
    /// Bytes of one new chunk, about.
    pub order_bytes: u64,
    /// Files of one new chunk.
    pub order_files: usize,
    /// New chunks at a time; 0 for none.
    pub at_once: usize,
    /// Files whose times are remembered. Further ones are due at once.
    pub files_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 1 << 20,
            pieces: 256,
            quiet: Duration::from_secs(120),
            age: Duration::from_secs(600),
            pressed_bytes: 128 << 20,
            closed_bytes: 512 << 20,
            order_bytes: 2 << 20,
            order_files: 64,
            at_once: 2,
            files_max: 65_536,
        }
    }
}

/// A file that has something staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Which.
    pub inode: InodeId,
    /// Bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u64,
}

#[derive(Debug)]
struct Known {
    staged: Staged,
    changed: BootTime,
    since: BootTime,
    pass: u64,
}

/// What is staged, as far as the scan has seen.
#[derive(Debug, Default)]
pub struct Destager {
    known: BTreeMap<InodeId, Known>,
    /// And in which pass they were seen so.
    due: BTreeMap<InodeId, (Staged, u64)>,
    pass: u64,
    bytes_seen: u64,
    bytes: u64,
}

impl Destager {
    /// The scan comes across a file.
    pub fn see(&mut self, staged: Staged, now: BootTime, limits: &Limits) {
        let Staged { inode, bytes, pieces } = staged;
        self.bytes_seen = self.bytes_seen.saturating_add(bytes);
        let room = self.known.len() < limits.files_max;
        let times = match self.known.get_mut(&inode) {
            Some(known) => {
                if known.staged != staged {
                    (known.staged, known.changed) = (staged, now);
                }
                known.pass = self.pass;
                Some((known.changed, known.since))
            }
            None if room => {
                self.known.insert(inode, Known { staged, changed: now, since: now, pass: self.pass });
                Some((now, now))
            }
            None => None,
        };
        let late = times.is_none_or(|(changed, since)| {
            now.since(changed) >= limits.quiet || now.since(since) >= limits.age
        });
        let much = bytes > limits.bytes || pieces > limits.pieces;
        if late || much || self.bytes > limits.pressed_bytes {
            self.due.insert(inode, (staged, self.pass));
        } else {
            self.due.remove(&inode);
        }
    }

    /// The scan has seen all files.
    pub fn passed(&mut self) {
        let pass = self.pass;
        self.known.retain(|_, known| known.pass == pass);
        self.due.retain(|_, (_, seen)| *seen == pass);
        self.pass += 1;
        self.bytes = std::mem::take(&mut self.bytes_seen);
    }

    /// Bytes staged in all files, as of the last complete scan.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Files that are due.
    pub fn waiting(&self) -> usize {
        self.due.len()
    }

    /// The next files to be destaged into one chunk, if another may be made beside what is under way. Those that are left alone wait.
    pub fn next(
        &mut self,
        under_way: usize,
        left_alone: &BTreeSet<InodeId>,
        limits: &Limits,
    ) -> Option<Vec<Staged>> {
        if under_way >= limits.at_once {
            return None;
        }
        let mut due: Vec<Staged> = self
            .due
            .values()
            .map(|(staged, _)| *staged)
            .filter(|staged| !left_alone.contains(&staged.inode))
            .collect();
        due.sort_unstable_by_key(|staged| (std::cmp::Reverse(staged.bytes), staged.inode));
        let mut bytes = 0;
        let mut files = Vec::new();
        for staged in due {
            if files.len() >= limits.order_files || bytes >= limits.order_bytes {
                break;
            }
            bytes += staged.bytes;
            self.due.remove(&staged.inode);
            // What is staged from now on has an age of its own.
            self.known.remove(&staged.inode);
            files.push(staged);
        }
        (!files.is_empty()).then_some(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn staged(inode: u64, bytes: u64, pieces: u64) -> Staged {
        Staged { inode: InodeId(inode), bytes, pieces }
    }

    fn at(seconds: u64) -> BootTime {
        BootTime::default().after(Duration::from_secs(seconds))
    }

    /// A pass at a time, and what is begun then.
    fn pass(destager: &mut Destager, files: &[Staged], seconds: u64, limits: &Limits) -> Vec<u64> {
        files.iter().for_each(|file| destager.see(*file, at(seconds), limits));
        destager.passed();
        let next = destager.next(0, &BTreeSet::new(), limits);
        next.unwrap_or_default().iter().map(|file| file.inode.0).collect()
    }

    #[test]
    fn what_is_much_is_due_at_once_and_the_most_comes_first() {
        let limits = Limits { order_bytes: 3 * MIB, ..Limits::default() };
        let mut destager = Destager::default();
        let files = [
            staged(1, 4096, 1),
            staged(2, MIB + 1, 20),
            staged(3, 2 * MIB, 9),
            staged(4, 300_000, 300),
            staged(5, MIB, 256),
        ];
        assert_eq!(pass(&mut destager, &files, 0, &limits), [3, 2]);
        assert_eq!(destager.bytes(), 4096 + 4 * MIB + 1 + 300_000);
        let rest = destager.next(0, &BTreeSet::new(), &limits);
        assert_eq!(rest, Some(vec![files[3]]));
        assert_eq!(destager.next(0, &BTreeSet::new(), &limits), None);
    }

    #[test]
    fn what_is_left_alone_for_a_while_is_due_and_so_is_what_changes_for_long() {
        let limits = Limits::default();
        let mut destager = Destager::default();
        for second in 0..=600 {
            let quiet = staged(1, 4096, 1);
            let busy = staged(2, 4096 + second % 2, 1);
            let begun = pass(&mut destager, &[quiet, busy], second, &limits);
            let expected: &[u64] = match second {
                120 => &[1],
                241 | 362 | 483 => &[1],
                600 => &[2],
                _ => &[],
            };
            assert_eq!(begun, expected, "after {second} s");
        }
    }

    #[test]
    fn under_pressure_everything_is_due_and_bounds_hold() {
        let limits = Limits { pressed_bytes: 10_000, order_files: 2, ..Limits::default() };
        let mut destager = Destager::default();
        let files = [staged(1, 4096, 1), staged(2, 4097, 1), staged(3, 4098, 1)];
        assert!(
            pass(&mut destager, &files, 0, &limits).is_empty(),
            "it isn't known before the first pass ends"
        );
        assert_eq!(pass(&mut destager, &files, 0, &limits), [3, 2]);
        files.iter().for_each(|file| destager.see(*file, at(0), &limits));
        assert_eq!(destager.next(limits.at_once, &BTreeSet::new(), &limits), None);
        let busy: BTreeSet<InodeId> = [2, 3].map(InodeId).into();
        assert_eq!(destager.next(1, &busy, &limits), Some(vec![files[0]]));
        // What nobody has staged any more is forgotten.
        destager.passed();
        destager.passed();
        assert_eq!((destager.waiting(), destager.bytes()), (0, 0));
    }

    #[test]
    fn files_beyond_what_is_remembered_are_due_at_once() {
        let limits = Limits { files_max: 1, ..Limits::default() };
        let mut destager = Destager::default();
        destager.see(staged(1, 10, 1), at(0), &limits);
        destager.see(staged(2, 10, 1), at(0), &limits);
        assert_eq!(destager.next(0, &BTreeSet::new(), &limits), Some(vec![staged(2, 10, 1)]));
    }
}
