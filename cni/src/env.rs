//! The `CNI_*` environment variables: what the runtime wants done, to whom.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use proxy_ebpf::record::PodRef;

use crate::mac::Mac;
use crate::spec::{Code, Failure};

/// The bound keeps the record's file name within 255 bytes.
const CONTAINER_ID_BYTES: usize = 200;
/// `IFNAMSIZ` less the final zero.
const IFNAME_BYTES: usize = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Del,
        Self::Check,
        Self::Gc,
        Self::Status,
        Self::Version,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// A container's interface: what ADD makes and DEL removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

/// `CNI_ARGS`, as far as this plugin knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) pod: Option<PodRef>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) mac: Option<Mac>,
}

/// One call, as far as the environment tells it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// For ADD, DEL and CHECK.
    pub(crate) attachment: Option<Attachment>,
    /// For ADD and CHECK; optional for DEL.
    pub(crate) netns: Option<PathBuf>,
    /// Where other plugins are: directories separated by colons.
    pub(crate) path: String,
    /// `CNI_ARGS`, unparsed: DEL must not fail on it.
    pub(crate) args: String,
}

impl Call {
    /// From `variable`, a look-up of the environment. Names all that is missing at once.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let command = get("CNI_COMMAND").ok_or_else(|| missing(&["CNI_COMMAND"]).hint(VERBS))?;
        let verb = Verb::ALL.into_iter().find(|verb| verb.name() == command);
        let verb = verb.ok_or_else(|| bad("CNI_COMMAND", &command, VERBS))?;
        let required: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Verb::Gc | Verb::Status => &["CNI_PATH"],
            Verb::Version => &[],
        };
        let absent: Vec<_> = required
            .iter()
            .copied()
            .filter(|name| get(name).is_none())
            .collect();
        if !absent.is_empty() {
            return Err(missing(&absent));
        }
        let attachment = match verb {
            Verb::Add | Verb::Del | Verb::Check => Some(Attachment {
                container_id: container_id(get("CNI_CONTAINERID").unwrap_or_default())?,
                ifname: ifname(get("CNI_IFNAME").unwrap_or_default())?,
            }),
            Verb::Gc | Verb::Status | Verb::Version => None,
        };
        Ok(Self {
            verb,
            attachment,
            netns: get("CNI_NETNS").map(PathBuf::from),
            path: get("CNI_PATH").unwrap_or_default(),
            args: get("CNI_ARGS").unwrap_or_default(),
        })
    }
}

const VERBS: &str = "one of ADD, DEL, CHECK, GC, STATUS, VERSION";

fn missing(names: &[&str]) -> Failure {
    Failure::new(
        Code::InvalidEnvironment,
        format!("not set: {}", names.join(", ")),
    )
}

fn bad(name: &str, value: &str, rule: &str) -> Failure {
    Failure::new(
        Code::InvalidEnvironment,
        format!("{name} {value:?} is not valid"),
    )
    .hint(rule)
}

fn container_id(id: String) -> Result<String, Failure> {
    if id.len() <= CONTAINER_ID_BYTES && is_name(&id) {
        return Ok(id);
    }
    Err(bad(
        "CNI_CONTAINERID",
        &id,
        "letters, digits, '_', '.' and '-', a letter or digit first, at most 200 bytes",
    ))
}

/// A container id or a network name, as the specification has it.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn ifname(name: String) -> Result<String, Failure> {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.len() > IFNAME_BYTES || name == "." || name == ".." || name.contains(forbidden) {
        let rule = "at most 15 bytes without '/', ':' and space, neither '.' nor '..'";
        return Err(bad("CNI_IFNAME", &name, rule));
    }
    Ok(name)
}

