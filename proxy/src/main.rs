//! `fairlead-proxy`: arguments, logs, run, exit.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use fairlead_proxy::cli::{self, Cli};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            cli::complain(&*error);
            ExitCode::FAILURE
        }
    }
}
