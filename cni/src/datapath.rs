//! The pinned data path: putting a pod into its maps and its programs on the
//! pod's interface, and taking both away.
//!
//! The maps come first, then the programs, and the interface goes up last: a
//! pod is judged from its first packet on.
//!
//! Programs are attached as filters of an interface that is ours, which takes
//! the kernel microseconds, and by links to one of another plugin's, whose
//! qdiscs are its own, and where the kernel has no such filters.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use proxy_ebpf::abi::{Address, Endpoint, SET_CLOSED, SET_NONE, bound, kind, pin, slot_probe};
use proxy_ebpf::addr::{V4, V6};
use proxy_ebpf::record::{DefaultPolicy, EndpointRecord, Hooks, path};
use rustix::io::Errno;

use crate::bpf::{self, Hook, Map, Word};
use crate::link::{self, Socket};
use crate::mac::Mac;

/// The links of all pods, below the directory of pins.
const LINKS: &str = "links";
const HOOKS: [(&str, Hook); 2] = [(pin::POD_OUT, Hook::Ingress), (pin::POD_IN, Hook::Egress)];

#[derive(Debug, thiserror::Error)]
pub(crate) enum DataPathError {
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot {action} {name}")]
    Pin {
        action: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("cannot attach {program} to interface {ifindex}")]
    Attach {
        program: &'static str,
        ifindex: u32,
        source: io::Error,
    },
    #[error("cannot attach the programs to interface {ifindex}")]
    Filter {
        ifindex: u32,
        source: link::NetlinkError,
    },
    #[error("cannot {action} {map}")]
    Map {
        action: &'static str,
        map: &'static str,
        source: io::Error,
    },
    #[error("no endpoint slot is free for interface {0}")]
    NoSlot(u32),
}

type Result<T> = std::result::Result<T, DataPathError>;

fn map_failed(action: &'static str, map: &'static str) -> impl FnOnce(io::Error) -> DataPathError {
    move |source| DataPathError::Map {
        action,
        map,
        source,
    }
}

impl DataPathError {
    /// Whether this kernel has no filters of this kind: their modules are missing.
    pub(crate) fn lacks_filters(&self) -> bool {
        let Self::Filter { source, .. } = self else {
            return false;
        };
        matches!(source.errno(), Some(Errno::NOENT | Errno::OPNOTSUPP))
    }
}

/// The maps that hold pods, open.
#[derive(Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
    endpoints: Map<Word, Endpoint>,
    nat_clients: Map<Word, Word>,
    v4: Map<V4, Address>,
    v6: Map<V6, Address>,
}

/// What the maps must say of a pod before the daemon says more.
fn endpoint(record: &EndpointRecord, mac: Mac, host_mac: Mac) -> Endpoint {
    let set = match record.default_policy {
        DefaultPolicy::Closed => SET_CLOSED,
        DefaultPolicy::Open => SET_NONE,
    };
    let mut endpoint = Endpoint {
        ifindex: record.host_ifindex,
        ingress_set: set,
        egress_set: set,
        mac: mac.octets(),
        gateway_mac: host_mac.octets(),
        flags: if record.shaped { Endpoint::SHAPED } else { 0 },
        ..Endpoint::default()
    };
    for ip in &record.ips {
        match ip {
            IpAddr::V4(ip) => endpoint.v4 = V4::new(ip.octets()),
            IpAddr::V6(ip) => endpoint.v6 = V6::new(ip.octets()),
        }
    }
    endpoint
}

