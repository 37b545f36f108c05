//! `fairlead`, the command line.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use fairlead::{
    config::ServerArgs,
    hollow::{Hollow, HollowArgs},
    server::Server,
    store::archive::{self, Summary},
};
use tokio::signal::unix::{SignalKind, signal};

/// Requests make and drop thousands of small values each; this takes a quarter
/// less CPU over them than the C library's allocator, for a fifth more memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SERVER_EXAMPLES: &str = "\
Examples:
  A cluster that other machines reach, with IPv4 and IPv6 Services:
    fairlead server --listen 0.0.0.0:6443 --advertise 192.0.2.10 \\
      --service-cidr 10.96.0.0/16,fd00:96::/112

  The same from a file, fairlead.yaml, with `fairlead server --config fairlead.yaml`:
    listen: 0.0.0.0:6443
    advertise: 192.0.2.10
    service-cidr: [10.96.0.0/16, \"fd00:96::/112\"]

  What the server logs goes to stderr; FAIRLEAD_LOG=fairlead=debug tells more.";

/// A Kubernetes control plane in one process.
///
/// Start one and look around:
///
///   fairlead server --data-dir ./cluster
///   export KUBECONFIG=./cluster/admin.kubeconfig
///   kubectl get namespaces
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane: API server, store, controllers, scheduler.
    ///
    /// The first start makes a CA, keys and an admin kubeconfig in the data
    /// directory. Stop it with Ctrl-C or SIGTERM; kill -9 loses no
    /// acknowledged write.
    #[command(after_long_help = SERVER_EXAMPLES)]
    Server(Box<ServerArgs>),
    /// Run hollow nodes against an API server: pods start and end, no containers.
    ///
    /// For tests of a control plane at scale. Pods become ready after
    /// --pod-start-delay; those that are not restarted end after
    /// --pod-run-time. A pod's annotations hollow.fairlead.dev/ready ("false")
    /// and hollow.fairlead.dev/exit-code ("1") make it misbehave.
    Hollow(Box<HollowArgs>),
    /// Save a cluster, live or not, to one file: objects, CA and keys.
    Backup {
        /// The server's data directory.
        #[arg(long, env = "FAIRLEAD_DATA_DIR", default_value = "/var/lib/fairlead")]
        data_dir: PathBuf,
        /// The file to write; must not exist.
        file: PathBuf,
    },
    /// Make an empty data directory of a backup.
    Restore {
        /// The data directory to fill; must hold no store.
        #[arg(long, env = "FAIRLEAD_DATA_DIR", default_value = "/var/lib/fairlead")]
        data_dir: PathBuf,
        /// The backup.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("FAIRLEAD_LOG")
                .unwrap_or_else(|_| "fairlead=info,warn".into()),
        )
        .init();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Server(args) => runtime()?.block_on(serve(*args)),
        Command::Hollow(args) => runtime()?.block_on(hollow(*args)),
        Command::Backup { data_dir, file } => {
            let summary = archive::backup(&data_dir, &file)?;
            say(&format!("saved {} to {}", told(&summary), file.display()));
            Ok(())
        }
        Command::Restore { data_dir, file } => {
            let summary = archive::restore(&file, &data_dir)?;
            say(&format!(
                "restored {} to {}",
                told(&summary),
                data_dir.display()
            ));
            Ok(())
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

async fn hollow(args: HollowArgs) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let count = args.nodes;
    let hollow = Hollow::start(args).await?;
    say(&format!(
        "{count} hollow nodes registered in {:.0} ms",
        started.elapsed().as_secs_f64() * 1000.0
    ));
    tokio::select! {
        () = hollow.run() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn serve(args: ServerArgs) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let config = args.resolve()?;
    let server = Server::start(config, |step| say(&step.to_string())).await?;
    say(&format!(
        "ready in {:.0} ms; next: export KUBECONFIG={} && kubectl get namespaces",
        started.elapsed().as_secs_f64() * 1000.0,
        server.kubeconfig.display()
    ));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    say("stopping");
    server.stop().await;
    Ok(())
}

fn told(summary: &Summary) -> String {
    format!(
        "{} objects and {} files ({} KiB)",
        summary.objects,
        summary.files,
        summary.bytes / 1024
    )
}

/// A line for the person at the terminal; nobody may be there to read it.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
