//! What the daemon is told, and how its parts are put together.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{broadcast, mpsc};
use tracing::{debug, error, info};

use super::core::Core;
use super::orphan::Orphans;
use super::wait::Waiters;
use super::{Daemon, flow, sweep};
use crate::admin::{Admin, Health, limit::Limited, router};
use crate::control::{self, Command};
use crate::datapath::event::Events;
use crate::datapath::{Datapath, Place, load::LoadError};
use crate::inotify::DirectoryWatch;
use crate::netlink::{Monitor, Netlink, NetlinkError};
use crate::source::api::{Access, AccessError};
use crate::source::{self, SourceId, api, directory};

/// Where cluster state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    Directory(PathBuf),
    Api(Access),
}

/// Everything that `run` is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as pods' `spec.nodeName` has it.
    pub node: String,
    pub place: Place,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    /// Health and metrics; `None`: not served.
    pub listen: Option<SocketAddr>,
    pub sources: Vec<SourceKind>,
    /// How often everything is compared with what it should be.
    pub audit: Duration,
}

#[derive(Debug, Error)]
pub enum RunError {
    #[error("another daemon serves {}\nhint: stop it first, or use another --socket", socket.display())]
    AlreadyRunning { socket: PathBuf },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("cannot serve HTTP on {address}: {source}\nhint: choose another with --listen")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot {what} {}: {source}", path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Runs until `stop` completes. The data path stays in place.
pub async fn run(
    config: Config,
    object: &[u8],
    stop: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let records = config.state_dir.join(proxy_ebpf::record::path::ENDPOINTS);
    let at = |what, path: &PathBuf| {
        let path = path.clone();
        move |source| RunError::Path { what, path, source }
    };
    std::fs::create_dir_all(&records).map_err(at("make", &records))?;
    if tokio::net::UnixStream::connect(&config.socket)
        .await
        .is_ok()
    {
        return Err(RunError::AlreadyRunning {
            socket: config.socket,
        });
    }
    let datapath = tokio::task::block_in_place(|| Datapath::open(object, &config.place))?;
    info!(pins = %datapath.pins().root().display(), "data path loaded");
    let admin = Admin {
        health: Arc::new(Mutex::new(Health::default())),
        datapath: Arc::new(datapath),
    };
    let boot = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let boot_id = std::fs::read_to_string(&boot).map_err(at("read", &boot))?;
    let names = config.sources.iter().map(describe).collect();
    let core = Core::new(
        &config.node,
        admin.clone(),
        names,
        records.clone(),
        boot_id.trim().to_owned(),
    );
    // Watches before the first look.
    let watches = Watches::open(&records, &admin.datapath.pins().links())?;
    let ring = Events::open(&admin.datapath.maps.events)
        .map_err(at("read the events below", &config.place.bpffs))?;
    let listener = control::bind(&config.socket).map_err(at("serve on", &config.socket))?;
    let mut tasks = tokio::task::JoinSet::new();
    let sources = start_sources(&config.sources, &mut tasks).await?;
    if let Some(address) = config.listen {
        serve_http(address, admin.clone(), &mut tasks).await?;
    }
    tasks.spawn(sweep::run(admin.clone()));
    let flows = broadcast::Sender::new(control::FLOW_LINES);
    let mut daemon = Daemon {
        core,
        netlink: Netlink::open()?,
        waiters: Waiters::default(),
        orphans: Orphans::start(admin.clone(), &mut tasks),
        flows: flows.clone(),
        started: std::time::SystemTime::now(),
        retry: None,
    };
    let (batches, events) = mpsc::channel(16);
    tasks.spawn(flow::pump(ring, batches, flows.clone()));
    let commands = serve_socket(listener, flows, &mut tasks);
    daemon.start().await;
    let queues = Queues {
        sources,
        commands,
        events,
    };
    daemon.serve(queues, watches, config.audit, stop).await;
    info!("stopping; the data path stays in place");
    admin.update(|health| health.is_stopping = true);
    tasks.shutdown().await;
    // Left alone if a successor has put its own there.
    if let Err(error) = std::fs::remove_file(&config.socket) {
        debug!(%error, "the socket is gone already");
    }
    Ok(())
}

fn describe(source: &SourceKind) -> String {
    match source {
        SourceKind::Directory(path) => format!("directory {}", path.display()),
        SourceKind::Api(Access::InCluster) => "the cluster's API server".to_owned(),
        SourceKind::Api(Access::Kubeconfig(path)) => {
            format!("API server of {}", path.display())
        }
    }
}

async fn start_sources(
    sources: &[SourceKind],
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<mpsc::Receiver<(SourceId, source::Event)>, AccessError> {
    let (sender, receiver) = mpsc::channel(source::QUEUE_EVENTS);
    for (id, kind) in sources.iter().enumerate() {
        let sender = source::Sender::new(SourceId(id), sender.clone());
        match kind {
            SourceKind::Directory(path) => tasks.spawn(directory::run(path.clone(), sender)),
            SourceKind::Api(access) => tasks.spawn(api::run(api::connect(access).await?, sender)),
        };
    }
    Ok(receiver)
}

async fn serve_http(
    address: SocketAddr,
    admin: Admin,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<(), RunError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })?;
    info!(%address, "serving health and metrics");
    tasks.spawn(async move {
        if let Err(error) = axum::serve(Limited::new(listener), router(admin)).await {
            error!(%error, "the HTTP server ended");
        }
    });
    Ok(())
}

fn serve_socket(
    listener: UnixListener,
    flows: broadcast::Sender<Arc<str>>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> mpsc::Receiver<Command> {
    let (commands, receiver) = mpsc::channel(control::QUEUE_COMMANDS);
    tasks.spawn(control::serve(
        listener,
        control::Service { commands, flows },
    ));
    receiver
}

/// What tells of changes on this node.
pub(super) struct Watches {
    pub(super) records: DirectoryWatch,
    pub(super) links: DirectoryWatch,
    pub(super) monitor: Monitor,
}

impl Watches {
    fn open(records: &Path, links: &Path) -> Result<Self, RunError> {
        let watch = |path: &Path| {
            DirectoryWatch::new(path).map_err(|source| RunError::Path {
                what: "watch",
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            records: watch(records)?,
            links: watch(links)?,
            monitor: Monitor::open()?,
        })
    }
}

/// What others send to the loop.
pub(super) struct Queues {
    pub(super) sources: mpsc::Receiver<(SourceId, source::Event)>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Receiver<Vec<proxy_ebpf::event::Event>>,
}
