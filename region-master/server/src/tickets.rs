//! Ticket keys: made once by the first leader, kept in the region's store, handed to chunkservers with each heartbeat's answer.

use mooseng_chunk::ticket::{self, Claims, Key};
use mooseng_namespace::{OpError, upkeep};
use mooseng_store::{Store, StoreError};
use rand::RngCore;

use crate::records::{RecordFailure, transact};

/// The secret's name in the store.
const NAME: &str = "ticket-key-1";
const KEY_ID: u32 = 1;
const SECRET_BYTES: usize = 32;

/// How long a ticket is valid. Longer than a session's lease: a client asks for places again long before.
pub const TICKET_LIFE_MS: u64 = 3_600_000;

/// Reads the region's ticket keys, newest first, and makes one where there is none.
pub async fn load<S: Store>(store: &S) -> Result<Vec<Key>, RecordFailure> {
    let secret = transact(store, |tx| async move {
        if let Some(secret) = upkeep::load_secret(&tx, NAME).await? {
            return Ok((tx, secret.to_vec()));
        }
        let mut secret = vec![0; SECRET_BYTES];
        rand::rng().fill_bytes(&mut secret);
        upkeep::store_secret(&tx, NAME, &secret);
        Ok((tx, secret))
    })
    .await?;
    if secret.len() != SECRET_BYTES {
        let problem =
            format!("the ticket key in the store has {} bytes instead of {SECRET_BYTES}", secret.len());
        return Err(RecordFailure(OpError::Store(StoreError::Failed(problem))));
    }
    Ok(vec![Key { id: KEY_ID, secret }])
}

/// A ticket for one chunk.
pub fn for_chunk(keys: &[Key], session: u64, volume: u64, chunk: u64, append: bool, now_ns: i64) -> Vec<u8> {
    let Some(key) = keys.first() else { return Vec::new() };
    let rights = if append { ticket::READ | ticket::APPEND } else { ticket::READ };
    let now_ms = u64::try_from(now_ns / 1_000_000).unwrap_or(0);
    // Rounded up, so that the tickets of one answer and of the next few are the same bytes: clients and chunkservers may remember them.
    let expires_ms = (now_ms + TICKET_LIFE_MS).next_multiple_of(60_000);
    ticket::sign(key, &Claims { session, volume, chunk, rights, expires_ms })
}
