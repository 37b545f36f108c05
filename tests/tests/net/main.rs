//! Real sockets between pods that the CNI plugin made, on a node where the real
//! daemon runs; everything in namespaces of its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod bench;
mod connect;
mod daemon;
mod far;
mod flows;
mod full;
mod hooks;
mod mtu;
mod policy;
mod service;
mod socket;
mod tamper;
