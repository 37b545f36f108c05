//! GC: removes every attachment of this network that the runtime does not
//! list, and the litter of killed processes. Goes on after an error and
//! reports the first.

use std::path::Path;

use proxy_ebpf::record::EndpointRecord;

use super::del::tear_down;
use super::{delegate, warn};
use crate::config::Network;
use crate::env::{Attachment, Call};
use crate::link::{self, Socket};
use crate::spec::Failure;
use crate::state::{self, Locked, State};

pub(super) fn run(network: &Network, call: &Call) -> Result<(), Failure> {
    let valid = network.valid_attachments()?;
    let name = network.delegate()?;
    let delegated = delegate(name.as_deref(), network, call)
        .and_then(|delegate| delegate.map_or(Ok(()), |delegate| delegate.call("GC")));
    let state = State::open(&network.state_dir)?;
    let socket = Socket::open()?;
    let locked = state.lock()?;
    locked.sweep_after_boot(&state::boot_id()?)?;
    let own = sweep(network, &state, &locked, &socket, |record| {
        record.network == network.name && !valid.contains(&attachment(record))
    });
    locked.sweep_litter()?;
    own.and(delegated)
}

fn attachment(record: &EndpointRecord) -> Attachment {
    Attachment {
        container_id: record.container_id.clone(),
        ifname: record.ifname.clone(),
    }
}

/// Tears down all attachments that `is_gone` says so of.
fn sweep(
    network: &Network,
    state: &State,
    locked: &Locked<'_>,
    socket: &Socket,
    mut is_gone: impl FnMut(&EndpointRecord) -> bool,
) -> Result<(), Failure> {
    let mut result = Ok(());
    for entry in state.entries()? {
        let done = match &entry.record {
            Some(record) if is_gone(record) => {
                tear_down(network, state, locked, socket, &attachment(record))
            }
            Some(_) => Ok(()),
            // Not a record: torn, or written by a person. Its kernel objects are not known.
            None => locked.forget(&entry).map_err(Failure::from),
        };
        if let Err(failure) = done {
            if result.is_err() {
                warn(&failure.message);
            } else {
                result = Err(failure);
            }
        }
    }
    result
}

/// Takes back what belongs to containers whose namespace and interface are
/// both gone, although nobody called DEL.
pub(super) fn sweep_vanished(
    network: &Network,
    state: &State,
    locked: &Locked<'_>,
    socket: &Socket,
) -> Result<(), Failure> {
    locked.sweep_litter()?;
    sweep(network, state, locked, socket, |record| {
        !Path::new(&record.netns).exists()
            && link::find(socket, &record.host_ifname).is_ok_and(|link| link.is_none())
    })
}