impl Pins {
    /// Opens the data path below `bpffs`. `Ok(None)`: nobody has pinned it.
    pub(crate) fn open(bpffs: &Path) -> Result<Option<Self>> {
        let directory = path::pins(bpffs);
        match Self::open_maps(&directory) {
            Ok(pins) => Ok(Some(pins)),
            Err(DataPathError::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn open_maps(directory: &Path) -> Result<Self> {
        let at = |name| {
            let path = directory.join(name);
            move |source| DataPathError::Open { path, source }
        };
        // The programs are pinned last: without them the maps are half a data path.
        for (program, _) in HOOKS {
            fs::metadata(directory.join(program)).map_err(at(program))?;
        }
        Ok(Self {
            endpoints: Map::open(&directory.join(pin::ENDPOINTS)).map_err(at(pin::ENDPOINTS))?,
            nat_clients: Map::open(&directory.join(pin::NAT_CLIENTS))
                .map_err(at(pin::NAT_CLIENTS))?,
            v4: Map::open(&directory.join(pin::ADDRESSES_V4)).map_err(at(pin::ADDRESSES_V4))?,
            v6: Map::open(&directory.join(pin::ADDRESSES_V6)).map_err(at(pin::ADDRESSES_V6))?,
            directory: directory.to_owned(),
        })
    }

    /// A slot for a new interface. One that names the same interface is a
    /// leftover: interface numbers are not given twice at a time.
    pub(crate) fn choose_slot(&self, ifindex: u32) -> Result<u32> {
        for probe in 0..bound::SLOT_PROBES {
            let slot = slot_probe(ifindex, probe);
            if slot == 0 {
                continue;
            }
            let endpoint = self.endpoint(slot)?;
            if endpoint.ifindex == 0 || endpoint.ifindex == ifindex {
                return Ok(slot);
            }
        }
        Err(DataPathError::NoSlot(ifindex))
    }

    pub(crate) fn endpoint(&self, slot: u32) -> Result<Endpoint> {
        let found = self
            .endpoints
            .get(&Word(slot))
            .map_err(map_failed("read", pin::ENDPOINTS))?;
        Ok(found.unwrap_or_default())
    }

    /// Writes a pod's endpoint to the record's slot, then its addresses.
    pub(crate) fn add(&self, record: &EndpointRecord, mac: Mac, host_mac: Mac) -> Result<()> {
        let slot = record.slot;
        self.nat_clients
            .set(&Word(slot), &Word(0))
            .map_err(map_failed("write", pin::NAT_CLIENTS))?;
        self.endpoints
            .set(&Word(slot), &endpoint(record, mac, host_mac))
            .map_err(map_failed("write", pin::ENDPOINTS))?;
        let address = Address {
            class: 0,
            slot,
            kind: kind::LOCAL_POD,
        };
        for ip in &record.ips {
            match ip {
                IpAddr::V4(ip) => self
                    .v4
                    .set(&V4::new(ip.octets()), &address)
                    .map_err(map_failed("write", pin::ADDRESSES_V4))?,
                IpAddr::V6(ip) => self
                    .v6
                    .set(&V6::new(ip.octets()), &address)
                    .map_err(map_failed("write", pin::ADDRESSES_V6))?,
            }
        }
        Ok(())
    }

    /// What the maps say of an address.
    pub(crate) fn address(&self, ip: IpAddr) -> Result<Option<Address>> {
        match ip {
            IpAddr::V4(ip) => self
                .v4
                .get(&V4::new(ip.octets()))
                .map_err(map_failed("read", pin::ADDRESSES_V4)),
            IpAddr::V6(ip) => self
                .v6
                .get(&V6::new(ip.octets()))
                .map_err(map_failed("read", pin::ADDRESSES_V6)),
        }
    }

    /// Removes a pod's addresses and empties its slot, as far as they are
    /// still the pod's.
    pub(crate) fn remove(&self, record: &EndpointRecord) -> Result<()> {
        if record.slot == 0 {
            return Ok(());
        }
        for ip in &record.ips {
            let ours = self.address(*ip)?.is_some_and(|address| {
                address.kind == kind::LOCAL_POD && address.slot == record.slot
            });
            match ip {
                _ if !ours => {}
                IpAddr::V4(ip) => self
                    .v4
                    .remove(&V4::new(ip.octets()))
                    .map_err(map_failed("write", pin::ADDRESSES_V4))?,
                IpAddr::V6(ip) => self
                    .v6
                    .remove(&V6::new(ip.octets()))
                    .map_err(map_failed("write", pin::ADDRESSES_V6))?,
            }
        }
        if self.endpoint(record.slot)?.ifindex == record.host_ifindex {
            self.endpoints
                .set(&Word(record.slot), &Endpoint::default())
                .map_err(map_failed("write", pin::ENDPOINTS))?;
        }
        Ok(())
    }

    fn link(&self, host_ifname: &str, program: &str) -> PathBuf {
        link(&self.directory, host_ifname, program)
    }

    fn program(&self, name: &str) -> Result<OwnedFd> {
        let path = self.directory.join(name);
        bpf::get(&path).map_err(|source| DataPathError::Open { path, source })
    }

    /// Attaches both programs to the host side of an own pair, for as long as
    /// that exists.
    pub(crate) fn filter(&self, socket: &Socket, ifindex: u32) -> Result<()> {
        let mut programs = Vec::new();
        for (name, hook) in HOOKS {
            programs.push((name, hook, self.program(name)?));
        }
        link::filter(socket, ifindex, &programs)
            .map_err(|source| DataPathError::Filter { ifindex, source })
    }

    /// Attaches both programs by links to an interface and pins those, so that
    /// they outlive this process.
    pub(crate) fn attach(&self, host_ifname: &str, ifindex: u32) -> Result<()> {
        for (program, hook) in HOOKS {
            let loaded = self.program(program)?;
            let attached =
                bpf::attach(&loaded, ifindex, hook).map_err(|source| DataPathError::Attach {
                    program,
                    ifindex,
                    source,
                })?;
            let path = self.link(host_ifname, program);
            let failed = |source| DataPathError::Pin {
                action: "pin",
                name: path.display().to_string(),
                source,
            };
            match bpf::pin(&attached, &path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    make_links(&self.directory)
                        .and_then(|()| bpf::pin(&attached, &path))
                        .map_err(failed)?;
                }
                // A leftover: the name is this attachment's and the record was free.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    fs::remove_file(&path)
                        .and_then(|()| bpf::pin(&attached, &path))
                        .map_err(failed)?;
                }
                other => other.map_err(failed)?,
            }
        }
        Ok(())
    }

    /// The program that should be attached to the record's interface and is not.
    pub(crate) fn unattached(
        &self,
        socket: &Socket,
        record: &EndpointRecord,
    ) -> Option<&'static str> {
        let (name, ifindex) = (&record.host_ifname, record.host_ifindex);
        let is_attached = |program, hook| match record.hooks {
            Hooks::Filters => link::is_filtered(socket, ifindex, hook, program).unwrap_or(false),
            Hooks::Links => bpf::get(&self.link(name, program))
                .and_then(|link| bpf::attached_to(&link))
                .is_ok_and(|attached| attached == ifindex),
        };
        HOOKS
            .iter()
            .find(|(program, hook)| !is_attached(program, *hook))
            .map(|(program, _)| *program)
    }
}

fn link(directory: &Path, host_ifname: &str, program: &str) -> PathBuf {
    directory
        .join(LINKS)
        .join(format!("{host_ifname}-{program}"))
}

fn make_links(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory.join(LINKS)) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes the pinned links of an interface, whatever else is pinned or not.
pub(crate) fn detach(bpffs: &Path, host_ifname: &str) -> Result<()> {
    let directory = path::pins(bpffs);
    for (program, _) in HOOKS {
        let path = link(&directory, host_ifname, program);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(DataPathError::Pin {
                    action: "remove",
                    name: path.display().to_string(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::NetlinkError;

    #[test]
    fn missing_modules_are_told_from_other_refusals() {
        let refused = |errno| DataPathError::Filter {
            ifindex: 7,
            source: NetlinkError::Refused {
                step: "add the clsact qdisc".into(),
                errno,
            },
        };
        assert!(refused(Errno::NOENT).lacks_filters());
        assert!(refused(Errno::OPNOTSUPP).lacks_filters());
        for errno in [Errno::PERM, Errno::NODEV, Errno::INVAL, Errno::EXIST] {
            assert!(!refused(errno).lacks_filters(), "{errno}");
        }
        assert!(!DataPathError::NoSlot(7).lacks_filters());
    }
}
