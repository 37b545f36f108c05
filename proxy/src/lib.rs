//! `fairlead-proxy`, the node daemon: sources -> state -> compilers -> maps.

pub mod admin;
pub mod cli;
pub mod compile;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod endpoints;
pub mod explain;
pub mod inotify;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod ready;
pub mod source;
pub mod trial;

/// The kernel programs, built from `proxy-ebpf` by this crate's build script.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernel/dataplane"));

/// The same programs, telling each drop in words; never in a release build.
#[cfg(logging_object)]
pub static LOGGING_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/log/dataplane"));
