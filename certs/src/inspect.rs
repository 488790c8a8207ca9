//! Reading certificates.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Error, files};

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Its SPIFFE id; none for an authority.
    pub spiffe: Option<String>,
    /// Its subject.
    pub subject: String,
    /// Its issuer's subject.
    pub issuer: String,
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// Start, in seconds since the Unix epoch.
    pub not_before_unix: i64,
    /// End, in seconds since the Unix epoch.
    pub not_after_unix: i64,
    /// Whether it may sign others.
    pub authority: bool,
}

impl Described {
    /// Whether it is an authority that leaves of that region hang on: its intermediate, or the root.
    pub(crate) fn is_above(&self, region: &str, cluster: &str) -> bool {
        let is = |name: String| self.subject.ends_with(&format!("CN={name}"));
        self.authority && (is(format!("{cluster} root")) || is(format!("{cluster} region {region}")))
    }
}

/// The certificates in a PEM file.
pub fn file(path: &Path) -> Result<Vec<Described>, Error> {
    let content = |reason: String| Error::Content { path: path.to_owned(), reason };
    let text = files::read(path)?;
    let mut found = Vec::new();
    for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let der = der.map_err(|e| content(e.to_string()))?;
        let (_, cert) = X509Certificate::from_der(&der).map_err(|e| content(e.to_string()))?;
        let names = cert.subject_alternative_name().map_err(|e| content(e.to_string()))?;
        let uri = names.and_then(|n| {
            n.value
                .general_names
                .iter()
                .find_map(|n| if let GeneralName::URI(u) = n { Some((*u).to_owned()) } else { None })
        });
        found.push(Described {
            spiffe: uri,
            subject: cert.subject().to_string(),
            issuer: cert.issuer().to_string(),
            serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            not_before_unix: cert.validity().not_before.timestamp(),
            not_after_unix: cert.validity().not_after.timestamp(),
            authority: cert.is_ca(),
        });
    }
    if found.is_empty() { Err(content("it holds no certificate".into())) } else { Ok(found) }
}
