//! What one log entry holds: the changes of many transactions, resolved.
//!
//! Bytes, integers big-endian, lengths and counts as LEB128:
//! `format: u8 = 1 | term: u64 | base_version: u64 | transactions | { version: u64 | changes | { tag: u8 | length | bytes [| length | bytes] } }`.

use bytes::{BufMut, Bytes, BytesMut};
use mooseng_store::mvcc::Change;
use mooseng_store::mvcc::codec::{self, put_changes, put_number, take, take_changes, take_number, take_u64};

const FORMAT: u8 = 1;

/// The changes of many transactions, resolved against a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitBatch {
    /// The leader's term. A batch that enters the log in another one changes nothing.
    pub term: u64,
    /// The version that it was resolved against. A batch that meets another one changes nothing.
    pub base_version: u64,
    /// The transactions in order, each with its version, ascending, above the base version.
    pub transactions: Vec<(u64, Vec<Change>)>,
}

/// Bytes that aren't a batch.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// A format of the future, or garbage.
    #[error(
        "a commit batch has format {0}, this program knows {FORMAT}; use the program that wrote it or a newer one"
    )]
    Format(u8),
    /// They end too early, or go on.
    #[error("a commit batch's bytes are damaged: {0}")]
    Damaged(&'static str),
}

impl From<codec::Damaged> for BatchError {
    fn from(codec::Damaged(what): codec::Damaged) -> Self {
        Self::Damaged(what)
    }
}

impl CommitBatch {
    /// To bytes.
    pub fn encode(&self) -> Bytes {
        let transactions = self.transactions.iter().map(|(_, changes)| 8 + codec::room_for(changes));
        let mut out = BytesMut::with_capacity(32 + transactions.sum::<usize>());
        out.put_u8(FORMAT);
        out.put_u64(self.term);
        out.put_u64(self.base_version);
        put_number(&mut out, self.transactions.len());
        for (version, changes) in &self.transactions {
            out.put_u64(*version);
            put_changes(&mut out, changes);
        }
        out.freeze()
    }

    /// From bytes, which the keys and values then share.
    pub fn decode(bytes: &Bytes) -> Result<Self, BatchError> {
        let mut left = bytes.clone();
        match take(&mut left, 1)?[0] {
            FORMAT => {}
            other => return Err(BatchError::Format(other)),
        }
        let term = take_u64(&mut left)?;
        let base_version = take_u64(&mut left)?;
        let mut transactions = Vec::new();
        let mut newest = base_version;
        for _ in 0..take_number(&mut left)? {
            let version = take_u64(&mut left)?;
            if version <= newest {
                return Err(BatchError::Damaged("its versions don't ascend"));
            }
            newest = version;
            transactions.push((version, take_changes(&mut left)?));
        }
        if !left.is_empty() {
            return Err(BatchError::Damaged("bytes follow its end"));
        }
        Ok(Self { term, base_version, transactions })
    }
}

#[cfg(test)]
mod tests {
    use mooseng_store::KeyRange;
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Change> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (bytes(), bytes()).prop_map(|(k, v)| Change::Set(k, v)),
            bytes().prop_map(Change::Clear),
            (bytes(), bytes()).prop_map(|(begin, end)| Change::ClearRange(KeyRange { begin, end })),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(term: u64, base in 0u64..1 << 60, groups in proptest::collection::vec(proptest::collection::vec(change(), 0..5), 0..5)) {
            let transactions = groups.into_iter().enumerate().map(|(i, changes)| (base + 1 + 3 * i as u64, changes)).collect();
            let batch = CommitBatch { term, base_version: base, transactions };
            prop_assert_eq!(CommitBatch::decode(&batch.encode()), Ok(batch));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), good: bool) {
            if good && !bytes.is_empty() { bytes[0] = FORMAT; }
            let _ = CommitBatch::decode(&bytes.into());
        }
    }

    #[test]
    fn cut_anywhere_it_is_refused() {
        let batch = golden();
        let bytes = batch.encode();
        for end in 0..bytes.len() {
            assert!(CommitBatch::decode(&bytes.slice(..end)).is_err(), "cut at {end}");
        }
    }

    fn golden() -> CommitBatch {
        CommitBatch {
            term: 7,
            base_version: 0x0102,
            transactions: vec![
                (0x0103, vec![Change::Set(Bytes::from_static(b"key"), Bytes::from(vec![0xab; 130]))]),
                (
                    0x0105,
                    vec![
                        Change::ClearRange(KeyRange {
                            begin: Bytes::from_static(b"a"),
                            end: Bytes::from_static(b"b"),
                        }),
                        Change::Clear(Bytes::new()),
                    ],
                ),
            ],
        }
    }

    /// Logs on disks hold these bytes: they must stay readable.
    #[test]
    fn golden_bytes() {
        let mut expected = vec![1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 2];
        expected.extend([0, 0, 0, 0, 0, 0, 1, 3, 1, 1, 3, b'k', b'e', b'y', 0x82, 1]);
        expected.extend([0xab; 130]);
        expected.extend([0, 0, 0, 0, 0, 0, 1, 5, 2, 3, 1, b'a', 1, b'b', 2, 0]);
        assert_eq!(golden().encode(), Bytes::from(expected.clone()));
        assert_eq!(CommitBatch::decode(&expected.into()), Ok(golden()));
    }
}
