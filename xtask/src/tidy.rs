//! The repository's own rules, those that no compiler checks. Part of `test
//! lint`, and a `#[test]` besides.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{project, step};

/// Lines of a source file without its tests, and of a function (clippy checks those).
const FILE_LINES: usize = 500;

/// The three programs never depend on one another.
const INDEPENDENT: [&str; 3] = ["fairlead-proxy", "fairlead-cni", "fairlead"];

/// Below these paths nothing does I/O, reads a clock, waits or logs.
const PURE: &[&str] = &[
    "orchestrator/src/admission/pod_security/baseline.rs",
    "orchestrator/src/admission/pod_security/restricted.rs",
    "orchestrator/src/auth/claims.rs",
    "orchestrator/src/auth/defaults",
    "orchestrator/src/auth/identity.rs",
    "orchestrator/src/auth/node.rs",
    "orchestrator/src/auth/rbac",
    "orchestrator/src/auth/references.rs",
    "orchestrator/src/auth/rule.rs",
    "proxy-ebpf/src/addr.rs",
    "proxy-ebpf/src/conntrack.rs",
    "proxy-ebpf/src/event.rs",
    "proxy-ebpf/src/nat.rs",
    "proxy-ebpf/src/policy.rs",
    "proxy-ebpf/src/select.rs",
    "proxy/src/compile",
    "proxy/src/model",
    "tests/src/oracle",
];
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::time::Instant",
    "SystemTime",
    "tokio::",
    "tracing::",
];

/// Words and the only paths (prefixes) whose files may use them.
const CONFINED: &[(&str, &[&str])] = &[
    (
        "aya::",
        // lib.rs: the object itself, by aya's macro for aligned bytes.
        &[
            "proxy/src/datapath",
            "proxy/src/lib.rs",
            "proxy-ebpf/src/abi.rs",
            "tests/",
        ],
    ),
    ("aya_ebpf::", &["proxy-ebpf/bin/"]),
    (
        "netlink_packet_route::",
        &[
            "proxy/src/netlink",
            "proxy/src/datapath",
            "cni/src/link",
            "tests/",
        ],
    ),
    (
        "rtnetlink::",
        &["proxy/src/netlink", "proxy/src/datapath", "tests/"],
    ),
];

pub(crate) fn run() -> Result<()> {
    let mut faults = dependencies()?;
    let files = sources()?;
    for file in &files {
        let text = std::fs::read_to_string(project::root().join(file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        faults.extend(check(&file.to_string_lossy(), &text));
    }
    if !faults.is_empty() {
        for fault in &faults {
            step::error(fault);
        }
        bail!("{} repository rules broken", faults.len());
    }
    step::note(&format!("{} files keep them", files.len()));
    Ok(())
}

/// Breaches of independence between the programs.
fn dependencies() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in project::workspace()?.packages {
        for dependency in &package.dependencies {
            let both = [package.name.as_str(), dependency.name.as_str()];
            if both.iter().all(|name| INDEPENDENT.contains(name)) {
                faults.push(format!(
                    "{} depends on {}: they meet at files, sockets and maps",
                    both[0], both[1]
                ));
            }
        }
    }
    Ok(faults)
}

/// All Rust files of the repository, relative to its root.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![project::root().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?
        {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(project::root())?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Breaches of the rules in one file.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |line: usize, what: &str| faults.push(format!("{path}:{}: {what}", line + 1));
    if !text.starts_with("//!") {
        fault(
            0,
            "starts without `//!`: say what the file owns and what it refuses",
        );
    }
    if Path::new(path)
        .file_name()
        .is_some_and(|name| name == "mod.rs")
    {
        fault(0, "mod.rs: use foo.rs beside foo/");
    }
    let is_test =
        path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs");
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .collect();
    if !is_test && code.len() > FILE_LINES {
        fault(
            FILE_LINES,
            &format!("{} lines, {FILE_LINES} at most: split it", code.len()),
        );
    }
    let pure = PURE.iter().any(|prefix| path.starts_with(prefix));
    // This file names what it looks for.
    let names_rules = path == "xtask/src/tidy.rs";
    for (number, line) in text.lines().enumerate() {
        if names_rules {
            break;
        }
        let comment = line.trim_start().starts_with("//");
        for word in ["TODO", "FIXME", "XXX"] {
            if line
                .split(|c: char| !c.is_alphanumeric())
                .any(|part| part == word)
            {
                fault(number, &format!("{word}: do it now or leave it out"));
            }
        }
        if comment {
            continue;
        }
        for (word, allowed) in CONFINED {
            if uses(line, word) && !allowed.iter().any(|prefix| path.starts_with(prefix)) {
                fault(
                    number,
                    &format!("{word} is for {} only", allowed.join(", ")),
                );
            }
        }
        if pure && number < code.len() {
            for word in IMPURE {
                if uses(line, word) {
                    fault(number, &format!("{word} in a pure module"));
                }
            }
        }
    }
    faults
}

/// Whether the path `word` occurs in `line`, not as the end of a longer name.
fn uses(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at]
            .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_rules() {
        run().unwrap();
    }

    #[test]
    fn each_rule_can_fail() {
        let faults = |path: &str, text: &str| check(path, text).len();
        assert_eq!(
            faults("cni/src/main.rs", "//! A file.\nuse serde::Serialize;\n"),
            0
        );
        assert_eq!(faults("cni/src/main.rs", "fn main() {}\n"), 1);
        assert_eq!(faults("cni/src/link/mod.rs", "//! A file.\n"), 1);
        assert_eq!(
            faults(
                "cni/src/main.rs",
                &format!("//! A file.\n// {}\n", ["TO", "DO"].concat())
            ),
            1
        );
        assert_eq!(
            faults("proxy/src/main.rs", "//! A file.\nuse aya::Ebpf;\n"),
            1
        );
        assert_eq!(
            faults(
                "proxy/src/datapath/load.rs",
                "//! A file.\nuse aya::Ebpf;\n"
            ),
            0
        );
        assert_eq!(
            faults("proxy/src/main.rs", "//! A file.\nuse malaya::Ebpf;\n"),
            0
        );
        assert_eq!(
            faults("proxy/src/compile/policy.rs", "//! A file.\nuse std::fs;\n"),
            1
        );
        assert_eq!(
            faults(
                "cni/src/main.rs",
                &format!("//! A file.\n{}", "\n".repeat(500))
            ),
            1
        );
    }
}
