//! Sockets that a Service gave a backend, and whether it still has that one:
//! by the maps as they are, while others may change them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use proxy_ebpf::abi::{BACKEND_LIVE, Backend, Origin, Origins, Plain, Service, ServiceKey};
use proxy_ebpf::addr::{Addr, BePort, V6, proto};

use super::bpf::{self, value_of};
use super::map::{FamilyMaps, Maps};

/// Looks at a Service that changes under them before it counts as serving.
const LOOKS: usize = 4;
/// Sockets remembered at a time.
const SUSPECTS: usize = 65_536;
/// What the program `survey` writes of a socket: its cookie, its origins.
const RECORD_BYTES: usize = size_of::<u64>() + size_of::<Origins>();
/// Records read at a time.
const BATCH: usize = 128;

/// Sockets that may have a backend which their Service has lost, for one look at
/// them all.
#[derive(Debug)]
pub struct Inspector<'a> {
    maps: &'a Maps,
    /// By the socket's cookie.
    suspects: HashMap<u64, Origins>,
    /// Does the Service still have that backend: sockets of one are alike.
    known: HashMap<Origin, bool>,
}

impl<'a> Inspector<'a> {
    /// Looks through all sockets of the node but TCP's that have something in
    /// `SOCKET_ORIGINS`, by the program `survey`.
    pub(super) fn new(maps: &'a Maps, survey: BorrowedFd<'_>) -> io::Result<Self> {
        let mut inspector = Self {
            maps,
            suspects: HashMap::new(),
            known: HashMap::new(),
        };
        inspector.read(bpf::iterate(survey, maps.socket_origins.as_fd())?)?;
        Ok(inspector)
    }

    fn read(&mut self, mut file: File) -> io::Result<()> {
        let mut buffer = vec![0; BATCH * RECORD_BYTES];
        let mut filled = 0;
        loop {
            let room = buffer.get_mut(filled..).unwrap_or_default();
            let length = match file.read(room) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            filled += length;
            let whole = filled - filled % RECORD_BYTES;
            for record in buffer
                .get(..whole)
                .unwrap_or_default()
                .chunks_exact(RECORD_BYTES)
            {
                if let Some((cookie, origins)) = record.split_first_chunk()
                    && let Some(origins) = value_of(origins)
                {
                    self.suspect(u64::from_ne_bytes(*cookie), origins)?;
                }
            }
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }

    /// Remembers a socket if one of the Services that it was sent elsewhere from
    /// has lost the backend.
    fn suspect(&mut self, cookie: u64, origins: Origins) -> io::Result<()> {
        for origin in origins.entries.iter().filter(|origin| origin.backend != 0) {
            if !self.has_backend(origin)? && self.suspects.len() < SUSPECTS {
                self.suspects.insert(cookie, origins);
            }
        }
        Ok(())
    }

    /// Whether there is nothing to look for.
    pub fn is_idle(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Whether there may be more suspects than are remembered.
    pub fn is_partial(&self) -> bool {
        self.suspects.len() >= SUSPECTS
    }

    /// Whether a UDP socket that sends to `peer` got it from a Service, and no
    /// Service that it ever got it from has that backend any more.
    pub fn is_orphan(&mut self, cookie: u64, peer: V6, port: BePort) -> io::Result<bool> {
        let Some(origins) = self.suspects.get(&cookie).copied() else {
            return Ok(false);
        };
        let is_giver = |origin: &&Origin| {
            origin.backend != 0 && origin.backend_address == peer && origin.backend_port == port
        };
        let mut is_orphan = false;
        for origin in origins.entries.iter().filter(is_giver) {
            if self.has_backend(origin)? {
                return Ok(false);
            }
            is_orphan = true;
        }
        Ok(is_orphan)
    }

    fn has_backend(&mut self, origin: &Origin) -> io::Result<bool> {
        if let Some(known) = self.known.get(origin) {
            return Ok(*known);
        }
        let maps = self.maps;
        let (vip, to) = (origin.service, origin.backend_address);
        let serves = match (vip.unmapped(), to.unmapped()) {
            (Some(vip), Some(to)) => serves(maps, &maps.v4, vip, to, origin)?,
            (None, None) => serves(maps, &maps.v6, vip, to, origin)?,
            // Not written by this build's programs.
            _ => true,
        };
        self.known.insert(*origin, serves);
        Ok(serves)
    }
}

/// Whether the Service at `vip` has the backend at `to`, under whatever number.
fn serves<A>(
    maps: &Maps,
    family: &FamilyMaps<A>,
    vip: A,
    to: A,
    origin: &Origin,
) -> io::Result<bool>
where
    A: Addr,
    ServiceKey<A>: Plain,
    Backend<A>: Plain,
{
    let is_it = |backend: Backend<A>| {
        backend.flags & BACKEND_LIVE != 0
            && backend.address == to
            && backend.port == origin.backend_port
    };
    let known = family.backends.get(&origin.backend)?;
    if known.is_some_and(|known| known.generation == origin.generation && is_it(known)) {
        return Ok(true);
    }
    let key = ServiceKey {
        vip,
        port: origin.service_port,
        proto: proto::UDP,
        scope: 0,
    };
    for _ in 0..LOOKS {
        let Some(service) = family.services.get(&key)? else {
            return Ok(false);
        };
        for id in ids(maps, service)? {
            if family.backends.get(&id)?.is_some_and(is_it) {
                return Ok(true);
            }
        }
        // Its range stays what it was as long as the Service names it.
        if family.services.get(&key)? == Some(service) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The backends of a Service's range.
fn ids(maps: &Maps, Service { base, count, .. }: Service) -> io::Result<Vec<u32>> {
    let end = base.saturating_add(count).min(maps.slots.max_entries());
    let found = (base..end).map(|index| maps.slots.get(&index));
    found.filter_map(io::Result::transpose).collect()
}
