//! Why an object was refused: by field path, with a hint.

use std::fmt;
use std::sync::Arc;

use super::{Key, Namespace, NetworkPolicy};

/// One fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}; hint: {hint}")]
pub struct FieldError {
    /// As Kubernetes writes it: `spec.ingress[0].ports[1].endPort`.
    pub path: String,
    pub reason: String,
    pub hint: String,
}

/// An object that is not in force as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub key: Key,
    /// Where it came from, e.g. `policies.yaml, document 3`.
    pub origin: Arc<str>,
    /// At least one.
    pub errors: Vec<FieldError>,
    pub instead: Instead,
}

/// What is in force in place of a rejected object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Nothing.
    Nothing,
    /// A policy that isolates the same pods (or, where that is unclear, all
    /// pods of the namespace) and allows nothing.
    Closed(Arc<NetworkPolicy>),
    /// The namespace with the labels that can be read: selectors go by what is
    /// absent too, and must not open what the labels keep closed.
    Labelled(Arc<Namespace>),
    /// Another document of the same kind and name, which came later.
    Later,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) is rejected", self.key, self.origin)?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

/// Collects faults while an object is read.
#[derive(Debug, Default)]
pub(super) struct Check {
    pub(super) errors: Vec<FieldError>,
}

impl Check {
    pub(super) fn fault(&mut self, path: &str, reason: impl Into<String>, hint: impl Into<String>) {
        self.errors.push(FieldError {
            path: path.to_owned(),
            reason: reason.into(),
            hint: hint.into(),
        });
    }

    /// A port number 1..=65535, or `None` with a fault.
    pub(super) fn port(&mut self, path: &str, number: i32) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.fault(path, format!("{number} is not a port"), "use 1 to 65535");
        }
        port
    }

    /// An IP address, or `None` with a fault.
    pub(super) fn ip(&mut self, path: &str, text: &str) -> Option<std::net::IpAddr> {
        let ip = text.parse().ok();
        if ip.is_none() {
            let reason = format!("\"{text}\" is not an IP address");
            self.fault(path, reason, "write it as 10.0.0.1 or fd00::1");
        }
        ip
    }

    /// A protocol; absent is TCP.
    pub(super) fn protocol(&mut self, path: &str, text: Option<&str>) -> Option<super::Protocol> {
        let protocol = super::Protocol::parse(text.unwrap_or("TCP"));
        if protocol.is_none() {
            let reason = format!("unknown protocol \"{}\"", text.unwrap_or_default());
            self.fault(path, reason, "use TCP, UDP or SCTP, in capitals");
        }
        protocol
    }

    /// A port name: at most 15 of `a-z0-9-`, at least one letter, no hyphen at
    /// an end or next to another.
    pub(super) fn port_name(&mut self, path: &str, name: &str) -> bool {
        let good = !name.is_empty()
            && name.len() <= 15
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && name.bytes().any(|b| b.is_ascii_lowercase())
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--");
        if !good {
            self.fault(
                path,
                format!("\"{name}\" is not a port name"),
                "use at most 15 of a-z, 0-9 and '-', with at least one letter",
            );
        }
        good
    }
}
