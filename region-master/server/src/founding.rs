//! Who is of this region and who of another one that was made under its name: by the founding mark.
//!
//! A region whose masters lost their disks can be made anew, with empty metadata. Chunkservers and mounts of the old one aren't let in: nobody
//! here knows their chunks, which house-keeping would take for rubbish, and a mount would show an empty tree.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::founding::{Founding, MalformedFounding};

/// Most that are remembered at a time.
const STRANGERS_MAX: usize = 1_000;
/// Whoever hasn't come again for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Why somebody isn't let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// Another founding.
    #[error(
        "the caller is of the region with the founding mark {told}, this region carries the mark {own}: it was made anew, most likely because its masters' disks were lost. Nothing of the old one is taken in here; start the old region's masters with their old disks again (docs/operations.md)"
    )]
    Other {
        /// The caller's mark.
        told: Founding,
        /// This region's.
        own: Founding,
    },
    /// No mark at all.
    #[error(transparent)]
    Malformed(#[from] MalformedFounding),
}

impl From<NotOurs> for CallError {
    fn from(not_ours: NotOurs) -> Self {
        let error = |code| call_error(code, not_ours.to_string());
        match &not_ours {
            NotOurs::Other { own, .. } => {
                CallError { detail: Founding::tell(Some(*own)), ..error(ErrorCode::OtherFounding) }
            }
            NotOurs::Malformed(_) => error(ErrorCode::InvalidRequest),
        }
    }
}

/// Whether a caller that tells this mark may be let in, and the mark. One without a mark may: it gets it.
pub fn check(own: Option<Founding>, told: &[u8]) -> Result<Option<Founding>, NotOurs> {
    let told = Founding::told(told)?;
    match (own, told) {
        (Some(own), Some(told)) if own != told => Err(NotOurs::Other { told, own }),
        _ => Ok(told),
    }
}

/// Whoever was refused as of another founding, by what people call it.
#[derive(Debug, Default)]
pub struct Strangers(BTreeMap<String, (Founding, BootTime)>);

impl Strangers {
    /// One was refused. Said once in the log, until it hasn't come for a while or tells another mark.
    pub fn refused(&mut self, now: BootTime, who: String, told: Founding, own: Founding) {
        self.0.retain(|_, (_, at)| now.since(*at) < FORGET_AFTER);
        let known = self.0.get(&who).is_some_and(|(mark, _)| *mark == told);
        if !known && self.0.len() >= STRANGERS_MAX {
            return;
        }
        if !known {
            tracing::error!(
                who,
                told = %told,
                own = %own,
                "Somebody is of another founding of this region and is refused: this region was made anew, most likely because the masters' disks were lost. If the old region's masters can be brought back, stop this one's and start those with their old disks; otherwise the old data is given up by starting chunkservers with empty directories, and mounting again (docs/operations.md)."
            );
        }
        self.0.insert(who, (told, now));
    }

    /// One was let in.
    pub fn let_in(&mut self, who: &str) {
        self.0.remove(who);
    }

    /// Those that came lately, with their marks.
    pub fn lately(&self, now: BootTime) -> Vec<(String, Founding)> {
        let fresh = self.0.iter().filter(|(_, (_, at))| now.since(*at) < FORGET_AFTER);
        fresh.map(|(who, (mark, _))| (who.clone(), *mark)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_mark_is_refused() {
        let (own, other) = (Founding([1; 16]), Founding([2; 16]));
        assert_eq!(check(Some(own), &own.0), Ok(Some(own)));
        assert_eq!(check(Some(own), &[]), Ok(None));
        assert_eq!(check(None, &other.0), Ok(Some(other)));
        let refused: CallError = check(Some(own), &other.0).unwrap_err().into();
        assert_eq!((refused.code(), &refused.detail[..]), (ErrorCode::OtherFounding, &own.0[..]));
        let malformed: CallError = check(Some(own), &[1; 3]).unwrap_err().into();
        assert_eq!(malformed.code(), ErrorCode::InvalidRequest);
    }

    #[test]
    fn strangers_are_remembered_for_a_while() {
        let (own, other) = (Founding([1; 16]), Founding([2; 16]));
        let at = |s| BootTime(Duration::from_secs(s));
        let mut strangers = Strangers::default();
        strangers.refused(at(0), "a".into(), other, own);
        strangers.refused(at(20), "b".into(), other, own);
        assert_eq!(strangers.lately(at(20)).len(), 2);
        assert_eq!(strangers.lately(at(40)), [("b".to_owned(), other)]);
        strangers.let_in("b");
        assert!(strangers.lately(at(20)).iter().all(|(who, _)| who == "a"));
    }
}
