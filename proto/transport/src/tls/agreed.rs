//! Whom the cluster has agreed to refuse, shared by all that check certificates: what is taken up holds at once, whichever files were read when.

use std::sync::{Arc, PoisonError, RwLock};

use mooseng_wire::Identity;
use mooseng_wire::revocations::Agreed;

/// The list in force. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce(Arc<RwLock<Arc<Agreed>>>);

impl InForce {
    pub(super) fn now(&self) -> Arc<Agreed> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a newer list up. **Invariant**: an older one never replaces it, whoever tells it: masters that lag know less.
    pub(super) fn take(&self, agreed: Agreed) -> bool {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if agreed.version <= now.version {
            return false;
        }
        *now = Arc::new(agreed);
        true
    }

    pub(super) fn names(&self, serial: &str, owner: &Identity) -> bool {
        self.now().revoked.names(serial, owner)
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::revocations::Revocations;

    use super::*;

    #[test]
    fn an_older_list_never_replaces_a_newer_one() {
        let list = |version, text: &str| Agreed { version, revoked: Revocations::parse(text).unwrap() };
        let owner = Identity::parse("spiffe://c/r/client/x").unwrap();
        let (force, other) = (InForce::default(), InForce::default());
        let seen_by_others = force.clone();
        assert!(!force.take(list(0, "77")), "nothing was agreed on");
        assert!(force.take(list(5, "77")));
        assert!(!force.take(list(4, "")) && !force.take(list(5, "")));
        assert!(seen_by_others.names("77", &owner) && !other.names("77", &owner));
        assert!(force.take(list(6, "")));
        assert!(!seen_by_others.names("77", &owner));
    }
}
