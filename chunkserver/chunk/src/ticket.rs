//! Tickets: a master signs, a chunkserver checks. The MAC is a keyed BLAKE3 over the ticket's fields in a fixed order and width, so that
//! no protobuf encoding, present or future, has a say in it.

use mooseng_wire::ChunkId;
use mooseng_wire::chunk::Ticket;
use prost::Message;

/// Reading is allowed.
pub const READ: u32 = 1;
/// Appending and sealing are allowed.
pub const APPEND: u32 = 2;
/// How long after its expiry a ticket is still taken: clocks differ.
pub const SKEW_MS: u64 = 30_000;

/// A key that tickets are signed with. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its number, which tickets carry.
    pub id: u32,
    /// Its secret bytes.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// What a ticket grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The session that it is for.
    pub session: u64,
    /// The volume.
    pub volume: u64,
    /// The chunk; 0 for every chunk of the volume.
    pub chunk: u64,
    /// [`READ`] and [`APPEND`].
    pub rights: u32,
    /// When it expires, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// Why a ticket is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TicketError {
    /// There is none.
    #[error("the request carries no ticket; ask a master for one")]
    Missing,
    /// It isn't a ticket.
    #[error("the ticket can't be decoded; ask a master for another one")]
    Malformed,
    /// This chunkserver doesn't know the key that signed it.
    #[error(
        "the ticket was signed with key {0}, which this chunkserver doesn't know (yet); ask a master for a fresh ticket"
    )]
    UnknownKey(u32),
    /// The MAC is wrong.
    #[error(
        "the ticket's signature is wrong: it was altered, or made by another region; ask a master for another one"
    )]
    Forged,
    /// It is too old.
    #[error("the ticket expired {0} ms ago; ask a master for a fresh one")]
    Expired(u64),
    /// It grants something else.
    #[error("the ticket doesn't allow to {what} chunk {chunk}; ask a master for one that does")]
    NotGranted {
        /// What was asked for.
        what: &'static str,
        /// Of which chunk.
        chunk: ChunkId,
    },
}

impl TicketError {
    /// Whether it may pass by itself, as this chunkserver learns keys.
    pub fn is_passing(&self) -> bool {
        matches!(self, TicketError::UnknownKey(_))
    }
}

fn mac(key: &Key, claims: &Claims) -> blake3::Hash {
    let secret = blake3::derive_key("mooseng 2026-11 chunk ticket", &key.secret);
    let mut hasher = blake3::Hasher::new_keyed(&secret);
    for field in [
        claims.session,
        claims.volume,
        claims.chunk,
        u64::from(claims.rights),
        claims.expires_ms,
        u64::from(key.id),
    ] {
        hasher.update(&field.to_le_bytes());
    }
    hasher.finalize()
}

/// Makes a ticket, encoded as requests carry it.
pub fn sign(key: &Key, claims: &Claims) -> Vec<u8> {
    Ticket {
        session: claims.session,
        volume: claims.volume,
        chunk: claims.chunk,
        rights: claims.rights,
        expires_ms: claims.expires_ms,
        key_id: key.id,
        mac: mac(key, claims).as_bytes().to_vec().into(),
    }
    .encode_to_vec()
}

