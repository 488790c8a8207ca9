//! Who may call what. Masters need no ticket; whoever else comes needs one, chunkservers of a chain included, which hand the
//! writer's on: a stolen certificate alone opens no chunk.

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
    if peer.cluster != ours.cluster || peer.region != ours.region {
        return Err(denied(format!(
            "{peer} isn't of this chunkserver's region {}/{}",
            ours.cluster, ours.region
        )));
    }
    let rights = match (peer.role, method) {
        (
            Role::Master,
            Method::ChunkRead
            | Method::ChunkSeal
            | Method::ChunkStat
            | Method::ChunkPull
            | Method::ChunkBuild
            | Method::ChunkDigest
            | Method::ChunkClose,
        ) => return Ok(()),
        (Role::Client | Role::Chunkserver, Method::ChunkAppend) | (Role::Client, Method::ChunkSeal) => APPEND,
        (Role::Client | Role::Chunkserver, Method::ChunkRead | Method::ChunkStat)
        | (Role::Client, Method::ChunkLend) => READ,
        (role, method) => return Err(denied(format!("a {role} may not call {}", method.as_str()))),
    };
    keys.verify(ticket, now_ms, chunk, rights).map_err(|e| {
        if e.is_passing() { call_error(ErrorCode::Unavailable, e.to_string()) } else { denied(e.to_string()) }
    })
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
            assert_eq!(may("spiffe://c/us/master/m", method, &[]), Err(ErrorCode::PermissionDenied));
            assert_eq!(may("spiffe://c/eu/admin/a", method, &read), Err(ErrorCode::PermissionDenied));
        }
        for method in [Method::ChunkPull, Method::ChunkBuild, Method::ChunkDigest, Method::ChunkClose] {
            assert_eq!(may("spiffe://c/eu/master/m", method, &[]), Ok(()));
            for other in ["spiffe://c/eu/client/x", "spiffe://c/eu/chunkserver/y", "spiffe://c/us/master/m"] {
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
