//! The log of refused peers, so that whoever knocks again and again doesn't flood it: one line for an address and a code now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines of one address and code.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Addresses that are remembered at most; beyond it the one whose line is the oldest is forgotten.
const ADDRESSES_MAX: usize = 1024;

/// Who was refused lately.
#[derive(Default)]
pub(crate) struct Refused {
    said: BTreeMap<(String, String), Said>,
}

struct Said {
    at: Instant,
    suppressed: u64,
}

impl Refused {
    /// A peer was refused. Answers whether it is worth a line, and how many went without one since the last.
    pub fn note(&mut self, now: Instant, address: &str, code: &str) -> Option<u64> {
        // Each attempt comes from another port.
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let key = (host.to_owned(), code.to_owned());
        if let Some(said) = self.said.get_mut(&key) {
            if now.saturating_duration_since(said.at) < LINE_EVERY {
                said.suppressed += 1;
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.suppressed));
        }
        if self.said.len() >= ADDRESSES_MAX
            && let Some(oldest) = self.said.iter().min_by_key(|(_, said)| said.at).map(|(key, _)| key.clone())
        {
            self.said.remove(&oldest);
        }
        self.said.insert(key, Said { at: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_an_address_and_a_code_in_ten_seconds() {
        let (mut refused, start) = (Refused::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(refused.note(at(0), "10.0.0.1:40000", "PEER_EXPIRED"), Some(0));
        for n in 1..=5 {
            assert_eq!(refused.note(at(n), &format!("10.0.0.1:4000{n}"), "PEER_EXPIRED"), None);
        }
        assert_eq!(refused.note(at(6), "10.0.0.1:40000", "PEER_REVOKED"), Some(0), "another reason");
        assert_eq!(refused.note(at(7), "[fe80::1]:40000", "PEER_EXPIRED"), Some(0), "another address");
        assert_eq!(refused.note(at(10_000), "10.0.0.1:1", "PEER_EXPIRED"), Some(5));
        assert_eq!(refused.note(at(20_000), "10.0.0.1:1", "PEER_EXPIRED"), Some(0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut refused, start) = (Refused::default(), Instant::now());
        for n in 0..2 * ADDRESSES_MAX as u64 {
            let now = start + Duration::from_micros(n);
            assert_eq!(refused.note(now, &format!("host-{n}:1"), "PEER_EXPIRED"), Some(0));
        }
        assert_eq!(refused.said.len(), ADDRESSES_MAX);
        assert_eq!(refused.note(start, "host-2000:1", "PEER_EXPIRED"), None, "the newest are remembered");
    }
}
