//! Join tokens as text: `mooseng-join-1.`, then the message and its CRC-32 in base64url (RFC 4648, section 5) without padding.

use data_encoding::BASE64URL_NOPAD;
use prost::Message;

use crate::global::JoinToken;

const PREFIX: &str = "mooseng-join-1.";
/// Bytes of a secret.
pub const SECRET_BYTES: usize = 16;
/// Characters of a token at most: some hundred masters.
const TEXT_MAX: usize = 64 << 10;

/// Why a text isn't a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    /// It begins otherwise.
    #[error("it doesn't begin with {PREFIX:?}: give the token that `mooseng regions add` printed")]
    NotOne,
    /// A part of it is missing, or was changed.
    #[error(
        "it is cut off or was changed on its way: copy the whole line that `mooseng regions add` printed"
    )]
    Damaged,
}

/// A token as text.
pub fn to_text(token: &JoinToken) -> String {
    let mut bytes = token.encode_to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
}

/// The token that a text is.
pub fn parse(text: &str) -> Result<JoinToken, JoinTokenError> {
    let text = text.trim();
    let encoded = text.strip_prefix(PREFIX).ok_or(JoinTokenError::NotOne)?;
    if encoded.len() > TEXT_MAX {
        return Err(JoinTokenError::Damaged);
    }
    let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| JoinTokenError::Damaged)?;
    let (message, crc) = bytes.split_last_chunk::<4>().ok_or(JoinTokenError::Damaged)?;
    if crc32fast::hash(message) != u32::from_le_bytes(*crc) {
        return Err(JoinTokenError::Damaged);
    }
    JoinToken::decode(message).map_err(|_| JoinTokenError::Damaged)
}

/// What the cluster keeps of a token's secret.
pub fn hash(secret: &[u8]) -> [u8; 32] {
    blake3::derive_key("MooseNG 2026-11 secret of a join token", secret)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::global::{JoinRegion, Master};

    fn token() -> JoinToken {
        let master = Master { id: 1, name: "m1".into(), address: "h:7001".into(), zone: String::new() };
        JoinToken {
            cluster: "c".into(),
            root_sha256: vec![7; 32].into(),
            region: "b".into(),
            regions: vec![JoinRegion { name: "b".into(), number: 2, witness: false, masters: vec![master] }],
            secret: vec![9; SECRET_BYTES].into(),
            lease_ms: 10_000,
        }
    }

    #[test]
    fn a_token_comes_back_and_each_change_of_it_is_noticed() {
        let text = to_text(&token());
        assert_eq!(parse(&format!(" {text}\n")), Ok(token()));
        assert_eq!(parse("x"), Err(JoinTokenError::NotOne));
        for at in PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(parse(std::str::from_utf8(&changed).unwrap()), Err(JoinTokenError::Damaged), "{at}");
            assert_eq!(parse(&text[..at]), Err(JoinTokenError::Damaged), "{at}");
        }
        assert_ne!(hash(&[1; 16]), hash(&[2; 16]));
    }

    proptest! {
        #[test]
        fn no_text_is_too_much_for_it(text in "(mooseng-join-1\\.)?[-_A-Za-z0-9=. ]{0,80}") {
            let _ = parse(&text);
        }
    }
}
