//! Controllers of long-running workloads.

pub mod daemonset;
pub mod deployment;
pub mod replicaset;
pub mod revision;
pub mod rollout;
pub mod statefulset;
