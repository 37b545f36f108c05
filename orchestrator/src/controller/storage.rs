//! Storage: which volume a claim gets, making volumes, and keeping what is in
//! use. The data themselves are the node's business: a local volume names a
//! directory, and whoever mounts it makes it.

pub mod binder;
pub mod local_path;
pub mod matching;
pub mod protection;
