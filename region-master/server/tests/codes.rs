//! Every code that daemons log or answer with can be looked up.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use mooseng_region::codes;
use mooseng_transport::refusal;

#[test]
fn every_code_of_a_refused_peer_can_be_explained_and_no_other_begins_like_one() {
    for code in refusal::ALL {
        assert!(codes::find(code).is_some(), "{code} has no entry in the registry of health codes");
    }
    for code in codes::ALL.iter().map(|c| c.code).filter(|c| c.starts_with("PEER") || c.contains("_BY_PEER"))
    {
        assert!(refusal::ALL.contains(&code), "{code} is explained, but no peer is refused with it");
    }
}
