//! Attaching programs by pinned links, and putting links back.
//!
//! A link's pin is its life: while it exists the program stays attached, whoever
//! dies. An interface's links vanish with the interface, their pins do not.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proxy_ebpf::abi::pin;

use super::bpf::{self, AttachType};
use super::load::{Pins, pin_over, remove_if_there};

/// The cgroup programs: name of the program and of its link, and where it goes.
pub const SOCKET_PROGRAMS: [(&str, AttachType); 8] = [
    ("sock_connect4", AttachType::Connect4),
    ("sock_connect6", AttachType::Connect6),
    ("sock_sendmsg4", AttachType::Sendmsg4),
    ("sock_sendmsg6", AttachType::Sendmsg6),
    ("sock_recvmsg4", AttachType::Recvmsg4),
    ("sock_recvmsg6", AttachType::Recvmsg6),
    ("sock_getpeername4", AttachType::Getpeername4),
    ("sock_getpeername6", AttachType::Getpeername6),
];

/// The programs on a pod's host interface, and where links put them.
pub const POD_PROGRAMS: [(&str, AttachType); 2] = [
    (pin::POD_OUT, AttachType::TcxIngress),
    (pin::POD_IN, AttachType::TcxEgress),
];

/// `<host_ifname>-pod_out`, `<host_ifname>-pod_in`: the CNI plugin's names too.
pub fn pod_link_name(host_ifname: &str, program: &str) -> String {
    format!("{host_ifname}-{program}")
}

/// What [`ensure`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The link was there; its program is now the current one.
    Kept,
    /// There was none, or not to the right place: it was made.
    Made,
}

/// Where a link must point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    Interface(u32),
    Cgroup(&'a File),
}

impl Target<'_> {
    fn is_of(self, info: &bpf::LinkInfo) -> io::Result<bool> {
        Ok(match self {
            Target::Interface(ifindex) => info.ifindex() == Some(ifindex),
            Target::Cgroup(directory) => {
                // A cgroup's id is its directory's inode number.
                info.cgroup() == Some(directory.metadata()?.ino())
            }
        })
    }

    fn link(
        self,
        program: BorrowedFd<'_>,
        attach_type: AttachType,
    ) -> io::Result<std::os::fd::OwnedFd> {
        match self {
            Target::Interface(ifindex) => bpf::link_interface(program, ifindex, attach_type),
            Target::Cgroup(directory) => bpf::link_cgroup(program, directory.as_fd(), attach_type),
        }
    }
}

/// Makes sure that `program` is attached to `target` by a link pinned as `name`.
/// A link that exists is updated: no packet misses the program.
pub(super) fn ensure(
    pins: &Pins,
    name: &str,
    (program, id): (BorrowedFd<'_>, u32),
    target: Target<'_>,
    attach_type: AttachType,
) -> io::Result<Ensured> {
    let path = pins.link(name);
    if let Ok(link) = bpf::object_get(&path) {
        let info = bpf::link_info(link.as_fd())?;
        if target.is_of(&info)? {
            if info.program != id {
                bpf::link_update(link.as_fd(), program)?;
            }
            return Ok(Ensured::Kept);
        }
    }
    let link = target.link(program, attach_type)?;
    pin_over(&link, &path)?;
    Ok(Ensured::Made)
}

/// Removes the pins of links whose interface is gone. Their names.
pub(super) fn remove_dead(pins: &Pins) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(pins.links())? {
        let path = entry?.path();
        if is_dead(&path) && remove_if_there(&path)? {
            removed.extend(path.file_name().map(|n| n.to_string_lossy().into_owned()));
        }
    }
    Ok(removed)
}

fn is_dead(path: &Path) -> bool {
    bpf::object_get(path)
        .and_then(|link| bpf::link_info(link.as_fd()))
        .is_ok_and(|info| info.ifindex() == Some(0))
}
