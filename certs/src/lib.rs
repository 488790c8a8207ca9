//! The cluster's certificate authority: a root, an intermediate for each region, and short-lived leaves with SPIFFE ids.
//!
//! ```text
//!  DIR/authority.json                 the cluster's name
//!  DIR/root/{cert,key}.pem            10 years
//!  DIR/regions/REGION/{cert,key}.pem  2 years, signed by the root
//!  DIR/issued.json                    what was issued, where it lies
//!  DIR/revocations.txt                serial numbers and SPIFFE ids, one a line
//!  DIR/lock                           held by whoever changes something
//!  OUT/{cert,key,ca}.pem              a leaf with its intermediate, its key, the root
//!  OUT/revocations.txt                the list as it was when the leaf was issued, or distributed last
//! ```
//! Keys have mode 0600, are never printed, and never overwritten unless asked.

mod authority;
mod files;
pub mod inspect;

pub use authority::{Authority, Issued, Renewal};

use std::io;
use std::path::PathBuf;

/// Why the authority can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{action} {path} failed: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there already.
    #[error("{path} exists already; give --force to overwrite it")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// There is no such thing.
    #[error("there is no {what}: {hint}")]
    Missing {
        /// What.
        what: String,
        /// What to do.
        hint: String,
    },
    /// It is forbidden.
    #[error("{what} is denied: {reason}")]
    Denied {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// A name can't be used.
    #[error(
        "{0:?} can't be a cluster, region or host name: 1 to 63 letters, digits, dots, dashes and underscores are allowed"
    )]
    Name(String),
    /// A file holds something else.
    #[error("{path} is of no use: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificate library refused.
    #[error("a certificate couldn't be made: {0}")]
    Make(#[from] rcgen::Error),
}
