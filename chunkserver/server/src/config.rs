//! The daemon's configuration: one struct, read from TOML, checked once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mooseng_otlp::OtlpConfig;
use mooseng_transport::observe::LogConfig;
use mooseng_transport::wan::DevConfig;
use mooseng_transport::{Limits, TlsFiles};
use mooseng_wire::is_identity_word;
use serde::{Deserialize, Serialize};

/// Configuration of a mooseng-chunkserver.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ChunkserverConfig {
    /// This chunkserver's name: the last word of its SPIFFE id.
    pub name: String,
    /// The region.
    pub region: String,
    /// The cluster.
    pub cluster: String,
    /// The zone that this machine is in.
    #[serde(default)]
    pub zone: String,
    /// Its rack.
    #[serde(default)]
    pub rack: String,
    /// Address and port to listen on.
    pub listen: String,
    /// How others reach this chunkserver; `listen` where it isn't given.
    #[serde(default)]
    pub advertise: String,
    /// Where chunks lie: one directory a disk.
    pub data_dirs: Vec<PathBuf>,
    /// Where epochs and the list of disks are kept.
    pub state_dir: PathBuf,
    /// Loopback address of /metrics, /healthz and /readyz; not served where it isn't given.
    #[serde(default)]
    pub http_listen: Option<String>,
    /// Addresses of the region's masters.
    pub masters: Vec<String>,
    /// Bytes of each disk that are left free.
    #[serde(default = "reserve_bytes")]
    pub reserve_bytes: u64,
    /// Most chunk files kept open.
    #[serde(default = "open_files_max")]
    pub open_files_max: usize,
    /// MiB that requests and answers take up at most, half of it each: those that arrive, are worked on, or wait for
    /// whoever asked. More is refused or waits.
    #[serde(default = "memory_max_mib")]
    pub memory_max_mib: usize,
    /// How long a chain waits for its next member.
    #[serde(default = "chain_timeout_ms")]
    pub chain_timeout_ms: u64,
    /// How long files of deleted chunks wait in the trash; 0 for not at all.
    #[serde(default = "trash_s")]
    pub trash_s: u64,
    /// How long it takes to read all chunks again in the background.
    #[serde(default = "scrub_period_s")]
    pub scrub_period_s: u64,
    /// Whether clients on this host are lent sealed chunks' files, which they then read without asking this process.
    #[serde(default = "yes")]
    pub same_host_reads: bool,
    /// Whether what processes on this host write comes through memory that they share with this chunkserver, instead of over the network.
    #[serde(default = "yes")]
    pub same_host_writes: bool,
    /// Certificate files.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
    /// Words that storage classes choose chunkservers by; `host` names the machine where several share one.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where spans and metrics are sent; nowhere where it isn't given.
    #[serde(default)]
    pub otlp: Option<OtlpConfig>,
    /// For `mooseng dev` and tests.
    #[serde(default)]
    pub dev: DevConfig,
}

fn reserve_bytes() -> u64 {
    1 << 30
}

fn open_files_max() -> usize {
    512
}

fn memory_max_mib() -> usize {
    2_048
}

fn chain_timeout_ms() -> u64 {
    1_500
}

/// Longer than a loan to a client of the same host lasts; short, for what is overwritten all the time passes through here.
fn trash_s() -> u64 {
    120
}

fn scrub_period_s() -> u64 {
    7 * 24 * 3_600
}

