//! The parts of the node daemon.

pub mod compile;
pub mod model;

/// The kernel programs, built from `proxy-ebpf` by this crate's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dataplane.o"));
