//! Why a connection is refused: a code for logs, and a sentence for people, on both sides.

use std::io;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

/// The peer showed no certificate.
pub const NO_CERTIFICATE: &str = "PEER_NO_CERTIFICATE";
/// Its certificate has expired, or isn't valid yet.
pub const EXPIRED: &str = "PEER_EXPIRED";
/// It belongs to another cluster.
pub const OTHER_CLUSTER: &str = "PEER_OTHER_CLUSTER";
/// It is on the revocation list.
pub const REVOKED: &str = "PEER_REVOKED";
/// Its role has no business here.
pub const WRONG_ROLE: &str = "PEER_WRONG_ROLE";
/// Its certificate, or what it says, can't be used.
pub const BAD_CERTIFICATE: &str = "PEER_BAD_CERTIFICATE";
/// It speaks other protocols, or other versions of ours.
pub const VERSION: &str = "PEER_VERSION";
/// The peer refused us.
pub const BY_PEER: &str = "REFUSED_BY_PEER";
/// It went away before it was known.
pub const LEFT: &str = "PEER_LEFT";
/// Too many connections are open.
pub const TOO_MANY: &str = "PEERS_TOO_MANY";
/// Anything else.
pub const OTHER: &str = "PEER_REFUSED";

/// All of them.
pub const ALL: &[&str] = &[
    NO_CERTIFICATE,
    EXPIRED,
    OTHER_CLUSTER,
    REVOKED,
    WRONG_ROLE,
    BAD_CERTIFICATE,
    VERSION,
    BY_PEER,
    LEFT,
    TOO_MANY,
    OTHER,
];

/// An objection to a certificate that the verifier's chain check doesn't know.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct Objection {
    pub(crate) code: &'static str,
    pub(crate) sentence: String,
}

impl From<Objection> for rustls::Error {
    fn from(objection: Objection) -> Self {
        let shared = rustls::OtherError(std::sync::Arc::new(objection));
        rustls::Error::InvalidCertificate(CertificateError::Other(shared))
    }
}

/// Code and sentence for whatever ended a handshake, or a connection.
pub(crate) fn of_io(error: &io::Error) -> (&'static str, String) {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => of_tls(tls),
        None => (LEFT, error.to_string()),
    }
}

fn of_tls(error: &rustls::Error) -> (&'static str, String) {
    let (code, sentence) = match error {
        rustls::Error::NoCertificatesPresented => (NO_CERTIFICATE, "the peer showed no certificate"),
        rustls::Error::InvalidCertificate(why) => return of_certificate(why),
        rustls::Error::AlertReceived(alert) => return (BY_PEER, of_alert(*alert)),
        rustls::Error::NoApplicationProtocol => (VERSION, "the peer speaks neither mooseng/1 nor h2 (ALPN)"),
        rustls::Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ) => (VERSION, "the peer doesn't speak TLS 1.3"),
        rustls::Error::PeerIncompatible(why) => {
            return (VERSION, format!("the peer speaks TLS otherwise: {why:?}"));
        }
        other => return (OTHER, other.to_string()),
    };
    (code, sentence.to_owned())
}

fn of_certificate(why: &CertificateError) -> (&'static str, String) {
    let (code, sentence) = match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (EXPIRED, "the peer's certificate has expired")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (EXPIRED, "the peer's certificate isn't valid yet: compare the clocks of both machines")
        }
        CertificateError::Revoked => (REVOKED, "the peer's certificate is revoked"),
        CertificateError::UnknownIssuer => (
            OTHER_CLUSTER,
            "the peer's certificate isn't of this cluster's authority: it belongs to another cluster",
        ),
        CertificateError::Other(other) => match other.0.downcast_ref::<Objection>() {
            Some(objection) => return (objection.code, objection.sentence.clone()),
            None => return (BAD_CERTIFICATE, other.to_string()),
        },
        other => return (BAD_CERTIFICATE, format!("the peer's certificate is of no use: {other}")),
    };
    (code, sentence.to_owned())
}

/// What the peer says of us. With TLS 1.3 it comes only after our side of the handshake has ended.
fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => {
            "our certificate isn't valid now (expired, or a clock is wrong): renew it with mooseng-certs"
        }
        AlertDescription::CertificateRevoked => "our certificate is revoked",
        AlertDescription::CertificateRequired => "we showed no certificate",
        AlertDescription::UnknownCA => {
            "our certificate isn't of its cluster's authority: we belong to another cluster"
        }
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "what our certificate says of us doesn't suit it (another cluster, or no SPIFFE id of ours); its log says more"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => {
            "our certificate is malformed, or isn't made for this use; its log says more"
        }
        AlertDescription::NoApplicationProtocol => "it speaks neither mooseng/1 nor h2 (ALPN)",
        AlertDescription::ProtocolVersion => "it doesn't speak TLS 1.3",
        other => return format!("the peer refused us: TLS alert {other:?}; its log says more"),
    };
    format!("the peer refused us: {why}")
}
