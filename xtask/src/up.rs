//! `cargo xtask up` and `down`: a node on this machine, in namespaces of its
//! own, with pods, policies and Services; and its proof.

mod place;
mod prove;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{self, Need};
use crate::{exec, project, step};
use place::{Place, Pod};

/// Build all, start a node with pods, policies and Services, and prove that it works
///
/// The node is a network namespace of its own, with the daemon in it; its pods are made by the
/// CNI plugin, each with a real web server; policies and Services are those of deploy/demo,
/// which the daemon watches: edit them while it runs. The proof is a table of who reaches whom,
/// each cell a real connection, beside what the policies say. Nothing leaves this machine, and
/// `cargo xtask down` removes everything. Needs root.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct UpArgs {
    /// Use optimised binaries (a longer first build)
    #[arg(long)]
    release: bool,
}

/// Remove everything that `up` made
#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {}

/// The pods of deploy/demo/pods.yaml.
pub(crate) const PODS: [Pod; 4] = [
    Pod {
        namespace: "shop",
        name: "web",
        v4: "10.77.0.11",
        v6: "fd77::11",
        service: "10.97.0.11",
    },
    Pod {
        namespace: "shop",
        name: "api",
        v4: "10.77.0.12",
        v6: "fd77::12",
        service: "10.97.0.12",
    },
    Pod {
        namespace: "lab",
        name: "probe",
        v4: "10.77.0.21",
        v6: "fd77::21",
        service: "10.97.0.21",
    },
    Pod {
        namespace: "lab",
        name: "notes",
        v4: "10.77.0.22",
        v6: "fd77::22",
        service: "10.97.0.22",
    },
];

pub(crate) fn up(args: &UpArgs) -> Result<()> {
    if exec::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("`up` makes namespaces and loads eBPF programs: run it as root");
    }
    setup::ensure(Need::Demo)?;
    let binaries = binaries(args.release)?;
    if Place::exists() {
        step::note("an earlier demo is there; it goes first");
        down(&DownArgs {})?;
    }
    let started = std::time::Instant::now();
    step::heading("a node of its own");
    let mut place = step::step("namespace, BPF file system and cgroup", || {
        let place = Place::make(&binaries)?;
        let text = format!("{} and {}", place::NODE, place::DIRECTORY);
        Ok((place, text))
    })?;
    step::step("fairlead-proxy, watching deploy/demo", || {
        place.start_daemon()?;
        Ok(((), format!("log in {}/daemon.log", place::DIRECTORY)))
    })?;
    for pod in &PODS {
        step::step(&format!("pod {}", pod.title()), || {
            place.add_pod(pod)?;
            place.start_server(pod)?;
            Ok((
                (),
                format!(
                    "{} and {}, through the CNI plugin; a web server in it",
                    pod.v4, pod.v6
                ),
            ))
        })?;
    }
    step::heading("who reaches whom");
    let right = prove::run(&place)?;
    next_steps(&place);
    step::note(&format!("up in {}", step::seconds(started.elapsed())));
    if !right {
        bail!("the table is not what the policies say");
    }
    Ok(())
}

/// Builds the daemon and the plugin.
fn binaries(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    step::streamed("build fairlead-proxy and fairlead-cni", || {
        exec::stream(
            exec::cargo()
                .current_dir(project::root())
                .args([
                    "build",
                    "--package",
                    "fairlead-proxy",
                    "--package",
                    "fairlead-cni",
                ])
                .args(release.then_some("--release")),
        )
    })?;
    Ok(project::workspace()?.target_directory.join(profile))
}

fn next_steps(place: &Place) {
    let proxy = place.proxy_line();
    step::heading("what to type next");
    for (what, line) in [
        ("is all well", format!("{proxy} status")),
        (
            "watch connections and drops",
            format!("{proxy} flows --follow"),
        ),
        (
            "why may lab/probe not reach shop/api",
            format!("{proxy} policy explain --from lab/probe --to shop/api --port 8080/tcp"),
        ),
        (
            "try it",
            "ip netns exec fl-demo-lab-probe curl -m 1 http://10.97.0.11/".to_owned(),
        ),
        (
            "change the rules",
            "edit deploy/demo/policies.yaml; they are in force as you save".to_owned(),
        ),
        ("end it", "cargo xtask down".to_owned()),
    ] {
        step::note(&format!("{what:38} {line}"));
    }
}

pub(crate) fn down(_: &DownArgs) -> Result<()> {
    step::heading("down");
    if !Place::exists() {
        step::note("nothing is there");
        return Ok(());
    }
    Place::remove()?;
    Ok(())
}
