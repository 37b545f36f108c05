//! Transport security of the API server: the cluster's own CA, certificates
//! that renew themselves, and the bounded TLS accept loop that puts the peer's
//! identity beside every request.
//!
//! Only the CA and the ServiceAccount signing key live on disk. Every other
//! certificate is issued at start, kept in memory and replaced at two thirds of
//! its life, so there is one secret to guard and nothing to renew by hand.

pub mod authority;
pub mod disk;
pub mod kubeconfig;
pub mod listen;
mod pack;
pub mod peer;
pub mod request;
pub mod rotate;
mod subject;

pub use authority::{Authority, Issued, Leaf, PkiError};
pub use listen::{Limits, serve};
pub use peer::{CertificateIdentity, Peer, PeerCertificate};
pub use rotate::Rotating;

use std::sync::Arc;
use std::time::SystemTime;

/// Wall-clock time as a value, so that expiry and renewal are tested without waiting.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The machine's own clock.
pub fn system_clock() -> WallClock {
    Arc::new(SystemTime::now)
}

#[cfg(test)]
mod tests;
