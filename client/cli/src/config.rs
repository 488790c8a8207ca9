//! The client's configuration file: what a mount and the commands that ask masters need. Flags and environment override it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mooseng_client::ClientConfig;
use mooseng_otlp::OtlpConfig;
use mooseng_transport::wan::DevConfig;
use mooseng_transport::{Network, TlsFiles, TlsNetwork};
use mooseng_wire::{Identity, is_identity_word};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::{runtime, suggest};

/// The file, TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The cluster's name.
    pub cluster: String,
    /// The region that is mounted.
    pub region: String,
    /// This host's name in its certificate.
    pub name: String,
    /// The zone that this host is in; replicas there are read first.
    #[serde(default)]
    pub zone: String,
    /// Addresses of masters (host:port).
    pub masters: Vec<String>,
    /// How long an operation is retried while the region doesn't answer, in seconds.
    #[serde(default = "default_retry_timeout_s")]
    pub retry_timeout_s: u64,
    /// Most megabytes that are written and not sent yet; 0 sends each write to the region before it returns.
    #[serde(default = "default_write_buffer_mb")]
    pub write_buffer_mb: u32,
    /// Whether chunks of chunkservers on this host are read from their files, which they lend.
    #[serde(default = "yes")]
    pub same_host_reads: bool,
    /// Whether what is written to chunkservers on this host goes through memory that they share with the mount.
    #[serde(default = "yes")]
    pub same_host_writes: bool,
    /// Whether names in directories that only this mount works in are made here, and told to the region a few milliseconds later; and whether locks of files
    /// that only this mount has open are given here.
    #[serde(default = "yes")]
    pub delegate: bool,
    /// Where to serve /metrics, /healthz and /readyz; loopback only. Port 0 takes a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_listen: Option<String>,
    /// Where a mount in the background logs; without it, the runtime directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_dir: Option<PathBuf>,
    /// Whether the log is JSON, one object a line.
    #[serde(default = "yes")]
    pub log_json: bool,
    /// The certificate files.
    pub tls: TlsSection,
    /// Where a mount sends its spans and metrics; nowhere where it isn't given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<OtlpConfig>,
    /// For `mooseng dev` and tests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dev: DevConfig,
}

/// The certificate files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The leaf and its intermediate, PEM.
    pub cert: PathBuf,
    /// The leaf's key, PEM.
    pub key: PathBuf,
    /// The root that peers are checked with, PEM.
    pub ca: PathBuf,
    /// The revocation list, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<PathBuf>,
}

fn default_retry_timeout_s() -> u64 {
    60
}

fn default_write_buffer_mb() -> u32 {
    64
}

fn is_default(dev: &DevConfig) -> bool {
    *dev == DevConfig::default()
}

fn yes() -> bool {
    true
}

/// Keys of the file, for suggestions.
const KEYS: &[&str] = &[
    "cluster",
    "region",
    "name",
    "zone",
    "masters",
    "retry_timeout_s",
    "write_buffer_mb",
    "same_host_reads",
    "same_host_writes",
    "delegate",
    "http_listen",
    "log_dir",
    "log_json",
    "tls",
    "cert",
    "key",
    "ca",
    "revocations",
    "otlp",
    "endpoint",
    "sample",
    "timeout_ms",
    "metrics_every_s",
    "headers",
    "dev",
    "wan",
    "namespace",
];

