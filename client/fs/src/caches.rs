//! How often each cache of a client had what was asked of it. What a kernel answers from its own caches never comes here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What is kept, each with its promise or for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// What a name in a directory stands for, or that it stands for nothing.
    Entries,
    /// Attributes of inodes.
    Attributes,
    /// Lists of directories.
    Lists,
    /// Access control lists.
    AccessLists,
    /// Where a file's bytes lie; small files' bytes themselves.
    Extents,
    /// Written bytes that aren't at the region yet, for reads.
    Written,
    /// Chunk data in memory.
    Chunks,
}

impl Cache {
    const ALL: [Self; 7] = [
        Self::Entries,
        Self::Attributes,
        Self::Lists,
        Self::AccessLists,
        Self::Extents,
        Self::Written,
        Self::Chunks,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Attributes => "attributes",
            Self::Lists => "lists",
            Self::AccessLists => "access_lists",
            Self::Extents => "extents",
            Self::Written => "written",
            Self::Chunks => "chunks",
        }
    }
}

/// How often a cache had what was asked of it, and how often it hadn't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// It had it.
    pub hits: u64,
    /// Others had to be asked: the region, a chunkserver.
    pub misses: u64,
}

impl CacheCounts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

#[derive(Debug, Default)]
struct Counter {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Counters of all caches.
#[derive(Debug, Default)]
pub(crate) struct Caches([Counter; Cache::ALL.len()]);

impl Caches {
    /// A cache was asked for something that it has, or not.
    pub fn asked(&self, cache: Cache, has: bool) {
        let counter = &self.0[cache as usize];
        let counter = if has { &counter.hits } else { &counter.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, CacheCounts> {
        let counts = |cache: Cache| {
            let Counter { hits, misses } = &self.0[cache as usize];
            CacheCounts { hits: hits.load(Ordering::Relaxed), misses: misses.load(Ordering::Relaxed) }
        };
        Cache::ALL.into_iter().map(|cache| (cache.name(), counts(cache))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_by_itself() {
        let caches = Caches::default();
        for (at, cache) in Cache::ALL.into_iter().enumerate() {
            assert_eq!(cache as usize, at);
            (0..at).for_each(|_| caches.asked(cache, true));
            caches.asked(cache, false);
        }
        let mut counts = caches.counts();
        assert_eq!(counts.len(), Cache::ALL.len(), "each has a name of its own");
        assert_eq!(counts["lists"], CacheCounts { hits: 2, misses: 1 });
        let more = counts["chunks"];
        counts.entry("lists").or_default().add(&more);
        assert_eq!(counts["lists"], CacheCounts { hits: 8, misses: 2 });
    }
}
