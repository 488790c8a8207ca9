//! The digest of a chunk up to a length: what two copies must have in common to be the same. It is made of the chunk's id, the length and the
//! checksums of all blocks, which a copy keeps anyway, so that it costs no second read of the bytes; whoever reads the bytes compares
//! them with the same checksums.

use mooseng_wire::ChunkId;

/// A chunk's digest.
pub type Digest = [u8; 32];

/// Takes the checksums of a chunk's blocks in, in order.
#[derive(Clone, Debug)]
pub struct Digester(blake3::Hasher);

impl Digester {
    /// Of the chunk's first `length` bytes.
    pub fn new(chunk: ChunkId, length: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mooseng 2026-11 chunk digest");
        hasher.update(&chunk.0.to_le_bytes());
        hasher.update(&length.to_le_bytes());
        Self(hasher)
    }

    /// The next whole block's checksum.
    pub fn block(&mut self, crc: u32) {
        self.0.update(&crc.to_le_bytes());
    }

    /// The digest; `tail` is the checksum of what the last, partial block holds, if there is one.
    pub fn finish(&self, tail: Option<u32>) -> Digest {
        let mut hasher = self.0.clone();
        if let Some(crc) = tail {
            hasher.update(&crc.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_counts() {
        let of = |chunk, length, crcs: &[u32], tail| {
            let mut digester = Digester::new(ChunkId(chunk), length);
            crcs.iter().for_each(|crc| digester.block(*crc));
            digester.finish(tail)
        };
        let one = of(1, 8192, &[7, 8], None);
        assert_eq!(one, of(1, 8192, &[7, 8], None));
        for other in [
            of(2, 8192, &[7, 8], None),
            of(1, 8193, &[7, 8], None),
            of(1, 8192, &[8, 7], None),
            of(1, 8192, &[7], None),
            of(1, 8192, &[7, 8], Some(0)),
        ] {
            assert_ne!(one, other);
        }
    }
}
