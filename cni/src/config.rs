//! The network configuration on stdin. Pure: text in, checked values out,
//! every error names its field and the fix.
//!
//! [`Network`] is what every verb needs and reads leniently, so that DEL and GC
//! can always clean up; [`Network::check_fields`] and [`Runtime`] are for the
//! verbs that make something.

use std::path::PathBuf;

use proxy_ebpf::record::{DefaultPolicy, path};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::env::{self, Attachment};
use crate::ipam::{Pools, Range};
use crate::spec::{Code, Failure, Version};

mod runtime;

pub(crate) use runtime::{Bandwidth, Runtime, Shape};

/// Keys that may stand in a configuration; runtimes add those of the second line.
const KNOWN: &[&str] = &[
    "name",
    "type",
    "ipam",
    "podCIDRs",
    "ranges",
    "mtu",
    "stateDir",
    "bpffs",
    "socket",
    "defaultPolicy",
    "waitForPolicy",
    "dataPath",
    "dns",
    "capabilities",
    "args",
    "cniVersion",
    "cniVersions",
    "prevResult",
    "runtimeConfig",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];

/// The type of our own IPAM.
const OWN_IPAM: &str = "fairlead";
/// Smaller ones carry no IPv6 (RFC 8200, section 5).
const MTU_MIN: u32 = 1280;
const MTU_MAX: u32 = 65_535;
const WAIT_FOR_POLICY_MS: u64 = 5000;
const WAIT_FOR_POLICY_MS_MAX: u64 = 60_000;

/// Where addresses come from.
#[derive(Clone, Debug)]
pub(crate) enum Ipam {
    Own(Pools),
    /// The name of another plugin.
    Delegated(String),
}

/// What to do where the kernel programs are not pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DataPath {
    /// Refuse ADD: a pod never runs outside of the data path.
    #[default]
    Required,
    /// Plain kernel routing: the pod stays outside of the data path.
    Optional,
}

/// One plugin configuration.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) version: Version,
    pub(crate) name: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) bpffs: PathBuf,
    pub(crate) socket: PathBuf,
    fields: Map<String, Value>,
    /// As read, for a delegated plugin.
    pub(crate) text: String,
}

/// What ADD and CHECK need besides.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) mtu: Option<u32>,
    pub(crate) default_policy: DefaultPolicy,
    pub(crate) wait_for_policy_ms: u64,
    pub(crate) data_path: DataPath,
    pub(crate) dns: Map<String, Value>,
}

