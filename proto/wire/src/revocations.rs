//! The list of certificates that are refused, as a text that people may edit: serial numbers and SPIFFE ids, one a line.

use std::collections::BTreeSet;

use crate::words::Identity;

/// The line that a fresh list begins with.
pub const HEADING: &str = "# Refused serial numbers and SPIFFE ids, one a line.";

/// Hexadecimal digits of a digest: enough to tell lists apart, few enough to compare by eye.
const DIGEST_DIGITS: usize = 16;

/// Serial numbers and SPIFFE ids that are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations(BTreeSet<String>);

/// A line that is neither a serial number nor a SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is neither a serial number in hexadecimal digits nor a SPIFFE id: {text:?}")]
pub struct MalformedLine {
    /// Counted from 1.
    pub line: usize,
    /// What stands there.
    pub text: String,
}

impl Revocations {
    /// Reads a list. Blank lines and those that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Self, MalformedLine> {
        let mut found = BTreeSet::new();
        for (n, line) in text.lines().enumerate() {
            let word = line.trim();
            if word.is_empty() || word.starts_with('#') {
                continue;
            }
            let entry = match Identity::parse(word) {
                Ok(identity) => identity.to_string(),
                Err(_) if is_serial(word) => plain_serial(word),
                Err(_) => return Err(MalformedLine { line: n + 1, text: word.to_owned() }),
            };
            found.insert(entry);
        }
        Ok(Self(found))
    }

    /// Whether a certificate is refused, by its serial number or its owner.
    pub fn names(&self, serial: &str, owner: &Identity) -> bool {
        !self.0.is_empty() && (self.0.contains(serial) || self.0.contains(&owner.to_string()))
    }

    /// How many are refused.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells lists apart, by whom they refuse: order, notes and ways of writing don't count.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for entry in &self.0 {
            hasher.update(entry.as_bytes());
            hasher.update(b"\n");
        }
        let mut digest = hasher.finalize().to_hex().to_string();
        digest.truncate(DIGEST_DIGITS);
        digest
    }
}

fn is_serial(word: &str) -> bool {
    let digits = word.bytes().filter(|b| *b != b':').count();
    // X.509 allows 20 bytes.
    (1..=40).contains(&digits) && word.bytes().all(|b| b == b':' || b.is_ascii_hexdigit())
}

/// A serial number as its hexadecimal digits alone, however it was written.
pub fn plain_serial(written: &str) -> String {
    let digits: String = written.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    // A leading zero byte only keeps the number positive.
    let bytes = digits.trim_start_matches("00");
    if bytes.is_empty() { "00".to_owned() } else { bytes.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# a comment\n\n 00:5A:ff \nspiffe://dev/eu/client/c1\r\n";

    #[test]
    fn a_list_names_serials_however_written_and_identities() {
        let revoked = Revocations::parse(LIST).unwrap();
        let named = |serial: &str, name: &str| {
            let owner = Identity::parse(&format!("spiffe://dev/eu/client/{name}")).unwrap();
            revoked.names(&plain_serial(serial), &owner)
        };
        assert!(named("5aff", "other"));
        assert!(named("77", "c1"));
        assert!(!named("77", "c2"));
        assert_eq!(revoked.len(), 2);
    }

    #[test]
    fn a_line_that_says_nothing_of_use_is_refused_with_its_number() {
        for bad in
            ["revoke c1", "spiffe://dev/eu/king/c1", "5aff,77", "0x5aff", ":", &"5a".repeat(21), "<html>"]
        {
            let error = Revocations::parse(&format!("# x\n77\n{bad}\n")).unwrap_err();
            assert_eq!(error, MalformedLine { line: 3, text: bad.to_owned() });
        }
    }

    #[test]
    fn digests_tell_lists_apart_by_whom_they_refuse() {
        let digest = |text: &str| Revocations::parse(text).unwrap().digest();
        assert_eq!(digest(LIST), digest("spiffe://dev/eu/client/c1\n5aff"));
        assert_ne!(digest(LIST), digest("5aff"));
        assert_eq!(digest(""), digest(HEADING));
        assert_eq!(digest("").len(), DIGEST_DIGITS);
    }
}
