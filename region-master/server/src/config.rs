//! The daemon's configuration: one struct, read from TOML, checked once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use mooseng_namespace::trash::RETENTION_S_MAX;
use mooseng_otlp::OtlpConfig;
use mooseng_transport::observe::LogConfig;
use mooseng_transport::wan::DevConfig;
use mooseng_transport::{Limits, TlsFiles};
use mooseng_wire::is_identity_word;
use serde::{Deserialize, Serialize};

use crate::global::config::GlobalConfig;

/// Configuration of a mooseng-master.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MasterConfig {
    /// This master's name: the last word of its SPIFFE id.
    pub name: String,
    /// Its number in the Raft group, from 1; never given twice.
    pub id: u64,
    /// The region.
    pub region: String,
    /// The cluster.
    pub cluster: String,
    /// The zone that this machine is in.
    #[serde(default)]
    pub zone: String,
    /// Address and port to listen on.
    pub listen: String,
    /// How others reach this master; `listen` where it isn't given.
    #[serde(default)]
    pub advertise: String,
    /// Directory of the Raft log and the metadata store.
    pub state_dir: PathBuf,
    /// Bytes of its disk that are kept free, a tenth of the disk at most. With less this master leads only where no other has more, and a
    /// region without one takes no new names, below half of it no data; removing goes on.
    #[serde(default = "reserve_bytes")]
    pub reserve_bytes: u64,
    /// Loopback address of /metrics, /healthz and /readyz; not served where it isn't given.
    #[serde(default)]
    pub http_listen: Option<String>,
    /// Certificate files.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// The group's first members, this one included. The one with the lowest id makes the group when it is empty.
    #[serde(default)]
    pub members: Vec<MemberConfig>,
    /// Copies of a chunk.
    #[serde(default = "two")]
    pub copies: usize,
    /// Writes wait below this many.
    #[serde(default = "two")]
    pub min_copies: usize,
    /// How long a session lives without a renewal.
    #[serde(default = "session_lease_ms")]
    pub session_lease_ms: u64,
    /// MiB that requests and answers take up at most, half of it each: those that arrive, are worked on, or wait for
    /// whoever asked. More is refused or waits. What masters say to each other isn't counted.
    #[serde(default = "memory_max_mib")]
    pub memory_max_mib: usize,
    /// House-keeping: repair, rebalancing, collection.
    #[serde(default)]
    pub house: HouseConfig,
    /// What may be mounted where; everything by every client where there is no rule. The first rule that fits a client counts, and a client
    /// that none fits is refused.
    #[serde(default)]
    pub mounts: Vec<MountRule>,
    /// Raft's times.
    #[serde(default)]
    pub raft: RaftConfig,
    /// The cluster's regions; the same in each master of each. Without it there is one region.
    #[serde(default)]
    pub global: Option<GlobalConfig>,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
    /// Where spans and metrics are sent; nowhere where it isn't given.
    #[serde(default)]
    pub otlp: Option<OtlpConfig>,
    /// For `mooseng dev` and tests.
    #[serde(default)]
    pub dev: DevConfig,
}

/// A member of the Raft group.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// How others reach it.
    pub address: String,
    /// Its zone.
    #[serde(default)]
    pub zone: String,
}

/// What some clients may mount.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MountRule {
    /// For which clients: the names in their certificates. A `*` at the end stands for any rest.
    pub clients: Vec<String>,
    /// The directory that is the root of what they see. It must be there when they mount.
    #[serde(default = "slash")]
    pub subtree: String,
    /// They change nothing.
    #[serde(default)]
    pub read_only: bool,
    /// Whose word isn't taken for who they are.
    #[serde(default)]
    pub squash: Squash,
    /// The user that those become.
    #[serde(default = "nobody")]
    pub squash_uid: u32,
    /// And the group.
    #[serde(default = "nobody")]
    pub squash_gid: u32,
}

/// Whose word a mount isn't taken for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Squash {
    /// Users are who their host says they are.
    #[default]
    None,
    /// root isn't.
    Root,
    /// Nobody is.
    All,
}

