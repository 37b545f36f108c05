//! Directory watching: which names changed, as an async call.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::ready;

/// What happened below a watched directory since the last call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Files whose content is complete and new, or that are gone.
    pub names: BTreeSet<String>,
    /// Events were lost, or links were swapped: read everything again.
    pub everything: bool,
    /// The directory itself was removed or moved.
    pub gone: bool,
}

/// Watches one directory, not its subdirectories.
#[derive(Debug)]
pub struct DirectoryWatch {
    fd: AsyncFd<OwnedFd>,
}

impl DirectoryWatch {
    /// Must be called within a tokio runtime. A file is reported when its writer
    /// closes it or renames it into place, never half written.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &fd,
            directory,
            WatchFlags::CLOSE_WRITE
                | WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::MOVED_FROM
                | WatchFlags::DELETE
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR,
        )?;
        Ok(Self {
            fd: ready::watch(fd)?,
        })
    }

    /// Waits for changes. Cancellation loses nothing.
    pub async fn changed(&mut self) -> io::Result<Changed> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut changed = Changed::default();
            match read_all(self.fd.get_ref(), &mut changed) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
            }
            if changed != Changed::default() {
                return Ok(changed);
            }
        }
    }
}

/// Reads until nothing is left (`WouldBlock`) or 4096 names are collected.
fn read_all(fd: &OwnedFd, changed: &mut Changed) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = Reader::new(fd, &mut buffer);
    while changed.names.len() < 4096 {
        let event = reader.next()?;
        let flags = event.events();
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED) {
            changed.gone = true;
        }
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            changed.everything = true;
        }
        let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else {
            continue;
        };
        // Projected volumes change all their files by renaming `..data`.
        if name.starts_with("..") {
            changed.everything = true;
        } else {
            changed.names.insert(name.to_owned());
        }
    }
    Ok(())
}
