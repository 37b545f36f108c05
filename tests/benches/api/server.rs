//! The real server in a directory of its own, and what the kernel says of it.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fairlead_tests::process::{self, Process};
use hyper::{Method, StatusCode};

use crate::client::Connector;

const START_MAX: Duration = Duration::from_secs(30);
/// Between two looks at a server that is starting.
const LOOK: Duration = Duration::from_millis(1);

/// A running server, killed on drop.
pub(crate) struct Server {
    process: Process,
    kubeconfig: PathBuf,
    pub(crate) connector: Connector,
    /// From the start of the process to the first 200 of `/readyz`.
    pub(crate) ready_after: Duration,
}

/// The release build that `cargo xtask bench` names, or the one beside this.
fn program() -> PathBuf {
    let named = std::env::var_os("FAIRLEAD_BIN").map(PathBuf::from);
    named.unwrap_or_else(|| process::program("fairlead"))
}

impl Server {
    /// Starts a server over what is in `directory`, with these flags besides.
    pub(crate) async fn start(directory: &Path, flags: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let kubeconfig = directory.join(format!("admin-{port}.kubeconfig"));
        let mut command = Command::new(program());
        command
            .arg("server")
            .arg("--data-dir")
            .arg(directory)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(flags);
        let begun = Instant::now();
        let mut process = Process::start("fairlead server", &mut command);
        loop {
            assert!(process.is_running(), "it ended: {}", process.output());
            assert!(
                begun.elapsed() < START_MAX,
                "not ready: {}",
                process.output()
            );
            if let Some(connector) = Connector::from_kubeconfig(&kubeconfig)
                && let Some(connection) = connector.try_connect().await
                && connection.call(Method::GET, "/readyz", "").await.0 == StatusCode::OK
            {
                return Self {
                    process,
                    kubeconfig,
                    connector,
                    ready_after: begun.elapsed(),
                };
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts hollow nodes and waits until all have registered.
    pub(crate) fn hollow(&self, nodes: usize, flags: &[&str]) -> Process {
        let mut command = Command::new(program());
        command
            .args(["hollow", "--nodes", &nodes.to_string()])
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(flags);
        let mut process = Process::start("fairlead hollow", &mut command);
        process.wait_for_output("hollow nodes registered", Duration::from_mins(1));
        process
    }

    /// SIGTERM, and waits.
    pub(crate) fn stop(mut self) {
        let status = self.process.stop();
        assert!(status.success(), "{status}: {}", self.process.output());
    }

    /// Resident memory in MB (10^6 bytes): now, and at most so far.
    pub(crate) fn memory(&self) -> (f64, f64) {
        let path = format!("/proc/{}/status", self.process.pid());
        let text = std::fs::read_to_string(path).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.unwrap().trim().trim_end_matches(" kB");
            kib.parse::<f64>().unwrap() * 1024.0 / 1e6
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Time on a CPU so far, by thread.
    fn threads(&self) -> HashMap<PathBuf, u64> {
        let path = format!("/proc/{}/task", self.process.pid());
        let threads = std::fs::read_dir(path).unwrap();
        threads
            .filter_map(|thread| {
                let path = thread.ok()?.path();
                let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
                let nanos = text.split(' ').next()?.parse().ok()?;
                Some((path, nanos))
            })
            .collect()
    }

    /// What `work` gives, and the seconds of CPU that the server takes for it.
    pub(crate) async fn cost<T>(&self, work: impl Future<Output = T>) -> (T, f64) {
        let before = self.threads();
        let done = work.await;
        let nanos: u64 = self
            .threads()
            .iter()
            .map(|(thread, now)| now - before.get(thread).copied().unwrap_or(0))
            .sum();
        (done, Duration::from_nanos(nanos).as_secs_f64())
    }

    /// CPU that the server takes while `period` passes, in percent of a core.
    pub(crate) async fn busy(&self, period: Duration) -> f64 {
        let ((), seconds) = self.cost(tokio::time::sleep(period)).await;
        100.0 * seconds / period.as_secs_f64()
    }
}
