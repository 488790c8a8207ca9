//! Who may call what. The region's masters need no ticket; whoever else comes needs one, chunkservers of a chain included, which hand the
//! writer's on: a stolen certificate alone opens no chunk.
//!
//! Peers of the cluster's other regions, masters too, may do what this region's masters gave them a ticket for: clients read and write a volume
//! whose home is here, chunkservers make copies of what is here, and masters look whether those are the same. They give no orders and are lent no file.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mooseng_chunk::ticket::{self, APPEND, Key, READ, TicketError};
use mooseng_transport::call_error;
use mooseng_wire::admin::TicketKey;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Identity, Role};

/// Most keys kept: the newest ones.
const KEYS_MAX: usize = 8;

/// The region's ticket keys, as masters hand them out.
#[derive(Debug, Default)]
pub struct KeyRing(Mutex<Vec<Key>>);

impl KeyRing {
    fn keys(&self) -> MutexGuard<'_, Vec<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up keys; one of a known number replaces it.
    pub fn learn(&self, keys: &[TicketKey]) {
        if keys.is_empty() {
            return;
        }
        let mut ring = self.keys();
        for key in keys {
            ring.retain(|k| k.id != key.id);
            ring.push(Key { id: key.id, secret: key.key.to_vec() });
        }
        ring.sort_by_key(|k| std::cmp::Reverse(k.id));
        ring.truncate(KEYS_MAX);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys().is_empty()
    }

    fn verify(&self, ticket: &[u8], now_ms: u64, chunk: ChunkId, rights: u32) -> Result<(), TicketError> {
        ticket::verify(&self.keys(), ticket, now_ms, chunk, rights).map(drop)
    }
}

/// Decides whether `peer` may call `method` on a chunk with a ticket.
pub fn check(
    ours: &Identity,
    peer: &Identity,
    method: Method,
    chunk: ChunkId,
    ticket: &[u8],
    keys: &KeyRing,
    now_ms: u64,
) -> Result<(), CallError> {
    if peer.cluster != ours.cluster {
        return Err(denied(format!("{peer} isn't of this chunkserver's cluster {}", ours.cluster)));
    }
    let rights = if peer.region == ours.region {
        let Some(rights) = needed_here(peer.role, method)? else { return Ok(()) };
        rights
    } else {
        needed_from_afar(peer, method, &ours.region)?
    };
    keys.verify(ticket, now_ms, chunk, rights).map_err(|e| {
        if e.is_passing() { call_error(ErrorCode::Unavailable, e.to_string()) } else { denied(e.to_string()) }
    })
}

/// The rights that somebody of this region needs a ticket for; none for what is done without one.
fn needed_here(role: Role, method: Method) -> Result<Option<u32>, CallError> {
    match (role, method) {
        (
            Role::Master,
            Method::ChunkRead
            | Method::ChunkSeal
            | Method::ChunkStat
            | Method::ChunkPull
            | Method::ChunkFollow
            | Method::ChunkPush
            | Method::ChunkBuild
            | Method::ChunkDigest
            | Method::ChunkClose,
        ) => Ok(None),
        (Role::Client | Role::Chunkserver, Method::ChunkAppend) | (Role::Client, Method::ChunkSeal) => {
            Ok(Some(APPEND))
        }
        (Role::Client | Role::Chunkserver, Method::ChunkRead | Method::ChunkStat)
        | (Role::Client, Method::ChunkLend) => Ok(Some(READ)),
        (role, method) => Err(denied(format!("a {role} may not call {}", method.as_str()))),
    }
}

/// The rights that somebody of another region needs a ticket of this one for.
fn needed_from_afar(peer: &Identity, method: Method, here: &str) -> Result<u32, CallError> {
    match (peer.role, method) {
        // A home's chunkserver sends on what is appended there. Chains don't cross regions otherwise: the writer is the one who comes.
        (Role::Client, Method::ChunkAppend | Method::ChunkSeal)
        | (Role::Chunkserver, Method::ChunkAppend) => Ok(APPEND),
        (Role::Client | Role::Chunkserver | Role::Master, Method::ChunkRead | Method::ChunkStat)
        | (Role::Chunkserver | Role::Master, Method::ChunkDigest) => Ok(READ),
        (role, method) => {
            let (method, theirs) = (method.as_str(), &peer.region);
            Err(denied(format!("a {role} of region {theirs} may not call {method} in region {here}")))
        }
    }
}

fn denied(message: String) -> CallError {
    call_error(ErrorCode::PermissionDenied, message)
}

#[cfg(test)]
mod tests {
    use mooseng_chunk::ticket::Claims;

    use super::*;

    fn id(uri: &str) -> Identity {
        Identity::parse(uri).unwrap()
    }

    fn ring(secret: u8) -> KeyRing {
        let ring = KeyRing::default();
        ring.learn(&[TicketKey { id: 1, key: vec![secret; 32].into() }]);
        ring
    }

