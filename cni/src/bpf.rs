//! The few bpf(2) calls that attaching a pod takes, on objects that the daemon
//! has pinned. Raw, without probing: the plugin lives for a millisecond. The
//! only `unsafe` of this crate.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proxy_ebpf::abi::Plain;

// enum bpf_cmd and enum bpf_attach_type of linux/bpf.h.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    Ingress = 46,
    Egress = 47,
}

/// The beginning of `union bpf_attr` for element commands.
#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// For `OBJ_PIN` and `OBJ_GET`.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// For `OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    words: u64,
}

/// For `LINK_CREATE` of TCX: appended to the programs that are there.
#[repr(C)]
struct Create {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    _pad: u32,
    revision: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` must be the beginning of `union bpf_attr` that `command` takes, and
/// every address in it must point to memory of the size the kernel reads or writes.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<RawFd> {
    // SAFETY: attr is valid for its size, which is passed; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).expose_provenance() as u64
}

fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

/// Opens a pinned program, map or link.
pub(crate) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let object = Object {
        path: path.as_ptr().expose_provenance() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: OBJ_GET reads the zero-terminated path, which outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &object) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a link under a name that does not exist yet.
pub(crate) fn pin(link: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let object = Object {
        path: path.as_ptr().expose_provenance() as u64,
        fd: number(link),
        flags: 0,
    };
    // SAFETY: OBJ_PIN reads the zero-terminated path, which outlives the call.
    unsafe { bpf(OBJ_PIN, &object) }.map(drop)
}

/// Attaches a program to an interface of the current network namespace. The
/// program goes when the last reference to the link goes, or the interface.
pub(crate) fn attach(program: &OwnedFd, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    let create = Create {
        program: number(program),
        ifindex,
        attach_type: hook as u32,
        flags: 0,
        relative: 0,
        _pad: 0,
        revision: 0,
    };
    // SAFETY: LINK_CREATE of this type reads numbers only.
    let fd = unsafe { bpf(LINK_CREATE, &create) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first words of `struct bpf_map_info` or `struct bpf_link_info`. A
/// longer structure is cut by the kernel.
fn info<const WORDS: usize>(object: &OwnedFd) -> io::Result<[u32; WORDS]> {
    let mut words = [0; WORDS];
    let request = Info {
        fd: number(object),
        length: u32::try_from(size_of::<[u32; WORDS]>()).map_err(io::Error::other)?,
        words: std::ptr::from_mut(&mut words).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `words`, which is that long.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &request) }?;
    Ok(words)
}

/// The interface that a TCX link is attached to; 0 when that is gone.
pub(crate) fn attached_to(link: &OwnedFd) -> io::Result<u32> {
    // struct bpf_link_info: type, id, program id, (padding,) tcx.ifindex, tcx.attach_type
    let [_, _, _, _, ifindex, _] = info::<6>(link)?;
    Ok(ifindex)
}

/// An array's index, or a number in a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word(pub(crate) u32);
// SAFETY: transparent over an integer.
unsafe impl Plain for Word {}

/// A pinned map of `K` to `V`.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    kind: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens the map and makes sure that its sizes are those of `K` and `V`:
    /// all other calls rely on that.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = get(path)?;
        // struct bpf_map_info: type, id, key size, value size
        let [_, _, key, value] = info::<4>(&fd)?;
        if [key as usize, value as usize] != [size_of::<K>(), size_of::<V>()] {
            let message = "the map has other sizes than this plugin's: install both of one version";
            return Err(io::Error::other(message));
        }
        Ok(Self {
            fd,
            kind: PhantomData,
        })
    }

    fn element(&self, key: &K, value: u64) -> Element {
        Element {
            map: number(&self.fd),
            _pad: 0,
            key: address(key),
            value,
            flags: 0,
        }
    }

    /// `Ok(None)`: the map has no such key.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let pointer = value.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: `open` has checked that key and value have the map's sizes.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &self.element(key, pointer)) } {
            // SAFETY: zeroed and then written by the kernel; any bits are a valid Plain.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: `open` has checked that key and value have the map's sizes.
        unsafe { bpf(MAP_UPDATE_ELEM, &self.element(key, address(value))) }.map(drop)
    }

    /// A key that is not there is no error.
    pub(crate) fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: `open` has checked that the key has the map's size.
        match unsafe { bpf(MAP_DELETE_ELEM, &self.element(key, 0)) } {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
