//! The running control plane: opens everything in order, serves, stops.

use std::{
    convert::Infallible,
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Body;
use hyper::{Request, body::Incoming, service::service_fn};
use jiff::Timestamp;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::{
    admission,
    api::{Api, Health, Metrics},
    auth::{self, Auth, User},
    cache::{Cache, Feed},
    config::ServerConfig,
    controller::{
        Controllers, Measures, Options,
        network::{
            allocator::{Range, ServiceAllocator},
            api_server::Reachable,
        },
        runtime::Clock,
    },
    registry::{Admission, Registry, client::Client, lifecycle::NamespaceLifecycle},
    seed,
    signer::Signer,
    status::Status,
    store::{StoreError, sqlite::SqliteStore},
    tls::{
        self, Authority, Leaf, Limits, Rotating, disk, kubeconfig, listen::Endpoint,
        peer::ClientVerifier,
    },
};

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// CA or keys cannot be used.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// Certificates cannot be made.
    #[error(transparent)]
    Pki(#[from] tls::PkiError),
    /// The token key cannot be used.
    #[error(transparent)]
    Key(#[from] auth::jwt::JwtError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The kubeconfig cannot be written.
    #[error(transparent)]
    Kubeconfig(#[from] kubeconfig::KubeconfigError),
    /// The port is taken or not allowed.
    #[error("cannot listen on {address}; hint: choose another --listen, or stop what uses it")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The objects every cluster has could not be made.
    #[error("the cluster's own objects could not be made: {0}")]
    Seed(#[from] Status),
}

/// One step of the start, for whoever shows it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What was done.
    pub what: &'static str,
    /// With which result.
    pub detail: String,
    /// How long it took.
    pub taken: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.taken.as_secs_f64() * 1000.0;
        write!(f, "{:<12} {:<56} {ms:>7.1} ms", self.what, self.detail)
    }
}

/// A server that serves.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The admin's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The pipeline, for whatever runs in this process.
    pub registry: Arc<Registry>,
    /// Authentication and authorization.
    pub auth: Arc<Auth>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    renewing: Vec<JoinHandle<()>>,
    controllers: Controllers,
}

impl Server {
    /// Opens the store, the keys and the port, and serves.
    ///
    /// # Errors
    /// [`StartError`] naming what is in the way.
    pub async fn start(
        config: ServerConfig,
        mut report: impl FnMut(Step),
    ) -> Result<Self, StartError> {
        let mut watch = Stopwatch::new();
        let health = Health::new(&[
            ("store", true),
            ("watch-cache", false),
            ("bootstrap", false),
        ]);
        let (store, cache, objects) = open_store(&config)?;
        health.set("store", true);
        health.set("watch-cache", true);
        let place = config.data_dir.display();
        report(watch.step("store", format!("{place}, {objects} objects")));

        let keys = Keys::open(&config)?;
        let settings = auth::Settings::of_domain(&config.cluster_domain);
        let secret = keys.service_account.expose();
        let wall = tls::system_clock();
        let auth = Arc::new(Auth::new(settings, secret, Arc::clone(&cache), wall)?);
        report(watch.step(
            "certificates",
            format!("CA until {}", day(keys.authority.not_after())),
        ));

        let registry = Arc::new(Registry::new(
            Arc::new(store),
            cache,
            admission_rules(&auth, ServiceAllocator::new(config.service_cidr.clone())),
            Arc::new(Timestamp::now),
        ));
        let user = User::component("system:apiserver", &[auth::identity::MASTERS]);
        let client = Client::new(Arc::clone(&registry), user, "fairlead");
        let made = seed::objects(&client, &config).await?;
        health.set("bootstrap", true);
        report(watch.step("bootstrap", format!("{made} objects made")));

        let listener = listen(config.listen).await?;
        let address = listener.local_addr().map_err(|source| StartError::Listen {
            address: config.listen,
            source,
        })?;
        let public = SocketAddr::new(config.advertise, address.port()).to_string();
        keys.write_kubeconfig(&config, &public)?;
        let metrics = Arc::new(Metrics::default());
        metrics.register(|registry| auth.register(registry));
        let api = Api::new(
            Arc::clone(&registry),
            Arc::clone(&auth),
            health,
            Arc::clone(&metrics),
            public.clone(),
        );
        let (stop, serving) = keys.serve(listener, Arc::new(api), &metrics)?;
        report(watch.step("serving", format!("https://{public}")));
        let authority = Arc::clone(&keys.authority);
        let signer = Signer::new(client, Arc::clone(&auth), authority, tls::system_clock());
        let options = options(&config, &keys, address.port(), signer);
        metrics.register(|registry| options.measures.register(registry));
        let controllers = Controllers::start(Arc::clone(&registry), Clock::system(), options).await;
        report(watch.step("controllers", led(&controllers)));
        let kubeconfig = config.kubeconfig.clone();
        let renewing = keys.keep(config, public);
        Ok(Self {
            address,
            kubeconfig,
            registry,
            auth,
            metrics,
            stop,
            serving,
            renewing,
            controllers,
        })
    }

    /// Lets open requests end, then closes the store.
    pub async fn stop(self) {
        self.controllers.stop().await;
        if self.stop.send(()).is_err() {
            tracing::debug!("the listener had stopped already");
        }
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the listener failed");
        }
        for task in self.renewing {
            task.abort();
        }
    }
}

