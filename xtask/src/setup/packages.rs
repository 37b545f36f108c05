//! Debian packages: which, what for, and how they come in.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::has_apt;
use crate::exec;

/// What the machine is prepared for; each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Need {
    Build,
    Demo,
    Test,
}

/// A Debian package, a program that shows it is there on other systems (empty:
/// none does), and what it is for.
type Package = (Need, &'static str, &'static str);

/// The package tables: (first need, package, a program in it).
const PACKAGES: &[Package] = &[
    (Need::Build, "gcc", "gcc"),
    (Need::Build, "libc6-dev", "gcc"),
    (Need::Build, "make", "make"),
    (Need::Build, "pkg-config", "pkg-config"),
    (Need::Demo, "iproute2", "ip"),
    (Need::Demo, "busybox-static", "busybox"),
    (Need::Demo, "curl", "curl"),
    (Need::Test, "iputils-ping", "ping"),
    (Need::Test, "iperf3", "iperf3"),
    (Need::Test, "tcpdump", "tcpdump"),
    (Need::Test, "bpftool", "bpftool"),
    (Need::Test, "containernetworking-plugins", ""),
    (Need::Test, "containerd", "containerd"),
    (Need::Test, "runc", "runc"),
    (Need::Test, "python3", "python3"),
    (Need::Test, "python3-venv", "python3"),
];

/// Packages of `need` that are not installed; off Debian, those whose program is not there.
pub(crate) fn missing(need: Need) -> Result<Vec<&'static str>> {
    let wanted: Vec<_> = PACKAGES
        .iter()
        .filter(|(first, ..)| *first <= need)
        .collect();
    if !has_apt() {
        return Ok(wanted
            .iter()
            .filter(|(_, _, program)| !program.is_empty() && !exec::on_path(program))
            .map(|(_, package, _)| *package)
            .collect());
    }
    absent(wanted.iter().map(|(_, package, _)| *package))
}

/// Which of these Debian packages are not installed.
pub(crate) fn absent(names: impl Iterator<Item = &'static str>) -> Result<Vec<&'static str>> {
    let listing = exec::read(Command::new("dpkg-query").args([
        "--show",
        "--showformat",
        "${Package} ${db:Status-Status}\n",
    ]))?;
    let installed: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(names.filter(|name| !installed.contains(name)).collect())
}

/// Installs what is missing for `need`.
pub(crate) fn install(need: Need) -> Result<((), String)> {
    let absent = missing(need)?;
    if absent.is_empty() {
        return Ok(((), "all there".into()));
    }
    if !has_apt() {
        bail!(
            "missing: {}\nhint: these are Debian's names; install their like with your package manager",
            absent.join(" ")
        );
    }
    apt(&absent)?;
    Ok(((), format!("installed {}", absent.join(" "))))
}

/// `apt-get install`, with the package lists fetched first.
pub(crate) fn apt(names: &[&str]) -> Result<()> {
    if exec::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "missing: {}\nhint: sudo apt-get install {0}",
            names.join(" ")
        );
    }
    // A third-party list that cannot be fetched must not stop Debian's own packages.
    let update = exec::run(Command::new("apt-get").args(["-qq", "update"]));
    exec::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "install", "--yes", "--no-install-recommends"])
            .args(names),
    )
    .with_context(|| match update {
        Ok(()) => "apt-get install".to_owned(),
        Err(error) => format!("apt-get update had failed before: {error:#}"),
    })
}
