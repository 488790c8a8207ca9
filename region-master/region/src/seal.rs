//! Sealing: at which length a chunk ends, and which of its copies count.
//!
//! A chunk is sealed when its writer is done, when a member of its chain failed, or when its writer's session lapsed. The length lies between
//! what extents name already (those bytes were promised) and what the chain acknowledged (more isn't known to be everywhere). Every member
//! that has acknowledged has these bytes flushed, so a member that failed *after* that is still a copy: it is dropped only where enough
//! others are left, and a dropped one that comes back with the whole length may be taken up again by repair.

use std::collections::BTreeSet;

/// What is known when a seal is asked for.
#[derive(Clone, Debug)]
pub struct SealFacts<'a> {
    /// The end of the furthest extent that names the chunk.
    pub committed: u64,
    /// What the chain acknowledged to the writer; none for a writer that is gone.
    pub acknowledged: Option<u64>,
    /// The chunk's members.
    pub members: &'a [String],
    /// The members that the writer saw failing.
    pub failed: &'a BTreeSet<String>,
    /// The storage class' least number of copies.
    pub min_copies: usize,
}

/// What is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealDecision {
    /// The chunk's length from now on.
    pub length: u64,
    /// The members that stay in the record.
    pub members: Vec<String>,
    /// The members to tell.
    pub tell: Vec<String>,
}

/// The writer claims less than what it committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the chunk has {committed} bytes named by extents, more than the {acknowledged} that its writer calls acknowledged"
)]
pub struct BelowCommitted {
    /// Named by extents.
    pub committed: u64,
    /// Claimed.
    pub acknowledged: u64,
}

/// Decides a seal.
pub fn decide(facts: &SealFacts<'_>) -> Result<SealDecision, BelowCommitted> {
    let length = facts.acknowledged.unwrap_or(facts.committed);
    if length < facts.committed {
        return Err(BelowCommitted { committed: facts.committed, acknowledged: length });
    }
    let well: Vec<String> = facts.members.iter().filter(|m| !facts.failed.contains(*m)).cloned().collect();
    let members = if well.len() >= facts.min_copies.max(1) { well } else { facts.members.to_vec() };
    Ok(SealDecision { length, members, tell: facts.members.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn decisions() {
        // committed, acknowledged, members, failed, min_copies -> length, members left
        type Row<'a> = (u64, Option<u64>, &'a [&'a str], &'a [&'a str], usize, Option<(u64, &'a [&'a str])>);
        let table: &[Row<'_>] = &[
            (5, Some(9), &["a", "b"], &[], 2, Some((9, &["a", "b"]))),
            (5, Some(4), &["a", "b"], &[], 2, None),
            (5, None, &["a", "b"], &[], 2, Some((5, &["a", "b"]))),
            (0, Some(0), &["a"], &[], 1, Some((0, &["a"]))),
            // A failed member may be dropped only while enough are left: with 2 of 2 it stays on record.
            (5, Some(9), &["a", "b"], &["b"], 2, Some((9, &["a", "b"]))),
            (5, Some(9), &["a", "b"], &["b"], 1, Some((9, &["a"]))),
            (5, Some(9), &["a", "b", "c"], &["b"], 2, Some((9, &["a", "c"]))),
            (5, Some(9), &["a", "b", "c"], &["b", "c"], 2, Some((9, &["a", "b", "c"]))),
            // However low the class, the last copy is never dropped.
            (5, Some(9), &["a"], &["a"], 0, Some((9, &["a"]))),
        ];
        for (committed, acknowledged, members, failed, min_copies, expected) in table {
            let members = names(members);
            let failed: BTreeSet<String> = names(failed).into_iter().collect();
            let facts = SealFacts {
                committed: *committed,
                acknowledged: *acknowledged,
                members: &members,
                failed: &failed,
                min_copies: *min_copies,
            };
            let got = decide(&facts).ok().map(|d| (d.length, d.members));
            assert_eq!(got, expected.map(|(l, m)| (l, names(m))), "{facts:?}");
        }
    }
}