    #[test]
    fn who_may_call_what() {
        let ours = id("spiffe://c/eu/chunkserver/cs1");
        let read = ticket::sign(
            &Key { id: 1, secret: vec![1; 32] },
            &Claims { session: 1, volume: 0, chunk: 0, rights: READ, expires_ms: 1000 },
        );
        let may = |peer: &str, method, ticket: &[u8]| {
            check(&ours, &id(peer), method, ChunkId(5), ticket, &ring(1), 0).map_err(|e| e.code())
        };
        use Method::{ChunkAppend, ChunkRead, ChunkSeal, ChunkStat};
        for method in [ChunkRead, ChunkSeal, ChunkStat] {
            assert_eq!(may("spiffe://c/eu/master/m", method, &[]), Ok(()));
            assert_eq!(may("spiffe://c/eu/client/x", method, &[]), Err(ErrorCode::PermissionDenied));
            assert_eq!(may("spiffe://d/eu/master/m", method, &read), Err(ErrorCode::PermissionDenied));
            assert_eq!(may("spiffe://c/eu/admin/a", method, &read), Err(ErrorCode::PermissionDenied));
        }
        for method in [
            Method::ChunkPull,
            Method::ChunkFollow,
            Method::ChunkPush,
            Method::ChunkBuild,
            Method::ChunkDigest,
            Method::ChunkClose,
        ] {
            assert_eq!(may("spiffe://c/eu/master/m", method, &[]), Ok(()));
            for other in ["spiffe://c/eu/client/x", "spiffe://c/eu/chunkserver/y", "spiffe://d/eu/master/m"] {
                assert_eq!(may(other, method, &read), Err(ErrorCode::PermissionDenied));
            }
        }
        for other in ["spiffe://c/eu/master/m", "spiffe://c/eu/chunkserver/y", "spiffe://c/us/client/x"] {
            assert_eq!(may(other, Method::ChunkLend, &read), Err(ErrorCode::PermissionDenied));
        }
        assert_eq!(may("spiffe://c/eu/client/x", Method::ChunkLend, &read), Ok(()));
        assert_eq!(may("spiffe://c/eu/client/x", Method::ChunkLend, &[]), Err(ErrorCode::PermissionDenied));
        assert_eq!(may("spiffe://c/eu/master/m", ChunkAppend, &[]), Err(ErrorCode::PermissionDenied));
        assert_eq!(may("spiffe://c/eu/client/x", ChunkRead, &read), Ok(()));
        assert_eq!(may("spiffe://c/eu/client/x", ChunkAppend, &read), Err(ErrorCode::PermissionDenied));
        assert_eq!(may("spiffe://c/eu/chunkserver/y", ChunkSeal, &read), Err(ErrorCode::PermissionDenied));
        assert_eq!(may("spiffe://c/eu/client/x", Method::Renew, &read), Err(ErrorCode::PermissionDenied));
    }

    /// Everything there is to call, by everybody: what isn't listed is denied.
    #[test]
    fn another_region_may_do_what_it_has_a_ticket_for() {
        use Method::{
            ChunkAppend, ChunkBuild, ChunkClose, ChunkDigest, ChunkFollow, ChunkLend, ChunkPull, ChunkPush,
            ChunkRead, ChunkSeal, ChunkStat,
        };
        let ours = id("spiffe://c/eu/chunkserver/cs1");
        let all = [
            ChunkAppend,
            ChunkBuild,
            ChunkClose,
            ChunkDigest,
            ChunkFollow,
            ChunkLend,
            ChunkPull,
            ChunkPush,
            ChunkRead,
            ChunkSeal,
            ChunkStat,
        ];
        let with = |secret: u8, rights: u32, peer: &str, method: Method| {
            let claims = Claims { session: 1, volume: 0, chunk: 5, rights, expires_ms: 1000 };
            let ticket = ticket::sign(&Key { id: 1, secret: vec![secret; 32] }, &claims);
            check(&ours, &id(peer), method, ChunkId(5), &ticket, &ring(1), 0).is_ok()
        };
        let reads = [ChunkDigest, ChunkRead, ChunkStat];
        for (peer, reading, appending) in [
            ("spiffe://c/us/client/x", &[ChunkRead, ChunkStat][..], &[ChunkAppend, ChunkSeal][..]),
            ("spiffe://c/us/chunkserver/cs1", &reads[..], &[ChunkAppend][..]),
            ("spiffe://c/us/master/m", &reads[..], &[][..]),
            ("spiffe://c/us/admin/a", &[][..], &[][..]),
        ] {
            for method in all {
                let name = method.as_str();
                assert_eq!(with(1, READ, peer, method), reading.contains(&method), "{peer} {name}");
                assert_eq!(with(1, APPEND, peer, method), appending.contains(&method), "{peer} {name}");
                assert!(
                    !with(2, READ | APPEND, peer, method),
                    "{peer} {name} with a ticket of its own region"
                );
                assert!(
                    check(&ours, &id(peer), method, ChunkId(5), &[], &ring(1), 0).is_err(),
                    "{peer} {name}"
                );
                let elsewhere = peer.replace("://c/", "://d/");
                assert!(!with(1, READ | APPEND, &elsewhere, method), "{elsewhere} {name}");
            }
        }
    }

    #[test]
    fn a_key_that_may_still_come_is_worth_a_retry() {
        let ours = id("spiffe://c/eu/chunkserver/cs1");
        let ticket = ticket::sign(
            &Key { id: 1, secret: vec![1; 32] },
            &Claims { session: 1, volume: 0, chunk: 0, rights: READ, expires_ms: 1000 },
        );
        let client = id("spiffe://c/eu/client/x");
        let with = |ring: &KeyRing| {
            check(&ours, &client, Method::ChunkRead, ChunkId(5), &ticket, ring, 0).map_err(|e| e.code())
        };
        assert_eq!(with(&KeyRing::default()), Err(ErrorCode::Unavailable));
        assert_eq!(with(&ring(2)), Err(ErrorCode::PermissionDenied));
        let many = ring(1);
        many.learn(&(2..20).map(|id| TicketKey { id, key: vec![id as u8; 32].into() }).collect::<Vec<_>>());
        assert_eq!(many.keys().len(), KEYS_MAX);
        assert_eq!(many.keys()[0].id, 19);
    }
}
