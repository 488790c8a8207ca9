//! What a daemon shows and whom it believes: its files, and the verifier of both sides' certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mooseng_wire::Identity;
use mooseng_wire::admin::CredentialReport;
use mooseng_wire::revocations::{Revocations, plain_serial};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::agreed::InForce;
use crate::network::{Peer, Protocol};
use crate::refusal::{self, Objection};

/// Where a daemon's certificate files lie.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The leaf and the region's intermediate.
    pub cert: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
    /// The cluster's root.
    pub ca: PathBuf,
    /// Serial numbers and SPIFFE ids that are refused, one a line. Where it is given it must be there: an empty file refuses nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<PathBuf>,
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A file can't be read.
    #[error("the TLS file {path} can't be read: {source}; check the [tls] settings")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The revocation list isn't there.
    #[error(
        "the revocation list {path} isn't there, so whom to refuse isn't known: copy the list of the cluster's authority there (an empty file refuses nobody), or take `revocations` out of the [tls] settings"
    )]
    NoRevocations {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file doesn't hold what it should.
    #[error("the TLS file {path} is of no use: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What the files hold.
pub(super) struct Credentials {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) identity: Identity,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    revoked: Arc<Revocations>,
    agreed: InForce,
    list_configured: bool,
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first: the fastest on machines with AES instructions, which ours are.
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsSetupError> {
    std::fs::read(path).map_err(|source| TlsSetupError::File { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let content = |reason: String| TlsSetupError::Content { path: path.to_owned(), reason };
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|e| content(e.to_string()))?;
    if found.is_empty() { Err(content("it holds no certificate".into())) } else { Ok(found) }
}

/// SHA-256 of the certificate in a root's file: what `openssl x509 -fingerprint -sha256` calls its fingerprint.
pub fn root_sha256(path: &Path) -> Result<[u8; 32], TlsSetupError> {
    let root = certificates(path)?.into_iter().next().unwrap_or_else(|| Vec::new().into());
    let content = |reason: &str| TlsSetupError::Content { path: path.to_owned(), reason: reason.into() };
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    let suite = suite.ok_or_else(|| content("SHA-256 isn't there"))?;
    let hash = suite.common.hash_provider.hash(&root);
    hash.as_ref().try_into().map_err(|_| content("SHA-256 has another length"))
}

/// What a leaf says of its owner.
pub(super) fn describe(leaf: &CertificateDer<'_>) -> Result<(Peer, i64), String> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|e| format!("the certificate is malformed: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.map(|n| &n.value.general_names[..]).unwrap_or_default();
    let mut uris = names.iter().filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("the certificate doesn't have exactly one SPIFFE id".into());
    };
    let identity = Identity::parse(uri).map_err(|e| e.to_string())?;
    let serial = plain_serial(&parsed.raw_serial_as_string());
    let validity = parsed.validity();
    let peer = Peer::new(identity, serial, validity.not_after.timestamp());
    Ok((peer, validity.not_before.timestamp()))
}

pub(super) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Reads the list of whom to refuse. One that is configured and missing is refused like a malformed one: to take it for empty would let
/// everyone in again whom the lost list named.
fn revocations(path: &Path) -> Result<Revocations, TlsSetupError> {
    let content = |reason: String| TlsSetupError::Content { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TlsSetupError::NoRevocations { path: path.to_owned() },
        _ => TlsSetupError::File { path: path.to_owned(), source },
    })?;
    let text = String::from_utf8(bytes).map_err(|_| content("it isn't text".into()))?;
    Revocations::parse(&text).map_err(|e| content(e.to_string()))
}

impl Credentials {
    pub(super) fn load(files: &TlsFiles, agreed: &InForce) -> Result<Self, TlsSetupError> {
        let chain = certificates(&files.cert)?;
        let key_bytes = read(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_bytes)
            .map_err(|e| TlsSetupError::Content { path: files.key.clone(), reason: e.to_string() })?;
        let content = |path: &Path, reason: String| TlsSetupError::Content { path: path.to_owned(), reason };
        let (own, not_before) = describe(&chain[0]).map_err(|reason| content(&files.cert, reason))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&files.ca)? {
            roots.add(root).map_err(|e| content(&files.ca, e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let revoked =
            Arc::new(files.revocations.as_deref().map(revocations).transpose()?.unwrap_or_default());
        let provider = provider();
        let chain_verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| content(&files.ca, e.to_string()))?;
        let verifier = Arc::new(Verifier {
            chain: chain_verifier,
            provider: provider.clone(),
            cluster: own.identity.cluster.clone(),
            revoked: revoked.clone(),
            agreed: agreed.clone(),
        });
        let mismatched =
            |e: rustls::Error| content(&files.key, format!("it doesn't fit the certificate: {e}"));
        let versions = [&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(mismatched)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(mismatched)?;
        server.alpn_protocols = vec![Protocol::Stream.alpn().to_vec(), Protocol::Grpc.alpn().to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(mismatched)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(mismatched)?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            not_before,
            not_after: own.not_after_unix,
            identity: own.identity,
            revoked,
            agreed: agreed.clone(),
            list_configured: files.revocations.is_some(),
        })
    }

    /// What others are told of them.
    pub(super) fn report(&self) -> CredentialReport {
        let agreed = self.agreed.now();
        CredentialReport {
            not_before_unix: self.not_before,
            not_after_unix: self.not_after,
            revocations_digest: self.revoked.digest(),
            revocations: self.revoked.len() as u64,
            revocations_configured: self.list_configured,
            agreed_version: agreed.version,
            agreed_revocations: agreed.revoked.len() as u64,
        }
    }

    /// Why a peer may not be talked to any more.
    pub(super) fn objection(&self, peer: &Peer) -> Option<(&'static str, &'static str)> {
        let (serial, owner) = (&peer.serial, &peer.identity);
        if self.revoked.names(serial, owner) || self.agreed.names(serial, owner) {
            Some((refusal::REVOKED, "its certificate is revoked"))
        } else if peer.not_after_unix < unix_now() {
            Some((refusal::EXPIRED, "its certificate has expired"))
        } else {
            None
        }
    }
}

/// Checks both sides' chains: against the root, for validity, for the cluster, and against both revocation lists.
#[derive(Debug)]
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    cluster: String,
    revoked: Arc<Revocations>,
    agreed: InForce,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.chain.verify_client_cert(leaf, others, now).map_err(|error| match error {
            // An authority with the same names as ours, but not ours: two clusters may bear one name.
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
                CertificateError::UnknownIssuer.into()
            }
            other => other,
        })?;
        let bad = |sentence| Objection { code: refusal::BAD_CERTIFICATE, sentence };
        let (peer, _) = describe(leaf).map_err(bad)?;
        if peer.identity.cluster != self.cluster {
            let sentence = format!("{} belongs to another cluster than {}", peer.identity, self.cluster);
            return Err(Objection { code: refusal::OTHER_CLUSTER, sentence }.into());
        }
        let (serial, owner) = (&peer.serial, &peer.identity);
        if self.revoked.names(serial, owner) || self.agreed.names(serial, owner) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, others, now).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 isn't spoken here".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, others, now).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 isn't spoken here".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
