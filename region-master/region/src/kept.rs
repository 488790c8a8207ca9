//! How many bytes of a volume's log lie behind which place: so many are kept for regions that don't follow.

use std::collections::VecDeque;

/// A log from where it begins, as far as it was looked through. Places are anything ordered.
#[derive(Clone, Debug)]
pub struct Kept<P> {
    /// Places, with the bytes of all entries up to there.
    marks: VecDeque<(P, u64)>,
    /// The bytes of what was let go of.
    gone: u64,
}

impl<P> Default for Kept<P> {
    fn default() -> Self {
        Self { marks: VecDeque::new(), gone: 0 }
    }
}

impl<P: Copy + Ord> Kept<P> {
    /// It goes on up to `upto`, with entries of so many bytes.
    pub fn note(&mut self, upto: P, bytes: u64) {
        debug_assert!(self.upto().is_none_or(|before| before < upto), "it is looked through in its order");
        self.marks.push_back((upto, self.bytes_upto() + bytes));
    }

    /// As far as it was looked through; none where that is where it begins.
    pub fn upto(&self) -> Option<P> {
        self.marks.back().map(|(at, _)| *at)
    }

    fn bytes_upto(&self) -> u64 {
        self.marks.back().map_or(self.gone, |(_, bytes)| *bytes)
    }

    /// Nothing up to there is kept any more.
    pub fn trimmed(&mut self, upto: P) {
        while let Some((_, bytes)) = self.marks.front().filter(|(at, _)| *at <= upto) {
            self.gone = *bytes;
            self.marks.pop_front();
        }
    }

    /// The first place behind which no more than so many bytes lie; none where there are no more than that.
    pub fn leaves(&self, bytes_max: u64) -> Option<P> {
        let all = self.bytes_upto();
        if all - self.gone <= bytes_max {
            return None;
        }
        self.marks.iter().find(|(_, bytes)| all - bytes <= bytes_max).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_place_lies_what_came_since() {
        let mut kept = Kept::default();
        assert_eq!((kept.upto(), kept.leaves(0)), (None, None));
        for (at, bytes) in [(3, 10), (5, 20), (9, 30)] {
            kept.note(at, bytes);
        }
        assert_eq!((kept.upto(), kept.leaves(60), kept.leaves(59)), (Some(9), None, Some(3)));
        assert_eq!((kept.leaves(50), kept.leaves(49), kept.leaves(29)), (Some(3), Some(5), Some(9)));
        // A place between two that were noted: what lies before it counts still.
        kept.trimmed(4);
        assert_eq!((kept.leaves(50), kept.leaves(49), kept.leaves(0)), (None, Some(5), Some(9)));
        kept.trimmed(9);
        assert_eq!((kept.upto(), kept.leaves(0)), (None, None));
        kept.note(12, 5);
        assert_eq!((kept.leaves(5), kept.leaves(4)), (None, Some(12)));
    }
}