impl ClientFile {
    /// Reads and checks a file, for somebody who is about to ask its masters: from now on this thread, and those that it starts, are in the network
    /// namespace that the file names, if it does. To be called before there are other threads that speak.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let file = Self::read(path)?;
        let entered = file.dev.enter_namespace();
        entered
            .map_err(|e| Failure::usage(format!("The configuration {} is wrong: {e}.", path.display())))?;
        Ok(file)
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let kind = if e.kind() == std::io::ErrorKind::NotFound {
                crate::exit::Kind::NotFound
            } else {
                crate::exit::Kind::Failed
            };
            Failure::new(kind, format!("The configuration {} can't be read: {e}.", path.display()))
        })?;
        let mut file = Self::parse(&text)
            .map_err(|e| Failure::usage(format!("The configuration {} is wrong: {e}", path.display())))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for p in [&mut file.tls.cert, &mut file.tls.key, &mut file.tls.ca] {
            *p = dir.join(&*p);
        }
        file.tls.revocations = file.tls.revocations.map(|p| dir.join(p));
        file.log_dir = file.log_dir.map(|p| dir.join(p));
        file.otlp = file.otlp.map(|otlp| otlp.below(dir));
        file.dev.wan = file.dev.wan.map(|p| dir.join(p));
        Ok(file)
    }

    /// Parses and checks; the error is a sentence.
    fn parse(text: &str) -> Result<Self, String> {
        let file: Self = toml::from_str(text).map_err(|e| {
            let hint = unknown_key(e.message()).and_then(|k| suggest::nearest(k, KEYS.iter().copied()));
            match hint {
                Some(near) => format!("{e}Did you mean `{near}`?"),
                None => e.to_string(),
            }
        })?;
        for (key, word) in [("cluster", &file.cluster), ("region", &file.region), ("name", &file.name)] {
            if !is_identity_word(word) {
                return Err(format!(
                    "`{key}` is {word:?}, but must be 1 to 63 letters, digits, dots, dashes and underscores."
                ));
            }
        }
        if file.masters.is_empty() {
            return Err("`masters` is empty: name at least one master's address (host:port).".into());
        }
        if let Some(bad) = file.masters.iter().find(|m| !is_address(m)) {
            return Err(format!("`masters` names {bad:?}, which isn't of the form host:port."));
        }
        if file.retry_timeout_s == 0 {
            return Err("`retry_timeout_s` is 0: an operation needs at least a second.".into());
        }
        if let Some(otlp) = &file.otlp {
            otlp.check().map_err(|e| format!("{e}."))?;
        }
        Ok(file)
    }

    /// Mutual TLS with this file's certificate, which must be that of whom the file is about. Must be called within a tokio runtime.
    pub fn network(&self) -> Result<Arc<dyn Network>, Failure> {
        let tls = self.tls.clone();
        let files = TlsFiles { cert: tls.cert, key: tls.key, ca: tls.ca, revocations: tls.revocations };
        let network = TlsNetwork::load(files).map_err(|e| Failure::usage(format!("{e}.")))?;
        self.suits(&network.identity())?;
        self.dev.beyond(Arc::new(network)).map_err(|e| Failure::usage(format!("{e}.")))
    }

    /// Refuses a certificate of somebody else. Masters go by the certificate alone, so that what the file says of this host would be shown and not be true. Either role
    /// may have either kind of file: what it may do the masters say.
    fn suits(&self, certified: &Identity) -> Result<(), Failure> {
        let found = [&certified.cluster, &certified.region, &certified.name];
        if found == [&self.cluster, &self.region, &self.name] {
            return Ok(());
        }
        let [cluster, region, name] = found;
        Err(Failure::usage(format!(
            "The certificate {} is that of {name} in the region {region} of the cluster {cluster}, and the settings `name`, `region` and `cluster` say {}, {} and {}: use the certificate that was issued for this host, or correct the settings.",
            self.tls.cert.display(),
            self.name,
            self.region,
            self.cluster
        )))
    }

    /// What the filesystem library is told.
    pub fn client_config(&self, mount_path: &Path) -> ClientConfig {
        ClientConfig {
            masters: self.masters.clone(),
            zone: self.zone.clone(),
            host: host_name(),
            mount_path: mount_path.display().to_string(),
            retry_timeout: Duration::from_secs(self.retry_timeout_s),
            delegate: self.delegate,
            write_buffer_bytes: usize::try_from(self.write_buffer_mb).unwrap_or(0) << 20,
            same_host_reads: self.same_host_reads,
            same_host_writes: self.same_host_writes,
            ..ClientConfig::default()
        }
    }
}

/// Whether somebody can be reached there, as far as its form goes: host:port.
pub fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// The key that toml doesn't know, out of its message.
fn unknown_key(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The configuration to use when none is named: of the one mount on this machine, or where one is installed.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return absolute(path);
    }
    let mut of_mounts: Vec<PathBuf> = runtime::live().into_iter().map(|r| r.config).collect();
    of_mounts.dedup();
    match of_mounts.as_slice() {
        [one] => return Ok(one.clone()),
        [] => {}
        several => {
            let list: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            return Err(Failure::usage(format!(
                "Several mounts are on this machine: choose one's configuration with --config ({}).",
                list.join(", ")
            )));
        }
    }
    installed().ok_or_else(|| {
        Failure::usage("No configuration was named and nothing is mounted here: give --config FILE, or set MOOSENG_CONFIG.")
    })
}

