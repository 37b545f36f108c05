//! Who is at the other end of a TLS connection.
//!
//! The handshake asks for a client certificate and checks that the peer holds
//! its key, but a certificate of a foreign CA does not break the handshake: it
//! is recorded as rejected, so that the request gets a proper `401` with a
//! reason, as upstream answers. Expiry is checked again on each request, since
//! connections outlive certificates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

/// What the connection knows about the peer; put into each request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Remote address.
    pub address: SocketAddr,
    /// The client certificate, if one was shown.
    pub certificate: PeerCertificate,
}

/// The outcome of client certificate verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerCertificate {
    /// No certificate was shown.
    Absent,
    /// Chains to the cluster CA and is meant for clients.
    Verified(Arc<CertificateIdentity>),
    /// Shown, but not to be trusted; the reason is fit for a log line.
    Rejected(Arc<str>),
}

/// The identity that a verified client certificate carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// Subject common name: the user.
    pub common_name: String,
    /// Subject organizations: the groups.
    pub organizations: Vec<String>,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Verifies client certificates against the cluster CA, after the handshake.
#[derive(Debug, Clone)]
pub struct ClientVerifier {
    strict: Arc<dyn ClientCertVerifier>,
}

// === impl ClientVerifier ===

impl ClientVerifier {
    /// Trusts exactly the given CA.
    pub fn new(ca: CertificateDer<'static>) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let strict = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { strict })
    }

    /// Judges the chain that the peer showed (leaf first), at wall-clock time `now`.
    pub fn judge(&self, chain: Option<&[CertificateDer<'_>]>, now: SystemTime) -> PeerCertificate {
        let Some([leaf, intermediates @ ..]) = chain else {
            return PeerCertificate::Absent;
        };
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let unix = UnixTime::since_unix_epoch(since);
        if let Err(error) = self.strict.verify_client_cert(leaf, intermediates, unix) {
            return PeerCertificate::Rejected(error.to_string().into());
        }
        match identity(leaf) {
            Some(identity) => PeerCertificate::Verified(Arc::new(identity)),
            None => PeerCertificate::Rejected("subject names no user (common name)".into()),
        }
    }
}

/// Accepts any chain during the handshake; possession of the key is still proven.
#[derive(Debug)]
pub(super) struct Deferred(pub(super) ClientVerifier);

impl ClientCertVerifier for Deferred {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.strict.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.strict.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.strict.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.strict.supported_verify_schemes()
    }
}

/// Reads user and groups from a certificate; `None` if it names no user or cannot be read.
fn identity(leaf: &CertificateDer<'_>) -> Option<CertificateIdentity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let subject = parsed.subject();
    let common_name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if common_name.is_empty() {
        return None;
    }
    let organizations = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        .map(str::to_owned)
        .collect();
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    Some(CertificateIdentity {
        common_name,
        organizations,
        fingerprint: hex(digest.as_ref()),
        not_after: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?,
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
            text
        })
}
