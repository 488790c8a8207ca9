//! Small files that share a chunk lie beside each other there, about as they were made. Whoever reads a tree of them reads neighbours, though not in their
//! order: so after some of one block, the block is fetched as a whole.

use std::collections::VecDeque;

use crate::cache::BLOCK;

/// Blocks that are remembered.
const REMEMBERED: usize = 16;
/// Files of one block that are read for themselves.
const ALONE: u32 = 3;

/// From which blocks whole files were read lately, and how many.
#[derive(Debug, Default)]
pub(crate) struct Neighbours(VecDeque<((u64, u64), u32)>);

impl Neighbours {
    /// A whole file is read, which lies there in a sealed chunk of that length. Answers the part of the chunk that is worth fetching for its neighbours'
    /// sake: begin and end.
    pub fn read(&mut self, chunk: u64, offset: u64, chunk_length: u64) -> Option<(u64, u64)> {
        let block = offset / BLOCK;
        let known = self.0.iter().position(|(key, _)| *key == (chunk, block));
        let count = known.and_then(|i| self.0.remove(i)).map_or(0, |(_, count)| count) + 1;
        self.0.push_back(((chunk, block), count));
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
        let begin = block * BLOCK;
        (count > ALONE).then_some((begin, chunk_length.min(begin + BLOCK)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_fetched_after_some_of_its_files() {
        let mut neighbours = Neighbours::default();
        let length = BLOCK + 500_000;
        for n in [7, 2, 5] {
            assert_eq!(neighbours.read(1, BLOCK + n * 10_000, length), None);
            assert_eq!(neighbours.read(2, n * 10_000, length), None, "another chunk");
            assert_eq!(neighbours.read(n + 10, 0, length), None, "and others");
        }
        assert_eq!(neighbours.read(1, BLOCK + 1, length), Some((BLOCK, length)));
        assert_eq!(neighbours.read(2, BLOCK - 1, length), Some((0, BLOCK)));
        for chunk in 20..40 {
            assert_eq!(neighbours.read(chunk, 0, length), None);
        }
        assert_eq!(neighbours.read(1, BLOCK + 1, length), None, "that was long ago");
    }
}
