//! The few kernel settings that a pod's interface needs. A setting that
//! already has its value is not written, so a read-only /proc/sys does no harm
//! where an administrator has set them.

use std::fs;
use std::io::{self, ErrorKind};

#[derive(Debug, thiserror::Error)]
#[error("cannot set {name} = {value}")]
pub(crate) struct SysctlError {
    name: String,
    value: &'static str,
    source: io::Error,
}

/// Packets of pods are forwarded by the node: IPv4 and IPv6 forwarding, for
/// all interfaces. IPv6 has no setting per interface that would do.
pub(crate) fn forward(v4: bool, v6: bool) -> Result<(), SysctlError> {
    if v4 {
        ensure("net/ipv4/ip_forward", "1")?;
    }
    if v6 {
        ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Inside the pod's namespace, before the interface goes up: IPv6 is on, and
/// no address waits for duplicate address detection, as nobody else is on the link.
pub(crate) fn prepare_pod(ifname: &str) -> Result<(), SysctlError> {
    ensure(&format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0")?;
    ensure(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0")
}

fn ensure(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = format!("/proc/sys/{name}");
    let failed = |source| SysctlError {
        name: name.replace('/', "."),
        value,
        source,
    };
    match fs::read_to_string(&path) {
        Ok(current) if current.trim_end() == value => Ok(()),
        Ok(_) => fs::write(&path, value).map_err(failed),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(failed(io::Error::new(
            error.kind(),
            "the kernel has no such setting",
        ))),
        Err(error) => Err(failed(error)),
    }
}