/// The configuration of this user or of this machine.
pub fn installed() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".config/mooseng/client.toml"));
    home.into_iter().chain([PathBuf::from("/etc/mooseng/client.toml")]).find(|p| p.is_file())
}

/// The configuration that a line of fstab names: by its path, or by its name in this user's or this machine's directory.
pub fn named(spec: &str) -> Result<PathBuf, Failure> {
    if spec.contains('/') {
        return absolute(Path::new(spec));
    }
    let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".config/mooseng"));
    let dirs: Vec<PathBuf> = home.into_iter().chain([PathBuf::from("/etc/mooseng")]).collect();
    let found = dirs.iter().map(|dir| dir.join(format!("{spec}.toml"))).find(|p| p.is_file());
    found.ok_or_else(|| {
        Failure::not_found(format!(
            "There is no configuration {spec}.toml in /etc/mooseng; name a file there without its ending, or a path."
        ))
    })
}

/// The path from the root, for what outlives the working directory.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|e| Failure::failed(format!("The path {} can't be made absolute: {e}.", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "dev"
        region = "eu-1"
        name = "host-1"
        masters = ["127.0.0.1:7001"]
        [tls]
        cert = "cert.pem"
        key = "key.pem"
        ca = "/ca.pem"
    "#;

    #[test]
    fn a_file_is_read_and_its_paths_are_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        std::fs::write(&path, GOOD).unwrap();
        let file = ClientFile::load(&path).unwrap();
        assert_eq!(file.tls.cert, dir.path().join("cert.pem"));
        assert_eq!(file.tls.ca, Path::new("/ca.pem"));
        assert_eq!((file.retry_timeout_s, file.write_buffer_mb), (60, 64));
    }

    #[test]
    fn a_typo_suggests_the_right_key() {
        let error = ClientFile::parse(&GOOD.replace("masters", "mastres")).unwrap_err();
        assert!(error.contains("Did you mean `masters`?"), "{error}");
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for (from, to, word) in [
            ("127.0.0.1:7001", "127.0.0.1", "host:port"),
            ("\"eu-1\"", "\"eu/1\"", "region"),
            ("[\"127.0.0.1:7001\"]", "[]", "masters"),
            ("[tls]", "[otlp]\nendpoint = \"c\"\n[tls]", "`otlp.endpoint`"),
            ("[tls]", "[otlp]\nendpoint = \"http://c\"\nsample = -1.0\n[tls]", "`otlp.sample`"),
            ("[tls]", "[otlp]\nendpoint = \"http://c\"\nsampel = 1.0\n[tls]", "Did you mean `sample`?"),
        ] {
            let error = ClientFile::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["10.0.0.1:7000", "m1.example:1", "[::1]:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "1.2.3.4", "foo:99999", "foo:0", "foo:x", ":7000", "foo:"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_certificate_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = mooseng_certs::Authority::create(&dir.path().join("ca"), "dev").unwrap();
        authority.region("eu-1").unwrap();
        let identity = Identity::parse("spiffe://dev/eu-1/client/host-1").unwrap();
        authority.issue(&identity, Duration::from_secs(3_600), dir.path(), false).unwrap();
        let path = dir.path().join("client.toml");
        let loaded = |text: &str| {
            std::fs::write(&path, text.replace("/ca.pem", "ca.pem")).unwrap();
            ClientFile::read(&path).unwrap().network().map(drop)
        };
        loaded(GOOD).unwrap();
        for (setting, other) in
            [("\"host-1\"", "\"host-2\""), ("\"eu-1\"", "\"us-1\""), ("\"dev\"", "\"production\"")]
        {
            let failure = loaded(&GOOD.replace(setting, other)).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            let said = failure.to_string();
            assert!(said.contains("host-1 in the region eu-1 of the cluster dev"), "{said}");
            assert!(said.contains(other.trim_matches('"')), "{said}");
        }
    }

    #[test]
    fn a_missing_file_is_not_found() {
        assert_eq!(ClientFile::load(Path::new("/nonexistent/x.toml")).unwrap_err().exit_code(), 3);
    }
}
