//! bpf(2): maps, pins and links by file descriptor.
//!
//! aya loads the object; this module is what aya 0.14 has not (batches, typed
//! access without a collection type per map, link information). All unsafe code
//! of the data path is here and in its `table`. Attribute layouts are those of `union bpf_attr`
//! in the kernel's include/uapi/linux/bpf.h.
#![expect(unsafe_code, reason = "bpf(2) takes raw pointers")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proxy_ebpf::abi::Plain;

mod table;

pub use table::{Cursor, PerCpuCounters, Table};

mod command {
    pub(super) const MAP_LOOKUP: u32 = 1;
    pub(super) const MAP_UPDATE: u32 = 2;
    pub(super) const MAP_DELETE: u32 = 3;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const INFO_BY_FD: u32 = 15;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const MAP_UPDATE_BATCH: u32 = 26;
    pub(super) const MAP_DELETE_BATCH: u32 = 27;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
    pub(super) const ITER_CREATE: u32 = 33;
}

/// Where a program of Fairlead is attached: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    TcxIngress = 46,
    TcxEgress = 47,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    /// A cgroup directory's descriptor, or an interface index.
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// As [`LinkCreateAttr`], of an iterator over a map.
#[repr(C)]
struct IteratorLinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// `union bpf_iter_link_info`: the map's descriptor.
    info: u64,
    info_length: u32,
    _pad: u32,
}

#[repr(C)]
struct IteratorAttr {
    link: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `struct bpf_map_info`, its first 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// `struct bpf_prog_info`, its first 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramInfo {
    pub kind: u32,
    pub id: u32,
    /// Hash over the instructions.
    pub tag: [u8; 8],
}

/// `struct bpf_link_info` as filled for TCX and cgroup links, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program: u32,
    _pad: u32,
    /// TCX: interface index and attach type; cgroup: the two halves of its id.
    pub words: [u32; 4],
}

impl LinkInfo {
    const CGROUP: u32 = 3;
    const TCX: u32 = 11;

    /// The id of the cgroup a cgroup link is on; 0 once the cgroup is gone.
    pub fn cgroup(&self) -> Option<u64> {
        let [a, b, ..] = self.words;
        let [a, b] = [a.to_ne_bytes(), b.to_ne_bytes()];
        let id = u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
        (self.kind == Self::CGROUP).then_some(id)
    }

    /// The interface a TCX link is on; 0 once the interface is gone.
    pub fn ifindex(&self) -> Option<u32> {
        let [ifindex, ..] = self.words;
        (self.kind == Self::TCX).then_some(ifindex)
    }
}

#[expect(clippy::cast_sign_loss, reason = "descriptors are not negative")]
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "attributes are some tens of bytes"
)]
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

fn call<A>(command: u32, attribute: &mut A) -> io::Result<i64> {
    // SAFETY: `attribute` is a repr(C) prefix of union bpf_attr, live and of the size
    // given; every pointer in it was made by the caller from a live slice whose
    // length the map's own sizes bound (checked when a map is opened).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command),
            std::ptr::from_mut(attribute),
            libc::c_ulong::from(size::<A>()),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(descriptor: i64) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attribute = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    owned(call(command::OBJ_GET, &mut attribute)?)
}

/// Pins a map, program or link.
pub fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attribute = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: number(fd),
        flags: 0,
    };
    call(command::OBJ_PIN, &mut attribute).map(drop)
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attribute = InfoAttr {
        fd: number(fd),
        length: size::<T>(),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    call(command::INFO_BY_FD, &mut attribute)?;
    Ok(info)
}

pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

pub fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    info(fd)
}

pub fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// Attaches `program` to an interface (TCX). The link lives as long as the
/// descriptor or a pin of it, or until the interface goes.
pub fn link_interface(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    link_create(program, ifindex, attach_type)
}

/// Attaches `program` to a cgroup, beside what others attached there.
pub fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    link_create(program, number(cgroup), attach_type)
}

fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreateAttr {
        program: number(program),
        target,
        attach_type: attach_type as u32,
        flags: 0,
    };
    owned(call(command::LINK_CREATE, &mut attribute)?)
}

/// What an iterator `program` writes of the elements of `map`, to be read once.
pub fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    /// `BPF_TRACE_ITER`.
    const TRACE_ITER: u32 = 28;
    let map = number(map);
    let mut attribute = IteratorLinkAttr {
        program: number(program),
        target: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        info: std::ptr::from_ref(&map) as u64,
        info_length: size::<u32>(),
        _pad: 0,
    };
    let link = owned(call(command::LINK_CREATE, &mut attribute)?)?;
    let mut attribute = IteratorAttr {
        link: number(link.as_fd()),
        flags: 0,
    };
    // It holds the link.
    owned(call(command::ITER_CREATE, &mut attribute)?).map(File::from)
}

/// Replaces the program of a link, atomically for the traffic.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkUpdateAttr {
        link: number(link),
        program: number(program),
        flags: 0,
        old_program: 0,
    };
    call(command::LINK_UPDATE, &mut attribute).map(drop)
}

/// The bytes of a value that may be copied to and from the kernel.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: Plain has no padding, so every byte is initialised; the lifetime is `value`'s.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Waits until no program that runs now still runs: an RCU grace period.
pub fn wait_for_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` of include/uapi/linux/membarrier.h.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes integers only. It is `synchronize_rcu()` by another name.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 {
        // Refused on nohz_full kernels: programs run for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A value as the kernel gave it; `None` if the length is not that of a `T`.
pub fn value_of<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, `read_unaligned` needs no alignment, and
    // every bit pattern of a Plain type is valid.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
