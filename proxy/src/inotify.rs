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

/// More names than this are as good as everything.
const NAMES_MAX: usize = 4096;

/// Events read without a pause: twice of what the kernel keeps.
const EVENTS_MAX: usize = 32_768;

/// Reads until nothing is left (`WouldBlock`), or so much has come that
/// everything must be read again.
fn read_all(fd: &OwnedFd, changed: &mut Changed) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = Reader::new(fd, &mut buffer);
    for _ in 0..EVENTS_MAX {
        let event = reader.next()?;
        let flags = event.events();
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED) {
            changed.gone = true;
        }
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            changed.everything = true;
        }
        let Some(name) = event.file_name() else {
            continue;
        };
        match name.to_str() {
            // Projected volumes change all their files by renaming `..data`.
            Ok(name) if !name.starts_with("..") && changed.names.len() < NAMES_MAX => {
                changed.names.insert(name.to_owned());
            }
            _ => changed.everything = true,
        }
    }
    // Events that the buffer still held are lost.
    changed.everything = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_more_changes_than_are_gathered_none_is_lost() {
        const FILES: usize = 6000;
        let directory = std::env::temp_dir().join(format!("fl-inotify-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut watch = DirectoryWatch::new(&directory).unwrap();
        for number in 0..FILES {
            std::fs::write(directory.join(number.to_string()), "").unwrap();
        }
        let mut all = Changed::default();
        let wait = std::time::Duration::from_secs(10);
        while !all.everything && all.names.len() < FILES {
            let more = tokio::time::timeout(wait, watch.changed()).await;
            let more = more.expect("every change is told").unwrap();
            all.names.extend(more.names);
            all.everything |= more.everything;
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
