//! Which controllers there are, and starting them.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};

use super::{
    apps::{
        daemonset::DaemonSetController, deployment::DeploymentController,
        replicaset::ReplicaSetController, statefulset::StatefulSetController,
    },
    batch::{cronjob::CronJobController, job::JobController},
    cluster::{
        garbage::GarbageCollector,
        namespace::NamespaceController,
        node::NodeController,
        pod_gc::PodGarbageCollector,
        service_account::{RootCaPublisher, ServiceAccountController},
    },
    leader::{Election, Timing},
    network::{
        api_server::{ApiServerController, Reachable},
        endpoint_slice::EndpointSliceController,
        endpoints::EndpointsController,
        mirroring::MirroringController,
    },
    runtime::{self, Clock, Context, Runtime},
    storage::{
        binder::VolumeBinder,
        local_path::LocalPathProvisioner,
        protection::{ClaimProtection, VolumeProtection},
    },
};
use crate::{
    auth::{User, aggregation, identity::MASTERS},
    registry::{Registry, client::Client, expiry},
    scheduler,
    signer::Signer,
};

/// What controllers need to know of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The CA in PEM, as pods are given it.
    pub root_ca: String,
    /// How pods reach the server; `None` where there is none to reach.
    pub server: Option<Reachable>,
    /// What signs certificate requests; `None` leaves them to others.
    pub signer: Option<Arc<Signer>>,
    /// How long Events live; `None` keeps them.
    pub event_ttl: Option<Duration>,
    /// Names that are not to run.
    pub disabled: Vec<String>,
    /// Who this process is among those that may share a store; the same
    /// after a restart.
    pub identity: String,
    /// Where figures go.
    pub measures: Measures,
}

/// What is measured of controllers and scheduler.
#[derive(Clone, Debug, Default)]
pub struct Measures {
    /// Of all queues.
    pub queues: Arc<runtime::Measures>,
    /// Of the scheduler.
    pub scheduler: scheduler::Measures,
}

impl Measures {
    /// Shows them.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.queues.register(registry);
        self.scheduler.register(registry);
    }
}

/// Lease of the controllers.
const MANAGER: &str = "kube-controller-manager";
/// Lease of the scheduler.
const SCHEDULER: &str = "kube-scheduler";

/// All controllers, running or waiting for their Lease; they end with this value.
#[derive(Debug)]
pub struct Controllers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    leading: Vec<&'static str>,
}

