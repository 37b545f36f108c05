//! STATUS: could an ADD be served now?

use std::collections::HashSet;

use super::{delegate, delegated};
use crate::config::{DataPath, Ipam, Network};
use crate::datapath::Pins;
use crate::env::Call;
use crate::ipam::IpamError;
use crate::spec::{Code, Failure};
use crate::state::State;

/// The daemon need not run: with the data path pinned, ADD works without it.
pub(super) fn run(network: &Network, call: &Call) -> Result<(), Failure> {
    network.check_fields()?;
    let settings = network.settings()?;
    let ipam = network.ipam()?;
    let unavailable = |failure: Failure| Failure {
        code: Code::Unavailable as u32,
        ..failure
    };
    let pins = Pins::open(&network.bpffs).map_err(|error| unavailable(error.into()))?;
    if pins.is_none() && settings.data_path == DataPath::Required {
        let message = format!("no data path is pinned below {}", network.bpffs.display());
        return Err(Failure::new(Code::Unavailable, message)
            .hint("start fairlead-proxy on this node and see that it shares /sys/fs/bpf"));
    }
    if let Some(delegate) = delegate(delegated(&ipam), network, call)? {
        return delegate.call("STATUS");
    }
    let state = State::open(&network.state_dir).map_err(|error| unavailable(error.into()))?;
    let locked = state.lock().map_err(|error| unavailable(error.into()))?;
    if let Ipam::Own(pools) = &ipam {
        let taken: HashSet<_> = state.taken().map_err(|error| unavailable(error.into()))?;
        let free = pools.allocate(&taken, &locked.last(), &[]);
        free.map_err(|error: IpamError| unavailable(error.into()))?;
    }
    Ok(())
}
