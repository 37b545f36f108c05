//! `cargo xtask test`: the gate, rung by rung. CI runs this and nothing else.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::project::{self, Workspace};
use crate::setup::{self, Need};
use crate::{exec, step, tidy};

/// Run the tests: all rungs in order, or those named
///
/// lint     formatting, clippy with warnings denied, the repository's own rules
/// unit     pure modules and in-process tests; no privileges
/// kernel   the eBPF programs on built packets (`BPF_PROG_TEST_RUN`), against an independent
///          evaluator of the Kubernetes rules; root
/// net      network namespaces, real sockets, the real daemon and CNI plugin; root
/// e2e      unmodified clients: kubectl, Helm, containerd; root
///
/// Everything runs in namespaces that the tests make and remove; nothing leaves the machine.
/// Calls `setup` first when something is missing.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Which rungs; none: all
    rungs: Vec<Rung>,
    /// Only tests whose name contains this (not for lint)
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Random cases of the differential tests
    #[arg(long, value_name = "N")]
    cases: Option<u64>,
    /// Start the differential tests from the seed that a failure printed
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Rung {
    Lint,
    Unit,
    Kernel,
    Net,
    E2e,
}

impl Rung {
    const ALL: [Self; 5] = [Self::Lint, Self::Unit, Self::Kernel, Self::Net, Self::E2e];

    /// The rung of an integration test, told by its name; any other is a unit test.
    fn of(test: &str) -> Self {
        match test.split(['_', '-']).next() {
            Some("kernel") => Self::Kernel,
            Some("net") => Self::Net,
            Some("e2e") => Self::E2e,
            _ => Self::Unit,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Net => "net",
            Self::E2e => "e2e",
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut rungs = if args.rungs.is_empty() {
        Rung::ALL.to_vec()
    } else {
        args.rungs.clone()
    };
    rungs.sort();
    rungs.dedup();
    let privileged = rungs.iter().any(|rung| *rung >= Rung::Kernel);
    setup::ensure(if privileged { Need::Test } else { Need::Build })?;
    let workspace = project::workspace()?;
    let started = Instant::now();
    let mut failed = Vec::new();
    for rung in rungs {
        let result = match rung {
            Rung::Lint => lint(),
            _ => step::streamed(&format!("test {}", rung.name()), || {
                tests(rung, &workspace, args)
            }),
        };
        // The rungs below are still worth knowing about.
        if let Err(error) = result {
            step::error(&format!("{}: {error:#}", rung.name()));
            failed.push(rung.name());
        }
    }
    let took = step::seconds(started.elapsed());
    if !failed.is_empty() {
        bail!("failed: {} ({took})", failed.join(", "));
    }
    step::heading(&format!("all green ({took})"));
    Ok(())
}

fn lint() -> Result<()> {
    step::streamed("lint: formatting", || {
        exec::stream(
            exec::cargo()
                .current_dir(project::root())
                .args(["fmt", "--all", "--check"]),
        )
    })?;
    step::streamed("lint: clippy", || {
        exec::stream(exec::cargo().current_dir(project::root()).args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    step::streamed("lint: repository rules", tidy::run)
}

/// One `cargo test` over the whole workspace: naming packages would build
/// their dependencies anew with other features.
fn tests(rung: Rung, workspace: &Workspace, args: &Args) -> Result<()> {
    if rung >= Rung::Net {
        // They run the real programs.
        exec::stream(exec::cargo().current_dir(project::root()).args([
            "build",
            "--workspace",
            "--bins",
        ]))?;
    }
    let mut command = exec::cargo();
    command
        .current_dir(project::root())
        .args(["test", "--workspace", "--no-fail-fast"]);
    if rung == Rung::Unit {
        command.args(["--lib", "--bins"]);
    }
    let mut names: Vec<&str> = workspace
        .packages
        .iter()
        .flat_map(project::Package::tests)
        .filter(|name| Rung::of(name) == rung)
        .collect();
    names.sort_unstable();
    if names.is_empty() && rung != Rung::Unit {
        bail!("the rung has no tests");
    }
    for name in names {
        command.args(["--test", name]);
    }
    if let Some(cases) = args.cases {
        command.env("FAIRLEAD_CASES", cases.to_string());
    }
    if let Some(seed) = args.seed {
        command.env("FAIRLEAD_SEED", seed.to_string());
    }
    if let Some(filter) = &args.filter {
        command.args(["--", filter]);
    }
    exec::stream(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_belongs_to_the_rung_its_name_starts_with() {
        assert_eq!(Rung::of("kernel"), Rung::Kernel);
        assert_eq!(Rung::of("net_policy"), Rung::Net);
        assert_eq!(Rung::of("e2e-kubectl"), Rung::E2e);
        assert_eq!(Rung::of("network"), Rung::Unit);
    }
}