impl MountRule {
    /// Whether the rule is for a client of this name.
    pub fn is_for(&self, client: &str) -> bool {
        self.clients.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => client.starts_with(beginning),
            None => client == pattern,
        })
    }

    /// The names on the way to the subtree's root.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.subtree.split('/').filter(|component| !component.is_empty())
    }

    fn is_well(&self) -> Result<(), ConfigError> {
        if self.clients.is_empty() {
            return Err(wrong("mounts.clients", "a rule for nobody; name clients, or give [\"*\"] for all"));
        }
        if let Some(pattern) = self.clients.iter().find(|p| p.trim_end_matches('*').contains('*')) {
            return Err(wrong("mounts.clients", format!("{pattern:?} has a * elsewhere than at its end")));
        }
        if !self.subtree.starts_with('/') || self.components().any(|c| c == "." || c == "..") {
            let problem =
                format!("{:?} isn't a path from the volume's root, as in \"/srv/web\"", self.subtree);
            return Err(wrong("mounts.subtree", problem));
        }
        if self.squash != Squash::None && self.squash_uid == 0 {
            return Err(wrong("mounts.squash_uid", "users that become root aren't squashed; 65534 is usual"));
        }
        Ok(())
    }
}

fn slash() -> String {
    "/".to_owned()
}

fn nobody() -> u32 {
    65_534
}

/// Raft's times, in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// A follower waits at least so long for its leader.
    pub election_min_ms: u64,
    /// And at most so long.
    pub election_max_ms: u64,
    /// Entries that stay in the log behind a snapshot, for followers that are a little behind.
    pub entries_kept: u64,
    /// Applied entries after which the store is flushed and the log cut.
    pub entries_between_snapshots: u64,
    /// Bytes of one file of the log.
    pub segment_bytes: u64,
    /// Followers whose answer no commit needs hear of entries up to so much later, and of many at once; 0 for at once. Only where followers answer much sooner than that.
    pub defer_ms: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            election_min_ms: 500,
            election_max_ms: 800,
            entries_kept: 5_000,
            entries_between_snapshots: 10_000,
            segment_bytes: 16 << 20,
            defer_ms: 5,
        }
    }
}

