//! Each verb by its specification, driven by a plain runner on network
//! namespaces. Needs root.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test panics, and that is its result"
)]

mod node;
mod pins;

mod basics;
mod crash;
mod daemon;
mod input;
mod ipam;
mod others;
