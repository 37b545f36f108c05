//! Which controllers there are, and starting them.

use std::sync::Arc;

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
    network::{
        api_server::{ApiServerController, Reachable},
        endpoint_slice::EndpointSliceController,
        endpoints::EndpointsController,
        mirroring::MirroringController,
    },
    runtime::{Clock, Context, Queue, Runtime},
    storage::{
        binder::VolumeBinder,
        local_path::LocalPathProvisioner,
        protection::{ClaimProtection, VolumeProtection},
    },
};
use crate::registry::Registry;

/// What controllers need to know of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The CA in PEM, as pods are given it.
    pub root_ca: String,
    /// How pods reach the server; `None` where there is none to reach.
    pub server: Option<Reachable>,
    /// Names that are not to run.
    pub disabled: Vec<String>,
}

/// All running controllers; they end with this value.
#[derive(Debug)]
pub struct Controllers(Runtime);

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
    ("default-scheduler", |r, c, _| {
        r.spawn(crate::scheduler::run(c.clone()));
    }),
];

impl Controllers {
    /// Names that [`Options::disabled`] may hold.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|(name, _)| *name)
    }

    /// Starts all that are not disabled.
    pub fn start(registry: Arc<Registry>, clock: Clock, options: &Options) -> Self {
        let mut runtime = Runtime::new(registry, clock);
        for (name, start) in ALL {
            if !options.disabled.iter().any(|disabled| disabled == name) {
                let context = runtime.context(name);
                start(&mut runtime, &context, options);
            }
        }
        Self(runtime)
    }

    /// How many controllers have a queue.
    pub fn count(&self) -> usize {
        self.0.queues().len()
    }

    /// Names and queues, for the metrics.
    pub fn queues(&self) -> &[(&'static str, Arc<Queue>)] {
        self.0.queues()
    }

    /// Ends them and waits for that.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}
