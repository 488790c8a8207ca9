//! The table `[otlp]` of a daemon's configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};

/// Where spans and metrics go.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct OtlpConfig {
    /// The collector's OTLP/gRPC endpoint, as in `https://collector:4317`; `http` speaks in clear.
    pub endpoint: String,
    /// The certificates that an `https` endpoint's is checked with, PEM: the collector's own authority, or the system's bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This daemon's certificate for the collector, PEM, if that wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The share of operations, from 0 to 1, whose traces are recorded. It is decided where an operation begins, at the mount; masters and
    /// chunkservers record what was decided there, whatever their own share.
    #[serde(default = "sample")]
    pub sample: f64,
    /// How long the collector may take to answer, in milliseconds.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
    /// How often metrics are sent, in seconds; 0 for never.
    #[serde(default = "metrics_every_s")]
    pub metrics_every_s: u64,
    /// Headers of each request, such as a collector's `authorization`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

fn sample() -> f64 {
    0.01
}

fn timeout_ms() -> u64 {
    5_000
}

fn metrics_every_s() -> u64 {
    15
}

/// A setting that can't work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the setting `{setting}` is wrong: {problem}")]
pub struct Wrong {
    /// Its key.
    pub setting: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

fn wrong(key: &str, problem: impl Into<String>) -> Wrong {
    Wrong { setting: format!("otlp.{key}"), problem: problem.into() }
}

impl OtlpConfig {
    /// The keys of the table.
    pub const KEYS: &[&str] =
        &["endpoint", "ca", "cert", "key", "sample", "timeout_ms", "metrics_every_s", "headers"];

    /// What goes to `endpoint`, everything else as it is by default.
    pub fn to(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            ca: None,
            cert: None,
            key: None,
            sample: sample(),
            timeout_ms: timeout_ms(),
            metrics_every_s: metrics_every_s(),
            headers: BTreeMap::new(),
        }
    }

    /// Refuses what can't work, naming the setting. Files are read later.
    pub fn check(&self) -> Result<(), Wrong> {
        let secure = self.is_secure()?;
        if secure && self.ca.is_none() {
            return Err(wrong(
                "ca",
                "an https endpoint is checked with certificates: give the file of its authority's, or the system's bundle, often \
                 /etc/ssl/certs/ca-certificates.crt",
            ));
        }
        for (key, file) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            if !secure && file.is_some() {
                return Err(wrong(key, "an http endpoint has no use for it; is https meant?"));
            }
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => return Err(wrong("key", "a certificate is given and its key isn't")),
            (None, Some(_)) => return Err(wrong("cert", "a key is given and its certificate isn't")),
            _ => {}
        }
        // A NaN lies in no range.
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(wrong("sample", "it is a share, and must lie between 0 and 1; 0.01 is usual"));
        }
        if !(100..=60_000).contains(&self.timeout_ms) {
            return Err(wrong("timeout_ms", "it must lie between 100 and 60000; 5000 is usual"));
        }
        if self.metrics_every_s > 3_600 {
            return Err(wrong("metrics_every_s", "it must be 3600 at most; 15 is usual"));
        }
        self.metadata().map(|_| ())
    }

    /// Resolves the names of files against the directory that the configuration lies in.
    pub fn below(mut self, directory: &Path) -> Self {
        for file in [&mut self.ca, &mut self.cert, &mut self.key].into_iter().flatten() {
            *file = directory.join(&*file);
        }
        self
    }

    /// Refuses files that can't be read or don't hold what they should.
    pub fn check_files(&self) -> Result<(), Wrong> {
        self.connector().map(|_| ())
    }

    fn is_secure(&self) -> Result<bool, Wrong> {
        let form = |problem: &str| {
            wrong("endpoint", format!("{:?} {problem}; https://host:4317 is usual", self.endpoint))
        };
        let uri: Uri = self.endpoint.parse().map_err(|_| form("isn't a URL"))?;
        if uri.authority().is_none_or(|authority| authority.host().is_empty()) {
            return Err(form("names no host"));
        }
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(form("has a path, and OTLP over gRPC has none"));
        }
        match uri.scheme_str() {
            Some("https") => Ok(true),
            Some("http") => Ok(false),
            _ => Err(form("is neither http nor https")),
        }
    }

    /// The headers. Their values aren't shown: they are often secret.
    pub(crate) fn metadata(&self) -> Result<MetadataMap, Wrong> {
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.headers {
            let key = name.to_ascii_lowercase().parse::<MetadataKey<Ascii>>();
            let key =
                key.map_err(|_| wrong("headers", format!("{name:?} can't be a header's name in gRPC")))?;
            let value = value.parse::<MetadataValue<Ascii>>();
            let value = value
                .map_err(|_| wrong("headers", format!("the value of {name:?} isn't plain printable text")))?;
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How the collector is reached. Reads the files; connects to nobody.
    pub(crate) fn connector(&self) -> Result<Endpoint, Wrong> {
        self.check()?;
        let malformed = |e: tonic::transport::Error| wrong("endpoint", format!("{:?}: {e}", self.endpoint));
        let endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(malformed)?;
        let endpoint = endpoint.connect_timeout(self.timeout()).timeout(self.timeout());
        let Some(ca) = &self.ca else { return Ok(endpoint) };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca", ca)?));
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
        }
        endpoint.tls_config(tls).map_err(|e| {
            let mut reason = e.to_string();
            let mut source = std::error::Error::source(&e);
            while let Some(error) = source {
                reason = format!("{reason}: {error}");
                source = error.source();
            }
            wrong("ca", format!("the certificates or the key of it, `cert` or `key` aren't well: {reason}"))
        })
    }
}

