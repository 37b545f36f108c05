//! DEL: idempotent; what is not there is removed already. Everything is tried,
//! whatever fails; the record goes last, and only when all else is gone.

use std::time::Duration;

use proxy_ebpf::record::Notice;

use super::{delegate, warn};
use crate::config::Network;
use crate::daemon::{self, Told};
use crate::datapath::{self, Pins};
use crate::env::{Attachment, Call};
use crate::link::{self, Socket};
use crate::spec::{Code, Failure};
use crate::state::{Locked, State};

/// How long the daemon may take to note that a pod is gone.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn run(network: &Network, call: &Call) -> Result<(), Failure> {
    let Some(attachment) = &call.attachment else {
        return Err(Failure::new(
            Code::InvalidEnvironment,
            "not set: CNI_CONTAINERID",
        ));
    };
    let name = network.delegate()?;
    let delegated = delegate(name.as_deref(), network, call)
        .and_then(|delegate| delegate.map_or(Ok(()), |delegate| delegate.call("DEL")));
    let state = State::open(&network.state_dir)?;
    let socket = Socket::open()?;
    // The slow part, outside of the lock. It is looked at again inside.
    let early = link::delete(&socket, &attachment.host_ifname());
    let locked = state.lock()?;
    let own = tear_down(network, &state, &locked, &socket, attachment);
    drop(locked);
    early?;
    own.and(delegated)
}

/// Removes all that the plugin has made for an attachment.
pub(super) fn tear_down(
    network: &Network,
    state: &State,
    locked: &Locked<'_>,
    socket: &Socket,
    attachment: &Attachment,
) -> Result<(), Failure> {
    let record = state.record(attachment)?;
    let own = attachment.host_ifname();
    let name = record.as_ref().map_or(&own, |record| &record.host_ifname);
    let detached = datapath::detach(&network.bpffs, name).map_err(Failure::from);
    // A link of another name was made by the plugin before us in the chain.
    let deleted = link::delete(socket, &own).map(drop).map_err(Failure::from);
    let emptied = match &record {
        Some(record) => Pins::open(&network.bpffs)
            .and_then(|pins| pins.map_or(Ok(()), |pins| pins.remove(record)))
            .map_err(Failure::from),
        None => Ok(()),
    };
    detached.and(deleted).and(emptied)?;
    locked.release(attachment)?;
    if record.is_some() {
        announce(network, attachment);
    }
    Ok(())
}

fn announce(network: &Network, attachment: &Attachment) {
    let notice = Notice::EndpointRemoved {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    };
    if let Told::Silent(why) = daemon::tell(&network.socket, &notice, PATIENCE) {
        warn(&format!(
            "fairlead-proxy was not told that the pod is gone: {why}"
        ));
    }
}
