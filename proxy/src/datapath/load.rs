//! Loading the object: maps are created or adopted, programs are loaded and
//! their pins replaced in one rename each, so that the CNI plugin never finds
//! one missing.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::Map;
use aya::programs::{Iter, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use proxy_ebpf::abi::pin;
use proxy_ebpf::record::path;

use super::bpf;

/// Every map that outlives the daemon; its pin name is its static's name.
pub const MAPS: &[&str] = &[
    pin::ENDPOINTS,
    pin::NAT_CLIENTS,
    pin::ADDRESSES_V4,
    pin::ADDRESSES_V6,
    pin::CIDRS_V4,
    pin::CIDRS_V6,
    pin::FLOWS_V4,
    pin::FLOWS_V6,
    pin::VIP_FLOWS_V4,
    pin::VIP_FLOWS_V6,
    pin::FRAGMENTS_V4,
    pin::FRAGMENTS_V6,
    pin::SERVICES_V4,
    pin::SERVICES_V6,
    pin::SLOTS,
    pin::BACKENDS_V4,
    pin::BACKENDS_V6,
    pin::AFFINITY_V4,
    pin::AFFINITY_V6,
    pin::POLICY_SETS,
    pin::POLICY_PEERS,
    pin::POLICY_PORTS,
    pin::POLICY_RANGES,
    pin::SETTINGS,
    pin::COUNTERS,
    pin::EVENTS,
    pin::SOCKET_ORIGINS,
];

/// What the verifier writes about a program that it has refused, which the
/// loader then offers again with a buffer for it: the reason alone. Without
/// any log the kernel finds the buffer wrong, and its answer is `EINVAL` instead
/// of the reason; with every step in it, it is megabytes.
pub const VERIFIER_LOG: VerifierLogLevel = VerifierLogLevel::STATS;

/// How often a program is offered to a verifier that signals interrupt.
const ATTEMPTS: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "cannot load the kernel object\nhint: `fairlead-proxy doctor` tells what this kernel lacks"
    )]
    Object(#[source] EbpfError),
    #[error(
        "the kernel refused program {name}\nhint: `fairlead-proxy doctor` tells what this kernel lacks"
    )]
    Program {
        name: String,
        #[source]
        source: ProgramError,
    },
    #[error("program {name} is of a kind that this daemon cannot load")]
    ProgramKind { name: String },
    #[error("the object has no program {name}")]
    ProgramMissing { name: &'static str },
    #[error("the object has no map {name}")]
    MapMissing { name: &'static str },
    #[error(
        "the pinned map {name} has another layout than this build's\n\
         hint: another build used this pin directory; `fairlead-proxy cleanup` removes it"
    )]
    MapLayout { name: &'static str },
    #[error("{what} {}", path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[cfg(logging_object)]
    #[error("cannot read the programs' log")]
    Log(#[source] io::Error),
    #[error("cannot read map {name}")]
    MapRead {
        name: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Where things are pinned: `<bpffs>/fairlead/v<ABI>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn below(bpffs: &Path) -> Self {
        Self {
            root: path::pins(bpffs),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Of a map or program.
    pub fn object(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }
}

/// The loaded object.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// The program [`pin::SURVEY`], which a kernel may lack the means for.
    pub(super) survey: Result<OwnedFd, LoadError>,
}

/// Loads the object. With `pins`, maps that are pinned there are adopted and
/// the others created and pinned; without, all are private to this process.
/// `sizes`: map name -> entries, for maps that are created now.
pub(super) fn load(
    object: &[u8],
    pins: Option<&Pins>,
    sizes: &BTreeMap<String, u32>,
) -> Result<Loaded, LoadError> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VERIFIER_LOG);
    for (name, size) in sizes {
        loader.map_max_entries(name, *size);
    }
    if let Some(pins) = pins {
        for name in MAPS {
            loader.map_pin_path(name, pins.object(name));
        }
    }
    let mut ebpf = loader.load(object).map_err(LoadError::Object)?;
    // It has the kernel's types, megabytes of them.
    drop(loader);
    let mut survey = Err(LoadError::ProgramMissing { name: pin::SURVEY });
    for (name, program) in ebpf.programs_mut() {
        let result = match program {
            Program::SchedClassifier(program) => retried(|| program.load()),
            Program::CgroupSockAddr(program) => retried(|| program.load()),
            Program::Iter(program) => {
                survey = load_survey(program);
                continue;
            }
            _ => {
                return Err(LoadError::ProgramKind {
                    name: name.to_owned(),
                });
            }
        };
        result.map_err(|source| LoadError::Program {
            name: name.to_owned(),
            source,
        })?;
    }
    Ok(Loaded { ebpf, survey })
}

fn load_survey(program: &mut Iter) -> Result<OwnedFd, LoadError> {
    let name = pin::SURVEY;
    let failed = |source| LoadError::Program {
        name: name.to_owned(),
        source,
    };
    let types = Btf::from_sys_fs().map_err(|error| failed(error.into()))?;
    retried(|| program.load("bpf_sk_storage_map", &types)).map_err(failed)?;
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    fd.map_err(|source| LoadError::MapRead { name, source })
}

/// Loads a program, and again if a signal came in the verifier's way: it looks
/// for one at every instruction and gives up with `EAGAIN`, which says nothing
/// of the program (`do_check` in the kernel's kernel/bpf/verifier.c).
pub fn retried<E: Error + 'static>(mut load: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if is_interrupted(&error) => {}
            result => return result,
        }
    }
    load()
}

/// Whether the kernel's answer, which the loader wraps, is `EAGAIN`.
fn is_interrupted(error: &(dyn Error + 'static)) -> bool {
    let kernel = error.downcast_ref::<io::Error>();
    kernel.and_then(io::Error::raw_os_error) == Some(libc::EAGAIN)
        || error.source().is_some_and(is_interrupted)
}

impl Loaded {
    /// A descriptor of a map.
    pub(super) fn map(&self, name: &'static str) -> Result<OwnedFd, LoadError> {
        let map = self.ebpf.map(name).ok_or(LoadError::MapMissing { name })?;
        let (Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)) = map
        else {
            return Err(LoadError::MapLayout { name });
        };
        data.fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| LoadError::MapRead { name, source })
    }

    /// A descriptor of a program.
    pub(super) fn program(&self, name: &'static str) -> Result<OwnedFd, LoadError> {
        let program = self
            .ebpf
            .program(name)
            .ok_or(LoadError::ProgramMissing { name })?;
        let fd = program.fd().map_err(|source| LoadError::Program {
            name: name.to_owned(),
            source,
        })?;
        fd.as_fd()
            .try_clone_to_owned()
            .map_err(|source| LoadError::MapRead { name, source })
    }
}

/// Makes the pin directories.
pub(super) fn make_directories(pins: &Pins) -> Result<(), LoadError> {
    std::fs::create_dir_all(pins.links()).map_err(|source| LoadError::Path {
        what: "cannot make the pin directory",
        path: pins.links(),
        source,
    })
}

/// Pins `fd` at `path`, replacing what is there in one rename.
pub(super) fn pin_over(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push("-next");
    let staged = PathBuf::from(staged);
    remove_if_there(&staged)?;
    bpf::object_pin(fd.as_fd(), &staged)?;
    std::fs::rename(&staged, path)
}

/// Removes a file; that it is not there is success. Whether it was.
pub(super) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the loader gives it: the kernel's answer is the cause of its own error.
    #[derive(Debug, thiserror::Error)]
    #[error("the program was not loaded")]
    struct Refused(#[source] io::Error);

    /// Attempts made of a load that is refused so often.
    fn attempts(errno: i32, refusals: usize) -> (usize, bool) {
        let mut made = 0;
        let result = retried(|| {
            made += 1;
            if made <= refusals {
                Err(Refused(io::Error::from_raw_os_error(errno)))
            } else {
                Ok(())
            }
        });
        (made, result.is_ok())
    }

    #[test]
    fn an_interrupted_verifier_is_asked_again() {
        assert_eq!(attempts(libc::EAGAIN, 0), (1, true));
        assert_eq!(attempts(libc::EAGAIN, ATTEMPTS - 1), (ATTEMPTS, true));
    }

    #[test]
    fn a_verifier_that_never_finishes_is_not_asked_for_ever() {
        assert_eq!(attempts(libc::EAGAIN, usize::MAX), (ATTEMPTS, false));
    }

    #[test]
    fn a_verdict_of_the_verifier_stands() {
        for errno in [libc::EACCES, libc::EINVAL, libc::E2BIG, libc::EPERM] {
            assert_eq!(attempts(errno, usize::MAX), (1, false));
        }
    }
}