fn read(key: &str, file: &Path) -> Result<Vec<u8>, Wrong> {
    std::fs::read(file).map_err(|e| wrong(key, format!("{} can't be read: {e}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut OtlpConfig)) -> String {
        let mut config = OtlpConfig { ca: Some("ca.pem".into()), ..OtlpConfig::to("https://collector:4317") };
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn a_minimal_table_is_well_and_has_defaults() {
        let config: OtlpConfig = toml::from_str("endpoint = 'http://127.0.0.1:4317'").unwrap();
        config.check().unwrap();
        assert_eq!(config, OtlpConfig::to("http://127.0.0.1:4317"));
        assert_eq!((config.sample, config.timeout_ms, config.metrics_every_s), (0.01, 5_000, 15));
    }

    #[test]
    fn a_bad_setting_is_named() {
        for bad in ["collector:4317", "ftp://collector", "https://", "https://collector/v1/traces", ""] {
            let error = refused(|c| c.endpoint = bad.into());
            assert!(error.contains("`otlp.endpoint`"), "{bad}: {error}");
        }
        for (key, error) in [
            ("otlp.ca", refused(|c| c.ca = None)),
            ("otlp.ca", refused(|c| c.endpoint = "http://collector:4317".into())),
            ("otlp.key", refused(|c| c.cert = Some("cert.pem".into()))),
            ("otlp.cert", refused(|c| c.key = Some("key.pem".into()))),
            ("otlp.sample", refused(|c| c.sample = 1.5)),
            ("otlp.sample", refused(|c| c.sample = f64::NAN)),
            ("otlp.timeout_ms", refused(|c| c.timeout_ms = 0)),
            ("otlp.metrics_every_s", refused(|c| c.metrics_every_s = 86_400)),
            ("otlp.headers", refused(|c| drop(c.headers.insert("a b".into(), "c".into())))),
            ("otlp.headers", refused(|c| drop(c.headers.insert("a".into(), "secret\n".into())))),
        ] {
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn every_key_is_known_and_others_are_refused() {
        let mut config = OtlpConfig::to("https://collector:4317");
        config.headers.insert("authorization".into(), "x".into());
        config = OtlpConfig { ca: Some("a".into()), cert: Some("c".into()), key: Some("k".into()), ..config };
        let text = toml::to_string(&config.clone().below(Path::new("/etc/mooseng"))).unwrap();
        assert!(text.contains("/etc/mooseng/a"), "{text}");
        let table: toml::Table = toml::from_str(&text).unwrap();
        let mut keys: Vec<&str> = OtlpConfig::KEYS.to_vec();
        keys.sort_unstable();
        assert_eq!(table.keys().collect::<Vec<_>>(), keys);
        let error = toml::from_str::<OtlpConfig>("endpoint = 'http://x'\nsampel = 1.0").unwrap_err();
        assert!(error.to_string().contains("sampel"), "{error}");
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let config = OtlpConfig { ca: Some("/nowhere/ca.pem".into()), ..OtlpConfig::to("https://collector") };
        config.check().unwrap();
        let error = config.connector().unwrap_err().to_string();
        assert!(error.contains("`otlp.ca`") && error.contains("/nowhere/ca.pem"), "{error}");
    }
}