impl Args {
    /// From `key=value` pairs separated by semicolons. An unknown key is an
    /// error unless `IgnoreUnknown` is true.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| bad("CNI_ARGS", pair, "pairs key=value separated by ';'"))?;
            pairs.insert(key, value);
        }
        let lenient = match pairs.remove("IgnoreUnknown") {
            None => false,
            Some(value) => match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "t" => true,
                "0" | "false" | "f" => false,
                _ => return Err(bad("CNI_ARGS IgnoreUnknown", value, "true or false")),
            },
        };
        let ip = pairs
            .remove("IP")
            .map(|ip| {
                ip.parse()
                    .ok()
                    .ok_or_else(|| bad("CNI_ARGS IP", ip, "an IP address"))
            })
            .transpose()?;
        let mac = pairs
            .remove("MAC")
            .map(|mac| Mac::parse(mac).ok_or_else(|| bad("CNI_ARGS MAC", mac, Mac::RULE)))
            .transpose()?;
        let mut take = |key| {
            pairs
                .remove(key)
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
        };
        let pod = (
            take("K8S_POD_NAMESPACE"),
            take("K8S_POD_NAME"),
            take("K8S_POD_UID"),
        );
        take("K8S_POD_INFRA_CONTAINER_ID");
        if let Some((key, value)) = pairs.first_key_value()
            && !lenient
        {
            let rule = "set IgnoreUnknown=1 to have unknown arguments ignored";
            return Err(bad("CNI_ARGS", &format!("{key}={value}"), rule));
        }
        let pod = match pod {
            (Some(namespace), Some(name), uid) => Some(PodRef {
                namespace,
                name,
                uid,
            }),
            (None, None, _) => None,
            _ => {
                let rule = "K8S_POD_NAMESPACE and K8S_POD_NAME belong together";
                return Err(bad("CNI_ARGS", text, rule));
            }
        };
        Ok(Self { pod, ip, mac })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(pairs: &[(&str, &str)]) -> Result<Call, Failure> {
        Call::read(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let failure = call(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "eth0")]).unwrap_err();
        assert_eq!(failure.code, 4);
        assert_eq!(
            failure.message,
            "not set: CNI_CONTAINERID, CNI_NETNS, CNI_PATH"
        );
    }

    #[test]
    fn del_needs_no_namespace() {
        let call = call(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "a"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/x"),
        ])
        .unwrap();
        assert_eq!(call.netns, None);
    }

    #[test]
    fn hostile_names_are_refused() {
        for (id, name) in [
            ("../../etc", "eth0"),
            ("-a", "eth0"),
            ("a/b", "eth0"),
            ("a", ".."),
            ("a", "e/h"),
            ("a", "sixteen-bytes-xx"),
            ("a", "e h"),
            (&"a".repeat(201), "eth0"),
        ] {
            let failure = call(&[
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", id),
                ("CNI_IFNAME", name),
                ("CNI_PATH", "/x"),
            ])
            .unwrap_err();
            assert_eq!(failure.code, 4, "{id} {name}");
        }
    }

    #[test]
    fn an_unknown_verb_is_refused() {
        assert_eq!(call(&[("CNI_COMMAND", "ADDD")]).unwrap_err().code, 4);
        assert_eq!(call(&[]).unwrap_err().code, 4);
    }

    #[test]
    fn the_arguments_of_a_kubernetes_runtime_name_the_pod() {
        let args = Args::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;\
             K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1",
        )
        .unwrap();
        assert_eq!(
            args.pod,
            Some(PodRef {
                namespace: "shop".into(),
                name: "web-1".into(),
                uid: Some("u-1".into())
            })
        );
    }

    #[test]
    fn unknown_arguments_are_refused_unless_ignored() {
        assert_eq!(Args::parse("COLOUR=red").unwrap_err().code, 4);
        assert_eq!(
            Args::parse("COLOUR=red;IgnoreUnknown=true").unwrap(),
            Args::default()
        );
        assert_eq!(Args::parse("COLOUR").unwrap_err().code, 4);
        assert_eq!(Args::parse("IP=1.2.3").unwrap_err().code, 4);
        assert_eq!(Args::parse("K8S_POD_NAME=x").unwrap_err().code, 4);
    }

    #[test]
    fn a_requested_address_is_read() {
        let args = Args::parse("IP=10.0.0.9;MAC=02:00:00:00:00:09").unwrap();
        assert_eq!(args.ip, Some("10.0.0.9".parse().unwrap()));
        assert_eq!(args.mac.unwrap().to_string(), "02:00:00:00:00:09");
    }
}
