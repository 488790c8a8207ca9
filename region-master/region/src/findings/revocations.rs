//! Who doesn't go by the newest lists of whom to refuse.

use super::{CredentialFacts, Facts, Finding, finding};
use crate::codes;

/// What the cluster has agreed to refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgreedFacts {
    /// The version that the asked master goes by.
    pub version: u64,
    /// It has had that for long enough for everybody to have heard of it.
    pub settled: bool,
}

/// Lists only grow, as a rule: the longest is taken for the newest, and whoever goes by another lacks it.
pub(super) fn of(facts: &Facts, found: &mut Vec<Finding>) {
    let holders = |digest: &str| facts.credentials.iter().filter(|c| c.revocations_digest == digest).count();
    let newest = facts.credentials.iter().max_by_key(|c| {
        (c.revocations, holders(&c.revocations_digest), &c.revocations_digest, std::cmp::Reverse(&c.identity))
    });
    let Some(newest) = newest else { return };
    for other in facts.credentials.iter().filter(|c| c.revocations_digest != newest.revocations_digest) {
        let detail = format!(
            "Its revocation list {} names {}; {} has {}, which names {}.",
            other.revocations_digest,
            other.revocations,
            newest.identity,
            newest.revocations_digest,
            newest.revocations
        );
        found.push(finding(&codes::REVOCATIONS_DIFFER, &other.identity, detail));
    }
    let behind = |c: &&CredentialFacts| facts.agreed.settled && c.agreed_version < facts.agreed.version;
    for lagging in facts.credentials.iter().filter(behind) {
        let detail = format!(
            "It goes by version {} of what the cluster has revoked; {} is the newest.",
            lagging.agreed_version, facts.agreed.version
        );
        found.push(finding(&codes::REVOCATIONS_DIFFER, &lagging.identity, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::super::tests::{cert, well};
    use super::*;

    #[test]
    fn whoever_lacks_what_the_cluster_revoked_is_named_once_it_had_time_to_hear_of_it() {
        let mut facts = well();
        let with =
            |identity: &str, agreed_version| CredentialFacts { agreed_version, ..cert(identity, 80_000) };
        facts.credentials = vec![with("m1", 7), with("m2", 8), with("cs1", 6)];
        facts.agreed = AgreedFacts { version: 7, settled: false };
        assert_eq!(findings(&facts), vec![]);
        facts.agreed.settled = true;
        let found = findings(&facts);
        assert_eq!(found.iter().map(|f| f.subject.as_str()).collect::<Vec<_>>(), ["cs1"]);
        assert_eq!(found[0].code.code, "REVOCATIONS_DIFFER");
        assert!(
            found[0].detail.contains("version 6") && found[0].detail.contains("7 is"),
            "{}",
            found[0].detail
        );
    }

    #[test]
    fn whoever_lacks_the_longest_revocation_list_is_named() {
        let mut facts = well();
        let with = |identity: &str, digest: &str, revocations| CredentialFacts {
            revocations_digest: digest.into(),
            revocations,
            ..cert(identity, 80_000)
        };
        facts.credentials = vec![with("m1", "two", 2), with("m2", "two", 2), with("cs1", "one", 1)];
        let found_now = findings(&facts);
        assert_eq!(found_now.len(), 1, "{found_now:?}");
        assert_eq!((found_now[0].code.code, found_now[0].subject.as_str()), ("REVOCATIONS_DIFFER", "cs1"));
        assert!(found_now[0].detail.contains("m1 has two"), "{}", found_now[0].detail);
        facts.credentials[2] = with("cs1", "two", 2);
        assert_eq!(findings(&facts), vec![]);
        // Of lists that are as long, most go by the right one.
        facts.credentials[0] = with("m1", "zwo", 2);
        assert_eq!(findings(&facts).iter().map(|f| f.subject.as_str()).collect::<Vec<_>>(), ["m1"]);
    }
}
