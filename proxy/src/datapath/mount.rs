//! The BPF file system, in which pins live.

use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::load::LoadError;

/// `statfs` types, from include/uapi/linux/magic.h.
pub mod magic {
    pub const BPFFS: i64 = 0xcafe_4a11;
    pub const CGROUP2: i64 = 0x6367_7270;
}

/// The type of the file system that `path` is on.
pub fn file_system(path: &Path) -> std::io::Result<i64> {
    Ok(rustix::fs::statfs(path)?.f_type)
}

/// Mounts bpffs at `path` unless it is there.
pub(super) fn ensure(path: &Path) -> Result<(), LoadError> {
    let failed = |what| {
        move |source| LoadError::Path {
            what,
            path: path.to_owned(),
            source,
        }
    };
    std::fs::create_dir_all(path).map_err(failed("cannot make the mount point"))?;
    let kind = file_system(path).map_err(failed("cannot look at"))?;
    if kind == magic::BPFFS {
        return Ok(());
    }
    mount("bpf", path, "bpf", MountFlags::empty(), None)
        .map_err(|error| failed("cannot mount the BPF file system at")(error.into()))
}
