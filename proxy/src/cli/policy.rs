//! `policy test` and `policy matrix`: manifests through the real programs,
//! without any cluster.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::datapath::rig::Rig;
use crate::explain::parse_port;
use crate::model::manifest::Document;
use crate::source::document;
use crate::trial::{Kernel, Trial, report};

use super::{Outcome, Output};

/// What CI sees if a packet is not judged as expected.
const UNEXPECTED: u8 = 1;

pub(super) fn test(files: &[PathBuf], output: Output) -> Outcome {
    let trial = read(files)?;
    if trial.cases.is_empty() {
        return Err("the files hold no PolicyTest, or none with cases\n\
                    hint: `fairlead-proxy policy test --help` shows one"
            .into());
    }
    let mut rig = load(&trial)?;
    let outcomes = trial.run(&mut rig)?;
    let text = match output {
        Output::Text => report::table(&outcomes),
        Output::Json => format!("{:#}\n", report::json(&outcomes)),
        Output::Junit => report::junit(&outcomes),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    let is_good = outcomes.iter().all(report::Outcome::is_good);
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(UNEXPECTED)
    })
}

pub(super) fn matrix(files: &[PathBuf], port: &str, output: Output) -> Outcome {
    let port = parse_port(port).ok_or_else(|| {
        format!("\"{port}\" is not a port\nhint: write it as 80/tcp, 53/udp, 9/sctp or icmp")
    })?;
    let trial = read(files)?;
    let mut rig = load(&trial)?;
    let matrix = trial.matrix(&mut rig, port)?;
    let text = match output {
        Output::Json => format!("{:#}\n", matrix.json()),
        Output::Text | Output::Junit => matrix.table(),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn load(trial: &Trial) -> Result<Rig, Box<dyn std::error::Error + Send + Sync>> {
    let mut rig = Rig::new(crate::OBJECT)?;
    rig.load(&trial.compiler)?;
    Ok(rig)
}

/// All documents of the files; of a directory, those of its manifests.
fn read(paths: &[PathBuf]) -> Result<Trial, Box<dyn std::error::Error + Send + Sync>> {
    let mut documents: Vec<Document> = Vec::new();
    let mut faults = Vec::new();
    for path in paths {
        for file in manifests(path)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            let read = document::read(&file.display().to_string(), &text);
            let unread = read.faults.into_iter();
            faults.extend(unread.map(|f| format!("{}: {}; hint: {}", f.origin, f.reason, f.hint)));
            documents.extend(read.documents);
        }
    }
    if !faults.is_empty() {
        return Err(faults.join("\n").into());
    }
    Ok(Trial::read(documents)?)
}

fn manifests(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let wrong = |error: io::Error| format!("cannot list {}: {error}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_every_file_is_named() {
        let directory = std::env::temp_dir().join(format!("fl-policy-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("a.yaml"), "kind: [").unwrap();
        std::fs::write(directory.join("b.yaml"), "just text").unwrap();
        std::fs::write(directory.join("c.txt"), "kind: [").unwrap();
        let error = read(std::slice::from_ref(&directory))
            .unwrap_err()
            .to_string();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(error.contains("a.yaml, document 1"), "{error}");
        assert!(error.contains("b.yaml, document 1"), "{error}");
        assert!(!error.contains("c.txt"), "{error}");
    }

    #[test]
    fn files_without_a_test_are_an_error() {
        let error = test(&[], Output::Text).unwrap_err();
        assert!(error.to_string().contains("no PolicyTest"), "{error}");
    }
}
