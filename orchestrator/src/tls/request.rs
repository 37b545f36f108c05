//! Certificate signing requests: what one asks for, and what each signer grants. Pure.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::SubjectPublicKeyInfo;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::authority::{Authority, Leaf, PkiError};

/// Signs client certificates of kubelets.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs serving certificates of kubelets.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs client certificates of anybody.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const MASTERS: &str = "system:masters";
/// Longest life of a signed certificate, and its life if none is asked for.
const LIFE_MAX: Duration = Duration::from_hours(365 * 24);
/// Longest request that is looked at, in bytes of PEM.
const PEM_BYTES_MAX: usize = 32 << 10;

/// What a request asks for.
#[derive(Debug)]
pub struct CertificateRequest {
    /// Subject common name.
    pub common_name: String,
    /// Subject organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it asks for e-mail addresses, URIs or other names.
    pub other_names: bool,
    key: SubjectPublicKeyInfo,
}

/// Why a request cannot be read or signed; fit for a condition's message.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Not a PEM block `CERTIFICATE REQUEST` with a valid request inside.
    #[error("spec.request is not a PEM encoded certificate request")]
    Unreadable,
    /// Not signed by the key it is for.
    #[error("the request is not signed by its own key")]
    BadSignature,
    /// A key that we cannot certify.
    #[error("the request's key type is not supported; use ECDSA P-256, P-384, RSA or Ed25519")]
    KeyType,
    /// The signer does not give this.
    #[error("{0}")]
    NotGranted(&'static str),
    /// The certificate could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

// === impl CertificateRequest ===

impl CertificateRequest {
    /// Reads a PEM request and checks that it is signed by its own key.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(RequestError::Unreadable);
        }
        let (_, block) = x509_parser::pem::parse_x509_pem(pem)
            .ok()
            .ok_or(RequestError::Unreadable)?;
        let parsed = X509CertificationRequest::from_der(&block.contents).ok();
        let (rest, request) = parsed.ok_or(RequestError::Unreadable)?;
        if block.label != "CERTIFICATE REQUEST" || !rest.is_empty() {
            return Err(RequestError::Unreadable);
        }
        request
            .verify_signature()
            .ok()
            .ok_or(RequestError::BadSignature)?;
        let info = &request.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).ok();
        let mut wanted = Self {
            common_name: String::new(),
            organizations: Vec::new(),
            names: Vec::new(),
            addresses: Vec::new(),
            other_names: false,
            key: key.ok_or(RequestError::KeyType)?,
        };
        for attribute in info.subject.iter_common_name() {
            let name = attribute.as_str().ok().ok_or(RequestError::Unreadable)?;
            name.clone_into(&mut wanted.common_name);
        }
        for attribute in info.subject.iter_organization() {
            let name = attribute.as_str().ok().ok_or(RequestError::Unreadable)?;
            wanted.organizations.push(name.to_owned());
        }
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(list) = extension {
                list.general_names
                    .iter()
                    .for_each(|name| wanted.add_name(name));
            }
        }
        Ok(wanted)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(dns) => self.names.push((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => {
                if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                    self.addresses.push(four.into());
                } else if let Ok(sixteen) = <[u8; 16]>::try_from(*bytes) {
                    self.addresses.push(sixteen.into());
                } else {
                    self.other_names = true;
                }
            }
            _ => self.other_names = true,
        }
    }

    /// The certificate that a signer gives for this, or why not.
    pub fn granted(&self, signer: &str, usages: &[String]) -> Result<Leaf, RequestError> {
        let refuse = |why| Err(RequestError::NotGranted(why));
        let of_node = self.common_name.len() > NODE_PREFIX.len()
            && self.common_name.starts_with(NODE_PREFIX)
            && matches!(self.organizations.as_slice(), [one] if one == NODES);
        let nameless = self.names.is_empty() && self.addresses.is_empty() && !self.other_names;
        let purpose = if signer == KUBELET_SERVING {
            "server auth"
        } else {
            "client auth"
        };
        let allowed = ["digital signature", "key encipherment", purpose];
        if !usages.iter().any(|usage| usage == purpose)
            || !usages.iter().all(|usage| allowed.contains(&usage.as_str()))
        {
            return refuse("usages did not match what the signer grants");
        }
        let client = || Leaf::Client {
            common_name: self.common_name.clone(),
            organizations: self.organizations.clone(),
        };
        match signer {
            KUBELET_CLIENT | KUBELET_SERVING if !of_node => refuse(
                "subject must be organization \"system:nodes\" and common name \"system:node:NAME\"",
            ),
            KUBELET_CLIENT | CLIENT if !nameless => {
                refuse("subject alternative names are not allowed")
            }
            KUBELET_SERVING if self.other_names => {
                refuse("e-mail and URI subject alternative names are not allowed")
            }
            KUBELET_SERVING if nameless => {
                refuse("at least one DNS or IP subject alternative name is required")
            }
            KUBELET_SERVING => Ok(Leaf::Server {
                common_name: self.common_name.clone(),
                organizations: self.organizations.clone(),
                names: self.names.clone(),
                addresses: self.addresses.clone(),
            }),
            CLIENT if self.asks_for_masters() => refuse(
                "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed",
            ),
            CLIENT if self.common_name.is_empty() => refuse("a common name is required"),
            KUBELET_CLIENT | CLIENT => Ok(client()),
            _ => refuse("this signer is not known here"),
        }
    }

    /// Whether the group that may do everything is asked for.
    pub fn asks_for_masters(&self) -> bool {
        self.organizations.iter().any(|group| group == MASTERS)
    }

    /// Signs what `signer` grants; the certificate as PEM.
    pub fn sign(
        &self,
        authority: &Authority,
        signer: &str,
        usages: &[String],
        asked: Option<Duration>,
        now: SystemTime,
    ) -> Result<String, RequestError> {
        let leaf = self.granted(signer, usages)?;
        let life = asked.unwrap_or(LIFE_MAX).min(LIFE_MAX);
        Ok(authority.certify(&leaf, &self.key, now, life)?)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;
    use crate::tls::peer::{ClientVerifier, PeerCertificate};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    fn request(common_name: &str, organization: &str, sans: &[&str]) -> CertificateRequest {
        CertificateRequest::parse(pem(common_name, organization, sans).as_bytes()).unwrap()
    }

    fn pem(common_name: &str, organization: &str, sans: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        for san in sans {
            params.subject_alt_names.push(match san.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if san.contains("://") => SanType::URI((*san).try_into().unwrap()),
                Err(_) => SanType::DnsName((*san).try_into().unwrap()),
            });
        }
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn usages(list: &str) -> Vec<String> {
        list.split(',').map(str::to_owned).collect()
    }

    type Case = (
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
        &'static str,
        bool,
    );

    /// (signer, common name, organization, names, usages, granted)
    #[test]
    fn each_signer_grants_what_upstreams_grants() {
        let client = "digital signature,client auth";
        let server = "digital signature,key encipherment,server auth";
        let node = "system:node:one";
        let table: &[Case] = &[
            (KUBELET_CLIENT, node, NODES, &[], client, true),
            (KUBELET_CLIENT, node, "others", &[], client, false),
            (KUBELET_CLIENT, "system:node:", NODES, &[], client, false),
            (KUBELET_CLIENT, "admin", NODES, &[], client, false),
            (KUBELET_CLIENT, node, NODES, &["one"], client, false),
            (KUBELET_CLIENT, node, NODES, &[], server, false),
            (KUBELET_CLIENT, node, NODES, &[], "digital signature", false),
            (
                KUBELET_SERVING,
                node,
                NODES,
                &["one", "10.0.0.1"],
                server,
                true,
            ),
            (KUBELET_SERVING, node, NODES, &[], server, false),
            (KUBELET_SERVING, node, NODES, &["spiffe://x"], server, false),
            (KUBELET_SERVING, node, NODES, &["one"], client, false),
            (CLIENT, "bob", "team", &[], client, true),
            (CLIENT, "bob", MASTERS, &[], client, false),
            (CLIENT, "bob", "team", &["bob"], client, false),
            (CLIENT, "bob", "team", &[], "client auth,cert sign", false),
            (
                "kubernetes.io/legacy-unknown",
                "bob",
                "team",
                &[],
                client,
                false,
            ),
        ];
        for (signer, name, organization, sans, wanted, granted) in table {
            let result = request(name, organization, sans).granted(signer, &usages(wanted));
            assert_eq!(
                result.is_ok(),
                *granted,
                "{signer} {name} {organization} {sans:?} {wanted}"
            );
        }
    }

    #[test]
    fn a_signed_certificate_logs_its_node_in() {
        let now = SystemTime::now();
        let authority = Authority::generate(now).unwrap();
        let asked = Some(Duration::from_mins(10));
        let signed = request("system:node:one", NODES, &[])
            .sign(
                &authority,
                KUBELET_CLIENT,
                &usages("client auth"),
                asked,
                now,
            )
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let verifier = ClientVerifier::new(authority.certificate().clone()).unwrap();
        let PeerCertificate::Verified(identity) = verifier.judge(Some(&[leaf]), now) else {
            panic!("not verified");
        };
        assert_eq!(identity.common_name, "system:node:one");
        assert_eq!(identity.organizations, [NODES]);
        assert!(identity.not_after <= now + Duration::from_mins(10));
    }

    #[test]
    fn damaged_requests_are_refused_and_nothing_panics() {
        let good = pem("bob", "team", &["x", "10.0.0.1"]);
        let der = x509_parser::pem::parse_x509_pem(good.as_bytes())
            .unwrap()
            .1
            .contents;
        let armoured = |der: &[u8]| {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
            )
        };
        assert!(CertificateRequest::parse(armoured(&der).as_bytes()).is_ok());
        for index in 0..der.len() {
            for bit in 0..8 {
                let mut flipped = der.clone();
                flipped[index] ^= 1 << bit;
                // A flip that the parser overlooks must not change what was signed.
                if let Ok(read) = CertificateRequest::parse(armoured(&flipped).as_bytes()) {
                    assert_eq!(read.common_name, "bob", "{index}.{bit}");
                    assert_eq!(read.organizations, ["team"], "{index}.{bit}");
                    assert_eq!(read.names, ["x"], "{index}.{bit}");
                }
            }
            assert!(CertificateRequest::parse(armoured(&der[..index]).as_bytes()).is_err());
        }
        assert!(CertificateRequest::parse(b"").is_err());
        assert!(CertificateRequest::parse(good.replace("REQUEST", "THING").as_bytes()).is_err());
    }
}
