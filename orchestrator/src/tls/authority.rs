//! The cluster CA: makes itself once, issues server and client certificates,
//! and signs the requests of kubelets. Keys are ECDSA P-256; nothing here does I/O.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use time::OffsetDateTime;

use super::subject;

/// How long a new CA lives.
pub const CA_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// How long server, admin and component certificates live; renewed at two thirds.
pub const LEAF_LIFE: Duration = Duration::from_hours(90 * 24);
/// Certificates are valid from slightly before now: clocks differ between machines.
pub const BACKDATE: Duration = Duration::from_mins(5);

/// Why a key or certificate could not be made or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// The PEM or DER of the CA cannot be used.
    #[error(
        "cluster CA cannot be read; restore ca.crt and ca.key from a backup, or remove both to start a new cluster identity"
    )]
    CaUnreadable {
        /// What the parser said.
        #[source]
        source: rcgen::Error,
    },
    /// `ca.crt` does not belong to `ca.key`.
    #[error("ca.crt and ca.key do not belong together; restore both from one backup")]
    CaMismatch,
    /// The CA has expired, so nothing can be issued.
    #[error(
        "cluster CA has expired; remove ca.crt and ca.key to make a new one, then distribute it"
    )]
    CaExpired,
    /// A certificate could not be made.
    #[error("certificate for {subject:?} could not be issued")]
    Issue {
        /// Common name asked for.
        subject: String,
        /// What the encoder said.
        #[source]
        source: rcgen::Error,
    },
    /// A SAN is not a valid DNS name.
    #[error("subject alternative name {name:?} is not a DNS name")]
    BadName {
        /// The name.
        name: String,
    },
    /// A time cannot be written into a certificate.
    #[error("the clock is outside the range that certificates can carry")]
    BadClock,
}

/// What a certificate is for, and so its extended key usages and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// Serves TLS under these names and addresses.
    Server {
        /// Subject common name.
        common_name: String,
        /// Subject organizations (groups), empty for the API server.
        organizations: Vec<String>,
        /// DNS names it answers to.
        names: Vec<String>,
        /// Addresses it answers at.
        addresses: Vec<IpAddr>,
    },
    /// Identifies a client: the common name is the user, organizations are the groups.
    Client {
        /// User name.
        common_name: String,
        /// Groups.
        organizations: Vec<String>,
    },
}

/// A certificate with its private key, ready for rustls and for kubeconfig.
pub struct Issued {
    /// Leaf certificate, DER.
    pub certificate: CertificateDer<'static>,
    /// PKCS#8 key, DER.
    pub key: PrivateKeyDer<'static>,
    /// Leaf certificate, PEM.
    pub certificate_pem: String,
    /// PKCS#8 key, PEM. Secret.
    pub key_pem: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The cluster CA with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
    not_after: SystemTime,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl Authority ===

impl Authority {
    /// Makes a new self-signed CA valid for [`CA_LIFE`] from `now`.
    pub fn generate(now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(|source| PkiError::Issue {
            subject: "fairlead-ca".to_owned(),
            source,
        })?;
        Self::self_sign(&key, now)
    }

    /// Makes the certificate again for a CA key that has lost it.
    pub(super) fn from_key(key_pem: &str, now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(|source| PkiError::CaUnreadable { source })?;
        Self::self_sign(&key, now)
    }

    fn self_sign(key: &KeyPair, now: SystemTime) -> Result<Self, PkiError> {
        let subject = format!("fairlead-ca@{}", unix_seconds(now)?);
        let fail = |source| PkiError::Issue {
            subject: subject.clone(),
            source,
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&subject, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        params.not_before = offset(now - BACKDATE)?;
        params.not_after = offset(now + CA_LIFE)?;
        let certificate = params.self_signed(key).map_err(fail)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads a CA from PEM and checks that key and certificate belong together.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let unreadable = |source| PkiError::CaUnreadable { source };
        let key = KeyPair::from_pem(key_pem).map_err(unreadable)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .ok()
            .ok_or_else(|| unreadable(rcgen::Error::CouldNotParseCertificate))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .ok()
            .ok_or_else(|| unreadable(rcgen::Error::CouldNotParseCertificate))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::CaMismatch);
        }
        let not_after = system_time(parsed.validity().not_after.timestamp())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(unreadable)?;
        Ok(Self {
            issuer,
            certificate,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            not_after,
        })
    }