/// Opens the store, fills the cache from it and ties the two together.
fn open_store(config: &ServerConfig) -> Result<(SqliteStore, Arc<Cache>, usize), StartError> {
    let mut store = SqliteStore::open(&config.data_dir)?;
    let at = store.opened_at();
    let cache = Arc::new(Cache::new(at.durable, at.ceiling, config.ring_bytes));
    let objects = cache.load(&store)?;
    store.start(&config.data_dir, Box::new(Feed(Arc::clone(&cache))))?;
    Ok((store, cache, objects))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })
}

/// The CA and what it has issued.
struct Keys {
    authority: Arc<Authority>,
    service_account: disk::SecretPem,
    server: Arc<Rotating>,
    admin: Arc<Rotating>,
}

impl Keys {
    fn open(config: &ServerConfig) -> Result<Self, StartError> {
        let secrets = disk::open(&config.data_dir, std::time::SystemTime::now())?;
        let authority = Arc::new(secrets.authority);
        let admin = Leaf::Client {
            common_name: "fairlead-admin".to_owned(),
            organizations: vec![auth::identity::CLUSTER_ADMINS.to_owned()],
        };
        let issue = |leaf| {
            let life = config.certificate_life;
            Rotating::with_life(Arc::clone(&authority), leaf, life, tls::system_clock())
        };
        Ok(Self {
            server: issue(server_leaf(config))?,
            admin: issue(admin)?,
            authority,
            service_account: secrets.service_account_key,
        })
    }

    fn write_kubeconfig(&self, config: &ServerConfig, public: &str) -> Result<(), StartError> {
        let owner = kubeconfig::InvokingUser::from_sudo(|name| std::env::var(name).ok());
        let ca = self.authority.certificate_pem();
        let server = format!("https://{public}");
        let text = self
            .admin
            .with_current(|issued| kubeconfig::render(&server, ca, issued));
        Ok(kubeconfig::write(&config.kubeconfig, &text, owner)?)
    }

    /// Starts what keeps certificates and the kubeconfig up to date.
    fn keep(self, config: ServerConfig, public: String) -> Vec<JoinHandle<()>> {
        vec![
            tokio::spawn(Arc::clone(&self.server).keep_fresh()),
            tokio::spawn(Arc::clone(&self.admin).keep_fresh()),
            tokio::spawn(async move {
                let mut renewed = self.admin.subscribe();
                while renewed.changed().await.is_ok() {
                    if let Err(error) = self.write_kubeconfig(&config, &public) {
                        tracing::error!(%error, "the kubeconfig could not be renewed");
                    }
                }
            }),
        ]
    }

