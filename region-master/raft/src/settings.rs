//! What a member is told, and what it tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_wal::{Options as WalOptions, WalError};

use crate::answers::LOST;
use crate::types::Node;

/// Raft's timings.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How often a leader is heard of.
    pub heartbeat: Duration,
    /// The least silence after which a follower elects.
    pub election_min: Duration,
    /// The greatest.
    pub election_max: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(800),
        }
    }
}

impl Timings {
    /// The leader's lease: shorter than any follower's promise by a fifth, far more than clocks differ in rate.
    pub fn lease(&self) -> Duration {
        self.election_min.mul_f64(0.8)
    }
}

/// What a member needs to know.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Its number in the group.
    pub id: u64,
    /// The group's number: 0 is the region group.
    pub group: u32,
    /// Its name.
    pub name: String,
    /// Where peers reach it.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// The log's directory.
    pub dir: PathBuf,
    /// How fast.
    pub timings: Timings,
    /// The log's sizes.
    pub wal: WalOptions,
    /// Entries that are kept behind a snapshot, for followers that are a little behind.
    pub entries_kept: u64,
    /// Applied entries after which the store is flushed and the log purged.
    pub entries_between_snapshots: u64,
    /// Bytes of log after which the same happens.
    pub log_bytes_max: u64,
    /// Bytes of log that stay then.
    pub log_bytes_kept: u64,
    /// Followers hear at once of what was committed, and not with the next append or heartbeat: what they do about it may not wait for that. It costs an append
    /// behind each commit, for whose answer the next entries wait.
    pub tells_commits: bool,
    /// How long entries wait at most for which a commit doesn't need this follower's answer; zero for not at all.
    pub defer: Duration,
    /// Hears of what comes into this member's log.
    pub on_append: Option<OnAppend>,
}

/// Hears of each batch just before it is written to the log; and of none (`None`) before entries are cut off, or replaced by a snapshot: of what it
/// heard before, that may be applied which it heard, or something else. It is to be quick.
#[derive(Clone)]
pub struct OnAppend(pub Arc<Hear>);

/// What is called.
type Hear = dyn Fn(Option<&Bytes>) + Send + Sync;

impl std::fmt::Debug for OnAppend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnAppend")
    }
}

impl RaftConfig {
    /// A region group's member with the usual settings.
    pub fn new(id: u64, name: &str, address: &str, zone: &str, dir: PathBuf) -> Self {
        Self {
            id,
            group: 0,
            name: name.into(),
            address: address.into(),
            zone: zone.into(),
            dir,
            timings: Timings::default(),
            wal: WalOptions::default(),
            entries_kept: 5_000,
            entries_between_snapshots: 10_000,
            log_bytes_max: 256 << 20,
            log_bytes_kept: 64 << 20,
            tells_commits: false,
            defer: Duration::from_millis(5),
            on_append: None,
        }
    }
}

/// A member as the group knows it.
pub type Member = Node;

/// Why a member can't start or change.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The log can't be opened.
    #[error(transparent)]
    Log(#[from] WalError),
    /// There is a store, but the log that it came from is gone.
    #[error("{LOST}")]
    LogLost,
    /// It isn't known which line of the group the log is of.
    #[error("{}: {source}", .path.display())]
    Lineage {
        /// The log's directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store lacks entries that the log doesn't hold any more.
    #[error(
        "the metadata store ends with entry {store}, the log begins behind entry {purged}: the disk lost what was flushed. Remove this master from \
         the group, and add it with an empty `state_dir` under a new id (`mooseng members`)"
    )]
    StoreBehind {
        /// The store's last entry.
        store: u64,
        /// The last entry that was purged from the log.
        purged: u64,
    },
    /// openraft refused.
    #[error("the group refused: {0}")]
    Refused(String),
    /// The group can't be made: a first member doesn't answer, or has a log.
    #[error("the group isn't made yet: master {id} at {address} has not agreed: {why}")]
    NotFounded {
        /// Who.
        id: u64,
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// The change of members makes no sense.
    #[error("{0}")]
    Senseless(String),
    /// There is no such member.
    #[error("there is no master {0} in the group")]
    NoMember(u64),
    /// Another member must be asked.
    #[error("this master doesn't lead; the leader is {leader:?}")]
    NotLeader {
        /// Its address, if known.
        leader: Option<String>,
    },
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term in which this member leads and serves: it has applied everything before its term.
    pub leading: Option<u64>,
    /// The leader as far as this member knows: id and address.
    pub leader: Option<(u64, String)>,
}

/// One member's state, as the asked one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub id: u64,
    /// What it is.
    pub node: Node,
    /// It votes.
    pub voter: bool,
    /// The last entry known to be there; only a leader knows it of others.
    pub matched: Option<u64>,
    /// Its disk is nearly full; only a leader knows it of others, if they answer.
    pub short_of_room: Option<bool>,
}

/// The group, as the asked member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// The asked member.
    pub id: u64,
    /// The current term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<u64>,
    /// The last entry in the asked member's log.
    pub last_log: u64,
    /// The last entry that it applied.
    pub applied: u64,
    /// The last entry that was purged from its log.
    pub purged: Option<u64>,
    /// Bytes of its log.
    pub log_bytes: u64,
    /// All members.
    pub members: Vec<MemberStatus>,
}
