//! Whole states on their way from one master to another.

use std::hash::Hasher;

use bytes::Bytes;
use mooseng_store::mvcc::{Window, covered, rest};
use mooseng_store::{KeyRange, RangeLimit, ReadVersion};

use crate::base::BasePin;
use crate::{BaseError, Position};

/// Carries the version within a snapshot's pairs, behind all keys that transactions may use.
pub(crate) const VERSION_KEY: &[u8] = b"\xff/mooseng/version";

/// A picture of the whole state at one position, given out page by page. It holds memory (the window) and disk (the base's files) until it
/// is dropped.
pub struct Pin {
    /// The last log entry that the picture contains.
    pub position: Position,
    version: u64,
    window: Window,
    base: Box<dyn BasePin>,
    left: Option<KeyRange>,
    began: bool,
}

/// All keys that transactions may use.
fn all() -> KeyRange {
    KeyRange { begin: Bytes::new(), end: Bytes::from_static(b"\xff") }
}

impl Pin {
    pub(crate) fn new(position: Position, version: u64, window: Window, base: Box<dyn BasePin>) -> Self {
        Self { position, version, window, base, left: Some(all()), began: false }
    }

    /// The commit version of the picture.
    pub fn version(&self) -> ReadVersion {
        ReadVersion(self.version)
    }

    /// Begins again with the first page.
    pub(crate) fn rewind(&mut self) {
        (self.left, self.began) = (Some(all()), false);
    }

    /// The next pairs, about `bytes_max` bytes of them; none behind the last. The first page also carries the version, under a key that
    /// only [`install_page`](crate::Embedded::install_page) understands.
    pub fn page(&mut self, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, BaseError> {
        let mut pairs = Vec::new();
        if !self.began {
            self.began = true;
            pairs
                .push((Bytes::from_static(VERSION_KEY), Bytes::copy_from_slice(&self.version.to_be_bytes())));
        }
        while pairs.is_empty()
            && let Some(range) = self.left.take()
        {
            pairs = self.part(&range, bytes_max)?;
        }
        Ok(pairs)
    }

    /// The same without the version.
    pub fn records(&mut self, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, BaseError> {
        self.began = true;
        self.page(bytes_max)
    }

    fn part(&mut self, range: &KeyRange, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, BaseError> {
        let limit = RangeLimit { pairs_max: 4096, bytes_max, reverse: false };
        let slice = self.window.slice(range, self.version, (limit.pairs_max, limit.pairs_max), false);
        let base = self.base.range(&covered(range, slice.boundary.as_ref(), false), limit)?;
        let page = slice.over(range, base, false);
        self.left = page.boundary.map(|boundary| rest(range, &boundary, false));
        Ok(page.pairs)
    }

    /// A hash over all pairs that are left, and the version.
    pub(crate) fn digest(mut self) -> Result<u64, BaseError> {
        let mut hasher = siphasher::sip::SipHasher13::new();
        loop {
            let page = self.page(1 << 20)?;
            if page.is_empty() {
                return Ok(hasher.finish());
            }
            for part in page.iter().flat_map(|(key, value)| [key, value]) {
                hasher.write_u64(part.len() as u64);
                hasher.write(part);
            }
        }
    }
}
