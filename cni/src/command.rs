//! The six verbs.

use std::io::Write;

use serde_json::{Value, json};

use crate::config::{Ipam, Network};
use crate::datapath::DataPathError;
use crate::delegate::Delegate;
use crate::env::{Call, Verb};
use crate::ipam::IpamError;
use crate::link::NetlinkError;
use crate::spec::{Code, Failure, Version, chain};
use crate::state::StateError;
use crate::sysctl::SysctlError;

mod add;
mod chain;
mod check;
mod del;
mod gc;
mod shared;
mod status;

/// Carries out the call. What is returned goes to stdout.
pub(crate) fn run(call: &Call, stdin: &str) -> Result<Option<Value>, Failure> {
    if call.verb == Verb::Version {
        return version(stdin).map(Some);
    }
    let network = Network::parse(stdin)?;
    if let Some(since) = match call.verb {
        Verb::Gc | Verb::Status => Some(Version::V1_1_0),
        Verb::Check => Some(Version::V0_4_0),
        _ => None,
    } && network.version < since
    {
        let message = format!(
            "{} is not part of CNI {}: it came with {}",
            call.verb.name(),
            network.version.name(),
            since.name()
        );
        return Err(Failure::new(Code::IncompatibleVersion, message));
    }
    match call.verb {
        Verb::Add => add::run(&network, call).map(Some),
        Verb::Del => del::run(&network, call).map(|()| None),
        Verb::Check => check::run(&network, call).map(|()| None),
        Verb::Gc => gc::run(&network, call).map(|()| None),
        Verb::Status | Verb::Version => status::run(&network, call).map(|()| None),
    }
}

/// Without any stdin, for a person who asks, the newest version answers.
fn version(stdin: &str) -> Result<Value, Failure> {
    let stated = if stdin.trim().is_empty() {
        None
    } else {
        let value: Value = serde_json::from_str(stdin).map_err(|error| {
            Failure::new(Code::Decode, format!("stdin cannot be decoded: {error}"))
                .hint("pass {\"cniVersion\": \"1.1.0\"}")
        })?;
        value
            .get("cniVersion")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let supported: Vec<_> = Version::ALL.iter().map(|(name, _)| *name).collect();
    Ok(json!({
        "cniVersion": stated.unwrap_or_else(|| Version::NEWEST.name().to_owned()),
        "supportedVersions": supported,
    }))
}

/// The delegated IPAM plugin, if the configuration names one.
fn delegate<'a>(
    name: Option<&'a str>,
    network: &'a Network,
    call: &Call,
) -> Result<Option<Delegate<'a>>, Failure> {
    name.map(|name| Delegate::find(name, &call.path, network))
        .transpose()
}

/// The name of a delegated plugin, where the whole configuration has been checked.
fn delegated(ipam: &Ipam) -> Option<&str> {
    match ipam {
        Ipam::Own(_) => None,
        Ipam::Delegated(name) => Some(name),
    }
}

/// Something that is no failure but that someone should see: runtimes log stderr.
fn warn(text: &str) {
    if writeln!(std::io::stderr(), "fairlead-cni: {text}").is_err() {
        // Nobody listens; there is nowhere else to say it.
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::new(Code::Io, chain(&error)).hint("is stateDir writable, and not full?")
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        Self::new(Code::Kernel, chain(&error))
    }
}

impl From<SysctlError> for Failure {
    fn from(error: SysctlError) -> Self {
        Self::new(Code::Kernel, chain(&error))
            .hint("the plugin must run as root with /proc/sys writable, or set it beforehand")
    }
}

impl From<IpamError> for Failure {
    fn from(error: IpamError) -> Self {
        let hint = error.hint();
        Self::new(Code::NoAddress, error.to_string()).hint(hint)
    }
}

impl From<DataPathError> for Failure {
    fn from(error: DataPathError) -> Self {
        match error {
            DataPathError::NoSlot(_) => Self::new(Code::TryAgainLater, chain(&error))
                .hint("another attempt gets another interface number and another slot"),
            _ => Self::new(Code::Kernel, chain(&error))
                .hint("is fairlead-proxy of the same version running on this node?"),
        }
    }
}
