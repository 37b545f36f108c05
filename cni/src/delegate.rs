//! Calling another IPAM plugin: the same environment and configuration, its
//! result or error back.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use crate::config::Network;
use crate::spec::result::Outcome;
use crate::spec::{Code, Failure, Version};

/// An IPAM plugin found on `CNI_PATH`.
#[derive(Debug)]
pub(crate) struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    network: &'a Network,
}

impl<'a> Delegate<'a> {
    pub(crate) fn find(name: &'a str, path: &str, network: &'a Network) -> Result<Self, Failure> {
        let program = path
            .split(':')
            .filter(|directory| !directory.is_empty())
            .map(|directory| PathBuf::from(directory).join(name))
            .find(|program| program.is_file())
            .ok_or_else(|| {
                let message = format!("ipam.type: no plugin {name:?} in CNI_PATH {path}");
                Failure::new(Code::InvalidConfig, message).hint("install it, or set \"fairlead\"")
            })?;
        Ok(Self {
            name,
            program,
            network,
        })
    }

    pub(crate) fn add(&self) -> Result<Outcome, Failure> {
        let output = self.run("ADD")?;
        let value: Value = serde_json::from_slice(&output).map_err(|error| {
            Failure::new(Code::Decode, format!("IPAM plugin {}: {error}", self.name))
        })?;
        let stated = value.get("cniVersion").and_then(Value::as_str);
        let version = stated.map_or(Ok(self.network.version), |text| Version::parse(Some(text)))?;
        Outcome::read(
            version,
            &value,
            &format!("the answer of IPAM plugin {}", self.name),
        )
    }

    /// DEL, CHECK, GC or STATUS: nothing is answered.
    pub(crate) fn call(&self, verb: &str) -> Result<(), Failure> {
        self.run(verb).map(drop)
    }

    fn run(&self, verb: &str) -> Result<Vec<u8>, Failure> {
        let failed = |error: std::io::Error| {
            let message = format!("IPAM plugin {}: {error}", self.program.display());
            Failure::new(Code::Io, message)
        };
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(self.network.text.as_bytes()) {
                // It did not care to read; its exit code says whether that is well.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(failed(error)),
                _ => {}
            }
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(&output.stdout, &output.status.to_string()))
    }

    /// The plugin's own error object, or that it gave none.
    fn failure(&self, output: &[u8], status: &str) -> Failure {
        #[derive(Deserialize)]
        struct Object {
            code: u32,
            #[serde(default)]
            msg: String,
            #[serde(default)]
            details: String,
        }
        match serde_json::from_slice::<Object>(output) {
            Ok(object) => Failure {
                code: object.code,
                message: format!("IPAM plugin {}: {}", self.name, object.msg),
                details: object.details,
            },
            Err(_) => Failure::new(
                Code::Io,
                format!(
                    "IPAM plugin {} ended with {status} and no error object",
                    self.name
                ),
            ),
        }
    }
}