impl Network {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let fields = match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(undecodable("not an object")),
            Err(error) => return Err(undecodable(&error.to_string())),
        };
        let version = Version::parse(field::<Option<String>>(&fields, "cniVersion")?.as_deref())?;
        let name: String = field::<Option<String>>(&fields, "name")?.unwrap_or_default();
        if !env::is_name(&name) {
            let rule = "letters, digits, '_', '.' and '-', a letter or digit first";
            return Err(invalid(
                "name",
                &format!("{name:?} is no network name"),
                rule,
            ));
        }
        Ok(Self {
            version,
            name,
            state_dir: directory(&fields, "stateDir", path::STATE_DIR)?,
            bpffs: directory(&fields, "bpffs", path::BPFFS)?,
            socket: directory(&fields, "socket", path::SOCKET)?,
            fields,
            text: text.to_owned(),
        })
    }

    /// The version that stdin names, for an error about the rest of it.
    pub(crate) fn version_of(text: &str) -> Option<String> {
        let value: Value = serde_json::from_str(text).ok()?;
        value.get("cniVersion")?.as_str().map(str::to_owned)
    }

    /// Refuses keys that nobody reads: most likely a misspelt one.
    pub(crate) fn check_fields(&self) -> Result<(), Failure> {
        let unknown = self
            .fields
            .iter()
            .find(|(key, _)| !KNOWN.contains(&key.as_str()) && !key.starts_with("cni.dev/"));
        match unknown {
            None => Ok(()),
            Some((key, value)) => Err(Failure::new(
                Code::UnsupportedField,
                format!("unsupported field {key}: {value}"),
            )
            .hint("remove it; deploy/fairlead.conflist shows all fields")),
        }
    }

    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let mtu = field::<Option<u32>>(&self.fields, "mtu")?.filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu
            && !(MTU_MIN..=MTU_MAX).contains(&mtu)
        {
            let rule = "1280 to 65535, or leave it out to take the uplink's";
            return Err(invalid("mtu", &format!("{mtu} is out of range"), rule));
        }
        let wait = field::<Option<u64>>(&self.fields, "waitForPolicy")?;
        let wait_for_policy_ms = wait.unwrap_or(WAIT_FOR_POLICY_MS);
        if wait_for_policy_ms > WAIT_FOR_POLICY_MS_MAX {
            let problem = format!("{wait_for_policy_ms} ms is too long");
            return Err(invalid(
                "waitForPolicy",
                &problem,
                "milliseconds, at most 60000",
            ));
        }
        let default_policy = field::<Option<DefaultPolicy>>(&self.fields, "defaultPolicy")?;
        let settings = Settings {
            mtu,
            default_policy: default_policy.unwrap_or_default(),
            wait_for_policy_ms,
            data_path: field::<Option<DataPath>>(&self.fields, "dataPath")?.unwrap_or_default(),
            dns: field::<Option<_>>(&self.fields, "dns")?.unwrap_or_default(),
        };
        if settings.data_path == DataPath::Optional
            && settings.default_policy == DefaultPolicy::Closed
        {
            return Err(invalid(
                "dataPath",
                "\"optional\" contradicts a closed default policy: without the data path nothing \
                 keeps a pod closed",
                "set \"defaultPolicy\": \"open\" too, or leave dataPath out",
            ));
        }
        Ok(settings)
    }

    /// Own ranges stand in `ipam.ranges`, `ranges` or `podCIDRs`.
    pub(crate) fn ipam(&self) -> Result<Ipam, Failure> {
        if let Some(delegate) = self.delegate()? {
            return Ok(Ipam::Delegated(delegate));
        }
        let ipam = self.fields.get("ipam").and_then(Value::as_object);
        let inner = ipam.and_then(|ipam| ipam.get("ranges"));
        let mut ranges = Vec::new();
        for (name, value) in [
            ("ipam.ranges", inner),
            ("ranges", self.fields.get("ranges")),
            ("podCIDRs", self.fields.get("podCIDRs")),
        ] {
            let items = match value {
                None | Some(Value::Null) => continue,
                Some(Value::Array(items)) => items,
                Some(_) => return Err(invalid(name, "not a list", RANGES_RULE)),
            };
            for (index, item) in items.iter().enumerate() {
                let range = Range::parse(item).map_err(|error| {
                    invalid(
                        &format!("{name}[{index}]"),
                        &error.to_string(),
                        error.hint(),
                    )
                })?;
                ranges.push(range);
            }
        }
        Pools::new(ranges)
            .map(Ipam::Own)
            .map_err(|error| invalid("ranges", &error.to_string(), error.hint()))
    }

    /// The IPAM plugin to call, if it is not our own. All that DEL and GC need to know.
    pub(crate) fn delegate(&self) -> Result<Option<String>, Failure> {
        let ipam = match self.fields.get("ipam") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(ipam)) => ipam,
            Some(_) => return Err(invalid("ipam", "not an object", IPAM_RULE)),
        };
        let kind = match ipam.get("type") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(invalid("ipam.type", "not a string", IPAM_RULE)),
        };
        if kind == OWN_IPAM || kind.is_empty() {
            return Ok(None);
        }
        if kind.contains('/') || kind.starts_with('.') {
            let problem = format!("{kind:?} is no plugin name");
            return Err(invalid("ipam.type", &problem, IPAM_RULE));
        }
        Ok(Some(kind.clone()))
    }

    pub(crate) fn runtime(&self) -> Result<Runtime, Failure> {
        Runtime::parse(self.fields.get("runtimeConfig"))
    }

    pub(crate) fn previous(&self) -> Option<&Value> {
        self.fields
            .get("prevResult")
            .filter(|value| !value.is_null())
    }

    /// The attachments that GC must keep. It must be there: a GC without it
    /// would remove everything.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Attachment>, Failure> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let key = ["cni.dev/valid-attachments", "cni.dev/attachments"]
            .into_iter()
            .find(|key| self.fields.get(*key).is_some_and(|value| !value.is_null()))
            .ok_or_else(|| {
                let rule = "a list of {\"containerID\", \"ifname\"}, [] to keep nothing";
                invalid("cni.dev/valid-attachments", "missing", rule)
            })?;
        let valid: Vec<Valid> = field(&self.fields, key)?;
        Ok(valid
            .into_iter()
            .map(|one| Attachment {
                container_id: one.container_id,
                ifname: one.ifname,
            })
            .collect())
    }
}

const IPAM_RULE: &str =
    "{\"type\": \"fairlead\", \"ranges\": [{\"subnet\": \"10.244.1.0/24\"}]} or another plugin's";
const RANGES_RULE: &str = "a list of CIDRs or of {\"subnet\", \"rangeStart\", \"rangeEnd\"}";

fn undecodable(problem: &str) -> Failure {
    Failure::new(
        Code::Decode,
        format!("the network configuration on stdin cannot be decoded: {problem}"),
    )
    .hint("pass one plugin's configuration as a JSON object")
}

fn invalid(name: &str, problem: &str, rule: &str) -> Failure {
    Failure::new(Code::InvalidConfig, format!("{name}: {problem}")).hint(rule)
}

/// A field of the configuration; a missing one is null.
fn field<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Result<T, Failure> {
    let value = fields.get(name).unwrap_or(&Value::Null);
    T::deserialize(value).map_err(|error| {
        invalid(
            name,
            &error.to_string(),
            "deploy/fairlead.conflist shows it",
        )
    })
}

fn directory(fields: &Map<String, Value>, name: &str, default: &str) -> Result<PathBuf, Failure> {
    let path = field::<Option<PathBuf>>(fields, name)?.unwrap_or_else(|| default.into());
    if path.is_absolute() {
        return Ok(path);
    }
    let problem = format!("{} is not an absolute path", path.display());
    Err(invalid(name, &problem, "give the whole path"))
}

#[cfg(test)]
mod tests;