fn yes() -> bool {
    true
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

fn wrong(setting: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Setting { setting: setting.to_owned(), problem: problem.into() }
}

impl ChunkserverConfig {
    /// Reads and checks a configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|e| ConfigError::Syntax(with_suggestion(&e.to_string())))?;
        if config.advertise.is_empty() {
            config.advertise.clone_from(&config.listen);
        }
        config.check()?;
        Ok(config)
    }

    /// Refuses what can't work, naming the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (setting, word) in [("name", &self.name), ("region", &self.region), ("cluster", &self.cluster)] {
            if !is_identity_word(word) {
                return Err(wrong(
                    setting,
                    format!("{word:?} isn't a word of 1 to 63 letters, digits, '-', '_' or '.'"),
                ));
            }
        }
        for (setting, address) in [("listen", &self.listen), ("advertise", &self.advertise)] {
            address_is_well(setting, address)?;
        }
        if self.advertise.starts_with("0.0.0.0:") || self.advertise.starts_with("[::]:") {
            return Err(wrong("advertise", "others can't reach a wildcard address; give this machine's own"));
        }
        if let Some(address) = &self.http_listen {
            address_is_well("http_listen", address)?;
        }
        self.directories_are_well()?;
        if self.masters.is_empty() {
            return Err(wrong(
                "masters",
                "a chunkserver without masters is never used; give the addresses of the region's masters",
            ));
        }
        self.masters.iter().try_for_each(|m| address_is_well("masters", m))?;
        if self.open_files_max == 0 {
            return Err(wrong("open_files_max", "at least one file must be open; 512 is usual"));
        }
        if !(64..=1 << 20).contains(&self.memory_max_mib) {
            return Err(wrong("memory_max_mib", "it must lie between 64 and 1048576; 2048 is usual"));
        }
        if self.scrub_period_s == 0 {
            return Err(wrong("scrub_period_s", "chunks must be read again at some time; 604800 is usual"));
        }
        if !(100..=60_000).contains(&self.chain_timeout_ms) {
            return Err(wrong("chain_timeout_ms", "it must lie between 100 and 60000; 1500 is usual"));
        }
        if let Some(otlp) = &self.otlp {
            otlp.check().map_err(|e| wrong(&e.setting, e.problem))?;
        }
        Ok(())
    }

    /// What its port takes on.
    pub fn limits(&self) -> Limits {
        Limits::within(self.memory_max_mib << 20)
    }

    fn directories_are_well(&self) -> Result<(), ConfigError> {
        if self.data_dirs.is_empty() {
            return Err(wrong("data_dirs", "there is none; give one directory for each disk"));
        }
        for (n, dir) in self.data_dirs.iter().enumerate() {
            if dir.to_str().is_none_or(|d| d.contains('\n')) {
                return Err(wrong("data_dirs", format!("{} isn't plain text", dir.display())));
            }
            if self.data_dirs[..n].contains(dir) {
                return Err(wrong("data_dirs", format!("{} is named twice", dir.display())));
            }
        }
        Ok(())
    }
}

fn address_is_well(setting: &str, address: &str) -> Result<(), ConfigError> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(wrong(setting, format!("{address:?} isn't an address of the form host:port"))),
    }
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
name = "cs1"
region = "eu"
cluster = "c"
listen = "127.0.0.1:7101"
data_dirs = ["/data/1", "/data/2"]
state_dir = "/var/lib/mooseng"
masters = ["127.0.0.1:7001"]
[labels]
host = "a"
"#;

    #[test]
    fn a_good_one_has_defaults_and_what_is_printed_can_be_read() {
        let config = ChunkserverConfig::parse(GOOD).unwrap();
        assert_eq!((config.advertise.as_str(), config.reserve_bytes), ("127.0.0.1:7101", 1 << 30));
        assert_eq!(ChunkserverConfig::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn a_typo_suggests_the_right_key() {
        let error = ChunkserverConfig::parse(&GOOD.replace("data_dirs", "datadirs")).unwrap_err().to_string();
        assert!(error.contains("Did you mean `data_dirs`?"), "{error}");
    }

    #[test]
    fn errors_name_the_setting() {
        let table = [
            ("\"cs1\"", "\"c s\"", "`name`"),
            ("listen = \"127.0.0.1:7101\"", "listen = \"7101\"", "`listen`"),
            ("listen = \"127.0.0.1:7101\"", "listen = \"0.0.0.0:7101\"", "`advertise`"),
            ("\"/data/2\"", "\"/data/1\"", "`data_dirs`"),
            ("[\"127.0.0.1:7001\"]", "[]", "`masters`"),
            ("state_dir", "chain_timeout_ms = 1\nstate_dir", "`chain_timeout_ms`"),
            ("state_dir", "scrub_period_s = 0\nstate_dir", "`scrub_period_s`"),
            ("state_dir", "memory_max_mib = 0\nstate_dir", "`memory_max_mib`"),
            ("[labels]", "[otlp]\nendpoint = \"collector\"\n[labels]", "`otlp.endpoint`"),
            ("[labels]", "[otlp]\nendpoint = \"http://c\"\nsample = 2.0\n[labels]", "`otlp.sample`"),
            ("[labels]", "[otlp]\nendpoint = \"http://c\"\nsampel = 1.0\n[labels]", "Did you mean `sample`?"),
        ];
        for (from, to, setting) in table {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            let error = ChunkserverConfig::parse(&text).unwrap_err().to_string();
            assert!(error.contains(setting), "{to}: {error}");
        }
    }
}
