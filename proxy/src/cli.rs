//! The command line.
//!
//! What could be piped into another program goes to stdout, the rest to stderr.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proxy_ebpf::record::path;

mod cleanup;
mod client;
mod doctor;
mod flows;
mod policy;
mod run;
mod show;
mod table;

pub(crate) type Outcome = Result<ExitCode, Box<dyn Error + Send + Sync>>;

/// The node daemon of Fairlead: Services, NetworkPolicy and pod networking by eBPF.
///
/// `run` is the daemon; it keeps the node's pinned data path in step with a
/// directory of Kubernetes manifests or a Kubernetes API server. The other
/// commands ask a running daemon over its unix socket, except `doctor`,
/// `cleanup`, `policy test` and `policy matrix`, which need none.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// The daemon's unix socket.
    #[arg(long, global = true, value_name = "PATH", default_value = path::SOCKET)]
    pub(crate) socket: PathBuf,

    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,

    /// What to log to stderr, e.g. `debug` or `fairlead_proxy=trace,warn`.
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = "info",
        env = "FAIRLEAD_LOG",
        value_parser = parse_log
    )]
    pub log: String,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  fairlead-proxy doctor
  fairlead-proxy run --source /etc/fairlead/manifests
  fairlead-proxy run --kubeconfig /etc/kubernetes/proxy.conf --cgroup /sys/fs/cgroup
  fairlead-proxy status
  fairlead-proxy flows --follow
  fairlead-proxy policy explain --from shop/web --to shop/db --port 5432/tcp";

const TEST_EXAMPLE: &str = "\
Expectations stand beside the manifests, in documents of their own:

  apiVersion: fairlead.io/v1
  kind: PolicyTest
  metadata: { name: shop }
  spec:
    cases:
    - { from: shop/web, to: shop/db, port: 5432/tcp, expect: allow }
    - { from: 203.0.113.7, to: shop/web, port: 443/tcp, expect: deny }

