//! The eBPF compiler, by two roads, and bpf-linker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{has_apt, packages};
use crate::exec;

/// The LLVM that bpf-linker is built with: a compiler with a newer one makes
/// bitcode that it cannot read.
const LLVM: u32 = 22;
const LINKER: &str = "0.13.0";
/// aya-ebpf and this workspace need it.
const RUST_MINOR: u32 = 95;

const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_LLVM: [&str; 5] = [
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];

/// How the eBPF compiler comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Road {
    /// A rustup nightly with rust-src
    Rustup,
    /// Debian's rustc-web, cargo-web and rust-web-src
    Debian,
}

impl Road {
    /// The compiler of this road, as a command that prints things about itself.
    fn rustc(self) -> Command {
        match self {
            Self::Rustup => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Self::Debian => Command::new("/usr/bin/rustc"),
        }
    }

    /// What is there and fit, or why not.
    fn find(self) -> Result<String> {
        if self == Self::Debian && !Path::new("/usr/bin/cargo").exists() {
            bail!("no /usr/bin/cargo");
        }
        let about = exec::read(self.rustc().arg("-vV"))?;
        let (release, llvm) = versions(&about).context("`rustc -vV` is not understood")?;
        if release < RUST_MINOR {
            bail!("its Rust is 1.{release}, 1.{RUST_MINOR} is needed");
        }
        if llvm > LLVM {
            bail!("its LLVM is {llvm}, bpf-linker's is {LLVM}");
        }
        let sysroot = exec::read(self.rustc().args(["--print", "sysroot"]))?;
        let core =
            PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if !core.exists() {
            bail!("the standard library's source is not at {}", core.display());
        }
        let first = about.lines().next().unwrap_or_default();
        Ok(match self {
            Self::Rustup => format!("road 1, rustup nightly ({first})"),
            Self::Debian => format!("road 2, Debian's pair ({first})"),
        })
    }

    fn install(self) -> Result<()> {
        match self {
            Self::Rustup => exec::run(Command::new("rustup").args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ])),
            Self::Debian => packages::apt(&DEBIAN_COMPILER),
        }
    }
}

/// Minor version of Rust 1.x and major version of LLVM out of `rustc -vV`.
fn versions(about: &str) -> Option<(u32, u32)> {
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
    let release = field("release: 1.")?.split('.').next()?.parse().ok()?;
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

/// Whether nothing of the toolchain is missing.
pub(crate) fn is_complete() -> bool {
    linker_version().is_some() && (Road::Rustup.find().is_ok() || Road::Debian.find().is_ok())
}

/// Finds the eBPF compiler or installs one: what is there first; then Debian's
/// pair where there is one, because it moves with its LLVM and no nightly has
/// to be chosen; then rustup.
pub(crate) fn compiler(insisted: Option<Road>) -> Result<((), String)> {
    let roads = match insisted {
        Some(road) => vec![road],
        None => vec![Road::Rustup, Road::Debian],
    };
    if let Some(found) = roads.iter().find_map(|road| road.find().ok()) {
        return Ok(((), format!("found, {found}")));
    }
    let mut refused = Vec::new();
    for road in roads.iter().rev() {
        if *road == Road::Debian && !has_apt() {
            refused.push("Debian: no apt-get here".to_owned());
            continue;
        }
        match road.install().and_then(|()| road.find()) {
            Ok(found) => return Ok(((), format!("installed, {found}"))),
            Err(error) => refused.push(format!("{road:?}: {error:#}")),
        }
    }
    bail!(
        "no eBPF compiler could be found or installed:\n{}\nhint: `rustup toolchain install nightly \
         --component rust-src`, or on Debian `apt-get install {}`",
        refused.join("\n"),
        DEBIAN_COMPILER.join(" ")
    )
}

/// bpf-linker's version, where one of at least [`LINKER`]'s minor version runs.
fn linker_version() -> Option<String> {
    let said = exec::read(Command::new("bpf-linker").arg("--version")).ok()?;
    let version = said.trim().strip_prefix("bpf-linker ")?;
    let minor = |text: &str| {
        text.split('.')
            .nth(1)
            .and_then(|part| part.parse::<u32>().ok())
    };
    (minor(version)? >= minor(LINKER)?).then(|| version.to_owned())
}

/// Finds or installs bpf-linker.
pub(crate) fn linker() -> Result<((), String)> {
    if let Some(version) = linker_version() {
        return Ok(((), format!("found {version}")));
    }
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    if has_apt() {
        let absent = packages::absent(DEBIAN_LLVM.into_iter())?;
        if !absent.is_empty() {
            packages::apt(&absent)?;
        }
    } else if !Path::new(&prefix).exists() {
        bail!("bpf-linker {LINKER} is missing\nhint: cargo install bpf-linker --version {LINKER}");
    }
    exec::run(exec::cargo().env("LLVM_PREFIX", prefix).args([
        "install",
        "bpf-linker",
        "--locked",
        "--version",
        LINKER,
        "--no-default-features",
        "--features",
        &format!("llvm-{LLVM}"),
    ]))?;
    let version = linker_version().context("bpf-linker was installed but is not on the PATH")?;
    Ok(((), format!("installed {version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_and_llvm_versions_are_read() {
        let about = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
                     release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(versions(about), Some((97, 22)));
        assert_eq!(versions("rustc 1.97.0\nrelease: 1.97.0\n"), None);
    }
}
