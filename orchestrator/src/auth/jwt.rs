//! JSON Web Tokens as this cluster signs them: compact form, ES256 and nothing else.
//!
//! The algorithm is fixed by the key, never by the token, so there is no "none" and nothing to
//! confuse. RFC 7515 (JWS), RFC 7517 (JWK).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Why a token or key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JwtError {
    /// Not `header.payload.signature` in base64url, or not JSON inside.
    #[error("token is not a JSON Web Token")]
    Malformed,
    /// Another algorithm or key than ours.
    #[error("token is not signed by a key of this cluster")]
    ForeignKey,
    /// The signature does not fit.
    #[error("token signature is wrong")]
    BadSignature,
    /// `sa.key` is not an ECDSA P-256 key in PKCS#8 PEM.
    #[error(
        "sa.key is not an ECDSA P-256 key in PKCS#8 PEM; restore it from a backup or remove it to void all tokens"
    )]
    BadKey,
    /// The system has no randomness.
    #[error("no randomness for a signature")]
    NoRandom,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// The key that signs and verifies ServiceAccount tokens.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

// === impl SigningKey ===

impl SigningKey {
    /// Reads a PKCS#8 PEM key.
    pub fn from_pem(pem: &str) -> Result<Self, JwtError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).ok();
        let der = der.ok_or(JwtError::BadKey)?;
        let random = SystemRandom::new();
        let signing = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(signing, der.secret_pkcs8_der(), &random).ok();
        let pair = pair.ok_or(JwtError::BadKey)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        Ok(Self {
            id: BASE64.encode(digest),
            pair,
            random,
        })
    }

    /// Signs `claims` into a compact token.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, JwtError> {
        let header = Header {
            alg: "ES256".to_owned(),
            kid: self.id.clone(),
        };
        let header = serde_json::to_vec(&header)
            .ok()
            .ok_or(JwtError::Malformed)?;
        let claims = serde_json::to_vec(claims).ok().ok_or(JwtError::Malformed)?;
        let mut token = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let signature = self.pair.sign(&self.random, token.as_bytes()).ok();
        let signature = signature.ok_or(JwtError::NoRandom)?;
        token.push('.');
        token.push_str(&BASE64.encode(signature));
        Ok(token)
    }

    /// Checks the signature and returns the payload, whose claims are still to be judged.
    pub fn verify(&self, token: &str) -> Result<Vec<u8>, JwtError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let decode = |part| BASE64.decode(part).ok().ok_or(JwtError::Malformed);
        let header = serde_json::from_slice::<Header>(&decode(header)?).ok();
        let header = header.ok_or(JwtError::Malformed)?;
        if header.alg != "ES256" || header.kid != self.id {
            return Err(JwtError::ForeignKey);
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        let verified = public.verify(signed.as_bytes(), &decode(signature)?);
        verified.ok().ok_or(JwtError::BadSignature)?;
        decode(claims)
    }

    /// The public key as a JSON Web Key set.
    pub fn key_set(&self) -> Value {
        // Uncompressed point: 0x04, then x and y of 32 bytes each (SEC 1, 2.3.3).
        let point = self.pair.public_key().as_ref();
        let coordinate = |range| BASE64.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": coordinate(1..33), "y": coordinate(33..65),
        }]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    #[test]
    fn what_was_signed_comes_back() {
        let key = key();
        let token = key.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(key.verify(&token).unwrap(), br#"{"sub":"a"}"#);
    }

    #[test]
    fn any_changed_character_is_refused() {
        let key = key();
        let token = key
            .sign(&json!({"sub": "system:serviceaccount:a:b"}))
            .unwrap();
        for index in 0..token.len() {
            for with in ["A", "B", ".", "="] {
                let mut changed = token.clone();
                changed.replace_range(index..=index, with);
                if changed != token {
                    assert!(key.verify(&changed).is_err(), "{index} {with}");
                }
            }
        }
        for wrong in ["", ".", "..", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert_eq!(key.verify(wrong), Err(JwtError::Malformed));
        }
    }

    #[test]
    fn the_token_does_not_choose_the_algorithm() {
        let key = key();
        let token = key.sign(&json!({"sub": "a"})).unwrap();
        let rest = token.split_once('.').unwrap().1;
        for alg in ["none", "HS256", "ES384"] {
            let header = BASE64.encode(json!({"alg": alg, "kid": key.id}).to_string());
            assert_eq!(
                key.verify(&format!("{header}.{rest}")),
                Err(JwtError::ForeignKey)
            );
        }
        assert_eq!(tests::key().verify(&token), Err(JwtError::ForeignKey));
    }

    #[test]
    fn the_key_set_carries_the_public_point() {
        let set = key().key_set();
        let first = &set["keys"][0];
        for coordinate in ["x", "y"] {
            let bytes = BASE64.decode(first[coordinate].as_str().unwrap()).unwrap();
            assert_eq!(bytes.len(), 32);
        }
        assert!(!set.to_string().contains("\"d\""), "no private part");
    }
}
