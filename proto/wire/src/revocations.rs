//! The lists of certificates that are refused. One is a text that people may edit: serial numbers and SPIFFE ids, one a line. The other is what the cluster
//! has agreed on ([`Agreed`]), which masters hand on and daemons keep.

use std::collections::BTreeSet;

use crate::admin::RevocationList;
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
            found.insert(entry(word).ok_or_else(|| MalformedLine { line: n + 1, text: word.to_owned() })?);
        }
        Ok(Self(found))
    }

    /// The serial numbers and SPIFFE ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
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

/// The one way to write a serial number or a SPIFFE id; none for what is neither.
pub fn entry(word: &str) -> Option<String> {
    match Identity::parse(word) {
        Ok(identity) => Some(identity.to_string()),
        Err(_) => is_serial(word).then(|| plain_serial(word)),
    }
}

/// What the first line of a kept list begins with.
const VERSION_LINE: &str = "version ";
/// The most that a cluster agrees to refuse.
pub const AGREED_MAX: usize = 4_096;

/// Whom a cluster has agreed to refuse, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Later ones are higher; 0 where nothing was ever agreed on.
    pub version: u64,
    /// Whom.
    pub revoked: Revocations,
}

/// What isn't a list that was agreed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedList {
    /// The version is missing.
    #[error("the first line isn't `version NUMBER`")]
    NoVersion,
    /// A line can't be understood.
    #[error(transparent)]
    Line(#[from] MalformedLine),
    /// It is too long.
    #[error("it names {0} certificates, and {AGREED_MAX} is the most")]
    TooMany(usize),
}

impl Agreed {
    /// As it is kept on a disk.
    pub fn to_text(&self) -> String {
        let lines = self.revoked.iter().map(|entry| format!("{entry}\n"));
        format!("{VERSION_LINE}{}\n{}", self.version, lines.collect::<String>())
    }

    /// Reads what was kept.
    pub fn parse(text: &str) -> Result<Self, MalformedList> {
        let (first, rest) = text.split_once('\n').ok_or(MalformedList::NoVersion)?;
        let version = first.strip_prefix(VERSION_LINE).and_then(|number| number.trim().parse().ok());
        let version = version.ok_or(MalformedList::NoVersion)?;
        Self { version, revoked: Revocations::parse(rest)? }.checked()
    }

    fn checked(self) -> Result<Self, MalformedList> {
        if self.revoked.len() > AGREED_MAX {
            Err(MalformedList::TooMany(self.revoked.len()))
        } else {
            Ok(self)
        }
    }

    /// As masters tell it.
    pub fn told(&self) -> RevocationList {
        RevocationList { version: self.version, revoked: self.revoked.iter().map(str::to_owned).collect() }
    }

    /// What a master told.
    pub fn from_told(told: &RevocationList) -> Result<Self, MalformedList> {
        if told.revoked.len() > AGREED_MAX {
            return Err(MalformedList::TooMany(told.revoked.len()));
        }
        let mut revoked = BTreeSet::new();
        for (n, word) in told.revoked.iter().enumerate() {
            revoked.insert(entry(word).ok_or_else(|| MalformedLine { line: n + 1, text: word.clone() })?);
        }
        Ok(Self { version: told.version, revoked: Revocations(revoked) })
    }
}

impl FromIterator<String> for Revocations {
    /// Of entries as [`entry`] writes them.
    fn from_iter<I: IntoIterator<Item = String>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
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
    fn what_was_agreed_on_comes_back_from_a_disk_and_from_a_master() {
        let agreed = Agreed { version: 7, revoked: Revocations::parse(LIST).unwrap() };
        assert_eq!(agreed.to_text(), "version 7\n5aff\nspiffe://dev/eu/client/c1\n");
        assert_eq!(Agreed::parse(&agreed.to_text()), Ok(agreed.clone()));
        assert_eq!(Agreed::from_told(&agreed.told()), Ok(agreed));
        assert_eq!(Agreed::parse("version 3\n"), Ok(Agreed { version: 3, ..Agreed::default() }));
        for bad in ["", "version", "5aff\n77\n", "version x\n77\n"] {
            assert_eq!(Agreed::parse(bad), Err(MalformedList::NoVersion), "{bad:?}");
        }
        assert!(matches!(Agreed::parse("version 7\n5aff\nking\n"), Err(MalformedList::Line(_))));
        let told = |revoked| Agreed::from_told(&RevocationList { version: 1, revoked });
        assert!(matches!(told(vec!["king".into()]), Err(MalformedList::Line(_))));
        let many = (0..=AGREED_MAX).map(|n| format!("{n:04x}")).collect();
        assert!(matches!(told(many), Err(MalformedList::TooMany(_))));
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
