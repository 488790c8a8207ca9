//! Changes as bytes, as logs hold them: `count | { tag: u8 | length | bytes [| length | bytes] }`, counts and lengths as LEB128.

use bytes::{BufMut, Bytes, BytesMut};

use super::Change;
use crate::KeyRange;

const TAG_SET: u8 = 1;
const TAG_CLEAR: u8 = 2;
const TAG_CLEAR_RANGE: u8 = 3;

/// Bytes that aren't changes: what is wrong with them.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Damaged(pub &'static str);

/// Bytes that [`put_changes`] writes at most.
pub fn room_for(changes: &[Change]) -> usize {
    5 + changes.iter().map(|change| change.bytes() + 9).sum::<usize>()
}

/// Adds changes, with their count before them.
pub fn put_changes(out: &mut BytesMut, changes: &[Change]) {
    put_number(out, changes.len());
    for change in changes {
        let (tag, first, second) = match change {
            Change::Set(key, value) => (TAG_SET, key, Some(value)),
            Change::Clear(key) => (TAG_CLEAR, key, None),
            Change::ClearRange(range) => (TAG_CLEAR_RANGE, &range.begin, Some(&range.end)),
        };
        out.put_u8(tag);
        for part in [Some(first), second].into_iter().flatten() {
            put_number(out, part.len());
            out.put_slice(part);
        }
    }
}

/// Takes changes from the beginning of bytes, which their keys and values then share.
pub fn take_changes(left: &mut Bytes) -> Result<Vec<Change>, Damaged> {
    let mut changes = Vec::new();
    for _ in 0..take_number(left)? {
        let tag = take(left, 1)?[0];
        let first = take_part(left)?;
        changes.push(match tag {
            TAG_SET => Change::Set(first, take_part(left)?),
            TAG_CLEAR => Change::Clear(first),
            TAG_CLEAR_RANGE => Change::ClearRange(KeyRange { begin: first, end: take_part(left)? }),
            _ => return Err(Damaged("a change has an unknown tag")),
        });
    }
    Ok(changes)
}

/// Adds a number as LEB128.
pub fn put_number(out: &mut BytesMut, number: usize) {
    let mut number = number as u64;
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// Takes so many bytes.
pub fn take(left: &mut Bytes, length: usize) -> Result<Bytes, Damaged> {
    if left.len() < length { Err(Damaged("it ends too early")) } else { Ok(left.split_to(length)) }
}

/// Takes eight bytes, big-endian.
pub fn take_u64(left: &mut Bytes) -> Result<u64, Damaged> {
    let mut number = [0; 8];
    number.copy_from_slice(&take(left, 8)?);
    Ok(u64::from_be_bytes(number))
}

/// Takes a number of [`put_number`], below 2^35.
pub fn take_number(left: &mut Bytes) -> Result<usize, Damaged> {
    let mut number = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = take(left, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return usize::try_from(number).map_err(|_| Damaged("a length is too large"));
        }
    }
    Err(Damaged("a length is too large"))
}

fn take_part(left: &mut Bytes) -> Result<Bytes, Damaged> {
    let length = take_number(left)?;
    take(left, length)
}