/// House-keeping.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct HouseConfig {
    /// A chunkserver that is silent for less causes no copying.
    pub grace_ms: u64,
    /// Pause between two scans over all chunks.
    pub scan_every_ms: u64,
    /// How long after its seal a chunk that nothing uses stays, while its session lives: it may still be about to name it.
    pub collect_after_ms: u64,
    /// A copy that its chunkserver should have reported by now is missing: so long after the seal.
    pub settle_ms: u64,
    /// Copies that a chunkserver gives or takes at a time.
    pub copies_per_chunkserver: usize,
    /// MiB in one second that one copy takes at most; 0 for as fast as it goes.
    pub copy_mib_per_s: u64,
    /// Copies are moved while a chunkserver is fuller than another one by more percent.
    pub spread_percent: u32,
    /// Rewrites of chunks of which little is still used, at a time; 0 for none.
    pub rewrites_at_once: usize,
    /// MiB in one second that a rewrite moves at most; 0 for as fast as it goes.
    pub rewrite_mib_per_s: u64,
    /// How long after its seal a chunk may be rewritten.
    pub rewrite_after_ms: u64,
    /// KiB that a rewrite must set free, unless as many chunks wait as one rewrite takes.
    pub rewrite_gain_kib: u64,
    /// Small chunks that are merged into one at least; 0 for never.
    pub merge_chunks: usize,
    /// KiB that these have at least, unless there are as many as one rewrite takes.
    pub merge_fill_kib: u64,
    /// How long after its seal a small chunk may be merged with others.
    pub merge_after_ms: u64,
    /// Places within 64 MiB of a file where its data doesn't go on in the same chunk, from which on that part of the file is written anew; 0 for
    /// never.
    pub join_above_extents: u64,
    /// For how long such a file mustn't have changed.
    pub join_after_ms: u64,
    /// Chunks that are made at a time of small files' data, which the metadata store has until then; 0 for none: then it stays there.
    pub packs_at_once: usize,
    /// KiB that such a file has at least; 4 to 64.
    pub pack_above_kib: u64,
    /// For how long it mustn't have changed.
    pub pack_after_ms: u64,
    /// KiB that wait at least before a chunk is made of them.
    pub pack_fill_kib: u64,
    /// Chunks that are made at a time of small writes to large files, which the metadata store has until then; 0 for none: then such writes go
    /// to chunks at once.
    pub destages_at_once: usize,
    /// KiB of such writes to one file that are kept before they are moved. A file has at most 4 MiB.
    pub destage_above_kib: u64,
    /// How long they stay at most where no more come.
    pub destage_after_ms: u64,
    /// How long a *new* region keeps deleted files in its trash, in seconds; 0 for not at all. Afterwards `mooseng trash retention`
    /// shows and sets it. Chunkservers' `trash_s` is another thing: it keeps files of chunks that nothing uses any more.
    pub trash_retention_s: u64,
    /// Of a *new* region: a file that loses its last name less than so many seconds after it was made isn't kept. Most of those are
    /// scratch files.
    pub trash_min_age_s: u64,
    /// KiB of records that this region asks a volume's home for at a time while it copies it; 1 to 390.
    pub copy_kib: u32,
    /// How long a region that was taken out of a volume's regions keeps what it has of it, in seconds, before any of it goes: somebody may have made a mistake.
    pub let_go_after_s: u64,
    /// MiB of a volume's log that are kept at most for regions that don't follow it: one that is further behind copies the volume anew. 0 for no bound.
    pub log_kept_mib: u64,
    /// How long what came of a session's changes is kept once its lease has run out, in seconds: until then a retry returns the first outcome, at the next home,
    /// too.
    pub outcomes_kept_s: u64,
    /// How long files without a name are kept for a session whose lease has run out and that may come back and have them open, in seconds. While there is such a
    /// session, no space of deleted files of its volume is freed. 0: they wait for no more than its lease, which it has at the next home, too.
    pub opens_kept_s: u64,
}

impl Default for HouseConfig {
    fn default() -> Self {
        Self {
            grace_ms: 60_000,
            scan_every_ms: 5_000,
            collect_after_ms: 90_000,
            settle_ms: 30_000,
            copies_per_chunkserver: 2,
            copy_mib_per_s: 64,
            spread_percent: 10,
            rewrites_at_once: 1,
            rewrite_mib_per_s: 32,
            rewrite_after_ms: 10_000,
            rewrite_gain_kib: 1_024,
            merge_chunks: 8,
            merge_fill_kib: 8_192,
            merge_after_ms: 600_000,
            join_above_extents: 24,
            join_after_ms: 600_000,
            packs_at_once: 1,
            pack_above_kib: 4,
            pack_after_ms: 60_000,
            pack_fill_kib: 1_024,
            destages_at_once: 2,
            destage_above_kib: 1_024,
            destage_after_ms: 120_000,
            trash_retention_s: 86_400,
            trash_min_age_s: 60,
            copy_kib: 390,
            let_go_after_s: 3_600,
            log_kept_mib: 4_096,
            outcomes_kept_s: 86_400,
            opens_kept_s: 0,
        }
    }
}

/// KiB of a range that is copied at once.
const COPY_KIB_MAX: u32 = 390;

fn reserve_bytes() -> u64 {
    512 << 20
}

fn two() -> usize {
    2
}

fn memory_max_mib() -> usize {
    2_048
}

fn session_lease_ms() -> u64 {
    10_000
}

