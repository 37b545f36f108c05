//! A client program, run against a cluster.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{clients, harness::Cluster};

/// What `kubectl edit` starts: it paints things blue.
const EDITOR: &str = "sed -i s/red/blue/";

pub(crate) struct Tool<'a> {
    pub(crate) binary: PathBuf,
    pub(crate) cluster: &'a Cluster,
}

pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tool<'_> {
    pub(crate) fn run(&self, arguments: &str, stdin: &str) -> Output {
        let home = self.cluster.folder.path("home");
        let mut child = Command::new(&self.binary)
            .args(split(arguments))
            .env("KUBECONFIG", &self.cluster.server.kubeconfig)
            .env("HOME", &home)
            .env("KUBE_EDITOR", EDITOR)
            .env(
                "KUBECACHEDIR",
                home.join(self.binary.display().to_string().replace('/', "_")),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(stdin.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Must succeed; its output must hold `expected`.
    pub(crate) fn good(&self, arguments: &str, expected: &str) -> String {
        self.piped(arguments, "", expected)
    }

    pub(crate) fn piped(&self, arguments: &str, stdin: &str, expected: &str) -> String {
        let Output {
            code,
            stdout,
            stderr,
        } = self.run(arguments, stdin);
        assert_eq!(code, 0, "{arguments}: {stdout}{stderr}");
        assert!(
            stdout.contains(expected),
            "{arguments}: no {expected:?} in {stdout}{stderr}"
        );
        stdout
    }

    /// Commands that must succeed, each with what its output must hold.
    pub(crate) fn all_good(&self, table: &[(&str, &str)]) {
        for (arguments, expected) in table {
            self.good(arguments, expected);
        }
    }

    /// Commands that must fail, each with what its error must hold.
    pub(crate) fn all_bad(&self, table: &[(&str, &str)]) {
        for (arguments, expected) in table {
            self.bad(arguments, "", expected);
        }
    }

    /// Must fail; its error must hold `expected`.
    pub(crate) fn bad(&self, arguments: &str, stdin: &str, expected: &str) {
        let Output {
            code,
            stdout,
            stderr,
        } = self.run(arguments, stdin);
        assert_ne!(code, 0, "{arguments} must fail: {stdout}");
        assert!(
            stderr.contains(expected),
            "{arguments}: no {expected:?} in {stderr}"
        );
    }
}

/// Words; single quotes keep spaces.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Runs `check` with each kubectl against a cluster of its own.
pub(crate) fn with_each(name: &str, check: impl Fn(&Tool<'_>)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for binary in clients::kubectls() {
        let cluster = runtime.block_on(Cluster::start(name));
        check(&Tool {
            binary,
            cluster: &cluster,
        });
        runtime.block_on(cluster.server.stop());
    }
}
