//! Sessions, and the outcomes of their changes, which make retries exactly-once. They are records of the volume that a session is of, whose log takes
//! them along.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{RequestNumber, SessionId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// A mounted client's session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRecord {
    /// Counts its lives.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// The SPIFFE id that it belongs to.
    #[prost(string, tag = "2")]
    pub identity: String,
    /// The host that mounts.
    #[prost(string, tag = "3")]
    pub host: String,
    /// Where.
    #[prost(string, tag = "4")]
    pub mount_path: String,
    /// When it was made.
    #[prost(sfixed64, tag = "5")]
    pub opened_ns: i64,
    /// When its lease ran out, while it is out.
    #[prost(sfixed64, optional, tag = "6")]
    pub lapsed_ns: Option<i64>,
    /// The newest runs of inodes' ids that it was given, in that order.
    #[prost(message, repeated, tag = "7")]
    pub inode_runs: Vec<InodeRun>,
}

/// Inodes' numbers in a session's volume that follow each other, for the session to make inodes under.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InodeRun {
    /// The first.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// Numbers below this one.
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

impl Record for SessionRecord {
    const NAME: &'static str = "session";
}

/// The outcome of a session's change.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutcomeRecord {
    /// A hash of the request, which tells a retry from another request under the same number.
    #[prost(fixed64, tag = "1")]
    pub request_hash: u64,
    /// The answer: an encoded `mooseng_wire::fs::FsReply`.
    #[prost(bytes = "bytes", tag = "2")]
    pub reply: Bytes,
}

impl Record for OutcomeRecord {
    const NAME: &'static str = "outcome";
}

/// A session's key.
pub fn key(session: SessionId) -> Vec<u8> {
    volume_key(session.volume(), VolumeTag::Session, &(session.0,))
}

/// A volume's sessions with ids above `after`.
pub fn range_after(volume: VolumeId, after: Option<SessionId>) -> KeyRange {
    let all = volume_range(volume, VolumeTag::Session, &());
    let Some(after) = after else { return all };
    let mut begin = key(after);
    begin.push(0);
    KeyRange { begin: begin.into(), end: all.end }
}

/// The session in a key of [`range_after`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<SessionId, SchemaError> {
    let (session, _): (u64, u64) = parse_volume_key(volume, VolumeTag::Session, key)?;
    Ok(SessionId(session))
}

/// The key of the first number whose outcome is still kept ([`crate::number`]). Apart from the session, which every
/// change reads, so that raising it conflicts with nothing.
pub fn floor_key(session: SessionId) -> Vec<u8> {
    volume_key(session.volume(), VolumeTag::SessionFloor, &(session.0,))
}

/// An outcome's key.
pub fn outcome_key(session: SessionId, number: RequestNumber) -> Vec<u8> {
    volume_key(session.volume(), VolumeTag::Outcome, &(session.0, number.0))
}

/// Session and number of an outcome's key in a volume.
pub fn parse_outcome_key(volume: VolumeId, key: &[u8]) -> Result<(SessionId, RequestNumber), SchemaError> {
    let (session, number, _): (u64, u64, u64) = parse_volume_key(volume, VolumeTag::Outcome, key)?;
    Ok((SessionId(session), RequestNumber(number)))
}

/// All outcomes of a session.
pub fn outcome_range(session: SessionId) -> KeyRange {
    volume_range(session.volume(), VolumeTag::Outcome, &(session.0,))
}

/// The outcomes of a session with numbers below `number`.
pub fn outcome_range_below(session: SessionId, number: RequestNumber) -> KeyRange {
    KeyRange { begin: outcome_range(session).begin, end: outcome_key(session, number).into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let session = SessionRecord {
            incarnation: 1,
            identity: "spiffe://dev/a/client/c".into(),
            host: "h".into(),
            mount_path: "/m".into(),
            opened_ns: 1,
            lapsed_ns: None,
            inode_runs: Vec::new(),
        };
        golden(
            &session,
            "0108011217737069666665 3a2f2f6465762f612f636c69656e742f631a0168220 22f6d290100000000000000"
                .replace(' ', "")
                .as_str(),
        );
        let runs = vec![InodeRun { first: 5, end: 300 }];
        golden(
            &SessionRecord { incarnation: 1, inode_runs: runs, ..Default::default() },
            "0108013a05080510ac02",
        );
        golden(
            &OutcomeRecord { request_hash: 7, reply: Bytes::from_static(&[0x42, 0]) },
            "0109070000000000000012024200",
        );
        assert_eq!(hex(&outcome_key(SessionId(2), RequestNumber(300))), "02760014150e150216012c14");
        assert_eq!(hex(&floor_key(SessionId(2))), "02760014150d150214");
        assert_eq!(hex(&key(SessionId(2))), "02760014150c150214");
    }

    proptest! {
        #[test]
        fn round_trips(session: u64, incarnation: u64, lapsed_ns: Option<i64>, request_hash: u64, reply in prop::collection::vec(any::<u8>(), 0..64)) {
            let inode_runs = vec![InodeRun { first: session, end: request_hash }];
            round_trip(&SessionRecord { incarnation, lapsed_ns, inode_runs, ..Default::default() });
            round_trip(&OutcomeRecord { request_hash, reply: reply.into() });
            let session = SessionId(session);
            let made = key(session);
            prop_assert_eq!(parse_key(session.volume(), &made).unwrap(), session);
            let all = range_after(session.volume(), None);
            prop_assert!(all.begin.as_ref() <= made.as_slice() && made.as_slice() < all.end.as_ref());
            let made = outcome_key(session, RequestNumber(request_hash));
            prop_assert_eq!(parse_outcome_key(session.volume(), &made).unwrap(), (session, RequestNumber(request_hash)));
            let other = VolumeId(session.volume().0 ^ 1);
            prop_assert!(parse_outcome_key(other, &made).is_err() && range_after(other, None) != all);
        }

        #[test]
        fn trimming_takes_lower_numbers_only(session: u64, below in 1u64.., number: u64) {
            let range = outcome_range_below(SessionId(session), RequestNumber(below));
            let key = outcome_key(SessionId(session), RequestNumber(number));
            prop_assert_eq!(range.begin <= key && key < range.end, number < below);
        }
    }
}
