//! What sockets of other protocols than TCP were given by Services, for the daemon:
//! an iterator over the storage map, which the daemon reads like a file. No
//! packet comes here.
#![expect(unsafe_code, reason = "the kernel's structures")]

use core::ffi::c_void;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_seq_write, bpf_skc_to_tcp_sock};
use proxy_ebpf::abi::Origins;

/// `struct bpf_iter__bpf_sk_storage_map`: a socket and what it has in the map, or
/// at the end neither.
#[repr(C)]
pub struct Element {
    meta: *const Meta,
    map: *const c_void,
    socket: *mut c_void,
    value: *const c_void,
}

/// The start of `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    out: *mut seq_file,
}

/// Writes the socket's cookie and its [`Origins`].
#[inline(always)]
pub(crate) fn tell(element: *const Element) -> i32 {
    // SAFETY: the verifier knows these structures by their type in the kernel and
    // checks each access.
    unsafe {
        let (socket, origins) = ((*element).socket, (*element).value);
        if socket.is_null() || origins.is_null() {
            return 0;
        }
        if !bpf_skc_to_tcp_sock(socket).is_null() {
            return 0;
        }
        let out = (*(*element).meta).out;
        let cookie = bpf_get_socket_cookie(socket);
        // What finds no room is asked for again by the kernel, as a whole.
        bpf_seq_write(out, (&raw const cookie).cast(), size_of::<u64>() as u32);
        bpf_seq_write(out, origins, size_of::<Origins>() as u32);
    }
    0
}
