//! What both ways of ADD share: with a veth pair of its own, and behind
//! another plugin.

use std::time::Duration;

use proxy_ebpf::record::{Answer, DefaultPolicy, Notice};

use super::{del, warn};
use crate::config::{DataPath, Network, Runtime, Settings};
use crate::daemon::{self, Told};
use crate::datapath::Pins;
use crate::env::{Args, Attachment};
use crate::link::{NetlinkError, Socket};
use crate::mac::Mac;
use crate::netns::NetNs;
use crate::spec::{Code, Failure};
use crate::state::{self, State};

/// Everything that is wanted of this one ADD.
pub(super) struct Wishes {
    pub(super) settings: Settings,
    pub(super) runtime: Runtime,
    pub(super) args: Args,
}

impl Wishes {
    /// `args`: the text of `CNI_ARGS`. What the runtime's configuration wishes
    /// goes before what they wish.
    pub(super) fn read(network: &Network, args: &str) -> Result<Self, Failure> {
        let settings = network.settings()?;
        let mut runtime = network.runtime()?;
        let args = Args::parse(args)?;
        if runtime.ips.is_empty() {
            runtime.ips.extend(args.ip);
        }
        Ok(Self {
            settings,
            runtime,
            args,
        })
    }

    pub(super) fn mac(&self) -> Option<Mac> {
        self.runtime.mac.or(self.args.mac)
    }
}

/// The pinned data path; an error where there is none and it is required.
pub(super) fn pins(network: &Network, settings: &Settings) -> Result<Option<Pins>, Failure> {
    let pins = Pins::open(&network.bpffs)?;
    if pins.is_none() && settings.data_path == DataPath::Required {
        let message = format!("no data path is pinned below {}", network.bpffs.display());
        return Err(Failure::new(Code::TryAgainLater, message).hint(
            "start fairlead-proxy on this node and see that it shares /sys/fs/bpf; \
             or set \"dataPath\": \"optional\"",
        ));
    }
    Ok(pins)
}

/// An attachment of this boot must go before it can come again.
pub(super) fn refuse_existing(state: &State, attachment: &Attachment) -> Result<(), Failure> {
    let Some(record) = state.record(attachment)? else {
        return Ok(());
    };
    if record.boot_id != state::boot_id()? {
        return Ok(());
    }
    let message = format!(
        "{} of container {} is attached already",
        attachment.ifname, attachment.container_id
    );
    Err(Failure::new(Code::Exists, message).hint("call DEL first"))
}

/// Opens a netlink socket inside the container's namespace, after `prepare`
/// has run there.
pub(super) fn enter(
    netns: &NetNs,
    prepare: impl FnOnce() -> Result<(), Failure>,
) -> Result<Socket, Failure> {
    let opened = netns.run(|| {
        prepare()?;
        Socket::open().map_err(|error: NetlinkError| Failure::from(error))
    });
    opened.map_err(|error| {
        let message = format!("cannot enter the container's network namespace: {error}");
        Failure::new(Code::InvalidNamespace, message)
    })?
}

/// Tells the daemon, which answers once the pod's policy is in force.
pub(super) fn announce(
    network: &Network,
    settings: &Settings,
    attachment: &Attachment,
) -> Result<(), Failure> {
    let timeout_ms = settings.wait_for_policy_ms;
    let notice = Notice::EndpointAdded {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        timeout_ms,
    };
    let holds = match settings.default_policy {
        DefaultPolicy::Closed => "closed",
        DefaultPolicy::Open => "open",
    };
    match daemon::tell(&network.socket, &notice, Duration::from_millis(timeout_ms)) {
        Told::Answered(Answer::Done) | Told::Absent => {}
        Told::Answered(Answer::PodUnknown) => {
            warn(&format!(
                "fairlead-proxy does not know the pod yet: it stays {holds}"
            ));
        }
        Told::Answered(Answer::Failed { message }) => {
            return Err(Failure::new(Code::Policy, message));
        }
        Told::Silent(why) => {
            warn(&format!(
                "fairlead-proxy gives no answer ({why}): the pod stays {holds}"
            ));
        }
    }
    Ok(())
}

/// Removes what a failed ADD has made so far.
pub(super) fn undo(network: &Network, state: &State, socket: &Socket, attachment: &Attachment) {
    let undone = state
        .lock()
        .map_err(Failure::from)
        .and_then(|locked| del::tear_down(network, state, &locked, socket, attachment));
    if let Err(failure) = undone {
        warn(&format!("after a failed ADD: {}", failure.message));
    }
}
