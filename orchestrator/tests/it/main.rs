//! The control plane against real clients and real crashes.
//!
//! Each test starts its own server, in this process or as the real binary, on
//! loopback with a data directory of its own. What a test needs from outside
//! (kubectl, Helm, the Python client) is installed by package name into
//! `target/clients`, see [`clients`].
#![expect(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod api;
mod bad_input;
mod clients;
mod controllers;
mod crash;
mod events;
mod harness;
mod hollow;
mod jobs;
mod kube_rs;
mod kubectl;
mod leader;
mod matrix;
mod races;
mod rotation;
mod scheduling;
mod services;
mod tool;
mod volumes;
mod workloads;
