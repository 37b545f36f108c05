//! `fairlead-cni`: connects containers to the pod network.
//!
//! A CNI plugin: the call comes in `CNI_*` variables and on stdin, the result
//! or the error goes to stdout as one JSON object. It stays for a millisecond,
//! has one thread, and needs no daemon once the data path is pinned.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use config::Network;
use env::Call;
use spec::{Code, Failure, Version};

mod bpf;
mod command;
mod config;
mod daemon;
mod datapath;
mod delegate;
mod env;
mod ipam;
mod link;
mod mac;
mod netns;
mod spec;
mod state;
mod sysctl;

/// A configuration longer than this is none.
const STDIN_BYTES: u64 = 16 << 20;

fn main() -> ExitCode {
    let mut stdin = String::new();
    let input = std::io::stdin();
    // A person who tries it out is answered at once.
    let read = if input.is_terminal() {
        Ok(0)
    } else {
        input.take(STDIN_BYTES).read_to_string(&mut stdin)
    };
    let result = read
        .map_err(|error| {
            Failure::new(Code::Decode, format!("stdin cannot be read: {error}"))
                .hint("pass the network configuration as JSON")
        })
        .and_then(|_| Call::read(|name| std::env::var(name).ok()))
        .and_then(|call| command::run(&call, &stdin));
    let (line, code) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value.to_string(), ExitCode::SUCCESS),
        Err(failure) => {
            let stated = Network::version_of(&stdin);
            let version = stated.unwrap_or_else(|| Version::NEWEST.name().to_owned());
            (failure.render(&version), ExitCode::FAILURE)
        }
    };
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
