//! Network namespaces: opening the container's and working inside it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::spec::{Code, Failure};

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace other than the plugin's own.
#[derive(Debug)]
pub(crate) struct NetNs {
    target: File,
    own: File,
}

impl NetNs {
    /// Opens the namespace at `path`. `Ok(None)`: there is none.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::new(
                Code::InvalidNamespace,
                format!("CNI_NETNS {}: {what}: {error}", path.display()),
            )
        };
        let target = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("cannot open", error)),
        };
        let own = File::open(OWN).map_err(|error| failed("cannot open the own one", error))?;
        let system = rustix::fs::fstatfs(&target).map_err(|e| failed("cannot ask", e.into()))?;
        if system.f_type != NSFS_MAGIC {
            return Err(refused(path, "is not a network namespace"));
        }
        let identity = |file: &File| file.metadata().map(|data| (data.dev(), data.ino()));
        let same = identity(&target).and_then(|target| Ok(target == identity(&own)?));
        if same.map_err(|error| failed("cannot ask", error))? {
            return Err(refused(path, "is the node's own network namespace"));
        }
        Ok(Some(Self { target, own }))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.target.as_fd()
    }

    /// Runs `work` inside the namespace. The process has one thread, so
    /// nothing else notices.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.target.as_fd(), kind)?;
        let result = work();
        move_into_link_name_space(self.own.as_fd(), kind)?;
        Ok(result)
    }
}

fn refused(path: &Path, what: &str) -> Failure {
    Failure::new(
        Code::InvalidNamespace,
        format!("CNI_NETNS {} {what}", path.display()),
    )
    .hint("give the container's, as in /run/netns/NAME or /proc/PID/ns/net")
}
