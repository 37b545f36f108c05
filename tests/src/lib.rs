//! The test harness: what the kernel, namespace and end-to-end tests share.
//!
//! Nothing here depends on what it tests, but for `kernel`, which loads the
//! object. Everything that is made (namespaces, mounts, cgroups, processes) is
//! owned by a guard that removes it on drop, on panics too.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "test support: a failure of the host is a failure of the test"
)]

pub mod cgroup;
pub mod cluster;
pub mod empty;
pub mod files;
pub mod generate;
pub mod kernel;
pub mod namespace;
pub mod node;
pub mod oracle;
pub mod packet;
pub mod process;
pub mod random;
pub mod require;
pub mod traffic;
pub mod wait;
