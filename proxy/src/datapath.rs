//! The kernel side as the daemon sees it: load, attach, write, read.
//!
//! The only module that uses aya.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proxy_ebpf::event::{Counter, Hook};

pub mod bpf;
pub mod event;
pub mod frame;
pub mod link;
pub mod load;
pub mod map;
pub mod mount;
pub mod origin;
pub mod probe;
pub mod read;
pub mod rig;
pub mod sweep;
pub mod verdict;
#[cfg(logging_object)]
mod words;
pub mod write;

use link::{Ensured, POD_PROGRAMS, SOCKET_PROGRAMS, Target};
use load::{LoadError, Pins};
use map::Maps;
use origin::Inspector;
use read::{Extent, Found};
use write::WriteError;

use crate::compile::Write;

/// Where the data path lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where bpffs is or shall be mounted.
    pub bpffs: PathBuf,
    /// The cgroup2 directory below which sockets are translated; `None`: no
    /// socket is, packets are.
    pub cgroup: Option<PathBuf>,
    /// Map name -> entries, for maps that do not exist yet.
    pub sizes: BTreeMap<String, u32>,
}

/// The loaded data path: pinned maps, current programs.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    pub maps: Maps,
    programs: BTreeMap<&'static str, OwnedFd>,
    /// `None`: the kernel refuses it, `doctor` tells why.
    survey: Option<OwnedFd>,
    cgroup: Option<File>,
}

impl Datapath {
    /// Creates or adopts the maps and puts this build's programs in force: pins
    /// first, so that new pods get them, then the links that exist.
    pub fn open(object: &[u8], place: &Place) -> Result<Self, LoadError> {
        mount::ensure(&place.bpffs)?;
        let pins = Pins::below(&place.bpffs);
        load::make_directories(&pins)?;
        let cgroup = place.cgroup.as_deref().map(open_cgroup).transpose()?;
        let loaded = load::load(object, Some(&pins), &place.sizes)?;
        #[cfg(logging_object)]
        let loaded = words::pass_on(loaded).map_err(LoadError::Log)?;
        let mut programs = BTreeMap::new();
        for (name, _) in POD_PROGRAMS.into_iter().chain(SOCKET_PROGRAMS) {
            programs.insert(name, loaded.program(name)?);
        }
        for (name, program) in &programs {
            let path = pins.object(name);
            load::pin_over(program, &path).map_err(|source| LoadError::Path {
                what: "cannot pin a program at",
                path,
                source,
            })?;
        }
        Ok(Self {
            maps: Maps::open(&loaded)?,
            survey: loaded.survey.ok(),
            pins,
            programs,
            cgroup,
        })
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    fn ensure(
        &self,
        (program, attach_type): (&'static str, bpf::AttachType),
        link: &str,
        target: Target<'_>,
    ) -> io::Result<Ensured> {
        let (fd, id) = self.program(program)?;
        link::ensure(&self.pins, link, (fd, id), target, attach_type)
    }

    /// Makes sure that sockets below the cgroup are translated. What had to be made.
    pub fn ensure_socket_links(&self) -> io::Result<Vec<String>> {
        let mut made = Vec::new();
        let Some(cgroup) = &self.cgroup else {
            return Ok(made);
        };
        for program in SOCKET_PROGRAMS {
            if self.ensure(program, program.0, Target::Cgroup(cgroup))? == Ensured::Made {
                made.push(program.0.to_owned());
            }
        }
        Ok(made)
    }

    /// Makes sure that another plugin's host interface has the programs. What had to be made.
    pub fn ensure_pod_links(&self, host_ifname: &str, ifindex: u32) -> io::Result<Vec<String>> {
        let mut made = Vec::new();
        for program in POD_PROGRAMS {
            let name = link::pod_link_name(host_ifname, program.0);
            if self.ensure(program, &name, Target::Interface(ifindex))? == Ensured::Made {
                made.push(name);
            }
        }
        Ok(made)
    }

    /// A program in force and its id.
    pub fn program(&self, name: &'static str) -> io::Result<(BorrowedFd<'_>, u32)> {
        let program = self.programs.get(name);
        let program = program.expect("every program is kept by `open`").as_fd();
        Ok((program, bpf::program_info(program)?.id))
    }

    /// Removes pins of links whose interface is gone. Their names.
    pub fn remove_dead_links(&self) -> io::Result<Vec<String>> {
        link::remove_dead(&self.pins)
    }

    /// Carries out the compilers' writes in order; blocks. `flags`: bits of
    /// [`proxy_ebpf::abi::setting`] that the daemon decides.
    pub fn apply(&self, writes: &[Write], flags: u32) -> Result<(), WriteError> {
        write::apply(&self.maps, writes, flags)
    }

    /// The sockets that may have a backend which their Service has lost.
    pub fn inspect_sockets(&self) -> io::Result<Inspector<'_>> {
        let Some(survey) = &self.survey else {
            return Err(io::Error::other(
                "this kernel cannot list what sockets have",
            ));
        };
        Inspector::new(&self.maps, survey.as_fd())
    }

    /// What the maps say.
    pub fn read(&self, extent: Extent) -> io::Result<Found> {
        read::read(&self.maps, extent)
    }

    /// What the maps, as they are, say of one direction. `None`: no endpoint is there.
    pub fn verdict(&self, question: &verdict::Question) -> Option<bool> {
        verdict::allowed(&self.maps, question)
    }

    /// A counter, summed over CPUs.
    pub fn counter(&self, counter: Counter, hook: Hook) -> io::Result<u64> {
        self.maps.counters.sum(counter.slot(hook))
    }
}

fn open_cgroup(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|source| LoadError::Path {
        what: "cannot open the cgroup directory",
        path: path.to_owned(),
        source,
    })
}
