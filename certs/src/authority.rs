//! The authority itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mooseng_wire::revocations::{HEADING, MalformedLine, Revocations};
use mooseng_wire::{Identity, is_identity_word};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Error, files, inspect};

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(2 * 365 * 86_400);
/// A leaf is valid a little before it was made, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// The revocation list, in the authority's directory and in each leaf's.
const LIST: &str = "revocations.txt";

/// A certificate authority in a directory.
#[derive(Clone, Debug)]
pub struct Authority {
    dir: PathBuf,
    cluster: String,
}

#[derive(Serialize, Deserialize)]
struct AuthorityFile {
    version: u32,
    cluster: String,
}

/// A leaf that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Whose.
    pub spiffe: String,
    /// The newest certificate's serial number.
    pub serial: String,
    /// Where cert.pem, key.pem and ca.pem lie.
    pub out: PathBuf,
    /// When it was made, in seconds since the Unix epoch.
    pub issued_unix: i64,
    /// When it ends, in seconds since the Unix epoch.
    pub not_after_unix: i64,
    /// Its life in seconds, which renewals keep.
    pub life_s: u64,
}

/// What [`Authority::renew_if_due`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It was past half of its life: there is a new one.
    Renewed,
    /// It will be due then, in seconds since the Unix epoch.
    DueAt(i64),
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "MooseNG");
    name.push(DnType::CommonName, common);
    name
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // Positive and of full length, so that its hexadecimal digits are the same everywhere.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn authority_params(common: &str, life: Duration, depth: u8) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name(common);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    params.not_before = now() - BACKDATE;
    params.not_after = now() + life;
    Ok(params)
}

impl Authority {
    /// Makes the root of a new cluster in `dir`.
    pub fn create(dir: &Path, cluster: &str) -> Result<Self, Error> {
        Self::create_with(dir, cluster, false)
    }

