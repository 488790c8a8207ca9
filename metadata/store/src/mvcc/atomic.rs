//! Atomic changes, byte for byte as FoundationDB computes them (its `fdbclient/include/fdbclient/Atomic.h` defines them).

use std::cmp::Ordering;

use bytes::Bytes;

use crate::Atomic;

/// The value that `operation` with `operand` makes of `existing`.
pub fn apply(existing: Option<&Bytes>, operand: &Bytes, operation: Atomic) -> Bytes {
    let Some(existing) = existing else { return operand.clone() };
    match operation {
        Atomic::Add => add(existing, operand),
        Atomic::Max => pick(existing, operand, Ordering::Greater),
        Atomic::Min => pick(existing, operand, Ordering::Less),
        Atomic::ByteMax => existing.max(operand).clone(),
    }
}

/// Little-endian, at the operand's width.
fn add(existing: &Bytes, operand: &Bytes) -> Bytes {
    let mut sum = Vec::with_capacity(operand.len());
    let mut carry = 0u16;
    for (i, byte) in operand.iter().enumerate() {
        let total = u16::from(*byte) + u16::from(existing.get(i).copied().unwrap_or(0)) + carry;
        sum.push((total & 0xff) as u8);
        carry = total >> 8;
    }
    sum.into()
}

/// The existing number, cut or padded to the operand's width, if it compares to the operand as `wanted`; else the operand.
fn pick(existing: &Bytes, operand: &Bytes, wanted: Ordering) -> Bytes {
    let mut fitted = existing[..existing.len().min(operand.len())].to_vec();
    fitted.resize(operand.len(), 0);
    if fitted.iter().rev().cmp(operand.iter().rev()) == wanted { fitted.into() } else { operand.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(existing: Option<&'static [u8]>, operand: &'static [u8], operation: Atomic) -> Vec<u8> {
        apply(existing.map(Bytes::from_static).as_ref(), &Bytes::from_static(operand), operation).to_vec()
    }

    #[test]
    fn table() {
        use Atomic::*;
        type Case = (Option<&'static [u8]>, &'static [u8], Atomic, &'static [u8]);
        let cases: &[Case] = &[
            (None, &[1, 0], Add, &[1, 0]),
            (Some(&[255, 0]), &[1, 0], Add, &[0, 1]),
            (Some(&[255, 255]), &[1, 0], Add, &[0, 0]),
            (Some(&[255]), &[1, 0], Add, &[0, 1]),
            (Some(&[1, 2, 3]), &[1, 0], Add, &[2, 2]),
            (Some(&[]), &[5], Add, &[5]),
            (None, &[3], Max, &[3]),
            (Some(&[4, 0]), &[3, 1], Max, &[3, 1]),
            (Some(&[4, 2]), &[3, 1], Max, &[4, 2]),
            (Some(&[9]), &[3, 0], Max, &[9, 0]),
            (None, &[3], Min, &[3]),
            (Some(&[2, 1]), &[3, 0], Min, &[3, 0]),
            (Some(&[2]), &[0, 1], Min, &[2, 0]),
            (None, b"a", ByteMax, b"a"),
            (Some(b"b"), b"aa", ByteMax, b"b"),
            (Some(b"a"), b"aa", ByteMax, b"aa"),
        ];
        for (existing, operand, operation, expected) in cases {
            assert_eq!(
                run(*existing, operand, *operation),
                *expected,
                "{existing:?} {operation:?} {operand:?}"
            );
        }
    }
}
