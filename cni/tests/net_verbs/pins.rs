//! A stand-in for what the daemon pins: maps of the contract's shapes and
//! programs that pass every packet on, so that attaching can be tested without
//! building the real ones.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::ffi::CString;
use std::fs;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use proxy_ebpf::abi::{Address, Endpoint, bound, pin};
use proxy_ebpf::addr::{V4, V6};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;

fn bpf(command: libc::c_long, attr: &[u64]) -> i32 {
    // SAFETY: attr is longer than what the command reads; its addresses are the callers' locals.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    assert!(
        result >= 0,
        "bpf({command}): {}",
        std::io::Error::last_os_error()
    );
    i32::try_from(result).unwrap()
}

fn made(command: libc::c_long, attr: &[u64]) -> OwnedFd {
    // SAFETY: the callers' commands make a descriptor.
    unsafe { OwnedFd::from_raw_fd(bpf(command, attr)) }
}

fn pair(low: u32, high: usize) -> u64 {
    u64::from(low) | (u64::try_from(high).unwrap() << 32)
}

fn fd_number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn pin_at(object: &OwnedFd, path: &Path) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    bpf(
        OBJ_PIN,
        &[
            path.as_ptr().expose_provenance() as u64,
            pair(fd_number(object), 0),
        ],
    );
}

fn map(directory: &Path, name: &str, kind: u32, key: usize, value: usize, entries: u32) {
    let attr = [
        pair(kind, key),
        pair(u32::try_from(value).unwrap(), entries as usize),
        0,
    ];
    pin_at(&made(MAP_CREATE, &attr), &directory.join(name));
}

/// Pins everything below `bpffs`, as the daemon would.
pub(crate) fn install(bpffs: &Path) {
    let directory = proxy_ebpf::record::path::pins(bpffs);
    fs::create_dir_all(&directory).unwrap();
    let slots = bound::ENDPOINT_SLOTS;
    map(
        &directory,
        pin::ENDPOINTS,
        ARRAY,
        4,
        size_of::<Endpoint>(),
        slots,
    );
    map(&directory, pin::NAT_CLIENTS, ARRAY, 4, 4, slots);
    let address = size_of::<Address>();
    map(
        &directory,
        pin::ADDRESSES_V4,
        HASH,
        size_of::<V4>(),
        address,
        1024,
    );
    map(
        &directory,
        pin::ADDRESSES_V6,
        HASH,
        size_of::<V6>(),
        address,
        1024,
    );
    // r0 = -1 (TCX_NEXT); exit
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let license = c"GPL";
    for name in [pin::POD_OUT, pin::POD_IN] {
        let attr = [
            pair(SCHED_CLS, code.len()),
            code.as_ptr().expose_provenance() as u64,
            license.as_ptr().expose_provenance() as u64,
            0,
            0,
            0,
        ];
        pin_at(&made(PROG_LOAD, &attr), &directory.join(name));
    }
}

/// All keys of a pinned map of `K`.
pub(crate) fn keys<K: Copy + Default>(bpffs: &Path, name: &str) -> Vec<K> {
    let map = open(bpffs, name);
    let mut keys = Vec::new();
    loop {
        let mut next = K::default();
        let last = keys
            .last()
            .map_or(0, |key: &K| std::ptr::from_ref(key).expose_provenance());
        let attr = [
            pair(fd_number(&map), 0),
            last as u64,
            std::ptr::from_mut(&mut next).expose_provenance() as u64,
        ];
        let size = size_of_val(&attr);
        // SAFETY: the test names the key type of the map that `install` made.
        if unsafe { libc::syscall(libc::SYS_bpf, MAP_GET_NEXT_KEY, attr.as_ptr(), size) } != 0 {
            return keys;
        }
        keys.push(next);
    }
}

/// Slots that hold an endpoint.
pub(crate) fn slots_in_use(bpffs: &Path) -> Vec<u32> {
    let is_used = |slot: &u32| {
        read::<u32, Endpoint>(bpffs, pin::ENDPOINTS, slot).unwrap() != Endpoint::default()
    };
    keys::<u32>(bpffs, pin::ENDPOINTS)
        .into_iter()
        .filter(is_used)
        .collect()
}

fn open(bpffs: &Path, name: &str) -> OwnedFd {
    let path = proxy_ebpf::record::path::pins(bpffs).join(name);
    let path = CString::new(path.to_str().unwrap()).unwrap();
    made(OBJ_GET, &[path.as_ptr().expose_provenance() as u64, 0])
}

/// Reads an element of a pinned map, `None` if there is no such key.
pub(crate) fn read<K, V: Default>(bpffs: &Path, name: &str, key: &K) -> Option<V> {
    let map = open(bpffs, name);
    let mut value = V::default();
    let attr = [
        pair(fd_number(&map), 0),
        std::ptr::from_ref(key).expose_provenance() as u64,
        std::ptr::from_mut(&mut value).expose_provenance() as u64,
        0,
    ];
    let size = size_of_val(&attr);
    // SAFETY: the test names the key and value types of the map that `install` made.
    let result = unsafe { libc::syscall(libc::SYS_bpf, MAP_LOOKUP_ELEM, attr.as_ptr(), size) };
    (result == 0).then_some(value)
}
