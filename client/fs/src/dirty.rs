//! What was written to one inode and isn't at the region yet: bytes by their place, newest on top, and attributes set over them. No clocks,
//! no sending.
//!
//! ```text
//!   put -> waiting -> take -> sending -> sent
//!             ^                  |
//!             +---- put_back ----+   (beneath what was written meanwhile)
//! ```

use std::collections::BTreeMap;
use std::ops::{Deref, RangeBounds};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mooseng_namespace::rules;
use mooseng_wire::fs::Attr;
use tokio::time::Instant;

use crate::escrow::Accounts;
use crate::packets::WHOLE_BYTES;
use crate::settings::Settings;

mod cut;

pub(crate) use cut::Agreed;
use cut::Cut;

/// Bytes sent with one change at most. The next change's bytes begin to be sent once these are flushed.
pub(crate) const BATCH_BYTES: usize = 16 << 20;
/// So many bytes that wait are sent before they are old.
pub(crate) const BEGIN_BYTES: usize = 4 << 20;
/// Separate places sent with one change at most; each may become two pieces where a chunk ends.
pub(crate) const BATCH_SEGMENTS: usize = 100;

/// A segment while it is made.
enum Data {
    Whole(Bytes),
    Joined(BytesMut),
}

/// Bytes, and how many are kept in memory for them: a slice keeps all that it was cut from.
#[derive(Clone, Debug)]
struct Part {
    bytes: Bytes,
    allocated: usize,
}

impl Deref for Part {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl From<Bytes> for Part {
    fn from(bytes: Bytes) -> Self {
        Self { allocated: bytes.len(), bytes }
    }
}

impl Part {
    /// What stays of it. Copied where that is less than half of what it would keep in memory: only what stays counts as held, so that no more than twice
    /// of what counts is ever kept.
    fn rest(&self, range: impl RangeBounds<usize>) -> Self {
        let bytes = self.bytes.slice(range);
        if 2 * bytes.len() < self.allocated {
            return Bytes::copy_from_slice(&bytes).into();
        }
        Self { bytes, allocated: self.allocated }
    }
}

/// Bytes by offset; no two overlap.
#[derive(Debug, Default)]
struct Parts {
    by_offset: BTreeMap<u64, Part>,
    bytes: usize,
}

impl Parts {
    /// Puts bytes on top of what is there.
    fn put(&mut self, at: u64, data: Part) {
        let end = at + data.len() as u64;
        // What begins before and reaches in is cut; it may go on behind.
        if let Some((&start, part)) = self.by_offset.range(..at).next_back() {
            let reach = start + part.len() as u64;
            if reach > at {
                let part = part.clone();
                let keep = (at - start) as usize;
                self.by_offset.insert(start, part.rest(..keep));
                self.bytes -= part.len() - keep;
                if reach > end {
                    let behind = part.rest((end - start) as usize..);
                    self.bytes += behind.len();
                    self.by_offset.insert(end, behind);
                }
            }
        }
        let covered: Vec<u64> = self.by_offset.range(at..end).map(|(&start, _)| start).collect();
        for start in covered {
            let Some(part) = self.by_offset.remove(&start) else { continue };
            self.bytes -= part.len();
            if start + part.len() as u64 > end {
                let behind = part.rest((end - start) as usize..);
                self.bytes += behind.len();
                self.by_offset.insert(end, behind);
            }
        }
        self.bytes += data.len();
        if !data.is_empty() {
            self.by_offset.insert(at, data);
        }
    }

    /// Drops what lies at `at` and behind.
    fn cut(&mut self, at: u64) {
        while let Some((&start, _)) = self.by_offset.range(at..).next() {
            self.bytes -= self.by_offset.remove(&start).map_or(0, |part| part.len());
        }
        if let Some((&start, part)) = self.by_offset.range(..at).next_back()
            && start + part.len() as u64 > at
        {
            let kept = part.rest(..(at - start) as usize);
            self.bytes -= part.len() - kept.len();
            self.by_offset.insert(start, kept);
        }
    }

