//! How records of a volume go that is here no more: range by range, in parts, each in a transaction of its own.

use bytes::Bytes;
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction, key_range};

use crate::error::OpError;

/// Records that one transaction clears at most.
pub const PART: usize = 1_000;

/// How far clearing a volume is. What was cleared isn't looked through again with each part: engines keep marks of it for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Which of the ranges.
    range: usize,
    /// Behind this key of it.
    behind: Option<Bytes>,
}

/// Clears the next part of these ranges, `most` records at most, behind what was cleared before. Answers how far it is, or none once nothing is left in any of
/// them, which the transaction rests on then.
pub(crate) async fn clear<T: Transaction>(
    tx: &T,
    ranges: &[KeyRange],
    mut progress: Progress,
    most: usize,
) -> Result<Option<Progress>, OpError> {
    if let Some(part) = next_part(tx, ranges, &mut progress, most, Read::Snapshot).await? {
        tx.clear_range(part);
        return Ok(Some(progress));
    }
    // Something may have come meanwhile to where it was looked already.
    let mut anew = Progress::default();
    let part = next_part(tx, ranges, &mut anew, most, Read::Conflicting).await?;
    Ok(part.map(|part| {
        tx.clear_range(part);
        anew
    }))
}

/// Whether there is nothing in any of these ranges. The transaction rests on it.
pub(crate) async fn is_nothing<T: Transaction>(tx: &T, ranges: &[KeyRange]) -> Result<bool, OpError> {
    Ok(next_part(tx, ranges, &mut Progress::default(), 1, Read::Conflicting).await?.is_none())
}

async fn next_part<T: Transaction>(
    tx: &T,
    ranges: &[KeyRange],
    progress: &mut Progress,
    most: usize,
    read: Read,
) -> Result<Option<KeyRange>, OpError> {
    let limit = RangeLimit { pairs_max: most, ..RangeLimit::default() };
    for range in ranges.iter().skip(progress.range) {
        let begin = progress.behind.take().unwrap_or_else(|| range.begin.clone());
        let page = tx.get_range(KeyRange { begin, end: range.end.clone() }, limit, read).await?;
        if let (Some((first, _)), Some((last, _))) = (page.pairs.first(), page.pairs.last()) {
            let part = KeyRange { begin: first.clone(), end: key_range(last).end };
            progress.behind = Some(part.end.clone());
            return Ok(Some(part));
        }
        progress.range += 1;
    }
    Ok(None)
}
