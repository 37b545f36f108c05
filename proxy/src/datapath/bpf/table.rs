//! Maps as typed tables: element by element, in batches, in bounded walks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use proxy_ebpf::abi::Plain;

use super::{BatchAttr, ElementAttr, address, bytes_of, call, command, map_info, number, size};

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
