//! `cargo xtask setup`: finds or installs what building and testing need.

mod packages;
mod toolchain;

use std::path::Path;

use anyhow::Result;
pub(crate) use packages::Need;

use crate::step;

/// Find or install the whole toolchain; safe to run again
///
/// Three things are needed beyond a stable Rust:
///
///   a compiler for eBPF   rustc that may use unstable features, with its standard library's
///                         source. Road 1: a rustup nightly with rust-src. Road 2: Debian's
///                         rustc-web, cargo-web and rust-web-src.
///   bpf-linker 0.13       from crates.io, against LLVM 22 (llvm-22-dev and three libraries)
///   programs for tests    iproute2, iperf3, tcpdump, containerd, ...
///
/// What is there is used and said; what is missing is installed, as root with apt-get on
/// Debian. Elsewhere the error names what to install. `build`, `test`, `bench` and `up` do
/// their part of this by themselves. Network: Debian's packages and crates.io (road 1: rustup's
/// own server). Nothing is fetched while nothing is missing.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// What to prepare for: `build`, `demo` (for `up`) or `test` (everything)
    #[arg(long, value_enum, default_value_t = Need::Test)]
    need: Need,
    /// Insist on a road to the eBPF compiler instead of taking what is there
    #[arg(long, value_enum)]
    road: Option<toolchain::Road>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    step::heading("setup");
    step::step("eBPF compiler", || toolchain::compiler(args.road))?;
    step::step("bpf-linker", toolchain::linker)?;
    step::step("Debian packages", || packages::install(args.need))?;
    Ok(())
}

/// What every other task calls first: silent and quick when nothing is missing.
pub(crate) fn ensure(need: Need) -> Result<()> {
    if toolchain::is_complete() && packages::missing(need)?.is_empty() {
        return Ok(());
    }
    run(&Args { need, road: None })
}

/// Whether this is Debian or a relative with its package tools.
fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg-query").exists()
}
