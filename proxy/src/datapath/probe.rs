//! Loading the programs without leaving anything behind, and a place to try
//! them in.
#![expect(unsafe_code, reason = "a thread's namespaces are left by unshare(2)")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::bpf;
use super::load::{self, LoadError, Loaded};

/// The programs with private maps, for as long as this lives.
#[derive(Debug)]
pub struct Probe {
    loaded: Loaded,
}

impl Probe {
    pub fn load(object: &[u8]) -> Result<Self, LoadError> {
        let loaded = load::load(object, None, &BTreeMap::new())?;
        Ok(Self { loaded })
    }

    pub fn names(&self) -> Vec<String> {
        let programs = self.loaded.ebpf.programs();
        let mut names: Vec<_> = programs.map(|(name, _)| name.to_owned()).collect();
        names.sort_unstable();
        names
    }

    /// A program and its id.
    pub fn program(&self, name: &'static str) -> Result<(OwnedFd, u32), LoadError> {
        let program = self.loaded.program(name)?;
        let info = bpf::program_info(program.as_fd());
        let info = info.map_err(|source| LoadError::MapRead { name, source })?;
        Ok((program, info.id))
    }

    /// Why the program that finds sockets cannot be loaded.
    pub fn lacks_survey(&self) -> Option<&LoadError> {
        self.loaded.survey.as_ref().err()
    }
}

/// Moves the calling thread into a network namespace of its own, which has
/// nothing but a loopback interface and goes with the thread.
pub fn leave_network() -> io::Result<()> {
    // SAFETY: what a thread must not stop sharing is its descriptors; this is
    // its network only.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}
