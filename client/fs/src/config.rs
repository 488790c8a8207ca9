//! What a filesystem client is told.

use std::time::Duration;

/// Configuration of a [`crate::FileSystem`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// Addresses of the region's masters; any one of them is enough to find the others' leader.
    pub masters: Vec<String>,
    /// The volume: 0 is the root. Others are entered by [`crate::Tree`].
    pub volume: u16,
    /// The zone that this host is in: replicas there are read first. Empty when unknown.
    pub zone: String,
    /// Shown in the master's list of sessions.
    pub host: String,
    /// Shown in the master's list of sessions; empty without a mount.
    pub mount_path: String,
    /// How long an operation is retried before it fails with ETIMEDOUT, or EIO for data.
    pub retry_timeout: Duration,
    /// How long [`crate::FileSystem::connect`] waits for the first session.
    pub connect_timeout: Duration,
    /// How often the lease is renewed.
    pub renew_interval: Duration,
    /// An answer that takes longer than this makes the client ask the leader whether it still leads.
    pub doubt_after: Duration,
    /// An append that takes longer than this ends its chunk.
    pub append_timeout: Duration,
    /// A replica that hasn't answered a read for this long is joined by the next one.
    pub hedge_after: Duration,
    /// Most bytes of chunk data kept in memory, of all volumes together.
    pub cache_bytes: usize,
    /// Most bytes that are written and not sent yet, of all volumes together; 0 sends each write at once.
    pub write_buffer_bytes: usize,
    /// Whether changes of names in directories that only this mount works in are made here, and told to the region a few milliseconds later. Until
    /// fsync, of the file or the directory, a crash of this host may lose them, as on a local filesystem. And whether locks of files that nobody else has open
    /// are given here: the region hears of them when somebody else wants one.
    pub delegate: bool,
    /// Whether everything is read at the volume's home, wherever that is, and nothing from this host's region's replica of it.
    pub strong: bool,
    /// Whether each change is durable, where fsync has it, before it is answered: of data and attributes, and of names.
    pub sync: bool,
    /// The same of names alone.
    pub dirsync: bool,
    /// Most bytes of attributes, entries and lists of directories kept in memory; of what a replica tells as many again. Of each
    /// volume besides the root, a quarter of it more.
    pub facts_bytes: usize,
    /// Most bytes read ahead on one handle.
    pub read_ahead_bytes: u64,
    /// Whether sealed chunks of chunkservers on this host are read from their files, which they lend.
    pub same_host_reads: bool,
    /// Whether what is written to chunkservers on this host goes through memory that they share with this client.
    pub same_host_writes: bool,
    /// Whether reads update access times (as relatime does).
    pub atime: bool,
    /// How often access times are sent.
    pub atime_interval: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            masters: Vec::new(),
            volume: 0,
            zone: String::new(),
            host: String::new(),
            mount_path: String::new(),
            retry_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(15),
            renew_interval: Duration::from_secs(2),
            doubt_after: Duration::from_millis(700),
            append_timeout: Duration::from_millis(1000),
            hedge_after: Duration::from_millis(500),
            cache_bytes: 64 << 20,
            write_buffer_bytes: 64 << 20,
            delegate: true,
            strong: false,
            sync: false,
            dirsync: false,
            facts_bytes: 64 << 20,
            read_ahead_bytes: 8 << 20,
            // Sockets and files of the system's own: not for a simulation.
            same_host_reads: false,
            same_host_writes: false,
            atime: true,
            atime_interval: Duration::from_secs(3),
        }
    }
}

impl ClientConfig {
    /// Refuses what can't work, in a sentence.
    pub fn validate(&self) -> Result<(), String> {
        if self.masters.is_empty() {
            return Err("no masters are configured: name at least one master's address (host:port)".into());
        }
        if self.renew_interval.is_zero() || self.append_timeout.is_zero() || self.hedge_after.is_zero() {
            return Err("renew_interval, append_timeout and hedge_after must be longer than zero".into());
        }
        Ok(())
    }
}
