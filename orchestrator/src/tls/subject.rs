//! Subjects with several organizations: rcgen keeps one value per attribute, so such a subject
//! is put in place of the one it wrote, and the certificate is signed again. Pure; DER as in
//! X.690, certificates as in RFC 5280.

use rcgen::SigningKey;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const BIT_STRING: u8 = 0x03;
/// `id-at-organizationName` and `id-at-commonName`, tag and length included.
const ORGANIZATION: [u8; 5] = [0x06, 3, 0x55, 0x04, 0x0a];
const COMMON_NAME: [u8; 5] = [0x06, 3, 0x55, 0x04, 0x03];

/// The certificate with another subject, signed again by the same issuer.
///
/// `None` if `certificate` is not one, or the key does not sign.
pub(super) fn replace(
    certificate: &[u8],
    common_name: &str,
    organizations: &[String],
    issuer: &impl SigningKey,
) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let signed = parsed.tbs_certificate.as_ref();
    let old = parsed.tbs_certificate.subject.as_raw();
    // Where the old subject lies within what was signed: both are slices of `certificate`.
    let start = old.as_ptr().addr().checked_sub(signed.as_ptr().addr())?;
    let before = signed.get(header(signed)?..start)?;
    let after = signed.get(start + old.len()..)?;
    let signed_anew = element(
        SEQUENCE,
        &[before, &name(common_name, organizations), after],
    );
    let algorithm = {
        let rest = certificate.get(header(certificate)? + signed.len()..)?;
        rest.get(..header(rest)? + usize::from(*rest.get(1)?))?
    };
    let signature = issuer.sign(&signed_anew).ok()?;
    // A bit string begins with the number of its unused bits.
    let signature = element(BIT_STRING, &[&[0], &signature]);
    Some(element(SEQUENCE, &[&signed_anew, algorithm, &signature]))
}

fn name(common_name: &str, organizations: &[String]) -> Vec<u8> {
    let part = |kind: &[u8], text: &str| {
        let text = element(UTF8_STRING, &[text.as_bytes()]);
        element(SET, &[&element(SEQUENCE, &[kind, &text])])
    };
    let mut parts: Vec<Vec<u8>> = organizations
        .iter()
        .map(|text| part(&ORGANIZATION, text))
        .collect();
    parts.push(part(&COMMON_NAME, common_name));
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    element(SEQUENCE, &parts)
}

/// Tag, length in the shortest form, content.
fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|content| content.len()).sum();
    let mut der = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let skipped = bytes.iter().take_while(|byte| **byte == 0).count();
            let count = u8::try_from(bytes.len() - skipped).expect("a usize has few bytes");
            der.push(0x80 | count);
            der.extend(bytes.iter().skip(skipped));
        }
    }
    for content in contents {
        der.extend_from_slice(content);
    }
    der
}

/// Bytes of tag and length at the start of an element.
fn header(der: &[u8]) -> Option<usize> {
    let length = *der.get(1)?;
    Some(if length < 0x80 {
        2
    } else {
        2 + usize::from(length & 0x7f)
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use crate::tls::authority::{Authority, LEAF_LIFE, Leaf};
    use crate::tls::peer::{ClientVerifier, PeerCertificate};

    #[test]
    fn any_number_of_groups_is_signed_and_read_back() {
        let now = SystemTime::now();
        let authority = Authority::generate(now).unwrap();
        let verifier = ClientVerifier::new(authority.certificate().clone()).unwrap();
        for count in [0, 1, 2, 3, 40] {
            let organizations: Vec<String> =
                (0..count).map(|n| format!("team-{n}-of-many")).collect();
            let leaf = Leaf::Client {
                common_name: "jané".to_owned(),
                organizations: organizations.clone(),
            };
            let issued = authority.issue(&leaf, now, LEAF_LIFE).unwrap();
            let from_pem = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes());
            assert_eq!(from_pem.unwrap(), issued.certificate);
            let judged = verifier.judge(Some(&[issued.certificate]), now);
            let PeerCertificate::Verified(identity) = judged else {
                panic!("{judged:?}")
            };
            assert_eq!(identity.common_name, "jané");
            assert_eq!(identity.organizations, organizations);
        }
    }
}
