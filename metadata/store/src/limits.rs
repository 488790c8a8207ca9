//! FoundationDB's limits, enforced by every engine (<https://apple.github.io/foundationdb/known-limitations.html>).

use std::time::Duration;

/// Largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 10_000;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 100_000;
/// Largest transaction, in bytes of keys, values and conflict ranges. FDB allows ten times as much and advises this.
pub const TRANSACTION_BYTES_MAX: usize = 1_000_000;
/// The same for a transaction that asked for it ([`crate::Transaction::allow_large`]): FDB's own limit is more than twice as high.
pub const LARGE_TRANSACTION_BYTES_MAX: usize = 4_000_000;
/// How long a read version lives at least.
pub const READ_VERSION_LIFE: Duration = Duration::from_secs(5);
