//! `run`: from arguments to the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::{Outcome, RunArgs, sizes};
use crate::daemon::{self, Config, SourceKind};
use crate::datapath::Place;
use crate::source::api::Access;

/// Threads for the loop, which may be busy for a while, and for everything else.
const THREADS: usize = 2;

pub(super) fn run(args: RunArgs, socket: PathBuf) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Installed before anything is changed.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => info!("terminated"),
                _ = interrupt.recv() => info!("interrupted"),
            }
        };
        let object = args.object();
        let config = config(args, socket);
        // A task of its own: `block_in_place` needs a worker.
        tokio::spawn(daemon::run(config, object, stop)).await??;
        Ok(ExitCode::SUCCESS)
    })
}

fn config(args: RunArgs, socket: PathBuf) -> Config {
    let mut sources: Vec<_> = args.source.into_iter().map(SourceKind::Directory).collect();
    sources.extend(
        args.kubeconfig
            .map(|path| SourceKind::Api(Access::Kubeconfig(path))),
    );
    if args.in_cluster {
        sources.push(SourceKind::Api(Access::InCluster));
    }
    let host_name = || node_name(&rustix::system::uname().nodename().to_string_lossy());
    Config {
        node: args.node_name.unwrap_or_else(host_name),
        place: Place {
            bpffs: args.place.bpffs,
            cgroup: args.place.cgroup,
            sizes: sizes(args.map_size),
        },
        state_dir: args.state_dir,
        socket,
        listen: args.listen.0,
        sources,
        audit: args.audit,
    }
}

/// What a kubelet calls its node where nobody gives it another name.
fn node_name(host_name: &str) -> String {
    host_name.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_name_is_the_kubelets() {
        assert_eq!(node_name("Node-1.Example"), "node-1.example");
    }
}
