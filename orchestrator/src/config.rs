//! Settings of `fairlead server`: flags, environment and a file, in that order.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Deserialize;

use crate::{
    cache::selector::is_dns_subdomain,
    controller::{Controllers, network::allocator::Range},
    hollow::duration,
    tls::authority::LEAF_LIFE,
};

/// How long Events live if nothing is said.
const EVENT_TTL: Duration = Duration::from_hours(1);
/// Certificates that live shorter would be renewed all the time.
const CERTIFICATE_LIFE_MIN: Duration = Duration::from_mins(20);

/// What `fairlead server` was told. Every setting may also stand in the file
/// (`--config`), under the flag's name without dashes in front.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServerArgs {
    /// YAML file with settings; a flag or a variable wins over the file.
    #[arg(long, env = "FAIRLEAD_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Where the cluster's state lives: objects, CA, keys [default: /var/lib/fairlead].
    #[arg(long, env = "FAIRLEAD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address and port to serve on [default: 127.0.0.1:6443]. Port 0 picks a free one.
    #[arg(long, env = "FAIRLEAD_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Address that clients and nodes reach this server at [default: that of --listen].
    #[arg(long, env = "FAIRLEAD_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<IpAddr>,

    /// Further names and addresses in the server's certificate.
    #[arg(
        long,
        env = "FAIRLEAD_TLS_SAN",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub tls_san: Option<Vec<String>>,

    /// Where the admin's kubeconfig is written [default: <data-dir>/admin.kubeconfig].
    #[arg(long, env = "FAIRLEAD_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// DNS domain of the cluster [default: cluster.local].
    #[arg(long, env = "FAIRLEAD_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,

    /// Address ranges of Services, one per family [default: 10.96.0.0/16].
    #[arg(
        long,
        env = "FAIRLEAD_SERVICE_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub service_cidr: Option<Vec<String>>,

    /// Controllers that are not to run, `default-scheduler` among them.
    #[arg(
        long,
        env = "FAIRLEAD_DISABLE_CONTROLLERS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub disable_controllers: Option<Vec<String>>,

    /// Megabytes of recent events kept per resource for watches [default: 16].
    #[arg(long, env = "FAIRLEAD_WATCH_CACHE_MB", value_name = "MB")]
    pub watch_cache_mb: Option<usize>,

    /// How long Events are kept after they were last told [default: 1h].
    #[arg(long, env = "FAIRLEAD_EVENT_TTL", value_name = "TIME")]
    pub event_ttl: Option<String>,

    /// How long certificates of the server and the admin live; each is
    /// replaced at two thirds of that [default: 2160h].
    #[arg(long, env = "FAIRLEAD_CERTIFICATE_LIFE", value_name = "TIME")]
    pub certificate_life: Option<String>,
}

/// Settings with everything decided.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// State directory.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What clients are told.
    pub advertise: IpAddr,
    /// Further certificate names.
    pub tls_san: Vec<String>,
    /// Where the kubeconfig goes.
    pub kubeconfig: PathBuf,
    /// Cluster domain.
    pub cluster_domain: String,
    /// Service ranges, one per family.
    pub service_cidr: Vec<Range>,
    /// Controllers that do not run.
    pub disabled_controllers: Vec<String>,
    /// Bound of each resource's event ring.
    pub ring_bytes: usize,
    /// How long Events live.
    pub event_ttl: Duration,
    /// How long issued certificates live.
    pub certificate_life: Duration,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config file {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file does not parse.
    #[error(
        "{path}: {why}; hint: the settings are those of `fairlead server --help`, without the dashes in front"
    )]
    Malformed {
        /// The file.
        path: String,
        /// Where and why.
        why: String,
    },
    /// A setting is out of its range.
    #[error("--{setting}: {why}")]
    Refused {
        /// The flag's name.
        setting: &'static str,
        /// What is wrong, and what to do.
        why: String,
    },
}

impl ServerArgs {
    /// Adds the file's settings and the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting and the fix.
    pub fn resolve(self) -> Result<ServerConfig, ConfigError> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None => Self::default(),
        };
        let data_dir = self
            .data_dir
            .or(file.data_dir)
            .unwrap_or_else(|| "/var/lib/fairlead".into());
        let listen = self
            .listen
            .or(file.listen)
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 6443)));
        let advertise = self.advertise.or(file.advertise).unwrap_or(listen.ip());
        if advertise.is_unspecified() {
            return Err(ConfigError::Refused {
                setting: "advertise",
                why: format!(
                    "clients cannot connect to {advertise}; hint: give the address of this machine that they reach"
                ),
            });
        }
        let megabytes = self.watch_cache_mb.or(file.watch_cache_mb).unwrap_or(16);
        if !(1..=1024).contains(&megabytes) {
            return Err(ConfigError::Refused {
                setting: "watch-cache-mb",
                why: format!("{megabytes} is not between 1 and 1024"),
            });
        }
        let event_ttl = lasting(
            "event-ttl",
            self.event_ttl.or(file.event_ttl),
            EVENT_TTL,
            Duration::from_millis(1),
        )?;
        let certificate_life = lasting(
            "certificate-life",
            self.certificate_life.or(file.certificate_life),
            LEAF_LIFE,
            CERTIFICATE_LIFE_MIN,
        )?;
        let disabled_controllers = known_controllers(
            self.disable_controllers
                .or(file.disable_controllers)
                .unwrap_or_default(),
        )?;
        let tls_san = certificate_names(self.tls_san.or(file.tls_san).unwrap_or_default())?;
        let cluster_domain = self.cluster_domain.or(file.cluster_domain);
        let cluster_domain = domain(cluster_domain.unwrap_or_else(|| "cluster.local".to_owned()))?;
        let service_cidr = self.service_cidr.or(file.service_cidr);
        let service_cidr =
            ranges(&service_cidr.unwrap_or_else(|| vec!["10.96.0.0/16".to_owned()]))?;
        Ok(ServerConfig {
            disabled_controllers,
            kubeconfig: self
                .kubeconfig
                .or(file.kubeconfig)
                .unwrap_or_else(|| data_dir.join("admin.kubeconfig")),
            data_dir,
            listen,
            advertise,
            tls_san,
            cluster_domain,
            service_cidr,
            ring_bytes: megabytes << 20,
            event_ttl,
            certificate_life,
        })
    }
}