/// A setting that can't work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The text isn't a configuration.
    #[error("the configuration can't be read: {0}")]
    Syntax(String),
    /// A setting's value can't work.
    #[error("the setting `{setting}` is wrong: {problem}")]
    Setting {
        /// Its key.
        setting: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

pub(crate) fn wrong(setting: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Setting { setting: setting.to_owned(), problem: problem.into() }
}

impl MasterConfig {
    /// Reads and checks a configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|e| ConfigError::Syntax(with_suggestion(&e.to_string())))?;
        if config.advertise.is_empty() {
            config.advertise.clone_from(&config.listen);
        }
        if let Some(global) = &mut config.global {
            global.take_token()?;
        }
        config.check()?;
        Ok(config)
    }

    /// Refuses what can't work, naming the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (setting, word) in [("name", &self.name), ("region", &self.region), ("cluster", &self.cluster)] {
            if !is_identity_word(word) {
                let problem = format!("{word:?} isn't a word of letters, digits, '-', '_' and '.'");
                return Err(wrong(setting, problem));
            }
        }
        if self.id == 0 {
            return Err(wrong("id", "0 isn't a master's number; count from 1"));
        }
        for (setting, address) in [("listen", &self.listen), ("advertise", &self.advertise)] {
            address_is_well(setting, address)?;
        }
        if let Some(address) = &self.http_listen {
            address_is_well("http_listen", address)?;
        }
        if self.advertise.starts_with("0.0.0.0:") || self.advertise.starts_with("[::]:") {
            return Err(wrong("advertise", "others can't reach a wildcard address; give this machine's own"));
        }
        self.members_are_well()?;
        if self.copies == 0 {
            return Err(wrong("copies", "a chunk needs at least one copy"));
        }
        if self.min_copies == 0 || self.min_copies > self.copies {
            let problem = format!("it must lie between 1 and `copies`, which is {}", self.copies);
            return Err(wrong("min_copies", problem));
        }
        if self.session_lease_ms < 1_000 {
            return Err(wrong(
                "session_lease_ms",
                "less than a second leaves no time for a failover; 10000 is usual",
            ));
        }
        if !(64..=1 << 20).contains(&self.memory_max_mib) {
            return Err(wrong("memory_max_mib", "it must lie between 64 and 1048576; 2048 is usual"));
        }
        if self.house.copies_per_chunkserver == 0 {
            return Err(wrong("house.copies_per_chunkserver", "nothing would ever be repaired; 2 is usual"));
        }
        if self.house.scan_every_ms == 0 {
            return Err(wrong("house.scan_every_ms", "scans need a pause; 5000 is usual"));
        }
        if !(1..=99).contains(&self.house.spread_percent) {
            return Err(wrong("house.spread_percent", "it must lie between 1 and 99; 10 is usual"));
        }
        self.rewriting_is_well()?;
        if self.house.trash_retention_s > RETENTION_S_MAX {
            return Err(wrong("house.trash_retention_s", "ten years are the most; 86400, a day, is usual"));
        }
        if self.house.trash_min_age_s > RETENTION_S_MAX {
            return Err(wrong("house.trash_min_age_s", "ten years are the most; 60, a minute, is usual"));
        }
        if !(1..=COPY_KIB_MAX).contains(&self.house.copy_kib) {
            return Err(wrong(
                "house.copy_kib",
                "1 to 390, which is usual; more doesn't fit into a transaction",
            ));
        }
        if self.house.let_go_after_s > RETENTION_S_MAX {
            return Err(wrong("house.let_go_after_s", "ten years are the most; 3600, an hour, is usual"));
        }
        if !(1..=RETENTION_S_MAX).contains(&self.house.outcomes_kept_s) {
            return Err(wrong(
                "house.outcomes_kept_s",
                "it must lie between 1 and ten years; 86400, a day, is usual",
            ));
        }
        if self.house.opens_kept_s > RETENTION_S_MAX {
            return Err(wrong(
                "house.opens_kept_s",
                "ten years are the most; 0, their lease alone, is usual",
            ));
        }
        self.raft_is_well()?;
        if let Some(global) = &self.global {
            global.check(self)?;
        }
        for rule in &self.mounts {
            rule.is_well()?;
        }
        if let Some(otlp) = &self.otlp {
            otlp.check().map_err(|e| wrong(&e.setting, e.problem))?;
        }
        Ok(())
    }

    fn rewriting_is_well(&self) -> Result<(), ConfigError> {
        let house = &self.house;
        if !(4..=64).contains(&house.pack_above_kib) {
            return Err(wrong(
                "house.pack_above_kib",
                "it must lie between 4 and 64; 4 is usual, and packs_at_once = 0 packs nothing",
            ));
        }
        if house.pack_fill_kib > 65_536 {
            return Err(wrong("house.pack_fill_kib", "65536 is the most a chunk has; 1024 is usual"));
        }
        if house.merge_chunks == 1 || house.merge_chunks > 64 {
            return Err(wrong(
                "house.merge_chunks",
                "it must lie between 2 and 64; 8 is usual, and 0 merges nothing",
            ));
        }
        if house.merge_fill_kib > 65_536 {
            return Err(wrong("house.merge_fill_kib", "65536 is the most a chunk has; 8192 is usual"));
        }
        if house.join_above_extents == 1 {
            return Err(wrong(
                "house.join_above_extents",
                "it would be too few; 24 is usual, and 0 joins nothing",
            ));
        }
        Ok(())
    }

    fn members_are_well(&self) -> Result<(), ConfigError> {
        let mut ids = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for member in &self.members {
            if member.id == 0 || !ids.insert(member.id) {
                return Err(wrong("members", format!("the id {} is 0 or given twice", member.id)));
            }
            address_is_well("members", &member.address)?;
            if !addresses.insert(&member.address) {
                return Err(wrong("members", format!("the address {} is given twice", member.address)));
            }
            if member.id == self.id && member.name != self.name {
                let problem = format!("id {} is {:?} there and {:?} here", member.id, member.name, self.name);
                return Err(wrong("members", problem));
            }
        }
        Ok(())
    }

    /// Whether a rule confines some mounts to a part of the tree. Files then aren't brought together in chunks: a ticket opens all of one, and a program
    /// on such a host could read what lies beside its own.
    pub fn confines_mounts(&self) -> bool {
        self.mounts.iter().any(|rule| rule.components().next().is_some())
    }

    fn raft_is_well(&self) -> Result<(), ConfigError> {
        let raft = &self.raft;
        if raft.heartbeat_ms == 0 {
            return Err(wrong("raft.heartbeat_ms", "it is zero; 150 is usual"));
        }
        if raft.election_min_ms < raft.heartbeat_ms * 2 {
            return Err(wrong("raft.election_min_ms", "it must be at least twice raft.heartbeat_ms"));
        }
        if raft.entries_between_snapshots == 0 {
            return Err(wrong("raft.entries_between_snapshots", "it is zero; 10000 is usual"));
        }
        if raft.segment_bytes < 256 << 10 {
            return Err(wrong("raft.segment_bytes", "it must be at least 262144; 16777216 is usual"));
        }
        if raft.election_max_ms <= raft.election_min_ms {
            return Err(wrong("raft.election_max_ms", "it must be more than raft.election_min_ms"));
        }
        // A heartbeat may wait behind what is kept back.
        if raft.defer_ms > raft.heartbeat_ms / 2 {
            return Err(wrong("raft.defer_ms", "it must be at most half of raft.heartbeat_ms; 5 is usual"));
        }
        Ok(())
    }

    /// What its port takes on.
    pub fn limits(&self) -> Limits {
        Limits::within(self.memory_max_mib << 20)
    }

    /// The session lease.
    pub fn session_lease(&self) -> Duration {
        Duration::from_millis(self.session_lease_ms)
    }

    /// Whether this master makes the group when there is none: it has the lowest id of the first members.
    pub fn makes_the_group(&self) -> bool {
        self.members.iter().map(|m| m.id).min() == Some(self.id)
    }
}

