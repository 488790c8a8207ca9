//! Changes of the size of a file of which the region has refused bytes: what lies behind the new end goes once it has agreed to that, and no sooner. No sending.
//!
//! ```text
//!   begin_cut -> nothing is sent, all is shown -> agreed:  what lies behind the end goes, the rest is older than the change
//!                      |                       -> refused: all of it stays
//!                      \-- a recall: what lies behind the end goes; lost, if the region refuses then
//! ```

use mooseng_wire::fs::Attr;

use super::Dirty;
use crate::settings::Settings;

/// A change of the size that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    number: u64,
    size: u64,
    /// Why bytes are held when it begins.
    errno: i32,
    /// Bytes behind the new end were given up since.
    lost: bool,
}

/// What the region has agreed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed<'a> {
    /// The attributes afterwards.
    pub attr: &'a Attr,
    /// The change said of when the file was modified.
    pub sets_mtime: bool,
    /// The session, and the life of it, in which that was heard.
    pub life: (u64, u64),
}

impl Dirty {
    /// The size is about to be changed. For whoever would send the bytes, so that nobody else does: nobody begins to before [`Self::end_cut`], which wants the number
    /// that this answers. Bytes that came to the region later than the change would be behind the end again.
    pub fn begin_cut(&mut self, size: u64) -> u64 {
        self.put_back();
        self.cuts_begun += 1;
        let errno = self.refused.map_or(libc::EIO, |refused| refused.errno);
        self.cuts.push(Cut { number: self.cuts_begun, size, errno, lost: false });
        self.cuts_begun
    }

    /// Why what is held isn't stored, where it isn't sent either as long as a change of the size is under way; none where it may be sent.
    pub fn held_for_cut(&self) -> Option<i32> {
        let lost = self.cuts.iter().find(|cut| cut.lost).map(|cut| cut.errno);
        lost.or(self.refused.filter(|_| !self.cuts.is_empty()).map(|refused| refused.errno))
    }

    /// Others are about to see the file, and the region may have agreed by now: what lies behind the end is given up. For whoever sends. Answers how many bytes
    /// that were.
    pub fn give_up_for_cut(&mut self) -> usize {
        let Some(size) = self.cuts.iter().map(|cut| cut.size).min() else { return 0 };
        self.put_back();
        let before = self.bytes();
        self.drop_behind(size);
        let gone = before - self.bytes();
        if gone > 0 {
            self.cuts.iter_mut().for_each(|cut| cut.lost = true);
        }
        gone
    }

    /// What has become of a change of the size: agreed, or not, as far as anybody knows. Answers whether bytes are lost by that.
    pub fn end_cut(&mut self, number: u64, agreed: Option<Agreed<'_>>) -> bool {
        let Some(at) = self.cuts.iter().position(|cut| cut.number == number) else { return false };
        let cut = self.cuts.remove(at);
        let Some(agreed) = agreed else { return cut.lost };
        // What somebody sends at this moment, for a recall, lies before the end.
        self.drop_behind(cut.size);
        if !self.is_clean() {
            // After a lapse it is by these that another host's change is told from ours. Not where the lapse came in between: then others may have changed the file
            // before this did, and it would pass for ours.
            if agreed.life == self.life {
                self.base = Some(*agreed.attr);
            }
            self.cut_after(agreed);
        }
        false
    }

    fn drop_behind(&mut self, size: u64) {
        self.waiting.parts.cut(size);
        if self.data_bytes() == 0 {
            self.refused = None;
        }
        if self.is_clean() {
            self.since = None;
        }
    }

