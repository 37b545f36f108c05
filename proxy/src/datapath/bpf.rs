//! bpf(2): maps, pins and links by file descriptor.
//!
//! aya loads the object; this module is what aya 0.14 has not (batches, typed
//! access without a collection type per map, link information). All unsafe code
//! of the data path is here. Attribute layouts are those of `union bpf_attr`
//! in the kernel's include/uapi/linux/bpf.h.
#![expect(unsafe_code, reason = "bpf(2) takes raw pointers")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proxy_ebpf::abi::Plain;
use proxy_ebpf::event::Event;

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

/// An open map whose keys and values have the sizes of `K` and `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    types: std::marker::PhantomData<fn() -> (K, V)>,
}

/// What a bounded walk over a map has reached.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    position: [u8; CURSOR_BYTES],
    begun: bool,
}

/// The kernel's cursor is a bucket number for hashes and a key for arrays and tries.
const CURSOR_BYTES: usize = 64;

impl Cursor {
    pub const START: Self = Self {
        position: [0; CURSOR_BYTES],
        begun: false,
    };
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// `None`: the map's key or value has another size.
    pub fn open(fd: OwnedFd) -> io::Result<Option<Self>> {
        const { assert!(size_of::<K>() <= CURSOR_BYTES) }
        let info = map_info(fd.as_fd())?;
        let fits = info.key_size == size::<K>() && info.value_size == size::<V>();
        Ok(fits.then_some(Self {
            fd,
            max_entries: info.max_entries,
            types: std::marker::PhantomData,
        }))
    }

    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn element(&self, key: &K, value: u64) -> ElementAttr {
        ElementAttr {
            map: number(self.fd.as_fd()),
            _pad: 0,
            key: address(bytes_of(key)),
            value,
            flags: 0,
        }
    }

    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = std::mem::MaybeUninit::<V>::zeroed();
        let mut attribute = self.element(key, value.as_mut_ptr() as u64);
        match call(command::MAP_LOOKUP, &mut attribute) {
            // SAFETY: the kernel wrote size_of::<V>() bytes (checked in `open`), and
            // every bit pattern of a Plain type is valid.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Inserts or replaces.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attribute = self.element(key, address(bytes_of(value)));
        call(command::MAP_UPDATE, &mut attribute).map(drop)
    }

    /// Whether it was there.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attribute = self.element(key, 0);
        match call(command::MAP_DELETE, &mut attribute) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn batch(&self, keys: u64, values: u64, count: usize) -> BatchAttr {
        BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            map: number(self.fd.as_fd()),
            element_flags: 0,
            flags: 0,
        }
    }

    /// Sets as many as `keys` has, in order. How many were done, and the error
    /// that ended it.
    pub fn set_all(&self, keys: &[K], values: &[V]) -> (usize, io::Result<()>) {
        let count = keys.len().min(values.len());
        if count == 0 {
            return (0, Ok(()));
        }
        let mut attribute = self.batch(address(keys), address(values), count);
        let result = call(command::MAP_UPDATE_BATCH, &mut attribute).map(drop);
        (self.done(&result, count, attribute.count), result)
    }

    /// Removes keys that are all present. How many were done, and the error that ended it.
    pub fn remove_all(&self, keys: &[K]) -> (usize, io::Result<()>) {
        if keys.is_empty() {
            return (0, Ok(()));
        }
        let mut attribute = self.batch(address(keys), 0, keys.len());
        let result = call(command::MAP_DELETE_BATCH, &mut attribute).map(drop);
        (self.done(&result, keys.len(), attribute.count), result)
    }

    /// The kernel leaves the count alone where it fails before the first element.
    #[expect(
        clippy::unused_self,
        reason = "reads as a property of the map's batches"
    )]
    fn done(&self, result: &io::Result<()>, asked: usize, answered: u32) -> usize {
        match result {
            Ok(()) => asked,
            Err(_) if answered as usize >= asked => 0,
            Err(_) => answered as usize,
        }
    }

    /// Appends the next elements, at least one bucket and about `limit`, to
    /// `keys` and `values`; `false` once the walk is over. Elements that come
    /// or go meanwhile may or may not be seen.
    pub fn walk(
        &self,
        cursor: &mut Cursor,
        limit: usize,
        keys: &mut Vec<K>,
        values: &mut Vec<V>,
    ) -> io::Result<bool> {
        let mut room = limit.max(64).min(self.max_entries as usize);
        loop {
            keys.reserve(room);
            values.reserve(room);
            let mut next = Cursor {
                position: [0; CURSOR_BYTES],
                begun: true,
            };
            let mut attribute = self.batch(
                keys.spare_capacity_mut().as_mut_ptr() as u64,
                values.spare_capacity_mut().as_mut_ptr() as u64,
                room,
            );
            if cursor.begun {
                attribute.in_batch = address(&cursor.position);
            }
            attribute.out_batch = next.position.as_mut_ptr() as u64;
            let result = call(command::MAP_LOOKUP_BATCH, &mut attribute);
            let more = match result {
                Ok(_) => true,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => false,
                    // A bucket has more elements than there was room for.
                    Some(libc::ENOSPC) if room < self.max_entries as usize => {
                        room = room.saturating_mul(2).min(self.max_entries as usize);
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let count = (attribute.count as usize).min(room);
            // SAFETY: the kernel filled `count` <= `room` elements of the reserved
            // space, of the sizes checked in `open`; Plain accepts any bytes.
            unsafe {
                keys.set_len(keys.len() + count);
                values.set_len(values.len() + count);
            }
            *cursor = next;
            return Ok(more);
        }
    }

    /// The first `count` elements of an array.
    pub fn first(&self, count: usize) -> io::Result<Vec<(K, V)>> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut cursor = Cursor::START;
        while keys.len() < count {
            let limit = (count - keys.len()).min(4096);
            if !self.walk(&mut cursor, limit, &mut keys, &mut values)? {
                break;
            }
        }
        keys.truncate(count);
        Ok(keys.into_iter().zip(values).collect())
    }

    /// All elements, in batches of 4096.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut cursor = Cursor::START;
        while self.walk(&mut cursor, 4096, &mut keys, &mut values)? {}
        Ok(keys.into_iter().zip(values).collect())
    }
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

/// A per-CPU array of `u64`.
#[derive(Debug)]
pub struct PerCpuCounters {
    fd: OwnedFd,
    possible_cpus: usize,
}

impl PerCpuCounters {
    /// `possible_cpus`: as in /sys/devices/system/cpu/possible. `None`: another layout.
    pub fn open(fd: OwnedFd, possible_cpus: usize) -> io::Result<Option<Self>> {
        let info = map_info(fd.as_fd())?;
        let fits = info.key_size == 4 && info.value_size == 8;
        Ok(fits.then_some(Self { fd, possible_cpus }))
    }

    /// The sum over all CPUs.
    pub fn sum(&self, index: u32) -> io::Result<u64> {
        let mut values = vec![0_u64; self.possible_cpus];
        let mut attribute = ElementAttr {
            map: number(self.fd.as_fd()),
            _pad: 0,
            key: std::ptr::from_ref(&index) as u64,
            value: values.as_mut_ptr() as u64,
            flags: 0,
        };
        call(command::MAP_LOOKUP, &mut attribute)?;
        Ok(values.iter().sum())
    }
}

/// A record of the event ring; `None` if the length is not that of an [`Event`].
pub fn event_from(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length was checked, `read_unaligned` needs no alignment, and
    // every bit pattern of a Plain type is valid.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}