    /// The CA certificate, PEM: what clients pin and `kube-root-ca.crt` carries.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA key, PEM. Secret: only for the file that keeps it.
    pub(super) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// End of the CA's own validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues a certificate with a new key, valid from now for `life`, never beyond the CA.
    pub fn issue(&self, leaf: &Leaf, now: SystemTime, life: Duration) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(|source| PkiError::Issue {
            subject: leaf.common_name().to_owned(),
            source,
        })?;
        let (not_before, not_after) = self.validity(now, life)?;
        let certificate = self.encode(leaf, &key, not_before, not_after)?;
        Ok(Issued {
            certificate_pem: pem(&certificate),
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            key_pem: key.serialize_pem(),
            not_before,
            not_after,
        })
    }

    /// Certifies somebody else's public key; returns the certificate as PEM.
    pub fn certify(
        &self,
        leaf: &Leaf,
        public_key: &impl PublicKeyData,
        now: SystemTime,
        life: Duration,
    ) -> Result<String, PkiError> {
        let (not_before, not_after) = self.validity(now, life)?;
        Ok(pem(&self.encode(leaf, public_key, not_before, not_after)?))
    }

    fn encode(
        &self,
        leaf: &Leaf,
        public_key: &impl PublicKeyData,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, PkiError> {
        let common_name = leaf.common_name();
        let fail = |source| PkiError::Issue {
            subject: common_name.to_owned(),
            source,
        };
        let certificate = leaf
            .params(not_before, not_after)?
            .signed_by(public_key, &self.issuer)
            .map_err(fail)?;
        let organizations = leaf.organizations();
        if organizations.len() < 2 {
            return Ok(certificate.der().clone());
        }
        let key = self.issuer.key();
        subject::replace(certificate.der(), common_name, organizations, key)
            .map(CertificateDer::from)
            .ok_or_else(|| fail(rcgen::Error::CouldNotParseCertificate))
    }

    fn validity(
        &self,
        now: SystemTime,
        life: Duration,
    ) -> Result<(SystemTime, SystemTime), PkiError> {
        if now >= self.not_after {
            return Err(PkiError::CaExpired);
        }
        let end = now.checked_add(life).unwrap_or(self.not_after);
        Ok((now - BACKDATE, end.min(self.not_after)))
    }
}

// === impl Leaf ===

impl Leaf {
    /// The subject's common name.
    pub fn common_name(&self) -> &str {
        match self {
            Self::Server { common_name, .. } | Self::Client { common_name, .. } => common_name,
        }
    }

    /// The subject's organizations.
    pub fn organizations(&self) -> &[String] {
        match self {
            Self::Server { organizations, .. } | Self::Client { organizations, .. } => {
                organizations
            }
        }
    }

    fn params(
        &self,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        params.not_before = offset(not_before)?;
        params.not_after = offset(not_after)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match self {
            Self::Server {
                common_name,
                organizations,
                names,
                addresses,
            } => {
                params.distinguished_name = distinguished_name(common_name, organizations);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.subject_alt_names = alternative_names(names, addresses)?;
            }
            Self::Client {
                common_name,
                organizations,
            } => {
                params.distinguished_name = distinguished_name(common_name, organizations);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        Ok(params)
    }
}

fn distinguished_name(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// RFC 7468 text of a certificate.
fn pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem + "-----END CERTIFICATE-----\n"
}

fn alternative_names(names: &[String], addresses: &[IpAddr]) -> Result<Vec<SanType>, PkiError> {
    let dns = names.iter().map(|name| {
        let value = name.as_str().try_into().ok();
        value
            .map(SanType::DnsName)
            .ok_or_else(|| PkiError::BadName { name: name.clone() })
    });
    dns.chain(
        addresses
            .iter()
            .map(|address| Ok(SanType::IpAddress(*address))),
    )
    .collect()
}

/// The names that every client of a cluster's API server may use, besides the machine's own.
pub fn api_server_names(cluster_domain: &str) -> Vec<String> {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(format!("kubernetes.default.svc.{cluster_domain}"));
    names
}

fn unix_seconds(time: SystemTime) -> Result<i64, PkiError> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .ok_or(PkiError::BadClock)?;
    i64::try_from(since.as_secs())
        .ok()
        .ok_or(PkiError::BadClock)
}

fn offset(time: SystemTime) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(unix_seconds(time)?)
        .ok()
        .ok_or(PkiError::BadClock)
}

fn system_time(unix: i64) -> Result<SystemTime, PkiError> {
    let seconds = u64::try_from(unix).ok().ok_or(PkiError::BadClock)?;
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .ok_or(PkiError::BadClock)
}
