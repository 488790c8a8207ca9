//! Data on its way into chunks, cut into packets: large parts as they lie, small ones joined. No sending.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use mooseng_wire::BULK_BYTES_MAX;

/// A part from this size on isn't copied: a packet of its own costs less than that.
pub(crate) const WHOLE_BYTES: usize = 512 << 10;

/// Bytes in parts, one behind the other. Clones share the bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packets {
    parts: VecDeque<Bytes>,
    bytes: usize,
}

impl Packets {
    pub fn of(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let parts: VecDeque<Bytes> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Self { bytes: parts.iter().map(Bytes::len).sum(), parts }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Takes the next packet, of `room` bytes at most; an empty one if there is no room, or nothing left.
    pub fn next(&mut self, room: usize) -> Bytes {
        let room = room.min(BULK_BYTES_MAX).min(self.bytes);
        let is_small = |part: Option<&Bytes>| part.is_some_and(|part| part.len() < WHOLE_BYTES);
        if !is_small(self.parts.front()) || !is_small(self.parts.get(1)) {
            return self.split(room);
        }
        let mut joined = BytesMut::with_capacity(room);
        while joined.len() < room && is_small(self.parts.front()) {
            joined.extend_from_slice(&self.split(room - joined.len()));
        }
        joined.freeze()
    }

    /// Drops so many bytes from the front.
    pub fn advance(&mut self, bytes: usize) {
        let mut left = bytes.min(self.bytes);
        while left > 0 {
            left -= self.split(left).len();
        }
    }

    /// Takes up to so many bytes of the first part.
    fn split(&mut self, most: usize) -> Bytes {
        let Some(first) = self.parts.front_mut() else { return Bytes::new() };
        let taken = first.split_to(first.len().min(most));
        if first.is_empty() {
            self.parts.pop_front();
        }
        self.bytes -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn large_parts_go_as_they_lie_and_small_ones_together() {
        let large = Bytes::from(vec![1; BULK_BYTES_MAX]);
        let small = Bytes::from(vec![2; 1000]);
        let mut packets = Packets::of([large.clone(), small.clone(), small.clone(), large.clone()]);
        let first = packets.next(usize::MAX);
        assert_eq!((first.as_ptr(), first.len()), (large.as_ptr(), large.len()));
        assert_eq!(packets.next(usize::MAX).len(), 2000);
        assert_eq!(packets.next(10).as_ptr(), large.as_ptr());
        assert_eq!(packets.next(0).len(), 0);
        packets.advance(BULK_BYTES_MAX - 11);
        assert_eq!(packets.next(usize::MAX).len(), 1);
        assert!(packets.is_empty() && packets.next(usize::MAX).is_empty());
    }

    proptest! {
        #[test]
        fn packets_hold_the_bytes_in_order(
            sizes in proptest::collection::vec(prop_oneof![0usize..3000, 400_000usize..1_300_000], 0..6),
            rooms in proptest::collection::vec(1usize..1_500_000, 1..8), skip in 0usize..2_000_000,
        ) {
            let mut n = 0u8;
            let parts: Vec<Bytes> = sizes.iter().map(|&size| {
                n += 1;
                (0..size).map(|i| (i / 7) as u8 ^ n).collect::<Vec<u8>>().into()
            }).collect();
            let all: Vec<u8> = parts.iter().flatten().copied().collect();
            let mut packets = Packets::of(parts);
            let mut rest = packets.clone();
            rest.advance(skip);
            for (whole, packets) in [(&all[..], &mut packets), (&all[skip.min(all.len())..], &mut rest)] {
                let mut got = Vec::new();
                for room in rooms.iter().cycle() {
                    let packet = packets.next(*room);
                    prop_assert!(packet.len() <= BULK_BYTES_MAX.min(*room));
                    if packet.is_empty() { break; }
                    got.extend_from_slice(&packet);
                }
                prop_assert!(packets.is_empty());
                prop_assert!(got == whole);
            }
        }
    }
}
