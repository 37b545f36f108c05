//! The control plane over its API, and through real crashes.
//!
//! Each test starts its own server, in this process or as the real binary, on
//! loopback with a data directory of its own.
#![expect(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod api;
mod bad_input;
mod controllers;
mod crash;
mod deletion;
mod events;
mod harness;
mod jobs;
mod leader;
mod races;
mod rotation;
mod scheduling;
mod services;
mod volumes;
mod workloads;