    fn end(&self) -> u64 {
        self.by_offset.last_key_value().map_or(0, |(at, part)| at + part.len() as u64)
    }

    /// The parts within [from, to), cut to it.
    fn within(&self, from: u64, to: u64) -> Vec<(u64, Bytes)> {
        let first = self.by_offset.range(..=from).next_back().map_or(from, |(&at, _)| at);
        let cut = |(&at, part): (&u64, &Part)| {
            let (start, end) = (at.max(from), (at + part.len() as u64).min(to));
            (start < end).then(|| (start, part.slice((start - at) as usize..(end - at) as usize)))
        };
        self.by_offset.range(first..to.max(first)).filter_map(cut).collect()
    }
}

/// Adjoining bytes that are sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub at: u64,
    pub data: Bytes,
}

/// What attributes count for in the buffer.
pub(crate) const SETTINGS_BYTES: usize = 256;

/// Bytes, and attributes that were set behind them.
#[derive(Debug, Default)]
struct Layer {
    parts: Parts,
    /// When the newest byte was written, by the wall clock in nanoseconds.
    written_ns: i64,
    set: Settings,
}

impl Layer {
    fn is_clean(&self) -> bool {
        self.parts.by_offset.is_empty() && self.set.is_empty()
    }

    fn bytes(&self) -> usize {
        self.parts.bytes + if self.set.is_empty() { 0 } else { SETTINGS_BYTES }
    }

    fn put(&mut self, at: u64, data: Part, now_ns: i64) {
        self.parts.put(at, data);
        self.written_ns = self.written_ns.max(now_ns);
        self.set.written_after();
    }

    /// What was put into `newer` comes on top.
    fn put_layer(&mut self, newer: Layer) {
        for (at, data) in newer.parts.by_offset {
            self.put(at, data, newer.written_ns);
        }
        self.set = self.set.and(newer.set);
    }

    fn show(&self, attr: &mut Attr) {
        if !self.parts.by_offset.is_empty() {
            attr.size = attr.size.max(self.parts.end());
            // As the region will have it: also where a later time was set before.
            attr.mtime_ns = self.written_ns;
            attr.ctime_ns = rules::later(attr.ctime_ns, self.written_ns);
        }
        self.set.show(attr);
    }
}

/// Why bytes are still held that were sent: they couldn't be stored, and will be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Names this run of failures among those of the mount; it goes on until the bytes are stored or given up.
    pub number: u64,
    /// The last failure's.
    pub errno: i32,
    /// The region said so itself, as it does at once. Else it didn't answer, or the bytes didn't get to chunkservers.
    pub answered: bool,
    /// Not sent before that without being asked for, and the pause up to then.
    pub until: Instant,
    pub pause: Duration,
}

/// The buffer of one inode.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    waiting: Layer,
    sending: Layer,
    /// When the oldest of what waits was written.
    pub since: Option<Instant>,
    /// The region's attributes beneath the buffered bytes.
    pub base: Option<Attr>,
    /// The session, and the life of it, that was promised the inode when these bytes were written.
    pub life: (u64, u64),
    /// Some of them were written under a lock, which ends with that life, and with this home epoch.
    pub locked: Option<u64>,
    /// Changes up to this number may still be on their way: the bytes may be sent again once they are over.
    pub fence: u64,
    /// Recalls that are being answered: nothing is added meanwhile.
    pub closed: u32,
    /// What is held couldn't be stored when it was sent last.
    pub refused: Option<Refused>,
    /// Whose escrow covers the bytes, and how many.
    cover: (Accounts, u64),
    /// Bytes that reached the region since the escrow was settled.
    arrived: u64,
    /// Changes of the size that are under way, and how many there have been.
    cuts: Vec<Cut>,
    cuts_begun: u64,
}

impl Dirty {
    /// Whether everything is at the region.
    pub fn is_clean(&self) -> bool {
        self.waiting.is_clean() && self.sending.is_clean()
    }