/// Name and start of one controller.
type Start = (&'static str, fn(&mut Runtime, &Context, &Options));

const ALL: &[Start] = &[
    ("namespace-controller", |r, c, _| {
        r.run(c, NamespaceController::new(c));
    }),
    ("generic-garbage-collector", |r, c, _| {
        r.run(c, GarbageCollector::new(c));
    }),
    ("service-account-controller", |r, c, _| {
        r.run(c, ServiceAccountController::new(c));
    }),
    ("root-ca-cert-publisher", |r, c, o| {
        r.run(c, RootCaPublisher::new(c, o.root_ca.clone()));
    }),
    ("replicaset-controller", |r, c, _| {
        r.run(c, ReplicaSetController::new(c));
    }),
    ("deployment-controller", |r, c, _| {
        r.run(c, DeploymentController::new(c));
    }),
    ("endpointslice-controller", |r, c, _| {
        r.run(c, EndpointSliceController::new(c));
    }),
    ("endpoint-controller", |r, c, _| {
        r.run(c, EndpointsController::new(c));
    }),
    ("endpointslicemirroring-controller", |r, c, _| {
        r.run(c, MirroringController::new(c));
    }),
    ("kubernetes-service-controller", |r, c, o| {
        if let Some(server) = o.server.clone() {
            r.run(c, ApiServerController::new(c, server));
        }
    }),
    ("daemonset-controller", |r, c, _| {
        r.run(c, DaemonSetController::new(c));
    }),
    ("statefulset-controller", |r, c, _| {
        r.run(c, StatefulSetController::new(c));
    }),
    ("node-controller", |r, c, _| {
        r.run(c, NodeController::new(c));
    }),
    ("pod-garbage-collector", |r, c, _| {
        r.run(c, PodGarbageCollector::new(c));
    }),
    ("job-controller", |r, c, _| {
        r.run(c, JobController::new(c));
    }),
    ("cronjob-controller", |r, c, _| {
        r.run(c, CronJobController::new(c));
    }),
    ("persistent-volume-binder", |r, c, _| {
        r.run(c, VolumeBinder::new(c));
    }),
    ("local-path-provisioner", |r, c, _| {
        r.run(c, LocalPathProvisioner::new(c));
    }),
    ("pvc-protection-controller", |r, c, _| {
        r.run(c, ClaimProtection::new(c));
    }),
    ("pv-protection-controller", |r, c, _| {
        r.run(c, VolumeProtection::new(c));
    }),
    ("clusterrole-aggregation-controller", |r, c, _| {
        r.spawn(aggregation::follow(server(c)));
    }),
    ("certificatesigningrequest-signing-controller", |r, _, o| {
        if let Some(signer) = o.signer.clone() {
            r.spawn(signer.run());
        }
    }),
    ("event-ttl-controller", |r, c, o| {
        if let Some(life) = o.event_ttl {
            r.spawn(expiry::run(c.client.clone(), c.clock.clone(), life));
        }
    }),
    ("default-scheduler", |r, c, o| {
        r.spawn(scheduler::run(c.clone(), o.measures.scheduler.clone()));
    }),
];

/// Access as the server itself: who unites roles must hold what is in them.
fn server(context: &Context) -> Client {
    let user = User::component("system:apiserver", &[MASTERS]);
    Client::new(Arc::clone(context.client.registry()), user, "fairlead")
}

impl Controllers {
    /// Names that [`Options::disabled`] may hold.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|(name, _)| *name)
    }

    /// Starts all that are not disabled, those behind a Lease that somebody
    /// else holds when they get it.
    pub async fn start(registry: Arc<Registry>, clock: Clock, options: Options) -> Self {
        let options = Arc::new(options);
        let (stop, stopping) = watch::channel(false);
        let mut all = Self {
            stop,
            tasks: JoinSet::new(),
            leading: Vec::new(),
        };
        // Side by side, so that they share the disk's flush.
        let stand = |lease| candidate(lease, &registry, &clock, &options.identity);
        let candidates = tokio::join!(stand(MANAGER), stand(SCHEDULER));
        for (lease, (election, led)) in [(MANAGER, candidates.0), (SCHEDULER, candidates.1)] {
            if led {
                all.leading.push(lease);
            }
            let (registry, clock) = (Arc::clone(&registry), clock.clone());
            let options = Arc::clone(&options);
            let work = move || begin(lease, &registry, &clock, &options);
            all.tasks.spawn(election.run(led, work, stopping.clone()));
        }
        all
    }

    /// Leases that were free at the start.
    pub fn leading(&self) -> &[&'static str] {
        &self.leading
    }

    /// Ends them, gives the Leases up and waits for that.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A candidate for a Lease, and whether it has got it.
async fn candidate(
    lease: &'static str,
    registry: &Arc<Registry>,
    clock: &Clock,
    identity: &str,
) -> (Election, bool) {
    let user = User::component(&format!("system:{lease}"), &[]);
    let client = Client::new(Arc::clone(registry), user, lease);
    let timing = Timing::default();
    let mut election = Election::new(client, clock.clone(), lease, identity.into(), timing);
    let led = election.attempt().await.unwrap_or_else(|status| {
        tracing::warn!(lease, %status, "the lease could not be written");
        false
    });
    (election, led)
}

/// Starts what runs under one Lease.
fn begin(
    lease: &'static str,
    registry: &Arc<Registry>,
    clock: &Clock,
    options: &Options,
) -> Runtime {
    let measures = Arc::clone(&options.measures.queues);
    let mut runtime = Runtime::measured(Arc::clone(registry), clock.clone(), measures);
    let enabled = |name: &str| !options.disabled.iter().any(|disabled| disabled == name);
    for (name, start) in ALL {
        if lease_of(name) == lease && enabled(name) {
            let context = runtime.context(name);
            start(&mut runtime, &context, options);
        }
    }
    runtime
}

/// The Lease that a controller runs under.
fn lease_of(name: &str) -> &'static str {
    if name == "default-scheduler" {
        SCHEDULER
    } else {
        MANAGER
    }
}