    fn serve(
        &self,
        listener: TcpListener,
        api: Arc<Api>,
        metrics: &Metrics,
    ) -> Result<(oneshot::Sender<()>, JoinHandle<()>), StartError> {
        let verifier = ClientVerifier::new(self.authority.certificate().clone())?;
        let certificate = Arc::clone(&self.server);
        let endpoint = Endpoint::new(
            certificate,
            verifier,
            tls::system_clock(),
            Limits::default(),
        )?;
        metrics.register(|registry| endpoint.counters().register(registry));
        let service = service_fn(move |request: Request<Incoming>| {
            let api = Arc::clone(&api);
            async move { Ok::<_, Infallible>(api.handle(request.map(Body::new)).await) }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(tls::serve(endpoint, listener, service, async move {
            // A dropped server stops as well.
            drop(stopped.await);
        }));
        Ok((stop, serving))
    }
}

/// Names and addresses of the server's certificate.
fn server_leaf(config: &ServerConfig) -> Leaf {
    let mut names = tls::authority::api_server_names(&config.cluster_domain);
    names.extend(host_name());
    let mut addresses = vec![
        config.advertise,
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
    ];
    if !config.listen.ip().is_unspecified() {
        addresses.push(config.listen.ip());
    }
    addresses.extend(config.service_cidr.iter().map(Range::first));
    for name in &config.tls_san {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.clone()),
        }
    }
    addresses.sort();
    addresses.dedup();
    Leaf::Server {
        common_name: "kube-apiserver".to_owned(),
        organizations: Vec::new(),
        names,
        addresses,
    }
}

/// The machine's name, if it can be one in a certificate.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    (!name.is_empty() && name.bytes().all(plain)).then(|| name.to_owned())
}

fn day(time: std::time::SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(
        |_| "the end of time".to_owned(),
        |t| t.strftime("%Y-%m-%d").to_string(),
    )
}

struct Stopwatch(Instant);

impl Stopwatch {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn step(&mut self, what: &'static str, detail: String) -> Step {
        let now = Instant::now();
        let taken = now - self.0;
        self.0 = now;
        Step {
            what,
            detail,
            taken,
        }
    }
}

/// What controllers need to know.
fn options(config: &ServerConfig, keys: &Keys, port: u16, signer: Signer) -> Options {
    Options {
        root_ca: keys.authority.certificate_pem().to_owned(),
        server: Some(Reachable {
            address: SocketAddr::new(config.advertise, port),
            ranges: config.service_cidr.clone(),
        }),
        signer: Some(Arc::new(signer)),
        event_ttl: Some(config.event_ttl),
        disabled: config.disabled_controllers.clone(),
        identity: identity(config),
        measures: Measures::default(),
    }
}

/// Who this server is among those that may share a store: a machine and a data
/// directory, which one process locks.
fn identity(config: &ServerConfig) -> String {
    let place = std::path::absolute(&config.data_dir);
    let place = place.unwrap_or_else(|_| config.data_dir.clone());
    let digest = ring::digest::digest(&ring::digest::SHA256, place.as_os_str().as_encoded_bytes());
    let mut identity = host_name().unwrap_or_else(|| "fairlead".to_owned()) + "_";
    for byte in digest.as_ref().iter().take(8) {
        write!(identity, "{byte:02x}").expect("strings take everything");
    }
    identity
}

/// What leads, for whoever watches the start.
fn led(controllers: &Controllers) -> String {
    match controllers.leading() {
        [] => "wait for their leases".to_owned(),
        leading => format!("leading: {}", leading.join(", ")),
    }
}

/// What every write has to pass, in this order.
fn admission_rules(auth: &Arc<Auth>, services: ServiceAllocator) -> Vec<Box<dyn Admission>> {
    let mut rules: Vec<Box<dyn Admission>> = vec![Box::new(NamespaceLifecycle)];
    rules.extend(admission::rules(auth));
    rules.push(Box::new(services));
    rules
}
