//! The CNI wire format: versions, error codes and the error object.
//! The result object is in [`result`]. Source: the CNI specification, 1.1.0.

use serde::Serialize;

pub(crate) mod result;

/// Versions of the specification that this plugin speaks, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(crate) const ALL: [(&str, Self); 7] = [
        ("0.1.0", Self::V0_1_0),
        ("0.2.0", Self::V0_2_0),
        ("0.3.0", Self::V0_3_0),
        ("0.3.1", Self::V0_3_1),
        ("0.4.0", Self::V0_4_0),
        ("1.0.0", Self::V1_0_0),
        ("1.1.0", Self::V1_1_0),
    ];
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// A configuration without a version is of the first one.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let text = text.unwrap_or("0.1.0");
        Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, version)| *version)
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
                Failure::new(
                    Code::IncompatibleVersion,
                    format!("cniVersion {text:?} is not supported"),
                )
                .hint(format!("use one of {}", known.join(", ")))
            })
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, version)| *version == self)
            .map_or("", |(name, _)| name)
    }
}

/// Error codes of the specification, and our own from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    IncompatibleVersion = 1,
    UnsupportedField = 2,
    UnknownContainer = 3,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    /// Not in the specification's table; what its library gives for a bad `CNI_NETNS`.
    InvalidNamespace = 8,
    TryAgainLater = 11,
    /// STATUS: ADD cannot be served.
    Unavailable = 50,
    /// A system call on links, addresses, routes or the data path failed.
    Kernel = 100,
    /// No address is left, or the requested one is taken.
    NoAddress = 101,
    /// The attachment exists already.
    Exists = 102,
    /// CHECK found something missing or changed.
    CheckFailed = 103,
    /// The daemon could not put the pod's policy in force.
    Policy = 104,
}

/// What goes wrong, as the runtime sees it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u32,
    pub(crate) message: String,
    pub(crate) details: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code: code as u32,
            message: message.into(),
            details: String::new(),
        }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl AsRef<str>) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str("hint: ");
        self.details.push_str(hint.as_ref());
        self
    }

    /// The error object of the specification, in one line.
    pub(crate) fn render(&self, version: &str) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            #[serde(rename = "cniVersion")]
            version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        serde_json::to_string(&Object {
            version,
            code: self.code,
            msg: &self.message,
            details: &self.details,
        })
        .expect("strings and a number are always JSON")
    }
}

/// The text of an error and of all its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_without_a_version_is_of_the_first() {
        assert_eq!(Version::parse(None).unwrap(), Version::V0_1_0);
    }

    #[test]
    fn an_unknown_version_is_refused_with_code_1_and_the_known_ones() {
        let failure = Version::parse(Some("2.0.0")).unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(
            failure.details.contains("0.4.0, 1.0.0, 1.1.0"),
            "{}",
            failure.details
        );
    }

    #[test]
    fn every_version_has_its_name() {
        for (name, version) in Version::ALL {
            assert_eq!(version.name(), name);
            assert_eq!(Version::parse(Some(name)).unwrap(), version);
        }
    }
}
