//! `cargo xtask bench`: runs a suite, shows its figures beside what they must reach.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::setup::{self, Need};
use crate::{exec, project, step};

/// Measure, and compare with the figures the project promises
///
/// A suite is a benchmark target of the workspace that prints one JSON document. Everything is
/// built optimised. Times over an empty program are medians in nanoseconds; ratios are against
/// a peer measured in the same run.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    suite: Suite,
    /// Fewer rounds: shows the shape, not the last digit
    #[arg(long)]
    quick: bool,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a figure is missed, and say by how much
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Suite {
    /// The kernel programs and the policy compiler
    Datapath,
    /// The CNI plugin beside Debian's ptp
    Cni,
    /// The API server under clients, watchers and hollow nodes, over TLS
    Api,
}

impl Suite {
    /// (package, benchmark target)
    fn target(self) -> (&'static str, &'static str) {
        match self {
            Self::Datapath => ("fairlead-tests", "datapath"),
            Self::Cni => ("fairlead-tests", "cni"),
            Self::Api => ("fairlead-tests", "api"),
        }
    }
}

/// What a suite prints on its standard output.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    suite: String,
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    /// What must hold; none: for information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
}

impl Figure {
    /// By what share of the limit it is missed, if it is.
    fn missed(&self) -> Option<f64> {
        let over = self.at_most.map(|limit| (self.value - limit) / limit);
        let under = self.at_least.map(|limit| (limit - self.value) / limit);
        over.into_iter().chain(under).find(|share| *share > 0.0)
    }

    fn limit(&self) -> String {
        match (self.at_most, self.at_least) {
            (Some(limit), _) => format!("<= {limit}"),
            (_, Some(limit)) => format!(">= {limit}"),
            _ => String::new(),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(Need::Test)?;
    let (package, target) = args.suite.target();
    let release = crate::build::binaries(true)?;
    step::heading(&format!("bench {target}"));
    let mut command = exec::cargo();
    command
        .current_dir(project::root())
        .args(["bench", "--quiet", "--package", package, "--bench", target])
        .stderr(std::process::Stdio::inherit());
    for binary in &release {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let variable = format!("{}_BIN", name.replace('-', "_").to_uppercase());
        command.env(variable, binary);
    }
    command.args(["--", "--json"]);
    command.args(args.quick.then_some("--quick"));
    let report: Report = serde_json::from_str(&exec::read(&mut command)?)
        .context("the suite did not print a report")?;
    for line in table(&report.figures) {
        step::data(&line);
    }
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let missed = report
        .figures
        .iter()
        .filter(|figure| figure.missed().is_some())
        .count();
    if args.check && missed > 0 {
        bail!("{missed} of {} figures missed", report.figures.len());
    }
    Ok(())
}

/// Name, value, limit, and by how much it is missed.
fn table(figures: &[Figure]) -> Vec<String> {
    let width = figures
        .iter()
        .map(|figure| figure.name.len())
        .max()
        .unwrap_or(0);
    figures
        .iter()
        .map(|figure| {
            let verdict = match (figure.missed(), figure.limit().is_empty()) {
                (Some(share), _) => format!("MISSED by {:.0} %", share * 100.0),
                (None, false) => "reached".to_owned(),
                (None, true) => String::new(),
            };
            format!(
                "{:width$}  {:>10.1} {:<5} {:>10}  {verdict}",
                figure.name,
                figure.value,
                figure.unit,
                figure.limit()
            )
            .trim_end()
            .to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, at_most: Option<f64>, at_least: Option<f64>) -> Figure {
        Figure {
            name: "a".into(),
            value,
            unit: "ns".into(),
            at_most,
            at_least,
        }
    }

    #[test]
    fn a_figure_is_missed_on_its_own_side_only() {
        assert_eq!(figure(40.0, Some(40.0), None).missed(), None);
        assert_eq!(figure(50.0, Some(40.0), None).missed(), Some(0.25));
        assert_eq!(figure(30.0, None, Some(40.0)).missed(), Some(0.25));
        assert_eq!(figure(50.0, None, Some(40.0)).missed(), None);
        assert_eq!(figure(50.0, None, None).missed(), None);
    }

    #[test]
    fn the_table_says_by_how_much() {
        let lines = table(&[figure(50.0, Some(40.0), None), figure(5.0, None, None)]);
        assert!(lines[0].ends_with("MISSED by 25 %"), "{lines:?}");
        assert!(lines[1].ends_with("ns"), "{lines:?}");
    }
}