/// Names of controllers, if there are such.
fn known_controllers(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let known: Vec<&str> = Controllers::names().collect();
    let unknown = names.iter().find(|name| !known.contains(&name.as_str()));
    match unknown {
        Some(unknown) => Err(ConfigError::Refused {
            setting: "disable-controllers",
            why: format!("{unknown:?} is none of {}", known.join(", ")),
        }),
        None => Ok(names),
    }
}

/// Names that a certificate can have.
fn certificate_names(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let good = |name: &String| {
        let host = name.strip_prefix("*.").unwrap_or(name);
        name.parse::<IpAddr>().is_ok() || is_dns_subdomain(&host.to_ascii_lowercase())
    };
    match names.iter().find(|name| !good(name)) {
        Some(name) => Err(ConfigError::Refused {
            setting: "tls-san",
            why: format!("{name:?} is neither an address nor a DNS name"),
        }),
        None => Ok(names),
    }
}

fn domain(name: String) -> Result<String, ConfigError> {
    if is_dns_subdomain(&name) {
        return Ok(name);
    }
    Err(ConfigError::Refused {
        setting: "cluster-domain",
        why: format!("{name:?} is no DNS domain; hint: write it as in cluster.local"),
    })
}

/// Ranges of Service addresses: one, or one of each family.
fn ranges(texts: &[String]) -> Result<Vec<Range>, ConfigError> {
    let refuse = |why| ConfigError::Refused {
        setting: "service-cidr",
        why,
    };
    let mut ranges: Vec<Range> = Vec::with_capacity(texts.len());
    for text in texts {
        let range = Range::parse(text).map_err(|error| refuse(error.to_string()))?;
        if ranges.iter().any(|other| other.family() == range.family()) {
            let family = range.family();
            return Err(refuse(format!(
                "{text} is a second range of {family}; hint: give one per family"
            )));
        }
        ranges.push(range);
    }
    if ranges.is_empty() {
        return Err(refuse(
            "no range is given; hint: write 10.96.0.0/16".to_owned(),
        ));
    }
    Ok(ranges)
}

/// A time that was said, or the default, if it is long enough.
fn lasting(
    setting: &'static str,
    text: Option<String>,
    default: Duration,
    least: Duration,
) -> Result<Duration, ConfigError> {
    let Some(text) = text else {
        return Ok(default);
    };
    let refuse = |why| ConfigError::Refused { setting, why };
    match duration(&text).map_err(refuse)? {
        life if life < least => Err(refuse(format!("{text} is less than {least:?}"))),
        life => Ok(life),
    }
}

fn read(path: &Path) -> Result<ServerArgs, ConfigError> {
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: shown(),
        source,
    })?;
    if text.trim().is_empty() {
        return Ok(ServerArgs::default());
    }
    serde_saphyr::from_str(&text).map_err(|error| ConfigError::Malformed {
        path: shown(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(args: ServerArgs) -> String {
        args.resolve().unwrap_err().to_string()
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn names_and_ranges_that_cannot_work_are_refused_by_flag() {
        for (list, why) in [
            (&["10.0.0.0/40"][..], "\"10.0.0.0/40\" is no address range"),
            (&["10.0.0.0/16", "10.1.0.0/16"], "second range of IPv4"),
            (&[], "no range"),
        ] {
            let service_cidr = Some(texts(list));
            let message = refused(ServerArgs {
                service_cidr,
                ..ServerArgs::default()
            });
            assert!(message.starts_with("--service-cidr: "), "{message}");
            assert!(message.contains(why), "{message}");
        }
        let cluster_domain = Some("a b".to_owned());
        let message = refused(ServerArgs {
            cluster_domain,
            ..ServerArgs::default()
        });
        assert!(
            message.starts_with("--cluster-domain: \"a b\""),
            "{message}"
        );
        let message = refused(ServerArgs {
            tls_san: Some(texts(&["*.example.com", "10.0.0.1", "a b"])),
            ..ServerArgs::default()
        });
        assert!(message.starts_with("--tls-san: \"a b\""), "{message}");
        let both = ServerArgs {
            service_cidr: Some(texts(&["10.96.0.0/16", "fd00:96::/112"])),
            ..ServerArgs::default()
        };
        assert_eq!(both.resolve().unwrap().service_cidr.len(), 2);
    }
}
