//! The calls of a group: the region's and the global one have numbers of their own, so that what arrives names its group before anything is decoded.

use mooseng_wire::method::Method;

/// The global group's number. Far from the region group's, 0, to which the number of its line is added.
pub const GLOBAL_GROUP: u32 = 0x4000_0000;

/// The calls of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub append: Method,
    pub vote: Method,
    pub snapshot_begin: Method,
    pub snapshot_page: Method,
    pub snapshot_end: Method,
    pub found: Method,
}

const REGION: Calls = Calls {
    append: Method::RaftAppend,
    vote: Method::RaftVote,
    snapshot_begin: Method::RaftSnapshotBegin,
    snapshot_page: Method::RaftSnapshotPage,
    snapshot_end: Method::RaftSnapshotEnd,
    found: Method::RaftFound,
};

const GLOBAL: Calls = Calls {
    append: Method::GlobalAppend,
    vote: Method::GlobalVote,
    snapshot_begin: Method::GlobalSnapshotBegin,
    snapshot_page: Method::GlobalSnapshotPage,
    snapshot_end: Method::GlobalSnapshotEnd,
    found: Method::GlobalFound,
};

/// What a call of Raft asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Append,
    Vote,
    SnapshotBegin,
    SnapshotPage,
    SnapshotEnd,
    Found,
}

impl Calls {
    /// The calls of the group of that number.
    pub fn of(group: u32) -> &'static Self {
        if group == GLOBAL_GROUP { &GLOBAL } else { &REGION }
    }

    /// What a call asks for; none if it isn't one of this group's.
    pub fn asked(&self, method: Method) -> Option<Asked> {
        let all = [
            (self.append, Asked::Append),
            (self.vote, Asked::Vote),
            (self.snapshot_begin, Asked::SnapshotBegin),
            (self.snapshot_page, Asked::SnapshotPage),
            (self.snapshot_end, Asked::SnapshotEnd),
            (self.found, Asked::Found),
        ];
        all.into_iter().find(|(known, _)| *known == method).map(|(_, asked)| asked)
    }
}

/// Whether a call is one of the region group's Raft.
pub fn is_of_region(method: Method) -> bool {
    REGION.asked(method).is_some()
}

/// Whether a call is one of the global group's Raft.
pub fn is_of_global(method: Method) -> bool {
    GLOBAL.asked(method).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_of_one_group_and_on_the_same_lane_in_both() {
        for (region, global) in [
            (REGION.append, GLOBAL.append),
            (REGION.vote, GLOBAL.vote),
            (REGION.snapshot_begin, GLOBAL.snapshot_begin),
            (REGION.snapshot_page, GLOBAL.snapshot_page),
            (REGION.snapshot_end, GLOBAL.snapshot_end),
            (REGION.found, GLOBAL.found),
        ] {
            assert!(is_of_region(region) && !is_of_global(region), "{region:?}");
            assert!(is_of_global(global) && !is_of_region(global), "{global:?}");
            assert_eq!(region.lane(), global.lane());
            assert_eq!(Calls::of(0).asked(region), Calls::of(GLOBAL_GROUP).asked(global));
        }
        assert!(!is_of_region(Method::Renew) && !is_of_global(Method::GlobalRenew));
    }
}
