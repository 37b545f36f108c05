//! Waiting for a descriptor that tokio has no type for.
#![expect(
    unsafe_code,
    reason = "tokio asks its callers to keep the descriptor open"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers an owned descriptor; must be called within a tokio runtime.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd returns one descriptor, the same each time, and keeps it
    // open until it is dropped, which AsyncFd does after deregistering.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
