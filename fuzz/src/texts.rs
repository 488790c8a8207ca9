//! What peers show, and what people write.

use data_encoding::BASE64URL_NOPAD;
use mooseng_chunk::ticket::{self, Claims, Key};
use mooseng_transport::wan::{Cut, WanRules};
use mooseng_wire::admin::RevocationList;
use mooseng_wire::founding::Founding;
use mooseng_wire::global::{JoinRegion, JoinToken, Master};
use mooseng_wire::revocations::{Agreed, Revocations};
use mooseng_wire::{ChunkId, Identity, Role, join};
use prost::Message;

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

/// Identities, founding marks, names of roles.
pub fn texts(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(identity) = Identity::parse(text) {
        assert_eq!(identity.to_string(), text, "two texts for one identity");
    }
    let _ = Role::parse(text);
    if let Some(founding) = Founding::parse(text) {
        assert_eq!(Founding::parse(&founding.to_string()), Some(founding));
    }
}

pub fn text_seeds() -> Vec<Vec<u8>> {
    let texts = ["spiffe://c/eu/client/host-1", "client", "00112233445566778899aabbccddeeff"];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Lists of what is refused: people's, and what a cluster has agreed on, as masters tell it and as daemons keep it. What is read is written as that.
pub fn revocations(input: &[u8]) {
    if let Ok(told) = RevocationList::decode(input)
        && let Ok(agreed) = Agreed::from_told(&told)
    {
        comes_back(&agreed);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(agreed) = Agreed::parse(text) {
        comes_back(&agreed);
    }
    if let Ok(revoked) = Revocations::parse(text) {
        let lines: String = revoked.iter().map(|entry| format!("{entry}\n")).collect();
        assert_eq!(Revocations::parse(&lines), Ok(revoked));
    }
}

fn comes_back(agreed: &Agreed) {
    assert_eq!(Agreed::parse(&agreed.to_text()).as_ref(), Ok(agreed));
    assert_eq!(Agreed::from_told(&agreed.told()).as_ref(), Ok(agreed));
}

pub fn revocation_seeds() -> Vec<Vec<u8>> {
    let list = "# a list\n\n 00:5A:ff \nspiffe://dev/eu/client/c1\r\n";
    let revoked = Revocations::parse(list).unwrap_or_else(|error| panic!("{error}"));
    let agreed = Agreed { version: 7, revoked };
    vec![list.as_bytes().to_vec(), agreed.to_text().into_bytes(), agreed.told().encode_to_vec()]
}

/// A join token: what is read is written as that.
///
/// Its checksum would keep all but the seeds out: the first byte says whether what follows is the text, or the message in it.
pub fn join(input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else { return };
    let text = if how & 1 == 0 { String::from_utf8(bytes.to_vec()).ok() } else { Some(token_of(bytes)) };
    if let Some(token) = text.and_then(|text| join::parse(&text).ok()) {
        assert_eq!(join::parse(&join::to_text(&token)), Ok(token));
    }
}

/// The text of a token with this message.
fn token_of(message: &[u8]) -> String {
    let crc = crc32fast::hash(message).to_le_bytes();
    format!("mooseng-join-1.{}", BASE64URL_NOPAD.encode(&[message, &crc].concat()))
}

pub fn join_seeds() -> Vec<Vec<u8>> {
    let master = Master { id: 1, name: "m1".into(), address: "h:7001".into(), zone: String::new() };
    let region =
        |name: &str, number, witness, masters| JoinRegion { name: name.into(), number, witness, masters };
    let token = JoinToken {
        cluster: "c".into(),
        root_sha256: vec![7; 32].into(),
        region: "b".into(),
        regions: vec![region("a", 1, false, vec![master]), region("b", 2, true, vec![])],
        secret: vec![9; join::SECRET_BYTES].into(),
        lease_ms: 10_000,
    };
    let message = token.encode_to_vec();
    let text = join::to_text(&token);
    assert_eq!(token_of(&message), text, "the form of join tokens is another one");
    vec![[&[0_u8][..], text.as_bytes()].concat(), [&[1_u8][..], &message].concat()]
}

/// Rules between regions: what is read is written as that.
pub fn wan(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(rules) = WanRules::parse(text) {
        let written = toml::to_string(&rules).ok();
        assert_eq!(written.map(|text| WanRules::parse(&text)), Some(Ok(rules)));
    }
}

pub fn wan_seeds() -> Vec<Vec<u8>> {
    let mut rules = WanRules { default_round_trip_ms: 60, ..WanRules::default() };
    rules.pair_mut("eu", "us").round_trip_ms = Some(100);
    rules.pair_mut("us", "asia").cut = Cut::AToB;
    let text = toml::to_string(&rules).unwrap_or_else(|error| panic!("{error}"));
    vec![vec![], text.into_bytes(), b"default_round_trip_ms = 5 # all".to_vec()]
}
