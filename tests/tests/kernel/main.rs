//! The kernel programs, packet by packet: hand-built ones, damaged ones, and
//! random ones against the independent evaluator.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests fail by panicking and say how far they came"
)]

mod apply;
mod damage;
mod differential;
mod flow;
mod link;
mod node;
mod world;