A Deployment and the like stands for one pod of its name. The exit code is 0 if
every packet is judged as expected, else 1. Root is needed, a cluster is not.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For CI servers (`policy test` only).
    Junit,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon.
    Run(RunArgs),
    /// Is all well? Sources, rejected objects, full maps, repairs, drops.
    Status,
    /// The pods attached to this node.
    Endpoints,
    /// Service ports and their endpoints.
    Services,
    /// NetworkPolicies and the local pods they isolate.
    Policies,
    /// The connections that are tracked now: those under policies, and to Services by packet.
    Flows {
        /// Print new connections and dropped packets as they happen, with the
        /// policy that decided, until interrupted.
        #[arg(short, long)]
        follow: bool,
        /// Only dropped packets.
        #[arg(long, requires = "follow")]
        dropped: bool,
    },
    /// Explain and test NetworkPolicies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Check what the data path needs of this machine: cause and fix for each.
    Doctor {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Remove every trace of the data path: attached programs, maps, socket.
    ///
    /// Pods that are attached lose their Services and policies. Stop the daemon first.
    Cleanup {
        #[command(flatten)]
        place: PlaceArgs,
        /// The endpoint records and addresses too: the CNI plugin forgets the pods.
        #[arg(long)]
        records: bool,
        /// Where the endpoint records are.
        #[arg(long, value_name = "DIR", default_value = path::STATE_DIR)]
        state_dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Which policies and rules decide about a connection, in both directions.
    Explain {
        /// The pod that connects: NAMESPACE/POD.
        #[arg(long, value_name = "NS/POD")]
        from: String,
        /// Where to: NAMESPACE/POD or an address.
        #[arg(long, value_name = "NS/POD|IP")]
        to: String,
        /// E.g. 80/tcp, 53/udp, icmp.
        #[arg(long, value_name = "PORT/PROTOCOL")]
        port: String,
    },
    /// Test policies without a cluster: manifests and expectations, through the real programs.
    #[command(after_help = TEST_EXAMPLE)]
    Test {
        /// Files or directories of manifests and `PolicyTest` documents.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Who reaches whom on one port, by the real programs, without a cluster.
    Matrix {
        /// Files or directories of manifests.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// E.g. 80/tcp, 53/udp, icmp.
        #[arg(long, value_name = "PORT/PROTOCOL", default_value = "80/tcp")]
        port: String,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Where the BPF file system is or shall be mounted.
    #[arg(long, value_name = "DIR", default_value = path::BPFFS)]
    pub(crate) bpffs: PathBuf,
    /// The cgroup2 directory below which sockets are translated once, at connect;
    /// without it Services are translated packet by packet.
    #[arg(long, value_name = "DIR")]
    pub(crate) cgroup: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(id = "from", required = true, multiple = true, args = ["source", "kubeconfig", "in_cluster"])]
pub(crate) struct RunArgs {
    /// A directory of manifests (*.yaml, *.yml, *.json), watched; may be given
    /// several times. Of an object in several sources the last one's is in force.
    #[arg(long, value_name = "DIR")]
    pub(crate) source: Vec<PathBuf>,
    /// A Kubernetes API server, by kubeconfig.
    #[arg(long, value_name = "FILE", conflicts_with = "in_cluster")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The API server of the cluster that this runs in, by its service account.
    /// `KUBERNETES_SERVICE_HOST` and `_PORT` say where: without kube-proxy set them to
    /// the server's own address, for nothing else serves its ClusterIP yet.
    #[arg(long)]
    pub(crate) in_cluster: bool,
    /// This node's name, as pods' spec.nodeName has it [default: the host name in
    /// small letters].
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node_name: Option<String>,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Where the CNI plugin keeps its endpoint records.
    #[arg(long, value_name = "DIR", default_value = path::STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Where to serve /healthz, /livez, /readyz and /metrics; `none`: nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10256", value_parser = parse_listen)]
    pub(crate) listen: Listen,
    /// How often everything is compared with what it should be, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) audit: Duration,
    /// Size of a map that does not exist yet, e.g. `FLOWS_V4=262144`. Of maps that
    /// the kernel programs fill: `FLOWS`, `VIP_FLOWS`, `FRAGMENTS`, `AFFINITY` (`_V4`, `_V6`).
    #[arg(long, value_name = "MAP=ENTRIES", value_parser = parse_size)]
    pub(crate) map_size: Vec<(String, u32)>,
    /// Load the programs that tell each drop in words, to be seen with
    /// `--log dataplane=debug,info`. Debug builds only.
    #[cfg(logging_object)]
    #[arg(long)]
    pub(crate) logging_programs: bool,
}

impl RunArgs {
    /// The kernel object to load.
    fn object(&self) -> &'static [u8] {
        #[cfg(logging_object)]
        if self.logging_programs {
            return crate::LOGGING_OBJECT;
        }
        crate::OBJECT
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

fn parse_log(text: &str) -> Result<String, String> {
    let filter = tracing_subscriber::EnvFilter::try_new(text);
    let hint = "write it as debug, or fairlead_proxy=trace,warn";
    filter
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}; {hint}"))
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    if text == "none" {
        return Ok(Listen(None));
    }
    let address = text.parse();
    address
        .map(|address| Listen(Some(address)))
        .map_err(|error| format!("{error}; write it as 127.0.0.1:10256, or none"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("use 1 to 86400".to_owned()),
    }
}

/// Maps whose sizes nothing else depends on.
const SIZED: [&str; 8] = [
    "FLOWS_V4",
    "FLOWS_V6",
    "VIP_FLOWS_V4",
    "VIP_FLOWS_V6",
    "FRAGMENTS_V4",
    "FRAGMENTS_V6",
    "AFFINITY_V4",
    "AFFINITY_V6",
];

fn parse_size(text: &str) -> Result<(String, u32), String> {
    let (name, size) = text.split_once('=').ok_or("write it as MAP=ENTRIES")?;
    if !SIZED.contains(&name) {
        return Err(format!(
            "the size of {name} cannot be set; use one of {}",
            SIZED.join(", ")
        ));
    }
    match size.parse() {
        Ok(size @ 16..=16_777_216) => Ok((name.to_owned(), size)),
        _ => Err("use 16 to 16777216 entries".to_owned()),
    }
}

/// Runs a command.
///
/// # Errors
/// Whatever kept it from doing its work; [`complain`] tells it.
pub fn run(cli: Cli) -> Outcome {
    let is_test = matches!(&cli.command, Command::Policy(PolicyCommand::Test { .. }));
    if cli.output == Output::Junit && !is_test {
        return Err("only `policy test` has a JUnit form\nhint: use -o json".into());
    }
    let client = client::Client::new(&cli.socket);
    match cli.command {
        Command::Run(args) => run::run(args, cli.socket),
        Command::Status => show::status(&client, cli.output),
        Command::Endpoints => show::endpoints(&client, cli.output),
        Command::Services => show::services(&client, cli.output),
        Command::Policies => show::policies(&client, cli.output),
        Command::Flows { follow, dropped } => flows::flows(&client, cli.output, follow, dropped),
        Command::Policy(PolicyCommand::Explain { from, to, port }) => {
            show::explain(&client, cli.output, from, to, port)
        }
        Command::Policy(PolicyCommand::Test { files }) => policy::test(&files, cli.output),
        Command::Policy(PolicyCommand::Matrix { files, port }) => {
            policy::matrix(&files, &port, cli.output)
        }
        Command::Doctor { place } => doctor::doctor(&place, cli.output),
        Command::Cleanup {
            place,
            records,
            state_dir,
        } => cleanup::cleanup(
            &place,
            &cli.socket,
            records.then_some(&state_dir),
            cli.output,
        ),
    }
}

/// Tells an error and its causes.
pub fn complain(error: &(dyn Error + Send + Sync + 'static)) {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, "\n  because: {error}").expect("writing to a String cannot fail");
        cause = error.source();
    }
    // Nobody is left to be told if stderr is closed.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Sizes as the loader wants them.
fn sizes(list: Vec<(String, u32)>) -> BTreeMap<String, u32> {
    list.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_source_is_required_and_sizes_are_checked() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from([&["fairlead-proxy", "run"], arguments].concat())
        };
        assert!(parse(&[]).is_err());
        assert!(parse(&["--source", "a", "--source", "b"]).is_ok());
        assert!(parse(&["--kubeconfig", "f", "--in-cluster"]).is_err());
        assert!(parse(&["--source", "a", "--map-size", "FLOWS_V4=1024"]).is_ok());
        let error = parse(&["--source", "a", "--map-size", "SLOTS=1024"]).unwrap_err();
        assert!(error.to_string().contains("cannot be set"), "{error}");
        assert!(parse(&["--source", "a", "--audit", "0"]).is_err());
        assert!(parse(&["--source", "a", "--listen", "none"]).is_ok());
        assert!(parse(&["--source", "a", "--log", "a=b=c"]).is_err());
    }

    #[test]
    fn only_tests_have_a_form_for_ci_servers() {
        let cli = Cli::try_parse_from(["fairlead-proxy", "status", "-o", "junit"]).unwrap();
        let error = run(cli).unwrap_err().to_string();
        assert!(error.contains("only `policy test`"), "{error}");
    }
}