    /// The file was modified after all that is held was written and set, though that comes to the region later: the time mustn't go back then.
    fn cut_after(&mut self, Agreed { attr, sets_mtime, .. }: Agreed<'_>) {
        let layer = &mut self.waiting;
        layer.set.written_after();
        if layer.parts.by_offset.is_empty() {
            return;
        }
        if sets_mtime {
            layer.set = layer.set.and(Settings::modified(attr.mtime_ns, attr.ctime_ns));
        } else {
            layer.written_ns = layer.written_ns.max(attr.mtime_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use mooseng_wire::fs::{FileKind, SetAttr};
    use tokio::time::Instant;

    use super::*;
    use crate::dirty::Refused;

    fn attr(size: u64, mtime_ns: i64) -> Attr {
        Attr { kind: FileKind::Regular.into(), size, mtime_ns, ctime_ns: mtime_ns, ..Attr::default() }
    }

    fn agreed(attr: &Attr) -> Option<Agreed<'_>> {
        Some(Agreed { attr, sets_mtime: false, life: (0, 0) })
    }

    /// Bytes that the region has refused.
    fn kept(data: &'static [u8]) -> Dirty {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        dirty.put(0, Bytes::from_static(data), now, 5);
        let (errno, pause) = (libc::ENOSPC, Duration::ZERO);
        dirty.refused = Some(Refused { number: 1, errno, answered: true, until: now, pause });
        dirty
    }

    #[test]
    fn a_cut_takes_what_lies_behind_it_and_no_more() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        dirty.put(0, Bytes::from_static(b"0123456789"), now, 1);
        assert!(dirty.take());
        dirty.put(8, Bytes::from_static(b"abcd"), now, 2);
        dirty.put(20, Bytes::from_static(b"x"), now, 3);
        let cut = dirty.begin_cut(9);
        assert_eq!((dirty.data_bytes(), dirty.read(20, 21)), (13, Some(Bytes::from_static(b"x"))));
        assert!(!dirty.end_cut(cut, agreed(&attr(9, 4))));
        assert_eq!((dirty.data_bytes(), dirty.bytes()), (9, 9));
        assert_eq!(dirty.read(0, 9).as_deref(), Some(&b"01234567a"[..]));
        assert_eq!(
            dirty.over(7, 30),
            (vec![(7, Bytes::from_static(b"7")), (8, Bytes::from_static(b"a"))], 9)
        );
        let cut = dirty.begin_cut(0);
        assert!(!dirty.end_cut(cut, agreed(&attr(0, 5))));
        assert!(dirty.is_clean() && dirty.since.is_none());
    }

    /// Found by review: they went before the region was asked.
    #[test]
    fn bytes_behind_a_cut_that_is_refused_stay_and_arent_sent_meanwhile() {
        let mut dirty = kept(b"0123456789");
        assert_eq!(dirty.held_for_cut(), None, "they may be sent again");
        let (first, second) = (dirty.begin_cut(4), dirty.begin_cut(7));
        assert_eq!(dirty.held_for_cut(), Some(libc::ENOSPC));
        assert!(!dirty.end_cut(first, None));
        assert_eq!(dirty.held_for_cut(), Some(libc::ENOSPC), "the other one");
        assert!(!dirty.end_cut(second, None));
        assert_eq!((dirty.held_for_cut(), dirty.is_kept()), (None, true));
        assert_eq!(dirty.read(0, 10).as_deref(), Some(&b"0123456789"[..]));
        assert!(!dirty.end_cut(second, agreed(&attr(0, 9))), "it is over");
        assert_eq!(dirty.bytes(), 10);
    }

    #[test]
    fn what_a_recall_takes_is_lost_only_if_the_region_refuses() {
        for agrees in [false, true] {
            let mut dirty = kept(b"0123456789");
            assert_eq!(dirty.give_up_for_cut(), 0, "none is under way");
            let cut = dirty.begin_cut(4);
            assert_eq!(dirty.give_up_for_cut(), 6);
            // The recall has the rest stored.
            assert!(dirty.take());
            let batch = dirty.batch(0);
            dirty.sent(&batch, true, None);
            dirty.refused = None;
            assert_eq!(dirty.held_for_cut(), Some(libc::ENOSPC), "nobody knows yet whether all is stored");
            let after = attr(4, 9);
            let agreed = agreed(&after).filter(|_| agrees);
            assert_eq!(dirty.end_cut(cut, agreed), !agrees);
            assert_eq!((dirty.held_for_cut(), dirty.is_clean()), (None, true));
        }
    }

    /// Found by review: after a lapse in between, what others had changed passed for this session's own.
    #[test]
    fn by_what_is_told_in_another_life_nobody_elses_change_is_known() {
        for (life, is_base) in [((0, 0), true), ((0, 1), false)] {
            let mut dirty = kept(b"0123456789");
            let (cut, after) = (dirty.begin_cut(4), attr(4, 9));
            assert!(!dirty.end_cut(cut, Some(Agreed { attr: &after, sets_mtime: false, life })));
            assert_eq!((dirty.data_bytes(), dirty.base.is_some()), (4, is_base));
        }
    }

    /// Found by review: what was written before had the older time, and brought it to the region later.
    #[test]
    fn the_time_of_modification_stays_the_cuts() {
        let set = SetAttr { mtime_ns: Some(3), mode: Some(0o600), ..SetAttr::default() };
        for (told, sets_mtime) in [(9, false), (2, true)] {
            let mut dirty = kept(b"0123456789");
            dirty.set(Settings::of(&set, &attr(0, 1), 6).unwrap(), Instant::now());
            let (cut, after) = (dirty.begin_cut(4), attr(4, told));
            assert!(!dirty.end_cut(cut, Some(Agreed { attr: &after, sets_mtime, life: (0, 0) })));
            let mut shown = after;
            dirty.show(&mut shown);
            assert_eq!((shown.size, shown.mtime_ns, shown.mode & 0o7777), (4, told, 0o600));
            assert!(dirty.take());
            let sent = dirty.taken_set().to_wire(1).unwrap();
            assert_eq!(sent.mtime_ns.unwrap_or(dirty.taken_written_ns()), told, "as the region will have it");
            // And what is written then is newer again.
            dirty.put(0, Bytes::from_static(b"x"), Instant::now(), 12);
            dirty.show(&mut shown);
            assert_eq!(shown.mtime_ns, 12);
        }
    }
}
