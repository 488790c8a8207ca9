//! Why a connection wasn't made, or ended: a sentence for people, and for programs whether it is for the certificates.

use std::io;

use rustls::AlertDescription;

use crate::network::ConnectError;
use crate::refusal;

/// Why a connection wasn't made, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct Ended {
    sentence: String,
    /// The peer doesn't take our certificate, or its own is another cluster's: with these two it comes to the same however often it is tried.
    for_certificates: bool,
}

impl Ended {
    /// Puts into words what ended a handshake, or a connection.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(ended) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
            return ended.clone();
        }
        let (code, sentence) = refusal::of_io(error);
        let by_peer = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(refuses_ours);
        Self { sentence, for_certificates: by_peer || code == refusal::OTHER_CLUSTER }
    }

    /// What whoever wanted to connect to that address is told.
    pub(crate) fn refused(self, address: &str) -> ConnectError {
        let (address, reason) = (address.to_owned(), self.sentence);
        match self.for_certificates {
            true => ConnectError::Certificate { address, reason },
            false => ConnectError::Refused { address, reason },
        }
    }
}

impl From<String> for Ended {
    fn from(sentence: String) -> Self {
        Self { sentence, for_certificates: false }
    }
}

impl From<&str> for Ended {
    fn from(sentence: &str) -> Self {
        sentence.to_owned().into()
    }
}

impl From<Ended> for String {
    fn from(ended: Ended) -> Self {
        ended.sentence
    }
}

/// Whether the peer says that it doesn't take our certificate.
fn refuses_ours(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::AlertReceived(
            AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::DecryptError
        )
    )
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, Error};

    use super::*;
    use crate::refusal::Objection;

    fn ended(tls: Error) -> Ended {
        Ended::of_io(&io::Error::new(io::ErrorKind::InvalidData, tls))
    }

    #[test]
    fn certificates_that_open_nothing_are_told_apart_from_what_may_pass() {
        let sentence = "it belongs to another cluster".to_owned();
        for tls in [
            Error::AlertReceived(AlertDescription::CertificateExpired),
            Error::AlertReceived(AlertDescription::CertificateRevoked),
            Error::AlertReceived(AlertDescription::CertificateRequired),
            Error::AlertReceived(AlertDescription::UnknownCA),
            Error::AlertReceived(AlertDescription::AccessDenied),
            Error::AlertReceived(AlertDescription::BadCertificate),
            CertificateError::UnknownIssuer.into(),
            Objection { code: refusal::OTHER_CLUSTER, sentence }.into(),
        ] {
            let refused = ended(tls).refused("m1:1");
            assert!(matches!(refused, ConnectError::Certificate { .. }), "{refused}");
        }
        for tls in [
            Error::AlertReceived(AlertDescription::InternalError),
            Error::AlertReceived(AlertDescription::ProtocolVersion),
            Error::NoCertificatesPresented,
            // These are the peer's own troubles, which end when its certificate is renewed.
            CertificateError::Expired.into(),
            CertificateError::Revoked.into(),
            Objection { code: refusal::BAD_CERTIFICATE, sentence: "it has no SPIFFE id".into() }.into(),
        ] {
            let refused = ended(tls).refused("m1:1");
            assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
        }
        let reset = Ended::of_io(&io::ErrorKind::ConnectionReset.into()).refused("m1:1");
        assert!(matches!(reset, ConnectError::Refused { .. }), "{reset}");
    }

    #[test]
    fn what_was_put_into_words_keeps_them_on_its_way_to_whoever_reads() {
        let first = ended(Error::AlertReceived(AlertDescription::CertificateRevoked));
        let passed_on = io::Error::new(io::ErrorKind::InvalidData, first.clone());
        assert_eq!(passed_on.to_string(), "the peer refused us: our certificate is revoked");
        assert_eq!(Ended::of_io(&passed_on), first);
        let told = first.refused("m1:1").to_string();
        assert_eq!(
            told,
            "the connection to m1:1 was refused: the peer refused us: our certificate is revoked"
        );
    }
}
