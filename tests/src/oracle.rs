//! The independent evaluator: what Kubernetes says must happen to a packet,
//! computed the long way from plain values. Written from the published rules of
//! NetworkPolicy and Services; it shares no code with what it judges.
//!
//! Where the rules leave a choice (which backend, what an untracked flow is
//! taken for), it gives every outcome that is right.

pub mod flow;
pub mod policy;
pub mod service;

pub use flow::{Drop, Expected, Oracle, SourcePort, Verdict};