    /// Whether what is held was written in another life of the session than this: others may have changed the file since, and then it is given up.
    pub fn is_foreign_to(&self, life: (u64, u64)) -> bool {
        !self.is_clean() && self.life != life
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.waiting.bytes() + self.sending.bytes()
    }

    /// Bytes held of the file itself.
    pub fn data_bytes(&self) -> usize {
        self.waiting.parts.bytes + self.sending.parts.bytes
    }

    /// Whether it is too early to send again what was refused.
    pub fn pauses(&self, now: Instant) -> bool {
        self.refused.is_some_and(|refused| now < refused.until)
    }

    /// Whether the region has refused what is held: it stays until that has changed.
    pub fn is_kept(&self) -> bool {
        self.refused.is_some_and(|refused| refused.answered)
    }

    /// Bytes that nobody sends yet.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.parts.bytes
    }

    /// Whether bytes of these accounts may be added: all that is covered here is so by the same ones.
    pub fn may_cover(&self, accounts: &Accounts) -> bool {
        self.cover.1 == 0 || self.cover.0 == *accounts
    }

    /// The next bytes are covered by these accounts.
    pub fn cover(&mut self, accounts: Accounts, bytes: u64) {
        if accounts.iter().any(Option::is_some) {
            self.cover = (accounts, self.cover.1 + bytes);
        }
    }

    /// Whose escrow covered bytes that count at the region since the last time, how many, and how many it needn't cover any more.
    pub fn settle(&mut self) -> (Accounts, u64, u64) {
        let arrived = std::mem::take(&mut self.arrived).min(self.cover.1);
        let held = self.data_bytes() as u64;
        let given_up = (self.cover.1 - arrived).saturating_sub(held);
        self.cover.1 -= arrived + given_up;
        (self.cover.0, arrived, given_up)
    }

    /// Adds written bytes.
    pub fn put(&mut self, at: u64, data: Bytes, now: Instant, now_ns: i64) {
        self.waiting.put(at, data.into(), now_ns);
        self.since.get_or_insert(now);
    }

    /// Sets attributes over what was written.
    pub fn set(&mut self, settings: Settings, now: Instant) {
        self.waiting.set = self.waiting.set.and(settings);
        self.since.get_or_insert(now);
    }

    /// Takes what waits to be sent; also what an earlier sender left behind. False if there is nothing.
    pub fn take(&mut self) -> bool {
        self.put_back();
        self.sending = std::mem::take(&mut self.waiting);
        self.since = None;
        !self.sending.is_clean()
    }

    /// When the newest byte of what was taken was written, by the wall clock in nanoseconds.
    pub fn taken_written_ns(&self) -> i64 {
        self.sending.written_ns
    }

    /// The attributes that were set over what was taken: they go with the last of it.
    pub fn taken_set(&self) -> Settings {
        self.sending.set
    }

    /// The next part of what was taken, from an offset on. What adjoins is joined, but for large parts: they aren't copied.
    pub fn batch(&self, from: u64) -> Vec<Segment> {
        let mut segments: Vec<(u64, Data)> = Vec::new();
        let (mut bytes, mut places, mut end) = (0, 0, None);
        for (&at, part) in self.sending.parts.by_offset.range(from..) {
            let adjoins = end == Some(at);
            let full = bytes + part.len() > BATCH_BYTES || (!adjoins && places >= BATCH_SEGMENTS);
            if full && bytes > 0 {
                break;
            }
            bytes += part.len();
            places += usize::from(!adjoins);
            end = Some(at + part.len() as u64);
            match segments.last_mut() {
                _ if part.len() >= WHOLE_BYTES => segments.push((at, Data::Whole(part.bytes.clone()))),
                Some((_, Data::Joined(joined))) if adjoins && joined.len() < WHOLE_BYTES => {
                    joined.extend_from_slice(part)
                }
                _ => segments.push((at, Data::Joined(BytesMut::from(&part[..])))),
            }
        }
        let segment = |(at, data)| match data {
            Data::Whole(data) => Segment { at, data },
            Data::Joined(data) => Segment { at, data: data.freeze() },
        };
        segments.into_iter().map(segment).collect()
    }

    /// A batch is at the region, with the attributes that were set over it if it was the `last`; the region's attributes are now these. Answers
    /// how many bytes that were.
    pub fn sent(&mut self, batch: &[Segment], last: bool, attr: Option<Attr>) -> usize {
        let mut gone = 0;
        for segment in batch {
            let end = segment.at + segment.data.len() as u64;
            let sent = &mut self.sending.parts.by_offset;
            let parts: Vec<u64> = sent.range(segment.at..end).map(|(&at, _)| at).collect();
            for at in parts {
                gone += sent.remove(&at).map_or(0, |part| part.len());
            }
        }
        self.sending.parts.bytes -= gone;
        self.arrived += gone as u64;
        if last {
            self.sending.set = Settings::default();
        }
        if attr.is_some() {
            self.base = attr;
        }
        gone
    }

    /// What was taken and not sent waits again, beneath what was written meanwhile.
    pub fn put_back(&mut self) {
        if self.sending.is_clean() {
            return;
        }
        let newer = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.sending));
        self.waiting.put_layer(newer);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Gives everything up. Answers how many bytes that were.
    pub fn discard(&mut self) -> usize {
        let bytes = self.bytes();
        (self.waiting, self.sending, self.since) = (Layer::default(), Layer::default(), None);
        self.refused = None;
        bytes
    }

    /// Gives up the bytes, and keeps the attributes that were set over them, to be sent alone. Answers how many bytes that were: none, and
    /// nothing is done, where there are no such attributes, or nothing but them.
    pub fn discard_bytes(&mut self) -> usize {
        let (bytes, set) = (self.bytes(), self.sending.set.and(self.waiting.set));
        if set.is_empty() || self.data_bytes() == 0 {
            return 0;
        }
        self.discard();
        self.waiting.set = set;
        bytes - self.bytes()
    }

    /// The attributes as they are shown: the region's, beneath what is buffered.
    pub fn show(&self, attr: &mut Attr) {
        self.sending.show(attr);
        self.waiting.show(attr);
    }

    /// What is held of [from, to), the oldest first, and how far what is held of the file reaches.
    pub fn over(&self, from: u64, to: u64) -> (Vec<(u64, Bytes)>, u64) {
        let mut parts = self.sending.parts.within(from, to);
        parts.extend(self.waiting.parts.within(from, to));
        (parts, self.sending.parts.end().max(self.waiting.parts.end()))
    }

    /// The bytes of [from, to), if all of them are held here.
    pub fn read(&self, from: u64, to: u64) -> Option<Bytes> {
        let newest = self.waiting.parts.within(from, to);
        // One part is the common case, and needs no copy.
        if let [(at, part)] = &newest[..]
            && *at == from
            && part.len() as u64 == to - from
        {
            return Some(part.clone());
        }
        let older = self.sending.parts.within(from, to);
        let mut spans: Vec<(u64, u64)> =
            newest.iter().chain(&older).map(|(at, part)| (*at, at + part.len() as u64)).collect();
        spans.sort_unstable();
        let mut reach = from;
        for (start, end) in spans {
            if start > reach {
                return None;
            }
            reach = reach.max(end);
        }
        if reach < to {
            return None;
        }
        let mut bytes = BytesMut::zeroed(usize::try_from(to - from).ok()?);
        for (at, part) in older.into_iter().chain(newest) {
            let start = (at - from) as usize;
            bytes[start..start + part.len()].copy_from_slice(&part);
        }
        Some(bytes.freeze())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_wire::fs::{FileKind, SetAttr};
    use proptest::prelude::*;

    use super::*;

    const SPACE: usize = 64;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64, u8, usize),
        Set(Option<u32>, Option<i64>),
        Take,
        Send,
        PutBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40_u64, any::<u8>(), 1..24_usize).prop_map(|(at, byte, length)| Step::Put(at, byte, length)),
            1 => (prop::option::of(0..0o1000_u32), prop::option::of(prop_oneof![0..1_000_i64, Just(1 << 40)])).prop_map(|(mode, mtime)| Step::Set(mode, mtime)),
            1 => Just(Step::Take),
            2 => Just(Step::Send),
            1 => Just(Step::PutBack),
        ]
    }

    proptest! {
        /// The region's bytes beneath the buffer's are always the file; what a reader is given of the buffer alone is, too. The same for the
        /// mode and the time of modification.
        #[test]
        fn buffer_and_region_together_are_the_file(steps in prop::collection::vec(step(), 0..60)) {
            let (mut file, mut region) = ([0_u8; SPACE], [0_u8; SPACE]);
            let mut dirty = Dirty::default();
            let now = Instant::now();
            let regular = Attr { kind: FileKind::Regular.into(), ..Attr::default() };
            let (mut model, mut stored, mut clock) = (regular, regular, 1_000);
            for step in steps {
                clock += 1;
                match step {
                    Step::Put(at, byte, length) => {
                        dirty.put(at, vec![byte; length].into(), now, clock);
                        file[at as usize..at as usize + length].fill(byte);
                        model.mtime_ns = clock;
                    }
                    Step::Set(mode, mtime_ns) => {
                        let change = SetAttr { mode, mtime_ns, ..SetAttr::default() };
                        dirty.set(Settings::of(&change, &model, clock).unwrap(), now);
                        model.mode = mode.unwrap_or(model.mode);
                        model.mtime_ns = mtime_ns.unwrap_or(model.mtime_ns);
                    }
                    Step::Take => drop(dirty.take()),
                    Step::Send => {
                        let batch = dirty.batch(0);
                        if !batch.is_empty() {
                            stored.mtime_ns = dirty.taken_written_ns();
                        }
                        if let Some(set) = dirty.taken_set().to_wire(1) {
                            stored.mode = set.mode.unwrap_or(stored.mode);
                            stored.mtime_ns = set.mtime_ns.unwrap_or(stored.mtime_ns);
                        }
                        for segment in &batch {
                            let at = segment.at as usize;
                            region[at..at + segment.data.len()].copy_from_slice(&segment.data);
                        }
                        dirty.sent(&batch, true, None);
                    }
                    Step::PutBack => dirty.put_back(),
                }
                let parts = dirty.waiting.parts.by_offset.values().chain(dirty.sending.parts.by_offset.values());
                let held: usize = parts.map(|part| part.len()).sum();
                let sets = [dirty.waiting.set, dirty.sending.set].iter().filter(|set| !set.is_empty()).count();
                prop_assert_eq!(held + sets * SETTINGS_BYTES, dirty.bytes());
                let mut whole = region;
                for from in 0..SPACE as u64 {
                    if let Some(byte) = dirty.read(from, from + 1) {
                        whole[from as usize] = byte[0];
                    }
                }
                prop_assert_eq!(whole, file);
                for (from, to) in [(0, 20), (10, 30), (5, 63)] {
                    let all = (from..to).all(|at| dirty.read(at, at + 1).is_some());
                    let read = dirty.read(from, to);
                    prop_assert_eq!(read.is_some(), all);
                    if let Some(bytes) = read {
                        prop_assert_eq!(&bytes[..], &file[from as usize..to as usize]);
                    }
                }
                let mut attr = stored;
                dirty.show(&mut attr);
                prop_assert!(attr.size as usize <= SPACE);
                prop_assert_eq!((attr.mode, attr.mtime_ns), (model.mode, model.mtime_ns));
                prop_assert_eq!(dirty.is_clean(), dirty.bytes() == 0);
            }
        }
    }

    #[test]
    fn attributes_outlive_the_bytes_that_are_given_up() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let regular = Attr { kind: FileKind::Regular.into(), no_xattrs: true, ..Attr::default() };
        let set = |change| Settings::of(&change, &regular, 5).unwrap();
        dirty.put(0, Bytes::from_static(b"abc"), now, 1);
        assert_eq!(dirty.discard_bytes(), 0, "no attributes");
        dirty.set(set(SetAttr { mode: Some(0o600), ..SetAttr::default() }), now);
        assert!(dirty.take());
        dirty.put(3, Bytes::from_static(b"d"), now, 9);
        dirty.set(set(SetAttr { uid: Some(7), ..SetAttr::default() }), now);
        assert_eq!(dirty.discard_bytes(), 4 + SETTINGS_BYTES);
        assert!(dirty.take() && dirty.batch(0).is_empty());
        let left = dirty.taken_set().to_wire(1).unwrap();
        assert_eq!((left.mode, left.uid, dirty.taken_written_ns()), (Some(0o600), Some(7), 0));
        assert_eq!(dirty.discard_bytes(), 0, "nothing but attributes");
        assert!(!dirty.is_clean());
    }

    /// What is held is counted by what can be read, and what memory is held by allocations: the two mustn't part.
    #[test]
    fn what_was_overwritten_isnt_kept_in_memory() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let kept =
            |dirty: &Dirty| dirty.waiting.parts.by_offset.values().map(|part| part.allocated).sum::<usize>();
        let write = 64 << 10;
        for at in 0..100 {
            dirty.put(at, vec![7_u8; write].into(), now, 1);
        }
        assert_eq!(dirty.bytes(), write + 99);
        assert!(kept(&dirty) <= 2 * dirty.bytes(), "heads: {} for {}", kept(&dirty), dirty.bytes());
        dirty.discard();
        for at in (0..100).rev() {
            dirty.put(at, vec![7_u8; write].into(), now, 1);
        }
        assert!(kept(&dirty) <= 2 * dirty.bytes(), "tails: {} for {}", kept(&dirty), dirty.bytes());
        // Beneath what is newer, when it is put back.
        dirty.discard();
        dirty.put(0, vec![7_u8; write].into(), now, 1);
        assert!(dirty.take());
        dirty.put(0, vec![8_u8; write - 1].into(), now, 1);
        dirty.put_back();
        assert_eq!(dirty.bytes(), write);
        assert!(kept(&dirty) <= 2 * dirty.bytes(), "put back: {} for {}", kept(&dirty), dirty.bytes());
        // One that stays nearly whole isn't copied.
        dirty.discard();
        let large = Bytes::from(vec![7_u8; write]);
        dirty.put(0, large.clone(), now, 1);
        dirty.put(0, Bytes::from_static(b"x"), now, 1);
        assert_eq!(dirty.read(1, 9).map(|bytes| bytes.as_ptr()), Some(large[1..].as_ptr()));
    }

    #[test]
    fn a_batch_is_bounded_and_joins_what_adjoins() {
        let mut dirty = Dirty::default();
        let now = Instant::now();
        for n in 0..300_u64 {
            dirty.put(n * 10, Bytes::from_static(b"abcde"), now, 1);
        }
        assert!(dirty.take());
        let mut sent = 0;
        loop {
            let batch = dirty.batch(0);
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= BATCH_SEGMENTS);
            let end = batch.last().map_or(0, |segment| segment.at + segment.data.len() as u64);
            assert_eq!(dirty.batch(end).first().map(|segment| segment.at), (end < 2995).then_some(end + 5));
            sent += dirty.sent(&batch, false, None);
        }
        assert_eq!(sent, 1500);
        for n in 0..300_u64 {
            dirty.put(n * 1000, Bytes::from(vec![7; 1000]), now, 1);
        }
        assert!(dirty.take());
        assert_eq!(dirty.batch(0).iter().map(|segment| segment.data.len()).collect::<Vec<_>>(), [300_000]);
        assert_eq!(dirty.discard(), 300_000);
        let large = Bytes::from(vec![7; 1 << 20]);
        for n in 0..18_u64 {
            dirty.put(n << 20, large.clone(), now, 1);
        }
        assert!(dirty.take());
        let batch = dirty.batch(0);
        assert_eq!(batch.iter().map(|segment| segment.data.len()).sum::<usize>(), BATCH_BYTES);
        assert!(
            batch.iter().all(|segment| segment.data.as_ptr() == large.as_ptr()),
            "large parts aren't copied"
        );
    }
}
