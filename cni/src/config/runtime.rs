//! `runtimeConfig`: what the runtime wants for this one container.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proxy_ebpf::record::{PortMapping, Protocol};
use serde::Deserialize;
use serde_json::Value;

use super::{field, invalid};
use crate::mac::Mac;
use crate::spec::Failure;

/// Port mappings accepted for one container; more are a mistake.
const PORT_MAPPINGS_MAX: usize = 1024;
/// A bucket smaller than this cannot hold one packet.
const BURST_BYTES_MIN: u64 = 2048;
/// Rates below are below one packet in four seconds.
const RATE_BYTES_MIN: u64 = 512;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// At most one address per family.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) mac: Option<Mac>,
    pub(crate) port_mappings: Vec<PortMapping>,
    pub(crate) bandwidth: Bandwidth,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// To the pod.
    pub(crate) ingress: Option<Shape>,
    /// From the pod.
    pub(crate) egress: Option<Shape>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) bytes_per_second: u64,
    pub(crate) burst_bytes: u32,
}

/// As runtimes write it; rates in bits per second, bursts in bits. The
/// capitalised names are containerd's (go-cni has no others).
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawBandwidth {
    #[serde(alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    egress_burst: u64,
}

/// As runtimes write it, with containerd's names too.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPortMapping {
    #[serde(default, alias = "HostPort")]
    host_port: i64,
    #[serde(alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: Option<String>,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: Option<String>,
}

impl Runtime {
    pub(super) fn parse(value: Option<&Value>) -> Result<Self, Failure> {
        let fields = match value {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(fields)) => fields,
            Some(_) => return Err(invalid("runtimeConfig", "not an object", "an object")),
        };
        let inside = |failure: Failure| Failure {
            message: format!("runtimeConfig.{}", failure.message),
            ..failure
        };
        let ips: Option<Vec<String>> = field(fields, "ips").map_err(inside)?;
        let mac: Option<String> = field(fields, "mac").map_err(inside)?;
        let ports: Option<Vec<RawPortMapping>> = field(fields, "portMappings").map_err(inside)?;
        let bandwidth: Option<RawBandwidth> = field(fields, "bandwidth").map_err(inside)?;
        Ok(Self {
            ips: addresses(&ips.unwrap_or_default()).map_err(inside)?,
            mac: mac
                .filter(|mac| !mac.is_empty())
                .map(|mac| {
                    let problem = format!("{mac:?} is no interface's address");
                    Mac::parse(&mac).ok_or_else(|| inside(invalid("mac", &problem, Mac::RULE)))
                })
                .transpose()?,
            port_mappings: port_mappings(ports.unwrap_or_default()).map_err(inside)?,
            bandwidth: bandwidth.unwrap_or_default().check().map_err(inside)?,
        })
    }
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, Failure> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let name = format!("ips[{index}]");
        let ip = match (text.parse::<IpAddr>(), text.parse::<IpNetwork>()) {
            (Ok(ip), _) => ip,
            (_, Ok(network)) => network.ip(),
            _ => {
                return Err(invalid(
                    &name,
                    &format!("{text:?} is no address"),
                    "10.0.0.5 or 10.0.0.5/24",
                ));
            }
        };
        if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            let problem = format!("{ip} is the second address of its family");
            return Err(invalid(&name, &problem, "give one per family"));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn port_mappings(raw: Vec<RawPortMapping>) -> Result<Vec<PortMapping>, Failure> {
    if raw.len() > PORT_MAPPINGS_MAX {
        let problem = format!("{} entries", raw.len());
        return Err(invalid("portMappings", &problem, "at most 1024"));
    }
    let mut seen = BTreeSet::new();
    let mut mappings = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let name = |member: &str| format!("portMappings[{index}].{member}");
        let port = |value: i64, member: &str| {
            let problem = format!("{value} is no port");
            u16::try_from(value)
                .ok()
                .ok_or_else(|| invalid(&name(member), &problem, "1 to 65535"))
        };
        let container_port = port(raw.container_port, "containerPort")?;
        let host_port = port(raw.host_port, "hostPort")?;
        if container_port == 0 {
            return Err(invalid(
                &name("containerPort"),
                "0 is no port",
                "1 to 65535",
            ));
        }
        let protocol = raw.protocol.unwrap_or_default();
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => {
                let problem = format!("{protocol:?} has no ports");
                return Err(invalid(&name("protocol"), &problem, "tcp, udp or sctp"));
            }
        };
        let host_ip = raw
            .host_ip
            .filter(|ip| !ip.is_empty())
            .map(|ip| {
                let problem = format!("{ip:?} is no address");
                ip.parse::<IpAddr>()
                    .ok()
                    .ok_or_else(|| invalid(&name("hostIP"), &problem, "an address of this node"))
            })
            .transpose()?;
        // A container port that the pod only declares has no host port.
        if host_port == 0 {
            continue;
        }
        if !seen.insert((host_port, protocol, host_ip)) {
            let problem = format!("{host_port} is mapped twice");
            return Err(invalid(
                &name("hostPort"),
                &problem,
                "map each host port once",
            ));
        }
        mappings.push(PortMapping {
            host_port,
            container_port,
            protocol,
            host_ip,
        });
    }
    Ok(mappings)
}

impl RawBandwidth {
    fn check(&self) -> Result<Bandwidth, Failure> {
        Ok(Bandwidth {
            ingress: shape("ingress", self.ingress_rate, self.ingress_burst)?,
            egress: shape("egress", self.egress_rate, self.egress_burst)?,
        })
    }
}

fn shape(direction: &str, rate: u64, burst: u64) -> Result<Option<Shape>, Failure> {
    let name = |member: &str| format!("bandwidth.{direction}{member}");
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (0, _) => {
            return Err(invalid(
                &name("Rate"),
                "0 with a burst",
                "set both or neither",
            ));
        }
        (_, 0) => {
            return Err(invalid(
                &name("Burst"),
                "0 with a rate",
                "set both or neither",
            ));
        }
        _ => {}
    }
    let shape = Shape {
        bytes_per_second: rate / 8,
        // The kernel counts the bucket in 32 bits; runtimes mean "no bound" by huge ones.
        burst_bytes: u32::try_from(burst / 8).unwrap_or(u32::MAX),
    };
    if shape.bytes_per_second < RATE_BYTES_MIN {
        let problem = format!("{rate} bit/s");
        return Err(invalid(&name("Rate"), &problem, "at least 4096 bit/s"));
    }
    if u64::from(shape.burst_bytes) < BURST_BYTES_MIN {
        let problem = format!("{burst} bit hold not one packet");
        return Err(invalid(&name("Burst"), &problem, "at least 16384 bit"));
    }
    Ok(Some(shape))
}