/// Checks that `bytes` are a ticket of one of `keys` that grants `rights` on `chunk` at `now_ms`.
pub fn verify(
    keys: &[Key],
    bytes: &[u8],
    now_ms: u64,
    chunk: ChunkId,
    rights: u32,
) -> Result<Claims, TicketError> {
    if bytes.is_empty() {
        return Err(TicketError::Missing);
    }
    let ticket = Ticket::decode(bytes).map_err(|_| TicketError::Malformed)?;
    let key = keys.iter().find(|k| k.id == ticket.key_id).ok_or(TicketError::UnknownKey(ticket.key_id))?;
    let claims = Claims {
        session: ticket.session,
        volume: ticket.volume,
        chunk: ticket.chunk,
        rights: ticket.rights,
        expires_ms: ticket.expires_ms,
    };
    let given: [u8; 32] = ticket.mac[..].try_into().map_err(|_| TicketError::Forged)?;
    // `blake3::Hash` compares in constant time.
    if mac(key, &claims) != blake3::Hash::from(given) {
        return Err(TicketError::Forged);
    }
    if now_ms > claims.expires_ms.saturating_add(SKEW_MS) {
        return Err(TicketError::Expired(now_ms - claims.expires_ms));
    }
    let names_it =
        claims.volume == u64::from(chunk.volume().0) && (claims.chunk == 0 || claims.chunk == chunk.0);
    if !names_it || claims.rights & rights != rights {
        let what = if rights & APPEND != 0 { "append to or seal" } else { "read" };
        return Err(TicketError::NotGranted { what, chunk });
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use mooseng_wire::VolumeId;

    use super::*;

    fn key(id: u32) -> Key {
        Key { id, secret: vec![id as u8; 32] }
    }
    fn claims() -> Claims {
        Claims { session: 5, volume: 2, chunk: 0, rights: READ | APPEND, expires_ms: 1_000_000 }
    }

    #[test]
    fn a_ticket_opens_what_it_names_until_it_expires() {
        let chunk = ChunkId::new(VolumeId(2), 9);
        let ticket = sign(&key(1), &claims());
        let keys = [key(2), key(1)];
        assert_eq!(verify(&keys, &ticket, 0, chunk, READ), Ok(claims()));
        assert_eq!(verify(&keys, &ticket, 1_030_000, chunk, APPEND), Ok(claims()));
        assert_eq!(verify(&keys, &ticket, 1_030_001, chunk, APPEND), Err(TicketError::Expired(30_001)));
        let other_volume = ChunkId::new(VolumeId(3), 9);
        assert!(matches!(verify(&keys, &ticket, 0, other_volume, READ), Err(TicketError::NotGranted { .. })));
        assert_eq!(verify(&[key(3)], &ticket, 0, chunk, READ), Err(TicketError::UnknownKey(1)));
        assert_eq!(verify(&keys, &[], 0, chunk, READ), Err(TicketError::Missing));
        let one = sign(&key(1), &Claims { chunk: chunk.0, rights: READ, ..claims() });
        assert!(verify(&keys, &one, 0, chunk, READ).is_ok());
        assert!(matches!(verify(&keys, &one, 0, chunk, APPEND), Err(TicketError::NotGranted { .. })));
        assert!(matches!(
            verify(&keys, &one, 0, ChunkId::new(VolumeId(2), 8), READ),
            Err(TicketError::NotGranted { .. })
        ));
    }

    #[test]
    fn no_field_can_be_altered() {
        let chunk = ChunkId::new(VolumeId(2), 9);
        let ticket = Ticket::decode(&sign(&key(1), &Claims { rights: READ, ..claims() })[..]).unwrap();
        let keys = [key(1), key(2)];
        let altered = [
            Ticket { session: 6, ..ticket.clone() },
            Ticket { chunk: 9, ..ticket.clone() },
            Ticket { rights: READ | APPEND, ..ticket.clone() },
            Ticket { expires_ms: 2_000_000, ..ticket.clone() },
            Ticket { key_id: 2, ..ticket.clone() },
            Ticket { mac: ticket.mac.slice(..31), ..ticket.clone() },
        ];
        for bad in altered {
            assert_eq!(verify(&keys, &bad.encode_to_vec(), 0, chunk, READ), Err(TicketError::Forged));
        }
        // A key of the same number but another secret: another region's.
        let foreign = [Key { id: 1, secret: vec![9; 32] }];
        assert_eq!(verify(&foreign, &ticket.encode_to_vec(), 0, chunk, READ), Err(TicketError::Forged));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", key(7)), "Key(7)");
    }
}
