//! `cargo xtask build`: the release binaries.

use std::path::PathBuf;

use anyhow::Result;

use crate::setup::{self, Need};
use crate::{exec, project, step};

/// Build the release binaries: fairlead-proxy, fairlead-cni (static) and fairlead
///
/// The eBPF object is compiled from source by fairlead-proxy's build script and embedded in it.
/// Calls `setup` first when something is missing.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Build unoptimised binaries, faster
    #[arg(long)]
    debug: bool,
}

/// The packages that make the binaries, those of the dynamically linked ones.
const PACKAGES: [&str; 2] = ["fairlead-proxy", "fairlead"];
const HOST: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(args: &Args) -> Result<()> {
    for binary in binaries(!args.debug)? {
        step::data(&binary.display().to_string());
    }
    Ok(())
}

/// Builds all and says where they are: fairlead-proxy, fairlead, fairlead-cni.
pub(crate) fn binaries(release: bool) -> Result<Vec<PathBuf>> {
    setup::ensure(Need::Build)?;
    let target = project::workspace()?.target_directory;
    let profile = if release { "release" } else { "debug" };
    step::streamed("fairlead-proxy and fairlead", || {
        let mut command = exec::cargo();
        command.current_dir(project::root()).arg("build");
        for package in PACKAGES {
            command.args(["--package", package]);
        }
        command.args(release.then_some("--release"));
        exec::stream(&mut command)
    })?;
    step::streamed("fairlead-cni, static", || {
        // A container's plugin must run whatever libc the host has. The explicit target keeps
        // the flag from build scripts and procedural macros, which cannot be static.
        let host = host()?;
        let mut command = exec::cargo();
        command
            .current_dir(project::root())
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .args(["build", "--package", "fairlead-cni", "--target", &host])
            .arg("--target-dir")
            .arg(target.join("static"))
            .args(release.then_some("--profile=small"));
        exec::stream(&mut command)
    })?;
    Ok(vec![
        target.join(profile).join("fairlead-proxy"),
        target.join(profile).join("fairlead"),
        target
            .join("static")
            .join(host()?)
            .join(if release { "small" } else { "debug" })
            .join("fairlead-cni"),
    ])
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let about = exec::read(std::process::Command::new("rustc").arg("-vV"))?;
    let host = about
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap_or(HOST);
    Ok(host.to_owned())
}
