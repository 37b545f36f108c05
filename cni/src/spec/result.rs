//! The result of ADD, kept in its newest form and written in the version that
//! the configuration asks for.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Code, Failure, Version};

/// Interfaces, addresses and routes of one attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Outcome {
    #[serde(default)]
    pub(crate) interfaces: Vec<Interface>,
    #[serde(default)]
    pub(crate) ips: Vec<Ip>,
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
    #[serde(default)]
    pub(crate) dns: Map<String, Value>,
}

/// Unknown members (`socketPath`, `pciID`) of an earlier plugin's interface are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ip {
    pub(crate) address: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table`, `scope`: since 1.1.0.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

impl Route {
    pub(crate) fn new(dst: IpNetwork, gw: IpAddr) -> Self {
        Self {
            dst,
            gw: Some(gw),
            other: Map::new(),
        }
    }
}

/// The address part of a result before 0.3.0: one per family.
#[derive(Deserialize)]
struct OldIp {
    ip: IpNetwork,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct OldOutcome {
    #[serde(default)]
    ip4: Option<OldIp>,
    #[serde(default)]
    ip6: Option<OldIp>,
    #[serde(default)]
    dns: Map<String, Value>,
}

impl Outcome {
    /// Reads a result of `version`; `whose` names it in the error.
    pub(crate) fn read(version: Version, value: &Value, whose: &str) -> Result<Self, Failure> {
        let parsed = if version < Version::V0_3_0 {
            OldOutcome::deserialize(value).map(Self::from)
        } else {
            Self::deserialize(value)
        };
        parsed.map_err(|error| {
            Failure::new(
                Code::Decode,
                format!(
                    "{whose} is not a CNI result of version {}: {error}",
                    version.name()
                ),
            )
        })
    }

    /// In the form of `version`. Members that the version does not know are left out.
    pub(crate) fn render(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.name().into());
        if version < Version::V0_3_0 {
            self.render_old(&mut object);
        } else {
            self.render_lists(version, &mut object);
        }
        if !self.dns.is_empty() || version < Version::V1_0_0 {
            object.insert("dns".into(), Value::Object(self.dns.clone()));
        }
        Value::Object(object)
    }

    fn render_old(&self, object: &mut Map<String, Value>) {
        for (key, v6) in [("ip4", false), ("ip6", true)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv6() == v6) else {
                continue;
            };
            let routes: Vec<_> = self
                .routes
                .iter()
                .filter(|route| route.dst.is_ipv6() == v6)
                .map(|route| json!({"dst": route.dst, "gw": route.gw}))
                .collect();
            object.insert(
                key.into(),
                json!({"ip": ip.address, "gateway": ip.gateway, "routes": routes}),
            );
        }
    }

    fn render_lists(&self, version: Version, object: &mut Map<String, Value>) {
        let mut copy = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut copy.interfaces {
                interface.mtu = None;
                interface.other.clear();
            }
            for route in &mut copy.routes {
                route.other.clear();
            }
        }
        let mut ips = Vec::new();
        for ip in &copy.ips {
            let mut value = json!(ip);
            if version < Version::V1_0_0
                && let Some(fields) = value.as_object_mut()
            {
                let family = if ip.address.is_ipv6() { "6" } else { "4" };
                fields.insert("version".into(), family.into());
            }
            ips.push(value);
        }
        object.insert("interfaces".into(), json!(copy.interfaces));
        object.insert("ips".into(), Value::Array(ips));
        object.insert("routes".into(), json!(copy.routes));
    }
}

impl From<OldOutcome> for Outcome {
    fn from(old: OldOutcome) -> Self {
        let mut new = Self {
            dns: old.dns,
            ..Self::default()
        };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            new.ips.push(Ip {
                address: ip.ip,
                gateway: ip.gateway,
                interface: None,
            });
            new.routes.extend(ip.routes);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            interfaces: vec![
                Interface {
                    name: "fl0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    mtu: Some(1500),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    sandbox: "/run/netns/a".into(),
                    ..Interface::default()
                },
            ],
            ips: vec![
                Ip {
                    address: "10.0.0.5/32".parse().unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                    interface: Some(1),
                },
                Ip {
                    address: "fd00::5/128".parse().unwrap(),
                    gateway: Some("fe80::1".parse().unwrap()),
                    interface: Some(1),
                },
            ],
            routes: vec![
                Route::new("0.0.0.0/0".parse().unwrap(), "169.254.1.1".parse().unwrap()),
                Route::new("::/0".parse().unwrap(), "fe80::1".parse().unwrap()),
            ],
            dns: Map::new(),
        }
    }

    #[test]
    fn the_newest_version_has_everything() {
        let value = outcome().render(Version::V1_1_0);
        assert_eq!(value["cniVersion"], "1.1.0");
        assert_eq!(value["interfaces"][0]["mtu"], 1500);
        assert_eq!(value["ips"][1]["address"], "fd00::5/128");
        assert!(value["ips"][0].get("version").is_none());
        assert!(value.get("dns").is_none());
    }

    #[test]
    fn mtu_is_left_out_before_1_1() {
        for version in [
            Version::V0_3_0,
            Version::V0_3_1,
            Version::V0_4_0,
            Version::V1_0_0,
        ] {
            let value = outcome().render(version);
            assert!(value["interfaces"][0].get("mtu").is_none());
        }
    }

    #[test]
    fn addresses_name_their_family_before_1_0() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let value = outcome().render(version);
            assert_eq!(value["ips"][0]["version"], "4");
            assert_eq!(value["ips"][1]["version"], "6");
            assert!(value["dns"].is_object());
        }
    }

    #[test]
    fn one_object_per_family_before_0_3() {
        for version in [Version::V0_1_0, Version::V0_2_0] {
            let value = outcome().render(version);
            assert_eq!(
                value["ip4"],
                json!({"ip": "10.0.0.5/32", "gateway": "169.254.1.1",
                       "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]})
            );
            assert_eq!(value["ip6"]["ip"], "fd00::5/128");
            assert!(value.get("interfaces").is_none());
        }
    }

    #[test]
    fn what_is_rendered_can_be_read_back() {
        for (_, version) in Version::ALL {
            let read = Outcome::read(version, &outcome().render(version), "result").unwrap();
            assert_eq!(read.routes, outcome().routes);
            let addresses = |o: &Outcome| o.ips.iter().map(|ip| ip.address).collect::<Vec<_>>();
            assert_eq!(addresses(&read), addresses(&outcome()));
            assert_eq!(read.render(version), {
                let mut expected = outcome();
                if version < Version::V0_3_0 {
                    expected.interfaces.clear();
                    expected.ips.iter_mut().for_each(|ip| ip.interface = None);
                }
                expected.render(version)
            });
        }
    }

    #[test]
    fn an_earlier_plugins_unknown_members_pass_through() {
        let value = json!({"interfaces": [{"name": "net0", "pciID": "0000:3b:02.1"}],
                           "routes": [{"dst": "10.0.0.0/8", "mtu": 1400}]});
        let read = Outcome::read(Version::V1_1_0, &value, "prevResult").unwrap();
        let back = read.render(Version::V1_1_0);
        assert_eq!(back["interfaces"][0]["pciID"], "0000:3b:02.1");
        assert_eq!(back["routes"][0]["mtu"], 1400);
    }
}
