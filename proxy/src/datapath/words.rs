//! What the logging programs of a debug build say, passed on to the daemon's log.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use super::load::Loaded;
use crate::ready;

/// Passes on what the programs of the logging object say, as long as the runtime
/// that this is called in lives. What comes faster stays in the ring, and when
/// that is full is not said. Of another object: nothing.
pub(super) fn pass_on(mut object: Loaded) -> io::Result<Loaded> {
    let logger = match EbpfLogger::init_with_logger(&mut object.ebpf, Daemon) {
        Ok(logger) => logger,
        Err(aya_log::Error::MapNotFound) => return Ok(object),
        Err(error) => return Err(io::Error::other(error)),
    };
    let ready = ready::watch(logger.as_fd().try_clone_to_owned()?)?;
    tokio::spawn(run(logger, ready));
    Ok(object)
}

async fn run(mut logger: EbpfLogger<Daemon>, ready: AsyncFd<OwnedFd>) {
    loop {
        match ready.readable().await {
            Ok(mut guard) => {
                guard.clear_ready();
                logger.flush();
            }
            Err(error) => {
                warn!(%error, "cannot read the programs' log");
                return;
            }
        }
    }
}

/// The daemon's log, as `aya_log` wants one.
struct Daemon;

impl log::Log for Daemon {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        debug!(target: "dataplane", message = %record.args());
    }

    fn flush(&self) {}
}