    /// Makes the root of a new cluster in `dir`; with `force` over an existing one.
    pub fn create_with(dir: &Path, cluster: &str, force: bool) -> Result<Self, Error> {
        check_name(cluster)?;
        let root = dir.join("root");
        files::create_private_dir(&root)?;
        let _alone = files::lock(dir)?;
        let (key_path, cert_path) = (root.join("key.pem"), root.join("cert.pem"));
        files::check_absent(&[&key_path, &cert_path], force)?;
        let key = KeyPair::generate()?;
        let cert = authority_params(&format!("{cluster} root"), ROOT_LIFE, 1)?.self_signed(&key)?;
        files::replace(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        files::replace(&cert_path, cert.pem().as_bytes(), 0o644)?;
        let file = AuthorityFile { version: 1, cluster: cluster.to_owned() };
        write_json(&dir.join("authority.json"), &file)?;
        Ok(Self { dir: dir.to_owned(), cluster: cluster.to_owned() })
    }

    /// The authority in `dir`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("authority.json");
        if !path.exists() {
            return Err(Error::Missing {
                what: format!("certificate authority in {}", dir.display()),
                hint: "`mooseng-certs init --cluster NAME` makes one".into(),
            });
        }
        let file: AuthorityFile = read_json(&path)?;
        if file.version > 1 {
            let reason = format!(
                "its format {} is newer than this program knows; upgrade mooseng-certs",
                file.version
            );
            return Err(Error::Content { path, reason });
        }
        Ok(Self { dir: dir.to_owned(), cluster: file.cluster })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn region_dir(&self, region: &str) -> PathBuf {
        self.dir.join("regions").join(region)
    }

    /// Makes a region's intermediate, if there is none yet.
    pub fn region(&self, region: &str) -> Result<(), Error> {
        if self.region_dir(region).join("cert.pem").exists() {
            Ok(())
        } else {
            self.add_region(region, false)
        }
    }

    /// Makes a region's intermediate; with `force` over an existing one.
    pub fn add_region(&self, region: &str, force: bool) -> Result<(), Error> {
        check_name(region)?;
        let dir = self.region_dir(region);
        files::create_private_dir(&dir)?;
        let _alone = files::lock(&self.dir)?;
        let (key_path, cert_path) = (dir.join("key.pem"), dir.join("cert.pem"));
        files::check_absent(&[&key_path, &cert_path], force)?;
        let root_key = KeyPair::from_pem(&files::read(&self.dir.join("root/key.pem"))?)?;
        let root = Issuer::from_ca_cert_pem(&files::read(&self.dir.join("root/cert.pem"))?, root_key)?;
        let key = KeyPair::generate()?;
        let params = authority_params(&format!("{} region {region}", self.cluster), INTERMEDIATE_LIFE, 0)?;
        let cert = params.signed_by(&key, &root)?;
        files::replace(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        files::replace(&cert_path, cert.pem().as_bytes(), 0o644)
    }

    /// Issues a leaf into `out`. `force` allows overwriting what lies there.
    pub fn issue(
        &self,
        identity: &Identity,
        life: Duration,
        out: &Path,
        force: bool,
    ) -> Result<Issued, Error> {
        for word in [&identity.cluster, &identity.region, &identity.name] {
            check_name(word)?;
        }
        if identity.cluster != self.cluster {
            return Err(Error::Missing {
                what: format!("cluster {} in this authority", identity.cluster),
                hint: format!("it signs for {}", self.cluster),
            });
        }
        let dir = self.region_dir(&identity.region);
        if !dir.join("cert.pem").exists() {
            return Err(Error::Missing {
                what: format!("region {}", identity.region),
                hint: format!("`mooseng-certs region add {}` makes its intermediate", identity.region),
            });
        }
        files::create_dir(out)?;
        let _alone = files::lock(&self.dir)?;
        let (key_path, cert_path, ca_path) = (out.join("key.pem"), out.join("cert.pem"), out.join("ca.pem"));
        files::check_absent(&[&key_path, &cert_path, &ca_path], force)?;
        let intermediate_pem = files::read(&dir.join("cert.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(
            &intermediate_pem,
            KeyPair::from_pem(&files::read(&dir.join("key.pem"))?)?,
        )?;
        let spiffe = identity.to_string();
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = name(&identity.name);
        params.subject_alt_names = vec![SanType::URI(spiffe.clone().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let serial_number = serial();
        let serial = serial_number.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        params.serial_number = Some(serial_number);
        let made = now();
        let ends = made + life;
        params.not_before = made - BACKDATE;
        params.not_after = ends;
        // A leaf that outlives its issuer would be refused before its time.
        if let Some(above) = self
            .authorities()?
            .iter()
            .find(|a| a.is_above(&identity.region, &self.cluster) && a.not_after_unix < ends.unix_timestamp())
        {
            return Err(Error::Denied {
                what: format!("a leaf of {} s for {spiffe}", life.as_secs()),
                reason: format!(
                    "{} ends before; renew it first (`init --force` or `region add --force`)",
                    above.subject
                ),
            });
        }
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &issuer)?;
        let root = files::read(&self.dir.join("root/cert.pem"))?;
        // Daemons refuse to start without a list that they are configured with.
        let list = out.join(LIST);
        if self.revocations_path().exists() {
            files::replace(&list, files::read(&self.revocations_path())?.as_bytes(), 0o644)?;
        } else if !list.exists() {
            files::replace(&list, format!("{HEADING}\n").as_bytes(), 0o644)?;
        }
        // The certificate is the last of the pair: readers see a mismatch for a moment at most, and try again.
        files::replace(&ca_path, root.as_bytes(), 0o644)?;
        files::replace(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        files::replace(&cert_path, format!("{}{intermediate_pem}", leaf.pem()).as_bytes(), 0o644)?;
        let out = fs::canonicalize(out).map_err(files::failed("resolving", out))?;
        let issued = Issued {
            spiffe,
            serial,
            out,
            issued_unix: made.unix_timestamp(),
            not_after_unix: ends.unix_timestamp(),
            life_s: life.as_secs(),
        };
        let mut all = self.issued()?;
        all.retain(|i| i.out != issued.out);
        all.push(issued.clone());
        write_json(&self.dir.join("issued.json"), &all)?;
        Ok(issued)
    }

    /// Every leaf that was issued, the newest of each directory.
    pub fn issued(&self) -> Result<Vec<Issued>, Error> {
        let path = self.dir.join("issued.json");
        if path.exists() { read_json(&path) } else { Ok(Vec::new()) }
    }

    /// The issued leaf that lies in `out`.
    pub fn issued_in(&self, out: &Path) -> Result<Issued, Error> {
        let real = fs::canonicalize(out).map_err(files::failed("resolving", out))?;
        self.issued()?.into_iter().find(|i| i.out == real).ok_or_else(|| Error::Missing {
            what: format!("leaf of this authority in {}", out.display()),
            hint: "`mooseng-certs list` shows what was issued".into(),
        })
    }

    /// Issues the leaf in `out` anew, for the same identity and life.
    pub fn renew(&self, out: &Path) -> Result<Issued, Error> {
        let old = self.issued_in(out)?;
        if self.revoked()?.contains(&old.spiffe) {
            return Err(Error::Denied {
                what: format!("to renew {}", old.spiffe),
                reason: "it is revoked".into(),
            });
        }
        let identity = Identity::parse(&old.spiffe)
            .map_err(|e| Error::Content { path: self.dir.join("issued.json"), reason: e.to_string() })?;
        self.issue(&identity, Duration::from_secs(old.life_s), out, true)
    }

    /// Renews the leaf in `out` once half of its life is over.
    pub fn renew_if_due(&self, out: &Path) -> Result<Renewal, Error> {
        let issued = self.issued_in(out)?;
        let due = issued.issued_unix + (issued.life_s / 2) as i64;
        if now().unix_timestamp() < due {
            return Ok(Renewal::DueAt(due));
        }
        self.renew(out).map(|_| Renewal::Renewed)
    }

    /// Where the revocation list lies. Daemons read it under the setting `tls.revocations`.
    pub fn revocations_path(&self) -> PathBuf {
        self.dir.join(LIST)
    }

    /// The list as daemons read it.
    pub fn revocations(&self) -> Result<Revocations, Error> {
        read_list(&self.revocations_path()).unwrap_or_else(|| Ok(Revocations::default()))
    }

    /// What is revoked.
    pub fn revoked(&self) -> Result<Vec<String>, Error> {
        let path = self.revocations_path();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = files::read(&path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Revokes an identity (all its certificates, `spiffe://…`) or one certificate by its serial number. Answers the issued leaves whose
    /// directory doesn't hold the list as it is now: their daemons don't know yet.
    pub fn revoke(&self, what: &str) -> Result<Vec<Issued>, Error> {
        let issued = self.issued()?;
        if !issued.iter().any(|i| i.spiffe == what || i.serial == what) && Identity::parse(what).is_err() {
            return Err(Error::Missing {
                what: format!("identity or serial number {what}"),
                hint: "`mooseng-certs list` shows what was issued".into(),
            });
        }
        let _alone = files::lock(&self.dir)?;
        let mut revoked = self.revoked()?;
        if !revoked.iter().any(|r| r == what) {
            revoked.push(what.to_owned());
        }
        let text = format!("{HEADING}\n{}\n", revoked.join("\n"));
        files::replace(&self.revocations_path(), text.as_bytes(), 0o644)?;
        let list = self.revocations()?;
        let lacks = |i: &Issued| !matches!(read_list(&i.out.join(LIST)), Some(Ok(theirs)) if theirs == list);
        Ok(issued.into_iter().filter(|i| i.spiffe != what && lacks(i)).collect())
    }

    /// Copies the revocation list into every issued leaf's directory on this machine.
    pub fn distribute_revocations(&self) -> Result<(), Error> {
        let path = self.revocations_path();
        let _alone = files::lock(&self.dir)?;
        let text = if path.exists() { files::read(&path)? } else { return Ok(()) };
        for issued in self.issued()?.iter().filter(|i| i.out.is_dir()) {
            files::replace(&issued.out.join(LIST), text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// The authority's own certificates.
    pub fn authorities(&self) -> Result<Vec<inspect::Described>, Error> {
        let mut found = inspect::file(&self.dir.join("root/cert.pem"))?;
        let regions = self.dir.join("regions");
        if regions.is_dir() {
            for entry in fs::read_dir(&regions).map_err(files::failed("listing", &regions))? {
                let entry = entry.map_err(files::failed("listing", &regions))?;
                found.extend(inspect::file(&entry.path().join("cert.pem"))?);
            }
        }
        Ok(found)
    }
}

/// A revocation list; none where there is no file.
fn read_list(path: &Path) -> Option<Result<Revocations, Error>> {
    path.exists().then(|| {
        let malformed = |e: MalformedLine| Error::Content { path: path.to_owned(), reason: e.to_string() };
        Revocations::parse(&files::read(path)?).map_err(malformed)
    })
}

fn check_name(name: &str) -> Result<(), Error> {
    if is_identity_word(name) && !name.starts_with('.') { Ok(()) } else { Err(Error::Name(name.to_owned())) }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Content { path: path.to_owned(), reason: e.to_string() })?;
    files::replace(path, &text, 0o600)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Error> {
    serde_json::from_str(&files::read(path)?)
        .map_err(|e| Error::Content { path: path.to_owned(), reason: e.to_string() })
}
