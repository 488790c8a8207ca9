//! What peers show, and what people write.

use mooseng_chunk::ticket::{self, Claims, Key};
use mooseng_wire::founding::Founding;
use mooseng_wire::revocations::{Agreed, Revocations};
use mooseng_wire::{ChunkId, Identity, Role};

fn key() -> Key {
    Key { id: 1, secret: vec![7; 32] }
}

fn claims() -> Claims {
    Claims { session: 1, volume: 0, chunk: 5, rights: ticket::READ, expires_ms: 1_000 }
}

/// A ticket: only what was signed grants anything, and only what it says.
pub fn ticket(input: &[u8]) {
    for rights in [ticket::READ, ticket::APPEND] {
        if let Ok(granted) = ticket::verify(&[key()], input, 10, ChunkId(5), rights) {
            assert_eq!((granted, rights), (claims(), ticket::READ), "somebody forged a ticket");
        }
    }
}

pub fn ticket_seeds() -> Vec<Vec<u8>> {
    vec![ticket::sign(&key(), &claims())]
}

/// Identities, lists of revocations, founding marks, names of roles.
pub fn texts(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(identity) = Identity::parse(text) {
        assert_eq!(identity.to_string(), text, "two texts for one identity");
    }
    let _ = Revocations::parse(text);
    let _ = Agreed::parse(text);
    let _ = Role::parse(text);
    if let Some(founding) = Founding::parse(text) {
        assert_eq!(Founding::parse(&founding.to_string()), Some(founding));
    }
}

pub fn text_seeds() -> Vec<Vec<u8>> {
    let texts =
        ["spiffe://c/eu/client/host-1", "client", "00112233445566778899aabbccddeeff", "# a list\nab12cd\n"];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