pub(crate) fn address_is_well(setting: &str, address: &str) -> Result<(), ConfigError> {
    let port = address
        .rsplit_once(':')
        .and_then(|(host, port)| if host.is_empty() { None } else { port.parse::<u16>().ok() });
    if port.is_none() {
        return Err(wrong(setting, format!("{address:?} isn't an address of the form host:port")));
    }
    Ok(())
}

/// Adds the likely right key to serde's complaint about an unknown one.
fn with_suggestion(message: &str) -> String {
    let mut words = message.split('`').skip(1).step_by(2);
    let unknown = message.contains("unknown field").then(|| words.next()).flatten();
    let nearest = unknown.and_then(|unknown| {
        words.map(|w| (distance(unknown, w), w)).min().filter(|(d, w)| *d <= 1 + w.len() / 3)
    });
    match nearest {
        Some((_, right)) => format!("{message}\nDid you mean `{right}`?"),
        None => message.to_owned(),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "m1"
id = 1
region = "eu"
cluster = "c"
listen = "127.0.0.1:7001"
state_dir = "/var/lib/mooseng"
[[members]]
id = 1
name = "m1"
address = "127.0.0.1:7001"
"#;

    #[test]
    fn a_good_one_has_defaults() {
        let config = MasterConfig::parse(GOOD).unwrap();
        assert_eq!((config.copies, config.min_copies, config.advertise.as_str()), (2, 2, "127.0.0.1:7001"));
        assert!(config.makes_the_group());
        let printed = toml::to_string(&config).unwrap();
        assert_eq!(MasterConfig::parse(&printed).unwrap(), config, "what is printed can be read");
    }

    #[test]
    fn a_typo_suggests_the_right_key() {
        let text = GOOD.replace("listen", "listn");
        let error = MasterConfig::parse(&text).unwrap_err().to_string();
        assert!(error.contains("Did you mean `listen`?"), "{error}");
    }

    #[test]
    fn errors_name_the_setting() {
        let table = [
            ("id = 1\nregion", "id = 0\nregion", "`id`"),
            ("127.0.0.1:7001\"\nstate", "7001\"\nstate", "`listen`"),
            ("127.0.0.1:7001\"\nstate", "0.0.0.0:7001\"\nstate", "`advertise`"),
            ("name = \"m1\"\nid = 1\nregion", "name = \"mx\"\nid = 1\nregion", "`members`"),
            ("cluster = \"c\"", "cluster = \"\"", "`cluster`"),
            ("cluster", "copies = 1\ncluster", "`min_copies`"),
            ("cluster", "session_lease_ms = 5\ncluster", "`session_lease_ms`"),
            ("cluster", "memory_max_mib = 63\ncluster", "`memory_max_mib`"),
        ];
        for (from, to, setting) in table {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            let error = MasterConfig::parse(&text).unwrap_err().to_string();
            assert!(error.contains(setting), "{to}: {error}");
        }
        let text = format!("{GOOD}[house]\nspread_percent = 0\n");
        assert!(MasterConfig::parse(&text).unwrap_err().to_string().contains("house.spread_percent"));
        let text = format!("{GOOD}[house]\ntrash_retention_s = 400000000\n");
        assert!(MasterConfig::parse(&text).unwrap_err().to_string().contains("house.trash_retention_s"));
        let text = format!("{GOOD}[house]\nlet_go_after_s = 400000000\n");
        assert!(MasterConfig::parse(&text).unwrap_err().to_string().contains("house.let_go_after_s"));
        for wrong in ["outcomes_kept_s = 0", "outcomes_kept_s = 400000000", "opens_kept_s = 400000000"] {
            let setting = wrong.split(' ').next().unwrap();
            let error = MasterConfig::parse(&format!("{GOOD}[house]\n{wrong}\n")).unwrap_err().to_string();
            assert!(error.contains(&format!("house.{setting}")), "{wrong}: {error}");
        }
        let text = format!("{GOOD}[raft]\nheartbeat_ms = 500\n");
        assert!(MasterConfig::parse(&text).unwrap_err().to_string().contains("raft.election_min_ms"));
    }
}
