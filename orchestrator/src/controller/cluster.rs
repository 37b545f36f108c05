//! Controllers of what belongs to no workload: namespaces, ownership, identities, nodes.

pub mod garbage;
pub mod namespace;
pub mod node;
pub mod pod_gc;
pub mod service_account;
