//! Controllers of long-running workloads.

pub mod deployment;
pub mod replicaset;
pub mod rollout;
